"""`stabn-benchmark`: its figures by hand, and the command from the outside."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from explain import METHODS, benchmark, report
from explain.benchmark import CONTROLS, MEANS, Options, Plan, command, look, main, summarise
from explain.labelled import Generated, Item
from explain.metrics import SCORES
from explain.models import classifier, compiled, undisturbed
from stabn import synthetic
from stabn.checkpoint import save, weights_hash
from stabn.model import STABN, Config
from stabn.video import write_video

Run = Callable[..., int]
CHEAP = ("stabn", "grad_cam", "saliency")
FILES = ["benchmark.clips.jsonl", "benchmark.csv", "benchmark.json", "benchmark.md", "benchmark.png"]


def tiny(attention: str = "both", classes: tuple[str, ...] = synthetic.CLASSES) -> STABN:
    """Right on the clips of the first seeds, whose classes its last layer is solved for."""
    torch.manual_seed(0)
    config = Config(
        classes=len(classes),
        frames=4,
        size=28,
        layers=(1, 1, 1, 1),
        width=2,
        stem=(3, 3, 3),
        pool=False,
        crop=False,
        attention=attention,
    )
    model = STABN(config, classes).train()
    samples = [synthetic.generate(seed, 4, 28) for seed in range(6)]
    clips = torch.cat([model.preprocess(sample.frames) for sample in samples])
    wanted = torch.stack([torch.arange(len(classes)) == sample.label % len(classes) for sample in samples]).float()
    given: list[torch.Tensor] = []
    handle = model.fc.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    with torch.no_grad():
        model(clips)  # for the batch norms
        model.eval()(clips)
        model.fc.weight.copy_(10 * (torch.linalg.pinv(given[-1]) @ wanted).T)
        model.fc.bias.zero_()
    handle.remove()
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(tiny(), path)
    return path


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(options) with the tiny network into tmp_path/out -> exit code; the figure, which is slow, is a stand-in."""
    monkeypatch.setattr(report, "chart", lambda result: b"picture")

    def call(*options: object) -> int:
        common = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--processes", 1, "--methods", ",".join(CHEAP))
        return main([str(each) for each in (*common, "--curve", 4, "--orders", 2, *options)])

    return call


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "benchmark.json").read_text("utf-8"))


def untimed(folder: Path) -> dict[str, Any]:
    """The result without what differs from run to run."""
    found = result(folder)
    methods = [{name: value for name, value in row.items() if name != "seconds"} for row in found["methods"]]
    return {**found, "created": "", "options": {}, "methods": methods}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def plan(**changes: Any) -> Plan:
    given = Plan(
        methods=(*CHEAP, *CONTROLS),
        scores=("energy", "temporal_auc", "deletion", "insertion"),
        named=True,
        samples=4,
        steps=2,
        curve=4,
        orders=2,
        baseline="blur",
        frame_baseline="freeze",
    )
    return given._replace(**changes)


class TestOneClip:
    def test_what_is_recorded(self) -> None:
        network = classifier(tiny())
        source = Generated(network, 0, 3)
        found = json.loads(json.dumps(look(network, source[0], plan())))  # ready for JSON
        assert (found["clip"], found["label"], found["target"]) == (0, 0, 0)
        assert found["action"] == synthetic.generate(0, 4, 28).action.astype(int).tolist()
        assert list(found["methods"]) == [*CHEAP, *CONTROLS]
        for each in found["methods"].values():
            assert list(each["scores"]) == ["energy", "temporal_auc", "deletion", "insertion"]
            assert len(each["temporal"]) == 4
            assert each["evaluations"] >= 1
            assert each["seconds"] > 0
        assert found["methods"]["stabn"]["class_agnostic"]
        assert not found["methods"]["grad_cam"]["class_agnostic"]
        # The control's map is another one on each clip, and the same one when the clip is done again.
        again, other = (look(network, source[seed], plan(methods=("random",)))["methods"]["random"] for seed in (0, 1))
        assert again["temporal"] == found["methods"]["random"]["temporal"] != other["temporal"]

    def test_the_perfect_mask_is_given_for_each_grid_and_is_the_best_there(self) -> None:
        network = classifier(tiny())
        found = look(network, Generated(network, 3, 1)[3], plan())
        placed = [each for each in found["methods"].values() if each["cells"] != [1, 1]]
        assert len(found["perfect"]) == len({tuple(each["cells"]) for each in placed}) > 1
        for each in placed:
            perfect = found["perfect"][" x ".join(map(str, each["cells"]))]
            assert perfect.keys() == {"energy", "temporal_auc"}
            assert perfect["temporal_auc"] == 1
            assert each["scores"]["energy"] < perfect["energy"]

    def test_without_evidence_and_names_the_predicted_class_is_asked_about(self) -> None:
        network = classifier(tiny())
        item = Generated(network, 0, 1)[0]._replace(mask=None, action=None)
        found = look(network, item, plan(named=False))
        with torch.no_grad():
            assert item.frames is not None
            assert found["target"] == found["predicted"] == int(tiny()(network.clip(item.frames[0])).logits.argmax())
        assert found["perfect"] == {}
        assert found["action"] is None
        assert found["methods"]["stabn"]["scores"]["energy"] is None

    def test_a_method_that_refuses_says_why_and_the_others_go_on(self) -> None:
        network = classifier(tiny("none"))
        found = look(network, Generated(network, 0, 1)[0], plan())
        assert list(found["methods"]["stabn"]) == ["refused"]
        assert "trained without one" in found["methods"]["stabn"]["refused"]
        assert found["methods"]["grad_cam"]["scores"]["energy"] is not None

    def test_a_clip_that_cannot_be_read(self) -> None:
        item = Item(7, 0, None, "a.mp4: is empty")
        assert look(classifier(tiny()), item, plan()) == {"clip": 7, "skipped": "a.mp4: is empty"}

    def test_options_of_methods(self) -> None:
        assert plan().options("rise", 5) == {"seed": 5, "samples": 4}
        assert plan().options("extremal_perturbation", 5) == {"steps": 2}
        assert plan().options("integrated_gradients", 5) == {}


def record(clip: int, **methods: Any) -> dict[str, Any]:
    return {
        "clip": clip,
        "label": 1,
        "target": 1,
        "predicted": clip % 2,
        "scorable": clip != 2,
        "action": [0, 1, 1, 0],
        "evaluations": 10 * clip,
        "methods": methods,
        "perfect": {},
    }


def given(energy: float | None, auc: float | None, temporal: tuple[float, ...] = (0, 1, 1, 0)) -> dict[str, Any]:
    return {
        "seconds": 1.0 if energy is None else energy,
        "evaluations": 3,
        "class_agnostic": False,
        "cells": [2, 2],
        "blank": energy is None,
        "temporal": list(temporal),
        "scores": {"energy": energy, "temporal_auc": auc},
    }


class TestFigures:
    def test_by_hand(self) -> None:
        records = [
            # Frame 1 is above frames 0 and 3, frame 2 above neither: AUC 0.5 of the mean weight by position.
            record(1, grad_cam=given(1.0, 0.5, (2, 4, 1, 2)), stabn=given(2.0, 1.0)),
            record(2, grad_cam=given(5.0, 0.0, (20, 40, 10, 20)), stabn={"refused": "no"}),
            {"clip": 3, "skipped": "3.mp4: is empty"},
            record(4, grad_cam=given(2.0, None, (2, 4, 1, 2)), stabn={"refused": "no"}),
            record(5, grad_cam=given(None, 1.0, (2, 4, 1, 2)), stabn={"refused": "because"}),
        ]
        found = summarise(records, ["stabn", "grad_cam"], ["energy", "temporal_auc"])
        assert (found["clips"], found["scorable"]) == (4, 3)
        assert found["skipped"] == [{"clip": 3, "reason": "3.mp4: is empty"}]
        assert found["top1"] == 0.5  # clips 1 and 5 of four
        assert found["evaluations"] == 30
        assert found["perfect"] == {}
        own, other = found["methods"]
        assert (own["clips"], own["refused"], own["seconds"]) == (1, "no", 2.0)
        assert own["scores"]["energy"] == {"value": 2.0, "low": 2.0, "high": 2.0, "clips": 1}
        assert (other["clips"], other["refused"], other["blank"], other["evaluations"]) == (4, None, 1, 3)
        energy, auc = other["scores"]["energy"], other["scores"]["temporal_auc"]
        assert (energy["value"], energy["clips"]) == (2.0, 3)  # the median
        assert (energy["low"], energy["high"]) == (1.0, 5.0)
        assert (auc["value"], auc["clips"]) == (0.5, 3)  # the mean
        assert other["position_auc"] == 0.5
        assert found["scores"]["energy"]["statistic"] == "median"
        assert found["scores"]["temporal_auc"]["statistic"] == "mean"

    def test_a_score_that_no_clip_has(self) -> None:
        found = summarise([record(1, stabn=given(None, 0.5))], ["stabn"], ["energy", "temporal_auc"])
        assert found["methods"][0]["scores"]["energy"] is None

    def test_names(self) -> None:
        assert set(MEANS) | set(report.TABLE) | set(report.PANELS) <= SCORES.keys()
        assert list(METHODS)[-3:] == list(CONTROLS)


class TestCommand:
    def test_the_files_agree(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--clips", 4) == 0
        out = tmp_path / "out"
        assert listing(out) == FILES
        found = result(out)
        assert found["study"]["weights"] == weights_hash(tiny())
        assert found["study"]["input"] == [4, 28, 28]
        assert [row["method"] for row in found["methods"]] == [*CHEAP, *CONTROLS]
        assert [row["control"] for row in found["methods"]] == [False] * 3 + [True] * 3
        assert list(found["scores"]) == [name for name, score in SCORES.items() if score.group == "core"]
        assert found["options"]["processes"] == 1

        header, *clips = map(json.loads, (out / "benchmark.clips.jsonl").read_text().splitlines())
        assert header == found["study"]
        assert found == {**found, **summarise(clips, found["study"]["methods"], found["study"]["scores"])}

        with open(out / "benchmark.csv", newline="") as file:
            lines = {(line["method"], line["score"]): line for line in csv.DictReader(file)}
        assert len(lines) == 6 * 17 + sum(map(len, found["perfect"].values()))
        for row in found["methods"]:
            for name, scored in row["scores"].items():
                line = lines[row["method"], name]
                assert line["value"] == ("" if scored is None else str(scored["value"]))
                assert float(line["seconds"]) == row["seconds"]

        said = (out / "benchmark.md").read_text("utf-8")
        rows = [line.split(" | ") for line in said.split("\n\n")[2].splitlines()]
        assert [row[0].strip("| `*") for row in rows[2:]] == [
            *CHEAP,
            *(f"control:** `{name}" for name in CONTROLS),
            *["perfect mask"] * len(found["perfect"]),
        ]
        assert rows[0][1:3] == ["cells", "energy M_s ↑"]
        assert rows[2][1] == " x ".join(map(str, found["methods"][0]["cells"]))
        energy = found["methods"][0]["scores"]["energy"]
        low, high = (f"{energy[end]:.2f}" for end in ("low", "high"))
        assert rows[2][2] == f"{energy['value']:.2f} <sub>{low} to {high}</sub>"
        assert rows[2][rows[0].index("by position")] == f"{found['methods'][0]['position_auc']:.2f}"
        assert [row[1] for row in rows[-len(found["perfect"]) :]] == list(found["perfect"])
        for part in (
            "seeds 0 to 3",
            "`blur`",
            "1/14",
            "4 steps",
            "2 random orders",
            "256 samples",
            "100 steps",
            "bf16",
        ):
            assert part in said.replace("\n", " ")
        for title in (score["title"] for score in found["scores"].values()):
            assert title in said
        assert f"Weights `{found['study']['weights'][:16]}`" in said
        assert found["command"] in said.replace("\n", " ")

        printed = capsys.readouterr()
        assert printed.err == ""
        *lines, last = printed.out.splitlines()
        assert last.startswith(str(out))
        assert max(map(len, lines)) <= 100
        assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in METHODS] == [
            row["method"] for row in found["methods"]
        ]

    def test_the_figure(self, tmp_path: Path, checkpoint: Path) -> None:
        options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--processes", "1", "--quiet"]
        assert main([*options, "--methods", "stabn", "--clips", "2", "--metrics", "energy,temporal_iou"]) == 0
        with Image.open(tmp_path / "benchmark.png") as image:
            assert image.format == "PNG"
            assert min(image.size) > 400

    def test_a_finished_run_is_shown_again(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run("--clips", 2, "--json") == 0
        first = capsys.readouterr().out
        assert json.loads(first) == result(tmp_path / "out")
        monkeypatch.setattr(benchmark, "look", None)
        assert run("--clips", 2, "--json") == 0
        assert capsys.readouterr().out == first
        assert run("--clips", 2, "--quiet") == 0
        assert capsys.readouterr().out == ""
        assert run("--clips", 1) == 2
        error = capsys.readouterr().err
        assert "made with other data" in error
        assert "--overwrite" in error
        assert result(tmp_path / "out")["clips"] == 2

    def test_processes_give_the_same(self, run: Run, tmp_path: Path) -> None:
        options = ("--clips", 2, "--methods", "stabn")
        assert run(*options, "--out", tmp_path / "two", "--processes", 2) == 0
        assert run(*options) == 0
        assert result(tmp_path / "two")["options"]["processes"] == 2
        assert untimed(tmp_path / "two") == untimed(tmp_path / "out")

    def test_each_process_must_have_the_same_weights(self, checkpoint: Path) -> None:
        options = Options(checkpoint=str(checkpoint), model=None)
        with pytest.raises(ValueError, match="other weights each time it is made: pass them with --weights FILE"):
            benchmark._looking(options, plan(), Generated(tiny(), 0, 1), "0" * 64, False, 0)

    def test_a_method_that_refuses_is_a_row(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save(tiny("none"), tmp_path / "none.safetensors")
        assert run("--checkpoint", tmp_path / "none.safetensors", "--clips", 2) == 0
        assert "stabn                    refuses: method 'stabn' shows the" in capsys.readouterr().out
        own = result(tmp_path / "out")["methods"][0]
        assert own["clips"] == 0
        assert "trained without one" in own["refused"]
        said = (tmp_path / "out" / "benchmark.md").read_text("utf-8").replace("\n", " ")
        assert f"`stabn` refuses this network: {own['refused']}." in said
        assert "| `stabn` | refuses | – |" in said
        with open(tmp_path / "out" / "benchmark.csv", newline="") as file:
            assert next(csv.DictReader(file))["refused"] == own["refused"]

    def test_scores_by_name(self, run: Run, tmp_path: Path) -> None:
        assert run("--clips", 2, "--metrics", "frame_effect, energy") == 0
        assert list(result(tmp_path / "out")["scores"]) == ["frame_effect", "energy"]
        assert (
            "| method | cells | frame effect ↑ | energy M_s ↑ | seconds |"
            in (tmp_path / "out" / "benchmark.md").read_text()
        )

    def test_the_command_that_makes_it_again(self) -> None:
        assert command(Options()) == "stabn-benchmark"
        given = Options(clips=200, out=Path("elsewhere"), processes=3, overwrite=True, methods="rise,stabn")
        assert command(given) == "stabn-benchmark --methods rise,stabn --clips 200"

    def test_other_classes_are_asked_about_as_predicted(self, run: Run, tmp_path: Path) -> None:
        save(tiny(classes=("a", "b")), tmp_path / "other.safetensors")
        assert run("--checkpoint", tmp_path / "other.safetensors", "--clips", 2) == 0
        found = result(tmp_path / "out")
        assert not found["study"]["named"]
        assert found["methods"][0]["scores"]["energy"]["clips"] >= 1
        assert "is the predicted class" in (tmp_path / "out" / "benchmark.md").read_text().replace("\n", " ")


class TestResume:
    def test_it_goes_on_where_it_stopped(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: list[int | None] = []

        def stopping(network: Any, item: Item, plan: Plan) -> Any:
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(item.number)
            return look(network, item, plan)

        monkeypatch.setattr(benchmark, "look", stopping)
        assert run("--clips", 4) == 130
        error = capsys.readouterr().err
        assert error.startswith("error: interrupted; the finished clips are kept, and the same command goes on")
        partial = tmp_path / "out" / "benchmark.partial.jsonl"
        assert listing(tmp_path / "out") == [partial.name]
        header, *records = map(json.loads, partial.read_text().splitlines())
        assert header["program"] == "stabn-benchmark"
        assert [each["clip"] for each in records] == seen == [0, 1]
        with partial.open("a") as file:
            file.write('{"clip": 2, "lab')  # killed while it wrote

        assert run("--clips", 4, "--orders", 3) == 2
        error = capsys.readouterr().err
        assert "benchmark.partial.jsonl was made with other orders: pass --overwrite" in error
        assert error.count("\n") == 1

        seen.clear()
        assert run("--clips", 4) == 0
        assert seen == [2, 3]
        assert listing(tmp_path / "out") == FILES
        monkeypatch.setattr(benchmark, "look", look)
        assert run("--clips", 4, "--out", tmp_path / "whole") == 0
        assert untimed(tmp_path / "out") == untimed(tmp_path / "whole")

    def test_a_run_over_fewer_clips_goes_on_to_more(self, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
        seen: list[int] = []

        def counting(network: Any, item: Item, plan: Plan) -> Any:
            seen.append(item.number)
            return look(network, item, plan)

        monkeypatch.setattr(benchmark, "look", counting)
        assert run("--clips", 2) == 0
        assert run("--clips", 3, "--processes", 2) == 0
        assert seen == [0, 1, 2]
        assert listing(tmp_path / "out") == FILES
        assert result(tmp_path / "out")["options"]["processes"] == 2  # as asked, though there was work for one
        assert run("--clips", 3, "--out", tmp_path / "whole") == 0
        assert untimed(tmp_path / "out") == untimed(tmp_path / "whole")
        assert run("--clips", 4, "--orders", 3) == 2

    def test_damage_is_refused_and_overwritten_on_request(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "benchmark.partial.jsonl").write_text("no JSON\n")
        assert run("--clips", 1) == 2
        assert "is damaged: pass --overwrite" in capsys.readouterr().err
        assert run("--clips", 1, "--overwrite") == 0
        (tmp_path / "out" / "benchmark.json").write_text("[]")
        assert run("--clips", 1) == 2
        assert "is no result of stabn-benchmark" in capsys.readouterr().err


class TestData:
    def test_a_video_that_cannot_be_read_is_named_and_the_others_are_counted(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "data" / synthetic.CLASSES[2]
        folder.mkdir(parents=True)
        write_video(folder / "a.mp4", synthetic.generate(2, 8, 32).frames, 12.0)
        (folder / "b.mp4").write_bytes(b"")
        assert run("--data", tmp_path / "data") == 1
        printed = capsys.readouterr()
        assert "b.mp4: is empty" in printed.err
        assert "skipped 1 of 2 clips" in printed.err
        assert "1 clips (1 more cannot be read)" in printed.out
        found = result(tmp_path / "out")
        assert found["clips"] == 1
        assert "b.mp4" in found["skipped"][0]["reason"]
        assert found["perfect"] == {}
        assert found["methods"][0]["scores"]["energy"] is None
        assert "energy" not in (tmp_path / "out" / "benchmark.md").read_text()
        assert run("--data", tmp_path / "data", "--metrics", "energy", "--out", tmp_path / "none") == 2
        assert "known evidence, which --data does not have" in capsys.readouterr().err


class TestWrongUse:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--methods", "grad_can"), "--methods: there is no method 'grad_can': did you mean 'grad_cam'"),
            (("--methods", ","), "--methods is empty"),
            (("--metrics", "energi"), "--metrics: there is no score 'energi': did you mean 'energy'"),
            (("--clips", "0"), "--clips is 0, it must be 1 or more"),
            (("--samples", "0"), "--samples is 0"),
            (("--steps", "0"), "--steps is 0"),
            (("--curve", "1"), "--curve is 1, it must be 2 or more"),
            (("--orders", "0"), "--orders is 0"),
            (("--processes", "0"), "--processes is 0"),
            (("--precision", "fp16"), "--precision is 'fp16', it must be bf16 or fp32"),
            (("--baseline", "noise"), "--baseline is 'noise', it must be blur or mean or zero"),
            (("--first", str(10**9)), "are not evaluation seeds"),
            (("--data", "gone"), "--data gone does not exist"),
            (("--data", ".", "--first", "3"), "--first is a seed"),
            (("--checkpoint", "gone"), "gone is neither a file nor the name"),
            (("--layer", "layer9"), "there is no layer 'layer9'"),
            (("--weights", "a.pt"), "--weights is for another network: give --model too"),
            (("--checkpoint", "synthetic", "--model", "torchvision:r4d"), "there is no model torchvision:r4d"),
            (("--device", "toaster"), "`device` must be"),
        ],
    )
    def test_one_sentence_and_exit_code_2(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
    ) -> None:
        assert run(*options) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert said in printed.err
        assert listing(tmp_path / "out") == []

    def test_out_is_a_file(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "out").write_text("")
        assert run("--clips", 1) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_a_compiled_network_gives_the_same_and_hooks_and_gradients_do_not_see_it() -> None:
    network = replace(classifier(tiny()), precision="bf16")
    quick = compiled(network)
    if quick.quick is None:
        pytest.skip("no C++ compiler here: the network stays as it is")
    calls: list[int] = []
    seen = replace(quick, quick=lambda clips: calls.append(len(clips)) or quick.quick(clips))
    clips = torch.rand(13, 3, 4, 28, 28)
    for count in (13, 8, 7, 1):
        with undisturbed(network.module), torch.no_grad():
            wanted = replace(network, precision="fp32").logits(clips[:count])
            rounding = (network.logits(clips[:count], exact=False) - wanted).abs().max()
            assert (seen.logits(clips[:count], exact=False) - wanted).abs().max() <= 2 * rounding
            seen.logits(clips[:count])  # not asked for: hooks may be there
    seen.logits(clips.requires_grad_(), exact=False)  # nor where a gradient is needed
    assert calls == [13, 8, 7, 1]
    assert compiled(classifier(tiny())).quick is None  # in fp32 it is no faster


def test_precision_is_that_of_the_passes_without_gradient() -> None:
    network = classifier(tiny())
    item = Generated(network, 0, 3)[2]  # whose answer depends on what is removed
    full, half = (
        look(replace(network, precision=precision), item, plan(methods=("random",)))["methods"]["random"]["scores"]
        for precision in ("fp32", "bf16")
    )
    assert full["energy"] == half["energy"]
    assert full["deletion"] != half["deletion"]
    assert full["deletion"] == pytest.approx(half["deletion"], abs=0.05)
