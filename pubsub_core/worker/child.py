"""One worker process, forked by the supervisor: it loads the application, works, and drains when it is told to."""

import atexit
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

import pubsub_core
from pubsub_core.backends import masked
from pubsub_core.errors import BrokerError, ConfigurationError, PubSubError, WorkerError
from pubsub_core.logs import configure_logging, tell_left_out
from pubsub_core.pubsub import PubSub
from pubsub_core.subscription import Subscription
from pubsub_core.worker.options import LoadTarget, WorkerOptions
from pubsub_core.worker.process import Worker
from pubsub_core.worker.report import Reporter, ToSupervisor

log = logging.getLogger("pubsub")

OK, CRASHED, USAGE = 0, 1, 2
REPLACED = 75  # "try again": a handler would not stop, so this process made way for another

_COLLECT_AFTER = 10_000  # objects: what is in hand are some thousands
_CHECK_SECONDS = 1.0  # between two looks whether all threads are alive, where one could not say that it dies


def run_child(load: LoadTarget, options: WorkerOptions, pipe: socket.socket) -> int:
    """Be a worker process until a signal, the end of a burst, or the end of the supervisor; return the exit code.

    `pipe` leads to the supervisor. What is written to it is a JSON object a line, or an empty line as a sign of life;
    when it closes, that one is dead.
    """
    wake_out, wake_in = socket.socketpair()
    wake_in.setblocking(False)
    signals = _note_signals(wake_in)
    configure_logging(options.log_level, options.log_format, options.log_sample)
    supervisor = ToSupervisor(pipe)
    thresholds = gc.get_threshold()
    try:
        pubsub = load()
        if options.health_port is not None:
            pubsub.metrics.start()
        worker = _worker(pubsub, options, wake_in)
        reporter = None if options.health_port is None else Reporter(worker, pubsub.metrics, pubsub.runtime.broker)
    except PubSubError as error:
        _complain(options, str(error))
        return USAGE
    except BaseException:  # noqa: BLE001  # whatever the import raises, sys.exit() too: it is shown, not handled
        _complain(options, f"{options.target!r} could not be loaded, see above", with_traceback=True)
        return USAGE
    _spare_the_collector(thresholds)
    settings = worker.settings
    supervisor.tell(
        processes=options.processes or settings.processes,
        shutdown_timeout=settings.shutdown_timeout,
        heartbeat=settings.heartbeat,
        banner=banner(worker, options),
    )

    def drain(timeout: float | None = None) -> int:
        code = _drain(worker, pubsub, options, timeout)
        tell_left_out()
        if reporter is not None:
            supervisor.tell(**reporter.report())  # what was counted while it drained
        return code

    worker.start()
    while not worker.is_stopping and not signals:
        readable, _, _ = select.select([pipe, wake_out], [], [], 0.05 if options.burst else _CHECK_SECONDS)
        # That Python runs here: see `_Supervisor._kill_the_deaf`.
        supervisor.give_sign(None if reporter is None else reporter.report_if_due(), has_worked=worker.has_read)
        if wake_out in readable:
            wake_out.recv(4096)  # whatever it was: the application may have handlers of its own for signals
        if pipe in readable:
            if not pipe.recv(4096):
                _stop_without_supervisor(worker)
                break
            if reporter is not None:
                reporter.look()  # nothing else is ever asked
        if _has_died(worker) and not worker.is_stopping:
            log.error("a thread of the worker died: another process takes the place of this one")
            supervisor.tell(is_leaving=True)
            # No longer: its sign of life may have ended with the thread, and then others have what it has in hand.
            drain(timeout=min(settings.shutdown_timeout, 2 * settings.heartbeat))
            return CRASHED
        if worker.abandoned:
            log.error(
                "a handler will not stop: this process finishes what else it has, and another one takes its place"
            )
            supervisor.tell(is_leaving=True)
            drain()
            return REPLACED
    return drain()


def _spare_the_collector(thresholds: tuple[int, int, int]) -> None:
    """Keep the garbage collector from looking again and again at what is none: what was imported, and what is in hand.

    `thresholds` are those of before the application was loaded: if it set others, they stay.
    """
    gc.collect()
    gc.freeze()
    if gc.get_threshold() == thresholds:
        gc.set_threshold(_COLLECT_AFTER, *thresholds[1:])


def _note_signals(wake: socket.socket) -> list[int]:
    """Have what tells us to end noted in the list returned, and make the other end of `wake` readable."""
    signals: list[int] = []
    note = partial(_note, signals)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the supervisor, which tells us
    signal.signal(signal.SIGTERM, note)
    _have_forks_end_by_signals(note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))  # see `_fork`
    return signals


def _note(signals: list[int], number: int, _: FrameType | None) -> None:
    signals.append(number)


def _have_forks_end_by_signals(note: Callable[[int, FrameType | None], None]) -> None:
    """Have a SIGTERM end what the application forks, as it would without us, and not wake us.

    It must not come there before that is so: until then it waits. A SIGINT is still passed over, as by other programs
    that a handler starts: a Ctrl-C reaches all of them, and handlers are to finish what they need them for.
    """
    here = threading.local()

    def hold_back() -> None:
        here.before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, here.before)

    def end_by_it() -> None:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is note:  # else it is the application's own
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        go_on()

    os.register_at_fork(before=hold_back, after_in_parent=go_on, after_in_child=end_by_it)


def _has_died(worker: Worker) -> bool:
    """Whether a thread of it is dead, or says that it dies."""
    return isinstance(worker.failure, WorkerError) or not worker.is_alive


def _worker(pubsub: PubSub, options: WorkerOptions, wake: socket.socket) -> Worker:
    if pubsub.settings.url.startswith("memory:"):
        raise ConfigurationError(
            "a worker cannot work with memory://: what your web process publishes stays in that process.\n"
            "  For one process, start it there:  with Worker(pubsub): ...   (from pubsub_core)\n"
            "  Shared, for development:          PUBSUB_URL=redis+embedded:///./.pubsub\n"
            "  Shared, for production:           PUBSUB_URL=redis://localhost:6379/0"
        )
    worker = Worker(pubsub, threads=options.threads, burst=options.burst)

    def wake_up() -> None:
        with contextlib.suppress(BlockingIOError):  # it is full, so a wake-up is waiting already
            wake.send(b"\0")

    worker.on_death = wake_up
    return worker


def _complain(options: WorkerOptions, text: str, *, with_traceback: bool = False) -> None:
    """Say why it ends: as a line of the log if that is to be JSON, else in words for who started it."""
    if options.log_format == "json":
        log.critical("%s", text, exc_info=with_traceback)
        return
    trace = traceback.format_exc() if with_traceback else ""
    say(f"{trace}pubsub: {text}")


def say(text: str) -> None:
    """Write to stderr what is not for the log. Who has closed it does not want to know."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _stop_without_supervisor(worker: Worker) -> None:
    worker.stop()  # first: who reads the line takes it that nothing more is started
    log.warning("the supervisor is gone: stopping")


def _drain(worker: Worker, pubsub: PubSub, options: WorkerOptions, timeout: float | None) -> int:
    worker.stop()
    in_time = worker.join(timeout)
    pubsub.close()
    if isinstance(worker.failure, BrokerError):
        _complain(options, str(worker.failure))
        return USAGE
    if worker.failure is not None:
        return CRASHED
    if not in_time:
        log.warning("some handlers did not finish in time; their messages were given to others")
        return CRASHED
    return OK


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
