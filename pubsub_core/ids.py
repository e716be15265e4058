"""Message ids: UUIDs of version 7, which sort by the time of publishing (RFC 9562, section 5.7)."""

import os
import random
import threading
from datetime import UTC, datetime

from pubsub_core.clock import Clock

_RAND_B = (1 << 62) - 1
_VARIANT = 1 << 63
_LAST = (1 << 48) - 1  # the bits after the last hyphen


class _Last:
    """What the last id of a process was made of. `head` is the id up to its last hyphen."""

    __slots__ = ("head", "lock", "milliseconds", "moment", "process", "random", "tail")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.random = random.Random()
        self.milliseconds = -1
        self.moment = datetime.fromtimestamp(0, UTC)
        self.tail = 0
        self.head = ""

    def begin(self, milliseconds: int) -> int:
        """Go on to a new millisecond, at a random tail."""
        self.milliseconds = milliseconds
        self.moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
        tail = self.random.getrandbits(73)  # one bit of room to count up
        self.set_head(tail)
        return tail

    def set_head(self, tail: int) -> None:
        """Format what most tails of a millisecond have in common."""
        middle = (_VARIANT | tail & _RAND_B) >> 48
        self.head = f"{self.milliseconds >> 16:08x}-{self.milliseconds & 0xFFFF:04x}-7{tail >> 62:03x}-{middle:04x}-"


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
        return self.with_moment()[0]

    def with_moment(self) -> tuple[str, datetime]:
        """Return a new id, and the moment that it says: `published_at` of it."""
        last = self._last
        if last.process != os.getpid():
            last = self._last = self._by_process.setdefault(os.getpid(), _Last())  # the same for all of our threads
        now = int(self._clock.time() * 1000)
        with last.lock:
            if now > last.milliseconds:
                tail = last.begin(now)
            else:
                tail = last.tail + 1
                if not tail & _LAST:
                    last.set_head(tail)
            last.tail = tail
            return "%s%012x" % (last.head, tail & _LAST), last.moment  # noqa: UP031  # quicker than any other way


def published_at(message_id: str) -> datetime:
    """Return the moment an id was made, to the millisecond. Raises ValueError if it is not one of ours."""
    if len(message_id) != 36 or message_id[14] != "7":
        raise ValueError(f"not a time-sortable message id: {message_id!r}")
    return datetime.fromtimestamp(int(message_id[:8] + message_id[9:13], 16) / 1000, UTC)
