"""The page's one component of its own: a player of explained clips. What it shows is `Shown`, how is in `player.js`."""

from __future__ import annotations

import base64
import io
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import matplotlib
import numpy as np
from gradio.data_classes import FileData, GradioModel
from numpy.typing import NDArray
from PIL import Image

from app.actions import Session, by_time, evidence_scores
from explain import TITLES
from explain.core import SURE, Explanation, knows, percent, top

COLOURS = ("turbo", "inferno", "viridis", "RdBu_r")  # the last one for maps with a sign
STRIP = 96  # pixels, of the short side of a picture in the strip
OUTLINE = 48  # cells per side, of the known evidence


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


class Shown(GradioModel):
    """What the player is given: the clip's id, the file that plays, facts of the clip, a panel for each method."""

    clip: str
    video: FileData
    facts: dict[str, Any]
    panels: list[dict[str, Any]]


class Player(gr.HTML):
    """Plays a clip with heat over it, which it draws itself from the raw maps; its value is `Shown`.

    Three more properties are set by events: `status` {"text", "share", "busy", "error"}, `answer` {"clip", "seq",
    "rows"} to an edit, and `scores` {"clip", "scores", "note"}. It raises the events edit, ask and example.
    """

    data_model = Shown

    def __init__(self, value: Shown | None = None, **options: Any) -> None:
        options = {"status": None, "answer": None, "scores": None, "colours": colours(), "elem_id": "player", **options}
        options |= {"html_template": _read("player.html"), "css_template": "", "apply_default_css": False}
        super().__init__(value, js_on_load=_read("player.js"), **options)

    def preprocess(self, payload: Any) -> None:
        return None  # it is never read

    def postprocess(self, value: Any) -> Any:
        return value

    @property
    def skip_api(self) -> bool:
        return True


def shown(session: Session) -> Shown:
    """What the player needs of a session, as it is now."""
    clip, first = session.clip, session.first
    return Shown(
        clip=session.id,
        video=FileData(path=session.playable, orig_name=session.name),
        facts={
            "name": session.name,
            "example": session.example,
            "size": list(clip.source_size),
            "view": list(first.view),
            "duration": clip.duration,
            "fps": clip.fps,
            "frames": clip.frame_count,
            "times": np.sort(first.timestamps).tolist(),
            "strip": strip(clip.frames[by_time(clip.timestamps)]),
            "rows": rows(session),
            "target": first.target,
            "model": session.model.name if session.model else None,
            "editable": _editable(session),
            "burnt": session.heat_in_video,
            "evidence": _evidence(session),
            "notes": notes(session),
            "seconds": session.seconds,
            "at": time.time(),  # the player knows by it what it shows already
        },
        panels=[panel(session, each) for each in session.explanations.values()],
    )


def _editable(session: Session) -> list[str]:
    """Which parts of the attention can be changed."""
    if session.attention is None or "stabn" not in session.explanations:
        return []
    return [name for name in ("spatial", "temporal") if getattr(session.attention, name) is not None]


def rows(session: Session, new: NDArray[np.float32] | None = None, count: int = 5) -> list[dict[str, Any]]:
    """The best classes with their probabilities, and those under a changed attention with the `new` ones (K,)."""
    first = session.first
    best = np.argsort(-first.probabilities, kind="stable")[:count].tolist()
    if new is not None and int(new.argmax()) not in best:
        best.append(int(new.argmax()))
    if first.target not in best:
        best.append(first.target)
    return [
        {
            "index": k,
            "name": first.classes[k],
            "old": float(first.probabilities[k]),
            "new": None if new is None else float(new[k]),
        }
        for k in best
    ]


def notes(session: Session) -> list[dict[str, str]]:
    """What a person must know before believing what is shown, by kind: warn or info."""
    first = session.first
    found = [{"kind": "info", "text": f"The network {knows(first.classes)}."}] if session.model else []
    [(_, best)] = top(first.classes, first.probabilities, 1)
    if best < SURE:
        found.append({"kind": "warn", "text": f"It is not sure: its best answer has {percent(best)}."})
    several = len(session.explanations) > 1
    for method, each in session.explanations.items():
        for note in each.notes:
            text = f"{TITLES.get(method, method)}: {note}" if several else note
            found.append({"kind": "warn" if "flat" in note else "info", "text": _sentence(text)})
    found += [{"kind": "warn", "text": _sentence(f"{TITLES[name]}: {why}")} for name, why in session.refused.items()]
    found += [{"kind": "info", "text": _sentence(note)} for note in session.notes]
    if len({tuple(note.items()) for note in found}) < len(found):
        found = [dict(items) for items in dict.fromkeys(tuple(note.items()) for note in found)]
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def panel(session: Session, explanation: Explanation) -> dict[str, Any]:
    """One method's maps as bytes on its scale, and its weights."""
    low, high = explanation.scale
    names, target = explanation.classes, explanation.target
    _, height, width = explanation.spatial.shape
    order = by_time(explanation.timestamps)
    return {
        "method": explanation.method,
        "title": TITLES.get(explanation.method, explanation.method),
        "about": None if explanation.class_agnostic else names[target],
        "agnostic": explanation.class_agnostic,
        "signed": explanation.signed,
        "places": explanation.has_places and not session.heat_in_video,
        "height": height,
        "width": width,
        "spatial": encoded(as_bytes(explanation.spatial[order], low, high)),
        "low": float(low),
        "high": float(high),
        "temporal": explanation.temporal[order].astype(float).tolist(),
        "temporal_scale": [float(end) for end in explanation.temporal_scale],
        "score": scored(session, explanation),
        "evidence": evidence_scores(session, explanation),
    }


def scored(session: Session, explanation: Explanation) -> dict[str, Any] | None:
    found = session.scores.get((explanation.method, explanation.target))
    return None if found is None else vars(found)


def as_bytes(values: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.uint8]:
    """Values on a scale -> 0..255, rounded."""
    share = (np.asarray(values, np.float64) - low) / ((high - low) or 1)
    return np.clip(np.round(share * 255), 0, 255).astype(np.uint8)


def encoded(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def strip(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """The sampled frames (T, H, W, 3) side by side in one JPEG, as a data URL."""
    scale = STRIP / min(frames.shape[1:3])
    height, width = (max(1, round(side * scale)) for side in frames.shape[1:3])
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(small, 1)).save(file, "JPEG", quality=80)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"src": url, "width": width, "height": height}


def _evidence(session: Session) -> dict[str, Any] | None:
    """Where the acting things are, as shares of cells in 0..255, frame by frame, and which sampled frames act."""
    known, sampled = session.known, session.evidence
    if known is None or sampled is None:
        return None
    side = (OUTLINE, OUTLINE)
    shares = [cv2.resize(mask.astype(np.float32), side, interpolation=cv2.INTER_AREA) for mask in known.mask]
    return {
        "label": known.label,
        "seconds": known.seconds.tolist(),
        "side": OUTLINE,
        "mask": encoded(as_bytes(np.stack(shares), 0, 1)),
        "action": sampled.action[by_time(session.clip.timestamps)].tolist(),
    }


@lru_cache(maxsize=1)
def colours() -> dict[str, str]:
    """256 RGB bytes of each colour scale, in base64."""
    return {name: encoded(as_bytes(matplotlib.colormaps[name](np.arange(256))[:, :3], 0, 1)) for name in COLOURS}
