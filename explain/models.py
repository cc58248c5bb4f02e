"""Any video classifier seen in one way: `Classifier` says what it needs of a clip and gives logits.

    Classifier(r3d_18(), names, frames=16, preprocess=resized((112, 112)))
    open_model("torchvision:r3d_18"), open_model("package.module:build", weights=Path(...), classes=Path(...))

A method gets a `Classifier` and works on clips (N, 3, T, H, W) whatever the network itself takes. Nothing here
or in the methods changes the network: `undisturbed` puts modes and flags back, hooks are taken off in `finally`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from explain.core import nearest
from stabn.checkpoint import pick_device
from stabn.foreign import downloaded, line, read_state
from stabn.model import STABN, Box
from stabn.video import Clip, PathLike, VideoInfo, read_clip

Frames = NDArray[np.uint8]
Size = tuple[int, int, int]  # T, H, W of a clip, or t, h, w of a grid of features
TOGETHER = 8  # clips in one pass of a compiled network
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
    size: short side in pixels at which frames are best read from a video; None: the source's own.
    sampling: which T frames of a video it takes, as `stabn.read_clip` knows it.
    precision: "bf16" makes passes without gradient, and those of masks that are learnt, under autocast in bfloat16:
        faster, and within about 1 % of fp32. Gradients that are themselves the explanation stay fp32.
    quick: the module in a form that is faster where neither gradients nor hooks are needed, as when parts of a clip
        are replaced and only the answer counts; `compiled` makes one.
    """

    module: nn.Module
    classes: Sequence[str]
    frames: int
    preprocess: Callable[[Frames], Tensor]
    seen: Callable[[int, int], Box] = whole
    layout: Literal["NCTHW", "NTCHW"] = "NCTHW"
    layer: str | None = None
    size: int | None = None
    sampling: Literal["spread", "middle"] = "spread"
    precision: Literal["fp32", "bf16"] = "fp32"
    quick: Callable[[Tensor], Any] | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"`precision` must be fp32 or bf16, got {self.precision!r}")
        if self.layout not in ("NCTHW", "NTCHW"):
            raise ValueError(f"`layout` must be NCTHW or NTCHW, got {self.layout!r}")

    def read(self, path: PathLike | VideoInfo, window: tuple[float, float] | None = None) -> Clip:
        """The clip of a video, or of its window (start, end) in seconds, that the network takes. Raises VideoError."""
        return read_clip(path, self.frames, size=self.size, window=window, sampling=self.sampling)

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

    def logits(self, clips: Tensor, *, exact: bool = True) -> Tensor:
        """Clips (N, 3, T, h, w) -> logits (N, K). Raises ValueError for another output and for a clip too small.

        `exact`: a pass with gradient is made in fp32 whatever `precision` says.
        """
        half = self.precision == "bf16" and not (exact and torch.is_grad_enabled())
        module = self.module if exact or torch.is_grad_enabled() or self.quick is None else self.quick
        if half:
            clips = clips.contiguous(memory_format=torch.channels_last_3d)  # else it is slower than fp32
        try:
            with torch.autocast(clips.device.type, torch.bfloat16) if half else nullcontext():
                output = module(clips if self.layout == "NCTHW" else clips.transpose(1, 2))
        except RuntimeError as error:
            if not TOO_SMALL.search(str(error)):
                raise
            size = " x ".join(map(str, clips.shape[2:]))
            raise ValueError(
                f"a clip of {size} (frames x height x width) is too small for this network, give it more: {error}"
            ) from error
        logits = getattr(output, "logits", output)
        logits = logits.float() if half and isinstance(logits, Tensor) else logits
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (len(clips), len(self.classes)):
            raise ValueError(
                f"the network must give logits of shape ({len(clips)}, {len(self.classes)}), one for each of its "
                f"{len(self.classes)} classes, but gave {shape}"
            )
        return logits


def compiled(network: Classifier) -> Classifier:
    """The network with a `quick` form of its module by torch.compile, which folds what is constant at inference.

    In bfloat16 on a CPU it takes two thirds of the time; making it takes seconds. Where that is of no use or fails (no
    C++ compiler, a network that cannot be traced), the network is given as it is.
    """
    from torch._inductor import config as inductor  # takes seconds to import

    weight = next(network.module.parameters(), None)
    if network.precision != "bf16" or weight is None or weight.device.type != "cpu":
        return network
    folded = torch.compile(network.module, dynamic=False)

    def quick(clips: Tensor) -> Tensor:
        # Only for one number of clips is it fast; fewer are filled up, or left to the module itself.
        parts = []
        for part in clips.split(TOGETHER):
            missing = TOGETHER - len(part)
            full = torch.cat([part, part[-1:].expand(missing, -1, -1, -1, -1)]) if missing else part
            full = full.contiguous(memory_format=torch.channels_last_3d)
            with inductor.patch(freezing=True, compile_threads=1):  # no processes that would outlive this one
                output = network.module(part) if missing > TOGETHER // 2 else folded(full)
            parts.append(getattr(output, "logits", output)[: len(part)])
        return torch.cat(parts)

    side = network.size or 224
    found = replace(network, quick=quick)
    try:
        with undisturbed(network.module), torch.no_grad():
            clip = network.clip(np.zeros((network.frames, side, side, 3), np.uint8))
            found.logits(clip.repeat(TOGETHER, 1, 1, 1, 1), exact=False)
    except Exception:  # whatever a compiler can raise: it is only for speed
        return network
    return found


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
        config, takes = model.config, (model.preprocess, model.seen)
        return Classifier(model, model.classes, config.frames, *takes, size=config.size, sampling=config.sampling)
    raise TypeError(
        f"`model` is a {type(model).__name__}, which does not say how it takes clips: wrap it as "
        "explain.models.Classifier(module, classes, frames, preprocess=explain.models.resized((height, width)))"
    )


# ------------------------------------------------------------------------------------- models by name

TORCHVISION = {  # name: frames of a clip
    "r3d_18": 16,
    "mc3_18": 16,
    "r2plus1d_18": 16,
    "s3d": 32,  # 14 at least, and each step of its last grid is made from 8
    "mvit_v2_s": 16,
    "swin3d_t": 32,
}
FRAMES, SIZE = 16, 112  # of one's own model, unless it says otherwise


def open_model(
    spec: str,
    *,
    weights: Path | None = None,
    classes: Path | None = None,
    layout: str | None = None,
    frames: int | None = None,
    size: int | None = None,
    layer: str | None = None,
    device: str = "auto",
) -> Classifier:
    """A classifier by name, tried once on a black clip, in eval mode on `device`.

    `spec` is "torchvision:NAME", one of `TORCHVISION`, with torchvision's weights (downloaded once), class names and
    transforms; or "package.module:build", a function without arguments, imported with the current folder on the path,
    that gives the nn.Module, or a `Classifier` for one with a preprocessing of its own. `weights` is a state dict in a
    file of safetensors or of torch.save, which is read without running code (`weights_only`). `classes` is a text file
    with a name on each line, or JSON: a list, or a dictionary of index and name. `layout` is NCTHW unless given,
    `frames` and `size` (of the square that the network sees, in pixels) are 16 and 112, or torchvision's. Raises
    ValueError with one sentence for whatever does not fit.
    """
    target = pick_device(device)
    for name, number in (("frames", frames), ("size", size)):
        if number is not None and number < 1:
            raise ValueError(f"`{name}` is {number}, it must be 1 or more")
    source, colon, name = spec.partition(":")
    if not (source and colon and name):
        raise ValueError(f"the model {spec!r} is neither torchvision:NAME nor package.module:build")
    names = None if classes is None else read_classes(classes)
    state = None if weights is None else read_state(weights)
    build = _torchvision if source == "torchvision" else _imported
    network = build(source, name, names, state is None, frames, size)
    if layout is not None:
        network = replace(network, layout=cast(Any, layout))
    network = replace(network, layer=layer or network.layer)
    if state is not None:
        _fill(network.module, state, str(weights))
    network.module.to(target).eval()
    try_out(network, spec)
    return network


def _torchvision(
    source: str, name: str, names: list[str] | None, download: bool, frames: int | None, size: int | None
) -> Classifier:
    if name not in TORCHVISION:
        raise ValueError(f"there is no model torchvision:{name}: there are {', '.join(TORCHVISION)}")
    from torchvision.models import get_model, get_model_weights

    known = get_model_weights(name).DEFAULT
    categories = list(known.meta["categories"])
    module = get_model(name, num_classes=len(names or categories))
    if download:
        _fill(module, downloaded(name, known, "--weights"), f"torchvision's {known}")
    transforms = known.transforms()
    crop, resize = transforms.crop_size, transforms.resize_size
    if size is not None:
        crop, resize = [size, size], [round(side * size / crop[0]) for side in resize]
    transforms = known.transforms(crop_size=crop, resize_size=resize)

    def preprocess(pictures: Frames) -> Tensor:
        pixels = torch.from_numpy(np.array(pictures, order="C")).permute(0, 3, 1, 2)
        return torch.cat([transforms(frame[None]) for frame in pixels], 1)[None]  # in float, 1080p is 25 MB a frame

    def seen(height: int, width: int) -> Box:
        short = min(height, width)
        tall, wide = resize if len(resize) == 2 else (int(resize[0] * side / short) for side in (height, width))
        down, across = height / tall, width / wide
        top, left = round((tall - crop[0]) / 2), round((wide - crop[1]) / 2)
        return Box(top * down, left * across, crop[0] * down, crop[1] * across)

    return Classifier(module, names or categories, frames or TORCHVISION[name], preprocess, seen)


def _imported(
    source: str, name: str, names: list[str] | None, download: bool, frames: int | None, size: int | None
) -> Classifier:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # a command has its own folder there, not the current one
    try:
        build = getattr(importlib.import_module(source), name, None)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if source == missing or source.startswith(f"{missing}."):
            raise ValueError(f"there is no module {missing!r} in {here} or among the installed ones") from None
        raise ValueError(f"{source} cannot be imported: it needs {missing!r}, which is not installed") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{source} cannot be imported: {line(error)}") from None
    if not callable(build):
        what = "has nothing of this name" if build is None else f"is a {type(build).__name__}"
        raise ValueError(f"{source}:{name} must be a function that gives the network, but {source} {what}: {name}")
    try:
        built = build()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{source}:{name}() failed: {line(error)}") from None
    if isinstance(built, Classifier | STABN):
        if size is not None:
            raise ValueError(f"{source}:{name}() gives its own preprocessing: its frames cannot be resized by --size")
        built = classifier(built)
        return replace(built, classes=names or built.classes, frames=frames or built.frames)
    if not isinstance(built, nn.Module):
        raise ValueError(f"{source}:{name}() must give a torch.nn.Module, but gave a {type(built).__name__}")
    if names is None:
        raise ValueError(f"the names of {source}:{name}'s classes are not known: pass them with --classes FILE")
    return Classifier(built, names, frames or FRAMES, resized((size or SIZE, size or SIZE)))


def try_out(network: Classifier, spec: str) -> None:
    """One forward pass of a black clip, so that what does not fit is said before any video is read: ValueError."""
    given = f"{network.frames} frames"
    try:
        with undisturbed(network.module), torch.no_grad():
            clip = network.clip(np.zeros((network.frames, 240, 320, 3), np.uint8))
            given = " x ".join(map(str, clip.shape[2:])) + " (frames x height x width)"
            note_layers(network, clip)
            if network.layer:
                cam_layer(network, clip)
    except ValueError:
        raise
    except Exception as error:  # anything can happen in a network of which nothing is known
        raise ValueError(
            f"{spec} fails on a clip of {given} in the layout {network.layout}: {line(error)}; --frames, --size and "
            "--layout say what it takes"
        ) from None


def read_classes(path: Path) -> list[str]:
    """Names of classes: one on each line, or JSON, a list or a dictionary {index: name} or {name: index}."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds no names of classes: it is not a text file in UTF-8") from None
    found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} begins like JSON and is none: {error}") from None
    if isinstance(found, dict):
        turned = found if all(map(str.isdecimal, found)) else {str(index): name for name, index in found.items()}
        if sorted(turned) != sorted(map(str, range(len(found)))):
            raise ValueError(f"{path} must give the indices 0 to {len(found) - 1} to its {len(found)} names")
        found = [turned[str(index)] for index in range(len(turned))]
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ValueError(f"{path} must hold the names of classes: one on each line, or a list in JSON")
    return found


def _fill(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads a state dict; ValueError names the first tensor that does not fit."""
    expected = module.state_dict()
    missing, unknown = (
        [name for name in one if name not in other] for one, other in ((expected, state), (state, expected))
    )
    shapes = {name: (tuple(state[name].shape), tuple(each.shape)) for name, each in expected.items() if name in state}
    wrong = [name for name, (given, needed) in shapes.items() if given != needed]
    if missing:
        misfit = f"has no {missing[0]!r}"
    elif unknown:
        misfit = f"has {unknown[0]!r}, which is not in the network"
    elif wrong:
        given, needed = shapes[wrong[0]]
        misfit = f"has {wrong[0]!r} of shape {given}, and the network's is {needed}"
        if len(wrong) <= 2 and all(shapes[name][0][1:] == shapes[name][1][1:] for name in wrong):  # one layer's outputs
            misfit += ": if it has other classes, give their names with --classes FILE"
    else:
        module.load_state_dict(state)
        return
    raise ValueError(f"{source} does not fit the network: it {misfit}")


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


# What is known of a network and the shape of its clips, so that each clip takes one pass; nothing here keeps a network
# alive. The layers with a grid above 1 x 1, in the order of their last call; and the one of these that is taken.
_WIDE: WeakKeyDictionary[nn.Module, dict[Size, list[str]]] = WeakKeyDictionary()
_CHOSEN: WeakKeyDictionary[nn.Module, dict[Size, str]] = WeakKeyDictionary()


def note_layers(network: Classifier, clip: Tensor) -> list[str]:
    """The layers with a grid above 1 x 1 for this clip (1, 3, T, H, W), by a forward pass; `cam_layer` remembers them
    for clips of its shape."""
    wide = [name for name, (_, h, w) in layers(network, clip).items() if h * w > 1]
    _WIDE.setdefault(network.module, {})[_size(clip)] = wide
    return wide


def cam_layer(network: Classifier, clip: Tensor, name: str | None = None) -> str:
    """The layer that CAM methods look at: `name`, else `network.layer`, else the last with a grid above 1 x 1.

    The last is found by dry runs with this clip (1, 3, T, H, W), once for its shape. Where a class token follows
    the grid, the last layer is that through which the grid reaches the logits. Raises ValueError.
    """
    name, names = name or network.layer, dict(network.module.named_modules())
    if name and name not in names:
        raise ValueError(f"there is no layer {name!r}: {nearest(name, layers(network, clip))}")
    name = name or _CHOSEN.get(network.module, {}).get(_size(clip))
    return name if name and name in names else _search(network, clip, None)[0]


def at_cam_layer(
    network: Classifier, clip: Tensor, name: str | None = None, target: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`activation_and_gradient` of `cam_layer`, without a pass more where the search for the layer made it."""
    if name or network.layer or _size(clip) in _CHOSEN.get(network.module, {}):
        return activation_and_gradient(network, clip, cam_layer(network, clip, name), target)
    try:
        return _search(network, clip, target)[1]
    except ValueError:
        if target is None:
            raise
    return activation_and_gradient(network, clip, cam_layer(network, clip), target)  # nothing speaks for this class


def _search(network: Classifier, clip: Tensor, target: int | None) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    """The last layer whose grid has a gradient, and `activation_and_gradient` of it: the tokens beside a class token
    have none after the last attention, and an auxiliary head leads nowhere. Raises ValueError if there is none."""
    wide, names = _WIDE.get(network.module, {}).get(_size(clip)), dict(network.module.named_modules())
    if wide is None or not names.keys() >= set(wide):
        wide = note_layers(network, clip)
    for name in reversed(wide):
        try:
            found = activation_and_gradient(network, clip, name, target)
        except ValueError:
            continue
        if found[2].count_nonzero():
            _CHOSEN.setdefault(network.module, {})[_size(clip)] = name
            return name, found
    raise ValueError(
        f"no layer of this network has a grid of more than 1 x 1 cells for frames of {clip.shape[3]} x "
        f"{clip.shape[4]} pixels that leads to its logits: give it larger frames"
    )


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
