"""Writes the table of what was measured from the checkpoints' metadata into the READMEs, between its two marks.

`python benchmarks/tables.py`, after `python -m explain.evidence` has measured both checkpoints; `make tables` does all.
"""

from pathlib import Path
from typing import Any

import stabn

ROOT = Path(__file__).parent.parent
FILES = (ROOT / "README.md", ROOT / "checkpoints" / "README.md")
MARKS = ("<!-- measured: made by `make tables` -->\n", "<!-- end -->\n")


def percent(score: dict[str, Any]) -> str:
    return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def plain(score: dict[str, Any]) -> str:
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def table() -> str:
    """The table in Markdown, with the data, the intervals' meaning and the hashes of the weights."""
    measured = stabn.load("synthetic").metadata["measured"]
    backbone = stabn.load("plain").metadata["measured"]
    own, other = measured["scores"], backbone["scores"]
    if measured["data"] != backbone["data"]:
        raise ValueError(f"the checkpoints were measured on {measured['data']} and on {backbone['data']}")
    lines = [
        f"On {measured['data']} (never trained on); in brackets the bootstrap 95 % interval over clips:",
        "",
        "| | `synthetic` | beside it |",
        "| --- | --- | --- |",
        f"| top-1 | {percent(own['top1'])} | {percent(other['top1'])}: `plain`, the backbone without the branch |",
        f"| top-1 of the attention branch | {percent(own['top1 of the attention branch'])} | |",
    ]
    for name in ("spatial", "temporal", "both"):
        inverted = own[f"top1 with {name} inverted"]
        kept = f"{100 * inverted['value'] / own['top1']['value']:.0f} % of plain top-1"
        lines.append(f"| top-1 with {name} inverted | {percent(inverted)} | {kept} |")
    for what, key, controls in (
        (
            "M_s energy in the mask over the mask's share (1 is chance; median)",
            "energy M_s",
            ("random", "centre", "frame difference", "perfect mask"),
        ),
        ("AUC of M_t over action frames (0.5 is chance)", "auc M_t", ("random", "centre", "frame difference")),
    ):
        kind = key.split()[0]
        beside = ", ".join(f"{name} {own[f'{kind} {name}']['value']:.2f}" for name in controls)
        lines.append(f"| {what} | {plain(own[key])} | {beside} |")
    lines += ["", f"Weights `{measured['weights'][:16]}`, `{backbone['weights'][:16]}` (sha256 of the tensors).", ""]
    return "\n".join(lines)


def written(text: str, content: str) -> str:
    """`text` with what stands between the marks replaced by `content`."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return before + MARKS[0] + content + MARKS[1] + after


def main() -> None:
    content = table()
    for file in FILES:
        file.write_text(written(file.read_text("utf-8"), content), "utf-8")
        print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
