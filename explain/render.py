"""Drawing: arrays in, pictures out. Nothing here knows a network, and inputs are never changed.

Pictures are uint8 RGB (H, W, 3). The colours are those of the web page: indigo for time, turbo for space.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from explain import TITLES
from explain.core import SURE, Explanation, Floats, View, answer, knows, percent

Picture = NDArray[np.uint8]

MIN_WIDTH = 320  # pixels; a smaller picture is enlarged by a whole factor, so that the text under it can be read
OPACITY = 0.85  # of the strongest heat
NIGHT, INK, MUTED, LINE = (11, 16, 30), (241, 245, 249), (148, 163, 184), (51, 65, 85)
BAR, ACTIVE, AMBER = (79, 84, 205), (165, 180, 252), (251, 191, 36)


def blend(
    picture: Picture, heat: Floats, view: View, scale: tuple[float, float] = (0, 1), signed: bool = False
) -> Picture:
    """A new picture with `heat` (h, w) over its part `view`.

    Colour and opacity follow the value on `scale`; of a signed map both grow with the distance from the
    middle. What lies outside the view is darkened: nothing is known about it.
    """
    top, left, height, width = view
    rows, columns = slice(round(top), round(top + height)), slice(round(left), round(left + width))
    part = picture[rows, columns]
    size = part.shape[1], part.shape[0]
    # A smooth map needs few pixels: colouring a small one and enlarging the colours is three times faster.
    factor = max(1.0, max(size) / 480)
    grid = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
    values = cv2.resize(np.asarray(heat, np.float32), grid)
    low, high = scale
    levels = np.clip((values - low) * (255 / (high - low or 1)) + 0.5, 0, 255).astype(np.uint8)
    paint, keep = _paint(signed)
    kept = cv2.multiply(part, cv2.resize(keep.take(levels, 0), size), scale=1 / 255)
    mixed = np.asarray(cv2.add(kept, cv2.resize(paint.take(levels, 0), size)), np.uint8)
    if mixed.shape == picture.shape:
        return mixed
    result = picture // 3
    result[rows, columns] = mixed
    return result


@lru_cache(maxsize=2)
def _paint(signed: bool) -> tuple[Picture, Picture]:
    """(256, 3) each level's colour times its opacity, and (256, 3) what it leaves of the picture, 0..255."""
    strength = np.abs(np.linspace(-1, 1, 256)) if signed else np.linspace(0, 1, 256)
    alpha = OPACITY * strength[:, None] ** 1.5  # the middle of the scale must not bury the picture
    paint = np.round(255 * alpha * _colours(signed)).astype(np.uint8)
    return paint, np.round(255 * np.repeat(1 - alpha, 3, 1)).astype(np.uint8)


def _colours(signed: bool) -> Floats:
    """(256, 3) RGB in 0..1 from low to high."""
    return matplotlib.colormaps["RdBu_r" if signed else "turbo"](np.arange(256))[:, :3]


class Overlay:
    """Draws the frames of an explained video: the picture with its heat, and below it a `Band`.

    `duration` in seconds is the length of the band. A picture narrower than `MIN_WIDTH` is enlarged by a
    whole factor.
    """

    def __init__(self, explanation: Explanation, duration: float) -> None:
        height, width = explanation.source_size
        self.explanation = explanation
        self.zoom = max(1, -(-MIN_WIDTH // width))
        self._picture = height * self.zoom, width * self.zoom
        self._band = Band(explanation, duration, width * self.zoom, height * self.zoom)
        self.width, self.height = width * self.zoom, height * self.zoom + self._band.height

    def heated(self, frame: Picture, seconds: float) -> Picture:
        """The source frame of that moment, enlarged if it is small, with the heat of that moment."""
        if frame.shape[:2] != self.explanation.source_size:
            wanted, seen = self.explanation.source_size, frame.shape[:2]
            raise ValueError(f"the frame is {seen[1]} x {seen[0]}, the explanation is for {wanted[1]} x {wanted[0]}")
        if self.zoom > 1:
            frame = np.asarray(cv2.resize(frame, self._picture[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
        top, left, height, width = (self.zoom * side for side in self.explanation.view)
        heat = self.explanation.spatial_at(seconds)
        return blend(frame, heat, (top, left, height, width), self.explanation.scale, self.explanation.signed)

    def draw(self, frame: Picture, seconds: float) -> Picture:
        """The frame of the overlay (`height`, `width`, 3) for the source frame of that moment."""
        return self.under(self.heated(frame, seconds), seconds)

    def under(self, heated: Picture, seconds: float) -> Picture:
        """The picture that `heated` gave, on the canvas with the band under it."""
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[: len(heated)] = heated
        canvas[len(heated) :] = self._band.draw(seconds)
        return canvas


class Band:
    """The strip under the picture: the answer, M_t as bars over time with a playhead, the colours' range.

    What does not move is drawn once; `draw` adds the rest.
    """

    def __init__(self, explanation: Explanation, duration: float, width: int, picture_height: int) -> None:
        self._explanation = explanation
        self._duration = duration
        self._width = width
        self._size = size = max(12, round((width * picture_height) ** 0.5 / 54))  # of the text, in pixels
        self._pad = pad = round(0.9 * size)
        small = _font(round(0.95 * size))
        inner = width - 2 * pad

        # Rows from top to bottom: answer beside the clock, facts, notes, chart with its labels.
        self._clock_width = _length(self._clock(duration), small)
        answers = [explanation.probabilities]
        if explanation.window_probabilities is not None:  # one of each class: as many lines as the longest needs
            answers = list({int(each.argmax()): each for each in explanation.window_probabilities}.values())
        self._title_height = round(1.55 * size) * max(len(self._title(each)) for each in answers)
        said = facts(explanation)
        if explanation.windows is not None:
            start, end = explanation.windows[0]
            said.insert(1, f"the answer is that of the {end - start:.3g} s around the playhead")
        packed: list[str] = []  # as many facts on a line as fit, none broken without need
        for fact in said:
            if packed and _length(f"{packed[-1]} · {fact}", small) <= inner:
                packed[-1] += f" · {fact}"
            else:
                packed += _wrap(fact, small, inner)
        lines = [(line, MUTED) for line in packed]
        lines += [(line, AMBER) for note in explanation.notes for line in _wrap(note, small, inner)]
        row = round(1.4 * size)
        first = pad + self._title_height + round(0.2 * size)
        self._top = first + row * len(lines) + round(1.9 * size)  # of the chart
        self._bottom = self._top + round(4.5 * size)
        self.height = self._bottom + round(1.7 * size) + pad // 2

        image = Image.new("RGB", (width, self.height), NIGHT)
        draw = ImageDraw.Draw(image)
        for k, (line, ink) in enumerate(lines):
            draw.text((pad, first + k * row), line, ink, small)
        self._chart(draw, small, right=self._colour_bar(image, draw, small))
        self._still = np.asarray(image).copy()
        self._last: tuple[Floats, Picture] | None = None  # the answer that was drawn last, and its picture

    def draw(self, seconds: float) -> Picture:
        """The band (`height`, width, 3) at a moment."""
        band = self._still.copy()
        self._put_title(band, self._explanation.probabilities_at(seconds))
        left, right, top = self._bars[int(np.abs(self._times - seconds).argmin())]
        band[top : self._bottom, left:right] = ACTIVE
        thick = max(1, self._size // 8)
        x = min(max(round(self._x(seconds)) - thick // 2, 0), self._width - thick)
        rows = slice(self._top - self._size // 3, self._bottom + self._size // 3)
        band[rows, max(0, x - thick) : x + 2 * thick] = NIGHT  # an edge, to be seen on a lit bar too
        band[rows, x : x + thick] = INK
        small = _font(round(0.95 * self._size))
        clock = Image.new("RGB", (self._clock_width, round(1.4 * self._size)), NIGHT)
        text = self._clock(seconds)
        ImageDraw.Draw(clock).text((self._clock_width - _length(text, small), 0), text, INK, small)
        y, x = self._pad + round(0.15 * self._size), self._width - self._pad - self._clock_width
        band[y : y + clock.height, x : x + clock.width] = np.asarray(clock)
        return band

    def _title(self, probabilities: Floats) -> list[str]:
        room = self._width - 3 * self._pad - self._clock_width
        return _wrap(_answer(self._explanation, probabilities), self._title_font(), room)

    def _title_font(self) -> ImageFont.FreeTypeFont:
        return _font(round(1.2 * self._size), bold=True)

    def _put_title(self, band: Picture, probabilities: Floats) -> None:
        if self._last is None or not np.array_equal(self._last[0], probabilities):
            image = Image.new("RGB", (self._width, self._title_height), NIGHT)
            draw = ImageDraw.Draw(image)
            ink = INK if probabilities.max() >= SURE else AMBER
            for k, line in enumerate(self._title(probabilities)):
                draw.text((self._pad, k * round(1.55 * self._size)), line, ink, self._title_font())
            self._last = probabilities, np.asarray(image)
        band[self._pad : self._pad + self._title_height] = self._last[1]

    def _clock(self, seconds: float) -> str:
        return f"{clock(seconds)} / {clock(self._duration)}" + (" s" if self._duration < 60 else "")

    def _colour_bar(self, image: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> int:
        """Draws the colours at the right, with the map's own extremes beside them; gives its left end."""
        size, shown = self._size, self._explanation
        low, high = shown.scale
        extremes = [("max", float(shown.spatial.max())), ("min", float(shown.spatial.min()))]
        labels = [f"{name} {number(value)}" for name, value in extremes]
        ends = [f"{high:.3g}", f"{low:.3g}"]
        x = self._width - self._pad - max(_length(label, font) for label in labels)
        bar = round(0.9 * size)
        start = x - round(0.7 * size) - bar
        tall = self._bottom - self._top
        strip = cv2.resize(_legend(shown.signed)[::-1, None], (bar, tall), interpolation=cv2.INTER_AREA)
        image.paste(Image.fromarray(strip), (start, self._top))
        # The marks stand at the true values; their labels are moved apart where they would overlap.
        half = round(0.6 * size)
        marks = [
            self._bottom - round(tall * min(1, max(0, (value - low) / (high - low or 1)))) for _, value in extremes
        ]
        upper = min(max(marks[0], self._top + half), self._bottom - 3 * half)
        lower = max(min(marks[1], self._bottom - half), upper + 2 * half)
        for mark, y, label in zip(marks, (upper, lower), labels, strict=True):
            draw.line([(start - 2, mark), (start + bar + 2, mark)], INK, max(1, size // 8))
            draw.line([(start + bar + 2, mark), (x - 2, y)], MUTED, 1)
            draw.text((x, y), label, INK, font, anchor="lm")
        left = start - round(0.4 * size)
        for y, label in zip((self._top, self._bottom), ends, strict=True):
            draw.text((left, y), label, MUTED, font, anchor="rm")
        left -= max(_length(end, font) for end in ends)
        draw.text((self._width - self._pad, self._top - round(1.7 * size)), "where", MUTED, font, anchor="ra")
        return left

    def _chart(self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, right: int) -> None:
        """Draws the bars and their axes, and keeps where they are for `draw`."""
        size = self._size
        self._times, weights, _ = self._explanation.timeline
        low, high = self._explanation.temporal_scale
        ends = [f"{high:.3g}", f"{low:.3g}"]
        self._left = self._pad + max(_length(end, font) for end in ends) + round(0.4 * size)
        self._right = right - round(1.2 * size)
        edges = _edges(self._times, self._duration)
        self._begin = min(0.0, float(edges[0]))
        self._end = max(self._duration, float(edges[-1]))
        tall = self._bottom - self._top
        draw.text((self._left, self._top - round(1.7 * size)), "when it looked", MUTED, font)
        for y, label in zip((self._top, self._bottom), ends, strict=True):
            draw.text((self._left - round(0.4 * size), y), label, MUTED, font, anchor="rm")
        for share in (0, 0.5, 1):
            y = self._bottom - round(share * tall)
            draw.line([(self._left, y), (self._right, y)], LINE, 1)
        self._bars = []
        for start, stop, weight in zip(map(self._x, edges[:-1]), map(self._x, edges[1:]), weights, strict=True):
            left, right = round(start), max(round(stop), round(start) + 1)
            if right - left >= 4:  # wide enough for a gap to the next bar
                right -= max(1, (right - left) // 12)
            top = self._bottom - round(tall * min(1, max(0, (weight - low) / (high - low or 1))))
            self._bars.append((left, right, top))
            draw.rectangle([left, min(top, self._bottom - 1), right - 1, self._bottom - 1], BAR)
        for tick in ticks(self._duration, max(2, (self._right - self._left) // (5 * size))):
            label, x = f"{tick:g} s" if self._duration < 60 else clock(tick, digits=0), round(self._x(tick))
            draw.line([(x, self._bottom), (x, self._bottom + size // 4)], MUTED, 1)
            draw.text((x, self._bottom + round(0.5 * size)), label, MUTED, font, anchor="ma")

    def _x(self, seconds: float) -> float:
        share = (seconds - self._begin) / (self._end - self._begin or 1)
        return self._left + min(1, max(0, share)) * (self._right - self._left)


def figure(explanation: Explanation, frames: Sequence[Picture], seconds: Sequence[float], path: Path | str) -> None:
    """Figure 3 of the paper for one clip, as a PNG of 300 dpi: frames, temporal weights and heat maps.

    `frames` are source frames (h, w, 3), reduced to any one size, at `seconds`; about eight fit the page.
    """
    tall, wide = frames[0].shape[0], frames[0].shape[1]
    down, across = tall / explanation.source_size[0], wide / explanation.source_size[1]
    top, left, height, width = explanation.view
    view = top * down, left * across, height * down, width * across
    times, weights, _ = explanation.timeline
    low, high = explanation.temporal_scale

    # Everything is placed in inches from the top left corner.
    page, margin, gap, strip = 9.0, 0.7, 0.05, 0.24
    cell = max(0.45, min((page - margin - 1.0) / len(frames) - gap, 2.2, 2.6 * wide / tall))
    picture = cell * tall / wide
    page = max(6.0, margin + len(frames) * (cell + gap) + 1.0)
    title = textwrap.wrap(_answer(explanation, explanation.probabilities), int(8.5 * (page - margin)))
    said = " · ".join(facts(explanation)), *explanation.notes
    below = [line for words in said for line in textwrap.wrap(words, int(14 * (page - margin)))]
    head = 0.22 * len(title) + 0.12
    y_strip = head + picture + gap
    y_heat = y_strip + strip + gap
    y_text = y_heat + picture + 0.32
    page_height = y_text + 0.16 * len(below) + 0.06
    drawing = Figure((page, page_height), dpi=300, facecolor="white")

    def text(x: float, y: float, words: str, **style: Any) -> None:
        drawing.text(x / page, 1 - y / page_height, words, parse_math=False, **style)

    def panel(x: float, y: float, w: float, h: float) -> Axes:
        axes = drawing.add_axes((x / page, 1 - (y + h) / page_height, w / page, h / page_height))
        axes.set(xticks=[], yticks=[])
        return axes

    for k, line in enumerate(title):
        text(margin, 0.1 + 0.22 * k, line, fontsize=11, fontweight="bold", va="top")
    for y, h, words in ((head, picture, "frames"), (y_strip, strip, "when"), (y_heat, picture, "where")):
        text(margin - 0.08, y + h / 2, words, ha="right", va="center", fontsize=9)
    for k, (frame, time) in enumerate(zip(frames, seconds, strict=True)):
        x = margin + k * (cell + gap)
        panel(x, head, cell, picture).imshow(frame, aspect="auto")
        heat = blend(frame, explanation.spatial_at(time), view, explanation.scale, explanation.signed)
        panel(x, y_heat, cell, picture).imshow(heat, aspect="auto")
        weight = float(np.interp(time, times, weights))
        share = min(1.0, max(0.0, (weight - low) / (high - low or 1)))
        axes = panel(x, y_strip, cell, strip)
        axes.set_facecolor(matplotlib.colormaps["Purples"](0.05 + 0.9 * share))
        ink = "white" if share > 0.62 else "black"  # where the purple is dark enough
        axes.text(0.5, 0.46, number(weight), color=ink, ha="center", va="center", fontsize=8)
        text(x + cell / 2, y_heat + picture + 0.05, f"{time:.2f} s", ha="center", va="top", fontsize=8)
    for k, line in enumerate(below):
        text(margin, y_text + 0.16 * k, line, fontsize=8, color="0.35", va="top")

    axes = panel(margin + len(frames) * (cell + gap) + 0.1, y_heat, 0.12, picture)
    low, high = explanation.scale
    high = high if high > low else low + 1
    axes.imshow(_legend(explanation.signed)[::-1, None], aspect="auto", extent=(0, 1, low, high))
    for at, label, va in ((1, f"{high:.3g}", "bottom"), (0, f"{low:.3g}", "top")):
        axes.annotate(
            label,
            (0.5, at),
            (0, 6 * at - 3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7,
            ha="center",
            va=va,
        )
    for name, value, va in (
        ("min", float(explanation.spatial.min()), "top"),
        ("max", float(explanation.spatial.max()), "bottom"),
    ):
        mark = min(high, max(low, value))  # a value beyond the scale stands at its end
        if not 0.1 < (mark - low) / (high - low) < 0.9:  # towards the middle, away from the scale's own ends
            va = "bottom" if name == "min" else "top"
        axes.axhline(mark, color="black", linewidth=1)
        beside = axes.get_yaxis_transform()
        axes.text(1.4, mark, f"{name} {number(value)}", fontsize=7, va=va, transform=beside)
    axes.set_ylim(low, high)
    drawing.savefig(path)


def number(value: float) -> str:
    """Two decimals where they say something, else three digits: methods have units of their own."""
    return f"{value:.2f}" if value == 0 or 0.01 <= abs(value) < 100 else f"{value:.2g}"


def temporal(explanation: Explanation, duration: float, path: Path | str) -> None:
    """M_t over seconds as a PNG: a bar for each sampled frame at its time stamp."""
    times, weights, _ = explanation.timeline
    edges = _edges(times, duration)
    drawing = Figure((7, 3), dpi=200, facecolor="white", layout="constrained")
    axes = drawing.add_subplot()
    thin = min(1.0, 60 / len(times))  # many bars become an area under the line
    axes.stairs(weights, edges, fill=True, color="#a5b4fc", zorder=2)
    higher = np.maximum(np.r_[0, weights], np.r_[weights, 0])
    axes.vlines(edges, 0, higher, color="white", linewidth=thin, zorder=2)
    axes.plot(times, weights, "o-", color="#4338ca", markersize=3.5 * thin, linewidth=1.2, clip_on=False)
    axes.set(ylim=explanation.temporal_scale, xlabel="time (s)", ylabel="temporal weight")
    axes.set_xlim(min(0, edges[0]), max(duration, edges[-1]))
    axes.grid(axis="y", color="0.9", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    words = textwrap.fill(_answer(explanation, explanation.probabilities), 70)
    if explanation.peak() is None:
        words += "\nalmost flat: no moment stands out"
    axes.set_title(words, fontsize=10, fontweight="bold", loc="left", parse_math=False)
    drawing.savefig(path)


def thumbnail(picture: Picture, side: int = 480) -> Picture:
    """A copy whose shorter side has at most `side` pixels."""
    factor = min(1.0, side / min(picture.shape[:2]))
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.array(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def facts(explanation: Explanation) -> list[str]:
    """What a reader of a picture must know beside the answer and the notes, the method first."""
    method = TITLES.get(explanation.method, explanation.method)
    found = [method + ", class-agnostic (one map for all classes)" if explanation.class_agnostic else method]
    if explanation.target != explanation.probabilities.argmax():
        target = explanation.target
        found.append(f"asked about: {explanation.classes[target]} {percent(explanation.probabilities[target])}")
    if tuple(explanation.view) != (0, 0, *explanation.source_size):
        found.append("dark: not seen by the network")
    return [*found, knows(explanation.classes)]


def _answer(explanation: Explanation, probabilities: Floats) -> str:
    """The answer with spaces at which no line may be broken between the number and what belongs to it."""
    return answer(explanation.classes, probabilities).replace(" %", "\u00a0%").replace("(not ", "(not\u00a0")


def clock(seconds: float, digits: int = 2) -> str:
    """Seconds as "4.20", from a minute on as "1:04.20"."""
    minutes, rest = divmod(round(max(0.0, seconds), digits), 60)
    width = digits + 1 + 2 if digits else 2
    return f"{minutes:.0f}:{rest:0{width}.{digits}f}" if minutes else f"{rest:.{digits}f}"


def ticks(duration: float, most: int) -> list[float]:
    """Round times from 0 to `duration`, at most about `most` of them."""
    steps = [k * 10.0**e for e in range(-3, 1) for k in (1, 2, 5)] + [
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        1800,
        3600,
    ]
    step = next((step for step in steps if duration / step <= most), 86400.0)
    return [k * step for k in range(int(duration / step + 1e-9) + 1)]


def _edges(times: NDArray[np.float64], duration: float) -> NDArray[np.float64]:
    """(U + 1,) seconds: the bar of a sampled frame reaches halfway to its neighbours."""
    if len(times) == 1:
        return np.array([0.0, duration])
    middles = (times[1:] + times[:-1]) / 2
    return np.r_[2 * times[0] - middles[0], middles, 2 * times[-1] - middles[-1]]


@lru_cache(maxsize=2)
def _legend(signed: bool) -> Picture:
    """(256, 3): the colours of `blend` from low to high, as over a grey picture."""
    paint, keep = _paint(signed)
    return np.asarray(paint + keep * 0.6, np.uint8)


@lru_cache(maxsize=16)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # it comes with matplotlib on every machine
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _length(text: str, font: ImageFont.FreeTypeFont) -> int:
    return int(np.ceil(font.getlength(text)))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit `width` pixels, broken at spaces; a word that alone is wider is broken inside."""
    lines = [""]
    for word in text.replace("\n", " ").split(" "):
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            fits = next(n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines
