"""Interrupts handlers that run longer than their timeout, and tells which will not be interrupted.

A handler's thread is interrupted by raising HandlerTimeout in it (CPython's PyThreadState_SetAsyncExc): it arrives when
the thread next runs Python code. Code blocked in C, or that swallows the exception, goes on: after `grace` seconds it
is given up, which settles its delivery and makes its late result count for nothing.
"""

import ctypes
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from pubsub_core.errors import HandlerTimeout
from pubsub_core.message import Delivery

_LONGEST_SLEEP = 60.0


@dataclass(slots=True, eq=False)
class Run:
    """One handler at work. `is_given_up` says that its delivery was settled without it."""

    delivery: Delivery[bytes]
    deadline: float
    thread: int
    cancel: Callable[[], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_finished: bool = False
    is_interrupted: bool = False
    is_given_up: bool = False


class Timeouts:
    """Watches all runs of a process, on a thread of its own. `given_up` is called for those that will not stop."""

    def __init__(self, given_up: Callable[[Run], None], *, grace: float = 2.0) -> None:
        self._given_up = given_up
        self._grace = grace
        self._runs: set[Run] = set()
        self._wakes_at = 0.0
        self._earlier = threading.Event()
        self._is_stopping = False
        self.thread = threading.Thread(target=self._watch, name="pubsub-timeouts", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._is_stopping = True
        self._earlier.set()

    def join(self) -> None:
        """Wait until it has ended."""
        if self.thread.ident is not None:
            self.thread.join()

    def begin(self, delivery: Delivery[bytes], timeout: float) -> Run:
        """Watch a handler that starts now, on the calling thread."""
        run = Run(delivery, monotonic() + timeout, threading.get_ident())
        self._runs.add(run)
        if run.deadline < self._wakes_at:
            self._earlier.set()
        return run

    def end(self, run: Run) -> None:
        """Stop watching. Idempotent. Afterwards no HandlerTimeout of this run can arrive any more.

        One that is on its way may arrive in here, once: the caller catches it and calls again.
        """
        with run.lock:
            run.is_finished = True
        if run.is_interrupted and run.cancel is None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(run.thread), None)
        self._runs.discard(run)

    def _watch(self) -> None:
        while not self._is_stopping:
            self._wakes_at = math.inf  # who begins while we look must not be missed
            now = monotonic()
            wake_at = now + _LONGEST_SLEEP
            for run in list(self._runs):
                if run.is_interrupted:
                    give_up_at = run.deadline + self._grace
                    if now >= give_up_at:
                        self._give_up(run)
                    else:
                        wake_at = min(wake_at, give_up_at)
                elif now >= run.deadline:
                    self._interrupt(run)
                    wake_at = min(wake_at, now + self._grace)
                else:
                    wake_at = min(wake_at, run.deadline)
            self._wakes_at = wake_at
            self._earlier.wait(max(0.0, wake_at - monotonic()))
            self._earlier.clear()

    def _interrupt(self, run: Run) -> None:
        with run.lock:
            if run.is_finished:
                return
            run.is_interrupted = True
            if run.cancel is not None:
                run.cancel()
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(run.thread), ctypes.py_object(HandlerTimeout))

    def _give_up(self, run: Run) -> None:
        with run.lock:
            if run.is_finished or run.is_given_up:
                return
            run.is_given_up = True
        self._runs.discard(run)
        self._given_up(run)
