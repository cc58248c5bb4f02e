"""The page in a real browser. The player mirrors its state in data-* attributes, and the tests wait on these."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import encode, pattern
from PIL import Image

from app import actions, guard, saved
from stabn.video import iter_frames

SLOW = 180_000  # ms, after which a test hangs: a busy machine decides how long anything takes, no test does


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    guard.prepare()
    from app.layout import LOOK, build

    demo = build()
    demo.launch(prevent_thread_lock=True, quiet=True, **guard.launch_arguments(actions.LIMITS), **LOOK)
    yield demo.local_url
    demo.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Open]:
    """visit(hash, **options of a context) -> the page; afterwards no error was raised there and no other host asked."""
    contexts, asked, errors = [], [], []

    def visit(place: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        context.set_default_timeout(SLOW)
        contexts.append(context)

        def route(request: Any) -> None:
            asked.append(urlsplit(request.request.url))
            request.continue_()

        context.route("**/*", route)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + place)
        page.wait_for_selector(".player[data-state]", state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []
    assert {each.hostname for each in asked if each.scheme not in ("data", "blob")} == {"127.0.0.1"}


def state(page: Any, name: str) -> str:
    return page.get_attribute(".player", f"data-{name}") or ""


def wait(page: Any, condition: str) -> None:
    """Until a condition on `s`, the player's data-* attributes, holds."""
    page.wait_for_function(f"() => {{ const s = document.querySelector('.player').dataset; return {condition}; }}")


def try_example(page: Any, number: int = 0) -> None:
    page.locator("#examples button.thumbnail-item").nth(number).click()
    wait(page, "s.state === 'ready' && s.busy === 'false' && +s.drawn > 0")


def still(page: Any) -> None:
    """Stops the clip, which begins to play by itself."""
    wait(page, "s.playing === 'true'")
    page.click('[data-do="play"]')
    wait(page, "s.playing === 'false'")


def arrived(page: Any, frame: int) -> None:
    """Until a sampled frame is on show."""
    wait(page, f"s.frame === '{frame}' && s.seeking === 'false'")


def click_bar(page: Any, frame: int, frames: int = 16) -> None:
    page.locator(".plot").scroll_into_view_if_needed()
    box = page.locator(".plot").bounding_box()
    page.mouse.click(box["x"] + box["width"] * (frame + 0.5) / frames, box["y"] + box["height"] / 2)
    arrived(page, frame)


def compare(page: Any, *titles: str) -> None:
    for title in titles:
        page.locator("#methods input").click()
        page.locator("#methods input").fill(title)
        page.get_by_role("option", name=title, exact=True).click()
    page.keyboard.press("Escape")


def pictures(page: Any) -> list[str]:
    """What each panel shows, pixel by pixel."""
    return page.evaluate("() => [...document.querySelectorAll('.panel > canvas')].map((c) => c.toDataURL())")


def answered(page: Any) -> None:
    wait(page, "s.asked && s.asked === s.answered")


def probabilities(page: Any, kind: str) -> dict[str, float]:
    buttons = page.locator(".classes button").all()
    found = {each.get_attribute("data-index"): each.get_attribute(f"data-{kind}") for each in buttons}
    return {index: float(value) for index, value in found.items() if value is not None}


def test_an_example_runs_at_once_and_plays(visit):
    page = visit()
    try_example(page)
    wait(page, "s.playing === 'true'")
    seen = int(state(page, "drawn"))
    wait(page, f"+s.drawn > {seen + 5}")
    wait(page, "s.frame !== '0'")
    assert page.locator(".bar").count() == 16
    assert page.locator(".classes button").count() >= 5
    assert page.locator(".truth").is_visible()
    # The picture is there, and the heat is part of it: it changes when the heat is off, and so do colours and scale.
    still(page)
    click_bar(page, 0)  # a moment whose highest heat is not the clip's, or both scales were alike
    looks = pictures(page)
    for change in (
        lambda: page.select_option('[data-set="colours"]', "viridis"),
        lambda: page.select_option('[data-set="scale"]', "frame"),
        lambda: page.fill('[data-set="opacity"]', "40"),
        lambda: page.click('[data-to="spotlight"]'),
        lambda: page.uncheck('[data-set="known"]', force=True),
        lambda: page.click('[data-to="plain"]'),
    ):
        change()
        looks += pictures(page)
    click_bar(page, 1)
    looks += pictures(page)  # without heat: the clip itself has moved on
    assert len(set(looks)) == len(looks) == 8


def test_bars_and_keys_move_the_clip(visit):
    page = visit()
    try_example(page)
    still(page)
    click_bar(page, 8)
    page.keyboard.press("ArrowRight")
    arrived(page, 9)
    page.keyboard.press("ArrowLeft")
    arrived(page, 8)
    page.select_option('[data-set="speed"]', "0.5")
    page.click('[data-do="loop"]')
    assert page.eval_on_selector(".source", "(video) => [video.playbackRate, video.loop]") == [0.5, False]
    page.click('[data-do="loop"]')
    page.locator(".plot").focus()
    page.keyboard.press("Home")
    arrived(page, 0)
    page.keyboard.press(" ")
    wait(page, "s.playing === 'true'")
    # Scrubbing holds the clip while the pointer is down and lets it go on.
    for place in (".plot", ".strip"):
        page.locator(place).scroll_into_view_if_needed()
        box = page.locator(place).bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 20)
        page.mouse.down()
        wait(page, "s.playing === 'false'")
        arrived(page, 4)
        page.mouse.move(box["x"] + box["width"] * 0.72, box["y"] + 20, steps=4)
        arrived(page, 11)
        page.mouse.up()
        wait(page, "s.playing === 'true'")


def test_what_if_changes_the_scores_and_leaves_the_position(visit):
    page = visit()
    try_example(page)
    still(page)
    click_bar(page, 6)
    moment, clip = state(page, "time"), state(page, "clip")

    def ask(change: Callable[[], None]) -> dict[str, float]:
        change()
        answered(page)
        assert (state(page, "time"), state(page, "clip")) == (moment, clip)
        return probabilities(page, "new")

    old = probabilities(page, "old")
    when = ask(lambda: page.click('label:has([data-set="invert_temporal"])'))
    both = ask(lambda: page.click('label:has([data-set="invert_spatial"])'))
    assert set(old) <= set(when)
    assert when != both
    assert any(abs(when[index] - value) > 1e-6 for index, value in old.items())
    assert page.locator(".bar .ghost:not([hidden])").count() > 0
    assert page.locator(".changed").is_visible()
    ask(lambda: page.click('[data-do="undo"]'))
    assert probabilities(page, "new") == pytest.approx(when, abs=1e-5)
    assert ask(lambda: page.click('[data-do="reset"]')) == {}
    assert probabilities(page, "old") == old
    assert page.locator(".bar .ghost:not([hidden])").count() == 0

    page.click('[data-to="bars"]')

    def drag() -> None:
        box = page.locator(".plot").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.95)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.95, steps=12)
        page.mouse.up()

    dragged = ask(drag)
    assert any(abs(dragged[index] - value) > 1e-6 for index, value in old.items())
    assert page.locator(".bar .ghost:not([hidden])").count() >= 8
    page.locator(".plot").focus()
    nudged = ask(lambda: page.keyboard.press("ArrowUp"))
    assert nudged != dragged
    assert ask(lambda: page.keyboard.press("Control+z")) == pytest.approx(dragged, abs=1e-5)
    assert ask(lambda: page.click('[data-do="reset"]')) == {}

    page.click('[data-to="erase"]')
    page.locator(".panel canvas").first.scroll_into_view_if_needed()

    def paint() -> None:
        box = page.locator(".panel canvas").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.6, steps=6)
        page.mouse.up()

    before = pictures(page)
    one = ask(paint)
    assert pictures(page) != before
    ask(lambda: page.click('[data-do="undo"]'))
    assert pictures(page) == before
    page.click('[data-to="all"]')
    every = ask(paint)
    assert one != every
    assert any(abs(every[index] - value) > 1e-6 for index, value in old.items())


def test_what_if_stays_when_methods_are_added_until_it_is_reset(visit, monkeypatch):
    taken = []

    def export(job: actions.Job, session: actions.Session) -> list[Path]:
        taken.append(session.edited)
        file = session.folder / f"take-{len(taken)}.zip"
        file.write_bytes(b"what is made of it is tested elsewhere")
        return [file]

    def take(page: Any) -> Any:
        name = f"take-{len(taken) + 1}.zip"  # before the click: the server does not wait for this thread
        page.click("#make")
        page.wait_for_selector(f"#files a[download='{name}']")
        return taken[-1]

    monkeypatch.setattr(saved, "export", export)
    page = visit()
    try_example(page)
    still(page)
    page.click('label:has([data-set="invert_temporal"])')
    answered(page)
    changed = probabilities(page, "new")
    assert changed
    page.locator("#methods .token-remove").first.click()
    compare(page, "Grad-CAM", "ST-ABN attention")  # the one that can be changed comes first all the same
    page.click("#run")
    wait(page, "s.methods === 'stabn,grad_cam' && s.busy === 'false'")
    answered(page)
    assert page.locator(".changed").is_visible()
    assert probabilities(page, "new") == pytest.approx(changed, abs=1e-5)
    page.click('[data-to="bars"]')
    page.locator(".plot").focus()
    page.keyboard.press("ArrowUp")
    answered(page)
    assert probabilities(page, "new") != pytest.approx(changed, abs=1e-7)
    assert take(page) is not None
    page.click('[data-do="reset"]')
    answered(page)
    assert probabilities(page, "new") == {}
    assert take(page) is None


def test_an_edit_while_scores_are_computed_is_asked_about_once(visit):
    page = visit()
    try_example(page)
    compare(page, "Grad-CAM")
    page.click("#run")
    wait(page, "s.methods === 'stabn,grad_cam' && s.busy === 'false'")
    page.click('[data-to="bars"]')
    page.locator(".plot").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function("() => document.querySelectorAll('.scores[data-scores=ready]').length === 2")
    page.wait_for_timeout(1000)  # in which several answers would come
    assert (state(page, "asked"), state(page, "answered")) == ("1", "1")


def test_methods_side_by_side_with_scores_on_one_playhead(visit):
    page = visit()
    try_example(page)
    still(page)
    compare(page, "Grad-CAM", "CAM", "control: random")
    page.click("#run")
    wait(page, "s.methods === 'stabn,grad_cam,cam,random'")
    clip = state(page, "clip")
    page.wait_for_function("() => document.querySelectorAll('.scores[data-scores=ready]').length === 4")
    said = page.locator(".scores").all_inner_texts()
    assert all(len(re.findall(r"random \d\.\d\d", each)) == 2 for each in said)
    click_bar(page, 7)
    heads = "() => [...document.querySelectorAll('.player .small')].map((c) => c.style.getPropertyValue('--at'))"
    assert len(page.evaluate(heads)) == 4
    assert len(set(page.evaluate(heads))) == 1
    before = pictures(page)
    assert len(set(before)) >= 3  # CAM and Grad-CAM agree on a network that ends as this one does
    other = page.locator('.classes button[aria-pressed="false"]').first
    index = other.get_attribute("data-index")
    other.click()
    wait(page, f"s.target === '{index}' && s.busy === 'false'")
    after = pictures(page)
    assert (state(page, "clip"), state(page, "frame")) == (clip, "7")
    assert after[0] == before[0]
    assert after[1] != before[1]  # Grad-CAM is about a class


def test_an_upload_and_what_is_no_video(visit, tmp_path):
    page = visit()
    video = encode(tmp_path / "mine.mp4", pattern(30))
    page.set_input_files("#clip input[type=file]", str(video))
    page.wait_for_selector("#clip video")
    page.click("#run")
    wait(page, "s.state === 'ready' && +s.drawn > 2")
    assert "mine.mp4" in page.inner_text(".facts")
    assert page.locator(".truth").is_hidden()
    page.click('#clip button[aria-label="Clear"]')
    page.wait_for_selector("#clip input[type=file]", state="attached")
    text = tmp_path / "text.mp4"
    text.write_text("#EXTM3U\n/etc/passwd\n")
    page.set_input_files("#clip input[type=file]", str(text))
    page.wait_for_selector("#clip video", state="attached")
    page.click("#run")
    wait(page, "s.problem === 'true'")
    said = page.inner_text(".problem")
    assert re.search(r"text\.mp4: is (a playlist|no video)", said)
    assert "Traceback" not in said


def test_a_clip_that_no_browser_plays(visit, tmp_path):
    page = visit()
    page.set_input_files("#clip input[type=file]", str(encode(tmp_path / "old.avi", pattern(30), codec="mpeg4")))
    page.wait_for_selector("#clip.unseen")
    page.click("#run")
    wait(page, "s.state === 'ready' && s.playing === 'true' && s.frame !== '0'")
    assert "copy in H.264" in page.inner_text(".notes")
    assert page.locator(".toast-body").count() == 0


def test_an_almost_flat_map_is_called_so(visit, tmp_path):
    page = visit()
    grey = np.full((24, 96, 96, 3), 128, np.uint8)
    page.set_input_files("#clip input[type=file]", str(encode(tmp_path / "grey.mp4", grey)))
    page.wait_for_selector("#clip video")
    page.click("#run")
    wait(page, "s.state === 'ready' && +s.drawn > 2")
    assert "Almost flat" in page.inner_text(".notes .warn")


def test_a_webcam_clip(visit):
    page = visit(permissions=["camera", "microphone"])
    page.click('#clip [aria-label="Capture from camera"]')
    page.click('#clip [title="grant webcam access"] button')
    page.wait_for_function("() => document.querySelector('#clip video').currentTime > 0.1")
    page.click('#clip [title="start recording"]')
    seen = "() => document.querySelector('#clip video').getVideoPlaybackQuality().totalVideoFrames"
    page.wait_for_function(f"(began) => ({seen})() > began + 25", arg=page.evaluate(seen))
    page.click('#clip [title="stop recording"]')
    page.wait_for_selector('#clip button[aria-label="Clear"]')
    page.click("#run")
    wait(page, "s.problem === 'true' || (s.state === 'ready' && +s.drawn > 5 && +s.time > 0.2)")
    assert page.locator(".problem").text_content() == ""  # though a WebM does not say how long it is
    assert page.locator(".bar").count() == 16


def test_files_to_take_away_open_again(visit, tmp_path):
    page = visit()
    try_example(page, 1)
    best = state(page, "best")
    page.click("#make")
    page.wait_for_selector("#files a[download]")
    links = {each.get_attribute("download"): each for each in page.locator("#files a[download]").all()}
    assert {"ring.zip", "overlay.mp4", "figure.png", "explanation.npz", "manifest.json"} <= set(links)
    for name in ("ring.zip", "overlay.mp4", "figure.png", "explanation.npz", "manifest.json"):
        with page.expect_download() as download:
            links[name].click()
        shutil.copy(download.value.path(), tmp_path / name)
    assert sum(1 for _ in iter_frames(tmp_path / "overlay.mp4")) == actions.FRAMES  # each of them can be decoded
    assert Image.open(tmp_path / "figure.png").convert("RGB").width > 500
    with np.load(tmp_path / "explanation.npz") as arrays:
        assert arrays["spatial"].shape[0] == len(arrays["temporal"]) == 16
        assert arrays["probabilities"].argmax() == int(best)
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8"))["video"]["name"] == "ring.mp4"
    with zipfile.ZipFile(tmp_path / "ring.zip") as archive:
        assert archive.testzip() is None

    again = visit()
    again.set_input_files("#take input[type=file]", str(tmp_path / "ring.zip"))
    wait(again, "s.state === 'ready' && +s.drawn > 2")
    assert state(again, "best") == best
    assert "saved result of ring.mp4" in again.inner_text(".notes")
    assert again.locator(".what-if").is_hidden()
    assert again.locator("#make").is_hidden()


def test_a_link_opens_an_example_at_its_moment(visit):
    page = visit("#example=ring&t=1.25")
    wait(page, "s.state === 'ready' && Math.abs(+s.time - 1.25) < 0.1")
    assert state(page, "playing") == "false"
    page.click('[data-do="link"]')
    assert re.search(r"#example=ring&t=1\.2\d$", page.url)
    try_example(page)  # the moment was that of the first clip
    wait(page, "s.playing === 'true'")


def test_stop_stops(visit):
    page = visit()
    try_example(page)
    compare(page, "RISE with space-time masks")
    page.click("#run")
    wait(page, "s.busy === 'true'")
    page.click("#stop")
    wait(page, "s.busy === 'false'")
    assert state(page, "methods") == "stabn"
    page.click('label:has([data-set="invert_temporal"])')  # the network is free again
    answered(page)


@pytest.mark.parametrize("place", ["", "?__theme=dark"], ids=["light", "dark"])
def test_a_narrow_screen_light_and_dark(visit, place):
    page = visit(place, viewport={"width": 390, "height": 844}, has_touch=True)
    try_example(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert page.locator(".panel canvas").first.bounding_box()["width"] > 300
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.best')).color")
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink)]
    assert (bright[0] < bright[1]) == bool(place)


def test_every_control_has_a_name(visit):
    page = visit()
    try_example(page)
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('.player button, .player select, .player input, .player [role=slider]')]"
        ".filter((e) => ![e.ariaLabel, e.textContent, e.closest('label')?.textContent].join('').trim())"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
