"""Many videos, one after the other or shared by several processes: a record for each, in the order of the videos."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from explain.cli import NetworkOptions, sentence
from explain.models import Classifier
from explain.result import Progress, Request, clear_up, explain_video
from explain.runs import Look, Record, in_processes, network_of


@dataclass(frozen=True)
class Work:
    """What is made of each video, and where; the same for every process."""

    videos: Sequence[Path]
    folders: Sequence[Path]
    checkpoint: dict[str, str]  # as `explain_video` takes it
    request: Request
    overwrite: bool

    def record(self, number: int, network: Classifier, progress: Progress) -> Record:
        """Explains a video: `clip`, its number, with its `manifest` and whether it was `made` now, or with an
        `error`."""
        video, folder = self.videos[number], self.folders[number]
        try:
            manifest, made = explain_video(
                video, folder, network, self.checkpoint, self.request, overwrite=self.overwrite, progress=progress
            )
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            return {"clip": number, "error": sentence(error, video)}
        return {"clip": number, "manifest": manifest, "made": made}

    def lost(self, numbers: Sequence[int], what: str) -> list[Record]:
        """The records of videos whose process died; what it left unfinished is removed."""
        for number in numbers:
            with suppress(OSError, ValueError):
                clear_up(self.folders[number])
        return [{"clip": number, "error": f"{self.videos[number]}: its {what}"} for number in numbers]


def explained(
    work: Work, network: Classifier, options: NetworkOptions, processes: int, progress: Progress
) -> Generator[Record, None, None]:
    """The records of all videos. In several processes each opens the network of `options` once more, and is alone with
    a video; a video whose process dies has an error. Raises RuntimeError if a process cannot begin."""
    count = len(work.videos)
    # What stands there is found finished or refused, and needs no process.
    standing = [not work.overwrite and (folder / "manifest.json").exists() for folder in work.folders]
    asked = [number for number in range(count) if not standing[number]]
    if processes == 1 or len(asked) < 2:
        for number in progress(range(count), count, "videos") if count > 1 else range(count):
            yield work.record(number, network, progress)
        return
    start = partial(_looking, work, options)
    ready = {number: work.record(number, network, progress) for number in range(count) if standing[number]}
    following = 0
    with closing(in_processes(start, [[number] for number in asked], processes, work.lost)) as batches:
        for (record,) in progress(batches, len(asked), "videos"):
            ready[record["clip"]] = record
            while following in ready:
                yield ready.pop(following)
                following += 1


def _looking(work: Work, options: NetworkOptions, turn: int) -> Look:
    network = network_of(options, turn, work.checkpoint["sha256"])
    return lambda numbers: [work.record(number, network, lambda items, count, label: items) for number in numbers]
