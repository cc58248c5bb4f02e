"""The inversion study: its controls and figures by hand, and `stabn-ablate` from the outside."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explain import ablate, inversion, metrics, runs
from explain.ablate import main
from explain.inversion import CONSTANT, CONSTANT_INVERSE, CONTROLS, MATCHED, SHUFFLED, Condition, changed, conditions
from explain.labelled import Generated, Item, _looking, looked
from stabn import synthetic
from stabn.checkpoint import save, weights_hash
from stabn.model import STABN, Attention, Config
from stabn.video import write_video

Run = Callable[..., int]


def tiny(attention: str = "both", classes: tuple[str, ...] = synthetic.CLASSES) -> STABN:
    torch.manual_seed(0)
    config = Config(
        classes=len(classes),
        frames=4,
        size=16,
        layers=(1, 1, 1, 1),
        width=2,
        stem=(3, 3, 3),
        pool=False,
        crop=False,
        attention=attention,
    )
    model = STABN(config, classes)
    torch.nn.init.normal_(model.fc.weight, std=5.0)  # so that answers differ from clip to clip
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(tiny(), path)
    return path


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(options) with the tiny network into tmp_path/out -> exit code; the chart, which is slow, is a stand-in."""
    monkeypatch.setattr(ablate, "chart", lambda result: b"picture")

    def call(*options: object) -> int:
        common = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--workers", 0)
        return main([str(each) for each in (*common, *options)])

    return call


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ablation.json").read_text("utf-8"))


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def attention() -> Attention:
    """Of two clips, 2 frames, 2 x 2 cells."""
    spatial = torch.tensor([[[0.9, 0.8, 0.7, 1.0], [0.5, 0.9, 0.9, 0.9]], [[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.2]]])
    temporal = torch.tensor([[0.75, 0.25], [0.5, 0.1]])
    return Attention(spatial.view(2, 1, 2, 2, 2), temporal.view(2, 1, 2, 1, 1))


KEYS = [(7, 0), (8, 0)]


class TestControls:
    def test_the_rows_and_their_controls(self) -> None:
        asked = conditions(("none", "spatial", "temporal", "both"))
        assert len(asked) == 1 + 3 * (1 + 1 + 5 + 2)
        assert asked[0] == Condition("none")
        assert asked[1:3] == [Condition("spatial"), Condition("spatial", MATCHED)]
        assert inversion.rows_of("both") == ("none", "spatial", "temporal", "both")
        assert inversion.rows_of("temporal") == ("none", "temporal")
        assert inversion.rows_of("none") == ("none",)

    def test_nothing_inverted_is_the_attention_itself(self) -> None:
        original = attention()
        assert changed(original, Condition("none"), KEYS) is original

    def test_the_inverse_of_the_inverse_is_the_original(self) -> None:
        original = attention()
        once = changed(original, Condition("both"), KEYS)
        torch.testing.assert_close(once.spatial, 1 - original.spatial)
        torch.testing.assert_close(once.temporal, 1 - original.temporal)
        twice = changed(once, Condition("both"), KEYS)
        torch.testing.assert_close(twice.spatial, original.spatial)

    def test_the_matched_inverse_has_the_originals_mean_and_is_not_clipped(self) -> None:
        original = attention()
        matched = changed(original, Condition("both", MATCHED), KEYS)
        for new, old in zip(matched, original, strict=True):
            torch.testing.assert_close(new.mean((1, 2, 3, 4)), old.mean((1, 2, 3, 4)))
        # clip 0: the mean is 0.825 and that of the inverse 0.175, so its 0.5 becomes 0.5 * 0.825 / 0.175
        assert matched.spatial[0, 0, 1, 0, 0].item() == pytest.approx(2.357143)
        assert matched.spatial[0, 0, 0, 1, 1].item() == 0
        # clip 1: frames 0.5 and 0.1, inverse 0.5 and 0.9, means 0.3 and 0.7
        assert matched.temporal[1].flatten().tolist() == pytest.approx([0.5 * 3 / 7, 0.9 * 3 / 7])

    def test_constants(self) -> None:
        original = attention()
        own = changed(original, Condition("both", CONSTANT), KEYS)
        inverse = changed(original, Condition("both", CONSTANT_INVERSE), KEYS)
        torch.testing.assert_close(own.spatial[0], torch.full((1, 2, 2, 2), 0.825))
        torch.testing.assert_close(own.temporal[1], torch.full((1, 2, 1, 1), 0.3))
        torch.testing.assert_close(inverse.spatial[0], torch.full((1, 2, 2, 2), 0.175))
        torch.testing.assert_close(inverse.temporal[1], torch.full((1, 2, 1, 1), 0.7))

    def test_only_the_row_s_part_changes(self) -> None:
        original = attention()
        for control in ("", *CONTROLS):
            assert changed(original, Condition("spatial", control), KEYS).temporal is original.temporal
            assert changed(original, Condition("temporal", control), KEYS).spatial is original.spatial

    def test_an_inverse_of_nothing_stays_nothing(self) -> None:
        ones = Attention(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 1, 1))
        matched = changed(ones, Condition("both", MATCHED), KEYS[:1])
        assert not matched.spatial.any()
        assert not matched.temporal.any()

    def test_shuffles_keep_the_values_of_a_frame_and_of_the_clip(self) -> None:
        original = Attention(torch.rand(1, 1, 3, 4, 4), torch.rand(1, 1, 8, 1, 1))
        draws = [changed(original, Condition("both", SHUFFLED, draw), KEYS[:1]) for draw in range(5)]
        for each in draws:
            torch.testing.assert_close(each.spatial.flatten(3).sort(3)[0], original.spatial.flatten(3).sort(3)[0])
            torch.testing.assert_close(each.temporal.sort(2)[0], original.temporal.sort(2)[0])
            assert not torch.equal(each.spatial, original.spatial)
        assert len({tuple(each.spatial.flatten().tolist()) for each in draws}) == 5
        assert len({tuple(each.temporal.flatten().tolist()) for each in draws}) == 5

    def test_a_shuffle_depends_on_the_clip_only(self) -> None:
        both, shuffled = attention(), Condition("both", SHUFFLED, 3)
        second = Attention(both.spatial[1:], both.temporal[1:])
        together, alone = changed(both, shuffled, KEYS), changed(second, shuffled, KEYS[1:])
        assert torch.equal(together.spatial[1:], alone.spatial)
        assert torch.equal(together.temporal[1:], alone.temporal)
        assert torch.equal(changed(both, Condition("spatial", SHUFFLED, 3), KEYS).spatial, together.spatial)

    def test_one_cell_is_not_shuffled_over_frames(self) -> None:
        spatial = torch.rand(1, 1, 6, 1, 1)
        assert torch.equal(changed(Attention(spatial, None), Condition("spatial", SHUFFLED), KEYS[:1]).spatial, spatial)


class Fake:
    """Two classes; the first has the probability mean(M_s) * mean(M_t). M_s is the clip's brightness, M_t 0.75."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def preprocess(self, frames: np.ndarray) -> torch.Tensor:
        return torch.tensor(frames[:1, 0, 0, :1] / 255)

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        self.calls["extract"] += 1
        return clips

    def attend(self, features: torch.Tensor) -> tuple[Attention, None]:
        self.calls["attend"] += 1
        spatial = features.view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)
        return Attention(spatial, torch.full((len(features), 1, 2, 1, 1), 0.75)), None

    def mix(self, features: torch.Tensor) -> str:
        self.calls["mix"] += 1
        return "kept"

    def perceive(self, mixture: str, attention: Attention) -> torch.Tensor:
        assert mixture == "kept"
        self.calls["perceive"] += 1
        first = attention.spatial.mean((1, 2, 3, 4)) * attention.temporal.mean((1, 2, 3, 4))
        return torch.stack([first, 1 - first], 1).log()


def item(number: int, *brightness: int) -> Item:
    """A clip of label 0 with a segment for each brightness."""
    return Item(number, 0, np.stack([np.full((2, 4, 4, 3), value, np.uint8) for value in brightness]))


def told(rows: list[dict[str, Any]], row: str, control: str = "") -> dict[str, Any]:
    found = next(each for each in rows if each["row"] == row)
    return next(each for each in found["controls"] if each["control"] == control) if control else found


class TestFigures:
    """Brightness 204 is M_s = 0.8, 51 is 0.2. Probabilities of the true class, the first, by hand:

    clip   none   spatial      temporal     both         (the prediction is right above 0.5)
    0.8    0.6    0.15 flips   0.2 flips    0.05 flips
    0.2    0.15   0.6 flips    0.05         0.2
    """

    asked = conditions(tuple(inversion.ROWS))

    def summary(self, *items: Item) -> list[dict[str, Any]]:
        return inversion.summarise(inversion.look(Fake(), items, self.asked), self.asked, ["a", "b"])["rows"]

    def test_by_hand(self) -> None:
        rows = self.summary(item(0, 204), item(1, 51))
        assert [row["row"] for row in rows] == ["none", "spatial", "temporal", "both"]
        values = {
            row["row"]: [row[name]["value"] for name in ("top1", "flips", "change") if name in row] for row in rows
        }
        assert values["none"] == [0.5]
        assert values["spatial"] == pytest.approx([0.5, 1, 0])  # -0.45 and 0.45
        assert values["temporal"] == pytest.approx([0, 0.5, -0.25])  # -0.4 and -0.1
        assert values["both"] == pytest.approx([0, 0.5, -0.25])  # -0.55 and 0.05
        assert all(row["top5"]["value"] == 1 for row in rows)

    def test_controls_by_hand(self) -> None:
        rows = self.summary(item(0, 204), item(1, 51))
        for control in (MATCHED, SHUFFLED, CONSTANT):  # of constant maps all three are the original
            assert told(rows, "both", control)["change"]["value"] == pytest.approx(0)
            assert told(rows, "both", control)["flips"]["value"] == 0
        for row in ("spatial", "temporal", "both"):
            for name in ("top1", "top5", "flips", "change"):
                assert told(rows, row, CONSTANT_INVERSE)[name] == told(rows, row)[name]

    def test_intervals_are_bootstrapped_over_clips(self) -> None:
        rows = self.summary(*(item(n, value) for n, value in enumerate((204, 51, 204, 204, 51))))
        flips = told(rows, "temporal")["flips"]
        expected = metrics.bootstrap(np.array([1.0, 0, 1, 1, 0]))
        assert [flips["value"], flips["low"], flips["high"]] == pytest.approx(expected)
        always = told(rows, "spatial")["flips"]
        assert (always["low"], always["high"]) == (1, 1)

    def test_segments_average_their_probabilities(self) -> None:
        [record] = inversion.look(Fake(), [item(0, 204, 51)], self.asked)
        assert record["probability"][0] == pytest.approx((0.6 + 0.15) / 2)
        assert record["predicted"][0] == 1
        assert record["rank"][0] == 1

    def test_everything_runs_once_for_a_batch_and_perceive_once_for_a_condition(self) -> None:
        fake = Fake()
        inversion.look(fake, [item(0, 204, 51), item(1, 51, 51), item(2, 204, 204)], self.asked)
        assert fake.calls == {"extract": 1, "attend": 1, "mix": 1, "perceive": 28}

    def test_a_clip_that_was_not_read_costs_nothing(self) -> None:
        fake = Fake()
        bad = Item(3, 0, None, "x.mp4: is empty")
        assert inversion.look(fake, [bad], self.asked) == [{"clip": 3, "skipped": "x.mp4: is empty"}]
        assert not fake.calls
        assert [set(each) for each in inversion.look(fake, [bad, item(4, 51)], self.asked)] == [
            {"clip", "skipped"},
            {"clip", "label", "predicted", "rank", "probability"},
        ]

    def test_of_equal_classes_the_first_stands_before(self) -> None:
        probabilities = np.array([[0.25, 0.25, 0.5, 0.0], [0.1, 0.4, 0.2, 0.3]])
        assert inversion.ranks(probabilities, 1).tolist() == [2, 0]
        assert inversion.ranks(probabilities, 0).tolist() == [1, 3]

    def test_classes(self) -> None:
        items = [item(0, 204), item(1, 51)._replace(label=1), item(2, 204)]
        summary = inversion.summarise(inversion.look(Fake(), items, self.asked), self.asked, ["a", "b"])
        assert [(each["class"], each["clips"]) for each in summary["per_class"]] == [("a", 2), ("b", 1)]
        temporal = [
            next(of for of in each["figures"] if (of["row"], of["control"]) == ("temporal", ""))
            for each in summary["per_class"]
        ]
        assert [of["top1"] for of in temporal] == [0, 1]
        assert [of["change"] for of in temporal] == pytest.approx([-0.4, 0.1])

    def test_published_rows_are_those_of_the_paper(self) -> None:
        assert list(inversion.ROWS) == ["none", "spatial", "temporal", "both"]
        assert inversion.PUBLISHED == {
            "Something-Something V1": (53.3, 28.8, 20.0, 6.9),
            "Something-Something V2": (64.1, 32.3, 43.1, 14.2),
        }
        assert inversion.PUBLISHED_NETWORK == "3D ResNet-50, 32 x 2"


@pytest.mark.parametrize(
    ("inverse", "matched", "constants", "low", "about", "said"),
    [
        (0.4, 0.5, (0.56, 0.56), 0.2, True, "the fall is about when: top-1 goes from 80.0 to 40.0 % and to 50.0 %"),
        (0.4, 0.51, (0.56, 0.56), 0.2, False, "not shown to be about when: top-1 goes from 80.0 to 40.0 % and only to"),
        (0.4, 0.5, (0.8, 0.55), 0.2, False, "but the constants keep only 100 and 69 %"),
        (0.4, 0.3, (0.8, 0.8), 0.0, None, "no sure fall: top-1 goes from 80.0 to 40.0 %"),
        (0.64, 0.8, (0.8, 0.8), 0.1, None, "undecided, the fall is small"),  # 1.25 * 0.64 is 0.8: nothing can fail
        (0.63, 0.8, (0.8, 0.8), 0.165, False, "not shown to be about when"),
        (0.5, 0.55, (0.8, 0.8), 0.05, None, "undecided, the fall is small or unsure"),  # too few clips to say
    ],
)
def test_the_verdict_follows_the_rule(
    inverse: float, matched: float, constants: tuple[float, float], low: float, about: bool | None, said: str
) -> None:
    top1 = {"": inverse, MATCHED: matched, SHUFFLED: 0.6, CONSTANT: constants[0], CONSTANT_INVERSE: constants[1]}
    found = inversion.verdict("temporal", 0.8, top1, {"value": 0.8 - inverse, "low": low, "high": 0.6})
    assert found["about"] is about
    assert said in found["sentence"]


def test_both_say_nothing_about_the_part_that_adds_nothing():
    top1 = {"": 0.1, MATCHED: 0.1, SHUFFLED: 0.6, CONSTANT: 0.8, CONSTANT_INVERSE: 0.8}
    fall = {"value": 0.7, "low": 0.6, "high": 0.8}
    assert "the fall is about where and when:" in inversion.verdict("both", 0.8, top1, fall)["sentence"]
    said = inversion.verdict("both", 0.8, top1, fall, "temporal")["sentence"]
    assert "the fall is about when:" in said
    assert said.endswith("Temporal inverted alone takes as much, so that nothing is said about where.")


class TestClips:
    def test_batches_do_not_matter(self) -> None:
        model, look = tiny(), partial(inversion.look, asked=conditions(tuple(inversion.ROWS)))
        source = Generated(model, 0, 5, 2)
        one, three = (
            [record for batch in looked(look, model, source, source.numbers, size) for record in batch]
            for size in (1, 3)
        )
        for left, right in zip(one, three, strict=True):
            assert (left["clip"], left["label"], left["rank"]) == (right["clip"], right["label"], right["rank"])
            np.testing.assert_allclose(left["probability"], right["probability"], atol=1e-6)
        assert len({tuple(record["predicted"]) for record in one}) > 1

    def test_segments_are_interleaved(self) -> None:
        source = Generated(tiny(), 18, 2, 2)
        assert list(source.numbers) == [18, 19]
        found = source[19]
        assert found.label == 1
        np.testing.assert_array_equal(found.frames[1], synthetic.generate(19, 8, 16).frames[1::2])

    def test_as_evidence_counts_it(self) -> None:
        """The figures in a checkpoint's metadata and those of the study are the same ones."""
        from explain.evidence import measure

        model, asked = tiny(), conditions(tuple(inversion.ROWS))
        source = Generated(model, 0, 18, 1)
        look = partial(inversion.look, asked=asked)
        records = [record for batch in looked(look, model, source, source.numbers, 9) for record in batch]
        rows = inversion.summarise(records, asked, model.classes)["rows"]
        scores = measure(model, 18, progress=False)["scores"]
        assert scores["top5"]["value"] == pytest.approx(told(rows, "none")["top5"]["value"], abs=1e-4)
        for row in ("spatial", "temporal", "both"):
            name = f"top1 with {row} inverted"
            assert scores[name]["value"] == pytest.approx(told(rows, row)["top1"]["value"], abs=1e-4)


class TestCommand:
    def test_everything_is_there(
        self,
        tmp_path: Path,
        checkpoint: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        calls: Counter[str] = Counter()

        def counted(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments: calls.update([name]) or inner(*arguments)

        for name in ("extract", "attend", "mix", "perceive"):
            monkeypatch.setattr(STABN, name, counted(name, getattr(STABN, name)))
        out = tmp_path / "out"
        options = ["--checkpoint", str(checkpoint), "--out", str(out), "--clips", "6", "--batch", "3"]
        assert main([*options, "--invert", "spatial,temporal", "--per-class", "--workers", "0"]) == 0
        assert calls == {"extract": 2, "attend": 2, "mix": 2, "perceive": 2 * 28}
        assert listing(out) == ["ablation.csv", "ablation.json", "ablation.png"]

        printed = capsys.readouterr().out
        lines = printed.splitlines()
        assert max(map(len, lines[:-1])) <= 100  # the last names the folder
        at = [next(n for n, line in enumerate(lines) if line.startswith(name)) for name in ablate.TITLES.values()]
        assert at == [at[0], at[0] + 1, at[0] + 6, at[0] + 11]
        for n, published in zip(at, ("53.3  64.1", "28.8  32.3", "20.0  43.1", "6.9  14.2"), strict=True):
            assert lines[n].endswith(published)
        assert "* top-1 published by the paper, not measured here" in printed
        assert printed.count(" inverted: ") == 3  # a verdict for each
        assert "Moving something up " in printed  # by class

        found = result(out)
        assert found["study"]["weights"] == weights_hash(checkpoint)
        assert found["study"]["data"] == {
            "name": "Synthetic-Something",
            "version": str(synthetic.VERSION),
            "first": 0,
            "clips": 6,
        }
        assert found["study"]["rows"] == ["none", "spatial", "temporal", "both"]
        assert found["passes"] == {"extract": 1, "attend": 1, "perceive": 28}
        assert found["published"]["Something-Something V2"] == [64.1, 32.3, 43.1, 14.2]
        assert {"torch", "python"} <= set(found["versions"])
        assert [each["clips"] for each in found["per_class"]] == [1] * 6
        for row in found["rows"][1:]:
            assert [each["control"] for each in row["controls"]] == list(CONTROLS)
            for each in (row, *row["controls"]):
                for name in ("top1", "top5", "flips", "change"):
                    assert each[name]["low"] <= each[name]["value"] + 1e-6 <= each[name]["high"] + 2e-6

        with open(out / "ablation.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert [(line["row"], line["control"]) for line in table[:3]] == [
            ("none", ""),
            ("spatial", ""),
            ("spatial", MATCHED),
        ]
        assert len(table) == 1 + 3 * 5
        assert float(table[1]["flips_high"]) == found["rows"][1]["flips"]["high"]
        assert [line["published_v1_top1_percent"] for line in table if not line["control"]] == [
            "53.3",
            "28.8",
            "20.0",
            "6.9",
        ]
        with Image.open(out / "ablation.png") as image:
            assert min(image.size) > 800

    def test_a_finished_study_is_shown_again(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run("--clips", 3, "--json") == 0
        first = capsys.readouterr()
        assert json.loads(first.out) == result(tmp_path / "out")
        monkeypatch.setattr(inversion, "look", pytest.fail)  # no clip is looked at again
        assert run("--clips", 3, "--json", "--batch", 2) == 0
        assert capsys.readouterr().out == first.out
        assert run("--clips", 3, "--quiet") == 0
        assert capsys.readouterr().out == ""

    def test_other_options_do_not_replace_a_result(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--clips", 3) == 0
        capsys.readouterr()
        assert run("--clips", 4) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "other data" in error
        assert "--overwrite" in error
        assert result(tmp_path / "out")["clips"] == 3
        assert run("--clips", 4, "--overwrite") == 0
        assert result(tmp_path / "out")["clips"] == 4

    @pytest.mark.parametrize(
        ("invert", "rows"),
        [
            ("none", ["none"]),
            ("temporal", ["none", "temporal"]),
            ("both", ["none", "spatial", "temporal", "both"]),
        ],
    )
    def test_rows(self, run: Run, tmp_path: Path, invert: str, rows: list[str]) -> None:
        assert run("--clips", 2, "--invert", invert) == 0
        assert [row["row"] for row in result(tmp_path / "out")["rows"]] == rows

    def test_processes_give_the_same(self, run: Run, tmp_path: Path) -> None:
        assert run("--clips", 4, "--batch", 2, "--out", tmp_path / "two", "--processes", 2) == 0
        assert run("--clips", 4, "--batch", 2) == 0
        assert (tmp_path / "two" / "ablation.csv").read_text() == (tmp_path / "out" / "ablation.csv").read_text()

    def test_a_process_that_fails_says_why(self) -> None:
        start = partial(_looking, print, "gone.safetensors", "cpu", [])
        with pytest.raises(RuntimeError, match=r"gone\.safetensors"):
            list(runs.in_processes(start, [[0], [1]], 1))
        with pytest.raises(RuntimeError, match="a process ended with code 0, perhaps for lack of memory"):
            list(runs.in_processes(os._exit, [[0]], 1))

    def test_the_chart_of_each_choice_of_rows(self, tmp_path: Path, checkpoint: Path) -> None:
        options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--workers", "0", "--clips", "2"]
        assert main([*options, "--invert", "none"]) == 0
        with Image.open(tmp_path / "ablation.png") as image:
            assert image.format == "PNG"


class TestResume:
    def test_it_goes_on_where_it_stopped(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        look, seen = inversion.look, []

        def stopping(model: Any, items: Any, asked: Any) -> Any:
            if len(seen) == 4:
                raise KeyboardInterrupt
            seen.extend(each.number for each in items)
            return look(model, items, asked)

        options = ("--clips", 6, "--batch", 2)
        monkeypatch.setattr(inversion, "look", stopping)
        assert run(*options) == 130
        assert capsys.readouterr().err.startswith("error: interrupted")
        partial = tmp_path / "out" / "ablation.partial.jsonl"
        assert listing(tmp_path / "out") == [partial.name]
        header, *records = map(json.loads, partial.read_text().splitlines())
        assert set(header) == {"program", "weights", "config", "data", "rows", "segments"}
        assert [record["clip"] for record in records] == seen == [0, 1, 2, 3]
        with partial.open("a") as file:
            file.write('{"clip": 4, "lab')  # stopped while it wrote

        assert run(*options, "--segments", 2) == 2
        error = capsys.readouterr().err
        assert "other segments" in error
        assert "--overwrite" in error

        seen.clear()
        assert run(*options) == 0
        assert seen == [4, 5]
        assert listing(tmp_path / "out") == ["ablation.csv", "ablation.json", "ablation.png"]
        seen.append(None)
        monkeypatch.setattr(inversion, "look", look)
        assert run(*options, "--out", tmp_path / "whole") == 0
        resumed, whole = result(tmp_path / "out"), result(tmp_path / "whole")
        assert {**resumed, "created": ""} == {**whole, "created": ""}

    def test_damage_is_refused_and_overwritten_on_request(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "ablation.partial.jsonl").write_text("no JSON\n")
        assert run("--clips", 2) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert run("--clips", 2, "--overwrite") == 0
        (tmp_path / "out" / "ablation.json").write_text("[]")
        assert run("--clips", 2) == 2
        assert "is no result of stabn-ablate" in capsys.readouterr().err

    def test_a_failure_leaves_nothing_half_written(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(result: Any) -> bytes:
            raise RuntimeError("no font")

        monkeypatch.setattr(ablate, "chart", fail)
        assert run("--clips", 2) == 1
        assert capsys.readouterr().err == "error: no font\n"
        assert listing(tmp_path / "out") == ["ablation.partial.jsonl"]


class TestData:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        """Two classes: a video and a folder of frames of one, two videos of the other; and what is none."""
        root = tmp_path / "data"
        for seed, name in ((0, "a.mp4"), (18, "frames"), (2, "b.mp4"), (20, "c.mp4")):
            sample = synthetic.generate(seed, 10, 32)
            path = root / synthetic.CLASSES[sample.label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "frames":
                path.mkdir()
                for k, frame in enumerate(sample.frames):
                    Image.fromarray(frame).save(path / f"{k}.png")
            else:
                write_video(path, sample.frames, 12.0)
        (root / "README.md").write_text("not a class")
        (root / synthetic.CLASSES[2] / "notes.txt").write_text("not a video")
        return root

    def test_class_folders_and_the_same_as_csv(
        self, run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--data", folder, "--segments", 2) == 0
        assert "data (" in capsys.readouterr().out
        found = result(tmp_path / "out")
        assert (found["clips"], found["study"]["segments"]) == (4, 2)
        assert found["study"]["data"]["of"] == 4
        assert [(each["class"], each["clips"]) for each in found["per_class"]] == [
            (synthetic.CLASSES[0], 2),
            (synthetic.CLASSES[2], 2),
        ]
        # In the order of the folders, so that the shuffles are the same.
        lines = [f"{synthetic.CLASSES[2]}/{name},2" for name in ("b.mp4", "c.mp4")]
        lines += [f"{synthetic.CLASSES[0]}/{name},{synthetic.CLASSES[0].upper()}" for name in ("a.mp4", "frames")]
        (folder / "list.csv").write_text("\n".join(["path,label", *lines]), "utf-8-sig")
        assert run("--data", folder / "list.csv", "--segments", 2, "--out", tmp_path / "csv") == 0
        assert result(tmp_path / "csv")["rows"] == found["rows"]

    def test_some_clips_are_spread_over_all(self, run: Run, folder: Path, tmp_path: Path) -> None:
        assert run("--data", folder, "--clips", 2) == 0
        assert [each["clips"] for each in result(tmp_path / "out")["per_class"]] == [1, 1]

    def test_bad_videos_are_skipped_and_named(
        self, run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / synthetic.CLASSES[2] / "b.mp4").write_bytes(b"")
        assert run("--data", folder) == 0
        printed = capsys.readouterr()
        assert "skipped 1 of 4 clips" in printed.err
        assert "b.mp4: is empty" in printed.err
        assert "3 clips, 1 skipped" in printed.out
        found = result(tmp_path / "out")
        assert found["clips"] == 3
        assert "b.mp4" in found["skipped"][0]["reason"]

    def test_without_a_clip_that_can_be_read(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "list.csv").write_text("label,path\n3,gone.mp4\n3,away.mp4\n")
        assert run("--data", tmp_path / "list.csv") == 1
        assert "none of the 2 clips can be read" in capsys.readouterr().err
        assert listing(tmp_path / "out") == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("path,label\na.mp4,Dancing\n", "line 2: there is no class 'Dancing'"),
            ("path,label\na.mp4,0\nb.mp4,18\n", "line 3: there is no class 18"),
            ("path,label\na.mp4\n", "line 2: there is no class ''"),
            ("file,label\na.mp4,0\n", "it lacks path"),
            ("path,label\n", "has no rows"),
            ("path,label\n,3\n", "line 2: the path is empty"),
            ("", "it lacks"),
        ],
    )
    def test_a_wrong_list_is_refused_before_anything_runs(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
    ) -> None:
        (tmp_path / "list.csv").write_text(content)
        assert run("--data", tmp_path / "list.csv") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error
        assert not (tmp_path / "out").exists()

    def test_folders_that_are_no_classes(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "data").mkdir()
        assert run("--data", tmp_path / "data") == 2
        assert "no class folders" in capsys.readouterr().err
        (tmp_path / "data" / "Dancing" / "frames").mkdir(parents=True)
        assert run("--data", tmp_path / "data") == 2
        assert "there is no class 'Dancing'" in capsys.readouterr().err
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 9)
        assert run("--data", tmp_path / "binary") == 2
        assert "neither a folder nor a CSV" in capsys.readouterr().err


class TestWrongUse:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--invert", "where"), "it must be spatial, temporal, spatial,temporal or none"),
            (("--invert", "none,spatial"), "it must be spatial"),
            (("--clips", "0"), "--clips is 0, it must be 1 or more"),
            (("--batch", "0"), "--batch is 0"),
            (("--segments", "0"), "--segments is 0"),
            (("--workers", "-1"), "--workers is -1, it must be 0 or more"),
            (("--first", str(10**9)), "are not evaluation seeds"),
            (("--data", "gone"), "--data gone does not exist"),
            (("--checkpoint", "gone"), "gone is neither a file nor the name"),
            (("--device", "toaster"), "`device` must be"),
            (("--data", ".", "--first", "3"), "--first is a seed"),
        ],
    )
    def test_one_sentence_and_exit_code_2(
        self, run: Run, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
    ) -> None:
        assert run(*options) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert said in printed.err

    @pytest.mark.parametrize(
        ("attention", "invert", "said"),
        [
            ("spatial", "spatial,temporal", "has no temporal attention to invert: pass --invert spatial"),
            ("temporal", "spatial", "has no spatial attention to invert: pass --invert temporal"),
            ("none", "temporal", "has no temporal attention to invert: pass --invert none"),
        ],
    )
    def test_variants(
        self,
        run: Run,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        attention: str,
        invert: str,
        said: str,
    ) -> None:
        save(tiny(attention), tmp_path / "variant.safetensors")
        assert run("--checkpoint", tmp_path / "variant.safetensors", "--invert", invert) == 2
        assert said in capsys.readouterr().err
        assert run("--checkpoint", tmp_path / "variant.safetensors", "--invert", attention, "--clips", 2) == 0

    def test_other_classes_need_data(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save(tiny(classes=("a", "b")), tmp_path / "other.safetensors")
        assert run("--checkpoint", tmp_path / "other.safetensors") == 2
        error = capsys.readouterr().err
        assert "2 classes are not the 18 of Synthetic-Something" in error
        assert "--data" in error

    def test_out_is_a_file(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "out").write_text("")
        assert run("--clips", 2) == 2
        assert "cannot be written" in capsys.readouterr().err
