"""The test kit keeps what it promises, in the same way on memory, on fakeredis and on a real server."""

import asyncio
import contextvars
import threading
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest
from flask import Flask, g, has_request_context
from pydantic import BaseModel
from redis import Redis

import pubsub_core
import pubsub_flask
from pubsub_core import (
    BrokerUnavailable,
    ConfigurationError,
    FixedDelay,
    HandlerTimeout,
    InvalidPayload,
    ManualClock,
    Message,
    NeverIdle,
    NoRetry,
    PublishUncertain,
    Reject,
    Retry,
    Topic,
    current_message,
)
from pubsub_core.testing.kit import Kit

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


class Order(BaseModel):
    order_id: int
    total: float = 9.5


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param("memory", marks=pytest.mark.pubsub(url="memory://")),
        pytest.param("fakeredis", marks=pytest.mark.pubsub(url="fakeredis://")),
        pytest.param("embedded", marks=pytest.mark.pubsub(url="redis+embedded://")),
    ],
)
def _on_each_backend(_pubsub_kit) -> None:
    """See pytest's ids: every test here runs on each."""


@pytest.fixture
def orders(pubsub) -> Topic[Order]:
    return pubsub.topic("orders", Order)


# Running


def test_nothing_runs_before_run_until_idle_and_all_of_it_then(orders, run_until_idle):
    seen = []

    @orders.subscribe()
    def note(order: Order) -> None:
        seen.append((order.order_id, threading.get_ident()))

    for number in range(3):
        orders.publish(Order(order_id=number))
    assert seen == []
    assert run_until_idle() == 3
    assert seen == [(number, threading.get_ident()) for number in range(3)]
    assert run_until_idle() == 0


def test_what_handlers_publish_is_handled_too_in_the_order_of_declaring(pubsub, orders, run_until_idle):
    seen = []

    @orders.subscribe(group="second")
    def second(order: Order) -> None:
        seen.append(f"second {order.order_id}")

    @orders.subscribe(group="first")
    def first(order: Order) -> None:
        seen.append(f"first {order.order_id}")
        pubsub.publish("mails", order.order_id)

    @pubsub.subscribe("mails")
    def mail(message: Message) -> None:
        seen.append(f"mail {message.payload}")

    orders.publish(Order(order_id=1))
    orders.publish(Order(order_id=2))
    assert run_until_idle() == 6
    assert seen == ["second 1", "first 1", "second 2", "first 2", "mail 1", "mail 2"]


def test_async_handlers_run_and_share_one_loop_in_a_test(pubsub, run_until_idle):
    loops = []

    @pubsub.subscribe("orders")
    async def note(message: Message) -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        if message.payload == 1:
            raise KeyError("async")

    pubsub.publish("orders", 0)
    run_until_idle()
    pubsub.publish("orders", 1)
    with pytest.raises(KeyError, match="async"):
        run_until_idle()
    assert len(loops) == 2
    assert loops[0] is loops[1]


def test_a_handler_sees_nothing_of_the_tests_context(pubsub, run_until_idle):
    seen = []
    tenant = contextvars.ContextVar("tenant", default="none")
    tenant.set("the test's")

    @pubsub.subscribe("orders")
    def note(_: Message) -> None:
        seen.append((tenant.get(), current_message().payload))

    pubsub.publish("orders", 1)
    run_until_idle()
    assert seen == [("none", 1)]


def test_what_a_handler_raises_is_raised_with_what_became_of_the_message(orders, run_until_idle, pubsub_clock):
    error = ValueError("no such order")
    attempts = []

    @orders.subscribe(group="billing", retry=FixedDelay(30, max_retries=1))
    def charge(message: Message[Order]) -> None:
        attempts.append(message.attempt)
        raise error

    message_id = orders.publish(Order(order_id=1))
    orders.publish(Order(order_id=2))
    with pytest.raises(ValueError, match="no such order") as caught:
        run_until_idle()
    assert caught.value is error
    (note,) = error.__notes__
    assert "charge, handler of topic 'orders' as group 'billing'" in note
    assert message_id in note
    assert "attempt 1: to be retried in 30 s" in note
    assert attempts == [1]  # the second order waits for the next call

    assert run_until_idle(errors="retry") == 1
    pubsub_clock.advance(30)
    with pytest.raises(ValueError, match="no such order"):
        run_until_idle()
    assert "now a dead letter (retries exhausted)" in error.__notes__[-1]


def test_retries_are_seen_by_moving_the_clock(orders, run_until_idle, pubsub_clock):
    seen = []

    @orders.subscribe(retry=FixedDelay(30, max_retries=2))
    def fail(message: Message[Order]) -> None:
        seen.append((message.attempt, pubsub_clock.now() - BEGIN))
        raise ValueError

    orders.publish(Order(order_id=1))
    assert run_until_idle(errors="retry") == 1
    pubsub_clock.advance(29.999)
    assert run_until_idle(errors="retry") == 0
    pubsub_clock.advance(0.001)
    assert run_until_idle(errors="retry") == 1
    pubsub_clock.advance(timedelta(seconds=30))
    assert run_until_idle(errors="retry") == 1
    assert seen == [(number, timedelta(seconds=30 * (number - 1))) for number in (1, 2, 3)]


def test_retry_and_reject_are_no_errors(pubsub, orders, run_until_idle, pubsub_clock):
    @orders.subscribe(group="g")
    def ask_again(message: Message[Order]) -> None:
        if message.attempt == 1:
            raise Retry(delay=5)
        raise Reject("not this one")

    orders.publish(Order(order_id=1))
    run_until_idle()
    pubsub_clock.advance(5)
    run_until_idle()
    assert [letter.reason.kind for letter in pubsub.dead_letters(orders, group="g")] == ["rejected"]


def test_a_message_that_does_not_come_to_its_handler_is_an_error(pubsub, run_until_idle):
    @pubsub.subscribe("orders", group="g")
    def charge(order: Order) -> None:
        raise AssertionError(order)

    pubsub.publish("orders", {"id": 1})
    with pytest.raises(InvalidPayload, match="order_id"):
        run_until_idle()
    assert [letter.reason.kind for letter in pubsub.dead_letters("orders", group="g")] == ["invalid payload"]


def test_skip_fail_and_ctrl_c_in_a_handler_are_for_the_test(pubsub, run_until_idle):
    @pubsub.subscribe("orders")
    def handle(message: Message) -> None:
        if message.payload == "fail":
            pytest.fail("in the handler")
        raise KeyboardInterrupt

    pubsub.publish("orders", "fail")
    with pytest.raises(pytest.fail.Exception, match="in the handler"):
        run_until_idle(errors="retry")
    pubsub.publish("orders", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        run_until_idle(errors="retry")


def test_a_retry_policy_that_raises_is_not_hidden(pubsub, run_until_idle):
    class Broken:
        def next_delay(self, attempt: int, error: Exception) -> float | None:
            raise ZeroDivisionError

    @pubsub.subscribe("orders", retry=Broken())
    def handle(_: Message) -> None:
        raise ValueError

    pubsub.publish("orders", 1)
    with pytest.raises(ZeroDivisionError):
        run_until_idle(errors="retry")


def test_a_timeout_is_kept(pubsub, run_until_idle):
    @pubsub.subscribe("orders", timeout=0.1, retry=NoRetry())
    def handle(_: Message) -> None:
        while True:
            threading.Event().wait(0.01)

    pubsub.publish("orders", 1)
    with pytest.raises(HandlerTimeout, match=r"longer than its timeout of 0\.1 s"):
        run_until_idle()


def test_a_handler_that_will_not_stop_is_given_up(pubsub, run_until_idle, monkeypatch):
    monkeypatch.setattr("pubsub_core.worker.timeouts.GRACE", 0.05)
    attempts = []

    @pubsub.subscribe("orders", timeout=0.05, retry=FixedDelay(0, max_retries=1))
    def handle(message: Message) -> None:
        attempts.append(message.attempt)
        deadline = monotonic() + 0.5
        while message.attempt == 1 and monotonic() < deadline:
            try:
                threading.Event().wait(0.01)
            except HandlerTimeout:
                continue

    pubsub.publish("orders", 1)
    with pytest.raises(HandlerTimeout, match="longer than its timeout"):
        run_until_idle()
    assert run_until_idle() == 1
    assert attempts == [1, 2]


def test_a_handler_that_publishes_to_itself_is_found_out(pubsub, run_until_idle):
    @pubsub.subscribe("orders")
    def again(message: Message) -> None:
        pubsub.publish("orders", message.payload + 1)

    pubsub.publish("orders", 0)
    with pytest.raises(NeverIdle, match=r"50 deliveries were handled.*50 by .*again, handler of topic 'orders'"):
        run_until_idle(limit=50)


def test_run_until_idle_inside_of_a_handler_is_refused(pubsub, run_until_idle):
    @pubsub.subscribe("orders")
    def handle(_: Message) -> None:
        run_until_idle()

    pubsub.publish("orders", 1)
    with pytest.raises(pubsub_core.PubSubError, match="inside of a handler"):
        run_until_idle()


# Time


def test_delays_and_expiry_go_by_the_clock(orders, pubsub, run_until_idle, pubsub_clock):
    seen = []

    @orders.subscribe(group="g")
    def note(order: Order) -> None:
        seen.append(order.order_id)

    orders.publish(Order(order_id=1), delay=60)
    orders.publish(Order(order_id=2), at=BEGIN + timedelta(days=2))
    orders.publish(Order(order_id=3), expires=5)
    pubsub_clock.advance(10)
    run_until_idle()
    assert [letter.reason.kind for letter in pubsub.dead_letters(orders, group="g")] == ["expired"]
    assert seen == []
    pubsub_clock.advance(50)
    run_until_idle()
    assert seen == [1]
    pubsub_clock.advance(timedelta(days=2))
    run_until_idle()
    assert seen == [1, 2]


def test_deduplication_goes_by_the_clock(orders, pubsub_clock, published):
    first = orders.publish(Order(order_id=1), dedup=("key", 300))
    pubsub_clock.advance(299)
    assert orders.publish(Order(order_id=1), dedup=("key", 300)) == first
    assert len(published(orders)) == 1
    pubsub_clock.advance(1)
    assert orders.publish(Order(order_id=1), dedup=("key", 300)) != first
    assert len(published(orders)) == 2


def test_every_tick_that_passed_is_fired_for_its_time(pubsub, run_until_idle, pubsub_clock, published):
    seen = []

    @pubsub.every(60, name="minutely")
    def tick(message: Message) -> None:
        seen.append((message.scheduled_for, message.source))

    @pubsub.cron("0 6 * * *", tz="Europe/Berlin")
    def morning() -> None:
        seen.append("morning")

    pubsub_clock.advance(180)
    run_until_idle()
    assert seen == [(BEGIN + timedelta(seconds=60 * number), "cron") for number in (1, 2, 3)]
    assert len(published("minutely")) == 3
    assert run_until_idle() == 0
    pubsub_clock.advance(timedelta(hours=5) - timedelta(minutes=3))
    run_until_idle()
    assert seen.count("morning") == 1


def test_a_schedule_that_is_declared_later_misses_nothing_since(pubsub, run_until_idle, pubsub_clock, published):
    pubsub.topic("first").schedule(60, None)
    pubsub_clock.advance(60)
    pubsub.topic("second").schedule(60, None)
    pubsub_clock.advance(60)
    run_until_idle()
    assert [len(published(topic)) for topic in ("first", "second")] == [2, 1]


def test_a_group_that_begins_with_the_latest_gets_what_comes_after_its_declaration(pubsub, run_until_idle):
    seen = []
    pubsub.publish("orders", "before")

    @pubsub.subscribe("orders", start="latest")
    def note(message: Message) -> None:
        seen.append(message.payload)

    pubsub.publish("orders", "after")
    run_until_idle()
    assert seen == ["after"]


def test_a_group_may_begin_at_a_moment_of_the_clock(pubsub, run_until_idle, pubsub_clock):
    seen = []
    pubsub.publish("orders", "before")
    pubsub_clock.advance(60)
    pubsub.publish("orders", "after")

    @pubsub.subscribe("orders", start=BEGIN + timedelta(seconds=30))
    def note(message: Message) -> None:
        seen.append((message.payload, message.published_at))

    run_until_idle()
    assert seen == [("after", BEGIN + timedelta(seconds=60))]


def test_dead_letters_are_replayed_and_have_the_clocks_time(pubsub, run_until_idle, pubsub_clock):
    attempts = []

    @pubsub.subscribe("orders", group="g", retry=NoRetry())
    def fail_once(message: Message) -> None:
        attempts.append((message.source, message.attempt))
        if len(attempts) == 1:
            raise ValueError

    pubsub.publish("orders", 1)
    pubsub_clock.advance(60)
    run_until_idle(errors="retry")
    letters = pubsub.dead_letters("orders", group="g")
    assert [letter.last_failed_at for letter in letters] == [BEGIN + timedelta(seconds=60)]
    assert letters.replay() == 1
    run_until_idle()
    assert attempts == [("publish", 1), ("replay", 1)]


# Published


def test_published_has_payloads_of_the_topics_type_in_order(orders, published):
    with pytest.raises(pubsub_core.ValidationError):
        orders.publish("no order")
    ids = [orders.publish(Order(order_id=number), key=str(number)) for number in (1, 2)]
    with orders._pubsub.batch() as batch:
        batch.publish(orders, Order(order_id=3), delay=60)
    assert published("orders").payloads == [Order(order_id=number) for number in (1, 2, 3)]
    assert published(orders) == published("orders")
    assert published(orders).ids == [*ids, *batch.ids]
    assert published(orders)[0].key == "1"
    assert [one.payload.order_id for one in published(orders)] == [1, 2, 3]
    assert published(orders).delayed.only().due_at == BEGIN + timedelta(seconds=60)
    assert len(published(orders)) == 3


def test_where_takes_fields_keys_and_predicates(pubsub, orders, published):
    orders.publish(Order(order_id=1, total=5))
    orders.publish(Order(order_id=2, total=5))
    pubsub.publish("mails", {"to": "ada"})
    assert published(orders).where(total=5).where(lambda order: order.order_id > 1).only().payload.order_id == 2
    assert published("mails").where(to="ada").only().payload == {"to": "ada"}
    assert not published("mails").where(cc="ada")


def test_a_publish_under_the_same_id_is_one(orders, published):
    message_id = orders.publish(Order(order_id=1))
    orders.publish(Order(order_id=1), id=message_id)
    assert published(orders).ids == [message_id]


def test_a_topic_that_nobody_declared_is_an_error(orders, published):
    with pytest.raises(ConfigurationError, match=r"'ordes'. Did you mean 'orders'\? Declared: 'orders'"):
        published("ordes")


# Faults


def test_a_crash_before_the_ack_brings_the_message_again(pubsub, orders, run_until_idle, pubsub_faults):
    seen = []

    @orders.subscribe(group="g")
    def note(message: Message[Order]) -> None:
        seen.append((message.payload.order_id, message.attempt))

    @pubsub.subscribe(orders, group="other")
    def other(message: Message) -> None:
        seen.append(("other", message.attempt))

    orders.publish(Order(order_id=1))
    pubsub_faults.crash_before_ack(orders, group="g")
    assert run_until_idle() == 3
    assert seen == [(1, 1), (1, 2), ("other", 1)] or seen == [(1, 1), ("other", 1), (1, 2)]


def test_a_message_that_crashes_too_often_is_a_dead_letter(pubsub, orders, run_until_idle, pubsub_faults):
    @orders.subscribe(group="g")
    def note(_: Message) -> None: ...

    orders.publish(Order(order_id=1))
    pubsub_faults.crash_before_ack(times=3)
    run_until_idle()
    (letter,) = pubsub.dead_letters(orders, group="g")
    assert letter.reason.kind == "crashed"


def test_what_was_acknowledged_is_delivered_again(orders, run_until_idle, pubsub_faults):
    seen = []

    @orders.subscribe()
    def note(message: Message[Order]) -> None:
        seen.append((message.payload.order_id, message.attempt))

    orders.publish(Order(order_id=1))
    with pytest.raises(AssertionError, match="nothing was acknowledged on topic 'orders'"):
        pubsub_faults.redeliver(orders)
    run_until_idle()
    assert pubsub_faults.redeliver(orders) == 1
    assert run_until_idle() == 1
    assert run_until_idle() == 0
    assert seen == [(1, 1), (1, 2)]


def test_a_publish_fails_and_nothing_is_stored(pubsub, orders, run_until_idle, published, pubsub_faults):
    @orders.subscribe()
    def note(_: Message) -> None: ...

    pubsub_faults.fail_publish(orders)
    pubsub.publish("other", 1)
    with pytest.raises(BrokerUnavailable, match="ordered by pubsub_faults"):
        orders.publish(Order(order_id=1))
    assert run_until_idle() == 0
    assert not published(orders)


@pytest.mark.parametrize("stored", [True, False])
def test_the_reply_of_a_publish_is_lost(orders, run_until_idle, published, pubsub_faults, stored):
    @orders.subscribe()
    def note(_: Message) -> None: ...

    pubsub_faults.lose_reply(stored=stored)
    with pytest.raises(PublishUncertain) as caught:
        orders.publish(Order(order_id=1))
    assert run_until_idle() == int(stored)
    (message_id,) = caught.value.message_ids
    orders.publish(Order(order_id=1), id=message_id)
    assert run_until_idle() == int(not stored)
    assert published(orders).ids == [message_id]


def test_a_batch_whose_publish_failed_is_committed_again(pubsub, published, pubsub_faults):
    pubsub_faults.fail_publish()
    batch = pubsub.batch()
    batch.publish("mails", 1)
    with pytest.raises(BrokerUnavailable):
        batch.commit()
    assert not published("mails")
    batch.commit()
    assert published("mails") == [1]


# Flask


class Shop:
    def __init__(self) -> None:
        self.pubsub = pubsub_flask.PubSub()
        self.orders = self.pubsub.topic("orders", Order)
        self.seen = []
        self.torn_down = 0
        self.orders.subscribe(group="billing")(self.charge)

    def charge(self, order: Order) -> None:
        self.seen.append((order.order_id, hasattr(g, "of_the_test"), has_request_context()))

    def create_app(self) -> Flask:
        app = Flask("shop")
        app.config["PUBSUB_URL"] = "redis://localhost:1/0"  # nobody listens there
        self.pubsub.init_app(app)

        @app.teardown_appcontext
        def teardown(_: object) -> None:
            self.torn_down += 1

        @app.post("/<int:order_id>")
        def place(order_id: int) -> dict[str, str]:
            return {"id": self.orders.publish(Order(order_id=order_id))}

        return app


def test_a_flask_app_is_bound_for_the_test_and_restored(request):
    (mark,) = list(request.node.iter_markers("pubsub"))[:1]
    shop = Shop()
    app, another = shop.create_app(), shop.create_app()
    url = mark.kwargs["url"]
    if url == "redis+embedded://":
        url = request.getfixturevalue("redis").url

    with Kit(app, url=url) as kit:
        assert kit.pubsub is shop.pubsub
        made_in_the_test = shop.create_app()
        for number, one in enumerate((app, another, made_in_the_test)):
            assert one.test_client().post(f"/{number}").status_code == 200
        shop.orders.publish(Order(order_id=9))  # outside of any context
        torn_down = shop.torn_down
        with app.test_request_context():
            g.of_the_test = True
            assert kit.run_until_idle() == 4
            assert shop.torn_down == torn_down + 4
            assert g.of_the_test
        assert shop.seen == [(number, False, False) for number in (0, 1, 2, 9)]
        assert len(kit.published("orders")) == 4

    with app.app_context():
        assert shop.pubsub.settings.url == "redis://localhost:1/0"
        assert shop.pubsub.settings.namespace == "pubsub"


def test_the_two_object_style_is_bound_too(pubsub):
    url = pubsub.settings.url
    app = Flask("original")
    app.config["PUBSUB_REDIS_URL"] = "redis://localhost:1/0"
    producer = pubsub_flask.Producer()
    consumer = pubsub_flask.Consumer("consumer")
    attempts = []

    @consumer.subscribe("hello_word", retry_count=2, timeout=30)
    def hello(message: pubsub_flask.Msg) -> None:
        attempts.append((message.payload["name"], message.attempt))
        if message.attempt == 1:
            raise ValueError

    producer.init_app(app)
    consumer.init_app(app)
    with Kit(app, url=url) as kit:
        producer.publish("hello_word", {"name": "dog"})
        assert kit.run_until_idle(errors="retry") == 1
        kit.clock.advance(30)
        assert kit.run_until_idle() == 1
    assert attempts == [("dog", 1), ("dog", 2)]


def test_threads_of_the_test_may_publish(pubsub, run_until_idle, published):
    @pubsub.subscribe("orders")
    def note(_: Message) -> None: ...

    threads = [threading.Thread(target=pubsub.publish, args=("orders", number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run_until_idle() == 8
    assert sorted(published("orders").payloads) == list(range(8))


def test_a_real_worker_may_run_beside(pubsub):
    handled = threading.Event()

    @pubsub.subscribe("orders")
    def note(_: Message) -> None:
        handled.set()

    with pubsub_core.Worker(pubsub, threads=1):
        pubsub.publish("orders", 1)
        assert handled.wait(20)


class Stranger:
    """A third party's broker, which knows nothing of tests."""

    def __init__(self, broker: pubsub_core.Broker) -> None:
        for name in ("publish", "cancel", "consumer", "time", "join_schedules", "fire", "close"):
            setattr(self, name, getattr(broker, name))


def test_a_backend_that_knows_nothing_of_tests_is_used_as_it_is(monkeypatch):
    opened = pubsub_core.runtime.open_broker
    monkeypatch.setattr(pubsub_core.runtime, "open_broker", lambda url, options: Stranger(opened(url, options)))
    with Kit() as kit:
        seen = []
        kit.pubsub.subscribe("orders")(lambda message: seen.append(message.payload))
        kit.pubsub.publish("orders", 1, delay=60)
        kit.clock.advance(60)
        assert kit.run_until_idle() == 1
        assert kit.published("orders") == [1]
        with pytest.raises(pubsub_core.Unsupported, match=r"no consumer of memory:// can be lost"):
            kit.faults.crash_before_ack()


# Isolation


def test_a_test_leaves_nothing_behind(redis):
    client = Redis.from_url(redis.url)
    before = set(client.keys())
    with Kit(url=redis.url) as kit:
        kit.pubsub.topic("foreign", stream="orders{x}")

        @kit.pubsub.subscribe("foreign", group="g", retry=FixedDelay(5, max_retries=1))
        def fail(_: Message) -> None:
            raise ValueError

        @kit.pubsub.every(60, name="tick")
        def tick() -> None: ...

        with kit.pubsub.batch() as batch:
            for number in range(3):
                batch.publish("foreign", number)
        kit.pubsub.publish("orders", 1, dedup="key", delay=5)
        kit.run_until_idle(errors="retry")
        kit.faults.crash_before_ack("tick")
        kit.clock.advance(60)
        kit.run_until_idle(errors="retry")
        assert kit.pubsub.dead_letters("foreign", group="g")
        created = set(client.keys()) - before
        assert created
        assert all(key.startswith(kit.pubsub.settings.namespace.encode()) for key in created)
    assert set(client.keys()) <= before  # of others, some may expire meanwhile
    client.close()


def test_declarations_of_a_test_end_with_it_and_those_of_a_module_stay():
    pubsub = pubsub_core.PubSub("memory://")

    def mine(_: Message) -> None: ...

    pubsub.subscribe("orders", group="module")(mine)
    for group in ("first", "second"):
        with Kit(pubsub):
            pubsub.subscribe("orders", group="test")(lambda message: None)
            pubsub.subscribe("orders", group=group)(_of_the_module)
            pubsub.every(60, name="tick")(lambda: None)
            pubsub.topic("scheduled").schedule(60, 1)
            pubsub.middleware(lambda delivery, call_next: call_next(delivery))
            pubsub.publish_middleware(lambda message, call_next: None)
            pubsub.headers(lambda: {"tenant": "of the test"})
    assert [one.group for one in pubsub.subscriptions()] == ["module", "first", "second"]
    assert pubsub.schedules == ()
    assert pubsub.handle_middleware() == ()
    with Kit(pubsub) as kit:
        pubsub.publish("orders", 1)
        assert not kit.published("orders").messages[0].headers


def _of_the_module(_: Message) -> None: ...


def test_a_schedule_of_a_module_stays_though_a_test_subscribes_to_its_topic():
    pubsub = pubsub_core.PubSub("memory://")
    pubsub.every(60, name="tick")(_of_the_module)
    with Kit(pubsub):
        pubsub.subscribe("tick", group="test")(lambda message: None)
    assert [one.name for one in pubsub.schedules] == ["tick"]


def test_the_clock_is_a_manual_one(pubsub, pubsub_clock):
    assert isinstance(pubsub_clock, ManualClock)
    assert pubsub_clock.now() == BEGIN
    assert pubsub.runtime.clock is pubsub_clock
    with pytest.raises(ValueError, match="only moves on"):
        pubsub_clock.advance(-1)
