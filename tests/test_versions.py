"""Versions of a schema: what is published is current, what is older is brought to that, what is newer is tried."""

import inspect
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from pydantic import BaseModel, ConfigDict

from pubsub_core import (
    ConfigurationError,
    DeadLetter,
    HandlerTimeout,
    InvalidPayload,
    Message,
    NoRetry,
    PubSub,
    SubscriptionError,
    Topic,
    Undecodable,
    Worker,
)
from pubsub_flask import PubSub as FlaskPubSub
from tests.servers import RealServer

WITHIN = 10.0


class OrderV1(BaseModel):
    order_id: int
    total: float


class OrderV2(BaseModel):
    order_id: int
    total_cents: int


class OrderV3(BaseModel):
    order_id: int
    price: Decimal
    currency: str


class Fleet:
    """Applications of several generations on one broker: each knows the topic at a version of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"test-{uuid.uuid4().hex}"
        self.members: list[PubSub] = []

    def pubsub(self) -> PubSub:
        member = PubSub(self.url, group="billing", namespace=self.namespace)
        self.members.append(member)
        return member

    def topic(self, schema: Any, version: int | None = None) -> Topic[Any]:
        return self.pubsub().topic("orders.placed", schema, version=version)

    def handled(self, orders: Topic[Any]) -> list[Message[Any]]:
        """Handle all that there is with the application that declared `orders`; return the messages that came."""
        seen: list[Message[Any]] = []

        @orders.subscribe(retry=NoRetry())
        def take(message: Message[Any]) -> None:
            seen.append(message)

        self.work(orders)
        return seen

    def work(self, orders: Topic[Any]) -> None:
        with Worker(self.owner(orders), threads=1, burst=True) as worker:
            assert worker.wait(WITHIN)

    def owner(self, orders: Topic[Any]) -> PubSub:
        (owner,) = (one for one in self.members if one._topics.get("orders.placed") is orders)
        return owner

    def dead(self, orders: Topic[Any]) -> list[DeadLetter]:
        return list(self.owner(orders).dead_letters(orders))


@pytest.fixture(params=["memory", "redis"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    url = f"memory://{uuid.uuid4().hex}"
    if request.param == "redis":
        server: RealServer = request.getfixturevalue("redis")
        url = server.url
    fleet = Fleet(url)
    yield fleet
    for one in fleet.members:
        one.close()


def stored(payload: bytes, headers: Mapping[str, str] | None = None) -> Message[bytes]:
    """Return a message as a broker hands it out."""
    return Message("1", "orders.placed", payload, datetime(2030, 1, 1, tzinfo=UTC), headers=headers or {})


def to_cents(payload: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": payload["order_id"], "total_cents": round(payload["total"] * 100)}


def to_price(payload: dict[str, Any]) -> dict[str, Any]:
    cents = payload.pop("total_cents")
    return payload | {"price": Decimal(cents) / 100, "currency": "EUR"}


# What travels


def test_a_message_says_its_version_unless_it_is_the_first(fleet):
    fleet.topic(None).publish({"order_id": 1})
    fleet.topic(OrderV1, 1).publish(OrderV1(order_id=1, total=9.5))
    fleet.topic(OrderV2, 2).publish(OrderV2(order_id=1, total_cents=950), headers={"campaign": "spring"})
    fleet.topic(OrderV3, 3).publish(OrderV3(order_id=1, price=Decimal("9.50"), currency="EUR"))

    versions = [message.headers.get("schema-version") for message in fleet.handled(fleet.topic(None))]

    assert versions == [None, None, "2", "3"]


def test_the_header_is_the_librarys_own(fleet):
    """As when a handler passes on the headers of the message that it got."""
    fleet.topic(None).publish({}, headers={"schema-version": "7", "campaign": "spring"})
    fleet.topic(OrderV2, 2).publish(OrderV2(order_id=1, total_cents=950), headers={"schema-version": "7"})
    pubsub = fleet.pubsub()
    with pubsub.batch() as batch:
        batch.publish(pubsub.topic("orders.placed", version=4), {}, headers={"schema-version": "1"})

    headers = [dict(message.headers) for message in fleet.handled(fleet.topic(None))]

    assert [one.get("schema-version") for one in headers] == [None, "2", "4"]
    assert headers[0]["campaign"] == "spring"


def test_middleware_that_replaces_the_headers_does_not_lose_the_version(fleet):
    orders = fleet.topic(OrderV2, 2)

    @fleet.owner(orders).publish_middleware
    def without_headers(message, call_next) -> None:
        call_next(Message(message.id, message.topic, message.payload, message.published_at))

    orders.publish(OrderV2(order_id=1, total_cents=950))

    assert [one.headers["schema-version"] for one in fleet.handled(fleet.topic(None))] == ["2"]


def test_what_a_schedule_publishes_has_the_version_of_its_topic(pubsub):
    orders = pubsub.topic("orders", OrderV2, version=2)
    orders.schedule(60, OrderV2(order_id=1, total_cents=950))

    message = pubsub.scheduled_message(pubsub.schedules[0], 0.0)

    assert message.headers["schema-version"] == "2"


def test_a_schedules_own_handler_knows_the_versions_of_its_topic(pubsub):
    nightly = pubsub.topic("nightly", version=2)
    nightly.upcast(from_version=1)(lambda payload: {"was": payload})

    @pubsub.cron("0 3 * * *", name="nightly")
    def take(message: Message[Any]) -> None: ...

    (subscription,) = pubsub.subscriptions()
    assert subscription.decode(stored(b"1")) == {"was": 1}


# Earlier versions


def test_an_earlier_message_passes_through_the_upcasts_up_to_the_current_version(fleet):
    fleet.topic(OrderV1).publish(OrderV1(order_id=1, total=9.5))
    fleet.topic(OrderV2, 2).publish(OrderV2(order_id=2, total_cents=1050))
    current = fleet.topic(OrderV3, 3)
    current.upcast(from_version=2)(to_price)
    current.upcast(from_version=1)(to_cents)
    current.publish(OrderV3(order_id=3, price=Decimal("11.50"), currency="USD"))

    assert [message.payload for message in fleet.handled(current)] == [
        OrderV3(order_id=1, price=Decimal("9.5"), currency="EUR"),
        OrderV3(order_id=2, price=Decimal("10.5"), currency="EUR"),
        OrderV3(order_id=3, price=Decimal("11.50"), currency="USD"),
    ]
    assert not fleet.dead(current)


def test_each_handler_gets_the_current_version_as_the_type_that_it_asks_for(fleet):
    class OnlyTheId(BaseModel):
        order_id: int

    fleet.topic(OrderV1).publish(OrderV1(order_id=1, total=9.5))
    orders = fleet.topic(OrderV2, 2)
    orders.upcast(from_version=1)(to_cents)
    seen: list[Any] = []

    @orders.subscribe(group="plain")
    def plain(payload: dict[str, Any]) -> None:
        seen.append(payload)

    @fleet.owner(orders).subscribe("orders.placed", group="ids")
    def ids(payload: OnlyTheId) -> None:
        seen.append(payload)

    fleet.work(orders)

    assert sorted(seen, key=str) == [OnlyTheId(order_id=1), {"order_id": 1, "total_cents": 950}]


def test_a_topic_without_a_schema_may_have_versions_too(fleet):
    fleet.topic(None).publish({"a": 1})
    fleet.topic(None).publish([1])
    orders = fleet.topic(None, 2)
    orders.upcast(from_version=1)(lambda payload: {"was": payload})

    assert [message.payload for message in fleet.handled(orders)] == [{"was": {"a": 1}}, {"was": [1]}]


def test_what_is_read_strictly_is_read_strictly_after_an_upcast(fleet):
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)

        order_id: int
        price: Decimal

    fleet.topic(None).publish({"order_id": 1, "price": 9.5})
    orders = fleet.topic(Strict, 2)
    orders.upcast(from_version=1)(lambda payload: payload | {"price": Decimal("9.50")})

    assert [message.payload for message in fleet.handled(orders)] == [Strict(order_id=1, price=Decimal("9.50"))]


def failing(payload: dict[str, Any]) -> dict[str, Any]:
    return {"total_cents": int(payload["secret"])}


LINE = inspect.getsourcelines(failing)[1] + 1


@pytest.mark.parametrize(
    ("upcast", "detail"),
    [
        (
            failing,
            rf"the upcast from version 1, failing \(\S*test_versions.py:{LINE - 1}\), raised ValueError in line {LINE}",
        ),
        (
            lambda payload: payload["none"],
            r"the upcast from version 1, \S*<lambda> \(\S+\), raised KeyError in line \d+",
        ),
        (lambda payload: payload.update(a=1), r"<lambda> \(\S+\), returned None: it must return the payload"),
        (lambda payload: {"order_id": object()}, r"<lambda> \(\S+\), returned what is not JSON: .*unknown type"),
        (lambda payload: {"order_id": float("nan")}, r"returned what is not JSON: .*NaN and infinities are not JSON"),
        (
            lambda payload: payload,
            r"after the upcast from version 1, .*, to version 2: the payload does not fit OrderV2: ",
        ),
    ],
)
def test_an_upcast_that_fails_makes_a_dead_letter_that_names_it_and_leaks_nothing(fleet, caplog, upcast, detail):
    caplog.set_level(logging.INFO)
    fleet.topic(None).publish({"order_id": 1, "secret": "hunter2"})
    orders = fleet.topic(OrderV2, 2)
    orders.upcast(from_version=1)(upcast)

    assert not fleet.handled(orders)

    (letter,) = fleet.dead(orders)
    assert (letter.reason.kind, letter.message.attempt) == ("invalid payload", 1)
    assert re.search(detail, letter.reason.detail), letter.reason.detail
    assert "hunter2" not in letter.reason.detail + letter.reason.traceback + caplog.text


def test_an_old_payload_that_is_not_json_is_undecodable(fleet):
    orders = fleet.topic(OrderV2, 2)
    orders.upcast(from_version=1)(to_cents)
    subscription = handler_of(fleet, orders)

    with pytest.raises(Undecodable, match="the payload is not JSON"):
        subscription.decode(stored(b'{"order_id":'))


def handler_of(fleet: Fleet, orders: Topic[Any]) -> Any:
    @orders.subscribe(group="decoding")
    def take(order: OrderV2) -> None: ...

    (subscription,) = fleet.owner(orders).subscriptions()
    return subscription


def test_a_timeout_within_an_upcast_is_a_timeout(fleet):
    orders = fleet.topic(OrderV2, 2)

    @orders.upcast(from_version=1)
    def slow(payload: dict[str, Any]) -> dict[str, Any]:
        raise HandlerTimeout

    with pytest.raises(HandlerTimeout):
        handler_of(fleet, orders).decode(stored(b"{}"))


# Newer versions


def test_a_newer_message_that_fits_is_handled(fleet):
    fleet.topic(None, 9).publish({"order_id": 1, "total": 9.5, "added": True})

    assert [message.payload for message in fleet.handled(fleet.topic(OrderV1))] == [OrderV1(order_id=1, total=9.5)]


def test_a_newer_message_that_does_not_fit_is_a_dead_letter_that_names_both_versions(fleet):
    fleet.topic(OrderV3, 3).publish(OrderV3(order_id=1, price=Decimal("9.50"), currency="EUR"))
    orders = fleet.topic(OrderV2, 2)
    orders.upcast(from_version=1)(to_cents)

    assert not fleet.handled(orders)

    (letter,) = fleet.dead(orders)
    assert letter.reason.kind == "invalid payload"
    assert "is of version 3" in letter.reason.detail
    assert "up to version 2" in letter.reason.detail
    assert "total_cents: Field required" in letter.reason.detail


def test_what_was_too_new_is_handled_when_it_is_replayed_to_an_application_that_knows_it(fleet):
    newer = fleet.topic(OrderV2, 2)
    newer.upcast(from_version=1)(to_cents)
    newer.publish(OrderV2(order_id=1, total_cents=950))
    older = fleet.topic(OrderV1)
    assert not fleet.handled(older)

    assert fleet.owner(older).dead_letters(older).replay() == 1

    assert [message.payload for message in fleet.handled(newer)] == [OrderV2(order_id=1, total_cents=950)]


@pytest.mark.parametrize("given", ["", "0", "-1", "1.0", "two", "９", "9" * 5_000])
def test_a_version_that_is_none_is_an_invalid_payload(given):
    pubsub = PubSub("memory://")

    @pubsub.subscribe("orders.placed")
    def take(message: Message[Any]) -> None: ...

    (subscription,) = pubsub.subscriptions()
    message = stored(b"{}", {"schema-version": given})

    with pytest.raises(InvalidPayload, match=r"the header schema-version is .*: it is a whole number") as caught:
        subscription.decode(message)
    assert len(str(caught.value)) < 200


# Declaring


@pytest.fixture
def pubsub() -> PubSub:
    return PubSub("memory://", group="billing")


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "2", 10**9])
def test_a_version_is_a_whole_number(pubsub, version):
    with pytest.raises(ConfigurationError, match=r"topic 'orders' has version=.*: it is a whole number, 1 or more"):
        pubsub.topic("orders", OrderV1, version=version)


def test_a_topic_has_one_current_version(pubsub):
    orders = pubsub.topic("orders", OrderV2, version=2)

    assert pubsub.topic("orders") is pubsub.topic("orders", OrderV2, version=2) is orders
    assert (orders.version, pubsub.topic("mails").version, pubsub.topic("mails", version=1).version) == (2, 1, 1)
    with pytest.raises(ConfigurationError, match=r"is declared already, as Topic\('orders', OrderV2, version=2\)"):
        pubsub.topic("orders", version=3)


@pytest.mark.parametrize(
    ("version", "upcasts", "missing"),
    [
        (2, [], r"is at version 2, and has no upcast from version 1: .*@topic.upcast\(from_version=1\)"),
        (3, [2], "no upcast from version 1"),
        (3, [1], "no upcast from version 2"),
        (5, [2, 4], "no upcast from versions 1, 3"),
    ],
)
def test_a_gap_in_the_chain_is_refused_when_a_worker_starts(pubsub, version, upcasts, missing):
    orders = pubsub.topic("orders", version=version)
    for one in upcasts:
        orders.upcast(from_version=one)(to_cents)

    @orders.subscribe()
    def take(message: Message[Any]) -> None: ...

    orders.publish({})  # who only publishes needs none
    with pytest.raises(ConfigurationError, match=missing), Worker(pubsub, burst=True):
        pass


def test_an_upcast_is_left_as_it_is(pubsub):
    orders = pubsub.topic("orders", version=2)

    assert orders.upcast(from_version=1)(to_cents) is to_cents


async def waits(payload: Any) -> Any: ...


def yields(payload: Any) -> Any:
    yield payload


def two(payload: Any, other: Any) -> Any: ...


def nothing() -> Any: ...


@pytest.mark.parametrize(
    ("from_version", "function", "why"),
    [
        (0, to_cents, "from_version=0 of to_cents .*: it is a whole number, 1 or more"),
        (True, to_cents, "from_version=True"),
        ("1", to_cents, "from_version='1'"),
        (3, to_cents, r"leads to version 4 of topic 'orders', which is at version 3: declare it with version=4"),
        (
            1,
            to_price,
            r"has an upcast from version 1 already: to_cents \(\S*test_versions.py:\d+\). Remove it, or to_price",
        ),
        (2, waits, "is a coroutine or generator function"),
        (2, yields, "is a coroutine or generator function"),
        (2, two, "must take one argument"),
        (2, nothing, "must take one argument"),
        (2, 5, "an upcast must be a function, not int"),
    ],
)
def test_an_upcast_that_cannot_be_is_refused_at_once(pubsub, from_version, function: Callable[..., Any], why):
    orders = pubsub.topic("orders", version=3)
    orders.upcast(from_version=1)(to_cents)

    with pytest.raises(ConfigurationError, match=why) as caught:
        orders.upcast(from_version=from_version)(function)
    assert not isinstance(caught.value, SubscriptionError)


def test_upcasts_of_a_flask_app_are_those_of_its_topic():
    app = Flask("shop")
    pubsub = FlaskPubSub(app, url="memory://")
    orders = pubsub.topic("orders", OrderV2, version=2)
    orders.upcast(from_version=1)(to_cents)
    seen = []

    @orders.subscribe()
    def take(order: OrderV2) -> None:
        seen.append(order)

    (subscription,) = pubsub.subscriptions()

    assert subscription.decode(stored(b'{"order_id":1,"total":0.5}')) == OrderV2(order_id=1, total_cents=50)
