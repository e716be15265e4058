"""Interrupts handlers that run longer than their timeout, and tells which of them will not be interrupted.

A handler is interrupted by raising HandlerTimeout in its thread (CPython's `PyThreadState_SetAsyncExc`), where it
arrives when the thread next runs Python code; an `async def` handler's task is cancelled. Code that is blocked in C, or
catches what it is thrown, goes on: after a grace it is given up, and whatever it does from then on counts for nothing.
"""

import ctypes
import gc
import logging
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from types import FrameType
from typing import TypeVar

from pubsub_core.errors import HandlerTimeout
from pubsub_core.message import Delivery
from pubsub_core.subscription import Subscription
from pubsub_core.worker.threads import Died, library_thread

GRACE = 3.0  # seconds between the interruption of a handler and giving it up

_LONGEST_SLEEP = 60.0
_SOON = 0.005

# What is hit between taking a lock and seeing to its release keeps it for ever; that of logging is everybody's.
_LOCKING = {threading.__file__: {"__enter__", "__exit__", "acquire", "release", "_acquire_restore", "_release_save"}}

Cancel = Callable[[], None]

A = TypeVar("A")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Run:
    """One call of a handler, at work on a thread. `lock` guards the flags.

    A thread uses the same one again for what it handles next, as long as nothing interrupted it: from then on the flags
    only ever become true. `put_off` is for how many seconds its interruption was put off. In a process that the handler
    forked it is given up, and `is_forked`.
    """

    deliveries: Sequence[Delivery[bytes]]
    subscription: Subscription
    deadline: float
    thread: int = field(default_factory=threading.get_ident)
    cancel: Cancel | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    put_off: float = 0.0
    is_finished: bool = True
    is_interrupted: bool = False
    is_given_up: bool = False
    is_forked: bool = False


class _TakenBack(BaseException):
    """Stands for a HandlerTimeout that is not wanted any more."""


class Timeouts:
    """Watches all runs of a process, on a thread of its own. Safe to use from many threads.

    `give_up` is called on that thread for each run that will not stop; it must not block.
    """

    def __init__(self, give_up: Callable[[Run], None], died: Died) -> None:
        self._give_up = give_up
        self._grace = GRACE
        self._runs: set[Run] = set()
        self._here = threading.local()
        self._wakes_at = math.inf
        self._is_wanted_earlier = threading.Event()
        self._is_stopping = False
        self.thread = library_thread("pubsub-timeouts", self._watch, died)
        _ALL.add(self)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end; nothing is interrupted any more."""
        self._is_stopping = True
        self._is_wanted_earlier.set()

    def join(self) -> None:
        """Wait until it has ended."""
        if self.thread.ident is not None:
            self.thread.join()

    def run(  # by position: this is on the path of each message
        self,
        deliveries: Sequence[Delivery[bytes]],
        subscription: Subscription,
        deadline: float,
        attempt: Callable[[A], T],
        argument: A,
    ) -> tuple[Run, T | None, BaseException | None]:
        """Call `attempt` for as long as its timeout allows; return what comes of it, or what it raised.

        A HandlerTimeout may arrive at any point in between, also when the handler is done already. If the run was given
        up meanwhile nobody needs either.
        """
        run: Run | None = getattr(self._here, "run", None)
        if run is None or run.is_interrupted:
            self._here.run = run = Run(deliveries, subscription, deadline)
            self._runs.add(run)
        else:  # no lock: nobody looks at one that is finished
            run.deliveries = deliveries
            run.subscription = subscription
            run.deadline = deadline
            run.put_off = 0.0
        result: T | None = None
        error: BaseException | None = None
        try:
            try:
                run.is_finished = False  # no lock: who looks sees its deadline too, which was set before
                if deadline < self._wakes_at:
                    self._is_wanted_earlier.set()
                result = attempt(argument)
            except BaseException as raised:  # noqa: BLE001  # sys.exit() in a handler is a failed handler, too
                error = raised
            with run.lock:  # as `_end`
                run.is_finished = True
            if run.is_interrupted:
                self._end(run)
        except HandlerTimeout as late:
            self._end(run)
            if result is None and error is None:
                error = late
        else:
            if run.is_interrupted:
                result, error = None, timed_out(run, error)  # it was thrown into the handler, whatever came of it
        return run, result, error

    def note_fork(self) -> None:
        """In a forked child: what the forking thread has at work is its parent's."""
        run: Run | None = getattr(self._here, "run", None)
        if run is not None and not run.is_finished:
            run.lock = threading.Lock()  # a thread that there is no more may have held it
            run.is_given_up = run.is_forked = True

    def cancel_by(self, cancel: Cancel | None) -> None:
        """Have the calling thread's run interrupted by this call while there is one, instead of an exception here."""
        run: Run | None = getattr(self._here, "run", None)
        if run is not None:
            with run.lock:
                run.cancel = cancel

    def _end(self, run: Run) -> None:
        """Stop watching a run of the calling thread. Afterwards no HandlerTimeout of it arrives any more.

        One that is on its way may arrive in here: whoever calls catches it, and calls again.
        """
        with run.lock:
            run.is_finished = True
        if run.is_interrupted:
            # It takes the place of one that is on its way. Where that is taken back as documented (NULL), Python 3.11
            # goes on waiting for it, and code that is traced, for coverage or by a debugger, hangs for good.
            try:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(run.thread), ctypes.py_object(_TakenBack))
                for _ in range(1000):  # it arrives at the first turn
                    pass
            except _TakenBack:
                pass
            self._runs.discard(run)

    def _watch(self) -> None:
        while not self._is_stopping:
            self._wakes_at = 0.0  # who begins while we look needs not wake us: it is seen here, or by the next look
            self._wakes_at = wakes_at = self._look(monotonic())
            if any(
                not (run.is_finished or run.is_interrupted) and run.deadline < wakes_at for run in self._runs.copy()
            ):
                continue
            self._is_wanted_earlier.wait(max(0.0, wakes_at - monotonic()))
            self._is_wanted_earlier.clear()  # before both looks: at `_is_stopping`, and at the runs

    def _look(self, now: float) -> float:
        """Interrupt and give up what has to be; return when to look again."""
        wakes_at = now + _LONGEST_SLEEP
        for run in self._runs.copy():
            if run.is_finished:
                continue
            if run.is_interrupted:
                until = run.deadline + self._grace
                if now >= until:
                    self._end_watch(run)
                    continue
            elif now >= run.deadline:
                until = self._interrupt(run, now)
            else:
                until = run.deadline
            wakes_at = min(wakes_at, until)
        return wakes_at

    def _interrupt(self, run: Run, now: float) -> float:
        """Interrupt a run, unless that would be harmful just now, or it is another one by now; return when to look
        again.
        """
        with run.lock:
            if run.is_finished or now < run.deadline:
                return run.deadline
            if run.cancel is None and run.put_off < self._grace and _is_taking_a_lock(run.thread):
                run.put_off += _SOON
                run.deadline = now + _SOON
                return run.deadline
            run.is_interrupted = True
            run.deadline = now
            if run.cancel is not None:
                run.cancel()
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(run.thread), ctypes.py_object(HandlerTimeout))
        return now + self._grace

    def _end_watch(self, run: Run) -> None:
        with run.lock:
            self._runs.discard(run)
            if run.is_finished:
                return
            run.is_given_up = True
        self._give_up(run)


_ALL: weakref.WeakSet[Timeouts] = weakref.WeakSet()


def _note_fork() -> None:
    for one in list(_ALL):
        one.note_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def timed_out(run: Run, error: BaseException | None) -> HandlerTimeout:
    """Return the error of a run that was interrupted: the one that was thrown, if the handler let it through."""
    timeout = error if isinstance(error, HandlerTimeout) else HandlerTimeout().with_traceback(None)
    if timeout is not error:
        timeout.__cause__ = error
    if not timeout.args:
        timeout.args = (
            f"{run.subscription.handler.name} ran longer than its timeout of {run.subscription.timeout:g} s",
        )
    return timeout


def frame_of(thread: int) -> FrameType | None:
    """Return where a thread stands, None if it has ended. Safe from any thread.

    Python 3.11 makes the frames while it keeps others from starting and ending threads. If that starts a garbage
    collection it may never come back (https://github.com/python/cpython/issues/106883): so none is started.
    """
    with _looking:
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames().get(thread)  # noqa: SLF001  # the public way to see it
        finally:
            if was_collecting:
                gc.enable()


_looking = threading.Lock()  # one who looks must not start the collections again under another


def _is_taking_a_lock(thread: int) -> bool:
    """Whether a thread is inside of logging, or of a lock's own Python code. Nothing else runs while we look."""
    frame = frame_of(thread)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == logging.__file__ or code.co_name in _LOCKING.get(code.co_filename, ()):
            return True
        frame = frame.f_back
    return False
