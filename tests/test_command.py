"""How commands end: in an exit code and a sentence; and two runs do not write the same at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stabn
from explain import ablate, benchmark, cli, evaluate
from explain.runs import Folder
from stabn import train
from stabn.command import UsageError, alone, command, held, in_words

COMMANDS = ("explain.cli", "explain.ablate", "explain.evaluate", "explain.benchmark", "stabn.train", "app.page")
OTHER = "import sys; from pathlib import Path; from stabn.command import lock; "


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("--top is 9"), 2, "error: --top is 9\n"),
        (ValueError("it is\n damaged"), 1, "error: it is damaged\n"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), 1, "error: a.mp4: No such file or directory\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 48 bytes"),
            1,
            "error: out of memory\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; all is kept\n"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(raising(error), lambda: "all is kept") == code
    assert capsys.readouterr().err == said


def test_what_is_done_or_left_by_exit_is_passed_on() -> None:
    assert command(lambda: None, str) == 0
    assert command(lambda: 1, str) == 1
    with pytest.raises(SystemExit):
        command(raising(SystemExit(2)), str)
    assert in_words(ValueError()) == "out of memory"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_to_a_reader_who_left_is_silent(name: str) -> None:
    """As in `stabn-explain --help | head -1`."""
    end, pipe = os.pipe()
    os.close(end)
    run = subprocess.run([sys.executable, "-m", name, "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_folder_in_which_nothing_can_be_made_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stabn.unwritable(tmp_path / "new" / "folder") is None
    (tmp_path / "a.mp4").touch()
    for main, given in ((cli.main, ["a.mp4"]), (ablate.main, []), (evaluate.main, []), (benchmark.main, [])):
        assert main([*given, "--out", "/proc/x"]) == 2
    with pytest.raises(SystemExit) as stop:
        train.main(["--out", "/proc/x/a.safetensors"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all("cannot be written: /proc is a file or is write-protected" in line for line in said)


def holding(file: Path) -> subprocess.Popen[str]:
    """Another process that has the lock of a file, until its stdin is closed."""
    code = f"file = open({str(file)!r}, 'a'); print(lock(file), flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    return other


def test_one_run_at_a_time(tmp_path: Path) -> None:
    place, made = tmp_path / "new" / "a.lock", tmp_path / "new" / "a"
    with alone(place, made):
        assert place.exists()
    assert not place.exists()
    with (
        holding(place) as other,
        pytest.raises(ValueError, match=f"another run is making {made}: wait for its end"),
        alone(place, made),
    ):
        raise AssertionError
    assert other.wait(60) == 0
    with alone(place, made):  # it has ended, however it did
        pass
    assert not place.exists()


def test_one_study_at_a_time(tmp_path: Path) -> None:
    folder, study = Folder(tmp_path, "study", "stabn-test"), {"data": {"clips": 1}}
    (tmp_path / ".study.0123abcd.tmp").touch()  # of one that was killed
    assert folder.begin(study, [0], False) == (None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["study.partial.jsonl"]
    with holding(folder.partial), pytest.raises(UsageError, match="another run is adding to"):
        folder.begin(study, [0], False)
    assert folder.begin(study, [0], False) == (None, {})


def test_a_result_whose_files_are_removed_as_it_is_written_is_none(tmp_path: Path, monkeypatch) -> None:
    folder = Folder(tmp_path, "study", "stabn-test")
    whole = Folder.write

    def write(self: Folder, name: str, content: bytes) -> None:
        whole(self, name, content)
        if name == "study.json":
            (tmp_path / "study.csv").unlink()

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(OSError, match=r"study\.csv disappeared just after it was written: start it again"):
        folder.finish({}, {"study.csv": b"a", "study.png": b"b"})
    assert [each.name for each in tmp_path.iterdir()] == ["study.png"]


def test_an_interrupt_waits_while_processes_are_started() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt), held():  # noqa: PT012 (it is raised at the end)
            signal.raise_signal(signal.SIGINT)
            seen.append("within")
        assert seen == ["within"]
        with held():
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
