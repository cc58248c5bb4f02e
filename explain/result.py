"""One video in, one folder of results out: whole or not at all, and never over anything else.

The folder holds `overlay.mp4`, `figure.png`, `temporal.png`, `temporal.csv`, `explanation.npz`, on request
one picture per sampled frame in `frames/`, and `manifest.json`, which is written last.

`explanation.npz`: `spatial` M_s (T, h, w), `temporal` M_t (T,), `frame_indices` (T,), `timestamps` (T,) in
seconds, `probabilities` (K,), `classes` (K,) names; with windows also `windows` (W, 2) in seconds and
`window_probabilities` (W, K); on request `spatial_source` (T, H, W), which is M_s at the source's size, 0
where the network saw nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from explain import render
from explain.core import (
    SURE,
    Explanation,
    explain,
    explain_windows,
    knows,
    percent,
    place,
    sliding,
    top,
)
from stabn import __version__
from stabn.model import STABN
from stabn.video import Clip, VideoInfo, VideoWriter, iter_frames, probe, read_clip

PROGRAM = "stabn-explain"
FIGURE_FRAMES = 8  # as many as are readable side by side on a page

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, how many, what is done with them)


@dataclass(frozen=True)
class Request:
    """What of the command line decides the result; a finished folder is kept while this stays the same."""

    method: str = "stabn"
    target: str | None = None
    window: float | None = None  # seconds
    stride: float | None = None  # seconds
    frames_png: bool = False
    maps_at_source_size: bool = False


def explain_video(
    path: Path,
    folder: Path,
    model: STABN,
    checkpoint: dict[str, str],
    request: Request,
    *,
    overwrite: bool = False,
    progress: Progress = lambda items, count, label: items,
) -> tuple[dict[str, Any], bool]:
    """Explains a video into `folder`; gives the manifest and whether it was made now (False: found finished).

    `checkpoint` is {"name", "sha256"} of the model's weights. `progress` wraps what is looped over. Raises
    ValueError (VideoError among them) for a video that cannot be read and for a folder that must not be
    replaced.
    """
    began = time.perf_counter()
    info = probe(path)
    video = {
        "name": path.resolve().name,
        "path": str(path),
        "sha256": _digest(info),
        "width": info.source_size[1],
        "height": info.source_size[0],
        "frames": info.frame_count,
        "fps": info.fps,
        "duration": info.duration,
        "rotation": info.rotation,
        "has_audio": info.has_audio,
    }
    manifest: dict[str, Any] = {
        "program": PROGRAM,
        "version": __version__,
        "video": video,
        "method": request.method,
        "checkpoint": checkpoint,
        "options": asdict(request),
    }
    finished = _standing(folder, manifest, overwrite)
    if finished:
        return finished, False
    with _whole(folder) as partial:
        stages = Stages()
        explanation = _look(info, model, request, stages, progress)
        _save(explanation, partial, request.maps_at_source_size)
        _draw(explanation, info, partial, request.frames_png, stages, progress)
        manifest |= _told(explanation, model)
        manifest["files"] = sorted(str(file.relative_to(partial)) for file in partial.rglob("*") if file.is_file())
        manifest["timings"] = {**stages.seconds, "total": time.perf_counter() - began}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return manifest, True


class Stages:
    """Seconds spent in each stage: `with stages("decode"): ...`; a stage may be entered many times."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("decode", "network", "render", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def _look(info: VideoInfo, model: STABN, request: Request, stages: Stages, progress: Progress) -> Explanation:
    def read(window: tuple[float, float] | None = None) -> Clip:
        with stages("decode"):
            return read_clip(info, model.config.frames, size=model.config.size, window=window)

    if request.window is None:
        explanation = explain(model, read(), request.method, request.target)
    else:
        windows = sliding(info.duration, request.window, request.stride or request.window / 2)
        clips = map(read, progress(windows, len(windows), "windows"))
        explanation = explain_windows(model, clips, windows, request.method, request.target)
    stages.seconds["network"] = sum(explanation.timings.values())
    return explanation


def _save(explanation: Explanation, folder: Path, at_source_size: bool) -> None:
    arrays = {
        name: getattr(explanation, name)
        for name in ("spatial", "temporal", "frame_indices", "timestamps", "probabilities")
    }
    arrays["classes"] = np.array(explanation.classes)
    if explanation.windows is not None:
        arrays |= {"windows": explanation.windows, "window_probabilities": explanation.window_probabilities}
    np.savez(folder / "explanation.npz", **arrays)
    if at_source_size:  # map by map: all of them at once would grow with the length of the video
        shape = (len(explanation.spatial), *explanation.source_size)
        with (
            zipfile.ZipFile(folder / "explanation.npz", "a") as archive,
            archive.open("spatial_source.npy", "w", force_zip64=True) as file,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for each in explanation.spatial:
                file.write(place(each, explanation.view, explanation.source_size).astype("<f4").tobytes())
    with open(folder / "temporal.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frame_index", "seconds", "weight"])
        rows = zip(explanation.frame_indices, explanation.timestamps, explanation.temporal, strict=True)
        writer.writerows([int(index), f"{seconds:.6f}", f"{weight:.6f}"] for index, seconds, weight in rows)


def _draw(
    explanation: Explanation,
    info: VideoInfo,
    folder: Path,
    frames_png: bool,
    stages: Stages,
    progress: Progress,
) -> None:
    """The overlay, in one pass over the source's frames, and the pictures with the sampled ones among them."""
    overlay = render.Overlay(explanation, info.duration)
    times = explanation.timeline[0]
    indices = np.unique(explanation.frame_indices)
    shown = set(np.linspace(0, len(times) - 1, FIGURE_FRAMES).round().astype(int).tolist())
    thumbnails = []
    if frames_png:
        (folder / "frames").mkdir()
    done = 0  # of the sampled frames
    source = iter(progress(iter_frames(info), info.frame_count, "frames"))
    with VideoWriter(folder / "overlay.mp4", overlay.width, overlay.height, audio_from=info) as writer:
        while True:
            with stages("decode"):
                item = next(source, None)
            if item is None:
                break
            seconds, frame = item
            with stages("render"):
                heated = overlay.heated(frame, seconds)
                canvas = overlay.under(heated, seconds)
                while done < len(times) and seconds >= times[done] - 1e-6:
                    if done in shown:
                        thumbnails.append((render.thumbnail(frame), float(times[done])))
                    if frames_png:
                        Image.fromarray(heated).save(folder / "frames" / f"{indices[done]:06d}.png")
                    done += 1
            with stages("encode"):
                writer.write(canvas, seconds)
    with stages("render"):
        # A damaged video may end before its first sampled frame comes up again.
        pictures, seconds_shown = zip(*thumbnails or [(render.thumbnail(frame), seconds)], strict=True)
        render.figure(explanation, pictures, seconds_shown, folder / "figure.png")
        render.temporal(explanation, info.duration, folder / "temporal.png")


def _told(explanation: Explanation, model: STABN) -> dict[str, Any]:
    """The manifest's part that the explanation decides."""
    names = explanation.classes
    best = explanation.probabilities.max()
    peak = explanation.peak()
    notes = list(explanation.notes)
    if best < SURE:
        notes.append(f"not sure: the best of {len(names)} classes has {percent(best)}")
    told = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "top5": _listed(explanation.top(5)),
        "knows": knows(names),
        "notes": notes,
        "target": {
            "class": names[explanation.target],
            "probability": float(explanation.probabilities[explanation.target]),
        },
        "class_agnostic": explanation.class_agnostic,
        "signed": explanation.signed,
        "scale": {"low": explanation.scale[0], "high": explanation.scale[1]},
        "spatial": {"minimum": float(explanation.spatial.min()), "maximum": float(explanation.spatial.max())},
        "temporal": {
            "minimum": float(explanation.temporal.min()),
            "maximum": float(explanation.temporal.max()),
            "looked_most": None if peak is None else list(peak),
        },
        "view": dict(zip(("top", "left", "height", "width"), explanation.view, strict=True)),
        "device": str(next(model.parameters()).device),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "av", "matplotlib")},
        },
    }
    if explanation.windows is not None and explanation.window_probabilities is not None:
        told["windows"] = [
            {"start": float(start), "end": float(end), **_listed(top(names, probabilities, 1))[0]}
            for (start, end), probabilities in zip(explanation.windows, explanation.window_probabilities, strict=True)
        ]
    return told


def _listed(best: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": probability} for name, probability in best]


def _digest(info: VideoInfo) -> str:
    """sha256 of a file; of a folder of frames over the images' names, sizes and times of change."""
    if not info.files:
        with open(info.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name in info.files:
        facts = os.stat(name)
        digest.update(f"{os.path.basename(name)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _standing(folder: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is finished already, or None if it may be made now; else ValueError."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is in the way, it is not a folder of results: choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    found = _manifest(folder)
    if found is None:
        raise ValueError(
            f"{folder} holds files that are not a finished result of {PROGRAM}: it stays as it is, choose another --out"
        )
    files = set(found["files"])
    missing = sorted(name for name in files if not (folder / name).is_file())
    differs = [
        what
        for what, differ in {
            "another video": found["video"]["sha256"] != wanted["video"]["sha256"],
            "another checkpoint": found["checkpoint"]["sha256"] != wanted["checkpoint"]["sha256"],
            f"version {found['version']}": found["version"] != wanted["version"],
            "a set of files of which some are gone": missing,
            **{
                f"{key.replace('_', '-')} {found['options'].get(key)} instead of {value}": found["options"].get(key)
                != value
                for key, value in wanted["options"].items()
            },
        }.items()
        if differ
    ]
    if not overwrite:
        if not differs:
            return found
        raise ValueError(f"{folder} was made from {' and '.join(differs)}: pass --overwrite to replace it")
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
    foreign = sorted(name for name in present - files - {"manifest.json"} if not Path(name).name.startswith("."))
    if foreign:
        raise ValueError(f"{folder} also holds {foreign[0]}, which {PROGRAM} did not write: move it away first")
    return None


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished result of ours, else None."""
    try:
        found = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    parts = {"version": str, "video": dict, "checkpoint": dict, "options": dict, "files": list}
    if not isinstance(found, dict) or found.get("program") != PROGRAM:
        return None
    return found if all(isinstance(found.get(name), kind) for name, kind in parts.items()) else None


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its place in the end; after an exception it is
    removed."""
    partial = folder.with_name(f".{folder.name[:40]}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    old = partial.with_name(f"{partial.name}-old")
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
