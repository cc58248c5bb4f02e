"""Methods beside the network's own attention: one contract for all of them, then what each one promises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import video

import explain
import stabn
from explain import core, methods, perturbation
from explain.models import Classifier, cam_layer, classifier, grid, layers, resized, try_out
from stabn import synthetic
from stabn.model import STABN, Config
from stabn.video import Clip

CLASSES = ["one", "two", "three", "four", "five"]
SIGNED = {
    *("input_x_gradient", "integrated_gradients", "lrp", "occlusion", "lime"),
    *("frame_shapley", "leave_one_frame_out"),
}
AGNOSTIC = {"stabn", "random", "centre", "frame_difference"}
# As little as shows that it works.
FEW: dict[str, dict[str, Any]] = {
    "smooth_grad": {"samples": 2, "chunk": 1},
    "integrated_gradients": {"steps": 2, "chunk": 1},
    "occlusion": {"tube": (4, 16, 16), "stride": (4, 16, 16)},
    "lime": {"samples": 4, "grid": (2, 2, 2)},
    "rise": {"samples": 4},
    "meaningful_perturbation": {"steps": 2},
    "extremal_perturbation": {"steps": 2},
    "frame_shapley": {"permutations": 1},
}
NO_RELU = "this network calls no ReLU"
OTHER_NETWORK = "shows the attention of an ST-ABN network"
HEADS = {"stabn": "fc", "r3d_18": "fc", "swin3d_t": "head"}
# All that is refused; any other pair of method and network works.
REFUSED = {
    ("stabn", "r3d_18"): OTHER_NETWORK,
    ("stabn", "swin3d_t"): OTHER_NETWORK,
    ("guided_backprop", "swin3d_t"): NO_RELU,
    ("guided_grad_cam", "swin3d_t"): NO_RELU,
    ("deconvnet", "swin3d_t"): NO_RELU,
    ("lrp", "swin3d_t"): "lrp has no rule for",
}


def small(**changes: Any) -> STABN:
    torch.manual_seed(0)
    config = {
        "classes": 5, "frames": 6, "size": 32, "block": "basic", "layers": (1, 1, 1, 1), "width": 2,
        "stem": (3, 3, 3), "pool": False, "crop": False, **changes,
    }  # fmt: skip
    network = STABN(Config(**config), CLASSES)  # type: ignore[arg-type]
    with torch.no_grad():  # or all classes would be alike
        network.fc.weight *= 30
    return network


@pytest.fixture(scope="module")
def networks() -> dict[str, Classifier]:
    """As somebody left them: in training, but for a part, and with a frozen parameter."""
    torch.manual_seed(0)
    found = {"stabn": classifier(small())}
    for name in ("r3d_18", "swin3d_t"):
        found[name] = Classifier(getattr(video, name)(num_classes=5), CLASSES, 4, resized((32, 32)))
    for network in found.values():
        network.module.train()
        next(network.module.children()).eval()
        next(network.module.parameters()).requires_grad_(False)
    return found


def clip(frames: int = 6, height: int = 32, width: int = 32) -> Clip:
    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip.from_array(noise, fps=10)


def volume(found: core.Explanation) -> np.ndarray:
    return found.temporal[:, None, None] * found.spatial


def told(model: STABN | Classifier, source: Clip, method: str, target: Any = None, **options: Any) -> np.ndarray:
    return volume(core.explain(model, source, method, target, **options))


def state(module: nn.Module) -> Any:
    """Everything about a network that a method could leave changed."""
    hooks = {
        (name, key): len(value)
        for name, each in module.named_modules()
        for key, value in vars(each).items()
        if "hooks" in key
    }
    attributes = {name: sorted(vars(each)) for name, each in module.named_modules()}
    modes = {name: each.training for name, each in module.named_modules()}
    flags = {name: (each.requires_grad, each.grad is None) for name, each in module.named_parameters()}
    values = {name: value.sum().item() for name, value in module.state_dict().items()}
    return hooks, attributes, modes, flags, values, torch.get_rng_state().tolist(), torch.is_grad_enabled()


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    before = state(module)
    yield
    for was, now in zip(before, state(module), strict=True):
        assert was == now


@contextmanager
def counted(head: nn.Module, breaks: int = 0) -> Iterator[list[int]]:
    """How many clips are in each pass; the pass of number `breaks` raises."""
    clips: list[int] = []

    def count(module: nn.Module, inputs: Any) -> None:
        clips.append(len(inputs[0]))
        if len(clips) == breaks:
            raise RuntimeError("broken")

    handle = head.register_forward_pre_hook(count)
    try:
        yield clips
    finally:
        handle.remove()


class TestContract:
    @pytest.mark.parametrize(("method", "name"), REFUSED)
    def test_refuses_with_the_reason(self, networks: Any, method: str, name: str) -> None:
        network = networks[name]
        with untouched(network.module), pytest.raises(ValueError, match=REFUSED[method, name]):
            core.explain(network, clip(network.frames), method)

    @pytest.mark.parametrize(
        ("method", "name"), [each for each in product(explain.METHODS, HEADS) if each not in REFUSED]
    )
    def test_every_other_pair_answers_and_leaves_no_trace(self, networks: Any, method: str, name: str) -> None:
        network = networks[name]
        module, source = network.module, clip(network.frames)
        head, options = module.get_submodule(HEADS[name]), FEW.get(method, {})
        with untouched(module):
            first = core.explain(network, source, method, **options)
        torch.rand(1)  # whatever the generators are
        with counted(head) as clips:
            found = core.explain(network, source, method, **options)
        for each in ("spatial", "temporal", "probabilities"):
            np.testing.assert_array_equal(getattr(first, each), getattr(found, each))
            assert getattr(found, each).dtype == np.float32
        assert (first.scale, first.notes, first.target) == (found.scale, found.notes, found.target)
        assert found.evaluations == sum(clips) >= 1

        assert (found.method, found.target, found.classes) == (method, found.probabilities.argmax(), CLASSES)
        assert found.spatial.ndim == 3
        assert len(found.spatial) == len(found.temporal) == network.frames
        assert found.saliency.shape == (network.frames, 32, 32)
        for values in (found.spatial, found.temporal, found.saliency):
            assert np.isfinite(values).all()
            assert values.any()
        assert found.signed == (method in SIGNED)
        assert found.class_agnostic == (method in AGNOSTIC)
        assert found.signed or (found.spatial.min() >= 0 and found.temporal.min() >= 0)
        assert found.scale[0] < found.scale[1]
        assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)

        with untouched(module), pytest.raises(ValueError, match="no class 7"):
            core.explain(network, source, method, 7, **options)
        for n in {1, len(clips)}:
            with untouched(module), pytest.raises(RuntimeError, match="broken"), counted(head, n):
                core.explain(network, source, method, **options)

    def test_every_name_is_that_of_its_function_and_has_a_title(self) -> None:
        assert set(explain.METHODS) == set(explain.TITLES)
        for name in explain.METHODS:
            run = core.resolve(name)
            assert name == ("stabn" if run is core.stabn_attention else run.__name__)
            assert list(inspect.signature(run).parameters)[:3] == ["network", "clip", "target"]

    def test_the_target_is_asked_about(self) -> None:
        network = small()
        asked = core.explain(network, clip(), "hires_cam", "four")
        assert asked.target == 3
        named = core.explain(network, clip(), "hires_cam", 3)
        np.testing.assert_array_equal(asked.spatial, named.spatial)
        other = core.explain(network, clip(), "hires_cam", 2)
        assert np.abs(volume(asked) - volume(other)).max() > 0.1 * volume(other).max()


class TestFactors:
    def test_by_hand(self) -> None:
        s = np.array([[[10.0, 30.0]], [[0.0, 0.0]], [[0.0, 1.5]]])
        spatial, temporal, scale = methods.factors(s, signed=False)
        # Sums are 40, 0 and 1.5; the weak one is raised towards 2, 5 % of the strongest.
        np.testing.assert_allclose(temporal, [(40**2 + 2**2) ** 0.5, 0, 2.5], rtol=1e-6)
        np.testing.assert_allclose(temporal[:, None, None] * spatial, s, rtol=1e-6)
        np.testing.assert_allclose(spatial[2], [[0, 0.6]], rtol=1e-6)
        assert scale == (0, pytest.approx(30 / temporal[0]))

    def test_signed(self) -> None:
        s = np.array([[[1.0, -3.0]], [[3.5, 0.0]]])
        spatial, temporal, scale = methods.factors(s, signed=True)
        np.testing.assert_allclose(temporal, [4, 3.5], rtol=0.002)
        np.testing.assert_allclose(temporal[:, None, None] * spatial, s, rtol=1e-6)
        assert scale == (-scale[1], pytest.approx(1, rel=0.002))  # of the frame with the largest value

    def test_raising_keeps_the_order_of_frames(self) -> None:
        sums = np.array([1.0, 1e-3, 1e-4, 0.0, 0.5, 2e-3])
        _, temporal, _ = methods.factors(np.stack([sums, 0 * sums], 1)[:, None], signed=False)
        assert temporal.argsort().tolist() == sums.argsort().tolist()

    def test_a_single_pixel_does_not_stretch_the_scale(self) -> None:
        s = np.ones((2, 20, 20))
        s[0, 0, 0] = 100
        spatial, _, scale = methods.factors(s, signed=False)
        assert scale == (0, pytest.approx(spatial[0, 1, 1]))
        alone = np.zeros((2, 20, 20))
        alone[0, 0, 0] = 1
        assert methods.factors(alone, signed=False)[2] == (0, pytest.approx(1, rel=0.002))

    def test_a_weight_for_each_frame_keeps_its_sign(self) -> None:
        spatial, temporal, _ = methods.factors(np.array([0.5, -0.25]).reshape(2, 1, 1), signed=True)
        np.testing.assert_allclose(temporal, [0.5, -0.25])
        assert (spatial == 1).all()

    def test_between_steps_linear_in_time(self) -> None:
        # Two steps with centres at frames 0.5 and 2.5 of 4.
        found = methods.in_time(torch.tensor([0.0, 4.0]).view(2, 1, 1), 4)
        np.testing.assert_allclose(found.flatten(), [0, 1, 3, 4])

    def test_blank_and_constant_are_said(self) -> None:
        network = small()
        with core.asked(network, clip(), "two") as (asked, index):
            found = methods.Question(asked, clip(), index).explanation("grad_cam", np.zeros((1, 2, 2)))
        assert any(note.startswith("blank: nothing speaks for 'two'") for note in found.notes)
        assert any("constant over time" in note and "6 frames" in note for note in found.notes)
        assert not found.temporal.any()
        assert found.scale == (0, 1)

    def test_the_chart_holds_negative_weights(self) -> None:
        with core.asked(small(), clip(), 0) as (asked, index):
            question = methods.Question(asked, clip(), index)
            found = question.explanation("x", np.array([1, -2, 0, 0, 0, 0.5]).reshape(6, 1, 1), signed=True)
        assert found.temporal_scale == (-2, 1)
        assert found.peak() == (0.0, 0.0)


class TestControls:
    def test_frame_difference_by_hand(self) -> None:
        frames = np.zeros((6, 32, 32, 3), np.uint8)
        frames[3:, :16] = 255
        found = volume(core.explain(small(), Clip.from_array(frames), "frame_difference"))
        assert (found[3, :16] > 1).all()
        found[3, :16] = 0
        assert not found.any()

    def test_centre(self) -> None:
        found = volume(core.explain(small(), clip(), "centre"))
        assert found[2:4, 6:8, 6:8].min() == pytest.approx(found.max())
        np.testing.assert_allclose(found, found[::-1, ::-1, ::-1], rtol=1e-5)

    def test_random_follows_its_seed(self) -> None:
        first, second = (told(small(), clip(), "random", seed=seed) for seed in (0, 1))
        assert np.abs(first - second).max() > 0.1


class Bright(nn.Module):
    """Two classes; the first one's probability is `of(clip)`, which is in 0..1 for clips in 0..1."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, clips: Tensor) -> Tensor:
        p = self.of(clips).clamp(1e-6, 1 - 1e-6)
        return torch.stack([p.log(), (1 - p).log()], 1)


def plain(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 255


def bright(of: Callable[[Tensor], Tensor], frames: int = 8, **fields: Any) -> Classifier:
    return Classifier(Bright(of), ["it", "not"], frames, plain, **fields)


TUBE = (slice(2, 4), slice(8, 16), slice(16, 24))


def tube_clip() -> Clip:
    """Dark noise but for one bright tube."""
    frames = np.random.default_rng(0).integers(0, 60, (8, 32, 32, 3), dtype=np.uint8)
    frames[TUBE] = 250
    return Clip.from_array(frames, fps=10)


class TestPerturbation:
    tube = bright(lambda x: x[:, :, TUBE[0], TUBE[1], TUBE[2]].mean((1, 2, 3, 4)))

    @pytest.mark.parametrize(
        ("method", "options", "energy"),
        [
            ("occlusion", {}, 0.4),
            ("occlusion", {"baseline": "mean", "tube": (2, 8, 8), "stride": (1, 4, 4)}, 0.4),
            ("rise", {"samples": 512}, 0.05),
            ("lime", {"samples": 256}, 0.5),
            ("meaningful_perturbation", {}, 0.15),
            ("extremal_perturbation", {"area": 0.03}, 0.25),
        ],
    )
    def test_finds_the_tube_that_is_the_evidence(self, method: str, options: Any, energy: float) -> None:
        found = core.explain(self.tube, tube_clip(), method, "it", **options)
        heat = found.saliency.clip(0)
        assert np.unravel_index(heat.argmax(), heat.shape) in {
            (t, y, x) for t in range(2, 4) for y in range(8, 16) for x in range(16, 24)
        }
        assert heat[TUBE].sum() / heat.sum() > energy  # chance is 1/64

    @pytest.mark.parametrize("method", ["occlusion", "rise", "lime", "frame_shapley", "leave_one_frame_out"])
    def test_chunks_change_nothing(self, method: str) -> None:
        few = {**FEW.get(method, {}), "samples": 7} if method in ("rise", "lime") else FEW.get(method, {})
        one, five = (told(self.tube, tube_clip(), method, 0, **few, chunk=chunk) for chunk in (1, 5))
        np.testing.assert_allclose(one, five, atol=1e-5 * np.abs(one).max())

    @pytest.mark.parametrize(
        ("method", "options", "evaluations"),
        [("occlusion", {"tube": (4, 16, 16), "stride": (4, 16, 16)}, 8 + 1), ("rise", {"samples": 6}, 6 + 1)],
    )
    def test_counts_and_reports(self, method: str, options: Any, evaluations: int) -> None:
        seen, most = [], []

        def progress(items: Any, count: int, label: str) -> Iterator[Any]:
            for item in items:
                seen.append((count, label))
                yield item

        hook = self.tube.module.register_forward_hook(lambda module, inputs, output: most.append(len(output)))
        found = core.explain(self.tube, tube_clip(), method, **options, chunk=3, progress=progress)
        hook.remove()
        assert found.evaluations == evaluations == sum(most)
        assert max(most) == 3
        assert len(seen) == seen[0][0] == -(-(evaluations - 1) // 3)

    def test_rise_is_the_mean_of_f_where_a_voxel_is_kept(self) -> None:
        # One cell that fills the clip: f is 1 if it is kept. Masks are 0 or 1 but for the shifts, which smooth them.
        always = bright(lambda x: x.mean((1, 2, 3, 4)))
        white = Clip.from_array(np.full((8, 32, 32, 3), 255, np.uint8))
        found = told(always, white, "rise", 0, samples=64, grid=(1, 1, 1), baseline="zero")
        assert found.min() == 0
        assert found.max() < 1

    def test_lime_of_a_linear_network_gives_its_terms(self) -> None:
        """f is a sum over the 8 tubes of a 2 x 2 x 2 grid, each with a weight of its own, white over black."""
        terms = torch.tensor([0.1, -0.05, 0.2, 0.0, 0.15, 0.05, -0.1, 0.3])

        def of(x: Tensor) -> Tensor:
            tubes = F.adaptive_avg_pool3d(x.mean(1, keepdim=True), 2).flatten(1)
            return 0.2 + tubes @ terms

        white = Clip.from_array(np.full((8, 32, 32, 3), 255, np.uint8))
        options = {"samples": 64, "grid": (2, 2, 2), "ridge": 1e-6, "baseline": "zero"}
        found = told(bright(of), white, "lime", 0, **options)
        np.testing.assert_allclose(found[::4].ravel(), terms, atol=1e-4)

    @pytest.mark.parametrize("area", [0.1, 0.3])
    def test_an_extremal_mask_has_the_area_that_is_asked_for(self, area: float) -> None:
        found = told(self.tube, tube_clip(), "extremal_perturbation", 0, area=area, steps=200)
        assert found.mean() == pytest.approx(area, abs=0.06)
        assert found.max() > 0.9

    @pytest.mark.parametrize(
        ("method", "options", "match"),
        [
            ("occlusion", {"tube": (0, 4, 4)}, "`tube` must be three numbers of 1 or more"),
            ("occlusion", {"chunk": 0}, "`chunk` is 0"),
            ("occlusion", {"baseline": "grey"}, "`baseline` must be one of blur, mean, zero; got 'grey'"),
            ("frame_shapley", {"baseline": "grey"}, "one of freeze, blur, mean, zero"),
            ("rise", {"samples": 0}, "`samples` is 0"),
            ("rise", {"keep": 1}, "`keep` is 1"),
            ("extremal_perturbation", {"area": 0}, "`area` is 0"),
            ("meaningful_perturbation", {"steps": 0}, "`steps` is 0"),
            ("smooth_grad", {"samples": 0}, "`samples` and `chunk` must be 1 or more"),
            ("integrated_gradients", {"steps": 0}, "`steps` and `chunk` must be 1 or more"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, method: str, options: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            core.explain(self.tube, tube_clip(), method, **options)


class TestFrames:
    weights = torch.tensor([0.05, 0.3, 0.0, 0.25, 0.1, 0.0])
    additive = bright(lambda x: x.mean((1, 3, 4)) @ TestFrames.weights, 6)
    levels = np.array([255, 204, 153, 102, 51, 255], np.uint8)

    def source(self) -> Clip:
        return Clip.from_array(np.repeat(self.levels, 32 * 32 * 3).reshape(6, 32, 32, 3))

    def test_shapley_values_of_an_additive_network_are_its_terms(self) -> None:
        exact = self.weights.numpy() * self.levels / 255
        for permutations in (1, 3):
            found = core.explain(
                self.additive, self.source(), "frame_shapley", "it", baseline="zero", permutations=permutations
            )
            np.testing.assert_allclose(found.temporal, exact, atol=1e-5)

    def test_shapley_values_of_two_that_need_each_other(self) -> None:
        both = bright(lambda x: x.mean((1, 3, 4))[:, 1] * x.mean((1, 3, 4))[:, 4], 6)
        white = Clip.from_array(np.full((6, 32, 32, 3), 255, np.uint8))
        # Forwards and backwards, one of the two comes last once: half each.
        found = core.explain(both, white, "frame_shapley", "it", baseline="zero", permutations=2)
        np.testing.assert_allclose(found.temporal, [0, 0.5, 0, 0, 0.5, 0], atol=1e-5)

    def test_shapley_values_sum_to_all_less_none(self) -> None:
        network, source = small().eval(), clip()
        found = core.explain(network, source, "frame_shapley", 1, permutations=4)
        inputs = network.preprocess(source.frames)
        with torch.no_grad():
            full, none = (
                float(network(x).logits.softmax(1)[0, 1]) for x in (inputs, perturbation.stand_in(inputs, "blur"))
            )
        assert abs(full - none) > 1e-3
        assert found.temporal.sum() == pytest.approx(full - none, abs=1e-6)

    def test_a_frozen_frame_shows_its_nearest(self) -> None:
        found = core.explain(self.additive, self.source(), "leave_one_frame_out", "it")
        nearest = self.levels[[1, 0, 1, 2, 3, 4]]  # the earlier of two
        lost = self.weights.numpy() * (self.levels.astype(float) - nearest) / 255
        np.testing.assert_allclose(found.temporal, lost, atol=1e-5)
        assert found.evaluations == 7

    def test_nearest_kept(self) -> None:
        kept = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 0]], dtype=torch.bool)
        wanted = [[0, 0, 3, 3, 3, 3], [5] * 6, [0, 0, 2, 2, 4, 4]]
        assert perturbation._nearest_kept(kept).tolist() == wanted


class Sequence(nn.Sequential):
    """Conv, norm, ReLU, pool, and a linear layer, each module used once: what captum's own versions can take."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(
            nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(4, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip
        with torch.no_grad():
            self[4].running_mean += 0.1 * torch.randn(6)
            self[4].bias += 0.1 * torch.randn(6)


@pytest.fixture
def sequence() -> Classifier:
    return Classifier(Sequence(), CLASSES, 6, resized((32, 32)))


class TestGradients:
    def test_smooth_grad_of_one_sample_without_noise_is_the_gradient(self) -> None:
        smooth = told(small(), clip(), "smooth_grad", samples=1, noise=0)
        np.testing.assert_allclose(smooth, told(small(), clip(), "saliency"), rtol=1e-5)

    def test_integrated_gradients_sum_to_the_difference_of_logits(self) -> None:
        network = small().eval()
        inputs = network.preprocess(clip().frames)
        with torch.no_grad():
            wanted = float((network(inputs).logits - network(torch.zeros_like(inputs)).logits)[0, 1])
        found = told(network, clip(), "integrated_gradients", 1, steps=200, chunk=20).sum()
        assert abs(wanted) > 0.01
        assert found == pytest.approx(wanted, rel=0.02)

    def test_functional_relu_counts_as_one(self) -> None:
        class Functional(Sequence):
            def forward(self, x: Tensor) -> Tensor:
                x = self[2](F.relu_(self[0](x)))
                return self[8](torch.relu(self[4](self[3](x))).mean((2, 3, 4)))

        for method in ("guided_backprop", "deconvnet", "lrp"):
            one, other = (
                told(Classifier(network, CLASSES, 6, resized((32, 32))), clip(), method, 2)
                for network in (Sequence(), Functional())
            )
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())

    @pytest.mark.parametrize("name", ["stabn", "r3d_18"])
    def test_lrp_keeps_the_logit(self, networks: Any, name: str) -> None:
        # Random weights have no biases yet, so that nothing is lost; residual sums and attention are on the way.
        network = classifier(networks[name])
        with core.asked(network, clip(network.frames), 2) as (asked, _), torch.no_grad():
            logit = float(asked.logits(asked.clip(clip(network.frames).frames))[0, 2])
        found = told(network, clip(network.frames), "lrp", 2, epsilon=0).sum(dtype=np.float64)
        assert found == pytest.approx(logit, rel=0.01)

    def test_lrp_does_not_run_away_in_a_trained_network(self) -> None:
        # Its residual sums cancel; without a stabiliser the magnitudes are thousands of times the logit.
        network = classifier(stabn.load("synthetic"))
        for seed in range(3):
            sample = synthetic.generate(seed, network.frames, network.size)
            pictures = Clip.from_array(sample.frames)
            with core.asked(network, pictures, sample.label) as (asked, target), torch.no_grad():
                logit = float(asked.logits(asked.clip(pictures.frames))[0, target])
            found = told(network, pictures, "lrp", sample.label)
            assert 0.1 * abs(logit) < np.abs(found).sum() < 3 * abs(logit)


class TestCams:
    def test_by_hand(self) -> None:
        # Two channels, two steps of one cell: A, and d logit / d A.
        a = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1)
        g = torch.tensor([[2.0, 0.0], [-1.0, 1.0]]).view(2, 2, 1, 1)
        wanted = {
            "grad_cam": [1, 2],  # weights 1 and 0
            "grad_cam_per_frame": [2 - 3, 4],
            "layer_cam": [2, 4],
            "hires_cam": [2 - 3, 4],
            # alpha = 1 / (2 + g sum(A)): weights 2 / (2 + 2 * 3) = 1/4 and 1 / (2 + 7) = 1/9
            "grad_cam_pp": [1 / 4 + 3 / 9, 2 / 4 + 4 / 9],
        }
        for name, values in wanted.items():
            np.testing.assert_allclose(methods.CAMS[name](a, g).flatten(), values, rtol=1e-6)
        assert set(wanted) == set(methods.CAMS)

    @pytest.mark.parametrize("name", ["stabn", "r3d_18"])
    def test_cam_is_grad_cam_times_the_cells_that_are_pooled(self, networks: Any, name: str) -> None:
        network = classifier(networks[name])
        source = clip(network.frames)
        with core.asked(network, source, None) as (asked, _):
            t, h, w = layers(asked, asked.clip(source.frames))["layer4"]
        one, other = (told(network, source, method) for method in ("cam", "grad_cam"))
        assert one.max() > 0
        np.testing.assert_allclose(one, t * h * w * other, atol=1e-4 * one.max())

    def test_cam_says_why_it_cannot(self, sequence: Classifier) -> None:
        for last, reason in (
            ([nn.Conv3d(6, 5, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()], "the weights of a linear layer"),
            ([nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(6, 5)], "needs global average pooling"),
            ([nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 5)], "needs global average pooling"),
        ):
            network = nn.Sequential(*list(Sequence())[:6], *last)
            with pytest.raises(ValueError, match=reason):
                core.explain(Classifier(network, CLASSES, 6, resized((32, 32))), clip(), "cam")

    def test_all_from_one_pass(self) -> None:
        network = small()
        passes: list[int] = []
        core.explain(network, clip(), "grad_cam")  # finds the layer
        network.fc.register_forward_hook(lambda *_: passes.append(1))
        found = methods.all_cams(network, clip(), "two")
        assert len(passes) == 1
        assert set(found) == set(methods.CAMS)
        for name, each in found.items():
            assert each.target == 1
            np.testing.assert_allclose(volume(each), told(network, clip(), name, 1), rtol=1e-5)

    def test_goes_back_to_the_activation_and_no_further(self) -> None:
        class OneWay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                raise RuntimeError("no further")

        network = small()
        network.layer2.register_forward_hook(lambda module, inputs, output: OneWay.apply(output))
        assert told(network, clip(), "hires_cam").any()
        with pytest.raises(RuntimeError, match="no further"):
            core.explain(network, clip(), "saliency")

    def test_a_layer_that_changes_its_input_in_place_may_follow(self, sequence: Classifier) -> None:
        networks = [Sequence(), Sequence()]
        networks[1][5] = nn.ReLU(inplace=True)
        one, other = (
            told(Classifier(network, CLASSES, 6, resized((32, 32)), layer="4"), clip(), "hires_cam", 2)
            for network in networks
        )
        assert one.any()
        np.testing.assert_array_equal(one, other)


class ClassToken(nn.Module):
    """Tokens of 2 x 8 x 8 voxels and a class token, which alone gives the logits after two attentions."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.patches = nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.patches(clips).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            y = block(x)
            x = x + F.scaled_dot_product_attention(3 * y, 3 * y, y)
        return self.head(self.norm(x)[:, 0])


class TestLayers:
    @pytest.mark.parametrize(
        ("shape", "size", "wanted"),
        [
            ((1, 8, 6, 4, 4), (6, 32, 32), (1, 8, 6, 4, 4)),  # a convolution
            ((1, 4, 8, 8, 96), (8, 32, 32), (1, 96, 4, 8, 8)),  # Swin
            ((1, 1568, 16), (16, 224, 224), (1, 16, 8, 14, 14)),  # VideoMAE
            ((1, 1569, 16), (16, 224, 224), (1, 16, 8, 14, 14)),  # with a class token
            ((8, 64, 7, 7), (8, 224, 224), (1, 64, 8, 7, 7)),  # a 2D network on each frame
            ((1, 512, 2, 8, 11), (16, 128, 171), (1, 512, 2, 8, 11)),
            ((4, 8, 6, 4, 4), (6, 32, 32), None),  # heads of an attention
            ((1, 5), (6, 32, 32), None),
            ((1, 7, 16), (6, 32, 32), None),
            ((1, 3, 6, 4, 9), (6, 32, 32), None),
        ],
    )
    def test_grid(self, shape: Any, size: Any, wanted: Any) -> None:
        found = grid(torch.zeros(shape), size)
        assert (None if found is None else tuple(found.shape)) == wanted

    def test_tokens_keep_their_places(self) -> None:
        tokens = torch.arange(1.0, 17).view(1, 16, 1)
        found = grid(torch.cat([torch.zeros(1, 1, 1), tokens], 1), (4, 20, 20))
        assert found is not None
        np.testing.assert_array_equal(found[0, 0], np.arange(1, 17).reshape(4, 2, 2))
        told = grid((tokens, [1, 4, 4]), (4, 20, 20))  # as MViT gives it, beside the grid
        assert told is not None
        np.testing.assert_array_equal(told[0, 0], np.arange(1, 17).reshape(1, 4, 4))

    @pytest.mark.parametrize(
        ("name", "layer", "cells"),
        [("stabn", "layer4", (6, 2, 2)), ("r3d_18", "layer4", (1, 2, 2)), ("swin3d_t", "features.4", (2, 2, 2))],
    )
    def test_the_last_with_a_grid_is_chosen(self, networks: Any, name: str, layer: str, cells: Any) -> None:
        network = classifier(networks[name])
        with core.asked(network, clip(network.frames), None) as (asked, _):
            inputs = asked.clip(clip(network.frames).frames)
            assert cam_layer(asked, inputs) == layer
            assert layers(asked, inputs)[layer] == cells

    def test_with_a_class_token_the_last_that_leads_to_it(self) -> None:
        network = Classifier(ClassToken(), CLASSES, 8, resized((32, 32)))
        with core.asked(network, clip(8), None) as (asked, _):
            inputs = asked.clip(clip(8).frames)
            assert list(layers(asked, inputs)) == ["patches", "blocks.0", "blocks.1", "norm"]
            assert cam_layer(asked, inputs) == "blocks.1"
        assert core.explain(network, clip(8), "hires_cam").spatial.shape == (8, 4, 4)

    def test_the_search_for_a_layer_makes_no_pass_twice(self) -> None:
        network = small()
        passes: list[int] = []
        handle = network.fc.register_forward_hook(lambda *_: passes.append(1))
        try:
            for wanted in (2, 3):  # the grids of all layers, and what is explained; then only this
                core.explain(network, clip(), "grad_cam", 1)
                assert len(passes) == wanted
            core.explain(network, clip(), "layer_cam")
            assert len(passes) == 4
        finally:
            handle.remove()

    def test_opening_a_network_spares_the_search(self) -> None:
        network = Classifier(Sequence(), CLASSES, 6, resized((32, 32)))
        passes: list[int] = []
        handle = network.module.register_forward_hook(lambda *_: passes.append(1))
        try:
            try_out(network, "this one")
            core.explain(network, clip(), "grad_cam", 2)
            assert len(passes) == 2
        finally:
            handle.remove()

    def test_a_class_that_nothing_speaks_for(self) -> None:
        network = Sequence()
        with torch.no_grad():
            network[-1].weight[3] = 0
        asked = Classifier(network, CLASSES, 6, resized((32, 32)))
        assert not told(asked, clip(), "grad_cam", target=3).any()
        assert told(asked, clip(), "grad_cam", target=2).any()

    def test_a_chosen_layer(self) -> None:
        network = small()
        assert core.explain(network, clip(), "grad_cam", layer="layer2").spatial.shape == (6, 8, 8)
        own = Classifier(network, CLASSES, 6, network.preprocess, layer="layer3")
        assert core.explain(own, clip(), "grad_cam").spatial.shape == (6, 4, 4)
        assert core.explain(own, clip(), "grad_cam", layer="layer2").spatial.shape == (6, 8, 8)

    @pytest.mark.parametrize(
        ("layer", "match"),
        [
            ("layer5", "there is no layer 'layer5': did you mean 'layer"),
            ("dropout", r"layer 'dropout' gives \(1, 16\), no grid .* choose one of .*layer4"),
            ("attention.scores", "'attention.scores' does not lead to the logits: choose one of"),
            ("layer4.0", None),
        ],
    )
    def test_says_which_layers_there_are(self, layer: str, match: str | None) -> None:
        if match is None:
            assert told(small(), clip(), "layer_cam", layer=layer).any()
            return
        with pytest.raises(ValueError, match=match):
            core.explain(small(), clip(), "grad_cam", layer=layer)

    def test_nothing_with_a_grid(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8 * 8, 5))
        with pytest.raises(ValueError, match="no layer of this network has a grid"):
            core.explain(Classifier(network, CLASSES, 6, resized((8, 8))), clip(), "grad_cam")


class TestClassifier:
    def test_the_other_layout_gives_the_same(self) -> None:
        class Turned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Sequence()

            def forward(self, clips: Tensor) -> Tensor:
                assert clips.shape[1:] == (6, 3, 32, 32)
                return self.inner(clips.transpose(1, 2))

        prepare = resized((32, 32))
        for method in ("hires_cam", "saliency", "occlusion"):
            one = told(Classifier(Sequence(), CLASSES, 6, prepare), clip(), method, **FEW.get(method, {}))
            other = Classifier(Turned(), CLASSES, 6, prepare, layout="NTCHW")
            np.testing.assert_allclose(one, told(other, clip(), method, **FEW.get(method, {})), rtol=1e-4, atol=1e-7)

    def test_an_output_with_logits(self) -> None:
        class Wrapped(Sequence):
            def forward(self, clips: Tensor) -> Any:
                return type("Output", (), {"logits": super().forward(clips)})

        one, other = (Classifier(kind(), CLASSES, 6, resized((32, 32))) for kind in (Sequence, Wrapped))
        np.testing.assert_array_equal(told(one, clip(), "grad_cam"), told(other, clip(), "grad_cam"))

    def test_resized_is_our_preprocess(self) -> None:
        network, source = small(), clip(6, 40, 56)
        np.testing.assert_allclose(resized((32, 32))(source.frames), network.preprocess(source.frames), atol=1e-5)

    def test_the_view_is_that_of_the_network(self) -> None:
        network = small(crop=True)
        found = core.explain(network, clip(6, 32, 48), "grad_cam")
        assert found.view == (0, 8, 32, 32)
        assert not found.saliency[:, :, :8].any()

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"classes": ["a", "b"]}, r"logits of shape \(\d, 2\), one for each of its 2 classes, but gave \(\d, 5\)"),
            ({"module": nn.Identity()}, r"logits of shape \(\d, 5\).* but gave \(\d, 3, 6, 32, 32\)"),
            ({"frames": 9}, "`clip` has 6 frames, this checkpoint was trained on 9"),
            ({"preprocess": lambda frames: torch.zeros(1, 3, 5, 8, 8)}, r"`preprocess` must give .* \(1, 3, 6, h, w\)"),
            ({"module": nn.Conv3d(3, 5, (7, 3, 3))}, "a clip of 6 x 32 x 32 .* is too small for this network"),
            ({"module": nn.Sequential(nn.MaxPool3d(64), nn.Flatten())}, "6 x 32 x 32 .* too small for this network"),
        ],
    )
    @pytest.mark.parametrize("method", ["grad_cam", "saliency", "rise"])
    def test_says_what_does_not_fit(self, fields: dict[str, Any], match: str, method: str) -> None:
        given = {"module": Sequence(), "classes": CLASSES, "frames": 6, "preprocess": resized((32, 32)), **fields}
        with pytest.raises(ValueError, match=match):
            core.explain(Classifier(**given), clip(), method)

    def test_a_plain_module_is_told_to_be_wrapped(self) -> None:
        with pytest.raises(TypeError, match=r"`model` is a Sequence.* wrap it as explain.models.Classifier"):
            core.explain(Sequence(), clip(), "grad_cam")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`layout` must be NCTHW or NTCHW, got 'NHWC'"):
            Classifier(Sequence(), CLASSES, 6, plain, layout="NHWC")  # type: ignore[arg-type]

    def test_windows(self, sequence: Classifier) -> None:
        parts = [(0.0, 0.6), (0.3, 0.9)]
        found = core.explain_windows(sequence, iter([clip(), clip()]), parts, "hires_cam", "two")
        single = core.explain(sequence, clip(), "hires_cam", "two")
        assert found.evaluations == 2 * single.evaluations
        assert found.scale == single.scale
        np.testing.assert_allclose(volume(found), volume(single), rtol=1e-5)
