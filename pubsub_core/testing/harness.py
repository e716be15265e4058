"""What the conformance kit's tests are made of: brokers, consumers that live and vanish, and what they receive."""

import math
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any, ClassVar, ParamSpec, TypeVar

import pytest

from pubsub_core.broker import (
    Broker,
    BrokerOptions,
    Consumer,
    DeadLetter,
    Inspector,
    Membership,
    Start,
    TopicOptions,
)
from pubsub_core.clock import Clock, SystemClock
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey

FEATURES: frozenset[str] = frozenset({"inspect", "bounded", "foreign", "undecodable", "fork"})
"""What a backend may be unable to do, and then leaves out of its `features`:

`inspect`      its brokers are Inspectors
`bounded`      topics may have a `max_backlog`; without it, publishing to one that has raises Unsupported
`foreign`      other programs may write into a topic: `BrokerConformance.foreign` does
`undecodable`  an entry may be damaged, or not ours: `BrokerConformance.undecodable` writes one
`fork`         a forked child of the process reaches the same messages
"""

REASON = DeadLetterReason("retries exhausted", "ValueError", "no such order: ✗", 'File "shop.py", line 7\nValueError')

F = TypeVar("F", bound=Callable[..., None])
_P = ParamSpec("_P")
_R = TypeVar("_R")

LONG = 60.0  # seconds: so long a `receive` waits where something else has to end it
SLACK = 0.02  # seconds by which two clocks of one machine, or their rounding, may differ


def needs(feature: str) -> Callable[[F], F]:
    """Return a decorator for a test of what not every backend can do."""

    def mark(test: F) -> F:
        vars(test)["needs_feature"] = feature
        return test

    return mark


class Harness:
    """What a backend provides, and what tests do with it.

    `features` is what the backend can do; tests of what it cannot do are not collected. `heartbeat` is for the tests in
    which consumers vanish: smaller is faster, but a busy machine must manage to call `maintain` within 4 of them.
    """

    features: ClassVar[frozenset[str]] = FEATURES
    heartbeat: ClassVar[float] = 0.25
    patience: ClassVar[float] = 15.0

    # What a backend provides.

    def make_broker(self, options: BrokerOptions) -> Broker:
        """Return a new broker. Those made in one test reach the same messages, where namespaces are the same."""
        raise NotImplementedError

    def make_clock(self) -> Clock:
        """Return the clock that a test and its brokers go by. Called once per test."""
        return SystemClock()

    def pass_time(self, seconds: float) -> None:
        """Return when `seconds` have passed for the broker."""
        threading.Event().wait(seconds)

    def vanish(self, consumer: Consumer) -> None:
        """Do to `consumer` what the end of its process would. It is used no more, or as one that was frozen."""

    def foreign(self, broker: Broker, topic: str, fields: Mapping[str, str]) -> None:
        """Write an entry of these fields into the topic, as a program without this library would."""
        raise NotImplementedError

    def undecodable(self, broker: Broker, topic: str) -> None:
        """Write an entry into the topic that looks like ours at first, and cannot be read."""
        raise NotImplementedError

    # What the tests are made of.

    clock: Clock
    topics: dict[str, TopicOptions]

    def __init_subclass__(cls, **options: Any) -> None:
        """Take out the tests of what the backend cannot do."""
        super().__init_subclass__(**options)
        unknown = cls.features - FEATURES
        assert not unknown, f"{cls.__name__}.features has unknown names: {sorted(unknown)}; known: {sorted(FEATURES)}"
        for name in dir(cls):
            if getattr(getattr(cls, name), "needs_feature", None) in FEATURES - cls.features:
                setattr(cls, name, None)

    @pytest.fixture(autouse=True)
    def _surroundings(self) -> Iterator[None]:
        self.clock = self.make_clock()
        self.topics = {}
        self._namespace = f"conformance-{uuid.uuid4().hex[:12]}"
        self._new_id = IdMaker(self.clock)
        self._brokers: list[Broker] = []
        self._memberships: dict[str, tuple[Membership, ...]] = {}
        self._consumers: list[Consumer] = []
        self._alive: list[Consumer] = []
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="conformance")
        yield
        self._over.set()
        for consumer in self._consumers:
            consumer.wake()
        self._threads.shutdown()
        for consumer in self._consumers:
            consumer.close()
        for broker in self._brokers:
            broker.close()

    @pytest.fixture
    def broker(self, _surroundings: None) -> Broker:
        """A broker whose consumers are never thought dead."""
        return self.open()

    @pytest.fixture
    def strict_broker(self, _surroundings: None) -> Broker:
        """A broker whose consumers must call `maintain` often."""
        return self.open(heartbeat=self.heartbeat)

    def open(self, heartbeat: float = 60.0, namespace: str | None = None, superseded_for: float = 150.0) -> Broker:
        """Return a broker that is closed after the test."""
        broker = self.make_broker(
            BrokerOptions(
                clock=self.clock,
                namespace=self._namespace if namespace is None else namespace,
                heartbeat=heartbeat,
                publish_timeout=10.0,
                topics=self.topics,
                superseded_for=superseded_for,
            )
        )
        self._brokers.append(broker)
        return broker

    def key(self, topic: str | None = None, group: str = "billing") -> SubscriptionKey:
        """Return the key of a subscription, to a new topic unless one is given."""
        return SubscriptionKey(topic or f"topic-{uuid.uuid4().hex[:12]}", group)

    def message(self, topic: str, payload: bytes = b"{}", **fields: Any) -> Message[bytes]:
        """Return a message as `PubSub.publish` makes it: published now, with a new id."""
        new = self._new_id()
        return Message(id=new, topic=topic, payload=payload, published_at=published_at(new), **fields)

    def publish(self, broker: Broker, topic: str, count: int = 1) -> list[str]:
        """Publish so many messages at once, and return their ids."""
        messages = [self.message(topic, str(number).encode()) for number in range(count)]
        broker.publish(messages)
        return [message.id for message in messages]

    def consumer(self, broker: Broker, *keys: SubscriptionKey, start: Start = "earliest") -> Consumer:
        """Return a new consumer, which `keep_alive` maintains until it vanishes, and which is closed after the test."""
        name = f"consumer-{uuid.uuid4().hex[:12]}"
        memberships = tuple(Membership(key, start) for key in keys)
        consumer = broker.consumer(memberships, name)
        self._memberships[name] = memberships
        self._consumers.append(consumer)
        self._alive.append(consumer)
        return consumer

    def joined(self, broker: Broker, *keys: SubscriptionKey, start: Start = "earliest") -> Consumer:
        """Return a consumer that has joined its groups, in which nothing waits for it."""
        consumer = self.consumer(broker, *keys, start=start)
        assert not consumer.receive(self.credit(consumer, 1), wait=0), "a message came from a group that has none"
        return consumer

    def credit(self, consumer: Consumer, count: int) -> dict[SubscriptionKey, int]:
        """Return the same credit for each subscription of the consumer."""
        return {membership.key: count for membership in self._memberships[consumer.name]}

    def leave(self, consumer: Consumer) -> None:
        """Close the consumer, and maintain it no more."""
        if consumer in self._alive:
            self._alive.remove(consumer)
        consumer.close()

    def lose(self, consumer: Consumer) -> float:
        """Let the consumer give a last sign of life, and vanish. Returns the time before that sign."""
        last = self.clock.time()
        consumer.maintain()
        self._alive.remove(consumer)
        self.vanish(consumer)
        return last

    def keep_alive(self) -> None:
        """Call `maintain` of every consumer that has not vanished."""
        for consumer in self._alive:
            consumer.maintain()

    def take(
        self, consumer: Consumer, count: int, *, step: float = 0.0, done: Sequence[Delivery[bytes]] = ()
    ) -> list[Delivery[bytes]]:
        """Receive until there are `count`; fail if more come, or too few in time. `step` seconds pass in between."""
        taken: list[Delivery[bytes]] = []
        deadline = monotonic() + self.patience
        while len(taken) < count:
            assert monotonic() < deadline, f"{len(taken)} of {count} deliveries came within {self.patience} s"
            self.keep_alive()
            taken += consumer.receive(self.credit(consumer, count - len(taken)), wait=0.02, done=done)
            done = ()
            if step and len(taken) < count:
                self.pass_time(step)
        assert len(taken) == count, f"{len(taken)} deliveries came instead of {count}"
        return taken

    def take_one(self, consumer: Consumer, *, step: float = 0.0) -> Delivery[bytes]:
        """Receive one delivery."""
        (delivery,) = self.take(consumer, 1, step=step)
        return delivery

    def publish_and_take(self, broker: Broker, consumer: Consumer, key: SubscriptionKey) -> list[Delivery[bytes]]:
        """Publish one message, and see that the consumer gets it."""
        published = self.publish(broker, key.topic)
        taken = self.take(consumer, 1)
        assert ids(taken) == published
        return taken

    def take_over(self, consumer: Consumer, count: int) -> list[Delivery[bytes]]:
        """Receive what vanished consumers had, one by one; all but the last are acknowledged, so that others come."""
        taken: list[Delivery[bytes]] = []
        deadline = monotonic() + 2 * self.patience
        while len(taken) < count:
            assert monotonic() < deadline, f"{len(taken)} of {count} deliveries came within {2 * self.patience} s"
            self.keep_alive()
            received = consumer.receive(self.credit(consumer, count - len(taken)), wait=0.02, done=taken[-1:])
            taken += received
            if not received:
                self.pass_time(self.heartbeat / 2)
        assert len(taken) == count, f"{len(taken)} deliveries came instead of {count}"
        return taken

    def nothing_comes(self, *consumers: Consumer, during: float = 0.2) -> None:
        """Fail if one of the consumers gets anything while `during` seconds pass."""
        step = min(during, self.heartbeat / 2)
        for _ in range(math.ceil(during / step) + 1):
            self.keep_alive()
            for consumer in consumers:
                received = consumer.receive(self.credit(consumer, 100), wait=0.01)
                assert not received, f"{consumer.name} must get nothing, and got {received}"
            self.pass_time(step)

    def in_thread(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Run a function beside the test; `result(self.patience)` waits for it, and raises what it raised."""
        return self._threads.submit(function, *args, **kwargs)

    def waiting(self, consumer: Consumer) -> Future[Sequence[Delivery[bytes]]]:
        """Have the consumer wait for deliveries in a thread of its own, longer than any test has patience."""

        def receive() -> Sequence[Delivery[bytes]]:
            deadline = monotonic() + LONG
            received: Sequence[Delivery[bytes]] = ()
            while not received and monotonic() < deadline and not self._over.is_set():
                received = consumer.receive(self.credit(consumer, 1), wait=LONG)
            return received

        future = self.in_thread(receive)
        self.moment()
        return future

    def moment(self) -> None:
        """Wait as long as a thread needs to get into its `receive`, which nobody can see from outside."""
        threading.Event().wait(0.15)

    def dead_letters(self, broker: Broker, key: SubscriptionKey, limit: int = 100) -> Sequence[DeadLetter]:
        """Return what the broker tells of the group's dead letters."""
        assert isinstance(broker, Inspector), "a broker without `dead_letters` leaves 'inspect' out of `features`"
        return broker.dead_letters(key, limit)


def ids(deliveries: Any) -> list[str]:
    """Return the ids of the messages of deliveries."""
    return [delivery.message.id for delivery in deliveries]
