"""Which training makes attention the explanation? The levers of `stabn-train`, one network each, and what they cost.

`python benchmarks/attention_study.py` (two to three hours on two cores) starts from the bundled backbone `plain` and
trains every lever for a quarter of the budget (`screening`, judged on clips that serve nothing else), then the levers
of `FINAL` for the whole budget with three seeds (`final`, judged on the evaluation clips). Stopped and started again it
goes on where it was. What was measured stays in docs/attention_study.json; from it and from docs/benchmark.json it
writes the tables and the figure of docs/attention_study.md, and `--table` does only that. All clips are
Synthetic-Something's, 16 x 64 x 64.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tables import BENCHMARK, written  # beside this file

import stabn
from explain.inversion import CONSTANT, MATCHED
from stabn import synthetic
from stabn.checkpoint import weights_hash

ROOT = Path(__file__).parent.parent
KEPT, DOCUMENT, PICTURE = (ROOT / "docs" / f"attention_study.{kind}" for kind in ("json", "md", "png"))
MAKER = "benchmarks/attention_study.py"
# `plain` is the backbone that the bundled network began with.
BUDGET = "--init plain --rate 1e-3 --batch 16 --freeze-norm 0.33"
STEPS = {"screening": 120, "final": 480}
CLIPS = {"screening": (1_000_000, 300), "final": (0, 1000)}  # the first seed, how many

Found = dict[str, Any]


class Lever(NamedTuple):
    title: str
    options: str  # of stabn-train, beside the budget and the backbone's weights


# A lever whose options change needs another name, or what was trained by the old ones would be taken for it.
LEVERS = {
    "without": Lever("no attention branch", "--attention none"),
    "paper": Lever("the paper's losses", ""),
    "scratch": Lever("the paper's losses, from random weights", "--init none"),
    "price": Lever("a price on attention alone", "--price 12 0.2"),
    "keep": Lever("sufficiency at the input, and a price", "--keep 1 --price 12 0.2"),
    "erase": Lever("necessity at the input, and a price", "--erase 1 --price 12 0.2"),
    "input": Lever("both at the input, and a price", "--keep 1 --erase 1 --price 12 0.2"),
    "invert": Lever("inversion inside the network alone", "--invert 1"),
    "all": Lever(
        "both at the input, a price, and inversion", "--keep 1 --erase 1 --price 12 0.2 --invert 1 --answer 2"
    ),
    "masks": Lever("supervised with the known evidence", "--masks 4"),
}
FINAL = ("without", "paper", "all")
SEEDS = 3


class Run(NamedTuple):
    """One network: a lever, a seed, and how much of it."""

    stage: str
    lever: str
    seed: int

    def __str__(self) -> str:
        return f"{self.stage}-{self.lever}-{self.seed}"


def runs() -> list[Run]:
    """Everything, in the order of work: lever by lever, so that what is there has all its seeds."""
    screened = [Run("screening", lever, 0) for lever in LEVERS]
    return screened + [Run("final", lever, seed) for lever in FINAL for seed in range(SEEDS)]


def train(file: Path, lever: str, steps: int, seed: int) -> None:
    options = f"{BUDGET} --threads 1 --workers 1 --save-every 40 --steps {steps} --seed {100 + seed}"
    called("stabn.train", "--out", file, *options.split(), *LEVERS[lever].options.split())


def called(module: str, *arguments: object) -> None:
    """Runs a command of this project in a process of its own. Raises ValueError with what it said if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ValueError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def finish(run: Run, folder: Path) -> Found:
    """Trains and measures a network unless that is done, and gives what was found of it."""
    file, steps = folder / f"{run}.safetensors", STEPS[run.stage]
    if not file.exists():
        train(file, run.lever, steps, run.seed)
    if "measured" not in stabn.load(file).metadata:
        first, clips = CLIPS[run.stage]
        called("explain.evidence", "--checkpoint", file, "--first", first, "--clips", clips)
    metadata = stabn.load(file).metadata
    return {"options": LEVERS[run.lever].options, "trained": metadata["trained"], "measured": metadata["measured"]}


def cost(lever: str) -> float:
    """Processor seconds of a training step, those of making its clips included: what ten steps take more than two."""
    spent = []
    for steps in (2, 10):
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            train(Path(folder) / "network.safetensors", lever, steps, 0)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round((spent[1] - spent[0]) / 8, 3)


def study(folder: Path, processes: int) -> None:
    """Everything that is not finished yet; what is found is kept as it comes. Raises ValueError if a command fails."""
    begun = {"plain": weights_hash("plain"), "generator": synthetic.VERSION}
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    if kept.get("begun") != begun:
        kept = {"begun": begun, "runs": {}, "costs": {}}
    folder = folder / f"{begun['plain'][:16]}-{begun['generator']}"  # what was begun with other weights stays apart
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        jobs = {
            pool.submit(finish, run, folder): run
            for run in runs()
            if kept["runs"].get(str(run), {}).get("options") != LEVERS[run.lever].options
        }
        try:
            for job in as_completed(jobs):
                kept["runs"][str(jobs[job])] = job.result()
                keep(kept)
                print(f"{jobs[job]} is finished", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for lever in LEVERS:  # one after the other: nothing runs beside them
        if lever not in kept["costs"]:
            kept["costs"][lever] = cost(lever)
            keep(kept)


def keep(kept: Found) -> None:
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


# --------------------------------------------------------------------------------------------------- the tables

# What is shown of a network: scores, and shares of its own top-1 that are left in each of ROWS.
SCORES = {"top-1": "top1", "M_s energy": "energy M_s", "pointing": "pointing M_s", "AUC of M_t": "auc M_t"}
KINDS = {"inverted": "inverted", "matched inverse": MATCHED, "constant": CONSTANT}
ROWS = ("spatial", "temporal", "both")
CONTROLS = ("random", "centre", "frame difference", "perfect mask")


def score(found: Found, name: str) -> float:
    """A score of one network; NaN if it has none."""
    scores = found["measured"]["scores"]
    return scores[name]["value"] if name in scores else np.nan


def left(found: Found, row: str, kind: str) -> float:
    """The share of its own top-1 that a network keeps."""
    return score(found, f"top1 with {row} {KINDS[kind]}") / score(found, "top1")


def cells(each: Sequence[Found]) -> list[str]:
    """A lever's figures: of scores the mean, and small those of all seeds; of shares the means."""
    found = []
    for name in SCORES.values():
        values = [score(one, name) for one in each]
        told = [f"{100 * v:.1f}" if name.startswith(("top1", "pointing")) else f"{v:.2f}"
                for v in (np.mean(values), *values)]  # fmt: skip
        several = f" <sub>{', '.join(told[1:])}</sub>" if len(each) > 1 else ""
        found.append(told[0] + several if np.isfinite(values).any() else "")
    for kind in KINDS:
        shares = [np.mean([left(one, row, kind) for one in each]) for row in ROWS]
        found.append(", ".join(f"{100 * share:.0f}" for share in shares) if np.isfinite(shares).any() else "")
    return found


def of_stage(kept: Found, stage: str) -> dict[str, list[Found]]:
    """What was found of each lever, seed by seed."""
    found: dict[str, list[Found]] = {}
    for run in runs():
        if run.stage == stage and str(run) in kept["runs"]:
            found.setdefault(run.lever, []).append(kept["runs"][str(run)])
    return found


def table(kept: Found, stage: str) -> str:
    """The networks of a stage in Markdown."""
    found = of_stage(kept, stage)
    if not found:
        return "Nothing of this is finished yet.\n"
    first = next(iter(found.values()))[0]
    top1 = first["measured"]["scores"]["top1"]
    wide = 50 * (top1["high"] - top1["low"])
    seeds = max(len(each) for each in found.values())
    lines = [
        f"{first['measured']['data']}; {first['trained']['steps']} steps of 16 clips; "
        + (f"means of {seeds} seeds, small each of them. " if seeds > 1 else "one seed. ")
        + f"In percent: top-1 (± {wide:.1f}, 95 % over clips, one network), pointing, and what is left of "
        "the network's own top-1 with the spatial, the temporal attention or both changed. Step: processor time of a "
        "training step over that without the branch.",
        "",
        f"| lever | options of `stabn-train` | {' | '.join([*SCORES, *KINDS])} | step |",
        "| --- | --- |" + " ---: |" * (len(SCORES) + len(KINDS) + 1),
    ]
    for lever, each in found.items():
        options = LEVERS[lever].options
        times = f"{kept['costs'][lever] / kept['costs']['without']:.1f}" if lever in kept["costs"] else ""
        some = f" ({len(each)} of {seeds} seeds)" if len(each) < seeds else ""
        row = [LEVERS[lever].title + some, f"`{options}`" if options else "", *cells(each), times]
        lines.append(f"| {' | '.join(row)} |")
    controls = next((each[0]["measured"]["scores"] for lever, each in found.items() if lever != "without"), {})
    told = [
        f"{title} of {', '.join(known)}"
        for title, key in (("energy", "energy"), ("pointing", "pointing"), ("AUC", "auc"))
        if (known := [f"{n} {controls[f'{key} {n}']['value']:.2f}" for n in CONTROLS if f"{key} {n}" in controls])
    ]
    if told:
        lines += ["", f"On the same clips without a network: {'; '.join(told)}."]
    return "\n".join([*lines, ""])


def standing() -> str:
    """The bundled network's own attention among all methods of `stabn-benchmark`, score by score, in Markdown."""
    result = json.loads(BENCHMARK.read_text("utf-8"))
    rows = {row["method"]: row for row in result["methods"] if "scores" in row and not row["control"]}
    own = rows.pop("stabn")
    lines = [
        f"`{result['command']}`: {result['clips']} clips, {len(rows)} other methods. Clearly: the 95 % intervals over "
        "clips do not touch. Cost: clips through the network for one explanation, that of `stabn` is 1; in brackets "
        "how many times its seconds.",
        "",
        "| score | `stabn` | better | clearly better | clearly worse | best other | its cost |",
        "| --- | ---: | ---: | --- | ---: | --- | ---: |",
    ]
    for name, about in result["scores"].items():
        sign = 1 if about["better"] == "high" else -1
        mine = own["scores"].get(name)
        others = {method: row["scores"][name] for method, row in rows.items() if row["scores"].get(name)}
        if not mine or not others:
            continue
        best = max(others, key=lambda method: sign * others[method]["value"])
        better = sum(sign * other["value"] > sign * mine["value"] for other in others.values())
        ends = {method: sorted(sign * other[end] for end in ("low", "high")) for method, other in others.items()}
        low, high = sorted(sign * mine[end] for end in ("low", "high"))
        above = [f"`{method}`" for method, (worst, _) in ends.items() if worst > high]
        below = sum(top < low for _, top in ends.values())
        lines.append(
            f"| {about['title']} {'↑' if sign > 0 else '↓'} | {interval(mine)} | {better} of {len(others)} "
            f"| {', '.join(above) or 'none'} | {below} "
            f"| `{best}` {interval(others[best])} "
            f"| {rows[best]['evaluations']:.0f} ({rows[best]['seconds'] / own['seconds']:.1f}) |"
        )
    return "\n".join([*lines, ""])


def interval(of: Found) -> str:
    return f"{of['value']:.2f} <sub>{of['low']:.2f} to {of['high']:.2f}</sub>"


def document(text: str, kept: Found) -> str:
    """The document with its tables made anew."""
    tables = {stage: table(kept, stage) for stage in STEPS} | {"standing": standing()}
    for name, content in tables.items():
        text = written(text, name, content, MAKER)
    return text


def picture(kept: Found) -> None:
    """Where each lever stands: whether M_s shows the evidence and whether the answer needs it; what inversion and its
    controls leave. Left out is what has no attention, and what is at chance."""
    stages = [of_stage(kept, stage) for stage in STEPS]
    hidden = ("without", "scratch")
    screened, final = ({lever: each for lever, each in stage.items() if lever not in hidden} for stage in stages)
    if not screened or not final:
        return
    matplotlib.rcParams["font.size"] = 11
    figure = Figure((13.5, 5.4), layout="constrained")
    places, bars = figure.subplots(1, 2, width_ratios=(1, 1.4))
    colours = dict(zip(LEVERS, matplotlib.colormaps["tab10"].colors, strict=True))
    for lever, each in screened.items():
        x, y = score(each[0], "energy M_s"), 100 * left(each[0], "spatial", "inverted")
        places.scatter(x, y, color=colours[lever], s=70, zorder=3, label=LEVERS[lever].title)
    controls = next(iter(screened.values()))[0]["measured"]["scores"]
    for name, style in (("frame difference", "--"), ("perfect mask", ":")):
        at = controls[f"energy {name}"]["value"]
        places.axvline(at, color="0.5", linestyle=style, zorder=1)
        places.annotate(name, (at, 0.98), (-4, 0), rotation=90, color="0.4", ha="right", va="top", fontsize=9,
                        xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    places.set(xlabel="M_s energy in the mask over its share: does it show the evidence?", ylim=(0, 105))
    places.set(ylabel="percent of top-1 left with M_s inverted: is it needed?")
    places.set_title(f"after {STEPS['screening']} steps, one seed", fontsize=11)
    places.grid(alpha=0.3)
    places.legend(fontsize=9, loc="lower left", framealpha=1)
    changes = [(row, kind) for row in ROWS for kind in KINDS]
    width = 0.8 / len(final)
    for number, (lever, each) in enumerate(final.items()):
        at = np.arange(len(changes)) + (number - (len(final) - 1) / 2) * width
        shares = 100 * np.array([[left(one, *change) for one in each] for change in changes])
        bars.bar(at, shares.mean(1), 0.9 * width, color=colours[lever])
        bars.plot(np.repeat(at, len(each)), shares.ravel(), "k.", markersize=3)
    bars.set_xticks(range(len(changes)), ["\n".join([row, *kind.split()]) for row, kind in changes], fontsize=9)
    bars.set(ylabel="percent of its own top-1 that is left")
    bars.set_title(f"after {STEPS['final']} steps, each seed a dot (colours as on the left)", fontsize=11)
    bars.grid(axis="y", alpha=0.3)
    figure.savefig(PICTURE, dpi=100, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "attention_study", help="weights and states")
    parser.add_argument("--processes", type=int, default=2, help="networks that train side by side, a core each")
    parser.add_argument("--table", action="store_true", help="write what was measured, train nothing")
    options = parser.parse_args()
    if not options.table:
        try:
            study(options.out, options.processes)
        except ValueError as error:
            parser.exit(1, f"error: {error}\n")
    kept = json.loads(KEPT.read_text("utf-8"))
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8"), kept), "utf-8")
    picture(kept)


if __name__ == "__main__":
    main()
