"""`stabn-explain` from the outside: what it writes, what it refuses, and that nothing half-made stays."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import explain.render
import explain.result
from explain.cli import UsageError, find_videos, folder_names, main
from explain.core import place
from explain.result import AHEAD, ahead
from stabn import __version__
from stabn.checkpoint import save, weights_hash
from stabn.model import STABN, Config
from stabn.video import iter_frames, probe

CLASSES = ["Pushing something", "Moving something up", "Holding something"]
FILES = ["explanation.npz", "figure.png", "manifest.json", "overlay.mp4", "temporal.csv", "temporal.png"]
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Config(
        classes=3, frames=4, size=16, block="basic", layers=(1, 1, 1, 1), width=4, stem=(3, 3, 3), pool=False
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(STABN(config, CLASSES), path)
    return path


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Callable[..., int]:
    """run(videos and options) with the tiny network into tmp_path/viz -> exit code"""

    def call(*arguments: object) -> int:
        common = ("--checkpoint", checkpoint, "--out", tmp_path / "viz")
        return main([str(each) for each in (*arguments, *common)])

    return call


@pytest.fixture
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the slow pictures, for tests of everything else."""
    for name in ("figure", "temporal"):
        monkeypatch.setattr(explain.render, name, lambda *args: Path(args[-1]).write_bytes(b"picture"))


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "explanation.npz") as found:
        return dict(found)


def untimed(value: Any) -> Any:
    """A manifest or a line of --json without what differs from run to run."""
    if isinstance(value, list):
        return [untimed(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: untimed(each) for key, each in value.items() if key not in ("timings", "seconds", "created")}


def near(value: Any) -> Any:
    """What equals a value up to rounding, which depends on the number of threads."""
    if isinstance(value, dict):
        return {key: near(each) for key, each in value.items()}
    if isinstance(value, list):
        return [near(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class TestResult:
    def test_everything_is_there(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, checkpoint: Path
    ) -> None:
        stamps = [0.0, 0.04, 0.2, 0.24, 0.5, 0.54, 0.6, 0.64, 0.68, 0.9]
        source = make_video("a.mp4", np.full((10, 48, 64, 3), 90, np.uint8), stamps, audio="aac")
        assert run(source) == 0
        folder = tmp_path / "viz" / "a"
        assert listing(folder) == FILES
        assert listing(tmp_path / "viz") == ["a"]

        told = manifest(folder)
        assert told["method"] == "stabn"
        assert told["video"]["name"] == "a.mp4"
        assert (told["video"]["width"], told["video"]["height"], told["video"]["frames"]) == (64, 48, 10)
        assert told["checkpoint"]["sha256"] == weights_hash(checkpoint)
        assert told["knows"] == "knows 3 motions; this clip may show none of them"
        assert [set(each) for each in told["top5"]] == [{"class", "probability"}] * 3
        assert told["top5"][0]["probability"] == max(each["probability"] for each in told["top5"])
        assert set(told["timings"]) == {"decode", "network", "render", "encode", "total"}
        assert told["options"]["window"] is None
        assert (told["scale"]["low"], told["scale"]["high"]) == (0, 1)
        assert sorted([*told["files"], "manifest.json"]) == FILES

        with np.load(folder / "explanation.npz", allow_pickle=False) as arrays:
            assert set(arrays) == {
                "spatial", "temporal", "frame_indices", "timestamps", "probabilities", "classes"
            }  # fmt: skip
            assert arrays["spatial"].shape[0] == 4
            assert arrays["temporal"].shape == (4,)
            assert arrays["probabilities"].sum() == pytest.approx(1)
            assert arrays["classes"].tolist() == CLASSES
            assert told["spatial"]["maximum"] == pytest.approx(arrays["spatial"].max())
            np.testing.assert_allclose(arrays["timestamps"], np.array(stamps)[arrays["frame_indices"]], atol=1e-4)
            rows = list(csv.DictReader((folder / "temporal.csv").open()))
            assert [int(row["frame_index"]) for row in rows] == arrays["frame_indices"].tolist()
            np.testing.assert_allclose([float(row["weight"]) for row in rows], arrays["temporal"], atol=1e-6)
            np.testing.assert_allclose([float(row["seconds"]) for row in rows], arrays["timestamps"], atol=1e-6)

        overlay = probe(folder / "overlay.mp4")
        assert overlay.frame_count == 10
        np.testing.assert_allclose(overlay.timestamps, stamps, atol=1e-3)  # variable frame rate kept
        assert overlay.has_audio
        assert overlay.source_size[1] == 320  # 64 pixels, enlarged five times
        assert overlay.source_size[0] > 240

    def test_the_overlay_shows_the_source(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None
    ) -> None:
        frames = np.zeros((6, 240, 320, 3), np.uint8)
        frames[:, :, 160:] = 255
        assert run(make_video("a.mp4", frames)) == 0
        for _, frame in iter_frames(tmp_path / "viz" / "a" / "overlay.mp4"):
            assert frame[:240, 165:].mean() > frame[:240, :155].mean() + 40
            assert frame[242:246].mean() < 40  # the band is dark

    def test_on_request(self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None) -> None:
        assert run(make_video("a.mp4"), "--frames-png", "--maps-at-source-size") == 0
        folder = tmp_path / "viz" / "a"
        with np.load(folder / "explanation.npz") as arrays:
            indices, spatial, large = (arrays[key] for key in ("frame_indices", "spatial", "spatial_source"))
        assert large.dtype == np.float32
        np.testing.assert_allclose(large, place(spatial, (0, 8, 48, 48), (48, 64)), atol=1e-6)
        assert listing(folder / "frames") == [f"{index:06d}.png" for index in indices]
        with Image.open(folder / "frames" / f"{indices[0]:06d}.png") as image:
            assert image.size == (320, 240)
        assert {f"frames/{index:06d}.png" for index in indices} < set(manifest(folder)["files"])

    def test_windows(self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None) -> None:
        source = make_video("a.mp4", np.full((20, 32, 32, 3), 90, np.uint8))  # 0.8 s
        assert run(source, "--window", 0.4, "--stride", 0.3) == 0
        folder = tmp_path / "viz" / "a"
        told = manifest(folder)
        spans = [(each["start"], each["end"]) for each in told["windows"]]
        np.testing.assert_allclose(spans, [(0, 0.4), (0.3, 0.7), (0.4, 0.8)])
        with np.load(folder / "explanation.npz") as arrays:
            np.testing.assert_allclose(arrays["windows"], spans)
            assert arrays["window_probabilities"].shape == (3, 3)
            np.testing.assert_allclose(arrays["probabilities"], arrays["window_probabilities"].mean(0), rtol=1e-5)
            indices = arrays["frame_indices"]
            assert (np.diff(indices) > 0).all()
            assert len(arrays["spatial"]) == len(arrays["temporal"]) == len(indices) > 4
        assert told["options"]["stride"] == 0.3
        assert run(source, "--window", 0.4, "--overwrite") == 0
        assert manifest(folder)["options"]["stride"] == 0.2

    def test_a_target(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        small_figures: None,
    ) -> None:
        assert run(make_video("a.mp4"), "--target", "holding something") == 0
        told = manifest(tmp_path / "viz" / "a")
        assert told["target"]["class"] == "Holding something"
        assert told["options"]["target"] == "Holding something"

    def test_a_folder_of_frames(self, run: Callable[..., int], tmp_path: Path, small_figures: None) -> None:
        (tmp_path / "shots").mkdir()
        for k in range(5):
            Image.new("RGB", (40, 30), (50 * k, 0, 0)).save(tmp_path / "shots" / f"{k}.png")
        assert run(tmp_path / "shots") == 0
        folder = tmp_path / "viz" / "shots"
        assert manifest(folder)["video"]["frames"] == 5
        assert run(tmp_path / "shots") == 0  # the same again
        Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "shots" / "5.png")
        assert run(tmp_path / "shots") == 1  # no longer the same


class TestSeveralMethods:
    def test_one_overlay_one_figure_and_a_folder_for_each(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = make_video("a.mp4")
        assert run(source, "--method", "stabn,grad_cam, leave_one_frame_out", "--frames-png") == 0
        folder = tmp_path / "viz" / "a"
        assert [name for name in listing(folder) if "." in name] == ["figure.png", "manifest.json", "overlay.mp4"]
        told = manifest(folder)
        methods = ["stabn", "grad_cam", "leave_one_frame_out"]
        assert list(told["methods"]) == methods
        assert told["refused"] == {}
        assert told["methods"]["stabn"]["class_agnostic"]
        assert not told["methods"]["grad_cam"]["class_agnostic"]
        for name in methods:
            assert listing(folder / name) == ["explanation.npz", "frames", "temporal.csv", "temporal.png"]
            assert {f"{name}/explanation.npz", f"{name}/temporal.csv"} < set(told["files"])
            with np.load(folder / name / "explanation.npz") as arrays:
                assert told["methods"][name]["spatial"]["maximum"] == pytest.approx(arrays["spatial"].max())
        overlay = probe(folder / "overlay.mp4")
        assert overlay.source_size[1] > 3 * 320
        assert "3 methods" in capsys.readouterr().out
        assert run(source, "--method", "stabn,grad_cam,leave_one_frame_out", "--frames-png") == 0
        assert "skipped" in capsys.readouterr().out
        assert run(source) == 1
        assert run(source, "--overwrite") == 0
        assert listing(folder) == FILES

    def test_a_method_alone_is_the_same_as_among_others(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None
    ) -> None:
        assert run(make_video("a.mp4"), "--method", "grad_cam") == 0
        assert run(shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4"), "--method", "random,grad_cam") == 0
        arrays = [np.load(tmp_path / "viz" / name / "explanation.npz") for name in ("a", "b/grad_cam")]
        for name in arrays[0]:
            np.testing.assert_array_equal(arrays[0][name], arrays[1][name])

    def test_windows(self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None) -> None:
        source = make_video("a.mp4", np.full((20, 32, 32, 3), 90, np.uint8))
        assert run(source, "--window", 0.4, "--method", "stabn,centre") == 0
        told = manifest(tmp_path / "viz" / "a")
        assert len(told["windows"]) == 3
        with np.load(tmp_path / "viz/a/centre/explanation.npz") as arrays:
            assert len(arrays["windows"]) == 3

    @pytest.mark.parametrize(("method", "code"), [("grad_cam,cam", 1), ("all", 0)])
    def test_one_that_refuses_does_not_stop_the_others(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
        method: str,
        code: int,
    ) -> None:
        def refuse(*args: Any, **options: Any) -> None:
            raise ValueError("cam needs pooling")

        monkeypatch.setattr("explain.methods.cam", refuse)
        monkeypatch.setattr("explain.cli.METHODS", dict.fromkeys(("grad_cam", "cam")))
        source = make_video("a.mp4")
        for _ in range(2):  # made, and found finished
            assert run(source, "--method", method) == code
            error = capsys.readouterr().err
            assert error == f"{'error' if code else 'left out'}: {source}: cam: cam needs pooling\n"
        told = manifest(tmp_path / "viz" / "a")
        assert list(told["methods"]) == ["grad_cam"]
        assert told["refused"] == {"cam": "cam needs pooling"}

    def test_if_all_refuse_nothing_is_written(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def refuse(*args: Any, **options: Any) -> None:
            raise ValueError("no")

        monkeypatch.setattr("explain.methods.cam", refuse)
        monkeypatch.setattr("explain.methods.hires_cam", refuse)
        assert run(make_video("a.mp4"), "--method", "cam,hires_cam") == 1
        assert capsys.readouterr().err == "error: cam: no; hires_cam: no\n"
        assert listing(tmp_path / "viz") == []


class TestScore:
    def test_values_beside_chance_in_the_manifest(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        small_figures: None,
    ) -> None:
        monkeypatch.setattr("explain.metrics.SCORABLE", -1.0)  # the network is not trained
        assert run(make_video("a.mp4"), "--method", "grad_cam", "--score") == 0
        told = manifest(tmp_path / "viz" / "a")
        assert {"deletion", "insertion", "deletion_time", "frame_effect"} <= set(told["scores"])
        deletion = told["scores"]["deletion"]
        assert set(deletion) == {"value", "random", "better", "title"}
        assert deletion["better"] == "low"
        assert 0 <= deletion["value"] <= 1
        assert told["timings"]["score"] > 0
        assert run(shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4"), "--method", "random,grad_cam", "--score") == 0
        methods = manifest(tmp_path / "viz" / "b")["methods"]
        assert methods["grad_cam"]["scores"] == told["scores"]
        for score in methods["random"]["scores"].values():
            assert score["value"] == score["random"]

    def test_a_clip_that_cannot_be_scored_says_so(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None
    ) -> None:
        source = make_video("a.mp4", np.full((6, 32, 32, 3), 90, np.uint8))  # blurring it changes nothing
        assert run(source, "--score") == 0
        told = manifest(tmp_path / "viz" / "a")
        assert "scores" not in told
        note = "loses 0.00 of its probability when the whole clip is blurred, and more than 0.05 is needed"
        assert any(each.startswith("not scored: ") and each.endswith(note) for each in told["notes"])


class TestOtherNetworks:
    @pytest.fixture
    def other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """Options for a small network of someone else's, in the current folder."""
        code = """
            from torch import nn

            def build():
                layers = [nn.Conv3d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)]
                return nn.Sequential(*layers)
        """
        (tmp_path / "othernet.py").write_text(textwrap.dedent(code))
        (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "othernet", raising=False)
        torch.manual_seed(0)
        sys.path.insert(0, str(tmp_path))
        torch.save(importlib.import_module("othernet").build().state_dict(), tmp_path / "w.pth")
        names = ("--model", "othernet:build", "--weights", "w.pth", "--classes", "names.txt")
        return [*names, "--frames", 4, "--size", 16]

    def call(self, *arguments: object) -> int:
        return main([str(each) for each in arguments])

    def test_it_is_explained(
        self,
        other: list[object],
        make_video: Make,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        source = make_video("a.mp4")
        assert self.call(source, *other) == 0
        assert capsys.readouterr().out.startswith("othernet:build knows 3 motions")
        told = manifest(tmp_path / "viz" / "a")
        assert (told["method"], told["options"]["frames"], told["options"]["size"]) == ("grad_cam", 4, 16)
        assert told["checkpoint"]["name"] == "othernet:build"
        assert [each["class"] for each in told["top5"]] != CLASSES
        assert self.call(source, *other) == 0
        assert "skipped" in capsys.readouterr().out
        for change, said in {
            "names.txt": ("un\ndeux\ntrois\n", "other names of classes"),
            "w.pth": ({name: value + 1 for name, value in torch.load("w.pth").items()}, "another checkpoint"),
        }.items():
            content, reason = said
            torch.save(content, change) if isinstance(content, dict) else Path(change).write_text(content)
            assert self.call(source, *other) == 1
            assert reason in capsys.readouterr().err

    def test_layers(
        self, other: list[object], make_video: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = make_video("a.mp4")
        assert self.call(source, *other, "--layers") == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert (
            head == "a.mp4: layers for a clip of 4 x 16 x 16 (time x height x width), in the order of their last call"
        )
        assert [line.split("  ")[1:] for line in lines] == [
            ["0", "2 x 8 x 8"],
            ["1", "2 x 8 x 8", "<- the CAM methods look here"],
            ["2", "1 x 1 x 1"],
        ]
        assert self.call(source, *other, "--layers", "--layer", "0", "--json") == 0
        assert json.loads(capsys.readouterr().out)["taken"] == "0"
        assert not (tmp_path / "viz").exists()
        assert self.call(tmp_path / "gone.mp4", *other, "--layers") == 1

    def test_the_layer_decides_the_map(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None
    ) -> None:
        shapes = set()
        for layer in ("layer1", "layer4"):
            assert run(make_video(f"{layer}.mp4"), "--method", "grad_cam", "--layer", layer) == 0
            with np.load(tmp_path / "viz" / layer / "explanation.npz") as arrays:
                shapes.add(arrays["spatial"].shape)
        assert len(shapes) == 2

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--weights", "w.pth"], "--weights is for another network: give --model too"),
            (["--size", "32"], "--size is for another network"),
            (["--model", "a:b", "--checkpoint", "mine"], "give one of them"),
            (["--model", "torchvision:alexnet"], "there are r3d_18"),
            (["--score", "--window", "1"], "cannot be combined with --window"),
            (["--method", "grad_cam,gradcam"], "no method 'gradcam'"),
            (["--method", ","], "--method is empty"),
            (["--layer", "nope"], "there is no layer 'nope': there are 'stem.0'"),
        ],
    )
    def test_a_wrong_command_line(
        self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert self.call("a.mp4", "--out", tmp_path / "viz", *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert len(err.splitlines()) == 1


class TestStanding:
    """What is done about a folder that is there already."""

    @pytest.fixture
    def source(self, make_video: Make, run: Callable[..., int], small_figures: None) -> Path:
        path = make_video("a.mp4")
        assert run(path) == 0
        return path

    def test_the_same_again_is_skipped(
        self,
        source: Path,
        run: Callable[..., int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        before = (tmp_path / "viz/a/manifest.json").stat().st_mtime_ns
        capsys.readouterr()
        assert run(source) == 0
        assert "skipped" in capsys.readouterr().out
        assert (tmp_path / "viz/a/manifest.json").stat().st_mtime_ns == before

    def test_other_options_are_refused_and_named(
        self,
        source: Path,
        run: Callable[..., int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        before = manifest(tmp_path / "viz/a")
        assert run(source, "--window", 0.2) == 1
        error = capsys.readouterr().err
        assert "window None instead of 0.2" in error
        assert "--overwrite" in error
        assert manifest(tmp_path / "viz/a") == before
        assert run(source, "--window", 0.2, "--overwrite") == 0
        assert manifest(tmp_path / "viz/a")["options"]["window"] == 0.2
        assert listing(tmp_path / "viz") == ["a"]

    def test_another_video_is_refused(
        self,
        source: Path,
        run: Callable[..., int],
        make_video: Make,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        make_video("a.mp4", np.full((8, 32, 32, 3), 200, np.uint8))
        assert run(source) == 1
        assert "was made from another video: pass --overwrite" in capsys.readouterr().err

    def test_another_checkpoint_and_version_are_refused(
        self,
        source: Path,
        run: Callable[..., int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        told = manifest(tmp_path / "viz/a")
        told["checkpoint"]["sha256"] = "0" * 64
        told["version"] = f"{__version__}.old"
        (tmp_path / "viz/a/manifest.json").write_text(json.dumps(told))
        assert run(source) == 1
        assert f"another checkpoint and version {__version__}.old" in capsys.readouterr().err

    def test_a_result_with_a_file_gone_is_not_finished(
        self, source: Path, run: Callable[..., int], tmp_path: Path
    ) -> None:
        (tmp_path / "viz/a/overlay.mp4").unlink()
        assert run(source) == 1
        assert run(source, "--overwrite") == 0
        assert (tmp_path / "viz/a/overlay.mp4").exists()

    def test_files_of_the_user_are_never_removed(
        self,
        source: Path,
        run: Callable[..., int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "viz/a/thoughts.txt").write_text("mine")
        assert run(source, "--overwrite") == 1
        assert "also holds thoughts.txt" in capsys.readouterr().err
        assert (tmp_path / "viz/a/thoughts.txt").read_text() == "mine"

    @pytest.mark.parametrize("content", ["{}", "not json", None])
    def test_a_folder_that_is_no_result_is_never_replaced(
        self,
        source: Path,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        content: str | None,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "viz/b").mkdir()
        (tmp_path / "viz/b/notes.txt").write_text("mine")
        if content is not None:
            (tmp_path / "viz/b/manifest.json").write_text(content)
        other = make_video("b.mp4")
        assert run(other, "--overwrite") == 1
        assert "not a finished result" in capsys.readouterr().err
        assert (tmp_path / "viz/b/notes.txt").read_text() == "mine"

    def test_an_empty_folder_is_used_and_a_file_is_not(
        self, source: Path, run: Callable[..., int], make_video: Make, tmp_path: Path
    ) -> None:
        (tmp_path / "viz/b").mkdir()
        assert run(make_video("b.mp4")) == 0
        assert listing(tmp_path / "viz/b") == FILES
        (tmp_path / "viz/c").write_text("mine")
        assert run(make_video("c.mp4"), "--overwrite") == 1
        assert (tmp_path / "viz/c").read_text() == "mine"


class TestAhead:
    """`ahead`, which overlaps the stages of the overlay."""

    def test_items_come_in_order_and_few_are_made_before_they_are_taken(self) -> None:
        made: list[int] = []
        early = []
        for taken, item in enumerate(ahead(made.append(k) or k for k in range(20))):
            early.append(len(made) - taken - 1)
            assert item == taken
        assert made == list(range(20))
        assert 0 <= max(early) <= AHEAD

    def test_an_error_comes_after_the_items_before_it(self) -> None:
        items = ahead(6 // (2 - k) for k in range(4))
        assert [next(items), next(items)] == [3, 6]
        with pytest.raises(ZeroDivisionError):
            next(items)

    def test_closing_it_closes_its_source_and_ends_its_thread(self) -> None:
        before, closed = threading.active_count(), []

        def source() -> Generator[int, None, None]:
            try:
                yield from range(1000)
            finally:
                closed.append(True)

        items = ahead(source())
        assert next(items) == 0
        assert threading.active_count() == before + 1
        items.close()
        assert closed == [True]
        assert threading.active_count() == before


class TestNothingHalfMade:
    @pytest.mark.parametrize("error", [RuntimeError("out of paper"), KeyboardInterrupt(), OSError(28, "disk full")])
    @pytest.mark.parametrize("stage", ["figure", "Overlay"])
    def test_after_a_failure(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: BaseException,
        stage: str,
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(explain.render, stage, fail)
        interrupted = isinstance(error, KeyboardInterrupt)
        assert run(make_video("a.mp4")) == (130 if interrupted else 1)
        assert listing(tmp_path / "viz") == []
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert len(message.splitlines()) == 1

    def test_in_the_middle_of_the_video(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        small_figures: None,
    ) -> None:
        source = make_video("a.mp4")
        assert run(source) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "viz/a").iterdir()}
        draw = explain.render.Overlay.under

        def fail(self: explain.render.Overlay, heated: Any, seconds: float) -> Any:
            if seconds > 0.2:
                raise MemoryError
            return draw(self, heated, seconds)

        monkeypatch.setattr(explain.render.Overlay, "under", fail)
        assert run(source, "--overwrite") == 1
        assert listing(tmp_path / "viz") == ["a"]
        assert {path: path.read_bytes() for path in (tmp_path / "viz/a").iterdir()} == before

    @pytest.mark.parametrize(("part", "error"), [("heated", OSError(28, "disk full")), ("under", KeyboardInterrupt())])
    def test_what_goes_wrong_in_a_thread_ends_all_of_them(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        part: str,
        error: BaseException,
    ) -> None:
        def fail(*args: object) -> None:
            raise error

        before = threading.active_count()
        monkeypatch.setattr(explain.render.Overlay, part, fail)
        assert run(make_video("a.mp4")) == (130 if isinstance(error, KeyboardInterrupt) else 1)
        assert listing(tmp_path / "viz") == []
        assert threading.active_count() == before

    def test_an_old_result_comes_back_if_the_new_one_cannot_take_its_place(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        small_figures: None,
    ) -> None:
        source = make_video("a.mp4")
        assert run(source) == 0
        before = manifest(tmp_path / "viz/a")
        rename = Path.rename

        def fail(self: Path, target: Path) -> Path:
            if ".partial-" in self.name and not self.name.endswith("-old"):
                raise PermissionError(13, "denied")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)
        assert run(source, "--overwrite") == 1
        assert listing(tmp_path / "viz") == ["a"]
        assert manifest(tmp_path / "viz/a") == before

    def test_the_manifest_is_written_last(
        self,
        run: Callable[..., int],
        make_video: Make,
        monkeypatch: pytest.MonkeyPatch,
        small_figures: None,
    ) -> None:
        seen: list[list[str]] = []
        write = Path.write_text

        def spy(self: Path, *args: Any, **kwargs: Any) -> int:
            seen.append(listing(self.parent))
            return write(self, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", spy)
        assert run(make_video("a.mp4")) == 0
        assert seen == [[name for name in FILES if name != "manifest.json"]]


class TestManyVideos:
    def test_one_bad_of_three(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"no video at all")
        assert run(make_video("a.mp4"), bad, make_video("c.mp4"), tmp_path / "gone.mp4") == 1
        assert listing(tmp_path / "viz") == ["a", "c"]
        out, err = capsys.readouterr()
        assert [line.split(":")[0] for line in err.splitlines()] == ["error", "error"]
        assert "bad.mp4" in err
        assert "gone.mp4" in err
        assert "Traceback" not in err
        header, first, second = out.splitlines()
        assert "knows 3 motions; this clip may show none of them" in header
        assert first.startswith("a.mp4: ")
        assert str(tmp_path / "viz/a/overlay.mp4") in first
        assert " %" in first
        assert second.startswith("c.mp4: ")

    def test_json(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        source = make_video("a.mp4")
        assert run(source, tmp_path / "gone.mp4", "--json") == 1
        assert run(source, "--json") == 0
        done, failed, skipped = map(json.loads, capsys.readouterr().out.splitlines())
        assert done["status"] == "done"
        assert done["video"] == str(source)
        assert done["folder"] == str(tmp_path / "viz/a")
        assert len(done["top5"]) == 3
        assert failed["status"] == "failed"
        assert "gone.mp4" in failed["error"]
        assert skipped["status"] == "skipped"
        assert skipped["top5"] == done["top5"]

    def test_quiet(
        self,
        run: Callable[..., int],
        make_video: Make,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        assert run(make_video("a.mp4"), "--quiet") == 0
        assert capsys.readouterr() == ("", "")

    def test_top_names_more_classes(
        self,
        run: Callable[..., int],
        make_video: Make,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        assert run(make_video("a.mp4"), "--top", 3) == 0
        line = capsys.readouterr().out.splitlines()[1]
        assert all(name in line for name in CLASSES)


class TestProcesses:
    def test_several_do_what_one_does_and_one_that_dies_costs_its_video(
        self,
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        code = """
            import os, signal
            from torch import nn

            class Mortal(nn.Conv3d):
                def forward(self, clip):
                    if clip.mean() > 0:  # a bright video
                        os.kill(os.getpid(), signal.SIGKILL)
                    return super().forward(clip)

            def build():
                layers = [Mortal(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)]
                return nn.Sequential(*layers)
        """
        (tmp_path / "mortal.py").write_text(textwrap.dedent(code))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "mortal", raising=False)
        Path("names.txt").write_text("one\ntwo\nthree\n")
        torch.save(importlib.import_module("mortal").build().state_dict(), "w.pth")
        for name, light in (("bright", 250), ("a", 10), ("c", 20)):
            make_video(f"{name}.mp4", np.full((12, 32, 32, 3), light, np.uint8))
        Path("bad.mp4").write_bytes(b"no video at all")
        network = ["--model", "mortal:build", "--weights", "w.pth", "--classes", "names.txt", "--frames", "4"]
        options = [*network, "--size", "16", "--window", "0.3", "--json"]

        assert main(["a.mp4", "bad.mp4", "c.mp4", *options]) == 1
        out, err = capsys.readouterr()
        done, failed, other = map(json.loads, out.splitlines())
        told, values = untimed(manifest(Path("viz/a"))), arrays(Path("viz/a"))
        shutil.rmtree("viz/a")

        assert main(["bright.mp4", "a.mp4", "bad.mp4", "c.mp4", *options, "--processes", "2"]) == 1
        out, again = capsys.readouterr()
        died = "bright.mp4: its process ended with code -9, perhaps for lack of memory"
        assert again == f"error: {died}\n{err}"
        lost = {"video": "bright.mp4", "folder": "viz/bright", "status": "failed", "error": died}
        expected = [lost, untimed(done), failed, untimed(other | {"status": "skipped"})]
        assert [untimed(json.loads(line)) for line in out.splitlines()] == near(expected)
        assert listing(Path("viz")) == ["a", "c"]  # and nothing hidden
        assert untimed(manifest(Path("viz/a"))) == near(told)
        for name, value in arrays(Path("viz/a")).items():
            if name == "classes":
                assert value.tolist() == values[name].tolist()
            else:
                np.testing.assert_allclose(value, values[name], atol=1e-4)

        monkeypatch.setattr("explain.many.in_processes", None)  # what is finished needs none
        assert main(["a.mp4", "c.mp4", *options, "--processes", "2"]) == 0

    def test_after_a_kill_the_old_result_is_back_and_nothing_else_is_left(
        self, run: Callable[..., int], make_video: Make, tmp_path: Path, small_figures: None
    ) -> None:
        """It was killed with --overwrite, when the old result was moved away and the new one was not yet there."""
        source, folder = make_video("a.mp4"), tmp_path / "viz" / "a"
        assert run(source) == 0
        made = (folder / "manifest.json").read_bytes()
        left = folder.with_name(f"{explain.result._beginning(folder)}01234567")
        folder.rename(left.with_name(f"{left.name}-old"))
        left.mkdir()
        (left / "overlay.mp4").write_bytes(b"half")
        assert run(source) == 0
        assert listing(tmp_path / "viz") == ["a"]
        assert (folder / "manifest.json").read_bytes() == made

    def test_two_runs_do_not_make_the_same(
        self,
        run: Callable[..., int],
        make_video: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        small_figures: None,
    ) -> None:
        monkeypatch.setattr("stabn.command.lock", lambda file: False)  # another process has it
        assert run(make_video("a.mp4")) == 1
        assert f"another run is making {tmp_path / 'viz' / 'a'}: wait for its end" in capsys.readouterr().err

    def test_what_a_killed_process_left_is_cleared_up(self, tmp_path: Path) -> None:
        """It was killed when the old result was moved away, and the new one was not yet there."""
        folder, other = (tmp_path / f"{5 * 'long name '}{k}" for k in range(2))
        for each in (folder, other):
            left = tmp_path / f"{explain.result._beginning(each)}01234567"
            left.mkdir()
            left.with_name(f"{left.name}-old").mkdir()
        explain.result.clear_up(folder)
        assert folder in tmp_path.iterdir()
        kept = explain.result._beginning(other)
        assert listing(tmp_path) == [f"{kept}01234567", f"{kept}01234567-old", folder.name]

    def test_interrupted(self, checkpoint: Path, make_video: Make, tmp_path: Path) -> None:
        """All end, and nothing unfinished stays."""
        videos = [make_video(f"{name}.mp4", np.zeros((200, 32, 32, 3), np.uint8)) for name in "ab"]
        out = tmp_path / "viz"
        command = ["-m", "explain.cli", *videos, "--checkpoint", checkpoint, "--out", out, "--quiet", "--processes", 2]
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
        )
        try:
            limit = time.monotonic() + 100
            while not (begun := listing(out)) and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, all of them
            _, err = process.communicate(timeout=100)  # waits for all that can write there
        finally:
            process.kill()
        assert ".partial-" in begun[0]
        assert err == "error: interrupted; the unfinished result was removed\n"
        assert process.returncode == 130
        assert listing(out) == []


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["a.mp4", "--method", "gradcam"], "no method 'gradcam': did you mean 'grad_cam'"),
            (["a.mp4", "--target", "Pushing somthing"], "did you mean 'Pushing something'"),
            (["a.mp4", "--target", "17"], "the 3 classes are 0 to 2"),
            (["a.mp4", "--window", "-1"], "the window is -1 s"),
            (["a.mp4", "--window", "nan"], "the window is nan s"),
            (["a.mp4", "--window", "1", "--stride", "2"], "the stride is 2 s"),
            (["a.mp4", "--stride", "2"], "give --window SECONDS too"),
            (["a.mp4", "--top", "9"], "--top is 9"),
            (["a.mp4", "--processes", "0"], "--processes is 0, it must be 1 or more"),
            (["a.mp4", "--device", "abacus"], "abacus"),
            (["*.nothing"], "nothing matches '*.nothing'"),
            ([], "no video is given"),
            (["a.mp4", "--windo", "3"], "Unrecognized options"),
            (["a.mp4", "--window", "soon"], "soon"),
        ],
    )
    def test_a_wrong_command_line(
        self, run: Callable[..., int], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            code = run(*arguments)
        except SystemExit as exit:  # tyro's own
            code = exit.code  # type: ignore[assignment]
        assert code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err

    def test_out_is_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("mine")
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            assert main(["a.mp4", "--out", str(out)]) == 2
            assert "is a file" in capsys.readouterr().err

    def test_a_wrong_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["a.mp4", "--checkpoint", str(tmp_path / "gone")]) == 2
        assert "gone" in capsys.readouterr().err

    def test_without_libgl_one_sentence_says_what_to_install(
        self, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("explain.result", "explain.render"):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(explain, "render")
        monkeypatch.setitem(sys.modules, "cv2", None)
        assert run("a.mp4") == 1
        error = capsys.readouterr().err
        assert "libgl1" in error
        assert len(error.splitlines()) == 1


class TestFindingVideos:
    def test_files_folders_and_globs(self, tmp_path: Path) -> None:
        for name in ("b.mp4", "a.MOV", "notes.txt", "c.webm"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "shots").mkdir()
        (tmp_path / "shots" / "1.png").write_bytes(b"")
        found = find_videos([str(tmp_path / "c.webm"), str(tmp_path), str(tmp_path / "shots")])
        assert [path.name for path in found] == ["c.webm", "a.MOV", "b.mp4", "shots"]
        assert [path.name for path in find_videos([str(tmp_path / "*.mp4")])] == ["b.mp4"]
        with pytest.raises(UsageError, match="nothing matches"):
            find_videos([str(tmp_path / "*.avi")])

    def test_brackets_in_a_name_are_no_glob(self, tmp_path: Path) -> None:
        (tmp_path / "take[1].mp4").write_bytes(b"")
        assert find_videos([str(tmp_path / "take[1].mp4")]) == [tmp_path / "take[1].mp4"]

    def test_folder_names(self) -> None:
        names = folder_names([Path(path) for path in ("x/a.mp4", "x/b.avi", "x/b.mp4", "x/c.mp4", "y/c.mp4")])
        assert names == ["a", "b.avi", "b.mp4", "x-c.mp4", "y-c.mp4"]
        assert folder_names([Path("u/x/a.mp4"), Path("v/x/a.mp4")]) == ["x-a.mp4", "x-a.mp4-2"]
        assert folder_names([Path("A.mp4"), Path("a.mov")]) == ["A.mp4", "a.mov"]
