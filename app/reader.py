"""Reads what people upload in a worker process of its own, with limits on time and memory.

Decoders are native code: a crafted or damaged file can crash them, hang them or make them eat memory. Here that ends
the worker and becomes one sentence (`stabn.video.VideoError`); the server goes on. Any other function can be called
in the same way: `apart("package.module:function", {...})`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import IO, Any, Literal, cast

import numpy as np

from stabn import video
from stabn.video import Clip, VideoError, VideoInfo, VideoWriter, iter_frames, probe, read_clip

ANSWER = 1_000_000  # bytes: what a worker may answer beside the frames, which come in a file
SHOWN = 720  # pixels: the short side at which a converted clip is shown
DRAWN = ("yuv420p", "yuvj420p")  # what every browser decodes
# What browsers play as it is: (how the name ends, FFmpeg's container, codecs).
PLAYED = (
    ((".mp4", ".m4v", ".mov"), "mov,mp4", ("h264", "av1")),
    ((".webm",), "matroska,webm", ("vp8", "vp9")),
)
LATE = 0.1  # seconds: a file whose first frame is later on its own clock is converted, so that clocks agree
ASPECT = 10  # the most that a frame may be longer than wide, or the reverse
TURNS = threading.BoundedSemaphore(2)  # workers at once: each may take `Limits.memory`
# Why a worker was ended by a signal that the server did not send: SIGKILL comes from a system short of memory.
_CAUSES = {9: "memory", 14: "late", 24: "late"}


@dataclass(frozen=True)
class Limits:
    """What an upload may have, and what reading it may take."""

    bytes: int = 200_000_000  # of the file
    seconds: float = 60.0
    frames: int = 7_200  # in the file
    pixels: int = 3840 * 2160  # per frame
    memory: int | None = 4 * 2**30  # bytes of address space of the worker, where the system can limit it; None: any
    timeout: float = 60.0  # seconds of wall clock, conversion for the browser included

    def __str__(self) -> str:
        return (
            f"clips of up to {self.bytes / 1e6:g} MB, {self.seconds:g} s, {self.frames} frames "
            f"and {self.pixels / 1e6:.1f} megapixels are read"
        )


@dataclass(frozen=True, eq=False)
class Upload:
    """A clip that was read, and the file that a browser plays for it."""

    clip: Clip  # T frames; its `path` is the upload
    playable: str  # the upload itself, or `playable.mp4` in the folder given
    codec: str  # FFmpeg's name of the upload's codec, for example "hevc"

    @property
    def converted(self) -> bool:
        return self.playable != self.clip.path


def read_upload(
    path: str | os.PathLike[str],
    frames: int | Sequence[int],
    size: int | None,
    limits: Limits = Limits(),
    *,
    folder: str | os.PathLike[str],
    name: str | None = None,
    stop: threading.Event | None = None,
    sampling: Literal["spread", "middle"] = "spread",
) -> Upload:
    """Reads T = `frames` frames of an uploaded video in a worker process, by the `sampling` of `read_clip`.

    A list of indices takes these frames; where the video does not have them all, as many that are spread over it.
    `size` is the short side of the frames in pixels (None: as they are). `folder` is an existing one, the caller's:
    what browsers do not play is converted once, to `folder/playable.mp4` (H.264, no sound, second 0 is the first
    frame, at most 720 pixels high or wide, whichever is less). Where reading fails nothing is left in it. `name` is
    what the file is called in sentences, its own name without folders if None. Setting `stop` ends the reading.
    Raises VideoError, one sentence, which says what is allowed: not a video, too large, too long, damaged, stopped.
    """
    path = os.path.abspath(path)
    name = name or os.path.basename(path)
    count = frames if isinstance(frames, int) else len(frames)
    if not os.path.isfile(path):
        raise VideoError(name, "is not there any more: upload it again")
    if os.path.getsize(path) > limits.bytes:
        raise VideoError(name, f"has {os.path.getsize(path) / 1e6:.1f} MB: {limits}")
    with tempfile.TemporaryDirectory(prefix="reading-", dir=folder) as scratch:
        task = {
            "path": path,
            "name": name,
            "frames": frames if isinstance(frames, int) else list(frames),
            "size": size,
            "sampling": sampling,
            "scratch": scratch,
            "limits": asdict(limits),
        }
        facts = apart("app.reader:_read", task, limits, name=name, stop=stop)
        clip, codec = _checked(facts, path, name, count, limits, os.path.join(scratch, "frames"))
        playable = path
        if os.path.exists(made := os.path.join(scratch, "playable.mp4")):
            playable = os.path.join(folder, "playable.mp4")
            os.replace(made, playable)
    return Upload(clip, playable, codec)


def apart(
    function: str,
    arguments: dict[str, Any],
    limits: Limits = Limits(),
    *,
    name: str,
    stop: threading.Event | None = None,
) -> Any:
    """Calls `function`, "package.module:name", with keyword `arguments` in a worker process, and gives its result.

    Arguments and result are what JSON holds, the result of at most a megabyte; larger things go through files. The
    worker imports only what the function's module imports, and never the main script. Raises VideoError about `name`
    where the function raises ValueError or OSError (its sentence), takes longer than `limits.timeout` or more than
    `limits.memory`, crashes, or is ended by setting `stop`.
    """
    patience = time.monotonic() + limits.timeout
    while not TURNS.acquire(timeout=0.1):
        if stop is not None and stop.is_set():
            raise VideoError(name, "was stopped")
        if time.monotonic() > patience:
            raise VideoError(name, "has waited long for its turn: the page is busy, try again in a minute")
    try:
        answer, cause = _run({"function": function, "arguments": arguments, "limits": asdict(limits)}, stop)
    finally:
        TURNS.release()
    if cause is None and "result" in answer:
        return answer["result"]
    if cause is None and isinstance(error := answer.get("error"), str):
        raise VideoError("".join(c if c.isprintable() else " " for c in error[:1000]))
    reasons = {
        "stopped": "was stopped",
        "late": f"was given up after {limits.timeout:g} s, it is damaged or too much for this machine: {limits}",
        "memory": f"needs more than {_gigabytes(limits.memory)} of memory: {limits}",
    }
    crashed = "made its decoder crash, it is damaged: try to convert it to H.264 mp4"
    raise VideoError(name, reasons.get(cause or str(answer.get("cause")), crashed))


def _gigabytes(memory: int | None) -> str:
    return "this machine has" if memory is None else f"{memory / 1e9:.1f} GB"


def _run(task: dict[str, Any], stop: threading.Event | None) -> tuple[dict[str, Any], str | None]:
    """What a worker answered, {} if nothing, and why it ended without an answer that counts, if so."""
    start = f"import sys; sys.path[:] = {sys.path!r}; from app.reader import work; work()"
    # Few pools of memory for all threads, and no threads of numpy's: each reserves address space, which is limited.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", start, json.dumps(task)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # a group of its own: Ctrl-C is for the server, and nothing of it outlives the call
    )
    deadline, cause, over = time.monotonic() + task["limits"]["timeout"], None, threading.Event()

    def watch() -> None:
        nonlocal cause
        while not over.wait(0.1):
            if time.monotonic() > deadline or (stop is not None and stop.is_set()):
                cause = "late" if time.monotonic() > deadline else "stopped"
                _kill(process)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        with cast(IO[bytes], process.stdout) as pipe:
            said = pipe.read(ANSWER + 1)
        if len(said) > ANSWER:  # a worker that was taken over could write without end
            cause = "crashed"
            _kill(process)
        code = process.wait()
    finally:
        over.set()
        if process.poll() is None:
            _kill(process)
            process.wait()
    try:
        answer = json.loads(said)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return {}, cause or _CAUSES.get(-code, "crashed")
    return answer, cause


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()


def work() -> None:
    """What a worker process runs: the call that its argument tells, answered in one line on standard output."""
    task = json.loads(sys.argv[1])
    line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    _confine(Limits(**task["limits"]))
    module, name = task["function"].split(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), name)(**task["arguments"])}
    except MemoryError:
        answer = {"cause": "memory"}
    except (ValueError, OSError) as error:
        answer = {"error": str(error)}
    with line:
        json.dump(answer, line)


def _confine(limits: Limits) -> None:
    """Puts the limits on this process, as far as its system knows them."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(limits.timeout) + 5)  # should the server be gone by then
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, math.ceil(limits.timeout * (os.cpu_count() or 1))),
        (resource.RLIMIT_FSIZE, limits.memory),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            if value is not None:
                resource.setrlimit(kind, (value, value))


def _read(
    path: str,
    name: str,
    frames: int | list[int],
    size: int | None,
    sampling: Literal["spread", "middle"],
    scratch: str,
    limits: dict[str, Any],
) -> dict[str, Any]:
    """Runs in the worker: the pixels go to `scratch`/frames, a converted clip to `scratch`/playable.mp4."""
    allowed = Limits(**limits)
    video.MAX_PIXELS, video.MAX_FRAMES = allowed.pixels, allowed.frames  # of this process only
    try:
        plays = _judge(path, allowed)
        info = probe(path)
        _bound(path, allowed, info.duration, info.frame_count, info.source_size)
        try:
            clip = read_clip(info, frames, size=size, sampling=sampling)
        except VideoError:
            if isinstance(frames, int):
                raise
            clip = read_clip(info, len(frames), size=size)
        clip.frames.tofile(os.path.join(scratch, "frames"))
        if not plays:
            _convert(info, os.path.join(scratch, "playable.mp4"), allowed)
    except VideoError as error:
        sentence = str(error).replace(os.path.join(scratch, "playable.mp4"), name).replace(path, name)
        raise VideoError(sentence) from None
    return {
        "codec": info.codec,
        "shape": clip.frames.shape,
        "timestamps": clip.timestamps.tolist(),
        "frame_indices": clip.frame_indices.tolist(),
        "source_size": clip.source_size,
        "fps": clip.fps,
        "duration": clip.duration,
        "frame_count": clip.frame_count,
        "rotation": clip.rotation,
        "has_audio": clip.has_audio,
        "notes": clip.notes,
    }


def _judge(path: str, limits: Limits) -> bool:
    """Whether browsers play a file as it is, from its header; VideoError if that promises more than is allowed."""
    with video.opened(path) as (container, stream):
        length = (container.duration or 0) / 1e6 or float((stream.duration or 0) * (stream.time_base or 0))
        _bound(path, limits, length, stream.frames, (stream.height, stream.width))
        late = abs(float((stream.start_time or 0) * (stream.time_base or 0))) > LATE
        context, format_name = stream.codec_context, container.format.name
        return (
            not late
            and context.pix_fmt in DRAWN
            and any(
                path.lower().endswith(suffixes) and kind in format_name and context.codec.canonical_name in codecs
                for suffixes, kind, codecs in PLAYED
            )
        )


def _bound(path: str, limits: Limits, seconds: float, frames: int, size: tuple[int, int]) -> None:
    if seconds > limits.seconds:
        raise VideoError(path, f"is {seconds:.1f} s long: {limits}")
    if frames > limits.frames:
        raise VideoError(path, f"has {frames} frames: {limits}")
    if size[0] * size[1] > limits.pixels:
        raise VideoError(path, f"has frames of {size[1]} x {size[0]} pixels: {limits}")
    if max(size) > ASPECT * min(size):
        raise VideoError(path, f"has frames of {size[1]} x {size[0]} pixels: at most {ASPECT} to 1 is read")


def _convert(info: VideoInfo, target: str, limits: Limits) -> None:
    moving = iter_frames(info, end=limits.seconds, size=min(SHOWN, *info.source_size))
    first = next(moving, None)
    if first is None:
        raise VideoError(info.path, "none of its frames can be decoded: it is damaged or cut off")
    with VideoWriter(target, first[1].shape[1], first[1].shape[0]) as writer:
        for seconds, frame in islice(chain([first], moving), limits.frames):
            writer.write(frame, seconds)


def _checked(facts: Any, path: str, name: str, frames: int, limits: Limits, pixels: str) -> tuple[Clip, str]:
    """The clip that a worker read; it is not believed blindly, a decoder may have been taken over."""
    try:
        shape = tuple(map(int, facts["shape"]))
        seconds, indices = np.array(facts["timestamps"], np.float64), np.array(facts["frame_indices"], np.int64)
        height, width = map(int, facts["source_size"])
        numbers = float(facts["fps"]), float(facts["duration"]), int(facts["frame_count"])
        if (
            shape != (frames, *shape[1:3], 3)
            or not (min(shape) > 0 and shape[1] * shape[2] <= limits.pixels)
            or not (height > 0 and width > 0 and height * width <= limits.pixels)
            or not (seconds.shape == indices.shape == (frames,) and np.isfinite(seconds).all())
            or not (0 < numbers[0] < math.inf and 0 < numbers[1] <= limits.seconds and 0 < numbers[2] <= limits.frames)
        ):
            raise ValueError
        data = np.fromfile(pixels, np.uint8, math.prod(shape)).reshape(shape)
        rotation, has_audio, notes = int(facts["rotation"]), bool(facts["has_audio"]), tuple(map(str, facts["notes"]))
        codec = str(facts["codec"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise VideoError(name, "was read, but what came of it contradicts itself: it is damaged") from None
    return Clip(data, seconds, indices, (height, width), *numbers, rotation, path, has_audio, notes), codec
