"""`stabn-benchmark`: every method, scored on the same clips of the same network, as a table and one figure.

`benchmark.json` has all figures, `benchmark.csv` a line for each method and score, `benchmark.md` the table,
`benchmark.png` the figure, and `benchmark.clips.jsonl` what each clip gave, for tests of one's own. While it runs,
`benchmark.partial.jsonl` grows by a line for each clip; a second run goes on from there. Nothing heavy is imported
before the command line is understood.
"""

from __future__ import annotations

import inspect
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from explain import METHODS, TITLES, report
from explain.cli import NetworkOptions, check_network, listed, listed_methods, open_network
from explain.runs import Batches, Folder, Look, Record, cores, in_processes, network_of, run_study
from stabn import __version__
from stabn.command import UsageError

if TYPE_CHECKING:
    from explain.core import Explanation
    from explain.labelled import Item, Source
    from explain.metrics import Trial
    from explain.models import Classifier
    from stabn.video import Clip

PROGRAM = "stabn-benchmark"
CLIPS = 50
MANY = 10  # clips for each process, from which on compiling the network pays
CONTROLS = ("random", "centre", "frame_difference")  # of METHODS, the last ones
# Of a score that is a share, or a yes or no, for each clip the median says little; `explain.metrics` has the others.
MEANS = (
    "pointing",
    "temporal_auc",
    "temporal_argmax",
    "temporal_precision",
    "temporal_iou",
    "average_drop",
    "increase",
)


def _option(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({default})")


_Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    """Score explanation methods on clips whose evidence is known, or on labelled videos.

    Controls that look at no network stand in the same table. An interrupted run goes on when it is started again.
    """

    methods: Annotated[str, _option("all|LIST", "default: all")] = "all"
    """Names, with commas between them, as in stabn-explain --method; the three controls always come along."""
    metrics: Annotated[str, _option("core|full|LIST", "default: core")] = "core"
    """core: localisation, deletion and insertion in space-time and in time; full: everything; or names of scores."""
    clips: Annotated[int | None, _option("N", f"default: {CLIPS} generated ones, or all of --data")] = None
    """How many clips; of --data so many, spread evenly."""
    first: Annotated[int, _option("SEED", "default: 0")] = 0
    """The first seed of generated clips."""
    data: Annotated[Path | None, _option("FOLDER|LIST", "default: Synthetic-Something, generated")] = None
    """Labelled videos: a folder of class folders, a CSV with the columns path and label, or a list of
    Something-Something V1 or V2. Their evidence is not known, so that there is no localisation."""
    samples: Annotated[int, _option("N", "default: 256")] = 256
    """Random masks of RISE and LIME."""
    steps: Annotated[int, _option("N", "default: 100")] = 100
    """Steps of the masks that are found by gradient."""
    curve: Annotated[int, _option("N", "default: 20")] = 20
    """Steps of a deletion or insertion curve; in time there is always one for each frame."""
    orders: Annotated[int, _option("N", "default: 5")] = 5
    """Random orders that deletion and insertion are compared with."""
    baseline: Annotated[str, _option("blur|mean|zero", "default: blur")] = "blur"
    """What replaces removed cells when scores are taken."""
    frame_baseline: Annotated[str, _option("freeze|blur|mean|zero", "default: freeze")] = "freeze"
    """What replaces removed frames; freeze is the nearest frame that is kept."""
    precision: Annotated[str, _option("bf16|fp32", "default: bf16")] = "bf16"
    """Of passes that need no gradient; fp32 takes up to four times as long."""
    out: Annotated[Path, _option("FOLDER", "default: benchmark")] = Path("benchmark")
    """Where the results go."""
    processes: Annotated[int | None, _option("N", "default: one for each core, one on a GPU")] = None
    """Processes that each run a network on clips of their own, on the GPUs in turn."""
    overwrite: Annotated[bool, _Flag] = False
    """Begin anew, and replace results of other weights, data or options."""
    quiet: Annotated[bool, _Flag] = False
    """No table and no progress; errors are still written to stderr."""
    json: Annotated[bool, _Flag] = False
    """The content of benchmark.json on stdout, and nothing else there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed or a clip could not be read (the table is of the others), and those of
    `stabn.command`."""

    def lines(options: Options, result: dict[str, Any]) -> list[str]:
        files = "benchmark.json, benchmark.csv, benchmark.md, benchmark.png, benchmark.clips.jsonl"
        return [*report.terminal(result), f"{options.out}: {files}"]

    parse = partial(tyro.cli, Options, prog=PROGRAM, args=arguments)
    return run_study(parse, run, lines, failed=lambda result: bool(result["skipped"]))


def command(options: Options) -> str:
    """The command line that makes these results again: the options that decide them and are not the default."""
    said = [PROGRAM]
    for each in fields(Options):
        value = getattr(options, each.name)
        if value != each.default and each.name not in ("out", "processes", "device", "overwrite", "quiet", "json"):
            said.append(f"--{each.name.replace('_', '-')} {value}")
    return " ".join(said)


# ------------------------------------------------------------------------------------------------------ the run


class Plan(NamedTuple):
    """What is done with each clip."""

    methods: tuple[str, ...]
    scores: tuple[str, ...]
    named: bool  # the labels are classes of the network, and are what is asked about
    samples: int
    steps: int
    curve: int
    orders: int
    baseline: str
    frame_baseline: str

    def options(self, method: str, seed: int) -> dict[str, Any]:
        """Those of a method; where there is chance it is another one for each clip."""
        from explain.core import resolve

        known = inspect.signature(resolve(method)).parameters
        given = {"seed": seed} if "seed" in known else {}
        if method in ("rise", "lime"):
            given["samples"] = self.samples
        if method in ("meaningful_perturbation", "extremal_perturbation"):
            given["steps"] = self.steps
        return given


def run(options: Options) -> dict[str, Any]:
    """The content of `benchmark.json`, made now or found finished. Raises UsageError before anything runs."""
    methods = _checked(options)
    folder = Folder(options.out, "benchmark", PROGRAM)
    folder.check()

    import torch

    from explain.core import nearest
    from explain.metrics import SCORES
    from explain.models import compiled
    from stabn import synthetic
    from stabn.checkpoint import pick_device

    groups = {"core": [name for name, score in SCORES.items() if score.group == "core"], "full": list(SCORES)}
    scores = groups.get(options.metrics) or listed(options.metrics)
    for name in scores:
        if name not in SCORES:
            raise UsageError(f"--metrics: there is no score {name!r}: {nearest(name, (*SCORES, *groups))}")
    if options.data is not None and all(SCORES[name].needs == "evidence" for name in scores):
        raise UsageError("--metrics names only scores against known evidence, which --data does not have")
    try:
        device = pick_device(options.device)
        network, told = open_network(options)
        network, weights = _precise(network, options), told["sha256"]
        size = _size(network)
        named = options.data is not None or list(network.classes) == list(synthetic.CLASSES)
        source = _source(options, network, named)
    except ValueError as error:
        raise UsageError(str(error)) from None
    plan = Plan(
        tuple(methods), tuple(scores), named, options.samples, options.steps, options.curve, options.orders,
        options.baseline, options.frame_baseline,
    )  # fmt: skip
    study = {
        "program": PROGRAM,
        "weights": weights,
        "data": source.told,
        "input": size,
        **{name: list(of) if isinstance(of, tuple) else of for name, of in plan._asdict().items()},
        "layer": network.layer,
        "precision": network.precision,
    }
    finished, records = folder.begin(study, source.numbers, options.overwrite)
    if finished:
        return finished
    pending = [number for number in source.numbers if number not in records]
    processes = min(options.processes or (cores() if device.type == "cpu" else 1), len(source.numbers))
    many = len(pending) >= MANY * processes
    if processes > 1 and len(pending) > 1:
        start = partial(_looking, options, plan, source, weights, many)
        batches = in_processes(start, [[number] for number in pending], processes)
    else:
        network = compiled(network) if many else network
        batches = _one_by_one(lambda numbers: [look(network, source[number], plan) for number in numbers], pending)
    found = folder.collect(batches, records, len(source.numbers), options.quiet)
    result = {
        "study": study,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(options),
        "network": options.model or Path(options.checkpoint).name,
        **summarise(found, plan.methods, plan.scores),
        "options": {"processes": processes, "threads": max(1, torch.get_num_threads() // processes)},
        "device": device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "captum", "matplotlib")},
        },
    }
    files = {
        "benchmark.csv": report.table_csv(result).encode(),
        "benchmark.md": "\n".join(report.markdown(result)).encode(),
        "benchmark.png": report.chart(result),
    }
    folder.finish(result, files, keep=True)
    return result


def _checked(options: Options) -> list[str]:
    """The methods in METHODS's order, after everything that can be checked before heavy work; raises UsageError."""
    from explain.core import check_method

    asked = listed_methods(options.methods)
    try:
        for method in asked:
            check_method(method)
    except ValueError as error:
        raise UsageError(f"--methods: {error}") from None
    if not asked or not listed(options.metrics):
        name = "metrics" if asked else "methods"
        raise UsageError(f"--{name} is empty, it must be one name or more, with commas between them")
    for name, least in (
        *(("clips", 1), ("first", 0), ("samples", 1), ("steps", 1), ("curve", 2)),
        *(("orders", 1), ("processes", 1)),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} is {value}, it must be {least} or more")
    for name, allowed in (
        ("precision", ("bf16", "fp32")),
        ("baseline", ("blur", "mean", "zero")),
        ("frame_baseline", ("freeze", "blur", "mean", "zero")),
    ):
        if getattr(options, name) not in allowed:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is {getattr(options, name)!r}, it must be {' or '.join(allowed)}")
    check_network(options)
    if options.data is not None and not options.data.exists():
        raise UsageError(f"--data {options.data} does not exist")
    if options.data is not None and options.first:
        raise UsageError("--first is a seed of generated clips, it has no meaning for --data")
    return [method for method in METHODS if method in asked or method in CONTROLS]


def _precise(network: Classifier, options: Options) -> Classifier:
    return replace(network, precision=options.precision)  # type: ignore[arg-type]  # checked


def _size(network: Classifier) -> list[int]:
    """T, H, W of the network's clips; raises ValueError where its layer cannot be."""
    import numpy as np

    from explain.models import cam_layer, undisturbed

    with undisturbed(network.module):
        side = network.size or 224
        clip = network.clip(np.zeros((network.frames, side, side, 3), np.uint8))
        if network.layer:
            cam_layer(network, clip, network.layer)
    return list(clip.shape[2:])


def _source(options: Options, network: Classifier, named: bool) -> Source:
    from explain.labelled import Generated, Videos

    if options.data is not None:
        return Videos(network, options.data, options.clips)
    return Generated(network, options.first, options.clips or CLIPS, named=named)


def _one_by_one(look: Look, numbers: Iterable[int]) -> Batches:
    for number in numbers:
        yield look([number])


def _looking(options: Options, plan: Plan, source: Source, weights: str, many: bool, turn: int) -> Look:
    """What a process does: it opens the network of these weights, and looks at clips, which may be many."""
    from explain.models import compiled

    network = _precise(network_of(options, turn, weights), options)
    network = compiled(network) if many else network
    return lambda numbers: [look(network, source[number], plan) for number in numbers]


# ------------------------------------------------------------------------------------------------------ one clip


def look(network: Classifier, item: Item, plan: Plan) -> Record:
    """The record of a clip, ready for JSON: what each method gave, what that cost, and its scores.

    None is a score that is not defined for the clip. A method that raises ValueError has its reason instead.
    """
    from explain.core import asked
    from explain.methods import Question
    from explain.metrics import Evidence, Trial
    from stabn.video import Clip

    if item.frames is None:
        return {"clip": item.number, "skipped": item.problem}
    clip = Clip.from_array(item.frames[0])
    evidence = None
    if item.mask is not None and item.action is not None:
        evidence = Evidence(item.mask[0], item.action[0])
    with asked(network, clip, None):
        predicted = Question(network, clip, None).target
    target = item.label if plan.named else predicted
    trial = Trial(
        network, clip, target, evidence,
        baseline=plan.baseline, frame_baseline=plan.frame_baseline, steps=plan.curve, orders=plan.orders,
        seed=item.number,
    )  # fmt: skip
    record: Record = {
        "clip": item.number,
        "label": item.label,
        "target": target,
        "predicted": predicted,
        "scorable": bool(trial.scorable),
        "action": None if evidence is None else evidence.action.astype(int).tolist(),
        "methods": {},
        "perfect": {},
    }
    for method in plan.methods:
        record["methods"][method], found = _tried(network, clip, target, method, item.number, plan, trial)
        if found is not None and evidence is not None and found.has_places:
            cells = found.spatial.shape[1:]
            if (name := " x ".join(map(str, cells))) not in record["perfect"]:
                record["perfect"][name] = _perfect(trial, found, plan)
    record["evaluations"] = trial.evaluations
    return record


def _tried(
    network: Classifier, clip: Clip, target: int, method: str, seed: int, plan: Plan, trial: Trial
) -> tuple[dict[str, Any], Explanation | None]:
    """What a method gave, and its explanation; or why it refuses, and None."""
    from explain.core import explain
    from explain.metrics import weights

    given = plan.options(method, seed)
    began = time.perf_counter()
    try:
        explanation = explain(network, clip, method, target, **given)
    except ValueError as error:
        return {"refused": " ".join(str(error).split())}, None
    seconds = time.perf_counter() - began
    scores = trial.scores(
        explanation, plan.scores, lambda network, clip: explain(network, clip, method, target, **given)
    )
    return {
        "seconds": round(seconds, 4),
        "evaluations": explanation.evaluations,
        "class_agnostic": explanation.class_agnostic,
        "cells": list(explanation.spatial.shape[1:]),
        "blank": not explanation.temporal.any(),
        "temporal": [float(f"{weight:.6g}") for weight in weights(explanation, positive=True)],
        "scores": _numbers(scores),
    }, explanation


def _perfect(trial: Trial, like: Explanation, plan: Plan) -> dict[str, float | None]:
    """The scores against evidence of the evidence itself, as maps of the size of an explanation's."""
    import numpy as np

    from explain.metrics import SCORES, perfect_maps

    mask, action = trial.in_view
    cells = like.spatial.shape[1:]
    perfect = replace(like, spatial=perfect_maps(mask, *cells), temporal=action.astype(np.float32), signed=False)
    names = [name for name in plan.scores if SCORES[name].needs == "evidence"]
    return _numbers(trial.scores(perfect, names))


def _numbers(scores: dict[str, float]) -> dict[str, float | None]:
    """NaN is no JSON."""
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in scores.items()}


# --------------------------------------------------------------------------------------------------- the figures


def summarise(records: Sequence[Record], methods: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    """The benchmark's figures from the records of clips, one of which at least was read.

    A score is the median over the clips it is defined for, or the mean for those of `MEANS`, with its bootstrap 95 %
    interval and the number of these clips; None if there are none. Seconds and evaluations are medians.
    """
    import numpy as np

    from explain.metrics import SCORES

    read = [record for record in records if "skipped" not in record]
    rows = []
    for method in methods:
        each = [record["methods"][method] for record in read]
        refused = Counter(one["refused"] for one in each if "refused" in one)
        done = [(record, one) for record, one in zip(read, each, strict=True) if "refused" not in one]
        row: dict[str, Any] = {
            "method": method,
            "title": TITLES[method],
            "control": method in CONTROLS,
            "clips": len(done),
            "refused": refused.most_common(1)[0][0] if refused else None,
        }
        if done:
            row |= {
                "class_agnostic": done[0][1]["class_agnostic"],
                "cells": done[0][1]["cells"],
                "blank": sum(one["blank"] for _, one in done),
                **{
                    name: round(float(np.median([one[name] for _, one in done])), 4)
                    for name in ("seconds", "evaluations")
                },
                "position_auc": _position_auc(done),
                "scores": {name: _scored(name, [one["scores"][name] for _, one in done]) for name in scores},
            }
        rows.append(row)
    perfect: dict[str, dict[str, list[float | None]]] = {}  # by grid and score
    for record in read:
        for cells, found in record["perfect"].items():
            for name, value in found.items():
                perfect.setdefault(cells, {}).setdefault(name, []).append(value)
    return {
        "clips": len(read),
        "scorable": sum(record["scorable"] for record in read),
        "skipped": [{"clip": each["clip"], "reason": each["skipped"]} for each in records if "skipped" in each],
        "top1": round(float(np.mean([record["predicted"] == record["label"] for record in read])), 6),
        "scores": {
            name: {
                "title": SCORES[name].title,
                "better": SCORES[name].better,
                "statistic": "mean" if name in MEANS else "median",
            }
            for name in scores
        },
        "methods": rows,
        "perfect": {
            cells: {name: _scored(name, values) for name, values in found.items()}
            for cells, found in sorted(perfect.items(), key=lambda each: int(each[0].split()[0]))
        },
        "evaluations": round(float(np.median([record["evaluations"] for record in read])), 1),
    }


def _scored(name: str, values: Sequence[float | None]) -> dict[str, Any] | None:
    import numpy as np

    from explain.metrics import bootstrap

    kept = np.array([value for value in values if value is not None])
    if not len(kept):
        return None
    found = bootstrap(kept, np.mean if name in MEANS else np.median)
    return {
        **{key: round(value, 5) for key, value in zip(("value", "low", "high"), found, strict=True)},
        "clips": len(kept),
    }


def _position_auc(done: Sequence[tuple[Record, dict[str, Any]]]) -> float | None:
    """The mean AUC that the method's mean weight by position has, the same for every clip: what a habit is worth."""
    import numpy as np

    from explain.metrics import position_auc

    known = [(one["temporal"], record["action"]) for record, one in done if record["action"] is not None]
    if not known:
        return None
    temporal, action = (np.array(each) for each in zip(*known, strict=True))
    found = position_auc(temporal, action.astype(bool))
    found = found[np.isfinite(found)]
    return round(float(found.mean()), 5) if len(found) else None


if __name__ == "__main__":
    sys.exit(main())
