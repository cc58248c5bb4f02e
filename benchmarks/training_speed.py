"""What a training step costs: plain PyTorch against our defaults, and the data loader alone against the network.

`python benchmarks/training_speed.py` (some minutes on two cores; `--networks compact` leaves the ResNet-50 out). All
runs are steps of `stabn.engine`, from uint8 frames to the optimiser; plain is float32, contiguous, eager. Ratios are
those of `speed.ratios`: medians over rounds in which every candidate runs once. `--compile` adds torch.compile.

Where there is a GPU, ResNet-50 and 101 at 32 x 224 x 224, batch 8, come too: clips per second, memory at the peak, and
the share of the card's matrix rate, which is that of a large product of bfloat16 matrices measured just before.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch
from accelerate.state import AcceleratorState
from speed import ratios, seconds
from torch.utils.flop_counter import FlopCounterMode

from stabn import engine
from stabn.clips import Batch, Clips
from stabn.data import read
from stabn.synthetic import CLASSES, generate
from stabn.train import RECIPE, Options
from stabn.video import write_video

DEFAULT = "bf16, channels last (the default)"
WAYS: dict[str, dict[str, Any]] = {
    "plain: fp32, contiguous": {"precision": "fp32", "channels_last": False},
    "fp32, channels last": {"precision": "fp32", "channels_last": True},
    "bf16, contiguous": {"precision": "bf16", "channels_last": False},
    DEFAULT: {"precision": "bf16", "channels_last": True},
}
COMPILED = {"bf16, channels last, compiled": {"precision": "bf16", "channels_last": True, "compile": True}}
COMPACT, R50 = {"backbone": "compact", "width": 16, "frames": 16, "size": 64}, {"frames": 8, "size": 112}
NETWORKS = {"compact": (COMPACT, 8, 20), "r50": (R50, 4, 3)}  # options, clips of a step, rounds


def step_of(options: Options) -> Callable[[], object]:
    """A run of one step of training."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one for a process, and the precision is part of it
    plan = engine.Plan(options.batch, options.batch, 1, 0)
    learner = engine.learner_of(options, CLASSES, engine.accelerated(options), plan)
    shape = (options.batch, 1, options.frames, options.size, options.size, 3)
    labels = torch.arange(options.batch) % len(CLASSES)
    part = Batch(torch.randint(0, 256, shape, dtype=torch.uint8), labels, tuple(range(options.batch)), ())

    def run() -> None:
        learner.learn([part], 0)
        if options.device == "cuda":
            torch.cuda.synchronize()

    return run


def steps(options: Options, rounds: int, ways: dict[str, dict[str, Any]]) -> float:
    """Prints clips per second of each way; returns those of the default."""
    found = ratios({title: step_of(replace(options, **way)) for title, way in ways.items()}, rounds)
    for title, (took, ratio) in found.items():
        print(f"  {1 / ratio:6.2f} times plain  {options.batch / took:9.2f} clips/s  {title}", flush=True)
    return options.batch / found[DEFAULT][0]


def loading(options: Options, rate: float) -> None:
    """Prints clips per second of the loader alone, and how many times those of the network that is."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(4):
            sample = generate(seed, 48, 240)
            path = Path(folder, CLASSES[sample.label], f"{seed}.mp4")
            path.parent.mkdir()
            write_video(path, sample.frames, 12.0)
        size = (options.frames, options.size)
        clips = Clips(read(Path(folder)), CLASSES, *size, sampling="random", crop="random", flip=engine.FLIP)
        plan = engine.Plan(len(clips), 4, 1, 0)
        numbers = plan.parts_of(itertools.count(), slice(None))
        parts = iter(engine.loader(clips, numbers, options.workers, torch.device("cpu")))
        ahead = 2 * options.workers  # parts that are read before they are asked for, at the beginning and at the end
        for _ in itertools.islice(parts, 1 + ahead):
            pass  # the workers have started
        began = time.perf_counter()
        found = sum(len(part.labels) for part in itertools.islice(parts, 12 + ahead)) / (time.perf_counter() - began)
        del parts
    print(
        f"  {found / rate:6.2f} times the default  {found:9.2f} clips/s  the loader alone, {options.workers} workers, "
        "from 48 frames of 240 x 240 in H.264",
        flush=True,
    )


def card(rounds: int) -> None:
    """Prints what a GPU does at the paper's size, and how much that is of what it could do."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def product() -> None:
        a @ b
        torch.cuda.synchronize()

    seconds(product)
    rate = 2 * side**3 / statistics.median(seconds(product) for _ in range(10))
    print(
        f"\n{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in a product of {side} x {side} bfloat16 matrices"
    )
    for depth in (50, 101):
        torch.cuda.reset_peak_memory_stats()
        run = step_of(replace(RECIPE, backbone=f"resnet{depth}", init="none", batch=8, device="cuda"))
        run()
        with FlopCounterMode(display=False) as counter:
            run()
        took = statistics.median(seconds(run) for _ in range(rounds))
        print(
            f"  R{depth}, 32 x 224 x 224, batch 8: {8 / took:.1f} clips/s, "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, "
            f"{100 * counter.get_total_flops() / took / rate:.0f} % of that rate",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=0, help="0: 20 for the compact network, 3 for the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    cv2.setNumThreads(1)  # the loader's processes are forked, and would wait for threads of OpenCV that are not there
    torch.set_num_threads(given.threads)
    device, cores = "cuda" if torch.cuda.is_available() else "cpu", os.cpu_count() or 1
    print(f"torch {torch.__version__}, {device}, {given.threads} threads, {cores} cores")
    for name in given.networks:
        changes, batch, rounds = NETWORKS[name]
        options = replace(RECIPE, init="none", batch=batch, device=device, workers=cores, **changes)
        rounds = given.rounds or rounds
        size = f"{options.frames} x {options.size} x {options.size}"
        print(f"\n{name}: a step of {batch} clips of {size}, {rounds} rounds", flush=True)
        loading(options, steps(options, rounds, WAYS | (COMPILED if given.compile else {})))
    if device == "cuda":
        card(given.rounds or 20)


if __name__ == "__main__":
    main()
