"""Message ids: UUIDs of version 7, which sort by the time of publishing (RFC 9562, section 5.7)."""

import os
import random
import threading
from datetime import UTC, datetime

from pubsub_core.clock import Clock

_RAND_B = (1 << 62) - 1
_VARIANT = 1 << 63
_ENDS = tuple(f"{end:02x}" for end in range(256))
_NEVER = datetime.fromtimestamp(0, UTC)


class _Span:
    """The ids of one millisecond that are the same up to their last two digits. To take the next needs no lock."""

    __slots__ = ("ids", "milliseconds", "moment", "upper")

    def __init__(self, milliseconds: int, moment: datetime, tail: int) -> None:
        self.milliseconds = milliseconds
        self.moment = moment
        self.upper = tail >> 8
        rest = f"{_VARIANT | tail & _RAND_B:016x}"
        head = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{tail >> 62:03x}-{rest[:4]}-{rest[4:-2]}"
        self.ids = map(head.__add__, _ENDS[tail & 255 :])


class _Process:
    """What the ids of a process are made of."""

    def __init__(self) -> None:
        self.number = os.getpid()
        self.span = _Span(-1, _NEVER, 0)
        self._lock = threading.Lock()
        self._random = random.Random()

    def begin(self, milliseconds: int, after: _Span) -> None:
        """Go on to this millisecond, at a random tail; or, if it is not a later one, to what follows a used up span."""
        with self._lock:
            span = self.span
            if milliseconds > span.milliseconds:
                moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
                self.span = _Span(milliseconds, moment, self._random.getrandbits(73))  # one bit of room to count up
            elif span is after:
                self.span = _Span(span.milliseconds, span.moment, span.upper + 1 << 8)


class IdMaker:
    """Makes ids that rise strictly within a process, also many in one millisecond and when the clock goes back.

    Safe to call from any thread. A forked child starts afresh, so that it never repeats its parent.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = _Process()
        # Its own, and those of its ancestors when they forked.
        self._by_number = {self._process.number: self._process}

    def __call__(self) -> str:
        """Return a new id, in the usual 36 characters."""
        return self.with_moment()[0]

    def with_moment(self) -> tuple[str, datetime]:
        """Return a new id, and the moment that it says: `published_at` of it."""
        process = self._process
        if process.number != os.getpid():
            # The same for all of our threads.
            process = self._process = self._by_number.setdefault(os.getpid(), _Process())
        now = int(self._clock.time() * 1000)
        while True:
            span = process.span
            if now <= span.milliseconds and (new := next(span.ids, None)) is not None:
                return new, span.moment
            process.begin(now, span)


def published_at(message_id: str) -> datetime:
    """Return the moment an id was made, to the millisecond. Raises ValueError if it is not one of ours."""
    if len(message_id) != 36 or message_id[14] != "7":
        raise ValueError(f"not a time-sortable message id: {message_id!r}")
    return datetime.fromtimestamp(int(message_id[:8] + message_id[9:13], 16) / 1000, UTC)
