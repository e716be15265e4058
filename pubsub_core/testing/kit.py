"""The test kit behind the fixtures: an application's `PubSub`, on a broker, a clock and a worker of the test's own."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from pubsub_core.broker import IN_MEMORY, NO_TERMS, Broker, Durability, Fired, ScheduleKey, Terms, TopicOptions
from pubsub_core.clock import ManualClock
from pubsub_core.errors import ConfigurationError
from pubsub_core.message import Delivery, Message
from pubsub_core.outcome import Outcome
from pubsub_core.pubsub import PubSub
from pubsub_core.runtime import Runtime
from pubsub_core.settings import Settings, keyword_layer
from pubsub_core.target import load_object, load_target, pubsub_of
from pubsub_core.testing.controlled import Controllable, ControlledBroker
from pubsub_core.testing.faults import Faults
from pubsub_core.testing.published import Publications, Record, publications
from pubsub_core.topic import Topic
from pubsub_core.worker.inline import MOST, Errors, InlineWorker


class KitClock(ManualClock):
    """The time of a test, which begins at 2030-01-01 00:00 UTC and stands still until `advance`.

    Delays, retries, expiry, deduplication and schedules go by it; `time.time()` and `datetime.now()` do not.
    """

    kit: "Kit | None" = None

    def advance(self, by: float | timedelta) -> None:
        """Move on by that many seconds, or that timedelta. Nothing is handled before the next `run_until_idle`."""
        if self.kit is not None:
            self.kit.worker.join()  # what is declared by now was there in the time that passes
        super().advance(by)


class Kit:
    """Puts a `PubSub` on a broker, a clock and a worker of its own for as long as the context lasts.

    `app` is a PubSub, a Flask app with one, or what names one of them as on the command line; None stands for a new
    one. Its declarations count as they are; its broker is never touched. `settings` are those of `Settings`, by name.
    """

    def __init__(self, app: Any = None, *, url: str = "memory://", **settings: Any) -> None:
        if isinstance(app, str):
            app = load_object(app) if ":" in app else load_target(app)
        self._bound = PubSub("memory://", group="tests") if app is None else pubsub_of(app, repr(app))
        self.pubsub = self._bound if app is None or isinstance(app, PubSub) else app.extensions["pubsub"].pubsub
        self.clock = KitClock()
        self.faults = Faults(self)
        self.records: list[Record] = []
        self.worker = _KitWorker(self._bound, self.faults)
        self._stack = ExitStack()
        self._runtime = self._make_runtime(url, settings)

    def _make_runtime(self, url: str, settings: Mapping[str, Any]) -> "_KitRuntime":
        usual = self._bound.runtime
        if "url" in settings or "namespace" in settings:
            raise ConfigurationError("a test's namespace is its own: pubsub(url=..., ...) takes all other settings")
        chosen = Settings.parse({**keyword_layer(settings), "PUBSUB_URL": url})
        namespace = f"test-{uuid.uuid4().hex}"
        own = {name: getattr(chosen, name) for name in settings}
        # In a test no disk and no replica is waited for: as in memory://, they are taken as given.
        common = {"url": url, "namespace": namespace, "durability": IN_MEMORY}
        return _KitRuntime(self, replace(usual.settings, **{**common, **own}), usual.topics)

    def __enter__(self) -> "Kit":
        """Begin: from here on the PubSub is that of the test, and a worker has joined its groups."""
        with ExitStack() as stack:
            stack.callback(self._runtime.close_for_good)
            stack.enter_context(self.pubsub.stand_in(self._runtime))
            stack.callback(self.worker.close)
            self.worker.join()
            self.clock.kit = self
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        self.clock.kit = None
        self._stack.close()

    def run_until_idle(self, *, errors: Errors = "raise", limit: int = MOST) -> int:
        """Handle what is due now, and what handlers publish meanwhile, on this thread; return how many deliveries.

        The clock stands still. What a handler raises is raised here, after the message was settled as its retry policy
        says; with errors="retry" it is not, and retries come when the clock is moved on to them.
        Raises NeverIdle after `limit` deliveries.
        """
        return self.worker.run_until_idle(errors=errors, limit=limit)

    def drain(self) -> None:
        """What an eager publish does."""
        if not self.worker.is_running:
            self.worker.run_until_idle()

    def published(self, topic: str | Topic[Any]) -> Publications[Any]:
        """Return what was published to a topic in this test so far."""
        return publications(topic, {one.name: one for one in self._bound.topics}, self.records)

    # What the broker is told

    def publish(
        self,
        store: Callable[..., Sequence[str]],
        messages: Sequence[Message[bytes]],
        *,
        again: bool,
        terms: Mapping[str, Terms],
    ) -> Sequence[str]:
        """Store, unless a fault is due, and keep in mind what was published."""
        if not self.worker.is_running:
            self.worker.join()  # what is declared by now is there when it comes
        with self.faults.publishing(messages):
            ids = store(messages, IN_MEMORY, again=again, terms=terms)
            known = {record.message.id for record in self.records} if again else ()
            now = self.clock.time()
            for message, stands_for in zip(messages, ids, strict=True):
                if stands_for == message.id and message.id not in known:
                    self.records.append(Record(message, _due_at(terms.get(message.id), now)))
        return ids

    @property
    def can_crash(self) -> bool:
        """Whether the backend lets a consumer be lost."""
        return self._runtime.broker is self._runtime.controlled

    def crash(self) -> None:
        """Have the process of the worker die, with what it has in hand."""
        consumer = self.worker.forsake()
        if consumer is not None and self._runtime.controlled is not None:
            self._runtime.controlled.lose(consumer)


def _due_at(terms: Terms | None, now: float) -> datetime | None:
    if terms is None:
        return None
    due = now + terms.delay if terms.at is None else terms.at
    return datetime.fromtimestamp(due, UTC) if due > now else None


class _KitWorker(InlineWorker):
    """May lose an outcome, and its process with it."""

    def __init__(self, pubsub: PubSub, faults: Faults) -> None:
        super().__init__(pubsub)
        self._faults = faults

    def _receive(self) -> None:
        self._waiting = self._faults.take_redelivered()
        if self._waiting:
            self.join()
        else:
            super()._receive()

    def _settling(self, delivery: Delivery[bytes], outcome: Outcome) -> bool:
        return self._faults.settling(delivery, outcome)


class _KitRuntime(Runtime):
    """The test's settings, clock and broker. What passes the broker is seen by the kit."""

    def __init__(self, kit: Kit, settings: Settings, topics: Mapping[str, TopicOptions]) -> None:
        super().__init__(settings, kit.clock, _InNamespace(topics, settings.namespace))
        self._kit = kit
        self.controlled: ControlledBroker | None = None

    def drain(self, make: object) -> None:
        """Have the test's own worker do it."""
        del make
        self._kit.drain()

    def _open(self) -> Broker:
        broker = super()._open()
        if isinstance(broker, Controllable):
            self.controlled = broker = broker.for_tests()
        return _watched(broker, self._kit)

    def close(self) -> None:
        """Keep what is stored: an application that closes its PubSub may open it again."""

    def close_for_good(self) -> None:
        """Erase what is stored, and close."""
        super().close()
        if self.controlled is not None:
            self.controlled.erase()
            self.controlled.close()


def _watched(broker: Broker, kit: Kit) -> Broker:
    """Return the broker, whose `publish` and `fire` now tell the kit. It stays what it is: an Inspector, for one."""
    store, fired = broker.publish, broker.fire

    def publish(
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        del durability
        return kit.publish(store, messages, again=again, terms=terms)

    def fire(key: ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> Fired:
        came_of_it = fired(key, spec, tick, message)
        if came_of_it == "fired":
            kit.records.append(Record(message, None))
        return came_of_it

    vars(broker).update(publish=publish, fire=fire)
    return broker


class _InNamespace(Mapping[str, TopicOptions]):
    """Options of topics whose streams of other programs are the test's own, too. It grows as the original does."""

    def __init__(self, topics: Mapping[str, TopicOptions], namespace: str) -> None:
        self._topics = topics
        self._namespace = namespace

    def __getitem__(self, topic: str) -> TopicOptions:
        options = self._topics[topic]
        return options if options.stream is None else replace(options, stream=f"{self._namespace}:{options.stream}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._topics)

    def __len__(self) -> int:
        return len(self._topics)
