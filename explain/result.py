"""One video in, one folder of results out: whole or not at all, and never over anything else.

The folder holds `overlay.mp4`, `figure.png`, `temporal.png`, `temporal.csv`, `explanation.npz`, on request
one picture per sampled frame in `frames/`, and `manifest.json`, which is written last. With several methods the
overlay and the figure show all of them, the manifest tells about each under "methods" (and why others were "refused"),
and the rest is in a folder for each method: `grad_cam/explanation.npz` and so on.

`explanation.npz`: `spatial` M_s (T, h, w), `temporal` M_t (T,), `frame_indices` (T,), `timestamps` (T,) in
seconds, `probabilities` (K,), `classes` (K,) names; with windows also `windows` (W, 2) in seconds and
`window_probabilities` (W, K); on request `spatial_source` (T, H, W), which is M_s at the source's size, 0
where the network saw nothing.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import inspect
import json
import os
import platform
import secrets
import shutil
import time
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

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
    resolve,
    sliding,
    top,
)
from explain.models import Classifier
from stabn import __version__
from stabn.command import alone
from stabn.video import Clip, VideoError, VideoInfo, VideoWriter, iter_frames, probe

PROGRAM = "stabn-explain"
FIGURE_FRAMES = 8  # as many as are readable side by side on a page
AHEAD = 4  # frames between two stages: enough to bridge a keyframe, few in memory
_END = object()

T = TypeVar("T")
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, how many, what is done with them)


@dataclass(frozen=True)
class Request:
    """What of the command line decides the result; a finished folder is kept while this stays the same."""

    method: str = "stabn"  # or several, with commas between them
    target: str | None = None
    window: float | None = None  # seconds
    stride: float | None = None  # seconds
    frames_png: bool = False
    maps_at_source_size: bool = False
    score: bool = False
    layer: str | None = None
    layout: str | None = None
    frames: int | None = None
    size: int | None = None

    @property
    def methods(self) -> list[str]:
        return self.method.split(",")


def explain_video(
    path: Path,
    folder: Path,
    network: Classifier,
    checkpoint: dict[str, str],
    request: Request,
    *,
    overwrite: bool = False,
    progress: Progress = lambda items, count, label: items,
) -> tuple[dict[str, Any], bool]:
    """Explains a video into `folder`; gives the manifest and whether it was made now (False: found finished).

    `checkpoint` is {"name", "sha256"} of the network's weights, and "classes", a hash of their names, where these are
    not part of it. `progress` wraps what is looped over. Raises ValueError (VideoError among them) for a video that
    cannot be read, for a folder that must not be replaced, and if no method can explain this network.
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
    clear_up(folder)  # a run that was killed may have moved the old result away
    finished = _standing(folder, manifest, overwrite)
    if finished:
        return finished, False
    with _whole(folder) as partial:
        stages = Stages()
        found = _look(info, network, request, stages, progress)
        folders = {name: partial / name if len(request.methods) > 1 else partial for name in found.explanations}
        for name, explanation in found.explanations.items():
            folders[name].mkdir(exist_ok=True)
            _save(explanation, folders[name], request.maps_at_source_size)
        _draw(found, info, partial, folders, request.frames_png, stages, progress)
        manifest |= _told(found, network, len(request.methods) > 1)
        manifest["files"] = sorted(str(file.relative_to(partial)) for file in partial.rglob("*") if file.is_file())
        manifest["timings"] = {**stages.seconds, "total": time.perf_counter() - began}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return manifest, True


class Stages:
    """Seconds spent in each stage: `with stages("decode"): ...`; a stage may be entered many times, by one thread at a
    time. Stages that overlap add up to more than the time that passes."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("decode", "network", "render", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def each(self, stage: str, items: Iterator[T]) -> Generator[T, None, None]:
        """The items; making them is the stage."""
        while True:
            with self(stage):
                item = next(items, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The items, made in a thread of their own, at most `AHEAD` of them before they are asked for.

    Whoever may stop early closes it, which ends the thread and closes `items`.
    """
    with closing(items), ThreadPoolExecutor(1) as worker:
        waiting = deque(worker.submit(next, items, _END) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(worker.submit(next, items, _END))
                yield item  # type: ignore[misc]
        finally:
            for each in waiting:
                each.cancel()


@dataclass(frozen=True)
class _Found:
    """What was found about one clip, by method, in the order asked for: at least one explanation."""

    explanations: dict[str, Explanation]
    refused: dict[str, str]  # why
    scores: dict[str, render.Scores]  # empty where none were asked for, or the clip cannot be scored


def _look(info: VideoInfo, network: Classifier, request: Request, stages: Stages, progress: Progress) -> _Found:
    def read(window: tuple[float, float] | None = None) -> Clip:
        with stages("decode"):
            return network.read(info, window)

    clip = read() if request.window is None else None
    methods = request.methods
    found: dict[str, Explanation] = {}
    refused: dict[str, str] = {}
    for method in progress(methods, len(methods), "methods") if len(methods) > 1 else methods:
        bars = "progress" in inspect.signature(resolve(method)).parameters
        options = {"progress": progress} if bars else {}
        try:
            if clip is not None:
                found[method] = explain(network, clip, method, request.target, **options)
            elif request.window is not None:
                windows = sliding(info.duration, request.window, request.stride or request.window / 2)
                clips = map(read, progress(windows, len(windows), "windows"))
                found[method] = explain_windows(network, clips, windows, method, request.target, **options)
        except VideoError:
            raise
        except ValueError as error:
            refused[method] = str(error)
    if not found:
        each = [reason if len(methods) == 1 else f"{method}: {reason}" for method, reason in refused.items()]
        raise ValueError("; ".join(each))
    stages.seconds["network"] = sum(sum(each.timings.values()) for each in found.values())
    if not request.score or clip is None:
        return _Found(found, refused, {})
    stages.seconds["score"] = 0.0
    with stages("score"):
        return _scored(_Found(found, refused, {}), network, clip, progress)


def _scored(found: _Found, network: Classifier, clip: Clip, progress: Progress) -> _Found:
    """Adds the scores that need the network and this clip only, or a note why there are none."""
    from explain.metrics import SCORABLE, SCORES, Trial

    names = [name for name, score in SCORES.items() if score.needs == "clip"]
    first = next(iter(found.explanations.values()))
    trial = Trial(network, clip, first.target)
    if not trial.scorable:
        lost = trial.ends[0] - trial.ends[1]
        note = (
            f"not scored: {first.classes[first.target]!r} loses {lost:.2f} of its probability when the whole clip is "
            f"blurred, and more than {SCORABLE} is needed"
        )
        noted = {method: replace(each, notes=(*each.notes, note)) for method, each in found.explanations.items()}
        return replace(found, explanations=noted)
    control = explain(network, clip, "random", first.target)
    asked = [*found.explanations.items(), ("", control)]
    values = {method: trial.scores(each, names) for method, each in progress(asked, len(asked), "scores")}
    random = values.pop("")
    defined = [name for name in names if any(np.isfinite(each[name]) for each in (random, *values.values()))]

    def number(value: float) -> float | None:  # JSON has no NaN
        return value if np.isfinite(value) else None

    scores: dict[str, render.Scores] = {
        method: {
            name: {
                "value": number(each[name]),
                "random": number(random[name]),
                "better": SCORES[name].better,
                "title": SCORES[name].title,
            }
            for name in defined
        }
        for method, each in values.items()
    }
    return replace(found, scores=scores)


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
    found: _Found,
    info: VideoInfo,
    folder: Path,
    folders: dict[str, Path],
    frames_png: bool,
    stages: Stages,
    progress: Progress,
) -> None:
    """The overlay, in one pass over the source's frames, and the pictures with the sampled ones among them.

    Frames are decoded, drawn and encoded in three threads: FFmpeg, OpenCV and numpy let each other run. `folder` gets
    what all methods share, `folders` what is of one.
    """
    explanations = list(found.explanations.values())
    overlay = render.Overlay(explanations, info.duration)
    times = explanations[0].timeline[0]
    indices = np.unique(explanations[0].frame_indices)
    shown = set(np.linspace(0, len(times) - 1, FIGURE_FRAMES).round().astype(int).tolist())
    thumbnails = []
    if frames_png:
        for each in folders.values():
            (each / "frames").mkdir()
    done = 0  # of the sampled frames
    last: tuple[float, render.Picture]

    def drawn() -> Generator[tuple[float, render.Picture], None, None]:
        nonlocal done, last
        with closing(ahead(stages.each("decode", iter_frames(info)))) as source:
            for seconds, frame in source:
                with stages("render"):
                    last = seconds, frame
                    heated = overlay.heated(frame, seconds)
                    canvas = overlay.under(heated, seconds)
                    while done < len(times) and seconds >= times[done] - 1e-6:
                        if done in shown:
                            thumbnails.append((render.thumbnail(frame), float(times[done])))
                        if frames_png:
                            for each, picture in zip(folders.values(), heated, strict=True):
                                target = each / "frames" / f"{indices[done]:06d}.png"
                                Image.fromarray(picture).save(target, **render.PNG)
                        done += 1
                yield seconds, canvas

    with (
        VideoWriter(folder / "overlay.mp4", overlay.width, overlay.height, audio_from=info) as writer,
        closing(ahead(drawn())) as canvases,
    ):
        for seconds, canvas in progress(canvases, info.frame_count, "frames"):
            with stages("encode"):
                writer.write(canvas, seconds)
    with stages("render"):
        # A damaged video may end before its first sampled frame comes up again.
        pictures, seconds_shown = zip(*thumbnails or [(render.thumbnail(last[1]), last[0])], strict=True)
        render.figure(explanations, pictures, seconds_shown, found.scores, folder / "figure.png")
        for method, explanation in found.explanations.items():
            render.temporal(explanation, info.duration, folders[method] / "temporal.png")


def _told(found: _Found, network: Classifier, several: bool) -> dict[str, Any]:
    """The manifest's part that the explanations decide; what is of a method is on top if no other was asked for."""
    first = next(iter(found.explanations.values()))
    names, best = first.classes, first.probabilities.max()
    notes = list(first.notes) if not several else render.shared_notes(list(found.explanations.values()))
    if best < SURE:
        notes.append(f"not sure: the best of {len(names)} classes has {percent(best)}")
    weight = next(network.module.parameters(), None)
    told = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "top5": _listed(first.top(5)),
        "knows": knows(names),
        "notes": notes,
        "view": dict(zip(("top", "left", "height", "width"), first.view, strict=True)),
        "device": str("cpu" if weight is None else weight.device),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "av", "matplotlib")},
        },
    }
    each = {method: _told_of(explanation) for method, explanation in found.explanations.items()}
    for method, scores in found.scores.items():
        each[method]["scores"] = scores
    if several:
        told |= {"methods": each, "refused": found.refused}
    else:
        told |= {**each[first.method], "notes": notes}
    if first.windows is not None and first.window_probabilities is not None:
        told["windows"] = [
            {"start": float(start), "end": float(end), **_listed(top(names, probabilities, 1))[0]}
            for (start, end), probabilities in zip(first.windows, first.window_probabilities, strict=True)
        ]
    return told


def _told_of(explanation: Explanation) -> dict[str, Any]:
    peak = explanation.peak()
    return {
        "target": {
            "class": explanation.classes[explanation.target],
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
        "notes": list(explanation.notes),
        "evaluations": explanation.evaluations,
        "seconds": sum(explanation.timings.values()),
    }


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
    options = {**asdict(Request()), **found["options"]}  # older results know fewer
    differs = [
        what
        for what, differ in {
            "another video": found["video"]["sha256"] != wanted["video"]["sha256"],
            "another checkpoint": found["checkpoint"]["sha256"] != wanted["checkpoint"]["sha256"],
            "other names of classes": found["checkpoint"].get("classes") != wanted["checkpoint"].get("classes"),
            f"version {found['version']}": found["version"] != wanted["version"],
            "a set of files of which some are gone": missing,
            **{
                f"{key.replace('_', '-')} {options[key]} instead of {value}": options[key] != value
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
    with alone(_lock(folder), folder):
        partial = folder.with_name(f"{_beginning(folder)}{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            yield partial
            if folder.exists():
                folder.rename(_old(partial))
            partial.rename(folder)
        finally:
            _settle(folder, partial)


def _beginning(folder: Path) -> str:
    """How the names begin of what is written for `folder` and for no other; 8 digits follow."""
    return f".{folder.name[:40]}-{hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:8]}.partial-"


def _lock(folder: Path) -> Path:
    """The file that is held by who makes `folder`."""
    return folder.with_name(f"{_beginning(folder)}lock")


def _old(partial: Path) -> Path:
    """Where the folder is that a new one is about to replace."""
    return partial.with_name(f"{partial.name}-old")


def _settle(folder: Path, partial: Path) -> None:
    """Removes what is left of making `folder`; the old one comes back if the new one did not take its place."""
    old = _old(partial)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


def clear_up(folder: Path) -> None:
    """Removes what a process left that was killed while it made `folder`; an old one comes back.

    Raises ValueError if another process is making it now, and OSError.
    """
    beginning = _beginning(folder)
    left = {each.name[: len(beginning) + 8] for each in folder.parent.glob(f"{glob.escape(beginning)}*")}
    if left:
        with alone(_lock(folder), folder):
            for name in left - {_lock(folder).name}:
                _settle(folder, folder.with_name(name))
