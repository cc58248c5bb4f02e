"""Writes the tables of what was measured into the READMEs, each between its two marks: one from the checkpoints'
metadata, the other from `docs/benchmark.json`.

`python benchmarks/tables.py`, after `python -m explain.evidence` has measured both checkpoints and `stabn-benchmark`
the methods; `make tables` does all.
"""

import json
from pathlib import Path
from typing import Any

import stabn
from explain import report
from explain.inversion import CONSTANT, MATCHED

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "docs" / "benchmark.json"
# What stands in which files, by the name in its first mark.
FILES = {"measured": (ROOT / "README.md", ROOT / "checkpoints" / "README.md"), "benchmark": (ROOT / "README.md",)}
MARK, END = "<!-- {}: made by `{}` -->\n", "<!-- end -->\n"


def percent(score: dict[str, Any]) -> str:
    return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def plain(score: dict[str, Any]) -> str:
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def benchmark() -> str:
    """The table of methods and scores in Markdown."""
    return "\n".join(report.markdown(json.loads(BENCHMARK.read_text("utf-8")), whole=False))


def measured() -> str:
    """The table of the checkpoints in Markdown, with the data, the intervals' meaning and the hashes of the weights."""
    bundled = stabn.load("synthetic").metadata["measured"]
    backbone = stabn.load("plain").metadata["measured"]
    own, other = bundled["scores"], backbone["scores"]
    if bundled["data"] != backbone["data"]:
        raise ValueError(f"the checkpoints were measured on {bundled['data']} and on {backbone['data']}")
    lines = [
        f"On {bundled['data']} (never trained on); in brackets the bootstrap 95 % interval over clips:",
        "",
        "| | `synthetic` | beside it |",
        "| --- | --- | --- |",
        f"| top-1 | {percent(own['top1'])} | {percent(other['top1'])}: `plain`, the backbone without the branch |",
        f"| top-1 of the attention branch | {percent(own['top1 of the attention branch'])} | |",
    ]
    for name in ("spatial", "temporal", "both"):
        inverted = own[f"top1 with {name} inverted"]
        left, matched, constant = (
            round(100 * own[f"top1 with {name} {what}"]["value"] / own["top1"]["value"])
            for what in ("inverted", MATCHED, CONSTANT)
        )
        beside = f"{left} % of plain top-1 is left; {MATCHED} {matched} %, {CONSTANT} {constant} %"
        lines.append(f"| top-1 with {name} inverted | {percent(inverted)} | {beside} |")
    for what, key, controls in (
        (
            "M_s energy in the mask over the mask's share (1 is chance; median)",
            "energy M_s",
            ("random", "centre", "frame difference", "perfect mask"),
        ),
        (
            "M_s pointing: its maximum on the evidence, in action frames",
            "pointing M_s",
            ("random", "centre", "frame difference", "perfect mask"),
        ),
        ("AUC of M_t over action frames (0.5 is chance)", "auc M_t", ("random", "centre", "frame difference")),
    ):
        kind = key.split()[0]
        beside = ", ".join(f"{name} {own[f'{kind} {name}']['value']:.2f}" for name in controls)
        lines.append(f"| {what} | {plain(own[key])} | {beside} |")
    lines += ["", f"Weights `{bundled['weights'][:16]}`, `{backbone['weights'][:16]}` (sha256 of the tensors).", ""]
    return "\n".join(lines)


TABLES = {"measured": measured, "benchmark": benchmark}


def written(text: str, name: str, content: str, maker: str = "make tables") -> str:
    """`text` with what stands between the marks of this name replaced by `content`, which `maker` makes."""
    mark = MARK.format(name, maker)
    before, rest = text.split(mark)
    _, after = rest.split(END, 1)
    return before + mark + content + END + after


def main() -> None:
    for name, table in TABLES.items():
        content = table()
        for file in FILES[name]:
            file.write_text(written(file.read_text("utf-8"), name, content), "utf-8")
            print(f"wrote {file.relative_to(ROOT)}: {name}")


if __name__ == "__main__":
    main()
