"""Handlers that are async, or that look plain and are not: none is acknowledged that did not run."""

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pubsub_core import ConfigurationError, DeadLetter, Message, NoRetry, PubSub, SubscriptionError
from pubsub_core.testing.kit import Kit
from pubsub_core.worker.event_loop import EventLoop
from tests.waiting import handle_all


@pytest.fixture
def pubsub() -> Iterator[PubSub]:
    pubsub = PubSub("memory://", group="default")
    yield pubsub
    pubsub.close()


def dead_of(pubsub: PubSub) -> Sequence[DeadLetter]:
    return pubsub.dead_letters("orders").newest(10)


class Seen:
    """Where handlers ran: on the event loop, or on a thread of their own."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def note(self) -> None:
        name = threading.current_thread().name
        self.places.append("loop" if name == "pubsub-event-loop" else "thread")

    async def work(self, _) -> None:
        await asyncio.sleep(0)
        self.note()


# Decorators


def silent(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does not say what it decorates."""

    def wrapper(message):
        return function(message)

    return wrapper


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return asyncio.run(function(*arguments))

    return wrapper


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    return wrapper


class Asynchronous:
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def __call__(self, message: Message[Any]) -> None:
        await self.seen.work(message)


@pytest.mark.parametrize(
    ("decorated", "place"),
    [
        (lambda seen: passing_on(seen.work), "loop"),
        (lambda seen: functools.partial(passing_on(seen.work)), "loop"),
        (lambda seen: passing_on(awaiting(lambda _: seen.note())), "loop"),
        (lambda seen: running(seen.work), "thread"),
        (lambda seen: awaiting(lambda _: seen.note()), "loop"),
        (lambda seen: passing_on(lambda _: seen.note()), "thread"),
        (Asynchronous, "loop"),
        (lambda seen: functools.partial(Asynchronous(seen)), "loop"),
    ],
)
@pytest.mark.parametrize("has_middleware", [False, True])
def test_what_a_decorator_makes_of_a_handler_runs_where_it_must(pubsub, decorated, place, has_middleware):
    seen = Seen()
    if has_middleware:
        pubsub.middleware(lambda delivery, call_next: call_next(delivery))
    pubsub.subscribe("orders", retry=NoRetry())(decorated(seen))
    pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert [one.reason for one in dead_of(pubsub)] == []
    assert seen.places == [place]


def generating(_) -> Iterator[None]:
    yield


def later(_) -> Any:
    class Later:
        def __await__(self) -> Any:
            raise NotImplementedError

    return Later()


@pytest.mark.parametrize(
    ("handler", "what"),
    [
        (silent(Seen().work), "a coroutine"),
        (lambda message: Seen().work(message), "a coroutine"),
        (passing_on(generating), "a generator"),
        (awaiting(generating), "a generator"),
        (awaiting(silent(Seen().work)), "a coroutine"),
        (lambda messages: (one for one in [messages]), "a generator"),
        (later, "an awaitable Later"),
    ],
)
@pytest.mark.parametrize("has_middleware", [False, True])
@pytest.mark.parametrize("batch", [None, 10])
def test_a_handler_that_did_not_run_has_failed_and_is_told_why(pubsub, caplog, handler, what, has_middleware, batch):
    if has_middleware:
        pubsub.middleware(lambda delivery, call_next: call_next(delivery))
    pubsub.subscribe("orders", retry=NoRetry(), batch=batch)(handler)
    pubsub.publish("orders", 1)
    with caplog.at_level(logging.INFO, "pubsub"):
        handle_all(pubsub)
    (letter,) = dead_of(pubsub)
    name = pubsub.subscriptions()[0].handler.name
    assert letter.reason.error == "SubscriptionError"
    assert letter.reason.detail.startswith(f"handler {name} (")
    assert f" returned {what}, which nobody runs, so it has done nothing. " in letter.reason.detail
    assert letter.reason.detail.endswith("Remove the yield" if what == "a generator" else "the function itself")
    assert "handled by" not in caplog.text


@pytest.mark.parametrize("batch", [None, 10])
def test_a_payload_handler_that_did_not_run_has_failed_too(pubsub, batch):
    def of_payload(order: Any) -> Any:
        return Seen().work(order)

    def of_batch(orders: list[int]) -> Any:
        return Seen().work(orders)

    pubsub.subscribe("orders", retry=NoRetry(), batch=batch)(of_batch if batch else of_payload)
    pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert [one.reason.error for one in dead_of(pubsub)] == ["SubscriptionError"]


def test_what_a_handler_returns_else_is_nobodys_business(pubsub):
    pubsub.subscribe("orders", retry=NoRetry())(lambda message: [message])
    pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert dead_of(pubsub) == []


def test_a_schedule_whose_function_does_not_run_fails_in_a_test():
    pubsub = PubSub("memory://", group="default")

    async def work() -> None: ...

    pubsub.every(60, name="ticks")(lambda: work())  # noqa: PLW0108  # it hides that it is async
    with Kit(pubsub, url="memory://") as kit:
        kit.clock.advance(60)
        with pytest.raises(SubscriptionError, match="returned a coroutine, which nobody runs"):
            kit.run_until_idle()


def test_an_eager_publish_raises_for_a_handler_that_does_not_run():
    pubsub = PubSub("memory://", group="default", eager=True)
    pubsub.subscribe("orders", retry=NoRetry())(lambda message: Seen().work(message))
    with pytest.raises(SubscriptionError, match="returned a coroutine, which nobody runs"):
        pubsub.publish("orders", 1)
    pubsub.close()


class Generating:
    def __call__(self, message: Message[Any]) -> Iterator[None]:
        yield


@pytest.mark.parametrize("handler", [functools.partial(generating), Generating()])
def test_a_generator_is_refused_also_in_a_partial_or_an_object(pubsub, handler):
    with pytest.raises(SubscriptionError, match="is a generator: it would never run"):
        pubsub.subscribe("orders")(handler)


def test_a_call_that_is_cancelled_before_it_starts_leaves_no_coroutine_behind():
    made = []

    def work() -> Any:
        made.append(Seen().work(None))
        return made[-1]

    loop = EventLoop(lambda cancel: cancel and cancel(), lambda error: None)
    loop.start()
    with pytest.raises(asyncio.CancelledError):
        loop.wrap(work)()
    loop.stop()
    loop.join()
    assert [inspect.getcoroutinestate(one) for one in made] == [inspect.CORO_CLOSED]


# Middleware


def test_middleware_that_did_not_run_fails_the_handler(pubsub):
    async def around(delivery: Any, call_next: Callable[[Any], None]) -> None:
        call_next(delivery)

    pubsub.middleware(lambda *arguments: around(*arguments))  # noqa: PLW0108  # as above
    pubsub.subscribe("orders", retry=NoRetry())(lambda message: None)
    pubsub.publish("orders", 1)
    handle_all(pubsub)
    (letter,) = dead_of(pubsub)
    assert letter.reason.detail.startswith("middleware ")
    assert "returned a coroutine, which nobody runs" in letter.reason.detail


def test_publish_middleware_that_did_not_run_fails_the_publish(pubsub):
    async def around(message: Any, call_next: Callable[[Any], None]) -> None:
        call_next(message)

    pubsub.publish_middleware(lambda *arguments: around(*arguments))  # noqa: PLW0108  # as above
    with pytest.raises(ConfigurationError, match=r"middleware .* returned a coroutine, which nobody runs"):
        pubsub.publish("orders", 1)
