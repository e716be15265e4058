"""What a message takes over from where it is published, and what a log record says of the message at work."""

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Flask, g, request

import pubsub_core
import pubsub_flask
from pubsub_core import ConfigurationError, ContextFilter, Message, NoRetry, PubSub, ValidationError
from pubsub_core.logs import WorkerFormatter
from tests.waiting import handle_all

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def pubsub() -> PubSub:
    return PubSub("memory://", group="billing")


def recorded(pubsub: pubsub_core.PubSub, topic: str = "orders") -> list[Message[Any]]:
    seen: list[Message[Any]] = []
    pubsub.subscribe(topic)(seen.append)
    return seen


# Inheriting


def test_a_message_from_nowhere_is_correlated_by_its_own_id(pubsub: PubSub) -> None:
    seen = recorded(pubsub)
    message_id = pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert dict(seen[0].headers) == {"correlation-id": message_id}


def test_what_a_handler_publishes_inherits_correlation_and_trace(pubsub: PubSub) -> None:
    seen = recorded(pubsub, "last")

    @pubsub.subscribe("first")
    def first(message: Message) -> None:
        pubsub.publish("second", 1)

    @pubsub.subscribe("second")
    async def second(message: Message) -> None:
        with pubsub.batch() as batch:
            batch.publish("last", "inherits")
            batch.publish("last", "says", headers={"correlation-id": "its own", "traceparent": "none"})

    pubsub.publish("first", 1, headers={"correlation-id": "c-1", "traceparent": TRACE, "campaign": "spring"})
    handle_all(pubsub)
    assert {one.payload: dict(one.headers) for one in seen} == {
        "inherits": {"correlation-id": "c-1", "traceparent": TRACE},
        "says": {"correlation-id": "its own", "traceparent": "none"},
    }


# Headers of one's own


def test_hooks_add_headers_to_each_publish_and_given_ones_win(pubsub: PubSub) -> None:
    seen = recorded(pubsub)
    tenants = iter(["acme", "umbrella", "acme"])

    @pubsub.headers
    def of_tenant() -> Mapping[str, str]:
        return {"tenant": next(tenants), "user": "nobody"}

    @pubsub.headers
    def of_user() -> Mapping[str, str]:
        return {"user": "ada", "correlation-id": "by the hook"}

    assert of_tenant.__name__ == "of_tenant"
    pubsub.publish("orders", 1)
    with pubsub.batch() as batch:
        batch.publish("orders", 2, headers={"tenant": "given", "campaign": "spring"})
    handle_all(pubsub)
    assert [dict(one.headers) for one in seen] == [
        {"tenant": "acme", "user": "ada", "correlation-id": "by the hook"},
        {"tenant": "given", "user": "ada", "campaign": "spring", "correlation-id": "by the hook"},
    ]


def test_a_hook_that_raises_or_returns_no_text_stops_the_publish(pubsub: PubSub) -> None:
    seen = recorded(pubsub)
    answers: list[Any] = [None, {"tenant": 7}, {7: "tenant"}, "tenant"]

    @pubsub.headers
    def tenant() -> Any:
        if not answers:
            raise PermissionError("no tenant")
        return answers.pop()

    for _ in range(4):
        with pytest.raises(ValidationError, match=r"headers on topic 'orders', by .*tenant: (they are a|names)"):
            pubsub.publish("orders", 1)
    with pytest.raises(PermissionError, match="no tenant"):
        pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert seen == []


def test_a_hook_that_nobody_would_await_is_refused(pubsub: PubSub) -> None:
    async def tenant() -> Mapping[str, str]:
        return {}

    with pytest.raises(ConfigurationError, match=r"tenant is an `async def`, and cannot be headers: make it a plain"):
        pubsub.headers(tenant)  # type: ignore[arg-type]


# In a request


@pytest.fixture
def shop() -> tuple[Flask, pubsub_flask.PubSub, list[Message[Any]]]:
    app = Flask("shop")
    pubsub = pubsub_flask.PubSub(app, url="memory://")
    seen = recorded(pubsub)

    @app.post("/")
    def place() -> str:
        pubsub.publish("orders", 1)
        pubsub.session.publish("orders", 2)
        pubsub.session.commit()
        return ""

    return app, pubsub, seen


@pytest.mark.parametrize(
    ("headers", "correlation_id", "trace"),
    [
        ({"X-Request-ID": "req-7"}, "req-7", None),
        ({"traceparent": TRACE}, TRACE_ID, TRACE),
        ({"X-Request-ID": "req-7", "traceparent": TRACE}, "req-7", TRACE),
        ({"X-Request-ID": "x" * 201}, None, None),
        ({"X-Request-ID": "two words", "traceparent": TRACE}, TRACE_ID, TRACE),
        ({"X-Request-ID": "naïve"}, None, None),
        ({"traceparent": TRACE.upper()}, None, None),
        ({"traceparent": f"ff{TRACE[2:]}"}, None, None),
        ({"traceparent": TRACE.replace(TRACE_ID, "0" * 32)}, None, None),
        ({"traceparent": f"{TRACE}-more"}, None, None),
        ({}, None, None),
    ],
)
def test_messages_of_a_request_inherit_its_ids(shop: Any, headers: Any, correlation_id: Any, trace: Any) -> None:
    app, pubsub, seen = shop
    client = app.test_client()
    assert client.post("/", headers=headers).status_code == 200
    assert client.post("/", headers=headers).status_code == 200
    handle_all(pubsub)

    for one in seen:
        assert one.headers.get("traceparent") == trace
    first, second, third, fourth = [one.headers["correlation-id"] for one in seen]
    assert first == second
    assert third == fourth
    if correlation_id is not None:
        assert first == third == correlation_id
    else:
        assert first != third
        assert re.fullmatch(r"[0-9a-f-]{36}", first)


def test_a_handler_inherits_from_its_message_also_within_a_request_of_its_own(shop: Any) -> None:
    app, pubsub, seen = shop

    @pubsub.subscribe("wanted")
    def wanted(message: Message) -> None:
        with app.test_request_context(headers={"X-Request-ID": "of the handler's making"}):
            pubsub.publish("orders", 1)

    pubsub.publish("wanted", 1, headers={"correlation-id": "c-1"})
    handle_all(pubsub)
    assert [one.headers["correlation-id"] for one in seen] == ["c-1"]


def test_a_hook_may_look_at_the_request(shop: Any) -> None:
    app, pubsub, seen = shop

    @app.before_request
    def find_tenant() -> None:
        g.tenant = request.headers["X-Tenant"]

    @pubsub.headers
    def tenant() -> Mapping[str, str]:
        return {"tenant": g.tenant}

    app.test_client().post("/", headers={"X-Tenant": "acme"})
    handle_all(pubsub)
    assert [one.headers.get("tenant") for one in seen] == ["acme", "acme"]


# Logs


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Any:
    kept = Kept()
    kept.addFilter(ContextFilter())
    logging.getLogger().addHandler(kept)
    yield kept
    logging.getLogger().removeHandler(kept)


def fields(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(vars(record)[name] for name in ("topic", "message_id", "group", "attempt", "correlation_id"))


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_records_of_a_handler_name_its_message(pubsub: PubSub, kept: Kept, kind: str) -> None:
    def charge(message: Message) -> None:
        logging.getLogger("shop.billing").warning("charging")
        logging.getLogger("shop").warning("extra", extra={"topic": "said here"})

    async def charge_async(message: Message) -> None:
        charge(message)

    pubsub.subscribe("orders")(charge_async if kind == "async" else charge)
    message_id = pubsub.publish("orders", 1, headers={"correlation-id": "c-1"})
    handle_all(pubsub)
    logging.getLogger("shop").warning("outside")

    inside, extra, outside = [one for one in kept.records if one.name.startswith("shop")]
    assert fields(inside) == ("orders", message_id, "billing", 1, "c-1")
    assert fields(extra) == ("said here", message_id, "billing", 1, "c-1")
    assert fields(outside) == (None,) * 5


def test_our_own_records_have_the_same_fields(pubsub: PubSub, kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pubsub")

    @pubsub.subscribe("orders", retry=NoRetry())
    def charge(message: Message) -> None:
        raise ValueError

    message_id = pubsub.publish("orders", 1)
    handle_all(pubsub)
    about = [one for one in kept.records if one.name == "pubsub" and vars(one)["message_id"]]
    assert len(about) == 2
    for record in about:
        assert fields(record) == ("orders", message_id, "billing", 1, message_id)


def test_fields_outside_of_a_handler_may_be_chosen() -> None:
    record = logging.makeLogRecord({"group": "kept"})
    assert ContextFilter(outside="-").filter(record)
    assert fields(record) == ("-", "-", "kept", "-", "-")


def test_a_thread_that_a_handler_starts_is_outside(pubsub: PubSub, kept: Kept) -> None:
    @pubsub.subscribe("orders")
    def charge(message: Message) -> None:
        thread = threading.Thread(target=logging.getLogger("shop").warning, args=("from a thread",))
        thread.start()
        thread.join()

    pubsub.publish("orders", 1)
    handle_all(pubsub)
    (record,) = [one for one in kept.records if one.name == "shop"]
    assert fields(record) == (None,) * 5


def test_the_workers_lines_say_which_message_a_handler_logged_about() -> None:
    formatter = WorkerFormatter("%(levelname)s %(message)s")
    facts = {"topic": "orders", "message_id": "id-1", "attempt": 2, "levelname": "INFO", "msg": "charging"}
    try:
        raise ValueError("broken")
    except ValueError as error:
        failed = (ValueError, error, error.__traceback__)

    def line(**more: Any) -> str:
        return formatter.format(logging.makeLogRecord({**facts, "name": "shop", **more}))

    assert line() == "INFO charging [orders id-1 attempt 2]"
    assert line(name="pubsub") == line(message_id=None) == "INFO charging"
    first, *_, last = line(exc_info=failed).splitlines()
    assert (first, last) == ("INFO charging [orders id-1 attempt 2]", "ValueError: broken")
