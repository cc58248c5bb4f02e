"""What is taken away from the page, and opened again: the files that `stabn-explain` writes, in one zip."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.actions import LIMITS, Job, Session
from app.reader import Limits, apart, read_upload
from explain import METHODS
from explain.core import Explanation, class_index
from stabn.model import Box

EXPORT = Limits(memory=64 * 2**30, timeout=900.0)  # PyTorch reserves address space that it never fills
UNPACKED = 200_000_000  # bytes of a saved result


def export(job: Job, session: Session) -> list[Path]:
    """The files that `stabn-explain` writes for what is on show, and one zip of them with the clip, to open it again.

    They are made by that command, in a worker process. Raises ValueError and Stopped.
    """
    model = session.network
    job.say("Making the files, this takes some seconds")
    out = Path(tempfile.mkdtemp(prefix="result-", dir=session.folder))
    name = _plain(session.name)
    source = out / name
    shutil.copy(session.path, source)  # under a name that a command line cannot misunderstand
    network = ["--model", model.name] if model.name.startswith("torchvision:") else ["--checkpoint", _whole(model.name)]
    arguments = [
        *(name, "--out", ".", "--json", "--method", ",".join(session.explanations)),
        *("--target", str(session.first.target), *network),
    ]
    task = {"folder": str(out), "arguments": arguments}
    try:
        apart("app.saved:write", task, EXPORT, name=session.name, stop=job.stop)
    except ValueError:
        job.check()
        raise
    result = out / source.stem
    if session.edited is not None:
        parts = {"spatial": session.edited.spatial, "temporal": session.edited.temporal}
        kept: dict[str, Any] = {key: part for key, part in parts.items() if part is not None}
        np.savez(result / "what_if.npz", **kept)
    files = sorted(file for file in result.rglob("*") if file.is_file())
    whole = out / f"{source.stem}.zip"
    with zipfile.ZipFile(whole, "w") as archive:  # video and npz are packed already
        for file in (*files, source):
            archive.write(file, Path(source.stem) / (name if file is source else file.relative_to(result)))
    given = [whole]
    for file in files:
        inner = file.relative_to(result)
        given.append(file if len(inner.parts) == 1 else file.rename(out / "-".join(inner.parts)))
    return given


def write(folder: str, arguments: list[str]) -> None:
    """`stabn-explain` with `arguments` in `folder`; called in a worker process. Raises ValueError with what it says."""
    from explain.cli import main

    os.chdir(folder)
    with redirect_stdout(io.StringIO()) as said:
        code = main(arguments)
    if code:
        lines = said.getvalue().strip().splitlines()
        raise ValueError(json.loads(lines[-1])["error"] if lines else "The files could not be made.")


def _plain(name: str) -> str:
    path = Path(name)
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in path.stem).lstrip("-_")[:60]
    return f"{stem or 'clip'}{path.suffix.lower() if path.suffix[1:].isalnum() else ''}"


def _whole(checkpoint: str) -> str:
    """A checkpoint as a worker in another folder finds it."""
    return os.path.abspath(checkpoint) if os.path.exists(checkpoint) else checkpoint


def open_result(job: Job, path: str, root: Path, limits: Limits = LIMITS) -> Session:
    """A saved result, zipped, as a session without a network; the clip is the one in the zip, else its overlay.

    Raises ValueError for what is no such zip, and Stopped.
    """
    job.say("Opening the result")
    folder = Path(tempfile.mkdtemp(prefix="saved-", dir=root))
    try:
        return _opened_result(job, path, folder, limits)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        job.check()
        raise


NOT_ONE = "This is no result of stabn-explain: zip the folder that holds manifest.json."


def _opened_result(job: Job, path: str, folder: Path, limits: Limits) -> Session:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > UNPACKED:
                raise ValueError(f"The result has more than {UNPACKED / 1e6:g} MB: open a smaller one.")
            names = [name for name in archive.namelist() if Path(name).name == "manifest.json"]
            if not names:
                raise ValueError(NOT_ONE)
            base = min(names, key=len).removesuffix("manifest.json")
            manifest = json.loads(archive.read(base + "manifest.json"))
            methods = manifest.get("methods") or {manifest["method"]: manifest}
            several = "methods" in manifest
            arrays = {
                method: _arrays(
                    archive.read(f"{base}{method}/explanation.npz" if several else f"{base}explanation.npz")
                )
                for method in methods
                if method in METHODS
            }
            suffix = Path(manifest["video"]["name"]).suffix
            inside = {name.removeprefix(base) for name in archive.namelist()}
            source = next((n for n in inside if n == manifest["video"]["name"]), "overlay.mp4")
            video = folder / (f"clip{suffix}" if source != "overlay.mp4" and suffix[1:].isalnum() else "overlay.mp4")
            video.write_bytes(archive.read(base + source))
        explanations = {
            method: _explanation(method, found, manifest, methods[method]) for method, found in arrays.items()
        }
        frames = len(next(iter(explanations.values())).temporal)
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, StopIteration, OSError, EOFError) as error:
        raise ValueError(NOT_ONE) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(NOT_ONE) from error
    upload = read_upload(video, frames, 96, limits, folder=folder, name=video.name, stop=job.stop)
    burnt = video.name == "overlay.mp4"
    notes = [str(note) for note in manifest.get("notes", ())][:8]
    notes = [note for note in notes if not note.lower().startswith("not sure")]  # the page says it in its own words
    notes.insert(0, f"a saved result of {manifest['video']['name']}, by {manifest['checkpoint']['name']}")
    if burnt:
        notes.insert(1, "the clip is not in the zip: its overlay is shown, with the heat in the picture")
        explanations = {
            method: replace(each, source_size=upload.clip.source_size, view=Box(0, 0, *upload.clip.source_size))
            for method, each in explanations.items()
        }
    return Session(
        path=str(video),
        name=str(manifest["video"]["name"])[:200],
        clip=upload.clip,
        playable=upload.playable,
        folder=folder,
        model=None,
        heat_in_video=burnt,
        explanations=explanations,
        notes=tuple(notes),
    )


def _arrays(packed: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(packed)) as inner:
        if sum(member.file_size for member in inner.infolist()) > UNPACKED:
            raise ValueError(f"The result has more than {UNPACKED / 1e6:g} MB: open a smaller one.")
    names = ("spatial", "temporal", "timestamps", "frame_indices", "probabilities", "classes")
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as found:
            arrays = {name: found[name] for name in names}
    except ValueError as error:  # pickled objects
        raise ValueError(NOT_ONE) from error
    frames, classes = len(arrays["temporal"]), len(arrays["classes"])
    shapes = {
        "temporal": (frames,),
        "timestamps": (frames,),
        "frame_indices": (frames,),
        "probabilities": (classes,),
        "classes": (classes,),
        "spatial": (frames, *arrays["spatial"].shape[1:]),
    }
    numbers = (arrays[name] for name in names if name != "classes")
    fit = all(arrays[name].shape == shape for name, shape in shapes.items()) and arrays["spatial"].ndim == 3
    if not fit or not 1 <= frames <= 256 or not all(np.isfinite(each).all() for each in numbers):
        raise ValueError(NOT_ONE)
    return arrays


def _explanation(method: str, arrays: dict[str, Any], manifest: dict[str, Any], told: dict[str, Any]) -> Explanation:
    classes = [str(name) for name in arrays["classes"]]
    view = manifest["view"]
    return Explanation(
        method=method,
        target=class_index(classes, str(told["target"]["class"])),
        classes=classes,
        probabilities=arrays["probabilities"].astype(np.float32),
        spatial=arrays["spatial"].astype(np.float32),
        temporal=arrays["temporal"].astype(np.float32),
        timestamps=arrays["timestamps"].astype(np.float64),
        frame_indices=arrays["frame_indices"].astype(np.int64),
        source_size=(int(manifest["video"]["height"]), int(manifest["video"]["width"])),
        view=Box(*(float(view[key]) for key in ("top", "left", "height", "width"))),
        scale=(float(told["scale"]["low"]), float(told["scale"]["high"])),
        class_agnostic=bool(told["class_agnostic"]),
        signed=bool(told["signed"]),
        notes=tuple(str(note) for note in told.get("notes", ()))[:8],
    )
