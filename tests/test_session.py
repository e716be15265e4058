"""`pubsub.session`: sent at commit, and never otherwise."""

import logging
from typing import Any

import pytest
from flask import Flask, abort

from pubsub_core import BrokerUnavailable
from pubsub_core.worker.process import Worker
from pubsub_flask import ConfigurationError, Message, Producer, PubSub


@pytest.fixture
def app() -> Flask:
    return Flask("shop")


@pytest.fixture
def pubsub(app: Flask) -> PubSub:
    return PubSub(app, url="memory://")


@pytest.fixture
def seen(pubsub: PubSub) -> list[Any]:
    seen: list[Any] = []
    pubsub.subscribe("orders")(lambda message: seen.append(message.payload))
    return seen


def handle_all(pubsub: PubSub) -> None:
    with Worker(pubsub, threads=1, burst=True) as worker:
        assert worker.wait(20)
    assert worker.failure is None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_session_sends_in_order_at_commit(app: Flask, pubsub: PubSub, seen: list[Any], caplog: Any) -> None:
    @app.post("/")
    def place() -> Any:
        ids = [pubsub.session.publish("orders", number) for number in range(3)]
        handle_all(pubsub)
        assert seen == []
        assert list(pubsub.session.commit()) == list(pubsub.session.ids) == ids
        assert pubsub.session.commit() == ()
        return "", 202

    assert app.test_client().post("/").status_code == 202
    handle_all(pubsub)
    assert seen == [0, 1, 2]
    assert warnings(caplog) == []


def test_what_is_not_committed_is_discarded_with_a_warning(
    app: Flask, pubsub: PubSub, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with app.app_context():
        pubsub.session.publish("orders", "sent")
        pubsub.session.commit()
        for topic in ("orders", "refunds", "orders"):
            pubsub.session.publish(topic, "secret")

    handle_all(pubsub)
    assert seen == ["sent"]
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert record.getMessage() == (
        "3 messages of a session were not committed, and are discarded: 2 of 'orders', 1 of 'refunds'"
    )
    assert (vars(record)["discarded"], vars(record)["topics"]) == (3, ["orders", "refunds"])
    assert "secret" not in str(vars(record))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("way", ["raise", "abort"])
def test_nothing_is_sent_after_an_exception(
    app: Flask, pubsub: PubSub, seen: list[Any], caplog: pytest.LogCaptureFixture, way: str, outer: bool
) -> None:
    @app.post("/fail")
    def fail() -> str:
        pubsub.session.publish("orders", 1)
        if way == "abort":
            abort(409)
        raise ZeroDivisionError

    @app.post("/next")
    def go_on() -> str:
        pubsub.session.publish("orders", 2)
        pubsub.session.commit()
        return ""

    client = app.test_client()
    if outer:  # as in a fixture of a test: before Flask 3.2 all requests within share its `g`
        with app.app_context():
            pubsub.session.publish("orders", "of the outer context")
            assert client.post("/fail").status_code == (409 if way == "abort" else 500)
            assert client.post("/next").status_code == 200
            pubsub.session.commit()
    else:
        assert client.post("/fail").status_code == (409 if way == "abort" else 500)
        assert client.post("/next").status_code == 200

    handle_all(pubsub)
    assert seen == ([2, "of the outer context"] if outer else [2])
    end = "" if way == "abort" else " before ZeroDivisionError"
    assert warnings(caplog) == [f"1 messages of a session were not committed{end}, and are discarded: 1 of 'orders'"]


def test_contexts_within_one_another_are_apart(app: Flask, pubsub: PubSub, seen: list[Any], caplog: Any) -> None:
    with app.app_context():
        pubsub.session.publish("orders", "outer")
        with app.app_context():
            pubsub.session.publish("orders", "inner, committed")
            pubsub.session.commit()
            pubsub.session.publish("orders", "inner, forgotten")
        pubsub.session.commit()

    handle_all(pubsub)
    assert seen == ["inner, committed", "outer"]
    assert len(warnings(caplog)) == 1


def test_each_app_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    pubsub, apps = PubSub(), [Flask("a"), Flask("b")]
    for app in apps:
        app.config["PUBSUB_URL"] = f"memory://session-{app.name}"
        pubsub.init_app(app)
    with apps[0].app_context():
        pubsub.session.publish("orders", 1)
        with apps[1].app_context():
            assert pubsub.session.commit() == ()
        assert len(pubsub.session.commit()) == 1
    with apps[0].app_context(), pytest.raises(ConfigurationError, match="of 'a', another app"):
        _ = pubsub.bound_to(apps[1]).session
    assert warnings(caplog) == []


def test_outside_of_a_context_it_says_what_to_do(pubsub: PubSub) -> None:
    with pytest.raises(ConfigurationError, match="there is none here: use it within a request, a handler or"):
        _ = pubsub.session
    with Flask("other").app_context(), pytest.raises(ConfigurationError, match="that of 'other', another app"):
        _ = pubsub.session


def test_each_delivery_has_a_session(app: Flask, pubsub: PubSub, seen: list[Any], caplog: Any) -> None:
    @pubsub.subscribe("wanted")
    def wanted(message: Message) -> None:
        pubsub.session.publish("orders", message.payload)
        assert len(pubsub.session.commit()) == 1
        pubsub.session.publish("orders", -message.payload)

    for number in (1, 2):
        pubsub.publish("wanted", number)
    handle_all(pubsub)
    assert seen == [1, 2]
    assert len(warnings(caplog)) == 2


def test_commit_that_failed_may_be_repeated_in_the_same_context(
    app: Flask, pubsub: PubSub, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = pubsub.runtime.broker

    def unavailable(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("gone")

    with app.app_context():
        pubsub.session.publish("orders", 1)
        with monkeypatch.context() as patch, pytest.raises(BrokerUnavailable):
            patch.setattr(broker, "publish", unavailable)
            pubsub.session.commit()
        pubsub.session.commit()
    handle_all(pubsub)
    assert seen == [1]


def test_a_producer_has_the_session_of_the_pubsub_beside_it(
    app: Flask, pubsub: PubSub, seen: list[Any], caplog: Any
) -> None:
    producer = Producer()
    producer.init_app(app)
    with app.app_context():
        producer.session.add("orders", 1)
        pubsub.session.publish("orders", 2)
        assert len(producer.session.commit()) == 2
        producer.session.add("orders", 3)
    with Flask("other").app_context():
        session = producer.session
        session.add("orders", 4)
        session.commit()
    handle_all(pubsub)
    assert seen == [1, 2, 4]
    assert warnings(caplog) == ["1 messages of a session were not committed, and are discarded: 1 of 'orders'"]


def test_an_app_that_has_served_a_request_may_still_get_a_session(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("late")
    app.test_client().get("/")
    pubsub = PubSub(app, url="memory://")
    with app.app_context():
        pubsub.session.publish("orders", 1)
    assert len(warnings(caplog)) == 1
