"""Synthetic-Something: short clips whose evidence is known.

No real data set says which pixels and which frames are the reason for a label. Here a hand or an object acts
before a varied scene; the label is one of Something-Something V2's own class names, and with the frames come
the mask of the acting things (where) and the frames in which the action happens (when).

Each clip is a pure function of its seed; seed % len(CLASSES) is its label. Seeds below 10**9 are for evaluation,
those from 10**9 on for training. Nothing but the motion gives the label away: an action may lie anywhere in the clip
and pause, the camera shakes, and what has no part in the action sways, flickers and fidgets, but goes nowhere.

Coordinates: the view is the unit square, x to the right, y downwards; the world goes on beyond it. What is in it looks
squeezed, as a wide film does in a square. Time u runs from 0 to 1 over the clip. What things look like is drawn in
`stabn.scenery`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from stabn import scenery
from stabn.scenery import Bytes, Floats, Sprite

VERSION = 3
TRAINING_SEEDS = 10**9  # the first seed that may be trained on


class Sample(NamedTuple):
    """One labelled clip with its evidence."""

    frames: Bytes  # (T, S, S, 3) uint8 RGB
    label: int  # index into CLASSES
    mask: NDArray[np.bool_]  # (T, S, S): the visible part of what acts (hand, arm, object); empty for a camera class
    action: NDArray[np.bool_]  # (T,): the frames in which the action happens


@dataclass
class _Layer:
    """A picture that moves through the clip: where its anchor is, its scale and angle in each frame."""

    sprite: Sprite
    unit: float  # length of one sprite pixel in the world, at scale 1
    x: Floats  # (T,)
    y: Floats
    scale: Floats
    angle: Floats  # radians, clockwise on the screen
    acting: bool = False
    depth: float = 1.0  # how far the layer moves when the camera moves (parallax)
    light: Floats | None = None  # (T,) what its own colour is multiplied by


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
    start: float  # when it begins and ends, in u
    end: float
    camera: _Camera
    actor: scenery.Body  # whose hands they are, mostly
    close: float  # how near the camera is: hands and things are so much larger
    aspect: float  # width over height of the film that was squeezed into the square view
    layers: list[_Layer] = field(default_factory=list)
    still: bool = False  # nothing ever moves: every frame is an action frame

    def constant(self, value: float) -> Floats:
        return np.full(self.frames, value, np.float32)


def _smooth_noise(rng: Generator, count: int, amplitude: float, cells: int) -> Floats:
    """(count,) smooth random curve around 0, with about `cells` turns."""
    knots = rng.normal(0, 1, cells + 3)
    return (amplitude * np.interp(np.linspace(0, cells + 2, count), np.arange(cells + 3), knots)).astype(np.float32)


def _wander(rng: Generator, count: int, amplitude: float, cells: int) -> Floats:
    """(count,) smooth random curve that ends where it began."""
    curve = _smooth_noise(rng, count, amplitude, cells)
    return curve - np.linspace(curve[0], curve[-1], count, dtype=np.float32)


def _object(scene: _Scene, radius: float, x: Floats, y: Floats, acting: bool = False) -> _Layer:
    """A thing of about `radius` (world units) at (x, y)."""
    rng, px = scene.rng, max(8, round(2.6 * radius * scene.px))
    angle = scene.constant(rng.choice([0.0, rng.uniform(-0.5, 0.5), rng.uniform(-3, 3)]))
    return _Layer(scenery.thing(rng, px), 2.4 * radius / px, x, y, scene.constant(1), angle, acting)


def _outline(scene: _Scene, thing: _Layer, direction: float) -> Floats:
    """(2, n) how far a thing's pixels lie from its place in a direction, and across it, at scale 1, as it is drawn."""
    alpha = thing.sprite.rgba[..., 3]
    points = np.argwhere(alpha > alpha.max() / 2)[:, ::-1] - thing.sprite.anchor
    pose = _pose(thing, np.zeros(1), scene.aspect)[0, :, :2] / thing.scale[0]
    c, s = np.cos(direction), np.sin(direction)
    return np.array([[c, s], [-s, c]]) @ pose @ points.T


def _touch(scene: _Scene, things: Sequence[_Layer], line: float) -> float:
    """How far apart the places of two things on a line are when they touch."""
    strips = int(scene.px) // 2  # along the line, wider than a sprite's pixel
    fronts = np.full((2, strips), -np.inf)  # how far each reaches to the other
    for front, thing, sign in zip(fronts, things, (1, -1), strict=True):
        along, across = _outline(scene, thing, line)
        np.maximum.at(front, np.clip(strips * (across + 0.5), 0, strips - 1).astype(int), sign * along)
    return float(fronts.sum(0).max())


def _whose(scene: _Scene) -> scenery.Body:
    return scene.actor if scene.rng.random() < 0.85 else scenery.body(scene.rng)


def _hand(scene: _Scene, width: float, x: Floats, y: Floats, towards: float, acting: bool = False) -> _Layer:
    """A hand at (x, y) on an arm that leaves in the direction `towards` (radians) and goes on beyond the border."""
    sprite = scenery.hand(scene.rng, min(width, 0.2) * scene.px, _whose(scene))  # a near one is out of focus
    sway = _smooth_noise(scene.rng, scene.frames, 0.05, 2)
    angle = (towards - np.pi / 2 + sway).astype(np.float32)  # at angle 0 the arm leaves downwards, towards pi / 2
    return _Layer(sprite, scenery.ARM * width / len(sprite.rgba), x, y, scene.constant(1), angle, acting)


def _arm_direction(rng: Generator) -> float:
    """Where an arm comes from: mostly below, often a side, seldom above."""
    return float(np.pi / 2 + (rng.normal(0, 0.8) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)))


def _eased(s: Floats) -> Floats:
    """From 0 to 1 with a soft start and end as s goes from 0 to 1; flat before and after."""
    s = np.clip(s, 0, 1)
    return s * s * (3 - 2 * s)


def _visit(scene: _Scene, chance: float) -> Floats:
    """(T,) from 0 to 1 how far a hand is away: it may come in before the action and leave after it, alike."""
    rng, away = scene.rng, np.zeros(scene.frames, np.float32)
    for wait in (scene.start - scene.u, scene.u - scene.end):
        if rng.random() < chance:
            away = np.maximum(away, _eased((wait - rng.uniform(0, 0.1)) / rng.uniform(0.12, 0.3)))
    return away


def _grip(
    scene: _Scene, thing: _Layer, radius: float, towards: float, acting: bool, away: Floats, width: float = 0
) -> None:
    """Adds a hand, or two, that hold `thing` and follow it while `away` is 0, and at times the shadow that it casts."""
    rng = scene.rng
    if rng.random() < 0.35:
        _cast(scene, thing, radius)
    hands = []
    other = np.pi - towards + rng.normal(0, 0.4)  # the arm on the other side
    for arm in [towards] if rng.random() < 0.85 else [towards, other]:
        dx, dy = np.cos(arm), np.sin(arm)
        size = width or _hand_width(scene)
        reach = _outline(scene, thing, arm)[0].max() * rng.uniform(0.4, 1) + size * rng.uniform(0, 0.4)
        x = thing.x + (reach * thing.scale + 1.1 * away) * dx
        y = thing.y + (reach * thing.scale + 1.1 * away) * dy
        hand = _hand(scene, size, x.astype(np.float32), y.astype(np.float32), arm, acting)
        hand.scale, hand.depth = thing.scale, thing.depth
        hands.append(hand)
    scene.layers += [thing, *hands] if rng.random() < 0.5 else [*hands, thing]


def _cast(scene: _Scene, thing: _Layer, radius: float) -> None:
    """Adds the shadow of a thing, which goes where the thing goes and has no part in the mask."""
    rng = scene.rng
    size, sprite = radius * rng.uniform(1.1, 1.6), scenery.shadow(rng, rng.uniform(0.2, 0.6))
    dx, dy = rng.normal(0, 0.5 * radius, 2)
    x, y = thing.x + dx * thing.scale, thing.y + dy * thing.scale
    scene.layers.append(_Layer(sprite, 2 * size / 24, x, y, thing.scale, thing.angle, depth=thing.depth))


def _between(scene: _Scene, a: float, b: float) -> Floats:
    """From a to b as the action goes on."""
    return (a + (b - a) * scene.p).astype(np.float32)


def _radius(scene: _Scene) -> float:
    return float(scene.rng.uniform(0.065, 0.14)) * scene.close


def _hand_width(scene: _Scene) -> float:
    return float(scene.rng.uniform(0.075, 0.15)) * scene.close


def _move(dx: float, dy: float, grip: str = "any") -> Callable[[_Scene], None]:
    """One thing moved by a hand along (dx, dy); `grip` "behind" puts the hand on the side it is pushed from."""

    def direct(scene: _Scene) -> None:
        rng, r = scene.rng, _radius(scene)
        distance = rng.uniform(0.25, 0.68)
        slant = rng.normal(0, 0.1)
        vx, vy = distance * (dx - slant * dy), distance * (dy + slant * dx)
        # The middle of the path is drawn, not its start, so that no single place gives the direction away.
        mx, my = rng.uniform(0.5 - 0.12, 0.5 + 0.12) + abs(dy) * rng.normal(0, 0.12), rng.uniform(0.4, 0.66)
        thing = _object(
            scene, r, _between(scene, mx - vx / 2, mx + vx / 2), _between(scene, my - vy / 2, my + vy / 2), True
        )
        towards = _arm_direction(rng)
        if grip == "behind" and rng.random() < 0.5:
            towards = float(np.arctan2(-dy, -dx) + rng.normal(0, 0.5))
        if dy and rng.random() < 0.5:  # on a table: what is further up is further away
            thing.scale = (1 + rng.uniform(0.1, 0.5) * (thing.y - my)).astype(np.float32)
        _grip(scene, thing, r, towards, True, _visit(scene, 0.45))

    return direct


def _depth(growth: int) -> Callable[[_Scene], None]:
    """A held thing comes to the camera (growth 1) or goes away from it (-1)."""

    def direct(scene: _Scene) -> None:
        rng = scene.rng
        factor = rng.uniform(2.0, 3.2)
        r, width = rng.uniform(0.15, 0.34) / factor, rng.uniform(0.16, 0.36) / factor
        near, far = rng.uniform(0.3, 0.7, 2), rng.normal(0, 0.06, 2) - (0, 0.05)
        q = scene.p if growth > 0 else 1 - scene.p
        x, y = ((c + d * (1 - q)).astype(np.float32) for c, d in zip(near, far, strict=True))
        thing = _object(scene, r, x, y, True)
        thing.scale = (factor**q).astype(np.float32)
        _grip(scene, thing, r, _arm_direction(rng), True, _visit(scene, 0.15), width)

    return direct


def _pair(kind: str) -> Callable[[_Scene], None]:
    """Two things on a line: closer, apart, collide or pass. Somebody moves them, mostly one with each hand."""

    def direct(scene: _Scene) -> None:
        rng, p = scene.rng, scene.p
        line = rng.normal(0, 0.25) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
        along, across = np.array([np.cos(line), np.sin(line)]), np.array([-np.sin(line), np.cos(line)])
        middle = np.array([rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.65)])
        radii = [min(rng.uniform(0.8, 1.4) * _radius(scene), 0.22) for _ in range(2)]
        things = [_object(scene, radius, p, p, True) for radius in radii]  # put in their places below
        touch = _touch(scene, things, line)
        far = touch + rng.uniform(0.3, 0.6) + (0 if kind == "pass" else rng.choice([0, 0, 0.3]))  # or out of view
        near = touch + rng.uniform(0.04 if kind == "closer" else 0, 0.14)
        offset = 0.0
        if kind == "closer":
            gap = far + (near - far) * p
        elif kind == "apart":
            gap = near + (far - near) * p
        elif kind == "pass":
            beside = sum(np.ptp(_outline(scene, thing, line)[1]) for thing in things) / 2
            gap, offset = far * (1 - 2 * p), min(beside * rng.uniform(0.35, 1), 0.35) * rng.choice([-1, 1])
        else:  # collide: they meet, then recoil, or stay together
            hit, recoil = (rng.uniform(0.5, 0.7), rng.uniform(0.2, 0.45)) if rng.random() < 0.7 else (1, 0)
            gap = np.interp(p, (0, hit, 1), (far, touch - 0.01, touch + recoil))
        share = rng.choice([0.5, 0.5, rng.uniform(0.2, 0.8)])  # who moves how much
        body, spread = _arm_direction(rng), rng.lognormal(0.3, 0.8)  # where the arms come from, and how far apart
        home = np.array([np.cos(body), np.sin(body)])
        away, taken = _visit(scene, 0.5), rng.random() < 0.35  # the hands come and leave with the things, or without
        for sign, part, thing, radius in zip((-1, 1), (share, 1 - share), things, radii, strict=True):
            rest = 0.5 * sign * far
            place = rest + 2 * part * (0.5 * sign * gap - rest) if kind != "pass" else 0.5 * sign * gap
            centre = middle + 0.5 * sign * offset * across + place[:, None] * along
            thing.x, thing.y = (centre + 1.1 * taken * away[:, None] * home).astype(np.float32).T
            if rng.random() < 0.85:
                towards = float(np.arctan2(*(home + spread * sign * along)[::-1]) + rng.normal(0, 0.2))
                width = rng.uniform(0.8, 1.5) * _hand_width(scene)
                _grip(scene, thing, radius, towards, True, (1 - taken) * away, width)
            else:
                scene.layers.append(thing)

    return direct


def _fall(scene: _Scene) -> None:
    """A thing is let go and falls with growing speed, out of the picture or onto the ground."""
    rng, r = scene.rng, _radius(scene)
    start = scene.start
    lasting = min(rng.uniform(0.2, 0.4), 1 - start)  # a fall is short, whatever the other actions take
    fall = (np.clip((scene.u - start) / lasting, 0, 1) ** 2).astype(np.float32)
    top, ground = rng.uniform(0.08, 0.3), rng.choice([rng.uniform(0.75, 0.95), 1.4])
    x = rng.uniform(0.25, 0.75)
    scene.p = fall
    thing = _object(scene, r, _between(scene, x, x + rng.normal(0, 0.05)), _between(scene, top, ground), True)
    scene.p = np.minimum(fall, (1 - top) / (ground - top))  # what is out of sight happens no more
    thing.angle = thing.angle + (rng.normal(0, 1.2) * fall).astype(np.float32)
    scene.layers.append(thing)
    if rng.random() < 0.7:  # the hand that let go stays, or withdraws
        towards = _arm_direction(rng) if rng.random() < 0.3 else float(rng.choice([0, np.pi]) + rng.normal(0, 0.5))
        away = 0.7 * r + (1.1 * _eased((scene.u - start) / 0.4) if rng.random() < 0.4 else scene.constant(0))
        hx, hy = ((c + away * d).astype(np.float32) for c, d in ((x, np.cos(towards)), (top, np.sin(towards))))
        scene.layers.append(_hand(scene, _hand_width(scene), hx, hy, towards))


def _hold(scene: _Scene) -> None:
    """A hand holds a thing: nothing happens, all the time."""
    rng, r = scene.rng, _radius(scene)
    tremor = rng.uniform(0, 0.012)
    x = rng.uniform(0.3, 0.7) + _smooth_noise(rng, scene.frames, tremor, 5)
    y = rng.uniform(0.3, 0.7) + _smooth_noise(rng, scene.frames, tremor, 5)
    thing = _object(scene, r, x.astype(np.float32), y.astype(np.float32), True)
    _grip(scene, thing, r, _arm_direction(rng), True, scene.constant(0))
    scene.still = True


def _scenery(scene: _Scene) -> None:
    """Something to film: a thing that stays where it is, often in a hand that does nothing."""
    rng, r = scene.rng, _radius(scene)
    thing = _object(scene, r, scene.constant(rng.uniform(0.25, 0.75)), scene.constant(rng.uniform(0.25, 0.75)))
    thing.depth = rng.uniform(1, 1.3)
    if rng.random() < 0.6:
        _grip(scene, thing, r, _arm_direction(rng), False, scene.constant(0))
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


def _stray(scene: _Scene) -> _Layer:
    """Something that moves and has no part in the action. It sways, flickers or fidgets about where it is, so that it
    never shows what a class is named after."""
    rng, kind = scene.rng, scene.rng.integers(6)
    x, y = scene.constant(rng.uniform(0, 1)), scene.constant(rng.uniform(0, 1))
    one, none = scene.constant(1), scene.constant(0)
    swing = np.sin(2 * np.pi * (rng.uniform(1.5, 4) * scene.u + rng.random())).astype(np.float32)
    if kind == 0:  # a thing rocks, or slides to and fro
        layer = _object(scene, rng.uniform(0.07, 0.17), x, y)
        if rng.random() < 0.5:
            layer.x = x + rng.uniform(0.02, 0.07) * swing
        else:
            layer.angle = layer.angle + rng.uniform(0.2, 0.7) * swing
        return layer
    if kind == 1:  # a thing hangs and swings
        radius = rng.uniform(0.05, 0.12)
        px = max(8, round(2.6 * radius * scene.px))
        sprite = scenery.thing(rng, px)._replace(anchor=(px / 2, -rng.uniform(0.5, 2) * px))
        return _Layer(sprite, 2.4 * radius / px, x, y - 0.4, one, rng.uniform(0.1, 0.4) * swing)
    if kind == 2:  # a plant in the wind
        size = rng.uniform(0.25, 0.6)
        px = max(8, round(size * scene.px))
        wind = _wander(rng, scene.frames, rng.uniform(0.06, 0.2), 8)
        side = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)
        return _Layer(scenery.plant(rng, px), size / px, scene.constant(side), y + 0.4, one, wind)
    if kind == 3:  # a screen flickers
        size = rng.uniform(0.15, 0.4)
        px = max(8, round(size * scene.px))
        light = 1 + np.clip(_smooth_noise(rng, scene.frames, 0.35, 12), -0.9, 1)
        return _Layer(scenery.screen(rng, px), size / px, x, y, one, scene.constant(rng.normal(0, 0.1)), light=light)
    if kind == 4:  # a shadow wanders
        size, strength = rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.5)
        x, y = (c + _wander(rng, scene.frames, 0.15, 5) for c in (x, y))
        return _Layer(scenery.shadow(rng, strength), size / 24, x, y, one + rng.uniform(0, 0.3) * swing, none)
    # a hand, an elbow or a knee fidgets at the border
    towards = rng.uniform(-np.pi, np.pi)
    place = 0.5 + rng.uniform(0.35, 0.55) * np.array([np.cos(towards), np.sin(towards)])
    x, y = (c + _wander(rng, scene.frames, rng.uniform(0.015, 0.045), 7) for c in place)
    return _hand(scene, _hand_width(scene), x, y, towards)


def _distract(scene: _Scene, moving: int) -> None:
    """What stands about behind the action: things that lie still, perhaps somebody, and `moving` things that do not."""
    rng = scene.rng
    if rng.random() < 0.2:
        size = rng.uniform(0.6, 1.7)
        px = round(size * scene.px)
        x = rng.uniform(0.1, 0.9) + _smooth_noise(rng, scene.frames, 0.012 if moving else 0, 3)
        y = scene.constant(rng.uniform(0.9, 1 + 0.3 * size))
        angle = _smooth_noise(rng, scene.frames, 0.03 if moving else 0, 3)
        scene.layers.append(
            _Layer(scenery.person(rng, px, _whose(scene)), size / px, x, y, scene.constant(1), angle, depth=0.9)
        )
    for _ in range(int(rng.choice([0, 0, 1, 1, 3]))):
        x, y = scene.constant(rng.uniform(0, 1)), scene.constant(rng.uniform(0.1, 1))
        scene.layers.append(_object(scene, _radius(scene), x, y))
    scene.layers += [_stray(scene) for _ in range(moving)]


def _cover(scene: _Scene, moving: bool) -> None:
    """Now and then something stands in front and hides a part of what happens."""
    rng = scene.rng
    if rng.random() < 0.85:
        return
    x, y = scene.constant(rng.uniform(0.1, 0.9)), scene.constant(rng.uniform(0.2, 1.0))
    one, kind = scene.constant(1), rng.integers(3)
    if kind == 0:
        layer = _object(scene, rng.uniform(0.08, 0.14), x, y)
    elif kind == 1:
        width = rng.uniform(0.06, 0.13)
        px = max(5, round(1.5 * width * scene.px))
        angle = scene.constant(np.pi / 2 * rng.choice([0.05, 1, 1]) + rng.normal(0, 0.1))
        layer = _Layer(scenery.bar(rng, px), 1.5 * width / px, x, y, one, angle)
    else:
        size = rng.uniform(0.2, 0.4)
        px = round(size * scene.px)
        wind = _smooth_noise(rng, scene.frames, 0.06 if moving else 0, 6)
        layer = _Layer(scenery.plant(rng, px), size / px, x, scene.constant(rng.uniform(1.0, 1.2)), one, wind)
    layer.depth = rng.uniform(1.1, 1.4)
    scene.layers.append(layer)


def _progress(rng: Generator, u: Floats) -> tuple[Floats, float, float]:
    """(T,) from 0 to 1 how far the action is, when it starts and when it ends.

    It may lie anywhere, in the middle of the clip hardly more often than at its ends; its speed is even, eased,
    falling, growing, or broken by a pause. All of it is as likely backwards in time.
    """
    kind = rng.integers(4)
    length = rng.uniform(0.5, 0.9) if kind == 3 else rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.4, 0.8)])
    start = (1.12 - length) * rng.beta(0.35, 0.35) - 0.06  # at times the clip begins or ends in the midst of it
    s = np.clip((u - start) / length, 0, 1)
    if kind == 0:
        p = s
    elif kind == 1:
        p = _eased(s)
    elif kind == 2:
        power = rng.uniform(1.3, 2.2)
        p = s**power if rng.random() < 0.5 else 1 - (1 - s) ** power
    else:
        left, right = rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.75)
        half = rng.uniform(0.35, 0.65)
        p = half * _eased(s / left) + (1 - half) * _eased((s - right) / (1 - right))
    p = (p - p[0]) / (p[-1] - p[0])
    return p.astype(np.float32), max(start, 0.0), min(start + length, 1.0)


def _plan(rng: Generator, label: int, frames: int, size: int) -> _Scene:
    """Draws when the action happens, how the hand-held camera shakes, what is around, and lets the class direct."""
    u = np.linspace(0, 1, frames, dtype=np.float32)
    calm = rng.random() < 0.45  # clips are easy and hard, as real ones are
    shake = 0.0 if calm else rng.choice([0.0, 0.004, 0.008, 0.012, 0.018])
    moving = 0 if calm else int(rng.choice([1, 1, 2, 2, 3]))
    drift = rng.normal(0, 0 if calm else 0.02, 2) * (u - 0.5)[:, None]
    camera = _Camera(
        _smooth_noise(rng, frames, shake, 10) + drift[:, 0].astype(np.float32),
        _smooth_noise(rng, frames, shake, 10) + drift[:, 1].astype(np.float32),
        np.ones(frames, np.float32) + _smooth_noise(rng, frames, 0.5 * shake, 6),
        _smooth_noise(rng, frames, shake, 6),
    )
    close, aspect = float(np.exp(rng.uniform(-0.3, 0.8))), float(np.exp(rng.uniform(-0.1, 0.6)))
    scene = _Scene(rng, frames, size, u, *_progress(rng, u), camera, scenery.body(rng), close, aspect)
    _distract(scene, moving)
    _DIRECTIONS[CLASSES[label]](scene)
    _cover(scene, moving > 0)
    return scene


def _action(scene: _Scene) -> NDArray[np.bool_]:
    """(T,) the frames in which the action goes on, faster than 0.3 of it per clip."""
    if scene.still:
        return np.ones(scene.frames, bool)
    p = np.pad(scene.p, 1, mode="edge")
    return np.abs(p[2:] - p[:-2]) > 0.6 / (scene.frames - 1)


def _curve(values: Floats, times: Floats) -> Floats:
    """The values at fractional frames."""
    return np.interp(times, np.arange(len(values)), values)


def _similarity(scale: Floats, angle: Floats, shift: Callable[[Floats], Floats]) -> Floats:
    """(n, 2, 3) matrices that scale, turn, and then shift by shift(linear part (n, 2, 2)) (n, 2)."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    return np.concatenate([linear, shift(linear)[..., None]], -1)


def _view(camera: _Camera, times: Floats, depth: float, size: int) -> Floats:
    """(n, 2, 3) matrices from the world to the picture's pixels, for what is at `depth`."""
    x, y, zoom, roll = (_curve(v, times) for v in (camera.x, camera.y, camera.zoom, camera.roll))
    centre = np.stack([0.5 + depth * x, 0.5 + depth * y], -1)
    return _similarity(size * zoom**depth, roll, lambda linear: size / 2 - (linear @ centre[..., None])[..., 0])


def _pose(layer: _Layer, times: Floats, aspect: float) -> Floats:
    """(n, 2, 3) matrices from the sprite's pixels to the world, squeezed as the film is."""
    x, y, scale, angle = (_curve(v, times) for v in (layer.x, layer.y, layer.scale, layer.angle))
    matrices = _similarity(layer.unit * scale, angle, lambda linear: -linear @ layer.sprite.anchor)
    matrices *= [[aspect**-0.5], [aspect**0.5]]
    matrices[..., 2] += np.stack([x, y], -1)
    return matrices


def _after(outer: Floats, inner: Floats) -> Floats:
    """(n, 2, 3) matrices that apply `inner`, then `outer`."""
    product = outer[..., :2] @ inner
    product[..., 2] += outer[..., 2]
    return product


def _unmoved(matrices: Floats) -> bool:
    return bool(np.ptp(matrices, 0).max() < 1e-6)


_WORLD = 2.2  # the background covers this many views, centred; beyond it is mirrored


def _draw(scene: _Scene, background: Bytes, times: Floats, size: int) -> tuple[Floats, Floats]:
    """The pictures at `times`, (n, S, S, 3) float32 in 0..255, and the visible share of what acts, (n, S, S)."""
    unit = _WORLD / len(background)
    to_world = np.array([[unit, 0, 0.5 - _WORLD / 2], [0, unit, 0.5 - _WORLD / 2]])
    frames = np.empty((len(times), size, size, 3), np.float32)
    acting = np.zeros((len(times), size, size), np.float32)
    matrices = _after(_view(scene.camera, times, 1.0, size), to_world)
    still = len(times) if _unmoved(matrices) else 1  # so many times the same picture
    for i in range(0, len(times), still):
        frames[i : i + still] = cv2.warpAffine(
            background, matrices[i], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
    for layer in scene.layers:
        matrices = _after(_view(scene.camera, times, layer.depth, size), _pose(layer, times, scene.aspect))
        h, w = layer.sprite.rgba.shape[:2]
        corners = matrices @ np.array([[0.0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]])
        low = np.clip(np.floor(corners.min(-1)), 0, size).astype(int)
        high = np.clip(np.ceil(corners.max(-1)) + 1, 0, size).astype(int)
        matrices[..., 2] -= low
        light = None if layer.light is None else _curve(layer.light, times).astype(np.float32)
        still = len(times) if light is None and _unmoved(matrices) else 1
        for i in range(0, len(times), still):
            (left, top), (right, bottom) = low[i].tolist(), high[i].tolist()
            if left >= right or top >= bottom:
                continue
            drawn = cv2.warpAffine(layer.sprite.rgba, matrices[i], (right - left, bottom - top), flags=cv2.INTER_LINEAR)
            alpha, colour = cv2.extractChannel(drawn, 3), cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB)
            if light is not None:
                colour = colour * light[i]
            frame, share = frames[i : i + still, top:bottom, left:right], acting[i : i + still, top:bottom, left:right]
            frame *= cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB) * np.float32(1 / 255)
            frame += colour
            share += ((1.0 if layer.acting else 0.0) - share) * (alpha * np.float32(1 / 255))
    return frames, acting


def _film(rng: Generator, frames: Floats) -> Bytes:
    """The camera's part: exposure, white balance, vignette, blur, noise, contrast, compression.

    (T, S, S, 3) in 0..255 to uint8.
    """
    size = frames.shape[1]
    r = np.hypot(*np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]).astype(np.float32)
    gain = rng.uniform(0.75, 1.3) * (1 + rng.normal(0, 0.06, 3)) * (1 - rng.choice([0, 0.2]) * r[..., None] ** 2)
    turns, depth = ((2, 0.1), (12, 0.04), (6, 0.02), (6, 0))[rng.integers(4)]  # exposure wanders, a lamp flickers
    flicker = 1 + _smooth_noise(rng, len(frames), depth, turns)
    if rng.random() < 0.25:  # the camera corrects itself
        since = np.linspace(0, 1, len(frames), dtype=np.float32) - rng.uniform(0, 1)
        flicker *= np.exp(rng.normal(0, 0.3) * _eased(since / rng.uniform(0.02, 0.3)))
    grey = frames @ np.array([0.3, 0.6, 0.1], np.float32)
    level = grey.mean((1, 2))
    flicker *= (level.mean() / (level + 1)) ** rng.choice([0, 0, 0.5, 1])  # or adapts to what is in view
    frames = frames + np.float32(rng.uniform(-0.1, 0.7)) * (grey - level.mean())[..., None]  # contrast
    frames = frames * gain.astype(np.float32) * flicker[:, None, None, None] + np.float32(rng.uniform(-15, 25))
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 0.012 * size + 0.3)
        frames = np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames])
    noise = rng.choice([0.0, 0.0, 0.0, 4.0, 9.0])
    if noise:
        frames = frames + np.float32(noise) * rng.standard_normal(frames.shape, dtype=np.float32)
    film = np.clip(frames, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        curve = 255 * np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.3))
        film = curve.astype(np.uint8)[film]
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 85))]
        packets = [cv2.imencode(".jpg", frame, quality)[1] for frame in film]
        film = np.array([cv2.imdecode(packet, cv2.IMREAD_UNCHANGED) for packet in packets])
    if rng.random() < 0.4:
        _skip_blocks(film, rng.uniform(1, 5))
    return film


def _skip_blocks(film: Bytes, threshold: float) -> None:
    """Keeps blocks of the frame before that hardly changed, as video codecs do, in place."""
    size = film.shape[1]
    for before, now in pairwise(film):
        change = cv2.resize(cv2.absdiff(now, before), (size // 8,) * 2, interpolation=cv2.INTER_AREA)
        same = cv2.resize((change.max(2) < threshold).astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
        cv2.copyTo(before, same, now)


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
    background = scenery.background(rng, round(_WORLD * size * 1.1), backgrounds)
    exposures = rng.choice([1, 1, 1, 2, 3])  # more than one within a frame's time: motion blur
    shutter = rng.uniform(0.2, 0.6)
    times = (np.arange(frames)[:, None] + shutter * np.arange(exposures) / exposures).ravel()
    film, acting = (v.reshape(frames, exposures, *v.shape[1:]).mean(1) for v in _draw(scene, background, times, size))
    return Sample(_film(rng, film), label, acting > 0.5, _action(scene))


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
