"""The Explanation, how it is made, and how windows become one: promises checked by hand on tiny things."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch

import explain
from explain import core
from explain.core import Explanation, class_index, merge, place, sliding
from stabn.model import STABN, Attention, Box, Config
from stabn.video import Clip

CLASSES = ["Pushing something", "Moving something up", "Holding something"]


@pytest.fixture
def model() -> STABN:
    torch.manual_seed(0)
    config = Config(
        classes=3, frames=4, size=16, block="basic", layers=(1, 1, 1, 1), width=4, stem=(3, 3, 3), pool=False
    )
    return STABN(config, CLASSES).eval()


def clip(frames: int = 4, height: int = 20, width: int = 32) -> Clip:
    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip.from_array(noise, fps=10)


def explanation(**changes: Any) -> Explanation:
    """Two sampled frames with maps of 1 x 2 cells over a source of 2 x 4 pixels."""
    made = Explanation(
        method="stabn",
        target=0,
        classes=CLASSES,
        probabilities=np.array([0.7, 0.1, 0.2], np.float32),
        spatial=np.array([[[0.0, 1.0]], [[1.0, 0.0]]], np.float32),
        temporal=np.array([0.5, 1.0], np.float32),
        timestamps=np.array([1.0, 3.0]),
        frame_indices=np.array([10, 30]),
        source_size=(2, 4),
        view=Box(0, 0, 2, 4),
        scale=(0.0, 1.0),
        class_agnostic=True,
        signed=False,
    )
    return replace(made, **changes)


class TestExplain:
    def test_gives_what_the_network_computed(self, model: STABN) -> None:
        source = clip()
        found = explain.explain(model, source)
        with torch.inference_mode():
            output = model(model.preprocess(source.frames))
        assert isinstance(output.attention, Attention)
        assert output.attention.spatial is not None
        assert output.attention.temporal is not None
        np.testing.assert_array_equal(found.spatial, output.attention.spatial[0, 0].numpy())
        np.testing.assert_array_equal(found.temporal, output.attention.temporal[0, 0, :, 0, 0].numpy())
        np.testing.assert_allclose(found.probabilities, output.logits.softmax(1)[0].numpy(), rtol=1e-6)
        assert found.target == found.probabilities.argmax()
        assert found.class_agnostic
        assert found.scale == (0, 1)
        assert found.view == model.seen(20, 32)
        assert found.saliency.shape == (4, 20, 32)
        with pytest.raises(FrozenInstanceError):
            found.target = 1  # type: ignore[misc]

    def test_one_forward_pass(self, model: STABN) -> None:
        calls = []
        model.layer1.register_forward_hook(lambda *_: calls.append(1))
        explain.explain(model, clip(), target="Holding something")
        assert len(calls) == 1

    def test_every_method_keeps_the_contract(self, model: STABN) -> None:
        for method in explain.METHODS:
            found = explain.explain(model, clip(), method=method, target=1)
            assert found.method == method
            assert found.target == 1
            assert found.spatial.shape[0] == found.temporal.shape[0] == 4
            assert found.probabilities.sum() == pytest.approx(1)
            assert method in explain.TITLES

    @pytest.mark.parametrize("fails", [False, True])
    def test_leaves_the_model_as_it_was(self, model: STABN, fails: bool) -> None:
        model.train()
        model.layer1.eval()  # frozen on purpose by somebody
        model.fc.weight.requires_grad_(False)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        if fails:
            model.layer4.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
            with pytest.raises(RuntimeError, match="broken"):
                explain.explain(model, clip())
        else:
            explain.explain(model, clip())
        assert model.training
        assert model.layer4.training
        assert not model.layer1.training
        assert not any(module.training for module in model.layer1.modules())
        assert not model.fc.weight.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_does_not_change_the_clip(self, model: STABN) -> None:
        source = clip()
        before = source.frames.copy()
        explain.explain(model, source)
        np.testing.assert_array_equal(source.frames, before)

    def test_refuses_with_both_numbers(self, model: STABN) -> None:
        with pytest.raises(ValueError, match=r"`clip` has 5 frames, this checkpoint was trained on 4: .*frames=4"):
            explain.explain(model, clip(5))

    def test_unknown_method_names_those_there_are(self, model: STABN) -> None:
        with pytest.raises(ValueError, match=r"no method 'stab': did you mean 'stabn'"):
            explain.explain(model, clip(), method="stab")

    @pytest.mark.parametrize(("attention", "absent"), [("spatial", "temporal"), ("temporal", "spatial")])
    def test_variant_without_one_attention(self, attention: str, absent: str) -> None:
        config = Config(
            classes=3, frames=4, size=16, block="basic", layers=(1, 1, 1, 1), width=4, stem=(1, 3, 3),
            attention=attention,  # type: ignore[arg-type]
        )  # fmt: skip
        found = explain.explain(STABN(config), clip())
        assert (getattr(found, absent) == 1).all()
        assert f"this network has no {absent} attention" in found.notes

    def test_variant_without_attention_is_refused(self) -> None:
        config = Config(
            classes=3, frames=4, size=16, block="basic", layers=(1, 1, 1, 1), width=4, stem=(1, 3, 3),
            attention="none",
        )  # fmt: skip
        with pytest.raises(ValueError, match="without one"):
            explain.explain(STABN(config), clip())

    def test_what_is_not_finite_is_a_sentence(self, model: STABN) -> None:
        with torch.no_grad():
            model.stem[0].weight.fill_(3e38)
        with pytest.raises(ValueError, match="'stabn' found values that are not finite"):
            explain.explain(model, clip())


class TestNotes:
    def test_flat_maps_are_said_to_be_flat(self) -> None:
        flat = explanation(
            spatial=np.array([[[0.50, 0.549]], [[0.52, 0.53]]], np.float32), temporal=np.array([0.3, 0.34])
        )
        space, time = core._noted(flat).notes
        assert space == "almost flat in space (0.50 to 0.55): no place stands out"
        assert time == "almost flat in time (0.30 to 0.34): no moment stands out"
        assert flat.peak() is None

    def test_a_spread_of_005_is_not_flat(self) -> None:
        spread = explanation(spatial=np.array([[[0.5, 0.55]], [[0.5, 0.5]]], np.float64))
        assert core._noted(spread).notes == ()

    def test_flatness_is_relative_to_the_scale(self) -> None:
        large = explanation(spatial=np.array([[[99.0, 100.0]], [[98.0, 99.0]]]), scale=(0.0, 100.0))
        assert any("space" in note for note in core._noted(large).notes)


class TestExplanation:
    def test_saliency_by_hand(self) -> None:
        # Cells have their centres at pixels 1 and 3 (of 0..4), pixels at 0.5, 1.5, 2.5, 3.5.
        row = np.array([0, 0.25, 0.75, 1])
        np.testing.assert_allclose(explanation().saliency, [[0.5 * row] * 2, [row[::-1]] * 2], atol=1e-6)

    def test_saliency_is_zero_outside_the_view(self) -> None:
        placed = explanation(source_size=(2, 6), view=Box(0, 1, 2, 4)).saliency
        np.testing.assert_allclose(placed[1, 0], [0, 1, 0.75, 0.25, 0, 0], atol=1e-6)

    def test_place_agrees_with_torch_and_keeps_its_input(self) -> None:
        maps = np.random.default_rng(1).random((3, 5, 7)).astype(np.float32)
        before = maps.copy()
        wanted = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], (23, 31), mode="bilinear")[0]
        np.testing.assert_allclose(place(maps, (0, 0, 23, 31), (23, 31)), wanted.numpy(), atol=1e-5)
        np.testing.assert_array_equal(maps, before)

    def test_a_map_as_large_as_the_picture_is_not_changed(self) -> None:
        picture = np.random.default_rng(2).random((4, 6)).astype(np.float32)
        np.testing.assert_allclose(place(picture, (0, 0, 4, 6), (4, 6)), picture, atol=1e-6)

    def test_heat_is_linear_in_time_and_constant_beyond(self) -> None:
        found = explanation()
        np.testing.assert_allclose(found.spatial_at(1.5), [[0.25, 0.75]])
        np.testing.assert_allclose(found.spatial_at(0), [[0, 1]])
        np.testing.assert_allclose(found.spatial_at(9), [[1, 0]])

    def test_repeated_frames_count_once(self) -> None:
        repeated = explanation(timestamps=np.array([1.0, 1.0]), frame_indices=np.array([10, 10]))
        seconds, temporal, spatial = repeated.timeline
        np.testing.assert_allclose(seconds, [1.0])
        np.testing.assert_allclose(temporal, [0.75])
        np.testing.assert_allclose(spatial, [[[0.5, 0.5]]])
        np.testing.assert_allclose(repeated.spatial_at(5), [[0.5, 0.5]])

    def test_peak_is_the_run_around_the_maximum(self) -> None:
        found = explanation(
            temporal=np.array([0.9, 0.1, 0.6, 1.0, 0.55, 0.1]),
            spatial=np.zeros((6, 1, 1)),
            timestamps=np.arange(6) / 2,
            frame_indices=np.arange(6),
        )
        assert found.peak() == (1.0, 2.0)

    def test_top(self) -> None:
        best = explanation().top(2)
        assert [name for name, _ in best] == ["Pushing something", "Holding something"]
        assert best[0][1] == pytest.approx(0.7)

    def test_doubt_is_said(self) -> None:
        assert core.answer(CLASSES, np.array([0.7, 0.2, 0.1])) == "Pushing something 70 %"
        assert core.answer(CLASSES, np.array([0.3, 0.4, 0.3])) == "Moving something up 40 % (not sure)"


class TestClassIndex:
    @pytest.mark.parametrize("target", [2, "2", "Holding something", "holding SOMETHING", np.int64(2)])
    def test_finds(self, target: Any) -> None:
        assert class_index(CLASSES, target) == 2

    def test_suggests_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"no class 'Holding' among the 3: did you mean 'Holding something'"):
            class_index(CLASSES, "Holding")

    @pytest.mark.parametrize("target", [3, -1, "7"])
    def test_refuses_a_wrong_index(self, target: Any) -> None:
        with pytest.raises(ValueError, match=r"the 3 classes are 0 to 2|among the 3"):
            class_index(CLASSES, target)

    @pytest.mark.parametrize("target", [True, 1.5, [1]])
    def test_refuses_other_types(self, target: Any) -> None:
        with pytest.raises(TypeError, match="index or the name"):
            class_index(CLASSES, target)


class TestWindows:
    def test_the_last_window_ends_with_the_video(self) -> None:
        assert sliding(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
        assert sliding(9, 4, 4) == [(0, 4), (4, 8), (5, 9)]

    def test_a_long_window_is_the_whole_video(self) -> None:
        assert sliding(3, 4, 2) == [(0, 3)]

    @pytest.mark.parametrize(("window", "stride"), [(0, 1), (-2, 1), (2, 0), (2, 3), (np.nan, 1), (2, np.nan)])
    def test_gaps_and_nonsense_are_refused(self, window: float, stride: float) -> None:
        with pytest.raises(ValueError, match=r"must be longer than 0 s"):
            sliding(10, window, stride)

    def test_a_clip_that_claims_to_last_for_years_does_not_take_all_memory(self) -> None:
        with pytest.raises(ValueError, match="more than 100,000 in 1e\\+09 s: use a longer stride"):
            sliding(1e9, 4, 2)

    def test_merged_by_hand(self) -> None:
        # Window 0..4 samples 1 s and 3 s, window 2..6 samples 3 s and 5 s: only 3 s is in both.
        first = explanation()
        second = explanation(
            temporal=np.array([0.0, 0.4], np.float32),
            spatial=np.array([[[0.5, 0.5]], [[0.0, 0.2]]], np.float32),
            probabilities=np.array([0.1, 0.8, 0.1], np.float32),
            timestamps=np.array([3.0, 5.0]),
            frame_indices=np.array([30, 50]),
        )
        merged = merge([first, second], [(0, 4), (2, 6)])
        np.testing.assert_array_equal(merged.frame_indices, [10, 30, 50])
        np.testing.assert_allclose(merged.timestamps, [1, 3, 5])
        np.testing.assert_allclose(merged.temporal, [0.5, 0.5, 0.4])
        np.testing.assert_allclose(merged.spatial[:, 0], [[0, 1], [0.75, 0.25], [0, 0.2]], atol=1e-6)
        np.testing.assert_allclose(merged.probabilities, [0.4, 0.45, 0.15])
        assert merged.target == 1
        assert merged.window_probabilities is not None
        np.testing.assert_allclose(merged.window_probabilities, [[0.7, 0.1, 0.2], [0.1, 0.8, 0.1]])
        np.testing.assert_allclose(merged.probabilities_at(1.9), [0.7, 0.1, 0.2])
        np.testing.assert_allclose(merged.probabilities_at(3.1), [0.1, 0.8, 0.1])

    def test_merged_between_the_frames_of_another_window(self) -> None:
        # 2 s is sampled by the second window only; the first has 0.75 there, halfway between its 0.5 and 1.0.
        second = explanation(
            temporal=np.array([0.25, 0.25], np.float32),
            timestamps=np.array([2.0, 5.0]),
            frame_indices=np.array([20, 50]),
        )
        merged = merge([explanation(), second], [(0, 4), (2, 6)])
        np.testing.assert_allclose(merged.temporal, [0.5, 0.5, (1 + 0.25) / 2, 0.25])

    def test_a_stand_in_before_its_window_is_covered(self) -> None:
        still = explanation(timestamps=np.array([1.0, 1.0]), frame_indices=np.array([10, 10]))
        merged = merge([explanation(), still], [(0, 4), (4, 6)])
        assert np.isfinite(merged.temporal).all()
        np.testing.assert_array_equal(merged.frame_indices, [10, 30])

    def test_one_window_over_everything_changes_nothing(self, model: STABN) -> None:
        source = clip()
        plain = explain.explain(model, source)
        windowed = core.explain_windows(model, iter([source]), [(0, source.duration)])
        np.testing.assert_allclose(windowed.temporal, plain.temporal, rtol=1e-6)
        np.testing.assert_allclose(windowed.spatial, plain.spatial, rtol=1e-6)
        assert windowed.notes == plain.notes

    def test_memory_does_not_grow_with_the_number_of_windows(self, model: STABN) -> None:
        living: list[weakref.ref[Clip]] = []
        most = 0

        def clips() -> Iterator[Clip]:
            nonlocal most
            for _ in range(6):
                made = clip()
                living.append(weakref.ref(made))
                most = max(most, sum(each() is not None for each in living))
                yield made
                del made

        core.explain_windows(model, clips(), sliding(3.5, 1, 0.5))
        assert most <= 2

    def test_the_target_stays(self, model: STABN) -> None:
        source = clip()
        found = core.explain_windows(model, iter([source, source]), [(0, 1), (1, 2)], target="Moving something up")
        assert found.target == 1
