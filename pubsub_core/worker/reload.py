"""Watches the application's files, in a process of its own, so that the supervisor stays without threads."""

import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pubsub_core.errors import ConfigurationError

if TYPE_CHECKING:
    from watchfiles import PythonFilter

CHANGED = 3
_GONE = 0
_COARSE = 0.02  # seconds by which the time of a file may be behind the clock
_LOOK = 1000  # milliseconds


def check_reload() -> None:
    """Raise ConfigurationError if the library that watches files is not installed."""
    try:
        import watchfiles  # noqa: F401  # only to see whether it is there
    except ImportError:
        raise ConfigurationError(
            "--reload needs watchfiles. Install it with: pip install 'pubsub-streams[reload]'"
        ) from None


def watch_for_changes(pipe: socket.socket, since: float) -> int:
    """Block until a Python file below the working directory changes, or the supervisor is gone; return the code.

    A file that changed before this began to watch, but after `since` (of time.time()), when the application began to be
    loaded, is found within about a second.
    """
    from watchfiles import PythonFilter, watch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))  # see `_fork`
    gone = threading.Event()

    def wait_for_supervisor() -> None:
        select.select([pipe], [], [])
        gone.set()

    threading.Thread(target=wait_for_supervisor, name="pubsub-supervisor-watch", daemon=True).start()
    python = PythonFilter()
    has_looked = False
    for changes in watch(
        Path.cwd(),
        watch_filter=python,
        stop_event=gone,
        raise_interrupt=False,
        rust_timeout=_LOOK,
        yield_on_timeout=True,
    ):
        if changes or not (has_looked or _is_unchanged(python, since)):
            return CHANGED
        has_looked = True  # what changed before it watched; the rest it is told of
    sys.stdout.flush()
    return _GONE


def _written_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0  # it has gone, or leads nowhere


def _is_unchanged(python: "PythonFilter", since: float) -> bool:
    """Whether no file that is watched was written since then. One that is of the future tells nothing."""
    from watchfiles import Change

    now = time.time()
    for directory, names, files in os.walk(Path.cwd()):
        names[:] = [name for name in names if name not in python.ignore_dirs]
        for path in (os.path.join(directory, name) for name in files):
            if python(Change.modified, path) and since - _COARSE <= _written_at(path) <= now:
                return False
    return True
