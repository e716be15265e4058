"""How a middleware may end, and what becomes of the message then."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pubsub_core import (
    ConfigurationError,
    Delivery,
    FixedDelay,
    HandleNext,
    ManualClock,
    Message,
    PublishNext,
    PubSub,
    Reject,
    Retry,
    ValidationError,
    current_message,
)
from pubsub_core.worker.process import Worker


class Shop:
    def __init__(self, kind: str = "plain") -> None:
        self.clock = ManualClock()
        self.pubsub = PubSub("memory://", group="billing", clock=self.clock)
        self.handled: list[tuple[Any, int]] = []
        self._kind = kind

    def subscribe(self, error: BaseException | None = None) -> None:
        def charge(message: Message) -> None:
            self.handled.append((message.payload, message.attempt))
            if error is not None:
                raise error

        async def charge_async(message: Message) -> None:
            charge(message)

        chosen: Callable[..., Any] = charge_async if self._kind == "async" else charge
        self.pubsub.subscribe("orders", retry=FixedDelay(0, 1))(chosen)

    def handle_all(self) -> None:
        with Worker(self.pubsub, threads=1, burst=True) as worker:
            assert worker.wait(20)
        assert worker.failure is None

    @property
    def dead(self) -> list[tuple[str, str]]:
        letters = self.pubsub.dead_letters("orders").newest(10)
        return [(one.reason.kind, one.reason.error) for one in letters]


@pytest.fixture(params=["plain", "async"])
def shop(request: pytest.FixtureRequest) -> Shop:
    return Shop(request.param)


# Around handlers


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError("no database"), "OSError"),
        (SystemExit(3), "WorkerError"),
        (KeyboardInterrupt(), "WorkerError"),
        (GeneratorExit(), "WorkerError"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_one_that_raises_has_the_message_retried_then_dead_lettered(
    shop: Shop, when: str, error: BaseException, shown: str
) -> None:
    @shop.pubsub.middleware
    def fail(delivery: Delivery[Any], call_next: HandleNext) -> None:
        if when == "after":
            call_next(delivery)
        raise error

    shop.subscribe()
    shop.pubsub.publish("orders", 7)
    shop.handle_all()
    assert shop.handled == ([] if when == "before" else [(7, 1), (7, 2)])
    assert shop.dead == [("retries exhausted", shown)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_may_ask_for_a_retry_or_reject(shop: Shop, when: str) -> None:
    @shop.pubsub.middleware
    def decide(delivery: Delivery[Any], call_next: HandleNext) -> None:
        if when == "after":
            call_next(delivery)
        raise Retry() if delivery.message.attempt < 4 else Reject("enough")

    shop.subscribe()
    shop.pubsub.publish("orders", 7)
    shop.handle_all()
    assert shop.handled == ([] if when == "before" else [(7, 1), (7, 2), (7, 3), (7, 4)])
    assert shop.dead == [("rejected", "Reject")]


def test_one_that_does_not_go_on_has_handled_the_message_itself(shop: Shop) -> None:
    @shop.pubsub.middleware
    def only_even(delivery: Delivery[Any], call_next: HandleNext) -> None:
        if delivery.message.payload % 2 == 0:
            call_next(delivery)

    shop.subscribe()
    for number in range(4):
        shop.pubsub.publish("orders", number)
    shop.handle_all()
    assert sorted(shop.handled) == [(0, 1), (2, 1)]
    assert shop.dead == []
    (group,) = shop.pubsub.inspector.groups("orders")
    assert (group.pending, group.oldest_unsettled) == (0, None)


def test_one_sees_the_errors_of_the_handler_and_may_turn_them_into_others(shop: Shop) -> None:
    seen: list[str] = []

    @shop.pubsub.middleware
    def watch(delivery: Delivery[Any], call_next: HandleNext) -> None:
        assert current_message().id == delivery.message.id
        try:
            call_next(delivery)
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    @shop.pubsub.middleware
    def translate(delivery: Delivery[Any], call_next: HandleNext) -> None:
        try:
            call_next(delivery)
        except KeyError as error:
            raise Reject("an unknown key") from error

    shop.subscribe(KeyError("x"))
    shop.pubsub.publish("orders", 7)
    shop.handle_all()
    assert seen == ["Reject"]
    assert shop.dead == [("rejected", "Reject")]


def test_one_that_swallows_an_error_has_the_message_done(shop: Shop) -> None:
    @shop.pubsub.middleware
    def swallow(delivery: Delivery[Any], call_next: HandleNext) -> None:
        with pytest.raises(SystemExit):
            call_next(delivery)

    shop.subscribe(SystemExit(1))
    shop.pubsub.publish("orders", 7)
    shop.handle_all()
    assert shop.handled == [(7, 1)]
    assert shop.dead == []


def test_one_that_changes_the_delivery_changes_not_what_is_retried(shop: Shop) -> None:
    @shop.pubsub.middleware
    def add(delivery: Delivery[Any], call_next: HandleNext) -> None:
        message = delivery.message
        call_next(replace(delivery, message=replace(message, payload=message.payload + 100, attempt=9)))

    shop.subscribe(ValueError())
    shop.pubsub.publish("orders", 7)
    shop.handle_all()
    assert shop.handled == [(107, 9), (107, 9)]
    (letter,) = shop.pubsub.dead_letters("orders").newest(1)
    assert (letter.message.payload, letter.message.attempt) == (b"7", 2)


def test_one_may_be_an_object_with_settings(shop: Shop) -> None:
    class Skip:
        def __init__(self, payload: int) -> None:
            self._payload = payload

        def __call__(self, delivery: Delivery[Any], call_next: HandleNext) -> None:
            if delivery.message.payload != self._payload:
                call_next(delivery)

    shop.pubsub.middleware(Skip(1))
    shop.subscribe()
    for number in range(3):
        shop.pubsub.publish("orders", number)
    shop.handle_all()
    assert sorted(shop.handled) == [(0, 1), (2, 1)]


# Around publishing


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_a_publish_middleware_decides_whether_it_is_sent(when: str, in_batch: bool) -> None:
    shop = Shop()

    @shop.pubsub.publish_middleware
    def decide(message: Message[Any], call_next: PublishNext) -> None:
        if when == "before":
            raise PermissionError
        if when == "after":
            call_next(message)
            raise ZeroDivisionError

    shop.subscribe()
    batch = shop.pubsub.batch()
    publish = batch.publish if in_batch else shop.pubsub.publish
    if when == "never":
        assert len(publish("orders", 7)) == 36
    else:
        with pytest.raises(PermissionError if when == "before" else ZeroDivisionError):
            publish("orders", 7)
    batch.commit()
    shop.handle_all()
    assert shop.handled == ([(7, 1)] if when == "after" else [])
    assert len(batch.ids) == (in_batch and when == "after")


def test_a_publish_middleware_sees_all_headers_and_the_error_of_the_payload() -> None:
    shop = Shop()
    seen: list[Any] = []

    @shop.pubsub.headers
    def tenant() -> dict[str, str]:
        return {"tenant": "acme"}

    @shop.pubsub.publish_middleware
    def watch(message: Message[Any], call_next: PublishNext) -> None:
        seen.append(dict(message.headers))
        try:
            call_next(message)
        except ValueError as error:
            seen.append(type(error).__name__)
            raise

    shop.pubsub.publish("orders", 1, headers={"a": "b"})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        shop.pubsub.publish("orders", object())
    assert seen == [{"tenant": "acme", "a": "b"}, {"tenant": "acme"}, "ValidationError"]


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"topic": "others"}, "nothing was published to 'orders': a publish middleware .* another topic"),
        ({"id": "00000000-0000-7000-8000-000000000000"}, "nothing was published to 'orders': .* another id"),
        ({"key": 5}, "key=5 on topic 'orders'"),
        ({"headers": {"a": "\ud800"}}, "headers on topic 'orders', by a publish middleware"),
    ],
)
def test_a_publish_middleware_makes_no_other_message_of_one(changed: Any, error: str, in_batch: bool) -> None:
    shop = Shop()

    @shop.pubsub.publish_middleware
    def change(message: Message[Any], call_next: PublishNext) -> None:
        call_next(replace(message, **changed))

    shop.subscribe()
    batch = shop.pubsub.batch()
    with pytest.raises((ConfigurationError, ValidationError), match=error):
        (batch.publish if in_batch else shop.pubsub.publish)("orders", 7)
    assert batch.commit() == ()
    shop.handle_all()
    assert shop.handled == []


# What is none


def test_one_that_nobody_would_await_is_refused() -> None:
    pubsub = PubSub("memory://")

    async def forgets(value: Any, call_next: Callable[[Any], None]) -> None:
        call_next(value)

    class Forgets:
        async def __call__(self, value: Any, call_next: Callable[[Any], None]) -> None:
            call_next(value)

    for one in (forgets, Forgets()):
        with pytest.raises(ConfigurationError, match=r"orgets.* is an `async def`, and cannot be middleware"):
            pubsub.middleware(one)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="cannot be publish_middleware"):
            pubsub.publish_middleware(one)  # type: ignore[arg-type]
