"""Explanations by class activation maps, and the controls that need no network; what all methods share.

A method is a function `(network, clip, target, **options) -> Explanation` (see `explain.core`). Except for our own
attention, each makes one volume S and `Question.explanation` splits it into the two factors:

- S (T, h, w): M_t[t] is the sum of |S[t]| and M_s[t] = S[t] / M_t[t], so that M_t * M_s is S again, in the method's
  own units. M_s has the sign where there is one. The sum of a frame that is weak beside the strongest is raised
  towards `WEAK` of that one's, in the same order, or the noise of such a frame would be drawn as a pattern. A frame
  without any S has M_t = 0 and M_s = 0.
- S (T, 1, 1), one weight for a frame: M_t is that weight with its sign and M_s is 1, drawn as no colour.
- Colours end at the 99th percentile of |M_s| in the frame where |S| is largest, once for the clip: neither a weaker
  frame nor a single pixel stretches the scale.

Shapes in comments: C channels, T frames of the clip, t, h, w cells of a layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from explain.core import Explanation, asked
from explain.models import Classifier, activation_and_gradient, at_cam_layer, layers
from stabn.video import Clip

CELLS = 14  # of the controls, per side: the unit in which deletion and insertion remove a clip's parts
WEAK = 0.05  # of the strongest frame's sum


class Question:
    """What is asked of a network about one clip: the prepared `inputs` (1, 3, T, H, W), and what it cost so far."""

    def __init__(self, network: Classifier, clip: Clip, target: int | None) -> None:
        self.started = time.perf_counter()
        self.network, self.clip, self._target = network, clip, target
        self.inputs = network.clip(clip.frames)
        self.prepared = time.perf_counter()
        self.evaluations = 0  # clips that went forward through the network

    def logits(self, clips: Tensor, *, exact: bool = True) -> Tensor:
        """Clips (N, 3, T, H, W) -> logits (N, K), counted; see `Classifier.logits`."""
        self.evaluations += len(clips)
        return self.network.logits(clips, exact=exact)

    def answered(self, logits: Tensor) -> None:
        """Takes the logits (1, K) of a forward pass that was made anyway."""
        self.probabilities = logits[0].detach().float().softmax(0).cpu().numpy()

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(K,) of the clip, by a forward pass of its own unless they are known."""
        with torch.no_grad():
            self.answered(self.logits(self.inputs))
        return self.probabilities

    @property
    def target(self) -> int:
        """The class that is asked about: the given one, or the predicted one."""
        return int(self.probabilities.argmax()) if self._target is None else self._target

    def probability(self, clips: Tensor) -> Tensor:
        """f: the target's probability (N,) for clips (N, 3, T, H, W), on the CPU; with gradient where it is enabled."""
        return self.logits(clips, exact=False).float().softmax(1)[:, self.target].cpu()

    def explanation(
        self,
        method: str,
        volume: Tensor | NDArray[np.floating[Any]],
        *,
        signed: bool = False,
        class_agnostic: bool = False,
        notes: Sequence[str] = (),
    ) -> Explanation:
        """The Explanation of a volume S (t, h, w), with t <= T: between its steps it is linear in time."""
        found = torch.as_tensor(volume).detach().cpu().double()
        said = [*self.clip.notes, *notes]
        if len(found) == 1 < self.network.frames:
            said.append(f"constant over time: what it is made from has one step for all {self.network.frames} frames")
        if not found.any():
            said.append(f"blank: nothing speaks for {self.network.classes[self.target]!r}, the map is zero everywhere")
        spatial, temporal, scale = factors(in_time(found, self.network.frames).numpy(), signed)
        return Explanation(
            method=method,
            target=self.target,
            classes=list(self.network.classes),
            probabilities=self.probabilities,
            spatial=spatial,
            temporal=temporal,
            timestamps=self.clip.timestamps,
            frame_indices=self.clip.frame_indices,
            source_size=self.clip.source_size,
            view=self.network.seen(*self.clip.source_size),
            scale=scale,
            class_agnostic=class_agnostic,
            signed=signed,
            notes=tuple(said),
            timings={"preprocess": self.prepared - self.started, "network": time.perf_counter() - self.prepared},
            evaluations=self.evaluations,
        )


def in_time(volume: Tensor, frames: int) -> Tensor:
    """(t, h, w) -> (T, h, w): linear between the centres of the steps, constant beyond, as `core.place` in space."""
    if len(volume) == frames:
        return volume
    rows = volume.flatten(1).T[None]  # (1, h * w, t)
    return F.interpolate(rows, frames, mode="linear").squeeze(0).T.reshape(frames, *volume.shape[1:])


def factors(
    volume: NDArray[np.float64], signed: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """S (T, h, w) -> M_s (T, h, w), M_t (T,) and the scale of M_s, as the head of this file says."""
    if volume.shape[1:] == (1, 1):
        # Transparent is the middle of a signed scale and the low end of another: there is no place to paint.
        scale = (0.0, 2.0) if signed else (1.0, 2.0)
        return np.ones(volume.shape, np.float32), volume[:, 0, 0].astype(np.float32), scale
    size = np.abs(volume)
    sums = size.sum((1, 2))
    temporal = np.where(sums > 0, np.hypot(sums, WEAK * sums.max()), 0)
    spatial = volume / np.where(sums > 0, temporal, 1)[:, None, None]
    peak = np.abs(spatial[size.max((1, 2)).argmax()])
    high = float(np.quantile(peak, 0.99, method="higher")) or float(peak.max()) or 1.0
    return spatial.astype(np.float32), temporal.astype(np.float32), (-high if signed else 0.0, high)


# -------------------------------------------------------------------------------------------------- controls


def random(network: Classifier, clip: Clip, target: int | None, *, seed: int = 0) -> Explanation:
    """A control: uniform noise for each cell times uniform noise for each frame."""
    rng = np.random.default_rng(seed)
    volume = rng.random((network.frames, 1, 1)) * rng.random((network.frames, CELLS, CELLS))
    return Question(network, clip, target).explanation("random", volume, class_agnostic=True)


def centre_maps(frames: int, height: int, width: int) -> NDArray[np.float32]:
    """A Gaussian in the middle of every frame, its sigma a quarter of the side: the control of a centre bias."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    one = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.25**2))
    return np.repeat(one[None], frames, 0).astype(np.float32)


def centre(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """A control: a Gaussian in the middle of space and time, its sigma a quarter of each."""
    when = centre_maps(1, 1, network.frames)[0, 0]
    volume = when[:, None, None] * centre_maps(network.frames, CELLS, CELLS)
    return Question(network, clip, target).explanation("centre", volume, class_agnostic=True)


def frame_difference(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """A control: |x_t - x_{t-1}| of the prepared clip, mean over its channels; the first frame takes the second's."""
    question = Question(network, clip, target)
    change = question.inputs[0].diff(dim=1).abs().mean(0)  # (T - 1, H, W)
    first = change[:1] if len(change) else torch.zeros_like(question.inputs[0, 0])
    return question.explanation("frame_difference", torch.cat([first, change]), class_agnostic=True)


# ------------------------------------------------------------------------------------- class activation maps
# From the features A and the gradient G = d logit / d A of one layer, (C, t, h, w) each, to S (t, h, w).


def _grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((1, 2, 3), keepdim=True) * a).sum(0)


def _grad_cam_per_frame(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((2, 3), keepdim=True) * a).sum(0)


def _grad_cam_pp(a: Tensor, g: Tensor) -> Tensor:
    # Equation 19 for exp(logit), whose derivatives are exp(logit) g^n: divided by 2 and 3 of them, and by g^2.
    denominator = 2 + a.sum((1, 2, 3), keepdim=True) * g
    alpha = 1 / torch.where(denominator == 0, 1, denominator)
    return ((alpha * g.relu()).sum((1, 2, 3), keepdim=True) * a).sum(0)


def _layer_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g.relu() * a).sum(0)


def _hires_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum(0)


CAMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": _grad_cam,
    "grad_cam_per_frame": _grad_cam_per_frame,
    "grad_cam_pp": _grad_cam_pp,
    "layer_cam": _layer_cam,
    "hires_cam": _hires_cam,
}


def _cams(
    network: Classifier, clip: Clip, target: int | None, names: Sequence[str], layer: str | None
) -> list[Explanation]:
    question = Question(network, clip, target)
    question.evaluations += 1
    logits, activation, gradient = at_cam_layer(network, question.inputs, layer, target)
    question.answered(logits)
    return [question.explanation(name, CAMS[name](activation, gradient).relu()) for name in names]


def all_cams(
    model: Any,
    clip: Clip,
    target: int | str | None = None,
    *,
    methods: Sequence[str] = tuple(CAMS),
    layer: str | None = None,
) -> dict[str, Explanation]:
    """Several of `CAMS` from one forward pass and one gradient; otherwise as `explain.explain`."""
    with asked(model, clip, target) as (network, index):
        return dict(zip(methods, _cams(network, clip, index, methods, layer), strict=True))


def grad_cam(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """ReLU(sum_c w_c A_c), w_c the mean of G_c over space and time (Selvaraju et al. 2017)."""
    return _cams(network, clip, target, ["grad_cam"], layer)[0]


def grad_cam_per_frame(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """Grad-CAM with w_c[t] the mean of G_c[t] over space, for each step in time (as in SlowFast, Fan et al. 2020)."""
    return _cams(network, clip, target, ["grad_cam_per_frame"], layer)[0]


def grad_cam_pp(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """Grad-CAM++: w_c the sum of ReLU(G_c), weighed by second and third derivatives (Chattopadhay et al. 2018)."""
    return _cams(network, clip, target, ["grad_cam_pp"], layer)[0]


def layer_cam(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """ReLU(sum_c ReLU(G_c) A_c), a weight for each cell (Jiang et al. 2021)."""
    return _cams(network, clip, target, ["layer_cam"], layer)[0]


def hires_cam(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """ReLU(sum_c G_c A_c) (Draelos & Carin 2020)."""
    return _cams(network, clip, target, ["hires_cam"], layer)[0]


def cam(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """ReLU(sum_c w_c A_c), w the class's weights in the last linear layer (Zhou et al. 2016).

    For networks that end in global average pooling of A and one linear layer, else ValueError with the reason.
    """
    question = Question(network, clip, target)
    ends: list[tuple[nn.Linear, Tensor, Tensor]] = []  # linear layers with what they were given and gave

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            ends.append((module, inputs[0].detach(), output.detach()))

    grids = layers(network, question.inputs)
    name = next((name for name in reversed(grids) if np.prod(grids[name]) > 1), None)
    if name is None:
        raise ValueError("cam needs a layer with a grid of cells, and this network has none for this clip")
    linear = [each for each in network.module.modules() if isinstance(each, nn.Linear)]
    handles = [each.register_forward_hook(keep) for each in linear]
    try:
        question.evaluations += 2
        logits, activation, _ = activation_and_gradient(network, question.inputs, name, target)
    finally:
        for handle in handles:
            handle.remove()
    scores = [(end, given) for end, given, gave in ends if gave.shape == logits.shape and torch.equal(gave, logits)]
    if not scores:
        raise ValueError("cam needs the weights of a linear layer that gives the logits, and this network has none")
    end, given = scores[-1]
    mean = activation.mean((1, 2, 3))
    if given.numel() != len(mean) or not torch.allclose(given.flatten(), mean, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"cam needs global average pooling straight before the linear layer, and in this network that layer is "
            f"given something else than the mean of {name!r}: grad_cam needs no pooling"
        )
    question.answered(logits)
    weights = end.weight.detach()[question.target]
    return question.explanation("cam", torch.einsum("c,cthw->thw", weights, activation).relu())
