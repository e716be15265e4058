"""Between reading and handling: the deliveries in hand, who reads next, and how much to ask for.

Leaders and followers: of the handler threads that have nothing to do, one reads; then it handles what it read, and
another reads on. So a delivery is handled by the thread that read it, without a hand-over, or by the next free one.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from time import monotonic

from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_core.subscription import Subscription

Credit = Mapping[SubscriptionKey, int]
Deliveries = Sequence[Delivery[bytes]]
Read = Callable[[Credit], Deliveries]

_AHEAD = 0.02  # seconds of all threads' work to have in hand: enough to hide a round trip, too little to hoard
_MOST = 500  # of one subscription in hand, however fast its handler
_WEIGHT = 0.2  # of the newest duration in the pace
# A duration of fewer seconds may be that of waiting for Python's lock, while other threads had their turns: it counts
# for so many times the pace at most, and a bit.
_TURNS = 0.05
_JUMP, _BIT = 8.0, 50e-6
_STALLED = 0.9  # seconds in which a subscription with something waiting started nothing: from one look to the next


_SUBSCRIPTION: Callable[[Delivery[bytes]], SubscriptionKey] = attrgetter("subscription")


@dataclass(slots=True)
class _Line:
    """One subscription's deliveries in hand. `batch` is how many of them go to one call of its handler.

    `is_free` says that each call takes one, and any number may be at work.
    """

    concurrency: int | None
    batch: int = 1
    is_free: bool = field(init=False)
    waiting: deque[Delivery[bytes]] = field(default_factory=deque)
    running: int = 0
    calls: int = 0  # of the handler, at work
    is_up: bool = False  # it is among the turns
    asked: int = 0  # by who reads now, or read last
    brought: int = 0  # by that read
    is_rich: bool = True  # whenever it was asked for last, so many came: there may be more
    pace: float | None = None  # seconds a handler takes for one, lately
    first: Delivery[bytes] | None = None  # of what waited at the last look
    first_since: float = 0.0  # and when it was seen so first

    def __post_init__(self) -> None:
        self.is_free = self.concurrency is None and self.batch == 1

    def note_pace(self, seconds: float) -> None:
        pace = self.pace
        if pace is None:
            self.pace = seconds
        else:
            if seconds < _TURNS and seconds > _JUMP * pace + _BIT:
                seconds = _JUMP * pace + _BIT
            self.pace = pace + _WEIGHT * (seconds - pace)

    def stands_for(self, now: float) -> float:
        """Return for how many seconds, as far as looks can tell, the first that waits has been the first."""
        try:
            first = self.waiting[0]
        except IndexError:
            self.first = None
            return 0.0
        if first is not self.first:
            self.first, self.first_since = first, now
        return now - self.first_since

    def note_read(self) -> None:
        """Note what came of the last read."""
        if self.asked:
            self.is_rich = self.brought >= self.asked
        self.brought = 0

    @property
    def in_hand(self) -> int:
        return len(self.waiting) + self.running

    @property
    def most(self) -> float:
        """How many it may have in hand."""
        return math.inf if self.concurrency is None else self.concurrency * self.batch


class _Idle:
    """Threads that wait for something to do, the first one to be woken first. Every method wants the lock held.

    A Condition does the same, but takes several times as many steps to wake one: between a message's read and its
    handler, in a process that was idle, each of them counts.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._asleep: deque[threading.Lock] = deque()

    def wait(self) -> None:
        """Release the lock, wait to be woken, and take the lock again."""
        alarm = threading.Lock()
        alarm.acquire()
        self._asleep.append(alarm)
        self._lock.release()
        try:
            alarm.acquire()
        except BaseException:
            with self._lock:
                if alarm in self._asleep:
                    self._asleep.remove(alarm)
                else:  # it was for somebody who goes on
                    self.wake_one()
            raise
        finally:
            self._lock.acquire()

    def wake_one(self) -> None:
        if self._asleep:
            self._asleep.popleft().release()

    def wake_all(self) -> None:
        while self._asleep:
            self.wake_one()


class Handover:
    """What a process has in hand. Every method is safe from any thread."""

    def __init__(
        self, subscriptions: Sequence[Subscription], threads: int, read: Read, wake: Callable[[], None]
    ) -> None:
        self._lines = {one.key: _Line(one.concurrency, one.batch or 1) for one in subscriptions}
        self._unasked = _Line(None)  # of subscriptions that nobody asked for, if a backend brings such
        self._all = [*self._lines.values(), self._unasked]
        self._batched = [key for key, line in self._lines.items() if line.batch > 1]  # whose turn is next first
        self._threads = threads
        self._read = read
        self._wake = wake
        self._lock = threading.Lock()
        self._idle = _Idle(self._lock)
        self._turns: deque[_Line] = deque()  # the lines with something that may start, the next one first
        self._running: dict[int, Delivery[bytes]] = {}
        self._is_led = False
        self._is_stopped = False
        self.holds_back = False
        """Whether what is read now leaves out subscriptions that may have something: it is not to wait."""

    def next(self, done: Deliveries = (), seconds: float = 0.0) -> Deliveries:
        """Return what to handle in one call, reading if nobody does and nothing waits. Blocks; empty when all is over.

        That is one delivery, or several of a subscription that takes batches. Whoever gets them brings them back by the
        next call, with the seconds that the call took, or by `finished`.
        """
        if done and (taken := self._next_of_line(done[0], seconds)):
            return taken
        may_wake = False
        while True:
            if may_wake:
                self._wake()  # who reads did not ask for this subscription: it may now
                may_wake = False
            with self._lock:
                if done:
                    may_wake = self._note_finished(done, seconds)
                    done = ()
                    if may_wake:
                        continue
                while True:
                    if self._is_stopped:
                        return ()
                    if taken := self._pop():
                        return taken
                    if not self._is_led:
                        break
                    self._idle.wait()
                self._is_led = True
                credit = self._credit()
            if taken := self._lead(credit):
                return taken

    def _next_of_line(self, done: Delivery[bytes], seconds: float) -> Deliveries:
        """Take the next of the line that this one came from, if it is the only one with something waiting and may have
        any number at work; nothing otherwise. Without the lock, as most are taken: nobody is woken for it either.
        """
        line = self._lines.get(done.subscription)
        if line is None or not line.is_free or self._is_stopped:
            return ()
        turns = self._turns
        try:
            if turns and (turns[0] is not line or len(turns) > 1):
                return ()
            delivery = line.waiting.popleft()
        except IndexError:  # others take, too
            return ()
        self._running[id(delivery)] = delivery  # first: whoever looks meanwhile finds one at work
        self._running.pop(id(done), None)
        pace = line.pace
        if pace is None or seconds > _JUMP * pace:
            line.note_pace(seconds)
        else:  # the same, without a call
            line.pace = pace + _WEIGHT * (seconds - pace)
        return (delivery,)

    def _lead(self, credit: Credit) -> Deliveries:
        """Read, and take what is next. Another thread reads on, or takes what there is more."""
        deliveries: Deliveries = ()
        taken: Deliveries = ()
        was_read = False
        try:
            deliveries = self._read(credit)
            was_read = True
        finally:
            with self._lock:
                self._is_led = False
                for key, those in groupby(deliveries, _SUBSCRIPTION):
                    line = self._lines.get(key, self._unasked)
                    some = [*those]
                    line.waiting.extend(some)
                    line.brought += len(some)
                    if not line.is_up:
                        self._line_up(line)
                if was_read and not self._is_stopped:  # otherwise whatever waits is for others
                    taken = self._pop()
        return taken

    def _line_up(self, line: _Line) -> None:
        """Have a line take its turn, unless as many calls of its handler are at work as may be."""
        if line.concurrency is None or line.calls < line.concurrency:
            line.is_up = True
            self._turns.append(line)

    def _pop(self) -> Deliveries:
        """Take what is next, subscription by subscription in turn, and wake one more thread if there is more."""
        delivery = None
        while delivery is None:
            if not self._turns:
                return ()
            line = self._turns.popleft()
            line.is_up = False
            try:
                delivery = line.waiting.popleft()
            except IndexError:  # it was the last, and somebody took it without the lock
                continue
        line.calls += 1
        self._running[id(delivery)] = delivery
        taken = [delivery]
        if line.batch > 1:
            self._fill(taken, line)
        if line.waiting:
            self._line_up(line)
        line.running += len(taken)
        if self._turns or not self._is_led:
            self._idle.wake_one()
        return taken

    def _fill(self, taken: list[Delivery[bytes]], line: _Line) -> None:
        """Take more for the same call. What crashed somebody is handled alone: the others are not to die with it."""
        waiting = line.waiting
        while waiting and len(taken) < line.batch and not (taken[0].crashes or waiting[0].crashes):
            delivery = waiting.popleft()
            self._running[id(delivery)] = delivery
            taken.append(delivery)

    def finished(self, deliveries: Deliveries, seconds: float) -> None:
        """Note that a handler is done with what `next` returned."""
        with self._lock:
            may_wake = self._note_finished(deliveries, seconds)
        if may_wake:
            self._wake()

    def _note_finished(self, deliveries: Deliveries, seconds: float) -> bool:
        """Note it, and tell whether to wake who reads: it did not ask for this subscription, and now it may."""
        line = self._lines.get(deliveries[0].subscription, self._unasked)
        for delivery in deliveries:
            self._running.pop(id(delivery), None)
        count = len(deliveries)
        line.running -= count
        line.calls -= 1
        line.note_pace(seconds / count)
        if line.concurrency is None:
            return False
        if line.waiting and not line.is_up:
            self._line_up(line)
            self._idle.wake_one()
        return self._is_led and not line.asked and self._credit_of(line, 1, 1) > 0

    def _credit(self) -> Credit:
        """Return how many of each subscription to ask for: what the threads will soon start, and no more.

        Those that are rich share that, so that together they bring no more; and so do all others, which most likely
        bring nothing.
        """
        for line in self._lines.values():
            line.note_read()
        free = max(1, self._threads - self._calls())
        rich, all_lines = sum([line.is_rich for line in self._lines.values()]), len(self._lines)
        credit = {
            key: self._credit_of(line, free, rich if line.is_rich else all_lines) for key, line in self._lines.items()
        }
        self._have_turns(credit, free)
        for key, line in self._lines.items():
            line.asked = credit[key]
        return credit

    def _credit_of(self, line: _Line, free: int, among: int) -> int:
        """Return how many of one to ask for, if so many threads are free, and so many lines share them."""
        ahead = self._ahead(line, among)
        credit = max(1, min(_MOST, free * line.batch // among), ahead - line.in_hand)
        if line.concurrency is None:
            return credit
        if line.calls >= line.concurrency and ahead < line.batch:
            return 0  # nothing starts before a call ends, which takes long; a few now would make the next list short
        return max(0, min(credit, int(line.most) - line.in_hand))

    def _ahead(self, line: _Line, among: int) -> int:
        return 0 if line.pace is None else min(_MOST, int(self._threads * _AHEAD / max(line.pace, 1e-6) / among))

    def _have_turns(self, credit: dict[SubscriptionKey, int], free: int) -> None:
        """Of the rich whose share is a part of a batch, as many as may start get a whole one, and the rest their turn
        at a later read.
        """
        short = [key for key in self._batched if (line := self._lines[key]).is_rich and 0 < credit[key] < line.batch]
        for number, key in enumerate(short):
            credit[key] = self._credit_of(self._lines[key], 1, 1) if number < free else 0
        self.holds_back = len(short) > free
        if self.holds_back:
            self._batched = [key for key in self._batched if key not in short[:free]] + short[:free]

    def _calls(self) -> int:
        """Return how many calls of handlers are at work, or wait to be."""
        return sum([line.calls - (-len(line.waiting) // line.batch) for line in self._all])

    def take_surplus(self) -> list[Delivery[bytes]]:
        """Remove and return what will not be started soon after all: its handlers became slow since it was read."""
        surplus: list[Delivery[bytes]] = []
        now = monotonic()
        with self._lock:
            for line in self._all:
                stalled = line.stands_for(now)
                if not line.waiting:
                    continue
                if stalled > _STALLED:
                    line.pace = max(line.pace or 0.0, stalled / line.batch)
                keep = 0 if stalled > _STALLED else max(self._threads * line.batch, 2 * self._ahead(line, 1))
                with suppress(IndexError):  # they may be taken meanwhile, without the lock
                    for _ in range(len(line.waiting) - keep):
                        surplus.append(line.waiting.pop())
                line.is_up = line.is_up and bool(line.waiting)
            self._turns = deque(line for line in self._turns if line.is_up)
        return surplus

    def _waiting(self) -> int:
        return sum([len(line.waiting) for line in self._all])

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in hand."""
        with self._lock:
            return not self._running and not self._waiting()

    def in_hand(self) -> dict[SubscriptionKey, int]:
        """Return how many deliveries of each subscription are in hand, those at work included."""
        with self._lock:
            return {key: line.in_hand for key, line in self._lines.items()}

    def stop(self) -> list[Delivery[bytes]]:
        """End all `next`, and return the deliveries that nobody started. Idempotent; a late read adds more."""
        with self._lock:
            self._is_stopped = True
            left: list[Delivery[bytes]] = []
            for line in self._all:
                with suppress(IndexError):  # one by one: each goes to us, or to who takes it without the lock
                    while True:
                        left.append(line.waiting.popleft())
                line.is_up = False
            self._turns.clear()
            self._idle.wake_all()
        return left

    def running(self) -> list[Delivery[bytes]]:
        """Return the deliveries that handlers are working on."""
        with self._lock:
            return [*self._running.copy().values()]  # at once: some are noted without the lock
