"""Drawing: what lies where, on which scale, and that no input is changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from explain import TITLES, core, render
from explain.core import Explanation
from stabn.model import Box

LONG = "Moving something and something so they collide with each other"


def explanation(frames: int = 4, size: tuple[int, int] = (90, 160), **changes: Any) -> Explanation:
    made = Explanation(
        method="stabn",
        target=0,
        classes=[LONG, "Holding something"],
        probabilities=np.array([0.9, 0.1], np.float32),
        spatial=np.linspace(0, 1, frames * 4, dtype=np.float32).reshape(frames, 2, 2),
        temporal=np.linspace(0, 1, frames, dtype=np.float32),
        timestamps=np.arange(frames) / 2 + 0.25,
        frame_indices=np.arange(frames),
        source_size=size,
        view=Box(0, 0, *size),
        scale=(0.0, 1.0),
        class_agnostic=True,
        signed=False,
    )
    return replace(made, **changes)


def picture(height: int = 90, width: int = 160) -> render.Picture:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestBlend:
    view = (0.0, 0.0, 90.0, 160.0)

    def test_no_heat_leaves_the_picture(self) -> None:
        np.testing.assert_array_equal(render.blend(picture(), np.zeros((2, 2)), self.view), picture())

    def test_opacity_and_colour_by_hand(self) -> None:
        # 1 on a black picture: the last colour of turbo (0.4796, 0.01583, 0.01055) times the opacity.
        black = np.zeros((10, 10, 3), np.uint8)
        hot = render.blend(black, np.ones((2, 2)), (0, 0, 10, 10))
        expected = 255 * render.OPACITY * np.array([0.4796, 0.01583, 0.01055])
        np.testing.assert_allclose(hot[5, 5], expected, atol=1.5)
        white = render.blend(black + 255, np.ones((2, 2)), (0, 0, 10, 10))
        np.testing.assert_allclose(white[5, 5], expected + 255 * (1 - render.OPACITY), atol=2)

    def test_opacity_grows_with_the_value(self) -> None:
        white = np.full((10, 10, 3), 255, np.uint8)
        changes = [255 - render._paint(False)[1][level].astype(int).max() for level in (0, 64, 128, 192, 255)]
        assert changes == sorted(set(changes))
        faint = render.blend(white, np.full((1, 1), 0.1), (0, 0, 10, 10))
        strong = render.blend(white, np.full((1, 1), 0.9), (0, 0, 10, 10))
        assert np.abs(255 - faint.astype(int)).sum() < np.abs(255 - strong.astype(int)).sum()

    def test_the_scale_is_that_of_the_clip_not_of_the_frame(self) -> None:
        half = render.blend(picture(), np.full((2, 2), 0.5), self.view)
        again = render.blend(picture(), np.full((2, 2), 5.0), self.view, (0, 10))
        np.testing.assert_array_equal(half, again)
        assert (render.blend(picture(), np.ones((2, 2)), self.view) != half).any()

    def test_outside_the_view_the_picture_is_dark_and_bare(self) -> None:
        seen = render.blend(picture(), np.zeros((2, 2)), (0, 35, 90, 90))
        np.testing.assert_array_equal(seen[:, :35], picture()[:, :35] // 3)
        np.testing.assert_array_equal(seen[:, 125:], picture()[:, 125:] // 3)
        np.testing.assert_array_equal(seen[:, 35:125], picture()[:, 35:125])
        hot = render.blend(picture(), np.ones((2, 2)), (0, 35, 90, 90))
        assert (hot[:, 45:115] != picture()[:, 45:115]).any(axis=2).mean() > 0.95
        np.testing.assert_array_equal(hot[:, :30], picture()[:, :30] // 3)

    def test_the_hot_corner_is_where_the_map_says(self) -> None:
        black = np.zeros((90, 160, 3), np.uint8)
        corner = render.blend(black, np.array([[0, 1], [0, 0]]), self.view).sum(2)
        assert corner[:20, 140:].mean() > 10 * (corner[70:, :20].mean() + 1)

    def test_signed_maps_are_bare_in_the_middle_and_red_and_blue_at_the_ends(self) -> None:
        grey = np.full((10, 10, 3), 128, np.uint8)
        middle, high, low = (
            render.blend(grey, np.full((1, 1), value), (0, 0, 10, 10), (-2, 2), signed=True)[5, 5].astype(int)
            for value in (0, 2, -2)
        )
        np.testing.assert_allclose(middle, 128, atol=1)
        assert high[0] > high[2] + 50
        assert low[2] > low[0] + 50

    def test_a_constant_map_without_range_is_drawn(self) -> None:
        assert render.blend(picture(), np.full((2, 2), 3.0), self.view, (3, 3)).shape == (90, 160, 3)

    def test_inputs_are_not_changed(self) -> None:
        frame, heat = picture(), np.ones((2, 2), np.float32)
        render.blend(frame, heat, (0, 35, 90, 90))
        np.testing.assert_array_equal(frame, picture())
        np.testing.assert_array_equal(heat, 1)


class TestOverlay:
    def test_the_picture_is_at_source_size_and_the_band_below(self) -> None:
        overlay = render.Overlay([explanation(size=(360, 640))], 2.0)
        drawn = overlay.draw(picture(360, 640), 0.0)
        assert drawn.shape == (overlay.height, 640, 3)
        heated = render.blend(picture(360, 640), explanation().spatial[0], (0, 0, 360, 640))
        np.testing.assert_array_equal(drawn[:360], heated)
        assert overlay.height > 360 + 80

    @pytest.mark.parametrize(("width", "zoom"), [(8, 40), (128, 3), (176, 2), (319, 2), (320, 1), (1920, 1)])
    def test_small_pictures_are_enlarged_by_a_whole_factor(self, width: int, zoom: int) -> None:
        overlay = render.Overlay([explanation(size=(60, width))], 2.0)
        assert overlay.width == width * zoom
        assert overlay.heated(picture(60, width), 0.0)[0].shape == (60 * zoom, width * zoom, 3)

    def test_a_frame_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match="100 x 90, the explanation is for 160 x 90"):
            render.Overlay([explanation()], 2.0).draw(picture(90, 100), 0.0)

    def test_the_playhead_moves_with_time(self) -> None:
        band = render.Band(explanation(size=(360, 640)), 2.0, 640, 360)
        ink = np.array(render.INK, np.uint8)

        def playhead(seconds: float) -> float:
            row = band.draw(seconds)[band._top - 2]  # above the bars only the playhead is drawn
            return float(np.flatnonzero((row == ink).all(1)).mean())

        places = [playhead(seconds) for seconds in (0.0, 0.5, 1.0, 2.0)]
        np.testing.assert_allclose(np.diff(places), np.array([1, 1, 2]) * (places[-1] - places[0]) / 4, atol=1)

    def test_the_bar_of_the_nearest_sampled_frame_is_lit(self) -> None:
        band = render.Band(explanation(size=(360, 640)), 2.0, 640, 360)
        row = band.draw(1.3)[band._bottom - 2]
        lit = np.flatnonzero((row == np.array(render.ACTIVE, np.uint8)).all(1))
        left, right, *_ = band._bars[2]  # 1.25 s
        assert left <= lit.min() <= lit.max() < right

    def test_heights_of_bars_are_weights(self) -> None:
        band = render.Band(explanation(size=(360, 640)), 2.0, 640, 360)
        tops = [band._bottom - top for _, _, top, _ in band._bars]
        np.testing.assert_allclose(np.array(tops) / (band._bottom - band._top), [0, 1 / 3, 2 / 3, 1], atol=0.02)

    def test_a_long_class_name_is_wrapped_not_cut(self) -> None:
        short = render.Band(explanation(classes=["Up", "Down"], size=(180, 320)), 2.0, 320, 180)
        long = render.Band(explanation(size=(180, 320)), 2.0, 320, 180)
        assert long.height > short.height
        font, words = long.caption.font, f"{LONG} 90\xa0%"
        lines = long.caption.lines(words)
        assert " ".join(lines).replace("\xa0", " ") == f"{LONG} 90 %"
        assert all(font.getlength(line) <= 320 for line in lines)

    def test_notes_have_their_own_lines(self) -> None:
        plain = render.Band(explanation(), 2.0, 640, 360)
        noted = render.Band(
            explanation(notes=("almost flat in space (0.50 to 0.51): no place stands out",)), 2.0, 640, 360
        )
        assert noted.height > plain.height
        assert (noted.draw(0) == np.array(render.AMBER, np.uint8)).all(2).any()
        assert not (plain.draw(0) == np.array(render.AMBER, np.uint8)).all(2).any()

    def test_the_answer_is_that_of_the_window(self) -> None:
        windowed = explanation(
            windows=np.array([[0.0, 1.0], [1.0, 2.0]]),
            window_probabilities=np.array([[0.9, 0.1], [0.2, 0.8]], np.float32),
        )
        band = render.Band(windowed, 2.0, 640, 360)
        rows = slice(0, band.caption.title_height)
        early, late, end = (band.draw(seconds)[rows, :400] for seconds in (0.2, 1.4, 1.9))
        assert (early != late).any()
        np.testing.assert_array_equal(late, end)

    @pytest.mark.parametrize("frames", [1, 2, 3000])
    def test_any_number_of_sampled_frames(self, frames: int) -> None:
        many = explanation(frames, timestamps=np.arange(frames) / 30)
        band = render.Band(many, frames / 30, 320, 180)
        assert band.draw(frames / 60).shape == (band.height, 320, 3)

    def test_bars_of_signed_weights_stand_on_zero(self) -> None:
        signed = explanation(temporal=np.array([-1, 0, 1, 3], np.float32), scale=(0.0, 2.0))
        band = render.Band(signed, 2.0, 640, 360)
        tall = band._bottom - band._top
        ends = [((band._bottom - bottom) / tall, (band._bottom - top) / tall) for *_, top, bottom in band._bars]
        np.testing.assert_allclose(ends, [(0, 0.25), (0.25, 0.25), (0.25, 0.5), (0.25, 1)], atol=0.02)

    @pytest.mark.parametrize("scale", [(0.0, 1.0), (1.0, 2.0), (0.0, 2.0)])
    def test_a_map_without_places_paints_nothing(self, scale: tuple[float, float]) -> None:
        view = Box(0, 35, 90, 90)
        flat = explanation(spatial=np.ones((4, 1, 1), np.float32), scale=scale, signed=scale == (0.0, 2.0), view=view)
        overlay = render.Overlay([explanation(view=view), flat], 2.0)
        heated, bare = overlay.heated(picture(), 1.75)
        large = render.Overlay([explanation(spatial=np.zeros((4, 2, 2), np.float32), view=view)], 2.0)
        np.testing.assert_array_equal(bare, large.heated(picture(), 1.75)[0])
        assert (heated != bare).any()
        assert "weighs whole frames, not places" in render.facts(flat)[0]

    def test_inputs_are_not_changed(self) -> None:
        made = explanation()
        before = {name: np.copy(getattr(made, name)) for name in ("spatial", "temporal", "probabilities")}
        frame = picture()
        render.Overlay([made], 2.0).draw(frame, 0.3)
        np.testing.assert_array_equal(frame, picture())
        for name, value in before.items():
            np.testing.assert_array_equal(getattr(made, name), value)


class TestSideBySide:
    """Several explanations of a clip in one overlay."""

    def several(self, count: int, size: tuple[int, int]) -> list[Explanation]:
        methods = list(render.TITLES)[:count]
        return [explanation(size=size, method=name, spatial=np.zeros((4, 2, 2), np.float32)) for name in methods]

    def test_each_panel_has_its_picture_and_its_weights(self) -> None:
        zeros = np.zeros((4, 2, 2), np.float32)
        first = explanation(size=(180, 320), spatial=zeros, notes=("of the clip", "of one"))
        second = explanation(
            size=(180, 320), spatial=zeros + 1, method="grad_cam", temporal=first.temporal[::-1], notes=("of the clip",)
        )
        overlay = render.Overlay([first, second], 2.0)
        drawn, frame = overlay.draw(picture(180, 320), 0.25), picture(180, 320)
        top, gap = overlay._top, overlay._gap
        np.testing.assert_array_equal(drawn[top : top + 180, :320], frame)
        hot = render.blend(frame, zeros[0] + 1, (0, 0, 180, 320))
        np.testing.assert_array_equal(drawn[top : top + 180, 320 + gap :], hot)
        assert [band._bottom for band in overlay._bands] == [overlay._bands[0]._bottom] * 2  # the charts are in line
        heights = [[bottom - top for *_, top, bottom in band._bars] for band in overlay._bands]
        assert heights[0] == heights[1][::-1]
        amber = (drawn == np.array(render.AMBER, np.uint8)).all(2)
        assert amber[:top].any()  # what is said of the clip is said once
        assert amber[top + 180 :, :320].any()
        assert not amber[:, 320:][top:].any()

    @pytest.mark.parametrize(
        ("count", "size", "columns"),
        [(2, (180, 320), 2), (3, (1080, 1920), 3), (4, (1080, 1920), 2), (6, (256, 340), 3), (9, (1080, 1920), 5)],
    )
    def test_more_than_three_are_in_rows_and_large_ones_are_reduced(
        self, count: int, size: tuple[int, int], columns: int
    ) -> None:
        overlay = render.Overlay(self.several(count, size), 2.0)
        frame = np.full((*size, 3), 200, np.uint8)
        drawn = overlay.draw(frame, 0.5)
        assert drawn.shape == (overlay.height, overlay.width, 3)
        light = (drawn == 200).all(2)
        tall, wide = overlay._picture
        rows = -(-count // columns)
        assert light.any(0).sum() == columns * wide
        assert light.any(1).sum() == rows * tall
        assert light.sum() >= count * tall * wide
        assert overlay.width <= max(render.ALL_WIDTH + 200, columns * (render.MIN_WIDTH + 10))
        assert tall / wide == pytest.approx(size[0] / size[1], rel=0.01)


class TestPictures:
    @pytest.mark.parametrize("size", [(90, 160), (160, 90), (40, 400)])
    def test_figure(self, tmp_path: Path, size: tuple[int, int]) -> None:
        made = explanation(size=size, view=Box(0, 0, min(size), min(size)))
        frames = [render.thumbnail(picture(*size), 48)] * 3
        render.figure([made], frames, [0.25, 0.75, 1.25], {}, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
            pixels = np.asarray(image.convert("RGB"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all()  # nothing is cut off at the edge of the page

    def test_a_figure_of_several_with_scores(self, tmp_path: Path) -> None:
        first = explanation(spatial=np.full((4, 2, 2), 1e-4, np.float32), scale=(-1.2e-4, 1.2e-4), signed=True)
        others = [
            explanation(method="grad_cam_per_frame", notes=("a long note " * 20,)),
            explanation(method="frame_shapley", spatial=np.ones((4, 1, 1), np.float32), temporal=-first.temporal),
        ]
        score = {"value": 0.123, "random": -0.4567, "better": "high", "title": "insertion gain time"}
        names = [f"score_{k}" for k in range(21)]
        scores = {each.method: {name: {**score, "value": None} for name in names} for each in (first, *others)}
        frames = [render.thumbnail(picture(), 48)] * 8
        heights = []
        for given, table in (((first,), {}), ((first, *others), {}), ((first, *others), scores)):
            path = tmp_path / "figure.png"
            render.figure(given, frames, np.arange(8) / 4, table, path)
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            heights.append(len(pixels))
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (border == 255).all()
        assert heights == sorted(set(heights))

    @pytest.mark.parametrize("with_random", [False, True])
    def test_a_table_shows_values_beside_those_of_one_random_map(self, with_random: bool) -> None:
        low = {"value": 0.2, "random": 0.3, "better": "low", "title": "DEL"}
        high = {"value": 0.2, "random": 0.3, "better": "high", "title": "INS"}
        none = {"value": None, "random": 0.3, "better": "high", "title": "ROAD"}
        scores = {"cam": {"deletion": low, "insertion": high, "road": none}}
        if with_random:
            scores["random"] = {name: {**each, "value": each["random"]} for name, each in scores["cam"].items()}
        drawn: list[str] = []
        table = render._Table(scores, 8.0)
        table.draw(lambda x, y, words, **style: drawn.append(words), 0, 0)
        assert drawn.count(TITLES["random"]) == 1
        assert [each for each in drawn if each in ("0.20", "0.30", "-")] == [
            *["0.20", "0.30"],
            *["0.20", "0.30"],
            *["-", "0.30"],
        ]
        assert {"DEL\xa0↓", "INS\xa0↑", "CAM", "control: random"} <= set(drawn)
        assert render._Table({}, 8.0).height == 0

    def test_temporal(self, tmp_path: Path) -> None:
        render.temporal(explanation(), 2.0, tmp_path / "temporal.png")
        with Image.open(tmp_path / "temporal.png") as image:
            assert image.width == 1400

    def test_names_are_not_formulas(self, tmp_path: Path) -> None:
        odd = explanation(classes=["costs $1 or $\\frac{$", "line\nbreak"])
        render.temporal(odd, 2.0, tmp_path / "temporal.png")
        render.figure([odd], [picture()], [0.5], {}, tmp_path / "figure.png")
        assert render.Overlay([odd], 2.0).draw(picture(), 0.0).any()

    def test_facts_say_what_the_map_is_not(self) -> None:
        said = render.facts(explanation(target=1))
        cropped = render.facts(explanation(view=Box(0, 35, 90, 90)))
        assert "dark: not seen by the network" in cropped
        assert said == [
            "ST-ABN attention, class-agnostic (one map for all classes)",
            "asked about: Holding something 10 %",
            core.knows(["a", "b"]),
        ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00"), (4.204, "4.20"), (59.999, "1:00.00"), (64.5, "1:04.50"), (3600, "60:00.00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert render.clock(seconds) == text


@pytest.mark.parametrize("duration", [0.1, 1, 4.3, 13, 59, 61, 600, 7200, 200_000])
def test_ticks_are_round_and_few(duration: float) -> None:
    found = render.ticks(duration, 6)
    assert 2 <= len(found) <= 7
    assert found[0] == 0
    assert found[-1] <= duration


def test_a_word_without_spaces_is_broken() -> None:
    font = render._font(12)
    lines = render._wrap("x" * 100, font, 100)
    assert "".join(lines) == "x" * 100
    assert all(font.getlength(line) <= 100 for line in lines)


def test_numbers_keep_two_digits_in_any_unit():
    assert [render.number(value) for value in (0, 0.5, 12.35, -0.00687, 0.000123, 0.0107, 14321.7)] == [
        "0.00",
        "0.50",
        "12.35",
        "-0.0069",
        "0.00012",
        "0.011",
        "14322",
    ]
