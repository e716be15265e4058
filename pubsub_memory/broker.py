"""The broker over a store, by the clock and the names of whoever opened it."""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

from pubsub_core.backlog import DropLog, backlog_is_full, refuse_what_cannot_fit
from pubsub_core.broker import IN_MEMORY, USUAL, BrokerOptions, Consumer, DeadLetter, Durability, GroupState, Membership
from pubsub_core.errors import ConsumersPresent
from pubsub_core.message import Message, SubscriptionKey
from pubsub_memory.consumer import MemoryConsumer
from pubsub_memory.store import Group, Log, Store


@runtime_checkable
class _Movable(Protocol):
    def on_move(self, listener: Callable[[], None]) -> None: ...


class MemoryBroker:
    """Keeps messages in this process. It is an `Inspector` too."""

    def __init__(self, store: Store, options: BrokerOptions) -> None:
        self._store = store
        self._options = options
        self._drops = DropLog(options.clock.time)
        if isinstance(options.clock, _Movable):
            options.clock.on_move(_ring_of(store))

    def publish(
        self, messages: Sequence[Message[bytes]], durability: Durability = IN_MEMORY, *, again: bool = False
    ) -> None:
        """Store the messages: all of them, before anyone sees the first; or none."""
        refuse_what_cannot_fit(messages, self._options.topics)
        with self._store.lock:
            if again:
                stored = {topic: self._log(topic).ids() for topic in {message.topic for message in messages}}
                messages = [message for message in messages if message.id not in stored[message.topic]]
            dropped = self._make_room(messages) if self._options.topics else {}
            now = self._options.clock.time()
            topic = None
            for message in messages:
                if message.topic != topic:
                    topic = message.topic
                    log = self._log(topic)
                log.append(message, now)
            self._store.ring()
        for topic, count in dropped.items():
            if count:
                self._drops.note(topic, count)

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

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        """Return a consumer of these subscriptions. The first `receive` joins the groups."""
        return MemoryConsumer(self._store, self._options, self._log, memberships, name)

    def close(self) -> None:
        """Leave the messages: others of the same name may still need them."""
        self._drops.close()

    def dead_letters(
        self, key: SubscriptionKey, limit: int = 100, *, before: str | None = None
    ) -> Sequence[DeadLetter]:
        """Return the newest dead letters. See the seam."""
        with self._store.lock:
            group = self._group(key)
            letters = reversed(group.dead) if group else iter(())
            return list(islice((one for one in letters if _is_before(one, before)), max(limit, 0)))

    def replay(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Deliver dead letters to their group again. See the seam."""
        with self._store.lock:
            letters = self._remove_letters(key, positions)
            for letter in letters:
                self._log(key.topic).groups[key.group].replay(letter)
            self._store.ring()
            return len(letters)

    def discard(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Delete dead letters. See the seam."""
        with self._store.lock:
            return len(self._remove_letters(key, positions))

    def _remove_letters(self, key: SubscriptionKey, positions: Sequence[str]) -> list[DeadLetter]:
        group, chosen = self._group(key), set(positions)
        if group is None:
            return []
        removed = [one for one in group.dead if one.position in chosen]
        group.dead = [one for one in group.dead if one.position not in chosen]
        return removed

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return how the groups stand. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic))
            groups = [log.groups[name] for name in sorted(log.groups)] if log else []
            dropped = log.dropped if log else 0
            return [one.state(len(self._store.consumers_of(one)), dropped) for one in groups]

    def remove_group(self, key: SubscriptionKey) -> None:
        """Delete a group. See the seam."""
        with self._store.lock:
            group = self._group(key)
            if group is None:
                return
            present = self._store.consumers_of(group)
            if present:
                raise ConsumersPresent(
                    f"group {key.group!r} of topic {key.topic!r} is consumed, by {present[0].name!r}: stop it first"
                )
            del self._log(key.topic).groups[key.group]

    def _group(self, key: SubscriptionKey) -> Group | None:
        log = self._store.logs.get(self._stream(key.topic))
        return log.groups.get(key.group) if log else None

    def _stream(self, topic: str) -> str:
        return self._options.topics.get(topic, USUAL).stream or f"{self._options.namespace}:{topic}"

    def _log(self, topic: str) -> Log:
        return self._store.log(self._stream(topic))


def _is_before(letter: DeadLetter, position: str | None) -> bool:
    return position is None or int(letter.position) < int(position)


def _ring_of(store: Store) -> Callable[[], None]:
    """Return a call that wakes whoever waits, and does not keep the store alive."""
    reference = weakref.ref(store)

    def ring() -> None:
        store = reference()
        if store is not None:
            with store.lock:
                store.ring()

    return ring
