"""PUBSUB_EAGER: what is published is handled before the outermost publish returns."""

import threading

import pytest
from flask import Flask, g

import pubsub_core
import pubsub_flask
from pubsub_core import ConfigurationError, FixedDelay, ManualClock, Message, NeverIdle, PubSub, ValidationError


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def pubsub(clock):
    return PubSub("memory://", group="tests", eager=True, clock=clock)


def test_a_publish_is_handled_before_it_returns_on_the_same_thread(pubsub):
    seen = []

    @pubsub.subscribe("orders")
    def note(message: Message) -> None:
        seen.append((message.payload, threading.get_ident()))

    pubsub.publish("orders", {"total": 9.5})
    assert seen == [({"total": 9.5}, threading.get_ident())]


def test_payloads_are_serialised_all_the_same(pubsub):
    seen = []
    payload = {"ids": (1, 2)}

    @pubsub.subscribe("orders")
    def note(message: Message) -> None:
        seen.append(message.payload)

    pubsub.publish("orders", payload)
    assert seen == [{"ids": [1, 2]}]
    with pytest.raises(ValidationError):
        pubsub.publish("orders", object())


def test_what_handlers_publish_is_handled_by_the_outermost(pubsub):
    seen = []

    @pubsub.subscribe("first")
    def first(_: Message) -> None:
        pubsub.publish("second", 1)
        seen.append("first is done")

    @pubsub.subscribe("second")
    async def second(_: Message) -> None:
        seen.append("second")
        pubsub.publish("third", 1)
        seen.append("second is done")

    @pubsub.subscribe("third")
    def third(_: Message) -> None:
        seen.append("third")

    pubsub.publish("first", 1)
    assert seen == ["first is done", "second", "second is done", "third"]


def test_a_batch_is_handled_when_it_is_sent(pubsub):
    seen = []

    @pubsub.subscribe("orders")
    def note(message: Message) -> None:
        seen.append(message.payload)

    with pubsub.batch() as batch:
        batch.publish("orders", 1)
        batch.publish("orders", 2)
        assert seen == []
    assert seen == [1, 2]


def test_what_a_handler_raises_is_raised_to_the_publisher_and_retried_by_policy(pubsub, clock):
    attempts = []

    @pubsub.subscribe("orders", retry=FixedDelay(30, max_retries=1))
    def fail_once(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise KeyError("once")

    with pytest.raises(KeyError, match="once"):
        pubsub.publish("orders", 1)
    pubsub.publish("others", 1)
    assert attempts == [1]
    clock.advance(30)
    pubsub.publish("others", 1)
    assert attempts == [1, 2]


def test_a_loop_of_publishes_is_found_out(pubsub):
    @pubsub.subscribe("orders")
    def again(message: Message) -> None:
        pubsub.publish("orders", message.payload + 1)

    with pytest.raises(NeverIdle, match="again, handler of topic 'orders'"):
        pubsub.publish("orders", 1)


def test_a_publish_of_another_thread_waits_for_nobody(pubsub):
    seen = []

    @pubsub.subscribe("orders")
    def publish_elsewhere(_: Message) -> None:
        thread = threading.Thread(target=pubsub.publish, args=("mails", 1))
        thread.start()
        thread.join(10)
        seen.append(("orders", thread.is_alive()))

    @pubsub.subscribe("mails")
    def mail(_: Message) -> None:
        seen.append(("mails", threading.get_ident()))

    pubsub.publish("orders", 1)
    assert seen == [("orders", False), ("mails", threading.get_ident())]


def test_each_flask_app_has_its_own_and_a_fresh_context(monkeypatch):
    pubsub = pubsub_flask.PubSub()
    seen = []

    @pubsub.subscribe("orders", group="billing")
    def charge(_: Message) -> None:
        seen.append((pubsub_flask.current_pubsub.settings.group, "user" in g))

    apps = []
    for name in ("first", "second"):
        app = Flask(name)
        app.config.update(PUBSUB_EAGER=True, PUBSUB_GROUP=name)
        pubsub.init_app(app)
        apps.append(app)
    for app in apps:
        with app.test_request_context():
            g.user = "ada"
            pubsub.publish("orders", 1)
            assert g.user == "ada"
    assert seen == [("first", False), ("second", False)]


@pytest.mark.parametrize("value", [True, "1", "true", "Yes", "on"])
def test_it_is_a_flag(value):
    assert PubSub("memory://", eager=value).settings.eager


@pytest.mark.parametrize("value", ["false", "0", "off", False])
def test_it_may_be_off_anywhere(value):
    assert not PubSub("redis://localhost", eager=value).settings.eager


def test_it_is_refused_elsewhere_with_what_to_do():
    with pytest.raises(
        ConfigurationError, match=r"PUBSUB_EAGER works with memory:// only, and PUBSUB_URL is redis://h"
    ):
        PubSub("redis://h", eager=True)
    with pytest.raises(ConfigurationError, match="PUBSUB_EAGER='perhaps' cannot be: it must be true or false"):
        pubsub_core.PubSub("memory://", eager="perhaps")
