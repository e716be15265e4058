"""The worker within one process, with its real threads, on the memory broker."""

import asyncio
import copy
import gc
import logging
import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from pubsub_core import (
    BrokerUnavailable,
    ConfigurationError,
    Delivery,
    FixedDelay,
    LeaseLost,
    ManualClock,
    Message,
    NoRetry,
    NotPermitted,
    PubSub,
    Reject,
    Retry,
    StreamConflict,
    SubscriptionKey,
    current_message,
)
from pubsub_core.broker import Broker, Consumer, DeadLetter, Membership
from pubsub_core.errors import WorkerError
from pubsub_core.message import DeadLetterReason
from pubsub_core.worker import executor as executor_module
from pubsub_core.worker import settler as settler_module
from pubsub_core.worker.handover import Handover
from pubsub_core.worker.outage import Outage
from pubsub_core.worker.process import Worker
from pubsub_core.worker.settler import Settler
from tests.waiting import until

WITHIN = 20.0  # seconds that anything may take before a test gives up on it

BILLING = SubscriptionKey("orders", "billing")


class Order(BaseModel):
    order_id: int


class Seen:
    """What handlers noted, in order. Safe from any thread."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait_for(self, is_enough: Callable[[list[Any]], bool]) -> list[Any]:
        """Wait until the items are enough, and return a copy of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: is_enough(self.items), WITHIN), f"only these came: {self.items[-20:]}"
            return list(self.items)

    def wait_until(self, count: int) -> list[Any]:
        return self.wait_for(lambda items: len(items) >= count)


class Watched(Broker):
    """A broker that notes what consumers do, and fails when it is told to: `fails[method]` is called first."""

    def __init__(self, inner: Broker) -> None:
        self._inner = inner
        self.changed = threading.Condition()
        self.calls: list[tuple[str, Any]] = []
        self.received = 0
        self.settled = 0
        self.fails: dict[str, Callable[[], None]] = {}

        self.publish = inner.publish  # type: ignore[method-assign]
        self.cancel = inner.cancel  # type: ignore[method-assign]
        self.time = inner.time  # type: ignore[method-assign]
        self.join_schedules = inner.join_schedules  # type: ignore[method-assign]
        self.fire = inner.fire  # type: ignore[method-assign]

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        return WatchedConsumer(self, self._inner.consumer(memberships, name))

    def close(self) -> None:
        self._inner.close()

    def dead_letters(self, key: SubscriptionKey, limit: int = 100) -> Sequence[DeadLetter]:
        return self._inner.dead_letters(key, limit)  # type: ignore[attr-defined, no-any-return]

    def note(self, name: str, what: Any, *, received: int = 0, settled: int = 0) -> None:
        with self.changed:
            self.calls.append((name, what))
            self.received += received
            self.settled += settled
            self.changed.notify_all()

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, WITHIN), f"only this was called: {self.calls[-20:]}"

    def of(self, name: str) -> list[Any]:
        with self.changed:
            return [what for called, what in self.calls if called == name]


class WatchedConsumer(Consumer):
    def __init__(self, watched: Watched, inner: Consumer) -> None:
        self._watched = watched
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    def _may_fail(self, name: str) -> None:
        fail = self._watched.fails.get(name)
        if fail is not None:
            fail()

    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Sequence[Delivery[bytes]]:
        self._may_fail("receive")
        if done:
            self.ack(done)
        self._watched.note("read", None)
        received = self._inner.receive(credit, wait)
        assert all(count <= credit[key] for key, count in Counter(one.subscription for one in received).items())
        self._watched.note("receive", dict(credit), received=len(received))
        return received

    def wake(self) -> None:
        self._inner.wake()

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        self._may_fail("ack")
        self._inner.ack(deliveries)
        self._watched.note("ack", len(deliveries), settled=len(deliveries))

    def nack(self, delivery: Delivery[bytes], delay: float) -> None:
        self._may_fail("nack")
        self._inner.nack(delivery, delay)
        self._watched.note("nack", delay, settled=1)

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        self._may_fail("release")
        self._inner.release(deliveries)
        self._watched.note("release", len(deliveries), settled=len(deliveries))

    def dead_letter(self, delivery: Delivery[bytes], reason: DeadLetterReason) -> None:
        self._may_fail("dead_letter")
        self._inner.dead_letter(delivery, reason)
        self._watched.note("dead_letter", reason.kind, settled=1)

    def maintain(self) -> float:
        self._may_fail("maintain")
        return self._inner.maintain()

    def close(self) -> None:
        self._may_fail("close")
        self._inner.close()


class Shop:
    """An application with a watched memory broker, and the workers that a test starts."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pubsub = PubSub("memory://", group="billing", clock=self.clock, heartbeat=1e6)
        self.broker = Watched(self.pubsub.runtime.broker)
        self.pubsub.runtime._broker = self.broker
        self.seen = Seen()
        self.gate = threading.Event()
        self.workers: list[Worker] = []

    def worker(self, **options: Any) -> Worker:
        worker = Worker(self.pubsub, **options)
        self.workers.append(worker)
        worker.start()
        return worker

    def publish(self, count: int, topic: str = "orders") -> list[str]:
        with self.pubsub.batch() as batch:
            for number in range(count):
                batch.publish(topic, {"order_id": number})
        return list(batch.ids)

    def publish_raw(self, payload: bytes, topic: str = "orders") -> None:
        self.broker.publish([Message("raw-1", topic, payload, datetime.now(UTC))])

    def dead_letters(self, key: SubscriptionKey = BILLING) -> Sequence[DeadLetter]:
        return self.broker.dead_letters(key)

    def wait_settled(self, count: int) -> None:
        self.broker.wait_for(lambda: self.broker.settled >= count)

    def wait_dead(self, count: int = 1) -> Sequence[DeadLetter]:
        self.broker.wait_for(lambda: len(self.broker.of("dead_letter")) >= count)
        return self.dead_letters()

    def left(self) -> int:
        """Return how many messages of the group would come to another consumer now."""
        consumer = self.broker._inner.consumer([Membership(BILLING)], "left")
        left = len(consumer.receive({BILLING: 100_000}, 0))
        consumer.close()
        return left


@pytest.fixture
def shop() -> Iterator[Shop]:
    before = set(threading.enumerate())
    shop = Shop()
    yield shop
    shop.gate.set()
    shop.broker.fails.clear()
    for worker in shop.workers:
        worker.stop()
    for worker in shop.workers:
        worker.join(WITHIN)
        for thread in worker._handlers:
            thread.join(WITHIN)
    assert {one.name for one in set(threading.enumerate()) - before if one.name.startswith("pubsub-")} == set()


def errors_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


class Times:
    """Raises an error the first `count` times it is called."""

    def __init__(self, count: int, error: Exception) -> None:
        self.left = count
        self._error = error
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if self.left == 0:
                return
            self.left -= 1
        raise self._error


# What becomes of a message


@pytest.mark.parametrize("options", [{}, {"threads": 1}])
def test_a_handler_runs(shop, options):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add((message.id, message.payload, message.attempt, message.group))

    worker = shop.worker(**options)
    ids = shop.publish(3)
    shop.seen.wait_until(3)
    shop.wait_settled(3)
    assert sorted(shop.seen.items) == [(ids[number], {"order_id": number}, 1, "billing") for number in range(3)]
    assert worker.is_alive
    assert not worker.is_stopping


def test_a_handler_gets_the_payload_as_it_is_annotated(shop):
    @shop.pubsub.subscribe("orders")
    def charge(order: Order) -> None:
        shop.seen.add(order)

    shop.worker()
    shop.publish(1)
    assert shop.seen.wait_until(1) == [Order(order_id=0)]


def test_one_thread_handles_in_the_order_of_publishing(shop):
    @shop.pubsub.subscribe("orders")
    def charge(order: Order) -> None:
        shop.seen.add(order.order_id)

    shop.publish(1_000)
    shop.worker(threads=1)
    assert shop.seen.wait_until(1_000) == list(range(1_000))


def test_each_message_is_handled_once_by_many_threads(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)

    ids = shop.publish(5_000)
    first, second = shop.worker(threads=10), shop.worker(threads=10)
    shop.wait_settled(5_000)
    assert sorted(shop.seen.items) == sorted(ids)
    assert first.is_alive
    assert second.is_alive


def test_a_settled_message_is_one_line_in_the_log(shop, caplog):
    caplog.set_level(logging.INFO, "pubsub")

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)

    (message_id,) = shop.publish(1)
    shop.worker()
    shop.wait_settled(1)
    (record,) = [one for one in caplog.records if message_id in one.getMessage()]
    line = record.getMessage()
    assert record.levelname == "INFO"
    assert all(part in line for part in ("orders", message_id, "charge", "(attempt 1)", " ms"))
    assert record.topic == "orders"
    assert record.message_id == message_id
    assert record.group == "billing"
    assert record.attempt == 1
    assert record.seconds >= 0


def test_an_error_is_logged_once_with_its_traceback_and_the_message_is_settled(shop, caplog):
    @shop.pubsub.subscribe("orders", retry=NoRetry())
    def charge(message):
        raise ValueError("the card is declined")

    (message_id,) = shop.publish(1)
    shop.worker()
    (letter,) = shop.wait_dead()
    assert letter.message.id == message_id
    (record,) = errors_in(caplog)
    assert record.exc_info is not None
    assert message_id in record.getMessage()
    assert "charge" in record.getMessage()
    assert caplog.text.count("Traceback (most recent call last)") == 1
    assert letter.reason.kind == "retries exhausted"
    assert letter.reason.error == "ValueError"
    assert letter.reason.detail == "the card is declined"
    assert "in charge" in letter.reason.traceback


def test_a_failed_message_is_tried_again_as_the_policy_says_and_then_kept_as_a_dead_letter(shop):
    @shop.pubsub.subscribe("orders", retry=FixedDelay(30, 2))
    def charge(message):
        shop.seen.add(message.attempt)
        raise ValueError("the card is declined")

    shop.publish(1)
    shop.worker()
    for attempt in (1, 2):
        shop.seen.wait_until(attempt)
        shop.broker.wait_for(lambda attempt=attempt: len(shop.broker.of("nack")) == attempt)
        shop.clock.advance(30)
    (letter,) = shop.wait_dead()
    assert shop.seen.items == [1, 2, 3]
    assert shop.broker.of("nack") == [30, 30]
    assert letter.reason.kind == "retries exhausted"
    assert letter.message.attempt == 3
    assert shop.left() == 0


def test_a_retried_message_that_succeeds_is_done(shop):
    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 5))
    def charge(message):
        shop.seen.add(message.attempt)
        if message.attempt < 3:
            raise ValueError

    shop.publish(1)
    shop.worker()
    shop.seen.wait_until(3)
    shop.wait_settled(3)
    assert shop.seen.items == [1, 2, 3]
    assert shop.dead_letters() == []
    assert shop.left() == 0


def test_retry_asks_for_another_attempt_without_the_policy(shop, caplog):
    @shop.pubsub.subscribe("orders", retry=NoRetry())
    def charge(message):
        shop.seen.add(message.attempt)
        if message.attempt == 1:
            raise Retry(delay=45)

    shop.publish(1)
    shop.worker()
    shop.broker.wait_for(lambda: shop.broker.of("nack") == [45])
    shop.clock.advance(45)
    assert shop.seen.wait_until(2) == [1, 2]
    assert errors_in(caplog) == []


def test_reject_makes_a_dead_letter_at_once(shop, caplog):
    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 5))
    def charge(message):
        shop.seen.add(message.attempt)
        raise Reject("no such customer")

    shop.publish(1)
    shop.worker()
    (letter,) = shop.wait_dead()
    assert (letter.reason.kind, letter.reason.detail) == ("rejected", "no such customer")
    assert shop.seen.items == [1]
    assert errors_in(caplog) == []


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"order_id":', "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (b'{"order_id": NaN}', "undecodable"),
        (b'{"order_id": 1' + b"0" * 5_000 + b"}", "undecodable"),
        (b"[" * 1_000 + b"]" * 1_000, "undecodable"),
        (b'{"order_id": "secret"}', "invalid payload"),
        (b'{"order_id": 1, "order_id": "secret"}', "invalid payload"),
    ],
    ids=range(7),
)
def test_a_payload_that_cannot_be_read_is_a_dead_letter_and_the_handler_is_not_called(shop, caplog, payload, kind):
    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 5))
    def charge(order: Order) -> None:
        shop.seen.add(order.order_id)

    shop.publish_raw(payload)
    shop.publish(1)
    worker = shop.worker(threads=1)
    shop.seen.wait_until(1)
    (letter,) = shop.wait_dead()
    assert (letter.message.id, letter.message.payload, letter.reason.kind) == ("raw-1", payload, kind)
    assert shop.seen.items == [0]
    assert worker.is_alive
    assert "secret" not in caplog.text
    assert "secret" not in repr(letter.reason)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_ends_a_program_is_a_failure_in_a_handler(shop, error, is_async):
    def fail(message):
        if message.attempt == 1 and message.payload == {"order_id": 0}:
            raise error
        shop.seen.add(message.payload["order_id"])

    async def fail_async(message):
        fail(message)

    shop.pubsub.subscribe("orders", retry=FixedDelay(0, 1))(fail_async if is_async else fail)
    shop.publish(2)
    worker = shop.worker(threads=1)
    assert sorted(shop.seen.wait_until(2)) == [0, 1]
    assert shop.broker.of("nack") == [0]
    assert worker.is_alive


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Unprintable(), ValueError("file \udcff.txt"), ExceptionGroup("both", [OSError()])])
def test_an_error_whose_text_cannot_be_written_is_a_failure_like_any_other(shop, error, monkeypatch):
    monkeypatch.setattr(logging.getLogger("pubsub"), "disabled", True)  # pytest-xdist cannot pass on such a log

    @shop.pubsub.subscribe("orders", retry=NoRetry())
    def charge(message):
        raise error

    shop.publish(1)
    worker = shop.worker(threads=1)
    (letter,) = shop.wait_dead()
    assert letter.reason.error == type(error).__name__
    "".join((letter.reason.detail, letter.reason.traceback)).encode()
    assert worker.is_alive


class BrokenPolicy:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer  # type: ignore[no-any-return]


@pytest.mark.parametrize("answer", [ZeroDivisionError(), SystemExit(1), -1.0, math.nan, math.inf, "soon"], ids=repr)
def test_a_retry_policy_that_does_not_work_does_not_lose_the_message(shop, caplog, answer):
    @shop.pubsub.subscribe("orders", retry=BrokenPolicy(answer))
    def charge(message):
        shop.seen.add(message.attempt)
        if message.attempt == 1:
            raise ValueError

    shop.publish(1)
    worker = shop.worker(threads=1)
    shop.broker.wait_for(lambda: len(shop.broker.of("nack")) == 1)
    shop.clock.advance(60)
    assert shop.seen.wait_until(2) == [1, 2]
    assert "the retry policy of" in caplog.text
    assert worker.is_alive


def test_a_delivery_that_is_anothers_by_now_is_left_alone(shop, caplog):
    @shop.pubsub.subscribe("orders", retry=NoRetry())
    def charge(message):
        raise ValueError

    shop.broker.fails["dead_letter"] = Times(1, LeaseLost("message 7 belongs to another consumer by now"))
    shop.publish(2)
    worker = shop.worker(threads=1)
    assert len(shop.wait_dead()) == 1
    assert "lease lost: message 7 belongs to another" in caplog.text
    assert worker.is_alive


# In a handler


def test_async_handlers_run_side_by_side_on_one_loop(shop):
    loops = set()
    together = asyncio.Barrier(4)

    @shop.pubsub.subscribe("orders")
    async def charge(order: Order) -> None:
        loops.add((id(asyncio.get_running_loop()), threading.current_thread().name))
        async with asyncio.timeout(WITHIN):
            await together.wait()
        shop.seen.add((order.order_id, current_message().payload.order_id))

    shop.worker(threads=4)
    shop.publish(8)
    assert sorted(shop.seen.wait_until(8)) == [(number, number) for number in range(8)]
    assert len(loops) == 1


def test_async_and_plain_handlers_fail_alike(shop, caplog):
    @shop.pubsub.subscribe("orders", retry=NoRetry())
    async def charge(message):
        await asyncio.sleep(0)
        raise ValueError("the card is declined")

    shop.publish(1)
    shop.worker()
    (letter,) = shop.wait_dead()
    assert (letter.reason.error, letter.reason.detail) == ("ValueError", "the card is declined")
    assert "in charge" in letter.reason.traceback
    assert len(errors_in(caplog)) == 1


def test_an_async_handler_that_waits_is_not_collected_as_garbage(shop):
    waiting = []

    @shop.pubsub.subscribe("orders", retry=NoRetry())
    async def charge(message):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiting.append((loop, _weak(future)))
        shop.seen.add("waits")
        await future
        shop.seen.add("done")

    shop.publish(1)
    shop.worker(threads=1)
    shop.seen.wait_until(1)
    gc.collect()
    loop, future = waiting.pop()
    loop.call_soon_threadsafe(lambda: future().set_result(None))
    assert shop.seen.wait_until(2) == ["waits", "done"]
    assert shop.dead_letters() == []


def _weak(future):
    import weakref

    return weakref.ref(future)


def test_there_is_no_current_message_outside_of_a_handler(shop):
    with pytest.raises(LookupError, match="outside of a handler"):
        current_message()

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(current_message() is message)

    def no_message() -> None:
        with pytest.raises(LookupError):
            current_message()

    shop.broker.fails["receive"] = no_message  # the thread that reads is one that handled
    shop.publish(3)
    shop.worker(threads=1)
    assert shop.seen.wait_until(3) == [True] * 3
    shop.wait_settled(3)


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy])
def test_a_message_crosses_processes_and_is_copied(shop, copied):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message)

    shop.pubsub.publish("orders", {"order_id": 1}, key="k", headers={"tenant": "acme"})
    shop.worker()
    (message,) = shop.seen.wait_until(1)
    other = copied(message)
    assert other == message
    assert type(other.headers) is type(message.headers)
    assert vars(other).keys() == vars(message).keys()
    with pytest.raises(FrozenInstanceError):
        other.key = "other"


def test_what_a_handler_publishes_inherits_the_correlation_id(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.pubsub.publish("invoices", {})

    @shop.pubsub.subscribe("invoices")
    async def send(message):
        shop.pubsub.publish("mails", {})

    @shop.pubsub.subscribe("mails")
    def note(message):
        shop.seen.add(message.headers["correlation-id"])

    shop.worker()
    (first,) = shop.publish(1)
    shop.pubsub.publish("orders", {}, headers={"correlation-id": "given"})
    assert sorted(shop.seen.wait_until(2)) == sorted([first, "given"])


# Middleware


def test_middleware_runs_around_the_handler_the_first_outermost(shop):
    for name in ("outer", "inner"):

        @shop.pubsub.middleware
        def note(delivery, call_next, name=name):
            assert delivery.message.payload == Order(order_id=0)
            assert delivery.subscription == BILLING
            shop.seen.add(f"{name} in")
            call_next(delivery)
            shop.seen.add(f"{name} out")

    @shop.pubsub.subscribe("orders")
    def charge(order: Order) -> None:
        shop.seen.add("handler")

    shop.worker()
    shop.publish(1)
    assert shop.seen.wait_until(5) == ["outer in", "inner in", "handler", "inner out", "outer out"]


def test_middleware_may_change_the_message_for_the_handler(shop):
    @shop.pubsub.middleware
    def double(delivery, call_next):
        message = delivery.message
        call_next(replace(delivery, message=replace(message, payload=Order(order_id=message.payload.order_id + 100))))

    @shop.pubsub.subscribe("orders")
    def charge(order: Order) -> None:
        shop.seen.add(order.order_id)

    shop.worker()
    shop.publish(1)
    assert shop.seen.wait_until(1) == [100]


@pytest.mark.parametrize("when", ["before", "after"])
def test_middleware_that_raises_is_a_failed_handler(shop, caplog, when):
    @shop.pubsub.middleware
    def fail(delivery, call_next):
        if when == "before":
            raise OSError("no database")
        call_next(delivery)
        raise OSError("no database")

    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 1))
    def charge(message):
        shop.seen.add(message.attempt)

    shop.publish(1)
    worker = shop.worker()
    (letter,) = shop.wait_dead()
    assert (letter.reason.kind, letter.reason.error) == ("retries exhausted", "OSError")
    assert shop.seen.items == ([] if when == "before" else [1, 2])
    assert len(errors_in(caplog)) == 2
    assert worker.is_alive


def test_middleware_may_handle_an_error_itself(shop, caplog):
    @shop.pubsub.middleware
    def swallow(delivery, call_next):
        with pytest.raises(ValueError):
            call_next(delivery)

    @shop.pubsub.subscribe("orders", retry=NoRetry())
    def charge(message):
        raise ValueError

    shop.publish(1)
    shop.worker()
    shop.wait_settled(1)
    assert shop.dead_letters() == []
    assert errors_in(caplog) == []


# What is not even started


def test_what_ended_too_many_processes_is_a_dead_letter_and_not_started_again(shop, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.payload["order_id"])

    (poison,) = shop.publish(1)
    for number in range(shop.pubsub.settings.max_crashes):
        victim = shop.broker._inner.consumer([Membership(BILLING)], f"victim-{number}")
        victim.maintain()
        (delivery,) = victim.receive({BILLING: 1}, 0)
        assert delivery.crashes == number
        shop.clock.advance(5e6)  # it gave no sign of life, as if its process had died
    shop.worker(threads=2)
    (letter,) = shop.wait_dead()
    assert letter.message.id == poison
    assert (letter.reason.kind, letter.reason.detail) == ("crashed", "3 processes died while they had it in hand")
    assert shop.seen.items == []
    (record,) = errors_in(caplog)
    assert poison in record.getMessage()
    shop.publish(1)
    assert shop.seen.wait_until(1) == [0]


MAILS = SubscriptionKey("mails", "sender")


class Generous(Watched):
    """A broker with a bug: its consumers get what nobody asked for."""

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        return GenerousConsumer(self, self._inner.consumer([*memberships, Membership(MAILS)], name))


class GenerousConsumer(WatchedConsumer):
    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Sequence[Delivery[bytes]]:
        return super().receive({**credit, MAILS: 2}, wait, done)


def test_a_delivery_without_a_handler_is_a_dead_letter_and_harms_nobody(shop):
    shop.broker = shop.pubsub.runtime._broker = Generous(shop.broker._inner)

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.payload["order_id"])

    ids = shop.publish(3, "mails")
    worker = shop.worker(threads=2)
    shop.publish(3)
    shop.wait_dead(3)
    assert sorted(shop.seen.wait_until(3)) == [0, 1, 2]
    letters = shop.dead_letters(MAILS)
    assert sorted(one.message.id for one in letters) == sorted(ids)
    assert {one.reason.kind for one in letters} == {"unknown handler"}
    assert worker.is_alive


def test_a_delivery_without_a_handler_that_nobody_started_is_handed_back(shop):
    shop.broker = shop.pubsub.runtime._broker = Generous(shop.broker._inner)

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    worker = shop.worker(threads=1)
    shop.publish(1)
    shop.seen.wait_until(1)
    shop.publish(2, "mails")
    taken = worker._handover._lead({BILLING: 0})  # another thread reads, and takes the first
    worker._handover.finished(taken, 0.0)
    worker.stop()
    shop.broker.wait_for(lambda: sum(shop.broker.of("release")) == 1)


def test_a_handler_that_was_brief_so_far_and_takes_long_keeps_nothing_else_waiting(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        if message.payload["order_id"] == -1:
            shop.seen.add("at it")
            shop.gate.wait(WITHIN)
        else:
            shop.seen.add(message.id)

    shop.worker(threads=3)
    shop.publish(500)
    shop.seen.wait_until(500)

    with shop.pubsub.batch() as batch:
        for number in (-1, *range(20)):
            batch.publish("orders", {"order_id": number})
    shop.seen.wait_until(521)
    shop.publish_raw(b'{"order_id": -1}')  # two threads are at it, and a third is left
    shop.seen.wait_until(522)
    shop.publish(20)
    shop.seen.wait_until(542)


# Who gets how much


def test_concurrency_bounds_one_subscription_and_no_other(shop):
    running = Counter()
    most = Counter()
    lock = threading.Lock()

    def work(message):
        with lock:
            running[message.topic] += 1
            most[message.topic] = max(most[message.topic], running[message.topic])
        if message.topic == "orders":
            shop.seen.add("in")
            assert steps.acquire(timeout=WITHIN)
        with lock:
            running[message.topic] -= 1
        shop.seen.add(message.topic)

    steps = threading.Semaphore(0)
    shop.pubsub.subscribe("orders", concurrency=1)(work)
    shop.pubsub.subscribe("mails")(work)
    shop.publish(20)
    shop.worker(threads=4)
    shop.seen.wait_for(lambda items: "in" in items)
    shop.publish(200, "mails")
    shop.seen.wait_for(lambda items: items.count("mails") == 200)
    assert "orders" not in shop.seen.items
    for _ in range(20):
        steps.release()
    shop.seen.wait_for(lambda items: items.count("orders") == 20)
    assert most["orders"] == 1


def test_a_slow_topic_with_a_backlog_does_not_hold_up_a_fast_one(shop):
    steps = threading.Semaphore(0)

    @shop.pubsub.subscribe("slow")
    def crawl(message):
        assert steps.acquire(timeout=WITHIN)
        shop.seen.add("slow")

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add("fast")

    shop.publish(10_000, "slow")
    shop.worker(threads=4)
    shop.broker.wait_for(lambda: shop.broker.received >= 2)
    shop.publish(40)
    for number in range(1, 201):  # one slow handler after the other may end
        steps.release()
        shop.seen.wait_for(lambda items, number=number: items.count("slow") >= number)
    assert shop.seen.items.count("fast") == 40
    steps.release(20_000)


def test_no_more_is_in_hand_than_the_threads_will_start(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    shop.publish(10_000)
    shop.worker(threads=8)
    shop.seen.wait_until(8)  # every thread is at work, so nobody reads
    assert shop.broker.received == 8


def test_handlers_that_become_slow_do_not_hoard_what_was_read_at_their_former_pace(shop):
    started = Seen()

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        if message.payload["order_id"] >= 2_000:
            started.add(message.id)
            shop.gate.wait(WITHIN)

    shop.publish(10_000)
    shop.worker(threads=8)
    started.wait_until(8)
    in_hand = shop.broker.received - len(shop.seen.items)
    assert in_hand <= 600
    shop.broker.wait_for(lambda: sum(shop.broker.of("release")) == in_hand)
    assert shop.left() == 8_000 - 8


def test_a_slow_topic_that_was_fast_does_not_hold_up_others(shop):
    steps = threading.Semaphore(0)

    @shop.pubsub.subscribe("slow")
    def crawl(message):
        if message.payload["order_id"] >= 2_000:
            shop.seen.add("slow")
            assert steps.acquire(timeout=WITHIN)

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add("fast")

    shop.publish(10_000, "slow")
    worker = shop.worker(threads=4)
    shop.seen.wait_until(4)
    shop.publish(1)
    shop.broker.wait_for(lambda: worker._handover._waiting() == 0)
    steps.release()
    shop.seen.wait_for(lambda items: "fast" in items)
    assert shop.seen.items.count("slow") <= 5
    steps.release(20_000)


def test_many_subscriptions_do_not_fill_the_hands(shop):
    for number in range(30):

        @shop.pubsub.subscribe(f"topic-{number}")
        def crawl(message):
            shop.seen.add(message.id)
            shop.gate.wait(WITHIN)

        shop.publish(50, f"topic-{number}")
    shop.worker(threads=8)
    shop.seen.wait_until(8)
    assert shop.broker.received <= 8 + 30


# Stopping


def test_stop_hands_back_what_was_not_started_and_another_gets_it_at_once(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add((message.payload["order_id"], message.attempt))
        shop.gate.wait(WITHIN)

    shop.publish(100)
    first = shop.worker(threads=2)
    shop.seen.wait_until(2)
    consumer = shop.broker._inner.consumer([Membership(BILLING)], "other")
    first.stop()
    rest = consumer.receive({BILLING: 1_000}, 0)
    assert sorted(one.message.attempt for one in rest) == [1] * 98
    assert first.is_stopping
    shop.gate.set()
    assert first.join(WITHIN)
    consumer.ack(rest)
    assert shop.left() == 0
    assert len(shop.seen.items) == 2


def test_stop_hands_back_a_backlog_in_one_call(shop, monkeypatch):
    monkeypatch.setattr(Handover, "take_surplus", lambda _: [])  # or some of it may be handed back before

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        if message.payload["order_id"] >= 2_000:
            shop.gate.wait(WITHIN)

    shop.publish(10_000)
    worker = shop.worker(threads=8)
    shop.seen.wait_until(2_008)
    worker.stop()
    released = [count for count in shop.broker.of("release") if count]
    assert len(released) <= 1
    shop.gate.set()
    assert worker.join(WITHIN)
    assert shop.left() == 10_000 - len(shop.seen.items)


def test_what_a_read_brings_after_stop_is_handed_back_though_a_handler_still_runs(shop):
    is_reading = threading.Event()
    may_return = threading.Event()

    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    worker = shop.worker(threads=2)
    shop.publish(1)
    shop.seen.wait_until(1)

    def hold() -> None:
        is_reading.set()
        may_return.wait(WITHIN)

    shop.broker.fails["receive"] = hold
    shop.publish(1, "nothing")
    worker._consumer.wake()
    assert is_reading.wait(WITHIN)
    shop.publish(1)
    worker.stop()
    may_return.set()
    shop.broker.wait_for(lambda: sum(shop.broker.of("release")) == 1)
    assert len(shop.seen.items) == 1


def test_a_handler_that_outlasts_the_deadline_is_given_to_others_and_its_attempt_counts(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.attempt)
        if message.attempt == 1:
            shop.gate.wait(WITHIN)

    shop.publish(1)
    first = shop.worker(threads=1)
    shop.seen.wait_until(1)
    first.stop()
    assert first.join(0.05) is False
    shop.worker(threads=1)
    assert shop.seen.wait_until(2) == [1, 2]


def test_leaving_the_block_finishes_and_settles_what_runs(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    with Worker(shop.pubsub, threads=4):
        shop.publish(4)
        shop.seen.wait_until(4)
        shop.gate.set()
    assert shop.left() == 0
    assert shop.broker.settled == 4


def test_a_burst_ends_by_itself_when_there_is_nothing_left(shop):
    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 3))
    def charge(message):
        shop.seen.add(message.attempt)
        if message.attempt == 1:
            raise ValueError

    shop.publish(100)
    worker = shop.worker(threads=4, burst=True)
    assert worker.wait(WITHIN)
    assert worker.join(WITHIN)
    assert sorted(shop.seen.items) == [1] * 100 + [2] * 100
    assert shop.left() == 0


def test_a_burst_ends_though_there_was_nothing_to_do(shop):
    shop.pubsub.subscribe("orders")(lambda message: None)
    worker = shop.worker(burst=True)
    assert worker.wait(WITHIN)
    assert worker.join(WITHIN)


def test_no_thread_is_left_after_join(shop):
    @shop.pubsub.subscribe("orders")
    async def charge(message):
        shop.seen.add(message.id)

    before = set(threading.enumerate())
    worker = shop.worker(threads=4)
    shop.publish(10)
    shop.wait_settled(10)
    assert {one.name for one in set(threading.enumerate()) - before} >= {"pubsub-handler-1", "pubsub-event-loop"}
    worker.stop()
    assert worker.join(WITHIN)
    assert set(threading.enumerate()) == before
    assert not worker.is_alive


def test_stop_and_join_may_be_called_twice_and_before_start(shop):
    @shop.pubsub.subscribe("orders")
    async def charge(message):
        raise AssertionError

    worker = Worker(shop.pubsub)
    for _ in range(2):
        worker.stop()
        assert worker.join(1)


def test_workers_may_follow_one_another_in_a_process(shop):
    @shop.pubsub.subscribe("orders")
    async def charge(message):
        shop.seen.add(message.id)

    names = set()
    for number in range(3):
        with Worker(shop.pubsub, threads=2) as worker:
            names.add(worker.name)
            shop.publish(10)
            shop.wait_settled(10 * (number + 1))
    assert len(set(shop.seen.items)) == len(shop.seen.items) == 30
    assert len(names) == 3


def test_a_worker_without_subscriptions_is_refused(shop):
    with pytest.raises(ConfigurationError, match=r"no handler is subscribed. Use @pubsub.subscribe"):
        Worker(shop.pubsub)


@pytest.mark.parametrize("threads", [0, -1, 2.5, "four", True, [4]])
def test_a_number_of_threads_that_cannot_be_is_refused(shop, threads):
    shop.pubsub.subscribe("orders")(shop.seen.add)
    with pytest.raises(ConfigurationError, match=r"THREADS=.* cannot be: it must be a whole number, 1 or more"):
        Worker(shop.pubsub, threads=threads)


def test_a_number_of_threads_may_be_text_as_it_is_in_the_environment(shop):
    shop.pubsub.subscribe("orders")(shop.seen.add)
    assert Worker(shop.pubsub, threads="2").progress.free == 2  # type: ignore[arg-type]


def test_a_worker_of_something_else_than_a_pubsub_is_refused_without_showing_it():
    with pytest.raises(
        ConfigurationError, match=r"takes the PubSub whose handlers it runs, and this is a str: "
    ) as told:
        Worker("redis://:secret@localhost")  # type: ignore[arg-type]
    assert "secret" not in str(told.value)


def test_a_worker_is_started_once(shop):
    shop.pubsub.subscribe("orders")(shop.seen.add)
    worker = shop.worker(threads=1)
    with pytest.raises(WorkerError, match="make a new one"):
        worker.start()
    worker.stop()
    assert worker.join(WITHIN)
    with pytest.raises(WorkerError, match="make a new one"), worker:
        pass
    unstarted = Worker(shop.pubsub)
    unstarted.stop()
    with pytest.raises(WorkerError, match="make a new one"):
        unstarted.start()


# A broker that is away


def outages_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line.split(",")[0].split(" after")[0] for line in lines if line.startswith("the broker is")]


@pytest.mark.parametrize(
    "methods",
    [["receive"], ["ack"], ["nack"], ["dead_letter"], ["receive", "ack", "nack", "dead_letter", "maintain"]],
    ids="+".join,
)
def test_a_broker_that_is_away_for_a_while_costs_no_message_and_makes_no_duplicate(shop, caplog, methods):
    is_away = threading.Event()
    failed = Seen()

    def fail_while_away() -> None:
        if is_away.is_set():
            failed.add(1)
            raise BrokerUnavailable("reading from redis://***@localhost: refused")

    @shop.pubsub.subscribe("orders", retry=FixedDelay(0, 1))
    def charge(message):
        shop.seen.add((message.payload["order_id"], message.attempt))
        if message.payload["order_id"] % 2:
            raise ValueError

    shop.broker.fails = dict.fromkeys(methods, fail_while_away)
    shop.worker(threads=4)
    shop.publish(20)
    shop.wait_settled(30)
    assert outages_in(caplog) == []

    is_away.set()
    if "receive" in methods:
        shop.broker._inner.publish([])
        shop.workers[0]._consumer.wake()
    shop.publish(20)
    failed.wait_until(3)
    if methods in (["nack"], ["dead_letter"]):
        shop.seen.wait_until(50 if methods == ["nack"] else 60)  # as reading works
    # Or one that failed before the broker is back says so afterwards.
    until(lambda: shop.workers[0]._handover.is_empty)
    is_away.clear()
    shop.wait_settled(60)
    shop.wait_dead(20)
    expected = [(number, 1) for number in range(20)] + [(number, 2) for number in range(1, 20, 2)]
    assert sorted(shop.seen.items) == sorted(expected * 2)
    assert shop.left() == 0
    shop.wait_settled(60)
    wait_for_log(caplog, lambda: outages_in(caplog)[-1:] == ["the broker is back"])
    # Twice if a thread learns of its failure when the others are over it already; see the next tests for once.
    assert outages_in(caplog) in (["the broker is away", "the broker is back"] * times for times in (1, 2))


def wait_for_log(caplog: pytest.LogCaptureFixture, is_so: Callable[[], bool]) -> None:
    """Wait until what is logged is as wanted. Whoever logs next wakes us."""
    changed = threading.Condition()

    class Bell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with changed:
                changed.notify_all()

    bell = Bell()
    logging.getLogger().addHandler(bell)  # the last in line, so that caplog has the record already
    try:
        with changed:
            assert changed.wait_for(is_so, WITHIN), caplog.text
    finally:
        logging.getLogger().removeHandler(bell)


def test_each_outage_is_told_once(shop, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)

    shop.worker(threads=2)
    for number in range(1, 3):
        shop.broker.fails["receive"] = Times(2, BrokerUnavailable("refused"))
        shop.publish(1)
        shop.wait_settled(number)
        wait_for_log(caplog, lambda number=number: len(outages_in(caplog)) == 2 * number)
    assert outages_in(caplog) == ["the broker is away", "the broker is back"] * 2


def test_a_settlement_that_is_refused_while_reading_works_is_told_once(shop, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        if message.payload["order_id"] == 0:
            raise Retry(delay=0)

    shop.broker.fails["nack"] = is_full = Times(4, BrokerUnavailable("out of memory"))
    shop.publish(1)
    shop.worker(threads=2)
    while is_full.left:
        shop.publish(20, "orders")
        shop.seen.wait_until(len(shop.seen.items) + 1)
    shop.broker.wait_for(lambda: len(shop.broker.of("nack")) >= 1)
    wait_for_log(caplog, lambda: "the broker is back" in outages_in(caplog))
    assert outages_in(caplog) == ["the broker is away", "the broker is back"]


def test_an_outage_while_stopping_loses_nothing_when_it_ends_in_time(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    shop.publish(2)
    worker = shop.worker(threads=2)
    shop.seen.wait_until(2)
    error = BrokerUnavailable("refused")
    shop.broker.fails = {"ack": Times(3, error), "release": Times(3, error), "receive": Times(3, error)}
    worker.stop()
    shop.gate.set()
    assert worker.join(WITHIN)
    assert shop.left() == 0


def test_an_outage_that_lasts_does_not_keep_a_worker_from_ending(shop, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    shop.publish(1)
    worker = shop.worker(threads=1)
    shop.seen.wait_until(1)
    shop.broker.fails = dict.fromkeys(["ack", "receive"], Times(-1, BrokerUnavailable("refused")))
    shop.gate.set()
    worker.stop()
    assert worker.join(3)
    assert "1 deliveries could not be settled in time: they will be delivered again" in caplog.text


def test_who_stops_a_worker_does_not_wait_for_a_broker_that_hangs(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)
        shop.gate.wait(WITHIN)

    answers = threading.Event()
    shop.broker.fails["release"] = answers.wait
    worker = shop.worker(threads=1)
    shop.publish(3)
    shop.seen.wait_until(1)
    taken = worker._handover._lead({BILLING: 2})  # another thread reads, and takes the first
    worker._handover.finished(taken, 0.0)
    worker.stop()
    assert worker.is_stopping
    answers.set()
    shop.broker.wait_for(lambda: sum(shop.broker.of("release")) == 1)


def test_a_broker_that_hangs_as_it_is_left_does_not_keep_a_worker_from_ending(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        raise AssertionError

    answers = threading.Event()
    shop.broker.fails["close"] = answers.wait
    worker = shop.worker(threads=1)
    worker.stop()
    assert worker.join(0)
    assert worker._maintenance.is_alive()
    answers.set()
    worker._maintenance.join(WITHIN)
    assert not worker._maintenance.is_alive()


def test_what_is_left_to_settle_is_not_begun_after_the_deadline(shop, caplog, monkeypatch):
    """Where the broker hangs, each of them would take as long as it takes to find that out."""
    now = 0.0
    begun: list[int] = []
    monkeypatch.setattr(settler_module, "monotonic", lambda: now)

    def hang(number):
        nonlocal now
        now += 10.0
        begun.append(number)

    consumer = shop.broker.consumer([Membership(BILLING)], "one")
    settler = Settler(consumer, Outage(), lambda _: None)
    for number in range(5):
        settler.do(partial(hang, number))
    settler.stop(25.0)
    settler.start()
    settler.join()
    assert begun == [0, 1, 2]
    assert "2 deliveries could not be settled in time" in caplog.text


@pytest.mark.parametrize("error", [NotPermitted("wrong password"), StreamConflict("'pubsub:orders' is a string")])
def test_what_waiting_does_not_mend_ends_a_worker_that_never_read(shop, error):
    shop.pubsub.subscribe("orders")(lambda message: None)
    shop.broker.fails["receive"] = Times(-1, error)
    worker = shop.worker()
    assert worker.wait(WITHIN)
    assert worker.failure is error
    assert worker.join(WITHIN)


def test_what_waiting_does_not_mend_is_waited_for_by_a_worker_that_has_read(shop):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.seen.add(message.id)

    worker = shop.worker(threads=1)
    shop.publish(1)
    shop.wait_settled(1)
    shop.broker.fails["receive"] = Times(3, NotPermitted("wrong password"))
    shop.publish(1)
    shop.wait_settled(2)
    assert worker.failure is None
    assert not worker.is_stopping


# A thread that dies


@pytest.mark.parametrize("method", ["receive", "ack", "maintain", "nack"])
def test_a_thread_that_dies_is_told_once_and_shown(shop, method, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        shop.broker.wait_for(lambda: method != "ack" or len(shop.broker.of("read")) >= 2)  # so the settler has to ack
        if method == "nack":
            raise Retry(delay=0)

    shop.broker.fails[method] = Times(1, RuntimeError("a bug of the library"))
    worker = shop.worker(threads=2)
    shop.publish(1)
    wait_for_log(caplog, lambda: any(one.levelno == logging.CRITICAL for one in caplog.records))
    until(lambda: not worker.is_alive)  # it says so before it ends
    assert not worker.is_stopping
    assert isinstance(worker.failure, WorkerError)
    assert isinstance(worker.failure.__cause__, RuntimeError)
    (record,) = errors_in(caplog)
    assert record.exc_info is not None
    assert "this worker has to be replaced" in record.getMessage()


def test_schedules_that_cannot_be_fired_any_more_are_a_dead_thread(shop, monkeypatch):
    shop.pubsub.every(1, name="tick")(shop.seen.add)
    worker = Worker(shop.pubsub)
    shop.workers.append(worker)
    monkeypatch.setattr(worker._ticker._scheduler, "run_due", Times(1, RuntimeError("a bug of the library")))
    worker.start()
    until(lambda: not worker.is_alive)
    assert str(worker.failure) == "the thread pubsub-schedules died: RuntimeError"


def test_a_tick_whose_message_takes_long_to_make_holds_up_no_sign_of_life(shop):
    entered = threading.Event()

    @shop.pubsub.publish_middleware
    def ask_somebody(message, call_next):
        entered.set()
        shop.gate.wait()
        call_next(message)

    shop.pubsub.every(1, name="tick")(lambda: shop.seen.add("tick"))
    signs = []
    shop.broker.fails["maintain"] = lambda: signs.append("a sign of life")
    shop.worker()
    shop.broker.wait_for(lambda: bool(shop.broker.of("receive")))

    def is_entered():
        shop.clock.advance(1)  # a new schedule starts when it is named
        return entered.is_set()

    until(is_entered)
    before = len(signs)

    def are_given():
        shop.clock.advance(0)
        return len(signs) > before + 1

    until(are_given)
    shop.gate.set()
    shop.seen.wait_until(1)


def test_what_a_dead_settler_left_is_acknowledged_when_the_worker_ends(shop, caplog):
    @shop.pubsub.subscribe("orders")
    def charge(message):
        before = len(shop.broker.of("read"))
        shop.broker.wait_for(lambda: len(shop.broker.of("read")) > before)  # so the settler has to ack
        shop.seen.add(message.id)

    shop.broker.fails["ack"] = Times(1, RuntimeError("a bug of the library"))
    worker = shop.worker(threads=2)
    shop.publish(1)
    worker._settler.thread.join(WITHIN)
    assert not worker.is_alive
    worker.stop()
    assert worker.join(WITHIN)
    assert sum(shop.broker.of("ack")) == 1
    assert shop.left() == 0


@pytest.mark.parametrize("outcome", ["handled", "expired"])
def test_what_it_takes_to_log_and_settle_counts_as_time_of_the_handler(
    monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """How much is read ahead of the handlers goes by it."""
    now = 0.0

    def takes_long(*_: object) -> None:
        nonlocal now
        now += 5.0

    pubsub = PubSub("memory://", clock=ManualClock())
    pubsub.subscribe("orders", group="billing")(lambda message: None)
    worker = Worker(pubsub, threads=1)
    monkeypatch.setattr(executor_module, "monotonic", lambda: now)
    monkeypatch.setattr(worker._executor, "_settle", takes_long)
    monkeypatch.setattr(worker._executor, "_ack", takes_long)
    key = SubscriptionKey("orders", "billing")
    expires_at = datetime(2020, 1, 1, tzinfo=UTC) if outcome == "expired" else None
    message = Message("1", "orders", b"{}", datetime(2020, 1, 1, tzinfo=UTC), position="1", expires_at=expires_at)
    assert worker._executor.execute([Delivery(message, key)]) == 5.0
