"""Localisation metrics on maps small enough to score by hand."""

import numpy as np
import pytest

from explain import metrics

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
    assert np.isnan(metrics.energy_in_mask(np.zeros((4, 2, 2)), left_half(), ACTION))


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
    one = metrics.centre_maps(2, 5, 7)[1]
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
