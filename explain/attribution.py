"""Explanations by what goes back from a logit to the pixels; the only file that imports captum.

Gradients of the logit of the target with respect to the prepared clip, or the same pass with other rules. A volume is
made of the three channels by their largest magnitude where the sign of a gradient has no meaning of its own (a pixel
may matter by growing darker), and by their sum where the values are shares of the logit; the latter are signed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from explain.core import Explanation
from explain.methods import Question, grad_cam
from explain.models import Classifier
from explain.perturbation import stand_in
from stabn.video import Clip


def _ask(network: Classifier, clip: Clip, target: int | None) -> Question:
    question = Question(network, clip, target)
    question.inputs.requires_grad_()
    return question


def _largest(gradient: Tensor) -> Tensor:
    """(1, 3, T, H, W) -> (T, H, W)"""
    return gradient[0].abs().amax(0)


def saliency(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """|d logit / d x|, largest of the channels (Simonyan et al. 2014)."""
    question = _ask(network, clip, target)
    gradient = Saliency(question.logits).attribute(question.inputs, target=question.target, abs=False)
    return question.explanation("saliency", _largest(gradient))


def input_x_gradient(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """x * d logit / d x, sum of the channels, signed (Shrikumar et al. 2016). x = 0 is the mean colour."""
    question = _ask(network, clip, target)
    shares = InputXGradient(question.logits).attribute(question.inputs, target=question.target)
    return question.explanation("input_x_gradient", shares[0].sum(0), signed=True)


def smooth_grad(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    samples: int = 16,
    noise: float = 0.15,
    chunk: int = 4,
    seed: int = 0,
) -> Explanation:
    """`saliency` of the mean gradient over noisy copies of the clip (Smilkov et al. 2017).

    `noise` is the standard deviation as a share of the prepared clip's range.
    """
    if samples < 1 or chunk < 1 or noise < 0:
        raise ValueError(
            f"`samples` and `chunk` must be 1 or more and `noise` 0 or more, got {samples}, {chunk} and {noise}"
        )
    question = _ask(network, clip, target)
    spread = noise * float((question.inputs.max() - question.inputs.min()).detach())
    # captum draws from the global generator, which is put back.
    with torch.random.fork_rng([question.inputs.device] if question.inputs.is_cuda else []):
        torch.manual_seed(seed)
        gradient = NoiseTunnel(Saliency(question.logits)).attribute(
            question.inputs,
            nt_samples=samples,
            nt_samples_batch_size=min(chunk, samples),
            stdevs=spread,
            target=question.target,
            abs=False,
        )
    return question.explanation("smooth_grad", _largest(gradient))


def integrated_gradients(
    network: Classifier,
    clip: Clip,
    target: int | None,
    *,
    steps: int = 32,
    baseline: str = "zero",
    chunk: int = 4,
) -> Explanation:
    """The gradient along the straight way from a baseline, times the way, signed (Sundararajan et al. 2017).

    Sums to logit(x) - logit(baseline), up to the `steps` of the integral. Baselines are those of
    `explain.perturbation.stand_in`; zero is the mean colour.
    """
    if steps < 1 or chunk < 1:
        raise ValueError(f"`steps` and `chunk` must be 1 or more, got {steps} and {chunk}")
    question = _ask(network, clip, target)
    shares = IntegratedGradients(question.logits).attribute(
        question.inputs,
        baselines=stand_in(question.inputs.detach(), baseline),
        target=question.target,
        n_steps=steps,
        internal_batch_size=chunk,
    )
    return question.explanation("integrated_gradients", shares[0].sum(0), signed=True)


# -------------------------------------------------------------------------------- other rules for the way back
# A mode sees every function that the network calls, in a module or not, and changes nothing in the network itself.
# captum's versions see modules only, each used once; real networks use a ReLU module many times, or F.relu, and add
# branches, where captum's LRP would count relevance twice.


class _Rectified(torch.autograd.Function):
    """ReLU whose way back lets only positive values through, and if `guided` only where its input was positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guided: bool, inplace: bool) -> Tensor:
        y = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.guided = guided
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].relu()
        return (gradient * (ctx.saved_tensors[0] > 0) if ctx.guided else gradient), None, None


class _Rectifying(TorchFunctionMode):
    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided, self.count = guided, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ("relu", "relu_"):
            return func(*args, **kwargs)
        self.count += 1
        x = args[0] if args else kwargs["input"]
        inplace = name == "relu_" or kwargs.get("inplace", len(args) > 1 and args[1])
        return _Rectified.apply(x, self.guided, inplace)


def _rectified(question: Question, method: str, guided: bool) -> Tensor:
    """The gradient (1, 3, T, H, W) with every ReLU's way back replaced; ValueError if there is none."""
    with _Rectifying(guided) as mode:
        logits = question.logits(question.inputs)
    if not mode.count:
        raise ValueError(f"{method} changes how ReLU passes gradients back, and this network calls no ReLU")
    question.answered(logits)
    return torch.autograd.grad(logits[0, question.target], question.inputs)[0]


def guided_backprop(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """The gradient with negative values cut at every ReLU, largest of the channels (Springenberg et al. 2015)."""
    question = _ask(network, clip, target)
    return question.explanation("guided_backprop", _largest(_rectified(question, "guided_backprop", True)))


def deconvnet(network: Classifier, clip: Clip, target: int | None) -> Explanation:
    """What goes back with ReLU on the way back instead of its derivative (Zeiler & Fergus 2014).

    Largest of the channels; max pooling sends values to where the maximum was.
    """
    question = _ask(network, clip, target)
    return question.explanation("deconvnet", _largest(_rectified(question, "deconvnet", False)))


def guided_grad_cam(network: Classifier, clip: Clip, target: int | None, *, layer: str | None = None) -> Explanation:
    """Guided backpropagation times Grad-CAM enlarged to the clip's size (Selvaraju et al. 2017)."""
    question = _ask(network, clip, target)
    fine = _largest(_rectified(question, "guided_grad_cam", True))
    coarse = grad_cam(network, clip, question.target, layer=layer)
    question.evaluations += coarse.evaluations
    volume = torch.from_numpy(coarse.temporal[:, None, None] * coarse.spatial)[:, None]
    large = F.interpolate(volume, fine.shape[1:], mode="bilinear")[:, 0]
    return question.explanation("guided_grad_cam", fine * large.to(fine.device))


# Layer-wise relevance propagation. Between two functions flows the relevance of the values there; its sum is kept,
# but for what biases and the stabiliser take.


class _Shared(torch.autograd.Function):
    """z = op(x), whose relevance goes back to x in the shares that x_i has in z' = shares(x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, op: Callable[[Tensor], Tensor], shares: Callable[[Tensor], Tensor], epsilon: float
    ) -> Tensor:
        ctx.shares, ctx.epsilon = shares, epsilon
        ctx.save_for_backward(x)
        return op(x)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            z = ctx.shares(x)
        share = relevance[0] / _away_from_zero(z.detach(), ctx.epsilon)
        return x.detach() * torch.autograd.grad(z, x, share)[0], None, None, None


class _Sum(torch.autograd.Function):
    """a + b, whose relevance is divided between the two as they are."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, inplace: bool, epsilon: float) -> Tensor:
        ctx.epsilon = epsilon
        ctx.save_for_backward(a.clone() if inplace else a, b)
        if not inplace:
            return a + b
        ctx.mark_dirty(a)
        return a.add_(b)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = ctx.saved_tensors
        share = relevance[0] / _away_from_zero(a + b, ctx.epsilon)
        return (a * share).sum_to_size(a.shape), (b * share).sum_to_size(b.shape), None, None


class _Passed(torch.autograd.Function):
    """ReLU, whose relevance goes back as it is: rules give by value, so that what it cut has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if not inplace:
            return x.relu()
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        return relevance[0], None


def _away_from_zero(z: Tensor, epsilon: float) -> Tensor:
    """z, further from 0 by a share `epsilon` of its mean magnitude: where large summands cancel, dividing by what is
    left would multiply relevance without end."""
    return z + torch.where(z < 0, -1, 1) * (epsilon * z.abs().mean() + 1e-9)


CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
LINEAR = (  # in the one argument that carries relevance: a constant summand acts as a bias, a constant factor keeps all
    *("linear", "batch_norm", "add", "sub", "mul", "div"),
    *("mean", "sum", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
)
MOVES = (  # values only change places, so that the gradient is the rule
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "expand"),
    *("__getitem__", "unbind", "chunk", "split", "cat", "stack", "contiguous", "clone", "to", "cpu", "cuda", "float"),
    *("dropout", "dropout3d", "max_pool2d", "max_pool3d", "adaptive_max_pool3d"),
)


class _Relevance(TorchFunctionMode):
    """The rules of LRP for what networks of convolutions call; ValueError for anything else on the way."""

    def __init__(self, gamma: float, epsilon: float) -> None:
        super().__init__()
        self.gamma, self.epsilon = gamma, epsilon

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        carrying = [i for i, each in enumerate(args) if isinstance(each, Tensor) and each.requires_grad]
        if name in MOVES or not any(
            isinstance(each, Tensor) and each.requires_grad for each in (*args, *kwargs.values())
        ):
            return func(*args, **kwargs)
        if name == "sigmoid":  # a gate: it scales what carries relevance, as a constant
            return func(*args, **kwargs).detach()
        if name in ("relu", "relu_") and carrying:
            return _Passed.apply(args[0], name == "relu_" or kwargs.get("inplace", len(args) > 1 and args[1]))
        if name in ("add", "add_") and carrying == [0, 1] and not kwargs:
            return _Sum.apply(args[0], args[1], name == "add_", self.epsilon)
        if name in CONVOLUTIONS and carrying == [0] and not kwargs:
            return self._convolved(func, *args)
        if name == "batch_norm" and carrying == [0] and hasattr(args[0], "convolution"):
            return self._convolved(*_merged(args[0].convolution, *args[1:], **kwargs))
        if name in LINEAR and len(carrying) == 1:
            before, x, after = args[: carrying[0]], args[carrying[0]], args[carrying[0] + 1 :]
            return _Shared.apply(x, *2 * [lambda x: func(*before, x, *after, **kwargs)], self.epsilon)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.requires_grad:
            what = f"{name!r} of two activations" if name in LINEAR else repr(name)
            raise ValueError(
                f"lrp has no rule for {what}, which this network calls: it is for networks of convolutions"
            )
        return result

    def _convolved(self, conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        """A convolution; its shares favour positive ones (gamma rule) where no input is negative."""
        gamma = self.gamma if x.detach().amin() >= 0 else 0.0
        favoured = weight + gamma * weight.clamp(min=0)
        shift = None if bias is None else bias + gamma * bias.clamp(min=0)
        z = _Shared.apply(
            x, lambda x: conv(x, weight, bias, *rest), lambda x: conv(x, favoured, shift, *rest), self.epsilon
        )
        z.convolution = conv, x, weight, bias, rest
        return z


def _merged(
    convolution: tuple[Any, ...],
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    """A convolution and the batch norm behind it as one: apart, the gamma rule would divide by values between the two
    that may be near zero."""
    conv, x, kernel, shift, rest = convolution
    factor = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    after = -mean * factor if shift is None else (shift - mean) * factor
    merged = kernel * factor.view(-1, *[1] * (kernel.ndim - 1))
    return (conv, x, merged, after if bias is None else after + bias, *rest)


def lrp(
    network: Classifier, clip: Clip, target: int | None, *, gamma: float = 0.25, epsilon: float = 0.1
) -> Explanation:
    """Layer-wise relevance propagation, sum of the channels, signed (Bach et al. 2015; composite of Montavon et al.
    2019): the gamma rule in convolutions behind a ReLU, merged with their batch norm, else the epsilon rule.

    Values are shares of the logit, less what `epsilon`, a share of the mean magnitude of a layer's values, takes up:
    without it residual sums whose summands cancel give thousands of times the logit, with both signs. Attention (a
    sigmoid) is taken as a constant factor. ValueError for networks that call what has no rule, such as transformers.
    `gamma` 0 is the epsilon rule everywhere.
    """
    question = _ask(network, clip, target)
    with _Relevance(gamma, epsilon):
        logits = question.logits(question.inputs)
    question.answered(logits)
    score = logits[0, question.target]
    shares = torch.autograd.grad(score, question.inputs, score.detach())[0]
    return question.explanation("lrp", shares[0].sum(0), signed=True)


# ------------------------------------------------------------------------------------------------------ measures


def max_sensitivity(
    explained: Callable[[Tensor], NDArray[np.floating[Any]]],
    inputs: Tensor,
    volume: NDArray[np.floating[Any]],
    *,
    radius: float = 0.02,
    samples: int = 5,
    seed: int = 0,
) -> float:
    """The largest |S(x') - S(x)| / |S(x)| over clips x' near x (Yeh et al. 2019, equation 5).

    `explained` gives S (T, h, w) of a prepared clip like `inputs` (1, 3, T, H, W), `volume` is S of that one. Noise is
    uniform in each voxel, up to `radius` times the clip's range.
    """
    chance = torch.Generator().manual_seed(seed)
    most = radius * float(inputs.max() - inputs.min())

    def near(clips: Tensor) -> Tensor:
        return clips + most * (2 * torch.rand(clips.shape, generator=chance) - 1).to(clips)

    @torch.enable_grad()  # captum asks under no_grad, and methods need gradients
    def explanations(clips: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(clips, tuple):  # x itself is asked about, and answered, in a tuple; clips near it are not
            return (torch.from_numpy(volume[None]).double(),)
        return torch.from_numpy(np.stack([explained(clip[None]) for clip in clips])).double()

    return float(sensitivity_max(explanations, inputs.detach(), near, n_perturb_samples=samples))


def infidelity(
    probability: Callable[[Tensor], Tensor],
    inputs: Tensor,
    other: Tensor,
    volume: NDArray[np.floating[Any]],
    *,
    samples: int = 64,
    chunk: int = 8,
    seed: int = 0,
) -> float:
    """Mean of (b sum of S over what is removed - what f loses)^2 with the best scale b (Yeh et al. 2019, equation 1).

    `probability` gives f (N,) of clips (N, 3, T, H, W). A random share of 4 x 7 x 7 tubes of `inputs`, one clip, is
    replaced by `other`; of S (T, h, w), enlarged to its size, each channel has a third.
    """
    size = inputs.shape[2:]
    cells = [min(pair) for pair in zip((4, 7, 7), size, strict=True)]
    chance = torch.Generator().manual_seed(seed)
    large = F.interpolate(torch.as_tensor(volume, dtype=torch.float64)[:, None], size[1:], mode="bilinear")[:, 0]
    shares = (large / 3).expand(1, 3, *size).to(inputs.device)

    def without(clips: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.rand(len(clips), 1, 1, 1, 1, generator=chance)
        tubes = (torch.rand(len(clips), 1, *cells, generator=chance) < share).float()
        removed = F.interpolate(tubes, size).to(clips)
        return removed.expand_as(clips), torch.where(removed > 0, other, clips)

    return float(
        captum_infidelity(
            lambda clips: probability(clips).double().to(inputs.device),
            without,
            inputs.detach(),
            shares,
            n_perturb_samples=samples,
            max_examples_per_batch=chunk,
            normalize=True,
        )
    )
