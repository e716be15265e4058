"""The broker over a store, by the clock and the names of whoever opened it."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pubsub_core.backlog import DropLog, backlog_is_full, refuse_what_cannot_fit
from pubsub_core.broker import (
    IN_MEMORY,
    NO_TERMS,
    USUAL,
    BrokerOptions,
    Consumer,
    Durability,
    Fired,
    Membership,
    ScheduleKey,
    Terms,
)
from pubsub_core.clock import MovableClock
from pubsub_core.errors import BrokerFull
from pubsub_core.message import Message
from pubsub_memory.consumer import MemoryConsumer
from pubsub_memory.inspector import MemoryInspector
from pubsub_memory.store import Planned, Store


class MemoryBroker(MemoryInspector):
    """Keeps messages in this process. It is an `Inspector` too."""

    def __init__(self, store: Store, options: BrokerOptions) -> None:
        self._store = store
        self._options = options
        self._schedules = store.schedules[options.namespace]
        self._drops = DropLog(options.clock.time)
        if isinstance(options.clock, MovableClock):
            options.clock.on_move(_ring_of(store))

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        """Store the messages: all of them, before anyone sees the first; or none."""
        refuse_what_cannot_fit(messages, self._options.topics, terms)
        with self._store.lock:
            now = self._options.clock.time()
            ids = [message.id for message in messages]
            if not (again or terms or self._options.topics):  # as nearly always
                for message in messages:
                    self._log(message.topic).append(message, now)
                self._store.ring()
                return ids
            if again:
                stored = {topic: self._log(topic).ids() for topic in {message.topic for message in messages}}
                messages = [message for message in messages if message.id not in stored[message.topic]]
            if terms:
                firsts = self._firsts(messages, terms, now)
                ids = [firsts.get(message_id, message_id) for message_id in ids]
                messages = [message for message in messages if message.id not in firsts]
            later = {one.id for one in messages if _due(terms.get(one.id, _AT_ONCE), now) > now} if terms else ()
            at_once = [message for message in messages if message.id not in later] if later else messages
            dropped = self._make_room(at_once) if self._options.topics else {}
            topic = None
            for message in messages:
                if message.topic != topic:
                    topic = message.topic
                    log = self._log(topic)
                said = terms.get(message.id)
                if said is not None and said.dedup is not None:
                    log.note(said.dedup, message.id, now, said.window)
                if said is not None and message.id in later:
                    log.delay(message, _due(said, now), said.dedup)
                else:
                    log.append(message, now)
            self._store.ring()
        self._note_drops(dropped)
        return ids

    def _firsts(self, messages: Sequence[Message[bytes]], terms: Mapping[str, Terms], now: float) -> dict[str, str]:
        """Return, of messages whose dedup key was used before, the id of the first."""
        firsts: dict[str, str] = {}
        here: dict[tuple[str, str], str] = {}
        for message in messages:
            dedup = terms[message.id].dedup if message.id in terms else None
            if dedup is not None:
                first = self._log(message.topic).known(dedup, now) or here.get((message.topic, dedup))
                if first is None:
                    here[message.topic, dedup] = message.id
                elif first != message.id:
                    firsts[message.id] = first
        return firsts

    def _make_room(self, messages: Sequence[Message[bytes]]) -> dict[str, int]:
        """Return how many messages were dropped, of which topics. Raises BrokerFull, and drops none."""
        counts = Counter(message.topic for message in messages)
        bounded = {topic: most for topic in counts if (most := self._options.topics.get(topic, USUAL).max_backlog)}
        for topic, most in bounded.items():
            log = self._log(topic)
            is_full = log.end - log.first_unsettled() + counts[topic] > most
            if is_full and self._options.topics[topic].overflow == "reject":
                raise backlog_is_full(topic, most)
        return {topic: self._log(topic).make_room(counts[topic], most) for topic, most in bounded.items()}

    def _note_drops(self, dropped: Mapping[str, int]) -> None:
        for topic, count in dropped.items():
            if count:
                self._drops.note(topic, count)

    def cancel(self, topic: str, message_id: str) -> bool:
        """Delete a message that is not due yet. See the seam."""
        with self._store.lock:
            return self._log(topic).cancel(message_id)

    def _move_due(self, topic: str, now: float) -> float:
        """Store what is due; return when the next is. Where a topic has no room, it waits for another second."""
        log = self._log(topic)
        while (due := log.next_delayed()) <= now:
            message = log.delayed[log.first_delayed()][1]
            try:
                self._note_drops(self._make_room([message]) if self._options.topics else {})
            except BrokerFull:
                return now + 1.0
            log.pop_delayed()
            log.append(message, now)
        return due

    # Schedules

    def time(self) -> float:
        """Return the time of the clock."""
        return self._options.clock.time()

    def join_schedules(
        self, owner: str, schedules: Mapping[ScheduleKey, str], *, is_start: bool = False
    ) -> Mapping[ScheduleKey, float]:
        """Name the schedules of an application. See the seam."""
        with self._store.lock:
            now = self.time()
            planned = self._schedules
            for key, spec in schedules.items():
                planned[key] = self._named(planned.get(key), owner, spec, now, is_start=is_start)
            for key, one in [*planned.items()]:
                if one.owner == owner and key not in schedules and now - one.named_at > self._options.superseded_for:
                    del planned[key]
            return {key: planned[key].last for key in schedules}

    def _named(self, known: Planned | None, owner: str, spec: str, now: float, *, is_start: bool) -> Planned:
        if known is None:
            return Planned(owner, spec, now, now)
        if known.spec == spec:
            return replace(known, owner=owner, named_at=now)
        if not is_start and now - known.named_at <= self._options.superseded_for:
            return known
        return Planned(owner, spec, max(known.last, now), now, known.is_paused)

    def fire(self, key: ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> Fired:
        """Publish the message of a tick, once. See the seam."""
        with self._store.lock:
            now = self.time()
            known = self._schedules.get(key) or Planned("-", spec, tick - 0.001, now)
            if known.spec != spec:
                if now - known.named_at <= self._options.superseded_for:
                    return "superseded"
                known = Planned(known.owner, spec, max(known.last, now), now, known.is_paused)
                self._schedules[key] = known
            if tick > now:
                return "early"
            if tick <= known.last:
                return "past"
            dropped = self._make_room([message]) if self._options.topics and not known.is_paused else {}
            self._schedules[key] = replace(known, last=tick, named_at=now)
            if known.is_paused:
                return "paused"
            self._log(key.topic).append(message, now)
            self._store.ring()
        self._note_drops(dropped)
        return "fired"

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        """Return a consumer of these subscriptions. The first `receive` joins the groups."""
        return MemoryConsumer(self._store, self._options, self._log, memberships, name, move_due=self._move_due)

    def for_tests(self) -> "MemoryBroker":
        """Return a broker of the same messages that obeys tests. See `pubsub_core.testing.controlled`."""
        from pubsub_memory.controlled import ControlledMemoryBroker  # it is built on this one

        return ControlledMemoryBroker(self._store, self._options)

    def close(self) -> None:
        """Leave the messages: others of the same name may still need them."""
        self._drops.close()


_AT_ONCE = Terms()


def _due(terms: Terms, now: float) -> float:
    return now + terms.delay if terms.at is None else terms.at


def _ring_of(store: Store) -> Callable[[], None]:
    """Return a call that wakes whoever waits, and does not keep the store alive."""
    reference = weakref.ref(store)

    def ring() -> None:
        store = reference()
        if store is not None:
            with store.lock:
                store.ring()

    return ring
