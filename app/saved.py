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
import torch

from app import unpack
from app.actions import LIMITS, SIDE_BY_SIDE, Job, Session
from app.reader import Limits, apart, read_upload
from explain.core import Explanation
from stabn.checkpoint import locate
from stabn.model import Attention, Box

EXPORT = Limits(memory=64 * 2**30, timeout=900.0)  # PyTorch reserves address space that it never fills
UNPACKED = 200_000_000  # bytes of a saved result


def export(job: Job, session: Session) -> list[Path]:
    """The files that `stabn-explain` writes for what is on show, and one zip of them with the clip, to open it again.

    They are made by that command, in a worker process, in a folder of the session that takes the place of the last
    one. After an edit there is also `what_if.npz`: the changed `spatial` (T, h, w) and `temporal` (T,), those that the
    network has, and the `probabilities` (K,) that it answers with them. Raises ValueError and Stopped.
    """
    model = session.network
    job.say("Making the files, this takes some seconds")
    for old in session.folder.glob("result-*"):
        shutil.rmtree(old, ignore_errors=True)
    out = Path(tempfile.mkdtemp(prefix="result-", dir=session.folder))
    weights = model.weights
    try:
        if not weights.startswith("torchvision:"):
            weights = str(locate(weights).absolute())
        return _exported(job, session, out, weights)
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        job.check()
        if isinstance(error, OSError):
            raise ValueError(f"The files could not be made: {error.strerror or 'the disk does not answer'}.") from error
        if isinstance(error, ValueError):
            raise ValueError(str(error).replace(weights, model.name).replace(model.weights, model.name)) from error
        raise


def _exported(job: Job, session: Session, out: Path, weights: str) -> list[Path]:
    source = out / unpack.CLIP / _plain(session.name)  # a name that a command line cannot misunderstand
    source.parent.mkdir()
    shutil.copy(session.path, source)
    device = next(session.network.network.module.parameters()).device
    arguments = [
        *(str(source.relative_to(out)), "--out", "made", "--json", "--method", ",".join(session.explanations)),
        *("--target", str(session.first.target), "--device", str(device)),
        *("--model" if weights.startswith("torchvision:") else "--checkpoint", weights),
    ]
    # CUDA reserves as much address space as there is memory, on all devices and the machine.
    limits = EXPORT if device.type == "cpu" else replace(EXPORT, memory=None)
    apart("app.saved:write", {"folder": str(out), "arguments": arguments}, limits, name=session.name, stop=job.stop)
    result = out / "made" / source.stem
    manifest = json.loads((result / "manifest.json").read_text("utf-8"))
    manifest["checkpoint"]["name"] = session.network.name  # not where it lies on this machine
    (result / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if edited := _what_if(session):
        np.savez(result / "what_if.npz", **edited)
    files = sorted(file for file in result.rglob("*") if file.is_file())
    whole = out / f"{source.stem}.zip"
    unfinished = whole.with_suffix(".zip.tmp")
    with zipfile.ZipFile(unfinished, "w") as archive:  # video and npz are packed already
        for file in files:
            archive.write(file, Path(source.stem) / file.relative_to(result))
        archive.write(source, Path(source.stem) / source.relative_to(out))
    unfinished.rename(whole)
    shutil.rmtree(source.parent)
    inner = [file.relative_to(result).parts for file in files]
    return [whole, *(f if len(p) == 1 else f.rename(out / "-".join(p)) for f, p in zip(files, inner, strict=True))]


@torch.inference_mode()
def _what_if(session: Session) -> dict[str, Any]:
    """The attention of the last edit, and what the network answers with it; empty without an edit."""
    model, edited, attention, mixture = session.network.twin, session.edited, session.attention, session.mixture
    if model is None or edited is None or attention is None or mixture is None:
        return {}
    given = {"spatial": edited.spatial, "temporal": edited.temporal}
    changed = Attention(
        *(
            None if own is None or part is None else torch.from_numpy(part).to(own).view_as(own)
            for own, part in zip(attention, given.values(), strict=True)
        )
    )
    probabilities = model.perceive(mixture, changed)[0].float().softmax(0).cpu().numpy()
    return {**{name: part for name, part in given.items() if part is not None}, "probabilities": probabilities}


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


def _opened_result(job: Job, path: str, folder: Path, limits: Limits) -> Session:
    with tempfile.TemporaryDirectory(prefix="opening-", dir=folder) as scratch:
        task = {
            "path": os.path.abspath(path),
            "folder": str(folder),
            "arrays": scratch,
            "budget": UNPACKED,
            "most": SIDE_BY_SIDE,
        }
        told = apart("app.unpack:unpack", task, limits, name=Path(path).name, stop=job.stop)
        arrays = {
            method: unpack.load(Path(scratch, method), tuple(each["shape"]), len(told["classes"]))
            for method, each in told["methods"].items()
        }
    frames = next(iter(arrays.values()))["frame_indices"].tolist()
    video = folder / told["video"]
    upload = read_upload(video, frames, 96, limits, folder=folder, name=video.name, stop=job.stop)
    size = upload.clip.source_size
    view = Box(0, 0, *size) if told["burnt"] else Box(*told["view"])
    explanations = {
        method: Explanation(
            method=method,
            target=each["target"],
            classes=told["classes"],
            **arrays[method],
            source_size=size,
            view=view,
            scale=(each["scale"][0], each["scale"][1]),
            class_agnostic=each["class_agnostic"],
            signed=each["signed"],
            notes=tuple(each["notes"]),
        )
        for method, each in told["methods"].items()
    }
    notes = [f"a saved result of {told['name']}, by {told['network']}"]
    if told["burnt"]:
        notes.append("the clip is not in the zip: its overlay is shown, with the heat in the picture")
    if told["left_out"]:
        notes.append(f"{told['left_out']} more methods are in the zip: the first {len(explanations)} are shown")
    # The page says how sure the network is in its own words.
    notes += [note for note in told["notes"] if not note.lower().startswith("not sure")]
    return Session(
        path=str(video),
        name=told["name"],
        clip=upload.clip,
        playable=upload.playable,
        folder=folder,
        model=None,
        heat_in_video=told["burnt"],
        explanations=explanations,
        notes=tuple(notes),
    )
