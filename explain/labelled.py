"""Labelled clips, one by one: generated ones, or videos as `stabn.data` finds them.

A source is what a torch DataLoader takes: `source[number]` is an `Item`, `source.numbers` are those to look at, and
`source.told` identifies the data, ready for JSON. It can be pickled, and holds no network.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from explain import runs
from explain.models import Classifier, classifier
from stabn import __version__, checkpoint, synthetic
from stabn.clips import Clips, Item, segmented
from stabn.command import UsageError, held
from stabn.data import read
from stabn.model import STABN

SIDE = 112  # pixels, of clips generated for a network that resizes them itself


def check_evaluation(classes: Sequence[str], first: int, clips: int) -> None:
    """Raises ValueError: the network has not Synthetic-Something's classes, or these are no evaluation seeds."""
    if list(classes) != list(synthetic.CLASSES):
        raise ValueError(
            f"the checkpoint's {len(classes)} classes are not the {len(synthetic.CLASSES)} of Synthetic-Something"
        )
    if clips < 1 or first < 0 or first + clips > synthetic.TRAINING_SEEDS:
        raise ValueError(
            f"seeds {first} to {first + clips - 1} are not evaluation seeds, 0 to {synthetic.TRAINING_SEEDS - 1}"
        )


class Generated:
    """Synthetic-Something's evaluation clips of the seeds from `first` on; a clip's number is its seed.

    `named` says that the labels are to be classes of the model.
    """

    def __init__(
        self, model: STABN | Classifier, first: int, clips: int, segments: int = 1, named: bool = True
    ) -> None:
        check_evaluation(model.classes if named else synthetic.CLASSES, first, clips)
        self.numbers: Sequence[int] = range(first, first + clips)
        self.segments = segments
        network = classifier(model)
        self.frames, self.size = network.frames, network.size or SIDE
        self.told = {"name": "Synthetic-Something", "version": str(synthetic.VERSION), "first": first, "clips": clips}

    def __getitem__(self, number: int) -> Item:
        sample = synthetic.generate(number, self.segments * self.frames, self.size)
        frames, mask, action = (segmented(each, self.segments) for each in (sample.frames, sample.mask, sample.action))
        return Item(number, sample.label, frames, mask=mask, action=action)


class Videos:
    """Labelled videos: class folders, a CSV with the columns path and label, or a list of Something-Something.

    `clips` takes so many of them, spread evenly over the list. A clip's number is its place in the whole list. Raises
    ValueError: there is nothing to read, or a label is none of the classes.
    """

    def __init__(self, model: STABN | Classifier, data: Path, clips: int | None, segments: int = 1) -> None:
        labelled, network = read(data), classifier(model)
        self.clips = Clips(
            labelled, model.classes, network.frames, network.size, sampling=network.sampling, segments=segments
        )
        found = len(self.clips)
        count = found if clips is None else min(clips, found)
        self.numbers: Sequence[int] = [(2 * k + 1) * found // (2 * count) for k in range(count)]
        digest = hashlib.sha256()
        for number, row in enumerate(labelled.rows):
            path = self.clips.path(number)
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            line = f"{row.path}\0{self.clips.labels[number]}\0{size}\n"
            digest.update(line.encode(errors="surrogateescape"))
        self.told = {"name": data.resolve().name, "version": digest.hexdigest(), "clips": count, "of": found}

    def __getitem__(self, number: int) -> Item:
        return self.clips[number]


Source = Generated | Videos
LookAt = Callable[[STABN, Sequence[Item]], list[runs.Record]]  # a record for each clip; it can be pickled


def opened(options: runs.StudyOptions) -> tuple[STABN, Source]:
    """The network and the clips of a study. Raises UsageError."""
    advice = ""
    try:
        model = checkpoint.load(options.checkpoint, options.device)
        if options.data is not None:
            return model, Videos(model, options.data, options.clips, options.segments)
        advice = ": pass --data, or another --first"
        return model, Generated(model, options.first, options.clips or runs.CLIPS, options.segments)
    except ValueError as error:
        raise UsageError(f"{error}{advice}") from None


def study(
    options: runs.StudyOptions,
    folder: runs.Folder,
    model: STABN,
    source: Source,
    look: LookAt,
    summarise: Callable[[list[runs.Record]], dict[str, Any]],
    **decides: Any,
) -> tuple[dict[str, Any], bool]:
    """What a study gives, ready for JSON, and whether it was made now (False: found finished).

    Each clip that the folder has no record of is looked at; `summarise` tells the figures from the records of all.
    `decides` is what else decides about the records. Raises UsageError, and ValueError if no clip can be read.
    """
    known = {
        "program": folder.program,
        "weights": checkpoint.weights_hash(model),
        "config": repr(model.config),  # the same tensors may be used otherwise
        "data": source.told,
        **decides,
        "segments": options.segments,
    }
    finished, done = folder.begin(known, source.numbers, options.overwrite)
    if finished:
        return finished, False
    pending = [number for number in source.numbers if number not in done]
    batches = studied(look, model, source, pending, options)
    records = folder.collect(batches, done, len(source.numbers), options.quiet)
    skipped = [record for record in records if "skipped" in record]
    return {
        "study": known,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": options.checkpoint,
        "frames": model.config.frames,
        "clips": len(records) - len(skipped),
        "skipped": [{"clip": each["clip"], "reason": each["skipped"]} for each in skipped],
        **summarise(records),
        "options": {"batch": options.batch, "workers": options.workers, "processes": options.processes},
        "device": str(next(model.parameters()).device),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "av", "matplotlib")},
        },
    }, True


# ----------------------------------------------------------------------------------------------- looking at clips


def looked(
    look: LookAt, model: STABN, source: Source, numbers: Sequence[int], batch: int, workers: int = 0
) -> runs.Batches:
    """The records of clips, batch by batch; `workers` processes read or generate ahead."""
    loader: DataLoader[Any] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=batch,
        sampler=numbers,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=runs.alone,
        generator=torch.Generator(),  # else it draws from the caller's stream of chance
    )
    with held():
        clips = iter(loader)  # which starts the processes
    for items in clips:
        yield look(model, items)


def studied(
    look: LookAt, model: STABN, source: Source, numbers: Sequence[int], options: runs.StudyOptions
) -> runs.Batches:
    """As `looked`, with --processes in several that each have a network; the batches are the same, and come as they
    are done."""
    if options.processes == 1:
        return looked(look, model, source, numbers, options.batch, options.workers)
    batches = [numbers[start : start + options.batch] for start in range(0, len(numbers), options.batch)]
    start = partial(_looking, look, options.checkpoint, options.device, source)
    return runs.in_processes(start, batches, options.processes)


def _looking(look: LookAt, name_or_path: str, device: str, source: Source, turn: int) -> runs.Look:
    model = checkpoint.load(name_or_path, runs.device_of(device, turn))
    return lambda numbers: look(model, [source[number] for number in numbers])
