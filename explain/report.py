"""What `stabn-benchmark` found, told as a table for the terminal, Markdown, CSV and a figure.

All of it is made from the content of `benchmark.json`, which `explain.benchmark.run` gives.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from explain.ablate import data_name

OWN = "stabn"
# What the table shows of the many scores, if it is not asked for some by name, and what the figure shows.
TABLE = (
    *("energy", "pointing", "temporal_auc"),
    *("deletion_gain", "insertion_gain", "deletion_gain_time", "insertion_gain_time"),
)
PANELS = {
    "order_area": "deletion and insertion\nin space-time",
    "order_area_time": "deletion and insertion\nof whole frames",
    "energy": "energy of M_s on what acts,\nover its share of the picture",
    "temporal_auc": "M_t ranks action frames\n(AUC)",
}

_ENDS = ("value", "low", "high")
_CHANCE = {"energy": 1, "energy_joint": 1, "temporal_auc": 0.5}  # by score; 0 for what is over random orders
_WIDE = 8  # columns of a table that are still readable


def _columns(result: dict[str, Any]) -> list[str]:
    """The scores that have a value, in the order of the study."""
    rows = [row["scores"] for row in result["methods"] if "scores" in row]
    return [name for name in result["scores"] if any(row[name] for row in rows)]


def _main(result: dict[str, Any]) -> list[str]:
    """The columns of the first table: `TABLE` of a whole group, or the first scores that were asked for by name."""
    columns = _columns(result)
    chosen = [name for name in TABLE if name in columns]
    return chosen if set(TABLE) <= result["scores"].keys() and chosen else columns[:_WIDE]


def _head(result: dict[str, Any], name: str) -> str:
    score = result["scores"][name]
    return f"{score['title']} {'↑' if score['better'] == 'high' else '↓'}"


def _number(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−")


def _seconds(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}"


def table_csv(result: dict[str, Any]) -> str:
    """A line for each method and score, and for each score of the perfect mask on each grid."""
    text = io.StringIO()
    of_method = ("method", "control", "position_auc", "seconds", "evaluations", "refused")
    writer = csv.DictWriter(text, [*of_method, "score", "better", "statistic", *_ENDS, "clips"], restval="")
    writer.writeheader()
    for row in (*result["methods"], *_perfect(result)):
        same = {name: row[name] for name in of_method if row.get(name) is not None}
        for name, scored in row.get("scores", {}).items():
            of_score = {key: result["scores"][name][key] for key in ("better", "statistic")}
            writer.writerow({**same, "score": name, **of_score, **(scored or {"clips": 0})})
        if "scores" not in row:
            writer.writerow(same)
    return text.getvalue()


def _perfect(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each grid that maps had: what the evidence itself scores there."""
    return [
        {"method": f"perfect mask of {cells}", "control": True, "scores": scores}
        for cells, scores in result["perfect"].items()
    ]


def _grid_of(row: dict[str, Any]) -> str:
    """The cells of a method's maps, for a table; nothing where it says when only."""
    return "" if row["cells"] == [1, 1] else " x ".join(map(str, row["cells"]))


def header(result: dict[str, Any], names: Sequence[str], intervals: bool = True) -> list[str]:
    """What the figures of these scores are of, in paragraphs of Markdown."""
    study, clips = result["study"], result["clips"]
    skipped = f" ({len(result['skipped'])} more cannot be read)" if result["skipped"] else ""
    t, h, w = study["input"]
    means = [of["title"] for name, of in result["scores"].items() if name in names and of["statistic"] == "mean"]
    return [
        f"`{result['network']}` on {data_name(study['data'])}: {clips} clips{skipped} of {t} x {h} x {w}"
        + (f", top-1 {100 * result['top1']:.1f} %" if study["named"] else "")
        + f". Asked about is the {'true' if study['named'] else 'predicted'} class, f its probability. Deletion (DEL) "
        "and insertion (INS) need a clip on which f falls by more than 0.05 when all of it is replaced: "
        f"{result['scorable']} of {clips}.",
        "Median over clips"
        + (f" ({', '.join(means)}: mean)" if means else "")
        + (", small the bootstrap 95 % interval" if intervals else "")
        + f". Removed are cells of 1 frame x 1/14 x 1/14 of the picture in "
        f"{study['curve']} steps, replaced by `{study['baseline']}`, and whole frames one by one, replaced by "
        f"`{study['frame_baseline']}`{', the nearest kept one' if study['frame_baseline'] == 'freeze' else ''}; gains "
        f"are over {study['orders']} random orders. RISE and LIME have "
        f"{study['samples']} samples, masks by gradient {study['steps']} steps. Passes without gradient are in "
        f"{study['precision']}.",
    ]


def notes(result: dict[str, Any], names: Sequence[str]) -> list[str]:
    """What must be known to read the figures of these scores, in sentences of Markdown."""
    rows, titles = result["methods"], {name: result["scores"][name]["title"] for name in names}
    by_name = {row["method"]: row for row in rows}
    said = []
    if chance := [f"{_CHANCE[name]:g} for {titles[name]}" for name in names if name in _CHANCE]:
        said.append(f"Chance is {', '.join(chance)} and 0 for gains; the controls look at no network.")
    if "temporal_auc" in names and any(row.get("position_auc") is not None for row in rows):
        said.append("By position: what the mean M_t by position scores, the same for every clip.")
    if OWN in by_name and by_name[OWN].get("class_agnostic"):
        said.append(f"`{OWN}` is class-agnostic: one map, whatever class is asked about.")
    if {"grad_cam", "grad_cam_per_frame"} & by_name.keys():
        said.append(
            "`grad_cam` has weights averaged over space and time (captum, pytorch-grad-cam, MONAI), "
            "`grad_cam_per_frame` those of each frame (SlowFast, mmaction2)."
        )
    if only := [f"`{row['method']}`" for row in rows if row.get("cells") == [1, 1]]:
        said.append(f"{' and '.join(only)} say when only; in space they are flat.")
    for row in rows:
        if row["refused"]:
            which = "this network" if not row["clips"] else f"{result['clips'] - row['clips']} clips"
            said.append(f"`{row['method']}` refuses {which}: {row['refused']}.")
    if "frame_effect" in names and "leave_one_frame_out" in by_name:
        said.append("`leave_one_frame_out` is the frame effect itself, so that it agrees with it by construction.")
    if blank := [f"`{row['method']}` {row['blank']}" for row in rows if row.get("blank")]:
        said.append(f"Clips with a blank map (nothing speaks for the class): {', '.join(blank)}.")
    counted = {
        titles[name]: max(row["scores"][name]["clips"] for row in rows if row.get("scores", {}).get(name))
        for name in names
    }
    if len(set(counted.values())) > 1:
        said.append(f"Defined for so many clips: {', '.join(f'{title} {n}' for title, n in counted.items())}.")
    processes, threads = (result["options"][name] for name in ("processes", "threads"))
    beside = f"{processes} processes ran" if processes > 1 else "one process ran"
    said.append(
        f"Seconds and evaluations (clips through the network) are those of one explanation, medians; {beside} on "
        + (f"CPU cores, {threads} for each" if result["device"] == "cpu" else result["device"])
        + f". The scores of all rows together took {result['evaluations']:.0f} evaluations for a clip."
    )
    said.append(f"Weights `{result['study']['weights'][:16]}`. Made by `{result['command']}`.")
    return said


def markdown(result: dict[str, Any], whole: bool = True) -> list[str]:
    """The table in Markdown under what it is of, with notes; `whole` adds tables of the scores it has no room for."""
    main = _main(result)
    rest = [name for name in _columns(result) if name not in main] if whole else []
    shown = [*main, *rest]
    lines = [*_paragraphs(header(result, shown)), *_grid(result, main, True), ""]
    tables = math.ceil(len(rest) / _WIDE)
    for k in range(tables):
        part = rest[k * len(rest) // tables : (k + 1) * len(rest) // tables]
        lines += [*_grid(result, part, False), ""]
    return lines + _paragraphs([" ".join(notes(result, shown))])


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    lines = []
    for each in sentences:
        lines += [*textwrap.wrap(each.replace(" %", "\xa0%"), 118, break_on_hyphens=False, break_long_words=False), ""]
    return [line.replace("\xa0", " ") for line in lines]


def _grid(result: dict[str, Any], names: Sequence[str], costs: bool) -> list[str]:
    heads = ["method", "cells"]
    for name in names:
        heads += [_head(result, name), *(["by position"] if name == "temporal_auc" else [])]
    heads += ["seconds", "evaluations"] if costs else []
    lines = [f"| {' | '.join(heads)} |", f"| --- | ---{' | ---:' * (len(heads) - 2)} |"]

    def line(title: str, cells: str, row: dict[str, Any], ends: Sequence[str]) -> None:
        found = [title, cells]
        for name in names:
            scored = row["scores"].get(name)
            low, high = (_number(scored[end]) for end in ("low", "high")) if scored else ("", "")
            found.append(f"{_number(scored['value'])} <sub>{low} to {high}</sub>" if scored else "–")
            if name == "temporal_auc":
                habit = row.get("position_auc")
                found.append("–" if habit is None else _number(habit))
        lines.append(f"| {' | '.join([*found, *(ends if costs else ())])} |")

    for row in result["methods"]:
        title = f"**control:** `{row['method']}`" if row["control"] else f"`{row['method']}`"
        if "scores" not in row:
            lines.append(f"| {title} | refuses |{' – |' * (len(heads) - 2)}")
            continue
        line(title, _grid_of(row), row, (_seconds(row["seconds"]), f"{row['evaluations']:.0f}"))
    for cells, scores in result["perfect"].items():
        if any(scores.get(name) for name in names):
            line("*perfect mask*", cells, {"scores": scores}, ("–", "–"))
    return lines


def terminal(result: dict[str, Any]) -> list[str]:
    """Lines of at most 100 columns for a terminal: values only."""
    names = _main(result)
    heads = [textwrap.wrap(_head(result, name), 7, break_long_words=False) for name in names]
    heads += [["seconds"], ["evalua-", "tions"]]
    wide = [max(7, *map(len, head)) + 1 for head in heads]

    def line(title: str, cells: Sequence[str]) -> str:
        return f"{title:24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, wide, strict=False))

    tall = max(map(len, heads))
    lines = []
    for sentence in header(result, names, intervals=False):
        lines += textwrap.wrap(sentence.replace("`", "").replace(" %", "\xa0%"), 98, break_on_hyphens=False)
    lines = [*(line.replace("\xa0", " ") for line in lines), ""]
    for k in range(tall):
        lines.append(line("", [([""] * (tall - len(head)) + head)[k] for head in heads]).rstrip())
    for row in (*result["methods"], *_perfect(result)):
        if row.get("control") and "controls" not in lines:
            lines.append("controls")
        if "scores" not in row:
            lines.append(
                line(row["method"], []) + " " + textwrap.shorten(f"refuses: {row['refused']}", 74, placeholder=" ...")
            )
            continue
        cells = [_number(scored["value"]) if (scored := row["scores"].get(name)) else "–" for name in names]
        if "seconds" in row:
            cells += [_seconds(row["seconds"]), f"{row['evaluations']:.0f}"]
        lines.append(line(row["method"], cells))
    return [*lines, ""]


_ACCENT, _INK, _GREY = "#4f54cd", "#0f172a", "#64748b"


def chart(result: dict[str, Any]) -> bytes:
    """A PNG: a panel for each of `PANELS` (or of the first scores), a line for each method with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = _columns(result)
    names = [name for name in PANELS if name in columns] or columns[:4] or list(result["scores"])[:1]
    rows = [row for row in result["methods"] if "scores" in row]
    figure = Figure(
        (2.3 + 1.85 * len(names), 1.9 + 0.235 * len(rows)), dpi=200, facecolor="white", layout="constrained"
    )
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    controls = [row["method"] for row in rows if row["control"]]
    styles = dict(zip(controls, ((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1.5, 1, 1.5))), strict=False))
    first = len(rows) - len(controls)
    for name, axes in zip(names, panels, strict=True):
        for k, row in enumerate(rows):
            scored = row["scores"][name]
            if not scored:
                continue
            own = row["method"] == OWN
            colour = _ACCENT if own else _GREY if row["control"] else _INK
            if row["control"]:
                axes.axvline(scored["value"], color="#94a3b8", lw=1, ls=styles[row["method"]], zorder=0)
            axes.plot(
                [scored["low"], scored["high"]], [k, k], color=colour, lw=2 if own else 1.4, solid_capstyle="butt"
            )
            axes.plot(scored["value"], k, "D" if own else "o", color=colour, ms=5.5 if own else 4)
            if own:
                axes.axhspan(k - 0.5, k + 0.5, color=_ACCENT, alpha=0.1, lw=0)
        axes.axhspan(first - 0.5, len(rows) - 0.5, color="#f1f5f9", lw=0, zorder=-1)
        better = result["scores"][name]["better"]
        title = PANELS.get(name, result["scores"][name]["title"])
        axes.set_title(title, fontsize=8.5, parse_math=False)
        said = "better →" if better == "high" else "← better"
        if name.startswith("order_area"):
            said += "\narea between the two orders"
        for k, row in enumerate(rows):  # what the best map of this grid would reach
            best = result["perfect"].get(_grid_of(row), {}).get(name) if name.startswith("energy") else None
            if best:
                axes.plot(best["value"], k, "|", color="#16a34a", ms=9, mew=1.8)
        axes.set_xlabel(said, fontsize=8, color=_GREY)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="#e2e8f0", lw=0.6, zorder=-2)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(x=0.08)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8.5)
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        if row["method"] == OWN:
            label.set(color=_ACCENT, fontweight="bold")
        elif row["control"]:
            label.set(color=_GREY, fontstyle="italic")
    study = result["study"]
    title = f"{result['network']} on {data_name(study['data'])}: {result['clips']} clips, {result['scorable']} scorable"
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left", parse_math=False)
    lines = [Line2D([], [], color="#94a3b8", lw=1, ls=style) for style in styles.values()]
    names = [f"control: {name}" for name in styles]
    if result["perfect"] and any(name.startswith("energy") for name in columns):
        lines.append(Line2D([], [], color="#16a34a", lw=0, marker="|", ms=9, mew=1.8))
        names.append("perfect mask on the method's grid")
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
