"""Training on labelled videos: the same numbers in one process and in two, after a kill and without one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

import stabn
from stabn import engine, train
from stabn.clips import Batch
from stabn.engine import FIGURES, PARTS, Learner, Plan, Statistics, told
from stabn.model import STABN, Config, Output
from stabn.train import RECIPE, Options, UsageError

CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 11 clips in class folders, one of them empty in the middle, and validation/ with 5."""
    root, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 11), ("validation", 5)):
        for number in range(count):
            clip = root / split / CLASSES[number % 3] / f"clip {number}"
            clip.mkdir(parents=True)
            for frame in range(4):
                picture = chance.integers(0, 100, (16, 20, 3))
                picture[..., 2 - number % 3] += 100
                Image.fromarray(picture.astype(np.uint8)).save(clip / f"{frame}.png")
    for picture in (root / "train" / "green" / "clip 4").iterdir():
        picture.write_bytes(b"")
    return root


@pytest.fixture
def options(data: Path, tmp_path: Path) -> Iterator[Options]:
    yield replace(
        RECIPE,
        out=tmp_path / "run" / "tiny.safetensors",
        data=data / "train",
        validation=data / "validation",
        backbone="compact",
        init="none",
        width=2,
        frames=4,
        size=16,
        batch=4,
        epochs=2,
        precision="fp32",
        device="cpu",
        threads=1,
        workers=0,
    )
    AcceleratorState._reset_state(reset_partial_state=True)


def lines(options: Options) -> list[dict[str, Any]]:
    """What the log says, but for what depends on the machine."""
    found = [json.loads(line) for line in Path(f"{options.out}.log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in found]


def arguments(options: Options) -> list[str]:
    """The command line of what differs from the recipe."""
    given = []
    for name, value in vars(options).items():
        if value != getattr(RECIPE, name):
            flag = f"--{name.replace('_', '-')}"
            given += [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
    return given


def weights(path: Path | str) -> dict[str, Tensor]:
    return stabn.load(path).state_dict()


def start(*command: str, **environment: object) -> subprocess.Popen[str]:
    told = {"OMP_NUM_THREADS": 1, "PYTHONPATH": Path(train.__file__).parent.parent, **environment}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {name: str(value) for name, value in told.items()},
    )


class TestPlan:
    def test_each_clip_once_in_an_epoch_in_another_order_each_time(self) -> None:
        plan = Plan(clips=11, batch=4, parts=2, seed=0)
        assert plan.steps == 3
        parts = list(plan.parts_of(range(6), slice(None)))
        assert [len(part) for part in parts] == [2, 2, 2, 2, 2, 1] * 2
        first, second = ([number for part in parts[at : at + 6] for number in part] for at in (0, 6))
        assert sorted(first) == list(range(11))
        assert sorted(second) == list(range(11, 22))  # the same clips, drawn and cropped otherwise
        assert [number - 11 for number in second] != first
        assert list(plan._replace(seed=1).parts_of(range(3), slice(None))) != parts[:6]

    def test_any_number_of_processes_and_any_start_sees_the_same(self) -> None:
        plan = Plan(clips=11, batch=4, parts=4, seed=0)
        whole = list(plan.parts_of(range(6), slice(None)))
        for processes in (1, 2, 4):
            each = 4 // processes
            shares = [list(plan.parts_of(range(2, 6), slice(k * each, (k + 1) * each))) for k in range(processes)]
            steps = [[share[at : at + each] for share in shares] for at in range(0, 4 * each, each)]
            assert [part for step in steps for share in step for part in share] == whole[8:]

    @pytest.mark.parametrize("processes", [1, 2, 3, 7])
    def test_validation_sees_each_clip_once(self, processes: int) -> None:
        seen: list[list[int]] = []
        for rank in range(processes):
            accelerator: Any = SimpleNamespace(process_index=rank, num_processes=processes, device=torch.device("cpu"))
            clips: Any = range(11)
            seen += engine._whole(clips, Plan(50, 8, 2, 0), accelerator, 0).batch_sampler
        assert sorted(seen) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


class Linear(nn.Module):
    """A network without batch norm, whose gradient over parts must be that over all clips."""

    config = Config(classes=3, frames=4, size=16, pool=False)
    normalise = STABN.normalise

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 3)

    def forward(self, clips: Tensor) -> Output:
        return Output(self.fc(clips.mean((2, 3, 4))), None, None)


class TestLearner:
    def learned(self, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Weights and figures after a step in which 4 clips come in parts of these sizes, and one cannot be read."""
        chance = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (4, 1, 4, 16, 16, 3), dtype=torch.uint8, generator=chance)
        labels, network = torch.tensor([0, 1, 2, 1]), Linear()
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        learner = Learner(
            Accelerator(cpu=True), network, network, optimizer, None, Plan(5, 5, len(sizes), 0), Statistics(network)
        )  # type: ignore[arg-type]
        parts, at = [], 0
        for size in sizes:
            part = slice(at, at + size)
            parts.append(Batch(frames[part], labels[part], (), () if parts else ("gone",)))
            at += size
        sums = learner.learn(parts, 0)
        return network.fc.weight.detach(), sums

    def test_the_gradient_is_the_mean_over_all_clips_however_they_are_cut(self) -> None:
        whole, figures = self.learned([4])
        assert not torch.equal(whole, Linear().fc.weight)
        for sizes in ([2, 2], [1, 3], [4, 0], [0, 1, 3]):
            weights, sums = self.learned(sizes)
            torch.testing.assert_close(weights, whole)
            torch.testing.assert_close(sums, figures)
        assert figures[:2].tolist() == [4, 1]
        assert told(figures)["loss"] == told(figures)["perception"] > 0

    def test_a_step_of_which_nothing_could_be_read_changes_nothing(self) -> None:
        weights, sums = self.learned([0, 0])
        assert torch.equal(weights, Linear().fc.weight)
        assert sums.tolist() == [0, 1, *[0] * (len(FIGURES) - 2)]

    def test_running_statistics_are_the_mean_over_parts(self) -> None:
        norm = nn.BatchNorm3d(1)
        statistics = Statistics(norm)
        statistics.begin()
        for count, value in ((3, 2.0), (1, 6.0)):
            norm(torch.full((count, 1, 2, 2, 2), value))
            statistics.take(count)
        statistics.finish(Accelerator(cpu=True), 4)
        assert norm.running_mean is not None
        assert norm.running_mean.item() == pytest.approx(0.1 * (3 * 2 + 1 * 6) / 4)  # momentum 0.1, from 0
        assert norm.num_batches_tracked == 1


class TestTraining:
    def test_what_is_written_and_said(self, options: Options, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        train.main(arguments(options))
        log = lines(options)
        assert [(line["epoch"], line["step"], line["rate"]) for line in log] == [(1, 3, 0.01), (2, 6, 0.01)]
        for line in log:
            for name, clips in (("train", 10), ("validation", 5)):
                found = line[name]
                assert (found["clips"], found["unreadable"]) == (clips, int(name == "train"))
                assert found["loss"] == pytest.approx(found["perception"] + found["attention"], abs=2e-6)
                assert found["attention"] > 0
                assert found["top5"] == 1  # of 3 classes
        names = {path.name.removeprefix(options.out.name) for path in options.out.parent.iterdir()}
        assert names == {"", "tiny.last.safetensors", ".log.jsonl", ".tensorboard"}
        model = stabn.load(options.out)
        assert model.classes == CLASSES
        assert model.config.crop
        trained = model.metadata["trained"]
        assert (trained["data"], trained["clips"], trained[PARTS], trained["rate"]) == ("train", 11, 1, 0.01)
        best = max(log, key=lambda line: (line["validation"]["top1"], -line["validation"]["loss"]))
        assert trained["validation"] == best["validation"]
        assert stabn.load(options.out.with_name("tiny.last.safetensors")).metadata["trained"]["epoch"] == 2
        printed = capsys.readouterr()
        assert printed.out == f"wrote {options.out}\n"
        assert printed.err.count("skipped: ") == 1
        assert f"skipped: {data / 'train' / 'green' / 'clip 4'}" in printed.err
        assert "after the first epoch: top-1 on validation clips is " in printed.err
        assert "better than the 40.0 % of always saying the commonest class" in printed.err
        assert ", 1 clips skipped; validation: loss" in printed.err
        with pytest.raises(SystemExit):
            train.main(arguments(options))
        assert "finished already" in capsys.readouterr().err

    def test_the_validation_is_that_of_the_network_that_is_written(self, options: Options, data: Path) -> None:
        engine.train(replace(options, epochs=1))
        model, right = stabn.load(options.out), 0
        clips = stabn.clips.Clips(stabn.data.read(data / "validation"), CLASSES, 4, 16, crop="centre")
        for number in range(5):
            item = clips[number]
            assert item.frames is not None
            with torch.inference_mode():
                right += int(model(model.preprocess(item.frames[0])).logits.argmax()) == item.label
        assert lines(options)[0]["validation"]["top1"] == pytest.approx(right / 5)

    def test_the_rate_falls_once_for_an_epoch_without_a_lower_loss(
        self, options: Options, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses = iter([2.0, 3.0, 3.0, 1.0, 3.0])
        monkeypatch.setattr(
            Learner, "measure", lambda self, *_: torch.tensor([1, 0, next(losses), 0, 0, 0, 0, 0], dtype=torch.float64)
        )
        engine.train(replace(options, epochs=5, patience=1, batch=11))
        assert [line["rate"] for line in lines(options)] == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001])

    def test_without_validation_the_last_weights_are_those(self, options: Options) -> None:
        engine.train(replace(options, validation=None))
        assert "validation" not in lines(options)[0]
        assert stabn.load(options.out).metadata["trained"]["epoch"] == 2

    def test_it_starts_from_weights_of_other_classes(self, options: Options) -> None:
        engine.train(replace(options, epochs=1, rate=0.0, init="synthetic", width=16, frames=16))
        before, after = weights("synthetic"), weights(options.out)
        torch.testing.assert_close(before["layer3.0.conv1.weight"], after["layer3.0.conv1.weight"])
        assert after["fc.weight"].shape[0] == 3

    @pytest.mark.parametrize(
        "more",
        [
            {"precision": "bf16"},
            {"channels_last": False},
            {"backbone": "resnet18"},
            {"backbone": "tsm", "size": 32, "width": 8},
        ],
    )
    def test_other_ways_to_run(self, options: Options, more: dict[str, Any]) -> None:
        engine.train(replace(options, epochs=1, **more))
        assert lines(options)[0]["train"]["clips"] == 10


class TestSameNumbers:
    def test_two_processes_give_what_one_gives(self, options: Options) -> None:
        """Although clips and parts do not divide by them, a clip cannot be read, and dropout draws at random."""
        one = replace(options, out=options.out.with_name("one.safetensors"), accumulate=2, patience=0, batch=5)
        engine.train(one)
        two = replace(one, out=options.out.with_name("two.safetensors"), accumulate=1, device="auto")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun: dict[str, Any] = {
            "CUDA_VISIBLE_DEVICES": "",
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        processes = [
            start("-m", "stabn.train", *arguments(two), RANK=rank, LOCAL_RANK=rank, **torchrun) for rank in range(2)
        ]
        printed, errors = zip(*(each.communicate(timeout=300) for each in processes), strict=True)
        assert [each.returncode for each in processes] == [0, 0], errors
        assert printed == (f"wrote {two.out}\n", "")
        assert [each.count("epoch 1 of 2") for each in errors] == [1, 0]
        for left, right in zip(lines(one), lines(two), strict=True):
            assert left.pop("rate") == right.pop("rate")
            for name in ("train", "validation"):
                assert left[name] == pytest.approx(right[name], abs=2e-6)
        last = [weights(each.out.with_name(f"{each.out.stem}.last.safetensors")) for each in (one, two)]
        for name, tensor in last[0].items():
            torch.testing.assert_close(tensor, last[1][name], rtol=1e-4, atol=1e-5)

    def test_killed_while_it_saves_it_goes_on_as_if_nothing_had_been(self, options: Options) -> None:
        """Its fourth save is that of the end of the second epoch, whose line and weights are written already."""
        whole = replace(options, out=options.out.with_name("whole.safetensors"), epochs=3, save_every=2)
        engine.train(whole)
        killed = replace(whole, out=options.out.with_name("killed.safetensors"))
        reading = replace(killed, workers=1)
        dying = (
            "import os, signal, sys\n"
            "from stabn import engine, train\n"
            "honest, saves = engine.write_state, iter(range(9))\n"
            "def write_state(state, path):\n"
            "    if next(saves) == 3:\n"
            "        path.with_name(path.name + '.partial').write_bytes(b'half')\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    honest(state, path)\n"
            "engine.write_state = write_state\n"
            "train.main(sys.argv[1:])\n"
        )
        process = start("-c", dying, *arguments(reading))
        _, error = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, error
        assert len(lines(killed)) == 2
        assert train.read_state(Path(f"{killed.out}.resume"), "cpu", train_recipe(killed))["done"]["step"] == 4
        engine.train(killed)
        assert lines(killed) == lines(whole)
        for ending in ("", ".last"):
            found = [weights(each.out.with_name(f"{each.out.stem}{ending}.safetensors")) for each in (whole, killed)]
            for name, tensor in found[0].items():
                torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=0)


def train_recipe(options: Options) -> dict[str, Any]:
    return {**train.decisive(options), "init": None, "data": "train", "clips": 11, PARTS: 1}


class TestWhatIsWrong:
    def stop(self, options: Options, *more: str) -> Any:
        with pytest.raises(SystemExit) as stop:
            train.main([*arguments(options), *more])
        return stop.value.code

    def failed(self, options: Options, capsys: pytest.CaptureFixture[str]) -> str:
        """The sentence of a training that fails."""
        assert self.stop(options) == 1
        return capsys.readouterr().err.splitlines()[-1]

    def test_nothing_that_can_be_read(
        self, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / "empty" / "red" / name).mkdir(parents=True)
        wrong = replace(options, data=tmp_path / "empty", validation=None)
        assert self.stop(wrong) == 1
        *skipped, said = capsys.readouterr().err.splitlines()
        assert said == (
            f"error: none of the 3 clips of {wrong.data} could be read: stabn-train --check --data {wrong.data} says "
            "why of each"
        )
        assert sum(line.startswith("skipped: ") for line in skipped) == 3

    def test_a_disk_that_goes_away_costs_an_epoch(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = Learner.measure
        monkeypatch.setattr(Learner, "measure", lambda self, *_: torch.zeros(len(FIGURES), dtype=torch.float64))
        options = replace(options, save_every=2)
        with pytest.raises(ValueError, match=r"none of the 5 clips of .*validation could be read"):
            engine.train(options)
        monkeypatch.setattr(Learner, "measure", honest)
        assert train.read_state(Path(f"{options.out}.resume"), "cpu", train_recipe(options))["done"]["step"] == 2
        engine.train(options)
        assert [line["epoch"] for line in lines(options)] == [1, 2]

    def test_another_number_of_parts(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Learner, "measure", lambda self, *_: torch.zeros(len(FIGURES), dtype=torch.float64))
        with pytest.raises(ValueError, match="could be read"):
            engine.train(options)  # before its first save: with nothing to lose, any options will do
        options = replace(options, save_every=1)
        with pytest.raises(ValueError, match="could be read"):
            engine.train(options)
        with pytest.raises(ValueError, match=r"other options: parts of a step \(processes x accumulate\) 1 \(now 2\)"):
            engine.train(replace(options, accumulate=2))

    def test_a_loss_that_is_no_number_ends_it_before_it_is_saved(self, options: Options) -> None:
        with pytest.raises(
            ValueError, match=r"the loss became NaN before step \d+: train with a lower --rate than 0\.9"
        ):
            engine.train(replace(options, rate=0.9, decay=1e30))
        assert Path(f"{options.out}.resume").read_bytes() == b""
        assert not options.out.exists()

    def test_labels_that_are_no_classes(
        self, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "list.csv").write_text("path,label\na.mp4,violet\n")
        assert self.stop(replace(options, validation=tmp_path / "list.csv")) == 2
        said = f"error: {tmp_path / 'list.csv'}, line 2: there is no class 'violet' among the 3: "
        assert capsys.readouterr().err.startswith(said)
        assert not options.out.parent.exists()

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--steps", "5"), "--steps is for training on generated clips: leave it out, or leave out --data"),
            (("--keep", "1"), "--keep is for training on generated clips: leave it out, or leave out --data"),
            (("--validation", "gone"), "--validation gone does not exist"),
            (("--device", "cuda:1"), "--device is cuda:1: with --data it must be auto, cpu or cuda"),
            (("--accumulate", "0"), "--accumulate is 0: it must be at least 1"),
            (("--backbone", "c3d", "--width", "3"), "`width` must be a multiple of"),
            (("--out", f"{__file__}/x"), f"--out {__file__}/x cannot be written: {__file__} is a file"),
            (
                ("--backbone", "s3d", "--width", "8", "--frames", "8", "--size", "32"),
                "the last stage of s3d leaves one value for each channel of a clip of 8 frames of 32 x 32 pixels",
            ),
        ],
    )
    def test_wrong_use(
        self, options: Options, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
    ) -> None:
        assert self.stop(options, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {said}")
        assert error.count("\n") == 1

    def test_imagenet_weights_that_cannot_be_had(self, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        said = (
            "error: --init imagenet: ImageNet weights are there for ResNets of 18, 34, 50, 101, 152 layers, TSN and TSM"
        )
        stopped = self.failed(replace(options, init="imagenet"), capsys)
        assert stopped.startswith(said)
        assert stopped.endswith("; --init none begins with random weights")

    def test_processes_that_are_not_joined(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of them would take itself for the only one, and write the same files."""
        monkeypatch.setattr(engine, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match="this is one of 2 processes, but Accelerate does not join them"):
            engine.train(options)

    def test_without_accelerate(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delattr(stabn, "engine")
        monkeypatch.delitem(sys.modules, "stabn.engine")
        monkeypatch.setitem(sys.modules, "accelerate", None)
        assert self.stop(options) == 2
        said = "error: --data needs Hugging Face Accelerate: pip install 'stabn[train]'\n"
        assert capsys.readouterr().err == said

    def test_out_of_memory_on_a_processor(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def learn(self: Learner, *_: object) -> None:
            torch.empty(2**60, dtype=torch.uint8)

        monkeypatch.setattr(Learner, "learn", learn)
        assert self.failed(options, capsys).startswith("error: out of memory: pass --accumulate 2, which halves")

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("[/__w/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:14507."),
            torch.distributed.DistBackendError("NCCL error"),
        ],
    )
    def test_another_process_that_ends(
        self,
        options: Options,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: RuntimeError,
    ) -> None:
        def learn(self: Learner, *_: object) -> None:
            raise error

        monkeypatch.setattr(Learner, "learn", learn)
        said = self.failed(options, capsys)
        assert said.startswith("error: another process of this training ended or cannot be reached")

    def test_a_file_that_cannot_be_opened(
        self, options: Options, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path(f"{options.out}.log.jsonl").mkdir(parents=True)
        assert self.failed(options, capsys) == f"error: {options.out}.log.jsonl: Is a directory"

    def test_a_full_disk_leaves_the_last_save(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(state: object, file: Any) -> None:
            file.write(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")

        train.write_state({"step": 1}, tmp_path / "x.resume")
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"cannot write .*x\.resume: PytorchStreamWriter failed"):
            train.write_state({"step": 2}, tmp_path / "x.resume")
        assert [path.name for path in tmp_path.iterdir()] == ["x.resume"]
        assert torch.load(tmp_path / "x.resume") == {"step": 1}

    @pytest.mark.parametrize("videos", [True, False])
    def test_a_device_that_is_not_there(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], videos: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        if videos:
            assert self.stop(options, "--device", "cuda") == 2
        else:
            with pytest.raises(SystemExit) as stop:
                train.main(["--out", str(options.out), "--device", "cuda"])
            assert stop.value.code == 2
        said = "error: --device: `device` is cuda, but this machine has 0 cuda devices: use auto\n"
        assert capsys.readouterr().err == said

    def test_options_of_videos_need_data(self) -> None:
        with pytest.raises(UsageError, match="--epochs is for training on labelled videos: pass --data too"):
            train.check(Options(epochs=3))
        with pytest.raises(UsageError, match="--precision fp16 is for training on labelled videos"):
            train.check(Options(precision="fp16"))

    def test_the_recipe_is_the_papers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[Options] = []
        monkeypatch.setattr(train, "train_on_videos", given.append)
        train.main(["--data", "somewhere"])
        [found] = given
        assert (found.rate, found.decay, found.batch, found.frames, found.size) == (0.01, 5e-4, 64, 32, 224)
        assert found.init == "imagenet"
        config = train.config_of(found, 174)
        assert config == Config(classes=174)  # the paper's network; its dropout is 0.5
        learner = engine.learner_of(
            replace(found, backbone="resnet18", init="none", width=1, size=16, frames=2),
            CLASSES,
            Accelerator(cpu=True),
            Plan(1, 1, 1, 0),
        )
        [group] = learner.optimizer.param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 5e-4)
        assert learner.plateau.factor == 0.1
