"""Where the library gets the time from, so that tests can set it."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable


class Clock(Protocol):
    """Tells the time. Safe to call from any thread; never blocks."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""


@runtime_checkable
class MovableClock(Clock, Protocol):
    """A clock that does not move by itself. Whoever waits for a moment of it must be told when it moves."""

    def on_move(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each move, on the thread that moves the clock."""


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        return time.time()


class ManualClock:
    """A clock that stands still until it is told to move. For tests.

    Whoever waits for a moment of this clock (the memory broker does) registers with `on_move` to be woken.
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._lock = threading.Lock()
        self._time = start.timestamp()
        self._listeners: list[Callable[[], None]] = []

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC, as last set."""
        return self._time

    def now(self) -> datetime:
        """Return the same as an aware datetime in UTC."""
        return datetime.fromtimestamp(self._time, UTC)

    def advance(self, by: float | timedelta) -> None:
        """Move on by that many seconds, and wake those who wait. Refuses to go back."""
        seconds = seconds_of(by)
        if seconds < 0:
            raise ValueError(f"a clock only moves on: advance({by!r})")
        with self._lock:
            self._time += seconds
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def on_move(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each move, on the thread that moves the clock."""
        with self._lock:
            self._listeners.append(listener)


def moment_at(seconds: float) -> datetime:
    """Return the moment so many seconds after 1970, or the last one that a calendar knows."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def seconds_of(time: float | timedelta) -> float:
    """Return a length of time in seconds."""
    return time.total_seconds() if isinstance(time, timedelta) else time
