"""Synthetic-Something: short clips whose evidence is known.

No real data set says which pixels and which frames are the reason for a label. Here a hand or an object acts
before a varied scene; the label is one of Something-Something V2's own class names, and with the frames come
the mask of the acting things (where) and the frames in which the action happens (when).

Each clip is a pure function of its seed; seed % len(CLASSES) is its label. Seeds below 10**9 are for evaluation,
those from 10**9 on for training. Coordinates: the view is the unit square, x to the right, y downwards; the
world goes on beyond it. Time u runs from 0 to 1 over the clip.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

VERSION = 1
TRAINING_SEEDS = 10**9  # the first seed that may be trained on

Floats = NDArray[Any]  # float32 or float64
Bytes = NDArray[Any]  # uint8


class Sample(NamedTuple):
    """One labelled clip with its evidence."""

    frames: Bytes  # (T, S, S, 3) uint8 RGB
    label: int  # index into CLASSES
    mask: NDArray[np.bool_]  # (T, S, S): the visible part of what acts (hand, arm, object); empty for a camera class
    action: NDArray[np.bool_]  # (T,): the frames in which the action happens


@dataclass
class _Layer:
    """A picture that moves through the clip: premultiplied RGBA, its centre and scale, a pose for each frame."""

    sprite: Bytes  # (h, w, 4) uint8, premultiplied alpha
    anchor: tuple[float, float]  # the sprite's pixel that is put at (x, y)
    unit: float  # length of one sprite pixel in the world, at scale 1
    x: Floats  # (T,)
    y: Floats
    scale: Floats
    angle: Floats  # radians, clockwise on the screen
    acting: bool = False
    depth: float = 1.0  # how far the layer moves when the camera moves (parallax)


@dataclass
class _Camera:
    """What the camera does: its centre's offset, zoom and roll for each frame."""

    x: Floats
    y: Floats
    zoom: Floats
    roll: Floats


@dataclass
class _Scene:
    """What happens in a clip, before anything is drawn: the stage that a class directs."""

    rng: Generator
    frames: int
    px: float  # picture pixels for one world unit
    u: Floats  # (T,) time
    p: Floats  # (T,) progress of the action, 0 to 1
    camera: _Camera
    layers: list[_Layer] = field(default_factory=list)
    still: bool = False  # nothing ever moves: every frame is an action frame

    def constant(self, value: float) -> Floats:
        return np.full(self.frames, value, np.float32)


def _smooth_noise(rng: Generator, count: int, amplitude: float, cells: int) -> Floats:
    """(count,) smooth random curve around 0, with about `cells` turns."""
    knots = rng.normal(0, 1, cells + 3)
    return (amplitude * np.interp(np.linspace(0, cells + 2, count), np.arange(cells + 3), knots)).astype(np.float32)


def _colour(rng: Generator) -> Floats:
    """A colour as objects have them: any hue, often muted. (3,) float in 0..255."""
    hsv = np.array([[[rng.integers(180), int(255 * rng.beta(1.3, 1.3)), int(rng.uniform(40, 255))]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _texture(rng: Generator, height: int, width: int, contrast: float) -> Floats:
    """(height, width, 1) multiplicative texture around 1: noise in octaves, stripes, checks or dots."""
    kind = rng.integers(5)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.35) * max(height, width)
    a = (xx * np.cos(angle) + yy * np.sin(angle)) * (2 * np.pi / period)
    b = (yy * np.cos(angle) - xx * np.sin(angle)) * (2 * np.pi / period)
    if kind == 0:
        value = np.sin(a)
    elif kind == 1:
        value = np.sign(np.sin(a)) * np.sign(np.sin(b))
    elif kind == 2:
        value = np.where(np.cos(a) + np.cos(b) > 0.9, 1.0, -0.3)
    else:
        value = np.zeros((height, width), np.float32)
        for octave in range(4):
            n = 2 ** (octave + 1) + 1
            grid = rng.normal(0, 0.75**octave, (n, n)).astype(np.float32)
            value = value + cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        if kind == 4:
            value = np.sin(2 * value + 0.3 * a)  # wood, cloth
    return (1 + contrast * value[..., None]).astype(np.float32)


def _background(rng: Generator, px: int, photographs: Sequence[Bytes] | None) -> Bytes:
    """(px, px, 3) scenery: a photograph, or a wall, a table and clutter."""
    if photographs and rng.random() < 0.6:
        photo = photographs[int(rng.integers(len(photographs)))]
        h, w = photo.shape[:2]
        side = int(min(h, w) * rng.uniform(0.5, 1.0))
        top, left = rng.integers(h - side + 1), rng.integers(w - side + 1)
        crop = cv2.resize(photo[top : top + side, left : left + side], (px, px), interpolation=cv2.INTER_AREA)
        return crop[:, ::-1].copy() if rng.random() < 0.5 else crop
    picture = _colour(rng) * _texture(rng, px, px, rng.uniform(0.03, 0.3))
    if rng.random() < 0.6:  # a table's edge, slightly tilted
        edge = int(px * rng.uniform(0.3, 0.7)) + rng.uniform(-0.2, 0.2) * (np.arange(px) - px / 2)
        below = np.arange(px)[:, None] > edge[None]
        picture = np.where(below[..., None], _colour(rng) * _texture(rng, px, px, rng.uniform(0.03, 0.25)), picture)
    light = np.linspace(rng.uniform(0.6, 1), rng.uniform(0.6, 1), px, dtype=np.float32)
    picture = np.clip(picture * (light[:, None, None] if rng.random() < 0.5 else light[None, :, None]), 0, 255)
    canvas = np.ascontiguousarray(picture.astype(np.uint8))
    for _ in range(int(rng.choice([0, 2, 6, 14, 25]))):  # clutter: books, papers, cables, stains
        colour = tuple(int(c) for c in _colour(rng))
        centre, kind = rng.uniform(0, px, 2), rng.integers(3)
        if kind == 0:
            box = cv2.boxPoints((tuple(centre), tuple(rng.uniform(0.03, 0.3, 2) * px), rng.uniform(0, 90)))
            cv2.fillConvexPoly(canvas, box.astype(np.int32), colour, cv2.LINE_AA)
        elif kind == 1:
            axes = rng.uniform(0.02, 0.12, 2) * px
            cv2.ellipse(canvas, (tuple(centre), tuple(2 * axes), rng.uniform(0, 180)), colour, -1, cv2.LINE_AA)
        else:
            points = (centre + np.cumsum(rng.normal(0, 0.12 * px, (5, 2)), 0)).astype(np.int32)
            cv2.polylines(canvas, [points], False, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return canvas


def _premultiply(colour: Floats, alpha: Floats) -> Bytes:
    """(h, w, 3) colour in 0..255 and (h, w) alpha in 0..1 to premultiplied RGBA."""
    rgba = np.concatenate([np.clip(colour, 0, 255) * alpha[..., None], 255 * alpha[..., None]], -1)
    return (rgba + 0.5).astype(np.uint8)


def _shaded(rng: Generator, alpha: Bytes, px: int, texture: float) -> Bytes:
    """Coloured, textured, lit sprite of a supersampled shape: (H, W) uint8 to (px, px * W / H, 4)."""
    width = max(2, round(px * alpha.shape[1] / alpha.shape[0]))
    cover = cv2.resize(alpha, (width, px), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    colour = _colour(rng) * _texture(rng, px, width, texture)
    yy, xx = np.mgrid[-1 : 1 : px * 1j, -1 : 1 : width * 1j].astype(np.float32)
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.35) * (np.cos(direction) * xx + np.sin(direction) * yy)
    return _premultiply(colour * light[..., None], cover)


def _object(scene: _Scene, radius: float, x: Floats, y: Floats, acting: bool = False) -> _Layer:
    """A thing of about `radius` (world units): box, ball, bottle, mug, star, ring, or a random outline."""
    rng, px = scene.rng, max(8, round(2.6 * radius * scene.px))
    canvas: Bytes = np.zeros((96, 96), np.uint8)
    kind = rng.integers(7)
    if kind == 0:
        w, h = rng.uniform(22, 40, 2)
        cv2.fillConvexPoly(canvas, cv2.boxPoints(((48, 48), (2 * w, 2 * h), 0)).astype(np.int32), 255)
    elif kind == 1:
        cv2.ellipse(canvas, (48, 48), tuple(int(v) for v in rng.integers(26, 42, 2)), 0, 0, 360, 255, -1)
    elif kind == 2:  # bottle
        w = int(rng.integers(12, 22))
        cv2.rectangle(canvas, (48 - w, 34), (48 + w, 90), 255, -1)
        cv2.ellipse(canvas, (48, 36), (w, 12), 0, 0, 360, 255, -1)
        cv2.rectangle(canvas, (48 - w // 3 - 2, 6), (48 + w // 3 + 2, 40), 255, -1)
    elif kind == 3:  # mug
        cv2.rectangle(canvas, (22, 18), (66, 80), 255, -1)
        cv2.ellipse(canvas, (68, 48), (16, 18), 0, 0, 360, 255, 6)
    elif kind == 4:  # ring
        cv2.circle(canvas, (48, 48), 34, 255, int(rng.integers(10, 20)))
    else:  # a star or a random outline
        n = int(rng.integers(5, 12))
        angles = np.linspace(0, 2 * np.pi, 2 * n if kind == 5 else n, endpoint=False)
        radii = np.where(np.arange(len(angles)) % 2, 40, rng.uniform(18, 36)) if kind == 5 else rng.uniform(20, 42, n)
        points = 48 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        cv2.fillPoly(canvas, [points.astype(np.int32)], 255)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), 2)
    sprite = _shaded(rng, canvas, px, rng.uniform(0, 0.45))
    angle = scene.constant(rng.choice([0.0, rng.uniform(-0.5, 0.5), rng.uniform(-3, 3)]))
    unit = 2.4 * radius / px
    return _Layer(sprite, (px / 2, px / 2), unit, x, y, scene.constant(1), angle, acting)


_SKIN = np.array(
    [[255, 219, 190], [238, 187, 150], [205, 150, 110], [160, 105, 70], [105, 68, 46], [70, 46, 34]], np.float32
)


def _hand(scene: _Scene, width: float, x: Floats, y: Floats, towards: float, acting: bool = False) -> _Layer:
    """A hand at (x, y) on an arm that leaves in the direction `towards` (radians) and goes on beyond the border."""
    rng = scene.rng
    unit_px, length = 24, 13.0  # supersampled pixels and arm length, in hand widths
    h, w = int((length + 2.4) * unit_px), 3 * unit_px
    cx, cy = w / 2, 1.6 * unit_px  # the palm
    skin, cloth = np.zeros((h, w), np.uint8), np.zeros((h, w), np.uint8)

    def quad(canvas: Bytes, y0: float, y1: float, w0: float, w1: float) -> None:
        corners = [(cx - w0, y0), (cx + w0, y0), (cx + w1, y1), (cx - w1, y1)]
        cv2.fillConvexPoly(canvas, np.array(corners).astype(np.int32), 255)

    cv2.ellipse(skin, (int(cx), int(cy)), (int(0.5 * unit_px), int(0.6 * unit_px)), 0, 0, 360, 255, -1)
    spread, curl = rng.uniform(0.05, 0.28), rng.uniform(0.35, 1.0)
    for finger in np.arange(4) - 1.5:
        root = np.array([cx + 0.25 * unit_px * finger, cy - 0.35 * unit_px])
        tip = root + unit_px * curl * np.array([np.sin(spread * finger), -np.cos(spread * finger)])
        cv2.line(skin, root.astype(int).tolist(), tip.astype(int).tolist(), 255, max(3, unit_px // 5))
    side = rng.choice([-1, 1])
    thumb = (int(cx + side * unit_px * rng.uniform(0.6, 0.95)), int(cy - unit_px * rng.uniform(-0.1, 0.6)))
    cv2.line(skin, (int(cx + side * 0.3 * unit_px), int(cy)), thumb, 255, unit_px // 4)
    quad(skin, cy + 0.3 * unit_px, h, 0.36 * unit_px, 0.6 * unit_px)
    sleeve = cy + unit_px * (rng.uniform(0.7, 3.5) if rng.random() < 0.6 else length)
    quad(cloth, sleeve, h, 0.55 * unit_px, 0.8 * unit_px)

    px = max(24, round((length + 2.4) * width * scene.px))  # sprite height in picture pixels
    out_w = max(4, round(px * w / h))
    xx = np.linspace(-1, 1, out_w, dtype=np.float32)
    tone = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.8, 1.1)
    shade = (1 + rng.uniform(-0.3, 0.3) * xx)[:, None]
    cover = [cv2.resize(c, (out_w, px), interpolation=cv2.INTER_AREA).astype(np.float32) / 255 for c in (skin, cloth)]
    fabric = _colour(rng) * _texture(rng, px, out_w, rng.uniform(0, 0.25))
    colour = np.where(cover[1][..., None] > 0.5, fabric, tone) * shade
    sprite = _premultiply(colour, np.maximum(*cover))
    scale_px = px / h
    # At angle 0 the arm leaves downwards, that is towards pi / 2.
    sway = _smooth_noise(rng, scene.frames, 0.05, 2)
    angle = (towards - np.pi / 2 + sway).astype(np.float32)
    anchor = (cx * out_w / w, (cy - 0.5 * unit_px) * scale_px)
    return _Layer(sprite, anchor, width / (unit_px * scale_px), x, y, scene.constant(1), angle, acting)


def _arm_direction(rng: Generator) -> float:
    """Where an arm comes from: mostly below, often a side, seldom above."""
    return float(np.pi / 2 + (rng.normal(0, 0.8) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)))


def _grip(scene: _Scene, thing: _Layer, radius: float, towards: float, acting: bool, visits: float = 0.35) -> None:
    """Adds a hand that holds `thing` and follows it; sometimes it comes in before the action and leaves after it."""
    rng = scene.rng
    reach = radius * rng.uniform(0.3, 0.9)
    dx, dy = np.cos(towards), np.sin(towards)
    away = np.zeros(scene.frames, np.float32)
    if rng.random() < visits:
        away = np.maximum(away, 0.9 * (1 - np.clip(scene.u / max(_start(scene), 1e-3), 0, 1)))
    if rng.random() < visits:
        end = _end(scene)
        away = np.maximum(away, 0.9 * np.clip((scene.u - end) / max(1 - end, 1e-3), 0, 1))
    x = thing.x + (reach + away) * dx * thing.scale
    y = thing.y + (reach + away) * dy * thing.scale
    hand = _hand(scene, rng.uniform(0.07, 0.125), x.astype(np.float32), y.astype(np.float32), towards, acting)
    hand.scale, hand.depth = thing.scale, thing.depth
    pair = [thing, hand] if rng.random() < 0.65 else [hand, thing]
    scene.layers += pair


def _start(scene: _Scene) -> float:
    return float(scene.u[np.argmax(scene.p > 0.01)])


def _end(scene: _Scene) -> float:
    return float(scene.u[np.argmax(scene.p > 0.99)]) if scene.p[-1] > 0.99 else 1.0


def _between(scene: _Scene, a: float, b: float) -> Floats:
    """From a to b as the action goes on."""
    return (a + (b - a) * scene.p).astype(np.float32)


def _radius(rng: Generator) -> float:
    return float(rng.uniform(0.07, 0.15))


def _move(dx: float, dy: float, grip: str = "any") -> Callable[[_Scene], None]:
    """One thing moved by a hand along (dx, dy); `grip` "behind" puts the hand on the side it is pushed from."""

    def direct(scene: _Scene) -> None:
        rng, r = scene.rng, _radius(scene.rng)
        distance = rng.uniform(0.32, 0.7)
        slant = rng.normal(0, 0.1)
        vx, vy = distance * (dx - slant * dy), distance * (dy + slant * dx)
        # The middle of the path is drawn, not its start, so that no single place gives the direction away.
        mx, my = rng.uniform(0.5 - 0.12, 0.5 + 0.12) + abs(dy) * rng.normal(0, 0.12), rng.uniform(0.4, 0.66)
        thing = _object(
            scene, r, _between(scene, mx - vx / 2, mx + vx / 2), _between(scene, my - vy / 2, my + vy / 2), True
        )
        towards = _arm_direction(rng)
        if grip == "behind" and rng.random() < 0.6:
            towards = float(np.arctan2(-dy, -dx) + rng.normal(0, 0.5))
        _grip(scene, thing, r, towards, True)

    return direct


def _depth(growth: int) -> Callable[[_Scene], None]:
    """A held thing comes to the camera (growth 1) or goes away from it (-1)."""

    def direct(scene: _Scene) -> None:
        rng, r = scene.rng, 0.75 * _radius(scene.rng)
        factor = rng.uniform(1.9, 3.2)
        x, y = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
        thing = _object(
            scene, r, _between(scene, x, x + rng.normal(0, 0.06)), _between(scene, y, y + rng.normal(0, 0.06)), True
        )
        size = factor**scene.p if growth > 0 else factor ** (1 - scene.p)
        thing.scale = size.astype(np.float32)
        _grip(scene, thing, r, _arm_direction(rng), True, visits=0)

    return direct


def _pair(kind: str) -> Callable[[_Scene], None]:
    """Two things on a line: closer, apart, collide or pass."""

    def direct(scene: _Scene) -> None:
        rng = scene.rng
        radii = [0.8 * _radius(rng), 0.8 * _radius(rng)]
        touch = sum(radii)
        line = rng.normal(0, 0.25) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
        along, across = np.array([np.cos(line), np.sin(line)]), np.array([-np.sin(line), np.cos(line)])
        middle = np.array([rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.6)])
        far, near = touch + rng.uniform(0.28, 0.5), touch * rng.uniform(1.05, 1.3)
        p, offset = scene.p, np.zeros(scene.frames)
        if kind == "closer":
            gap = far + (near - far) * p
        elif kind == "apart":
            gap = near + (far - near) * p
        elif kind == "pass":
            gap, offset = far * (1 - 2 * p), scene.constant(touch * rng.uniform(0.35, 0.6) * rng.choice([-1, 1]))
        else:  # collide: they meet, then recoil
            hit = rng.uniform(0.5, 0.7)
            recoil = rng.uniform(0.12, 0.4)
            gap = np.where(p < hit, far + (0.92 * touch - far) * p / hit, 0.92 * touch + recoil * (p - hit) / (1 - hit))
        share = rng.choice([0.5, 0.5, rng.uniform(0.2, 0.8)])  # who moves how much
        for sign, part, radius in ((-1, share, radii[0]), (1, 1 - share, radii[1])):
            rest = 0.5 * sign * far
            place = rest + 2 * part * (0.5 * sign * gap - rest) if kind != "pass" else 0.5 * sign * gap
            centre = middle[:, None] + along[:, None] * place + across[:, None] * (0.5 * sign * offset)
            x, y = centre.astype(np.float32)
            thing = _object(scene, radius, x, y, True)
            if rng.random() < 0.8:
                outward = float(np.arctan2(*(sign * along)[::-1]) + rng.normal(0, 0.5))
                _grip(scene, thing, radius, outward if rng.random() < 0.5 else _arm_direction(rng), True, visits=0.2)
            else:
                scene.layers.append(thing)

    return direct


def _fall(scene: _Scene) -> None:
    """A thing is let go and falls with growing speed, out of the picture or onto the ground."""
    rng, r = scene.rng, _radius(scene.rng)
    start = _start(scene)
    lasting = rng.uniform(0.2, 0.4)  # a fall is short, whatever the other actions take
    fall = np.clip((scene.u - start) / lasting, 0, 1) ** 2
    scene.p = fall.astype(np.float32)
    top, ground = rng.uniform(0.1, 0.35), rng.choice([rng.uniform(0.75, 0.95), 1.4])
    x = rng.uniform(0.25, 0.75)
    thing = _object(scene, r, _between(scene, x, x + rng.normal(0, 0.05)), _between(scene, top, ground), True)
    thing.angle = thing.angle + (rng.normal(0, 1.2) * fall).astype(np.float32)
    if rng.random() < 0.7:  # the hand that let go stays, or withdraws
        towards = _arm_direction(rng) if rng.random() < 0.3 else float(rng.choice([0, np.pi]) + rng.normal(0, 0.5))
        stay = rng.random() < 0.6
        back = 0 if stay else 0.8 * np.clip((scene.u - start) / 0.4, 0, 1)
        hx, hy = (c + (0.7 * r + back) * d for c, d in ((x, np.cos(towards)), (top, np.sin(towards))))
        hand = _hand(scene, rng.uniform(0.07, 0.125), scene.constant(1) * hx, scene.constant(1) * hy, towards)
        scene.layers += [thing, hand]
    else:
        scene.layers.append(thing)


def _hold(scene: _Scene) -> None:
    """A hand holds a thing: nothing happens, all the time."""
    rng, r = scene.rng, _radius(scene.rng)
    tremor = rng.uniform(0, 0.012)
    x = rng.uniform(0.3, 0.7) + _smooth_noise(rng, scene.frames, tremor, 5)
    y = rng.uniform(0.3, 0.7) + _smooth_noise(rng, scene.frames, tremor, 5)
    thing = _object(scene, r, x.astype(np.float32), y.astype(np.float32), True)
    _grip(scene, thing, r, _arm_direction(rng), True, visits=0)
    scene.still = True


def _scenery(scene: _Scene) -> None:
    """Something to film: a thing that stays where it is, often in a hand that does nothing."""
    rng, r = scene.rng, _radius(scene.rng)
    thing = _object(scene, r, scene.constant(rng.uniform(0.25, 0.75)), scene.constant(rng.uniform(0.25, 0.75)))
    thing.depth = rng.uniform(1, 1.3)
    if rng.random() < 0.6:
        _grip(scene, thing, r, _arm_direction(rng), False, visits=0)
    else:
        scene.layers.append(thing)


def _turn(dx: float, dy: float) -> Callable[[_Scene], None]:
    """The camera turns towards (dx, dy): the whole picture goes the other way."""

    def direct(scene: _Scene) -> None:
        _scenery(scene)
        distance, slant = scene.rng.uniform(0.25, 0.8), scene.rng.normal(0, 0.12)
        # The thing filmed is in view in the middle of the turn, whatever the direction.
        scene.camera.x += ((dx - slant * dy) * distance * (scene.p - 0.5)).astype(np.float32)
        scene.camera.y += ((dy + slant * dx) * distance * (scene.p - 0.5)).astype(np.float32)

    return direct


def _zoom(sign: int) -> Callable[[_Scene], None]:
    """The camera itself goes to the thing (1) or away from it (-1): everything grows or shrinks."""

    def direct(scene: _Scene) -> None:
        _scenery(scene)
        thing = scene.layers[-1]
        factor = scene.rng.uniform(1.5, 2.4)
        q = scene.p if sign > 0 else 1 - scene.p
        scene.camera.zoom *= (0.85 * factor**q).astype(np.float32)
        aim = scene.rng.uniform(0, 0.8)
        scene.camera.x += (aim * (thing.x[0] - 0.5) * q).astype(np.float32)
        scene.camera.y += (aim * (np.clip(thing.y[0], 0, 1) - 0.5) * q).astype(np.float32)

    return direct


_DIRECTIONS: dict[str, Callable[[_Scene], None]] = {
    "Pushing something from left to right": _move(1, 0, "behind"),
    "Pushing something from right to left": _move(-1, 0, "behind"),
    "Moving something up": _move(0, -1),
    "Moving something down": _move(0, 1),
    "Moving something towards the camera": _depth(1),
    "Moving something away from the camera": _depth(-1),
    "Moving something and something closer to each other": _pair("closer"),
    "Moving something and something away from each other": _pair("apart"),
    "Moving something and something so they collide with each other": _pair("collide"),
    "Moving something and something so they pass each other": _pair("pass"),
    "Turning the camera left while filming something": _turn(-1, 0),
    "Turning the camera right while filming something": _turn(1, 0),
    "Turning the camera upwards while filming something": _turn(0, -1),
    "Turning the camera downwards while filming something": _turn(0, 1),
    "Approaching something with your camera": _zoom(1),
    "Moving away from something with your camera": _zoom(-1),
    "Something falling like a rock": _fall,
    "Holding something": _hold,
}
CLASSES: tuple[str, ...] = tuple(_DIRECTIONS)


def _distract(scene: _Scene) -> None:
    """Things that have no part in the action: most lie still, some sway or turn a little."""
    rng = scene.rng
    for _ in range(int(rng.integers(0, 4))):
        x, y = scene.constant(rng.uniform(0, 1)), scene.constant(rng.uniform(0.1, 1))
        spin = np.zeros(scene.frames, np.float32)
        if rng.random() < 0.2:
            swing = rng.uniform(0.01, 0.04) * np.sin(2 * np.pi * (rng.uniform(1, 3) * scene.u + rng.random()))
            if rng.random() < 0.5:
                x = x + swing.astype(np.float32)
            else:
                spin = (10 * swing).astype(np.float32)
        thing = _object(scene, _radius(rng), x, y)
        thing.angle = thing.angle + spin
        scene.layers.append(thing)


def _plan(rng: Generator, label: int, frames: int, size: int) -> _Scene:
    """Draws when the action happens, how the hand-held camera shakes, what is around, and lets the class direct."""
    u = np.linspace(0, 1, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    length = rng.uniform(0.4, 1.0)
    start = rng.uniform(0, 1 - length)
    s = np.clip((u - start) / length, 0, 1)
    p = s + rng.uniform(-0.8, 0.8) * np.sin(2 * np.pi * s) / (2 * np.pi)  # uneven speed, never backwards
    shake = rng.choice([0.0, 0.004, 0.01, 0.016])
    drift = rng.normal(0, 0.02, 2) * (u - 0.5)[:, None]
    camera = _Camera(
        _smooth_noise(rng, frames, shake, 6) + drift[:, 0].astype(np.float32),
        _smooth_noise(rng, frames, shake, 6) + drift[:, 1].astype(np.float32),
        np.ones(frames, np.float32) + _smooth_noise(rng, frames, 0.5 * shake, 4),
        _smooth_noise(rng, frames, shake, 4),
    )
    scene = _Scene(rng, frames, size, u, p.astype(np.float32), camera)
    _distract(scene)
    _DIRECTIONS[CLASSES[label]](scene)
    return scene


def _curve(values: Floats, times: Floats) -> Floats:
    """The values at fractional frames."""
    return np.interp(times, np.arange(len(values)), values)


def _similarity(scale: Floats, angle: Floats, shift: Callable[[Floats], Floats]) -> Floats:
    """(n, 2, 3) matrices that scale, turn, and then shift by shift(linear part (n, 2, 2)) (n, 2)."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    return np.concatenate([linear, shift(linear)[..., None]], -1)


def _view(camera: _Camera, times: Floats, depth: float, size: int) -> Floats:
    """(n, 2, 3) matrices from the world to the picture's pixels."""
    x, y, zoom, roll = (_curve(v, times) for v in (camera.x, camera.y, camera.zoom, camera.roll))
    centre = np.stack([0.5 + depth * x, 0.5 + depth * y], -1)
    return _similarity(size * zoom, roll, lambda linear: size / 2 - (linear @ centre[..., None])[..., 0])


def _pose(layer: _Layer, times: Floats) -> Floats:
    """(n, 2, 3) matrices from the sprite's pixels to the world."""
    x, y, scale, angle = (_curve(v, times) for v in (layer.x, layer.y, layer.scale, layer.angle))
    place, anchor = np.stack([x, y], -1), np.array(layer.anchor)
    return _similarity(layer.unit * scale, angle, lambda linear: place - linear @ anchor)


def _after(outer: Floats, inner: Floats) -> Floats:
    """(n, 2, 3) matrices that apply `inner`, then `outer`."""
    product = outer[..., :2] @ inner
    product[..., 2] += outer[..., 2]
    return product


_WORLD = 2.2  # the background covers this many views, centred; beyond it is mirrored


def _draw(scene: _Scene, background: Bytes, times: Floats, size: int) -> tuple[Floats, Floats]:
    """The pictures at `times`, (n, S, S, 3) float32 in 0..255, and the visible share of what acts, (n, S, S)."""
    unit = _WORLD / len(background)
    to_world = np.array([[unit, 0, 0.5 - _WORLD / 2], [0, unit, 0.5 - _WORLD / 2]])
    frames = np.empty((len(times), size, size, 3), np.float32)
    acting = np.zeros((len(times), size, size), np.float32)
    for frame, matrix in zip(frames, _after(_view(scene.camera, times, 1.0, size), to_world), strict=True):
        frame[:] = cv2.warpAffine(
            background, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
    for layer in scene.layers:
        matrices = _after(_view(scene.camera, times, layer.depth, size), _pose(layer, times))
        h, w = layer.sprite.shape[:2]
        corners = matrices @ np.array([[0.0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]])
        low = np.clip(np.floor(corners.min(-1)), 0, size).astype(int)
        high = np.clip(np.ceil(corners.max(-1)) + 1, 0, size).astype(int)
        matrices[..., 2] -= low
        for i, ((left, top), (right, bottom)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            if left >= right or top >= bottom:
                continue
            drawn = cv2.warpAffine(layer.sprite, matrices[i], (right - left, bottom - top), flags=cv2.INTER_LINEAR)
            alpha = drawn[..., 3:] * np.float32(1 / 255)
            frame, share = frames[i, top:bottom, left:right], acting[i, top:bottom, left:right]
            frame += drawn[..., :3] - frame * alpha
            share += ((1.0 if layer.acting else 0.0) - share) * alpha[..., 0]
    return frames, acting


def _film(rng: Generator, frames: Floats) -> Bytes:
    """The camera's part: exposure, colour cast, vignette, blur, noise, compression. (T, S, S, 3) in 0..255 to uint8."""
    size = frames.shape[1]
    r = np.hypot(*np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]).astype(np.float32)
    gain = rng.uniform(0.65, 1.3) * (1 + rng.normal(0, 0.04, 3)) * (1 - rng.choice([0, 0.2]) * r[..., None] ** 2)
    flicker = 1 + _smooth_noise(rng, len(frames), rng.choice([0, 0, 0.03]), 6)
    frames = frames * gain.astype(np.float32) * flicker[:, None, None, None] + rng.uniform(-15, 25)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 0.012 * size + 0.3)
        frames = np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames])
    noise = rng.choice([0.0, 3.0, 8.0])
    if noise:
        frames = frames + noise * rng.standard_normal(frames.shape, dtype=np.float32)
    film = np.clip(frames, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 85))]
        packets = [cv2.imencode(".jpg", frame, quality)[1] for frame in film]
        film = np.array([cv2.imdecode(packet, cv2.IMREAD_UNCHANGED) for packet in packets])
    return film


def generate(seed: int, frames: int = 16, size: int = 112, backgrounds: Sequence[Bytes] | None = None) -> Sample:
    """One clip of Synthetic-Something, a pure function of its arguments.

    Args:
        seed: 0 or more. Its remainder by len(CLASSES) is the label. Seeds below 10**9 are for evaluation.
        frames: T, at least 2.
        size: S, the height and width in pixels, at least 16.
        backgrounds: uint8 RGB pictures (H, W, 3) of at least 16 x 16 to film some scenes before; without them
            every background is drawn. Measured scores always use none.
    Returns:
        Sample(frames (T, S, S, 3) uint8 RGB, label, mask (T, S, S) bool, action (T,) bool). A camera class has an
        empty mask and an action. "Holding something" is its own evidence: every frame is an action frame.
    Raises:
        ValueError: a seed below 0, fewer than 2 frames, a size below 16.
    """
    for name, value, least in (("seed", seed, 0), ("frames", frames, 2), ("size", size, 16)):
        if value < least:
            raise ValueError(f"`{name}` is {value}: it must be at least {least}")
    rng = np.random.default_rng([VERSION, seed])
    label = seed % len(CLASSES)
    scene = _plan(rng, label, frames, size)
    background = _background(rng, round(_WORLD * size * 1.1), backgrounds)
    exposures = rng.choice([1, 1, 1, 2, 3])  # more than one within a frame's time: motion blur
    shutter = rng.uniform(0.2, 0.6)
    times = (np.arange(frames)[:, None] + shutter * np.arange(exposures) / exposures).ravel()
    film, acting = (v.reshape(frames, exposures, *v.shape[1:]).mean(1) for v in _draw(scene, background, times, size))
    p = np.pad(scene.p, 1, mode="edge")
    action = (
        np.ones(frames, bool) if scene.still else np.abs(p[2:] - p[:-2]) > 0.3 / (frames - 1)
    )  # faster than 0.15 per clip
    return Sample(_film(rng, film), label, acting > 0.5, action)


def main() -> None:
    """Writes one clip as a video: `python -m stabn.synthetic clip.mp4 --seed 3`."""
    from stabn.video import write_video

    parser = argparse.ArgumentParser(prog="python -m stabn.synthetic", description=main.__doc__)
    parser.add_argument("video", help="the mp4 to write")
    parser.add_argument("--seed", type=int, default=0, help=f"the label is CLASSES[seed %% {len(CLASSES)}]")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--fps", type=float, default=12)
    options = parser.parse_args()
    try:
        sample = generate(options.seed, options.frames, options.size)
        write_video(options.video, sample.frames, options.fps)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{options.video}: {CLASSES[sample.label]}")


if __name__ == "__main__":
    main()
