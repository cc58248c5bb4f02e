"""Losses, from labels alone, under which attention must be the evidence: what it keeps is enough, the rest is not.

The paper's two cross-entropies leave ways around the attention, so that it need not mean anything. Here the clip itself
is changed by the attention and asked again, which leaves no way around (sufficiency and necessity: insertion and
deletion turned into losses, as Li et al. 2018, "Tell Me Where to Look", for pictures). At inference the equations stay
the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabn.backbones import batch_norms
from stabn.model import STABN, Attention


class Weights(NamedTuple):
    """What each loss counts beside the paper's two cross-entropies; 0 leaves it out and costs nothing.

    keep: cross-entropy of the clip in which only what is attended moves.
    erase: -log(1 - p) of the true class where what is attended stands still. Only the attention learns from it; the
        network that judges does not, or it would learn to take the erasing itself for a sign.
    spatial, temporal: prices of the means of M_s and M_t.
    invert: -log(1 - p) of the true class under inverted attention, at its own strength or at the original's, and twice
        beside it the cross-entropy under constant attention (`flat`), so that what tells is where and when attention
        is high, neither its strength nor the change as such.
    answer: the perception branch's cross-entropy once more, so that its answer does not lose by all these.
    masks: `supervised`, which needs more than labels.
    """

    keep: float = 0.0
    erase: float = 0.0
    spatial: float = 0.0
    temporal: float = 0.0
    invert: float = 0.0
    answer: float = 0.0
    masks: float = 0.0

    def total(self, found: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `losses` found; other entries do not count."""
        factors = self._asdict() | {"flat": 2 * self.invert, "perception": self.answer}
        return sum((factors[name] * found[name] for name in factors if name in found), torch.zeros(()))


def kept(clips: Tensor, mask: Tensor) -> Tensor:
    """Clips (N, 3, T, H, W) that move only where `mask` (N, 1, T, H, W) in 0..1 is 1; elsewhere they show their mean
    over time. `kept(clips, 1 - mask)` is the clip with these parts erased."""
    still = clips.mean(2, keepdim=True)
    return still + mask * (clips - still)


def losses(
    network: STABN, clips: Tensor, features: Tensor, attention: Attention, labels: Tensor, weights: Weights
) -> dict[str, Tensor]:
    """Each loss that `weights` ask for, unweighted, and the means of M_s and M_t, for a batch in training.

    `clips` (N, 3, T, S, S) with their `features`, their `attention` (both parts) and `labels` (N,). The first half of
    the clips (rounded up) is asked with what is attended kept, the other half with it erased; by chance, that is where
    M_s is high, M_t, or both.
    """
    spatial, temporal = _parts(attention)
    found = {"spatial": spatial.float().mean(), "temporal": temporal.float().mean()}
    half = -(-len(clips) // 2)
    if weights.keep or weights.erase:
        n, t = len(clips), clips.shape[2]
        places, moments = (_in_time(part, t) for part in (spatial, temporal))
        large = F.interpolate(places.flatten(0, 2)[:, None], clips.shape[3:], mode="bilinear")
        kind = torch.randint(3, (n, 1, 1, 1, 1), device=clips.device)
        where = torch.where(kind == 1, 1.0, large.view(n, 1, t, *clips.shape[3:]))
        mask = (where * torch.where(kind == 0, 1.0, moments)).to(clips.dtype)
    if weights.keep:
        with _beside(network, learns=True):
            found["keep"] = F.cross_entropy(network(kept(clips[:half], mask[:half])).logits.float(), labels[:half])
    if weights.erase and len(clips) > half:
        with _beside(network, learns=False):
            found["erase"] = _denied(network(kept(clips[half:], 1 - mask[half:])).logits, labels[half:])
    if weights.invert:
        mixture = network.mix(features)
        with _beside(network, learns=True):
            found["invert"] = _denied(network.perceive(mixture, _inverse(attention)), labels)
            found["flat"] = F.cross_entropy(network.perceive(mixture, _flat(attention)).float(), labels)
    return found


def supervised(attention: Attention, mask: Tensor, action: Tensor) -> Tensor:
    """Cross-entropy between the attention and the known evidence: `mask` (N, T, S, S), whose share of a cell M_s shall
    be in frames that have one, and `action` (N, T), which M_t shall be; both bool. As ABN was fine-tuned with maps
    drawn by people (Mitsuhara et al. 2019, "Embedding human knowledge into deep neural network via attention map")."""
    spatial, temporal = (part.float().clamp(1e-4, 1 - 1e-4) for part in _parts(attention))
    share = F.interpolate(mask[:, None].float(), spatial.shape[2:], mode="area")
    shown = mask.flatten(2).any(2)[:, None, :, None, None].float()
    where = F.binary_cross_entropy(spatial, share, reduction="none").mean((3, 4), keepdim=True)
    when = F.binary_cross_entropy(temporal, action[:, None, :, None, None].float())
    return (where * shown).sum() / shown.sum().clamp(min=1) + when


def _in_time(part: Tensor, frames: int) -> Tensor:
    """(N, 1, T', h, w) -> (N, 1, T, h, w), linear between the moments: the same where the backbone keeps time."""
    if part.shape[2] == frames:
        return part
    return F.interpolate(part, (frames, *part.shape[3:]), mode="trilinear")


def _parts(attention: Attention) -> tuple[Tensor, Tensor]:
    if attention.spatial is None or attention.temporal is None:
        raise ValueError("`attention` must have its spatial and its temporal part: train a network with both")
    return attention.spatial, attention.temporal


@contextmanager
def _beside(network: nn.Module, learns: bool) -> Iterator[None]:
    """A pass over changed clips: batch norm works as at inference, and the weights learn only if told to."""
    norms = [each for each in batch_norms(network) if each.training]
    flags = [(each, each.requires_grad) for each in network.parameters()]
    try:
        for each in norms:
            each.eval()
        if not learns:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
        yield
    finally:
        for each in norms:
            each.train()
        for parameter, needed in flags:
            parameter.requires_grad_(needed)


def _denied(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - p) of the labels' class, at most 7, so that a hopeless clip does not outweigh the others."""
    p = logits.float().softmax(1).gather(1, labels[:, None])
    return -(1 - p + 1e-3).log().mean()


def _which() -> int:
    """What is changed, by chance: 0 M_s, 1 M_t, 2 both. M_s is as likely as the rest: it is the hardest to need."""
    return max(0, int(torch.randint(-1, 3, ())))


def _inverse(attention: Attention) -> Attention:
    """M_s, M_t or both inverted, three times of four brought back to the original's mean over each clip; by chance."""
    kind, matched = _which(), bool(torch.randint(4, ()))
    inverse = attention.invert(spatial=kind != 1, temporal=kind != 0)
    if not matched:
        return inverse
    pairs = zip(_parts(attention), _parts(inverse), strict=True)
    return Attention(*(new * (_mean(old) / _mean(new).clamp(min=1e-3)) for old, new in pairs))


def _flat(attention: Attention) -> Attention:
    """M_s, M_t or both constant at the clip's mean, or one time of four at that of its inverse; by chance."""
    kind, inverse = _which(), int(torch.randint(4, ())) == 0
    spatial, temporal = _parts(attention)
    means = [(1 - _mean(part) if inverse else _mean(part)).expand_as(part) for part in (spatial, temporal)]
    return Attention(spatial if kind == 1 else means[0], temporal if kind == 0 else means[1])


def _mean(part: Tensor) -> Tensor:
    return part.mean((1, 2, 3, 4), keepdim=True)  # over each clip


@torch.no_grad()
def prepare(network: STABN) -> None:
    """A start for attention with a meaning, in a network whose attention is still untrained.

    W1 = 1 and W2 = -1 in equation 3, so that the features are weighted by 1 + M_s - M_t: in frames that M_t marks
    only M_s lets them through, and nothing of "1 +" is a way around both. Both start low and steep: a scale or a bias
    moves by only one learning rate a step, and what M_s has between 0 and 1 lies mostly beside the evidence.
    """
    branch, channels = network.attention, network.config.channels
    if branch is None or branch.spatial is None or branch.temporal is None:
        raise ValueError("`network` must have spatial and temporal attention")
    nn.init.zeros_(network.mixing.weight)
    first, second = network.mixing.weight.view(channels, 2 * channels).chunk(2, dim=1)
    first.fill_diagonal_(1.0)
    second.fill_diagonal_(-1.0)
    norm = branch.spatial.get_submodule("1")
    last = branch.get_submodule("temporal.weigh.2")
    for layer, factor, low in ((norm, 4.0, -4.0), (last, 4.0, -2.0)):
        weight, bias = layer.parameters()
        weight.mul_(factor)
        bias.fill_(low)


@torch.no_grad()
def lower(network: STABN, by: float) -> None:
    """Takes `by` from the logits of M_s, the values before its sigmoid. Where they are steep, what it loses lies mostly
    beside the evidence; a price is slow to get there, as their bias moves by only one learning rate a step."""
    if network.attention is None or network.attention.spatial is None:
        raise ValueError("`network` must have spatial attention")
    network.attention.spatial.get_submodule("1").get_parameter("bias").sub_(by)
