"""The broker over a store, by the clock and the names of whoever opened it."""

import weakref
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

from pubsub_core.broker import IN_MEMORY, USUAL, BrokerOptions, Consumer, DeadLetter, Durability, Membership
from pubsub_core.message import Message, SubscriptionKey
from pubsub_memory.consumer import MemoryConsumer
from pubsub_memory.store import Log, Store


@runtime_checkable
class _Movable(Protocol):
    def on_move(self, listener: Callable[[], None]) -> None: ...


class MemoryBroker:
    """Keeps messages in this process. It is an `Inspector` too."""

    def __init__(self, store: Store, options: BrokerOptions) -> None:
        self._store = store
        self._options = options
        if isinstance(options.clock, _Movable):
            options.clock.on_move(_ring_of(store))

    def publish(self, messages: Sequence[Message[bytes]], durability: Durability = IN_MEMORY) -> None:
        """Store the messages: all of them, before anyone sees the first."""
        with self._store.lock:
            now = self._options.clock.time()
            topic = None
            for message in messages:
                if message.topic != topic:
                    topic = message.topic
                    log = self._log(topic)
                log.append(message, now)
            self._store.ring()

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        """Return a consumer of these subscriptions. The first `receive` joins the groups."""
        return MemoryConsumer(self._store, self._options, self._log, memberships, name)

    def close(self) -> None:
        """Do nothing: there is no connection, and others of the same name may still need the messages."""

    def dead_letters(self, key: SubscriptionKey, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the newest `limit` dead letters of the group, newest first."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(key.topic))
            group = log.groups.get(key.group) if log else None
            return list(islice(reversed(group.dead), max(limit, 0))) if group else []

    def _stream(self, topic: str) -> str:
        return self._options.topics.get(topic, USUAL).stream or f"{self._options.namespace}:{topic}"

    def _log(self, topic: str) -> Log:
        return self._store.log(self._stream(topic))


def _ring_of(store: Store) -> Callable[[], None]:
    """Return a call that wakes whoever waits, and does not keep the store alive."""
    reference = weakref.ref(store)

    def ring() -> None:
        store = reference()
        if store is not None:
            with store.lock:
                store.ring()

    return ring
