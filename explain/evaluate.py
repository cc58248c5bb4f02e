"""`stabn-eval`: how often a network is right: `evaluation.json`, `evaluation.csv` (a line for each class),
`confusion.csv` and the chart `evaluation.png`.

While it runs, `evaluation.partial.jsonl` grows by a line for each clip, after a header of what decides them; a second
run goes on from there. Nothing heavy is imported before the command line is understood.
"""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from explain.ablate import data_name
from explain.runs import Folder, Record, StudyOptions, option, run_study

if TYPE_CHECKING:
    from stabn.clips import Item
    from stabn.model import STABN

PROGRAM = "stabn-eval"
BRANCHES = {"perception": "perception branch (the answer)", "attention": "attention branch"}
FIGURES = ("top1", "top5")


@dataclass(frozen=True)
class Options(StudyOptions):
    """How often a network is right, in all and by class, and which classes it takes for which.

    `--segments 2` is the paper's 32 x 2. An interrupted run goes on when it is started again.
    """

    out: Annotated[Path, option("FOLDER", "default: evaluation")] = Path("evaluation")
    """Where evaluation.json, evaluation.csv, confusion.csv and evaluation.png go."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done (clips that cannot be read are named on stderr), and those of `stabn.command`."""

    def lines(options: Options, result: dict[str, Any]) -> list[str]:
        files = f"{options.out}: evaluation.json, evaluation.csv, confusion.csv, evaluation.png"
        return [*table(result), *(per_class(result) if options.per_class else ()), files]

    return run_study(lambda: tyro.cli(Options, prog=PROGRAM, args=arguments), run, lines)


def run(options: Options) -> dict[str, Any]:
    """The content of `evaluation.json`, made now or found finished. Raises UsageError before anything runs."""
    folder = Folder(options.out, "evaluation", PROGRAM)
    options.check()
    folder.check()

    from explain import inversion, labelled

    model, source = labelled.opened(options)
    published = {
        "source": f"{inversion.PUBLISHED_SOURCE}; not measured here",
        "network": f"ST-ABN, {inversion.PUBLISHED_NETWORK}",
        "figure": "top-1 in percent",
        **{name: rows[list(inversion.ROWS).index("none")] for name, rows in inversion.PUBLISHED.items()},
    }
    result, made = labelled.study(
        options, folder, model, source, look, lambda found: summarise(found, model.classes) | {"published": published}
    )
    if made:
        tables = {"evaluation.csv": _csv(result).encode(), "confusion.csv": _confusion_csv(result).encode()}
        folder.finish(result, {**tables, "evaluation.png": chart(result)})
    return result


def look(model: STABN, items: Sequence[Item]) -> list[Record]:
    """A record for each clip, ready for JSON: for each branch the predicted class, how many classes stand before the
    true one, and its probability; or why the clip was skipped. Probabilities of segments are averaged."""
    import torch

    from explain.inversion import ranks

    good = [(item, item.frames) for item in items if item.frames is not None]
    records: dict[int, Record] = {each.number: {"clip": each.number, "skipped": each.problem} for each in items}
    if good:
        clips = torch.cat([model.preprocess(segment) for _, frames in good for segment in frames])
        with torch.inference_mode():
            output = model(clips)
        for item, _ in good:
            records[item.number] = {"clip": item.number, "label": item.label}
        for branch, logits in (("perception", output.logits), ("attention", output.attention_logits)):
            if logits is None:
                continue
            seen = logits.cpu().double().softmax(-1).reshape(len(good), -1, logits.shape[-1]).mean(1).numpy()
            for (item, _), answer in zip(good, seen, strict=True):
                records[item.number][branch] = {
                    "predicted": int(answer.argmax()),
                    "rank": int(ranks(answer, item.label)),
                    "probability": float(answer[item.label]),
                }
    return list(records.values())


def summarise(records: Sequence[Record], classes: Sequence[str]) -> dict[str, Any]:
    """The figures from the records of the clips that were read (one at least).

    Returns {"branches": {branch: {top1, top5}}, "per_class": [{class, clips, branches}], "confusion": matrix}. Figures
    are shares in 0..1, means over clips with their bootstrap 95 % interval; the matrix counts clips, a row for each
    true class, a column for each predicted one.
    """
    import numpy as np

    from explain.inversion import scored

    read = sorted((each for each in records if "skipped" not in each), key=lambda each: each["clip"])
    labels = np.array([each["label"] for each in read])
    ranks = {branch: np.array([each[branch]["rank"] for each in read]) for branch in BRANCHES if branch in read[0]}

    def figures(of: Any) -> dict[str, Any]:
        return {
            branch: {name: scored((found[of] < k).astype(float)) for name, k in (("top1", 1), ("top5", 5))}
            for branch, found in ranks.items()
        }

    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, [each["perception"]["predicted"] for each in read]), 1)
    return {
        "branches": figures(slice(None)),
        "per_class": [
            {"class": classes[label], "clips": int((labels == label).sum()), "branches": figures(labels == label)}
            for label in np.unique(labels)
        ],
        "classes": list(classes),
        "confusion": confusion.tolist(),
    }


# --------------------------------------------------------------------------------------------------- how it is told


def published(result: dict[str, Any]) -> dict[str, float]:
    """The paper's top-1 in percent, by data set."""
    return {name: of for name, of in result["published"].items() if isinstance(of, float)}


def _csv(result: dict[str, Any]) -> str:
    """All classes, then a line for each: shares in 0..1 with their intervals; the published top-1 in percent."""
    text = io.StringIO()
    writer = csv.writer(text)
    ends = {"": "value", "_low": "low", "_high": "high"}
    names = [(branch, name, end) for branch in result["branches"] for name in FIGURES for end in ends]
    writer.writerow(["class", "clips", *(f"{branch}_{name}{end}" for branch, name, end in names)])
    whole = {"class": "(all)", "clips": result["clips"], "branches": result["branches"]}
    for each in (whole, *result["per_class"]):
        values = [each["branches"][branch][name][ends[end]] for branch, name, end in names]
        writer.writerow([each["class"], each["clips"], *values])
    return text.getvalue()


def _confusion_csv(result: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true class, clips by predicted class", *result["classes"]])
    for name, row in zip(result["classes"], result["confusion"], strict=True):
        writer.writerow([name, *row])
    return text.getvalue()


def table(result: dict[str, Any]) -> list[str]:
    """Lines of at most 100 columns: both branches beside the published row, and what is most often confused."""
    study, frames = result["study"], f"{result['study']['segments']} x {result['frames']} frames"
    clips = f"{result['clips']} clips" + (f", {len(result['skipped'])} skipped" if result["skipped"] else "")
    lines = [
        f"Evaluation of {Path(result['checkpoint']).name} ({study['weights'][:12]})",
        f"{data_name(study['data'])}: {clips}, {frames}",
        "Percent with bootstrap 95 % intervals",
        "",
        f"{'':35}{'top-1':22}top-5",
    ]
    for branch, of in result["branches"].items():
        cells = (tuple(100 * of[name][key] for key in ("value", "low", "high")) for name in FIGURES)
        told = "".join(f"{f'{value:5.1f} [{low:.1f}, {high:.1f}]':22}" for value, low, high in cells)
        lines.append(f"{BRANCHES[branch]:34}{told}".rstrip())
    for name, value in published(result).items():
        lines.append(f"{f'ST-ABN, {name}*':34}{value:5.1f}")
    lines += ["", f"* published by the paper for {result['published']['network']}, not measured here"]
    if len(result["classes"]) <= 5:
        lines.append(f"Top-5 says nothing about {len(result['classes'])} classes: it is always 100")
    if worst := confused(result)[:5]:
        lines += ["", "Most often taken for another class"]
        for count, clips_of, true, predicted in worst:
            pair = (textwrap.shorten(each, 38, placeholder="...") for each in (true, predicted))
            lines.append(f"{count:4} of {clips_of:4}  {' -> '.join(pair)}")
    return [*lines, ""]


def confused(result: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    """(clips, of so many of the true class, the true class, the predicted one), the most clips first."""
    names, matrix = result["classes"], result["confusion"]
    found = [
        (count, sum(row), names[true], names[predicted])
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(found, key=lambda each: -each[0])


def per_class(result: dict[str, Any]) -> list[str]:
    """Top-1 and top-5 of the answer for each class, at most 100 columns."""
    lines = ["By class, percent", f"{'':50}{'clips':>6}{'top-1':>9}{'top-5':>9}"]
    for each in result["per_class"]:
        values = "".join(f"{100 * each['branches']['perception'][name]['value']:9.1f}" for name in FIGURES)
        lines.append(f"{textwrap.shorten(each['class'], 50, placeholder='...'):50}{each['clips']:6}{values}")
    return [*lines, ""]


def chart(result: dict[str, Any]) -> bytes:
    """A PNG: the confusion matrix of the answer, each row divided by its clips; classes are named if they are few."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    matrix, names = np.array(result["confusion"], float), result["classes"]
    clips = matrix.sum(1, keepdims=True)
    shares = np.divide(100 * matrix, clips, out=np.full_like(matrix, np.nan), where=clips > 0)
    named = len(names) <= 40
    side = max(4.0, 1 + 0.3 * len(names)) if named else 9.0
    figure = Figure((side + (5 if named else 2), side), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["Blues"].with_extremes(bad="#cbd5e1")
    image = axes.imshow(shares, cmap=colours, vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the clips of the true class")
    if named:
        axes.set_xticks(range(len(names)), list(map(str, range(len(names)))), fontsize=8)
        rows = [f"{textwrap.shorten(name, 64, placeholder='...')}  {k}" for k, name in enumerate(names)]
        axes.set_yticks(range(len(names)), rows, fontsize=8, parse_math=False)
        for true, predicted in np.argwhere(matrix > 0):
            value = shares[true, predicted]
            ink = "white" if value > 55 else "#0f172a"
            axes.text(predicted, true, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlabel("predicted class" + ("" if named else ", in the order of confusion.csv"))
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    top1 = result["branches"]["perception"]["top1"]
    title = f"{Path(result['checkpoint']).name}: {data_name(result['study']['data'])}, {result['clips']} clips\n"
    title += f"top-1 {100 * top1['value']:.1f} % ({100 * top1['low']:.1f} to {100 * top1['high']:.1f})"
    if (clips == 0).any():
        title += "; grey: classes without a clip"
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    return picture.getvalue()


if __name__ == "__main__":
    sys.exit(main())
