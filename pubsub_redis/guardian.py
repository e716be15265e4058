"""The guardian of an embedded server: starts it, and ends it when nobody needs it any more.

`pubsub_redis.embedded` runs it as a script, `python -I -S guardian.py directory socket program idle descriptor`. It
needs the standard library only, and so it is there in 50 ms.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

POLL = 0.01  # seconds; the other side is another process, so there is no condition to wait on

_PR_SET_PDEATHSIG = 1


def guard() -> None:
    """Run as the guardian: start the server, end it when it is not needed any more. Returns when it has ended.

    Its arguments (`sys.argv`) are the directory, the socket, the program, the idle seconds, and the descriptor that
    holds the lock for as long as this process lives.
    """
    directory, path, program, idle = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    signal.signal(signal.SIGTERM, _leave)
    identity = _identity(directory)
    server = _start_server(directory, program, path)
    try:
        _watch(server, path, idle, lambda: _identity(directory) == identity)
    finally:
        # A server whose directory was removed must not end gracefully: it would remove the socket of its successor.
        if _identity(directory) == identity:
            server.terminate()
        else:
            server.kill()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _start_server(directory: Path, program: Path, path: Path) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return subprocess.Popen(  # noqa: S603 - the words are ours
        [program, *words],
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent(),  # noqa: PLW1509 - the guardian has one thread
    )


def _die_with_parent() -> Callable[[], None] | None:
    """Return what the server does between fork and exec, so that it is killed if its guardian is. Linux only."""
    if sys.platform != "linux":
        return None
    prctl, guardian = ctypes.CDLL(None).prctl, os.getpid()

    def bind_lives() -> None:
        # Killed, not asked: whoever finds the lock free must be able to start a new server at once.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(1)

    return bind_lives


def _watch(server: subprocess.Popen[bytes], path: Path, idle: float, directory_is_there: Callable[[], bool]) -> None:
    """Return when the server has ended, nobody used it for `idle` seconds, or its socket or directory was removed."""
    while not path.exists() and directory_is_there():
        if _has_ended(server, POLL):
            return
    connections, last_use = 0, time.monotonic()
    while not _has_ended(server, min(1.0, idle / 4)) and path.exists() and directory_is_there():
        present, total = _clients(path)
        # Those who came and went since the last look count, too; one of them was our own look.
        if present != 1 or total != connections + 1:
            last_use = time.monotonic()
        connections = total
        if time.monotonic() - last_use >= idle:
            return


def _has_ended(server: subprocess.Popen[bytes], wait: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(wait)
    return server.returncode is not None


def _clients(path: Path) -> tuple[int, int]:
    """Return how many connections there are, this one included, and ever were; zeros if the server does not answer."""
    try:
        lines = ask(path, "INFO clients stats", 1.0).decode(errors="replace").splitlines()
    except OSError:
        return 0, 0
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(facts.get("connected_clients", 0)), int(facts.get("total_connections_received", 0))


def ask(path: Path, command: str, patience: float) -> bytes:
    """Send one command on a connection of its own; return the first line of the reply, or the string that it is."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience)
        connection.connect(os.fspath(path))
        connection.sendall(f"{command}\r\n".encode())
        with connection.makefile("rb") as reader:
            line = reader.readline()
            if not line:
                raise ConnectionResetError(f"no reply to {command}")
            return reader.read(int(line[1:])) if line.startswith(b"$") else line


if __name__ == "__main__":
    guard()
