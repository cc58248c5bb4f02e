"""`benchmarks/soak.py`: its judge tells each kind of fault, and a small sample of each family of attacks finds none.

The sample runs in this process: nothing of it may raise anything but what the commands turn into a sentence.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attacks
import faults  # noqa: F401 (its attacks belong to the list)
import numpy as np
import pytest
import soak
import torch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the soak reads /proc")


def chain(folder: Path) -> None:
    raise RuntimeError("nobody expected this")


def outside(folder: Path) -> None:
    (folder / "in" / "new").write_text("x")


def sentence(folder: Path) -> None:
    raise ValueError("a.mp4 is damaged")


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [
        (lambda folder: None, "result", ""),
        (sentence, "refusal", "error: a.mp4 is damaged"),
        (lambda folder: sys.exit(2), "fault", "exit code 2, it said []"),
        (chain, "fault", "traceback: benchmarks/soak.py"),
        (lambda folder: os.kill(os.getpid(), signal.SIGTERM), "fault", "crash: SIGTERM"),
        (lambda folder: time.sleep(600), "fault", "hang: not done after"),
        (lambda folder: np.ones(3 * 2**25).sum() and None, "fault", "memory: "),
        (outside, "fault", "WROTE OUTSIDE: open "),
        (lambda folder: Path("fine").write_text("x") and None, "result", ""),
        (lambda folder: os.mkfifo(folder / "tmp" / "left"), "fault", "left outside its output folder: tmp/left"),
    ],
)
def test_the_judge(act: Callable[[Path], Any], kind: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "PATIENCE", 1)
    seconds = 0.5 if said.startswith("hang") else 300
    outcome = soak.attempt(soak.Case("a", act, {"a.mp4": b"x"}), seconds, memory=2**28)
    assert (outcome.kind, outcome.said[: len(said)]) == (kind, said)


@pytest.fixture(scope="module")
def stage() -> Iterator[attacks.Stage]:
    threads = torch.get_num_threads()
    with attacks.staged(None, 0) as stage:
        yield stage
    torch.set_num_threads(threads)


SAMPLES = {  # of each attack every so many inputs, so that each takes a second or two
    "videos": {"cut off": 40, "bits": 100, "headers": 30, "playlists": 20, "pixels": 9},
    "checkpoints": {"cut off": 5, "bits": 25, "headers": 8, "pickles": 29},
    "annotations": {"lists and": 60},
    "uploads": {"saved": 50, "edits": 7},
}


@pytest.mark.parametrize(("family", "word"), [(family, word) for family, words in SAMPLES.items() for word in words])
def test_a_sample_of_each_family(
    family: str, word: str, stage: attacks.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import reader, saved
    from stabn import video

    for module in (reader, saved):
        monkeypatch.setattr(module, "apart", module.apart)  # attacks put theirs there, and this one comes back
    for name in ("MAX_PIXELS", "MAX_FRAMES"):
        monkeypatch.setattr(video, name, getattr(video, name))  # the page's reader lowers these, of its process
    [each] = [each for each in soak.ATTACKS if each.family == family and word in each.name]
    tried = 0
    for case in itertools.islice(each.cases(stage, 0, np.random.default_rng(0)), 0, None, SAMPLES[family][word]):
        assert isinstance(case, soak.Case)
        folder = tmp_path / str(tried)
        for name in ("in", "out", "tmp"):
            (folder / name).mkdir(parents=True)
        for name, content in case.files.items():
            (folder / "in" / name).parent.mkdir(exist_ok=True)
            (folder / "in" / name).write_bytes(content)
        monkeypatch.chdir(folder / "out")
        said, code = "done", 0
        try:
            code = case.act(folder) or 0
        except (ValueError, OSError, MemoryError) as error:
            said = str(error)
        except SystemExit as error:
            code = error.code
        assert said, case.name
        assert code in (0, 1, 2), case.name
        tried += 1
    assert tried >= 3


def test_what_is_kept_becomes_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run with the same rounds does nothing, and the table counts what was done."""
    kept = tmp_path / "reliability.json"
    monkeypatch.setattr(soak, "ATTACKS", [])

    @soak.attack("videos", "of a test")
    def cases(stage: Any, number: int, chance: np.random.Generator) -> Iterator[soak.Case]:
        yield soak.Case("good", lambda folder: None)
        yield soak.Case("bad", sentence)
        yield soak.Case("worse", chain)

    @soak.attack("videos", "of another", rounds=1)
    def others(stage: Any, number: int, chance: np.random.Generator) -> Iterator[soak.Case]:
        yield soak.Case("good", lambda folder: None)

    assert soak.main(["--kept", str(kept), "--rounds", "2"]) == 1
    first = kept.read_text()
    assert soak.main(["--kept", str(kept), "--rounds", "2"]) == 0
    assert kept.read_text() == first
    rounds, once = json.loads(first)["attacks"].values()
    assert list(once) == ["0"]
    assert [each["said"] for each in rounds.values()] == 2 * [{"error: a.mp4 is damaged": 1}]
    text = kept.with_suffix(".md").read_text()
    assert "| of a test | 2 | 6 | 2 | 2 | 2 |" in text
    assert "| of another | 1 | 1 | 1 | 0 | 0 |" in text
    assert "worse: traceback: benchmarks/soak.py" in text
