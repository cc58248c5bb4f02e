"""The page: what stands where, and which action each thing starts. It has no state but `actions.Sessions`."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.media import get_video
from gradio.utils import get_upload_folder

from app import actions, guard, saved
from app.actions import Example, Job, Models, Session, Sessions, Stopped
from app.player import Player, rows, scored, shown
from explain import TITLES

IDLE = {"busy": False}
NETWORK: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
REAL = (("earth", "b.mp4", "Real: the turning Earth"), ("letters", "a.mp4", "Real: letters come in"))

LOOK: dict[str, Any] = {
    "theme": gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "monospace"],
    ).set(
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_title_text_weight="400",
        block_title_padding="0",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_color_dark="*body_text_color_subdued",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_500",
    ),
    "css_paths": [Path(__file__).with_name("player.css")],
    "footer_links": [],
}

HEAD = """
<div id="head">
<svg viewBox="0 0 40 40" aria-hidden="true"><rect width="40" height="40" rx="10" fill="#4f46e5"/>
<g fill="#c7d2fe"><rect x="7" y="22" width="4" height="11" rx="1"/><rect x="13" y="15" width="4" height="18" rx="1"/>
<rect x="25" y="18" width="4" height="15" rx="1"/><rect x="31" y="25" width="4" height="8" rx="1"/></g>
<rect x="19" y="7" width="4" height="26" rx="1" fill="#fbbf24"/></svg>
<div><h1>stabn</h1><p>Where, and when, did the network look? And was that the reason?</p></div></div>
"""

MEANING = """
## What you see
The network was shown **{frames} frames**, {taken}. For its answer it weighted what it saw, twice.

**Where: spatial attention.** Each of these frames has a map of small cells. A value near 1 lets the features of that
place count almost double, a value near 0 leaves them as they are. The heat over the picture is this map.

**When: temporal attention.** Each frame has one weight from 0 to 1. The bars are these weights.

Both are part of the recognition itself: the network answers *through* them. Change them under *What if?* and it answers
anew, from the features that it had.

## What the numbers mean
- **The percentages** are the network's own belief, shared out among the classes that it knows. It knows only those: a
  clip that shows none of them still gets an answer.
- **Heat on what acts** (generated clips only) compares the share of heat on the hand or object with the share of the
  picture that it covers. 1 is chance.
- **AUC** (generated clips only) is the chance that a frame with action has a greater weight than one without. 0.5 is
  chance.
- **Deletion and insertion** ask whether the answer follows the map: how fast is it lost when the places that the map
  ranks highest are blurred first, how fast does it come back when they are put in first? Beside each stands the same
  for a random order, which a map must beat to say anything.

## What they do not mean
- **The attention of ST-ABN is one for all classes.** It shows what was weighted, not why one class was preferred.
  Compare it with Grad-CAM, which is about a class.
- **Between the sampled frames and between the cells it is interpolated.** The smooth heat is finer than what the
  network has.
- **A flat map says nothing.** The page calls it almost flat; with the scale of *each frame* even its noise fills all
  colours.
- **A drop is not a proof.** Changing the attention also changes how strongly features count, and brings the network
  where it was never trained. An answer that falls says that the attention matters to it, not that it looked at the
  right thing.
- **A plausible map is not a correct one.** People like maps that fall on what they would look at themselves.
"""

TAKEN = {"spread": "spread evenly over the clip", "middle": "one after the other from the middle of the clip"}

PYTHON = """
## The same from Python
```python
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")  # the address of this page
found = client.predict(
    handle_file("clip.mp4"), method="stabn", target="", model="{model}", api_name="/explain"
)

found["top5"]      # [{{"class": ..., "probability": ...}}, ...]
found["spatial"]   # T x h x w: where
found["temporal"]  # T: when, at found["seconds"]
```
`method` is one of {methods}. `target` is the class to ask about, by name or number; empty takes the predicted one.

Without a server between:

```python
import stabn
from explain import explain

model = stabn.load("synthetic")
explanation = explain(model, stabn.read_clip("clip.mp4", frames=model.config.frames))
```

With `pip install 'stabn[mcp]'` and `stabn-app --mcp` the endpoint is a tool for language models too.
"""


def build(names: Sequence[str] = (), device: str = "auto") -> gr.Blocks:
    """The page, to be launched with `guard.launch_arguments` and `LOOK`. `names` are networks to offer first.

    Raises ValueError if the first network cannot be opened.
    """
    root = Path(get_upload_folder())
    root.mkdir(parents=True, exist_ok=True)
    models, sessions = Models(actions.menu(names), device), Sessions()
    first = models[models.names[0]]
    clips = _examples(root)
    known = {actions.digest(clip.path): clip for clip in clips}
    threading.Thread(target=_sweep, args=(sessions,), daemon=True).start()

    # ------------------------------------------------------------------------------------------------- what happens

    def start(path: str | None, name: str, methods: list[str], request: gr.Request) -> Iterator[Any]:
        key = str(request.session_hash)

        def work(job: Job) -> Session:
            if not path:
                raise ValueError("Choose a clip first: upload one, record one, or pick an example.")
            model, session = models[name], sessions.get(key)
            if session is None or session.path != path or session.model is not model:
                session = actions.prepare(job, model, path, root, known)
                sessions.put(key, session, job)
            actions.look(job, session, methods or [])
            return session

        yield from _live(sessions, key, work)

    def score(request: gr.Request) -> Iterator[Any]:
        key = str(request.session_hash)
        session = sessions.get(key)
        if session is None or session.model is None or len(session.explanations) < 2:
            return

        note: list[str] = []

        def work(job: Job) -> Session:
            note.append(actions.score(job, session))
            return session

        yield from _live(sessions, key, work, show=False)
        found = {method: scored(session, each) for method, each in session.explanations.items()}
        yield gr.update(scores={"clip": session.id, "scores": found, "note": "".join(note), "at": time.time()})

    def ask(event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        key = str(request.session_hash)

        def work(job: Job) -> Session:
            session = _open(sessions, key, event)
            index = _data(event).get("index")
            if type(index) is not int:
                raise ValueError("This class cannot be read: reload the page.")
            actions.look(job, session, list(session.explanations), index)
            return session

        yield from _live(sessions, key, work)

    def edit(event: gr.EventData, request: gr.Request) -> Any:
        told = {key: _data(event).get(key) for key in ("clip", "seq")}
        try:
            session = _open(sessions, str(request.session_hash), event)
            new = actions.edit(session, _data(event))
            return gr.update(answer={**told, "rows": rows(session, new if session.edited else None)})
        except ValueError as error:
            return gr.update(answer=told, status=_problem(error))

    def export(request: gr.Request) -> Iterator[Any]:
        key, made = str(request.session_hash), []

        def work(job: Job) -> Session:
            session = sessions.get(key)
            if session is None:
                raise ValueError("There is nothing to take away yet: explain a clip first.")
            made.extend(saved.export(job, session))
            return session

        for update in _live(sessions, key, work, show=False):
            yield update, gr.skip()
        yield gr.skip(), gr.Files([str(file) for file in made], visible=bool(made), interactive=False)

    def open_result(path: str | None, request: gr.Request) -> Iterator[Any]:
        key = str(request.session_hash)

        def work(job: Job) -> Session:
            if not path:
                raise ValueError("Choose a saved result first: a zip file that this page made.")
            session = saved.open_result(job, path, root)
            sessions.put(key, session, job)
            return session

        yield from _live(sessions, key, work)

    def stop(request: gr.Request) -> Any:
        sessions.stop(str(request.session_hash))
        return gr.update(status={**IDLE, "stopped": time.time()})

    def choose(name: str) -> Any:
        try:
            model = models[name]
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return gr.Dropdown(choices=_titles(model.methods), value=[model.first])

    def pick(event: gr.SelectData) -> Any:
        known = type(event.index) is int and 0 <= event.index < len(clips)
        return str(clips[event.index].path) if known else gr.skip()

    def pick_by_key(event: gr.EventData) -> Any:
        return next((str(clip.path) for clip in clips if clip.key == _data(event).get("key")), gr.skip())

    def leave(request: gr.Request) -> None:
        sessions.drop(str(request.session_hash))

    def explain(video: FileData, method: str = "stabn", target: str = "", model: str = first.name) -> dict[str, Any]:
        """Where and when a video network looked in a clip, and what it answered.

        Args:
            video: the clip: post it to /gradio_api/upload, then give the URL /gradio_api/file=PATH of what it answers.
            method: how to explain, for example stabn or grad_cam.
            target: the class to ask about, by name or number; empty takes the predicted one.
            model: the network, one of the page's menu.
        Returns:
            top5 classes, spatial maps T x h x w, temporal weights T at `seconds`, and notes on how to read them.
        """
        job = Job()
        try:
            if type(method) is not str or type(target) not in (str, int):  # JSON can hold anything
                raise ValueError("`method` is a name, `target` the name or the number of a class.")
            session = actions.prepare(job, models[model], guard.uploaded(video), root)
            try:
                actions.look(job, session, [method], target or None)
            finally:
                shutil.rmtree(session.folder, ignore_errors=True)
        except (ValueError, PermissionError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        found = session.first
        return {
            "model": model,
            "method": method,
            "target": found.classes[found.target],
            "top5": [{"class": name, "probability": share} for name, share in found.top(5)],
            "seconds": found.timestamps.tolist(),
            "temporal": found.temporal.astype(float).round(6).tolist(),
            "spatial": found.spatial.astype(float).round(6).tolist(),
            "scale": list(found.scale),
            "view": dict(found.view._asdict()),
            "class_agnostic": found.class_agnostic,
            "notes": list(found.notes),
        }

    # --------------------------------------------------------------------------------------------- what stands where

    with _Page(title="stabn: where and when did it look?", **guard.blocks_arguments()) as demo:
        gr.HTML(HEAD, padding=False)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Explain"), gr.Row(elem_id="explain"):
                with gr.Column(elem_id="input"):
                    clip = gr.Video(
                        label="Clip",
                        show_label=False,
                        sources=["upload", "webcam"],
                        include_audio=True,  # to leave it out an ffmpeg would be needed
                        webcam_options=gr.WebcamOptions(
                            mirror=False,
                            constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}},
                        ),
                        buttons=[],
                        elem_id="clip",
                    )
                    gallery = gr.Gallery(
                        [(_thumbnail(example), example.caption) for example in clips],
                        label="Examples",
                        show_label=False,
                        columns=2,
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_id="examples",
                    )
                    with gr.Group(elem_id="settings"):
                        name = gr.Dropdown(models.names, value=first.name, label="Network")
                        methods = gr.Dropdown(
                            _titles(first.methods),
                            value=[first.first],
                            multiselect=True,
                            max_choices=actions.SIDE_BY_SIDE,
                            label="Methods, up to four side by side",
                            elem_id="methods",
                        )
                    with gr.Row(elem_id="go"):
                        run = gr.Button("Explain", variant="primary", elem_id="run")
                        halt = gr.Button("Stop", elem_id="stop")
                with gr.Column(elem_id="show"):
                    player = Player()
                with gr.Column(elem_id="take"):
                    take = gr.Button("Make the files to take away", elem_id="make", size="sm")
                    again = gr.UploadButton(
                        "Open a saved result (zip)", file_types=[".zip"], elem_id="again", size="sm"
                    )
                    files = gr.Files(label="Files", show_label=False, visible=False, interactive=False, elem_id="files")
            with gr.Tab("What it means"):
                words = MEANING.format(frames=first.network.frames, taken=TAKEN[first.network.sampling])
                gr.Markdown(words, elem_classes="words")
            with gr.Tab("From Python"):
                text = PYTHON.format(model=first.name, methods=", ".join(f"`{method}`" for method in first.methods))
                gr.Markdown(text, elem_classes="words")

        given = [clip, name, methods]
        long: dict[str, Any] = {"outputs": player, **NETWORK, **PRIVATE}
        started = [
            run.click(start, given, **long),
            gallery.select(pick, None, clip, **PRIVATE).then(start, given, **long),
            player.example(pick_by_key, None, clip, **PRIVATE).then(start, given, **long),
            player.ask(ask, None, **long),
        ]
        scoring = [event.success(score, None, **long) for event in started]
        making = take.click(export, None, [player, files], **NETWORK, **PRIVATE)
        opening = again.upload(open_result, again, **long)
        halt.click(stop, None, player, cancels=[*started, *scoring, making, opening], queue=False, **PRIVATE)
        # Its own lane: an edit needs no lock, and must not wait behind somebody's long work.
        player.edit(edit, None, player, trigger_mode="multiple", concurrency_limit=2, concurrency_id="edit", **PRIVATE)
        name.change(choose, name, methods, **PRIVATE)
        gr.api(explain, api_name="explain", **NETWORK)
        demo.unload(leave)
    clip.keep_in_cache = _Kept([example.path for example in clips], sessions)  # type: ignore[assignment]
    demo.queue(**guard.queue_arguments())
    return demo


class _Page(gr.Blocks):
    """Blocks which answer in a sentence what no page sends: too few values, values of another kind, an event without
    its data. gradio would print a traceback, which can hold all that was sent."""

    async def process_api(self, *given: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*given, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
            if any(module.startswith(("app.", "explain.", "stabn.")) for module in modules[1:]):
                raise  # a fault of this project's own: whoever runs the server is told where
            guard.tell("an event of the page", error)
            raise gr.Error(guard.FAILED, print_exception=False) from None


class _Kept:
    """The files that gradio must not delete though they are old, each time it looks: examples, and what is open."""

    def __init__(self, examples: Sequence[Path], sessions: Sessions) -> None:
        self._examples, self._sessions = examples, sessions

    def __iter__(self) -> Iterator[str]:
        return map(os.path.abspath, (*map(str, self._examples), *self._sessions.files()))


def _live(sessions: Sessions, key: str, work: Callable[[Job], Session], show: bool = True) -> Iterator[Any]:
    """Updates of the player while `work` goes on in a thread, and what came of it in the end."""
    job = sessions.job(key)
    found: list[Session] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work(job))
        except BaseException as error:  # it is told to the person below
            failed.append(error)
        finally:
            job.messages.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (told := job.messages.get()) is not None:
            words, share = told
            yield gr.update(status={"busy": True, "text": words, "share": share})
    finally:
        job.stop.set()  # the page was closed, or the event cancelled: nobody waits for it any more
        sessions.done(key, job)
    if not failed:
        value: dict[str, Any] = {"value": shown(found[0])} if show else {}
        yield gr.update(status={**IDLE, "at": time.time()}, **value)
    elif isinstance(failed[0], Stopped):
        yield gr.update(status={**IDLE, "at": time.time()})
    else:
        yield gr.update(status=_problem(failed[0]))


def _problem(error: BaseException) -> dict[str, Any]:
    return {"busy": False, "error": True, "text": _sentence(error), "at": time.time()}


def _sentence(error: BaseException) -> str:
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "This needs more memory than there is: try a shorter clip or another method."
    return "Something went wrong on the server; whoever runs it finds the reason in its log."


def _open(sessions: Sessions, key: str, event: gr.EventData) -> Session:
    """The session that an event of the player is about."""
    session = sessions.get(key)
    if session is None:
        raise ValueError("This clip was let go after half an hour without use: explain it again.")
    guard.check_clip(_data(event).get("clip"), session.id)
    return session


def _data(event: gr.EventData) -> dict[str, Any]:
    """What the player sent with an event; nothing, if it is no dictionary and so not from the player."""
    return event._data if isinstance(event._data, dict) else {}


def _titles(methods: Sequence[str]) -> list[tuple[str, str]]:
    return [(TITLES.get(method, method), method) for method in methods]


def _sweep(sessions: Sessions) -> None:
    while True:
        time.sleep(60)
        sessions.sweep()


def _examples(root: Path) -> list[Example]:
    folder = root / "examples"
    folder.mkdir(exist_ok=True)
    real = [
        Example(key, caption, Path(shutil.copy(get_video(file), folder / f"{key}.mp4"))) for key, file, caption in REAL
    ]
    return [*actions.generated(folder), *real]


def _thumbnail(example: Example) -> str:
    """A picture from the middle of an example."""
    from PIL import Image

    from stabn.video import probe, read_clip

    info = probe(example.path)
    frame = read_clip(info, [info.frame_count // 2], size=240).frames[0]
    path = example.path.with_suffix(".jpg")
    Image.fromarray(frame).save(path, quality=85)
    return str(path)
