"""ST-ABN: a video network that says where and when it looked.

Mitsuhara, Hirakawa, Yamashita, Fujiyoshi: "ST-ABN: Visual Explanation Taking into Account Spatio-temporal
Information for Video Recognition" (2021), section 3. Equation numbers below are the paper's.

Shapes in comments: N clips, T frames, S x S pixels, C channels, K classes, h x w cells of the attention maps
(14 x 14 at 224 pixels; 2C channels after the last stage of a ResNet). Tensors are ordered (N, C, T, h, w).

    clips -- extract --> features --+--------------- perceive --> logits
                                    +-- attend --> attention, attention_logits

Where the paper is silent we chose:
- Batch norm follows every convolution except the two that end in class scores or in weights of frames; a
  convolution has no bias, a linear layer has one.
- M_t's "3 x 3" convolution is 3 x 3 x 3 with padding 1, so each frame also sees its two neighbours.
- M_t's two linear layers are T -> T -> T as in SENet (Hu et al. 2018) with ReLU between, but without SENet's
  reduction: T is 8 to 32, there is nothing to save.
- Dropout on the attention branch's maps drops single values, not whole maps.
- Weights start as He's (fan-in) in convolutions and N(0, 0.01) in the classifier. M_t's three T -> T layers
  start as the identity, so that at first each frame's weight comes from that frame; He's would start from
  random preferences for positions.

`variant="published"` is the network of the weights that the paper's authors released. It differs in three things:
- The attention branch's class scores are averaged over space only and keep T; a linear layer K T -> K follows.
- Clips have their channels in the order BGR.
- A clip is T consecutive frames from the middle of a video, not T spread over it.

`backbone` chooses another network than the 3D ResNet for the extractor and the perception branch; `stabn.backbones` has
them. Some of them shorten time: then features and attention have T' < T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn

from stabn import backbones

BLOCKS = ("bottleneck", "basic")
ATTENTIONS = ("both", "spatial", "temporal", "none")
VARIANTS = ("paper", "published")
MAX_CLIP = 2**27  # pixels of all frames together: bounds the memory that a header can ask for
DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


# ---------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Config:
    """Everything that fixes a network's shape and what it expects of its input.

    The defaults are the paper's ResNet-50 for 32 frames of 224 x 224; `Config.resnet` gives the other depths.
    Raises ValueError or TypeError with the field, the rule and the value.
    """

    classes: int  # K
    frames: int = 32  # T: temporal attention has weights for each position, so a network has one length
    size: int = 224  # S, pixels: height and width of the input
    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)  # residual blocks of layer1..layer4
    width: int = 64  # planes of layer1; layer k has width * 2 ** (k - 1); other backbones: 64 is their full width
    stem: tuple[int, int, int] = (1, 7, 7)  # first convolution's kernel (T, h, w); its stride is (1, 2, 2)
    pool: bool = True  # 1 x 3 x 3 max pooling, stride (1, 2, 2), after the stem
    attention: Literal["both", "spatial", "temporal", "none"] = "both"  # "spatial" is ABN (Fukui et al. 2019)
    dropout: float = 0.5  # before the classifier and on the attention branch's maps
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB values in 0..1, subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # of RGB values in 0..1, divided by
    crop: bool = True  # centre square before resizing (the paper); False squeezes the whole frame to S x S
    variant: Literal["paper", "published"] = "paper"  # "published": as the authors' released weights, see above
    backbone: str = "resnet"  # or one of `stabn.backbones.BACKBONES`, which fix block, layers and stem themselves

    def __post_init__(self) -> None:
        for name, length in (("layers", 4), ("stem", 3), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != length:
                raise TypeError(f"`{name}` must be a tuple of {length} numbers, got {value!r}")
        for name in ("classes", "frames", "size", "width", "layers", "stem"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is not int:
                    raise TypeError(f"`{name}` takes whole numbers, got {value!r}")
                if number < 1:
                    raise ValueError(f"`{name}` takes numbers of 1 or more, got {value!r}")
        for name in ("mean", "std", "dropout"):
            value = getattr(self, name)
            if not all(type(number) in (int, float) for number in (value if name != "dropout" else (value,))):
                raise TypeError(f"`{name}` takes numbers, got {value!r}")
        for name in ("pool", "crop"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}")
        names = ("resnet", *backbones.BACKBONES)
        choices = (("block", BLOCKS), ("attention", ATTENTIONS), ("variant", VARIANTS), ("backbone", names))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.frames * self.size**2 > MAX_CLIP:
            raise ValueError(
                f"`frames` x `size` x `size` is {self.frames} x {self.size} x {self.size} pixels, more than the "
                f"{MAX_CLIP:,} that a clip may have"
            )
        if any(k % 2 == 0 for k in self.stem):
            raise ValueError(f"`stem` must have odd kernel sizes to keep frames aligned, got {self.stem}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, got {self.dropout}")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"`mean` is of RGB values scaled to 0..1, got {self.mean}")
        if not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"`std` is of RGB values scaled to 0..1 and never 0, got {self.std}")
        if self.backbone != "resnet":
            flat = self.backbone in backbones.FLAT
            for name in ("block", "layers", "stem", "variant", *(() if flat else ("pool",))):
                if getattr(self, name) != getattr(Config, name):
                    raise ValueError(f"`{name}` is for the backbone resnet, leave it out for {self.backbone}")
            if self.width % backbones.STEP:
                raise ValueError(
                    f"`width` must be a multiple of {backbones.STEP} for the backbone {self.backbone}, got {self.width}"
                )
            backbones.shapes(self)  # raises for a clip that is too small
        elif self.size < self.reduction:
            raise ValueError(
                f"`size` is {self.size} pixels, but one cell of this network's attention maps takes "
                f"{self.reduction}: use {self.reduction} or more" + (", or pool=False" if self.pool else "")
            )

    @classmethod
    def resnet(cls, depth: int, **changes: Any) -> Config:
        """3D ResNet-18, 34, 50, 101 or 152; `changes` are fields of Config (`classes` is always needed)."""
        if depth not in DEPTHS:
            raise ValueError(f"`depth` must be one of {', '.join(map(str, DEPTHS))}; got {depth!r}")
        block, layers = DEPTHS[depth]
        return cls(**{"block": block, "layers": layers, **changes})

    @property
    def reduction(self) -> int:
        """Pixels of the input, per side, to one cell of the attention maps of a ResNet."""
        return 16 if self.pool else 8

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """(C, T', h, w) of the features between extractor and branches; each stride of 2 in a ResNet rounds up."""
        if self.backbone != "resnet":
            channels, moments, height, width = backbones.shapes(self)[0]
            return channels, moments, height, width
        side = -(-self.size // self.reduction)
        return self.width * 4 * (4 if self.block == "bottleneck" else 1), self.frames, side, side

    @property
    def channels(self) -> int:
        """C of the features between extractor and branches."""
        return self.grid[0]

    @property
    def moments(self) -> int:
        """T' of the features and the attention: T, or less where the backbone shortens time."""
        return self.grid[1]

    @property
    def map_size(self) -> int:
        """h and w of the attention maps."""
        return self.grid[2]

    @property
    def outputs(self) -> int:
        """Channels of the last stage, before the classifier and in the attention branch."""
        return 2 * self.channels if self.backbone == "resnet" else backbones.shapes(self)[1][0]

    @property
    def sampling(self) -> Literal["spread", "middle"]:
        """Which T frames of a video the network takes, as `stabn.read_clip` knows it."""
        return "middle" if self.variant == "published" else "spread"


# ---------------------------------------------------------------------------------------------- named results


class Box(NamedTuple):
    """A rectangle in a frame's pixels, from the top left corner."""

    top: float
    left: float
    height: float
    width: float


class Attention(NamedTuple):
    """Where and when the network looks, in 0..1 (after the sigmoid); None for a part the variant lacks."""

    spatial: Tensor | None  # M_s (N, 1, T, h, w)
    temporal: Tensor | None  # M_t (N, 1, T, 1, 1)

    def invert(self, spatial: bool = False, temporal: bool = False) -> Attention:
        """M -> 1 - M for the chosen parts (equation 5); the other part is kept as it is.

        Raises ValueError if a chosen part is absent in this variant.
        """
        for name, chosen, part in (("spatial", spatial, self.spatial), ("temporal", temporal, self.temporal)):
            if chosen and part is None:
                raise ValueError(f"`{name}` attention cannot be inverted: this network has none")
        return Attention(
            1 - self.spatial if spatial and self.spatial is not None else self.spatial,
            1 - self.temporal if temporal and self.temporal is not None else self.temporal,
        )


class Mixture(NamedTuple):
    """The features as `perceive` weighs them, for any attention. Both (N, C, T, h, w)."""

    spatial: Tensor  # W1 f, to be weighed by 1 + M_s
    temporal: Tensor  # W2 f, to be weighed by M_t


class Output(NamedTuple):
    """The result of a forward pass; the last two are None without an attention branch."""

    logits: Tensor  # (N, K), of the perception branch: the prediction
    attention_logits: Tensor | None  # (N, K), of the attention branch: for the loss
    attention: Attention | None


class Loss(NamedTuple):
    total: Tensor
    perception: Tensor
    attention: Tensor  # 0 without an attention branch


def loss(output: Output, labels: Tensor) -> Loss:
    """Equation 4: the sum of both branches' cross-entropies (batch means). `labels` are int64 (N,)."""
    perception = F.cross_entropy(output.logits.float(), labels)
    if output.attention_logits is None:
        return Loss(perception, perception, torch.zeros_like(perception))
    attention = F.cross_entropy(output.attention_logits.float(), labels)
    return Loss(perception + attention, perception, attention)


# ------------------------------------------------------------------------------------------------- the blocks


def conv(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """A convolution that keeps T, and h and w too up to its stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    layer = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class Block(nn.Module):
    """Residual block: ReLU(path(x) + x), with a 1x1x1 convolution on x where the shape changes."""

    expansion: int

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, (1, 1, 1), stride), nn.BatchNorm3d(outputs))

    def path(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.downsample(x))


class BasicBlock(Block):
    """3x3x3, 3x3x3, as in ResNet-18 and 34. It looks at neighbouring frames in every layer."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, temporal: int) -> None:
        super().__init__(inputs, planes, stride)
        self.conv1 = conv(inputs, planes, (3, 3, 3), stride)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = conv(planes, planes, (3, 3, 3))
        self.bn2 = nn.BatchNorm3d(planes)

    def path(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """`temporal`x1x1, 1x3x3 with the stride, 1x1x1 to four times the planes, as in ResNet-50, 101 and 152."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, temporal: int) -> None:
        outputs = planes * self.expansion
        super().__init__(inputs, outputs, stride)
        self.conv1 = conv(inputs, planes, (temporal, 1, 1))
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = conv(planes, planes, (1, 3, 3), stride)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = conv(planes, outputs, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(outputs)

    def path(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


def stage(config: Config, layer: int, inputs: int, stride: int) -> nn.Sequential:
    """The residual blocks of layer 1, 2, 3 or 4; the first carries the stride."""
    block = Bottleneck if config.block == "bottleneck" else BasicBlock
    planes = config.width * 2 ** (layer - 1)
    temporal = 3 if layer >= 3 else 1
    first = block(inputs, planes, stride, temporal)
    rest = (block(planes * block.expansion, planes, 1, temporal) for _ in range(config.layers[layer - 1] - 1))
    return nn.Sequential(first, *rest)


def extractor(config: Config) -> list[nn.Module]:
    """stem, layer1, layer2 and layer3: float clips (N, 3, T, S, S) -> features (N, C, T', h, w)."""
    if config.backbone != "resnet":
        return [backbones.made(each, config.width) for each in backbones.stages(config)[:4]]
    width, channels = config.width, config.channels
    pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if config.pool else nn.Identity()
    stem = nn.Sequential(conv(3, width, config.stem, stride=2), nn.BatchNorm3d(width), nn.ReLU(), pool)
    strides = ((1, width, 1), (2, channels // 4, 2), (3, channels // 2, 2))
    return [stem, *(stage(config, layer, inputs, stride) for layer, inputs, stride in strides)]


def last_stage(config: Config, strided: bool) -> nn.Module:
    """layer4: features (N, C, T', h, w) -> (N, config.outputs, ...), of the same T', h and w unless `strided`."""
    if config.backbone != "resnet":
        last = backbones.made(backbones.stages(config)[4], config.width)
        return last if strided else backbones.unstrided(last)
    return stage(config, 4, config.channels, stride=2 if strided else 1)


class AttentionBranch(nn.Module):
    """Features (N, C, T, h, w) -> Attention and class scores (N, K)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        classes, frames = config.classes, config.moments
        self.blocks = last_stage(config, strided=False)  # -> (N, 2C, T, h, w)
        self.maps = nn.Sequential(
            nn.BatchNorm3d(config.outputs),
            conv(config.outputs, classes, (1, 1, 1)),
            nn.BatchNorm3d(classes),
            nn.ReLU(),
        )  # -> (N, K, T, h, w)
        self.dropout = nn.Dropout(config.dropout)
        self.scores = conv(classes, classes, (1, 1, 1))
        self.gather = nn.Linear(classes * frames, classes) if config.variant == "published" else None
        self.spatial: nn.Module | None = None
        self.temporal: nn.Module | None = None
        if config.attention in ("both", "spatial"):
            self.spatial = nn.Sequential(conv(classes, 1, (1, 1, 1)), nn.BatchNorm3d(1), nn.Sigmoid())
        if config.attention in ("both", "temporal"):
            self.temporal = TemporalAttention(classes, frames)

    def forward(self, features: Tensor) -> tuple[Attention, Tensor]:
        maps = self.maps(self.blocks(features))  # (N, K, T, h, w)
        if self.gather is None:
            scores = self.scores(self.dropout(maps)).mean((2, 3, 4))  # (N, K): 3D global average pooling
        else:
            scores = self.scores(maps).mean((3, 4)).flatten(1)  # (N, K T)
            scores = self.gather(self.dropout(scores))  # (N, K)
        spatial = self.spatial(maps) if self.spatial is not None else None  # (N, 1, T, h, w)
        temporal = self.temporal(maps) if self.temporal is not None else None  # (N, 1, T, 1, 1)
        return Attention(spatial, temporal), scores


class TemporalAttention(nn.Module):
    """M_t: one weight per frame, (N, K, T, h, w) -> (N, 1, T, 1, 1) in 0..1."""

    def __init__(self, classes: int, frames: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(conv(classes, 1, (3, 3, 3)), nn.BatchNorm3d(1), nn.ReLU())
        # The paper's 1 x 1 2D convolution. As a 3D one its weight can be channels_last_3d like all others.
        self.exchange = conv(frames, frames, (1, 1, 1))
        first, second = nn.Linear(frames, frames), nn.Linear(frames, frames)
        self.weigh = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        nn.init.dirac_(self.exchange.weight)
        for layer in (first, second):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.squeeze(maps).transpose(1, 2)  # (N, 1, T, h, w) -> (N, T, 1, h, w): frames are channels
        x = F.relu(self.exchange(x)).mean((2, 3, 4))  # (N, T)
        return self.weigh(x)[:, None, :, None, None]


# ------------------------------------------------------------------------------------------------ the network


HUB_FILE = "model.safetensors"  # of a folder that `save_pretrained` makes; a file as `stabn.save` writes it
HUB_CARD = """---
{{ card_data }}
---

ST-ABN, a video network that says where and when it looked ({{ paper_url }}), as `stabn` saves it:

    from stabn import STABN, read_clip
    from explain import explain

    model = STABN.from_pretrained("this repository")
    explanation = explain(model, read_clip("video.mp4", frames=model.config.frames))
"""


class STABN(
    nn.Module,
    ModelHubMixin,
    library_name="stabn",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2110.15574",
    model_card_template=HUB_CARD,
):
    """Spatio-temporal attention branch network: `model(clips) -> Output`.

    `classes` are the names of the K classes ("class 0", ... if none are given); `metadata` is free, made of
    what JSON can hold, and travels with the weights: how they were trained, what was measured.

    `save_pretrained(folder)`, `from_pretrained(folder_or_repository)` and `push_to_hub(repository)` are those of
    huggingface_hub. The weights are a file of `stabn.save`, which alone rebuilds the network; the `config.json` beside
    it is for the Hub and for readers.
    """

    def __init__(
        self, config: Config, classes: Sequence[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = [f"class {k}" for k in range(config.classes)] if classes is None else list(classes)
        self.metadata: dict[str, Any] = dict(metadata or {})
        if len(self.classes) != config.classes:
            raise ValueError(f"`classes` has {len(self.classes)} names, the config says {config.classes} classes")

        channels = config.channels
        self.stem, self.layer1, self.layer2, self.layer3 = extractor(config)
        self.attention = AttentionBranch(config) if config.attention != "none" else None
        if config.attention == "both":
            self.mixing = conv(2 * channels, channels, (1, 1, 1))  # weight (C, 2C, 1, 1, 1): W1 beside W2
            self.mixing_bn = nn.BatchNorm3d(channels)
        self.layer4 = last_stage(config, strided=True)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(config.outputs, config.classes)

        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, clips: Tensor) -> Output:
        """Float clips (N, 3, T, S, S) from `preprocess` -> Output. Errors as `extract`."""
        features = self.extract(clips)
        attention, attention_logits = self.attend(features)
        return Output(self.perceive(features, attention), attention_logits, attention)

    def extract(self, clips: Tensor) -> Tensor:
        """Float clips (N, 3, T, S, S) -> features (N, C, T, h, w).

        Raises TypeError for other types and ValueError for other shapes, with the numbers seen and needed.
        """
        self._check_clips(clips)
        x = self.stem(clips)  # of a ResNet: (N, width, T, S/4, S/4), or S/2 without pooling
        return self.layer3(self.layer2(self.layer1(x)))

    def attend(self, features: Tensor) -> tuple[Attention | None, Tensor | None]:
        """Features (N, C, T, h, w) -> Attention and its branch's logits (N, K); (None, None) without one."""
        return (None, None) if self.attention is None else self.attention(features)

    def mix(self, features: Tensor) -> Mixture:
        """Features -> what `perceive` needs of them under any attention: W1 f and W2 f, (N, C, T, h, w) each.

        Equation 3 is linear in the attention: conv([(1 + M_s) f, M_t f]) = (1 + M_s) W1 f + M_t W2 f. Keep
        the mixture, and every changed attention costs only the perception branch. Variants with one attention
        or none do not mix: both are f.
        """
        if self.config.attention != "both":
            return Mixture(features, features)
        first, second = self.mixing.weight.chunk(2, dim=1)  # (C, C, 1, 1, 1) each
        return Mixture(F.conv3d(features, first), F.conv3d(features, second))

    def perceive(self, features: Tensor | Mixture, attention: Attention | None) -> Tensor:
        """Features, or the mixture kept from `mix`, under an attention (equations 1 to 3) -> logits (N, K).

        Attention and features broadcast: B attentions over the features of one clip give logits (B, K).
        Raises ValueError if the attention lacks a part that this variant needs or has another T, h or w.
        """
        first, second = features if isinstance(features, Mixture) else self.mix(features)
        kind = self.config.attention
        if kind == "both":
            spatial = _part(attention, "spatial", first)
            x = self.mixing_bn((1 + spatial) * first + _part(attention, "temporal", second) * second)
        elif kind == "spatial":
            x = (1 + _part(attention, "spatial", first)) * first
        elif kind == "temporal":
            x = _part(attention, "temporal", second) * second
        else:
            x = first
        x = self.layer4(x).mean((2, 3, 4))  # (N, 2C): 3D global average pooling
        return self.fc(self.dropout(x))

    def _check_clips(self, clips: Tensor) -> None:
        frames, size = self.config.frames, self.config.size
        if not isinstance(clips, Tensor) or not clips.is_floating_point():
            kind = f"{clips.dtype} values" if isinstance(clips, Tensor) else f"type {type(clips).__name__}"
            raise TypeError(f"`clips` has {kind}, the network takes floats: use model.preprocess(frames)")
        shape = tuple(clips.shape)
        if clips.ndim != 5:
            raise ValueError(f"`clips` must have the 5 dimensions (N, 3, T, S, S), got {clips.ndim}: {shape}")
        if shape[1] != 3:
            raise ValueError(f"`clips` must be RGB, (N, 3, T, S, S), but has {shape[1]} channels: {shape}")
        _check_frames("clips", shape[2], frames)
        if shape[3:] != (size, size):
            raise ValueError(
                f"`clips` has frames of {shape[3]} x {shape[4]} pixels, this network takes {size} x {size}: "
                "use model.preprocess(frames)"
            )

    # ----------------------------------------------------------------------------------- from frames to clips

    @torch.no_grad()
    def preprocess(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 RGB frames (T, H, W, 3) -> float32 clip (1, 3, T, S, S) on the network's device.

        Centre square crop (if `config.crop`), antialiased bilinear resize to S x S, values to 0..1, minus
        mean, over std; the published variant then has the channels in the order BGR. Frames that are S x S
        already are not resampled. `frames` is not changed. Raises TypeError for values other than uint8,
        ValueError for a shape that is not (T, H, W, 3) with T right.
        """
        if not isinstance(frames, (np.ndarray, Tensor)):
            raise TypeError(f"`frames` must be a numpy array or a tensor, got {type(frames).__name__}")
        if frames.dtype not in (np.uint8, torch.uint8):
            raise TypeError(f"`frames` has {frames.dtype} values, RGB in uint8 (0 to 255) is needed")
        shape = tuple(frames.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:3]:
            raise ValueError(f"`frames` must be RGB of shape (T, H, W, 3), got {shape}")
        _check_frames("frames", shape[0], self.config.frames)

        size = (self.config.size, self.config.size)
        top, left, height, width = map(int, self.seen(shape[1], shape[2]))
        # The copy leaves read-only arrays and reversed views (which torch cannot share) to numpy.
        pixels = frames if isinstance(frames, Tensor) else torch.from_numpy(np.array(frames, order="C"))
        pixels = pixels.to(self.fc.weight.device)[:, top : top + height, left : left + width]
        clip = pixels.new_empty((shape[0], 3, *size), dtype=torch.float32)
        for t, frame in enumerate(pixels.permute(0, 3, 1, 2)):  # one by one: in float, 1080p is 25 MB a frame
            frame = frame[None].float()
            if frame.shape[2:] != size:
                frame = F.interpolate(frame, size, mode="bilinear", align_corners=False, antialias=True)
            clip[t] = frame[0]
        return self.normalise(clip.transpose(0, 1)[None]).contiguous()

    def normalise(self, clips: Tensor) -> Tensor:
        """Float clips (N, 3, T, S, S) of RGB values in 0..255 -> as the network takes them: values to 0..1, minus mean,
        over std; the published variant then has the channels in the order BGR. The order in memory stays."""
        mean, std = (clips.new_tensor(values)[:, None, None, None] for values in (self.config.mean, self.config.std))
        clips = (clips / 255 - mean) / std
        return clips.flip(1) if self.config.variant == "published" else clips

    def seen(self, height: int, width: int) -> Box:
        """The part of a height x width frame that reaches the network, in that frame's pixels."""
        if height < 1 or width < 1:
            raise ValueError(f"a frame must have at least 1 x 1 pixel, got {height} x {width}")
        if not self.config.crop:
            return Box(0.0, 0.0, float(height), float(width))
        side = min(height, width)
        return Box(float((height - side) // 2), float((width - side) // 2), float(side), float(side))

    # ------------------------------------------------------------------------------------ huggingface_hub's mixin

    def _save_pretrained(self, save_directory: Path) -> None:
        from stabn import checkpoint

        checkpoint.save(self, save_directory / HUB_FILE)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, device: str | torch.device = "cpu", **options: Any
    ) -> STABN:
        """As `stabn.load`, in eval mode on `device`. Raises CheckpointError, and what the Hub's client raises."""
        from stabn import checkpoint

        folder = Path(model_id)
        if folder.is_dir():
            return checkpoint.load(folder / HUB_FILE, device)
        asked = {key: options[key] for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")}
        return checkpoint.load(hf_hub_download(model_id, HUB_FILE, **asked), device)


def _part(attention: Attention | None, name: Literal["spatial", "temporal"], like: Tensor) -> Tensor:
    """M_s or M_t out of an attention, checked against the features (N, C, T, h, w) that it shall weigh."""
    part = None if attention is None else getattr(attention, name)
    if part is None:
        raise ValueError(f"`attention` has no {name} part, but this network needs it: start from `model.attend`")
    frames, height, width = like.shape[2:]
    shape = (1, frames, height, width) if name == "spatial" else (1, frames, 1, 1)
    fits = part.ndim == 5 and (part.shape[0] == like.shape[0] or 1 in (part.shape[0], like.shape[0]))
    if not fits or tuple(part.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"`attention.{name}` must have shape ({wanted}), got {tuple(part.shape)}")
    return part


def _check_frames(name: str, seen: int, needed: int) -> None:
    if seen != needed:
        raise ValueError(
            f"`{name}` has {seen} frame{'' if seen == 1 else 's'}, this network takes {needed}: "
            f"read the clip with frames={needed}"
        )
