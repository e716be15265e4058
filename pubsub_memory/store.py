"""What brokers of one name share: logs of messages, and the groups that read them. No method here takes the lock."""

import os
import threading
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import Protocol
from weakref import WeakSet

from pubsub_core.broker import ConsumerState, Count, DeadLetter, GroupState, ScheduleKey, Standing, Start
from pubsub_core.clock import moment_at
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey, delivery_of
from pubsub_memory.handover import hand_over, hand_over_new

KEPT_FOR_LOOKING_BACK = 1000
"""How many messages of a topic are kept at most although every group has been handed them."""

_MANY_KEYS = 10_000
_MICROSECOND = 1e-6


class Owner(Protocol):
    """Who holds deliveries, and may wait for more."""

    name: str

    def is_gone(self) -> bool:
        """Return whether it gave no sign of life for too long."""

    def ring(self) -> None:
        """Tell it to look again. Never blocks."""

    def has_joined(self, group: "Group") -> bool:
        """Return whether it consumes the group."""

    def lapse(self) -> None:
        """Tell it that it is not registered any more."""

    def about(self, group: "Group", in_hand: int) -> ConsumerState:
        """Return what there is to know of it, as a consumer of the group."""


class Log:
    """The messages of one topic, numbered from 1, and the groups that read them."""

    def __init__(self) -> None:
        self.first = 1
        self.end = 1
        # When each was stored, and what: those from `first` on, to the one before `end`.
        self.entries: dict[int, tuple[float, Message[bytes]]] = {}
        self.groups: dict[str, Group] = {}
        self.dropped = 0  # to bound the backlog, ever
        self.paused: set[str] = set()  # groups
        # What is not due yet, by id: when it is, the message, and its dedup key. And the same in order, with some that
        # were cancelled since.
        self.delayed: dict[str, tuple[float, Message[bytes], str | None]] = {}
        self._delayed_order: list[tuple[float, str]] = []
        self._dedup: dict[str, tuple[str, float]] = {}  # key → the first id, and until when it counts
        self._last_stored = 0.0

    def append(self, message: Message[bytes], now: float) -> None:
        """Store the message. If the clock was set back, it counts as stored when the one before it was."""
        self._last_stored = max(self._last_stored, now)
        self.entries[self.end] = (self._last_stored, message)
        self.end += 1

    def ids(self) -> set[str]:
        """Return the ids of the messages that are kept."""
        return {message.id for _, message in self.entries.values()} | self.delayed.keys()

    def delay(self, message: Message[bytes], due: float, dedup: str | None) -> None:
        """Keep the message apart until it is due."""
        self.delayed[message.id] = (due, message, dedup)
        heappush(self._delayed_order, (due, message.id))

    def cancel(self, message_id: str) -> bool:
        """Delete a message that is not due yet, and free its dedup key; tell whether there was one."""
        was_there = message_id in self.delayed
        _, _, dedup = self.delayed.pop(message_id, (None, None, None))
        known = dedup is not None and self._dedup.get(dedup)
        if known and known[0] == message_id:
            del self._dedup[str(dedup)]
        return was_there

    def next_delayed(self) -> float:
        """Return when the next message is due; infinite if there is none."""
        order = self._delayed_order
        while order and self.delayed.get(order[0][1], (None,))[0] != order[0][0]:
            heappop(order)
        return order[0][0] if order else float("inf")

    def pop_delayed(self) -> Message[bytes]:
        """Remove and return the message of which `next_delayed` told."""
        _, message_id = heappop(self._delayed_order)
        return self.delayed.pop(message_id)[1]

    def first_delayed(self) -> str:
        """Return the id of the message of which `next_delayed` told."""
        return self._delayed_order[0][1]

    def known(self, dedup: str, now: float) -> str | None:
        """Return the id of the message that was published under this key, and still counts."""
        message_id, until = self._dedup.get(dedup, (None, 0.0))
        return message_id if now < until else None

    def note(self, dedup: str, message_id: str, now: float, window: float) -> None:
        """Have a message count as that of its key for so long."""
        if len(self._dedup) >= _MANY_KEYS:
            self._dedup = {key: known for key, known in self._dedup.items() if now < known[1]}
        self._dedup[dedup] = (message_id, now + window)

    def first_unsettled(self) -> int:
        """Return the number of the first message that not every group has settled; without a group, of the first."""
        floor = min((group.first_unsettled() for group in self.groups.values()), default=self.first)
        return max(self.first, floor)

    def make_room(self, count: int, most: int) -> int:
        """Let the oldest messages go until `count` more are `most`; return how many of those were not settled."""
        upto = max(self.first, self.end + count - most)
        dropped = max(0, upto - self.first_unsettled())
        self.purge(upto)
        self.dropped += dropped
        return dropped

    def group(self, key: SubscriptionKey, start: Start) -> "Group":
        """Return the group, which is made if it does not exist."""
        group = self.groups.get(key.group)
        if group is None:
            group = self.groups[key.group] = Group(self, key, self.number_of(start))
        return group

    def number_of(self, start: Start) -> int:
        """Return the number of the first message that a group reads which begins there."""
        if isinstance(start, datetime):
            instant = start.timestamp() - _MICROSECOND / 2  # a datetime is no finer
            return self.first + bisect_left(
                range(self.first, self.end), instant, key=lambda number: self.entries[number][0]
            )
        return self.first if start == "earliest" else self.end

    def purge(self, upto: int) -> int:
        """Delete what comes before a number, and what groups have parked of it; return how many there were."""
        gone = range(self.first, max(self.first, upto))
        for group in self.groups.values():
            group.forget(gone)
        for number in gone:
            del self.entries[number]
        self.first = gone.stop
        return len(gone)

    def trim(self) -> None:
        """Drop what every group was handed, but for the newest of it. What is not settled yet, the groups keep."""
        floor = min(group.next for group in self.groups.values())
        if floor - self.first <= KEPT_FOR_LOOKING_BACK:
            return
        floor -= KEPT_FOR_LOOKING_BACK // 2  # so that the next receives need not trim
        for number in range(self.first, floor):
            del self.entries[number]
        self.first = floor


class Group:
    """How far a group has come in its log, and what it was handed and has not settled.

    A delivery is in `held` while a consumer has it, in `parked` while it waits to be handed out again, or settled.
    """

    def __init__(self, log: Log, key: SubscriptionKey, start: int) -> None:
        self.next = start
        self.dead: list[DeadLetter] = []
        self.held: dict[str, tuple[Owner, Delivery[bytes], float]] = {}  # and since when
        self.failed_at: dict[str, float] = {}  # the first failure, of what failed and is not settled
        self.log = log
        self._key = key
        self._parked: dict[str, Delivery[bytes]] = {}
        self._letters = 0
        # One of each in `_parked`, and some that were acknowledged since; apart those that crashed their consumer.
        self._due: list[tuple[float, int, str]] = []
        self._suspects: list[tuple[float, int, str]] = []

    @property
    def is_paused(self) -> bool:
        """Whether its consumers shall get nothing."""
        return self._key.group in self.log.paused

    def due_at(self, *, suspects: bool) -> float:
        """Return when the next parked delivery is due, a suspect or not; infinite if there is none."""
        heaps = (self._due, self._suspects) if suspects else (self._due,)
        return min((heap[0][0] for heap in heaps if heap), default=float("inf"))

    def take_suspect(self, owner: Owner, now: float) -> list[Delivery[bytes]]:
        """Hand out one that crashed its consumer, if one is due."""
        return self._take_due(self._suspects, owner, 1, now) if self._suspects else []

    def take(self, owner: Owner, count: int, now: float) -> list[Delivery[bytes]]:
        """Hand out what is due, then what is new, `count` in all at most."""
        taken = self._take_due(self._due, owner, count, now) if self._due else []
        log, held = self.log, self.held
        upto = min(log.end, self.next + count - len(taken))
        numbers = range(self.next, upto)
        positions = [*map(str, numbers)]
        new = hand_over_new([log.entries[number][1] for number in numbers], positions, self._key)
        for position, delivery in zip(positions, new, strict=True):
            held[position] = (owner, delivery, now)
        taken += new
        self.next = upto
        if upto - log.first > KEPT_FOR_LOOKING_BACK:
            log.trim()
        return taken

    def _take_due(
        self, heap: list[tuple[float, int, str]], owner: Owner, count: int, now: float
    ) -> list[Delivery[bytes]]:
        taken: list[Delivery[bytes]] = []
        while len(taken) < count and heap and heap[0][0] <= now:
            position = heappop(heap)[2]
            parked = self._parked.pop(position, None)
            if parked is not None:
                delivery = delivery_of(parked.message, self._key, parked.crashes)  # who had it before has another
                self.held[position] = (owner, delivery, now)
                taken.append(delivery)
        return taken

    def first_unsettled(self) -> int:
        """Return the number of the first message that is not settled, of those that the log still has."""
        old = (int(position) for positions in (self.held, self._parked) for position in positions)
        return min((number for number in old if number >= self.log.first), default=self.next)

    def forget(self, gone: range) -> None:
        """Hand out these no more. What is in hand may still be settled."""
        self.next = max(self.next, gone.stop)
        for position in map(str, gone):
            delivery = self._parked.get(position)
            if delivery is not None and delivery.message.source != "replay":
                self.settle(position)

    def settle(self, position: str | None) -> None:
        """End a delivery, whoever holds it, also while it is parked."""
        if position is not None and self.held.pop(position, None) is None:
            self._parked.pop(position, None)
        if self.failed_at:
            self.failed_at.pop(str(position), None)

    def give_up(self, owner: Owner, delivery: Delivery[bytes]) -> Delivery[bytes] | None:
        """Take the delivery from its owner, and return it; None if it is not the owner's any more."""
        position = delivery.message.position
        if position is None:
            return None
        holder, held, _ = self.held.get(position, (None, None, 0.0))
        if held is not delivery or holder is not owner:  # one that came again may have the same attempt
            return None
        del self.held[position]
        return held

    def park(self, delivery: Delivery[bytes], due: float) -> None:
        """Keep a delivery that nobody holds until `due`."""
        position = str(delivery.message.position)
        self._parked[position] = delivery
        heappush(self._suspects if delivery.crashes else self._due, (due, int(position), position))

    def park_failed(self, delivery: Delivery[bytes], due: float, now: float, *, crashes: int = 0) -> None:
        """Keep a delivery whose attempt failed until `due`, as the next attempt."""
        position = str(delivery.message.position)
        self.failed_at.setdefault(position, now)
        attempt = delivery.message.attempt + 1
        self.park(hand_over(delivery.message, self._key, attempt, position, delivery.crashes + crashes), due)

    def take_from(self, owner: Owner, now: float, *, is_dead: bool) -> bool:
        """Park all that the owner holds, to be handed out at once. Returns whether there was any."""
        lost = [delivery for holder, delivery, _ in self.held.values() if holder is owner]
        for delivery in lost:
            del self.held[str(delivery.message.position)]
            if is_dead:
                self.park_failed(delivery, 0.0, now, crashes=1)
            else:
                self.park(delivery, 0.0)
        return bool(lost)

    def bury(self, held: Delivery[bytes], reason: DeadLetterReason, consumer: str, now: float) -> None:
        """Keep a delivery that nobody holds as a dead letter."""
        self._letters += 1
        first = min(now, self.failed_at.pop(str(held.message.position), now))
        moments = (datetime.fromtimestamp(moment, UTC) for moment in (first, now))
        self.dead.append(DeadLetter(str(self._letters), held.message, held.subscription, reason, consumer, *moments))

    def replay(self, letter: DeadLetter) -> None:
        """Deliver a dead letter again, as new. Its place is that which it had."""
        position = str(letter.message.position)
        self.park(hand_over(replace(letter.message, source="replay", expires_at=None), self._key, 1, position), 0.0)

    def seek(self, number: int) -> None:
        """Go on reading at a number. What is pending from there on comes again, as new."""
        for position in [one for positions in (self.held, self._parked) for one in positions if int(one) >= number]:
            self.settle(position)
        self.next = number

    def standing(self, number: int, message_id: str) -> Standing:
        """Return how a message stands."""
        name, position = self._key.group, str(number)
        if number >= self.next:
            return Standing(name, "waiting")
        if position in self.held:
            owner, delivery, _ = self.held[position]
            return Standing(name, "in hand", owner.name, delivery.message.attempt)
        if position in self._parked:
            due = next((due for due, _, one in (*self._due, *self._suspects) if one == position), 0.0)
            attempt = self._parked[position].message.attempt - 1
            return Standing(name, "parked", attempt=attempt, due_at=moment_at(due))
        is_dead = any(letter.message.id == message_id for letter in self.dead)
        return Standing(name, "dead letter" if is_dead else "settled")

    def state(self, consumers: int, dropped: int) -> GroupState:
        """Return how the group stands."""
        unsettled = [self.log.entries[number][1] for number in range(self.next, self.log.end)[:1]]
        unsettled += [delivery.message for _, delivery, _ in self.held.values()]
        unsettled += [delivery.message for delivery in self._parked.values()]
        return GroupState(
            self._key,
            len(self.held) + len(self._parked),
            consumers,
            min((message.published_at for message in unsettled), default=None),
            dropped,
            Count(self.log.end - self.next),
            len(self._parked),
            len(self.dead),
            self.is_paused,
        )


@dataclass(slots=True)
class Planned:
    """How a schedule stands; see `pubsub_core.broker.ScheduleState`. `named_at` is when somebody last said so."""

    owner: str
    spec: str
    last: float
    named_at: float
    is_paused: bool = False


class Store:
    """All logs by the names of their streams, and the consumers that are watched. `lock` guards everything in it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.logs: dict[str, Log] = {}
        self.schedules: defaultdict[str, dict[ScheduleKey, Planned]] = defaultdict(dict)  # by namespace
        self.waiting: list[Owner] = []
        self._consumers: dict[str, Owner] = {}
        _all.add(self)

    def log(self, stream: str) -> Log:
        """Return the log of that name, which is made if it does not exist."""
        log = self.logs.get(stream)
        if log is None:
            log = self.logs[stream] = Log()
        return log

    def ring(self) -> None:
        """Tell those who wait that there may be something for them."""
        if self.waiting:
            for owner in self.waiting:
                owner.ring()
            self.waiting.clear()

    def register(self, owner: Owner) -> None:
        """Watch the consumer for signs of life."""
        self._consumers[owner.name] = owner

    def remove(self, owner: Owner, now: float, *, is_dead: bool) -> None:
        """Watch the consumer no more, and hand what it holds to others."""
        self._consumers.pop(owner.name, None)
        owner.lapse()
        parked = [
            group.take_from(owner, now, is_dead=is_dead) for log in self.logs.values() for group in log.groups.values()
        ]
        if any(parked):
            self.ring()

    def remove_gone(self, now: float) -> None:
        """Take over from the consumers that gave no sign of life for too long."""
        for owner in [owner for owner in self._consumers.values() if owner.is_gone()]:
            self.remove(owner, now, is_dead=True)

    def consumers_of(self, group: Group) -> list[Owner]:
        """Return the consumers that are watched, of a group."""
        return [owner for owner in self._consumers.values() if owner.has_joined(group)]


# A fork copies what other threads are about to change. So it waits for them, and the child finds its copy in order.
_all: WeakSet[Store] = WeakSet()
_fork_lock = threading.Lock()
_locked_for_fork: list[Store] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    _locked_for_fork.extend(_all)
    for store in _locked_for_fork:
        store.lock.acquire()


def _after_fork() -> None:
    for store in _locked_for_fork:
        store.lock.release()
    _locked_for_fork.clear()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
