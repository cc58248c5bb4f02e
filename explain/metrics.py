"""How well a map says where and when, against evidence that is known. Arrays in, numbers out.

A map is given by its two factors: `spatial` M_s (T, h, w) >= 0 and `temporal` M_t (T,). Evidence is a `mask`
(T, H, W) bool of the acting things and `action` (T,) bool, the frames in which the action happens. A value that
is not defined for a clip is NaN, so that the clip can be skipped and counted.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def resize_maps(maps: Floats, height: int, width: int) -> NDArray[np.float32]:
    """(T, h, w) to (T, height, width), bilinear with cells at their centres; float32."""
    tensor = torch.as_tensor(np.ascontiguousarray(maps), dtype=torch.float32)[:, None]
    return F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[:, 0].numpy()


def energy_in_mask(spatial: Floats, mask: Bools, action: Bools) -> float:
    """Energy-based pointing (Wang et al. 2020): the share of M_s inside the mask over the mask's share of the picture.

    Mean over the action frames that have a mask; 1.0 is chance. NaN where there is no such frame, or where the map
    is zero on all of them.
    """
    frames = np.flatnonzero(action & mask.any((1, 2)))
    if not len(frames):
        return float("nan")
    maps = resize_maps(spatial[frames], *mask.shape[1:]).astype(np.float64)
    total = maps.sum((1, 2))
    with np.errstate(invalid="ignore"):
        share = (maps * mask[frames]).sum((1, 2)) / total
    ratio = share / mask[frames].mean((1, 2))
    return float(np.mean(ratio[total > 0])) if (total > 0).any() else float("nan")


def temporal_auc(temporal: Floats, action: Bools) -> float:
    """The chance that M_t ranks an action frame above another one; ties count half. NaN if all frames are alike."""
    inside, outside = temporal[action], temporal[~action]
    if not len(inside) or not len(outside):
        return float("nan")
    difference = inside[:, None].astype(np.float64) - outside[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def perfect_maps(mask: Bools, height: int, width: int) -> NDArray[np.float32]:
    """The mask at a map's resolution (T, height, width): the best that a map of this size can be."""
    tensor = torch.as_tensor(mask, dtype=torch.float32)[:, None]
    return F.adaptive_avg_pool2d(tensor, (height, width))[:, 0].numpy()


def centre_maps(frames: int, height: int, width: int) -> NDArray[np.float32]:
    """A Gaussian in the middle of every frame, its sigma a quarter of the side: the control of a centre bias."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    one = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.25**2))
    return np.repeat(one[None], frames, 0).astype(np.float32)


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
