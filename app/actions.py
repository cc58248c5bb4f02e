"""What the page can do, without the page: prepare a clip, look at it, change the attention; `saved` has the rest.

A `Session` is one clip in front of one network, with what is kept of it; `Sessions` holds those of all people and lets
them go. Work that takes long is given a `Job`, which says how far it is and can be stopped. Nothing here knows gradio,
and whatever is wrong raises ValueError with a sentence for people.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app import guard
from app.reader import Limits, read_upload
from explain import METHODS, TITLES, metrics
from explain.core import Explanation, class_index, explain, resolve
from explain.models import TORCHVISION, Classifier, classifier, open_model
from stabn import synthetic
from stabn.checkpoint import load, locate
from stabn.model import STABN, Attention, Mixture
from stabn.video import Clip, VideoError, write_video

LIMITS = Limits()  # of an upload
SIDE_BY_SIDE = 4  # methods at once
STEPS, ORDERS = 10, 3  # of the curves behind a score: half of what the benchmark takes, for the sake of waiting


class Stopped(Exception):
    """The person who asked for it does not want it any more."""


class Job:
    """Long work: what it says of itself is in `messages`: (words, share done in 0..1 or None), at its end None."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.messages: queue.SimpleQueue[tuple[str, float | None] | None] = queue.SimpleQueue()

    def say(self, words: str, share: float | None = None) -> None:
        self.messages.put((words, share))

    def check(self) -> None:
        """Raises Stopped if the work is not wanted any more."""
        if self.stop.is_set():
            raise Stopped

    def progress(self, items: Iterable[Any], count: int, label: str) -> Iterator[Any]:
        """`items`, with a word on each; what the methods call a progress bar."""
        for done, item in enumerate(items):
            self.check()
            self.say(f"{label} {done + 1} of {count}", done / max(count, 1))
            yield item

    @contextmanager
    def using(self, model: Model) -> Iterator[None]:
        """The network for this work alone; each forward pass asks whether it is still wanted."""
        while not model.lock.acquire(timeout=0.1):
            self.check()
        handle = model.network.module.register_forward_pre_hook(lambda module, inputs: self.check())
        try:
            self.check()
            yield
        finally:
            handle.remove()
            model.lock.release()


# ----------------------------------------------------------------------------------------------------------- models


@dataclass(eq=False)
class Model:
    """A network that the page offers: `name` in its menu, `weights` on the command line where that is another one.

    `twin` has the same weights in modules of its own, for `perceive` while a method has its hooks in the network.
    """

    name: str
    network: Classifier
    weights: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    twin: STABN | None = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self.weights or self.name
        shared = [*self.network.module.parameters(), *self.network.module.buffers()]
        self.twin = copy.deepcopy(self.stabn, {id(tensor): tensor for tensor in shared})

    @property
    def stabn(self) -> STABN | None:
        """The network if it has attention that can be changed."""
        module = self.network.module
        return module if isinstance(module, STABN) and module.config.attention != "none" else None

    @property
    def methods(self) -> list[str]:
        return [name for name in METHODS if name != "stabn" or self.stabn is not None]

    @property
    def first(self) -> str:
        """The method to begin with."""
        return "stabn" if self.stabn is not None else "grad_cam"


class Models:
    """The networks of a `menu`, each opened when it is first asked for."""

    def __init__(self, weights: Mapping[str, str], device: str = "auto") -> None:
        self.names, self._weights, self._device = list(weights), weights, device
        self._open: dict[str, Model] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Model:
        if name not in self.names:  # from the network: a name is not a path that anyone may choose
            raise ValueError(f"there is no model {name!r} here: there are {', '.join(self.names)}")
        with self._lock:
            if name not in self._open:
                weights = self._weights[name]
                try:
                    self._open[name] = Model(name, _opened(weights, self._device), weights)
                except ValueError as error:
                    raise ValueError(str(error).replace(weights, name)) from error
            return self._open[name]


def _opened(weights: str, device: str) -> Classifier:
    from stabn.checkpoint import pick_device

    if weights.startswith("torchvision:"):
        return open_model(weights, device=device)
    return classifier(load(weights, pick_device(device)))


def menu(asked: Sequence[str] = ()) -> dict[str, str]:
    """The networks to offer: what the command line calls them, by the names that people are shown.

    Those `asked` for come first, then the bundled ones, the files in `checkpoints/`, and torchvision's of which the
    weights are on this machine. People are not told in which folders of it files lie.
    """
    bundled = [name for name in ("synthetic", "plain") if _there(name)]
    files = [str(path) for path in sorted(Path("checkpoints").glob("*.safetensors")) if path.stem not in bundled]
    found = [*asked, *bundled, *files, *(f"torchvision:{name}" for name in TORCHVISION if _downloaded(name))]
    named: dict[str, str] = {}
    for path in dict.fromkeys(map(Path, found)):
        name, alike = path.name or str(path), 1
        while name in named:
            alike += 1
            name = f"{path.name} ({alike})"
        named[name] = str(path)
    return named


def _there(name: str) -> bool:
    try:
        return locate(name).exists()
    except ValueError:
        return False


def _downloaded(name: str) -> bool:
    from torchvision.models import get_model_weights

    file = str(get_model_weights(name).DEFAULT.url).rsplit("/", 1)[-1]
    return Path(torch.hub.get_dir(), "checkpoints", file).exists()


# --------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, eq=False)
class Known:
    """The evidence of a whole clip of F frames: mask (F, H, W) and action (F,), both bool, and seconds (F,)."""

    mask: NDArray[np.bool_]
    action: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    label: str


@dataclass(frozen=True, eq=False)
class Example:
    """A clip to try. `key` is its name in links."""

    key: str
    caption: str
    path: Path
    known: Known | None = None


SEEDS = {"mug": 254, "ring": 180}  # evaluation seeds: never trained on
FRAMES, PIXELS, RATE = 36, 224, 12.0  # of the generated examples


def generated(folder: Path) -> list[Example]:
    """Two generated clips whose evidence is known, written into `folder`."""
    found = []
    for key, seed in SEEDS.items():
        sample = synthetic.generate(seed, FRAMES, PIXELS)
        path = folder / f"{key}.mp4"
        write_video(path, sample.frames, RATE, crf=16)
        known = Known(sample.mask, sample.action, np.arange(FRAMES) / RATE, synthetic.CLASSES[sample.label])
        found.append(Example(key, known.label, path, known))
    return found


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file: what tells that an upload is a clip whose evidence is known."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------------- sessions


@dataclass(eq=False)
class Session:
    """One clip in front of one network. `explanations` are those on show, by method."""

    path: str  # the upload
    name: str  # of the upload, without its folders
    clip: Clip
    playable: str  # what the browser plays
    folder: Path  # of its own, for what is made of the clip
    model: Model | None  # None: a saved result is shown
    known: Known | None = None
    example: str | None = None  # its key
    heat_in_video: bool = False  # a saved result without its clip: the heat is in the pictures
    explanations: dict[str, Explanation] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # methods that cannot explain this network, and why
    scores: dict[tuple[str, int], Score] = field(default_factory=dict)  # by method and class
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # by stage of the work
    id: str = field(default_factory=guard.clip_id)
    attention: Attention | None = None  # as the network made it, of one clip
    mixture: Mixture | None = None
    trial: tuple[str, metrics.Trial] | None = None  # with what it puts for removed parts
    edited: guard.Edit | None = None  # what the attention was last changed to; None: it is as the network made it

    @property
    def network(self) -> Model:
        """The model; raises ValueError where a saved result is shown, which has none."""
        if self.model is None:
            raise ValueError("This is a saved result: choose its clip and press Explain to ask the network again.")
        return self.model

    @property
    def first(self) -> Explanation:
        return next(iter(self.explanations.values()))

    @property
    def evidence(self) -> metrics.Evidence | None:
        """Of the sampled frames."""
        if self.known is None:
            return None
        at = np.clip(self.clip.frame_indices, 0, len(self.known.action) - 1)
        return metrics.Evidence(self.known.mask[at], self.known.action[at])


class Sessions:
    """The session of each person, by a key, and the job that runs for them.

    A session is let go when its page is closed (`drop`), `life` seconds after it was last used, and when more than
    `most` are open, the oldest first; its folder is removed then.
    """

    def __init__(self, life: float = guard.STATE, most: int = 64) -> None:
        self._life, self._most = life, most
        self._held: dict[str, tuple[float, Session]] = {}  # the least recently used first
        self._jobs: dict[str, Job] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        self.sweep()
        return len(self._held)

    def get(self, key: str) -> Session | None:
        with self._lock:
            self.sweep()
            _, session = self._held.pop(key, (0.0, None))
            if session is not None:
                self._held[key] = time.monotonic(), session
            return session

    def put(self, key: str, session: Session, job: Job | None = None) -> None:
        """Raises Stopped if the `job` that made the session was stopped, by a page that was closed for example."""
        with self._lock:
            if job is not None and job.stop.is_set():
                shutil.rmtree(session.folder, ignore_errors=True)
                raise Stopped
            if self.get(key) is not session:
                self._let_go(key)
            self._held[key] = time.monotonic(), session
            self.sweep()

    def files(self) -> set[str]:
        """What the open sessions play and read, which may lie outside their folders."""
        with self._lock:
            return {file for _, session in self._held.values() for file in (session.path, session.playable)}

    def job(self, key: str) -> Job:
        """A new job for this person, whose last one is stopped."""
        with self._lock:
            self.stop(key)
            self._jobs[key] = job = Job()
            return job

    def done(self, key: str, job: Job) -> None:
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    def stop(self, key: str) -> bool:
        """Stops the job of this person; gives whether there was one."""
        with self._lock:
            job = self._jobs.pop(key, None)
            if job is not None:
                job.stop.set()
            return job is not None

    def drop(self, key: str) -> None:
        with self._lock:
            self.stop(key)
            self._let_go(key)

    def sweep(self) -> None:
        """Lets go of what is old or too much."""
        with self._lock:
            old = time.monotonic() - self._life
            for key, (used, _) in list(self._held.items()):
                if used >= old and len(self._held) <= self._most:
                    break
                self.drop(key)

    def _let_go(self, key: str) -> None:
        _, session = self._held.pop(key, (0.0, None))
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------- prepare, look


def prepare(
    job: Job,
    model: Model,
    path: str,
    root: Path,
    examples: Mapping[str, Example] | None = None,
    limits: Limits = LIMITS,
) -> Session:
    """Reads a clip for a network, in a worker process; what is made of it lies in a new folder in `root`.

    `examples` are those whose evidence is known, by `digest`. Raises VideoError (a ValueError) and Stopped.
    """
    began = time.perf_counter()
    name = Path(path).name
    folder = Path(tempfile.mkdtemp(prefix="clip-", dir=root))
    job.say("Reading the clip")
    try:
        network = model.network
        upload = read_upload(
            path,
            network.frames,
            network.size,
            limits,
            folder=folder,
            name=name,
            stop=job.stop,
            sampling=network.sampling,
        )
        example = examples.get(digest(path)) if examples else None
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        job.check()  # what was stopped is not an error of the clip
        if isinstance(error, OSError):
            raise VideoError(name, f"cannot be read: {error.strerror}") from error
        raise
    return Session(
        path=path,
        name=name,
        clip=upload.clip,
        playable=upload.playable,
        folder=folder,
        model=model,
        known=example.known if example else None,
        example=example.key if example else None,
        notes=("the browser is shown a copy in H.264, as it does not play this file",) if upload.converted else (),
        seconds={"reading": time.perf_counter() - began},
    )


def look(job: Job, session: Session, methods: Sequence[str], target: int | str | None = None) -> None:
    """Puts the explanations of the clip by up to four `methods` on show; those of a class, or of the predicted one.

    ST-ABN's is the first of them, as what changes the attention acts on the first. Methods that cannot explain this
    network are `refused`. The features behind the attention are kept for `edit`.
    Raises ValueError if none can, for unknown methods or classes and for more than four, and Stopped.
    """
    model = session.network
    methods = sorted(dict.fromkeys(methods), key=lambda method: method != "stabn") or [model.first]
    if len(methods) > SIDE_BY_SIDE:
        raise ValueError(f"{len(methods)} methods do not fit side by side: choose up to {SIDE_BY_SIDE}")
    index = None if target is None else class_index(model.network.classes, target)
    began = time.perf_counter()
    found: dict[str, Explanation] = {}
    refused: dict[str, str] = {}
    for turn, method in enumerate(methods):
        job.say(f"Looking: {TITLES.get(method, method)}", turn / len(methods))
        shows = "progress" in _parameters(method)
        options: dict[str, Any] = {"progress": job.progress} if shows else {}
        with job.using(model), _kept(model) as features:
            try:
                found[method] = explain(model.network, session.clip, method, index, **options)
            except ValueError as error:
                refused[method] = str(error)
                continue
        index = found[method].target
        if method == "stabn" and features and model.stabn is not None:
            _keep(session, model.stabn, found[method], features[-1])
    if not found:
        raise ValueError("; ".join(refused.values()))
    session.explanations, session.refused = found, refused
    if "stabn" not in found:
        session.edited = None
    session.seconds["looking"] = time.perf_counter() - began


@cache
def _parameters(method: str) -> frozenset[str]:
    return frozenset(inspect.signature(resolve(method)).parameters)


@contextmanager
def _kept(model: Model) -> Iterator[list[Tensor]]:
    """The features of forward passes inside, which go from the extractor into both branches."""
    found: list[Tensor] = []
    if model.stabn is None:
        yield found
        return

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[:] = [output]

    handle = model.stabn.layer3.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@torch.inference_mode()
def _keep(session: Session, model: STABN, explanation: Explanation, features: Tensor) -> None:
    if model.config.moments < model.config.frames:  # what is shown for a frame is not the network's own: no edit
        session.mixture = session.attention = None
        return
    kind, device = model.config.attention, features.device
    session.mixture = model.mix(features)
    session.attention = Attention(
        torch.tensor(explanation.spatial, device=device)[None, None] if kind in ("both", "spatial") else None,
        torch.tensor(explanation.temporal, device=device).view(1, 1, -1, 1, 1)
        if kind in ("both", "temporal")
        else None,
    )


@dataclass(frozen=True)
class Score:
    """How far the answer follows a map: areas under the class's probability while what the map ranks highest is removed
    (`deletion`, lower is better) or put in first (`insertion`, higher is better), and the same in random orders."""

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    baseline: str  # what replaces what is removed: the clip blurred, or its mean colour


def score(job: Job, session: Session) -> str:
    """Scores each explanation on show; gives "", or why this clip cannot be scored. Raises Stopped."""
    model = session.network
    explanations = list(session.explanations.items())
    target = session.first.target
    names = ("deletion", "insertion", "deletion_gain", "insertion_gain")
    for turn, (method, explanation) in enumerate(explanations):
        if (method, target) in session.scores:
            continue
        job.say(f"Scoring {turn + 1} of {len(explanations)}", turn / len(explanations))
        with job.using(model):
            if session.trial is None or session.trial[1].target != target:
                session.trial = _trial(session, model.network, target)
            baseline, trial = session.trial
            if not trial.scorable:
                return (
                    f"Not scored: {explanation.classes[target]!r} keeps its probability even when the whole clip is "
                    "blurred or grey, so nothing can be told from removing parts."
                )
            found = trial.scores(explanation, names)
        deletion, insertion = found["deletion"], found["insertion"]
        chance = deletion + found["deletion_gain"], insertion - found["insertion_gain"]
        session.scores[method, target] = Score(deletion, insertion, *chance, baseline)
    return ""


def _trial(session: Session, network: Classifier, target: int) -> tuple[str, metrics.Trial]:
    """A trial in which the class is lost with the clip, if there is one, and what is put for removed parts in it."""
    for baseline in ("blur", "mean"):
        trial = metrics.Trial(network, session.clip, target, baseline=baseline, steps=STEPS, orders=ORDERS)
        if trial.scorable:
            break
    return {"blur": "blurred", "mean": "its mean colour"}[baseline], trial


def evidence_scores(session: Session, explanation: Explanation) -> dict[str, float]:
    """Against evidence that is known: `energy` of M_s in what acts over its share (1 is chance) and the chance `auc`
    that M_t ranks a frame with action above one without (0.5 is chance); those that are defined."""
    if session.evidence is None:
        return {}
    mask, action = session.evidence
    top, left, height, width = (round(side) for side in explanation.view)
    found = {"auc": metrics.temporal_auc(explanation.temporal, action)}
    if explanation.has_places:
        seen = mask[:, top : top + height, left : left + width]
        found["energy"] = metrics.energy_in_mask(explanation.spatial.clip(0), seen, action)
    return {name: value for name, value in found.items() if np.isfinite(value)}


# ------------------------------------------------------------------------------------------------------------- edit


def by_time(seconds: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where the frames sampled at `seconds` (T,) lie in the order of time, which is the player's: from a clip of fewer
    than T frames a network may take the first again after the last."""
    return np.argsort(seconds, kind="stable")


@torch.inference_mode()
def edit(session: Session, data: Mapping[str, Any]) -> NDArray[np.float32]:
    """What the network answers (K,) if it is given another attention; only its perception branch runs.

    `data` is what `guard.read_edit` takes, its frames in the order of time, and `invert_spatial` and `invert_temporal`,
    which turn what is given into 1 - M. Where a value is as it was sent to the browser, the network's own is taken,
    without rounding to a byte; if all are, nothing is `edited`. Raises ValueError (guard.EditError among them).
    """
    model, attention, mixture = session.network.twin, session.attention, session.mixture
    if model is None or attention is None or mixture is None:
        raise ValueError("There is no attention to change here: explain the clip by ST-ABN attention first.")
    own = session.explanations.get("stabn", session.first).spatial if attention.spatial is None else attention.spatial
    frames, (height, width) = len(session.clip.frames), own.shape[-2:]
    wanted = guard.read_edit(data, session.id, (frames, height, width))
    spatial, temporal = attention
    back = np.argsort(by_time(session.clip.timestamps))  # to the order in which the network took them
    if wanted.spatial is not None and spatial is not None:
        given = torch.from_numpy(wanted.spatial[back]).to(spatial)[None, None]
        spatial = torch.where((given * 255).round() == (spatial * 255).round(), spatial, given)
    if wanted.temporal is not None and temporal is not None:
        temporal = torch.from_numpy(wanted.temporal[back]).to(temporal).view_as(temporal)
    changed = Attention(spatial, temporal).invert(
        bool(data.get("invert_spatial")) and spatial is not None,
        bool(data.get("invert_temporal")) and temporal is not None,
    )
    probabilities = model.perceive(mixture, changed)[0].float().softmax(0).cpu().numpy()
    if all(part is None or own is None or torch.equal(part, own) for part, own in zip(changed, attention, strict=True)):
        session.edited = None
    else:
        session.edited = guard.Edit(
            *(None if part is None else part[0, 0].float().squeeze().cpu().numpy() for part in changed)
        )
    return probabilities
