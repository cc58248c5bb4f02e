"""Tiny videos whose every frame is known, made by PyAV itself (not by the code under test), and a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest


def pattern(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 RGB (count, height, width, 3): smooth colours, brighter blue with time, a block that moves right.

    The top left corner is dark and the bottom right one is not, so that rotation shows.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = np.empty((count, height, width, 3), np.float32)
    for i, frame in enumerate(frames):
        frame[..., 0] = 30 + 180 * x / width
        frame[..., 1] = 30 + 180 * y / height
        frame[..., 2] = 40 + 160 * i / count
        left = (width - width // 4) * i // max(1, count - 1)
        frame[height // 3 : height // 2, left : left + width // 4] = 220, 60, 60
    return frames.round().astype(np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    stamps: Any = None,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    audio: str | None = None,
    container: str | None = None,
    movflags: str = "",
    **options: str,
) -> Path:
    """Encode uint8 RGB (T, H, W, 3), stored as they are, shown turned by `rotation` degrees counter-clockwise.

    `stamps` in seconds (25 frames/s by default); `audio` is the codec of a 440 Hz tone of the same length.
    """
    rate, base = 25, Fraction(1, 25) if stamps is None else Fraction(1, 90_000)
    ticks = range(len(frames)) if stamps is None else [round(stamp / base) for stamp in stamps]
    with av.open(str(path), "w", format=container, options={"movflags": movflags} if movflags else {}) as output:
        if codec == "libx264":
            options = {"crf": "8", **options}
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = stream.time_base = base
        if codec != "libx264":
            stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio, rate=48_000, layout="mono") if audio else None
        output.start_encoding()
        for tick, array in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            frame.pts, frame.time_base = tick, base
            output.mux(stream.encode(frame.reformat(format=pix_fmt)))
        output.mux(stream.encode(None))
        if sound is not None:
            length = round(48_000 * float((ticks[-1] + 1) * base))
            tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(length) / 48_000)).astype(np.int16)
            for start in range(0, length, 960):
                piece = av.AudioFrame.from_ndarray(tone[None, start : start + 960], "s16", "mono")
                piece.sample_rate, piece.pts, piece.time_base = 48_000, start, Fraction(1, 48_000)
                output.mux(sound.encode(piece))
            output.mux(sound.encode(None))
    return path


FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright. Where it is missing the test is skipped, or fails if
    STABN_BROWSER=required, which CI sets."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing = pytest.fail if os.environ.get("STABN_BROWSER") == "required" else pytest.skip
        missing("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """make_video(name, frames=pattern(), **options of encode) -> path"""

    def make(name: str, frames: np.ndarray | None = None, stamps: Any = None, **options: Any) -> Path:
        return encode(tmp_path / name, pattern() if frames is None else frames, stamps, **options)

    return make
