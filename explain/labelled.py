"""Labelled clips, one by one: generated ones, or videos in class folders or in a CSV.

A source is what a torch DataLoader takes: `source[number]` is an `Item`, `source.numbers` are those to look at, and
`source.told` identifies the data, ready for JSON. It can be pickled, and holds no network.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.cli import VIDEOS
from explain.core import class_index
from explain.models import Classifier, classifier
from stabn import synthetic
from stabn.model import STABN
from stabn.video import probe, read_clip

SIDE = 112  # pixels, of clips generated for a network that resizes them itself


class Item(NamedTuple):
    """A labelled clip as the network takes it, or why there is none."""

    number: int
    label: int
    frames: NDArray[np.uint8] | None  # (segments, T, H, W, 3) RGB
    problem: str = ""
    mask: NDArray[np.bool_] | None = None  # (segments, T, H, W): what acts, where it is known
    action: NDArray[np.bool_] | None = None  # (segments, T): when


def segmented(frames: NDArray[Any], segments: int) -> NDArray[Any]:
    """(segments * T, ...) frames spread over a clip -> (segments, T, ...): interleaved, each spans the whole clip.

    The paper does not say how its two segments of 32 frames are cut. Interleaved, each segment is sampled as a clip of
    its own would be, half a step apart, and is what the network was trained on.
    """
    return np.stack([frames[segment::segments] for segment in range(segments)])


def check_evaluation(classes: Sequence[str], first: int, clips: int) -> None:
    """Raises ValueError: the network has not Synthetic-Something's classes, or these are no evaluation seeds."""
    if list(classes) != list(synthetic.CLASSES):
        raise ValueError(
            f"the checkpoint's {len(classes)} classes are not the {len(synthetic.CLASSES)} of Synthetic-Something"
        )
    if clips < 1 or first < 0 or first + clips > synthetic.TRAINING_SEEDS:
        raise ValueError(
            f"seeds {first} to {first + clips - 1} are not evaluation seeds, 0 to {synthetic.TRAINING_SEEDS - 1}"
        )


class Generated:
    """Synthetic-Something's evaluation clips of the seeds from `first` on; a clip's number is its seed.

    `named` says that the labels are to be classes of the model.
    """

    def __init__(
        self, model: STABN | Classifier, first: int, clips: int, segments: int = 1, named: bool = True
    ) -> None:
        check_evaluation(model.classes if named else synthetic.CLASSES, first, clips)
        self.numbers: Sequence[int] = range(first, first + clips)
        self.segments = segments
        network = classifier(model)
        self.frames, self.size = network.frames, network.size or SIDE
        self.told = {"name": "Synthetic-Something", "version": str(synthetic.VERSION), "first": first, "clips": clips}

    def __getitem__(self, number: int) -> Item:
        sample = synthetic.generate(number, self.segments * self.frames, self.size)
        frames, mask, action = (segmented(each, self.segments) for each in (sample.frames, sample.mask, sample.action))
        return Item(number, sample.label, frames, mask=mask, action=action)


class Videos:
    """Labelled videos: class folders (FOLDER/class/video or folder of frames), or a CSV with columns path and label.

    A label is a class's name, in any case, or its index; paths are relative to the CSV. `clips` takes so many of them,
    spread evenly over the sorted list. A clip's number is its place in the whole list. Raises ValueError: there is
    nothing to read, or a label is none of the classes.
    """

    def __init__(self, model: STABN | Classifier, data: Path, clips: int | None, segments: int = 1) -> None:
        found = _listed_folder(data) if data.is_dir() else _listed_csv(data)
        if not found:
            kinds = ", ".join(VIDEOS)
            raise ValueError(
                f"{data} holds no class folders with videos ({kinds}) or folders of frames"
                if data.is_dir()
                else f"{data} has no rows"
            )
        known: dict[str, int] = {}
        for _, label, where in found:
            if label not in known:
                try:
                    known[label] = class_index(model.classes, label)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None
        self.root = data if data.is_dir() else data.parent
        self.files = [(name, known[label]) for name, label, _ in found]
        count = len(found) if clips is None else min(clips, len(found))
        self.numbers: Sequence[int] = [(2 * k + 1) * len(found) // (2 * count) for k in range(count)]
        network = classifier(model)
        self.segments, self.frames, self.size = segments, network.frames, network.size
        self.sampling = network.sampling
        digest = hashlib.sha256()
        for name, number in self.files:
            size = os.path.getsize(self.root / name) if (self.root / name).is_file() else -1
            digest.update(f"{name}\0{number}\0{size}\n".encode(errors="surrogateescape"))
        self.told = {"name": data.resolve().name, "version": digest.hexdigest(), "clips": count, "of": len(found)}

    def __getitem__(self, number: int) -> Item:
        name, label = self.files[number]
        try:
            return Item(number, label, self._read(self.root / name))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            return Item(number, label, None, str(error) or f"{name}: out of memory")

    def _read(self, path: Path) -> NDArray[np.uint8]:
        """(segments, T, H, W, 3): the video sampled so many times, spread, or each in the middle of its own part."""
        if self.sampling == "spread":
            return segmented(read_clip(path, self.segments * self.frames, size=self.size).frames, self.segments)
        info = probe(path)
        parts = pairwise(np.linspace(0, info.duration, self.segments + 1).tolist())
        clips = [read_clip(info, self.frames, size=self.size, window=part, sampling="middle") for part in parts]
        return np.stack([clip.frames for clip in clips])


def _listed_folder(folder: Path) -> list[tuple[str, str, str]]:
    """(path in the folder, label, where the label stands) of each video, sorted."""
    return [
        (f"{each.name}/{video.name}", each.name, str(each))
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".")
        for video in sorted(each.iterdir())
        if not video.name.startswith(".") and (video.is_dir() or video.suffix.lower() in VIDEOS)
    ]


def _listed_csv(path: Path) -> list[tuple[str, str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := {"path", "label"} - set(reader.fieldnames or ()):
                raise ValueError(f"{path} is no CSV with the columns path and label: it lacks {' and '.join(missing)}")
            rows = [((row["path"] or "").strip(), (row["label"] or "").strip(), reader.line_num) for row in reader]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is neither a folder nor a CSV in UTF-8 ({error})") from None
    for name, _, line in rows:
        if not name:
            raise ValueError(f"{path}, line {line}: the path is empty")
    return [(name, label, f"{path}, line {line}") for name, label, line in rows]


Source = Generated | Videos
