"""Message ids: UUIDs of version 7, which sort by the time of publishing (RFC 9562, section 5.7)."""

import os
import random
import threading
from datetime import UTC, datetime

from pubsub_core.clock import Clock

_RAND_B = (1 << 62) - 1
_VARIANT = 1 << 63


class IdMaker:
    """Makes ids that rise strictly within a process, also many in one millisecond and when the clock goes back.

    Safe to call from any thread. A forked child starts afresh, so that it never repeats its parent.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._random = random.Random()
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._random.seed()
        self._milliseconds = -1
        self._tail = 0

    def __call__(self) -> str:
        """Return a new id, in the usual 36 characters."""
        if os.getpid() != self._process:
            self._start_afresh()
        now = int(self._clock.time() * 1000)
        with self._lock:
            if now > self._milliseconds:
                self._milliseconds = now
                self._tail = self._random.getrandbits(73)  # one bit of room to count up
            else:
                self._tail += 1
            milliseconds, tail = self._milliseconds, self._tail
        text = f"{milliseconds:012x}7{tail >> 62:03x}{_VARIANT | tail & _RAND_B:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def published_at(message_id: str) -> datetime:
    """Return the moment an id was made, to the millisecond. Raises ValueError if it is not one of ours."""
    if len(message_id) != 36 or message_id[14] != "7":
        raise ValueError(f"not a time-sortable message id: {message_id!r}")
    return datetime.fromtimestamp(int(message_id[:8] + message_id[9:13], 16) / 1000, UTC)
