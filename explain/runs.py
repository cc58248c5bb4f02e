"""What long runs over clips share: options, a folder in which an interrupted run goes on, and several processes.

Nothing heavy is imported here before work is shared.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from explain.cli import NetworkOptions, open_network, terminated
from stabn import unwritable
from stabn.command import UsageError, command, lock

if TYPE_CHECKING:
    from explain.models import Classifier

Record = dict[
    str, Any
]  # of one clip, ready for JSON: `clip`, its number, and perhaps `skipped`, why it has nothing else
Batches = Generator[list[Record], None, None]
Look = Callable[[Sequence[int]], list[Record]]  # the records of these clips
Lost = Callable[[Sequence[int], str], list[Record]]  # of these clips, which could not be looked at for this reason


def option(metavar: str, default: str) -> Any:
    """A command line option's words for its value and its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({default})")


Flag = tyro.conf.FlagCreatePairsOff
CLIPS = 504  # 28 of each of Synthetic-Something's classes


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study of one network on labelled clips."""

    checkpoint: Annotated[str, option("NAME|FILE", "default: synthetic")] = "synthetic"
    """The network: the name of a bundled one, or a file."""
    data: Annotated[Path | None, option("FOLDER|LIST", "default: Synthetic-Something, generated")] = None
    """Labelled videos: a folder of class folders, a CSV with the columns path and label, or a list of
    Something-Something V1 or V2."""
    clips: Annotated[int | None, option("N", f"default: {CLIPS} generated ones, or all of --data")] = None
    """How many clips; of --data so many, spread evenly."""
    first: Annotated[int, option("SEED", "default: 0")] = 0
    """The first seed of generated clips."""
    segments: Annotated[int, option("N", "default: 1")] = 1
    """Interleaved samplings of each clip whose probabilities are averaged; the paper's tables have 2."""
    out: Annotated[Path, option("FOLDER", "default: study")] = Path("study")
    """Where the results go."""
    per_class: Annotated[bool, Flag] = False
    """Also print a table of classes."""
    batch: Annotated[int, option("N", "default: 8")] = 8
    """Clips that go through the network together."""
    workers: Annotated[int, option("N", "default: 1")] = 1
    """Processes that read or generate clips ahead of the network."""
    processes: Annotated[int, option("N", "default: 1")] = 1
    """Processes that each run a network on batches of their own, on the GPUs in turn; --workers is not used then."""
    device: Annotated[str, option("NAME", "default: auto")] = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, mps."""
    overwrite: Annotated[bool, Flag] = False
    """Begin anew, and replace results of other weights, data or options."""
    quiet: Annotated[bool, Flag] = False
    """No table and no progress; errors are still written to stderr."""
    json: Annotated[bool, Flag] = False
    """The content of the .json file on stdout, and nothing else there."""

    def check(self) -> None:
        """Raises UsageError: everything about these options that can be known before heavy work."""
        least = (("segments", 1), ("batch", 1), ("processes", 1), ("workers", 0), ("first", 0), ("clips", 1))
        for name, lowest in least:
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UsageError(f"--{name} is {value}, it must be {lowest} or more")
        if self.data is not None and not self.data.exists():
            raise UsageError(f"--data {self.data} does not exist")
        if self.data is not None and self.first:
            raise UsageError("--first is a seed of generated clips, it has no meaning for --data")


Asked = TypeVar("Asked")  # the options of a study


def run_study(
    parse: Callable[[], Asked],
    run: Callable[[Asked], dict[str, Any]],
    lines: Callable[[Asked, dict[str, Any]], Sequence[str]],
    failed: Callable[[dict[str, Any]], bool] = lambda result: False,
) -> int:
    """Runs a study and prints its result: all as JSON with --json, nothing with --quiet. Returns the exit code:
    1 if the result says so, and those of `stabn.command`."""

    def told() -> int:
        options: Any = parse()
        with suppress(ValueError):  # outside the main thread signals belong to somebody else
            signal.signal(signal.SIGTERM, terminated)  # so that its processes end too
        result = run(options)
        if options.json:
            print(json.dumps(result, ensure_ascii=False))
        elif not options.quiet:
            print("\n".join(lines(options, result)))
        return int(failed(result))

    return command(told, lambda: "the finished clips are kept, and the same command goes on from there")


@dataclass(frozen=True)
class Folder:
    """The results of a run: `name`.json, written last; until then `name`.partial.jsonl grows by a line for each clip,
    after a header of what decides them."""

    path: Path
    name: str
    program: str

    @property
    def partial(self) -> Path:
        return self.path / f"{self.name}.partial.jsonl"

    def check(self) -> None:
        """Raises UsageError if nothing can be written there."""
        if above := unwritable(self.path):
            raise UsageError(f"--out {self.path} cannot be written: {above} is a file or is write-protected")

    @property
    def clips(self) -> Path:
        """Where a program may keep the finished records, in the form of `partial`."""
        return self.path / f"{self.name}.clips.jsonl"

    def begin(
        self, study: dict[str, Any], numbers: Sequence[int], overwrite: bool
    ) -> tuple[dict[str, Any] | None, dict[int, Record]]:
        """The finished result; or None and the records that there are of the clips `numbers`, by clip, with a file that
        is ready to be added to. A run over fewer clips of the same data, finished or not, goes on to more.

        Raises UsageError if there are results of another `study`, what decides the records.
        """
        finished = self.path / f"{self.name}.json"
        if self.partial.exists():
            with self.partial.open("a") as file:
                self._alone(file)
        source, lines = self.partial, [] if overwrite else _lines(self.partial)
        if not lines and not overwrite and finished.exists():
            try:
                result = json.loads(finished.read_text("utf-8"))
                more = _of_fewer(result["study"], study) and self.clips.exists()
                if not more:
                    _same(finished, result["study"], study)
                    return result, {}
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                raise UsageError(f"{finished} is no result of {self.program}: pass --overwrite to replace it") from None
            source, lines = self.clips, _lines(self.clips)
        try:
            header, *found = map(json.loads, lines or [json.dumps(study).encode()])
            records = {record["clip"]: record for record in found}
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{source} is damaged: pass --overwrite to begin anew") from None
        if not _of_fewer(header, study):
            _same(source, header, study)
        records = {number: records[number] for number in numbers if number in records}
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f".{self.name}.*.tmp"):  # by a run that was killed
            left.unlink(missing_ok=True)
        self.write(self.partial.name, "".join(json.dumps(each) + "\n" for each in (study, *records.values())).encode())
        return None, records

    def finish(self, result: dict[str, Any], files: Mapping[str, bytes], keep: bool = False) -> None:
        """Writes the files and then the result, which is the last of them, and removes the records, or keeps them in
        `clips`.

        Raises OSError if one cannot be written, or somebody removes them meanwhile.
        """
        for name, content in files.items():
            self.write(name, content)
        self.write(f"{self.name}.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        if gone := [name for name in files if not (self.path / name).exists()]:
            (self.path / f"{self.name}.json").unlink(missing_ok=True)
            raise OSError(f"{self.path}: {', '.join(gone)} disappeared just after it was written: start it again")
        if keep:
            os.replace(self.partial, self.clips)
        else:
            self.partial.unlink(missing_ok=True)

    def _alone(self, file: IO[str]) -> None:
        """Locks the records while they grow. Raises UsageError: another run has them."""
        if not lock(file):
            raise UsageError(f"another run is adding to {self.partial}: wait for its end, or choose another --out")

    def collect(self, batches: Batches, records: dict[int, Record], total: int, quiet: bool) -> list[Record]:
        """All records in the order of clips, those of `batches` kept as they come, beside a progress bar.

        Skipped clips are named on stderr. Raises ValueError if all are.
        """
        from tqdm import tqdm

        progress = tqdm(
            total=total,
            initial=len(records),
            unit="clip",
            leave=False,
            dynamic_ncols=True,
            disable=quiet or None,  # None: only on a terminal
        )
        progress.refresh()  # the first clip may take a minute
        with self.partial.open("a", encoding="utf-8") as file, progress, closing(batches):
            self._alone(file)
            for batch in batches:
                file.writelines(json.dumps(record) + "\n" for record in batch)
                file.flush()
                records |= {record["clip"]: record for record in batch}
                for problem in (record["skipped"] for record in batch if "skipped" in record):
                    tqdm.write(f"skipped: {problem}", file=sys.stderr)
                progress.update(len(batch))
        skipped = sum("skipped" in record for record in records.values())
        if skipped:
            print(f"skipped {skipped} of {len(records)} clips that cannot be read", file=sys.stderr)
        if skipped == len(records):
            self.partial.unlink()
            raise ValueError(f"none of the {len(records)} clips can be read")
        return [record for _, record in sorted(records.items())]

    def write(self, name: str, content: bytes) -> None:
        """A file of the folder, whole or not at all."""
        temporary = self.path / f".{self.name}.{secrets.token_hex(4)}.tmp"  # `begin` removes what a killed run left
        try:
            temporary.write_bytes(content)
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a file, if it is there; the last may have been cut off while it was written."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _of_fewer(found: Any, study: dict[str, Any]) -> bool:
    """Whether a study is of the same as another one, but of fewer clips."""
    try:
        more = study["data"]["clips"]
        return found["data"]["clips"] < more and found | {"data": found["data"] | {"clips": more}} == study
    except (KeyError, TypeError):
        return False


def _same(path: Path, found: Any, study: dict[str, Any]) -> None:
    differs = [key for key in study if not isinstance(found, dict) or found.get(key) != study[key]]
    if differs:
        raise UsageError(
            f"{path} was made with other {' and '.join(differs)}: pass --overwrite to replace it, or another --out"
        )


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process:
    """A process, the pipe to it, and the batch that it has."""

    def __init__(self, start: Callable[[int], Look], turn: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.turn = turn
        self.batch: Sequence[int] = ()
        self.pipe, other = context.Pipe()
        # A daemon ends with this process.
        self.process = context.Process(target=_share, args=(other, start, turn, processes), daemon=True)
        with _unheard():
            self.process.start()
        other.close()  # so that the pipe ends when the process does


def in_processes(
    start: Callable[[int], Look], batches: Sequence[Sequence[int]], processes: int, lost: Lost | None = None
) -> Batches:
    """The records of `batches` of clips as they are done, by several processes that take one after the other.

    `start`, which must be picklable, is called in each process with its number. `lost` gives the records of a batch
    whose process died, from the batch and what happened; another process takes the place of that one. Raises
    RuntimeError with what a process says that fails, and without `lost` if one dies. In the end all have ended.
    """
    processes = min(processes, len(batches))
    waiting = iter(batches)
    every: list[_Process] = []
    busy: dict[Any, _Process] = {}  # by its pipe

    def begin(turn: int) -> _Process:
        every.append(_Process(start, turn, processes))
        return every[-1]

    def give(share: _Process, batch: Sequence[int]) -> None:
        busy[share.pipe], share.batch = share, batch
        with suppress(OSError):  # if it died meanwhile, that shows when the pipe is read
            share.pipe.send(batch)

    try:
        for turn, batch in zip(range(processes), waiting, strict=False):
            give(begin(turn), batch)
        while busy:
            for pipe in wait(list(busy)):
                share = busy.pop(pipe)
                try:
                    records, died = share.pipe.recv(), False
                except (EOFError, OSError):
                    share.process.join()
                    what = f"process ended with code {share.process.exitcode}, perhaps for lack of memory"
                    if lost is None:
                        raise RuntimeError(f"a {what}") from None
                    records, died = lost(share.batch, what), True
                if isinstance(records, str):
                    raise RuntimeError(records)
                if (next_batch := next(waiting, None)) is not None:
                    give(begin(share.turn) if died else share, next_batch)
                else:
                    share.pipe.close()  # with nothing left to do it ends by itself, and cleans up behind it
                yield records
        for share in every:
            share.process.join(5)
    finally:
        for share in every:
            share.pipe.close()
            share.process.terminate()
        for share in every:
            share.process.join(30)  # it may have something unfinished to remove
            share.process.kill()  # unless it hangs


def _share(pipe: Any, start: Callable[[int], Look], turn: int, processes: int) -> None:
    signal.signal(signal.SIGTERM, terminated)
    try:
        alone(turn)
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
        look = start(turn)
        while True:
            pipe.send(look(pipe.recv()))
    except Exception as error:  # it can be anything, and must reach the one who waits; who closed the pipe does not
        with suppress(OSError):
            pipe.send(" ".join(str(error).split()) or type(error).__name__)


def alone(turn: int) -> None:
    """What a process does first that works for another one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says that it was interrupted, and ends it
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def _unheard() -> Iterator[None]:
    """A process that is started meanwhile never hears Ctrl-C, not even while it imports."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # outside the main thread signals belong to somebody else
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def device_of(name: str, turn: int) -> Any:
    """The torch.device of a process: the one that is named, of several GPUs each in turn."""
    import torch

    from stabn.checkpoint import pick_device

    target = pick_device(name)
    if target.type == "cuda" and target.index is None:
        return torch.device("cuda", turn % torch.cuda.device_count())
    return target


def network_of(options: NetworkOptions, turn: int, weights: str) -> Classifier:
    """The network of these weights, opened once more by a process. Raises ValueError if it has others now."""
    network, found = open_network(replace(options, device=str(device_of(options.device, turn))))
    if found["sha256"] != weights:
        name = options.model or options.checkpoint
        raise ValueError(f"{name} has other weights each time it is made: pass them with --weights FILE")
    return network
