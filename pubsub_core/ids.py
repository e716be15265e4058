"""Message ids: UUIDs of version 7, which sort by the time of publishing (RFC 9562, section 5.7)."""

import os
import random
import threading
from datetime import UTC, datetime

from pubsub_core.clock import Clock

_RAND_B = (1 << 62) - 1
_VARIANT = 1 << 63


class _Last:
    """What the last id of a process was made of."""

    __slots__ = ("lock", "milliseconds", "process", "random", "tail")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.random = random.Random()
        self.milliseconds = -1
        self.tail = 0


class IdMaker:
    """Makes ids that rise strictly within a process, also many in one millisecond and when the clock goes back.

    Safe to call from any thread. A forked child starts afresh, so that it never repeats its parent.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = _Last()
        self._by_process = {self._last.process: self._last}  # its own, and those of its ancestors when they forked

    def __call__(self) -> str:
        """Return a new id, in the usual 36 characters."""
        last = self._last
        if last.process != os.getpid():
            last = self._last = self._by_process.setdefault(os.getpid(), _Last())  # the same for all of our threads
        now = int(self._clock.time() * 1000)
        with last.lock:
            if now > last.milliseconds:
                last.milliseconds = now
                last.tail = last.random.getrandbits(73)  # one bit of room to count up
            else:
                last.tail += 1
            milliseconds, tail = last.milliseconds, last.tail
        low = _VARIANT | tail & _RAND_B
        return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031  # half the time of formatting part by part
            milliseconds >> 16, milliseconds & 0xFFFF, tail >> 62, low >> 48, low & 0xFFFFFFFFFFFF,
        )  # fmt: skip


def published_at(message_id: str) -> datetime:
    """Return the moment an id was made, to the millisecond. Raises ValueError if it is not one of ours."""
    if len(message_id) != 36 or message_id[14] != "7":
        raise ValueError(f"not a time-sortable message id: {message_id!r}")
    return datetime.fromtimestamp(int(message_id[:8] + message_id[9:13], 16) / 1000, UTC)
