"""Counts what happens to messages in a process. Nothing is imported for it; pubsub_core.prometheus shows it.

Nothing is counted before somebody asks for it (`start`). What it costs then: `python -m benchmarks.observing`.
"""

import logging
import math
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import repeat
from time import monotonic
from typing import Any, assert_never
from weakref import WeakSet

from pubsub_core.broker import Inspector
from pubsub_core.errors import BrokerError
from pubsub_core.message import Delivery, Message, SubscriptionKey
from pubsub_core.outcome import ACKED, Acked, DeadLettered, Dropped, Outcome, Released, Retried

log = logging.getLogger("pubsub")

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""The upper bounds, in seconds, of the histograms' buckets. One bucket more holds what is above."""


Observed = tuple[Delivery[bytes], Outcome, float, float | None]
"""A delivery, its outcome, when its handler started (of time.monotonic()), and what it took; None: it never started."""

_TIME_IS_GOOD_FOR = 10.0  # seconds


def _is_first(message: Message[bytes]) -> bool:
    """Whether the time since its publish is what it took to deliver it."""
    return message.attempt == 1 and message.source != "replay"


class Histogram:
    """How many values fell into each bucket, and their sum."""

    __slots__ = ("buckets", "total")

    def __init__(self, buckets: Iterable[int] = (0,) * (len(BOUNDS) + 1), total: float = 0.0) -> None:
        self.buckets = list(buckets)
        self.total = total

    def observe(self, values: Sequence[float]) -> None:
        """Count values, one or more."""
        self.total += sum(values)
        least, most = bisect_left(BOUNDS, min(values)), bisect_left(BOUNDS, max(values))
        if least == most:  # as it mostly is, of what was handled together
            self.buckets[least] += len(values)
        else:
            for bucket, count in Counter(map(bisect_left, repeat(BOUNDS), values)).items():
                self.buckets[bucket] += count

    def observe_latencies(self, starts: Sequence[float], ahead: float, published: Sequence[datetime]) -> None:
        """Count the seconds from each publish to its start, which is `ahead` seconds later than 1970 by `starts`."""
        times = Counter(published)  # what was published together says the very same moment
        moments = {one: one.timestamp() - ahead for one in times}
        earliest, latest = min(moments.values()), max(moments.values())
        first = min(starts)
        least, most = bisect_left(BOUNDS, first - latest), bisect_left(BOUNDS, max(starts) - earliest)
        if least == most and first >= latest:
            self.total += max(0.0, sum(starts) - sum([moments[one] * count for one, count in times.items()]))
            self.buckets[least] += len(starts)
        else:  # publishers have clocks of their own: one that is ahead makes it 0
            both = zip(starts, published, strict=True)
            self.observe([max(0.0, started - moments[one]) for started, one in both])

    def add(self, other: "Histogram") -> None:
        """Count all that the other counted."""
        self.buckets = [ours + theirs for ours, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.buckets)


@dataclass(slots=True)
class GroupCounts:
    """What became of the deliveries of one topic to one group.

    `failed` are the attempts that were started and not handled; each is either `retried` or `dead`. `dead` is by the
    kind of the reason, and has those too that were not started. `seconds` is what handlers took, whatever came of it;
    `latency` is from publish to the start of the first attempt.
    """

    handled: int = 0
    failed: int = 0
    retried: int = 0
    dropped: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)

    @property
    def settled(self) -> int:
        """How many deliveries were settled, in whatever way."""
        return self.handled + self.retried + self.dropped + self.dead.total()

    def count(self, some: Sequence[Observed], ahead: float | None) -> None:
        """Count deliveries, one or more. `ahead` is how far the broker's clock is ahead of time.monotonic(), if known.

        What is handled at the first attempt, as nearly all is, is counted together: that is several times cheaper.
        """
        published = [
            message.published_at
            for delivery, outcome, _, _ in some
            if outcome is ACKED and (message := delivery.message).attempt == 1 and message.source != "replay"
        ]
        if len(published) == len(some):
            self.handled += len(some)
            self.seconds.observe([seconds for _, _, _, seconds in some if seconds is not None])
            if ahead is not None:
                self.latency.observe_latencies([started for _, _, started, _ in some], ahead, published)
        elif len(some) == 1:
            self._count_one(*some[0], ahead)
        else:
            usual = [one for one in some if one[1] is ACKED and _is_first(one[0].message)]
            if usual:
                self.count(usual, ahead)
            for one in some:
                if not (one[1] is ACKED and _is_first(one[0].message)):
                    self._count_one(*one, ahead)

    def _count_one(
        self, delivery: Delivery[bytes], outcome: Outcome, started: float, seconds: float | None, ahead: float | None
    ) -> None:
        if seconds is not None:
            self.seconds.observe([seconds])
            if ahead is not None and _is_first(delivery.message):
                self.latency.observe_latencies([started], ahead, [delivery.message.published_at])
        self._count_outcome(outcome, was_started=seconds is not None)

    def _count_outcome(self, outcome: Outcome, *, was_started: bool) -> None:
        match outcome:
            case Acked():
                self.handled += 1
            case Retried():
                self.failed += 1
                self.retried += 1
            case DeadLettered(reason):
                self.failed += was_started
                self.dead[reason.kind] += 1
            case Dropped():
                self.dropped += 1
            case Released():
                pass  # it begins anew elsewhere, as if nothing had been
            case _:
                assert_never(outcome)

    def add(self, other: "GroupCounts") -> None:
        """Count all that the other counted."""
        self.handled += other.handled
        self.failed += other.failed
        self.retried += other.retried
        self.dropped += other.dropped
        self.dead.update(other.dead)
        self.seconds.add(other.seconds)
        self.latency.add(other.latency)


@dataclass(slots=True)
class Counts:
    """What was published, by topic, and what became of deliveries, by topic and group. Only ever grows."""

    published: Counter[str] = field(default_factory=Counter)
    groups: dict[SubscriptionKey, GroupCounts] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """How many deliveries were settled, in whatever way."""
        return sum(one.settled for one in self.groups.values())

    def add(self, other: "Counts") -> None:
        """Count all that the other counted."""
        self.published.update(other.published)
        for key, theirs in other.groups.items():
            self.groups.setdefault(key, GroupCounts()).add(theirs)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can say it, for another process."""
        return {
            "published": dict(self.published),
            "groups": [
                [
                    *key,
                    [one.handled, one.failed, one.retried, one.dropped, dict(one.dead)],
                    [one.seconds.buckets, one.seconds.total],
                    [one.latency.buckets, one.latency.total],
                ]
                for key, one in self.groups.items()
            ],
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Counts":
        """Return what `to_json` was called on."""
        counts = cls(Counter(said["published"]))
        for topic, group, (handled, failed, retried, dropped, dead), seconds, latency in said["groups"]:
            counts.groups[SubscriptionKey(topic, group)] = GroupCounts(
                handled, failed, retried, dropped, Counter(dead), Histogram(*seconds), Histogram(*latency)
            )
        return counts


class Metrics:
    """Counts for one `PubSub` in this process: `pubsub.metrics`. Safe to use from any thread.

    Nothing is counted before `start`. A forked child counts for itself, from 0.
    """

    def __init__(self) -> None:
        self.is_counting = False
        self._start_afresh()
        _ALL.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()
        self._observers: list[Observer] = []

    def start(self) -> None:
        """Begin to count; idempotent. A `Worker` has its deliveries counted if this comes before it is made."""
        self.is_counting = True

    def published(self, messages: Iterable[Message[Any]], ids: Iterable[str]) -> None:
        """Count messages that were stored. One whose `ids` is of another was published before, and is not counted."""
        if self.is_counting:
            with self._lock:
                self._counts.published.update(
                    message.topic for message, stored in zip(messages, ids, strict=True) if message.id == stored
                )

    def observer(self, broker_time: Callable[[], float], keys: Iterable[SubscriptionKey]) -> "Observer | None":
        """Return what a worker tells of its deliveries; None if nothing is to be counted.

        The counts of `keys` are there from now on, as 0: a rate needs a value before the first event.
        """
        if not self.is_counting:
            return None
        one = Observer(broker_time, self._count)
        with self._lock:
            self._observers.append(one)
            for key in keys:
                self._counts.groups.setdefault(key, GroupCounts())
        return one

    def _count(self, waiting: list[Observed], ahead: float | None) -> None:
        with self._lock:
            some = waiting[:]
            del waiting[: len(some)]  # others append at the end meanwhile
            while some:
                key = some[0][0].subscription
                theirs, others = some, [one for one in some if one[0].subscription is not key]
                if others:
                    theirs = [one for one in some if one[0].subscription == key]
                    others = [one for one in others if one[0].subscription != key]
                group = self._counts.groups.get(key)
                if group is None:
                    group = self._counts.groups[key] = GroupCounts()
                group.count(theirs, ahead)
                some = others

    def snapshot(self) -> Counts:
        """Return a copy of what was counted so far. Never blocks for the broker."""
        with self._lock:
            observers = list(self._observers)
        for one in observers:
            one.count()
        copy = Counts()
        with self._lock:
            copy.add(self._counts)
        return copy


class Observer:
    """Takes note of deliveries, and has them counted many at a time, which costs little for each.

    `note` is safe from any thread, and takes no lock: it is the `append` of a list. What is noted is held until it is
    counted: a worker has that done with each read.
    """

    def __init__(self, broker_time: Callable[[], float], count: Callable[[list[Observed], float | None], None]) -> None:
        self._broker_time = broker_time
        self._count = count
        self._waiting: list[Observed] = []
        self._ahead: float | None = None  # how far the broker's clock is ahead of time.monotonic()
        self._asked_at = -math.inf
        self.note: Callable[[Observed], None] = self._waiting.append

    def count(self) -> None:
        """Count what was noted. Never blocks for the broker."""
        if self._waiting:
            self._count(self._waiting, self._ahead)

    def ask_for_time(self) -> None:
        """Ask the broker for its time, if that was not done lately. Without it there are no latencies. It may block."""
        if monotonic() - self._asked_at > _TIME_IS_GOOD_FOR:
            self._asked_at = monotonic()
            try:
                self._ahead = self._broker_time() - monotonic()
            except BrokerError as error:  # who reads says that it is away; what was known before is still good
                log.debug("the broker's time is not known: %s", error)


_ALL: WeakSet[Metrics] = WeakSet()


def _start_afresh_in_child() -> None:
    """What the parent counted is the parent's; and a thread of it may have held the lock, which nobody would free."""
    for one in list(_ALL):
        one._start_afresh()  # noqa: SLF001  # of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh_in_child)


@dataclass(frozen=True, slots=True)
class Look:
    """How a group stood when somebody looked.

    `lag` is how many messages it was not handed yet, or more, `pending` how many it was and has not settled, `oldest`
    the age in seconds of the oldest of both, 0 if there are none. A paused group is handed nothing.
    """

    lag: int
    pending: int
    oldest: float
    is_paused: bool = False


Looks = Mapping[SubscriptionKey, Look]


def look_at_groups(inspector: Inspector, now: float, keys: Iterable[SubscriptionKey]) -> Looks:
    """Ask the broker how these groups stand. `now` is by its clock. Blocks; raises a BrokerError."""
    wanted = set(keys)
    looks: dict[SubscriptionKey, Look] = {}
    for topic in sorted({key.topic for key in wanted}):
        for state in inspector.groups(topic):
            if state.key in wanted:
                oldest = now if state.oldest_unsettled is None else state.oldest_unsettled.timestamp()
                looks[state.key] = Look(state.lag.at_least, state.pending, max(0.0, now - oldest), state.is_paused)
    return looks


@dataclass(frozen=True, slots=True)
class Page:
    """All that there is to show of a worker: the sums over its processes, and how its groups stand."""

    counts: Counts
    in_hand: Mapping[SubscriptionKey, int]
    looks: Looks
    processes: int
    crashes: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can say it, for another process."""
        return {
            "counts": self.counts.to_json(),
            "in_hand": [[*key, count] for key, count in self.in_hand.items()],
            "looks": looks_to_json(self.looks),
            "processes": [self.processes, self.crashes],
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Page":
        """Return what `to_json` was called on."""
        in_hand = {SubscriptionKey(topic, group): count for topic, group, count in said["in_hand"]}
        return cls(Counts.from_json(said["counts"]), in_hand, looks_from_json(said["looks"]), *said["processes"])


def looks_to_json(looks: Looks) -> list[list[Any]]:
    """Return them as JSON can say it."""
    return [[*key, look.lag, look.pending, look.oldest, look.is_paused] for key, look in looks.items()]


def looks_from_json(said: list[list[Any]]) -> Looks:
    """Return what `looks_to_json` was called on."""
    return {SubscriptionKey(topic, group): Look(*look) for topic, group, *look in said}
