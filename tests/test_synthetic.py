"""Synthetic-Something: clips are pure functions of their seeds, and their evidence is where the change is."""

import hashlib

import cv2
import numpy as np
import pytest

from explain import metrics
from stabn import synthetic
from stabn.synthetic import CLASSES, generate

CAMERA = [k for k, name in enumerate(CLASSES) if "camera" in name and not name.startswith("Moving something")]


def seeds(name: str, count: int) -> list[int]:
    """Evaluation seeds of one class."""
    return [CLASSES.index(name) + len(CLASSES) * k for k in range(count)]


def plan(seed: int, frames: int = 16, size: int = 32) -> synthetic._Scene:
    """What happens in a clip."""
    return synthetic._plan(np.random.default_rng([synthetic.VERSION, seed]), seed % len(CLASSES), frames, size)


def test_sample_has_the_promised_shapes_and_types():
    sample = generate(3, frames=6, size=32)
    assert sample.frames.shape == (6, 32, 32, 3)
    assert sample.frames.dtype == np.uint8
    assert sample.mask.shape == (6, 32, 32)
    assert sample.mask.dtype == bool
    assert sample.action.shape == (6,)
    assert sample.action.dtype == bool
    assert sample.label == 3


def test_a_clip_is_a_pure_function_of_its_seed():
    np.random.seed(0)
    first = generate(11, frames=5, size=32)
    np.random.seed(1)
    generate(12, frames=5, size=32)
    again = generate(11, frames=5, size=32)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.frames, generate(11 + len(CLASSES), frames=5, size=32).frames)


def plan_digest() -> str:
    """sha256 over everything that is drawn by chance before the first pixel, rounded so that no last bit counts."""
    digest = hashlib.sha256()
    for seed in [*range(2 * len(CLASSES)), synthetic.TRAINING_SEEDS]:
        rng = np.random.default_rng([synthetic.VERSION, seed])
        scene = synthetic._plan(rng, seed % len(CLASSES), 8, 32)
        camera = scene.camera
        curves = [scene.p, camera.x, camera.y, camera.zoom, camera.roll]
        for layer in scene.layers:
            curves += [layer.x, layer.y, layer.scale, layer.angle]
        for curve in curves:
            digest.update((np.round(np.asarray(curve, np.float64), 4) + 0.0).tobytes())
        digest.update(str(rng.integers(2**32)).encode())  # and how often chance was asked
    return digest.hexdigest()


def test_the_generator_is_the_one_that_its_version_names():
    """Whoever changes what clips look like raises VERSION, trains anew, makes every table anew, then this hash."""
    assert (synthetic.VERSION, plan_digest()) == (3, "8cb3c2f3abdb0ce2cdc151b709b25a37ecd3e57a3aee3b700cbcb29b395bd55e")


def test_the_drawing_is_the_one_that_the_version_names():
    """Thumbnails within two grey levels: decoders and processors may round differently, generators may not."""
    thumbnails = [
        generate(seed, 4, 32).frames.reshape(4, 2, 16, 2, 16, 3).mean((0, 2, 4, 5)).ravel() for seed in (0, 7, 13)
    ]
    np.testing.assert_allclose(thumbnails, THUMBNAILS, atol=2)


THUMBNAILS = [[87.8, 44.3, 108.5, 110.0], [119.2, 138.3, 113.6, 135.6], [78.5, 65.7, 106.8, 87.8]]


@pytest.mark.parametrize("name", [name for k, name in enumerate(CLASSES) if k not in CAMERA])
def test_what_acts_has_a_mask_and_the_mask_is_a_small_part(name):
    samples = [generate(seed, 8, 32) for seed in seeds(name, 16)]
    shares = np.concatenate([sample.mask[sample.action].mean((1, 2)) for sample in samples])
    assert 0 < np.median(shares) < 0.35


@pytest.mark.parametrize("label", CAMERA)
def test_a_camera_class_has_an_empty_mask_and_an_action(label):
    sample = generate(label, 8, 32)
    assert not sample.mask.any()
    assert sample.action.any()


def test_the_median_mask_covers_5_to_18_percent():
    shares = np.concatenate([generate(seed, 6, 48).mask.mean((1, 2)) for seed in range(180)])
    assert 0.05 <= np.median(shares[shares > 0]) <= 0.18


def test_holding_is_its_own_evidence():
    assert generate(CLASSES.index("Holding something"), 8, 32).action.all()


@pytest.mark.parametrize(
    ("name", "axis", "sign"),
    [
        ("Pushing something from left to right", 1, 1),
        ("Pushing something from right to left", 1, -1),
        ("Moving something up", 0, -1),
        ("Moving something down", 0, 1),
        ("Something falling like a rock", 0, 1),
    ],
)
def test_what_acts_moves_the_way_the_class_says(name, axis, sign):
    """The thing is the acting layer that is not the long arm."""
    for seed in seeds(name, 12):
        scene = plan(seed)
        acting = [layer for layer in scene.layers if layer.acting]
        thing = min(acting, key=lambda layer: layer.sprite.rgba.shape[0] / layer.sprite.rgba.shape[1])
        path = thing.x if axis == 1 else thing.y
        assert sign * (path[-1] - path[0]) > 0.15


def test_the_outline_of_a_thing_is_where_it_is_drawn():
    """Its lowest and its rightmost pixel, in a film that was squeezed."""
    for seed in range(0, 36, 3):
        scene = plan(seed, 2, 128)
        thing = synthetic._object(scene, 0.2, scene.constant(0.5), scene.constant(0.5), True)
        scene.layers, scene.camera = [thing], synthetic._Camera(*(scene.constant(v) for v in (0, 0, 1, 0)))
        seen = synthetic._draw(scene, np.zeros((9, 9, 3), np.uint8), np.zeros(1), 128)[1][0] > 0.5
        for axis, direction in ((0, 0), (1, np.pi / 2)):
            edge = np.flatnonzero(seen.any(axis)).max() / 128 - 0.5
            assert abs(synthetic._outline(scene, thing, direction)[0].max() - edge) < 0.02


@pytest.mark.parametrize(("name", "touching"), [("so they collide with", True), ("closer to", False)])
def test_two_things_that_collide_touch_and_two_that_come_closer_do_not(name, touching):
    """As they are drawn where they are nearest, seen from far enough."""
    for seed in seeds(f"Moving something and something {name} each other", 12):
        scene = plan(seed, 400, 64)
        scene.camera = synthetic._Camera(*(scene.constant(v) for v in (0, 0, 0.5, 0)))
        a, b = (layer for layer in scene.layers if layer.acting and np.ptp(layer.sprite.rgba.shape[:2]) == 0)
        nearest = np.argmin(np.hypot(a.x - b.x, a.y - b.y))
        places = []
        for thing in (a, b):
            scene.layers = [thing]
            places.append(synthetic._draw(scene, np.zeros((9, 9, 3), np.uint8), np.array([nearest]), 128)[1][0] > 0.3)
        gap = cv2.distanceTransform((~places[0]).astype(np.uint8), cv2.DIST_L2, 5)[places[1]].min()
        assert (gap < 2) == touching  # pixels of 1 / 64 view


@pytest.mark.parametrize(
    ("name", "dx", "dy"),
    [("left", 1, 0), ("right", -1, 0), ("upwards", 0, 1), ("downwards", 0, -1)],
)
def test_when_the_camera_turns_the_picture_goes_the_other_way(name, dx, dy):
    """Where a world point is drawn in the first and the last frame."""
    for seed in seeds(f"Turning the camera {name} while filming something", 8):
        scene = plan(seed)
        matrices = synthetic._view(scene.camera, np.array([0.0, 15.0]), 1.0, 64)
        first, last = (matrix @ np.array([0.5, 0.5, 1]) for matrix in matrices)
        assert np.dot(last - first, (dx, dy)) > 0.1 * 64


def test_frames_change_more_in_the_action_than_outside():
    inside, outside = [], []
    for seed in seeds("Turning the camera left while filming something", 30):
        sample = generate(seed, 12, 32)
        change = np.abs(np.diff(sample.frames.astype(float), axis=0)).mean((1, 2, 3))
        both = sample.action[1:] & sample.action[:-1]
        inside += change[both].tolist()
        outside += change[~sample.action[1:] & ~sample.action[:-1]].tolist()
    assert np.median(inside) > 1.3 * np.median(outside)


def test_no_position_in_the_clip_gives_the_action_away():
    """Neither a bump in the middle nor the best weight for each position ranks action frames well."""
    actions = np.stack([synthetic._action(plan(seed)) for seed in range(540)])
    bump = np.exp(-0.5 * ((np.arange(16) - 7.5) / 4) ** 2)
    for prior in (bump, actions.mean(0)):
        assert np.nanmean([metrics.temporal_auc(prior, action) for action in actions]) < 0.68
    forwards = actions[:, :8].mean()
    assert abs(forwards - actions[:, 8:].mean()) < 0.05  # as often early as late


def test_the_whole_action_lies_in_the_clip():
    for seed in set(range(180)) - set(seeds("Something falling like a rock", 10)):
        scene = plan(seed, 48)
        assert (scene.p[0], scene.p[-1]) == (0, 1)
        assert np.diff(scene.p).min() >= -1e-6
        outside = (scene.u < scene.start - 0.03) | (scene.u > scene.end + 0.03)
        assert not synthetic._action(scene)[outside].any() or scene.still


def test_the_change_of_pixels_alone_does_not_show_where():
    """Frame difference sees what acts, but also what shakes, sways and flickers."""
    energies = []
    for seed in set(range(180)) - {k + len(CLASSES) * j for k in CAMERA for j in range(10)}:
        sample = generate(seed, 16, 32)
        difference = metrics.frame_difference(sample.frames)
        energies.append(metrics.energy_in_mask(difference, sample.mask, sample.action))
    assert 1.5 < np.median(energies) < 2.2


def test_what_has_no_part_in_the_action_goes_nowhere():
    """Whatever sways or wanders comes most of its way back."""
    for seed in range(120):
        scene = plan(seed, 64)
        stray = synthetic._stray(scene)
        assert not stray.acting
        for path in (stray.x, stray.y):
            assert abs(path[-1] - path[0]) <= 0.4 * np.abs(np.diff(path)).sum()


def test_a_camera_that_shakes_does_not_turn():
    """How far the camera comes over the clip, in views."""
    ends = {True: [], False: []}
    for seed in range(360):
        name, camera = CLASSES[seed % len(CLASSES)], plan(seed).camera
        if "with your camera" not in name:
            way = np.hypot(*(path[-3:].mean() - path[:3].mean() for path in (camera.x, camera.y)))
            ends["Turning the camera" in name].append(way)
    assert np.quantile(ends[False], 0.99) < 0.1 < np.quantile(ends[True], 0.01)


def test_the_mask_is_what_acts_and_is_seen():
    """Nothing else is in it, and what stands in front takes away from it."""
    for seed in range(0, 36, 3):
        scene, times = plan(seed, 4), np.arange(4.0)
        background = np.zeros((70, 70, 3), np.uint8)
        free = synthetic._draw(scene, background, times, 32)[1]
        scene.layers.append(synthetic._object(scene, 0.2, scene.constant(0.5), scene.constant(0.5)))
        covered = synthetic._draw(scene, background, times, 32)[1]
        assert (covered <= free).all()
        assert covered[:, 16, 16].max() < 0.01 or scene.layers[-1].sprite.rgba[..., 3].mean() < 200
        scene.layers = [layer for layer in scene.layers if not layer.acting]
        assert not synthetic._draw(scene, background, times, 32)[1].any()


def test_a_clip_may_have_two_frames_only():
    for seed in range(len(CLASSES)):
        sample = generate(seed, 2, 16)
        assert sample.frames.std() > 0
        assert sample.action.any()


@pytest.mark.parametrize("seed", [0, 1, 4, 10])
def test_the_share_of_action_frames_does_not_depend_on_the_number_of_frames(seed):
    few, many = (generate(seed, frames, 16).action.mean() for frames in (16, 96))
    assert abs(few - many) < 0.13


def test_backgrounds_are_an_argument_and_are_not_changed():
    photo = np.full((40, 60, 3), 200, np.uint8)
    before = photo.copy()
    plain = [generate(seed, 3, 32).frames for seed in range(6)]
    photographed = [generate(seed, 3, 32, backgrounds=[photo]).frames for seed in range(6)]
    assert any(not np.array_equal(a, b) for a, b in zip(plain, photographed, strict=True))
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize(("arguments", "word"), [((-1, 8, 32), "seed"), ((0, 1, 32), "frames"), ((0, 8, 15), "size")])
def test_bad_arguments_are_named_with_their_value(arguments, word):
    with pytest.raises(ValueError, match=f"`{word}` is {arguments[('seed', 'frames', 'size').index(word)]}"):
        generate(*arguments)
