"""The losses that make attention the evidence, on a tiny network."""

import pytest
import torch

from stabn import faithful, model
from stabn.faithful import Weights
from stabn.model import STABN, Attention, Config

EVERYTHING = Weights(keep=1.0, erase=1.0, spatial=6.0, temporal=1.0, invert=0.5)


@pytest.fixture
def network() -> STABN:
    torch.manual_seed(0)
    config = Config(3, frames=4, size=16, layers=(1, 1, 1, 1), width=2, pool=False, dropout=0.0)
    made = STABN(config).train()
    torch.nn.init.normal_(made.fc.weight)  # else all classes are equally likely and nothing has a gradient
    return made


def found(network: STABN, weights: Weights, seed: int = 0, clips: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    x, labels = torch.randn(clips, 3, 4, 16, 16), torch.arange(clips) % 3
    features = network.extract(x)
    attention, _ = network.attend(features)
    assert attention is not None
    return faithful.losses(network, x, features, attention, labels, weights)


def test_what_is_kept_moves_and_the_rest_shows_its_mean():
    clip = torch.randn(2, 3, 4, 6, 5)
    still = clip.mean(2, keepdim=True)
    torch.testing.assert_close(faithful.kept(clip, torch.ones(2, 1, 4, 6, 5)), clip)
    torch.testing.assert_close(faithful.kept(clip, torch.zeros(2, 1, 4, 6, 5)), still.expand_as(clip))
    mask = torch.rand(2, 1, 4, 6, 5)
    torch.testing.assert_close(faithful.kept(clip, mask) + faithful.kept(clip, 1 - mask) - still, clip)


def test_only_what_is_asked_for_is_computed(network):
    assert found(network, Weights(keep=1.0)).keys() == {"spatial", "temporal", "keep"}
    assert found(network, Weights(spatial=1.0)).keys() == {"spatial", "temporal"}
    assert found(network, EVERYTHING).keys() == {"spatial", "temporal", "keep", "erase", "invert", "flat"}
    assert "erase" not in found(network, EVERYTHING, clips=1)  # there is no second half


def test_the_total_weighs_each_loss():
    losses = {name: torch.tensor(1.0) for name in ("keep", "erase", "spatial", "temporal", "invert", "flat", "loss")}
    assert EVERYTHING.total(losses).item() == 1 + 1 + 6 + 1 + 0.5 + 2 * 0.5
    assert Weights(answer=2.0).total({"perception": torch.tensor(3.0)}).item() == 6
    assert Weights().total(losses).item() == 0


def test_the_judge_does_not_learn_from_erasing(network):
    found(network, EVERYTHING)["erase"].backward()
    assert network.attention is not None
    assert network.fc.weight.grad is None
    assert network.mixing.weight.grad is None
    weights = [each for name, each in network.attention.named_parameters() if name.startswith(("spatial", "temporal"))]
    assert any(each.grad is not None and each.grad.count_nonzero() for each in weights)


def test_the_network_learns_from_what_is_kept(network):
    found(network, EVERYTHING)["keep"].backward()
    assert network.fc.weight.grad is not None
    assert network.fc.weight.grad.count_nonzero()


def test_modes_flags_and_running_means_are_as_before(network):
    modes = [each.training for each in network.modules()]
    before = found(network, Weights(spatial=1.0))  # the pass over the clips themselves has moved the running means
    means = {name: value.clone() for name, value in network.named_buffers()}
    torch.manual_seed(0)
    with torch.no_grad():
        x = torch.randn(4, 3, 4, 16, 16)
        faithful.losses(
            network.eval(), x, (f := network.extract(x)), network.attend(f)[0], torch.arange(4) % 3, EVERYTHING
        )
    assert before
    assert all(each.requires_grad for each in network.parameters())
    for name, value in network.named_buffers():
        torch.testing.assert_close(value, means[name])
    network.train()
    found(network, EVERYTHING)
    assert [each.training for each in network.modules()] == modes


def test_an_inverse_is_plain_or_of_the_originals_strength_and_a_flat_one_has_a_mean():
    attention = Attention(torch.rand(2, 1, 4, 3, 3) * 0.5, torch.rand(2, 1, 4, 1, 1) * 0.5)
    means = [part.mean((1, 2, 3, 4)) for part in attention]
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        inverse = faithful._inverse(attention)
        for k, part in enumerate(inverse):
            if part is attention[k] or torch.equal(part, attention[k]):
                seen.add(("same", k))
            elif torch.allclose(part, 1 - attention[k]):
                seen.add(("plain", k))
            else:
                torch.testing.assert_close(part.mean((1, 2, 3, 4)), means[k])
                shares = (1 - attention[k]) / part  # the inverse up to one factor for each clip
                torch.testing.assert_close(shares, shares[:, :, :1, :1, :1].expand_as(shares))
                seen.add(("matched", k))
        for k, part in enumerate(faithful._flat(attention)):
            if not torch.equal(part, attention[k]):
                assert part.flatten(1).std(1).max() < 1e-6
                own = torch.allclose(part[:, 0, 0, 0, 0], means[k])
                assert own or torch.allclose(part[:, 0, 0, 0, 0], 1 - means[k])
                seen.add(("own" if own else "opposite", k))
    assert seen == {(kind, k) for kind in ("same", "plain", "matched", "own", "opposite") for k in (0, 1)}


def test_a_prepared_network_starts_with_low_attention_and_only_m_s_open_in_the_frames_of_m_t(network):
    faithful.prepare(network)
    features = torch.rand(2, network.config.channels, 4, 2, 2)
    mixture = network.mix(features)
    torch.testing.assert_close(mixture.spatial, features)
    torch.testing.assert_close(mixture.temporal, -features)
    attention, _ = network.attend(network.extract(torch.randn(8, 3, 4, 16, 16)))
    assert attention is not None
    assert attention.spatial is not None
    assert 0.02 < attention.spatial.mean() < 0.3


def test_supervised_attention_is_best_where_it_is_the_evidence():
    action = torch.tensor([[True, True, False, False], [True, False, False, False]])
    mask = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    mask[0, :2, :4, :4] = True  # the second clip is a camera's: it says nothing about where
    spatial, temporal = torch.full((2, 1, 4, 2, 2), 0.3), action[:, None, :, None, None].float()
    spatial[0, 0, :2] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    best = faithful.supervised(Attention(spatial, temporal), mask, action)
    assert best.item() == pytest.approx(0, abs=1e-3)
    assert faithful.supervised(Attention(spatial.flip(4), temporal), mask, action) > 1
    assert faithful.supervised(Attention(spatial, 1 - temporal), mask, action) > 1
    elsewhere = spatial.clone()
    elsewhere[1] = elsewhere[0, :, 2:] = 0.9
    assert faithful.supervised(Attention(elsewhere, temporal), mask, action).item() == best.item()


def test_a_network_without_both_parts_is_refused():
    network = STABN(Config(3, frames=4, size=16, layers=(1, 1, 1, 1), width=2, pool=False, attention="spatial"))
    with pytest.raises(ValueError, match="spatial and temporal"):
        faithful.prepare(network)
    with pytest.raises(ValueError, match="both"):
        found(network, Weights(spatial=1.0))


def test_the_paper_s_loss_is_untouched(network):
    output = network(torch.randn(4, 3, 4, 16, 16))
    paper = model.loss(output, torch.arange(4) % 3)
    assert (paper.total + Weights().total({})).item() == paper.total.item()
