"""What the methods cost beside the bare forward pass, and beside what other libraries take for the same map.

`python benchmarks/methods_speed.py` (a quarter of an hour on two cores; `--parts` takes some of it; `pip install
-e '.[benchmarks]'` brings the other libraries). Prints Markdown. Ratios are those of `speed.ratios`: medians over
rounds in which every candidate runs once. Every candidate ends with maps at the size of the clip; ours begin with uint8
frames, the others with the prepared clip, and take a network as it is loaded.

Memory is the resident memory at the peak of the first run (VmHWM of Linux) above that of the same process just before,
when the network, the clip and the library are there: all that the run needs, whoever allocates it. Each candidate has a
process of its own, three times, and the median is told.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from speed import ratios

import stabn
from explain import METHODS, TITLES
from explain.core import explain, resolve
from explain.inversion import ROWS, conditions, look
from explain.labelled import Generated
from explain.methods import CAMS, all_cams
from explain.models import Classifier, resized
from stabn import synthetic
from stabn.video import Clip

Run = Callable[[], object]
TARGET = 0
GRADIENTS = [name for name, where in METHODS.items() if where.startswith("explain.attribution:")]


# -------------------------------------------------------------- candidates: (network, clip) -> what is to be measured
# What is imported here is imported before the measurement.


def bare(network: Classifier, clip: Clip) -> Run:
    inputs = network.clip(clip.frames)

    def run() -> object:
        with torch.inference_mode():
            return network.logits(inputs)

    return run


def ours(method: str) -> Callable[[Classifier, Clip], Run]:
    def prepared(network: Classifier, clip: Clip) -> Run:
        resolve(method)
        return lambda: explain(network, clip, method, TARGET).saliency

    return prepared


def together(network: Classifier, clip: Clip) -> Run:
    return lambda: [each.saliency for each in all_cams(network, clip, TARGET).values()]


def captum(network: Classifier, clip: Clip) -> Run:
    from captum.attr import LayerAttribution, LayerGradCam

    inputs = network.clip(clip.frames)
    method = LayerGradCam(network.module, network.module.layer4)

    def run() -> object:
        small = method.attribute(inputs, target=TARGET, relu_attributions=True)
        return LayerAttribution.interpolate(small, tuple(inputs.shape[2:]), "trilinear").detach().numpy()

    return run


def pytorch_grad_cam(network: Classifier, clip: Clip) -> Run:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    inputs = network.clip(clip.frames)

    def run() -> object:
        with GradCAM(network.module, [network.module.layer4]) as method:  # else its hooks stay, for the others too
            return method(inputs, [ClassifierOutputTarget(TARGET)])

    return run


def torchcam(network: Classifier, clip: Clip) -> Run:
    from torchcam.methods import GradCAM

    inputs = network.clip(clip.frames)

    def run() -> object:
        with GradCAM(network.module, "layer4") as method:
            [small] = method(TARGET, network.module(inputs))
        return F.interpolate(small[:, None], tuple(inputs.shape[2:]), mode="trilinear").numpy()

    return run


CANDIDATES: dict[str, Callable[[Classifier, Clip], Run]] = {
    "bare forward pass": bare,
    "`grad_cam`": ours("grad_cam"),
    f"all {len(CAMS)} CAM methods of one layer, one pass": together,
    "Grad-CAM of captum, trilinear": captum,
    "Grad-CAM of torch-cam, trilinear": torchcam,
    "Grad-CAM of pytorch-grad-cam": pytorch_grad_cam,
}


def r3d_18() -> tuple[Classifier, Clip]:
    """Random weights: what they are does not change what they cost."""
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    network = Classifier(r3d_18().eval(), [str(k) for k in range(400)], 16, resized((112, 112)))
    return network, Clip.from_array(synthetic.generate(0, 16, 112).frames)


# ------------------------------------------------------------------------------------------------------------- parts


def classifier(rounds: int) -> None:
    """Every method that goes back from the logit, and Grad-CAM of other libraries, on r3d_18."""
    network, clip = r3d_18()
    candidates = {name: candidate(network, clip) for name, candidate in CANDIDATES.items()}
    candidates |= {f"`{name}`": ours(name)(network, clip) for name in ("cam", *GRADIENTS)}
    print("\n## r3d_18, 16 x 112 x 112\n")
    rows = [(name, f"{ratio:.2f}", f"{took:.3f}") for name, (took, ratio) in ratios(candidates, rounds).items()]
    table(("", "over the bare pass", "seconds"), rows)


def memory(rounds: int) -> None:
    print("\n## Memory at the peak above the loaded network, r3d_18, 16 x 112 x 112\n")
    found = {}
    for name in CANDIDATES:
        command = [sys.executable, __file__, "--peak", name, "--threads", str(torch.get_num_threads())]
        peaks = [float(subprocess.run(command, check=True, stdout=-1).stdout) for _ in range(3)]
        found[name] = statistics.median(peaks)
    first = found["bare forward pass"]
    table(("", "MiB", "over the bare pass"), [(k, f"{v:.0f}", f"{v / first:.2f}") for k, v in found.items()])


def peak(name: str) -> float:
    """MiB that one run of a candidate takes at its peak."""
    run = CANDIDATES[name](*r3d_18())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> int:
    """KiB, of this process."""
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(what)]
    return int(line.split()[1])


def network(rounds: int) -> None:
    """Every method with its own defaults on the bundled network."""
    model = stabn.load("synthetic")
    clip = Clip.from_array(synthetic.generate(0, model.config.frames, model.config.size).frames)
    inputs = model.preprocess(clip.frames)
    evaluations: dict[str, int] = {}

    def forward() -> None:
        with torch.inference_mode():
            model(inputs)

    def run(method: str) -> object:
        found = explain(model, clip, method)
        evaluations[method] = found.evaluations
        return found.saliency

    candidates: dict[str, Run] = {"bare forward pass": forward}
    candidates |= {name: lambda name=name: run(name) for name in METHODS}
    found = ratios(candidates, rounds)
    size = model.config.size
    print(f"\n## The bundled `synthetic`, {model.config.frames} x {size} x {size}\n")
    rows = [
        (f"`{name}`, {TITLES[name]}", evaluations[name], f"{found[name][1]:.2f}", f"{found[name][0]:.3f}")
        for name in METHODS
    ]
    head = ("", "evaluations", "over the bare pass", "seconds")
    table(head, [("bare forward pass", 1, "1.00", f"{found['bare forward pass'][0]:.3f}"), *rows])


def study(rounds: int) -> None:
    """The network time of `stabn-ablate` against the least that it needs, and against whole passes."""
    model = stabn.load("synthetic")
    source, asked = Generated(model, 0, 4, 1), conditions(tuple(ROWS))
    items = [source[number] for number in source.numbers]
    clips = torch.cat([model.preprocess(item.frames[0]) for item in items])

    @torch.inference_mode()
    def least() -> None:
        features = model.extract(clips)
        attention, _ = model.attend(features)
        mixture = model.mix(features)
        for _ in asked:
            model.perceive(mixture, attention)

    @torch.inference_mode()
    def passes() -> None:
        for _ in asked:
            model(clips)

    candidates: dict[str, Run] = {
        f"one extract + attend and {len(asked)} perceive": least,
        "`stabn-ablate`, from frames to records": lambda: look(model, items, asked),
        f"{len(asked)} whole passes": passes,
    }
    print(f"\n## The inversion study, {len(asked)} conditions, {len(items)} clips, the bundled `synthetic`\n")
    rows = [(k, f"{ratio:.2f}", f"{took / len(items):.3f}") for k, (took, ratio) in ratios(candidates, rounds).items()]
    table(("", "over the least", "seconds a clip"), rows)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


PARTS = {"classifier": classifier, "memory": memory, "network": network, "study": study}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, float32 on a CPU, {options.rounds} rounds")
    for part in options.parts:
        PARTS[part](options.rounds)


if __name__ == "__main__":
    main()
