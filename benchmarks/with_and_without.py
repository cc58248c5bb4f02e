"""Does the attention branch make a network better? Small networks with and without it, under the same budget.

`python benchmarks/with_and_without.py` (two hours on one core) trains slim 3D ResNet-18, C3D and r3d_18, a quarter as
wide as their sources, with and without the branch, and as 2D baselines TSN and TSM on slim ResNet-18, three seeds each,
and prints a table in Markdown. All train on the same generated clips, 8 x 32 x 32, each seen once; a seed fixes the
initial weights and the clips' order. Evaluated are the clips of the seeds from 0 on, never trained on. Stopped and
started again with the same --out, it goes on; `--table` prints what is there and trains nothing.

The recipe is one for all: AdamW, its rate as in `stabn-train` (warmed up over 100 steps, taken to zero over the last
third), the paper's losses, no dropout. The rate was chosen by the training loss of C3D and r3d_18 without the branch,
the steps by when 3D ResNet-18 leaves the plateau that it begins on, not by the evaluation clips. float32: in bfloat16
half of C3D's steps had gradients that were not finite on the processor at hand; channels last takes a sixth to a third
less time there, torch.compile none less.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from stabn import synthetic
from stabn.backbones import channels_last
from stabn.model import STABN, Config, loss

BUDGET = {"steps": 1600, "batch": 16, "clips": 2000, "rate": 1e-3, "decay": 0.05, "generator": synthetic.VERSION}
SEEDS, SAVE_EVERY = 3, 100
COMMON: dict[str, Any] = {"classes": len(synthetic.CLASSES), "frames": 8, "size": 32, "crop": False}
COMMON |= {"width": 16, "dropout": 0.0}  # networks this narrow, on clips seen once, have nothing to drop
BACKBONES = {
    "3D ResNet-18": Config.resnet(18, pool=False, **COMMON),  # as all here: a 32nd of the side before pooling to one
    "C3D": Config(backbone="c3d", **COMMON),
    "r3d_18": Config(backbone="r3d_18", **COMMON),
    "TSN on 2D ResNet-18": Config(backbone="tsn", pool=False, **COMMON),
    "TSM on 2D ResNet-18": Config(backbone="tsm", pool=False, **COMMON),
}
NETWORKS = {  # by file name
    f"{config.backbone}-{attention}": (name, replace(config, attention=attention))
    for name, config in BACKBONES.items()
    for attention in ("none", "both")
    if attention == "none" or not name.startswith("TS")
}


def clips(folder: Path, name: str, first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Generated clips, uint8 (count, T, S, S, 3), kept in `folder`, and their labels: seeds from `first` on."""
    shape = (count, COMMON["frames"], COMMON["size"], COMMON["size"], 3)
    path = folder / f"{name}-{count}-version{synthetic.VERSION}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial")
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for k in tqdm(range(count), desc=f"{name} clips", disable=None):
            array[k] = synthetic.generate(first + k, *shape[1:3]).frames
        array.flush()
        os.replace(partial, path)
    labels = (first + np.arange(count)) % len(synthetic.CLASSES)
    return np.load(path, mmap_mode="r"), labels


def batch_of(source: NDArray[np.uint8], network: STABN, numbers: NDArray[np.int64]) -> torch.Tensor:
    """Clips of these numbers as the network takes them."""
    frames = torch.from_numpy(source[numbers]).permute(0, 4, 1, 2, 3).float()
    return network.normalise(frames).contiguous(memory_format=torch.channels_last_3d)


def run(name: str, seed: int, folder: Path, budget: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates one network; goes on where it was stopped. What it gives is ready for JSON."""
    title, config = NETWORKS[name]
    steps, batch = budget["steps"], budget["batch"]
    training, labels = clips(folder, "training", synthetic.TRAINING_SEEDS, steps * batch)
    order = np.random.default_rng(seed).permutation(steps * batch)
    torch.manual_seed(seed)
    network = STABN(config, synthetic.CLASSES).train()
    channels_last(network)
    optimizer = torch.optim.AdamW(network.parameters(), budget["rate"], weight_decay=budget["decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, (k + 1) / 100, 3 * (steps - k) / steps))
    state_file = folder / f"{name}-{seed}.resume"
    done, seconds, losses = 0, 0.0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["budget"] != budget:
            raise ValueError(f"{state_file} was started with another budget, {state['budget']}: name another --out")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        done, seconds, losses = (state[key] for key in ("step", "seconds", "losses"))

    begun = time.process_time() - seconds
    for step in tqdm(range(done, steps), desc=f"{name}, seed {seed}", initial=done, total=steps, disable=None):
        chosen = order[step * batch : (step + 1) * batch]
        found = loss(network(batch_of(training, network, chosen)), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        losses.append(round(found.perception.item(), 4))
        if (step + 1) % SAVE_EVERY == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state |= {"schedule": schedule.state_dict(), "random": torch.get_rng_state(), "losses": losses}
            state["budget"] = budget
            partial = state_file.with_suffix(".partial")
            torch.save(state | {"seconds": time.process_time() - begun}, partial)
            os.replace(partial, state_file)
    seconds = time.process_time() - begun

    source, truth = clips(folder, "evaluation", 0, budget["clips"])
    network.eval()
    right: dict[str, list[bool]] = {"logits": [], "attention_logits": []}
    with torch.inference_mode():
        for numbers in np.array_split(np.arange(budget["clips"]), max(1, budget["clips"] // 50)):
            output = network(batch_of(source, network, numbers))._asdict()
            for branch, values in right.items():
                if output[branch] is not None:
                    values += (output[branch].argmax(1).numpy() == truth[numbers]).tolist()
    return {
        "network": title,
        "attention": config.attention,
        "seed": seed,
        "budget": budget,
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": multiply_adds(config),
        "processor_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "losses": losses[19::20],
        "right": {branch: "".join("01"[value] for value in values) for branch, values in right.items() if values},
    }


def multiply_adds(config: Config) -> int:
    """Of convolutions and linear layers, for one clip; counted without computing."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        STABN(config).eval()(torch.empty(1, 3, config.frames, config.size, config.size))
    return counter.get_total_flops() // 2


def answers(runs: list[dict[str, Any]], branch: str = "logits") -> NDArray[np.float64]:
    """(seeds, clips): 1 where the answer is right."""
    return np.array([[float(c) for c in each["right"][branch]] for each in sorted(runs, key=lambda r: r["seed"])])


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of (seeds, clips) and its bootstrap 95 % interval, both seeds and clips drawn anew."""
    rng = np.random.default_rng(0)
    means = np.empty(2000)
    for k in range(len(means)):
        seeds, numbers = (rng.integers(0, size, size) for size in values.shape)
        means[k] = values[seeds].mean(0)[numbers].mean()
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def table(folder: Path) -> str:
    """What was found so far, in Markdown."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    if not found:
        return f"nothing in {folder} is finished yet"
    budget = found[0]["budget"]
    if any(each["budget"] != budget for each in found):
        raise ValueError(f"{folder} holds runs with other budgets: name another --out")

    def percent(value: float, low: float, high: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"

    lines = [
        f"Top-1 in percent on {budget['clips']} clips of Synthetic-Something version {budget['generator']}, 8 x 32 x "
        f"32, seeds 0 to {budget['clips'] - 1}, after {budget['steps']} steps of {budget['batch']} clips; in brackets "
        "the bootstrap 95 % interval over clips and seeds; a gain is over the same clips and seeds. M: million.",
        "",
        "| network | branch | top-1 | of each seed | gain by the branch | top-1 of the branch itself | parameters | "
        "multiply-adds of a clip | processor seconds of training |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title in BACKBONES:
        own = [each for each in found if each["network"] == title]
        kinds = {kind: [each for each in own if each["attention"] == kind] for kind in ("none", "both")}
        for kind, runs in kinds.items():
            if not runs:
                continue
            right, gain, branch = answers(runs), "", ""
            if kind == "both":
                branch = percent(*interval(answers(runs, "attention_logits")))
                seeds = {r["seed"] for r in runs} & {r["seed"] for r in kinds["none"]}
                if seeds:
                    pairs = [answers([r for r in kinds[each] if r["seed"] in seeds]) for each in ("both", "none")]
                    gain = percent(*interval(pairs[0] - pairs[1]), sign="+").replace("-", "−")
            lines.append(
                f"| {title} | {'with' if kind == 'both' else 'without'} | {percent(*interval(right))} | "
                f"{', '.join(f'{100 * v:.1f}' for v in right.mean(1))} | {gain} | {branch} | "
                f"{runs[0]['parameters'] / 1e6:.2f} M | {runs[0]['multiply_adds'] / 1e6:.0f} M | "
                f"{np.mean([r['processor_seconds'] for r in runs]):.0f} |"
            )
    missing = len(NETWORKS) * SEEDS - len(found)
    return "\n".join(lines + (["", f"{missing} runs are still missing."] if missing > 0 else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/with_and_without"), help="a JSON file for each run")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, train nothing")
    parser.add_argument(
        "--only", nargs="+", choices=NETWORKS, default=[*NETWORKS], metavar="NETWORK", help="of %(choices)s"
    )
    parser.add_argument("--threads", type=int, default=1)
    for key in ("steps", "clips"):
        parser.add_argument(f"--{key}", type=int, default=BUDGET[key], help="less, to try it out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    budget = {**BUDGET, "steps": options.steps, "clips": options.clips}
    options.out.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that a part of it is a fair part.
    names = [(name, seed) for seed in range(0 if options.table else SEEDS) for name in options.only]
    try:
        for name, seed in names:
            path = options.out / f"{name}-{seed}.json"
            if not path.exists():
                found = run(name, seed, options.out, budget)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(found, indent=1), "utf-8")
                os.replace(partial, path)
                path.with_suffix(".resume").unlink(missing_ok=True)
                top1 = 100 * answers([found]).mean()
                print(f"{path.name}: top-1 {top1:.1f} %, {found['processor_seconds']:.0f} s", flush=True)
        print(table(options.out))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
