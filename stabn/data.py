"""Lists of labelled videos, recognised from what is there; nothing is decoded here.

- A folder of class folders: FOLDER/class/video, or a folder of frames instead of a video.
- A CSV with the columns path and label; paths are relative to it.
- Something-Something V1 as its owners distribute it: `something-something-v1-train.csv` (`id;label`, no header), a
  label on each line of `something-something-v1-labels.csv`, and folders of JPEG frames, `ID/00001.jpg`.
- Something-Something V2: `something-something-v2-train.json` (`[{"id", "template", ...}]`, with what varies in
  brackets), `something-something-v2-labels.json` (`{label: index}`), and `ID.webm`. Later releases name the same
  files `train.json` and `labels.json`, and list the answers of the test videos as `id;label`.

Of the last two, the list is what is asked for; videos and label list are found beside it.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

VIDEOS = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".gif",
    ".flv",
    ".ogv",
    ".3gp",
    ".mpg",
    ".mpeg",
    ".ts",
)
LISTED = 40  # names at most in a message that says what is allowed
HEAD = 4096  # bytes that tell what a file is
LONG = 80  # characters of a name in a message
DIGITS = 5  # of an index: a list without names may mean so many classes


class DataError(ValueError):
    """What is wrong with a list of videos, in one sentence: what, where, the value seen, the way out."""


class Row(NamedTuple):
    """A labelled video."""

    path: str  # in the root folder
    label: str  # as it is written: a class's name, in any case, or its index
    where: str  # it is written, for messages


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled videos in the order of their list, of class folders sorted."""

    source: Path  # what was asked for: a folder or a list
    root: Path  # what the paths are in
    rows: Sequence[Row]  # one at least
    listed: Sequence[str] | None = None  # the data's own list of labels, in its order

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes: the data's own list; without one the labels that occur, sorted, or if all of these
        are indices, 0 to the highest one. Raises DataError if that is absurd."""
        found = {row.label for row in self.rows}
        if self.listed is None and all(map(str.isdecimal, found)):
            if long := next((label for label in found if len(label.lstrip("0")) > DIGITS), None):
                raise DataError(
                    f"{self.source} has the label {_short(long)}: without a list of labels these are indices from 0 "
                    f"on, of {DIGITS} digits at most"
                )
            return [str(index) for index in range(max(map(int, found)) + 1)]
        return sorted(found) if self.listed is None else self.listed

    def labels(self, classes: Sequence[str]) -> list[int]:
        """The index among a network's `classes` for each row.

        Raises DataError: the data's list has more or fewer labels, or a label is none of the classes.
        """
        if self.listed is not None and len(self.listed) != len(classes):
            raise DataError(
                f"{self.source} belongs to a list of {len(self.listed)} labels, the network knows {len(classes)} "
                "classes: take a network that was trained on these labels"
            )
        known: dict[str, int] = {}
        for row in self.rows:
            if row.label not in known:
                try:
                    known[row.label] = class_index(classes, row.label)
                except ValueError as error:
                    raise DataError(f"{row.where}: {error}") from None
        return [known[row.label] for row in self.rows]


def read(data: Path) -> Labelled:
    """The labelled videos of a folder or a list. Raises DataError: it is none, or it could be several."""
    if not data.is_dir():
        return _read_list(data)
    found = lists(data)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{data} has {len(found)} lists of clips ({names}): name one of them, for example {found[0]}")
    return _read_list(found[0]) if found else _read_folder(data)


def lists(folder: Path) -> list[Path]:
    """The lists of Something-Something in a folder, or in its `labels` or `annotations`, sorted; often none.

    Raises DataError: there is a list of labels only.
    """
    for place in (folder, folder / "labels", folder / "annotations"):
        if labels := _label_lists(place):
            found = [path for path in sorted(place.iterdir()) if path not in labels and _labelled(path)]
            if not found:
                raise DataError(f"{place} has {labels[0].name}, but no list of clips with labels: put it there")
            return found
    return []


def class_index(classes: Sequence[str], target: int | str) -> int:
    """The index of a class given by name (in any case) or index; ValueError with the nearest names."""
    names = [name.casefold() for name in classes]
    if isinstance(target, str) and target.casefold() in names:
        return names.index(target.casefold())
    if isinstance(target, str) and not target.isdecimal():
        raise ValueError(f"there is no class {_short(target)!r} among the {len(classes)}: {nearest(target, classes)}")
    if isinstance(target, bool) or not isinstance(target, str | Integral):
        raise TypeError(f"`target` is {target!r}, it must be the index or the name of a class")
    if len(str(target)) > LONG or not 0 <= int(target) < len(classes):
        raise ValueError(
            f"there is no class {_short(str(target))}: the {len(classes)} classes are 0 to {len(classes) - 1}"
        )
    return int(target)


def _short(name: str) -> str:
    """A name as a message may hold it."""
    return name if len(name) <= LONG else f"{name[: LONG - 3]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """Which of the names may have been meant, in words."""
    known = list(names)
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.4)
    chosen = [folded[other] for other in close] or known[:LISTED]
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED and not close else ""
    return ("did you mean " if close else "there are ") + ", ".join(repr(other) for other in chosen) + more


# ------------------------------------------------------------------------------------------------ left and right

# Each word and its mirror image. A sense of turning has a third name, which is given no partner: it is not guessed.
_PAIRS = (("left", "right"), ("leftward", "rightward"), ("leftwards", "rightwards"), ("clockwise", "counterclockwise"))
_MIRRORED = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])} | {"anticlockwise": "?"}


def mirrored(classes: Sequence[str]) -> list[int | None]:
    """What a clip of each class shows when left and right are exchanged: the index of a class, None if none does.

    That is the class itself, unless its name has left, right or a sense of turning as a word of its own (also in
    `swipe_left` and `SwipeLeft`): then the class whose name has the others instead. "Pulling it right out" names
    right, too, and has no partner; whether it means the direction is not for a program to say.
    """
    names = {name.casefold(): index for index, name in enumerate(classes)}
    partners: list[int | None] = []
    for index, name in enumerate(classes):
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z]+", name)]
        turned = [_MIRRORED.get(word, word) for word in words]
        partners.append(index if turned == words else names.get("".join(turned).casefold()))
    return partners


# ------------------------------------------------------------------------------------------------------ the kinds


def _read_folder(folder: Path) -> Labelled:
    rows = [
        Row(f"{each.name}/{video.name}", each.name, str(each))
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".")
        for video in sorted(each.iterdir())
        if not video.name.startswith(".") and (video.is_dir() or video.suffix.lower() in VIDEOS)
    ]
    if not rows:
        raise DataError(f"{folder} holds no class folders with videos ({', '.join(VIDEOS)}) or folders of frames")
    return Labelled(folder, folder, rows)


def _read_list(path: Path) -> Labelled:
    if path.suffix.lower() == ".json":
        return _something(path, _templates(path))
    text = _text(path, "neither a folder nor a CSV")
    first = text.partition("\n")[0]
    if ";" in first and not {"path", "label"} <= set(re.split("[;,]", first.replace('"', ""))):
        return _something(path, _lines(path, text))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in first else ",")
        if missing := {"path", "label"} - set(reader.fieldnames or ()):
            raise DataError(f"{path} is no CSV with the columns path and label: it lacks {' and '.join(missing)}")
        found = [((row["path"] or "").strip(), (row["label"] or "").strip(), reader.line_num) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path} is neither a folder nor a CSV in UTF-8 ({error})") from None
    rows = [Row(name, label, f"{path}, line {line}") for name, label, line in found]
    if not rows:
        raise DataError(f"{path} has no rows")
    for row in rows:
        if not row.path:
            raise DataError(f"{row.where}: the path is empty")
    return Labelled(path, path.parent, rows)


def _lines(path: Path, text: str) -> list[Row]:
    """`id;label` lines, of Something-Something V1 and of V2's answers; paths are ids so far."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        name, separator, label = line.strip().partition(";")
        if not name and not separator:
            continue
        if not name or not label:
            raise DataError(
                f"{path}, line {number} is {line[:LONG]!r}, it must be the id of a clip, a semicolon, its label"
            )
        rows.append(Row(name, label, f"{path}, line {number}"))
    return rows


def _templates(path: Path) -> list[Row]:
    """The entries of a list of Something-Something V2; paths are ids so far."""
    content, rows = _json(path), []
    if not isinstance(content, list) or not content:
        raise DataError(f'{path} is no list of clips: it must be [{{"id": ..., "template": ...}}, ...]')
    for number, entry in enumerate(content, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(name := entry.get("id"), str | int) or not str(name):
            raise DataError(f"{where} is {str(entry)[:LONG]}, it must have an id")
        if not isinstance(label := entry.get("template"), str):
            raise DataError(f"{where} (id {name}) has no template: a list of test clips has no labels")
        rows.append(Row(str(name), re.sub(r"[\[\]]", "", label), where))
    return rows


def _something(path: Path, found: list[Row]) -> Labelled:
    """A list of Something-Something, with its label list and its videos, which are found beside it."""
    labels, prefix = _label_lists(path.parent), path.stem.rpartition("-")[0]
    labels = [each for each in labels if each.stem == f"{prefix}-labels"] or labels
    if len(labels) != 1:
        names = ", ".join(each.name for each in labels) or "there is none"
        raise DataError(f"{path} needs one list of labels beside it, *labels.csv or *labels.json: {names}")
    usual = "" if labels[0].suffix.lower() == ".csv" else ".webm"
    root, suffix = _videos(path, {row.path for row in found}, f"20bn-{prefix}", usual)
    rows = [row._replace(path=row.path + suffix) for row in found]
    return Labelled(path, root, rows, _names(labels[0]))


class _Place(NamedTuple):
    """Where videos, or folders of frames, may be; of several the greatest is taken."""

    named: bool  # as the owners name this folder
    usual: bool  # it holds what they distribute
    clips: int  # how many of the ids are there
    ending: str  # what follows an id: "" or ".webm"
    folder: Path


def _videos(path: Path, ids: set[str], name: str, usual: str) -> tuple[Path, str]:
    """The folder with the videos or folders of frames of these ids, and what follows the ids in it ("" or ".webm").

    It is the list's folder, a folder in it, or a 20bn-* folder in these; or else the same of the folder above. V1 and
    V2 have clips of the same ids, so that the owners' `name` of the folder and their `usual` ending come first.
    """

    def places(folder: Path) -> list[_Place]:
        names = map(os.path.splitext, os.listdir(folder) if os.access(folder, os.R_OK | os.X_OK) else ())
        counts = Counter(end for stem, end in names if stem in ids and end.lower() in ("", *VIDEOS))
        return [_Place(folder.name == name, end == usual, count, end, folder) for end, count in counts.items()]

    for base in (path.parent, path.absolute().parent.parent):
        found = places(base)
        inside = [] if found else sorted(Path(each) for each in os.scandir(base) if each.is_dir())
        inside += [deeper for each in inside for deeper in sorted(each.glob("20bn-*")) if deeper.is_dir()]
        found += [place for folder in inside for place in places(folder)]
        best = max(found, default=None)
        if rivals := [each for each in found if best and each is not best and each[:3] == best[:3]]:
            said = " and ".join(f"{each.folder}/ID{each.ending}" for each in (*rivals, best) if each)
            raise DataError(f"{path}: {rivals[0].clips} of its clips are in {said}: move those that are not meant")
        if best:
            return best.folder, best.ending
    some = ", ".join(sorted(ids)[:3])
    raise DataError(
        f"{path} lists {len(ids)} clips ({some}, ...), and none is there as ID.webm or as a folder of frames, in its "
        "folder, the one above, or a folder of these: put or link them there"
    )


def _label_lists(folder: Path) -> list[Path]:
    """The lists of labels in a folder, sorted."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / name for name in names if name.lower().endswith(("labels.csv", "labels.json"))]


def _labelled(path: Path) -> bool:
    """Whether this looks like a list of clips with labels, from how it begins."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".json") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    first = head.partition(b"\n")[0].strip()
    return b'"template"' in head if kind == ".json" else re.match(rb"(\xef\xbb\xbf)?[^;,]+;.", first) is not None


def _names(path: Path) -> list[str]:
    """The labels of a list in the order of their indices."""
    if path.suffix.lower() == ".csv":
        names = [line.strip() for line in _text(path, "no list of labels").splitlines() if line.strip()]
    else:
        content = _json(path)
        try:
            indices = {int(index): name for name, index in content.items()}
        except (AttributeError, TypeError, ValueError, OverflowError):  # the last one's is an infinite index
            raise DataError(f"{path} is no list of labels: it must be {{label: index}}") from None
        if sorted(indices) != list(range(len(content))):
            raise DataError(f"{path} has {len(content)} labels, their indices must be 0 to {len(content) - 1}")
        names = [indices[index] for index in range(len(indices))]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path} has no labels, or one twice")
    return names


def _json(path: Path) -> Any:
    try:
        content = json.loads(text := _text(path, "no JSON"))
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # half a character, as "\ud800", is nobody's name
        return content
    except RecursionError:
        raise DataError(f"{path} is no JSON that is read here (too deep)") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error})") from None


def _text(path: Path, otherwise: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is {otherwise} in UTF-8 ({error})") from None
