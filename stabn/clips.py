"""Labelled videos as a data set for torch's DataLoader: sampled, cropped, mirrored, and checked before anything runs.

    clips = Clips(read(Path("something-something-v2-train.json")), classes, 32, 224, sampling="random", crop="random")
    for batch in DataLoader(clips, batch_size=8, sampler=numbers, num_workers=4, collate_fn=collate): ...

Frames are uint8 RGB; what the network does to them, it does itself (`STABN.preprocess`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from stabn.data import Labelled, mirrored
from stabn.video import VideoInfo, probe, read_clip

if TYPE_CHECKING:
    from torch import Tensor

ASPECT = 4 / 3  # of a random crop at most, and at least its inverse


class Item(NamedTuple):
    """A labelled clip as the network takes it, or why there is none."""

    number: int
    label: int
    frames: NDArray[np.uint8] | None  # (segments, T, H, W, 3) RGB
    problem: str = ""
    mask: NDArray[np.bool_] | None = None  # (segments, T, H, W): what acts, where it is known
    action: NDArray[np.bool_] | None = None  # (segments, T): when


class Batch(NamedTuple):
    """N clips of one size, and what could not be read."""

    frames: Tensor  # (N, segments, T, S, S, 3) uint8 RGB; N is 0 if none could be read
    labels: Tensor  # (N,) int64
    numbers: tuple[int, ...]  # of the N clips
    problems: tuple[str, ...]  # one sentence for each clip that is left out, with its file's name


def segmented(frames: NDArray[Any], segments: int) -> NDArray[Any]:
    """(segments * T, ...) frames spread over a clip -> (segments, T, ...): interleaved, each spans the whole clip.

    The paper does not say how its two segments of 32 frames are cut. Interleaved, each segment is sampled as a clip of
    its own would be, half a step apart, and is what the network was trained on.
    """
    return np.stack([frames[segment::segments] for segment in range(segments)])


class Clips:
    """A map-style data set: `clips[number]` is an Item; a video that cannot be read is one without frames, no error.

    The video is number `number % len(clips)`, and what is drawn at random depends on `seed` and `number` alone: epoch e
    asks for the numbers e * len(clips) + i, in whatever order, and gives the same in any process and after any stop. It
    can be pickled, and what grows with the list is in arrays, which processes share without copying.

    Args:
        labelled: the videos, from `stabn.data.read`.
        classes: those of the network; labels are indices among them.
        frames: T.
        size: the short side of the frames in pixels, or with `crop` both sides; None: as the video has it.
        sampling: "spread": T frames evenly over the video. "random": one drawn from each of its T equal parts.
            "middle": T consecutive ones from its middle, as the program that the paper's authors published.
        segments: samplings of each video for an average of their answers, interleaved, or each in the middle of its own
            part of the time; the paper's evaluation has 2.
        crop: "centre" square, or "random": of `scale` (low, high) of the area and 3:4 to 4:3, resized to a square.
        flip: the probability with which left and right are exchanged: of the pictures and of the label. A class whose
            name says left or right is left as it is if there is no class of the opposite name (`stabn.data.mirrored`).
        seed: 0 or more.

    Raises:
        DataError: a label is not among the classes.
        ValueError: an argument is out of range, or two do not go together.
    """

    def __init__(
        self,
        labelled: Labelled,
        classes: Sequence[str],
        frames: int,
        size: int | None,
        *,
        sampling: Literal["spread", "random", "middle"] = "spread",
        segments: int = 1,
        crop: Literal["centre", "random"] | None = None,
        scale: tuple[float, float] = (0.3, 1.0),
        flip: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value, allowed in (
            ("sampling", sampling, ("spread", "random", "middle")),
            ("crop", crop, (None, "centre", "random")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` is {value!r}, it must be one of {', '.join(map(str, allowed))}")
        for name, number in (("frames", frames), ("segments", segments), ("size", 1 if size is None else size)):
            if number < 1:
                raise ValueError(f"`{name}` is {number}, it must be 1 or more")
        if crop and size is None:
            raise ValueError(f"`crop` is {crop}, it needs a `size`")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` is {scale}, it must be shares of the area, 0 < low <= high <= 1")
        if not 0 <= flip <= 1:
            raise ValueError(f"`flip` is {flip}, it must be a probability")
        self.name, self.classes = labelled.source.resolve().name, list(classes)
        self.root = str(labelled.root)
        self.paths = np.array([os.fsencode(row.path) for row in labelled.rows])
        self.labels = np.array(labelled.labels(classes))
        self.partners = mirrored(classes)
        self.frames, self.size, self.segments, self.sampling = frames, size, segments, sampling
        self.crop, self.scale, self.flip, self.seed = crop, scale, flip, seed

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, number: int) -> str:
        """The file, or the folder of frames, of a clip."""
        return os.path.join(self.root, os.fsdecode(self.paths[number % len(self)].item()))

    def __getitem__(self, number: int) -> Item:
        path, label = self.path(number), int(self.labels[number % len(self)])
        chance = np.random.default_rng([self.seed, number])
        partner = self.partners[label] if chance.random() < self.flip else None
        try:
            frames = self._read(path, chance)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            return Item(number, label, None, str(error) or f"{path}: out of memory")
        if partner is not None:
            frames, label = np.ascontiguousarray(frames[:, :, :, ::-1]), partner
        return Item(number, label, frames)

    def _read(self, path: str, chance: Generator) -> NDArray[np.uint8]:
        """(segments, T, H, W, 3), cropped."""
        info, size, box = probe(path), self.size, None
        if self.crop == "random" and size is not None:
            box = random_box(info.source_size, self.scale, chance)
            height, width = info.source_size
            shrink = min(box[2] * height, box[3] * width) / size
            size = max(1, math.ceil(min(height, width) / max(1.0, shrink)))  # the decoder resizes, as far as it can
        frames = self._sampled(info, size, chance)
        if self.crop is None or self.size is None:
            return frames
        if box is not None:
            return resized(frames, box, self.size)
        top, left = ((side - self.size) // 2 for side in frames.shape[2:4])
        return frames[:, :, top : top + self.size, left : left + self.size]

    def _sampled(self, info: VideoInfo, size: int | None, chance: Generator) -> NDArray[np.uint8]:
        if self.sampling == "middle":
            parts = pairwise(np.linspace(0, info.duration, self.segments + 1).tolist())
            clips = [read_clip(info, self.frames, size=size, window=part, sampling="middle") for part in parts]
            return np.stack([clip.frames for clip in clips])
        count = self.segments * self.frames
        wanted = drawn(info.frame_count, count, chance) if self.sampling == "random" else count
        return segmented(read_clip(info, wanted, size=size).frames, self.segments)


def drawn(frame_count: int, frames: int, chance: Generator) -> list[int]:
    """T frames of n, one drawn from each of T equal parts: floor((k + u) n / T), u uniform in [0, 1) for each k.

    With u = 1/2 these are the frames that `read_clip` takes; if n < T, frames repeat.
    """
    places = (np.arange(frames) + chance.random(frames)) * frame_count / frames
    return np.minimum(places.astype(int), frame_count - 1).tolist()


Box = tuple[float, float, float, float]  # top, left, height, width: shares of the picture in 0..1


def random_box(source: tuple[int, int], scale: tuple[float, float], chance: Generator) -> Box:
    """Of `scale` (low, high) of the area of a picture (H, W), and of an aspect of 3:4 to 4:3 as far as it fits."""
    height, width = source
    area = chance.uniform(*scale) * height * width
    aspect = math.exp(chance.uniform(-math.log(ASPECT), math.log(ASPECT)))  # width over height
    tall, wide = min(1.0, math.sqrt(area / aspect) / height), min(1.0, math.sqrt(area * aspect) / width)
    return chance.uniform(0, 1 - tall), chance.uniform(0, 1 - wide), tall, wide


def resized(frames: NDArray[np.uint8], box: Box, size: int) -> NDArray[np.uint8]:
    """The box of each of the frames (..., H, W, 3), rounded to pixels, as (..., size, size, 3); bilinear."""
    import cv2

    sides = np.array(frames.shape[-3:-1])
    start = np.floor(np.array(box[:2]) * sides).astype(int)
    stop = np.minimum(sides, start + np.maximum(1, np.rint(np.array(box[2:]) * sides).astype(int)))
    parts = frames[..., start[0] : stop[0], start[1] : stop[1], :]
    small = [
        cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR) for part in parts.reshape(-1, *parts.shape[-3:])
    ]
    return np.stack(small).reshape(*frames.shape[:-3], size, size, 3)


def collate(items: Sequence[Item]) -> Batch:
    """Items of one size as a batch, without those that could not be read."""
    import torch

    good = [(item, item.frames) for item in items if item.frames is not None]
    return Batch(
        torch.from_numpy(np.stack([frames for _, frames in good])) if good else torch.empty(0, dtype=torch.uint8),
        torch.tensor([item.label for item, _ in good], dtype=torch.int64),
        tuple(item.number for item, _ in good),
        tuple(item.problem for item in items if item.frames is None),
    )
