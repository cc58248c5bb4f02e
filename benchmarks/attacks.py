"""What `soak.py` feeds to everything that reads: videos, checkpoints, annotations, saved results, edits, command lines,
and numbers at their ends. Each input goes to the function that the program reads it with; a part of them goes through a
command line too."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import av
import cv2
import numpy as np
from numpy.random import Generator
from soak import ROUNDS, Case, attack
from tqdm import tqdm

import stabn.train
from app import reader
from explain import METHODS, ablate, benchmark, cli, evaluate
from explain.core import explain
from stabn import data
from stabn.clips import Clips
from stabn.synthetic import generate
from stabn.video import Clip, VideoWriter, iter_frames, probe, read_clip, write_video

if TYPE_CHECKING:
    from stabn.model import STABN

# torch and all that needs it is imported where an attack begins (`Stage.torch`), as the others do without.
FLIPS = 500 // ROUNDS  # damaged copies of each file in a round
REAL = 10  # files of --clips at most
# (name, codec, pixel format, audio codec): every container that is read, by the codecs that PyAV can write
MADE = (
    ("h264.mp4", "libx264", "yuv420p", "aac"),
    ("turned.mov", "libx264", "yuv420p", None),
    ("hevc.mp4", "libx265", "yuv420p", None),
    ("av1.mp4", "libsvtav1", "yuv420p", None),
    ("mpeg4.avi", "mpeg4", "yuv420p", "libmp3lame"),
    ("vp8.webm", "libvpx", "yuv420p", "libopus"),
    ("vp9.mkv", "libvpx-vp9", "yuv420p", None),
    ("mjpeg.mov", "mjpeg", "yuvj420p", "pcm_s16le"),
    ("mpeg2.mpg", "mpeg2video", "yuv420p", "mp2"),
    ("h264.ts", "libx264", "yuv420p", "aac"),
    ("flv1.flv", "flv", "yuv420p", None),
    ("vp8.ogv", "libvpx", "yuv420p", None),
    ("mpeg4.3gp", "mpeg4", "yuv420p", None),
    ("moving.gif", "gif", "rgb8", None),
)
FRAMES, SIZE = 4, 32  # of the tiny network
HOSTILE = json.loads(f'[-1, 0, 1, 2, {10**6}, {10**12}, {10**30}, 1e308, NaN, Infinity, true, null, "", "x", [], {{}}]')


class Stage:
    """What attacks share, each made when it is first asked for, in a folder of its own."""

    def __init__(self, folder: Path, clips: Path | None, minutes: float) -> None:
        self.folder, self.clips, self.minutes = folder, clips, minutes

    @cached_property
    def videos(self) -> dict[str, bytes]:
        """Small videos by name: made ones, and the smallest of --clips."""
        found = {}
        for name, codec, pixels, audio in MADE:
            encode(self.folder / name, codec, pixels, audio, rotation=90 if name.startswith("turned") else 0)
            found[name] = (self.folder / name).read_bytes()
        real = sorted((self.clips.iterdir() if self.clips else ()), key=lambda each: each.stat().st_size)
        real = [each for each in real if each.suffix in data.VIDEOS and _reads(each)]
        return found | {f"real-{each.name}": each.read_bytes() for each in real[:REAL]}

    @cached_property
    def torch(self) -> Any:
        """PyTorch; with it what else attempts use is imported, so that not each of them does it."""
        import torch

        for name in ("explain.inversion", "explain.labelled", "explain.metrics", "stabn.engine", "torch._dynamo"):
            importlib.import_module(name)
        torch.set_num_threads(1)
        return torch

    @cached_property
    def network(self) -> STABN:
        self.torch.manual_seed(0)
        from stabn.model import STABN, Config

        shape = {"layers": (1, 1, 1, 1), "block": "basic", "stem": (3, 3, 3), "pool": False, "width": 4}
        return STABN(Config(classes=3, frames=FRAMES, size=SIZE, **shape), ["left", "right", "hold"]).eval()

    @cached_property
    def checkpoint(self) -> Path:
        from stabn import checkpoint

        path = self.folder / "tiny.safetensors"
        checkpoint.save(self.network, path)
        # Once here, so that not each attempt imports what this imports.
        arguments = [str(self.clip), "--out", str(self.folder / "saved"), "--checkpoint", str(path), "--quiet"]
        assert cli.main([*arguments, "--method", "stabn,grad_cam"]) == 0
        return path

    @cached_property
    def clip(self) -> Path:
        """A video of half a second."""
        write_video(self.folder / "clip.mp4", generate(38, 12, 64).frames, 24.0)
        return self.folder / "clip.mp4"

    @cached_property
    def labelled(self) -> Path:
        """A folder of class folders, six videos."""
        for number, name in enumerate(("left", "right", "hold")):
            (self.folder / "labelled" / name).mkdir(parents=True)
            for each in range(2):
                frames = generate(2 * number + each, 8, 32).frames
                write_video(self.folder / "labelled" / name / f"{each}.mp4", frames, 8.0)
        return self.folder / "labelled"

    @cached_property
    def saved(self) -> bytes:
        """A zipped result of `stabn-explain`, with its clip, as the page gives it."""
        out = self.checkpoint.with_name("saved")
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            for file in sorted(each for each in (out / "clip").rglob("*") if each.is_file()):
                if not file.name.endswith(".png"):
                    archive.write(file, Path("clip") / file.relative_to(out / "clip"))
            archive.write(self.clip, "clip/clip/clip.mp4")
        return whole.getvalue()


@contextlib.contextmanager
def staged(clips: Path | None, minutes: float) -> Iterator[Stage]:
    cv2.setNumThreads(1)  # threads do not survive a fork
    tqdm.monitor_interval = 0
    with tempfile.TemporaryDirectory(prefix="stage-") as name:
        kept = {"MPLCONFIGDIR": name, "TORCHINDUCTOR_CACHE_DIR": name, "GRADIO_TEMP_DIR": f"{name}/cache"}
        with mock.patch.dict(os.environ, kept):  # where libraries keep what they make
            yield Stage(Path(name), clips, minutes)


os.environ.setdefault("SVT_LOG", "1")  # errors only


def encode(path: Path, codec: str, pixels: str, audio: str | None, rotation: int = 0, frames: Any = None) -> None:
    """A video of 16 frames of 80 x 48, with half a second of noise if there is `audio`."""
    frames = generate(38, 16, 80).frames[:, :48] if frames is None else frames
    with av.open(str(path), "w", format="ogg" if path.suffix == ".ogv" else None) as output:
        stream = output.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        if codec.startswith("libsvt") or codec.startswith("libx265"):
            stream.options = {"preset": "10" if "svt" in codec else "ultrafast", "x265-params": "log-level=none"}
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio, rate=48_000 if audio == "libopus" else 44_100) if audio else None
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            noise = np.random.default_rng(0).integers(-3000, 3000, (1, sound.rate // 2), np.int16)
            piece = av.AudioFrame.from_ndarray(noise, "s16", "mono")
            piece.sample_rate, piece.pts, piece.time_base = sound.rate, 0, Fraction(1, sound.rate)
            resampler = av.AudioResampler(sound.format.name, sound.layout.name, sound.rate, sound.frame_size or None)
            for part in (*resampler.resample(piece), *resampler.resample(None)):
                output.mux(sound.encode(part))
            output.mux(sound.encode(None))
    if "svt" in codec and hasattr(os, "sched_setscheduler"):  # as root it becomes more urgent than all else, for good
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _reads(path: Path) -> bool:
    try:
        return bool(probe(path).frame_count)
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------------------------- damage


def flipped(content: bytes, chance: Generator) -> bytes:
    """1 to 64 bits turned over: everywhere, or where the header is, or the index at the end."""
    damaged = bytearray(content)
    low, high = [(0, len(content)), (0, 2048), (len(content) - 2048, len(content))][chance.integers(3)]
    for _ in range(int(chance.choice([1, 1, 2, 8, 64]))):
        at = int(chance.integers(max(0, low), min(high, len(content))))
        damaged[at] ^= 1 << int(chance.integers(8))
    return bytes(damaged)


def cuts(content: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    """A round's tenth of the cuts at every 1 %."""
    for percent in range(number % ROUNDS, 100, ROUNDS):
        yield percent, content[: len(content) * percent // 100]


def overwritten(content: bytes, numbers: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Every place that holds one of the numbers, as an integer of any kind, with another number there."""
    for what, value in numbers.items():
        for kind in ("<I", ">I", "<H", ">H"):
            size = struct.calcsize(kind)
            for found in list(re.finditer(re.escape(struct.pack(kind, value)), content))[:4]:
                for lie in {0, 1, 7, 65_535, 100_000, 2**31 - 1, 2**32 - 1}:
                    if lie < 256**size:
                        changed = content[: found.start()] + struct.pack(kind, lie) + content[found.end() :]
                        yield f"{what} {lie} at byte {found.start()}", changed


# ---------------------------------------------------------------------------------------------------------- videos


def watch(name: str, folder: Path, most: int = 400) -> None:
    """Reads a video in all the ways that `stabn-explain` does, and writes a copy with its sound."""
    path = folder / "in" / name
    info = probe(path)
    clip = read_clip(info, 16, size=64)
    assert clip.frames.shape == (16, *clip.frames.shape[1:3], 3)
    assert np.isfinite(clip.timestamps).all()
    assert 0 < info.duration < float("inf")
    assert (np.diff(info.timestamps) > 0).all()
    frames = iter_frames(info, size=min(64, *info.source_size))
    first = next(frames, None)
    if first is not None:
        with VideoWriter("copy.mp4", first[1].shape[1], first[1].shape[0], audio_from=info) as writer:
            writer.write(first[1], first[0])
            for number, (seconds, frame) in enumerate(frames):
                if number > most:
                    break
                writer.write(frame, seconds)


def for_the_page(name: str, folder: Path) -> None:
    """Reads a video as the page's worker does."""
    scratch = folder / "out"
    facts = reader._read(str(folder / "in" / name), name, 16, 64, "spread", str(scratch), vars(reader.Limits()))
    reader._checked(json.loads(json.dumps(facts)), name, name, 16, reader.Limits(), str(scratch / "frames"))


def explained(stage: Stage, *options: str, name: str = "*") -> Callable[[Path], int]:
    """`stabn-explain` over what is put into `in`, and what stands then is whole."""
    network = ["--checkpoint", str(stage.checkpoint)]

    def act(folder: Path) -> int:
        code = cli.main([str(folder / "in" / name), "--out", str(folder / "out"), "--quiet", *network, *options])
        finished(folder / "out")
        return code

    return act


def finished(out: Path) -> list[str]:
    """The names of the results in a folder of them. Raises AssertionError if one that is shown is not whole."""
    names = [each.name for each in out.iterdir() if not each.name.startswith(".")] if out.is_dir() else []
    try:
        for name in names:
            manifest = json.loads((out / name / "manifest.json").read_text("utf-8"))
            assert all((out / name / file).stat().st_size for file in manifest["files"])
            assert probe(out / name / "overlay.mp4").frame_count
            for file in (out / name).rglob("explanation.npz"):
                with np.load(file) as arrays:
                    assert all(np.isfinite(arrays[key]).all() for key in ("spatial", "temporal", "probabilities"))
    except (OSError, ValueError, KeyError) as error:
        raise AssertionError(f"{out} holds what is half made: {error}") from error
    return sorted(names)


def _both(what: str, name: str, content: bytes, turn: int) -> Iterator[Case]:
    """A video to the reader, and every fifth to the page's too."""
    yield Case(what, partial(watch, name), {name: content})
    if turn % 5 == 0:
        yield Case(f"{what}, the page", partial(for_the_page, name), {name: content})


@attack("videos", "cut off at every 1 %")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    for name, content in stage.videos.items():
        for percent, cut in cuts(content, number):
            yield from _both(f"{name} at {percent} %", name, cut, percent)


@attack("videos", "bits turned over")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    for name, content in stage.videos.items():
        for turn in range(FLIPS):
            yield from _both(f"{name}, copy {turn}", name, flipped(content, chance), turn)


@attack("videos", "headers that lie about size, length, number of frames and rotation")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    found = []
    for name, content in stage.videos.items():
        if name.startswith("real-"):
            continue
        numbers = {"width": 80, "height": 48, "frames": 16, "milliseconds": 667, "ticks": 8192}
        found += [(name, *lie) for lie in overwritten(content, numbers)]
        for matrix in re.finditer(re.escape(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)), content):
            for turned in ((0, 0, 0, 0, 0, 0, 0, 0, 0), (-(2**31),) * 9, (65536, 1, 0, 7, -65536, 0, 99, 99, 2**30)):
                changed = content[: matrix.start()] + struct.pack(">9i", *turned) + content[matrix.end() :]
                found.append((name, f"rotation {turned}", changed))
    for turn, each in enumerate(found[number % ROUNDS :: ROUNDS]):
        yield from _both(f"{each[0]}, {each[1]}", each[0], each[2], turn)


@attack("videos", "playlists and scripts under false names open no other file")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    other = "other.mp4"
    texts = {
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "HLS, file:": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{other}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {other}\n",
        "DASH": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        f"<Representation><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "metadata": f";FFMETADATA1\ntitle={other}\n",
        "edit list": f"# mplayer EDL file, version 2\n{other},0,1\n",
        "AviSynth": f'FFmpegSource2("{other}")\n',
        "SMIL": f'<smil><body><video src="{other}"/></body></smil>',
        "RTSP": f"RTSPtext\nrtsp://127.0.0.1/{other}\n",
        "ASX": f'<asx version="3.0"><entry><ref href="{other}"/></entry></asx>',
    }
    names = ("a.mp4", "a.avi", "a.mkv", "a.ts", "a.gif", "a.m3u8", "a.ffconcat", "a%03d.mp4")

    def only_refused(name: str, folder: Path) -> None:
        watch(name, folder)
        raise AssertionError(f"{name} was read")

    for kind, text in texts.items():
        for before in ("", "\n\n ", "\ufeff", "\0"):
            for name in names[number % 2 :: 2]:
                files = {name: (before + text).encode(), other: stage.videos["h264.mp4"]}
                yield Case(f"{kind} as {name} behind {before!r}", partial(only_refused, name), files)

    def linked(target: str, folder: Path) -> None:
        os.symlink(target, folder / "out" / "a.mp4")
        probe(folder / "out" / "a.mp4")
        raise AssertionError(f"{target} was read")

    def pipe(folder: Path) -> None:
        os.mkfifo(folder / "out" / "a.mp4")
        probe(folder / "out" / "a.mp4")

    for target in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/", "/nonexistent", "a.mp4"):
        yield Case(f"a link to {target}", partial(linked, target))
    yield Case("a pipe", pipe)


@attack("videos", "damaged ones to stabn-explain")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    for name, content in stage.videos.items():
        cut = content[: int(chance.integers(len(content) // 2, len(content)))]
        for what, damaged in (("cut off", cut), ("bits turned over", flipped(content, chance))):
            yield Case(f"{name}, {what}", explained(stage), {name: damaged})


def _png(width: int, height: int) -> bytes:
    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 2000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )


@attack("videos", "100,000 x 100,000 pixels, and other sizes")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    sizes = [(100_000, 100_000), (65_535, 65_535), (1, 2**31 - 1), (2**31 - 1, 1), (20_000, 20_000), (8192, 8192)]
    for width, height in sizes:
        for name, content in (("0.png", _png(width, height)), ("0.bmp", _bmp(width, height))):
            files = {f"frames/{name}": content, f"frames/1{name[1:]}": content}
            yield Case(f"{name} of {width} x {height}", partial(watch, "frames"), files)
            yield Case(f"{name} of {width} x {height}, the page", partial(for_the_page, "frames"), files)
    gif = stage.videos["moving.gif"]
    for width, height in ((65_535, 65_535), (0, 0), (1, 65_535)):
        content = gif[:6] + struct.pack("<HH", width, height) + gif[10:]
        yield from _both(f"GIF of {width} x {height}", "a.gif", content, 0)
    for height, width in ((2, 2), (2, 2000), (2000, 2), (3, 5), (1, 1)):
        frames = np.zeros((4, height, width, 3), np.uint8)

        def small(frames: np.ndarray, folder: Path) -> int:
            write_video(folder / "out" / "small.mp4", frames, 4.0)
            watch("../out/small.mp4", folder)
            os.remove(folder / "out" / "small.mp4")
            os.remove(folder / "out" / "copy.mp4")
            for k, each in enumerate(frames):  # in a folder, an odd size stays odd
                (folder / "out" / "f").mkdir(exist_ok=True)
                cv2.imwrite(str(folder / "out" / "f" / f"{k}.png"), each)
            options = ["--out", str(folder / "out" / "r"), "--quiet", "--checkpoint", str(stage.checkpoint)]
            code = cli.main([str(folder / "out" / "f"), *options])
            finished(folder / "out" / "r")
            return code

        yield Case(f"a video of {width} x {height}", partial(small, frames))


@attack("videos", "one frame, all black, all white, gaps and crowds of time stamps")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    black, white = (np.full((24, 48, 64, 3), value, np.uint8) for value in (0, 255))
    kinds: dict[str, tuple[np.ndarray, Any]] = {
        "one frame": (black[:1], 24.0),
        "two frames": (black[:2], 24.0),
        "all black": (black, 24.0),
        "all white": (white, 24.0),
        "black, then white": (np.concatenate([black[:12], white[:12]]), 24.0),
        "two frames ten hours apart": (black[:2], [0.0, 36_000.0]),
        "a gap of a year": (black[:3], [0.0, 0.04, 3.2e7]),
        "a frame each microsecond": (black, np.arange(24) / 1e6),
        "a frame every hour": (black, np.arange(24) * 3600.0),
        "noise": (chance.integers(0, 256, black.shape, np.uint8), 24.0),
    }
    for name, (frames, stamps) in kinds.items():
        for options in ((), ("--window", "0.5"), ("--method", "stabn,grad_cam,random,occlusion", "--score")):

            def act(folder: Path, frames: np.ndarray = frames, stamps: Any = stamps, options: Any = options) -> int:
                write_video(folder / "out" / "v.mp4", frames, stamps)
                arguments = [str(folder / "out" / "v.mp4"), "--quiet", "--checkpoint", str(stage.checkpoint)]
                code = cli.main([*arguments, "--out", str(folder / "out" / "r"), *options])
                finished(folder / "out" / "r")
                return code

            yield Case(f"{name} {' '.join(options)}", act)


# ----------------------------------------------------------------------------------------------------- checkpoints


def opened(name: str, folder: Path) -> None:
    """Opens a checkpoint, and lets it explain a clip of noise if it can be opened."""
    from stabn import checkpoint

    network = checkpoint.load(folder / "in" / name)
    checkpoint.weights_hash(folder / "in" / name)
    chance = np.random.default_rng(0)
    clip = Clip.from_array(chance.integers(0, 256, (network.config.frames, 40, 48, 3), np.uint8))
    found = explain(network, clip)
    for values in (found.spatial, found.temporal, found.probabilities):
        assert np.isfinite(values).all(), "values that are not finite"
    assert abs(found.probabilities.sum() - 1) < 1e-3


def begun(stage: Stage, name: str, folder: Path) -> None:
    """Takes a file as --init of a training."""
    stabn.train.initialised(stage.network, str(folder / "in" / name))


def _parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes behind it."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@attack("checkpoints", "cut off at every 1 %")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    for percent, cut in cuts(stage.checkpoint.read_bytes(), number):
        for act in (opened, partial(begun, stage)):
            yield Case(f"at {percent} %", partial(act, "a.safetensors"), {"a.safetensors": cut})


@attack("checkpoints", "bits turned over")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    content, torch = stage.checkpoint.read_bytes(), stage.torch
    whole = io.BytesIO()
    torch.save({"state_dict": stage.network.state_dict(), "config": _config(stage), "classes": ["a", "b", "c"]}, whole)
    for turn in range(FLIPS):
        for name, each in (("a.safetensors", content), ("a.pt", whole.getvalue())):
            files = {name: flipped(each, chance)}
            yield Case(f"{name}, copy {turn}", partial(opened, name), files)
            if turn % 10 == 0:
                yield Case(f"{name}, copy {turn}, --init", partial(begun, stage, name), files)


def _config(stage: Stage) -> dict[str, Any]:
    return asdict(stage.network.config)


@attack("checkpoints", "headers that lie")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    header, rest = _parts(stage.checkpoint)
    about = header["__metadata__"]
    found: dict[str, bytes] = {}
    config = json.loads(about["config"])
    for key in (*config, "unknown"):
        for value in (*HOSTILE, 8, 1024, [1] * 3, [1] * 4, [10**6] * 4, [0.5] * 3, "tsm", "compact", "temporal"):
            changed = {**about, "config": json.dumps({**config, key: value})}
            found[f"config {key} {value!r}"] = _joined({**header, "__metadata__": changed}, rest)
    names = {"none": [], "one": ["a"], "twice": ["a", "a", "a"], "numbers": [1, 2, 3], "long": ["a" * 10**6] * 3}
    names |= {"odd": ["\n\x1b[31m", "\u202e", "$x_1^"], "empty": ["", "", ""], "surrogates": ["\ud800", "b", "c"]}
    for name, classes in names.items():
        found[f"classes {name}"] = _joined({**header, "__metadata__": {**about, "classes": json.dumps(classes)}}, rest)
    for key in ("config", "classes", "metadata", "format", "version"):
        for value in ("", "null", "[" * 100_000, "{}", "[]", '{"a": ' * 5000, "9" * 5000, "NaN", '"\\ud800"'):
            found[f"{key} {value[:9]!r}"] = _joined({**header, "__metadata__": {**about, key: value}}, rest)
    first = next(name for name in header if name != "__metadata__")
    for key, values in {
        "dtype": ("F64", "I64", "BOOL", "F8_E4M3", "C64", "X", 1, "F16"),
        "shape": ([], [0], [-1], [10**12], [2**63], [1] * 100, "x", [1.5]),
        "data_offsets": ([0, 10**12], [-4, 0], [8, 4], [0], [2**64, 2**64], "x"),
    }.items():
        for value in values:
            found[f"tensor {key} {value!r}"[:60]] = _joined({**header, first: {**header[first], key: value}}, rest)
    found["a tensor more"] = _joined({**header, "more": header[first]}, rest)
    found["a tensor less"] = _joined({name: each for name, each in header.items() if name != first}, rest)
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1):
        found[f"header of {length} bytes"] = struct.pack("<Q", length) + _joined(header, rest)[8:]
    cases = list(found.items())
    for name, content in cases[number % ROUNDS :: ROUNDS]:
        yield Case(name, partial(opened, "a.safetensors"), {"a.safetensors": content})


class Runs:
    """A pickle that runs a command when it is opened without care."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@attack("checkpoints", "pickles that would run code, wrong tensors, NaN; resume states")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    torch, state = stage.torch, stage.network.state_dict()
    first = next(iter(state))
    whole = {"state_dict": state, "config": _config(stage), "classes": ["a", "b", "c"]}
    canary = "touch ../in/canary"
    payloads: dict[str, Any] = {
        "os.system": Runs(os.system, canary),
        "eval": Runs(eval, f"__import__('os').system({canary!r})"),
        "exec": Runs(exec, f"import os; os.system({canary!r})"),
        "getattr": Runs(getattr, os, "system"),
        "torch.load": Runs(torch.load, "/etc/passwd"),
        "open": Runs(open, "../in/canary", "w"),
        "nothing": None,
        "a list": [whole],
        "deep": _deep(900),
    }
    tensors = {
        "expanded": torch.zeros(1).expand(10**6, 10**5),
        "expanded a little": torch.zeros(1).expand(10**9),
        "of another shape": torch.zeros(3),
        "of integers": state[first].long(),
        "of doubles": state[first].double(),
        "of complex numbers": state[first].to(torch.complex64),
        "of NaN": torch.full_like(state[first], float("nan")),
        "of infinities": torch.full_like(state[first], float("inf")),
        "of 1e38": torch.full_like(state[first], 1e38),
        "sparse": state[first].flatten(1).to_sparse(),
        "meta": torch.empty(state[first].shape, device="meta"),
        "quantised": torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8),
        "empty": torch.zeros(0),
        "a scalar": torch.zeros(()),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    }
    payloads |= {f"a tensor {name}": {**whole, "state_dict": {**state, first: each}} for name, each in tensors.items()}
    payloads |= {f"only a state dict with a tensor {name}": {**state, first: each} for name, each in tensors.items()}
    payloads |= {f"{key} is {value!r}"[:60]: {**whole, key: value} for key in whole for value in HOSTILE}
    payloads["names that are numbers"] = {**whole, "state_dict": dict(enumerate(state.values()))}
    payloads["published, one tensor"] = {"layer_att_common.x": torch.zeros(2)}
    payloads["published, shapes"] = {
        "model_state_dict": {
            **{f"layer{k}.{b}.conv1.weight": torch.zeros(1) for k in range(1, 5) for b in range(2)},
            **{"layer_att_common.0.x": torch.zeros(1), "fc.weight": torch.zeros(1).expand(10**9)},
            **{"conv_temp_att2.0.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)},
        }
    }
    resumes = {
        name: {"recipe": {}, "network": state, "optimizer": {}, "step": 1, "seconds": 1.0, "random": torch.zeros(3)}
        | changed
        for name, changed in {
            "no network": {"network": {}},
            "NaN": {"network": {**state, first: tensors["of NaN"]}},
            "another shape": {"network": {**state, first: torch.zeros(3)}},
            "no optimizer": {"optimizer": None},
            "optimizer of another kind": {"optimizer": {"state": {0: 1}, "param_groups": [{}]}},
            "step": {"step": "x"},
            "step beyond the end": {"step": 10**9},
            "negative step": {"step": -5},
            "no step": {"step": None},
            "random": {"random": None},
            "recipe is a list": {"recipe": []},
            "seconds": {"seconds": "x"},
            "expanded": {"network": {**state, first: tensors["expanded"]}},
        }.items()
    }

    def unharmed(act: Callable[[Path], Any], folder: Path) -> Any:
        try:
            return act(folder)
        finally:
            assert not (folder / "in" / "canary").exists(), "its code was run"

    for name, content in payloads.items():
        for kind, write in (("zip", torch.save), ("old", partial(torch.save, _use_new_zipfile_serialization=False))):
            file = io.BytesIO()
            try:
                write(content, file)
            except (RuntimeError, TypeError, AttributeError, NotImplementedError, pickle.PicklingError, RecursionError):
                continue  # cannot be written that way
            files = {"a.pt": file.getvalue()}
            yield Case(f"{name} ({kind})", partial(unharmed, partial(opened, "a.pt")), files)
            yield Case(f"{name} ({kind}), --init", partial(unharmed, partial(begun, stage, "a.pt")), files)
    yield Case("a bare pickle", partial(opened, "a.pt"), {"a.pt": pickle.dumps(Runs(os.system, canary))})
    for name, content in resumes.items():
        yield Case(f".resume: {name}", partial(resumed, content))
    good = io.BytesIO()
    torch.save(resumes["random"], good)
    for turn in range(10):
        yield Case(f".resume damaged {turn}", partial(resumed, flipped(good.getvalue(), chance)))


def _deep(levels: int) -> Any:
    found: Any = 0
    for _ in range(levels):
        found = [found]
    return found


TRAIN = (
    *("--steps", "2", "--save-every", "1", "--batch", "2", "--size", "16", "--frames", "2", "--width", "1"),
    *("--workers", "0", "--precision", "fp32", "--device", "cpu"),
)


def resumed(state: Any, folder: Path) -> None:
    """`stabn-train` that finds a state to go on from: bytes, or what has the right recipe unless it has another."""
    import torch
    import tyro

    from stabn import checkpoint, synthetic

    out = folder / "out" / "a.safetensors"
    file = out.with_name(out.name + ".resume")
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        options = tyro.cli(stabn.train.Options, args=["--out", str(out), *TRAIN])
        recipe = stabn.train.decisive(options) | {"init": None, "generator": synthetic.VERSION}
        torch.save({**state, "recipe": recipe if state["recipe"] == {} else state["recipe"]}, file)
    stabn.train.main(["--out", str(out), *TRAIN])
    checkpoint.load(out)


# ----------------------------------------------------------------------------------------------------- annotations


LISTS: dict[str, dict[str, str]] = {
    "CSV": {"in/list.csv": "path,label\nleft/0.mp4,left\nright/0.mp4,right\nhold/1.mp4,2\n"},
    "V1": {
        "in/something-something-v1-validation.csv": "1;left\n2;right\n3;hold\n",
        "in/something-something-v1-labels.csv": "left\nright\nhold\n",
    },
    "V2": {
        "in/something-something-v2-validation.json": json.dumps(
            [{"id": str(k), "label": "x", "template": name} for k, name in enumerate(("left", "right", "hold"), 1)]
        ),
        "in/something-something-v2-labels.json": json.dumps({"left": "0", "right": "1", "hold": "2"}),
    },
}
CONTENTS = (  # of lists and labels, with broken bars between them
    '¦\n¦,¦;¦\0¦\ufeff¦path,label¦path;label\n¦path,label\n,\n¦path,label\nx¦path,label\n"¦path,label,path\na,b,c\n'
    "¦path,label\nx,-1\n¦path,label\na\0b,0\n¦path,label\n~,0\n¦path,label\n../../../../etc/passwd,0\n"
    "¦path,label\n/dev/zero,0\n¦path,label\nleft/0.mp4,99999999999\n¦path,label\nleft/0.mp4,²\n¦path,label\nleft/0.mp4,٣\n"
    '¦[]¦{}¦null¦1¦"x"¦[1]¦[[]]¦[{}]¦NaN¦[null]¦[{"id": 1}]¦[{"id": "../x", "template": "left"}]¦1;left\n1;left'
    '¦[{"id": "\\ud800", "template": "left"}]¦[{"id": "1", "template": "\\ud800"}]¦{"left": "0", "left": "1"}'
    '¦[{"id": 1e400, "template": "left"}]¦[{"id": true, "template": "left"}]¦{"left": 1e400}¦{"left": "٣"}'
)
TEXTS = CONTENTS.split("¦")
TEXTS += [f"path,label\n{path}" for path in ("left/0.mp4," + "9" * 5000, "a/" * 3000 + ",0", "a" * 200_000 + ",0")]
TEXTS += ["[" * 200_000, '{"a":' * 50_000, "9" * 10_000, '{"left": "' + "9" * 5000 + '"}', "a\n" * 10**5]
TEXTS += [";;;;\n" * 1000, "1;" + "x" * 10**6]


def labelled(files: Mapping[str, bytes], name: str, check: bool, folder: Path) -> int | None:
    """A list as --data: read as a study does, and looked through by `stabn-train --check`."""
    place = folder / "tmp" / "data"
    for each, content in files.items():
        (place / each).parent.mkdir(parents=True, exist_ok=True)
        (place / each).write_bytes(content)
    try:
        if check:
            stabn.train.main(["--check", "--data", str(place / name), "--workers", "0"])
            return None
        found = data.read(place / name)
        list(found.classes)
        data.mirrored(found.classes)
        clips = Clips(found, ["left", "right", "hold"], FRAMES, SIZE, crop="random")
        for number in range(min(4, len(clips))):
            assert clips[number].frames is not None or clips[number].problem
        return None
    finally:
        shutil.rmtree(place)


@attack("annotations", "lists and labels: damaged, hostile, endless")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    videos = {f"in/{k}.webm": stage.videos["vp8.webm"] for k in (1, 2, 3)}
    videos |= {f"in/{name}/{k}.mp4": stage.videos["h264.mp4"] for name in ("left", "right", "hold") for k in (0, 1)}
    for kind, texts in LISTS.items():
        files = {**videos, **{name: text.encode() for name, text in texts.items()}}
        first = next(iter(texts))
        for name, text in texts.items():
            for turn in range(FLIPS):
                damaged = {**files, name: flipped(text.encode(), chance)}
                yield Case(f"{kind} {name}, copy {turn}", partial(labelled, damaged, first, turn % 5 == 0))
            for text in TEXTS[number % 2 :: 2]:
                hostile = {**files, name: text.encode("utf-8", "surrogatepass")}
                yield Case(f"{kind} {name} is {text[:40]!r}", partial(labelled, hostile, first, False))
                yield Case(f"{kind} {name} is {text[:40]!r}, --check", partial(labelled, hostile, first, True))
    for raw in (b"\xff\xfe", b"\xff" * 100, b"path,label\n\xe9,0\n", bytes(range(256))):
        for kind, texts in LISTS.items():
            for name in texts:
                files = {**videos, **{each: text.encode() for each, text in texts.items()}, name: raw}
                yield Case(f"{kind} {name} is {raw[:9]!r}", partial(labelled, files, next(iter(texts)), False))


@attack("annotations", "lists for stabn-eval, stabn-ablate and stabn-train", seconds=120)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    good = {f"{each.parent.name}/{each.name}": each.read_bytes() for each in sorted(stage.labelled.rglob("*.mp4"))}

    def study(main: Any, extra: Sequence[str], folder: Path) -> int | None:
        arguments = ["--data", str(folder / "in" / "list.csv"), *extra]
        return main(arguments)

    for turn in range(6):
        text = flipped(LISTS["CSV"]["in/list.csv"].encode(), chance)
        files = {**good, "list.csv": text}
        options = [
            "--out",
            "study",
            "--checkpoint",
            str(stage.checkpoint),
            "--workers",
            "0",
            "--quiet",
            "--device",
            "cpu",
        ]
        for name, main in (("stabn-eval", evaluate.main), ("stabn-ablate", ablate.main)):
            yield Case(f"{name}, copy {turn}", partial(study, main, options), files)


# --------------------------------------------------------------------------------------- the page: results and edits


def _inside(function: str, arguments: dict[str, Any], *_: Any, **__: Any) -> Any:
    """`app.reader.apart` without a process of its own: this one is it."""
    module, name = function.split(":")
    told = getattr(importlib.import_module(module), name)(**arguments)
    return json.loads(json.dumps(told))


def reopened(name: str, folder: Path) -> None:
    """Opens a saved result as the page does, up to what is sent to the browser."""
    from app import actions, player, saved

    saved.apart = reader.apart = _inside  # type: ignore[assignment]
    session = saved.open_result(actions.Job(), str(folder / "in" / name), folder / "out")
    told = player.shown(session)
    json.dumps(told.model_dump(), allow_nan=False)


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()


@attack("uploads", "saved results: cut off, bits turned over, hostile")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    import app.player
    import app.saved  # noqa: F401

    content = stage.saved
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}

    def case(what: str, content: bytes) -> Case:
        return Case(what, partial(reopened, "a.zip"), {"a.zip": content})

    for percent, cut in cuts(content, number):
        yield case(f"at {percent} %", cut)
    for turn in range(FLIPS):
        yield case(f"copy {turn}", flipped(content, chance))
    manifest = json.loads(files["clip/manifest.json"])
    hostile: dict[str, bytes] = {}
    for path in _paths(manifest):
        for value in (*HOSTILE, "../../../etc/passwd", "a" * 10**5, [[]] * 3, "\ud800", -0.5, "\0"):
            changed = json.loads(json.dumps(manifest))
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            hostile[f"manifest {path} {value!r}"[:80]] = json.dumps(changed).encode()
    for what, text in list(hostile.items())[number % ROUNDS :: ROUNDS]:
        yield case(what, zipped({**files, "clip/manifest.json": text}))
    arrays = files["clip/stabn/explanation.npz"]
    for turn in range(FLIPS):
        yield case(f"arrays, copy {turn}", zipped({**files, "clip/stabn/explanation.npz": flipped(arrays, chance)}))
    with np.load(io.BytesIO(arrays)) as found:
        each = dict(found)
    for name, values in each.items():
        for what, changed in {
            "NaN": values.astype(object) if values.dtype.kind == "U" else np.full(values.shape, np.nan),
            "infinite": np.full(values.shape, np.inf),
            "negative": np.full(values.shape, -5, values.dtype if values.dtype.kind != "U" else int),
            "huge": np.full(values.shape, 1e300),
            "of 2**62": np.full(values.shape, 2**62),
            "empty": values[:0],
            "in more axes": values[None],
            "of objects": np.array([{}, {}], object),
            "of bytes": np.zeros(values.shape, "S4"),
            "complex": np.zeros(values.shape, complex),
        }.items():
            packed = io.BytesIO()
            np.savez(packed, **{**each, name: changed})
            yield case(f"{name} {what}", zipped({**files, "clip/stabn/explanation.npz": packed.getvalue()}))
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**12},), }}".encode().ljust(117) + b"\n"
        lie = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        inner = {f"{key}.npy": _npy(value) for key, value in each.items()} | {f"{name}.npy": lie}
        yield case(f"{name} of 10**12 values", zipped({**files, "clip/stabn/explanation.npz": zipped(inner)}))
    yield case("a bomb", zipped({**files, "clip/manifest.json": bytes(10**8)}))
    yield case(
        "a bomb of arrays", zipped({**files, "clip/stabn/explanation.npz": zipped({"spatial.npy": bytes(5 * 10**8)})})
    )
    yield case("a bomb of a clip", zipped({**files, "clip/clip/clip.mp4": bytes(5 * 10**8)}))
    yield case("paths", zipped({**files, "../../x": b"x", "/etc/x": b"x", "..\\..\\x": b"x"}))
    yield case("LZMA", zipped(files, zipfile.ZIP_LZMA))
    yield case("no zip", b"PK\x05\x06" + bytes(18))
    yield case("many names", zipped({f"{k}": b"" for k in range(50_000)}))


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value in what JSON holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from _paths(inner, (*above, key))


def _wild(chance: Generator, depth: int = 2) -> Any:
    """Any value that JSON can hold."""
    leaves = [*HOSTILE, 10**400, "\ud800", "=" * 9, "AAAA", "\u202e", "x" * 10**5, -0.0, 5e-324]
    kind = chance.integers(6)
    if depth and kind == 0:
        return [_wild(chance, depth - 1) for _ in range(chance.integers(5))]
    if depth and kind == 1:
        return {str(_wild(chance, 0))[:9]: _wild(chance, depth - 1) for _ in range(chance.integers(4))}
    return leaves[chance.integers(len(leaves))]


@attack("uploads", "edits of the attention, and messages with files")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    from app import actions, guard

    kept, reader.apart = reader.apart, _inside  # type: ignore[assignment]
    try:
        model = actions.Model("tiny", actions._opened(str(stage.checkpoint), "cpu"))
        session = actions.prepare(actions.Job(), model, str(stage.clip), stage.folder)
    finally:
        reader.apart = kept
    actions.look(actions.Job(), session, ["stabn"])
    cells = int(np.prod(session.first.spatial.shape))
    good = {
        "clip": session.id,
        "seq": 1,
        "spatial": base64.b64encode(bytes(cells)).decode(),
        "temporal": [0.5] * FRAMES,
    }
    good |= {"invert_spatial": True, "invert_temporal": False}

    def changed(told: list[Any], folder: Path) -> None:
        for each in told:
            try:
                found = actions.edit(session, each)
            except ValueError as error:
                if len(str(error)) > 300 or "codec" in str(error):
                    raise AssertionError(f"no sentence for people: {error}") from error
                continue
            assert abs(found.sum() - 1) < 1e-3

    def posted(told: list[bytes], folder: Path) -> None:
        for each in told:
            with contextlib.suppress(PermissionError):
                guard._by_path(each)

    for batch in range(10):
        edits: list[Any] = []
        for _ in range(FLIPS // 5):
            each = dict(good)
            for _ in range(chance.integers(1, 4)):
                each[list(good)[chance.integers(len(good))]] = _wild(chance)
            if chance.random() < 0.3:
                each["temporal"] = [_wild(chance, 0) for _ in range(FRAMES)]
            edits.append(each if chance.random() < 0.9 else _wild(chance))
        yield Case(f"edits {batch}", partial(changed, [each for each in edits if isinstance(each, dict)]))
        bodies = [json.dumps({"data": [_wild(chance), {"path": _wild(chance)}]}).encode() for _ in range(FLIPS // 5)]
        bodies += [flipped(each, chance) for each in bodies]
        yield Case(
            f"messages {batch}", partial(posted, [*bodies, b"[" * 10**6, b'{"path": "' + b"../" * 10**5 + b'"}'])
        )


# --------------------------------------------------------------------------------------------------- command lines

COMMANDS: dict[str, Callable[..., Any]] = {
    "stabn-explain": cli.main,
    "stabn-eval": evaluate.main,
    "stabn-ablate": ablate.main,
    "stabn-benchmark": benchmark.main,
    "stabn-train": stabn.train.main,
}
# What random options are drawn from: numbers, and words that some option knows. No great number of processes is asked
# for, as that is granted.
NUMBERS = ["-1", "0", "1", "2", "3", "0.5", "1e-9", "-0.0", "1e400", "nan", "inf", "9" * 30, "0x10", "٣", "", " "]
WORDS = (
    "x cpu cuda:99 auto mps stabn all stabn,grad_cam , random none both synthetic plain spatial temporal core True "
    "../../.. /proc/x /dev/null / ~ * - -- \udcff torchvision:r3d_18 torchvision:x os:system os:getcwd no.such:thing "
    "json:dumps NCTHW"
)
FEW = ("--workers", "--processes", "--threads")


@attack("command lines", "random options of five commands", seconds=240)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    tiny = {
        "stabn-explain": [str(stage.clip), "--checkpoint", str(stage.checkpoint), "--out", "made"],
        "stabn-eval": ["--data", str(stage.labelled), "--checkpoint", str(stage.checkpoint), "--out", "made"],
        "stabn-ablate": ["--data", str(stage.labelled), "--checkpoint", str(stage.checkpoint), "--out", "made"],
        "stabn-benchmark": [
            *("--data", str(stage.labelled), "--checkpoint", str(stage.checkpoint), "--out", "made", "--clips", "1"),
            *("--methods", "stabn", "--curve", "2", "--orders", "1", "--processes", "1", "--precision", "fp32"),
        ],
        "stabn-train": ["--out", "made.safetensors", *TRAIN],
    }
    for command, main in COMMANDS.items():
        options = _options(command)

        def act(arguments: list[str], folder: Path, main: Any = main) -> int | None:
            return main(arguments)

        for _ in range(FLIPS // 2):
            arguments = list(tiny[command])
            for _ in range(int(chance.integers(1, 4))):
                option = options[chance.integers(len(options))]
                values = (*NUMBERS, *WORDS.split(), str(stage.clip), str(stage.checkpoint), str(stage.labelled))
                value = values[chance.integers(len(values))]
                if option in FEW:
                    value = ("-1", "0", "1", "x", "nan", "")[chance.integers(6)]
                elif option == "--out" and (value.startswith("/") or ".." in value):
                    value = "/dev/null"  # else it would be written elsewhere on this machine, as asked
                arguments += [option] if chance.random() < 0.2 else [option, value]
            yield Case(f"{command} {' '.join(arguments[2:])}", partial(act, arguments))


def _options(command: str) -> list[str]:
    """The options that the help of a command names."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        COMMANDS[command](["--help"])
    return sorted(set(re.findall(r"--[a-z][a-z-]+", shown.getvalue())) - {"--help"})


# --------------------------------------------------------------------------------------------------------- numbers


def answers(network: STABN, frames: int, methods: Sequence[str], values: np.ndarray, folder: Path) -> None:
    """Each method explains a clip: values that are finite, or a sentence."""
    said = []
    for method in methods:
        try:
            found = explain(network, Clip.from_array(values), method)
        except ValueError as error:
            said.append(f"{method}: {error}")
            continue
        for name in ("spatial", "temporal", "probabilities"):
            assert np.isfinite(getattr(found, name)).all(), f"{method}: {name} is not finite"
        assert abs(found.probabilities.sum() - 1) < 1e-3, f"{method}: probabilities"
    if len(said) == len(methods):
        raise ValueError(said[0])


@attack("numbers", "1 and 1,000 classes, T of 1 and 128, extreme weights, black and white clips", seconds=240)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    torch = stage.torch
    from safetensors.torch import save

    from stabn.model import STABN, Config

    shape: dict[str, Any] = {"layers": (1, 1, 1, 1), "block": "basic", "stem": (3, 3, 3), "pool": False, "width": 2}
    quick = [
        name for name in METHODS if name not in ("meaningful_perturbation", "extremal_perturbation", "rise", "lime")
    ]
    methods = quick if number % 2 else [*list(METHODS)[number % 7 :: 7], "stabn", "grad_cam"]
    for classes, frames in ((1, 4), (2, 1), (1000, 4), (3, 128), (1, 1)):
        network = STABN(
            Config(classes=classes, frames=frames, size=16, **shape), [f"c{k}" for k in range(classes)]
        ).eval()
        for name, value in (("noise", None), ("black", 0), ("white", 255)):
            given = chance.integers(0, 256, (frames, 20, 24, 3), np.uint8)
            values = given if value is None else np.full_like(given, value)
            yield Case(f"{classes} classes, T {frames}, {name}", partial(answers, network, frames, methods, values))
    for scale in (0.0, 1e-30, 1e10, 1e30, 3e38, float("nan"), float("inf")):
        network = STABN(Config(classes=3, frames=4, size=16, **shape), ["a", "b", "c"]).eval()
        with torch.no_grad():
            for each in network.parameters():
                each.copy_(torch.nan_to_num(each.sign() * scale) if scale == scale and scale < 1e39 else each * scale)
        values = chance.integers(0, 256, (4, 20, 24, 3), np.uint8)
        yield Case(f"weights of {scale:g}", partial(answers, network, 4, methods, values))

        def through(network: STABN, folder: Path) -> int:
            state = {name: each.contiguous() for name, each in network.state_dict().items()}
            header = {"format": "stabn", "version": "1", "config": json.dumps(asdict(network.config))}
            header |= {"classes": json.dumps(network.classes), "metadata": "{}"}
            (folder / "out" / "a.safetensors").write_bytes(save(state, header))
            arguments = [str(stage.clip), "--checkpoint", "a.safetensors", "--out", "r", "--quiet"]
            code = cli.main(arguments)
            finished(folder / "out" / "r")
            return code

        yield Case(f"weights of {scale:g}, stabn-explain", partial(through, network))
