"""What may happen to a page that strangers reach: each attack is tried, on a running server or on the reader."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from conftest import pattern

from app import actions, guard, reader
from app.reader import Limits, apart, read_upload
from stabn import video
from stabn.checkpoint import save
from stabn.model import STABN, Config
from stabn.video import Clip, VideoError, probe, read_clip

Make = Callable[..., Path]
SECRET = "a secret of this server"


def run(served: Any) -> None:
    """Playwright's loop may be running in this thread."""
    with ThreadPoolExecutor(1) as beside:
        beside.submit(asyncio.run, served).result()


ASKED: set[str] = set()  # the hosts that this process, which is the server, connected to or looked up
HARMED = "document.body.dataset.harmed = 1"
CLASSES = [f'<img src=x onerror="{HARMED}">', f"${{{HARMED}}}", f"{{{{{HARMED}}}}}"]


# ------------------------------------------------------------------------------------------- a server to attack


@dataclass
class Served:
    """A running page and how a stranger talks to it: raw HTTP, no client that would be polite."""

    port: int
    cache: Path
    weights: Path
    demo: Any  # gradio's Blocks

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in small letters, body)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=isinstance(body, Iterator))
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def post(self, path: str, message: Any) -> tuple[int, bytes]:
        status, _, body = self.ask("POST", path, json.dumps(message), {"Content-Type": "application/json"})
        return status, body

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        form = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = form.encode() + content + b"\r\n--x--\r\n"
        status, _, reply = self.ask(
            "POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        return status, reply

    def uploaded(self, file: Path) -> str:
        """The path under which the server keeps an upload."""
        status, reply = self.upload(file.name, file.read_bytes())
        assert status == 200
        return json.loads(reply)[0]

    def explain(self, *data: Any) -> str:
        """All that the endpoint answers, errors included. `data` may leave out the last arguments."""
        data = (*data, *("stabn", "", self.weights.name)[len(data) - 1 :])
        status, body = self.post(f"/gradio_api/call/{self.endpoint}", {"data": list(data)})
        if status != 200:
            return body.decode()
        event = json.loads(body)["event_id"]
        return self.ask("GET", f"/gradio_api/call/{self.endpoint}/{event}")[2].decode()

    @property
    def endpoint(self) -> str:
        config = json.loads(self.ask("GET", "/config")[2])
        return next(each["api_name"] for each in config["dependencies"] if each["api_visibility"] == "public")

    def raises(self, place: str, event: str, data: Sequence[Any], session: str, about: Any = None) -> str:
        """All that the page answers to an event of the component with this elem_id, in somebody's session."""
        config = json.loads(self.ask("GET", "/config")[2])
        target = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == place)
        number = next(each["id"] for each in config["dependencies"] if [target, event] in each["targets"])
        message = {"data": list(data), "fn_index": number, "session_hash": session, "trigger_id": target}
        status, body = self.post("/gradio_api/queue/join", {**message, "event_data": about})
        if status != 200:
            return body.decode()
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")[2].decode()

    def click_run(self, file: Any, session: str) -> str:
        return self.raises("run", "click", [file, self.weights.name, ["stabn"]], session)


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def _listen(event: str, given: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        ASKED.add(str(given[0]))
    elif event == "socket.connect" and isinstance(given[1], tuple):  # else a path on this machine
        ASKED.add(str(given[1][0]))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real page with a tiny network, whose classes are named by somebody who means harm."""
    torch.manual_seed(0)
    config = Config(
        classes=3, frames=4, size=16, block="basic", layers=(1, 1, 1, 1), width=4, stem=(3, 3, 3), pool=False
    )
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(STABN(config, CLASSES), weights)
    sys.addaudithook(_listen)
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
        guard.prepare()
        from app.layout import LOOK, build

        demo = build([str(weights)], "cpu")
        demo.launch(prevent_thread_lock=True, quiet=True, **guard.launch_arguments(Limits(bytes=3_000_000)), **LOOK)
        yield Served(demo.server_port, cache, weights, demo)
        demo.close()


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """(URL of another server of this machine, what it was asked for)"""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret.mp4", asked
    server.shutdown()
    server.server_close()


# ------------------------------------------------------------------------------------------- the nine points


def test_1_the_endpoint_opens_uploads_only(
    served: Served, make_video: Make, tmp_path: Path, canary: tuple[str, list[str]]
) -> None:
    from gradio.data_classes import FileData

    secret, (url, asked) = make_video("secret.mp4"), canary
    path = served.uploaded(secret)
    assert "top5" in served.explain(file_data(path))  # or the refusals below would say nothing
    assert "panels" in served.click_run(file_data(path), "friend")

    link = served.cache / "link.mp4"
    link.symlink_to(secret)
    for given in (
        str(secret),
        url,
        path,  # a str is not what an upload comes as
        file_data(str(secret)),
        {"path": str(secret)},
        file_data(url),
        file_data(url.replace("http", "HTTP")),
        file_data(str(secret), url=f"/gradio_api/file={path}"),
        file_data(f"{path}/../../../{secret}"),
        file_data(f"http://127.0.0.1:{served.port}/gradio_api/file={secret}"),
        file_data(f"{url}/gradio_api/file={secret}"),
        file_data(str(link)),
        file_data(f"file://{secret}"),
        file_data(path + "\0"),
        file_data(str(Path(path).parent)),
        file_data(str(served.cache / "gone.mp4")),
        [file_data(str(secret))],
    ):
        assert "top5" not in served.explain(given), given
        assert "panels" not in served.click_run(given, "stranger"), given
    for by_url in (f"http://127.0.0.1:{served.port}/gradio_api/file={path}", f"{url}/gradio_api/file={path}"):
        assert "top5" in served.explain(file_data(by_url))  # it is the path that counts, and no server is asked
    for given in ("https://example.com/clip.mp4", str(secret)):  # gradio would fetch the first itself
        assert served.post("/gradio_api/queue/join", {"data": [{"video": file_data(given)}]})[0] == 403
    for file in (path, str(secret), {"path": str(secret)}, FileData(path=str(secret)), {"path": str(link)}, None, {}):
        with pytest.raises(PermissionError, match="upload it first"):
            guard.uploaded(file)
    assert guard.uploaded(FileData(path=path)) == guard.uploaded({"path": path}) == os.path.realpath(path)
    assert asked == []


def test_1_a_model_is_one_of_the_menu(served: Served, make_video: Make, tmp_path: Path) -> None:
    clip = file_data(served.uploaded(make_video("clip.mp4")))
    other = shutil.copy(served.weights, tmp_path / "other.safetensors")
    for model in (str(other), str(served.weights), "../" + str(served.weights), "/etc/passwd", "https://127.0.0.1/x"):
        assert "top5" not in served.explain(clip, "stabn", "", model)
    assert "top5" in served.explain(clip)
    assert str(served.weights.parent).encode() not in served.ask("GET", "/config")[2]  # nor is told where it lies


def test_2_a_playlist_in_a_file_named_mp4_is_refused(tmp_path: Path, make_video: Make) -> None:
    hidden = make_video("hidden.mp4")
    read_upload(hidden, 4, 32, folder=tmp_path)  # it could be read if it were uploaded
    for number, text in enumerate(
        (
            f"#EXTM3U\n#EXTINF:1,\n{hidden}\n#EXT-X-ENDLIST\n",
            f"\ufeff\n #EXTM3U\n#EXTINF:1,\nfile://{hidden}\n",
            f"ffconcat version 1.0\nfile {hidden}\n",
            f"file '{hidden}'\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\na=control:{hidden}\n",
            f'<?xml version="1.0"?><MPD><Period><BaseURL>{hidden}</BaseURL></Period></MPD>',
        )
    ):
        upload = tmp_path / f"clip{number}.mp4"
        upload.write_text(text)
        with pytest.raises(VideoError, match=rf"^clip{number}\.mp4: (is a playlist|is no video)"):
            read_upload(upload, 4, 32, folder=tmp_path)


def test_3_templates_are_static(served: Served) -> None:
    import gradio as gr

    pages = [block for block in served.demo.blocks.values() if isinstance(block, gr.HTML)]
    assert any(type(page) is not gr.HTML for page in pages)  # the player is among them
    for page in pages:
        if type(page) is not gr.HTML:
            assert page.html_template
            for template in (page.html_template, page.css_template):
                assert "${" not in template
                assert "{{" not in template
        else:  # its template is its value, as it was written here
            assert page.value.lstrip().startswith("<")


def test_3_names_and_labels_are_text(browser: Any, served: Served, make_video: Make, tmp_path: Path) -> None:
    name = f"{CLASSES[0].replace(' ', '')}${{{HARMED}}}.mp4"
    clip = make_video("clip.mp4").rename(tmp_path / name)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"http://127.0.0.1:{served.port}")
    page.locator("#clip input[type=file]").first.set_input_files(clip)
    page.locator("#clip video").wait_for()
    page.locator("#run").click()
    page.locator("#player [data-state=ready]").wait_for()
    said = page.locator("#player").text_content()
    assert all(each in said for each in CLASSES)
    assert "onerror" in page.locator(".facts").text_content()  # of the file's name, as gradio keeps it
    assert page.evaluate("document.body.dataset.harmed") is None
    assert page.locator("img[src=x]").count() == 0
    page.evaluate("(text) => { document.body.insertAdjacentHTML('beforeend', text); }", CLASSES[0])
    page.wait_for_function("document.body.dataset.harmed")  # what would have happened
    page.close()


def test_4_a_reply_about_a_part_of_a_file_keeps_no_secret(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(bytes(range(100)))
    secrets = {"Cookie": f"token={SECRET}", "Authorization": f"Bearer {SECRET}", "X-Forwarded-User": SECRET}
    status, headers, body = served.ask(
        "GET", f"/gradio_api/file={served.uploaded(file)}", headers={"Range": "bytes=10-19", **secrets}
    )
    assert (status, body) == (206, bytes(range(10, 20)))
    assert headers["content-range"] == "bytes 10-19/100"
    assert headers["content-type"] == "video/mp4"
    assert SECRET not in str(headers)
    assert {"cookie", "authorization", "host", "x-forwarded-user"}.isdisjoint(headers)


@pytest.mark.parametrize("route", ["queue/join", "call/explain", "run/explain", "reset", "cancel"])
def test_5_bodies_are_bounded(served: Served, route: str) -> None:
    long = json.dumps({"data": ["x" * guard.BODY]}).encode()
    json_type = {"Content-Type": "application/json"}
    for body in (long, iter([long[:1000], long[1000:]])):  # with a length and, chunked, without one
        status, _, reply = served.ask("POST", f"/gradio_api/{route}", body, json_type)
        assert status == 413
        assert b"MB" in reply


def test_5_a_body_without_end_is_not_read_on() -> None:
    read, said = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1000
        assert read <= guard.BODY + 1000
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    async def send(message: Any) -> None:
        said.append(message)

    async def app(*arguments: Any) -> None:
        pytest.fail("it got through")

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join"}
    run(guard.Guard(app)(scope, receive, send))
    assert said[0]["status"] == 413


def test_5_uploads_are_bounded(served: Served) -> None:
    before = sum(1 for _ in served.cache.rglob("*"))
    try:
        status, _ = served.upload("large.mp4", bytes(3_050_000))
        assert status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert sum(1 for _ in served.cache.rglob("*")) == before
    assert served.upload("small.mp4", bytes(2_900_000))[0] == 200


def test_6_a_clip_is_its_owners(served: Served, make_video: Make) -> None:
    path = served.uploaded(make_video("clip.mp4"))
    mine = clip_of(served.click_run(file_data(path), "me"))
    theirs = clip_of(served.click_run(file_data(path), "them"))
    assert mine != theirs  # though the file is the same
    edit = {"temporal": [0, 0, 0, 0], "seq": 1}
    assert "rows" in served.raises("player", "edit", [], "me", {**edit, "clip": mine})
    for session, clip in (("me", theirs), ("them", mine), ("nobody", mine), ("me", None)):
        answer = served.raises("player", "edit", [], session, {**edit, "clip": clip})
        assert "rows" not in answer
        assert "explain it again" in answer
        assert "panels" not in served.raises("player", "ask", [], session, {"clip": clip, "index": 1})


@pytest.mark.parametrize(
    "edit", [{"temporal": [1]}, {"temporal": "1111"}, {"spatial": "AAAA"}, {"spatial": 7}, {"temporal": [[]] * 4}]
)
def test_6_a_wrong_edit_is_a_sentence(served: Served, make_video: Make, edit: dict[str, Any]) -> None:
    clip = clip_of(served.click_run(file_data(served.uploaded(make_video("clip.mp4"))), "me"))
    answer = served.raises("player", "edit", [], "me", {"clip": clip, **edit})
    assert "rows" not in answer
    assert "reload the page" in answer


def clip_of(answer: str) -> str:
    """The clip's id in all that a click on Explain was answered with."""
    return re.findall(r'"clip": ?"([\w-]{20,})"', answer)[-1]


class TestEdits:
    """Point 6."""

    SHAPE = (3, 2, 2)
    CLIP = guard.clip_id()

    def edit(self, **changes: Any) -> guard.Edit:
        given = {"clip": self.CLIP, "spatial": base64.b64encode(bytes(range(12))).decode(), "temporal": [0, 0.5, 1]}
        return guard.read_edit({**given, **changes}, self.CLIP, self.SHAPE)

    def test_a_good_one_is_read(self) -> None:
        edit = self.edit(extra="is ignored")
        assert edit.spatial is not None
        assert edit.temporal is not None
        np.testing.assert_allclose(edit.spatial, np.arange(12).reshape(3, 2, 2) / 255, rtol=1e-6)
        np.testing.assert_array_equal(edit.temporal, np.array([0, 0.5, 1], np.float32))
        assert edit.spatial.dtype == edit.temporal.dtype == np.float32

    def test_what_is_left_out_stays_as_it_was(self) -> None:
        assert self.edit(spatial=None).spatial is None
        assert guard.read_edit({"clip": self.CLIP}, self.CLIP, self.SHAPE).temporal is None

    def test_values_are_clipped(self) -> None:
        edit = self.edit(temporal=[-7, 10**400, 1e300])
        assert edit.temporal is not None
        np.testing.assert_array_equal(edit.temporal, [0, 1, 1])

    @pytest.mark.parametrize(
        "changes",
        [
            {"clip": guard.clip_id()},
            {"clip": None},
            {"clip": "é"},
            {"clip": ["x"]},
            {"clip": "\ud800"},
            {"temporal": [0, 1]},
            {"temporal": [0] * 1_000_000},
            {"temporal": [0, 1, float("nan")]},
            {"temporal": [0, 1, "1"]},
            {"temporal": [0, 1, True]},
            {"temporal": [0, 1, [1]]},
            {"temporal": {"0": 1, "1": 1, "2": 1}},
            {"temporal": "123"},
            {"spatial": base64.b64encode(bytes(11)).decode()},
            {"spatial": base64.b64encode(bytes(13)).decode()},
            {"spatial": "A" * 10_000_000},
            {"spatial": "not base 64!"},
            {"spatial": "é" * 16},
            {"spatial": [0] * 12},
            {"spatial": ""},
        ],
        ids=lambda changes: str(changes)[:40],
    )
    def test_everything_else_is_refused_in_a_sentence(self, changes: dict[str, Any]) -> None:
        with pytest.raises(guard.EditError, match=r"^[A-Z].*\.$"):
            self.edit(**changes)

    @pytest.mark.parametrize("data", [None, [], "text", 3])
    def test_no_edit_at_all(self, data: object) -> None:
        with pytest.raises(guard.EditError):
            guard.read_edit(data, self.CLIP, self.SHAPE)

    def test_ids_cannot_be_guessed(self) -> None:
        ids = {guard.clip_id() for _ in range(100)}
        assert len(ids) == 100
        assert min(map(len, ids)) >= 20


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"bytes": 1000}, "MB: clips of up to 0.001 MB"),
        ({"seconds": 0.2}, "is 0.5 s long: clips of up to .* 0.2 s"),
        ({"frames": 5}, "has 12 frames: clips of up to .* 5 frames"),
        ({"pixels": 1000}, "has frames of 64 x 48.*1000 pixels are read"),
    ],
)
def test_7_work_is_bounded_before_decoding(
    limits: dict[str, Any], said: str, make_video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = make_video("clip.mp4"), tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(VideoError, match=said) as error:
        read_upload(path, 4, 32, replace(Limits(), **limits), folder=folder)
    assert str(tmp_path) not in str(error.value)
    assert not list(folder.iterdir())


def test_7_the_queue_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch, make_video: Make) -> None:
    path, gate = served.uploaded(make_video("clip.mp4")), threading.Event()

    def prepare(*arguments: Any) -> None:
        gate.wait(60)
        raise ValueError("the end")

    def join(session: str) -> int:
        return served.post("/gradio_api/queue/join", {**run, "session_hash": session})[0]

    config = json.loads(served.ask("GET", "/config")[2])
    target = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "run")
    number = next(each["id"] for each in config["dependencies"] if [target, "click"] in each["targets"])
    run = {"data": [file_data(path), served.weights.name, ["stabn"]], "fn_index": number, "trigger_id": target}
    most = guard.queue_arguments()["max_size"]
    with monkeypatch.context() as patch:
        patch.setattr(actions, "prepare", prepare)
        statuses = [join(f"flood{i}") for i in range(most + 10)]
        gate.set()
        assert 503 in statuses  # "busy, try again" is what the page makes of it
        assert statuses.count(200) <= most + 2  # those that wait, and those that run
        for i in [i for i, status in enumerate(statuses) if status == 200]:
            assert b"the end" in served.ask("GET", f"/gradio_api/queue/data?session_hash=flood{i}")[2]
    assert "panels" in served.click_run(file_data(path), "afterwards")


def test_8_nothing_is_offered_but_the_page(served: Served) -> None:
    for path in (
        "/docs",
        "/redoc",
        "/openapi.json",
        "/monitoring",
        "/monitoring/summary",
        "/runs",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
        "/gradio_api/deep_link?session_hash=x",
    ):
        assert served.ask("GET", path)[0] == 404, path
    for path in ("process_recording", "component_server", "vibe-edit", "vibe-code", "run-history/connect"):
        assert served.post(f"/gradio_api/{path}", {})[0] == 404, path


def test_8_a_file_may_be_called_as_what_is_closed(served: Served, make_video: Make) -> None:
    for name in ("runs.mp4", "monitoring.mp4", "vibe-check.mp4"):
        clip = make_video(name)
        path = served.uploaded(clip)
        status, _, body = served.ask("GET", f"/gradio_api/file={path}")
        assert (status, body) == (200, clip.read_bytes()), name


@pytest.mark.parametrize("mount", ["", "/page"])
def test_8_what_is_closed_is_so_under_a_mount_too(mount: str) -> None:
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        pass

    for path in ("/runs", "/gradio_api/runs", "/GRADIO_API/proxy=x", "/gradio_api/file=https://x", "/", "/a/runs"):
        scope = {"type": "http", "method": "GET", "root_path": mount, "path": mount + path}
        run(guard.Guard(app)(scope, None, send))  # type: ignore[arg-type]
    assert reached == [mount + "/", mount + "/a/runs"]


def test_8_it_listens_to_this_machine_only(served: Served) -> None:
    assert guard.launch_arguments(Limits())["server_name"] == "127.0.0.1"
    assert guard.launch_arguments(Limits())["share"] is False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        # Another address of this machine: what a server bound to all addresses would answer on.
        assert other.connect_ex(("127.0.0.2", served.port)) != 0
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_9_gradios_own_guards_hold(served: Served, tmp_path: Path, canary: tuple[str, list[str]]) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    inside = served.uploaded(secret)
    assert SECRET.encode() in served.ask("GET", f"/gradio_api/file={inside}")[2]
    url, asked = canary
    for path in (
        f"file={secret}",
        f"file={inside}/../../../../../../../../../../{secret}",
        f"file={inside}/../../../../../../../../../../{secret}".replace("/", "%2f"),
        f"file=file://{secret}",
        f"file={url}",
        f"file=HTTP://{url[7:]}",
        f"file/{url}",
        f"proxy={url}",
        f"file={Path(guard.__file__)}",
    ):
        status, _, body = served.ask("GET", "/gradio_api/" + path)
        assert status >= 400, path
        assert SECRET.encode() not in body
        assert b"import" not in body
    assert asked == []


def test_9_uploads_cannot_leave_their_folder_or_become_a_page(served: Served) -> None:
    script = b"<script>alert(1)</script>"
    for name in ("../../evil.html", "/etc/evil.html", "..\\evil.html", "evil.html", "evil.svg", "%2e%2e%2fevil.html"):
        status, reply = served.upload(name, script)
        assert status == 200
        path = Path(json.loads(reply)[0])
        assert path.resolve().is_relative_to(served.cache.resolve())
        _, headers, _ = served.ask("GET", f"/gradio_api/file={quote(str(path))}")
        assert headers["content-disposition"].startswith("attachment"), name
        assert headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("harm", ["ctypes:string_at", "time:sleep", "os:listdir"])
def test_a_bad_clip_is_a_sentence_and_the_server_goes_on(
    harm: str, served: Served, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"ctypes:string_at": {"ptr": 0}, "os:listdir": {"path": "/nowhere"}, "time:sleep": {}}[harm]
    clip = file_data(served.uploaded(make_video("clip.mp4")))
    whole = reader.apart

    def apart(function: str, given: dict[str, Any], *rest: Any, **options: Any) -> Any:
        return whole(harm, arguments, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "apart", apart)
        said = served.explain(clip) + served.click_run(clip, f"bad-{harm}")  # in which nothing is open
    assert "top5" not in said
    assert "panels" not in said
    assert "Traceback" not in said
    assert said.count("nowhere" if harm == "os:listdir" else "made its decoder crash") >= 2
    assert "top5" in served.explain(clip)
    assert not list(served.cache.rglob("reading-*"))


@contextlib.contextmanager
def log() -> Iterator[io.StringIO]:
    """What the server, which is this process, says meanwhile to whoever runs it."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("uvicorn").addHandler(handler)
    try:
        with contextlib.redirect_stderr(said):
            yield said
    finally:
        logging.getLogger("uvicorn").removeHandler(handler)


JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
JSON, FORM = {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", JOIN, b"NaN", JSON),  # which gradio would repeat in its refusal, and cannot
        ("POST", JOIN, b'{"data": "\\ud800"}', JSON),
        ("POST", JOIN, b"\xff", {"Content-Type": "text/plain"}),
        ("POST", JOIN, b'{"data": [], "fn_index": -1, "session_hash": "odd"}', JSON),
        ("POST", "/gradio_api/run/nothing", b'{"data": []}', JSON),
        ("POST", "/gradio_api/call/v2/explain", b'{"nothing": 1}', JSON),
        ("POST", "/gradio_api/cancel", b"Infinity", JSON),
        ("POST", UPLOAD, b"", {"Content-Type": "multipart/form-data; boundary=" + "x" * 300}),
        ("POST", UPLOAD, b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n1\r\n--x--\r\n', FORM),
        ("GET", "/assets/" + "x" * 300, None, {}),
    ],
)
def test_a_request_that_gradio_fails_at_is_a_sentence(
    method: str, path: str, body: bytes | None, headers: dict[str, str], served: Served
) -> None:
    with log() as said:
        status, _, reply = served.ask(method, path, body, headers)
        assert status == 400
        assert json.loads(reply)["error"] == guard.FAILED
        assert re.fullmatch(rf"failed: '{method} {path[:80]}.*\n", said.getvalue())


def test_a_request_that_its_sender_breaks_off_is_a_line_of_the_log(served: Served) -> None:
    with log() as said:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            form = f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: 1000\r\n\r\n--x\r\n"
            connection.sendall(f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\n{form}".encode())
        wait_for(lambda: said.getvalue().endswith("\n"))
        assert re.fullmatch(r"failed: 'POST /gradio_api/upload': ClientDisconnect .*\n", said.getvalue())


@pytest.mark.parametrize(
    ("error", "status"), [(ExceptionGroup("", [OSError("full")]), 400), (asyncio.CancelledError(), None)]
)
def test_errors_in_groups_are_refused_and_a_cancelled_request_is_cancelled(
    error: BaseException, status: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []

    async def app(*arguments: Any) -> None:
        raise error

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": "/x"}
        with contextlib.nullcontext() if status else pytest.raises(asyncio.CancelledError):
            await guard.Guard(app)(scope, None, send)  # type: ignore[arg-type]

    run(ask())
    assert sent[:1] == ([status] if status else [])
    assert capsys.readouterr().err == ("failed: 'GET /x': OSError 'full'\n" if status else "")


def test_an_answer_that_gradio_fails_at_does_not_look_whole(served: Served) -> None:
    with log() as said:
        with pytest.raises(http.client.IncompleteRead):
            served.ask("GET", "/gradio_api/queue/data?session_hash=unheard-of")
        wait_for(lambda: "without completing" in said.getvalue())
        assert "Traceback" not in said.getvalue()


@pytest.mark.parametrize(
    ("place", "event", "data", "about"),
    [
        ("run", "click", ["x" * 1000], None),  # too few
        ("run", "click", [{"path": 1}, "tiny", ["stabn"]], None),
        ("run", "click", [None, {}, []], None),
        ("examples", "select", [], None),
        ("again", "upload", [None], None),
        ("player", "edit", [], None),
    ],
)
def test_an_event_that_no_page_sends_is_a_sentence(
    place: str, event: str, data: list[Any], about: Any, served: Served
) -> None:
    with log() as said:
        answer = served.raises(place, event, data, "odd", about)
    assert re.search(r'"(error|text)": ?"(This|Choose|Value)', answer)
    assert "went wrong" not in answer
    assert len(said.getvalue()) < 500
    assert "Traceback" not in said.getvalue()


@pytest.mark.parametrize("wrong", [{"method": ["stabn"]}, {"method": None}, {"target": ["x"]}, {"model": ["x"]}])
def test_arguments_of_another_kind_are_a_sentence(wrong: dict[str, Any], served: Served, make_video: Make) -> None:
    clip = file_data(served.uploaded(make_video("clip.mp4")))
    given = {"method": "stabn", "target": "", "model": served.weights.name, **wrong}
    with log() as said:
        answer = served.explain(clip, *given.values())
    assert re.search(r'event: error\ndata: \{"error": ?"', answer)
    assert "Traceback" not in said.getvalue()


def test_the_server_asked_no_other_host(served: Served) -> None:
    """The last one of those that use it."""
    assert served.ask("GET", "/")[0] == 200
    assert "127.0.0.1" in ASKED
    assert not ASKED - {"127.0.0.1", "127.0.0.2", "localhost", "None"}


# ------------------------------------------------------------------------------------- what is kept, and how long


def test_no_statistics_of_events_are_kept(served: Served) -> None:
    for _ in range(3):
        assert "let go" in served.raises("player", "edit", [], "counted")
    assert len(served.demo._queue.event_analytics) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's pools")
def test_threads_share_two_pools_of_memory(tmp_path: Path) -> None:
    """So that what many visitors' threads freed can be used again."""
    code = f"""
import ctypes, threading
from app import guard
guard.prepare()
libc, together = ctypes.CDLL(None), threading.Barrier(21)
def take():
    libc.malloc(100)
    together.wait()
for _ in range(20): threading.Thread(target=take).start()
together.wait()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen({os.fsencode(tmp_path / "pools")!r}, b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (tmp_path / "pools").read_text().count("<heap nr=") == 2


def test_the_sweep_leaves_examples_and_what_is_open(served: Served, make_video: Make) -> None:
    from gradio.route_utils import delete_files_created_by_app

    def pick() -> str:
        said = served.raises("examples", "select", [], "me", {"index": 0, "value": None})
        return re.findall(r'"path": ?"([^"]+)"', said)[-1]

    mine, old = served.uploaded(make_video("mine.mp4")), served.uploaded(make_video("old.mp4", pattern(6)))
    example = pick()
    clip = clip_of(served.click_run(file_data(mine), "open"))
    delete_files_created_by_app(served.demo, 0)
    assert not Path(old).exists()
    assert pick() == example
    assert "panels" in served.click_run(file_data(example), "me")
    assert served.ask("GET", f"/gradio_api/file={mine}")[0] == 200
    assert clip_of(served.click_run(file_data(mine), "open")) == clip


def test_a_closed_page_leaves_nothing(served: Served, make_video: Make) -> None:
    clip = file_data(served.uploaded(make_video("clip.mp4")))
    before = set(served.cache.glob("clip-*"))
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("GET", "/gradio_api/heartbeat/visitor")  # which a page holds open as long as it lives
    assert connection.getresponse().status == 200
    assert "panels" in served.click_run(clip, "visitor")
    (folder,) = set(served.cache.glob("clip-*")) - before
    connection.close()
    wait_for(lambda: not folder.exists())


class TestActions:
    @pytest.fixture
    def model(self, served: Served) -> actions.Model:
        return actions.Models(actions.menu([str(served.weights)]), "cpu")[served.weights.name]

    @pytest.fixture
    def session(self, model: actions.Model, make_video: Make, tmp_path: Path) -> actions.Session:
        session = actions.prepare(actions.Job(), model, str(make_video("clip.mp4")), tmp_path)
        actions.look(actions.Job(), session, ["stabn"])
        return session

    def test_a_page_closed_while_its_clip_is_read_leaves_nothing(self, session: actions.Session) -> None:
        sessions = actions.Sessions()
        job = sessions.job("me")
        sessions.drop("me")
        with pytest.raises(actions.Stopped):
            sessions.put("me", session, job)
        assert sessions.get("me") is None
        assert not session.folder.exists()

    def test_the_attention_as_it_was_is_no_edit(self, session: actions.Session) -> None:
        given = {"clip": session.id}
        actions.edit(session, {**given, "invert_temporal": True})
        assert session.edited is not None
        probabilities = actions.edit(session, {**given, "temporal": session.first.temporal.tolist()})
        assert session.edited is None
        np.testing.assert_allclose(probabilities, session.first.probabilities, atol=1e-6)
        actions.edit(session, {**given, "invert_spatial": True})
        actions.look(actions.Job(), session, ["grad_cam"])  # whose panel has nothing to change
        assert session.edited is None

    def test_an_edit_meets_no_hook_of_a_method_that_runs(self, session: actions.Session) -> None:
        def hook(*arguments: Any) -> None:
            pytest.fail("this is the method's")

        handles = [each.register_forward_hook(hook) for each in session.network.network.module.modules()]
        actions.edit(session, {"clip": session.id, "invert_temporal": True})
        for handle in handles:
            handle.remove()

    def test_what_can_be_changed_is_shown_first(self, session: actions.Session) -> None:
        actions.look(actions.Job(), session, ["grad_cam", "random", "stabn"])
        assert list(session.explanations) == ["stabn", "grad_cam", "random"]


def test_mcp_without_its_package_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.page import main

    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["--mcp"]) == 2
    assert capsys.readouterr().err == "error: --mcp needs a package more: pip install 'stabn[mcp]'\n"


@pytest.mark.parametrize(("sampling", "said"), [("spread", "spread evenly"), ("middle", "from the middle")])
def test_the_page_says_which_frames_a_network_takes(
    sampling: str, said: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import layout

    opened = actions._opened
    monkeypatch.setattr(actions, "_opened", lambda *given: replace(opened(*given), sampling=sampling))
    page = layout.build([str(served.weights)], "cpu")
    text = "".join(str(getattr(block, "value", "")) for block in page.blocks.values())
    assert f"**4 frames**, {said}" in text or f"**4 frames**, one after the other {said}" in text


# ------------------------------------------------------------------------------------------- the worker

HARM = """
import ctypes, os, signal, sys, time

def well(**given): return given
def crash(): ctypes.string_at(0)
def killed(): os.kill(os.getpid(), signal.SIGKILL)  # as a system short of memory does
def hang():
    open("hung", "w").close()
    time.sleep(600)
def deaf():
    os.closerange(0, 30)
    time.sleep(600)
def spin():
    while True: pass
def eat():
    kept = []
    while True: kept.append(bytearray(2**24))
def fail(): raise ValueError("a sentence\\nand \\x1b[31mcolour")
def bug(): raise AssertionError
def chatter():
    print("no answer")
    os.write(1, b'{"result": "taken over"}')
    return "answer"
def flood(): return "x" * 5_000_000
"""


class TestWorker:
    """What native code can do to a process, done for real to a worker."""

    @pytest.fixture(autouse=True)
    def harm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "harm.py").write_text(HARM)
        monkeypatch.syspath_prepend(tmp_path)  # a worker has the path of its server
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("what", "said"),
        [
            ("crash", "made its decoder crash"),
            ("killed", "needs more than 1.1 GB of memory"),
            ("hang", "was given up after 2 s"),
            ("deaf", "was given up after 2 s"),
            ("spin", "was given up after 2 s"),
            ("eat", "needs more than 1.1 GB of memory"),
            ("bug", "made its decoder crash"),
            ("flood", "made its decoder crash"),
            ("nothing_of_this_name", "made its decoder crash"),
        ],
    )
    def test_harm_becomes_a_sentence(self, what: str, said: str) -> None:
        limits = Limits(timeout=2 if said.startswith("was given") else 60, memory=2**30)
        with pytest.raises(VideoError, match=rf"^clip\.mp4: {said}") as error:
            apart(f"harm:{what}", {}, limits, name="clip.mp4")
        assert "\n" not in str(error.value)
        assert apart("harm:well", {"a": [1]}, name="next.mp4") == {"a": [1]}  # life goes on

    def test_an_error_keeps_its_words_but_no_control_characters(self) -> None:
        with pytest.raises(VideoError, match=r"^a sentence and  \[31mcolour$"):
            apart("harm:fail", {}, name="clip.mp4")

    def test_what_is_printed_is_no_answer(self) -> None:
        assert apart("harm:chatter", {}, name="clip.mp4") == "answer"

    def test_stop_ends_the_worker(self, tmp_path: Path) -> None:
        stop, found = threading.Event(), []

        def call() -> None:
            with pytest.raises(VideoError) as error:
                apart("harm:hang", {}, name="clip.mp4", stop=stop)
            found.append(str(error.value))

        thread = threading.Thread(target=call)
        thread.start()
        wait_for((tmp_path / "hung").exists)
        stop.set()
        thread.join(30)
        assert found == ["clip.mp4: was stopped"]

    def test_those_who_wait_are_told_or_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reader, "TURNS", threading.BoundedSemaphore(1))
        reader.TURNS.acquire()
        with pytest.raises(VideoError, match="busy, try again"):
            apart("harm:well", {}, Limits(timeout=0.2), name="clip.mp4")
        stop = threading.Event()
        stop.set()
        with pytest.raises(VideoError, match="was stopped"):
            apart("harm:well", {}, name="clip.mp4", stop=stop)
        reader.TURNS.release()
        assert apart("harm:well", {}, name="clip.mp4") == {}

    def test_nothing_heavy_is_imported(self) -> None:
        heavy = ["torch", "gradio", "cv2", "matplotlib", "starlette"]
        code = f"import sys, app.reader; print([name for name in {heavy} if name in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------- the reader


class TestReader:
    def test_it_gives_what_read_clip_gives(self, make_video: Make, tmp_path: Path) -> None:
        path = make_video("clip.mp4", audio="aac", rotation=90)
        given, expected = read_upload(path, 5, 24, folder=tmp_path), read_clip(path, 5, size=24)
        np.testing.assert_array_equal(given.clip.frames, expected.frames)
        for field in fields(Clip):
            if field.name != "frames":
                np.testing.assert_array_equal(getattr(given.clip, field.name), getattr(expected, field.name))
        assert (given.codec, given.playable, given.converted) == ("h264", str(path), False)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("clip.mp4", {}),
            ("clip.MOV", {"container": "mov"}),
            ("clip.webm", {"codec": "libvpx"}),
            ("clip.webm", {"codec": "libvpx-vp9"}),
            ("clip.mp4", {"codec": "libsvtav1", "preset": "10", "frames": pattern(12, 256, 256)}),
        ],
    )
    def test_what_browsers_play_is_left_alone(
        self, name: str, options: dict[str, str], make_video: Make, tmp_path: Path
    ) -> None:
        (folder := tmp_path / "folder").mkdir()
        upload = read_upload(make_video(name, **options), 4, 32, folder=folder)
        assert upload.playable == str(tmp_path / name)
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("clip.mp4", {"codec": "libx265", "x265-params": "log-level=none"}),
            ("clip.mp4", {"codec": "mpeg4"}),
            ("clip.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
            ("clip.avi", {}),
            ("clip.mkv", {}),
            ("clip.webm", {"container": "mp4"}),  # a name that lies: it would be served as what it is not
            ("clip.mp4", {"pix_fmt": "yuv444p"}),
            ("late.mp4", {"stamps": [1 + i / 25 for i in range(12)]}),
        ],
    )
    def test_the_rest_is_converted_once(
        self, name: str, options: dict[str, Any], make_video: Make, tmp_path: Path
    ) -> None:
        (folder := tmp_path / "folder").mkdir()
        upload = read_upload(make_video(name, **options), 4, 32, folder=folder)
        assert upload.converted
        assert [str(file) for file in folder.iterdir()] == [upload.playable]
        info = probe(upload.playable)
        assert (info.codec, info.source_size, info.frame_count, info.pts[0]) == ("h264", (48, 64), 12, 0)
        np.testing.assert_allclose(info.timestamps, np.arange(12) / 25, atol=2e-3)

    def test_a_webcams_webm_without_duration(self, make_video: Make, tmp_path: Path) -> None:
        path = make_video("webcam.webm", codec="libvpx", live="1")
        upload = read_upload(path, 4, 32, folder=tmp_path)
        assert upload.clip.frame_count == 12
        with pytest.raises(VideoError, match="has 12 frames: at most 5"):  # no header tells, the packets do
            read_upload(path, 4, 32, Limits(frames=5), folder=tmp_path)

    def test_an_avi_is_not_decoded_to_learn_that_it_has_too_many_frames(
        self, make_video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_video("clip.avi", bf="2")  # only decoding tells the order of these frames
        content = bytearray(path.read_bytes())
        for box, at in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # and both headers promise only two
            start = content.index(box) + at
            assert int.from_bytes(content[start : start + 4], "little") == 12
            content[start : start + 4] = (2).to_bytes(4, "little")
        path.write_bytes(content)
        monkeypatch.setattr(video, "_scan", pytest.fail)
        monkeypatch.setattr(video, "MAX_FRAMES", 5)
        with pytest.raises(VideoError, match="has 12 frames: at most 5"):
            probe(path)

    def test_a_header_that_lies_about_the_size_of_frames(self, make_video: Make, tmp_path: Path) -> None:
        path = make_video("clip.mp4", pattern(12, 480, 640))
        content = path.read_bytes()
        at = content.index(b"avc1", content.index(b"stsd")) + 4 + 24  # width and height of the sample entry
        assert content[at : at + 4] == bytes([2, 128, 1, 224])
        path.write_bytes(content[:at] + bytes([0, 64, 0, 48]) + content[at + 4 :])
        tkhd = content.index(b"tkhd")
        assert tkhd  # left as it is: FFmpeg asks the sample entry
        with pytest.raises(VideoError, match="has frames of 640 x 480"):
            read_upload(path, 4, 32, Limits(pixels=64 * 48), folder=tmp_path)

    def test_a_header_that_lies_about_the_length(self, make_video: Make, tmp_path: Path) -> None:
        path = make_video("clip.mp4", pattern(50), codec="mpeg4")
        content = bytearray(path.read_bytes())
        for box, at in (("mvhd", 16), ("tkhd", 24), ("mdhd", 16)):
            start = content.index(box.encode()) + at + 4
            content[start : start + 4] = (1).to_bytes(4, "big")
        path.write_bytes(content)
        with pytest.raises(VideoError, match="clips of up to"):
            read_upload(path, 4, 32, Limits(seconds=1), folder=tmp_path)

    def test_extreme_proportions_are_refused(self, make_video: Make, tmp_path: Path) -> None:
        path = make_video("clip.mp4", pattern(4, 16, 1600))
        with pytest.raises(VideoError, match="has frames of 1600 x 16 pixels: at most 10 to 1"):
            read_upload(path, 4, 224, folder=tmp_path)

    @pytest.mark.parametrize("content", [b"", b"no video", bytes(1000)])
    def test_what_is_no_video(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        with pytest.raises(VideoError, match=r"^clip\.mp4: is (empty|no video)") as error:
            read_upload(path, 4, 32, folder=tmp_path)
        assert str(tmp_path) not in str(error.value)
        assert sorted(tmp_path.iterdir()) == [path]

    def test_damage_anywhere_ends_in_a_clip_or_a_sentence(self, make_video: Make, tmp_path: Path) -> None:
        content = make_video("good.mp4").read_bytes()
        rng = np.random.default_rng(0)
        for number in range(4):
            bad = np.frombuffer(content, np.uint8).copy()
            bad[rng.integers(0, len(bad), 40)] = rng.integers(0, 256, 40)
            path = tmp_path / f"bad{number}.mp4"
            path.write_bytes(bad.tobytes())
            said = path.name
            try:
                assert read_upload(path, 4, 32, folder=tmp_path).clip.frames.shape == (4, 32, 43, 3)
            except VideoError as error:
                said = str(error)
            assert said.startswith(path.name)

    def test_what_is_gone_or_a_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "gone.mp4", tmp_path):
            with pytest.raises(VideoError, match="is not there any more"):
                read_upload(path, 4, 32, folder=tmp_path)

    @pytest.mark.parametrize(
        "lie",
        [
            {"shape": [4, 10**6, 10**6, 3]},
            {"shape": [4, 48, 64, 3]},  # more than there are bytes
            {"shape": [3, 32, 43, 3]},
            {"shape": None},
            {"timestamps": [0, 1]},
            {"timestamps": ["a", "b", "c", "d"]},
            {"timestamps": [0, 1, 2, float("nan")]},
            {"fps": 0},
            {"duration": float("inf")},
            {"frame_count": 10**9},
            {"source_size": [10**9, 10**9]},
            {"source_size": [-1, -1]},
        ],
        ids=str,
    )
    def test_a_worker_is_not_believed_blindly(
        self, lie: dict[str, Any], make_video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def apart(function: str, arguments: dict[str, Any], limits: Limits, **options: Any) -> dict[str, Any]:
            np.zeros((4, 32, 43, 3), np.uint8).tofile(os.path.join(arguments["scratch"], "frames"))
            return {**FACTS, **lie}

        monkeypatch.setattr(reader, "apart", apart)
        path = make_video("clip.mp4")
        with pytest.raises(VideoError, match=r"^clip\.mp4: was read, but"):
            read_upload(path, 4, 32, folder=tmp_path)
        lie = {}
        assert read_upload(path, 4, 32, folder=tmp_path).clip.source_size == (48, 64)
        assert sorted(tmp_path.iterdir()) == [path]


FACTS = {
    "codec": "h264",
    "shape": [4, 32, 43, 3],
    "timestamps": [0, 0.1, 0.2, 0.3],
    "frame_indices": [0, 1, 2, 3],
    "source_size": [48, 64],
    "fps": 10,
    "duration": 0.4,
    "frame_count": 4,
    "rotation": 0,
    "has_audio": False,
    "notes": [],
}
