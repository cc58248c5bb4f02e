"""What Synthetic-Something is drawn with: backgrounds, things, hands, and what else stands or moves about.

Everything is a still picture; `stabn.synthetic` moves it. Lengths are in picture pixels, colours RGB in 0..255.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 or float64
Bytes = NDArray[Any]  # uint8


class Sprite(NamedTuple):
    """A picture of one thing."""

    rgba: Bytes  # (h, w, 4) uint8, premultiplied alpha
    anchor: tuple[float, float]  # (x, y): the pixel by which it is placed and about which it turns


# --------------------------------------------------------------------------------------------- colour, texture, light


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """Hue in 0..180, saturation and value in 0..255, to (3,) float32."""
    hsv = np.array([[[int(hue) % 180, int(saturation), int(value)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def colour(rng: Generator) -> Floats:
    """A colour as objects have them: any hue, often muted."""
    return _rgb(rng.uniform(0, 180), 255 * rng.beta(1.2, 2.5), rng.uniform(40, 255))


def _wall_colour(rng: Generator) -> Floats:
    """A colour as rooms have them: mostly warm or grey, seldom strong."""
    if rng.random() < 0.12:
        return colour(rng)
    hue = rng.normal(14, 6) if rng.random() < 0.6 else rng.uniform(0, 180)
    return _rgb(hue, 255 * rng.beta(1.2, 5), rng.uniform(40, 250))


def _noise(rng: Generator, height: int, width: int, octaves: int, slope: float, first: int = 2) -> Floats:
    """(height, width) float32 noise around 0 in octaves; each has `slope` times the amplitude of the one before."""
    value = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        n = first * 2**octave + 1
        grid = rng.standard_normal((n, n), dtype=np.float32) * np.float32(slope**octave)
        value += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC if n < 9 else cv2.INTER_LINEAR)
    return value


def _texture(rng: Generator, height: int, width: int, contrast: float) -> Floats:
    """(height, width, 1) multiplicative texture around 1: stripes, checks, dots, noise in octaves, or a grain."""
    kind = rng.integers(6)
    if kind < 3:
        yy, xx = np.ogrid[0:height, 0:width]
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.35) * max(height, width)
        cos, sin = (np.float32(2 * np.pi / period * f(angle)) for f in (np.cos, np.sin))
        a, b = xx * cos + yy * sin, yy * cos - xx * sin
        if kind == 0:
            value = np.sin(a)
        elif kind == 1:
            value = np.sign(np.sin(a)) * np.sign(np.sin(b))
        else:
            value = np.where(np.cos(a) + np.cos(b) > 0.9, 1.0, -0.3)
    else:
        value = _noise(rng, height, width, 4, 0.75)
        if kind == 5:  # wood, cloth: the noise bends the lines
            value = np.sin(2 * value + np.linspace(0, rng.uniform(5, 40), width, dtype=np.float32))
    return (1 + contrast * value[..., None]).astype(np.float32)


def _light(rng: Generator, px: int) -> Floats:
    """(px, px, 1) light that falls off to one side, at times with soft shadows as of leaves or a window."""
    low, high = np.sort(rng.uniform(0.55, 1.1, 2))
    side = np.linspace(low, high, px, dtype=np.float32)[:: rng.choice([-1, 1])]
    light: Floats = np.broadcast_to(side[:, None] if rng.random() < 0.5 else side[None], (px, px))
    if rng.random() < 0.4:
        edge = rng.uniform(1, 6)  # from a soft to a sharp edge
        shade = _noise(rng, px, px, 2, 0.5, int(rng.integers(2, 6)))
        light = light * (1 - rng.uniform(0.15, 0.5) * np.clip(0.5 + edge * (shade - 0.3), 0, 1))
    return light[..., None]


# ------------------------------------------------------------------------------------------------------- backgrounds


def background(rng: Generator, px: int, photographs: Sequence[Bytes] | None) -> Bytes:
    """(px, px, 3) scenery: a photograph, or a drawn surface, wall and table, room, or landscape, with clutter."""
    if photographs and rng.random() < 0.6:
        photo = photographs[int(rng.integers(len(photographs)))]
        h, w = photo.shape[:2]
        side = int(min(h, w) * rng.uniform(0.5, 1.0))
        top, left = rng.integers(h - side + 1), rng.integers(w - side + 1)
        crop = cv2.resize(photo[top : top + side, left : left + side], (px, px), interpolation=cv2.INTER_AREA)
        return crop[:, ::-1].copy() if rng.random() < 0.5 else crop
    kind = rng.choice(4, p=[0.25, 0.3, 0.25, 0.2])
    picture = _landscape(rng, px) if kind == 3 else _wall_colour(rng) * _texture(rng, px, px, rng.uniform(0.02, 0.35))
    if kind in (1, 2):  # a table or a floor below its edge, slightly tilted
        edge = int(px * rng.uniform(0.35, 0.7)) + rng.uniform(-0.15, 0.15) * (np.arange(px) - px / 2)
        below = np.arange(px)[:, None] > edge[None]
        ground = _wall_colour(rng) * _texture(rng, px, px, rng.uniform(0.02, 0.35))
        picture = np.where(below[..., None], ground, picture)
    canvas = np.clip(picture * _light(rng, px), 0, 255).astype(np.uint8)
    if kind == 2:
        _furnish(rng, canvas)
    _clutter(rng, canvas, int(rng.choice([0, 0, 0, 3, 8, 24])))
    if rng.random() < 0.25:  # out of focus
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 0.03 * px))
    return canvas


def _landscape(rng: Generator, px: int) -> Floats:
    """Layers of a few colours that 1/f noise bends and grains: foliage, stone, clouds, a bed, a heap of cloth."""
    strength = rng.uniform(0.05, 0.35)
    field = np.linspace(0, 1, px, dtype=np.float32)[:, None] + strength * _noise(
        rng, px, px, 6, rng.uniform(0.55, 0.85)
    )
    stops = np.stack([_wall_colour(rng) for _ in range(int(rng.integers(3, 6)))])
    table = cv2.resize(stops[:, None], (1, 256), interpolation=cv2.INTER_LINEAR)[:, 0]
    return table[np.clip(256 * field, 0, 255).astype(np.uint8)]


def _furnish(rng: Generator, canvas: Bytes) -> None:
    """Draws a window, a shelf with books, a cupboard or a picture on the upper part."""
    px = len(canvas)
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(v) for v in rng.uniform(-0.1, 0.8, 2) * px * (1, 0.6))
        w, h = (int(v) for v in rng.uniform(0.15, 0.5, 2) * px)
        kind, front = rng.integers(3), _wall_colour(rng)
        rim = (0.6 * front).astype(int).tolist()
        if kind == 0:  # a window: bright, with a cross
            front = 120 + 0.53 * front
        cv2.rectangle(canvas, (x, y), (x + w, y + h), front.astype(int).tolist(), -1)
        cv2.rectangle(canvas, (x, y), (x + w, y + h), rim, max(1, px // 60))
        if kind == 0:
            cv2.line(canvas, (x + w // 2, y), (x + w // 2, y + h), rim, max(1, px // 60))
            cv2.line(canvas, (x, y + h // 2), (x + w, y + h // 2), rim, max(1, px // 60))
        elif kind == 1:  # shelves
            for board in range(y, y + h, max(6, h // int(rng.integers(2, 5)))):
                cv2.line(canvas, (x, board), (x + w, board), rim, max(1, px // 80))
                left = x
                while left < x + w and rng.random() < 0.9:
                    book, tall = int(rng.integers(2, max(3, px // 20))), int(rng.uniform(0.06, 0.14) * px)
                    ink = colour(rng).astype(int).tolist()
                    cv2.rectangle(canvas, (left, board - tall), (left + book, board), ink, -1)
                    left += book + int(rng.integers(1, 3))


def _clutter(rng: Generator, canvas: Bytes, count: int) -> None:
    """Draws things that lie about: books, papers, plates, cables, stains."""
    px = len(canvas)
    for _ in range(count):
        ink = tuple(int(c) for c in (colour(rng) if rng.random() < 0.5 else _wall_colour(rng)))
        centre, kind = rng.uniform(0, px, 2), rng.integers(3)
        if kind == 0:
            box = cv2.boxPoints((tuple(centre), tuple(rng.uniform(0.03, 0.3, 2) * px), rng.uniform(0, 90)))
            cv2.fillConvexPoly(canvas, box.astype(np.int32), ink, cv2.LINE_AA)
        elif kind == 1:
            axes = rng.uniform(0.02, 0.12, 2) * px
            cv2.ellipse(canvas, (tuple(centre), tuple(2 * axes), rng.uniform(0, 180)), ink, -1, cv2.LINE_AA)
        else:
            points = (centre + np.cumsum(rng.normal(0, 0.12 * px, (5, 2)), 0)).astype(np.int32)
            cv2.polylines(canvas, [points], False, ink, int(rng.integers(1, 4)), cv2.LINE_AA)


# ----------------------------------------------------------------------------------------------------------- sprites


def _premultiply(picture: Floats, alpha: Floats) -> Bytes:
    """(h, w, 3) colour in 0..255 and (h, w) alpha in 0..1 to premultiplied RGBA."""
    rgba = np.empty((*alpha.shape, 4), np.float32)
    rgba[..., :3] = np.clip(picture, 0, 255) * alpha[..., None]
    rgba[..., 3] = 255 * alpha
    return (rgba + 0.5).astype(np.uint8)


def _shrunk(shape: Bytes, width: int, height: int) -> Floats:
    """A supersampled shape (H, W) uint8 as alpha (height, width) in 0..1."""
    way = cv2.INTER_AREA if height < len(shape) else cv2.INTER_LINEAR  # the former enlarges in blocks
    return cv2.resize(shape, (width, height), interpolation=way).astype(np.float32) / 255


def _round(alpha: Floats, depth: float) -> Floats:
    """(h, w, 1) shading that darkens towards the outline, so that a shape looks round."""
    return 1 - depth * (1 - cv2.blur(alpha, (min(alpha.shape) // 6 | 1,) * 2))[..., None]


def thing(rng: Generator, px: int) -> Sprite:
    """Something, (px, px), about four fifths of it: a box, ball, bottle, mug, ring, stick, star or random outline."""
    shape: Bytes = np.zeros((96, 96), np.uint8)
    kind = rng.integers(8)
    if kind == 0:
        w, h = (int(v) for v in rng.uniform(22, 40, 2))
        cv2.rectangle(shape, (48 - w, 48 - h), (48 + w, 48 + h), 255, -1)
    elif kind == 1:
        cv2.ellipse(shape, (48, 48), tuple(int(v) for v in rng.integers(26, 42, 2)), 0, 0, 360, 255, -1)
    elif kind == 2:  # bottle
        w = int(rng.integers(12, 22))
        cv2.rectangle(shape, (48 - w, 34), (48 + w, 90), 255, -1)
        cv2.ellipse(shape, (48, 36), (w, 12), 0, 0, 360, 255, -1)
        cv2.rectangle(shape, (48 - w // 3 - 2, 6), (48 + w // 3 + 2, 40), 255, -1)
    elif kind == 3:  # mug
        cv2.rectangle(shape, (22, 18), (66, 80), 255, -1)
        cv2.ellipse(shape, (68, 48), (16, 18), 0, 0, 360, 255, 6)
    elif kind == 4:  # ring
        cv2.circle(shape, (48, 48), 34, 255, int(rng.integers(10, 20)))
    elif kind == 5:  # pen, knife, remote control
        w = int(rng.integers(6, 14))
        cv2.rectangle(shape, (48 - w, 4), (48 + w, 92), 255, -1)
    else:  # a star or a random outline
        n = int(rng.integers(5, 12))
        angles = np.linspace(0, 2 * np.pi, 2 * n if kind == 6 else n, endpoint=False)
        radii = np.where(np.arange(len(angles)) % 2, 40, rng.uniform(18, 36)) if kind == 6 else rng.uniform(20, 42, n)
        points = 48 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        cv2.fillPoly(shape, [points.astype(np.int32)], 255)
    alpha = _shrunk(shape, px, px)
    picture = colour(rng) * _texture(rng, px, px, rng.uniform(0, 0.4))
    if rng.random() < 0.4:  # a label, a lid, a stripe
        top, bottom = np.sort(rng.uniform(0.1, 0.9, 2) * px).astype(int)
        picture[top:bottom] = colour(rng)
    yy, xx = np.ogrid[-1 : 1 : px * 1j, -1 : 1 : px * 1j]
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    light = (1 + depth * (np.cos(angle) * xx + np.sin(angle) * yy)).astype(np.float32)
    picture = picture * light[..., None] * _round(alpha, rng.uniform(0, 0.8))
    return Sprite(_premultiply(picture, alpha), (px / 2, px / 2))


_SKIN = np.array(
    [[255, 219, 190], [238, 187, 150], [205, 150, 110], [160, 105, 70], [105, 68, 46], [70, 46, 34]], np.float32
)


class Body(NamedTuple):
    """What somebody looks like: the colours of skin and clothes, (3,) each."""

    skin: Floats
    cloth: Floats


def body(rng: Generator) -> Body:
    return Body(_SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.8, 1.1), colour(rng))


ARM = 11.0  # length of a hand's sprite, in hand widths


def hand(rng: Generator, width: float, looks: Body) -> Sprite:
    """A hand `width` pixels wide, placed by its fingers, with its arm leaving downwards: ARM hand widths in all."""
    unit = 24  # supersampled pixels of a hand's width
    h, w = int(ARM * unit), 3 * unit
    cx, cy = w / 2, 1.6 * unit  # the palm
    skin, cloth, lines = (np.zeros((h, w), np.uint8) for _ in range(3))

    def quad(canvas: Bytes, y0: float, w0: float, w1: float) -> None:
        """From y0 down to the end of the arm, w0 wide at first and w1 in the end."""
        corners = [(cx - w0, y0), (cx + w0, y0), (cx + w1, h), (cx - w1, h)]
        cv2.fillConvexPoly(canvas, np.array(corners).astype(np.int32), 255)

    cv2.ellipse(skin, (int(cx), int(cy)), (int(0.5 * unit), int(0.6 * unit)), 0, 0, 360, 255, -1)
    spread, curl = rng.uniform(0, 0.22), rng.uniform(0.1, 1.0)
    for finger in np.arange(4) - 1.5:
        root = np.array([cx + 0.25 * unit * finger, cy - 0.35 * unit])
        tip = root + unit * curl * np.array([np.sin(spread * finger), -np.cos(spread * finger)])
        cv2.line(skin, root.astype(int).tolist(), tip.astype(int).tolist(), 255, unit // 4)
        if finger < 1:  # the gap to the next finger
            gap = np.array([0.125 * unit, 0])
            cv2.line(lines, (root + gap).astype(int).tolist(), (tip + gap).astype(int).tolist(), 255, 2)
    side = rng.choice([-1, 1])
    thumb = (int(cx + side * unit * rng.uniform(0.6, 0.95)), int(cy - unit * rng.uniform(-0.1, 0.6)))
    cv2.line(skin, (int(cx + side * 0.3 * unit), int(cy)), thumb, 255, unit // 4)
    quad(skin, cy + 0.3 * unit, 0.36 * unit, 0.6 * unit)
    if rng.random() < 0.6:  # a sleeve
        quad(cloth, cy + unit * rng.uniform(0.7, 3.5), 0.55 * unit, rng.uniform(0.7, 1.0) * unit)

    height = max(24, round(ARM * width))
    out = max(4, round(height * w / h))
    arm, sleeve, gaps = (_shrunk(c, out, height) for c in (skin, cloth, lines))
    tone = looks.skin * (1 - 0.35 * gaps[..., None])
    fabric = looks.cloth * _texture(rng, height, out, rng.uniform(0, 0.25))
    alpha = np.maximum(arm, sleeve)
    shade = 1 + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, out, dtype=np.float32)[:, None]
    picture = np.where(sleeve[..., None] > 0.5, fabric, tone) * shade * _round(alpha, 0.3)
    return Sprite(_premultiply(picture, alpha), (cx * out / w, (cy - 0.5 * unit) * height / h))


def person(rng: Generator, px: int, looks: Body) -> Sprite:
    """Somebody who sits behind, (px, px), placed by the middle of the picture's lower edge."""
    head, torso, hair = (np.zeros((96, 96), np.uint8) for _ in range(3))
    cv2.ellipse(head, (48, 24), (13, 18), 0, 0, 360, 255, -1)
    cv2.rectangle(head, (42, 34), (54, 52), 255, -1)
    cv2.ellipse(hair, (48, 16), (14, int(rng.integers(8, 14))), 0, 0, 360, 255, -1)
    width = int(rng.integers(28, 44))
    cv2.ellipse(torso, (48, 76), (width, 28), 0, 180, 360, 255, -1)
    cv2.rectangle(torso, (48 - width, 75), (48 + width, 96), 255, -1)
    skin, cloth, dark = (_shrunk(c, px, px) for c in (head, torso, hair))
    fabric = looks.cloth * _texture(rng, px, px, rng.uniform(0, 0.3))
    picture = np.where(cloth[..., None] > 0.5, fabric, looks.skin)
    picture = np.where(dark[..., None] > 0.5, _rgb(rng.uniform(0, 25), 100, rng.uniform(15, 160)), picture)
    alpha = np.maximum(np.maximum(skin, cloth), dark)
    return Sprite(_premultiply(picture * _round(alpha, 0.5), alpha), (px / 2, px))


def plant(rng: Generator, px: int) -> Sprite:
    """Leaves or a bunch of blades, (px, px), placed by the middle of the lower edge."""
    shape, veins = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    for _ in range(int(rng.integers(5, 14))):
        angle, reach = rng.normal(0, 0.7), rng.uniform(30, 80)
        tip = np.array([48 + reach * np.sin(angle), 94 - reach * np.cos(angle)])
        axes = (rng.uniform(10, 22), rng.uniform(24, 44))
        cv2.ellipse(shape, (tuple(tip), axes, float(np.degrees(angle))), 255, -1)
        cv2.ellipse(veins, (tuple(tip), axes, float(np.degrees(angle))), int(rng.integers(60, 255)), -1)
        cv2.line(shape, (48, 95), tip.astype(int).tolist(), 255, 2)
    alpha = _shrunk(shape, px, px)
    green = _rgb(rng.normal(48, 15), rng.uniform(60, 220), rng.uniform(90, 240))
    return Sprite(_premultiply(green * (0.4 + 0.6 * _shrunk(veins, px, px)[..., None]), alpha), (px / 2, px))


def screen(rng: Generator, px: int) -> Sprite:
    """A screen with a picture on it, (px * 2 / 3, px)."""
    h = max(4, 2 * px // 3)
    picture = 128 + 60 * cv2.resize(rng.standard_normal((4, 5, 3), dtype=np.float32), (px, h))
    frame = max(1, px // 20)
    picture[:frame] = picture[-frame:] = picture[:, :frame] = picture[:, -frame:] = rng.uniform(5, 60)
    return Sprite(_premultiply(picture, np.ones((h, px), np.float32)), (px / 2, h / 2))


def bar(rng: Generator, px: int) -> Sprite:
    """Something long and near, (px, px * 16): the edge of a chair, a lamp's stand, a curtain; out of focus."""
    alpha: Floats = np.zeros((px, 16 * px), np.float32)
    margin = max(1, px // 5)
    alpha[margin:-margin] = 1
    alpha = cv2.blur(alpha, (1, 2 * margin + 1))
    picture = _wall_colour(rng) * _texture(rng, px, 16 * px, rng.uniform(0, 0.2)) * rng.uniform(0.4, 1)
    return Sprite(_premultiply(picture, alpha), (8 * px, px / 2))


def shadow(rng: Generator, strength: float) -> Sprite:
    """A soft dark patch, 24 x 24."""
    yy, xx = np.ogrid[-1:1:24j, -1:1:24j]
    alpha = strength * np.clip(rng.uniform(1.2, 2.5) * (1 - np.hypot(xx, yy)), 0, 1).astype(np.float32)
    return Sprite(_premultiply(np.zeros((24, 24, 3), np.float32), alpha), (12, 12))
