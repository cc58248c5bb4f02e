"""What an explanation costs beside the bare forward pass: ratios taken in one run. `performance.py` has whole videos.

`python benchmarks/speed.py` (a few minutes on two cores; `--networks compact` leaves the ResNet-50 out). In each
round every candidate runs once, in turn, so that a drifting machine touches all of them alike; a ratio is the
median over the rounds of the time divided by the bare forward pass's time of the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from explain.core import explain
from stabn.model import STABN, Config
from stabn.synthetic import generate
from stabn.video import Clip, VideoWriter

SLOW = 20
NETWORKS = {
    "compact": Config(
        classes=18, frames=16, size=64, layers=(1, 1, 1, 1), width=16, stem=(5, 5, 5), pool=False, crop=False
    ),
    "r50": Config.resnet(50, classes=174),
}


def ratios(
    candidates: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, tuple[float, float]]:
    """Median seconds of each candidate, and the median of its ratio to the first one.

    What takes more than `SLOW` times as long as the first one runs in the first two rounds only.
    """
    warm = {name: seconds(run, clock) for name, run in candidates.items()}
    slow = {name for name in candidates if warm[name] > SLOW * warm[next(iter(warm))]}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        order = [(name, run) for name, run in candidates.items() if number < 2 or name not in slow]
        for name, run in order[number % len(order) :] + order[: number % len(order)]:  # whoever comes first differs
            times[name].append(seconds(run, clock))
    first = next(iter(times.values()))
    return {
        name: (statistics.median(own), statistics.median(a / b for a, b in zip(own, first, strict=False)))
        for name, own in times.items()
    }


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def network(name: str, config: Config, rounds: int) -> None:
    """Prints an explanation against the bare forward pass and against the same backbone without the branch."""
    model, bare = STABN(config).eval(), STABN(replace(config, attention="none")).eval()
    sample = generate(0, config.frames, config.size)
    clip = Clip.from_array(sample.frames)
    inputs = model.preprocess(clip.frames)

    def forward(which: STABN) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return which(inputs)

        return run

    def whole() -> object:
        """From uint8 frames to probabilities, maps at the source's size and weights."""
        return explain(model, clip).saliency

    candidates = {
        "bare forward pass": forward(model),
        "explanation (frames in; probabilities, maps at source size, weights out)": whole,
        "same backbone without the branch": forward(bare),
    }
    size = f"{config.frames} x {config.size} x {config.size}"
    print(f"\n{name}: {size}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {rounds} rounds")
    results = ratios(candidates, rounds)
    for label, (took, ratio) in results.items():
        print(f"  {ratio:6.3f}  {1e3 * took:9.1f} ms  {label}")
    explanation, plain = (list(results.values())[k][0] for k in (1, 2))
    print(f"  {explanation / plain:6.3f}  an explanation against the same backbone without the branch")


def video(path: Path, length: float = 10, fps: float = 30, width: int = 1920, height: int = 1080) -> None:
    """An H.264 video of a generated scene, moved and noisy as a camera's picture is."""
    frames = generate(2, 16, 240).frames
    rng = np.random.default_rng(0)
    noise = rng.integers(-6, 7, (height, width, 3)).astype(np.int16)
    across, down = -(-width // 240), -(-height // 240)
    with VideoWriter(path, width, height) as writer:
        for k in range(count := round(length * fps)):
            small = frames[k * 16 // count]
            picture = small.repeat(across, 1).repeat(down, 0)[:height, :width].astype(np.int16)
            writer.write(np.clip(picture + np.roll(noise, 7 * k, 1), 0, 255).astype(np.uint8), k / fps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=0, help="0: 40 for the compact network, 5 for the others")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads, float32 on a CPU")
    for name in options.networks:
        network(name, NETWORKS[name], options.rounds or (40 if name == "compact" else 5))


if __name__ == "__main__":
    main()
