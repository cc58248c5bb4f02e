"""How good an explanation is: against evidence that is known, and by what the network says when parts are removed.

First measures on arrays. A map is given by its two factors: `spatial` M_s (T, h, w) >= 0 and `temporal` M_t (T,).
Evidence is a `mask` (T, H, W) bool of the acting things and `action` (T,) bool, the frames in which the action happens.
Then `Trial`, which asks the network about one clip. All measures are listed in `SCORES`. A value that is not defined
for a clip is NaN, so that the clip can be skipped and counted.

f is the softmax probability of one class, fixed before anything is changed, and f(b) that of the baseline clip. Parts
are removed in units, never as single voxels, which would make a clip like no other: cells of one frame x H/14 x W/14
pixels, or whole frames. Of a map with a sign, ranks follow the sign (evidence for the class first), those of frames
the sign of their sum; against evidence counts its positive part. See `weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from explain.core import Explanation, asked, nearest
from explain.methods import CELLS, Question
from explain.models import Classifier, undisturbed
from explain.perturbation import check_frame_baseline, of_frames, silent, stand_in
from stabn.video import Clip

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Again = Callable[[Classifier, Clip], Explanation]
Rerun = Callable[[Classifier], Explanation]

SCORABLE = 0.05  # f(x) - f(b) must be above: else there is nothing to lose
REACH = 15 / 224  # of the height: how far from the evidence the pointing game still counts as a hit
REMOVED = np.arange(1, 10) / 10  # shares of the cells that ROAD removes
STAGES = 6  # in which layers are re-initialised


class Score(NamedTuple):
    """A measure: a short name for the heads of tables, which end is better, whether it belongs to the core, and what
    it needs: known evidence, the network and this clip, or to run the method again."""

    title: str
    better: Literal["high", "low"]
    group: Literal["core", "full"]
    needs: Literal["evidence", "clip", "method"]


SCORES: dict[str, Score] = {
    # Where and when, against known evidence.
    "energy": Score("energy M_s", "high", "core", "evidence"),
    "energy_joint": Score("energy S", "high", "core", "evidence"),
    "pointing": Score("pointing", "high", "core", "evidence"),
    "temporal_auc": Score("AUC M_t", "high", "core", "evidence"),
    "temporal_argmax": Score("argmax M_t", "high", "core", "evidence"),
    "temporal_precision": Score("AP M_t", "high", "core", "evidence"),
    "temporal_iou": Score("IoU M_t", "high", "core", "evidence"),
    # Area under f while cells are removed (deletion) or put into the baseline clip (insertion), raw, beside random
    # orders, and between the two orders; then the same with whole frames, then inside of each frame.
    "deletion": Score("DEL", "low", "core", "clip"),
    "insertion": Score("INS", "high", "core", "clip"),
    "deletion_gain": Score("DEL gain", "high", "core", "clip"),
    "insertion_gain": Score("INS gain", "high", "core", "clip"),
    "order_area": Score("order area", "high", "core", "clip"),
    "deletion_time": Score("DEL time", "low", "core", "clip"),
    "insertion_time": Score("INS time", "high", "core", "clip"),
    "deletion_gain_time": Score("DEL gain time", "high", "core", "clip"),
    "insertion_gain_time": Score("INS gain time", "high", "core", "clip"),
    "order_area_time": Score("order area time", "high", "core", "clip"),
    "deletion_space": Score("DEL space", "low", "full", "clip"),
    "insertion_space": Score("INS space", "high", "full", "clip"),
    "deletion_gain_space": Score("DEL gain space", "high", "full", "clip"),
    "insertion_gain_space": Score("INS gain space", "high", "full", "clip"),
    "order_area_space": Score("order area space", "high", "full", "clip"),
    "frame_effect": Score("frame effect", "high", "full", "clip"),
    "average_drop": Score("average drop", "low", "full", "clip"),
    "increase": Score("increase", "high", "full", "clip"),
    "road": Score("ROAD", "high", "full", "clip"),
    # What the map owes to the network, to the clip and to chance.
    "randomisation": Score("randomised S", "low", "full", "method"),
    "randomisation_spatial": Score("randomised M_s", "low", "full", "method"),
    "randomisation_temporal": Score("randomised M_t", "low", "full", "method"),
    "max_sensitivity": Score("max-sensitivity", "low", "full", "method"),
    "infidelity": Score("infidelity", "low", "full", "clip"),
    "null_range": Score("range M_t, still", "low", "full", "method"),
    "null_shift": Score("M_t, shifted", "high", "full", "method"),
    "null_shuffle": Score("M_t, shuffled", "low", "full", "method"),
    "null_untrained": Score("M_t, untrained", "low", "full", "method"),
}


# ------------------------------------------------------------------------------------------------------ on arrays


def resize_maps(maps: Floats, height: int, width: int) -> NDArray[np.float32]:
    """(T, h, w) to (T, height, width), bilinear with cells at their centres; float32."""
    tensor = torch.as_tensor(np.ascontiguousarray(maps), dtype=torch.float32)[:, None]
    return F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[:, 0].numpy()


def energy_in_mask(spatial: Floats, mask: Bools, action: Bools) -> float:
    """Energy-based pointing (Wang et al. 2020): the share of M_s inside the mask over the mask's share of the picture.

    Mean over the action frames that have a mask; 1.0 is chance, and what a frame counts on which the map is zero. NaN
    where there is no such frame.
    """
    frames = np.flatnonzero(action & mask.any((1, 2)))
    if not len(frames):
        return float("nan")
    maps = resize_maps(spatial[frames], *mask.shape[1:]).astype(np.float64)
    total = maps.sum((1, 2))
    share = (maps * mask[frames]).sum((1, 2)) / np.where(total > 0, total, 1)
    return float(np.where(total > 0, share / mask[frames].mean((1, 2)), 1.0).mean())


def energy_in_tube(volume: Floats, mask: Bools, action: Bools) -> float:
    """As `energy_in_mask` over space and time: the share of S (T, h, w) >= 0 inside the mask on action frames, over
    the share that this tube has of the clip; 1.0, chance, for a map that is zero. NaN where there is no tube."""
    tube = mask & action[:, None, None]
    maps = resize_maps(volume, *mask.shape[1:]).astype(np.float64)
    if not tube.any():
        return float("nan")
    return float(maps[tube].sum() / maps.sum() / tube.mean()) if maps.any() else 1.0


def pointing(spatial: Floats, near: Bools, action: Bools) -> float:
    """Pointing game (Zhang et al. 2018): the share of action frames whose maximum of M_s lies in `near` (T, H, W), the
    evidence with what is close to it (see `within_reach`). Of tied maxima counts the share that hits; frames without
    evidence are skipped, and NaN is for a clip of such frames."""
    frames = np.flatnonzero(action & near.any((1, 2)))
    if not len(frames):
        return float("nan")
    maps = resize_maps(spatial[frames], *near.shape[1:])
    top = maps.max((1, 2), keepdims=True)
    best = maps >= top - 1e-6 * np.abs(top)  # rounding in a flat map makes no maximum
    return float(np.mean((best & near[frames]).sum((1, 2)) / best.sum((1, 2))))


def within_reach(mask: Bools, radius: float) -> Bools:
    """The pixels of each frame (T, H, W) that are at most `radius` pixels away from the mask."""
    reach = int(radius)
    at = torch.arange(-reach, reach + 1)
    disc = (at[:, None] ** 2 + at**2 <= radius**2).float()
    found = F.conv2d(torch.as_tensor(mask.copy(), dtype=torch.float32)[:, None], disc[None, None], padding=reach)
    return (found[:, 0] > 0.5).numpy()


def temporal_auc(temporal: Floats, action: Bools) -> float:
    """The chance that M_t ranks an action frame above another one; ties count half. NaN if all frames are alike."""
    inside, outside = temporal[action], temporal[~action]
    if not len(inside) or not len(outside):
        return float("nan")
    difference = inside[:, None].astype(np.float64) - outside[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def temporal_argmax(temporal: Floats, action: Bools) -> float:
    """Whether the largest M_t is on an action frame; the share of the tied ones. NaN if all frames are alike."""
    return float(action[temporal == temporal.max()].mean()) if _differ(action) else float("nan")


def temporal_precision(temporal: Floats, action: Bools) -> float:
    """Average precision of M_t: precision at each of its values, by the action frames that have it; frames with the
    same value enter together. NaN if all frames are alike."""
    if not _differ(action):
        return float("nan")
    levels = np.unique(temporal)[::-1]
    hits = np.array([action[temporal >= level].sum() for level in levels])
    taken = np.array([(temporal >= level).sum() for level in levels])
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / action.sum())


def temporal_iou(temporal: Floats, action: Bools) -> float:
    """Intersection over union of the frames with M_t at or above its mean and the action frames. NaN if all frames are
    alike."""
    if not _differ(action):
        return float("nan")
    weights = temporal.astype(np.float64)
    above = weights >= weights.mean()
    return float((above & action).sum() / (above | action).sum())


def _differ(action: Bools) -> bool:
    return bool(action.any() and not action.all())


def position_auc(temporal: Floats, action: Bools) -> NDArray[np.float64]:
    """What position alone gives: AUC (N,) of the mean weight by position over N clips, M_t and action (N, T) each.

    Each clip's M_t counts over its largest magnitude, as clips differ in units. It stands beside `temporal_auc`.
    """
    top = np.abs(temporal).max(1, keepdims=True).astype(np.float64)
    mean = (temporal / np.where(top > 0, top, 1)).mean(0)
    return np.array([temporal_auc(mean, each) for each in action])


def perfect_maps(mask: Bools, height: int, width: int) -> NDArray[np.float32]:
    """The mask at a map's resolution (T, height, width): the best that a map of this size can be."""
    tensor = torch.as_tensor(mask, dtype=torch.float32)[:, None]
    return F.adaptive_avg_pool2d(tensor, (height, width))[:, 0].numpy()


def frame_difference(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """|x_t - x_{t-1}| of RGB frames (T, H, W, 3), mean over channels: (T, H, W). The first frame takes the second's."""
    x = frames.astype(np.float32)
    change = np.abs(x[1:] - x[:-1]).mean(-1)
    return np.concatenate([change[:1], change])


def bootstrap(
    values: Floats, statistic: Callable[..., Floats] = np.mean, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """`statistic` over the clips and its bootstrap 95 % interval: (value, low, high). NaNs are left out.

    `statistic` takes an array and `axis`. Raises ValueError where no value is left.
    """
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        raise ValueError("`values` holds no number: no clip could be scored")
    draws = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    low, high = np.percentile(statistic(kept[draws], axis=1), [2.5, 97.5])
    return float(statistic(kept, axis=0)), float(low), float(high)


def area(values: Floats, at: Floats) -> float:
    """The area under `values` (N,) over `at` (N,), by trapezoids."""
    return float(((values[1:] + values[:-1]) / 2 * np.diff(at)).sum())


def places(relevance: Floats, seed: int = 0) -> NDArray[np.int64]:
    """The place of each value in its row (rows, n), 0 for the largest. Ties, up to a millionth of the row's largest
    magnitude, are broken at random, never by position."""
    values = np.asarray(relevance, np.float64)
    most = np.abs(values).max(-1, keepdims=True)
    levels = np.round(values / np.where(most > 0, most, 1), 6)
    chance = np.random.default_rng(seed).random(values.shape)
    return np.lexsort((chance, -levels)).argsort(-1)


def cell_means(volume: Floats, height: int, width: int) -> NDArray[np.float64]:
    """S (T, h, w), enlarged to a clip's `height` x `width` pixels, mean over each of the cells: (T, 14, 14)."""
    tensor = torch.as_tensor(np.ascontiguousarray(volume), dtype=torch.float64)[:, None]
    large = F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[:, 0]
    rows, columns = (F.one_hot(_cell_of(side)).double() for side in (height, width))  # (pixels, cells)
    return torch.einsum("thw,hy,wx->tyx", large, rows / rows.sum(0), columns / columns.sum(0)).numpy()


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation of two arrays of the same size; tied values share their mean rank. NaN if one is constant."""
    if not np.ptp(one) > 0 or not np.ptp(other) > 0:
        return float("nan")
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean[which.ravel()]


def unchanged(before: Floats, after: Floats) -> float:
    """`spearman`, but 0 where `after` alone is constant: nothing is left of `before`."""
    found = spearman(before, after)
    return 0.0 if np.isnan(found) and np.ptp(before) > 0 else found


def imputed(clip: Tensor, removed: Tensor, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Noisy linear imputation (ROAD, Rong et al. 2022) in space and time: (C, T, H, W) with other values in `removed`.

    A removed voxel (T, H, W) becomes the mean of those next to it in its frame, before and after it, removed ones with
    their new values: one sparse symmetric system, solved by conjugate gradients to a thousandth of the residual. To it
    comes Gaussian noise of standard deviation `noise`.
    """
    inside = removed.to(clip)
    count = _neighbours(torch.ones_like(clip))

    def apply(x: Tensor) -> Tensor:
        return (count * x - _neighbours(x)) * inside

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2, 3), keepdim=True)

    found = clip.mean((1, 2, 3), keepdim=True) * inside
    left = _neighbours(clip * (1 - inside)) * inside - apply(found)
    way, size = left, dot(left, left)
    enough = 1e-6 * size
    for _ in range(1000):
        if bool((size <= enough).all()):
            break
        step = apply(way)
        share = size / dot(way, step).clamp(min=1e-30)
        found, left = found + share * way, left - share * step
        size, before = dot(left, left), size
        way = left + size / before.clamp(min=1e-30) * way
    drawn = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(removed, found + noise * drawn.to(clip), clip)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the up to six voxels next to each one of (C, T, H, W)."""
    total = torch.zeros_like(x)
    for axis in (1, 2, 3):
        n = x.shape[axis] - 1
        total.narrow(axis, 1, n).add_(x.narrow(axis, 0, n))
        total.narrow(axis, 0, n).add_(x.narrow(axis, 1, n))
    return total


def _cell_of(side: int) -> Tensor:
    """(side,): the cell that each pixel of a row belongs to."""
    return torch.arange(side) * min(CELLS, side) // side


# ----------------------------------------------------------------------------------------------- asking the network


def randomised(network: Classifier, clip: Tensor, stages: int = STAGES, seed: int = 0) -> Iterator[Classifier]:
    """A copy of the network, with ever more of its layers initialised anew, from the logits down (Adebayo et al. 2018).

    It is given after each of `stages` (or of its layers, if they are fewer), the last time untrained. The order is that
    in which the layers work on `clip` (1, 3, T, H, W). A layer that cannot initialise itself draws its values from a
    normal distribution as wide as they were. A network without parameters is given once as it is.
    """
    copy = replace(network, module=deepcopy(network.module).eval(), quick=None)
    called: dict[str, int] = {}
    modules = dict(copy.module.named_modules())

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            called.setdefault(name, len(called))

        return hook

    handles = [each.register_forward_hook(note(name)) for name, each in modules.items()]
    with torch.no_grad():
        copy.logits(clip)
    for handle in handles:
        handle.remove()

    def when(name: str) -> int:
        while name and name not in called:  # its weights are used by the module around it
            name = name.rpartition(".")[0]
        return called[name]

    layers = [name for name, each in modules.items() if next(each.parameters(recurse=False), None) is not None]
    layers.sort(key=when, reverse=True)
    for stage, names in enumerate(np.array_split(np.array(layers, object), min(stages, len(layers)) or 1)):
        with torch.random.fork_rng([clip.device] if clip.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed + stage)
            for name in names:
                _initialise(modules[name])
        yield copy


def _initialise(module: nn.Module) -> None:
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        parameter.normal_(0, float(parameter.std(correction=0)))


CURVES = ("deletion", "insertion", "deletion_gain", "insertion_gain", "order_area")
Kind = Literal["", "_time", "_space"]  # what their names end in
RANDOMISED = ("randomisation", "randomisation_spatial", "randomisation_temporal")
NULL = ("null_range", "null_shift", "null_shuffle", "null_untrained")


class Evidence(NamedTuple):
    """What is known of a clip: `mask` (T, H, W) bool of the acting things at source size, `action` (T,) bool."""

    mask: Bools
    action: Bools


class Trial:
    """One clip on which explanations are tried; what does not depend on the explanation is computed once, when needed.

    Args:
        network, clip, target: as in `explain.core.explain`; the target is fixed: the predicted class is one too.
        evidence: where and when the class is to be seen, if that is known.
        baseline: what replaces removed cells (`explain.perturbation.stand_in`).
        frame_baseline: what replaces removed frames: `freeze`, the nearest kept one, and `blur` where none is kept; or
            one of those for cells.
        steps: of a curve over cells; over frames there are T.
        orders: random orders that a curve is compared with.
        chunk: clips in memory at a time, which changes scores by rounding only.

    Raises ValueError as `explain.core.explain`, and for evidence that is not of the clip's size. The network is left as
    it was found.
    """

    def __init__(
        self,
        network: Classifier,
        clip: Clip,
        target: int,
        evidence: Evidence | None = None,
        *,
        baseline: str = "blur",
        frame_baseline: str = "freeze",
        steps: int = 20,
        orders: int = 5,
        seed: int = 0,
        chunk: int = 8,
    ) -> None:
        for name, value in (("steps", steps), ("orders", orders), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}, it must be 1 or more")
        check_frame_baseline(frame_baseline)
        expected = (len(clip.frames), *clip.source_size)
        if evidence and (evidence.mask.shape != expected or evidence.action.shape != expected[:1]):
            raise ValueError(
                f"`evidence` has a mask of shape {evidence.mask.shape} and action of shape {evidence.action.shape}, "
                f"for this clip they must be {expected} and {expected[:1]}"
            )
        with asked(network, clip, target) as (self.network, index):
            self._question = Question(self.network, clip, index)
            self._other = stand_in(self._question.inputs, baseline)
        self.clip, self.target, self.evidence = clip, target, evidence
        self._baseline, self._frame_baseline = baseline, frame_baseline
        self.steps, self.orders, self.seed, self.chunk = steps, orders, seed, chunk
        self._repeated = 0  # evaluations of methods that were run again
        self._seen: dict[bytes, float] = {}  # f by what was removed
        self._chances: dict[str, float] = {}  # by kind

    # ------------------------------------------------------------------------------------------- what all share

    @property
    def evaluations(self) -> int:
        """How many clips went forward through the network so far."""
        return self._question.evaluations + self._repeated

    def probability(self, clips: Tensor) -> NDArray[np.float64]:
        """f (N,) of prepared clips (N, 3, T, H, W)."""
        with undisturbed(self.network.module), torch.no_grad():
            found = [self._question.probability(part).double() for part in clips.split(self.chunk)]
        return torch.cat(found).numpy()

    @cached_property
    def ends(self) -> tuple[float, float]:
        """f(x) and f(b)."""
        full, none = self.probability(torch.cat([self._question.inputs, self._other])).tolist()
        return full, none

    @property
    def scorable(self) -> bool:
        """Whether the class is lost with the clip: f(x) - f(b) > 0.05. Scores that remove parts need it; those of
        frames, unless frozen, need it with the clip in which every frame is replaced for b."""
        return self.ends[0] - self.ends[1] > SCORABLE

    def _applies(self, names: Sequence[str]) -> bool:
        """Whether scores that are taken together are defined for this clip, as far as the network decides it."""
        if SCORES[names[0]].needs != "clip":
            return True
        if self._frame_baseline != "freeze" and {"deletion_time", "frame_effect"} & set(names):
            return self.ends[0] - self._frameless > SCORABLE
        return self.scorable

    def scores(self, explanation: Explanation, names: Iterable[str], again: Again | None = None) -> dict[str, float]:
        """Measures of an explanation of this clip and target, by name of `SCORES`.

        `again` runs the same method with the same target and options on a network and a clip, which some measures need.
        NaN: not defined for this clip, the clip is not scorable, or there is no `evidence` or no `again`. Raises
        ValueError for an unknown name and for an explanation of another clip or class.
        """
        names = list(names)
        for name in names:
            if name not in SCORES:
                raise ValueError(f"there is no score {name!r}: {nearest(name, SCORES)}")
        self._check(explanation)
        found = dict.fromkeys(names, float("nan"))
        with undisturbed(self.network.module):
            for group, measure in self._measures(explanation, again).items():
                needs = SCORES[group[0]].needs
                given = {"evidence": self.evidence, "method": again}.get(needs, True) is not None
                if given and not found.keys().isdisjoint(group) and self._applies(group):
                    found.update((name, float(value)) for name, value in measure().items() if name in found)
        return found

    def _check(self, explanation: Explanation) -> None:
        frames = len(explanation.temporal)
        if explanation.target != self.target or frames != len(self.clip.frames):
            raise ValueError(
                f"the explanation is of class {explanation.target} in {frames} frames, but the trial is about class "
                f"{self.target} in {len(self.clip.frames)} frames"
            )

    def _measures(
        self, explanation: Explanation, again: Again | None
    ) -> dict[tuple[str, ...], Callable[[], dict[str, float]]]:
        """Which names are computed together, and how. All names of a group need the same."""
        volume, frames = _volume(explanation), len(explanation.temporal)

        def rerun(network: Classifier) -> Explanation:
            found = again(network, self.clip)  # type: ignore[misc]
            self._repeated += found.evaluations
            return found

        return {
            tuple(name for name, score in SCORES.items() if score.needs == "evidence"): lambda: self._located(
                explanation, volume
            ),
            _curve_names(""): lambda: self._curves("", self._cells(volume).reshape(1, -1)),
            _curve_names("_time"): lambda: self._curves("_time", weights(explanation)[None]),
            _curve_names("_space"): lambda: self._curves(
                "_space", self._cells(explanation.spatial).reshape(frames, -1)
            ),
            ("frame_effect",): lambda: {"frame_effect": spearman(weights(explanation), self._effects)},
            ("average_drop", "increase"): lambda: self._dropped(volume),
            ("road",): lambda: {"road": self._imputed(self._cells(volume))},
            ("infidelity",): lambda: {"infidelity": self._infidelity(volume)},
            RANDOMISED: lambda: self._randomised(explanation, rerun),
            ("max_sensitivity",): lambda: {"max_sensitivity": self._sensitivity(volume, rerun)},
            NULL: lambda: self._nulls(explanation, rerun),
        }

    # ------------------------------------------------------------------------------------- against known evidence

    def _located(self, explanation: Explanation, volume: Floats) -> dict[str, float]:
        mask, action = self.in_view
        where, when = explanation.spatial.clip(0), weights(explanation, positive=True)
        return {
            "energy": energy_in_mask(where, mask, action),
            "energy_joint": energy_in_tube(volume.clip(0), mask, action),
            "pointing": pointing(explanation.spatial, self._near, action),
            "temporal_auc": temporal_auc(when, action),
            "temporal_argmax": temporal_argmax(when, action),
            "temporal_precision": temporal_precision(when, action),
            "temporal_iou": temporal_iou(when, action),
        }

    @cached_property
    def in_view(self) -> Evidence:
        """The evidence that the network can see; maps cover no more."""
        mask, action = self.evidence  # type: ignore[misc]
        top, left, height, width = self.network.seen(*self.clip.source_size)
        rows, columns = slice(round(top), round(top + height)), slice(round(left), round(left + width))
        return Evidence(mask[:, rows, columns], action)

    @cached_property
    def _near(self) -> Bools:
        mask = self.in_view.mask
        return within_reach(mask, REACH * mask.shape[1])

    # ---------------------------------------------------------------------------------------- deletion, insertion

    def _cells(self, volume: Floats) -> NDArray[np.float64]:
        return cell_means(volume, *self._question.inputs.shape[3:])

    def _curves(self, kind: Kind, relevance: Floats) -> dict[str, float]:
        """The five scores of a kind, for the relevance (rows, n) of the units within each row.

        What is left when the k most relevant ones are put into the baseline clip is what is left when the n - k least
        relevant ones are removed. So insertion is deletion in the opposite order, and INS - DEL the area between both.
        """
        place = places(relevance, self.seed)
        deletion, insertion = self._deleted(kind, np.stack([place, place.shape[1] - 1 - place]))
        chance = self._chance(kind, place.shape)
        found = (deletion, insertion, chance - deletion, insertion - chance, insertion - deletion)
        return dict(zip(_curve_names(kind), found, strict=True))

    def _chance(self, kind: Kind, shape: tuple[int, ...]) -> float:
        """Mean area over random orders; opposite ones are as random, so that it is of deletion and of insertion."""
        if kind not in self._chances:
            rng = np.random.default_rng(self.seed)
            orders = np.stack([rng.random(shape).argsort(-1) for _ in range(self.orders)])
            self._chances[kind] = float(self._deleted(kind, orders).mean())
        return self._chances[kind]

    def _deleted(self, kind: Kind, place: NDArray[np.int64]) -> NDArray[np.float64]:
        """Areas (P,) under f over the share that is removed, in P orders of n units in each row: place (P, rows, n)."""
        n = place.shape[-1]
        counts = np.round(np.linspace(0, n, (n if kind == "_time" else min(self.steps, n)) + 1)).astype(int)
        removed = place[:, None] < counts[1:-1, None, None]  # (P, steps - 1, rows, n)
        inner = self._without(removed.reshape(-1, *place.shape[1:]), kind == "_time").reshape(len(place), -1)
        full, none = self.ends
        none = self._frameless if kind == "_time" else none
        return np.array([area(np.array([full, *each, none]), counts / n) for each in inner])

    @cached_property
    def _frameless(self) -> float:
        """f where no frame is kept."""
        baseline = "blur" if self._frame_baseline == "freeze" else self._frame_baseline
        if self._baseline == baseline:
            return self.ends[1]
        return float(self.probability(stand_in(self._question.inputs, baseline))[0])

    def _without(self, removed: Bools, whole_frames: bool) -> NDArray[np.float64]:
        """f (N,) of the clip without some of its cells (N, rows, n), all of a frame after those before it, or without
        some of its frames (N, 1, T). What was asked before is known."""
        keys = [bytes([whole_frames]) + np.packbits(each).tobytes() for each in removed]
        new = {key: i for i, key in enumerate(keys) if key not in self._seen}
        if new:
            masks = torch.from_numpy(removed[list(new.values())])
            found = self._without_frames(masks[:, 0]) if whole_frames else self._without_cells(masks)
            self._seen.update(zip(new, found.tolist(), strict=True))
        return np.array([self._seen[key] for key in keys])

    def _without_frames(self, removed: Tensor) -> NDArray[np.float64]:
        return of_frames(self._question, ~removed, self._frame_baseline, self.chunk, silent).numpy()

    def _without_cells(self, removed: Tensor) -> NDArray[np.float64]:
        other, inputs = self._other, self._question.inputs
        parts = (self._voxels(part).to(other.device) for part in removed.split(self.chunk))
        return np.concatenate([self.probability(torch.where(part, other, inputs)) for part in parts])

    def _voxels(self, cells: Tensor) -> Tensor:
        """Cells (N, ...), those of a frame after those of the one before -> (N, 1, T, H, W)."""
        frames, *sides = self._question.inputs.shape[2:]
        rows, columns = (_cell_of(side) for side in sides)
        grid = cells.reshape(len(cells), 1, frames, int(rows[-1]) + 1, int(columns[-1]) + 1)
        return grid[..., rows[:, None], columns]

    # ------------------------------------------------------------------------------ other ways to take parts away

    @cached_property
    def _effects(self) -> NDArray[np.float64]:
        """(T,) what f loses when one frame is replaced."""
        return self.ends[0] - self._without(np.eye(len(self.clip.frames), dtype=bool)[:, None], True)

    def _dropped(self, volume: Floats) -> dict[str, float]:
        """Of one clip (Chattopadhay et al. 2018): max(0, f(x) - f(S x)) / f(x), and whether f(S x) > f(x)."""
        positive = torch.from_numpy(resize_maps(volume.clip(0), *self._question.inputs.shape[3:]))
        share = (positive / positive.max().clamp(min=1e-30)).to(self._other.device)
        kept = self.probability(share * self._question.inputs)[0]
        return {"average_drop": max(0.0, self.ends[0] - kept) / self.ends[0], "increase": float(kept > self.ends[0])}

    def _imputed(self, cells: Floats) -> float:
        """ROAD: the area between f without the least and f without the most relevant cells, over shares of 10 to 90 %,
        per share."""
        place = places(cells.reshape(1, -1), self.seed)
        n, inputs = place.shape[1], self._question.inputs[0]
        counts = np.round(REMOVED * n).astype(int)[:, None, None]
        masks = self._voxels(torch.from_numpy(np.concatenate([place < counts, place >= n - counts])))[:, 0]
        noise = 0.01 * float(inputs.std())
        f = np.array([self.probability(imputed(inputs, each.to(inputs.device), noise)[None])[0] for each in masks])
        most, least = f.reshape(2, -1)
        return area(least - most, REMOVED) / (REMOVED[-1] - REMOVED[0])

    def _infidelity(self, volume: Floats) -> float:
        from explain.attribution import infidelity  # captum takes a second to import

        return infidelity(
            self._question.probability, self._question.inputs, self._other, volume, chunk=self.chunk, seed=self.seed
        )

    # ------------------------------------------------------------------------------------ running the method again

    def _given(self, inputs: Tensor) -> Classifier:
        """The network with other prepared `inputs` (1, 3, T, H, W) in place of this clip's."""
        return replace(self.network, preprocess=lambda _: inputs.clone())

    def _randomised(self, explanation: Explanation, rerun: Rerun) -> dict[str, float]:
        """Mean correlation of S, M_s and M_t with their own over a network that is randomised layer by layer."""
        found = []
        for network in randomised(self.network, self._question.inputs, seed=self.seed):
            other = rerun(network)
            other = replace(other, spatial=resize_maps(other.spatial, *explanation.spatial.shape[1:]))
            pairs = [(_volume(each), each.spatial, weights(each)) for each in (explanation, other)]
            found.append([unchanged(before, after) for before, after in zip(*pairs, strict=True)])
        return dict(zip(RANDOMISED, np.mean(found, 0).tolist(), strict=True))

    def _sensitivity(self, volume: Floats, rerun: Rerun) -> float:
        from explain.attribution import max_sensitivity

        def explained(inputs: Tensor) -> NDArray[np.float32]:
            return resize_maps(_volume(rerun(self._given(inputs))), *volume.shape[1:])

        return max_sensitivity(explained, self._question.inputs, volume, seed=self.seed)

    def _nulls(self, explanation: Explanation, rerun: Rerun) -> dict[str, float]:
        """M_t where nothing happens, of the clip a quarter later, of the clip with its pixels in a random order (the
        same in each frame), and of an untrained network."""
        inputs, before = self._question.inputs, weights(explanation)
        frames, by = inputs.shape[2], max(1, inputs.shape[2] // 4)
        middle = torch.full((frames,), frames // 2)
        later = (torch.arange(frames) + by).clamp(max=frames - 1)
        order = torch.randperm(inputs[0, 0, 0].numel(), generator=torch.Generator().manual_seed(self.seed))
        shuffled = inputs.flatten(3)[..., order.to(inputs.device)].view(inputs.shape)
        still, moved = (rerun(self._given(inputs[:, :, at])) for at in (middle, later))
        *_, untrained = randomised(self.network, inputs, 1, self.seed)
        low, high = explanation.temporal_scale
        found = (
            float(np.ptp(still.temporal)) / (high - low),
            unchanged(before[by:], weights(moved)[: frames - by]),
            unchanged(before, weights(rerun(self._given(shuffled)))),
            unchanged(before, weights(rerun(untrained))),
        )
        return dict(zip(NULL, found, strict=True))


def weights(explanation: Explanation, positive: bool = False) -> NDArray[np.float64]:
    """What frames are ranked by, (T,): M_t, but of a map with a sign the sum of each frame of S, or of its positive
    part. M_t itself is there the sum of magnitudes, in which what speaks against the class counts like what is for it.
    """
    if not explanation.signed or not explanation.has_places:
        return explanation.temporal.astype(np.float64)
    volume = _volume(explanation)
    return (volume.clip(0) if positive else volume).sum((1, 2))


def _volume(explanation: Explanation) -> NDArray[np.float64]:
    return explanation.temporal[:, None, None].astype(np.float64) * explanation.spatial


def _curve_names(kind: Kind) -> tuple[str, ...]:
    return tuple(f"{name}{kind}" for name in CURVES)
