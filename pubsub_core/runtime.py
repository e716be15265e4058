"""One application's settings and broker: what a `PubSub` works with once it is configured."""

import os
import threading
from collections.abc import Callable, Mapping
from weakref import WeakSet

from pubsub_core.backends import open_broker
from pubsub_core.broker import Broker, BrokerOptions, TopicOptions
from pubsub_core.clock import Clock
from pubsub_core.ids import IdMaker
from pubsub_core.settings import Settings


class Runtime:
    """Settings, and the broker they name, which is opened at first use. Safe to use from any thread."""

    def __init__(self, settings: Settings, clock: Clock, topics: Mapping[str, TopicOptions]) -> None:
        self.settings = settings
        self.clock = clock
        self.make_id = IdMaker(clock)
        self.topics = topics
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._drain: Callable[[], None] | None = None
        _all.add(self)

    @property
    def broker(self) -> Broker:
        """The broker. Raises ConfigurationError if its URL cannot work; connects only when it is used."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = self._open()
        return self._broker

    def _open(self) -> Broker:
        settings = self.settings
        options = BrokerOptions(
            self.clock,
            settings.namespace,
            settings.heartbeat,
            settings.publish_timeout,
            self.topics,
            settings.retention,
            settings.max_crashes,
            settings.dead_letter_retention,
        )
        return open_broker(settings.url, options)

    def drain(self, make: Callable[[], Callable[[], None]]) -> None:
        """Handle what was published, here and now (`PUBSUB_EAGER`), by what `make` returned the first time."""
        with self._lock:
            drain = self._drain = self._drain or make()
        drain()

    def close(self) -> None:
        """Close the broker's connections, if it was opened. Idempotent; the next use opens it anew."""
        with self._lock:
            broker, self._broker, self._drain = self._broker, None, None
        if broker is not None:
            broker.close()

    def renew_lock(self) -> None:
        """In a forked child: a thread that it does not have may have been opening the broker."""
        self._lock = threading.Lock()


_all: WeakSet[Runtime] = WeakSet()


def _renew_locks() -> None:
    for runtime in _all:
        runtime.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
