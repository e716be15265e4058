"""The supervisor: a small process without the application, which starts the worker processes, and replaces them."""

import contextlib
import json
import logging
import math
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from types import FrameType
from typing import Any

from pubsub_core.logs import configure_logging
from pubsub_core.metrics import Counts, Page
from pubsub_core.worker.child import CRASHED, OK, USAGE, forget_exit_of_parent, leave, run_child, say
from pubsub_core.worker.health import ProcessState, StallWatch, newest_looks, why_not_live, why_not_ready
from pubsub_core.worker.options import LoadTarget, WorkerOptions
from pubsub_core.worker.reload import CHANGED, check_reload, watch_for_changes
from pubsub_core.worker.report import LOOK, Report, sums

log = logging.getLogger("pubsub")

INTERRUPTED = 130

_FIRST_PAUSE = 0.5
_MAX_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0  # a process that lived this long is no reason to wait before replacing it
_LOOK = 1.0  # seconds between two looks at the processes
_DEAF_AFTER = 6.0  # seconds without a sign of life from a process, which gives one each second; longer than its lease
_ASK_EVERY = 5.0  # seconds between two looks of a process at the groups, for the pages
_GRACE = 3.0  # seconds a process gets beyond its own deadline before it is killed
_ONE_STOP = 1.0  # seconds after a Ctrl-C within which a SIGTERM is no second request
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(slots=True)
class _Child:
    """A process, and this side of the pipe to it."""

    pid: int
    pipe: socket.socket
    is_watcher: bool
    started: float = field(default_factory=monotonic)
    is_ready: bool = False
    is_leaving: bool = False
    heard_at: float = field(default_factory=monotonic)
    leaves_by: float = math.inf
    received: bytes = b""
    report: Report | None = None
    reported_at: float = math.inf


def supervise(load: LoadTarget, options: WorkerOptions) -> int:
    """Run worker processes until a signal ends them; return the exit code.

    `load` is called in each of them, never here. 0: all ended well. 1: some were killed, or did not finish in time.
    2: the application could not be loaded, or cannot work as configured. 130: a second Ctrl-C.
    Must be called on the main thread. SIGTERM and SIGINT drain; a second one ends at once.
    """
    if options.reload:
        check_reload()
    configure_logging(options.log_level, options.log_format, options.log_sample)
    listener = None
    if options.health_port is not None:
        from pubsub_core.worker.pages import listen  # an HTTP server, which every process would have in its memory

        listener = listen(options.health_host, options.health_port)
    supervisor = _Supervisor(load, options, listener)
    with _signals(supervisor.on_signal) as wake:
        try:
            return supervisor.run(wake)
        finally:
            supervisor.end_pages()


class _Supervisor:
    def __init__(self, load: LoadTarget, options: WorkerOptions, listener: socket.socket | None) -> None:
        self._listener = listener
        self._pages: _Child | None = None
        self._pages_at = 0.0  # when it may be started again
        self._ask_at = 0.0
        self._ended = Counts()  # what processes counted that are gone
        self._crashes = 0
        self._crashes_in_a_row = 0
        self._crashed_at = -math.inf
        self._stall = StallWatch()
        self._load = load
        self._options = options
        self._children: dict[int, _Child] = {}
        self._wanted = 1  # until the first process has loaded the application, and says how many there shall be
        self._has_spoken = False
        self._has_said_where = False
        self._has_worked = False  # any process, since the application was loaded anew
        self._shutdown_timeout = 25.0
        self._deaf_after = math.inf
        self._looked_at = monotonic()
        self._pause = _FIRST_PAUSE
        self._start_at = 0.0
        self._signals: list[int] = []
        self._stop_by: float | None = None
        self._stopped_by: tuple[int, float] = (0, 0.0)  # the signal, and when it came
        self._is_reloading = False
        self._burst_over = False
        self._code = OK

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Note a signal; `run` acts on it."""
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def run(self, wake: socket.socket) -> int:
        """Start, watch and replace processes until all are gone."""
        if self._options.reload:
            self._fork(is_watcher=True)
        while True:
            self._act_on_signals()
            self._start_missing()
            self._kill_the_deaf()
            self._reap()
            self._see_to_pages()
            if not self._children and (self._stop_by is not None or self._burst_over):
                return self._code
            self._listen(wake)

    # Starting

    def _start_missing(self) -> None:
        if self._stop_by is not None or self._burst_over or monotonic() < self._start_at:
            return
        workers = sum(not (child.is_watcher or child.is_leaving) for child in self._children.values())
        for _ in range(self._wanted - workers):
            try:
                self._fork(is_watcher=False)
            except OSError as error:
                self._start_later("no process could be started:", str(error))
                return

    def _fork(self, *, is_watcher: bool) -> None:
        now = time()

        def run(pipe: socket.socket) -> int:
            if self._listener is not None:
                self._listener.close()
            return watch_for_changes(pipe, now) if is_watcher else run_child(self._load, self._options, pipe)

        child = self._forked(run, is_watcher=is_watcher)
        self._children[child.pid] = child

    def _forked(self, run: Callable[[socket.socket], int], *, is_watcher: bool = False) -> _Child:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child has handlers of its own
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(ours, theirs, run)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        ours.setblocking(False)
        return _Child(pid, ours, is_watcher)

    def _be_child(self, ours: socket.socket, theirs: socket.socket, run: Callable[[socket.socket], int]) -> None:
        """In the forked child: never returns. Only with every copy of our side closed does it see us die."""
        code = CRASHED
        try:
            forget_exit_of_parent()
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            ours.close()
            for sibling in (*self._children.values(), *([self._pages] if self._pages else [])):
                sibling.pipe.close()
            code = run(theirs)
        except BaseException:
            log.critical("the worker process failed", exc_info=True)
        finally:
            leave(code)

    # Watching

    def _listen(self, wake: socket.socket) -> None:
        pipes = {child.pipe: child for child in self._children.values()}
        if self._pages is not None:
            pipes[self._pages.pipe] = self._pages  # the last, so that it is answered with what was just heard
        readable, _, _ = select.select([wake, *pipes], [], [], self._patience())
        if wake in readable:
            wake.recv(4096)
        for pipe in readable:
            if pipe is not wake:
                child = pipes[pipe]
                self._hear(child) if child is not self._pages else self._answer_pages(child)

    def _patience(self) -> float | None:
        """Return the seconds until something must be done without being asked."""
        if self._stop_by is not None:
            return max(0.0, min(0.5, self._stop_by - monotonic()))
        until_start = self._start_at - monotonic()
        is_to_look = self._listener is not None or any(child.is_ready for child in self._children.values())
        until_look = _LOOK if is_to_look else math.inf
        patience = min(until_start if until_start > 0 else math.inf, until_look)
        return patience if patience < math.inf else None

    def _hear(self, child: _Child) -> None:
        try:
            received = child.pipe.recv(65536)
        except (BlockingIOError, ConnectionError):
            received = b""
        if not received:
            self._await_end(child)
            return
        child.heard_at = monotonic()
        child.received += received
        *lines, child.received = child.received.split(b"\n")
        for line in filter(None, lines):
            self._take_note(child, json.loads(line))

    def _await_end(self, child: _Child) -> None:
        """Its pipe closed, so it is ending: collect it, or it would be heard again and again."""
        _, status = os.waitpid(child.pid, 0)
        self._note_end(child, os.waitstatus_to_exitcode(status))

    def _take_note(self, child: _Child, facts: dict[str, Any]) -> None:
        self._has_worked = self._has_worked or "has_worked" in facts
        if (said := facts.get("report")) is not None:
            child.report, child.reported_at = Report.from_json(said), monotonic()
        if "report" in facts or "has_worked" in facts:
            return
        if facts.get("is_leaving"):
            child.is_leaving = True
            child.leaves_by = monotonic() + self._shutdown_timeout + _GRACE
            if self._stop_by is None and not self._burst_over:
                with contextlib.suppress(OSError):  # `_start_missing` tries again
                    self._fork(is_watcher=False)  # at once, whatever pause others have to make
            return
        child.is_ready = True
        child.reported_at = monotonic()
        self._wanted = facts["processes"]
        self._shutdown_timeout = facts["shutdown_timeout"]
        self._deaf_after = max(_DEAF_AFTER, 6 * facts["heartbeat"])
        if not self._has_spoken:
            self._has_spoken = True
            if self._options.log_format == "json":
                log.info("%s", facts["banner"].partition("\n")[0])
            else:
                say(facts["banner"])

    def _kill_the_deaf(self) -> None:
        """Kill processes in which Python does not run any more, as something in C keeps its lock, and late leavers.

        Their heartbeats have run out, so others have their deliveries. One that somebody froze is left alone.
        """
        now = monotonic()
        was_away, self._looked_at = now - self._looked_at > 2 * _LOOK, now
        if was_away or self._stop_by is not None:
            return  # we were frozen ourselves, and have not heard them yet; or they drain, and must end by then anyway
        for child in self._children.values():
            if now - child.heard_at > 2 * _LOOK and _is_frozen(child.pid):
                child.heard_at = now
            is_deaf = child.is_ready and not child.is_leaving and now - child.heard_at > self._deaf_after
            if is_deaf or now > child.leaves_by:
                log.error("process %d does not answer any more: killing it", child.pid)
                os.kill(child.pid, signal.SIGKILL)
                child.leaves_by = math.inf
                child.heard_at = now

    def _reap(self) -> None:
        for child in list(self._children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._note_end(child, os.waitstatus_to_exitcode(status))
        if self._stop_by is not None and self._children and monotonic() >= self._stop_by:
            log.warning("killing %d processes that did not stop in time", len(self._children))
            self._kill()

    def _note_end(self, child: _Child, code: int) -> None:
        del self._children[child.pid]
        self._hear_out(child)
        child.pipe.close()
        if child.is_watcher:
            if code == CHANGED and self._stop_by is None:
                self._reload()
        elif self._stop_by is not None:
            if code != OK and not self._is_reloading and not child.is_leaving:
                self._code = self._code or CRASHED
        elif code == USAGE and self._options.reload:
            log.error("waiting for a file to change")
            self._start_at = math.inf
        elif code == USAGE and not self._has_worked:  # later it may be a passing trouble: siblings go on
            self._code = USAGE
            self._stop()
        elif self._options.burst and code == OK:
            self._burst_over = True
            self._end_watcher()
        elif code != OK and not child.is_leaving:
            self._replace_later(child, code)
        self._finish_reload()

    def _replace_later(self, child: _Child, code: int) -> None:
        if monotonic() - child.started > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE
            self._crashes_in_a_row = 0
        self._crashes += 1
        self._crashes_in_a_row += 1
        self._crashed_at = monotonic()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._start_later(f"process {child.pid}", how)

    def _start_later(self, what: str, how: str) -> None:
        log.error("%s %s; starting another in %.1f s", what, how, self._pause)
        self._start_at = monotonic() + self._pause
        self._pause = min(_MAX_PAUSE, self._pause * 2)

    # Health and metrics, for the process that serves the pages

    def _see_to_pages(self) -> None:
        """Have the pages served, and what they show looked at now and then."""
        if self._listener is None:
            return
        if self._pages is not None and os.waitpid(self._pages.pid, os.WNOHANG)[0]:
            self._end_of_pages(self._pages)
        if self._pages is None and monotonic() >= self._pages_at:
            from pubsub_core.worker.pages import serve_pages

            listener = self._listener
            try:
                self._pages = self._forked(lambda pipe: serve_pages(listener, pipe))
            except OSError:
                self._pages_at = monotonic() + _LOOK
                return
            self._pages.pipe.settimeout(1.0)
            self._say_where(listener)
        self._stall.note(monotonic(), self._processes())
        if monotonic() >= self._ask_at:
            self._ask_at = monotonic() + _ASK_EVERY
            self._ask_for_a_look()

    def _say_where(self, listener: socket.socket) -> None:
        """Tell the address; whatever the level of the log, if nobody else knows which port was free."""
        from pubsub_core.worker.pages import address_of

        text = "health and metrics at http://%s/readyz"
        if self._options.health_port or self._has_said_where:
            log.info(text, address_of(listener))
            return
        self._has_said_where = True
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, text, (address_of(listener),), None))

    def _end_of_pages(self, pages: _Child) -> None:
        log.error("the process that serves health and metrics ended; starting another")
        pages.pipe.close()
        self._pages, self._pages_at = None, monotonic() + _LOOK

    def _ask_for_a_look(self) -> None:
        """Have one process look at the groups: the one that was heard last, for it is likely to answer."""
        able = [child for child in self._children.values() if child.report is not None and not child.is_leaving]
        if able:
            with contextlib.suppress(OSError):  # it is frozen, or ending: the next look is that of another
                max(able, key=lambda child: child.reported_at).pipe.send(LOOK)

    def _answer_pages(self, pages: _Child) -> None:
        try:
            received = pages.pipe.recv(65536)
            *lines, pages.received = (pages.received + received).split(b"\n")
            for number, page in map(json.loads, lines):
                pages.pipe.sendall(json.dumps([number, self._answer(page)]).encode() + b"\n")
        except OSError:
            received = b""
        if not received:
            os.kill(pages.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            os.waitpid(pages.pid, 0)
            self._end_of_pages(pages)

    def _answer(self, page: str) -> Any:
        now = monotonic()
        if page == "/metrics":
            return self._metrics().to_json()
        if page == "/livez":
            is_recent = now - self._crashed_at < _HEALTHY_SECONDS + self._pause
            return why_not_live(self._crashes_in_a_row) if is_recent else []
        is_stopping = self._stop_by is not None or self._burst_over
        return why_not_ready(self._processes(), is_stopping=is_stopping, stalled_for=self._stall.seconds(now))

    def _processes(self) -> list[ProcessState]:
        now = monotonic()
        return [
            ProcessState(child.pid, now - child.reported_at, child.report)
            for child in self._children.values()
            if child.is_ready and not child.is_leaving
        ]

    def _metrics(self) -> Page:
        reports = [child.report for child in self._children.values() if child.report is not None]
        counts, in_hand = sums(self._ended, reports)
        newest = newest_looks(reports)
        looks = {} if newest is None else newest.looks
        processes = sum(not child.is_watcher for child in self._children.values())
        return Page(counts, in_hand, looks, processes, self._crashes)

    def _hear_out(self, child: _Child) -> None:
        """Take what a process said before it ended, and keep what it counted."""
        with contextlib.suppress(OSError):
            while received := child.pipe.recv(65536):
                child.received += received
        for line in child.received.split(b"\n")[:-1]:
            if line and (said := json.loads(line).get("report")) is not None:
                child.report = Report.from_json(said)
        if child.report is not None:
            self._ended.add(child.report.counts)

    def end_pages(self) -> None:
        """End the process that serves the pages, and free the port."""
        if self._pages is not None:
            os.kill(self._pages.pid, signal.SIGKILL)
            os.waitpid(self._pages.pid, 0)
            self._pages.pipe.close()
            self._pages = None
        if self._listener is not None:
            self._listener.close()

    # Stopping

    def _act_on_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if self._stop_by is None or self._is_reloading:
                self._is_reloading = False
                self._stopped_by = (number, monotonic())
                log.info(
                    "stopping: handlers get up to %.0f s to finish; again to leave at once", self._shutdown_timeout
                )
                self._stop()
            elif self._stopped_by[0] == signal.SIGINT != number and monotonic() < self._stopped_by[1] + _ONE_STOP:
                pass  # a Ctrl-C, which reached us, and whoever started us, who passes it on
            else:
                log.warning("leaving at once; what was in hand is delivered again")
                self._code = INTERRUPTED if number == signal.SIGINT else CRASHED
                self._kill()

    def _stop(self) -> None:
        self._stop_by = monotonic() + self._shutdown_timeout + _GRACE
        self._signal_all(signal.SIGTERM)

    def _kill(self) -> None:
        self._code = self._code or CRASHED
        self._stop_by = math.inf  # once: then there is nothing to do but to wait until they are gone
        self._signal_all(signal.SIGKILL)

    def _end_watcher(self) -> None:
        for child in self._children.values():
            if child.is_watcher:
                os.kill(child.pid, signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)  # not reaped yet, so the number is still its own

    def _reload(self) -> None:
        log.info("a file changed: restarting")
        self._is_reloading = True
        self._stop()
        self._finish_reload()

    def _finish_reload(self) -> None:
        if self._is_reloading and not self._children:
            self._is_reloading = False
            self._stop_by = None
            self._wanted, self._has_spoken, self._has_worked, self._start_at = 1, False, False, 0.0
            self._fork(is_watcher=True)


def _is_frozen(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger. Only Linux tells; elsewhere it counts as not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[socket.socket]:
    """Have the signals reach `handler`, and make the yielded socket readable at each; put all back afterwards."""
    wake_out, wake_in = socket.socketpair()
    wake_in.setblocking(False)
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    before_fd = signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
    try:
        yield wake_out
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, old in before.items():
            signal.signal(number, old)
        wake_out.close()
        wake_in.close()
