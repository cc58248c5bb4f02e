"""The project keeps its own rules: layers, style, types."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import attention_study as study
import performance
import pytest
import tables

import stabn
from stabn import synthetic
from stabn.checkpoint import weights_hash

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [["lint-imports"], ["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["imports", "lint", "format", "types"],
)
def test_the_code_passes(command):
    run = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_tables_are_those_of_the_bundled_weights():
    """Whoever changes the weights runs `make tables`: the hash, the figures and the text belong together."""
    for name in ("synthetic", "plain"):
        model = stabn.load(name)
        assert model.metadata["measured"]["weights"] == weights_hash(model)
        assert f"version {synthetic.VERSION}," in model.metadata["measured"]["data"]
    study = json.loads(tables.BENCHMARK.read_text("utf-8"))["study"]
    assert study["weights"] == weights_hash("synthetic")
    assert study["data"]["version"] == str(synthetic.VERSION)
    assert study["data"]["clips"] == 60
    for name, table in tables.TABLES.items():
        for file in tables.FILES[name]:
            text = file.read_text("utf-8")
            assert tables.written(text, name, table()) == text


def test_the_document_of_performance_is_what_was_measured():
    kept = json.loads(performance.KEPT.read_text("utf-8"))
    assert performance.document(kept) == performance.DOCUMENT.read_text("utf-8")


def test_the_study_of_attention_is_what_was_measured_and_of_the_bundled_backbone():
    kept = json.loads(study.KEPT.read_text("utf-8"))
    assert kept["begun"] == {"plain": weights_hash("plain"), "generator": synthetic.VERSION}
    assert {run.stage for run in study.runs() if str(run) in kept["runs"]} == {"screening", "final"}
    assert all(found["options"] == study.LEVERS[name.split("-")[1]].options for name, found in kept["runs"].items())
    text = study.DOCUMENT.read_text("utf-8")
    assert study.document(text, kept) == text


def test_a_table_of_the_study_by_hand():
    def found(**scores):
        known = {"top1": {"value": 0.8, "low": 0.75, "high": 0.85}, **{k: {"value": v} for k, v in scores.items()}}
        return {"trained": {"steps": 10}, "measured": {"data": "clips", "scores": known}}

    runs = {f"final-without-{seed}": found() for seed in range(3)}
    for seed, energy, left in ((0, 2, 0.4), (2, 4, 0.2)):
        known = {f"top1 with {row} inverted": share for row, share in zip(study.ROWS, (0.8, 0.6, left), strict=True)}
        runs[f"final-paper-{seed}"] = found(**{"energy M_s": energy, "energy centre": 1.5}, **known)
    kept = {"runs": runs, "costs": {"without": 0.5, "paper": 1.0}}
    text = study.table(kept, "final")
    without, paper = (line.split(" | ") for line in text.splitlines() if line.startswith(("| no", "| the paper's")))
    assert without[2] == "80.0 <sub>80.0, 80.0, 80.0</sub>"
    assert without[-1] == "1.0 |"
    assert paper[0] == "| the paper's losses (2 of 3 seeds)"
    assert paper[3] == "3.00 <sub>2.00, 4.00</sub>"
    assert paper[6:8] == ["100, 75, 38", ""]
    assert paper[-1] == "2.0 |"
    assert "± 5.0" in text
    assert "energy of centre 1.50" in text
    assert study.table(kept, "screening") == "Nothing of this is finished yet.\n"


def test_where_attention_stands_by_hand(tmp_path, monkeypatch):
    """Also of a score of which less is better."""

    def row(method, up, down, control=False):
        scores = {name: dict(zip(("low", "value", "high"), of, strict=True)) for name, of in (("a", up), ("b", down))}
        return {"method": method, "control": control, "scores": scores, "evaluations": 5.0, "seconds": 0.4}

    rows = [
        row("stabn", (2, 3, 4), (2, 3, 4)) | {"evaluations": 1.0, "seconds": 0.1},
        row("rise", (5, 6, 7), (5, 6, 7)),
        row("lime", (3, 3.5, 5), (0, 1, 1.5)),
        row("centre", (8, 9, 9), (0, 0, 0), control=True),
    ]
    titles = {"a": {"title": "A", "better": "high"}, "b": {"title": "B", "better": "low"}}
    kept = tmp_path / "benchmark.json"
    kept.write_text(json.dumps({"command": "it", "clips": 3, "scores": titles, "methods": rows}))
    monkeypatch.setattr(study, "BENCHMARK", kept)
    up, down = study.standing().splitlines()[-2:]
    mine = "3.00 <sub>2.00 to 4.00</sub>"
    assert up == f"| A ↑ | {mine} | 2 of 2 | `rise` | 0 | `rise` 6.00 <sub>5.00 to 7.00</sub> | 5 (4.0) |"
    assert down == f"| B ↓ | {mine} | 1 of 2 | `lime` | 1 | `lime` 1.00 <sub>0.00 to 1.50</sub> | 5 (4.0) |"


def test_bundled_weights_are_small_and_name_no_place_of_the_machine_they_come_from():
    for file in (ROOT / "checkpoints").glob("*.safetensors"):
        assert file.stat().st_size < 12e6
        assert "/" not in json.dumps(stabn.load(file).metadata)


def test_the_commands_of_the_readme_exist():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"^(stabn-\w+)", readme, re.M)) <= scripts.keys()
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(re.findall(r"^make (\w+)", readme, re.M)) <= set(targets)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("explain.cli", ("--out", "--checkpoint", "--method", "--target", "--window", "--overwrite", "--processes")),
        ("explain.benchmark", ("--methods", "--metrics", "--clips", "--model", "--data", "--processes", "--overwrite")),
        ("explain.ablate", ("--invert", "--data", "--segments", "--per-class", "--processes", "--overwrite")),
        ("explain.evaluate", ("--checkpoint", "--data", "--segments", "--per-class", "--processes", "--overwrite")),
        ("stabn.train", ("--out", "--steps", "--init", "--attention", "--data", "--validation", "--accumulate")),
    ],
)
def test_help_imports_nothing_heavy(module, options):
    program = (
        f"import sys\nfrom {module} import main\n"
        "try: main(['--help'])\nexcept SystemExit as error: assert error.code == 0\n"
        "heavy = {'torch', 'torchvision', 'cv2', 'av', 'matplotlib', 'numpy', 'PIL', 'gradio'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for option in options:
        assert option in done.stdout
