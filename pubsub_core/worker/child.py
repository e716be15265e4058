"""One worker process, forked by the supervisor: it loads the application, works, and drains when it is told to."""

import atexit
import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import pubsub_core
from pubsub_core.backends import masked
from pubsub_core.errors import BrokerError, ConfigurationError, PubSubError
from pubsub_core.logs import ContextFilter, WorkerFormatter
from pubsub_core.pubsub import PubSub
from pubsub_core.subscription import Subscription
from pubsub_core.worker.options import LoadTarget, WorkerOptions
from pubsub_core.worker.process import Worker

log = logging.getLogger("pubsub")

OK, CRASHED, USAGE = 0, 1, 2
REPLACED = 75  # "try again": a handler would not stop, so this process made way for another

_CHECK_SECONDS = 1.0  # between two looks whether all threads are alive


def run_child(load: LoadTarget, options: WorkerOptions, pipe: socket.socket) -> int:
    """Be a worker process until a signal, the end of a burst, or the end of the supervisor; return the exit code.

    `pipe` leads to the supervisor. What is written to it is a JSON object a line, or an empty line as a sign of life;
    when it closes, that one is dead.
    """
    wake_out, wake_in = socket.socketpair()
    wake_in.setblocking(False)
    signals: list[int] = []
    signal.set_wakeup_fd(wake_in.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the supervisor, which tells us
    signal.signal(signal.SIGTERM, lambda number, frame: _note(signals, number, frame))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))  # see `_fork`
    configure_logging(options.log_level)
    try:
        pubsub = load()
        worker = _worker(pubsub, options)
    except PubSubError as error:
        print(f"pubsub: {error}", file=sys.stderr)
        return USAGE
    except Exception:  # noqa: BLE001  # whatever the application's import raises: it is shown, not handled
        traceback.print_exc()
        print(f"pubsub: {options.target!r} could not be loaded, see above", file=sys.stderr)
        return USAGE
    gc.collect()
    gc.freeze()  # what was imported stays: without it the collector would look at all of it again and again
    settings = worker.settings
    _send(
        pipe,
        processes=options.processes or settings.processes,
        shutdown_timeout=settings.shutdown_timeout,
        heartbeat=settings.heartbeat,
        banner=banner(worker, options),
    )
    worker.start()
    while not worker.is_stopping and not signals:
        readable, _, _ = select.select([pipe, wake_out], [], [], 0.05 if options.burst else _CHECK_SECONDS)
        with contextlib.suppress(OSError):  # full, so the supervisor is frozen; or it is gone, which shows below
            pipe.send(b"\n", socket.MSG_DONTWAIT)  # a sign that Python runs here: see `_Supervisor._kill_the_deaf`
        if wake_out in readable:
            wake_out.recv(4096)  # whichever signal it was: the application may have handlers of its own
        if pipe in readable:
            log.warning("the supervisor is gone: stopping")
            break
        if not worker.is_alive and not worker.is_stopping:
            log.error("a thread of the worker died: another process takes the place of this one")
            _send(pipe, is_leaving=True)
            # No longer: its sign of life may have ended with the thread, and then others have what it has in hand.
            _drain(worker, pubsub, timeout=min(settings.shutdown_timeout, 2 * settings.heartbeat))
            return CRASHED
        if worker.abandoned:
            log.error(
                "a handler will not stop: this process finishes what else it has, and another one takes its place"
            )
            _send(pipe, is_leaving=True)
            _drain(worker, pubsub)
            return REPLACED
    return _drain(worker, pubsub)


def _note(signals: list[int], number: int, _: FrameType | None) -> None:
    signals.append(number)


def _worker(pubsub: PubSub, options: WorkerOptions) -> Worker:
    if pubsub.settings.url.startswith("memory:"):
        raise ConfigurationError(
            "a worker cannot work with memory://: what your web process publishes stays in that process.\n"
            "  For one process, start it there:  with Worker(pubsub): ...   (from pubsub_core)\n"
            "  Shared, for development:          PUBSUB_URL=redis+embedded:///./.pubsub\n"
            "  Shared, for production:           PUBSUB_URL=redis://localhost:6379/0"
        )
    return Worker(pubsub, threads=options.threads, burst=options.burst)


def _drain(worker: Worker, pubsub: PubSub, timeout: float | None = None) -> int:
    worker.stop()
    in_time = worker.join(timeout)
    pubsub.close()
    if isinstance(worker.failure, BrokerError):
        print(f"pubsub: {worker.failure}", file=sys.stderr)
        return USAGE
    if worker.failure is not None:
        return CRASHED
    if not in_time:
        log.warning("some handlers did not finish in time; their messages were given to others")
        return CRASHED
    return OK


def _send(pipe: socket.socket, **facts: object) -> None:
    try:
        pipe.sendall(json.dumps(facts).encode() + b"\n")
    except OSError:
        log.warning("the supervisor is gone")  # the main loop sees it, too, and stops


def configure_logging(level: str | None) -> None:
    """Log to stderr, unless the application has configured logging; None leaves all as it is."""
    if level is None or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(WorkerFormatter("%(asctime)s [%(process)d] %(levelname)s %(message)s", "%H:%M:%S"))
    handler.addFilter(ContextFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def banner(worker: Worker, options: WorkerOptions) -> str:
    """Return what a worker says at its start."""
    settings = worker.settings
    processes, threads = options.processes or settings.processes, options.threads or settings.threads
    head = (
        f"pubsub {pubsub_core.__version__} · {options.target} · {masked(settings.url)} · "
        f"{processes} process{'es' if processes > 1 else ''} × {threads} thread{'s' if threads > 1 else ''}"
    )
    rows = [("topic", "group", "handler", "retry", "timeout"), *map(_row, worker.subscriptions)]
    return "\n".join([head, *_table(rows)])


def _row(one: Subscription) -> tuple[str, ...]:
    return (one.topic, one.group or "", one.handler.name, str(one.retry), f"{one.timeout:g} s")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def forget_exit_of_parent() -> None:
    """In a forked child: what its parent registered for its own exit (`atexit`) is not to be run here."""
    atexit._clear()  # noqa: SLF001  # there is no public way


def leave(code: int) -> None:
    """End a forked child, running what the application registered for its exit here (`atexit`)."""
    try:
        atexit._run_exitfuncs()  # noqa: SLF001  # there is no public way
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
