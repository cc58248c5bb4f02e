"""`stabn-eval`: its figures by hand, the files it writes, and the same numbers however it is run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explain import evaluate, inversion, metrics
from explain.evaluate import confused, look, main, summarise, table
from explain.labelled import Item
from stabn import synthetic
from stabn.checkpoint import save, weights_hash
from stabn.model import STABN, Attention, Config, Output

Run = Callable[..., int]
CLASSES = ("blue", "green", "red")


def tiny(classes: tuple[str, ...] = CLASSES, attention: str = "both") -> STABN:
    torch.manual_seed(0)
    config = Config(
        classes=len(classes), frames=4, size=16, layers=(1, 1, 1, 1), width=2, stem=(3, 3, 3), pool=False,
        attention=attention,
    )  # type: ignore[arg-type]  # fmt: skip
    model = STABN(config, classes)
    for layer in (model.fc, *((model.attention.scores,) if model.attention else ())):
        torch.nn.init.normal_(layer.weight, std=5.0)  # so that answers differ from clip to clip
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(tiny(), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 clips in class folders, of which one in the middle is empty."""
    root, chance = tmp_path_factory.mktemp("data") / "clips", np.random.default_rng(0)
    for number in range(7):
        clip = root / CLASSES[number % 3] / f"clip {number}"
        clip.mkdir(parents=True)
        for frame in range(9):
            picture = chance.integers(0, 256, (16, 20, 3), np.uint8)
            Image.fromarray(picture).save(clip / f"{frame}.png")
    for picture in (root / "green" / "clip 4").iterdir():
        picture.write_bytes(b"")
    return root


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(options) with the tiny network into tmp_path/out -> exit code; the chart, which is slow, is a stand-in."""
    monkeypatch.setattr(evaluate, "chart", lambda result: b"picture")

    def call(*options: object) -> int:
        common = ("--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "out", "--workers", 0, "--batch", 2)
        return main([str(each) for each in (*common, *options)])

    return call


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


class Fake:
    """Answers by a clip's brightness alone, an index of `answers`: probabilities of both branches."""

    answers = (((0.5, 0.3, 0.2), (0.1, 0.2, 0.7)), ((0.1, 0.6, 0.3), (0.6, 0.3, 0.1)))

    def preprocess(self, frames: np.ndarray) -> torch.Tensor:
        return torch.tensor([int(frames[0, 0, 0, 0])])

    def __call__(self, clips: torch.Tensor) -> Output:
        perception, attention = torch.tensor([self.answers[int(clip)] for clip in clips]).log().unbind(1)
        return Output(perception, attention, Attention(None, None))


def item(number: int, label: int, *segments: int) -> Item:
    return Item(number, label, np.stack([np.full((4, 2, 2, 3), value, np.uint8) for value in segments]))


class TestFigures:
    model: Any = Fake()

    def test_both_branches_by_hand(self) -> None:
        bad = Item(7, 0, None, "x.mp4: is empty")
        first, second, third = look(self.model, [item(0, 1, 0), item(1, 1, 1), bad])
        assert first["perception"] == {"predicted": 0, "rank": 1, "probability": pytest.approx(0.3)}
        assert first["attention"] == {"predicted": 2, "rank": 1, "probability": pytest.approx(0.2)}
        assert second["perception"] == {"predicted": 1, "rank": 0, "probability": pytest.approx(0.6)}
        assert third == {"clip": 7, "skipped": "x.mp4: is empty"}

    def test_probabilities_of_segments_are_averaged(self) -> None:
        [record] = look(self.model, [item(0, 0, 0, 1)])
        assert record["perception"] == {"predicted": 1, "rank": 1, "probability": pytest.approx(0.3)}  # 0.3 0.45 0.25
        assert record["attention"] == {"predicted": 2, "rank": 1, "probability": pytest.approx(0.35)}  # 0.35 0.25 0.4

    def test_summary_by_hand(self) -> None:
        items = [item(0, 0, 0), item(1, 1, 0), item(2, 1, 1), item(3, 1, 0), Item(4, 2, None, "gone")]
        found = summarise(look(self.model, items), CLASSES)
        top1 = found["branches"]["perception"]["top1"]
        assert (top1["value"], top1["low"], top1["high"]) == pytest.approx(metrics.bootstrap(np.array([1.0, 0, 1, 0])))
        assert found["branches"]["attention"]["top1"]["value"] == 0
        assert found["branches"]["attention"]["top5"]["value"] == 1
        assert found["confusion"] == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]
        assert confused(found) == [(2, 3, "green", "blue")]
        assert [(each["class"], each["clips"]) for each in found["per_class"]] == [("blue", 1), ("green", 3)]
        assert found["per_class"][1]["branches"]["perception"]["top1"]["value"] == pytest.approx(1 / 3)

    def test_without_an_attention_branch(self) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (1, 4, 16, 16, 3), np.uint8)
        records = look(tiny(attention="none"), [Item(0, 1, frames)])
        assert summarise(records, CLASSES)["branches"].keys() == {"perception"}


class TestCommand:
    def test_everything_is_there(
        self, tmp_path: Path, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        options = ["--checkpoint", checkpoint, "--data", data, "--out", out, "--segments", "2", "--per-class"]
        assert main(list(map(str, [*options, "--workers", "0"]))) == 0
        assert sorted(path.name for path in out.iterdir()) == [
            "confusion.csv", "evaluation.csv", "evaluation.json", "evaluation.png",
        ]  # fmt: skip
        printed = capsys.readouterr()
        assert "clip 4: none of its frames" in printed.err
        assert "skipped 1 of 7 clips that cannot be read" in printed.err
        lines = printed.out.splitlines()
        assert max(map(len, lines[:-1])) <= 100
        assert lines[1].startswith("clips (")
        assert lines[1].endswith("6 clips, 1 skipped, 2 x 4 frames")
        assert [line.split()[-1] for line in lines if "Something-Something V" in line] == ["53.3", "64.1"]
        assert "* published by the paper for ST-ABN, 3D ResNet-50, 32 x 2, not measured here" in lines
        assert lines.count("By class, percent") == 1
        assert lines.count("Top-5 says nothing about 3 classes: it is always 100") == 1

        found = result(out)
        assert found["study"]["weights"] == weights_hash(checkpoint)
        assert found["study"]["segments"] == 2
        assert (found["clips"], len(found["skipped"])) == (6, 1)
        assert found["published"]["Something-Something V1"] == 53.3
        assert "arXiv:2110.15574" in found["published"]["source"]
        assert np.sum(found["confusion"]) == 6
        assert [sum(row) for row in found["confusion"]] == [3, 1, 2]
        right = np.trace(found["confusion"]) / 6
        assert found["branches"]["perception"]["top1"]["value"] == pytest.approx(right, abs=1e-6)
        with open(out / "evaluation.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["class"], row["clips"]) for row in rows] == [
            ("(all)", "6"), ("blue", "3"), ("green", "1"), ("red", "2"),
        ]  # fmt: skip
        assert float(rows[0]["attention_top1_high"]) == found["branches"]["attention"]["top1"]["high"]
        with open(out / "confusion.csv", newline="") as file:
            header, *matrix = list(csv.reader(file))
        assert header[1:] == list(CLASSES)
        assert [[int(each) for each in row[1:]] for row in matrix] == found["confusion"]
        with Image.open(out / "evaluation.png") as image:
            assert image.format == "PNG"

    def test_two_processes_give_what_one_gives(self, run: Run, tmp_path: Path) -> None:
        assert run("--processes", 2, "--out", tmp_path / "two") == 0
        assert run() == 0
        one, two = result(tmp_path / "out"), result(tmp_path / "two")
        for name in ("study", "branches", "per_class", "confusion", "skipped"):
            assert one[name] == two[name]

    def test_it_is_what_the_inversion_study_finds_with_nothing_inverted(
        self, run: Run, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from explain import ablate

        monkeypatch.setattr(ablate, "chart", lambda result: b"picture")
        assert run("--segments", 2) == 0
        options = ("--checkpoint", checkpoint, "--data", data, "--segments", 2, "--invert", "none", "--workers", 0)
        assert ablate.main([str(each) for each in (*options, "--out", tmp_path / "ablation")]) == 0
        [row] = json.loads((tmp_path / "ablation" / "ablation.json").read_text())["rows"]
        assert result(tmp_path / "out")["branches"]["perception"] == {name: row[name] for name in ("top1", "top5")}

    def test_an_interrupted_run_goes_on(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--out", tmp_path / "whole") == 0
        calls: list[int] = []

        def dying(model: STABN, items: Any) -> Any:
            calls.extend(each.number for each in items)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return look(model, items)

        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "look", dying)
            assert run() == 130
        assert "goes on from there" in capsys.readouterr().err
        assert run("--segments", 2) == 2  # what is there is of another study
        assert "other segments" in capsys.readouterr().err
        calls.clear()

        def counted(model: STABN, items: Any) -> Any:
            calls.extend(each.number for each in items)
            return look(model, items)

        monkeypatch.setattr(evaluate, "look", counted)
        assert run() == 0
        assert calls == [4, 5, 6]
        assert result(tmp_path / "out")["branches"] == result(tmp_path / "whole")["branches"]
        calls.clear()
        assert run() == 0
        assert not calls

    def test_the_same_tensors_used_otherwise_are_another_network(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--clips", 2) == 0
        other = tiny()
        other.config = replace(other.config, mean=(0.1, 0.2, 0.3))
        save(other, tmp_path / "other.safetensors")
        assert run("--clips", 2, "--checkpoint", tmp_path / "other.safetensors") == 2
        assert "other config" in capsys.readouterr().err

    def test_generated_clips(self, run: Run, tmp_path: Path) -> None:
        save(tiny(synthetic.CLASSES), tmp_path / "synthetic.safetensors")
        options = ("--checkpoint", tmp_path / "synthetic.safetensors", "--clips", 3, "--workers", 0)
        assert main([str(each) for each in (*options, "--out", tmp_path / "generated")]) == 0
        found = result(tmp_path / "generated")
        assert found["study"]["data"]["name"] == "Synthetic-Something"
        assert len(found["classes"]) == 18
        assert len(found["per_class"]) == 3

    def test_many_classes_fit_into_the_picture_and_the_table(self) -> None:
        names = [f"Pretending to put something behind something {index}" for index in range(174)]
        records = [
            {"clip": n, "label": n, **{name: {"predicted": n * n % 174, "rank": n % 9} for name in evaluate.BRANCHES}}
            for n in range(100)
        ]
        found = {
            "study": {"weights": "0" * 64, "data": {"name": "validation.json", "version": "1" * 64}, "segments": 2},
            "checkpoint": "x.safetensors",
            "frames": 32,
            "clips": 100,
            "skipped": [],
            "published": {"network": inversion.PUBLISHED_NETWORK},
            **summarise(records, names),
        }
        assert max(map(len, table(found))) <= 100
        assert not any("Top-5 says nothing" in line for line in table(found))
        assert evaluate.chart(found).startswith(b"\x89PNG")

    @pytest.mark.parametrize("classes", [2, 40])
    def test_the_picture_ends_where_its_names_end(self, classes: int) -> None:
        names = [
            f"Moving something and something so that they pass each other at last {index}" for index in range(classes)
        ]
        records = [
            {"clip": n, "label": n, **{name: {"predicted": n, "rank": 0} for name in evaluate.BRANCHES}}
            for n in range(classes)
        ]
        study = {"data": {"name": "validation.json", "version": "1" * 64}}
        found = {"study": study, "checkpoint": "x.safetensors", "clips": classes, **summarise(records, names)}
        with Image.open(io.BytesIO(evaluate.chart(found))) as image:
            ink = np.flatnonzero((np.asarray(image.convert("L")) < 255).any(0))
            assert 0 < ink[0] < 0.05 * image.width
            assert 0.95 * image.width < ink[-1] < image.width - 1


class TestWrongUse:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("path,label\na.mp4,violet\n", "line 2: there is no class 'violet' among the 3: did you mean 'blue'"),
            ("path,label\na.mp4,3\n", "line 2: there is no class 3: the 3 classes are 0 to 2"),
            ("path,label\n", "has no rows"),
        ],
    )
    def test_labels(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
    ) -> None:
        (tmp_path / "list.csv").write_text(content)
        assert run("--data", tmp_path / "list.csv") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error
        assert not (tmp_path / "out").exists()

    def test_a_list_of_more_labels_than_the_network_has_classes(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "labels.json").write_text(json.dumps({name: k for k, name in enumerate((*CLASSES, "violet"))}))
        (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "template": "blue"}]))
        (tmp_path / "1.webm").write_bytes(b"")
        assert run("--data", tmp_path / "train.json") == 2
        assert "a list of 4 labels, the network knows 3 classes: take a network" in capsys.readouterr().err

    def test_nothing_can_be_read(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "list.csv").write_text("path,label\ngone.mp4,red\nempty.mp4,red\n")
        (tmp_path / "empty.mp4").write_bytes(b"")
        assert run("--data", tmp_path / "list.csv") == 1
        error = capsys.readouterr().err
        assert "gone.mp4: does not exist" in error
        assert "empty.mp4: is empty (0 bytes)" in error
        assert error.endswith("error: none of the 2 clips can be read\n")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--segments", "0"), "--segments is 0, it must be 1 or more"),
            (("--data", "gone"), "--data gone does not exist"),
            (("--first", "3"), "--first is a seed of generated clips"),
            (("--checkpoint", "gone"), "gone is neither a file nor the name"),
            (
                ("--out", Path(__file__) / "out"),
                f"--out {Path(__file__) / 'out'} cannot be written: {__file__} is a file",
            ),
        ],
    )
    def test_one_sentence(
        self, run: Run, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], said: str
    ) -> None:
        assert run(*options) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {said}")
        assert printed.err.count("\n") == 1
