"""Measuring a network against known evidence, with a network whose answers are known."""

import json
import sys

import numpy as np
import pytest
import torch

import stabn
from explain import evidence
from stabn import synthetic
from stabn.model import STABN, Attention, Config


def tiny(attention: str = "both") -> STABN:
    torch.manual_seed(0)
    config = Config(
        classes=len(synthetic.CLASSES),
        frames=6,
        size=32,
        layers=(1, 1, 1, 1),
        width=2,
        stem=(3, 3, 3),
        pool=False,
        crop=False,
        attention=attention,
    )
    return STABN(config, synthetic.CLASSES).eval()


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> STABN:
    """A network that attends to the mask and to the action, and answers with the label only under its own attention."""
    model = tiny()
    current: dict[str, synthetic.Sample] = {}
    generate = synthetic.generate

    def remember(*arguments: int) -> synthetic.Sample:
        current["sample"] = generate(*arguments)
        return current["sample"]

    def attend(features: torch.Tensor) -> tuple[Attention, torch.Tensor]:
        sample = current["sample"]
        spatial = torch.from_numpy(sample.mask).float()[None, None]
        temporal = torch.from_numpy(sample.action).float()[None, None, :, None, None]
        return Attention(spatial, temporal), answer(sample.label)

    def answer(label: int) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([label]), len(synthetic.CLASSES)).float()

    def perceive(_: object, attention: Attention) -> torch.Tensor:
        sample = current["sample"]
        same = torch.equal(attention.temporal[0, 0, :, 0, 0], torch.from_numpy(sample.action).float())
        return answer(sample.label) if same else answer((sample.label + 1) % len(synthetic.CLASSES))

    monkeypatch.setattr(synthetic, "generate", remember)
    monkeypatch.setattr(model, "attend", attend)
    monkeypatch.setattr(model, "perceive", perceive)
    return model


def test_an_oracle_gets_the_best_scores_and_loses_what_it_needs(oracle):
    scores = {name: score["value"] for name, score in evidence.measure(oracle, 36, progress=False)["scores"].items()}
    assert scores["top1"] == scores["top5"] == scores["top1 of the attention branch"] == 1
    assert scores["top1 with spatial inverted"] == 1  # it does not care where
    assert scores["top1 with temporal inverted"] == scores["top1 with both inverted"] == 0
    assert scores["top1 with spatial constant, own mean"] == 1
    assert scores["top1 with temporal energy-matched inverse"] == 0
    assert scores["top1 with both constant, own mean"] < 0.2  # "Holding something" acts in all frames: a constant
    assert scores["auc M_t"] == 1
    assert scores["energy M_s"] == scores["energy perfect mask"] > 3
    assert scores["energy random"] == pytest.approx(1, abs=0.2)


def test_scores_come_with_intervals_counts_and_their_source(oracle):
    measured = evidence.measure(oracle, 18, first=18, progress=False)
    assert measured["data"] == f"Synthetic-Something version {synthetic.VERSION}, seeds 18 to 35"
    score = measured["scores"]["energy M_s"]
    assert score["low"] <= score["value"] <= score["high"]
    assert score["clips"] == 12  # camera classes have no mask
    json.dumps(measured)


@pytest.mark.parametrize(("attention", "absent"), [("none", "energy M_s"), ("spatial", "auc M_t")])
def test_a_variant_is_measured_by_what_it_has(attention, absent):
    scores = evidence.measure(tiny(attention), 3, progress=False)["scores"]
    assert "top1" in scores
    assert absent not in scores
    assert not any(np.isnan(score["value"]) for score in scores.values())


def test_a_score_that_no_clip_defines_is_left_out():
    scores = evidence.measure(tiny(), 4, first=10, progress=False)["scores"]  # four turns of the camera
    assert "top1" in scores
    assert "auc M_t" in scores
    assert "energy M_s" not in scores


def test_training_seeds_and_other_classes_are_refused():
    with pytest.raises(ValueError, match="not evaluation seeds"):
        evidence.measure(tiny(), 2, first=synthetic.TRAINING_SEEDS - 1)
    with pytest.raises(ValueError, match="3 classes are not"):
        evidence.measure(STABN(Config(classes=3, frames=4, size=32)))


def test_the_command_writes_what_it_measured_beside_the_weights(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.safetensors"
    stabn.save(tiny(), path)
    monkeypatch.setattr(sys, "argv", ["evidence", "--checkpoint", str(path), "--clips", "3"])
    evidence.main()
    model = stabn.load(path)
    assert model.metadata["measured"]["weights"] == stabn.checkpoint.weights_hash(path)
    assert "top1" in capsys.readouterr().out
