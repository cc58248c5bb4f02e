"""What an explanation is, how one is made, and how those of sliding windows become one.

A method is a function `(network, clip, target, **options) -> Explanation`, listed in `explain.METHODS`; the network
comes as an `explain.models.Classifier`. This file imports numpy only: torch comes with the model that a caller hands
in, drawing is in `explain.render`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from explain import METHODS
from stabn.data import class_index, nearest

if TYPE_CHECKING:
    from explain.models import Classifier
    from stabn.model import STABN, Box
    from stabn.video import Clip

Floats = NDArray[np.floating[Any]]
# Top, left, height, width in a picture's pixels, as stabn.model.Box.
View = tuple[float, float, float, float]

FLAT = 0.05  # of a sigmoid's range: values that spread by less are called almost flat
WINDOWS = 100_000  # of a video at most; a damaged file may claim to last for years
SURE = 0.5  # a best class below this probability is said to be uncertain


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where (`spatial`) and when (`temporal`) a network looked in T sampled frames, and what it answered.

    All arrays are numpy, on the CPU. Attributes:
        method: key of `METHODS`.
        target: index into `classes` of the class that was asked about; the predicted class if none was.
        probabilities: float32 (K,), softmax over the K `classes`.
        spatial: M_s, float32 (T, h, w), non-negative unless `signed`, at the network's own resolution.
        temporal: M_t, float32 (T,), non-negative unless the method weighs whole frames with a sign.
        timestamps: float64 (T,), seconds since the video's first frame, ascending; frames of a source with
            fewer than T frames repeat, with the sampling "middle" the first one, at the end.
        frame_indices: int64 (T,), display order in the source.
        source_size: (H, W) of the source frame after rotation.
        view: the part of the source frame that the maps cover, in its pixels; the network saw nothing else.
        scale: (low, high), the values drawn as the two ends of the colours: (0, 1) for a sigmoid, else once
            per clip.
        class_agnostic: the maps are the same whatever class is asked about.
        signed: the maps speak for (> 0) and against (< 0) the class.
        notes: what a reader must know, for example that a map is almost flat, in words.
        timings: seconds by stage.
        evaluations: how many clips went forward through the network for it.
        windows, window_probabilities: (W, 2) start and end in seconds and float32 (W, K), if it is merged
            from windows.
    """

    method: str
    target: int
    classes: list[str]
    probabilities: Floats
    spatial: Floats
    temporal: Floats
    timestamps: NDArray[np.float64]
    frame_indices: NDArray[np.int64]
    source_size: tuple[int, int]
    view: Box
    scale: tuple[float, float]
    class_agnostic: bool
    signed: bool
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    evaluations: int = 1
    windows: NDArray[np.float64] | None = None
    window_probabilities: Floats | None = None

    @cached_property
    def saliency(self) -> Floats:
        """The joint map S[t] = M_t * M_s, float32 (T, H, W) at source size, bilinear, 0 outside `view`."""
        return place(self.temporal[:, None, None] * self.spatial, self.view, self.source_size)

    @cached_property
    def timeline(self) -> tuple[NDArray[np.float64], Floats, Floats]:
        """Seconds (U,), M_t (U,) and M_s (U, h, w) of the distinct sampled frames; repeated ones averaged."""
        seconds, position = np.unique(self.timestamps, return_inverse=True)
        counts = np.bincount(position).astype(np.float32)
        temporal = np.bincount(position, self.temporal).astype(np.float32) / counts
        spatial = np.zeros((len(seconds), *self.spatial.shape[1:]), np.float32)
        np.add.at(spatial, position, self.spatial)
        return seconds, temporal, spatial / counts[:, None, None]

    @property
    def has_places(self) -> bool:
        """Whether M_s says where; it is 1 x 1 where a method weighs whole frames."""
        return self.spatial.shape[1:] != (1, 1)

    @property
    def temporal_scale(self) -> tuple[float, float]:
        """The range on which M_t is drawn: (0, 1) for a sigmoid, else the clip's own, with 0 in it."""
        low, high = min(0.0, float(self.temporal.min())), max(0.0, float(self.temporal.max()))
        return (0.0, 1.0) if self.scale == (0, 1) or low == high else (low, high)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k best classes with their probabilities, best first."""
        return top(self.classes, self.probabilities, k)

    def spatial_at(self, seconds: float) -> Floats:
        """M_s (h, w) at a moment, linear between the sampled frames and constant beyond them."""
        times, _, spatial = self.timeline
        return _linear(times, spatial, np.array([seconds]))[0]

    def probabilities_at(self, seconds: float) -> Floats:
        """The answer (K,) of the window whose middle is nearest to a moment; without windows, of the clip."""
        if self.windows is None or self.window_probabilities is None:
            return self.probabilities
        return self.window_probabilities[int(np.abs(self.windows.mean(1) - seconds).argmin())]

    def peak(self) -> tuple[float, float] | None:
        """(start, end) in seconds of the moment looked at most; None if M_t is almost flat.

        These are the sampled frames in a row around the largest M_t that reach the middle of its range.
        """
        times, weights, _ = self.timeline
        if _is_flat(weights, max(map(abs, self.temporal_scale))):
            return None
        above = weights >= (weights.min() + weights.max()) / 2
        start = end = int(weights.argmax())
        while start > 0 and above[start - 1]:
            start -= 1
        while end < len(times) - 1 and above[end + 1]:
            end += 1
        return float(times[start]), float(times[end])


def explain(
    model: STABN | Classifier, clip: Clip, method: str = "stabn", target: int | str | None = None, **options: Any
) -> Explanation:
    """Where and when `model` looked in `clip`, by one of `METHODS`.

    `model` is our network, or any other as an `explain.models.Classifier`. `clip` has as many frames as it takes
    (`stabn.read_clip(path, frames=model.config.frames)`). The work is done on the model's device, in eval mode, and
    the model is left as it was found. `target` is the index or the name of the class to explain; None takes the
    predicted one. `options` go to the method. Raises ValueError for an unknown method, class or layer, for a wrong
    number of frames, and where a method cannot explain this model.
    """
    return _noted(_run(model, clip, method, target, options))


def explain_windows(
    model: STABN | Classifier,
    clips: Iterable[Clip],
    windows: Sequence[tuple[float, float]],
    method: str = "stabn",
    target: int | str | None = None,
    **options: Any,
) -> Explanation:
    """One explanation of a long video from its `windows` (start, end) in seconds, as `sliding` gives them.

    `clips` yields the clip of each window in turn; only one is held at a time. Otherwise as `explain`.
    Without a `target` each window explains the class predicted for it.
    """
    parts = [_run(model, clip, method, target, options) for _, clip in zip(windows, clips, strict=True)]
    merged = merge(parts, windows)
    return _noted(merged if target is None else replace(merged, target=parts[0].target))


def sliding(duration: float, window: float, stride: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of windows every `stride` seconds; the last is moved back to end at `duration`.

    Raises ValueError as `check_window`, and for more than `WINDOWS` windows.
    """
    check_window(window, stride)
    if window >= duration:
        return [(0.0, duration)]
    if (duration - window) / stride > WINDOWS:
        raise ValueError(
            f"windows every {stride:g} s are more than {WINDOWS:,} in {duration:g} s: use a longer stride, or a part "
            "of the video"
        )
    count = int(np.ceil((duration - window) / stride - 1e-9))
    return [(k * stride, k * stride + window) for k in range(count)] + [(duration - window, duration)]


def merge(parts: Sequence[Explanation], windows: Sequence[tuple[float, float]]) -> Explanation:
    """The explanations of overlapping windows as one, over the union of their sampled frames.

    At each of these frames M_t and M_s are the mean over the windows that cover it of their values, linear in
    time between a window's own frames and constant beyond them. Probabilities are the mean over windows; the
    `target` is the best class of that mean.
    """
    if not parts or len(parts) != len(windows):
        raise ValueError(f"{len(parts)} explanations cannot be merged over {len(windows)} windows")
    indices, first = np.unique(np.concatenate([part.frame_indices for part in parts]), return_index=True)
    seconds = np.concatenate([part.timestamps for part in parts])[first]
    temporal = np.zeros(len(seconds), np.float32)
    spatial = np.zeros((len(seconds), *parts[0].spatial.shape[1:]), np.float32)
    covering = np.zeros(len(seconds), np.float32)
    for part, (start, end) in zip(parts, windows, strict=True):
        times, weights, maps = part.timeline
        # A frame that stands in for a window without one may lie before its start; it is covered too.
        inside = (seconds >= min(start, times[0])) & ((seconds < end) | (seconds <= times[-1]))
        temporal[inside] += _linear(times, weights, seconds[inside])
        spatial[inside] += _linear(times, maps, seconds[inside])
        covering += inside
    each = np.stack([part.probabilities for part in parts])
    mean = each.mean(0)
    return replace(
        parts[0],
        target=int(mean.argmax()),
        probabilities=mean,
        spatial=spatial / covering[:, None, None],
        temporal=temporal / covering,
        timestamps=seconds,
        frame_indices=indices,
        scale=(min(part.scale[0] for part in parts), max(part.scale[1] for part in parts)),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        timings={key: sum(part.timings[key] for part in parts) for key in parts[0].timings},
        evaluations=sum(part.evaluations for part in parts),
        windows=np.array(windows, np.float64),
        window_probabilities=each,
    )


def stabn_attention(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """The attention that ST-ABN itself applied (paper, equations 1 to 3), in one forward pass.

    Where the backbone shortens time to T' < T, it is linear in time between its T' moments, and a note says so.
    """
    import torch

    from explain.methods import in_time
    from stabn.model import STABN

    model = network.module
    if not isinstance(model, STABN):
        raise ValueError(
            "method 'stabn' shows the attention of an ST-ABN network, and this model is "
            f"a {type(model).__name__}: choose another method"
        )
    start = time.perf_counter()
    with torch.inference_mode():
        inputs = network.clip(clip.frames)
        prepared = time.perf_counter()
        output = model(inputs)
        if output.attention is None:
            raise ValueError(
                "method 'stabn' shows the attention branch, and this checkpoint was trained without one "
                "(attention='none'): choose another method or checkpoint"
            )
        probabilities = output.logits[0].float().softmax(0).cpu().numpy()
        frames, moments = model.config.frames, model.config.moments
        spatial, temporal = (
            None if part is None else in_time(part[0, 0].float(), frames).cpu().numpy() for part in output.attention
        )
    timings = {"preprocess": prepared - start, "network": time.perf_counter() - prepared}
    notes = clip.notes
    if moments < frames:
        steps = f"{moments} moment{'' if moments == 1 else 's'}"
        notes += (f"this network's attention has {steps} for {frames} frames: between them it is interpolated",)
    if spatial is None:  # the ablation's variants: the absent factor of M_t * M_s is 1
        spatial = np.ones((len(clip.frames), 1, 1), np.float32)
        notes += ("this network has no spatial attention",)
    if temporal is None:
        temporal = np.ones(len(clip.frames), np.float32)
        notes += ("this network has no temporal attention",)
    return Explanation(
        method="stabn",
        target=int(probabilities.argmax()) if target is None else target,
        classes=list(model.classes),
        probabilities=probabilities,
        spatial=spatial,
        temporal=temporal.reshape(-1),
        timestamps=clip.timestamps,
        frame_indices=clip.frame_indices,
        source_size=clip.source_size,
        view=model.seen(*clip.source_size),
        scale=(0.0, 1.0),
        class_agnostic=True,
        signed=False,
        notes=notes,
        timings=timings,
    )


def resolve(method: str) -> Callable[..., Explanation]:
    """The function behind a name of `METHODS`; ValueError with the names there are for any other."""
    check_method(method)
    module, function = METHODS[method].split(":")
    return getattr(importlib.import_module(module), function)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}: {nearest(method, METHODS)}")


def check_window(window: float, stride: float) -> None:
    """Raises ValueError unless 0 < stride <= window: a longer stride would leave gaps."""
    if not 0 < window < np.inf:
        raise ValueError(f"the window is {window:g} s, it must be longer than 0 s")
    if not 0 < stride <= window:
        raise ValueError(
            f"the stride is {stride:g} s, it must be longer than 0 s and at most the window of {window:g} s: "
            "a longer one leaves parts of the video out"
        )


def top(classes: Sequence[str], probabilities: Floats, k: int = 5) -> list[tuple[str, float]]:
    """The k best classes with their probabilities, best first."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [(classes[i], float(probabilities[i])) for i in order]


def percent(probability: float) -> str:
    return "< 1 %" if 0 < probability < 0.005 else f"{100 * probability:.0f} %"


def answer(classes: Sequence[str], probabilities: Floats) -> str:
    """The best class, its probability, and whether the network is sure of it, in words."""
    [(name, probability)] = top(classes, probabilities, 1)
    return f"{name} {percent(probability)}" + ("" if probability >= SURE else " (not sure)")


def knows(classes: Sequence[str]) -> str:
    return f"knows {len(classes)} motions; this clip may show none of them"


def place(maps: Floats, view: View, size: tuple[int, int]) -> Floats:
    """Maps (..., h, w) that cover `view` of a picture -> float32 (..., H, W) of the picture's `size`.

    Bilinear between the centres of the cells, constant from the outermost centres to the border of the view,
    and 0 in pixels whose centre lies outside it.
    """
    height, width = maps.shape[-2:]
    top, left, tall, wide = view
    rows = _weights(height, size[0], top, tall)
    columns = _weights(width, size[1], left, wide)
    stretched = rows @ maps.astype(np.float32, copy=False)  # (..., H, w)
    return (stretched.reshape(-1, width) @ columns.T).reshape(*maps.shape[:-2], *size)


@lru_cache(maxsize=16)
def _weights(cells: int, pixels: int, start: float, length: float) -> Floats:
    """(pixels, cells): the share of each cell in each pixel along one axis; a product then interpolates."""
    centre = np.arange(pixels) + 0.5 - start
    at = np.clip(centre / length * cells - 0.5, 0, cells - 1)
    share = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
    share[(centre < 0) | (centre >= length)] = 0
    return share.astype(np.float32)


def _linear(times: NDArray[np.float64], values: Floats, seconds: NDArray[np.float64]) -> Floats:
    """`values` (U, ...) at strictly ascending `times` (U,) -> (S, ...) at `seconds`; constant beyond."""
    right = np.clip(np.searchsorted(times, seconds), 1, max(1, len(times) - 1))
    left, right = right - 1, np.minimum(right, len(times) - 1)
    gap = np.where(right > left, times[right] - times[left], 1.0)
    share = np.clip((seconds - times[left]) / gap, 0, 1).astype(np.float32)
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[left] + share * values[right]


def _run(
    model: STABN | Classifier, clip: Clip, method: str, target: int | str | None, options: dict[str, Any]
) -> Explanation:
    run = resolve(method)
    with asked(model, clip, target) as (network, index):
        found = run(network, clip, index, **options)
    if network.sampling == "middle" and (np.diff(np.unique(clip.frame_indices)) > 1).any():
        note = "this network takes consecutive frames, and these are spread: read them with sampling='middle'"
        found = replace(found, notes=(*found.notes, note))
    for name in ("probabilities", "spatial", "temporal"):
        if not np.isfinite(getattr(found, name)).all():
            raise ValueError(
                f"method {method!r} found values that are not finite ({name}): the network's weights are damaged, or "
                "too large for its arithmetic"
            )
    return found


@contextmanager
def asked(model: STABN | Classifier, clip: Clip, target: int | str | None) -> Iterator[tuple[Classifier, int | None]]:
    """What a method works with, checked: the model as a `Classifier`, undisturbed, and the target's index."""
    from explain.models import classifier, undisturbed

    network = classifier(model)
    index = None if target is None else class_index(network.classes, target)
    seen, needed = len(clip.frames), network.frames
    if seen != needed:
        raise ValueError(
            f"`clip` has {seen} frames, this checkpoint was trained on {needed}: read it with "
            f"read_clip(path, frames={needed})"
        )
    with undisturbed(network.module):
        yield network, index


def _noted(explanation: Explanation) -> Explanation:
    """Flat attention said in words, so that nobody takes its noise for a finding."""
    notes = list(explanation.notes)
    for values, top, kind, thing in (
        (explanation.spatial, max(map(abs, explanation.scale)), "space", "place"),
        (explanation.timeline[1], max(map(abs, explanation.temporal_scale)), "time", "moment"),
    ):
        if _is_flat(values, top) and (kind == "time" or explanation.has_places):
            notes.append(f"almost flat in {kind} ({values.min():.2f} to {values.max():.2f}): no {thing} stands out")
    return replace(explanation, notes=tuple(notes))


def _is_flat(values: Floats, top: float) -> bool:
    return bool(values.max() - values.min() < FLAT * (top or 1))
