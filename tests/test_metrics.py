"""Measures on maps small enough to score by hand, and on networks whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import bright, counted, plain, small, untouched
from torch import Tensor, nn

from explain import attribution, core, methods, metrics
from explain.core import Explanation
from explain.methods import Question
from explain.metrics import SCORES, Evidence, Trial
from explain.models import Classifier, classifier
from stabn.video import Clip

ACTION = np.array([False, True, True, False])


def left_half() -> np.ndarray:
    """(4, 8, 8) mask of the left half of every frame."""
    mask = np.zeros((4, 8, 8), bool)
    mask[:, :, :4] = True
    return mask


def test_energy_of_a_flat_map_is_chance():
    assert metrics.energy_in_mask(np.full((4, 2, 2), 0.3), left_half(), ACTION) == pytest.approx(1)


def test_energy_of_a_map_of_the_masks_own_size_by_hand():
    spatial = np.where(left_half(), 3.0, 1.0)  # a share of 3 / 4 inside a mask that covers a half
    assert metrics.energy_in_mask(spatial, left_half(), ACTION) == pytest.approx(1.5)


def test_the_perfect_map_scores_best_and_its_opposite_worst():
    mask = left_half()
    perfect = metrics.energy_in_mask(mask.astype(float), mask, ACTION)
    assert perfect == pytest.approx(2)  # one over the mask's share
    assert metrics.energy_in_mask(1.0 - mask, mask, ACTION) == 0


def test_energy_counts_only_action_frames_that_have_a_mask():
    mask = left_half()
    mask[2] = False
    spatial = np.zeros((4, 8, 8))
    spatial[[0, 2, 3], :, 4:] = 1  # wrong, but on frames that do not count
    spatial[1, :, :4] = 1
    assert metrics.energy_in_mask(spatial, mask, ACTION) == pytest.approx(2)


def test_energy_is_undefined_without_evidence_or_without_a_map():
    assert np.isnan(metrics.energy_in_mask(np.ones((4, 2, 2)), np.zeros((4, 8, 8), bool), ACTION))
    assert metrics.energy_in_mask(np.zeros((4, 2, 2)), left_half(), ACTION) == 1  # what says nothing is chance


@pytest.mark.parametrize(
    ("weights", "auc"),
    [([0, 1, 1, 0], 1.0), ([1, 0, 0, 1], 0.0), ([0.5] * 4, 0.5), ([0, 2, 1, 1], (1 + 1 + 1 + 0.5) / 4)],
)
def test_temporal_auc_by_hand(weights, auc):
    assert metrics.temporal_auc(np.array(weights), ACTION) == pytest.approx(auc)


@pytest.mark.parametrize("action", [np.zeros(4, bool), np.ones(4, bool)])
def test_temporal_auc_is_undefined_when_all_frames_are_alike(action):
    assert np.isnan(metrics.temporal_auc(np.arange(4.0), action))


def test_perfect_maps_average_the_mask_over_cells():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2, :3] = True
    np.testing.assert_allclose(metrics.perfect_maps(mask, 2, 2), [[[1, 0.5], [0, 0]]])


def test_centre_maps_are_symmetric_and_highest_in_the_middle():
    one = methods.centre_maps(2, 5, 7)[1]
    np.testing.assert_allclose(one, one[::-1, ::-1])
    assert np.unravel_index(one.argmax(), one.shape) == (2, 3)


def test_frame_difference_by_hand():
    frames = np.zeros((3, 1, 1, 3), np.uint8)
    frames[1] = [30, 0, 0]
    frames[2] = [0, 0, 255]
    np.testing.assert_allclose(metrics.frame_difference(frames).ravel(), [10, 10, 95])


def test_resizing_puts_cells_at_their_centres():
    np.testing.assert_allclose(metrics.resize_maps(np.array([[[0.0, 1.0]]]), 1, 4), [[[0, 0.25, 0.75, 1]]])


def test_bootstrap_leaves_out_what_is_undefined_and_holds_the_value():
    value, low, high = metrics.bootstrap(np.array([1.0, np.nan, 2.0, 3.0, 4.0]))
    assert value == 2.5
    assert 1 <= low < 2.5 < high <= 4
    assert metrics.bootstrap(np.array([7.0, 7.0])) == (7, 7, 7)
    with pytest.raises(ValueError, match="no number"):
        metrics.bootstrap(np.array([np.nan]))


def test_energy_in_the_tube_by_hand():
    mask = left_half()
    tube = mask & ACTION[:, None, None]
    assert metrics.energy_in_tube(np.ones((4, 8, 8)), mask, ACTION) == pytest.approx(1)
    assert metrics.energy_in_tube(tube.astype(float), mask, ACTION) == pytest.approx(4)
    assert metrics.energy_in_tube(1.0 - tube, mask, ACTION) == 0
    assert np.isnan(metrics.energy_in_tube(np.ones((4, 8, 8)), np.zeros_like(mask), ACTION))
    assert metrics.energy_in_tube(np.zeros((4, 8, 8)), mask, ACTION) == 1


@pytest.mark.parametrize(("radius", "count"), [(0.9, 1), (1.0, 5), (1.5, 9), (2.0, 13)])
def test_reach_is_a_disc(radius, count):
    mask = np.zeros((2, 9, 9), bool)
    mask[0, 4, 4] = True
    near = metrics.within_reach(mask, radius)
    assert near.sum((1, 2)).tolist() == [count, 0]
    assert near[0, 4, 4]


def test_the_pointing_game_by_hand():
    near = left_half()
    maps = np.zeros((4, 8, 8))
    maps[1, 3, 2] = 1  # a hit
    maps[2, 3, 6] = 1  # a miss
    assert metrics.pointing(maps, near, ACTION) == 0.5
    maps[2, 0, 0] = 1  # two maxima, one of them hits
    assert metrics.pointing(maps, near, ACTION) == 0.75
    near[2] = False  # a frame without evidence does not count
    assert metrics.pointing(maps, near, ACTION) == 1
    corner = np.zeros((4, 8, 8), bool)
    corner[:, :2, :3] = True
    assert metrics.pointing(np.full((4, 3, 3), 0.3), corner, ACTION) == 6 / 64  # all tie, whatever is rounded
    assert np.isnan(metrics.pointing(maps, near, ~ACTION & False))


@pytest.mark.parametrize(
    ("weights", "argmax", "precision", "iou"),
    [
        ([0, 1, 1, 0], 1, 1, 1),
        ([1, 0, 0, 1], 0, 0.5, 0),  # at the lower value all four frames are in
        ([0, 2, 1, 1], 1, (1 + 2 / 3) / 2, 2 / 3),
        ([1, 1, 0, -9], 0.5, (1 / 2 + 2 / 3) / 2, 2 / 3),
        ([0.1, 0.1, 0.1, 0.1], 0.5, 0.5, 0.5),
    ],
)
def test_other_temporal_measures_by_hand(weights, argmax, precision, iou):
    weights = np.array(weights, np.float32)
    assert metrics.temporal_argmax(weights, ACTION) == argmax
    assert metrics.temporal_precision(weights, ACTION) == pytest.approx(precision)
    assert metrics.temporal_iou(weights, ACTION) == pytest.approx(iou)


@pytest.mark.parametrize("measure", ["temporal_argmax", "temporal_precision", "temporal_iou"])
@pytest.mark.parametrize("action", [np.zeros(4, bool), np.ones(4, bool)])
def test_temporal_measures_are_undefined_when_all_frames_are_alike(measure, action):
    assert np.isnan(getattr(metrics, measure)(np.arange(4.0), action))


def test_the_auc_of_position_is_of_the_mean_weight_and_units_do_not_matter():
    weights = np.array([[0, 1, 0, 0], [0, 0, 500, 0]])  # on average 0, 0.5, 0.5, 0
    action = np.array([[False, True, True, False], [True, False, False, True]])
    assert metrics.position_auc(weights, action).tolist() == [1, 0]


def test_spearman_by_hand():
    assert metrics.spearman(np.array([1, 5, 9]), np.array([-2.0, 0.1, 7e9])) == pytest.approx(1)
    assert metrics.spearman(np.array([1, 2, 3]), np.array([3, 1, 2])) == pytest.approx(-0.5)
    assert metrics.spearman(np.array([1, 1, 2]), np.array([4, 6, 9])) == pytest.approx(0.75**0.5)  # ranks 1.5, 1.5, 3
    assert metrics.spearman(np.array([1, 2, 2, 5]), np.arange(4)) == pytest.approx(0.9**0.5)  # ranks 1, 2.5, 2.5, 4
    assert np.isnan(metrics.spearman(np.array([1, 1]), np.array([1, 2])))
    assert metrics.unchanged(np.array([1, 2]), np.array([1, 1])) == 0
    assert np.isnan(metrics.unchanged(np.array([1, 1]), np.array([1, 2])))


def test_area_by_hand():
    assert metrics.area(np.array([1, 0.5, 0]), np.array([0, 0.2, 1])) == pytest.approx(0.75 * 0.2 + 0.25 * 0.8)


def test_places_follow_values_and_ties_follow_chance():
    assert metrics.places(np.array([[3.0, 1.0, -2.0, 7.0]])).tolist() == [[1, 2, 3, 0]]
    flat = np.full((1, 100), 0.3) + 1e-9 * np.arange(100)  # rounding is no reason
    ranks = metrics.places(flat)
    assert sorted(ranks[0]) == list(range(100))
    assert abs(metrics.spearman(ranks[0], np.arange(100))) < 0.3
    assert (ranks == metrics.places(flat)).all()
    assert (ranks != metrics.places(flat, seed=1)).any()


def test_cells_are_a_fourteenth_of_the_side_also_when_it_does_not_divide():
    volume = np.zeros((1, 30, 28))
    volume[0, 0, 0] = 1
    cells = metrics.cell_means(volume, 30, 28)
    assert cells.shape == (1, 14, 14)
    assert cells[0, 0, 0] == pytest.approx(1 / (3 * 2))  # 30 rows are cells of 3, 2, 2 ...
    assert np.count_nonzero(cells) == 1
    np.testing.assert_allclose(metrics.cell_means(np.full((2, 3, 5), 0.7), 32, 112), 0.7)


class TestImputation:
    t, y, x = torch.meshgrid(torch.arange(6.0), torch.arange(12.0), torch.arange(12.0), indexing="ij")
    ramp = torch.stack([t + 2 * y - x, 3 - y, x])

    def inner(self) -> Tensor:
        removed = torch.zeros(6, 12, 12, dtype=torch.bool)
        removed[1:5, 3:9, 2:11] = True
        return removed

    def test_a_linear_ramp_is_restored(self) -> None:
        found = metrics.imputed(self.ramp, self.inner())
        torch.testing.assert_close(found, self.ramp, atol=0.02, rtol=0)

    def test_of_the_removed_part_nothing_is_used_and_the_rest_is_kept(self) -> None:
        removed = self.inner()
        changed = torch.where(removed, 1e3 * torch.rand(3, 6, 12, 12), self.ramp)
        found = metrics.imputed(changed, removed)
        torch.testing.assert_close(found, self.ramp, atol=0.5, rtol=0)  # the first guess is far away
        assert (found == changed)[:, ~removed].all()

    def test_noise_is_as_wide_as_said_and_only_where_values_are_new(self) -> None:
        removed = self.inner()
        change = metrics.imputed(self.ramp, removed, 0.5, seed=1) - metrics.imputed(self.ramp, removed)
        assert not change[:, ~removed].any()
        assert float(change[:, removed].std()) == pytest.approx(0.5, rel=0.1)

    def test_one_border_is_enough_and_none_gives_no_nan(self) -> None:
        most = torch.ones(6, 12, 12, dtype=torch.bool)
        assert metrics.imputed(self.ramp, most).isfinite().all()
        most[0, 0, 0] = False
        found = metrics.imputed(self.ramp + 7, most)
        torch.testing.assert_close(found, found[:, :1, :1, :1].expand_as(found), atol=0.01, rtol=0)


# --------------------------------------------------------------------------------- a network whose evidence is known

TUBE = (slice(2, 4), slice(8, 16), slice(16, 24))  # 32 of the 8 x 14 x 14 cells of 2 x 2 pixels
SHARE = 32 / (8 * 14 * 14)
MASK = np.zeros((8, 28, 28), bool)
MASK[TUBE] = True
EVIDENCE = Evidence(MASK, MASK.any((1, 2)))
# f is how bright the tube is, in shares; black is the baseline.
NETWORK = bright(lambda x: x[:, :, TUBE[0], TUBE[1], TUBE[2]].mean((1, 2, 3, 4)))


def tube_clip(background: int = 60) -> Clip:
    frames = np.random.default_rng(0).integers(0, background, (8, 28, 28, 3), dtype=np.uint8)
    frames[TUBE] = 255
    return Clip.from_array(frames, fps=10)


def trial(network: Classifier = NETWORK, clip: Clip | None = None, target: int = 0, **options: Any) -> Trial:
    options = {"evidence": EVIDENCE, "baseline": "zero", "steps": 49, "chunk": 64, **options}
    return Trial(network, tube_clip() if clip is None else clip, target, **options)


def made(volume: np.ndarray, network: Classifier = NETWORK, clip: Clip | None = None, **options: Any) -> Explanation:
    return Question(network, tube_clip() if clip is None else clip, 0).explanation("made", volume, **options)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((8, 14, 14))


def again(method: str, **options: Any) -> metrics.Again:
    return lambda network, clip: core.explain(network, clip, method, 0, **options)


class TestCurves:
    perfect, opposite = made(MASK.astype(float)), made(1.0 - MASK)

    def test_the_perfect_map_by_hand(self) -> None:
        found = trial().scores(self.perfect, ["deletion", "insertion", "order_area"])
        half = SHARE / 2  # f falls on a straight line from 1 to 0 while the 32 cells go
        assert found == pytest.approx({"deletion": half, "insertion": 1 - half, "order_area": 1 - 2 * half}, abs=1e-5)

    def test_the_opposite_map_by_hand(self) -> None:
        found = trial().scores(self.opposite, ["deletion", "insertion", "order_area"])
        half = SHARE / 2
        assert found == pytest.approx({"deletion": 1 - half, "insertion": half, "order_area": 2 * half - 1}, abs=1e-5)

    def test_random_orders_lie_on_the_diagonal(self) -> None:
        found = trial().scores(self.perfect, ["deletion_gain", "insertion_gain"])
        assert found["deletion_gain"] == pytest.approx(0.5 - SHARE / 2, abs=0.05)
        assert found["insertion_gain"] == pytest.approx(0.5 - SHARE / 2, abs=0.05)

    @pytest.mark.parametrize("kind", ["", "_time", "_space"])
    def test_what_is_best_is_best_and_the_opposite_worst(self, kind: str) -> None:
        attempt = trial(bright(lambda x: x[:, :, 2, 8:16, 16:24].mean((1, 2, 3))), tube_clip(10))
        mask = MASK.copy()
        mask[3] = False
        maps = [mask.astype(float), noise(), 1.0 - mask]
        found = [attempt.scores(made(each), [each + kind for each in metrics.CURVES]) for each in maps]
        for name in metrics.CURVES:
            values = [each[name + kind] for each in found]
            assert values == sorted(values, reverse=SCORES[name].better == "high")
            assert values[0] != values[-1]

    @pytest.mark.parametrize("kind", ["", "_time", "_space"])
    def test_insertion_is_deletion_in_the_opposite_order(self, kind: str) -> None:
        # Against a map with a sign nothing ties, and every order is the other one's opposite.
        here, there = made(noise(), signed=True), made(-noise(), signed=True)
        names = [f"deletion{kind}", f"insertion{kind}", f"order_area{kind}"]
        attempt = trial()
        deletion, insertion, order = attempt.scores(here, names).values()
        assert list(attempt.scores(there, names).values()) == pytest.approx([insertion, deletion, -order], abs=1e-5)

    def test_time_by_hand(self) -> None:
        """One bright frame: without it, the nearest other one is dark; without any, blur shows it again."""
        frames = np.zeros((8, 28, 28, 3), np.uint8)
        frames[3] = 255
        clip, network = Clip.from_array(frames), bright(lambda x: x[:, 0, 3].mean((1, 2)))
        weights = np.eye(8)[3][:, None, None]
        names = ["deletion_time", "insertion_time"]
        for steps in (3, 20):  # of curves over cells
            attempt = trial(network, clip, evidence=None, steps=steps)
            found = attempt.scores(made(weights, network, clip), names)
            assert found == pytest.approx({"deletion_time": (0.5 + 0.5) / 8, "insertion_time": 1}, abs=1e-5)
            found = attempt.scores(made(-weights, network, clip, signed=True), names)
            assert found == pytest.approx({"deletion_time": 1, "insertion_time": (0.5 + 0.5) / 8}, abs=1e-5)

    def test_frames_that_speak_against_the_class_rank_last(self) -> None:
        """f rises with frame 2 and falls with frame 6, which has the larger magnitude in the map."""
        network = bright(lambda x: 0.5 + 0.4 * x[:, 0, 2].mean((1, 2)) - 0.3 * x[:, 0, 6].mean((1, 2)))
        frames = np.zeros((8, 28, 28, 3), np.uint8)
        frames[[2, 6]] = 255
        clip = Clip.from_array(frames)
        volume = np.zeros((8, 14, 14))
        volume[2], volume[6] = 0.3, -0.4
        found = made(volume, network, clip, signed=True)
        assert found.temporal.argmax() == 6  # drawn is the magnitude
        assert metrics.weights(found).argmax() == metrics.weights(found, positive=True).argmax() == 2
        assert metrics.weights(found).argmin() == 6
        assert metrics.weights(found, positive=True)[6] == 0
        attempt = trial(network, clip, evidence=None, frame_baseline="zero")
        assert attempt.scores(found, ["frame_effect"])["frame_effect"] == pytest.approx(1)

    @pytest.mark.parametrize(("baseline", "lost"), [("zero", 1 / 8), ("mean", 7 / 64), ("blur", 0)])
    def test_frames_can_be_replaced_by_more_than_frozen_ones(self, baseline: str, lost: float) -> None:
        """f is the mean brightness, and one frame of eight is bright: what f loses without it."""
        frames = np.zeros((8, 28, 28, 3), np.uint8)
        frames[3] = 255
        clip, network = Clip.from_array(frames), bright(lambda x: x.mean((1, 2, 3, 4)))
        attempt = trial(network, clip, evidence=None, frame_baseline=baseline)
        assert attempt._effects[3] == pytest.approx(lost, abs=1e-5)

    def test_inside_of_frames_the_weight_of_frames_does_not_count(self) -> None:
        names = [f"{name}_space" for name in metrics.CURVES]
        one = made(noise())
        assert trial().scores(one, names) == trial().scores(replace(one, temporal=one.temporal[::-1]), names)

    def test_chunks_change_nothing(self) -> None:
        names = [f"{name}{kind}" for name in metrics.CURVES for kind in ("", "_time", "_space")]
        one, other = (trial(chunk=chunk, steps=10).scores(made(noise()), names) for chunk in (3, 64))
        assert one == pytest.approx(other, abs=1e-5)

    def test_a_sign_ranks_what_speaks_against_the_class_last(self) -> None:
        signed = made(np.where(MASK, 0.1, -5.0), signed=True)
        assert trial().scores(signed, ["deletion"])["deletion"] == pytest.approx(SHARE / 2, abs=1e-5)

    def test_cost(self) -> None:
        attempt = trial(steps=20, orders=5)
        core_names = [name for name, score in SCORES.items() if score.group == "core"]
        attempt.scores(made(noise()), core_names)
        # Both ends and, with nothing kept, blur; then two orders and five random ones, without their ends.
        assert attempt.evaluations <= 3 + 7 * (19 + 7)
        before = attempt.evaluations
        attempt.scores(made(noise(1)), core_names)
        assert 0 < attempt.evaluations - before <= 2 * (19 + 7)
        before = attempt.evaluations
        attempt.scores(made(3 * noise(1)), core_names)  # the same order
        assert attempt.evaluations == before


class TestEvidence:
    names = tuple(name for name, score in SCORES.items() if score.needs == "evidence")

    def test_the_perfect_map_scores_best_and_its_opposite_worst(self) -> None:
        best = trial().scores(made(MASK.astype(float)), self.names)
        worst = trial().scores(made(1.0 - MASK), self.names)
        assert best["energy"] == pytest.approx(1 / MASK[2].mean())
        assert best["energy_joint"] == pytest.approx(1 / MASK.mean())
        assert [best[name] for name in self.names[2:]] == [1] * 5
        assert worst["energy"] == worst["energy_joint"] == worst["temporal_auc"] == worst["temporal_iou"] == 0
        assert all(worst[name] < best[name] for name in self.names)

    def test_of_a_sign_the_positive_part_is_energy(self) -> None:
        found = trial().scores(made(np.where(MASK, 0.1, -5.0), signed=True), ["energy", "energy_joint"])
        assert found["energy"] == pytest.approx(1 / MASK[2].mean())
        assert found["energy_joint"] == pytest.approx(1 / MASK.mean())

    def test_only_what_the_network_sees_counts(self) -> None:
        """A network that sees the right half: a flat map is chance there, and evidence outside is out of its reach."""
        half = replace(NETWORK, seen=lambda h, w: core_box(0.0, w / 2, h, w / 2))
        flat = made(np.ones((8, 14, 14)), half)
        assert trial(half).scores(flat, ["energy"])["energy"] == pytest.approx(1)
        left = Evidence(MASK[:, :, ::-1], EVIDENCE.action)
        assert np.isnan(trial(half, evidence=left).scores(flat, ["energy"])["energy"])

    def test_without_evidence_there_are_no_such_scores(self) -> None:
        assert np.isnan(list(trial(evidence=None).scores(made(noise()), self.names).values())).all()

    def test_evidence_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"mask of shape \(8, 14, 14\).*must be \(8, 28, 28\)"):
            trial(evidence=Evidence(MASK[:, ::2, ::2], EVIDENCE.action))


def core_box(*sides: float) -> Any:
    from stabn.model import Box

    return Box(*sides)


class TestTrial:
    def test_all_scores_have_a_head_and_a_direction_of_their_own(self) -> None:
        assert len({score.title for score in SCORES.values()}) == len(SCORES)
        for score in SCORES.values():
            assert len(score.title) <= 16

    def test_every_score_is_computed(self) -> None:
        network = bright(lambda x: 0.8 * x[:, :, TUBE[0], TUBE[1], TUBE[2]].mean((1, 2, 3, 4)))
        explanation = core.explain(network, tube_clip(), "input_x_gradient", 0)
        found = trial(network, steps=3, orders=1).scores(explanation, SCORES, again("input_x_gradient"))
        assert list(found) == list(SCORES)
        assert np.isfinite(list(found.values())).all()
        assert all(isinstance(value, float) for value in found.values())

    def test_a_clip_without_a_fall_is_not_scorable(self) -> None:
        network = bright(lambda x: 0.5 + 0.04 * x.mean((1, 2, 3, 4)))
        attempt = trial(network)
        assert not attempt.scorable
        clip_scores = [name for name, score in SCORES.items() if score.needs == "clip"]
        found = attempt.scores(made(noise(), network), [*clip_scores, "energy"])
        assert np.isnan([found[name] for name in clip_scores]).all()
        assert np.isfinite(found["energy"])
        assert attempt.evaluations == 2  # f(x) and f(b)

    def test_without_a_way_to_run_the_method_again_its_scores_are_undefined(self) -> None:
        names = [name for name, score in SCORES.items() if score.needs == "method"]
        assert np.isnan(list(trial().scores(made(noise()), names).values())).all()

    def test_refuses_what_it_cannot_score(self) -> None:
        with pytest.raises(ValueError, match="no score 'deletoin': did you mean 'deletion'"):
            trial().scores(made(noise()), ["deletoin"])
        with pytest.raises(ValueError, match="class 0 in 8 frames, but the trial is about class 1"):
            trial(target=1).scores(made(noise()), ["deletion"])
        with pytest.raises(ValueError, match="no class 2"):
            trial(target=2)
        with pytest.raises(ValueError, match="`steps` is 0"):
            trial(steps=0)
        with pytest.raises(ValueError, match="`baseline` must be one of"):
            trial(baseline="freeze")

    @pytest.mark.parametrize("calls", [0, 1, 4, 30])
    def test_the_network_is_left_as_it_was(self, calls: int) -> None:
        """After all scores, and after an exception in the n-th call."""
        torch.manual_seed(0)
        module = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2))
        with torch.no_grad():
            module[2].weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -1]]))
        module[1].eval()  # on purpose, while the others train
        module[2].bias.requires_grad_(False)
        network = Classifier(module, ["it", "not"], 8, plain)
        with untouched(module), counted(module[2], calls):
            if calls:
                with pytest.raises(RuntimeError, match="broken"):
                    self.all_scores(network)
            else:
                assert np.isfinite(self.all_scores(network)["randomisation"])

    def all_scores(self, network: Classifier) -> dict[str, float]:
        explanation = core.explain(bright(lambda x: x.mean((1, 2, 3, 4))), tube_clip(), "input_x_gradient", 0)
        return trial(network, steps=3, orders=1, chunk=2).scores(explanation, SCORES, again("input_x_gradient"))


class TestOtherRemovals:
    def test_frame_effects_by_hand(self) -> None:
        frames = np.zeros((4, 28, 28, 3), np.uint8)
        for t, value in enumerate((10, 250, 30, 120)):
            frames[t] = value
        clip = Clip.from_array(frames)
        network = bright(lambda x: x[:, 0, :, 0, 0] @ torch.tensor([0.0, 0.5, 0.3, 0.2]), 4)
        attempt = trial(network, clip, evidence=None)
        # Frozen frames take the earlier of two neighbours, the first one the second's.
        lost = np.array([0, 0.5 * (250 - 10), 0.3 * (30 - 250), 0.2 * (120 - 30)]) / 255
        for sign in (1, -1):
            found = attempt.scores(made(sign * lost[:, None, None], network, clip, signed=True), ["frame_effect"])
            assert found["frame_effect"] == pytest.approx(sign)

    def test_average_drop_and_increase_by_hand(self) -> None:
        names = ["average_drop", "increase"]
        f = 1 - 1e-6
        assert trial().scores(made(MASK.astype(float)), names) == pytest.approx({"average_drop": 0, "increase": 0})
        assert trial().scores(made(1.0 - MASK), names) == pytest.approx({"average_drop": 1, "increase": 0}, abs=1e-5)
        half = made(np.where(MASK, 0.25, 0.0) + np.where(np.roll(MASK, 4, 0), 0.5, 0.0))  # over its maximum: a half
        assert trial().scores(half, names)["average_drop"] == pytest.approx(1 - 0.5 / f, abs=1e-4)

    def test_what_a_map_hides_may_have_spoken_against_the_class(self) -> None:
        network = bright(lambda x: (x[:, 0, :4].mean((1, 2, 3)) - x[:, 0, 4:].mean((1, 2, 3))).clamp(0, 1))
        clip = Clip.from_array(np.repeat(np.array([200] * 4 + [90] * 4, np.uint8), 28 * 28 * 3).reshape(8, 28, 28, 3))
        first = made(np.repeat([1.0, 0.0], 4)[:, None, None], network, clip)
        found = trial(network, clip, evidence=None).scores(first, ["average_drop", "increase"])
        assert found == {"average_drop": 0, "increase": 1}

    def test_road_prefers_the_perfect_map_and_is_a_number(self) -> None:
        attempt = trial(clip=tube_clip(40))
        best, chance, worst = (
            attempt.scores(made(each), ["road"], None)["road"] for each in (MASK.astype(float), noise(), 1.0 - MASK)
        )
        assert worst < -0.5 < abs(chance) < 0.5 < best


class TestRandomisation:
    names = metrics.RANDOMISED

    def test_layers_go_from_the_logits_down_and_the_network_stays(self) -> None:
        network = classifier(small())
        inputs = torch.rand(1, 3, 6, 32, 32)
        before = {name: value.clone() for name, value in network.module.state_dict().items()}
        changed = []
        with untouched(network.module):
            for each in metrics.randomised(network, inputs, stages=4):
                now = each.module.state_dict()
                changed.append({name for name, value in before.items() if not torch.equal(value, now[name])})
        assert len(changed) == 4
        assert all(fewer < more for fewer, more in pairwise(changed))
        assert "fc.weight" in changed[0]
        lowest = next(name for name in before if name.endswith("weight"))
        assert lowest not in changed[2]
        weights = {name for name, value in network.module.named_parameters() if value.ndim > 1}
        assert weights <= changed[3]

    def test_what_a_layer_cannot_initialise_is_drawn_anew(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(torch.full((3, 2), 2.0) + torch.arange(6.0).view(3, 2))

            def forward(self, clips: Tensor) -> Tensor:
                return clips.mean((2, 3, 4)) @ self.table

        network = Classifier(Own(), ["a", "b"], 4, plain)
        (found,) = metrics.randomised(network, torch.rand(1, 3, 4, 8, 8))
        assert not torch.isclose(found.module.table, network.module.table).any()

    @pytest.mark.parametrize("method", ["input_x_gradient", "centre"])
    def test_a_map_that_owes_nothing_to_weights_is_unchanged(self, method: str) -> None:
        network = bright(lambda x: x.mean((1, 2, 3, 4)))  # it has no weights
        explanation = core.explain(network, tube_clip(), method, 0)
        found = trial(network).scores(explanation, self.names, again(method))
        assert list(found.values()) == pytest.approx([1, 1, 1])

    def test_a_map_of_gradients_changes_with_the_weights_and_a_control_does_not(self) -> None:
        network, clip = classifier(small()), Clip.from_array(noisy(6, 32))
        attempt = Trial(network, clip, 0)
        names = {}
        for method in ("input_x_gradient", "frame_difference"):
            explanation = core.explain(network, clip, method, 0)
            names[method] = attempt.scores(explanation, self.names, again(method))
        assert list(names["frame_difference"].values()) == pytest.approx([1, 1, 1])
        assert names["input_x_gradient"]["randomisation"] < 0.6

    def test_the_same_seed_gives_the_same_score(self) -> None:
        network, clip = classifier(small()), Clip.from_array(noisy(6, 32))
        explanation = core.explain(network, clip, "saliency", 0)
        one, other = (Trial(network, clip, 0).scores(explanation, self.names, again("saliency")) for _ in range(2))
        assert one == other


def noisy(frames: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


class TestNull:
    names = metrics.NULL

    def found(self, of: Callable[[Tensor], Tensor], method: str = "saliency") -> dict[str, float]:
        network, clip = bright(of), Clip.from_array(noisy(8, 28))
        explanation = core.explain(network, clip, method, 0)
        return Trial(network, clip, 0).scores(explanation, self.names, again(method))

    def test_a_network_that_is_blind_to_order(self) -> None:
        """Each frame's gradient is its own brightness: it goes with the frame, and with its pixels in any order."""
        found = self.found(lambda x: x.square().mean((1, 2, 3, 4)))
        assert found["null_range"] == pytest.approx(0, abs=1e-5)
        assert [found[name] for name in self.names[1:]] == pytest.approx([1, 1, 1])  # it has no weights to train

    def test_a_network_that_weighs_positions(self) -> None:
        by_position = torch.tensor([1.0, 8, 2, 7, 3, 6, 4, 5]) / 36
        found = self.found(lambda x: x.mean((1, 3, 4)) @ by_position)
        assert found["null_range"] == pytest.approx(7 / 8, rel=0.05)  # up to the scale of the gradient of log f
        assert found["null_shift"] == pytest.approx(metrics.spearman(by_position[2:].numpy(), by_position[:6].numpy()))
        assert found["null_shuffle"] == pytest.approx(1)

    def test_a_map_that_is_constant_over_time_has_no_correlation(self) -> None:
        network, clip = bright(lambda x: x.mean((1, 2, 3, 4))), Clip.from_array(noisy(8, 28))
        explanation = core.explain(network, clip, "saliency", 0)
        found = Trial(network, clip, 0).scores(explanation, self.names, again("saliency"))
        assert found["null_range"] == pytest.approx(0, abs=1e-5)
        assert np.isnan(found["null_shift"])


class TestCaptum:
    def linear(self) -> Classifier:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 28 * 28, 2, bias=False))
        return Classifier(module, ["it", "not"], 4, plain)

    def test_sensitivity_of_the_clip_itself_by_hand(self) -> None:
        """S = x: the largest change is that of the noise."""
        inputs = torch.ones(1, 3, 4, 10, 10)
        inputs[..., 0] = 0
        volume = inputs[0, 0].double().numpy()
        asked = []

        def explained(clip: Tensor) -> np.ndarray:
            asked.append(clip)
            return clip[0, 0].numpy()

        found = attribution.max_sensitivity(explained, inputs, volume, radius=0.1, samples=3)
        changes = [np.linalg.norm(clip[0, 0].numpy() - volume) / np.linalg.norm(volume) for clip in asked]
        assert len(changes) == 3
        assert found == pytest.approx(max(changes), rel=1e-5)
        assert 0.03 < found < 0.1 * (400 / 360) ** 0.5
        assert all((clip - inputs).abs().max() <= 0.1 for clip in asked)

    def test_sensitivity_of_methods_that_need_gradients(self) -> None:
        network, clip = self.linear(), Clip.from_array(noisy(4, 28))
        attempt, found = Trial(network, clip, 0), {}
        for method in ("saliency", "input_x_gradient", "centre"):
            explanation = core.explain(network, clip, method, 0)
            with torch.no_grad():  # whatever the caller's mode
                found[method] = attempt.scores(explanation, ["max_sensitivity"], again(method))["max_sensitivity"]
        # The gradient of a linear network is the same everywhere, and so is the middle.
        assert found["saliency"] == pytest.approx(0, abs=1e-6)
        assert found["centre"] == pytest.approx(0, abs=1e-6)
        assert 0.001 < found["input_x_gradient"] < 0.1

    def test_our_own_attention_takes_the_changed_clip(self) -> None:
        network, clip = classifier(small()), Clip.from_array(noisy(6, 32))
        explanation = core.explain(network, clip, "stabn", 0)
        found = Trial(network, clip, 0).scores(explanation, ["max_sensitivity"], again("stabn"))
        assert found["max_sensitivity"] > 0

    def test_infidelity_of_shares_of_a_linear_f_is_zero(self) -> None:
        weights = torch.rand(3, 8, 28, 28, generator=torch.Generator().manual_seed(0)) / (3 * 8 * 28 * 28)
        network = bright(lambda x: (x * weights).sum((1, 2, 3, 4)))
        clip = Clip.from_array(noisy(8, 28))
        attempt = trial(network, clip, evidence=None)
        exact = core.explain(network, clip, "input_x_gradient", 0)
        wrong = made(np.roll(noise(), 1) ** 8, network, clip)
        right, off = (attempt.scores(each, ["infidelity"])["infidelity"] for each in (exact, wrong))
        assert right == pytest.approx(0, abs=1e-7)
        assert off > 100 * abs(right)
        # The scale of a map is not a part of what it says.
        larger = replace(exact, temporal=1000 * exact.temporal)
        assert attempt.scores(larger, ["infidelity"])["infidelity"] == pytest.approx(right, abs=1e-7)


class TestPrecision:
    def test_bf16_is_near_fp32_and_only_without_gradient(self) -> None:
        network = classifier(small())
        network.module.eval()
        half = replace(network, precision="bf16")
        clips = torch.rand(2, 3, 6, 32, 32)
        with torch.no_grad():
            exact, near = network.logits(clips), half.logits(clips)
        assert near.dtype == torch.float32
        assert not torch.equal(exact, near)
        torch.testing.assert_close(exact.softmax(1), near.softmax(1), atol=0.03, rtol=0)
        assert torch.equal(network.logits(clips), half.logits(clips))
        assert half.logits(clips).requires_grad

    def test_other_precisions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`precision` must be fp32 or bf16, got 'fp8'"):
            replace(NETWORK, precision="fp8")
