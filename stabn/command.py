"""What the commands share: how they end, and that two of them do not write the same at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


class UsageError(ValueError):
    """The command line is wrong: exit code 2."""


def command(run: Callable[[], int | None], interrupted: Callable[[], str]) -> int:
    """Runs a command; what is wrong becomes one sentence on stderr.

    Returns the exit code: that of `run` (None is 0), 1 failed, 2 wrong use, 130 interrupted, of which `interrupted`
    tells what is kept; 141, as the shell says of what SIGPIPE ended, if who reads stdout is gone (`| head`).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run() or 0
        finally:
            sys.stdout.flush()  # also after --help, which leaves by SystemExit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain as it flushes at its end
        return 141
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: interrupted; {interrupted()}", file=sys.stderr)
        return 130


def in_words(error: BaseException) -> str:
    """An error in one line; without words of its own it is one of memory."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if "can't allocate memory" in str(error):  # PyTorch's, which is no MemoryError
        return "out of memory"
    return " ".join(str(error).split()) or "out of memory"


def lock(file: IO[Any]) -> bool:
    """Locks a file that is open for writing until this process closes it or ends, however it ends; False if another
    process has it. Forked processes do not inherit the lock. Where the system or the disk has no locks: True."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Ctrl-C waits until this is over: Python loses it, with a traceback, while it forks. Processes that are started
    within never see it, their parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # where no interrupt comes
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def alone(place: Path, made: Path) -> Iterator[None]:
    """This process alone makes `made`: it holds the file `place`, which is removed in the end.

    Raises ValueError if another process has it, and OSError if it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "w") as file:
        if not lock(file):
            raise ValueError(f"another run is making {made}: wait for its end, or choose another --out")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                place.unlink()
