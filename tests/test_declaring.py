"""Topics, subscriptions and publishing: what may be declared, and what is refused, with what words."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import re
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unittest import mock

import pytest
from pydantic import BaseModel

from pubsub_core import (
    ConfigurationError,
    Delivery,
    ExponentialBackoff,
    FixedDelay,
    ManualClock,
    Message,
    NoRetry,
    PayloadTooLarge,
    PubSub,
    SubscriptionError,
    ValidationError,
    backends,
    current_message,
)
from pubsub_core.subscription import Takes

if TYPE_CHECKING:
    from decimal import Decimal
from tests.waiting import handle_all


class Order(BaseModel):
    order_id: int
    total: float = 0.0


class Invoice(BaseModel):
    number: str


class Opaque:
    """A class that pydantic knows nothing of."""


@pytest.fixture
def pubsub() -> Iterator[PubSub]:
    pubsub = PubSub(group="default")
    yield pubsub
    pubsub.close()


def line_of(function: Callable[..., Any]) -> str:
    return f"{os.path.relpath(__file__)}:{inspect.unwrap(function).__code__.co_firstlineno}"


# Handlers that can be


def test_handler_takes_the_payload_or_the_message_as_annotated(pubsub: PubSub) -> None:
    seen: list[Any] = []

    @pubsub.subscribe("orders", group="payload")
    def of_payload(order: Order) -> None:
        seen.append(order)

    @pubsub.subscribe("orders", group="message")
    def of_message(message: Message[Order]) -> None:
        seen.append(message.payload)

    @pubsub.subscribe("orders", group="raw")
    def of_any(message: Message) -> None:  # type: ignore[type-arg]  # allowed: then the payload is any JSON
        seen.append(message.payload)

    @pubsub.subscribe("orders", group="bare")
    def bare(message):  # type: ignore[no-untyped-def]  # which is the point
        seen.append(message.payload)

    @pubsub.subscribe("orders", group="dict")
    def of_dict(order: dict[str, Any]) -> None:
        seen.append(order)

    pubsub.publish("orders", {"order_id": 1, "total": 2.5})
    handle_all(pubsub)
    plain = {"order_id": 1, "total": 2.5}
    assert sorted(seen, key=repr) == sorted([Order(order_id=1, total=2.5)] * 2 + [plain] * 3, key=repr)


def test_handler_without_annotation_on_a_typed_topic_gets_the_typed_message(pubsub: PubSub) -> None:
    orders = pubsub.topic("orders", Order)
    seen = []
    orders.subscribe()(lambda message: seen.append(message.payload))
    orders.publish(Order(order_id=1))
    handle_all(pubsub)
    assert seen == [Order(order_id=1)]


def test_decorated_function_is_left_unchanged(pubsub: PubSub) -> None:
    def handler(order: Order) -> None: ...

    assert pubsub.subscribe("orders")(handler) is handler


def test_annotations_may_name_what_is_local(pubsub: PubSub) -> None:
    class Local(BaseModel):
        number: int

    topic = pubsub.topic("orders", Local)

    @topic.subscribe(group="by_topic")
    def by_topic(local: Local) -> None: ...

    @pubsub.subscribe(topic, group="by_pubsub")
    def by_pubsub(message: Message[Local]) -> None: ...

    @pubsub.cron("* * * * *", name="ticks")
    def tick(message: Message[Local]) -> None: ...

    assert [one.handler.takes for one in pubsub.subscriptions()] == [Takes.PAYLOAD, Takes.MESSAGE, Takes.MESSAGE]


def test_only_the_annotation_of_the_parameter_must_be_known(pubsub: PubSub) -> None:
    @pubsub.subscribe("orders")
    def handler(order: Order, scale: Decimal | None = None) -> Decimal:
        raise NotImplementedError

    (one,) = pubsub.subscriptions()
    assert one.handler.takes is Takes.PAYLOAD


class CallableObject:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, order: Order) -> None:
        self.seen.append(order)

    def method(self, order: Order) -> None:
        self.seen.append(order)

    async def coroutine(self, order: Order) -> None:
        await asyncio.sleep(0)
        self.seen.append(order)


def note(seen: list[Any], order: Order) -> None:
    seen.append(order)


def test_methods_objects_partials_and_wrapped_functions_are_handlers(pubsub: PubSub) -> None:
    target = CallableObject()

    @functools.wraps(target.method)
    def wrapped(*arguments: Any) -> None:
        target.method(*arguments)

    handlers: dict[str, Callable[..., Any]] = {
        "object": target,
        "method": target.method,
        "coroutine": target.coroutine,
        "partial": functools.partial(note, target.seen),
        "wrapped": wrapped,
    }
    for group, handler in handlers.items():
        pubsub.subscribe("orders", group=group)(handler)
    pubsub.publish("orders", {"order_id": 1})
    handle_all(pubsub)
    assert target.seen == [Order(order_id=1)] * 5
    names = {one.group: one.handler.name for one in pubsub.subscriptions()}
    assert names["partial"] == f"{__name__}.note"
    assert names["object"] == f"{__name__}.CallableObject.__call__"


def test_decorator_may_give_a_handler_more_than_it_takes(pubsub: PubSub) -> None:
    seen: list[Any] = []

    def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(order: Any) -> None:
            function(order, "session")

        return wrapper

    def with_session_first(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(order: Any) -> None:
            function("session", order)

        return wrapper

    def with_keyword(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> None:
            function(*arguments, session="session", **keywords)

        return wrapper

    @pubsub.subscribe("orders", group="second")
    @with_session
    def second(order: Order, session: str) -> None:
        seen.append((order, session))

    @pubsub.subscribe("orders", group="renamed")
    @with_session
    def renamed(placed: Order, session: str) -> None:
        seen.append((placed, session))

    @pubsub.subscribe("orders", group="first")
    @with_session_first
    def first(session: str, order: Order) -> None:
        seen.append((order, session))

    @pubsub.subscribe("orders", group="keyword")
    @with_keyword
    def keyword(order: Order, *, session: str) -> None:
        seen.append((order, session))

    @pubsub.subscribe("orders", group="patched")
    @mock.patch("os.getcwd", return_value="session")
    def patched(order: Order, getcwd: Any) -> None:
        seen.append((order, getcwd()))

    @pubsub.cron("* * * * *", name="nightly")
    @functools.wraps(second)
    def tick() -> None: ...

    pubsub.publish("orders", {"order_id": 1})
    handle_all(pubsub)
    assert seen == [(Order(order_id=1), "session")] * 5
    assert pubsub.subscriptions()[-1].handler.takes is Takes.NOTHING


def test_decorator_that_cannot_be_called_with_one_argument_is_refused(pubsub: PubSub) -> None:
    @functools.wraps(note)
    def wrapper(first: Any, second: Any) -> None: ...

    with pytest.raises(SubscriptionError, match=r"takes \(first.*, second.*\): a handler takes one parameter"):
        pubsub.subscribe("orders")(wrapper)


def test_what_has_no_signature_is_refused(pubsub: PubSub) -> None:
    with pytest.raises(SubscriptionError, match="has no signature that could be read: call it in a function of your"):
        pubsub.subscribe("orders")(int)


def test_cron_handler_may_take_nothing_or_the_message(pubsub: PubSub) -> None:
    @pubsub.cron("*/5 * * * * *")
    def tick() -> None: ...

    @pubsub.cron("0 3 * * *", name="nightly", retry=NoRetry())
    def report(message: Message[Any]) -> None: ...

    assert [(one.topic, one.spec.expression) for one in pubsub.schedules] == [
        (f"{__name__}.test_cron_handler_may_take_nothing_or_the_message.tick", "*/5 * * * * *"),
        ("nightly", "0 3 * * *"),
    ]
    assert [one.handler.takes for one in pubsub.subscriptions()] == [Takes.NOTHING, Takes.MESSAGE]


CLEANING = """
from pubsub_core import PubSub

pubsub = PubSub()

class Cleaner:
    def __call__(self): ...

@pubsub.every(60)
def cleanup(): ...

pubsub.every(60)(Cleaner())
"""


def test_a_schedule_is_called_after_the_module_also_of_one_that_is_run_as_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "cleaning_package"
    package.mkdir()
    for path in (tmp_path / "cleaning_a.py", package / "cleaning_b.py"):
        path.write_text(CLEANING)
    for run, name in [
        (lambda: runpy.run_path(str(tmp_path / "cleaning_a.py"), run_name="__main__"), "cleaning_a"),
        (lambda: runpy.run_path(str(tmp_path / "cleaning_a.py"), run_name="__mp_main__"), "cleaning_a"),
        (lambda: vars(importlib.import_module("cleaning_a")), "cleaning_a"),
        (lambda: runpy.run_module("cleaning_package.cleaning_b", run_name="__main__"), "cleaning_package.cleaning_b"),
        (lambda: vars(importlib.import_module("cleaning_package.cleaning_b")), "cleaning_package.cleaning_b"),
    ]:
        made = run()["pubsub"]
        assert [one.name for one in made.schedules] == [f"{name}.cleanup", f"{name}.Cleaner.__call__"]
        assert made.settings.group == name


def test_options_of_a_subscription_are_resolved_with_the_settings() -> None:
    pubsub = PubSub(group="mine", timeout=60)
    pubsub.subscribe("a")(lambda message: None)
    pubsub.subscribe("b", group="own", timeout=5, concurrency=2, retry=FixedDelay(1, 2))(lambda message: None)
    a, b = pubsub.subscriptions()
    assert (a.key, a.timeout, a.concurrency, a.start) == (("a", "mine"), 60, None, "earliest")
    assert isinstance(a.retry, ExponentialBackoff)
    assert (b.key, b.timeout, b.concurrency, b.retry) == (("b", "own"), 5, 2, FixedDelay(1, 2))


# Handlers that cannot be


def takes_nothing() -> None: ...
def takes_two(order: Order, other: Order) -> None: ...
def takes_keyword(*, order: Order) -> None: ...
def takes_keyword_too(order: Order, *, other: Order) -> None: ...
def takes_all(*orders: Order) -> None: ...
def takes_named(**orders: Order) -> None: ...
def yields(order: Order) -> Iterator[None]:
    yield


async def yields_async(order: Order) -> Any:
    yield


@pytest.mark.parametrize(
    ("handler", "signature"),
    [
        (takes_nothing, r"\(\)"),
        (takes_two, r"\(order: 'Order', other: 'Order'\)"),
        (takes_keyword, r"\(order: 'Order'\)"),
        (takes_keyword_too, r"\(order: 'Order', other: 'Order'\)"),
        (takes_all, r"\(\*orders: 'Order'\)"),
        (takes_named, r"\(\*\*orders: 'Order'\)"),
    ],
)
def test_signature_that_cannot_take_one_argument_is_refused(
    handler: Callable[..., Any], signature: str, pubsub: PubSub
) -> None:
    where = rf"handler {re.escape(__name__)}\.{handler.__name__} \({re.escape(line_of(handler))}\)"
    error = f"{where} takes {signature}: a handler takes one parameter \\(the payload or the Message\\)$"
    with pytest.raises(SubscriptionError, match=error):
        pubsub.subscribe("orders")(handler)
    assert pubsub.subscriptions() == ()


def test_cron_handler_with_two_parameters_is_refused(pubsub: PubSub) -> None:
    with pytest.raises(SubscriptionError, match=r"a handler takes one parameter \(.*\), or none"):
        pubsub.cron("* * * * *")(takes_two)
    assert pubsub.schedules == ()


@pytest.mark.parametrize("handler", [yields, yields_async])
def test_generator_is_refused(handler: Callable[..., Any], pubsub: PubSub) -> None:
    with pytest.raises(
        SubscriptionError, match=rf"\({re.escape(line_of(handler))}\) is a generator: it would never run"
    ):
        pubsub.subscribe("orders")(handler)


def test_what_is_not_callable_is_refused(pubsub: PubSub) -> None:
    with pytest.raises(SubscriptionError, match="a handler must be a function, not str"):
        pubsub.subscribe("orders")("not a function")  # type: ignore[type-var]  # which is the point


def test_annotation_that_cannot_be_resolved_is_refused(pubsub: PubSub) -> None:
    def handler(order: Decimal) -> None: ...

    where = re.escape(line_of(handler))
    error = rf"the annotation 'Decimal' of handler .*\({where}\) cannot be resolved: .*Import the name"
    with pytest.raises(SubscriptionError, match=error):
        pubsub.subscribe("orders")(handler)


def test_annotation_that_is_no_type_of_a_payload_is_refused(pubsub: PubSub) -> None:
    def handler(order: Opaque) -> None: ...

    error = rf"handler .*\({re.escape(line_of(handler))}\): Opaque cannot be the type of a payload"
    with pytest.raises(SubscriptionError, match=error):
        pubsub.subscribe("orders")(handler)


@pytest.mark.parametrize(
    "annotation",
    [
        list[Message[int]],
        list[Message],  # type: ignore[type-arg]  # as users write it
        Message[int] | Message[str],
        Message[Order] | None,
        Annotated[Message[Order], "of somebody"],
        dict[str, list[Message[Order]]],
        Message[Message[int]],
    ],
)
def test_annotation_with_a_message_inside_is_refused(annotation: Any, pubsub: PubSub) -> None:
    def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = annotation
    where = rf"handler .*\({re.escape(line_of(handler))}\)"
    fix = r"Annotate it Message\[A\], Message\[A \| B\] or Message\[A \| None\], as its payload is; .*, give batch=$"
    with pytest.raises(SubscriptionError, match=f"{where} takes .*, and no payload holds a Message. {fix}"):
        pubsub.subscribe("orders")(handler)
    handler.__annotations__["order"] = list[annotation]
    with pytest.raises(SubscriptionError, match=r"annotate it list\[Message\[A\]\]$"):
        pubsub.subscribe("orders", batch=10)(handler)


def test_message_of_several_types_is_fine(pubsub: PubSub) -> None:
    seen = []

    @pubsub.subscribe("orders")
    def handler(message: Message[int | Order | None]) -> None:
        seen.append(message.payload)

    for payload in (1, {"order_id": 2}, None):
        pubsub.publish("orders", payload)
    handle_all(pubsub)
    assert seen == [1, Order(order_id=2), None]


def test_second_handler_on_the_same_topic_and_group_is_refused(pubsub: PubSub) -> None:
    def first(order: Order) -> None: ...
    def second(order: Order) -> None: ...

    pubsub.subscribe("orders", group="billing")(first)
    pubsub.subscribe("orders")(first)
    pubsub.subscribe("orders", group="shipping")(second)
    with pytest.raises(SubscriptionError) as caught:
        pubsub.subscribe("orders", group="billing")(second)
    text = str(caught.value)
    assert "topic 'orders' has a handler for group 'billing' already: " in text
    assert f"first ({line_of(first)})" in text
    assert f"second ({line_of(second)})" in text
    assert "subscribe(..., group='another')" in text
    with pytest.raises(SubscriptionError, match="for the default group already"):
        pubsub.subscribe("orders")(second)


def test_second_schedule_of_a_name_is_refused_and_the_first_stays(pubsub: PubSub) -> None:
    def full() -> None: ...
    def half() -> None: ...

    pubsub.cron("0 * * * *", name="report", group="full")(full)
    pubsub.topic("payloads").schedule("0 * * * *", 1)
    for name, group in [("report", "half"), ("report", "full"), ("payloads", None)]:
        with pytest.raises(SubscriptionError) as caught:
            pubsub.cron("30 * * * *", name=name, group=group)(half)
        place = f": {__name__}.{full.__qualname__.replace('<locals>.', '')} ({line_of(full)})" if group else ""
        assert str(caught.value).startswith(f"there is a schedule {name!r} already{place}. Give ")
        assert f"half ({line_of(half)}) another name=" in str(caught.value)
    assert [(one.topic, one.handler.function) for one in pubsub.subscriptions()] == [("report", full)]
    assert [one.spec.expression for one in pubsub.schedules] == ["0 * * * *", "0 * * * *"]


def test_schedule_whose_topic_has_a_handler_for_the_group_is_refused(pubsub: PubSub) -> None:
    pubsub.subscribe("report")(lambda message: None)
    with pytest.raises(SubscriptionError, match=r"topic 'report' has a handler for the default group .*another name=$"):
        pubsub.every(60, name="report")(lambda: None)
    assert pubsub.schedules == ()


@pytest.mark.parametrize(
    "declare",
    [
        lambda pubsub, handler: pubsub.subscribe("mail")(handler),
        lambda pubsub, handler: pubsub.every(60)(handler),
        lambda pubsub, handler: pubsub.every(60, name="mail")(handler),
    ],
)
def test_handler_that_a_factory_declares_again_is_refused_saying_so(declare: Any, pubsub: PubSub) -> None:
    def create_app() -> None:
        def send(message: Any) -> None: ...

        declare(pubsub, send)

    create_app()
    with pytest.raises(SubscriptionError) as caught:
        create_app()
    assert "create_app.send (" in str(caught.value)
    assert str(caught.value).endswith(
        "That is the same one, declared again, as by a create_app() that is called twice: declare it at module level, "
        "or make the PubSub in that function too"
    )


def test_default_group_that_is_another_handlers_group_is_refused_once_it_is_known(pubsub: PubSub) -> None:
    pubsub.subscribe("orders", group="default")(lambda message: None)
    pubsub.subscribe("orders")(lambda message: None)
    with pytest.raises(SubscriptionError, match="has a handler for group 'default' already"):
        pubsub.subscriptions()


BAD_NAMES = ["", "a b", "*", "-a", ".a", "a:b", "{a}", "a" * 201, "a\n", "ä", "a/b", None, 5]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_topic_name_is_refused(name: Any, pubsub: PubSub) -> None:
    for declare in (pubsub.topic, pubsub.subscribe, lambda name: pubsub.publish(name, 1)):
        with pytest.raises(ConfigurationError, match=r"is not a topic name: .*pass stream="):
            declare(name)


@pytest.mark.parametrize("name", [one for one in BAD_NAMES if one is not None])
def test_bad_group_name_is_refused(name: Any, pubsub: PubSub) -> None:
    with pytest.raises(ConfigurationError, match="is not a group name"):
        pubsub.subscribe("orders", group=name)
    with pytest.raises(ConfigurationError):
        PubSub(group=name)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, "timeout=0: the timeout is a number of seconds, more than 0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"timeout": "5"}, "timeout='5': the timeout is a number of seconds"),
        ({"timeout": timedelta(seconds=5)}, r"timeout=datetime.timedelta\(seconds=5\): the timeout is a number of sec"),
        ({"timeout": True}, "timeout=True: the timeout is a number of seconds"),
        ({"concurrency": True}, "concurrency=True: how many"),
        ({"concurrency": "2"}, "concurrency='2': how many"),
        ({"concurrency": 0}, "concurrency=0: how many may run at once, 1 or more"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"start": "newest"}, "start='newest': use 'earliest', 'latest' or an aware datetime"),
        ({"start": datetime(2030, 1, 1)}, r"has no time zone: use datetime\(..., tzinfo=UTC\)"),  # noqa: DTZ001
        ({"start": timedelta(hours=1)}, "use 'earliest', 'latest' or an aware datetime"),
    ],
)
def test_option_that_cannot_be_is_refused(options: dict[str, Any], error: str, pubsub: PubSub) -> None:
    with pytest.raises(SubscriptionError, match=error):
        pubsub.subscribe("orders", **options)


def test_schedule_whose_function_has_no_usable_name_is_told_to_have_one(pubsub: PubSub) -> None:
    def grüßen() -> None: ...  # noqa: PLC2401  # which is the point

    for function in (lambda: None, grüßen):
        where = re.escape(line_of(function))
        with pytest.raises(
            ConfigurationError,
            match=rf"is not a schedule name: .* the name of the function \({where}\): give it one with name=$",
        ):
            pubsub.every(60)(function)
    with pytest.raises(ConfigurationError, match=r"^'nightly report' is not a schedule name: .* digit or '_'$"):
        pubsub.every(60, name="nightly report")(grüßen)
    pubsub.every(60, name="nightly")(lambda: None)
    assert [one.name for one in pubsub.schedules] == ["nightly"]


def test_schema_that_is_a_text_is_refused(pubsub: PubSub) -> None:
    with pytest.raises(ConfigurationError, match=r"'Order' cannot be the type of a payload: it is a text. Give the"):
        pubsub.topic("orders", "Order")
    assert pubsub.topic("orders", Order).schema is Order


def test_schema_that_is_never_defined_is_an_error_of_the_publish(pubsub: PubSub) -> None:
    class Unfinished(BaseModel):
        part: Missing  # type: ignore[name-defined]  # noqa: F821  # which is the point

    for name, schema, payload in [("model", Unfinished, {"part": 1}), ("list", list["Missing"], [1])]:  # type: ignore[name-defined]  # noqa: F821
        topic = pubsub.topic(name, schema)
        with pytest.raises(
            ConfigurationError,
            match=r"^(Unfinished|list\['Missing'\]) cannot be the type of a payload: a name in it is not defined",
        ):
            topic.publish(payload)
        with pytest.raises(ConfigurationError, match="cannot be the type of a payload"):
            topic.schedule(60, payload)


def test_aware_start_is_fine(pubsub: PubSub) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    pubsub.subscribe("orders", start=start)(lambda message: None)
    (one,) = pubsub.subscriptions()
    assert one.membership.start == start


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("* * *", "has 3 fields: use five .*, or six with seconds first"),
        ("", "has 0 fields"),
        ("61 * * * *", "cannot be"),
        ("0 0 30 2 *", "cannot be"),
        ("a b c d e", "cannot be"),
    ],
)
def test_cron_expression_that_cannot_be_is_refused(expression: str, error: str, pubsub: PubSub) -> None:
    with pytest.raises(ConfigurationError, match=f"cron '{re.escape(expression)}' {error}"):
        pubsub.cron(expression)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedDelay(-1, 3),
        lambda: FixedDelay(1, -3),
        lambda: FixedDelay(float("nan"), 3),
        lambda: ExponentialBackoff(initial=float("inf")),
        lambda: ExponentialBackoff(max_retries="many"),  # type: ignore[arg-type]  # which is the point
    ],
)
def test_retry_policy_that_cannot_be_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be a finite number, 0 or more"):
        make()


class OfOldTimes:
    def next_delay(self, attempt: int) -> float:
        return 1.0

    def __repr__(self) -> str:
        return "OfOldTimes()"


class Asynchronous:
    async def next_delay(self, attempt: int, error: Exception) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("retry", "error"),
    [
        (5, r"retry=5: it takes a retry policy, such as ExponentialBackoff\(max_retries=5\)$"),
        (1, r"retry=1: .*, such as ExponentialBackoff\(max_retries=1\)$"),
        (True, r"retry=True: .*, such as ExponentialBackoff\(max_retries=5\)$"),
        (0, r"retry=0: it takes a retry policy, such as NoRetry\(\)$"),
        (False, r"retry=False: it takes a retry policy, such as NoRetry\(\)$"),
        ("no", "retry='no': it takes a retry policy"),
        (NoRetry, r"retry=NoRetry: that is a class, write NoRetry\(\)$"),
        (FixedDelay, r"retry=FixedDelay: that is a class, write FixedDelay\(delay=60, max_retries=5\)$"),
        (OfOldTimes(), r"retry=OfOldTimes\(\): its next_delay must take two arguments, the attempt and the error: too"),
        (Asynchronous(), "its next_delay is an `async def`, make it a plain `def`"),
    ],
)
def test_what_is_no_retry_policy_is_refused_when_it_is_declared(retry: Any, error: str, pubsub: PubSub) -> None:
    for declare in (lambda: pubsub.subscribe("orders", retry=retry), lambda: pubsub.every(60, retry=retry)):
        with pytest.raises(SubscriptionError, match=error):
            declare()


# Topics


def test_naming_a_topic_again_is_the_same_topic(pubsub: PubSub) -> None:
    orders = pubsub.topic("orders", Order)
    assert pubsub.topic("orders") is orders
    assert pubsub.topic("orders", Order) is orders
    assert repr(orders) == "Topic('orders', Order)"


@pytest.mark.parametrize(
    ("use", "action"),
    [
        (lambda pubsub, topic: pubsub.publish(topic, 1), "publish it"),
        (lambda pubsub, topic: pubsub.subscribe(topic), "subscribe to it"),
        (lambda pubsub, topic: pubsub.schedule(topic, 60, 1), "schedule it"),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_topic_of_another_pubsub_is_refused(use: Any, action: str, is_known: bool, pubsub: PubSub) -> None:
    foreign = PubSub().topic("orders", stream="legacy:orders")
    if is_known:
        pubsub.topic("orders")
    error = rf"Topic\('orders'.*\) was declared on another PubSub: {action} there, or declare it here too$"
    with pytest.raises(ConfigurationError, match=error):
        use(pubsub, foreign)
    assert pubsub.subscriptions() == pubsub.schedules == ()


def test_handlers_of_the_topics_type_share_its_adapter() -> None:
    pubsub = PubSub()
    orders = pubsub.topic("orders", list[Order])

    @orders.subscribe(group="payload")
    def payload(orders: list[Order]) -> None: ...

    @orders.subscribe(group="message")
    def message(message: Message[list[Order]]) -> None: ...

    @pubsub.subscribe("orders", group="plain")
    def plain(message) -> None: ...

    @pubsub.subscribe("orders", group="other")
    def other(orders: list[dict[str, int]]) -> None: ...

    codecs = [one.handler.codec is orders.codec for one in pubsub.subscriptions()]
    assert codecs == [True, True, True, False]


def test_topic_redeclared_with_another_schema_or_stream_is_refused(pubsub: PubSub) -> None:
    pubsub.topic("orders", Order, stream="legacy:orders")
    with pytest.raises(
        ConfigurationError, match=r"is declared already, as Topic\('orders', Order\) on stream 'legacy:orders'"
    ):
        pubsub.topic("orders", Invoice)
    with pytest.raises(ConfigurationError, match="use that object, or another name"):
        pubsub.topic("orders", stream="other")
    pubsub.topic("untyped")
    with pytest.raises(ConfigurationError, match="is declared already"):
        pubsub.topic("untyped", Order)


def test_schema_that_pydantic_does_not_know_is_refused(pubsub: PubSub) -> None:
    for schema in (Opaque, list[Opaque]):
        with pytest.raises(ConfigurationError, match="cannot be the type of a payload"):
            pubsub.topic("opaque", schema)


# Payloads


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinities_are_refused_and_nothing_is_sent(number: float, pubsub: PubSub) -> None:
    seen = []
    orders = pubsub.topic("orders", Order)
    pubsub.subscribe("orders")(lambda message: seen.append(message.payload))
    pubsub.subscribe("untyped")(lambda message: seen.append(message.payload))
    with pytest.raises(ValidationError, match=r"nothing was published to 'orders': .*NaN and infinities are not JSON"):
        orders.publish(Order(order_id=1, total=number))
    with pytest.raises(ValidationError, match=r"nothing was published to 'untyped': .*NaN and infinities are not JSON"):
        pubsub.publish("untyped", {"a": [number]})
    handle_all(pubsub)
    assert seen == []


@pytest.mark.parametrize("payload", [object(), {"a": {"b": object()}}, lambda: None])
def test_payload_that_json_cannot_say_is_refused(payload: Any, pubsub: PubSub) -> None:
    with pytest.raises(
        ValidationError, match="nothing was published to 'orders': the payload cannot be written as JSON"
    ):
        pubsub.publish("orders", payload)


def test_payload_of_the_wrong_type_is_refused_without_quoting_it(pubsub: PubSub) -> None:
    orders = pubsub.topic("orders", Order)
    for wrong in ({"order_id": "secret"}, Invoice(number="secret"), "secret"):
        with pytest.raises(
            ValidationError, match="nothing was published to 'orders': the payload does not fit Order"
        ) as caught:
            orders.publish(wrong)  # type: ignore[arg-type]  # which is the point
        assert "secret" not in str(caught.value)


def test_too_large_a_payload_is_refused_naming_the_setting() -> None:
    pubsub = PubSub(max_payload=100)
    pubsub.publish("orders", "x" * 98)
    with pytest.raises(
        PayloadTooLarge,
        match="nothing was published to 'orders': the payload is 101 bytes, more than PUBSUB_MAX_PAYLOAD=100",
    ):
        pubsub.publish("orders", "x" * 99)
    with pubsub.batch() as batch, pytest.raises(PayloadTooLarge):
        batch.publish("orders", "x" * 99)
    assert batch.ids == ()


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": None}])
def test_headers_that_are_not_text_are_refused(headers: Any, pubsub: PubSub) -> None:
    with pytest.raises(ValidationError, match="headers on topic 'orders': names and values are text"):
        pubsub.publish("orders", 1, headers=headers)


def test_key_that_is_not_text_is_refused(pubsub: PubSub) -> None:
    with pytest.raises(ValidationError, match="key=5 on topic 'orders': a key is text"):
        pubsub.publish("orders", 1, key=5)  # type: ignore[arg-type]  # which is the point


# Publishing


def test_what_is_published_arrives_as_it_was(pubsub: PubSub) -> None:
    clock = ManualClock()
    pubsub = PubSub(group="mine", clock=clock)
    orders = pubsub.topic("orders", Order)
    seen: list[Message[Order]] = []

    @orders.subscribe()
    def handler(message: Message[Order]) -> None:
        assert current_message() is message
        seen.append(message)

    message_id = orders.publish(Order(order_id=1), key="customer-1", headers={"tenant": "a"})
    handle_all(pubsub)
    (message,) = seen
    assert (message.id, message.topic, message.payload) == (message_id, "orders", Order(order_id=1))
    assert (message.key, message.headers["tenant"], message.published_at) == ("customer-1", "a", clock.now())
    assert (message.attempt, message.group, message.source) == (1, "mine", "publish")
    with pytest.raises(LookupError, match="outside of a handler"):
        current_message()


def test_payload_that_is_published_is_never_changed(pubsub: PubSub) -> None:
    payload = {"name": "dog", "tags": ["a"]}
    pubsub.publish("orders", payload)
    with pubsub.batch() as batch:
        batch.publish("orders", payload)
        payload["name"] = "changed after"
    assert payload == {"name": "changed after", "tags": ["a"]}


def test_what_a_handler_publishes_has_its_correlation_id(pubsub: PubSub) -> None:
    seen: list[str] = []
    pubsub.subscribe("orders")(lambda message: pubsub.publish("invoices", {"of": message.payload}))
    pubsub.subscribe("invoices")(lambda message: pubsub.publish("letters", message.payload))
    pubsub.subscribe("letters")(lambda message: seen.append(message.headers["correlation-id"]))
    first = pubsub.publish("orders", 1)
    second = pubsub.publish("orders", 2, headers={"correlation-id": "of-the-request"})
    assert second != first
    for _ in range(3):
        handle_all(pubsub)
    assert seen == [first, "of-the-request"]


def test_batch_sends_on_leaving_in_order_and_nothing_if_the_block_raises(pubsub: PubSub) -> None:
    seen = []
    pubsub.subscribe("orders")(lambda message: seen.append(message.payload))
    with pubsub.batch() as batch:
        ids = [batch.publish("orders", number) for number in range(3)]
        assert batch.ids == ()
    assert batch.ids == tuple(ids)
    with pytest.raises(ZeroDivisionError), pubsub.batch() as broken:
        broken.publish("orders", 99)
        raise ZeroDivisionError
    assert broken.ids == ()
    handle_all(pubsub)
    assert seen == [0, 1, 2]


def test_publish_middleware_may_change_or_refuse_a_message(pubsub: PubSub) -> None:
    seen = []
    pubsub.subscribe("orders")(lambda message: seen.append((message.payload, message.headers.get("by"))))

    @pubsub.publish_middleware
    def sign(message: Message[Any], call_next: Callable[[Message[Any]], None]) -> None:
        if message.payload == "refused":
            raise PermissionError
        call_next(replace(message, headers={**message.headers, "by": "me"}))

    pubsub.publish("orders", 1)
    with pubsub.batch() as batch:
        batch.publish("orders", 2)
    with pytest.raises(PermissionError):
        pubsub.publish("orders", "refused")
    handle_all(pubsub)
    assert seen == [(1, "me"), (2, "me")]


def test_the_first_middleware_is_the_outermost(pubsub: PubSub) -> None:
    seen = []
    pubsub.subscribe("orders")(lambda message: seen.append("handler"))

    def named(name: str) -> Callable[[Delivery[Any], Callable[[Delivery[Any]], None]], None]:
        def middleware(delivery: Delivery[Any], call_next: Callable[[Delivery[Any]], None]) -> None:
            seen.append(name)
            call_next(delivery)

        return middleware

    pubsub.middleware(named("outer"))
    pubsub.middleware(named("inner"))
    pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert seen == ["outer", "inner", "handler"]


# Brokers by URL


def test_unknown_scheme_is_refused_naming_the_nearest_and_no_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        PubSub("reddis://user:secret@host:6379/0").publish("orders", 1)
    text = str(caught.value)
    assert "PUBSUB_URL 'reddis://***@host:6379/0' has the unknown scheme 'reddis'" in text
    assert "Did you mean 'redis'?" in text
    assert "memory://" in text
    assert "secret" not in text


def test_scheme_whose_library_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = EntryPoint("carrier+pigeon", "module_that_is_not_there:open_pigeon [pigeons]", backends.GROUP)
    monkeypatch.setattr(backends, "_installed", lambda: {missing.name: missing})
    error = (
        "PUBSUB_URL scheme 'carrier+pigeon' needs the module 'module_that_is_not_there', which is not installed. "
        "Install it with: pip install 'pubsub-streams[pigeons]'"
    )
    with pytest.raises(ConfigurationError, match=re.escape(error)):
        PubSub("carrier+pigeon://roof").publish("orders", 1)


def test_closing_is_idempotent_and_the_next_use_opens_anew(pubsub: PubSub) -> None:
    first = pubsub.runtime.broker
    pubsub.close()
    pubsub.close()
    assert pubsub.runtime.broker is not first
