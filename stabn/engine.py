"""Training on labelled videos, `stabn-train --data`: one program for a CPU, a GPU, many GPUs and several nodes.

Hugging Face Accelerate starts the processes, casts, and averages gradients. What the numbers are is decided here, so
that they do not depend on how many processes there are:

- A step's clips (--batch of them) are cut into parts, as many as processes x --accumulate. A process takes its parts
  one after the other; the step's gradient is the mean over all clips that could be read, whoever saw them.
- Batch norm sees one part at a time and is not synchronised. Each part starts from the running statistics of the step
  before, and their mean over the parts is what stays.
- What is drawn at random depends on the seed and on the epoch (the order of clips), the clip and the epoch (frames,
  crop, mirroring), or the step and the part (dropout). A run that goes on needs no states of chance.

One process with --accumulate 2 therefore gives what two give with --accumulate 1, up to the rounding of sums.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm import tqdm

from stabn import backbones, checkpoint
from stabn.clips import Batch, Clips, collate
from stabn.command import UsageError
from stabn.data import read
from stabn.model import STABN, Output, loss
from stabn.train import (
    Options,
    config_of,
    decisive,
    device_of,
    initialised,
    keep_log,
    one_thread,
    read_state,
    whole,
    write_state,
    writing,
)

FLIP = 0.5  # how often a training clip is mirrored, where its class allows that
LOG_EVERY = 20  # steps between two points of the curves
PARTS = "parts of a step (processes x accumulate)"


# ------------------------------------------------------------------------------------------- what a step looks at


class Plan(NamedTuple):
    """Which clips each part of each step looks at; steps are counted over epochs."""

    clips: int  # of the data set
    batch: int  # clips of a step, of the last one of an epoch what is left
    parts: int  # of a step
    seed: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.clips // self.batch)

    def parts_of(self, steps: Iterable[int], mine: slice) -> Iterator[list[int]]:
        """The numbers (for `stabn.clips.Clips`) of one process's parts of these steps; a part may be empty."""
        order, drawn = np.empty(0, np.int64), -1
        for step in steps:
            epoch, at = divmod(step, self.steps)
            if epoch != drawn:
                order, drawn = np.random.default_rng([self.seed, epoch]).permutation(self.clips), epoch
            numbers = epoch * self.clips + order[at * self.batch : (at + 1) * self.batch]
            yield from (part.tolist() for part in np.array_split(numbers, self.parts)[mine])


def prepared(batch: Batch, network: STABN, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames (N, 1, T, S, S, 3) uint8 RGB -> clips (N, 3, T, S, S) as the network takes them, channels last in memory;
    with their labels (N,)."""
    frames, labels = batch.frames.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    return network.normalise(frames[:, 0].permute(0, 4, 1, 2, 3).float()), labels


# ---------------------------------------------------------------------------------------------------- the figures

FIGURES = (  # sums over clips
    *("clips", "unreadable", "perception", "attention"),
    *("top1", "top5", "attention_top1", "attention_top5"),
)


def figures(output: Output, labels: Tensor) -> Tensor:
    """FIGURES of a batch, float64 on the CPU: losses (equation 4) and right answers of both branches."""
    with torch.no_grad():
        count, losses = len(labels), loss(output, labels)
        values = [labels.new_tensor(count), labels.new_tensor(0), count * losses.perception, count * losses.attention]
        for logits in (output.logits, output.attention_logits):
            for k in (1, 5):
                best = labels.new_empty(count, 0) if logits is None else logits.topk(min(k, logits.shape[1])).indices
                values.append((best == labels[:, None]).sum())
        return torch.stack([value.float() for value in values]).cpu().double()


def told(sums: Tensor) -> dict[str, float]:
    """Means over clips from sums of FIGURES, ready for JSON; `loss` is the sum of both branches'."""
    found = dict(zip(FIGURES, sums.tolist(), strict=True))
    clips, unreadable = int(found.pop("clips")), int(found.pop("unreadable"))
    means = {name: value / clips for name, value in found.items()}
    means = {"loss": means["perception"] + means["attention"], **means}
    return {"clips": clips, "unreadable": unreadable, **{name: round(value, 6) for name, value in means.items()}}


# ---------------------------------------------------------------------------------------------------- the network


class Statistics:
    """The running statistics of batch norm: after a step the mean over its parts, weighted by their clips, each of
    which started from what was before. So they do not depend on which process saw which part, or in which order."""

    def __init__(self, network: nn.Module) -> None:
        layers = backbones.batch_norms(network)
        kept = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
        self.running = [each for mean, variance, _ in kept for each in (mean, variance) if each is not None]
        self.counts = [count for *_, count in kept if count is not None]
        self.before = [each.clone() for each in (*self.running, *self.counts)]
        self.sums = [torch.zeros_like(each) for each in self.running]

    @torch.no_grad()
    def begin(self) -> None:
        """Before the parts of a step."""
        for before, now in zip(self.before, (*self.running, *self.counts), strict=True):
            before.copy_(now)
        for each in self.sums:
            each.zero_()

    @torch.no_grad()
    def take(self, clips: int) -> None:
        """After a part of so many clips: its statistics are taken, and what was before is put back."""
        for total, now, before in zip(self.sums, self.running, self.before, strict=False):
            total.add_(now, alpha=clips)
            now.copy_(before)

    @torch.no_grad()
    def finish(self, accelerator: Accelerator, clips: int) -> None:
        """After the parts of a step of so many clips in all processes."""
        if not self.running:  # a backbone without batch norm
            return
        flat = torch.cat([each.flatten() for each in self.sums])
        flat = accelerator.reduce(flat, "sum") / clips  # type: ignore[operator]  # of a tensor
        for now, part in zip(self.running, flat.split([each.numel() for each in self.running]), strict=True):
            now.copy_(part.view_as(now))
        for now, before in zip(self.counts, self.before[len(self.running) :], strict=True):
            now.copy_(before + 1)


@dataclass
class Learner:
    """A network that learns, in one process or as one of several."""

    accelerator: Accelerator
    network: STABN
    wrapped: nn.Module  # the same, as Accelerate runs it
    optimizer: Any
    plateau: ReduceLROnPlateau
    plan: Plan
    statistics: Statistics
    origin: str | None = None  # of the weights it started with

    @property
    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        parts = {"network": self.network, "optimizer": self.optimizer, "plateau": self.plateau}
        return {name: part.state_dict() for name, part in (parts | ({"scaler": scaler} if scaler else {})).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def summed(self, values: Tensor) -> Tensor:
        """float64 on the CPU, over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").cpu()  # type: ignore[union-attr]

    def learn(self, parts: Sequence[Batch], step: int) -> Tensor:
        """One step of the optimiser on this process's parts. Returns their FIGURES.

        A part of which no clip could be read takes part with an empty clip of weight 0, as the others wait for it.
        """
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        first, device = accelerator.process_index * len(parts), accelerator.device
        clips = int(self.summed(torch.tensor(float(sum(len(part.labels) for part in parts)), dtype=torch.float64)))
        sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        sums[1] = sum(len(part.problems) for part in parts)
        if not clips:
            return sums
        self.wrapped.train()
        self.optimizer.zero_grad()
        if self.plan.parts > 1:
            self.statistics.begin()
        for index, part in enumerate(parts):
            chance = np.random.SeedSequence([self.plan.seed, step, first + index]).generate_state(1, np.uint64)
            torch.manual_seed(int(chance[0]))
            count = len(part.labels)
            x, labels = prepared(part if count else self._empty(), self.network, device)
            last = index + 1 == len(parts)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                output = self.wrapped(x)
                accelerator.backward(loss(output, labels).total * (count * processes / clips))
            if self.plan.parts > 1:
                self.statistics.take(count)
            if count:
                sums += figures(output, labels)
        if self.plan.parts > 1:
            self.statistics.finish(accelerator, clips)
        norm = accelerator.clip_grad_norm_(self.network.parameters(), float("inf"))
        # bfloat16 convolutions on a CPU now and then give a gradient that is not finite: such a step is left out. With
        # float16 the scaler leaves it out, and must hear of it.
        if accelerator.scaler is not None or norm is None or norm.isfinite():
            self.optimizer.step()
        return sums

    def _empty(self) -> Batch:
        config = self.network.config
        frames = torch.zeros(1, 1, config.frames, config.size, config.size, 3, dtype=torch.uint8)
        return Batch(frames, torch.zeros(1, dtype=torch.int64), (), ())

    @torch.no_grad()
    def measure(self, loader: Iterable[Batch], problem: Any) -> Tensor:
        """FIGURES over the batches of all processes. `problem` is called with each reason why a clip was not read."""
        sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        self.network.eval()
        for batch in loader:
            sums[1] += len(batch.problems)
            for each in batch.problems:
                problem(each)
            if len(batch.labels):
                x, labels = prepared(batch, self.network, self.accelerator.device)
                with self.accelerator.autocast():
                    output = self.network(x)
                sums += figures(output, labels)
        return self.summed(sums)


# ------------------------------------------------------------------------------------------------------- training


@dataclass
class Done:
    """How far a run has come; but for the step and the best, of the epoch that is under way."""

    step: int = 0  # counted over epochs
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 and minus the loss, of validation
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(FIGURES), dtype=torch.float64))
    clock: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # seconds; of waiting for clips
    seconds: float = 0.0


def train(options: Options) -> None:
    """Trains on --data; see `stabn.train.Options`.

    Raises:
        UsageError: options that do not go together.
        DataError: data that cannot be made out, or labels that are none of its classes.
        ValueError: nothing could be read, the loss became NaN, memory is too small, or there is a finished or another
            run at --out.
        OSError: something cannot be written, or a process died that reads videos or trains.
    """
    mine = os.environ.get("RANK", "0") == "0"  # of several processes one writes
    try:
        with writing(options.out) if mine else nullcontext():
            _train(options)
    except torch.OutOfMemoryError:
        raise ValueError(_too_much(options)) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # of the processor, which is no OutOfMemoryError
            raise ValueError(_too_much(options)) from None
        if "/gloo/" in str(error) or type(error).__name__.startswith("Dist"):  # torch.distributed is not in all builds
            raise ChildProcessError(
                "another process of this training ended or cannot be reached: what it says itself tells why"
            ) from None
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "a process that read videos died, perhaps for lack of memory: try fewer --workers; the same command goes on"
        ) from None


def _too_much(options: Options) -> str:
    return (
        f"out of memory: pass --accumulate {2 * options.accumulate}, which halves the clips that go through the "
        "network at once (and changes what batch norm sees), or a smaller --batch, --size or --frames"
    )


def _train(options: Options) -> None:
    cv2.setNumThreads(1)  # before its first use: processes that read are forked, and would wait for threads it had
    if options.threads:
        torch.set_num_threads(options.threads)
    accelerator = accelerated(options)
    main = accelerator.is_main_process
    clips, validation = _data(options)
    plan = Plan(len(clips), options.batch, accelerator.num_processes * options.accumulate, options.seed)
    learner = learner_of(options, clips.classes, accelerator, plan)
    files, said, done = _Files(options.out), _Said(main), Done()
    recipe = {**decisive(options), "init": learner.origin, "data": clips.name, "clips": len(clips), PARTS: plan.parts}
    if files.begun(accelerator):  # it goes on from where it stopped
        state = read_state(files.state, "cpu", recipe)
        with whole(files.state):
            learner.load_state_dict(state)
            done = Done(**state["done"])
    begun = time.perf_counter() - done.seconds

    def save() -> None:
        done.seconds = time.perf_counter() - begun
        write_state({"recipe": recipe, **learner.state_dict(), "done": asdict(done)}, files.state)

    if main:
        files.open(done.step)
    board = _board(files.board, done.step) if main else None
    progress = tqdm(
        total=options.epochs * len(clips),
        initial=done.step // plan.steps * len(clips) + done.step % plan.steps * options.batch,
        unit="clip",
        dynamic_ncols=True,
        disable=None if main else True,
    )
    rank, last = accelerator.process_index, options.epochs * plan.steps
    mine = slice(rank * options.accumulate, (rank + 1) * options.accumulate)
    batches = iter(loader(clips, plan.parts_of(range(done.step, last), mine), options.workers, accelerator.device))
    recent = torch.zeros_like(done.sums)  # of this process, since they were last added to those of all
    while done.step < last:
        began = time.perf_counter()
        parts = [next(batches) for _ in range(options.accumulate)]
        waited = time.perf_counter() - began
        for problem in (each for part in parts for each in part.problems):
            said.problem(problem)
        recent += learner.learn(parts, done.step)
        done.step += 1
        done.clock += torch.tensor([time.perf_counter() - began, waited], dtype=torch.float64)
        epoch, left = divmod(done.step, plan.steps)
        progress.update(options.batch if left else len(clips) - (plan.steps - 1) * options.batch)
        kept = done.step % options.save_every == 0
        if left and not kept and done.step % LOG_EVERY:
            continue

        recent = _numbers(learner.summed(recent), done.step, options)
        done.sums += recent
        if recent[0]:
            _shown(board, {"step": told(recent)}, done.step)
            seen = told(done.sums)
            progress.set_postfix(epoch=epoch + bool(left), loss=f"{seen['loss']:.3f}", top1=f"{seen['top1']:.3f}")
        recent = torch.zeros_like(recent)
        if left:
            if main and kept:
                save()
            continue

        # The end of an epoch.
        line: dict[str, Any] = {"epoch": epoch, "step": done.step, "rate": learner.rate}
        line["train"] = _epoch_told(done.sums, options.data, len(clips))
        if validation is not None:
            measured = learner.measure(_whole(validation, plan, accelerator, options.workers), said.problem)
            measured = _numbers(measured, done.step, options)
            line["validation"] = _epoch_told(measured, options.validation, len(validation))
        decides = line.get("validation", line["train"])
        learner.plateau.step(decides["loss"])
        score = (float(epoch), 0.0) if validation is None else (decides["top1"], -decides["loss"])
        better, done.best = score > done.best, max(score, done.best)
        if main:
            share = round(float(done.clock[1] / done.clock[0]), 3)
            said.epoch(line, options.epochs)
            if epoch == 1:
                said.sanity(line, share, np.bincount((clips if validation is None else validation).labels))
            _shown(board, line, done.step)
            line |= {"waited": share, "seconds": round(time.perf_counter() - begun, 1)}
            files.log(line)
            learner.network.metadata["trained"] = {**recipe, **line, "torch": torch.__version__}
            checkpoint.save(learner.network, files.last)
            if better:
                checkpoint.save(learner.network, options.out)
        done = Done(done.step, done.best)
        if main and done.step < last:
            save()
    progress.close()
    if board:
        board.close()
    if main:
        files.state.unlink()
    accelerator.end_training()


def accelerated(options: Options) -> Accelerator:
    """Accelerate for these options: one process, or one of those that torchrun or `accelerate launch` started."""
    # The gradients of 1 x 1 x 1 convolutions have strides that say nothing, and torch warns that they are others.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    precision = "no" if options.precision == "fp32" else options.precision
    # Told to use a CPU it also joins the processes on machines without a GPU, which it does not otherwise.
    accelerator = Accelerator(cpu=device_of(options).type == "cpu", mixed_precision=precision)
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise UsageError(f"this is one of {os.environ['WORLD_SIZE']} processes, but Accelerate does not join them")
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise UsageError(f"Accelerate is set up for {kind}, stabn-train has whole networks only: leave that out")
    accelerator.gradient_accumulation_steps = 1  # whatever `accelerate launch` says: Learner divides by itself
    return accelerator


def _data(options: Options) -> tuple[Clips, Clips | None]:
    """Training clips as the paper samples them, and those of --validation."""
    labelled, size = read(options.data or Path()), (options.frames, options.size)
    clips = Clips(labelled, labelled.classes, *size, sampling="random", crop="random", flip=FLIP, seed=options.seed)
    if options.validation is None:
        return clips, None
    return clips, Clips(read(options.validation), labelled.classes, *size, crop="centre")


def learner_of(options: Options, classes: Sequence[str], accelerator: Accelerator, plan: Plan) -> Learner:
    """The network that is asked for, with its optimiser, before its first step."""
    torch.manual_seed(options.seed)
    network = STABN(config_of(options, len(classes)), classes)
    _, origin = initialised(network, options.init)
    if options.channels_last:
        backbones.channels_last(network)
    network.to(accelerator.device)
    optimizer = torch.optim.SGD(network.parameters(), options.rate, momentum=0.9, weight_decay=options.decay)
    # Not prepared by Accelerate, which would let each process take a step of it.
    plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=options.patience)
    wrapped, optimizer = accelerator.prepare(torch.compile(network) if options.compile else network, optimizer)
    return Learner(accelerator, network, wrapped, optimizer, plateau, plan, Statistics(network), origin)


def loader(clips: Clips, numbers: Iterable[list[int]], workers: int, device: torch.device) -> DataLoader[Any]:
    """The batches of these numbers, read ahead by `workers` processes."""
    return DataLoader(
        clips,  # type: ignore[arg-type]
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=one_thread,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the stream of chance of dropout
    )


def _whole(clips: Clips, plan: Plan, accelerator: Accelerator, workers: int) -> DataLoader[Any]:
    """This process's batches of all clips, each clip in one of them, the same for any number of processes."""
    size = max(1, plan.batch // plan.parts)
    starts = range(0, len(clips), size)[accelerator.process_index :: accelerator.num_processes]
    numbers = [list(range(start, min(start + size, len(clips)))) for start in starts]
    return loader(clips, numbers, workers, accelerator.device)


def _numbers(sums: Tensor, step: int, options: Options) -> Tensor:
    """The same. Raises ValueError if they are none any more: then nothing of it is saved."""
    if not sums.isfinite().all():
        raise ValueError(
            f"the loss became NaN before step {step}: train with a lower --rate than {options.rate:g}"
            + (", or with --precision bf16" if options.precision == "fp16" else "")
        )
    return sums


def _epoch_told(sums: Tensor, data: Path | None, clips: int) -> dict[str, float]:
    if not sums[0]:
        raise ValueError(
            f"none of the {clips} clips of {data} could be read: stabn-train --check --data {data} says why of each"
        )
    return told(sums)


# ----------------------------------------------------------------------------------------------- what is told, kept


class _Files:
    """What stands at --out and beside it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.last = out.with_name(f"{out.stem}.last{out.suffix}")
        self.state = out.with_name(out.name + ".resume")
        self.lines = out.with_name(out.name + ".log.jsonl")
        self.board = out.with_name(out.name + ".tensorboard")

    def begun(self, accelerator: Accelerator) -> bool:
        """Whether there is a run to go on with. Raises ValueError: it is finished, or not all processes see it."""
        found = self.state.exists() and self.state.stat().st_size > 0
        seen = torch.tensor([float(found)], device=accelerator.device)
        if accelerator.num_processes > 1 and 0 < accelerator.reduce(seen, "sum").item() < accelerator.num_processes:  # type: ignore[union-attr]
            raise ValueError(f"not all processes see {self.state}: --out must be on a disk that all machines share")
        if not self.state.exists() and self.out.exists():
            raise ValueError(f"{self.out} is finished already: name another --out, or move it away")
        accelerator.wait_for_everyone()  # before one of them writes it
        return found

    def open(self, step: int) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.state.touch()  # empty until something is saved; it says that what stands at --out is not finished
        keep_log(self.lines, step)

    def log(self, line: dict[str, Any]) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")


class _Said:
    """Lines for the terminal; of several processes one says them, but each what it cannot read."""

    def __init__(self, main: bool) -> None:
        self.main, self.problems = main, Counter[str]()

    def problem(self, text: str) -> None:
        self.problems[text] += 1
        if self.problems[text] == 1:
            tqdm.write(f"skipped: {text}", file=sys.stderr)

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        parts = [f"epoch {line['epoch']} of {epochs}, rate {line['rate']:g}"]
        for name in ("train", "validation"):
            if found := line.get(name):
                unread = f", {found['unreadable']} clips skipped" if found["unreadable"] else ""
                parts.append(
                    f"{name}: loss {found['loss']:.3f} ({found['perception']:.3f} + {found['attention']:.3f}), "
                    f"top-1 {100 * found['top1']:.1f} %{unread}"
                )
        tqdm.write("; ".join(parts), file=sys.stderr)

    def sanity(self, line: dict[str, Any], waited: float, labels: np.ndarray) -> None:
        """After the first epoch: has it learned anything, and what is it that takes the time?"""
        name = "validation" if "validation" in line else "train"
        found, chance = line[name], labels.max() / labels.sum()
        sure = chance + 2 * (chance * (1 - chance) / found["clips"]) ** 0.5
        learned = "better than" if found["top1"] > sure else "not better than"
        slow = "the network takes the time"
        if waited > 0.2:
            slow = "the data is slow: more --workers, smaller videos or a faster disk would help"
        tqdm.write(
            f"after the first epoch: top-1 on {name} clips is {100 * found['top1']:.1f} %, {learned} the "
            f"{100 * chance:.1f} % of always saying the commonest class; the network waited for clips "
            f"{100 * waited:.0f} % of the time, {slow}",
            file=sys.stderr,
        )


def _board(folder: os.PathLike[str], step: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _shown(board: Any, line: dict[str, Any], step: int) -> None:
    """Curves of what stands in a line of the log: numbers by name, or groups of them."""
    if not board:
        return
    for name, value in line.items():
        for key, number in value.items() if isinstance(value, dict) else [("", value)]:
            board.add_scalar(f"{name}/{key}" if key else name, number, step)
    board.flush()
