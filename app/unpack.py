"""Reads a zipped result of `stabn-explain` in a worker process (`reader.apart`), which costs no import of torch.

A zip can promise anything: it is read in pieces against one budget of bytes, over the zip and those inside it.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from app.reader import ANSWER
from explain import METHODS
from explain.core import class_index

NOT_ONE = "This is no result of stabn-explain: zip the folder that holds manifest.json."
CLIP = "clip"  # the folder of a zip that the clip lies in
BURNT = "overlay.mp4"  # what is shown where there is no clip
MANIFEST = 1_000_000  # bytes
PIECE = 2**20  # bytes unpacked at once
FRAMES = 256
ARRAYS: dict[str, type[np.generic]] = {
    "spatial": np.float32,
    "temporal": np.float32,
    "probabilities": np.float32,
    "timestamps": np.float64,
    "frame_indices": np.int64,
}


class TooMuch(ValueError):
    """There is more in a zip than is unpacked."""


class Budget:
    """How much is still unpacked, of all that is read through it."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def pieces(self, archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
        """A file of a zip; raises TooMuch, and ValueError for a compression that cannot be unpacked piece by piece."""
        member = archive.getinfo(name)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in another way")
        with archive.open(member) as file:
            while piece := file.read(min(PIECE, self.left + 1)):
                self.left -= len(piece)
                if self.left < 0:
                    raise TooMuch(f"The result has more than {self.most / 1e6:g} MB: open a smaller one.")
                yield piece

    def read(self, archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
        """All of a file, ValueError if that is more than `most` bytes."""
        content = bytearray()
        for piece in self.pieces(archive, name):
            content += piece
            if most is not None and len(content) > most:
                raise ValueError(f"{name} is too long")
        return bytes(content)


def unpack(path: str, folder: str, arrays: str, budget: int, most: int) -> dict[str, Any]:
    """Runs in the worker: the clip, or else the overlay, goes to `folder`, the maps of the first `most` methods to
    `arrays`, each as `load` reads it; gives what else is shown of the result. Raises ValueError, one sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            told = _unpacked(archive, Path(folder), Path(arrays), Budget(budget), most)
        if len(json.dumps(told)) > ANSWER:
            raise ValueError("too many words")
        return told
    except TooMuch:
        raise
    except Exception as error:  # whatever a crafted file can raise
        raise ValueError(NOT_ONE) from error


def load(path: Path, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The arrays of a method, by name; `shape` is (T, h, w) of its maps."""
    with open(path, "rb") as file:
        return {
            name: np.fromfile(file, ARRAYS[name], math.prod(sizes)).reshape(sizes)
            for name, sizes in _sizes(shape, classes).items()
        }


def plain(name: object) -> str:
    """A name without the folders that stood before it on whatever system."""
    return PureWindowsPath(str(name)).name[:200]


def _unpacked(archive: zipfile.ZipFile, folder: Path, arrays: Path, budget: Budget, most: int) -> dict[str, Any]:
    names = set(archive.namelist())
    base = min((name for name in names if Path(name).name == "manifest.json"), key=len).removesuffix("manifest.json")
    manifest = json.loads(budget.read(archive, base + "manifest.json", MANIFEST))
    several = "methods" in manifest
    methods = manifest["methods"] if several else {manifest["method"]: manifest}
    if len(methods) > len(METHODS):
        raise ValueError("there are not that many methods")
    known = [method for method in methods if method in METHODS]
    found: dict[str, Any] = {}
    classes: list[str] = []
    for method in known[:most]:
        packed = budget.read(archive, f"{base}{method}/explanation.npz" if several else f"{base}explanation.npz")
        shape, classes = _maps(packed, arrays / method, budget)
        found[method] = {"shape": shape, **_told(methods[method], classes)}
    if len({each["shape"][0] for each in found.values()}) != 1:
        raise ValueError("the methods are of other clips")

    name = manifest["video"]["name"]
    clip = next((inside for inside in (f"{CLIP}/{name}", name) if inside != BURNT and base + inside in names), None)
    suffix = Path(name).suffix
    video = BURNT if clip is None else f"clip{suffix if suffix.isascii() and suffix[1:].isalnum() else ''}"
    with open(folder / video, "wb") as file:
        file.writelines(budget.pieces(archive, base + (clip or BURNT)))
    return {
        "name": plain(name),
        "video": video,
        "burnt": clip is None,
        "network": plain(manifest["checkpoint"]["name"]),
        "view": _finite(manifest["view"][key] for key in ("top", "left", "height", "width")),
        "notes": _words(manifest),
        "classes": classes,
        "methods": found,
        "left_out": len(known) - len(found),
    }


def _maps(packed: bytes, target: Path, budget: Budget) -> tuple[tuple[int, int, int], list[str]]:
    """Writes the arrays of an explanation.npz for `load`; gives (T, h, w) and the classes."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        found = {
            name: np.lib.format.read_array(io.BytesIO(budget.read(archive, f"{name}.npy")), allow_pickle=False)
            for name in (*ARRAYS, "classes")
        }
    frames, height, width = found["spatial"].shape
    classes = found["classes"].tolist()
    sizes = _sizes((frames, height, width), len(classes))
    if (
        found["classes"].dtype.kind != "U"
        or any(found[name].shape != sizes[name] for name in ARRAYS)
        or any(found[name].dtype.kind != np.dtype(kind).kind for name, kind in ARRAYS.items())
        or not (1 <= frames <= FRAMES and height > 0 and width > 0)
    ):
        raise ValueError("the arrays do not fit each other")
    with open(target, "wb") as file, np.errstate(over="raise"):
        for name, kind in ARRAYS.items():
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{name} is not finite")
            found[name].astype(kind).tofile(file)
    return (frames, height, width), classes


def _sizes(shape: tuple[int, int, int], classes: int) -> dict[str, tuple[int, ...]]:
    line = shape[:1]
    return {
        "spatial": shape, "temporal": line, "probabilities": (classes,), "timestamps": line, "frame_indices": line
    }  # fmt: skip


def _told(method: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """What a manifest tells about a method."""
    return {
        "target": class_index(classes, str(method["target"]["class"])),
        "scale": _finite((method["scale"]["low"], method["scale"]["high"])),
        "class_agnostic": bool(method["class_agnostic"]),
        "signed": bool(method["signed"]),
        "notes": _words(method),
    }


def _words(told: dict[str, Any]) -> list[str]:
    return [str(note)[:1000] for note in told.get("notes", ())[:8]]


def _finite(values: Iterable[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers
