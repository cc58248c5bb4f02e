"""The project keeps its own rules: layers, style, types."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import tables
    finally:
        sys.path.pop(0)
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
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import performance
    finally:
        sys.path.pop(0)
    kept = json.loads(performance.KEPT.read_text("utf-8"))
    assert performance.document(kept) == performance.DOCUMENT.read_text("utf-8")


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
