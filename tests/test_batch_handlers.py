"""Handlers that take a list of messages at a time: what they are given, and what becomes of each message."""

import pickle
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, current_app, g
from pydantic import BaseModel

import pubsub_flask
from pubsub_core import (
    BatchFailure,
    DeadLetterReason,
    Delivery,
    FixedDelay,
    HandlerTimeout,
    Message,
    NoRetry,
    PubSub,
    Reject,
    Retry,
    SubscriptionError,
    Worker,
    current_message,
)
from pubsub_core.middleware import HandleNext
from pubsub_core.worker import timeouts
from tests.servers import RealServer
from tests.test_supervisor import Fleet
from tests.waiting import until

WITHIN = 15.0


class Order(BaseModel):
    number: int


@dataclass
class Place:
    """A PubSub with one topic, and what its handlers noted."""

    pubsub: PubSub
    calls: list[list[Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, numbers: list[Any]) -> None:
        with self.changed:
            self.calls.append(numbers)
            self.changed.notify_all()

    @property
    def noted(self) -> list[Any]:
        return [one for call in self.calls for one in call]

    def publish(self, count: int) -> list[str]:
        with self.pubsub.batch() as batch:
            return [batch.publish("orders", {"number": number}) for number in range(count)]

    def handle_all(self, threads: int = 1) -> None:
        """Run a worker until nothing is left to do."""
        with Worker(self.pubsub, threads=threads, burst=True) as worker:
            assert worker.wait(WITHIN), self.calls
        assert worker.failure is None

    def letters(self) -> list[DeadLetterReason]:
        return [letter.reason for letter in self.pubsub.dead_letters("orders")]

    def unsettled(self) -> int:
        (group,) = self.pubsub.inspector.groups("orders")
        return group.pending + (group.lag.at_least or 0)


@pytest.fixture(params=["memory", "redis", "valkey"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue(request.param).url
    pubsub = PubSub(url, group="billing", namespace=f"test-{uuid.uuid4().hex}", heartbeat=0.5)
    yield Place(pubsub)
    pubsub.close()


# What it is given


def test_a_call_is_given_what_is_there_in_order_and_no_more_than_a_batch(place: Place):
    @place.pubsub.subscribe("orders", batch=10)
    def handle(orders: list[Order]) -> None:
        place.note([order.number for order in orders])

    place.publish(25)
    place.handle_all()

    assert place.noted == list(range(25))
    assert max(map(len, place.calls)) == 10
    assert place.unsettled() == 0


@pytest.mark.parametrize("annotation", [list[Message[Order]], list[Message], None])
def test_or_a_list_of_messages(place: Place, annotation: Any):
    def handle(messages):  # type: ignore[no-untyped-def]  # as it is declared below
        place.note([(type(message), message.id, message.attempt) for message in messages])

    if annotation is not None:
        handle.__annotations__ = {"messages": annotation}
    place.pubsub.subscribe("orders", batch=5)(handle)
    ids = place.publish(3)
    place.handle_all()

    assert place.noted == [(Message, one, 1) for one in ids]


@pytest.mark.parametrize("annotation", [list, list[Any], list[dict[str, int]]])
def test_or_a_list_of_plain_payloads(place: Place, annotation: Any):
    def handle(payloads):  # type: ignore[no-untyped-def]  # as it is declared below
        place.note(payloads)

    handle.__annotations__ = {"payloads": annotation}
    place.pubsub.subscribe("orders", batch=5)(handle)
    place.publish(2)
    place.handle_all()

    assert place.noted == [{"number": 0}, {"number": 1}]


def test_it_may_be_async(place: Place):
    @place.pubsub.subscribe("orders", batch=5)
    async def handle(orders: list[Order]) -> None:
        place.note([order.number for order in orders])

    place.publish(7)
    place.handle_all()

    assert place.noted == list(range(7))


def test_it_does_not_wait_for_more(place: Place):
    @place.pubsub.subscribe("orders", batch=500)
    def handle(orders: list[Order]) -> None:
        place.note(orders)

    with Worker(place.pubsub, threads=1):
        place.publish(1)
        with place.changed:
            assert place.changed.wait_for(lambda: bool(place.calls), WITHIN)


def test_concurrency_counts_calls(place: Place):
    at_once: list[int] = []
    running = 0
    lock = threading.Lock()

    @place.pubsub.subscribe("orders", batch=5, concurrency=2)
    def handle(orders: list[Order]) -> None:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        place.note([order.number for order in orders])

    place.publish(100)
    place.handle_all(threads=8)

    assert sorted(place.noted) == list(range(100))
    assert max(at_once) == 2
    assert max(map(len, place.calls)) == 5


@pytest.mark.parametrize("batch", [0, -1, 501, 2.0, "5", True])
def test_a_size_that_cannot_be_is_refused(batch: Any):
    with pytest.raises(SubscriptionError, match=r"batch=.*from 1 to 500"):
        PubSub("memory://").subscribe("orders", batch=batch)


@pytest.mark.parametrize("annotation", [Order, Message[Order], dict[str, Any], tuple[Order, Order], int])
def test_an_annotation_that_is_no_list_is_refused(annotation: Any):
    def handle(orders):  # type: ignore[no-untyped-def]  # as it is declared below
        raise AssertionError

    handle.__annotations__ = {"orders": annotation}
    with pytest.raises(SubscriptionError, match=r"batch_handlers.py:\d+\) takes .*annotate it as one, such as list"):
        PubSub("memory://").subscribe("orders", batch=5)(handle)


# What becomes of them


def test_what_it_raises_fails_all_of_them_each_by_its_attempt(place: Place, caplog: pytest.LogCaptureFixture):
    @place.pubsub.subscribe("orders", batch=10, retry=FixedDelay(0, max_retries=2))
    def handle(messages: list[Message[Order]]) -> None:
        place.note([(message.payload.number, message.attempt) for message in messages])
        raise ValueError("the database is away")

    place.publish(3)
    place.handle_all()

    assert sorted(place.noted) == [(number, attempt) for number in range(3) for attempt in (1, 2, 3)]
    assert [(letter.kind, letter.error) for letter in place.letters()] == [("retries exhausted", "ValueError")] * 3
    assert place.unsettled() == 0
    told = [one for one in caplog.records if "failed in" in one.getMessage()]
    assert len(told) == 9
    assert sum(one.exc_info is not None for one in told) == len(place.calls)  # the traceback once per call


def test_batch_failure_fails_some_and_the_others_are_done(place: Place):
    @place.pubsub.subscribe("orders", batch=10, retry=NoRetry())
    def handle(messages: list[Message[Order]]) -> None:
        place.note([(message.payload.number, message.attempt) for message in messages])
        if messages[0].attempt == 1:
            raise BatchFailure({1: ValueError("bad"), 2: Reject("never"), 3: Retry(0)})

    place.publish(5)
    place.handle_all()

    assert place.noted == [*((number, 1) for number in range(5)), (3, 2)]
    assert sorted((letter.kind, letter.detail) for letter in place.letters()) == [
        ("rejected", "never"), ("retries exhausted", "bad"),
    ]  # fmt: skip
    assert place.unsettled() == 0


@pytest.mark.parametrize(("error", "reason"), [(Reject("no"), "rejected"), (SystemExit(3), "retries exhausted")])
def test_reject_and_the_end_of_the_interpreter_are_for_all_too(place: Place, error: BaseException, reason: str):
    @place.pubsub.subscribe("orders", batch=10, retry=NoRetry())
    def handle(orders: list[Order]) -> None:
        raise error

    place.publish(2)
    place.handle_all()

    assert [letter.kind for letter in place.letters()] == [reason] * 2


def test_an_index_beyond_the_list_fails_all_of_them_and_says_so(place: Place):
    @place.pubsub.subscribe("orders", batch=10, retry=NoRetry())
    def handle(orders: list[Order]) -> None:
        raise BatchFailure({0: ValueError(), 7: ValueError()})

    place.publish(2)
    place.handle_all()

    assert [(letter.error, letter.detail) for letter in place.letters()] == [
        ("IndexError", "BatchFailure names index 7 of a list of 2: all of it fails")
    ] * 2


@pytest.mark.parametrize(
    ("errors", "kind", "what"),
    [
        ([ValueError()], TypeError, "a mapping of index to exception, not list"),
        ({-1: ValueError()}, ValueError, "-1 is no index"),
        ({"0": ValueError()}, ValueError, "'0' is no index"),
        ({True: ValueError()}, ValueError, "True is no index"),
        ({0: "bad"}, TypeError, "what stands for index 0 is no exception: str"),
    ],
)
def test_batch_failure_takes_indexes_and_exceptions(errors: Any, kind: type[Exception], what: str):
    with pytest.raises(kind, match=what):
        BatchFailure(errors)


def test_batch_failure_crosses_processes():
    failure = pickle.loads(pickle.dumps(BatchFailure({1: ValueError("bad")})))
    assert (str(failure), repr(failure.errors)) == ("1 messages of a batch failed", "{1: ValueError('bad')}")


def test_what_cannot_be_read_is_a_dead_letter_and_not_among_them(place: Place):
    @place.pubsub.subscribe("orders", batch=10, retry=NoRetry())
    def handle(orders: list[Order]) -> None:
        place.note([order.number for order in orders])
        raise BatchFailure({1: ValueError("the second of those that could be read")})

    with place.pubsub.batch() as batch:
        for payload in ({"number": 0}, {"numero": 1}, {"number": 2}, {"number": 3}):
            batch.publish("orders", payload)
    place.handle_all()

    assert place.calls == [[0, 2, 3]]
    assert sorted(letter.kind for letter in place.letters()) == ["invalid payload", "retries exhausted"]
    assert place.unsettled() == 0


def test_a_handler_is_not_called_with_nothing(place: Place):
    @place.pubsub.subscribe("orders", batch=10)
    def handle(orders: list[Order]) -> None:
        place.note(orders)

    place.pubsub.publish("orders", {"numero": 1})
    place.pubsub.publish("orders", {"number": 1}, expires=timedelta(microseconds=1))
    place.handle_all()

    assert place.calls == []
    assert sorted(letter.kind for letter in place.letters()) == ["expired", "invalid payload"]


# The call as a whole


def test_middleware_is_around_the_call_and_the_app_context_too():
    app = Flask("shop")
    pubsub = pubsub_flask.PubSub(app, url="memory://")
    seen: list[Any] = []

    @pubsub.middleware
    def around(delivery: Delivery[Any], call_next: HandleNext) -> None:
        seen.append([message.payload for message in delivery.message.payload])
        call_next(delivery)

    @pubsub.subscribe("orders", batch=10)
    def handle(orders: list[Order]) -> None:
        g.setdefault("calls", []).append(current_app.name)
        seen.append((len(orders), [*g.calls]))

    with pubsub.batch() as batch:
        for number in range(3):
            batch.publish("orders", {"number": number})
    with Worker(pubsub, threads=1, burst=True) as worker:
        assert worker.wait(WITHIN)
    pubsub.close()

    assert seen == [[Order(number=number) for number in range(3)], (3, [app.name])]


def test_no_message_is_the_current_one_and_what_it_publishes_begins_anew(place: Place):
    published: list[str] = []

    @place.pubsub.subscribe("orders", batch=10)
    def handle(orders: list[Order]) -> None:
        with pytest.raises(LookupError, match="takes a batch"):
            current_message()
        published.append(place.pubsub.publish("other", 1))

    @place.pubsub.subscribe("other")
    def other(message: Message[int]) -> None:
        place.note([(message.id, message.headers["correlation-id"])])

    place.publish(2)
    place.handle_all()

    assert sorted(place.noted) == [(one, one) for one in published]


def test_a_timeout_is_that_of_the_call_and_fails_all_of_them(place: Place):
    @place.pubsub.subscribe("orders", batch=10, timeout=0.3, retry=NoRetry())
    def handle(orders: list[Order]) -> None:
        while True:
            threading.Event().wait(0.01)

    place.publish(3)
    place.handle_all()

    assert [letter.error for letter in place.letters()] == [HandlerTimeout.__name__] * 3
    assert place.unsettled() == 0


def test_a_call_that_will_not_stop_is_given_up_with_all_that_it_was_given(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(timeouts, "GRACE", 0.3)
    may_end, ended = threading.Event(), threading.Event()

    @place.pubsub.subscribe("orders", batch=10, timeout=0.3, retry=NoRetry())
    def handle(orders: list[Order]) -> None:
        while not may_end.is_set():
            try:
                may_end.wait(0.01)
            except HandlerTimeout:
                place.note(orders)
        ended.set()

    place.publish(3)
    with Worker(place.pubsub, threads=1):
        until(lambda: len(place.letters()) == 3)
        may_end.set()
        assert ended.wait(WITHIN)

    assert place.calls == [[Order(number=number) for number in range(3)]]
    assert place.unsettled() == 0


def test_what_was_not_started_is_handed_back_when_it_stops(place: Place):
    started, may_end = threading.Event(), threading.Event()

    @place.pubsub.subscribe("orders", batch=10, concurrency=1)
    def handle(messages: list[Message[Order]]) -> None:
        place.note([(message.payload.number, message.attempt) for message in messages])
        started.set()
        assert may_end.wait(WITHIN)

    place.publish(50)
    worker = Worker(place.pubsub, threads=2)
    worker.start()
    assert started.wait(WITHIN)
    worker.stop()
    may_end.set()
    assert worker.join(WITHIN)
    first = len(place.noted)
    place.handle_all(threads=2)

    assert first == 10
    assert sorted(place.noted) == [(number, 1) for number in range(50)]


def test_a_process_that_is_killed_in_a_call_loses_nothing_and_its_messages_go_alone(redis: RealServer):
    fleet = Fleet(redis.url)
    with fleet.pubsub.batch() as batch:
        for number in range(8):
            batch.publish("orders", {"number": number, "kills": number == 5})
    with fleet.worker("batches", "-p", "1", "-t", "1", PUBSUB_HEARTBEAT="0.2") as worker:
        deaths = worker.wait_for(r"^died of 5 with (\d+)$", count=3)
        handled = worker.wait_for(r"^batch (.*)$", count=7)
        until(lambda: fleet.pending(group="batches") == 0)
        letters = fleet.pubsub.dead_letters("orders", group="batches").newest()

    assert [int(one[1]) for one in deaths] == [8, 1, 1]
    assert sorted(one[1] for one in handled) == [str(number) for number in range(8) if number != 5]  # each alone
    assert [letter.reason.kind for letter in letters] == ["crashed"]
    fleet.pubsub.close()
