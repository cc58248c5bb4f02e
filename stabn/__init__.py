"""stabn: the spatio-temporal attention branch network, its data, its weights, and video in and out.

The names below are resolved on first use, so that `import stabn` and every `--help` stay instant.
"""

import errno
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabn import synthetic
    from stabn.checkpoint import load, save
    from stabn.model import STABN, Attention, Config, Output
    from stabn.video import Clip, read_clip

__version__ = "0.1.0"
__all__ = ["STABN", "Attention", "Clip", "Config", "Output", "load", "read_clip", "save", "synthetic"]

_HOMES = {
    "STABN": "stabn.model",
    "Attention": "stabn.model",
    "Config": "stabn.model",
    "Output": "stabn.model",
    "load": "stabn.checkpoint",
    "save": "stabn.checkpoint",
    "Clip": "stabn.video",
    "read_clip": "stabn.video",
}


def opencv_advice(error: ImportError) -> str | None:
    """One sentence on what to install when OpenCV does not load; None if `error` is about something else."""
    if "libGL" not in str(error) and error.name != "cv2":
        return None
    return (
        f"OpenCV cannot be loaded ({error}): install the system package libgl1 (Debian, Ubuntu; mesa-libGL on "
        "Fedora), or replace opencv-python by opencv-python-headless"
    )


def unwritable(folder: Path) -> Path | None:
    """What keeps a folder, which need not be there yet, from being written to: a file or a folder above it, or itself;
    None if nothing does."""
    path = folder.absolute()
    above = next(each for each in (path, *path.parents) if os.path.exists(each))  # Path.exists may raise
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        import tempfile

        try:
            with tempfile.TemporaryFile(dir=above):  # /proc and what is mounted read-only look writable to root
                return None
        except OSError as error:
            return None if error.errno in (errno.ENOSPC, errno.EDQUOT) else above  # a full disk says so by itself
    return above


def __getattr__(name: str) -> Any:
    if name == "synthetic":
        return importlib.import_module("stabn.synthetic")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'stabn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
