"""The backbones beside the 3D ResNet of `stabn.model`, each as the same five stages: stem, layer1, layer2, layer3 are
the extractor, layer4 is the perception branch.

torchvision's networks are taken as they are, cut before their last stage; what comes after it (pooling to one value
per channel, dropout, a linear layer) is ST-ABN's, so their classifiers are left out. Where the sources are silent or
do not fit we chose:
- C3D (Tran et al. 2015) is cut before its fourth pooling. Batch norm follows each convolution, and global average
  pooling and one linear layer stand for its two layers of 4096 units.
- I3D (Carreira and Zisserman 2017) is the inflated Inception-v1: torchvision's S3D with each pair of a spatial and a
  temporal convolution as one convolution.
- TSN (Wang et al. 2016) and TSM (Lin et al. 2019) are torchvision's 2D ResNet-18 on each frame, as in Table 1 of the
  ST-ABN paper: a clip's T frames are the segments, and averaging their features before the linear layer is TSN's
  averaging of segments. TSM shifts an eighth of the channels by a frame each way before each residual block's first
  convolution.
- Weights start as everywhere in `stabn.model`, and batch norm's averages move by a tenth per step in S3D and I3D too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from stabn.model import Config

FULL = 64  # the `width` at which a backbone has the channels of its source
STEP = 8  # a width that is a multiple of it scales all of them to whole numbers


def c3d(config: Config) -> list[nn.Module]:
    def unit(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()]

    return [
        nn.Sequential(*unit(3, 64), nn.MaxPool3d((1, 2, 2))),
        nn.Sequential(*unit(64, 128), nn.MaxPool3d(2)),
        nn.Sequential(*unit(128, 256), *unit(256, 256), nn.MaxPool3d(2)),
        nn.Sequential(*unit(256, 512), *unit(512, 512)),
        nn.Sequential(nn.MaxPool3d(2), *unit(512, 512), *unit(512, 512)),
    ]


def video_resnet(config: Config) -> list[nn.Module]:
    """torchvision's r3d_18, mc3_18 and r2plus1d_18 (Tran et al. 2018)."""
    from torchvision.models import get_model

    whole = get_model(config.backbone, weights=None)
    return [whole.stem, whole.layer1, whole.layer2, whole.layer3, whole.layer4]


def s3d(config: Config) -> list[nn.Module]:
    """torchvision's S3D (Xie et al. 2018)."""
    from torchvision.models import get_model

    features = get_model("s3d", weights=None).features
    return [features[start:end] for start, end in ((0, 5), (5, 7), (7, 10), (10, 13), (13, 16))]


def i3d(config: Config) -> list[nn.Module]:
    from torchvision.models.video.s3d import TemporalSeparableConv

    def joined(pair: nn.Module) -> nn.Module:
        across, along = (cast(nn.Conv3d, pair.get_submodule(name)) for name in ("0.0", "1.0"))
        kernel, stride, padding = (
            (getattr(along, name)[0], *getattr(across, name)[1:]) for name in ("kernel_size", "stride", "padding")
        )
        whole = nn.Conv3d(across.in_channels, across.out_channels, kernel, stride, padding, bias=False)
        return nn.Sequential(whole, pair.get_submodule("0.1"), nn.ReLU())

    stages = s3d(config)
    for stage in stages:
        _replace(stage, lambda layer: joined(layer) if isinstance(layer, TemporalSeparableConv) else None)
    return stages


def each_frame(config: Config) -> list[nn.Module]:
    """TSN and TSM on torchvision's ResNet-18; `config.pool` is the max pooling after the stem."""
    from torchvision.models import resnet18

    whole = resnet18(weights=None)
    stem = [whole.conv1, whole.bn1, whole.relu, *([whole.maxpool] if config.pool else [])]
    stages = [stem, whole.layer1, whole.layer2, whole.layer3, whole.layer4]
    if config.backbone == "tsm":
        for block in (block for stage in stages[1:] for block in stage):
            block.conv1 = nn.Sequential(Shift(config.frames), block.conv1)
    return [EachFrame(*stage) for stage in stages]


class EachFrame(nn.Sequential):
    """2D layers on each frame: (N, C, T, h, w) -> (N, C', T, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        pictures = super().forward(x.transpose(1, 2).flatten(0, 1))  # (N T, C', h', w')
        return pictures.unflatten(0, (len(x), -1)).transpose(1, 2)


class Shift(nn.Module):
    """(N T, C, h, w): the first eighth of the channels comes from the next frame, the second from the one before;
    beyond the clip is 0."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, self.frames))  # (N, T, C, h, w)
        eighth, nothing = x.shape[2] // 8, torch.zeros_like(x[:, :1])
        following = torch.cat([x[:, 1:, :eighth], nothing[:, :, :eighth]], 1)
        before = torch.cat([nothing[:, :, :eighth], x[:, :-1, eighth : 2 * eighth]], 1)
        return torch.cat([following, before, x[:, :, 2 * eighth :]], 2).flatten(0, 1)


# By `Config.backbone`: what gives the five stages at full width. They are only asked for what layers they have.
BACKBONES: dict[str, Callable[[Config], list[nn.Module]]] = {
    "c3d": c3d,
    "i3d": i3d,
    "r3d_18": video_resnet,
    "mc3_18": video_resnet,
    "r2plus1d_18": video_resnet,
    "s3d": s3d,
    "tsn": each_frame,
    "tsm": each_frame,
}
FLAT = ("tsn", "tsm")  # those of 2D layers, with `config.pool` as in the 3D ResNet


def stages(config: Config) -> list[nn.Module]:
    """The five stages as they are built on the device "meta": full width, no memory, no weights."""
    with torch.device("meta"):
        return BACKBONES[config.backbone](config)


def made(stage: nn.Module, width: int) -> nn.Module:
    """The stage itself, its layers replaced by ones with `width` / 64 of the channels, and with weights."""

    def scaled(channels: int) -> int:
        return channels if channels == 3 else max(1, round(channels * width / FULL))

    def layer(old: nn.Module) -> nn.Module | None:
        if isinstance(old, nn.Conv3d | nn.Conv2d):
            kind: Callable[..., nn.Module] = nn.Conv3d if isinstance(old, nn.Conv3d) else nn.Conv2d
            channels, sizes = (scaled(old.in_channels), scaled(old.out_channels)), (old.kernel_size, old.stride)
            new = kind(*channels, *sizes, old.padding, bias=False)
            nn.init.kaiming_normal_(new.get_parameter("weight"), nonlinearity="relu")
            return new
        if isinstance(old, nn.BatchNorm3d | nn.BatchNorm2d):
            kind = nn.BatchNorm3d if isinstance(old, nn.BatchNorm3d) else nn.BatchNorm2d
            return kind(scaled(old.num_features), eps=old.eps)
        return None

    _replace(stage, layer)
    return stage


def unstrided(stage: nn.Module) -> nn.Module:
    """The stage itself, made to keep T', h and w: what the attention branch takes in place of the last stage."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv3d):
            layer.stride = (1, 1, 1)
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    _replace(stage, lambda layer: nn.Identity() if isinstance(layer, nn.MaxPool3d) and layer.stride != 1 else None)
    return stage


def channels_last(network: nn.Module) -> None:
    """Puts the weights of convolutions, 2D and 3D, into the order in memory that is fastest; values stay."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.Conv2d):
            order = torch.channels_last_3d if isinstance(layer, nn.Conv3d) else torch.channels_last
            layer.to(memory_format=order)  # type: ignore[call-overload]


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """All layers of batch norm. In `eval()` one works as at inference: by its running statistics, which then stay."""
    return [each for each in network.modules() if isinstance(each, _BatchNorm)]


@lru_cache
def shapes(config: Config) -> tuple[torch.Size, torch.Size]:
    """(C, T', h, w) of the features, and of what the last stage makes of them; by a dry run that takes no memory.

    Raises ValueError if the clip is too small for the backbone.
    """
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, 3, config.frames, config.size, config.size)
        found = []
        try:
            for stage in stages(config):
                x = made(stage, config.width).eval()(x)
                found.append(x.shape[1:])
        except RuntimeError:  # a pooling that has nothing to pool
            raise ValueError(
                f"a clip of {config.frames} frames of {config.size} x {config.size} pixels is too small for the "
                f"backbone {config.backbone}: give it more `frames` or a larger `size`"
            ) from None
    return found[3], found[4]


def _replace(module: nn.Module, new: Callable[[nn.Module], nn.Module | None]) -> None:
    """Puts what `new` gives for a layer in its place, at any depth; where it gives None the layer stays."""
    for name, child in module.named_children():
        layer = new(child)
        if layer is None:
            _replace(child, new)
        else:
            setattr(module, name, layer)
