"""The weights that the authors of the ST-ABN paper released, as weights of our own network.

Their file is a dictionary of torch.save: `model_state_dict`, whose names start with "module." if the model was a
data-parallel one, beside `epoch`, `iteration`, `best_score` and what resuming needs. They were trained on
Something-Something V2: 3D ResNet-50, 32 frames of 224 x 224, 174 classes. Only the layout of that file is known
here; `stabn.model` says what the network, `variant="published"`, has otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stabn.model import DEPTHS

# Where the released names begin with the left, ours begin with the right; all others are the same.
NAMES = {
    "conv1": "stem.0",
    "bn1": "stem.1",
    "layer_att_common": "attention.blocks",
    "conv_att_common": "attention.maps",
    "conv_att_out.0": "attention.scores",
    "fc_att_out": "attention.gather",
    "conv_spatial_att": "attention.spatial",
    "conv_temp_att1": "attention.temporal.squeeze",
    "conv_temp_att2.0": "attention.temporal.exchange",
    "conv_temp_att3": "attention.temporal.weigh",
    "conv_att_mechanism.0": "mixing",
    "conv_att_mechanism.1": "mixing_bn",
}
CLASSES = Path(__file__).with_name("something_something_v2.txt")  # 174 names, in the order of V2's label map


def found(content: Any) -> dict[str, Tensor] | None:
    """The released state dict in what torch.load gave, by itself or in its dictionary; None if there is none."""
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    known = isinstance(state, dict) and any("layer_att_common." in str(name) for name in state)
    return state if known else None


def read(state: Mapping[str, Tensor], content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A released state dict -> (the parts of one of our files, the state dict by our names).

    The depth is told by the names; K, T and the width by shapes. `content` is the dictionary around it, for the
    metadata. Raises ValueError, half a sentence, for what is no ResNet and for tensors without which nothing can be
    told; all others are left to be checked against the network.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    ours = {_translated(name, NAMES): tensor for name, tensor in theirs.items()}
    if len(ours) < len(state):
        raise ValueError("it has two tensors for one place")
    block = "bottleneck" if "layer1.0.conv3.weight" in theirs else "basic"
    layers = tuple(len({name.split(".")[1] for name in theirs if name.startswith(f"layer{k}.")}) for k in range(1, 5))
    depth = next((depth for depth, plan in DEPTHS.items() if plan == (block, layers)), None)
    if depth is None:
        known = ", ".join(map(str, DEPTHS))
        raise ValueError(f"its layers have {layers} {block} blocks, which is no ResNet of {known} layers")
    sizes = {}
    for size, name in (("classes", "fc.weight"), ("frames", "conv_temp_att2.0.weight"), ("width", "conv1.weight")):
        if name not in theirs or not theirs[name].ndim:
            raise ValueError(f"it has no `{name}`, which tells the number of {size}")
        sizes[size] = len(theirs[name])
    exchange = "attention.temporal.exchange.weight"  # over frames in 2D there, in 3D here
    if ours[exchange].ndim == 4:
        ours[exchange] = ours[exchange][..., None]

    names = CLASSES.read_text("utf-8").splitlines()
    metadata: dict[str, Any] = {"source": "the weights released by the authors of the ST-ABN paper"}
    for key in ("epoch", "iteration", "best_score"):
        value = getattr(content.get(key), "item", lambda key=key: content.get(key))()
        if isinstance(value, int | float) and math.isfinite(value):
            metadata[key] = value
    parts = {
        "config": {**sizes, "block": block, "layers": layers, "variant": "published"},
        "classes": names if sizes["classes"] == len(names) else [f"class {k}" for k in range(sizes["classes"])],
        "metadata": metadata,
        "plan": f"the published ST-ABN of {depth} layers",
    }
    return parts, ours


def called(name: str) -> str:
    """The released name of a tensor, given ours."""
    return _translated(name, {ours: theirs for theirs, ours in NAMES.items()})


def _translated(name: str, table: Mapping[str, str]) -> str:
    for start, other in table.items():
        if name.startswith(f"{start}."):
            return other + name.removeprefix(start)
    return name
