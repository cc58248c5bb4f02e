"""What stands between the page and the world: how the server is launched, what a request may hold, what an edit may be.

guard.prepare()                                              # before gradio is imported
demo = gr.Blocks(**guard.blocks_arguments())
demo.queue(**guard.queue_arguments())
demo.launch(**guard.launch_arguments(Limits(), host=host, port=port, share=share, auth=auth))
"""

from __future__ import annotations

import atexit
import base64
import binascii
import contextlib
import ctypes
import hmac
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.reader import Limits

HOST = "127.0.0.1"
STATE = 1800  # seconds that a session's clip is kept: `gr.State(time_to_live=guard.STATE)`
BODY = 2_000_000  # bytes of a request that is no upload: an edit of 64 x 56 x 56 values fits
FORM = 100_000  # bytes around a file in an upload's form
M_ARENA_MAX = -8  # of glibc's malloc.h
FAILED = "This cannot be answered; the server's log says why."  # what gradio fails at
SERVED = "/gradio_api/file="  # in the URL of an uploaded file, before its path
# Routes of gradio that the page has no use for: other hosts are fetched, posts are processed, statistics told.
CLOSED = re.compile(
    r"(/gradio_api)?/(proxy=|file=https?:|file/https?:|process_recording|component_server|deep_link|run-history|runs\b"
    r"|monitoring|vibe-|undo-vibe|dev/)",
    re.IGNORECASE,
)
# What a reply about a part of a file says; gradio adds what the request said, Cookie and Authorization among it.
RANGE_HEADERS = {b"content-type", b"content-length", b"content-range", b"content-disposition", b"accept-ranges"}


class EditError(ValueError):
    """What is wrong with an edit, in one sentence."""


@dataclass(frozen=True, eq=False)
class Edit:
    """Attention as a person wants it; None where it is left as the network made it."""

    spatial: NDArray[np.float32] | None  # (T, h, w) in 0..1
    temporal: NDArray[np.float32] | None  # (T,) in 0..1


def prepare() -> None:
    """Sets the environment of this process before gradio is imported: no telemetry, no statistics, a cache of its own,
    and on Linux two pools of memory for all threads.

    Uploads and what is served lie in a folder that only this user can read, removed when the process ends, unless
    GRADIO_TEMP_DIR names one already. Calling it again does nothing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # else it sums up the last 10,000 events after each one
    if sys.platform == "linux":
        # Else glibc has eight for each core, and what a crowd freed stays in all of them: hundreds of megabytes.
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    if not os.environ.get("GRADIO_TEMP_DIR"):
        os.environ["GRADIO_TEMP_DIR"] = folder = os.path.realpath(tempfile.mkdtemp(prefix="stabn-app-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def blocks_arguments() -> dict[str, Any]:
    """For `gr.Blocks(...)`: no telemetry; files are let go an hour after they came, looked after every ten minutes."""
    return {"analytics_enabled": False, "delete_cache": (600, 3600)}


def queue_arguments() -> dict[str, Any]:
    """For `Blocks.queue(...)`: a bounded queue, past which gradio answers that it is busy; no way around it."""
    return {"max_size": 20, "default_concurrency_limit": 1, "api_open": False}


def launch_arguments(
    limits: Limits,
    *,
    host: str = HOST,
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
) -> dict[str, Any]:
    """For `Blocks.launch(...)`: this machine only unless told otherwise, bounded bodies, nothing served but the page.

    `limits` bounds uploads in bytes; `port` None takes a free one from 7860 on; `auth` is (user, password).
    """
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "auth": auth,
        "max_file_size": limits.bytes,
        "app_kwargs": {
            "max_body_size": limits.bytes + FORM,
            "middleware": [Middleware(Guard)],
            "openapi_url": None,
            "docs_url": None,
            "redoc_url": None,
        },
        "allowed_paths": [],  # [], not None: None asks the environment
        "blocked_paths": [],
        "state_session_capacity": 100,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,  # Node, and the static workers below, would answer beside the middleware
        "num_workers": 0,
        "pwa": False,
        "strict_cors": True,
        "mcp_server": mcp,
    }


def clip_id() -> str:
    """A new name for a prepared clip, which nobody can guess."""
    return secrets.token_urlsafe(16)


def check_clip(given: object, clip: str) -> None:
    """Raises EditError unless `given`, from the browser, is the id of this session's `clip`."""
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(errors="replace"), clip.encode()):
        raise EditError("This is about a clip that is no longer open here: explain it again.")


def read_edit(data: object, clip: str, shape: tuple[int, int, int]) -> Edit:
    """An edit that came from a browser, checked. `shape` is (T, h, w) of the network's maps.

    `data` is {"clip": id, "spatial": base64 of T * h * w bytes, 0..255 for 0..1, frame by frame, row by row, or null,
    "temporal": list of T numbers, or null}; other keys are ignored. Numbers are clipped to 0..1. Raises EditError,
    one sentence, for another clip's id, for other lengths and for what is no number.
    """
    if not isinstance(data, Mapping):
        raise EditError("This edit cannot be read: reload the page.")
    check_clip(data.get("clip"), clip)
    spatial, temporal = data.get("spatial"), data.get("temporal")
    return Edit(
        None if spatial is None else _spatial(spatial, shape),
        None if temporal is None else _temporal(temporal, shape[0]),
    )


def uploaded(file: object) -> str:
    """The path of a file that this server's upload cache holds: `file` is gradio's FileData, as object or dict.

    For every function that is given a file through the API. Raises PermissionError, one sentence, for anything else:
    a str, a URL, a file elsewhere on the server, a link that leads out of the cache.
    """
    path = file.get("path") if isinstance(file, Mapping) else getattr(file, "path", None)
    if isinstance(file, str | os.PathLike) or not isinstance(path, str) or not _is_uploaded(path):
        raise PermissionError("Only a file that was uploaded to this page is read: upload it first.")
    return os.path.realpath(path)


class Guard:
    """ASGI middleware: closes routes, bounds and checks what is posted, cleans the replies about parts of files.

    A file in a posted message must lie in the upload cache: gradio itself would also fetch a URL. A request that gradio
    fails at is refused in a sentence, and one that its sender breaks off ends; either is a line of the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")  # without where the page is mounted
        if CLOSED.match(path):
            await _refuse(404, "There is no such page.")(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD") and not path.endswith("/upload"):
            body = await _body(receive)
            if body is None:
                await _refuse(413, f"A request of more than {BODY / 1e6:g} MB is not read.")(scope, receive, send)
                return
            try:
                body = _by_path(body)
            except PermissionError as error:
                await _refuse(403, str(error))(scope, receive, send)
                return
            receive = _again(body, receive)

        begun = False

        async def cleaned(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start" and message["status"] == 206:
                kept = [header for header in message["headers"] if header[0].lower() in RANGE_HEADERS]
                message = {**message, "headers": kept}
            await send(message)

        try:
            await self.app(scope, receive, cleaned)
        except Exception as error:
            tell(f"{scope['method']} {path}", error)
            if not begun:  # else the server closes the connection, so that what was sent does not look whole
                await _refuse(400, FAILED)(scope, receive, send)


def tell(what: str, error: Exception) -> None:
    """Writes to the log, in a line, that `what` failed and where. Strangers may send what fails as often as they like,
    so it is no traceback, and bounded."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    last = traceback.extract_tb(error.__traceback__, limit=-1)
    place = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in last)
    said = f"{what[:100]!r}: {type(error).__name__} {str(error)[:200]!r}"
    print(f"failed: {said}{place}", file=sys.stderr, flush=True)


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence, "error": sentence}, status)


async def _body(receive: Receive) -> bytes | None:
    """What was posted; None if it is too much."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the `body` once and then what else comes, which is the end of the connection."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def again() -> Message:
        nonlocal message
        given, message = message, None
        return given or await receive()

    return again


def _by_path(body: bytes) -> bytes:
    """A posted message whose files all lie in the upload cache. Where one is given by its URL on this server, as tools
    of language models must, its path is put there. Raises PermissionError, one sentence, for any other file."""
    try:
        message = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return body  # no JSON: gradio refuses it
    rest, changed = [message], False
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if isinstance(given := value.get("path"), str):
                path = unquote(given.partition(SERVED)[2]) if given.startswith(("http://", "https://")) else given
                if not _is_uploaded(path):
                    raise PermissionError("Only files that were uploaded to this page are read.")
                value["path"], changed = path, changed or path != given
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return json.dumps(message).encode() if changed else body


def _is_uploaded(path: str) -> bool:
    from gradio.utils import get_upload_folder

    folder = os.path.realpath(get_upload_folder())
    try:
        real = os.path.realpath(path)
        return os.path.isfile(real) and os.path.commonpath([real, folder]) == folder
    except (ValueError, OSError):  # a null byte, another drive
        return False


def _spatial(given: object, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    size = int(np.prod(shape))
    # Four characters for three bytes: what is too long is not decoded.
    if not isinstance(given, str) or len(given) > 4 * (size // 3 + 1):
        raise EditError(f"The painted attention must be {size} bytes in base64: reload the page.")
    try:
        values = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise EditError("The painted attention is not in base64: reload the page.") from None
    if len(values) != size:
        raise EditError(f"The painted attention has {len(values)} values, this clip has {size}: reload the page.")
    return (np.frombuffer(values, np.uint8).reshape(shape) / 255).astype(np.float32)


def _temporal(given: object, count: int) -> NDArray[np.float32]:
    if not isinstance(given, list) or len(given) != count:
        raise EditError(f"The weights must be {count} numbers, one per frame: reload the page.")
    if any(isinstance(value, bool) or not isinstance(value, int | float) or value != value for value in given):
        raise EditError("Every frame's weight must be a number: reload the page.")
    return np.array([min(max(value, 0), 1) for value in given], np.float32)
