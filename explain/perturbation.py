"""Explanations by perturbation: parts of the clip are replaced, and the class's probability f says what they did.

f is the softmax probability of the target. What is replaced comes from a `baseline`: `blur` (each frame), `mean` (the
clip's mean colour), `zero` (after normalisation), and for whole frames also `freeze` (the nearest kept frame; with none
kept, `blur`). Options of all: `chunk`, clips in memory at a time, which changes the result by rounding only;
`progress`, (items, how many, what) -> items; `seed` where there is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explain.core import Explanation
from explain.methods import Question, in_time
from explain.models import Classifier, Size
from stabn.video import Clip

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
BASELINES = ("blur", "mean", "zero")
FRAME_BASELINES = ("freeze", *BASELINES)


def silent(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
    return items


def stand_in(clip: Tensor, baseline: str) -> Tensor:
    """What replaces removed parts of a clip (1, 3, T, H, W): same shape. ValueError for an unknown baseline."""
    if baseline == "zero":
        return torch.zeros_like(clip)
    if baseline == "mean":
        return clip.mean((2, 3, 4), keepdim=True).expand_as(clip)
    if baseline != "blur":
        raise ValueError(f"`baseline` must be one of {', '.join(BASELINES)}; got {baseline!r}")
    frames = clip[0].transpose(0, 1)  # (T, 3, H, W)
    for axis in (2, 3):
        frames = _blurred(frames, axis)
    return frames.transpose(0, 1)[None]


def _blurred(frames: Tensor, axis: int) -> Tensor:
    """A Gaussian along one axis, its sigma a tenth of the side: wide enough to hide an action; the border repeats."""
    side = frames.shape[axis]
    reach = max(1, round(0.3 * side))
    at = torch.arange(-reach, reach + 1, device=frames.device, dtype=frames.dtype)
    weights = torch.exp(-0.5 * (at / (0.1 * side)) ** 2)
    weights = (weights / weights.sum()).view(1, 1, *((-1, 1) if axis == 2 else (1, -1))).expand(3, -1, -1, -1)
    pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
    return F.conv2d(F.pad(frames, pad, mode="replicate"), weights, groups=3)


def _slices(count: int, chunk: int, progress: Progress) -> Iterator[slice]:
    _at_least_one(chunk=chunk)
    starts = range(0, count, chunk)
    for start in progress(starts, len(starts), "evaluations"):
        yield slice(start, min(start + chunk, count))


def _at_least_one(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, it must be 1 or more")


def _three(name: str, value: Size | None, default: Size, most: Size) -> Size:
    """An option of frames, rows and columns, at most those there are."""
    if value is None:
        value = default
    elif len(value) != 3 or min(value) < 1:
        raise ValueError(f"`{name}` must be three numbers of 1 or more (time, height, width), got {value}")
    t, h, w = (min(pair) for pair in zip(value, most, strict=True))
    return t, h, w


def _size(clip: Tensor) -> Size:
    return clip.shape[2], clip.shape[3], clip.shape[4]


def _mixed(question: Question, other: Tensor, masks: Tensor) -> Tensor:
    """f (N,) of the clip where the masks (N, 1, T, H, W) in 0..1 keep it, and `other` elsewhere."""
    return question.probability(other + masks.to(other.device) * (question.inputs - other))


# --------------------------------------------------------------------------------------- tubes, chosen or random


def occlusion(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    tube: Size | None = None,
    stride: Size | None = None,
    baseline: str = "blur",
    chunk: int = 8,
    progress: Progress = silent,
) -> Explanation:
    """What f loses without a space-time tube, mean over the tubes that cover a voxel (Zeiler & Fergus 2014).

    `tube` and `stride` are (frames, rows, columns) of the prepared clip: a quarter of it; a tube in time and half a
    tube in space, which takes 4 x 7 x 7 evaluations. Signed.
    """
    question = Question(network, clip, target)
    size = _size(question.inputs)
    t, h, w = _three("tube", tube, (-(-size[0] // 4), -(-size[1] // 4), -(-size[2] // 4)), size)
    steps = _three("stride", stride, (t, max(1, h // 2), max(1, w // 2)), (t, h, w))
    # As many as reach the end; the last may be cut there.
    starts = [range(0, side - long + step, step) for side, long, step in zip(size, (t, h, w), steps, strict=True)]
    boxes = [(slice(a, a + t), slice(b, b + h), slice(c, c + w)) for a, b, c in product(*starts)]
    other = stand_in(question.inputs, baseline)
    full = float(question.probabilities[question.target])
    lost, times = torch.zeros(2, *size, dtype=torch.float64)
    for part in _slices(len(boxes), chunk, progress):
        masks = torch.ones(part.stop - part.start, 1, *size)
        for mask, box in zip(masks, boxes[part], strict=True):
            mask[0][box] = 0
        with torch.no_grad():
            found = _mixed(question, other, masks)
        for f, box in zip(found.tolist(), boxes[part], strict=True):
            lost[box] += full - f
            times[box] += 1
    return question.explanation("occlusion", lost / times.clamp(min=1), signed=True)


def rise(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    samples: int = 512,
    grid: Size | None = None,
    keep: float = 0.5,
    baseline: str = "blur",
    chunk: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Explanation:
    """The mean of f over random masks that keep a voxel (Petsiuk et al. 2018, equation 6), less its minimum.

    Masks are smooth in space and time: each cell of a `grid` (4, 7, 7) is kept with probability `keep`, and the grid is
    shifted at random, by less than a cell, and enlarged.
    """
    _at_least_one(samples=samples)
    if not 0 < keep < 1:
        raise ValueError(f"`keep` is {keep}, it must be above 0 and below 1")
    question = Question(network, clip, target)
    size = _size(question.inputs)
    cells = _three("grid", grid, (4, 7, 7), size)
    chance = torch.Generator().manual_seed(seed)
    bits = torch.rand(samples, 1, *(side + 1 for side in cells), generator=chance) < keep
    cell = [-(-side // count) for side, count in zip(size, cells, strict=True)]  # pixels, rounded up
    shifts = torch.stack([torch.randint(side, (samples,), generator=chance) for side in cell], 1).tolist()
    large = [(count + 1) * side for count, side in zip(cells, cell, strict=True)]
    other = stand_in(question.inputs, baseline)
    total, weight = torch.zeros(2, *size, dtype=torch.float64)
    for part in _slices(samples, chunk, progress):
        smooth = F.interpolate(bits[part].float(), large, mode="trilinear")
        masks = torch.stack(
            [
                mask[:, a : a + size[0], b : b + size[1], c : c + size[2]]
                for mask, (a, b, c) in zip(smooth, shifts[part], strict=True)
            ]
        )
        with torch.no_grad():
            found = _mixed(question, other, masks)
        total += torch.einsum("n,nthw->thw", found.float(), masks[:, 0])
        weight += masks[:, 0].sum(0)
    mean = total / weight.clamp(min=1e-6)
    return question.explanation("rise", mean - mean.min())


def lime(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    samples: int = 512,
    grid: Size | None = None,
    width: float = 0.25,
    ridge: float = 1.0,
    baseline: str = "blur",
    chunk: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Explanation:
    """The weights of a linear model of f over which tubes are kept, fitted around the clip (Ribeiro et al. 2016).

    Tubes are the cells of a `grid` (4, 4, 4), as no image segmentation holds over frames. A sample weighs
    exp(-d^2 / width^2), d its cosine distance from the whole clip; `ridge` is the penalty. Signed.
    """
    _at_least_one(samples=samples)
    question = Question(network, clip, target)
    size = _size(question.inputs)
    cells = _three("grid", grid, (4, 4, 4), size)
    at = [torch.arange(side) * count // side for side, count in zip(size, cells, strict=True)]
    segment = (at[0][:, None, None] * cells[1] + at[1][:, None]) * cells[2] + at[2]  # (T, H, W)
    count = cells[0] * cells[1] * cells[2]
    kept = (torch.rand(samples, count, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    kept[0] = 1
    other = stand_in(question.inputs, baseline)
    found = torch.zeros(samples, dtype=torch.float64)
    for part in _slices(samples, chunk, progress):
        with torch.no_grad():
            found[part] = _mixed(question, other, kept[part][:, None, segment]).double()
    distance = 1 - kept.double().mean(1).sqrt()
    weights = _ridge(kept.double(), found, torch.exp(-((distance / width) ** 2)), ridge).view(cells)
    return question.explanation("lime", weights[at[0]], signed=True)


def _ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Coefficients (P,) of a weighted ridge regression with an intercept, x (N, P), y (N,)."""
    share = weights / weights.sum()
    x, y = x - share @ x, y - share @ y
    weighed = x.T * weights
    return torch.linalg.solve(weighed @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), weighed @ y)


# -------------------------------------------------------------------------------------------- whole frames


def leave_one_frame_out(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    baseline: str = "freeze",
    chunk: int = 8,
    progress: Progress = silent,
) -> Explanation:
    """What f loses without each frame, signed: Zeiler & Fergus's (2014) occlusion of one frame. It says when only."""
    question = Question(network, clip, target)
    frames = network.frames
    found = of_frames(question, ~torch.eye(frames, dtype=torch.bool), baseline, chunk, progress)
    lost = float(question.probabilities[question.target]) - found
    return question.explanation("leave_one_frame_out", lost.view(-1, 1, 1), signed=True)


def frame_shapley(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    permutations: int = 8,
    baseline: str = "freeze",
    chunk: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Explanation:
    """The Shapley value of each frame: its mean gain of f over random orders in which frames are added, signed.

    Price & Damen 2020 for frames, estimated as Castro et al. 2009, each order also backwards (Mitchell et al. 2022).
    Values sum to f(all frames) - f(no frame). `permutations` counts both directions. It says when only.
    """
    _at_least_one(permutations=permutations)
    question = Question(network, clip, target)
    frames, chance = network.frames, torch.Generator().manual_seed(seed)
    orders = [torch.randperm(frames, generator=chance) for _ in range(-(-permutations // 2))]
    both = torch.stack([order for once in orders for order in (once, once.flip(0))][:permutations])  # (P, T)
    # Frame t is there from the step after its place in the order on.
    kept = both.argsort(1)[:, None] < torch.arange(frames + 1)[:, None]  # (P, T + 1, T)
    different, which = kept.flatten(0, 1).unique(dim=0, return_inverse=True)
    found = of_frames(question, different, baseline, chunk, progress)
    gains = found[which].view(len(both), frames + 1).diff(dim=1)  # (P, T), in each one's order
    value = torch.zeros(frames, dtype=torch.float64).scatter_add(0, both.flatten(), gains.flatten()) / len(both)
    return question.explanation("frame_shapley", value.view(-1, 1, 1), signed=True)


def of_frames(question: Question, kept: Tensor, baseline: str, chunk: int, progress: Progress) -> Tensor:
    """f, float64 (N,), of the clip in which only the frames `kept` (N, T) are as they were."""
    check_frame_baseline(baseline)
    found = torch.zeros(len(kept), dtype=torch.float64)
    other = stand_in(question.inputs, "blur" if baseline == "freeze" else baseline)
    for part in _slices(len(kept), chunk, progress):
        masks = kept[part]
        clips = torch.where(masks.to(other.device)[:, None, :, None, None], question.inputs, other)
        if baseline == "freeze":
            some = masks.any(1)
            clips[some.to(other.device)] = question.inputs[0][:, _nearest_kept(masks[some])].transpose(0, 1)
        with torch.no_grad():
            found[part] = question.probability(clips).double()
    return found


def check_frame_baseline(baseline: str) -> None:
    if baseline not in FRAME_BASELINES:
        raise ValueError(f"`baseline` of frames must be one of {', '.join(FRAME_BASELINES)}; got {baseline!r}")


def _nearest_kept(kept: Tensor) -> Tensor:
    """(N, T): for each frame the nearest one that is kept, the earlier of two; at least one is kept in each row."""
    frames = torch.arange(kept.shape[1])
    distance = 2 * (frames[:, None] - frames).abs() + (frames > frames[:, None])  # (T, T); odd if later
    far = 2 * len(frames) + 2
    return torch.where(kept[:, None], distance, far).argmin(2)


# ------------------------------------------------------------------------------------------- masks by gradient


def meaningful_perturbation(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    steps: int = 100,
    grid: Size | None = None,
    rate: float = 0.2,
    area: float = 0.5,
    smooth: float = 0.5,
    baseline: str = "blur",
    progress: Progress = silent,
) -> Explanation:
    """The smallest smooth deletion that takes f away, S in 0..1 (Fong & Vedaldi 2017, equation 3, in space and time).

    It minimises f(x without S) + `area` mean(S) + `smooth` TV(S) over cells of a `grid` (8, 7, 7), by Adam.
    """
    question = Question(network, clip, target)
    other = stand_in(question.inputs, baseline)

    def loss(mask: Tensor, large: Tensor, step: int) -> Tensor:
        rough = sum((mask.diff(dim=axis).abs().mean() for axis in range(3) if mask.shape[axis] > 1), mask.sum() * 0)
        return _mixed(question, other, 1 - large)[0] + area * mask.mean() + smooth * rough

    mask = _descended(question, _three("grid", grid, (8, 7, 7), _size(question.inputs)), steps, rate, loss, progress)
    return question.explanation("meaningful_perturbation", mask)


def extremal_perturbation(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    steps: int = 100,
    area: float = 0.1,
    grid: Size | None = None,
    rate: float = 0.1,
    baseline: str = "blur",
    progress: Progress = silent,
) -> Explanation:
    """The smooth space-time mask of a fixed `area` that keeps f highest, S in 0..1 (Fong et al. 2019; on video Li et
    al. 2021).

    It maximises log f(x within S) while the sorted values of S are drawn, ever harder, to 1 on that share of the cells
    of a `grid` (8, 7, 7) and to 0 on the rest.
    """
    if not 0 < area < 1:
        raise ValueError(f"`area` is {area}, a share of the clip above 0 and below 1 is needed")
    question = Question(network, clip, target)
    other = stand_in(question.inputs, baseline)
    cells = _three("grid", grid, (8, 7, 7), _size(question.inputs))
    count = cells[0] * cells[1] * cells[2]
    wanted = (torch.arange(count, device=other.device) >= (1 - area) * count).float()

    def loss(mask: Tensor, large: Tensor, step: int) -> Tensor:
        pressure = 30 * (step + 1) / steps
        off = (mask.flatten().sort().values - wanted).square().mean()
        return pressure * off - _mixed(question, other, large)[0].clamp(min=1e-12).log()

    return question.explanation("extremal_perturbation", _descended(question, cells, steps, rate, loss, progress))


def _descended(
    question: Question,
    cells: Size,
    steps: int,
    rate: float,
    loss: Callable[[Tensor, Tensor, int], Tensor],
    progress: Progress,
) -> Tensor:
    """The mask (T, h, w) after `steps` of Adam down `loss(mask (t, h, w), mask (1, 1, T, H, W), step)`."""
    _at_least_one(steps=steps)
    values = torch.zeros(cells, device=question.inputs.device, requires_grad=True)  # 0: every cell is half there
    optimiser = torch.optim.Adam([values], lr=rate)
    for step in progress(range(steps), steps, "steps"):
        mask = values.sigmoid()
        large = F.interpolate(mask[None, None], question.inputs.shape[2:], mode="trilinear")
        values.grad = torch.autograd.grad(loss(mask, large, step), values)[0]
        optimiser.step()
    return in_time(values.detach().sigmoid(), question.network.frames)
