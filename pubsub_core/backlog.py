"""What all backends say of topics with a bounded backlog."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pubsub_core.broker import USUAL, Terms, TopicOptions
from pubsub_core.errors import BrokerFull
from pubsub_core.message import Message

log = logging.getLogger("pubsub")

LOG_EVERY = 10.0


def refuse_what_cannot_fit(
    messages: Sequence[Message[bytes]], topics: Mapping[str, TopicOptions], terms: Mapping[str, Terms]
) -> None:
    """Raise BrokerFull if there are more messages for a topic at once than it may ever hold."""
    if not topics:
        return
    at_once = [one for one in messages if not (one.id in terms and (terms[one.id].delay or terms[one.id].at))]
    for topic, count in Counter(message.topic for message in at_once).items():
        most = topics.get(topic, USUAL).max_backlog
        if most is not None and count > most:
            raise BrokerFull(
                f"nothing was published: these are {count:,} messages for topic {topic!r}, which has "
                f"max_backlog={most:,}. Publish fewer at once, or raise it"
            )


def backlog_is_full(topic: str, most: int | None) -> BrokerFull:
    """Return the error for a publish that found no room."""
    return BrokerFull(
        f"not published: topic {topic!r} holds its max_backlog={most:,} messages, and a group has not settled them. "
        "Run more workers for its groups, remove a group that nobody consumes, raise max_backlog, or declare the topic "
        "with overflow='drop_oldest'"
    )


class DropLog:
    """Warns that messages were dropped, in the sum: at most once in `LOG_EVERY` seconds for a topic.

    Safe to call from any thread, and from a forked child, which counts for itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._unsaid: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}
        self._process = os.getpid()  # last: another thread of a child would wait for a lock of its parent, for ever

    def note(self, topic: str, count: int) -> None:
        """Count messages that were dropped from a topic."""
        if os.getpid() != self._process:
            self._start_afresh()
        with self._lock:
            self._unsaid[topic] += count
            now = self._clock()
            if now - self._said_at.get(topic, -LOG_EVERY) >= LOG_EVERY:
                self._said_at[topic] = now
                self._say(topic)

    def close(self) -> None:
        """Say what was not said yet. It may be used again."""
        if os.getpid() != self._process:
            return
        with self._lock:
            for topic in list(self._unsaid):
                self._say(topic)

    def _say(self, topic: str) -> None:
        count = self._unsaid.pop(topic)
        log.warning(
            "topic %r is full: %d of its oldest messages were dropped",
            topic,
            count,
            extra={"topic": topic, "dropped": count},
        )
