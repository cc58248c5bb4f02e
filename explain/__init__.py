"""explain: where and when a video network looked. Methods, drawing and the command `stabn-explain`.

What is heavy is resolved on first use, so that `import explain` and `stabn-explain --help` stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explain.core import Explanation, explain

__all__ = ["METHODS", "TITLES", "Explanation", "explain"]

METHODS: dict[str, str] = {  # name: "module:function", a function (model, clip, target, **options) -> Explanation
    "stabn": "explain.core:stabn_attention",
    "cam": "explain.methods:cam",
    "grad_cam": "explain.methods:grad_cam",
    "grad_cam_per_frame": "explain.methods:grad_cam_per_frame",
    "grad_cam_pp": "explain.methods:grad_cam_pp",
    "layer_cam": "explain.methods:layer_cam",
    "hires_cam": "explain.methods:hires_cam",
    "saliency": "explain.attribution:saliency",
    "input_x_gradient": "explain.attribution:input_x_gradient",
    "smooth_grad": "explain.attribution:smooth_grad",
    "integrated_gradients": "explain.attribution:integrated_gradients",
    "guided_backprop": "explain.attribution:guided_backprop",
    "guided_grad_cam": "explain.attribution:guided_grad_cam",
    "deconvnet": "explain.attribution:deconvnet",
    "lrp": "explain.attribution:lrp",
    "occlusion": "explain.perturbation:occlusion",
    "lime": "explain.perturbation:lime",
    "rise": "explain.perturbation:rise",
    "meaningful_perturbation": "explain.perturbation:meaningful_perturbation",
    "extremal_perturbation": "explain.perturbation:extremal_perturbation",
    "frame_shapley": "explain.perturbation:frame_shapley",
    "leave_one_frame_out": "explain.perturbation:leave_one_frame_out",
    # controls, which look at no network
    "random": "explain.methods:random",
    "centre": "explain.methods:centre",
    "frame_difference": "explain.methods:frame_difference",
}
# What pictures call them.
TITLES: dict[str, str] = {
    "stabn": "ST-ABN attention",
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_per_frame": "Grad-CAM with weights for each frame",
    "grad_cam_pp": "Grad-CAM++",
    "layer_cam": "Layer-CAM",
    "hires_cam": "HiResCAM",
    "saliency": "gradient (saliency)",
    "input_x_gradient": "input x gradient",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "integrated gradients",
    "guided_backprop": "guided backpropagation",
    "guided_grad_cam": "guided Grad-CAM",
    "deconvnet": "deconvolution",
    "lrp": "layer-wise relevance propagation",
    "occlusion": "occlusion by space-time tubes",
    "lime": "LIME on space-time tubes",
    "rise": "RISE with space-time masks",
    "meaningful_perturbation": "meaningful perturbation",
    "extremal_perturbation": "extremal perturbation",
    "frame_shapley": "Shapley value of each frame",
    "leave_one_frame_out": "leave one frame out",
    "random": "control: random",
    "centre": "control: centre",
    "frame_difference": "control: frame difference",
}


def __getattr__(name: str) -> Any:
    if name in ("Explanation", "explain"):
        return getattr(importlib.import_module("explain.core"), name)
    raise AttributeError(f"module 'explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
