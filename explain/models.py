"""Any video classifier seen in one way: `Classifier` says what it needs of a clip and gives logits.

    Classifier(r3d_18(), names, frames=16, preprocess=resized((112, 112)))

A method gets a `Classifier` and works on clips (N, 3, T, H, W) whatever the network itself takes. Nothing here
or in the methods changes the network: `undisturbed` puts modes and flags back, hooks are taken off in `finally`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from explain.core import nearest
from stabn.model import STABN, Box

Frames = NDArray[np.uint8]
Size = tuple[int, int, int]  # T, H, W of a clip, or t, h, w of a grid of features
TOO_SMALL = re.compile(r"kernel size can't be greater|output size is too small|smaller than kernel", re.IGNORECASE)


def whole(height: int, width: int) -> Box:
    """The view of a network that sees all of a frame."""
    return Box(0.0, 0.0, float(height), float(width))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with what it needs of a clip. Attributes:

    module: maps float clips (N, 3, T, h, w), or (N, T, 3, h, w), to logits (N, K), or to an output with `.logits`.
    classes: the K names.
    frames: T.
    preprocess: uint8 RGB frames (T, H, W, 3) -> float clip (1, 3, T, h, w), whatever the layout; `resized` makes one.
    seen: (H, W) of a source frame -> the part of it that reaches the network, in its pixels.
    layout: the order of the module's input.
    layer: name of the layer that the CAM methods look at; None: the last one with a spatial grid, see `cam_layer`.
    """

    module: nn.Module
    classes: Sequence[str]
    frames: int
    preprocess: Callable[[Frames], Tensor]
    seen: Callable[[int, int], Box] = whole
    layout: Literal["NCTHW", "NTCHW"] = "NCTHW"
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("NCTHW", "NTCHW"):
            raise ValueError(f"`layout` must be NCTHW or NTCHW, got {self.layout!r}")

    def clip(self, frames: Frames) -> Tensor:
        """uint8 RGB (T, H, W, 3) -> float (1, 3, T, h, w) on the network's device; ValueError if it is not."""
        clip = self.preprocess(frames)
        if clip.ndim != 5 or clip.shape[:3] != (1, 3, self.frames) or not clip.is_floating_point():
            raise ValueError(
                f"`preprocess` must give a float clip of shape (1, 3, {self.frames}, h, w), "
                f"got {clip.dtype} {tuple(clip.shape)}"
            )
        weight = next(self.module.parameters(), clip)
        return clip.to(weight.device)

    def logits(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, h, w) -> logits (N, K). Raises ValueError for another output and for a clip too small."""
        try:
            output = self.module(clips if self.layout == "NCTHW" else clips.transpose(1, 2))
        except RuntimeError as error:
            if not TOO_SMALL.search(str(error)):
                raise
            size = " x ".join(map(str, clips.shape[2:]))
            raise ValueError(
                f"a clip of {size} (frames x height x width) is too small for this network, give it more: {error}"
            ) from error
        logits = getattr(output, "logits", output)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (len(clips), len(self.classes)):
            raise ValueError(
                f"the network must give logits of shape ({len(clips)}, {len(self.classes)}), one for each of its "
                f"{len(self.classes)} classes, but gave {shape}"
            )
        return logits


def resized(
    size: tuple[int, int],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Callable[[Frames], Tensor]:
    """A `preprocess` that squeezes whole frames to `size` (h, w), antialiased; `mean` and `std` are of RGB in 0..1."""

    def preprocess(frames: Frames) -> Tensor:
        pixels = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2)
        clip = torch.cat(
            [F.interpolate(frame[None].float(), size, mode="bilinear", antialias=True) for frame in pixels]
        )
        centre, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
        return ((clip / 255 - centre) / spread).transpose(0, 1)[None].contiguous()

    return preprocess


def classifier(model: Any) -> Classifier:
    """A model as a `Classifier`: our network knows all that it takes, others are wrapped by who knows them."""
    if isinstance(model, Classifier):
        return model
    if isinstance(model, STABN):
        return Classifier(model, model.classes, model.config.frames, model.preprocess, model.seen)
    raise TypeError(
        f"`model` is a {type(model).__name__}, which does not say how it takes clips: wrap it as "
        "explain.models.Classifier(module, classes, frames, preprocess=explain.models.resized((height, width)))"
    )


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode, parameters frozen, gradients possible; afterwards each mode and flag is as it was."""
    modes = [(each, each.training) for each in module.modules()]  # some may have been frozen on purpose
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for each, training in modes:
            each.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)


# ------------------------------------------------------------------------------------- features as a grid


def grid(output: Any, size: Size) -> Tensor | None:
    """What a layer gave for one clip of `size`, as features on a grid (1, C, t, h, w); None if it has no grid.

    Convolutions give (1, C, t, h, w); 2D ones on each frame (T, C, h, w); transformers (1, t, h, w, C) or tokens
    (1, t*h*w, C), or one more with a class token, alone or beside their grid (t, h, w). An order of axes is taken
    if its grid has at most the clip's frames and the clip's proportions.
    """
    x = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if x.ndim == 5 and len(x) == 1 and _fits(x.shape[2:], size):
        return x
    if x.ndim == 5 and len(x) == 1 and _fits(x.shape[1:4], size):
        return x.movedim(-1, 1)
    if x.ndim == 4 and len(x) == size[0] and _fits((len(x), *x.shape[2:]), size):
        return x.movedim(0, 1)[None]
    if x.ndim == 3 and len(x) == 1:
        tokens = _token_grid(output, x.shape[1], size)
        if tokens:
            return x[:, -prod(tokens) :].unflatten(1, tokens).movedim(-1, 1)
    return None


def _fits(cells: Sequence[int], size: Size) -> bool:
    (t, h, w), (frames, height, width) = cells, size
    # Padding may add a cell; both sides must be reduced alike, up to a cell lost in rounding.
    small = 1 <= t <= frames + 1 and 1 <= h <= height + 1 and 1 <= w <= width + 1
    return small and abs(h / height - w / width) * max(height, width) < 1


def _token_grid(output: Any, count: int, size: Size) -> Size | None:
    """(t, h, w) of `count` tokens; without being told, the one with most frames and the clip's proportions."""
    frames, height, width = size
    if isinstance(output, tuple | list) and len(output) > 1 and isinstance(output[1], tuple | list):
        told = tuple(output[1])
        if len(told) == 3 and all(isinstance(side, int) for side in told) and count - prod(told) in (0, 1):
            return told
    for tokens in (count, count - 1):
        for t in range(frames, 0, -1):
            h = round((tokens / t * height / width) ** 0.5)
            if h and tokens % (t * h) == 0 and _fits((t, h, tokens // (t * h)), size) and h * tokens // (t * h) > 1:
                return t, h, tokens // (t * h)
    return None


def layers(network: Classifier, clip: Tensor) -> dict[str, Size]:
    """The layers that give a grid for this clip (1, 3, T, H, W), in the order of their last call: name -> (t, h, w)."""
    found: dict[str, Size] = {}
    size = _size(clip)

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            features = grid(output, size)
            if features is not None:
                found.pop(name, None)
                found[name] = _size(features)

        return hook

    handles = [each.register_forward_hook(watch(name)) for name, each in network.module.named_modules() if name]
    try:
        with torch.no_grad():
            network.logits(clip)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _size(x: Tensor) -> Size:
    return x.shape[2], x.shape[3], x.shape[4]


# The dry run is for a network and the shape of a clip, not for each clip; nothing here keeps a network alive.
_CHOSEN: WeakKeyDictionary[nn.Module, dict[Size, str]] = WeakKeyDictionary()


def cam_layer(network: Classifier, clip: Tensor, name: str | None = None) -> str:
    """The layer that CAM methods look at: `name`, else `network.layer`, else the last with a grid above 1 x 1.

    The last is found by a dry run with this clip (1, 3, T, H, W), once for its shape. Where a class token follows
    the grid, the last layer is that through which the grid reaches the logits. Raises ValueError.
    """
    name = name or network.layer
    names = dict(network.module.named_modules())
    if name:
        if name not in names:
            raise ValueError(f"there is no layer {name!r}: {nearest(name, filter(None, names))}")
        return name
    chosen = _CHOSEN.setdefault(network.module, {})
    if chosen.get(_size(clip)) not in names:
        wide = [name for name, (_, h, w) in layers(network, clip).items() if h * w > 1]
        found = next((name for name in reversed(wide) if _matters(network, clip, name)), None)
        if found is None:
            raise ValueError(
                f"no layer of this network has a grid of more than 1 x 1 cells for frames of {clip.shape[3]} x "
                f"{clip.shape[4]} pixels that leads to its logits: give it larger frames"
            )
        chosen[_size(clip)] = found
    return chosen[_size(clip)]


def _matters(network: Classifier, clip: Tensor, name: str) -> bool:
    """Whether the grid of this layer has a gradient: the tokens beside a class token have none after the last
    attention, and an auxiliary head leads nowhere."""
    try:
        _, _, gradient = activation_and_gradient(network, clip, name)
    except ValueError:
        return False
    return gradient.count_nonzero().item() > 0


def activation_and_gradient(
    network: Classifier, clip: Tensor, name: str, target: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass and the gradient of one activation, nothing before it: logits (1, K), and the features of the
    layer `name` and d logit / d features, (C, t, h, w) each. Without a `target` the best class is taken.

    Raises ValueError where the layer has no grid, was not called, or does not lead to the logits.
    """
    output: Any = None
    leaf: Tensor | None = None

    def cut(module: nn.Module, inputs: Any, given: Any) -> Any:
        nonlocal output, leaf
        several = isinstance(given, tuple | list)
        x = given[0] if several else given
        if not isinstance(x, Tensor):
            return None
        output, leaf = given, x.detach().requires_grad_()
        after = leaf.clone()  # what follows may change its input in place
        return type(given)((after, *given[1:])) if several else after

    def features(x: Tensor) -> Tensor:
        found = grid((x, *output[1:]) if isinstance(output, tuple | list) else x, _size(clip))
        if found is None:
            raise ValueError(
                f"layer {name!r} gives {tuple(x.shape)}, no grid of frames, rows and columns for a clip of "
                f"{tuple(clip.shape)}: {_some(network, clip)}"
            )
        return found[0]

    handle = network.module.get_submodule(name).register_forward_hook(cut)
    try:
        logits = network.logits(clip)
    finally:
        handle.remove()
    if leaf is None:
        raise ValueError(f"layer {name!r} takes no part in the forward pass: {_some(network, clip)}")
    activation = features(leaf.detach())
    score = logits[0, int(logits[0].argmax()) if target is None else target]
    gradient = torch.autograd.grad(score, leaf, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise ValueError(f"layer {name!r} does not lead to the logits: {_some(network, clip)}")
    return logits.detach(), activation, features(gradient)


def _some(network: Classifier, clip: Tensor) -> str:
    return "choose one of " + ", ".join(list(layers(network, clip))[-5:])
