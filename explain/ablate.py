"""`stabn-ablate`: the inversion study as a table, `ablation.json`, `ablation.csv` and the chart `ablation.png`.

While it runs, `ablation.partial.jsonl` grows by a line for each clip, after a header of what decides them; a second
run goes on from there. Nothing heavy is imported before the command line is understood.
"""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from explain.runs import Folder, Record, StudyOptions, option, run_study
from stabn.command import UsageError

PROGRAM = "stabn-ablate"


@dataclass(frozen=True)
class Options(StudyOptions):
    """Invert where and when a network looks, and see what is left of its answers.

    Beside each inversion stand controls that change as much without inverting, for inversion alone also changes the
    gain. An interrupted run goes on when it is started again.
    """

    invert: Annotated[str, option("LIST", "default: spatial,temporal")] = "spatial,temporal"
    """What to invert: spatial, temporal, spatial,temporal (these, and both at once), or none."""
    out: Annotated[Path, option("FOLDER", "default: ablation")] = Path("ablation")
    """Where ablation.json, ablation.csv and ablation.png go."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done (clips that cannot be read are named on stderr), and those of `stabn.command`."""

    def lines(options: Options, result: dict[str, Any]) -> list[str]:
        files = f"{options.out}: ablation.json, ablation.csv, ablation.png"
        return [*table(result), *(per_class(result) if options.per_class else ()), files]

    return run_study(lambda: tyro.cli(Options, prog=PROGRAM, args=arguments), run, lines)


def run(options: Options) -> dict[str, Any]:
    """The content of `ablation.json`, made now or found finished. Raises UsageError before anything runs."""
    folder = Folder(options.out, "ablation", PROGRAM)
    rows = _checked(options)
    folder.check()

    from explain import inversion, labelled

    model, source = labelled.opened(options)
    if missing := set(rows) - set(inversion.rows_of(model.config.attention)):
        has = model.config.attention
        what = "spatial" if "spatial" in missing else "temporal"
        raise UsageError(f"the network has no {what} attention to invert: pass --invert {has}")
    asked = inversion.conditions(rows)

    def summarise(records: list[Record]) -> dict[str, Any]:
        return {
            **inversion.summarise(records, asked, model.classes),
            "published": {
                "network": inversion.PUBLISHED_NETWORK,
                "figure": "top-1 in percent, of the rows none, spatial, temporal, both",
                **{name: list(values) for name, values in inversion.PUBLISHED.items()},
            },
            "passes": {"extract": 1, "attend": 1, "perceive": len(asked)},  # for a batch
        }

    look = partial(inversion.look, asked=asked)
    result, made = labelled.study(options, folder, model, source, look, summarise, rows=rows)
    if made:
        folder.finish(result, {"ablation.csv": _csv(result).encode(), "ablation.png": chart(result)})
    return result


def _checked(options: Options) -> list[str]:
    """The rows, after everything that can be checked before heavy work; raises UsageError."""
    rows = {
        frozenset(("none",)): ["none"],
        frozenset(("spatial",)): ["none", "spatial"],
        frozenset(("temporal",)): ["none", "temporal"],
        frozenset(("both",)): ["none", "spatial", "temporal", "both"],
        frozenset(("spatial", "temporal")): ["none", "spatial", "temporal", "both"],
    }.get(frozenset(part.strip() for part in options.invert.split(",")))
    if rows is None:
        raise UsageError(f"--invert is {options.invert!r}, it must be spatial, temporal, spatial,temporal or none")
    options.check()
    return rows


# --------------------------------------------------------------------------------------------------- how it is told

FIGURES = ("top1", "top5", "flips", "change")
TITLES = {"none": "nothing inverted", "spatial": "spatial", "temporal": "temporal", "both": "spatial and temporal"}


def _published(result: dict[str, Any], row: str) -> dict[str, float]:
    """The paper's top-1 of a row, in percent, by data set."""
    return {
        name: of[list(TITLES).index(row)] for name, of in result["published"].items() if isinstance(of, (list, tuple))
    }


def _csv(result: dict[str, Any]) -> str:
    """A line for each row and each control: shares in 0..1 with their intervals, the published top-1 in percent."""
    text = io.StringIO()
    short = {name: f"published_{name[-2:].lower()}_top1_percent" for name in _published(result, "none")}
    names = [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    writer = csv.DictWriter(text, ["row", "control", "clips", *names, *short.values()], restval="")
    writer.writeheader()
    for row in result["rows"]:
        published = {short[name]: value for name, value in _published(result, row["row"]).items()}
        for each in (row, *row.get("controls", ())):
            figures = {name: each[name] for name in FIGURES if name in each}
            writer.writerow(
                {"row": row["row"], "control": each.get("control", ""), "clips": result["clips"]}
                | {f"{name}{end}": of[key] for name, of in figures.items() for end, key in _ENDS}
                | (published if each is row else {})
            )
    return text.getvalue()


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def data_name(data: dict[str, Any]) -> str:
    """What the study was made on, in words."""
    if "first" in data:
        return f"{data['name']} {data['version']}, seeds {data['first']} to {data['first'] + data['clips'] - 1}"
    return f"{data['name']} ({data['version'][:12]})"


def table(result: dict[str, Any]) -> list[str]:
    """Lines of at most 100 columns: the rows with their controls, the verdicts."""
    study, names = result["study"], _published(result, "none")
    clips = f"{result['clips']} clips" + (f", {len(result['skipped'])} skipped" if result["skipped"] else "")
    lines = [
        f"Inversion study of {Path(result['checkpoint']).name} ({study['weights'][:12]})",
        f"{data_name(study['data'])}: {clips}, {study['segments']} x {result['frames']} frames",
        "Percent with bootstrap 95 % intervals; p: probability of the true class",
        "",
        "inverted".ljust(24)
        + "".join(f" {title:15}" for title in ("top-1", "top-5", "flips", "change of p"))
        + "".join(f"{name[-2:]:>5}*" for name in names),
    ]
    for row in result["rows"]:
        published = "".join(f"{value:6.1f}" for value in _published(result, row["row"]).values())
        lines.append(_line(TITLES[row["row"]], row) + published)
        lines += [_line(f" {each['control']}", each).rstrip() for each in row.get("controls", ())]
    note = f"* top-1 published by the paper, not measured here: Something-Something, {result['published']['network']}"
    lines += ["", note]
    for row in result["rows"]:
        if "verdict" in row:
            said = f"{TITLES[row['row']].capitalize()} inverted: {row['verdict']['sentence']}"
            wrapped = textwrap.wrap(said.replace(" %", "\xa0%"), 98, break_on_hyphens=False)  # no line begins with %
            lines += ["", *(line.replace("\xa0", " ") for line in wrapped)]
    return [*lines, ""]


def _line(title: str, each: dict[str, Any]) -> str:
    cells = [f"{title:24}"]
    for name in FIGURES:
        value, low, high = (100 * each[name][key] if name in each else 0 for _, key in _ENDS)
        cells.append(f"{f'{value:z5.1f} [{low:z.0f},{high:z.0f}]' if name in each else '    -':16}")
    return "".join(cells)


def per_class(result: dict[str, Any]) -> list[str]:
    """Top-1 and flips of each class under each row, at most 100 columns."""
    rows = [row["row"] for row in result["rows"]]
    titles = [f"{title:>9}" for title in rows]
    lines = ["Top-1 by class, percent", f"{'':50}{'clips':>6}{''.join(titles)}"]
    for each in result["per_class"]:
        plain = {of["row"]: of for of in each["figures"] if not of["control"]}
        values = "".join(f"{100 * plain[row]['top1']:9.1f}" for row in rows)
        lines.append(f"{textwrap.shorten(each['class'], 50, placeholder='...'):50}{each['clips']:6}{values}")
    return [*lines, ""]


def chart(result: dict[str, Any]) -> bytes:
    """A PNG: top-1 of each row and of its controls with their intervals, and the published ones hatched."""
    from matplotlib.figure import Figure

    plain, published = "this network", "{} (published)"
    bars: dict[str, list[tuple[float, ...]]] = {plain: []}  # by series: (x, value, low, high) in percent
    bars |= {each["control"]: [] for row in result["rows"] for each in row.get("controls", ())}
    bars |= {published.format(name): [] for name in _published(result, "none")}
    ticks, x = [], 0.0
    for row in result["rows"]:
        group = [(each.get("control", plain), each["top1"]) for each in (row, *row.get("controls", ()))]
        scores = [(name, *(100 * of[key] for _, key in _ENDS)) for name, of in group]
        scores += [(published.format(name), *3 * (value,)) for name, value in _published(result, row["row"]).items()]
        for k, (name, *score) in enumerate(scores):
            bars[name].append((x + k, *score))
        ticks.append(x + (len(scores) - 1) / 2)
        x += len(scores) + 1

    figure = Figure((max(7, 2.6 * len(result["rows"])), 5), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    colours, hatches = iter(("#4f54cd", "#d97706", "#475569", "#94a3b8", "#cbd5e1")), iter(("////", "...."))
    for name, points in bars.items():
        at, value, low, high = zip(*points, strict=True)
        if name.endswith("(published)"):
            axes.bar(at, value, 0.9, label=name, facecolor="white", edgecolor="#94a3b8", hatch=next(hatches))
        else:
            reach = [(v - lo, hi - v) for v, lo, hi in zip(value, low, high, strict=True)]
            error = {"ecolor": "#0f172a", "elinewidth": 1, "capsize": 2}
            axes.bar(
                at, value, 0.9, yerr=list(zip(*reach, strict=True)), error_kw=error, label=name, color=next(colours)
            )
        for place, number, top in zip(at, value, high, strict=True):
            axes.text(place, top + 1, f"{number:.0f}", ha="center", fontsize=8)
    axes.set_xticks(ticks, [_TICKS[row["row"]] for row in result["rows"]], fontsize=11)
    axes.tick_params(axis="x", length=0)
    axes.margins(x=0.02, y=0.08)
    axes.set_ylabel("top-1, % (with 95 % intervals)")
    note = f"hatched: published by the paper for {result['published']['network']}, not measured here"
    axes.set_xlabel(note, fontsize=8, color="0.35")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4 if len(result["rows"]) > 2 else 3, fontsize=8, frameon=False)
    title = f"{Path(result['checkpoint']).name}: {data_name(result['study']['data'])}, {result['clips']} clips"
    axes.set_title(f"Inversion study of {title}", fontsize=11, loc="left", parse_math=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


_TICKS = {row: title if row == "none" else f"{title} inverted" for row, title in TITLES.items()}


if __name__ == "__main__":
    sys.exit(main())
