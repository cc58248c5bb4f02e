"""Drawing: arrays in, pictures out. Nothing here knows a network, and inputs are never changed.

Pictures are uint8 RGB (H, W, 3). The colours are those of the web page: indigo for time, turbo for space.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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
Ink = tuple[int, int, int]
Scores = Mapping[str, Mapping[str, Any]]  # name: {"value", "random", "better", "title"}

MIN_WIDTH = 320  # pixels; a smaller picture is enlarged by a whole factor, so that the text under it can be read
ALL_WIDTH = 1920  # pixels, about, of several pictures side by side
OPACITY = 0.85  # of the strongest heat
PNG: dict[str, Any] = {"compress_level": 4}  # takes half the time of the usual 6, for files 3 % larger
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
    shares = cv2.cvtColor(cv2.resize(keep.take(levels), size), cv2.COLOR_GRAY2RGB)
    kept = cv2.multiply(part, shares, scale=1 / 255)
    mixed = np.asarray(cv2.add(kept, cv2.resize(paint.take(levels, 0), size)), np.uint8)
    if mixed.shape == picture.shape:
        return mixed
    result = picture // 3
    result[rows, columns] = mixed
    return result


@lru_cache(maxsize=2)
def _paint(signed: bool) -> tuple[Picture, Picture]:
    """(256, 3) each level's colour times its opacity, and (256,) what it leaves of the picture, 0..255."""
    strength = np.abs(np.linspace(-1, 1, 256)) if signed else np.linspace(0, 1, 256)
    alpha = OPACITY * strength[:, None] ** 1.5  # the middle of the scale must not bury the picture
    paint = np.round(255 * alpha * _colours(signed)).astype(np.uint8)
    return paint, np.round(255 * (1 - alpha[:, 0])).astype(np.uint8)


def _colours(signed: bool) -> Floats:
    """(256, 3) RGB in 0..1 from low to high."""
    return matplotlib.colormaps["bwr" if signed else "turbo"](np.arange(256))[:, :3]


class Overlay:
    """Draws the frames of an explained video: for each explanation the picture with its heat, a `Band` below it.

    `explanations` are of one clip. A single one is drawn at the source's size, or enlarged by a whole factor if that is
    narrower than `MIN_WIDTH`; several side by side, more than three in rows, are reduced to about `ALL_WIDTH`, under
    the answer that they share. `duration` in seconds is the length of the bands.
    """

    def __init__(self, explanations: Sequence[Explanation], duration: float) -> None:
        first, several = explanations[0], len(explanations) > 1
        self.explanations = explanations
        self._columns, self._picture = _arranged(len(explanations), first.source_size)
        tall, wide = self._picture
        self._gap = max(2, round(wide / 60)) if several else 0
        self.width = self._columns * (wide + self._gap) - self._gap
        self._head = None
        if several:
            title = Title.of(first, duration)
            said = [*_playing(first), *_common(first)]
            self._head = Caption(title, said, shared_notes(explanations), self.width, _text_size(wide, tall))
        rows = (0, 0)
        for _ in range(2):  # once to see how many lines of text they need, once with as many for all
            bands = [Band(each, duration, wide, tall, explanations, rows) for each in explanations]
            rows = max(band.caption.rows[0] for band in bands), max(band.caption.rows[1] for band in bands)
        self._bands = bands
        self._top = 0 if self._head is None else self._head.height
        self._step = tall + bands[0].height + self._gap
        self.height = self._top + -(-len(explanations) // self._columns) * self._step - self._gap
        self._blank = np.empty((self.height, self.width, 3), np.uint8)
        self._blank[:] = NIGHT  # once: filling with a colour takes 40 times as long as a copy

    def heated(self, frame: Picture, seconds: float) -> list[Picture]:
        """For each explanation the source frame of that moment with its heat, at the size of a panel."""
        height, width = self.explanations[0].source_size
        if frame.shape[:2] != (height, width):
            seen = frame.shape[:2]
            raise ValueError(f"the frame is {seen[1]} x {seen[0]}, the explanation is for {width} x {height}")
        tall, wide = self._picture
        if (tall, wide) != (height, width):
            how = cv2.INTER_CUBIC if wide > width else cv2.INTER_AREA
            frame = np.asarray(cv2.resize(frame, (wide, tall), interpolation=how), np.uint8)
        return [_heated(frame, each, seconds) for each in self.explanations]

    def draw(self, frame: Picture, seconds: float) -> Picture:
        """The frame of the overlay (`height`, `width`, 3) for the source frame of that moment."""
        return self.under(self.heated(frame, seconds), seconds)

    def under(self, heated: Sequence[Picture], seconds: float) -> Picture:
        """The pictures that `heated` gave, on the canvas with the bands under them."""
        canvas = self._blank.copy()
        if self._head is not None:
            canvas[: self._top] = self._head.draw(seconds)
        tall, wide = self._picture
        for k, (picture, band) in enumerate(zip(heated, self._bands, strict=True)):
            row, column = divmod(k, self._columns)
            y, x = self._top + row * self._step, column * (wide + self._gap)
            canvas[y : y + tall, x : x + wide] = picture
            canvas[y + tall : y + tall + band.height, x : x + wide] = band.draw(seconds)
        return canvas


def _arranged(count: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Columns, and (height, width) of each of `count` pictures of source `size`; more than three fill a wide screen."""
    height, width = size
    large = width * max(1, -(-MIN_WIDTH // width))

    def misfit(columns: int) -> float:
        rows, under = -(-count // columns), 0.45  # of the width of a picture, about, is the height of a band
        shape = columns / (rows * (height / width + under))
        return abs(float(np.log(shape * 9 / 16))) + 1.5 * (1 - count / (rows * columns))

    columns = count if count <= 3 else min(range(2, count + 1), key=misfit)
    wide = large if count == 1 else min(large, max(MIN_WIDTH, ALL_WIDTH // columns))
    return columns, (max(1, round(height * wide / width)), wide)


def _heated(frame: Picture, explanation: Explanation, seconds: float) -> Picture:
    """`frame`, a source frame of any size, with the heat of a moment."""
    down, across = (side / whole for side, whole in zip(frame.shape, explanation.source_size, strict=False))
    top, left, height, width = explanation.view
    view = top * down, left * across, height * down, width * across
    if not explanation.has_places:
        return blend(frame, np.zeros((1, 1)), view)
    return blend(frame, explanation.spatial_at(seconds), view, explanation.scale, explanation.signed)


def _text_size(width: int, height: int) -> int:
    """Of text under a picture, in pixels."""
    return max(12, round((width * height) ** 0.5 / 54))


class Title(NamedTuple):
    """What a caption's title says at a moment: `(words, ink) = say(seconds)`; `all` are the words there will be."""

    say: Callable[[float], tuple[str, Ink]]
    all: Sequence[str]
    duration: float | None = None  # with a clock that counts to it

    @classmethod
    def of(cls, explanation: Explanation, duration: float) -> Title:
        """The answer, which with windows changes."""

        def say(seconds: float) -> tuple[str, Ink]:
            probabilities = explanation.probabilities_at(seconds)
            return _answer(explanation, probabilities), INK if probabilities.max() >= SURE else AMBER

        answers = [explanation.probabilities]
        if explanation.window_probabilities is not None:  # one of each class: as many lines as the longest needs
            answers = list({int(each.argmax()): each for each in explanation.window_probabilities}.values())
        return cls(say, [_answer(explanation, each) for each in answers], duration)


class Caption:
    """Text: a title with a clock beside it, facts, and notes in amber; at least as many `rows` of both as asked for."""

    def __init__(
        self,
        title: Title,
        said: Sequence[str],
        notes: Sequence[str],
        width: int,
        size: int,
        rows: tuple[int, int] = (0, 0),
    ) -> None:
        self._title, self._width, self._size = title, width, size
        self._pad = pad = round(0.9 * size)
        self.font = _font(round(1.2 * size), bold=True)
        small = _font(round(0.95 * size))
        inner = width - 2 * pad
        self._clock_width = 0 if title.duration is None else _length(self._clock(title.duration), small)
        packed: list[str] = []  # as many facts on a line as fit, none broken without need
        for fact in said:
            if packed and _length(f"{packed[-1]} · {fact}", small) <= inner:
                packed[-1] += f" · {fact}"
            else:
                packed += _wrap(fact, small, inner)
        lines = [(line, MUTED) for line in packed]
        lines += [(line, AMBER) for note in notes for line in _wrap(note, small, inner)]
        self.rows = max(rows[0], *(len(self.lines(words)) for words in title.all)), max(rows[1], len(lines))
        self.title_height = round(1.55 * size) * self.rows[0]
        first, row = pad + self.title_height + round(0.2 * size), round(1.4 * size)
        self.height = first + row * self.rows[1] + round(0.4 * size)
        image = Image.new("RGB", (width, self.height), NIGHT)
        draw = ImageDraw.Draw(image)
        for k, (line, ink) in enumerate(lines):
            draw.text((pad, first + k * row), line, ink, small)
        self._still = np.asarray(image)
        self._last: tuple[tuple[str, Ink], Picture] | None = None  # the title that was drawn last, and its picture

    def lines(self, words: str) -> list[str]:
        """A title as it is wrapped."""
        clock = self._clock_width and self._clock_width + self._pad
        return _wrap(words, self.font, self._width - 2 * self._pad - clock)

    def draw(self, seconds: float) -> Picture:
        """The caption (`height`, width, 3) at a moment."""
        found, size, pad = self._still.copy(), self._size, self._pad
        title = self._title.say(seconds)
        if self._last is None or self._last[0] != title:
            image = Image.new("RGB", (self._width, self.title_height), NIGHT)
            draw = ImageDraw.Draw(image)
            for k, line in enumerate(self.lines(title[0])):
                draw.text((pad, k * round(1.55 * size)), line, title[1], self.font)
            self._last = title, np.asarray(image)
        found[pad : pad + self.title_height] = self._last[1]
        if self._title.duration is not None:
            small, text = _font(round(0.95 * size)), self._clock(seconds)
            clock = Image.new("RGB", (self._clock_width, round(1.4 * size)), NIGHT)
            ImageDraw.Draw(clock).text((self._clock_width - _length(text, small), 0), text, INK, small)
            y, x = pad + round(0.15 * size), self._width - pad - self._clock_width
            found[y : y + clock.height, x : x + clock.width] = np.asarray(clock)
        return found

    def _clock(self, seconds: float) -> str:
        length = self._title.duration or 0.0
        return f"{clock(seconds)} / {clock(length)}" + (" s" if length < 60 else "")


class Band:
    """The strip under a picture: a caption, M_t as bars over time with a playhead, the colours' range.

    The caption is the answer and the facts; among `others` it is the method and what is said of this one alone. What
    does not move is drawn once; `draw` adds the rest.
    """

    def __init__(
        self,
        explanation: Explanation,
        duration: float,
        width: int,
        picture_height: int,
        others: Sequence[Explanation] = (),
        rows: tuple[int, int] = (0, 0),
    ) -> None:
        self._explanation = explanation
        self._duration = duration
        self._width = width
        self._size = size = _text_size(width, picture_height)
        self._pad = pad = round(0.9 * size)
        if len(others) > 1:
            name, *said = _method(explanation)
            title = Title(lambda seconds: (name, INK), [name])
            notes = [note for note in explanation.notes if note not in shared_notes(others)]
        else:
            title, notes = Title.of(explanation, duration), list(explanation.notes)
            method, *others_said = facts(explanation)
            said = [method, *_playing(explanation), *others_said]
        self.caption = Caption(title, said, notes, width, size, rows)
        self._top = self.caption.height + round(1.5 * size)  # of the chart
        self._bottom = self._top + round(4.5 * size)
        self.height = self._bottom + round(1.7 * size) + pad // 2

        image = Image.new("RGB", (width, self.height), NIGHT)
        draw, small = ImageDraw.Draw(image), _font(round(0.95 * size))
        right = self._colour_bar(image, draw, small) if explanation.has_places else width - pad
        self._chart(draw, small, right)
        self._still = np.asarray(image).copy()

    def draw(self, seconds: float) -> Picture:
        """The band (`height`, width, 3) at a moment."""
        band = self._still.copy()
        band[: self.caption.height] = self.caption.draw(seconds)
        left, right, top, bottom = self._bars[int(np.abs(self._times - seconds).argmin())]
        band[top:bottom, left:right] = ACTIVE
        thick = max(1, self._size // 8)
        x = min(max(round(self._x(seconds)) - thick // 2, 0), self._width - thick)
        rows = slice(self._top - self._size // 3, self._bottom + self._size // 3)
        band[rows, max(0, x - thick) : x + 2 * thick] = NIGHT  # an edge, to be seen on a lit bar too
        band[rows, x : x + thick] = INK
        return band

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

        def height(weight: float) -> int:
            return self._bottom - round(tall * min(1, max(0, (weight - low) / (high - low or 1))))

        draw.text((self._left, self._top - round(1.7 * size)), "when it looked", MUTED, font)
        for y, label in zip((self._top, self._bottom), ends, strict=True):
            draw.text((self._left - round(0.4 * size), y), label, MUTED, font, anchor="rm")
        for share in (0, 0.5, 1):
            y = self._bottom - round(share * tall)
            draw.line([(self._left, y), (self._right, y)], LINE, 1)
        self._bars: list[tuple[int, int, int, int]] = []
        for start, stop, weight in zip(map(self._x, edges[:-1]), map(self._x, edges[1:]), weights, strict=True):
            left, right = round(start), max(round(stop), round(start) + 1)
            if right - left >= 4:  # wide enough for a gap to the next bar
                right -= max(1, (right - left) // 12)
            top, bottom = sorted((height(weight), height(0.0)))
            self._bars.append((left, right, top, bottom))
            top = min(top, self._bottom - 1)
            draw.rectangle([left, top, right - 1, max(top, bottom - 1)], BAR)
        if low < 0:
            draw.line([(self._left, height(0.0)), (self._right, height(0.0))], MUTED, 1)
        for tick in ticks(self._duration, max(2, (self._right - self._left) // (5 * size))):
            label, x = f"{tick:g} s" if self._duration < 60 else clock(tick, digits=0), round(self._x(tick))
            draw.line([(x, self._bottom), (x, self._bottom + size // 4)], MUTED, 1)
            draw.text((x, self._bottom + round(0.5 * size)), label, MUTED, font, anchor="ma")

    def _x(self, seconds: float) -> float:
        share = (seconds - self._begin) / (self._end - self._begin or 1)
        return self._left + min(1, max(0, share)) * (self._right - self._left)


def figure(
    explanations: Sequence[Explanation],
    frames: Sequence[Picture],
    seconds: Sequence[float],
    scores: Mapping[str, Scores],
    path: Path | str,
) -> None:
    """Figure 3 of the paper for one clip, as a PNG of 300 dpi: frames, temporal weights and heat maps.

    Explanations of the clip stand under each other. `frames` are source frames (h, w, 3), reduced to any one size, at
    `seconds`; about eight fit the page. `scores` by method, of all or none, make a table at the end.
    """
    first, several = explanations[0], len(explanations) > 1
    tall, wide = frames[0].shape[0], frames[0].shape[1]

    # Everything is placed in inches from the top left corner.
    page, margin, gap, strip, line = 9.0, 0.7, 0.05, 0.24, 0.16
    cell = max(0.45, min((page - margin - 1.0) / len(frames) - gap, 2.2, 2.6 * wide / tall))
    picture = cell * tall / wide
    page = max(6.0, margin + len(frames) * (cell + gap) + 1.0)

    def wrapped(*words: str) -> list[str]:
        return [each for part in words for each in textwrap.wrap(part, int(14 * (page - margin)))]

    title = textwrap.wrap(_answer(first, first.probabilities), int(8.5 * (page - margin)))
    shared = shared_notes(explanations)
    below = wrapped(" · ".join(_common(first) if several else facts(first)), *shared)
    heads, tops = [], []
    y_frames = 0.22 * len(title) + 0.12
    y = y_frames + picture + 0.26  # the times are under the frames
    for each in explanations:
        notes = [note for note in each.notes if note not in shared]
        heads.append(wrapped(", ".join(_method(each)), *notes) if several else [])
        tops.append(y + bool(heads[-1]) * 0.1)
        y = tops[-1] + line * len(heads[-1]) + strip + gap + each.has_places * (picture + 0.12)
    y_text = y + 0.14
    y_table = y_text + line * len(below) + 0.1
    table = _Table(scores, page - 0.4)
    page_height = y_table + table.height + 0.06
    drawing = Figure((page, page_height), dpi=300 if len(explanations) <= 8 else 150, facecolor="white")

    def text(x: float, y: float, words: str, **style: Any) -> None:
        drawing.text(x / page, 1 - y / page_height, words, parse_math=False, **style)

    def panel(x: float, y: float, w: float, h: float) -> Axes:
        axes = drawing.add_axes((x / page, 1 - (y + h) / page_height, w / page, h / page_height))
        axes.set(xticks=[], yticks=[])
        return axes

    def label(y: float, words: str) -> None:
        text(margin - 0.08, y, words, ha="right", va="center", fontsize=9)

    for k, words in enumerate(title):
        text(margin, 0.1 + 0.22 * k, words, fontsize=11, fontweight="bold", va="top")
    label(y_frames + picture / 2, "frames")
    columns = [margin + k * (cell + gap) for k in range(len(frames))]
    for x, frame, time in zip(columns, frames, seconds, strict=True):
        panel(x, y_frames, cell, picture).imshow(frame, aspect="auto")
        text(x + cell / 2, y_frames + picture + 0.05, f"{time:.2f} s", ha="center", va="top", fontsize=8)
    for each, lines, y in zip(explanations, heads, tops, strict=True):
        for k, words in enumerate(lines):
            style = {"color": "0.35"} if k else {"fontweight": "bold"}
            text(margin, y + line * k, words, fontsize=8, va="top", **style)
        y_strip = y + line * len(lines)
        y_heat = y_strip + strip + gap
        label(y_strip + strip / 2, "when")
        for x, time in zip(columns, seconds, strict=True):
            _weight(panel(x, y_strip, cell, strip), each, time)
        if each.has_places:
            label(y_heat + picture / 2, "where")
            for x, frame, time in zip(columns, frames, seconds, strict=True):
                panel(x, y_heat, cell, picture).imshow(_heated(frame, each, time), aspect="auto")
            _range(panel(columns[-1] + cell + gap + 0.1, y_heat, 0.12, picture), each)
    for k, words in enumerate(below):
        text(margin, y_text + line * k, words, fontsize=8, color="0.35", va="top")
    table.draw(text, 0.2, y_table)
    drawing.savefig(path, pil_kwargs=PNG)


def _weight(axes: Axes, explanation: Explanation, seconds: float) -> None:
    """M_t at a moment, as a number on its colour: purple, or red and blue where weights have a sign."""
    times, weights, _ = explanation.timeline
    low, high = explanation.temporal_scale
    weight = float(np.interp(seconds, times, weights))
    if low < 0:
        share = weight / max(-low, high)
        colour = _colours(True)[round(127.5 + 127.5 * share)]
    else:
        share = min(1.0, max(0.0, (weight - low) / (high - low or 1)))
        colour = matplotlib.colormaps["Purples"](0.05 + 0.9 * share)
    axes.set_facecolor(colour)
    light = float(np.array([0.21, 0.72, 0.07]) @ np.asarray(colour)[:3] ** 2.2)  # relative luminance
    ink = "white" if light < 0.2 else "black"  # whichever has more contrast
    axes.text(0.5, 0.46, number(weight), color=ink, ha="center", va="center", fontsize=8)


def _range(axes: Axes, explanation: Explanation) -> None:
    """The colours of the maps, with the map's own extremes beside them."""
    low, high = explanation.scale
    high = high if high > low else low + 1
    axes.imshow(_legend(explanation.signed)[::-1, None], aspect="auto", extent=(0, 1, low, high))
    for at, label, va in ((1, f"{high:.3g}", "bottom"), (0, f"{low:.3g}", "top")):
        axes.annotate(
            label,
            (0, at),
            (0, 6 * at - 3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7,
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


class _Table:
    """Scores for the figure, in inches: a row for each method and one for the random control."""

    NAME, COLUMN, ROW = 2.0, 0.62, 0.15

    def __init__(self, scores: Mapping[str, Scores], width: float) -> None:
        self._scores = scores
        names = list(next(iter(scores.values()), ()))
        fit = max(1, int((width - self.NAME) / self.COLUMN))
        count = -(-len(names) // fit)  # of blocks, about as wide as each other
        wide = -(-len(names) // max(1, count))
        self._blocks = [names[k : k + wide] for k in range(0, len(names), wide or 1)]
        self._block = (2 + len(scores.keys() | {"random"}) + 0.6) * self.ROW
        legend = (
            "DEL, INS: the probability while parts are removed, or put back, in the order of the map · ↓ lower, ↑ "
            "higher is better · the random control is one map of noise: what is hardly better says nothing"
        )
        self._legend = textwrap.wrap(legend, int(15 * width)) if names else []
        self.height = len(self._blocks) * self._block + len(self._legend) * self.ROW

    def draw(self, text: Callable[..., None], x: float, y: float) -> None:
        for names in self._blocks:
            rows = [(TITLES.get(method, method), each) for method, each in self._scores.items() if method != "random"]
            for k, name in enumerate(names):
                right = x + self.NAME + (k + 1) * self.COLUMN
                score = next(iter(self._scores.values()))[name]
                arrow = "↑" if score["better"] == "high" else "↓"
                words = textwrap.wrap(f"{score['title']}\u00a0{arrow}", 10, break_long_words=False)
                text(right, y + 2 * self.ROW, "\n".join(words), fontsize=7, ha="right", va="bottom", color="0.35")
                for row, (_, each) in enumerate(rows):
                    self._number(text, right, y + (2.2 + row) * self.ROW, each[name]["value"])
                self._number(text, right, y + (2.2 + len(rows)) * self.ROW, score["random"])
            for row, title in enumerate([*(title for title, _ in rows), TITLES["random"]]):
                text(x, y + (2.2 + row) * self.ROW, title, fontsize=7, va="top")
            y += self._block
        text(x, y, "\n".join(self._legend), fontsize=7, va="top", color="0.35")

    @staticmethod
    def _number(text: Callable[..., None], x: float, y: float, value: float | None) -> None:
        text(x, y, "-" if value is None else number(value), fontsize=7, ha="right", va="top")


def number(value: float) -> str:
    """Two decimals where they say something, else two digits or the integer: methods have units of their own."""
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 100 else f"{value:.2g}"


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
    method = textwrap.fill(_method(explanation)[0], 38)
    axes.set(ylim=explanation.temporal_scale, xlabel="time (s)", ylabel=f"{method}\ntemporal weight")
    if weights.min() < 0:
        axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_xlim(min(0, edges[0]), max(duration, edges[-1]))
    axes.grid(axis="y", color="0.9", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    words = textwrap.fill(_answer(explanation, explanation.probabilities), 70)
    if explanation.peak() is None:
        words += "\nalmost flat: no moment stands out"
    axes.set_title(words, fontsize=10, fontweight="bold", loc="left", parse_math=False)
    drawing.savefig(path, pil_kwargs=PNG)


def thumbnail(picture: Picture, side: int = 480) -> Picture:
    """A copy whose shorter side has at most `side` pixels."""
    factor = min(1.0, side / min(picture.shape[:2]))
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.array(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def facts(explanation: Explanation) -> list[str]:
    """What a reader of a picture must know beside the answer and the notes, the method first."""
    return [", ".join(_method(explanation)), *_common(explanation)]


def _method(explanation: Explanation) -> list[str]:
    """The method's name, and what it does not tell."""
    found = [TITLES.get(explanation.method, explanation.method)]
    if explanation.class_agnostic:
        found.append("class-agnostic (one map for all classes)")
    if not explanation.has_places:
        found.append("weighs whole frames, not places")
    return found


def _common(explanation: Explanation) -> list[str]:
    """Facts that all explanations of a clip share."""
    found = []
    if explanation.target != explanation.probabilities.argmax():
        target = explanation.target
        found.append(f"asked about: {explanation.classes[target]} {percent(explanation.probabilities[target])}")
    if tuple(explanation.view) != (0, 0, *explanation.source_size):
        found.append("dark: not seen by the network")
    return [*found, knows(explanation.classes)]


def _playing(explanation: Explanation) -> list[str]:
    """What must be known of an answer that changes while the video plays."""
    if explanation.windows is None:
        return []
    start, end = explanation.windows[0]
    return [f"the answer is that of the {end - start:.3g} s around the playhead"]


def shared_notes(explanations: Sequence[Explanation]) -> list[str]:
    first, *others = explanations
    return [note for note in first.notes if all(note in other.notes for other in others)]


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
    return np.asarray(paint + keep[:, None] * 0.6, np.uint8)


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
