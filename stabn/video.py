"""Videos in and out: the only reader and writer of the project.

Every file that a user brings is opened by PyAV behind a check of its container: a regular local file, in one
of the formats of `CONTAINERS`. A playlist under any name, which makes readers open other files, is refused.

Conventions: a frame is uint8 RGB (H, W, 3) with the rotation of the file applied; sizes are (height, width)
in stored pixels (a pixel aspect ratio is not applied, alpha is dropped, HDR is not tone-mapped; YUV without a
tag is read as BT.601, as by OpenCV and decord). Time stamps are seconds since the first frame, in display
order, strictly increasing; index i is the i-th frame in display order. Whatever is wrong with a file raises
`VideoError`, one sentence.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import stat
import sys
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from operator import itemgetter
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from numpy.typing import ArrayLike, NDArray

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,ogg,flv,mpeg,gif"
PICTURES = "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe"
_MAGIC = {b"\xff\xd8": "jpeg_pipe", b"\x89PNG": "png_pipe", b"BM": "bmp_pipe", b"RIFF": "webp_pipe"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FOLDER_FPS = 12.0  # frames/s of a folder of images: the rate of Something-Something V1
MAX_PIXELS = 8192 * 8192  # per frame: bounds the memory that a header can ask for
MAX_FRAMES = sys.maxsize  # per file: a server bounds its work by it
TIMEOUT = 10.0  # seconds for opening a file and for each read
TICK = Fraction(1, 90_000)  # seconds, time base of written videos: keeps any frame rate to 6 microseconds
SEEK = 16  # frames: jumping over fewer costs more than decoding them

PathLike = str | os.PathLike[str]
Frames = NDArray[np.uint8]


class VideoError(ValueError):
    """What is wrong with a video, in one sentence that names the file and the reason."""

    def __init__(self, path: PathLike, reason: str = "") -> None:
        super().__init__(f"{os.fspath(path)}: {reason}" if reason else path)  # one argument: so it can be pickled


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """The facts of a video, from its container and its first frame; nothing else is decoded for them."""

    path: str
    source_size: tuple[int, int]  # (H, W) after rotation
    rotation: int  # degrees counter-clockwise, -90, 0, 90 or 180, by which the stored picture is turned
    has_audio: bool
    codec: str  # FFmpeg's name, for example "h264"; "images" for a folder
    fps: float = 0.0  # mean frames per second
    duration: float = 0.0  # seconds, the last frame's own duration included
    frame_count: int = 0
    timestamps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # (F,) seconds
    notes: tuple[str, ...] = ()  # what is odd about the file, in words
    time_base: Fraction = field(default=TICK, repr=False)  # seconds per unit of `pts`
    pts: tuple[int, ...] = field(default=(), repr=False)  # (F,) the container's own time stamps
    keyframes: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # (pts, position to seek to), sorted
    counted: bool = field(default=False, repr=False)  # `pts` are counted as frames decode: the file has none
    files: tuple[str, ...] = field(default=(), repr=False)  # the images of a folder


@dataclass(frozen=True, eq=False)
class Clip:
    """T frames of a video, with what it takes to put a result back onto the source."""

    frames: Frames  # (T, H, W, 3) RGB
    timestamps: NDArray[np.float64]  # (T,) seconds since the video's first frame
    frame_indices: NDArray[np.int64]  # (T,) in display order; repeated if the source has fewer than T
    source_size: tuple[int, int]  # (H, W) after rotation
    fps: float  # of the source, mean
    duration: float  # of the source, seconds
    frame_count: int  # of the source
    rotation: int = 0  # as in VideoInfo; already applied
    path: str = ""
    has_audio: bool = False
    notes: tuple[str, ...] = ()  # what could not be read, in words

    @classmethod
    def from_array(cls, frames: Frames, fps: float = FOLDER_FPS, path: str = "array") -> Clip:
        """A clip from uint8 RGB frames (T, H, W, 3) in memory, T >= 1; the array is not copied."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8:
            raise TypeError(f"`frames` are {frames.dtype}, they must be uint8 RGB in 0..255")
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"`frames` have shape {frames.shape}, they must be (T, H, W, 3) and not empty")
        rate, count = _rate("fps", fps), len(frames)
        indices = np.arange(count)
        return cls(frames, indices / rate, indices, frames.shape[1:3], rate, count / rate, count, path=path)


def probe(path: PathLike, *, fps: float = FOLDER_FPS) -> VideoInfo:
    """The facts of a video file, or of a folder of images (in natural order) shown at `fps` frames/s.

    Reads the container's time stamps without decoding, and decodes one frame (only frames tell the rotation).
    Raises VideoError if this is no video of two frames or more that can be read here.
    """
    name = os.fsdecode(path)
    if os.path.isdir(name):
        return _probe_folder(name, _rate("fps", fps))
    with opened(name) as (container, stream):
        stream.thread_type = "SLICE"  # frame threads read far ahead before they give the first frame
        first: av.VideoFrame | None = None
        stamps: list[tuple[int, int]] = []
        keys: list[tuple[int, int]] = []
        packets = 0
        promised, matroska = stream.frames, "matroska" in container.format.name
        complete = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
        for packet in _packets(container, stream):
            if first is None:
                first = next(iter(_decoded(packet) or ()), None)
            if not packet.size:
                continue
            packets += 1
            if packet.is_discard:
                promised -= 1  # cut away by an edit list: never shown
            elif packet.pts is None:
                complete = False
            else:
                stamps.append((packet.pts, packet.duration or 0))
                if packet.is_keyframe:  # Matroska's index is by pts, that of the others by dts
                    keys.append((packet.pts, packet.pts if packet.dts is None or matroska else packet.dts))
        if packets > MAX_FRAMES:  # before all of them are decoded
            raise VideoError(name, f"has {packets} frames: at most {MAX_FRAMES} are read")
        rate = stream.average_rate or stream.guessed_rate or 25
        codec = stream.codec_context.codec.canonical_name
        info = _described(name, first, codec, bool(container.streams.audio))
        info = replace(info, fps=float(rate), time_base=stream.time_base or TICK)
        if (videos := len(_videos(container))) > 1:
            info = replace(info, notes=(f"has {videos} video streams, the first is read",))
    if not complete:  # AVI does not say when a frame is shown, only decoding tells the order
        return _scan(info)
    if promised > len(stamps) + 1:  # some AVI headers count one frame too many
        note = f"its header promises {promised} frames, it has {len(stamps)}"
        info = replace(info, notes=(*info.notes, note))
    return _timed(replace(info, keyframes=tuple(sorted(keys))), stamps)


def read_clip(
    path: PathLike | VideoInfo,
    frames: int | Sequence[int],
    *,
    size: int | None = None,
    window: tuple[float, float] | None = None,
    fps: float = FOLDER_FPS,
    sampling: Literal["spread", "middle"] = "spread",
) -> Clip:
    """`frames` = T frames spread over a video, a folder of images (shown at `fps`), or a window of either.

    The n frames of the range are cut into T equal segments, and the frame at the centre of each is taken:
    index floor((k + 1/2) n / T), k = 0..T-1; if n < T, frames repeat. `sampling` "middle" takes T consecutive frames
    from the middle instead, the first with index floor((n - T) / 2); if n < T, all of them, then the first one again
    and again; `Clip.notes` says what was not looked at or repeated. A list of indices takes these frames.
    `size` is the short side in pixels (the decoder resizes, aspect kept; None: source size). `window` is
    (start, end) in seconds, start included, end excluded; a window without a frame shows the one before it.
    `path` may be the result of `probe`, which saves probing again for every window. Frames that do not decode
    are left out, and `Clip.notes` says so.
    """
    info = path if isinstance(path, VideoInfo) else probe(path, fps=fps)
    for damaged in (False, True):
        info = _scan(info) if damaged else info
        indices = _indices(info, frames, window, sampling)
        wanted = [info.pts[i] for i in indices]
        found = {pts: _rgb(info, frame, size) for pts, frame in _pictures(info, sorted(set(wanted)))}
        if len(found) == len(set(wanted)):
            clip = _clip(info, indices, np.stack([found[pts] for pts in wanted]))
            told = _unseen(clip, window) if sampling == "middle" and isinstance(frames, int | np.integer) else ()
            return replace(clip, notes=(*clip.notes, *told))
    raise VideoError(info.path, "its time stamps contradict each other: it is damaged")


def read_clip_fast(
    path: PathLike | VideoInfo,
    frames: int | Sequence[int],
    *,
    size: int | None = None,
    window: tuple[float, float] | None = None,
) -> Clip:
    """`read_clip` by decord, for training data; by PyAV where decord is missing, fails or disagrees."""
    info = path if isinstance(path, VideoInfo) else probe(path)
    try:
        import decord
    except (ImportError, OSError):  # its wheels are for x86-64 only
        return read_clip(info, frames, size=size, window=window)
    indices = _indices(info, frames, window)
    height, width = _resized(info.source_size, size)
    decord.logging.set_level(decord.logging.QUIET)
    with contextlib.suppress(decord.DECORDError):
        if not (info.files or info.notes):
            reader = decord.VideoReader(info.path, width=width, height=height, num_threads=1)
            seconds = reader.get_frame_timestamp(range(len(reader)))[:, 0]
            same = len(seconds) == info.frame_count
            if same and np.abs(seconds - seconds[0] - info.timestamps).max() < 1e-3:
                pictures = reader.get_batch(indices).asnumpy()
                reader.seek(0)  # or its read-ahead stays in memory
                if pictures.shape[1:3] == (height, width):
                    return _clip(info, indices, pictures)
    return read_clip(info, frames, size=size, window=window)


def iter_frames(
    path: PathLike | VideoInfo,
    start: float = 0.0,
    end: float = math.inf,
    size: int | None = None,
    *,
    fps: float = FOLDER_FPS,
) -> Iterator[tuple[float, Frames]]:
    """Every frame from `start` (included) to `end` (excluded), seconds, as (time stamp, uint8 RGB (H, W, 3)).

    One frame is in memory at a time. `size` as in `read_clip`. Frames that do not decode are left out, time
    stamps that do not increase are moved by a tick. The file is closed when the iterator ends or is dropped.
    """
    info = path if isinstance(path, VideoInfo) else probe(path, fps=fps)
    _resized(info.source_size, size)  # raises here, not at the first frame

    def pictures() -> Iterator[tuple[float, Frames]]:
        time, begin = -math.inf, int(np.searchsorted(info.timestamps, start))
        for pts, frame in _pictures(info, start=info.pts[begin]) if begin < info.frame_count else ():
            time = max(_seconds(info, pts), time + float(TICK))
            if time >= end:
                return
            yield time, _rgb(info, frame, size)

    return pictures()


def write_video(path: PathLike, frames: Sequence[Frames] | Frames, timestamps: ArrayLike, **options: Any) -> None:
    """Write uint8 RGB frames (H, W, 3) at `timestamps`: seconds for each, or one rate in frames/s.

    `options` are those of VideoWriter.
    """
    stamps = np.asarray(timestamps, np.float64)
    if not stamps.ndim:
        stamps = np.arange(len(frames)) / _rate("timestamps", float(stamps))
    if stamps.shape != (len(frames),):
        raise ValueError(f"`timestamps` has shape {stamps.shape}, {len(frames)} frames need one each")
    height, width = (*np.shape(frames[0]), 0, 0)[:2] if len(frames) else (0, 0)
    with VideoWriter(path, width, height, **options) as writer:
        for frame, time in zip(frames, stamps.tolist(), strict=True):
            writer.write(frame, time)


class VideoWriter:
    """Writes an H.264 mp4 that browsers play: yuv420p, BT.709, faststart; an odd side is padded by its edge.

    A context manager: the file appears under its name when the block ends well; an exception leaves nothing.
    `audio_from` is a video, or the result of `probe`, whose audio goes along (AAC and MP3 are copied, others
    become AAC) on the same clock: second 0 is that video's first frame. Unreadable audio is left out.
    """

    def __init__(
        self,
        path: PathLike,
        width: int,
        height: int,
        *,
        audio_from: PathLike | VideoInfo | None = None,
        crf: int = 26,  # chosen with the preset, by the table in docs/performance.md
        preset: str = "superfast",
    ) -> None:
        self.path, self.width, self.height = os.fsdecode(path), width, height
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise VideoError(path, f"cannot have frames of {width} x {height} (1 to {MAX_PIXELS} pixels)")
        # close keyframes for scrubbing; no B-frames: mp4 then holds each frame's own duration, exactly
        self._options = {"crf": str(crf), "preset": preset, "g": "48", "bf": "0"}
        self._audio_from = audio_from
        self._open = False

    def __enter__(self) -> Self:
        self._part = f"{os.path.abspath(self.path)}.{secrets.token_hex(4)}.part"
        self._held: av.VideoFrame | None = None  # the last frame, until the next tells how long it is shown
        self._last, self._gap = -math.inf, round(0.04 / TICK)
        self._lengths: dict[int, int] = {}  # pts -> duration of the frames inside the encoder
        with _saying(self.path, "cannot be written"):
            # the fine time scale is for edit lists, which shift tracks against each other
            movflags = {"movflags": "+faststart", "movie_timescale": str(TICK.denominator)}
            self._output = av.open(self._part, "w", format="mp4", options=movflags)
            self._stream = stream = self._output.add_stream("libx264", rate=30, options=self._options)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        stream.color_range = 1  # limited
        stream.colorspace = stream.color_primaries = stream.color_trc = 1  # BT.709
        self._audio, self._heard = _audio(self._audio_from, self._output), -math.inf
        self._listen(-1.0)  # its stream must be known before the first frame is written
        self._open = True
        return self

    def write(self, frame: Frames, timestamp: float) -> None:
        """Add one uint8 RGB frame (height, width, 3), shown from `timestamp` on: seconds, increasing."""
        frame, shape = np.asarray(frame), (self.height, self.width, 3)
        if not self._open:
            raise ValueError("VideoWriter.write works inside its `with` block only")
        if frame.dtype != np.uint8 or frame.shape != shape:
            raise ValueError(f"`frame` is {frame.dtype} {frame.shape}, this video takes uint8 {shape}")
        if not (0 <= timestamp < math.inf and timestamp > self._last):
            raise ValueError(f"`timestamp` is {timestamp} after {self._last}, it must be 0 or more and grow")
        pts = round(timestamp / TICK)
        if self._held is not None and self._held.pts is not None:
            pts = max(pts, self._held.pts + 1)
            self._gap = pts - self._held.pts
            self._encode()
        if self.height % 2 or self.width % 2:
            frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        # `frame` is only lent: what is held is the picture that `reformat` makes of it
        self._held = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), "rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
        )
        self._held.time_base, self._held.pts, self._last = TICK, pts, timestamp

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        try:
            if kind is None:
                if self._held is None:
                    raise VideoError(self.path, "no frame was written to it")
                self._encode()  # the last frame is shown as long as the one before
                self._mux(None)
                with _saying(self.path, "cannot be written"):
                    self._output.close()
                    os.replace(self._part, self.path)
        finally:
            self._audio.close()
            with contextlib.suppress(av.FFmpegError, OSError):
                self._output.close()
            with contextlib.suppress(OSError):
                os.unlink(self._part)

    def _encode(self) -> None:
        if self._held is not None and self._held.pts is not None:
            self._lengths[self._held.pts] = self._gap
            self._mux(self._held)
            self._listen(float((self._held.pts + self._gap) * TICK))

    def _mux(self, frame: av.VideoFrame | None) -> None:
        with _saying(self.path, "cannot be written"):
            for packet in self._stream.encode(frame):
                packet.duration = self._lengths.pop(packet.pts or 0, 0)
                self._output.mux(packet)

    def _listen(self, until: float) -> None:
        """Let the audio keep pace with the picture up to `until`, seconds; what goes wrong only ends it."""
        try:
            while self._heard < until:
                self._heard = next(self._audio, math.inf)
        except Exception:
            self._heard = math.inf


def _audio(source: PathLike | VideoInfo | None, output: OutputContainer) -> Generator[float, None, None]:
    """Adds the audio of `source` to `output`; yields the time of each packet, in seconds, and writes it."""
    info = source if isinstance(source, VideoInfo) or source is None else probe(source)
    if info is None or not info.has_audio:
        return
    with opened(info.path) as (container, _):
        stream = container.streams.audio[0]
        context, base = stream.codec_context, stream.time_base or TICK
        if context is None:
            return  # no decoder
        shift = round(info.pts[0] * info.time_base / base)
        codec, target = context.codec.canonical_name, None
        if codec == "mp3" or (codec == "aac" and context.extradata):
            target = output.add_stream_from_template(stream)
            for packet in _packets(container, stream):
                if not packet.size or packet.pts is None or packet.pts < shift or _decoded(packet) is None:
                    continue  # damaged, or before the picture
                packet.pts = packet.dts = packet.pts - shift
                packet.stream = target
                yield float(packet.pts * base)
                output.mux(packet)
            return
        rates = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
        rate = context.sample_rate if context.sample_rate in rates else rates[-1]
        layout = "mono" if context.channels == 1 else "stereo"
        resampler = av.AudioResampler("fltp", layout, rate)
        for packet in _packets(container, stream):
            for frame in _decoded(packet) or ():
                if frame.pts is None or frame.pts < shift:
                    continue
                frame.pts -= shift
                target = target or output.add_stream("aac", rate, layout=layout)
                for coded in (p for piece in resampler.resample(frame) for p in target.encode(piece)):
                    yield float((coded.pts or 0) * coded.time_base)
                    output.mux(coded)
        for coded in target.encode(None) if target else ():
            yield float((coded.pts or 0) * coded.time_base)
            output.mux(coded)


@contextlib.contextmanager
def _saying(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, UnknownCodecError) as error:
        raise VideoError(path, f"{what} ({_reason(error)})") from None


@contextlib.contextmanager
def opened(path: str, formats: str = CONTAINERS) -> Iterator[tuple[InputContainer, Any]]:
    """The container and the video stream of a regular local file in one of `formats`."""
    try:
        facts = os.stat(path)
        regular = stat.S_ISREG(facts.st_mode)
        with open(path if regular else os.devnull, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise VideoError(path, "does not exist") from None
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be read ({_reason(error)})") from None
    if not regular:
        raise VideoError(path, "is not a regular file")
    if not head:
        raise VideoError(path, "is empty (0 bytes)")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"#EXTM3U", b"ffconcat")):
        raise VideoError(path, "is a playlist, not a video: a playlist could open other files")
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        name = os.path.abspath(path)  # "a:b.mp4" would be read as protocol "a"
        # else a JPEG of more than 2 KB is taken for image2, a sequence of numbered files, which is refused
        kind = next((_MAGIC[start] for start in _MAGIC if formats == PICTURES and head.startswith(start)), None)
        container = av.open(name, format=kind, options=options, timeout=TIMEOUT, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError):
        known = formats.replace("_pipe", "").replace(",", ", ")
        reason = f"is no video: damaged, cut off, audio only, or in none of the formats read here ({known})"
        raise VideoError(path, reason) from None
    with container, _saying(path, "cannot be decoded"):
        if not container.streams:
            raise VideoError(path, "has no streams: there is nothing in it")
        if not _videos(container):
            raise VideoError(path, "has no video stream")
        stream = _videos(container)[0]
        if stream.codec_context is None:
            raise VideoError(path, "has a video codec that cannot be decoded here")
        if not 0 < stream.height * stream.width <= MAX_PIXELS:
            limit = f"1 to {MAX_PIXELS} pixels are read"
            raise VideoError(path, f"has frames of {stream.width} x {stream.height}: {limit}")
        yield container, stream


def _videos(container: InputContainer) -> list[Any]:
    covers = Disposition.attached_pic  # of a song
    return [stream for stream in container.streams.video if not stream.disposition & covers]


def _packets(container: InputContainer, stream: Any) -> Iterator[av.Packet[Any]]:
    with contextlib.suppress(av.FFmpegError):  # where a file cannot be read any further is its end
        yield from container.demux(stream)


def _decoded(packet: av.Packet[Any]) -> list[Any] | None:
    """The frames that `packet` completes; None if it is damaged."""
    with contextlib.suppress(av.FFmpegError):
        return packet.decode()
    return None


def _pictures(
    info: VideoInfo, wanted: Sequence[int] | None = None, start: int | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) in display order: what decodes of the sorted `wanted` pts, or of all from `start` on."""
    if info.files:
        for index in range(start or 0, len(info.files)) if wanted is None else wanted:
            if frame := _picture(info.files[index]):
                if _shown(frame) != info.source_size:
                    sizes = "is {1} x {0} pixels, the first image of its folder {3} x {2}: one size is needed"
                    raise VideoError(info.files[index], sizes.format(*_shown(frame), *info.source_size))
                yield index, frame
        return
    with opened(info.path) as (container, stream):
        stream.thread_type = "AUTO"
        if wanted is None:
            frames = _stream(info, container, stream, start)
            yield from (item for item in frames if start is None or item[0] >= start)
            return
        queue = list(reversed(wanted))
        while queue:
            for pts, frame in _stream(info, container, stream, queue[-1]):
                if pts < queue[-1]:
                    continue
                while queue and queue[-1] < pts:
                    queue.pop()  # it does not decode
                if queue and queue[-1] == pts:
                    yield queue.pop(), frame
                if not queue:
                    return
                key = _key(info, queue[-1])
                if key is not None and bisect_right(info.pts, key[0]) - bisect_right(info.pts, pts) > SEEK:
                    break
            else:
                return


def _stream(
    info: VideoInfo, container: InputContainer, stream: Any, goal: int | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) of what decodes, from the keyframe before the frame at pts `goal` on."""

    def decode() -> Iterator[tuple[int, av.VideoFrame]]:
        frames = (frame for packet in _packets(container, stream) for frame in _decoded(packet) or ())
        for count, frame in enumerate(frames):
            if info.counted or frame.pts is not None:
                yield (count if info.counted else frame.pts), frame

    def seek(position: int) -> None:
        with contextlib.suppress(av.FFmpegError):
            container.seek(position, stream=stream)

    key = _key(info, goal)
    if key is None or goal is None:
        yield from decode()
        return
    seek(key[1])
    frames = decode()
    first = next(frames, None)
    if first is None or first[0] > goal:  # some containers without an index seek too far: from the start, then
        seek(info.pts[0] - round(60 / info.time_base))
        yield from decode()
    else:
        yield first
        yield from frames


def _key(info: VideoInfo, goal: int | None) -> tuple[int, int] | None:
    """(pts, where to seek) of the last keyframe before the frame at pts `goal`; None: the start of the file."""
    at = 0 if goal is None else bisect_right(info.keyframes, goal, key=itemgetter(0))
    return info.keyframes[at - 1] if at > 1 else None


def _picture(path: str) -> av.VideoFrame | None:
    with contextlib.suppress(VideoError), opened(path, PICTURES) as (container, stream):
        frames = (frame for packet in _packets(container, stream) for frame in _decoded(packet) or ())
        return next(frames, None)
    return None


def _probe_folder(path: str, rate: float) -> VideoInfo:
    with _saying(path, "cannot be read"):
        names = [n for n in os.listdir(path) if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not names:
        raise VideoError(path, f"is a folder without images ({', '.join(SUFFIXES)})")
    names.sort(key=lambda n: ([int(p) if p.isdecimal() else p.lower() for p in re.split(r"(\d+)", n)], n))
    files = tuple(os.path.join(path, name) for name in names)
    first = next((frame for file in files if (frame := _picture(file))), None)
    info = replace(_described(path, first, "images", False), files=files, time_base=1 / Fraction(rate))
    return _timed(info, [(i, 1) for i in range(len(files))])


def _described(path: str, first: av.VideoFrame | None, codec: str, has_audio: bool) -> VideoInfo:
    if first is None:
        raise VideoError(path, "none of its frames can be decoded: it is damaged or cut off")
    return VideoInfo(path, _shown(first), (_turns(first) * 90 + 90) % 360 - 90, has_audio, codec)


def _timed(info: VideoInfo, stamps: Sequence[tuple[int, int]]) -> VideoInfo:
    """`info` with the time stamps (pts, duration) of its frames."""
    if len(stamps) < 2:
        raise VideoError(info.path, f"has {('no', 'one')[len(stamps)]} frame: a motion needs at least two")
    stamps = sorted(stamps)
    count = len(stamps)
    info = replace(info, pts=tuple(pts for pts, _ in stamps), frame_count=count)
    seconds = np.array([_seconds(info, pts) for pts in info.pts])
    for i in range(1, count):
        seconds[i] = max(seconds[i], seconds[i - 1] + float(TICK))
    last = float(stamps[-1][1] * info.time_base) or float(seconds[-1]) / (count - 1)
    duration = float(seconds[-1]) + last
    return replace(info, timestamps=seconds, duration=duration, fps=count / duration)


def _seconds(info: VideoInfo, pts: int) -> float:
    return (pts - info.pts[0]) * info.time_base.numerator / info.time_base.denominator


def _scan(info: VideoInfo) -> VideoInfo:
    """`info` for the frames that decode, found by decoding all of them from the start."""
    known = replace(info, keyframes=(), counted=not info.files)
    frames = [(number, frame.pts) for number, frame in _pictures(known)]
    stamps = [number if pts is None or info.files else pts for number, pts in frames]
    if all(a < b for a, b in pairwise(stamps)):
        known = replace(known, counted=False)
    else:
        stamps = list(range(len(frames)))
        known = replace(known, time_base=1 / max(Fraction(1, 1000), Fraction(info.fps).limit_denominator(10_000)))
    if (lost := info.frame_count - len(frames)) > 0:
        note = f"{lost} of its {info.frame_count} frames do not decode"
        known = replace(known, notes=(*info.notes, note))
    return _timed(known, [(pts, 0) for pts in stamps])


def _indices(
    info: VideoInfo, frames: int | Sequence[int], window: tuple[float, float] | None, sampling: str = "spread"
) -> NDArray[np.int64]:
    """The frames that `read_clip` takes; its docstring has the rule."""
    if sampling not in ("spread", "middle"):
        raise ValueError(f"`sampling` is {sampling!r}, it must be spread or middle")
    first, stop = 0, info.frame_count
    if window is not None:
        start, end = window
        if not (0 <= start < end and start < info.duration):
            rule = f"0 <= start < end and start < {info.duration:.3f} s, its duration, are needed"
            raise VideoError(info.path, f"has no window from {start} to {end} s: {rule}")
        first, stop = np.searchsorted(info.timestamps, [start, end]).tolist()
        first = min(first, stop - 1)  # the frame on display, where none begins in the window
    if isinstance(frames, int | np.integer) and not isinstance(frames, bool):
        if frames < 1:
            raise ValueError(f"`frames` is {frames}, it must be 1 or more")
        if sampling == "middle":
            offset = max(0, stop - first - frames) // 2 + np.arange(frames)
            return first + np.where(offset < stop - first, offset, 0)
        return first + (2 * np.arange(frames) + 1) * (stop - first) // (2 * frames)
    indices = np.asarray(frames)
    if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
        raise ValueError(f"`frames` is {frames!r}, it must be a number of frames or a list of frame indices")
    if indices.min() < first or indices.max() >= stop:
        raise VideoError(info.path, f"has frames {first} to {stop - 1} here, asked for {indices.tolist()}")
    return indices.astype(np.int64)


def _unseen(clip: Clip, window: tuple[float, float] | None) -> list[str]:
    """What the sampling "middle" left out or repeated, in words that are the same for every window."""
    count, seconds = len(clip.frames), np.unique(clip.timestamps)
    if len(seconds) < count:
        return [f"{'the video' if window is None else 'a window'} has fewer than {count} frames: its first is repeated"]
    if window is not None:
        return [f"looked at {count} frames in a row only, in the middle of each window"]
    whole = count == clip.frame_count
    return [] if whole else [f"looked at {count} frames in a row only, {seconds[0]:.2f} to {seconds[-1]:.2f} s"]


def _clip(info: VideoInfo, indices: NDArray[np.int64], pictures: Frames) -> Clip:
    facts = (info.source_size, info.fps, info.duration, info.frame_count, info.rotation, info.path)
    return Clip(pictures, info.timestamps[indices], indices, *facts, info.has_audio, info.notes)


def _resized(source: tuple[int, int], size: int | None) -> tuple[int, int]:
    if size is None:
        return source
    height, width = (max(1, round(side * size / min(source))) for side in source)
    if size < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"`size` {size} gives frames of {width} x {height}, not of 1 to {MAX_PIXELS} pixels")
    return height, width


def _rgb(info: VideoInfo, frame: av.VideoFrame, size: int | None) -> Frames:
    (height, width), turns = _resized(info.source_size, size), _turns(frame)
    if turns % 2:
        height, width = width, height
    with _saying(info.path, "has pictures that cannot be converted to RGB"):
        picture = frame.to_ndarray(format="rgb24", width=width, height=height)  # bilinear, as decord's
    return np.ascontiguousarray(np.rot90(picture, turns))


def _turns(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) % 4  # quarter turns counter-clockwise that PyAV leaves to us


def _shown(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)


def _rate(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` is {value}, it must be more than 0 frames per second")
    return float(value)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0].rstrip(".")
