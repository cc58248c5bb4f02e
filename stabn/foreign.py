"""Weights of other networks than ours: read, downloaded, and taken over as a start for training.

2D ResNets are inflated (Carreira and Zisserman 2017): a kernel is repeated along time and divided by its new length, so
that a clip of one repeated picture has the features of that picture, but for the frames at the clip's two ends, which
see the zeros beyond them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stabn.checkpoint import START, pickled, plain, unpickled
from stabn.model import DEPTHS, STABN

PATIENCE = 20.0  # seconds that a server may be silent


def downloaded(name: str, weights: Any, option: str) -> dict[str, Tensor]:
    """The state dict of torchvision's `weights` of the network `name`, from the cache or its server.

    Raises ValueError, which says what to pass to `option` instead.
    """
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torch.hub has none, and a silent server would hold it for ever
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no such file, no room, a damaged download
        raise ValueError(
            f"the weights of torchvision:{name} cannot be downloaded from {weights.url} ({line(error)}): load that "
            f"file where there is a network, and pass it with {option} FILE"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of safetensors or torch.save; one that is wrapped as "state_dict" or "model" too.

    No code in it is run. Raises ValueError.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(START)
        found = unpickled(path) if pickled(start) else load_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged or hostile file can raise anything
        raise ValueError(
            f"{path} holds no weights that can be read: it is damaged, or holds more than tensors and plain values, "
            "and code in such files is never run"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not plain(found, path):
        raise ValueError(f"{path} holds no state dict, which is dense tensors by name, with all of their values")
    return {name.removeprefix("module."): each for name, each in found.items()}  # what DataParallel writes


def line(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def imagenet(network: STABN) -> dict[str, Tensor]:
    """The state dict of torchvision's 2D ResNet of the network's depth, trained on ImageNet.

    Raises ValueError if there is none of this depth, or it cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    config = network.config
    depth = {(block, layers): depth for depth, (block, layers) in DEPTHS.items()}.get((config.block, config.layers))
    if config.backbone in ("tsn", "tsm"):
        depth = 18
    elif config.backbone != "resnet" or depth is None:
        known = ", ".join(map(str, DEPTHS))
        raise ValueError(f"ImageNet weights are there for ResNets of {known} layers, TSN and TSM: choose one of them")
    # The recipe of the papers; the newer weights are for another resolution.
    return downloaded(f"resnet{depth}", get_model_weights(f"resnet{depth}").IMAGENET1K_V1, "--init")  # type: ignore[attr-defined]


@torch.no_grad()
def inflate(network: STABN, state: Mapping[str, Tensor]) -> None:
    """Copies a state dict of torchvision into extractor, perception branch and the attention branch's last stage.

    `state` is of the 2D ResNet of the same depth, for our 3D ResNets, TSN and TSM; or of the video network of the same
    name, for r3d_18, mc3_18, r2plus1d_18 and s3d. The classifier and what else is in it is left out. Raises ValueError,
    and changes nothing, if a tensor is missing or has another shape.
    """
    own, new = network.state_dict(), {}
    for name, tensor in own.items():
        stage, _, rest = name.replace("attention.blocks.", "layer4.").partition(".")
        if stage not in ("stem", "layer1", "layer2", "layer3", "layer4"):
            continue
        rest = rest.replace(".conv1.1.", ".conv1.")  # behind the shift of TSM
        names = [f"{stage}.{rest}", f"features.{rest}"]
        if stage == "stem":  # of a 2D ResNet
            names += [theirs + rest[1:] for theirs, number in (("conv1", "0"), ("bn1", "1")) if rest[0] == number]
        found = next((state[key] for key in names if key in state), None)
        if found is None and rest.endswith("num_batches_tracked"):  # older files lack it
            continue
        if found is not None and found.ndim == 4 and tensor.ndim == 5:
            found = found[:, :, None].expand(-1, -1, tensor.shape[2], -1, -1) / tensor.shape[2]
        if found is None or found.shape != tensor.shape:
            seen = "are not there" if found is None else f"have the shape {tuple(found.shape)}"
            raise ValueError(
                f"these weights do not fit the network: those for `{name}`, {tuple(tensor.shape)}, {seen}; the network "
                "must be of their kind and depth, with a `width` of 64, and a ResNet with its stem of 7 x 7"
            )
        new[name] = found
    network.load_state_dict(own | new)
