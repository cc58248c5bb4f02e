"""Attacks the whole program as the world will, and says what came of it: `make soak`, or

    python benchmarks/soak.py --rounds 10 --clips FOLDER

Every input goes to a process of its own, forked from one that has imported everything, with bounds on time and memory
and an eye on what it writes. It must end in a result, or in a sentence with exit code 1 or 2 (130 where it was
interrupted). Anything else is a fault: a traceback or a Python warning, a hang, a signal, memory over the bound, a file
outside the output folder, something half-made that looks finished.

A round draws its inputs from its number alone, and ten rounds are the whole: every 1 % of each file, 500 damaged copies
of each, 50 moments to be killed at; of the page it is one. What each attack gave is kept in docs/reliability.json as
soon as it is done; the same command goes on from there, and writes docs/reliability.md from it. `--only` takes parts of
the names that `--list` tells; `--only page --minutes 10` lets 20 visitors, good, bad and hostile, at the web page for
ten minutes. Exit code 1 if there was a fault. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "reliability.json"
MEMORY = 2 * 2**30  # bytes that an input may take beyond what the program holds before it
SPACE = 4 * MEMORY  # of address space: the limit that the system puts on the attempt, so that the machine survives it
SECONDS = 60.0  # of processor time that an input may take, unless its attack says otherwise
PATIENCE = 10  # times as long it may wait: the machine may have other work
ROUNDS = 10  # that make the whole


@dataclass(frozen=True)
class Case:
    """An input: the `files` to put into the folder `in`, by name, and what is then done with them in the folder that
    holds `in`, `out` and `tmp`. `act` gives an exit code or None, or raises what the commands turn into a sentence."""

    name: str
    act: Callable[[Path], Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What came of a case."""

    kind: str  # "result", "refusal" or "fault"
    said: str  # the sentence, or what the fault is
    seconds: float
    memory: int  # bytes at the peak, beyond what the process began with


# ---------------------------------------------------------------------------------------------------- one attempt


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder for an attempt, in memory where there is room: `in`, `out` and `tmp`."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="soak-", dir=shared if shared.is_dir() else None) as name:
        for each in ("in", "out", "tmp"):
            Path(name, each).mkdir()
        yield Path(name)


def attempt(case: Case, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Lets a process of its own try a case, and judges how it ended."""
    with place() as folder:
        for name, content in case.files.items():
            target = folder / "in" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        before = _listed(folder)
        outcome = judged(Forked(lambda: case.act(folder), folder, seconds), memory)
        if outcome.kind != "fault" and (more := _listed(folder) - before):
            return outcome._replace(kind="fault", said=f"left outside its output folder: {', '.join(sorted(more)[:3])}")
        return outcome


def _listed(folder: Path) -> set[str]:
    """What there is in a place, but for the output folder."""
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.relative_to(folder).parts[0] != "out"}


class Forked:
    """A process that does something in a folder and says what came of it as a command does."""

    def __init__(self, act: Callable[[], Any], folder: Path, seconds: float = SECONDS) -> None:
        self.began, self.held, self.seconds = time.monotonic(), _memory(), seconds
        self.log = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._run(act, folder, math.ceil(seconds))
            finally:
                os._exit(70)  # nothing of this program's own runs on

    def _run(self, act: Callable[[], Any], folder: Path, seconds: int) -> None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever forked may have had another mind
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(self.log.fileno(), number)
        sys.stdout = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        os.chdir(folder / "out")
        limit = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 + SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(_watching((folder / "out", folder / "tmp")))
        code: Any = 70
        try:
            code = act() or 0
        except SystemExit as error:
            code = error.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except (ValueError, OSError, MemoryError) as error:  # what a command says in a sentence, see `explain.cli`
            print(f"error: {error or 'out of memory'}", file=sys.stderr)
            code = 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)

    def wait(self) -> tuple[int, int] | None:
        """(status, bytes at the peak) of the ended process; None, and it is killed, if it takes too long."""
        ended = None
        while ended is None and time.monotonic() < self.began + PATIENCE * self.seconds:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                ended = status, usage.ru_maxrss * 1024
            else:
                time.sleep(0.002)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # and whatever it started
        if ended is None:
            os.waitpid(self.pid, 0)
        return ended

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read(2**20).decode(errors="replace")


def _watching(allowed: tuple[Path, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that tells of every file that Python writes outside the allowed folders."""
    # And what shared memory and locks of several processes need.
    inside = (*map(str, allowed), "/dev/null", "/dev/tty", "/dev/shm/sem.", "/dev/shm/torch_", "/proc/self/")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & writing):
                return
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"):
            path = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            # A folder that is there is not made; opened, it is asked for a file without a name, which leaves nothing.
            if not real.startswith(inside) and not (event in ("open", "os.mkdir") and os.path.isdir(real)):
                os.write(2, f"WROTE OUTSIDE: {event} {real}\n".encode(errors="backslashreplace"))

    return hook


def _memory() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def judged(process: Forked, memory: int = MEMORY, killed: bool = False) -> Outcome:
    """Waits for a process and says what its end is. If it was `killed` on purpose, that is a result."""
    ended = process.wait()
    # An interrupt that reaches Python within a callback of its own is told and lost there: nobody else hears of it.
    lost = r"Exception ignored in: .*\nTraceback \(most recent call last\):\n(?:  .*\n|\n)*KeyboardInterrupt: *\n"
    took, said = time.monotonic() - process.began, re.sub(lost, "", process.said())
    if ended is None:
        return Outcome("fault", f"hang: not done after {took:.0f} s", took, 0)
    status, peak = ended[0], max(0, ended[1] - process.held)
    lines = [line for line in said.splitlines() if line.strip()]
    fault = ""
    if "WROTE OUTSIDE" in said:
        fault = next(line for line in lines if "WROTE OUTSIDE" in line)
    elif os.WIFSIGNALED(status):
        if killed and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome("result", "killed", took, peak)
        fault = f"hang: {process.seconds:g} s of processor time" if os.WTERMSIG(status) == signal.SIGXCPU else ""
        fault = fault or f"crash: {signal.Signals(os.WTERMSIG(status)).name}"
    elif "Traceback (most recent call last)" in said or "Exception ignored" in said:
        fault = f"traceback: {where(said)}"
    elif peak > memory or "can't allocate memory" in said or "Unable to allocate" in said:
        fault = f"memory: {peak / 2**20:.0f} MiB more than before; it said {lines[-1:]}"
    elif warned := [line for line in lines if re.search(r"\b\w*Warning: ", line)]:
        fault = f"warning: {warned[0]}"
    elif (code := os.WEXITSTATUS(status)) == 0:
        return Outcome("result", lines[-1] if lines else "", took, peak)
    elif code not in (1, 2, 130) or not lines:
        fault = f"exit code {code}, it said {lines[-1:]}"
    else:
        return Outcome("refusal", _sentence(lines), took, peak)
    return Outcome("fault", fault, took, peak)


def where(said: str) -> str:
    """The end of a traceback: the last place, in this project if it is among them, and the error."""
    places = re.findall(r'File "(?:[^"]*/)?(\w+/\w+\.py)", line (\d+), in (\S+)', said)
    places = [each for each in places if re.match("(stabn|explain|app|benchmarks)/", each[0])] or places
    place = "{}:{} {}".format(*places[-1]) if places else "?"
    errors = [line for line in said.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    return f"{place}: {(errors or ['?'])[-1]}"[:400]


def _sentence(lines: list[str]) -> str:
    """What was said, without what differs from input to input."""
    said = next((line for line in lines if re.match(r"(│ )?(error|stopped)", line)), lines[-1]).strip()
    said = re.sub(r"/\S*/soak-\w+/\S*|/\S+", "PATH", said)
    return re.sub(r"(?<![A-Za-z0-9])\d[\d.,e+]*", "N", said)[:200]


# --------------------------------------------------------------------------------------------------------- attacks


class Attack(NamedTuple):
    """A kind of input. `cases` gives those of a round, from what `stage` holds and the round's own chance. An attack
    may be whole in fewer rounds than the others."""

    family: str
    name: str
    cases: Callable[[Any, int, np.random.Generator], Iterable[Case | Outcome]]
    seconds: float
    rounds: int


ATTACKS: list[Attack] = []


def attack(family: str, name: str, seconds: float = SECONDS, rounds: int = ROUNDS) -> Callable[[Any], Any]:
    """Puts a function into ATTACKS. What it yields is tried (a Case) or was already (an Outcome)."""

    def put(cases: Any) -> Any:
        ATTACKS.append(Attack(family, name, cases, seconds, rounds))
        return cases

    return put


def play(each: Attack, stage: Any, number: int, deadline: float) -> dict[str, Any] | None:
    """A round of an attack, ready for JSON; None if the time was over before its end."""
    began, ends, refused = time.monotonic(), Counter[str](), Counter[str]()
    faults: list[str] = []
    slowest, memory = 0.0, 0
    chance = np.random.default_rng([number, *each.name.encode()])
    for case in each.cases(stage, number, chance):
        if time.monotonic() > deadline:
            return None
        name, outcome = ("", case) if isinstance(case, Outcome) else (case.name, attempt(case, each.seconds))
        ends[outcome.kind] += 1
        slowest, memory = max(slowest, outcome.seconds), max(memory, outcome.memory)
        if outcome.kind == "refusal":
            refused[outcome.said] += 1
        elif outcome.kind == "fault":
            faults.append(f"{name}: {outcome.said}" if name else outcome.said)
            print(f"  FAULT {faults[-1]}", flush=True)
    return {
        "inputs": ends.total(),
        "results": ends["result"],
        "refusals": ends["refusal"],
        "faults": faults,
        "said": dict(refused.most_common(5)),
        "slowest": round(slowest, 2),
        "memory": round(memory / 2**20),
        "seconds": round(time.monotonic() - began, 1),
    }


# ---------------------------------------------------------------------------------------------------------- report


def machine() -> dict[str, str]:
    from importlib import metadata

    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    total = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) / 2**20
    names = ("torch", "numpy", "av", "safetensors", "gradio")
    return {
        "processor": f"{(model or [platform.machine()])[0]}, {os.cpu_count()} cores",
        "memory_of_machine": f"{total:.0f} GiB",
        "system": f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in names),
    }


def text(kept: dict[str, Any]) -> str:
    """docs/reliability.md, from what is kept."""
    rows: dict[str, list[str]] = {}
    for each in ATTACKS:
        rounds = kept["attacks"].get(f"{each.family}: {each.name}", {}).values()
        if not rounds:
            continue
        total = {key: sum(one[key] for one in rounds) for key in ("inputs", "results", "refusals")}
        faults = sum(len(one["faults"]) for one in rounds)
        cells = (len(rounds), *total.values(), faults, max(one["slowest"] for one in rounds))
        memory = max(one["memory"] for one in rounds)
        row = " | ".join(f"{cell:,}" if isinstance(cell, int) else f"{cell:.1f}" for cell in cells)
        rows.setdefault(each.family, []).append(f"| {each.name} | {row} | {memory or ''} |")
    head = "| attack | rounds | inputs | results | sentences | faults | slowest, s | memory, MiB |"
    tables = [
        f"## {family.capitalize()}\n\n{head}\n| --- |{' ---: |' * 7}\n" + "\n".join(lines)
        for family, lines in rows.items()
    ]
    faults = [
        f"- {attack}: {each}"
        for attack, rounds in kept["attacks"].items()
        for one in rounds.values()
        for each in one["faults"]
    ]
    missing = [
        f"{each.family}: {each.name}" for each in ATTACKS if not kept["attacks"].get(f"{each.family}: {each.name}")
    ]
    return HEAD.format(rounds=ROUNDS, memory=MEMORY // 2**20, patience=PATIENCE, **kept["machine"]) + "\n\n".join(
        [
            *tables,
            *(["## Faults that stand\n\n" + "\n".join(faults)] if faults else []),
            *(["## Not run yet\n\n" + "\n".join(f"- {each}" for each in missing)] if missing else []),
            TAIL,
        ]
    )


HEAD = """<!-- made by benchmarks/soak.py from reliability.json -->
# Reliability

What came of attacking everything that reads, writes and runs, by `make soak`, which is

```sh
python benchmarks/soak.py --rounds {rounds}            # --clips FOLDER damages real videos too, --only WORD chooses
python benchmarks/soak.py --only page --minutes 10  # the web page under 20 visitors
```

{rounds} rounds are the whole: every 1 % of each file, 500 damaged copies of each, 50 moments to be killed at; of the
page it is one. The tables say how many rounds were run; inputs are counted, not estimated.

Every input goes to a process of its own. It ends in a *result*, or in a *sentence* with exit code 1 or 2 (130 after
Ctrl-C). A *fault* is anything else: a traceback or a warning of Python, a hang (60 s of processor time, more where an
attack says so, or {patience} times that of waiting), a crash, more than {memory} MiB of memory beyond what the program
holds before, a file outside the output folder, or something half-made that looks finished. A damaged file may be a
result: damage that only changes a picture or a weight cannot be seen. Seconds and memory are the most that one input
took, on a machine that had other work.

- Processor: {processor}, {memory_of_machine} of memory
- {system}; {libraries}

"""
TAIL = """## The web page

The points of the page's safety list are attacked by tests that `make test` runs, from raw HTTP in `tests/test_guard.py`
and from a real browser in `tests/test_browser.py`:

| point | tests whose names begin with |
| --- | --- |
| 1. only uploads are read, only models of the menu opened | `test_1_` |
| 2. playlists under false names | `test_2_` |
| 3. names and labels are text, templates static | `test_3_` |
| 4. replies about parts of files keep no secret | `test_4_` |
| 5. bodies and uploads are bounded | `test_5_` |
| 6. a clip is its owner's, edits are checked | `test_6_` |
| 7. work is bounded before decoding, and the queue | `test_7_` |
| 8. nothing is offered but the page, and to this machine only | `test_8_` |
| 9. gradio's own guards hold | `test_9_` |

Beside these: no other host is asked (`test_the_server_asked_no_other_host`), a closed page leaves nothing
(`test_a_closed_page_leaves_nothing`), a decoder that crashes, hangs or eats memory becomes a sentence
(`test_harm_becomes_a_sentence`), and what a visitor sees of a bad clip is one, too (in the browser,
`test_an_upload_and_what_is_no_video`).

Memory is compared when a first crowd has left and when a second one alike has, so that what is loaded once, and what
the C library keeps of freed memory, do not pass for a leak.

Privileges: no command needs root; the page listens to this machine only unless told otherwise, and reads what people
upload in a process of its own with bounded memory, time and file size.

## Dependencies

An audit asks a server for known weaknesses: `pip install pip-audit && pip-audit --skip-editable` in the environment. It
could not be run where this document was made, which has no way to that server: nothing is said here about it.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help=f"up to {ROUNDS} make the whole (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, and go on next time")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="part of a name, as --list tells them"
    )
    parser.add_argument("--clips", type=Path, help="a folder of real videos to damage too, up to ten")
    parser.add_argument("--fresh", action="store_true", help="again what was done before")
    parser.add_argument("--list", action="store_true", help="name the attacks")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where outcomes are kept (the table lies beside it)")
    options = parser.parse_args(arguments)
    import attacks
    import faults  # noqa: F401

    named = {f"{each.family}: {each.name}": each for each in ATTACKS}
    chosen = [each for name, each in named.items() if not options.only or any(word in name for word in options.only)]
    if options.list:
        print("\n".join(f"{each.family}: {each.name}" for each in chosen))
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    sys.dont_write_bytecode = True
    found = 0
    with attacks.staged(options.clips, options.minutes) as stage:
        for number, each in itertools.product(range(options.rounds), chosen):
            name = f"{each.family}: {each.name}"
            done = str(number) in read(options.kept)["attacks"].get(name, {}) and not options.fresh
            if number >= each.rounds or done:
                continue
            if time.monotonic() > deadline:
                break
            print(f"round {number}, {name}", flush=True)
            played = play(each, stage, number, deadline if each.family != "page" else float("inf"))
            if played is None:
                break
            faults_found = len(played["faults"])
            print("  {inputs} inputs: {results} results, {refusals} refusals, ".format(**played), end="")
            print(f"{faults_found} faults; {played['seconds']} s", flush=True)
            found += faults_found
            kept = read(options.kept)  # again: another soak may have added to it
            kept["machine"] = machine()
            kept["attacks"].setdefault(name, {})[str(number)] = played
            options.kept.parent.mkdir(exist_ok=True)
            options.kept.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.kept.exists():
        options.kept.with_suffix(".md").write_text(text(read(options.kept)), "utf-8")
    return int(found > 0)


def read(path: Path) -> dict[str, Any]:
    """What is kept of all attacks, by name and round."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {"attacks": {}}


if __name__ == "__main__":
    import soak  # not this module's, whose ATTACKS are another list

    sys.exit(soak.main())
