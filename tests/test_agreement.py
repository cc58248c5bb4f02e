"""Methods against independent implementations, before enlarging and normalisation; never against the library that does
the work.

Other libraries leave hooks and gradients on the networks that they are given: each gets a copy.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum import attr
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from test_methods import CLASSES, Sequence, clip, small, told
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from explain import methods
from explain.models import Classifier, activation_and_gradient, classifier, resized, undisturbed
from explain.perturbation import stand_in

TARGET = 2


class Logits(nn.Module):
    """A copy of a network that gives its logits, as other libraries need it, `scale` times."""

    def __init__(self, network: Classifier, scale: float = 1.0) -> None:
        super().__init__()
        self.module, self.scale = deepcopy(network.module).eval(), scale

    def forward(self, clips: Tensor) -> Tensor:
        output = self.module(clips)
        return self.scale * getattr(output, "logits", output)


@pytest.fixture(scope="module", params=["stabn", "r3d_18"])
def network(request: Any) -> Classifier:
    if request.param == "stabn":
        return classifier(small())
    torch.manual_seed(0)
    return Classifier(r3d_18(num_classes=5), CLASSES, 8, resized((32, 32)))


@pytest.fixture
def sequence() -> Classifier:
    return Classifier(Sequence(), CLASSES, 6, resized((32, 32)))


def inputs_of(network: Classifier) -> Tensor:
    return network.clip(clip(network.frames).frames)


def ours(network: Classifier, method: str, layer: str, scale: float = 1.0) -> Tensor:
    """The map (t, h, w) of a layer."""
    scaled = Classifier(Logits(network, scale), CLASSES, network.frames, network.preprocess)
    with undisturbed(scaled.module):
        _, a, g = activation_and_gradient(scaled, inputs_of(network), f"module.{layer}", TARGET)
    return methods.CAMS[method](a, g).relu()


def agree(found: Any, wanted: Any, within: float = 1e-4) -> None:
    found, wanted = (np.asarray(each.detach() if isinstance(each, Tensor) else each) for each in (found, wanted))
    assert found.shape == wanted.shape
    largest = np.abs(wanted).max()
    assert largest > 0
    assert np.unique(wanted).size > 1
    assert np.abs(found - wanted).max() <= within * largest


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
class TestCams:
    def test_captum(self, network: Classifier, layer: str) -> None:
        their = Logits(network)
        method = attr.LayerGradCam(their, their.module.get_submodule(layer))
        wanted = method.attribute(inputs_of(network), target=TARGET, relu_attributions=True)[0, 0]
        agree(ours(network, "grad_cam", layer), wanted)
        if wanted.shape[0] == network.frames:  # the explanation holds the very map
            agree(told(network, clip(network.frames), "grad_cam", TARGET, layer=layer), wanted)

    @pytest.mark.parametrize(
        ("method", "other", "scale"),
        [
            ("grad_cam", "GradCAM", 1),
            ("layer_cam", "LayerCAM", 1),
            ("hires_cam", "HiResCAM", 1),
            # It adds 1e-6 to squared gradients, which are no larger unless logits are.
            ("grad_cam_pp", "GradCAMPlusPlus", 1e4),
        ],
    )
    def test_pytorch_grad_cam(self, network: Classifier, layer: str, method: str, other: str, scale: float) -> None:
        library = pytest.importorskip("pytorch_grad_cam")
        their, inputs = Logits(network, scale), inputs_of(network)
        at = their.module.get_submodule(layer)
        with getattr(library, other)(their, [at]) as cam:
            cam.activations_and_grads(inputs)[0, TARGET].backward()
            kept = cam.activations_and_grads
            features = (each[0].numpy() for each in (kept.activations, kept.gradients))
            wanted = cam.get_cam_image(inputs, at, None, *features, False)[0]
        agree(ours(network, method, layer, scale), np.maximum(wanted, 0))

    def test_monai(self, network: Classifier, layer: str) -> None:
        library = pytest.importorskip("monai.visualize")
        cam = library.GradCAM(Logits(network), f"module.{layer}")
        agree(ours(network, "grad_cam", layer), cam.compute_map(inputs_of(network), class_idx=TARGET)[0, 0])


class TestLastLayer:
    """Before global average pooling, where the gradient is the same in all cells of a channel."""

    def test_grad_cam_pp_of_monai(self, network: Classifier) -> None:
        # Elsewhere it differs: equation 19's third derivative is taken at the summed cells, not at the weighed one.
        library = pytest.importorskip("monai.visualize")
        scale, inputs = 1e4, inputs_of(network)
        cam = library.GradCAMpp(Logits(network, scale), "module.layer4")
        # It multiplies by exp(logit), which is beyond a float here: one for all cells.
        cam.nn_module.class_score = lambda logits, target: logits[:, target] - logits[:, target].detach()
        agree(ours(network, "grad_cam_pp", "layer4", scale), cam.compute_map(inputs, class_idx=TARGET)[0, 0])

    def test_cam_of_monai(self, network: Classifier) -> None:
        library = pytest.importorskip("monai.visualize")
        their = Logits(network)
        method = library.CAM(their, "module.layer4", "module.fc")
        with_bias = method.compute_map(inputs_of(network), [TARGET])[0, 0]
        wanted = methods.in_time((with_bias - their.module.fc.bias[TARGET]).detach().relu(), network.frames)
        agree(told(network, clip(network.frames), "cam", TARGET), wanted)


class TestGradients:
    def gradient(self, network: Classifier) -> Tensor:
        library = pytest.importorskip("monai.visualize")
        return library.VanillaGrad(Logits(network))(inputs_of(network), index=TARGET)[0]

    def test_saliency(self, network: Classifier) -> None:
        agree(told(network, clip(network.frames), "saliency", TARGET), self.gradient(network).abs().amax(0))

    def test_input_x_gradient(self, network: Classifier) -> None:
        wanted = (inputs_of(network)[0] * self.gradient(network)).sum(0)
        agree(told(network, clip(network.frames), "input_x_gradient", TARGET), wanted)

    def test_smooth_grad(self, network: Classifier) -> None:
        library = pytest.importorskip("monai.visualize")
        method = library.SmoothGrad(Logits(network), 0.2, n_samples=2, magnitude=False, verbose=False)
        with torch.random.fork_rng([]):
            torch.manual_seed(5)  # one by one, both draw the same noise
            wanted = method(inputs_of(network), index=TARGET)[0].abs().amax(0)
        options = {"noise": 0.2, "samples": 2, "chunk": 1, "seed": 5}
        agree(told(network, clip(network.frames), "smooth_grad", TARGET, **options), wanted)

    def test_integrated_gradients(self, network: Classifier) -> None:
        # In double, as a point on the way that is rounded otherwise may pass another ReLU.
        f = Logits(network).double()
        fine = Classifier(f, CLASSES, network.frames, lambda frames: network.preprocess(frames).double())
        inputs = inputs_of(fine)
        baseline = stand_in(inputs, "blur")
        total = torch.zeros_like(inputs)
        for at, weight in zip(*np.polynomial.legendre.leggauss(3), strict=True):  # on -1..1
            x = (baseline + (at + 1) / 2 * (inputs - baseline)).requires_grad_()
            total += weight / 2 * torch.autograd.grad(f(x)[0, TARGET], x)[0]
        wanted = ((inputs - baseline) * total)[0].sum(0)
        options = {"steps": 3, "chunk": 2, "baseline": "blur"}
        agree(told(fine, clip(network.frames), "integrated_gradients", TARGET, **options), wanted)


class TestOtherRules:
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("pytorch_grad_cam.guided_backprop", "GuidedBackpropReLU"),
            ("monai.visualize.gradient_based", "_AutoGradReLU"),
        ],
    )
    def test_guided_backprop(
        self, network: Classifier, module: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Both swap modules by type or name, and so miss F.relu; their rule is put into every ReLU.
        rule = getattr(pytest.importorskip(module), name).apply
        found = told(network, clip(network.frames), "guided_backprop", TARGET)
        inputs, their = inputs_of(network).requires_grad_(), Logits(network)
        monkeypatch.setattr(F, "relu", lambda x, inplace=False: rule(x))
        [gradient] = torch.autograd.grad(their(inputs)[0, TARGET], inputs)
        agree(found, gradient[0].abs().amax(0))

    @pytest.mark.parametrize(
        ("method", "name"), [("guided_backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")]
    )
    @pytest.mark.filterwarnings("ignore:Setting backward hooks")
    def test_captum_where_modules_are_used_once(self, sequence: Classifier, method: str, name: str) -> None:
        their = getattr(attr, name)(sequence.module.eval())
        wanted = their.attribute(inputs_of(sequence).requires_grad_(), target=TARGET)[0].abs().amax(0)
        agree(told(sequence, clip(), method, TARGET), wanted)

    @pytest.mark.filterwarnings("ignore:Setting backward hooks")
    def test_guided_grad_cam(self, sequence: Classifier) -> None:
        their = attr.GuidedGradCam(sequence.module.eval(), sequence.module[5])
        wanted = their.attribute(inputs_of(sequence).requires_grad_(), target=TARGET, interpolate_mode="trilinear")
        agree(told(sequence, clip(), "guided_grad_cam", TARGET, layer="5"), wanted[0].abs().amax(0))

    @pytest.mark.parametrize("gamma", [0, 0.25])
    def test_lrp(self, gamma: float) -> None:
        network = nn.Sequential(*(each for each in Sequence() if not isinstance(each, nn.BatchNorm3d))).eval()
        found = told(Classifier(network, CLASSES, 6, resized((32, 32))), clip(), "lrp", TARGET, gamma=gamma, epsilon=0)
        for layer in network:
            if not isinstance(layer, nn.ReLU):
                layer.rule = EpsilonRule()  # type: ignore[assignment]
        network[3].rule = GammaRule(gamma=gamma)  # the first one's input has negative values
        inputs = resized((32, 32))(clip().frames).requires_grad_()
        agree(found, attr.LRP(network).attribute(inputs, target=TARGET)[0].sum(0))

    def test_lrp_with_batch_norm(self, sequence: Classifier) -> None:
        found = told(sequence, clip(), "lrp", TARGET, gamma=0, epsilon=0)
        for layer in sequence.module.eval():  # type: ignore[operator]
            if not isinstance(layer, nn.ReLU):
                layer.rule = EpsilonRule()
        inputs = inputs_of(sequence).requires_grad_()
        agree(found, attr.LRP(sequence.module).attribute(inputs, target=TARGET)[0].sum(0))


class TestPerturbation:
    @pytest.mark.parametrize(
        ("tube", "stride", "baseline"), [((3, 13, 20), (3, 8, 11), "zero"), ((4, 32, 16), (1, 32, 16), "blur")]
    )
    def test_occlusion(self, tube: Any, stride: Any, baseline: str) -> None:
        network = classifier(small())
        inputs, their = inputs_of(network), Logits(network)
        found = told(network, clip(), "occlusion", TARGET, tube=tube, stride=stride, baseline=baseline)
        with torch.no_grad():
            wanted = attr.Occlusion(lambda x: their(x).softmax(1)).attribute(
                inputs,
                (3, *tube),
                strides=(3, *stride),
                target=TARGET,
                baselines=stand_in(inputs, baseline),
            )
        agree(found, wanted[0, 0])

    def test_leave_one_frame_out(self) -> None:
        network = classifier(small())
        inputs, their = inputs_of(network), Logits(network)
        found = told(network, clip(), "leave_one_frame_out", TARGET, baseline="zero")
        frames = torch.arange(6).view(1, 1, 6, 1, 1)
        with torch.no_grad():
            ablated = attr.FeatureAblation(lambda x: their(x).softmax(1)).attribute(
                inputs, target=TARGET, feature_mask=frames
            )
        agree(found, ablated[0, 0, :, :1, :1])
