"""Watches the application's files, in a process of its own, so that the supervisor stays without threads."""

import os
import select
import signal
import socket
import sys
import threading

from pubsub_core.errors import ConfigurationError

CHANGED = 3
_GONE = 0


def check_reload() -> None:
    """Raise ConfigurationError if the library that watches files is not installed."""
    try:
        import watchfiles  # noqa: F401  # only to see whether it is there
    except ImportError:
        raise ConfigurationError(
            "--reload needs watchfiles. Install it with: pip install 'pubsub-streams[reload]'"
        ) from None


def watch_for_changes(pipe: socket.socket) -> int:
    """Block until a Python file below the working directory changes, or the supervisor is gone; return the code."""
    from watchfiles import PythonFilter, watch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))  # see `_fork`
    gone = threading.Event()

    def wait_for_supervisor() -> None:
        select.select([pipe], [], [])
        gone.set()

    threading.Thread(target=wait_for_supervisor, name="pubsub-supervisor-watch", daemon=True).start()
    for _ in watch(os.getcwd(), watch_filter=PythonFilter(), stop_event=gone, raise_interrupt=False):
        return CHANGED
    sys.stdout.flush()
    return _GONE
