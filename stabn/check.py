"""`stabn-train --check`: reads the header of every labelled video and says what is wrong, before any training."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from stabn.data import Labelled, class_index, lists, read
from stabn.video import probe


class Seen(NamedTuple):
    """What the header of a video says."""

    path: str
    frames: int = 0
    problem: str = ""  # why it cannot be read
    note: str = ""  # what is odd, though it can


def check(data: Path, workers: int = 1) -> int:
    """Prints what is wrong with a folder or a list of labelled videos: a line each, and at the end the counts.

    Of Something-Something's folder all lists with labels are looked at. `workers` processes read; 0 is this one.
    Returns the exit code: 0 all fine, 1 a video cannot be read or a label is in no list.
    Raises DataError if no list can be made out, ChildProcessError if a process dies.
    """
    from tqdm import tqdm

    found = [read(path) for path in (lists(data) if data.is_dir() else ()) or (data,)]
    wrong = sum([_describe(each) for each in found])
    named = Counter(os.path.join(each.root, row.path) for each in found for row in each.rows)
    if more := len([path for path, times in named.items() if times > 1]):
        print(f"odd: {more} are listed more than once, the first is {named.most_common(1)[0][0]}")
    frames, reasons = [], Counter[str]()
    for seen in tqdm(_looked(list(named), workers), total=len(named), unit="video", disable=None, leave=False):
        for kind, text in (("bad", seen.problem), ("odd", seen.note)):
            if text:
                tqdm.write(f"{kind}: {seen.path}: {text}")
        if seen.problem:
            reasons[seen.problem] += 1
        else:
            frames.append(seen.frames)
    if frames:
        print(f"{len(frames)} videos can be read, of {_span(frames)} frames")
    if reasons:
        print(f"{reasons.total()} of {len(named)} videos cannot be read:")
        print("\n".join(f"{count:8} {reason}" for reason, count in reasons.most_common()))
    if wrong:
        print(f"{wrong} labels are in no list")
    return int(bool(reasons or wrong))


def _describe(labelled: Labelled) -> int:
    """Prints a summary of a list, and the labels that are not in its list of labels; returns how many these are."""
    counts, classes = Counter(row.label for row in labelled.rows), labelled.classes
    first = {row.label: row.where for row in reversed(labelled.rows)}
    known, wrong = Counter[int](), 0
    for label, count in counts.items():
        try:
            known[class_index(classes, label)] += count
        except ValueError as error:
            wrong += 1
            print(f"bad: {first[label]}: {error}, as for {count} {'clip' if count == 1 else 'clips'} in all")
    each = f", {_span(known.values())} clips each" if known else ""
    print(f"{labelled.source}: {len(labelled.rows)} clips of {len(known)} classes{each}; videos in {labelled.root}")
    if without := [name for index, name in enumerate(classes) if index not in known]:
        some = ", ".join(map(repr, without[:3])) + (", ..." if len(without) > 3 else "")
        print(f"odd: {labelled.source}: {len(without)} of {len(classes)} classes have no clip ({some})")
    return wrong


def _span(values: Collection[int]) -> str:
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least} to {most}"


def look(path: str) -> Seen:
    """What the header of a video file says, or of a folder of frames their names, sizes in bytes and the first one."""
    try:
        info = probe(path)
        empty = [file for file in info.files if not os.path.getsize(file)]
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return Seen(path, problem=str(error).removeprefix(f"{path}: ") or "out of memory")
    notes = [*info.notes, *([f"{len(empty)} of its {len(info.files)} images are empty (0 bytes)"] if empty else [])]
    return Seen(path, info.frame_count, note="; ".join(notes))


def _looked(paths: Sequence[str], workers: int) -> Iterator[Seen]:
    if not workers:
        yield from map(look, paths)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_quiet)
    try:
        yield from pool.map(look, paths, chunksize=max(1, min(64, len(paths) // (8 * workers))))
    except BrokenProcessPool:
        raise ChildProcessError(
            "a process that read videos died, perhaps for lack of memory: try fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says that it was interrupted
