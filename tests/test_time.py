"""Delays, deduplication, expiry and schedules, as an application sees them; on memory, whose clock a test moves."""

import contextlib
import itertools
import logging
import math
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from pubsub_core import (
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    FixedDelay,
    ManualClock,
    Message,
    PubSub,
    PubSubError,
    SubscriptionError,
    ValidationError,
)
from pubsub_core import schedule as schedule_module
from pubsub_core.broker import BrokerOptions, ScheduleKey
from pubsub_core.cron import CronSpec, EverySpec
from pubsub_core.schedule import MOST_MISSED, Missed, Schedule, Scheduler
from pubsub_core.worker.process import Worker
from pubsub_memory import open_memory
from pubsub_memory.broker import MemoryBroker

WITHIN = 20.0


class Order(BaseModel):
    order_id: int


class Shop:
    """An application with a worker, whose clock stands still until it is told to move."""

    def __init__(self) -> None:
        self.clock = ManualClock(datetime(2030, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC))
        self.pubsub = PubSub("memory://", group="billing", clock=self.clock)
        self.seen: list[Any] = []
        self._changed = threading.Condition()
        self._workers: list[Worker] = []

    def note(self, what: Any) -> None:
        with self._changed:
            self.seen.append(what)
            self._changed.notify_all()

    def wait_until(self, count: int) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, WITHIN), self.seen
            return list(self.seen)

    def work(self) -> Worker:
        """Start a worker, and return when it has looked at its schedules for the first time."""
        worker = Worker(self.pubsub, threads=2)
        self._workers.append(worker)
        looked = threading.Event()
        run_due = worker._ticker._scheduler.run_due

        def noted() -> float:
            try:
                return run_due()
            finally:
                looked.set()

        worker._ticker._scheduler.run_due = noted  # type: ignore[method-assign]
        worker.start()
        assert looked.wait(WITHIN)
        return worker

    def rest(self, worker: Worker) -> None:
        worker.stop()
        worker.join()

    def close(self) -> None:
        for worker in self._workers:
            self.rest(worker)
        self.pubsub.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.close()


# Delays


def test_a_delayed_message_is_handled_when_it_is_due(shop: Shop) -> None:
    @shop.pubsub.subscribe("orders")
    def note(message: Message[Any]) -> None:
        shop.note((message.payload, shop.clock.now()))

    shop.work()
    began = shop.clock.now()
    orders = shop.pubsub.topic("orders")
    orders.publish(1, delay=60)
    orders.publish(2, delay=timedelta(minutes=2))
    orders.publish(3, at=began + timedelta(seconds=90))
    orders.publish(4, at=began - timedelta(days=1))
    assert shop.wait_until(1) == [(4, began)]
    for count, seconds in enumerate((60, 30, 30), start=2):
        shop.clock.advance(seconds)
        shop.wait_until(count)
    assert [(payload, (when - began).total_seconds()) for payload, when in shop.seen[1:]] == [
        (1, 60),
        (3, 90),
        (2, 120),
    ]


def test_a_batch_sends_delayed_messages_too(shop: Shop) -> None:
    @shop.pubsub.subscribe("orders")
    def note(message: Message[Any]) -> None:
        shop.note(message.id)

    shop.work()
    with shop.pubsub.batch() as batch:
        late = batch.publish("orders", 1, delay=5)
        now = batch.publish("orders", 2)
        same = batch.publish("orders", 3, dedup="a")
        batch.publish("orders", 4, dedup="a")
    assert batch.ids == (late, now, same, same)
    assert sorted(shop.wait_until(2)) == sorted([now, same])
    shop.clock.advance(5)
    assert shop.wait_until(3)[2] == late


def test_a_cancelled_message_is_not_handled(shop: Shop) -> None:
    shop.pubsub.subscribe("orders")(lambda message: shop.note(message.id))
    shop.work()
    orders = shop.pubsub.topic("orders")
    soon, later = orders.publish(1, delay=5), orders.publish(2, delay=5)
    assert orders.cancel(soon)
    assert not shop.pubsub.cancel("orders", soon)
    shop.clock.advance(5)
    assert shop.wait_until(1) == [later]
    assert not orders.cancel(later)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delay": -1}, "delay=-1 on topic 'orders': it is a number of seconds, or a timedelta, 0 or more"),
        ({"delay": math.nan}, "delay=nan"),
        ({"delay": math.inf}, "delay=inf"),
        ({"delay": "5"}, "delay='5'"),
        ({"delay": True}, "delay=True"),
        ({"delay": 1, "at": datetime(2031, 1, 1, tzinfo=UTC)}, "say one of them"),
        ({"at": datetime(2031, 1, 1)}, "it is a datetime with a time zone"),  # noqa: DTZ001  # that is the point
        ({"at": 5}, "at=5"),
        ({"expires": -1}, "expires=-1"),
        ({"expires": math.inf}, "expires=inf"),
        ({"expires": 5, "delay": 5}, "it would never be handled"),
        ({"expires": timedelta(seconds=5), "delay": timedelta(seconds=9)}, "it would never be handled"),
        (
            {"expires": 5, "at": datetime(2030, 6, 1, 12, 0, 5, 250_000, tzinfo=UTC)},
            "is not before it expires, 5 from now",
        ),
        ({"expires": 0, "at": datetime(2020, 1, 1, tzinfo=UTC)}, "it would never be handled"),
        ({"key": "\ud800"}, "a key is text, without half"),
        ({"headers": {"a": "\ud800"}}, "names and values are text, without half"),
        ({"headers": {"\udfff": "a"}}, "names and values are text, without half"),
        ({"dedup": "\ud800"}, "a key is text"),
        ({"dedup": ("a", 1, 2)}, "or a tuple of one and its window"),
        ({"dedup": ()}, "or a tuple of one and its window"),
        ({"dedup": (None, 5)}, "or a tuple of one and its window"),
        ({"dedup": ""}, "a key is text, 1 to 512 characters"),
        ({"dedup": "x" * 513}, "a key is text"),
        ({"dedup": 7}, "a key is text"),
        ({"dedup": ("a", 0)}, "the window is more than 0"),
        ({"dedup": ("a", -1)}, "the window of dedup=-1"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_sent(shop: Shop, options: dict[str, Any], error: str) -> None:
    shop.pubsub.subscribe("orders")(lambda message: shop.note(message.payload))
    with pytest.raises(ValidationError, match=error):
        shop.pubsub.publish("orders", 1, **options)
    batch = shop.pubsub.batch()
    with pytest.raises(ValidationError, match=error):
        batch.publish("orders", 2, **options)
    assert batch.commit() == ()
    shop.work()
    shop.clock.advance(timedelta(days=400))
    shop.pubsub.publish("orders", "last")
    assert shop.wait_until(1) == ["last"]


def test_what_was_due_before_it_is_published_may_expire(shop: Shop) -> None:
    shop.pubsub.subscribe("orders")(lambda message: shop.note(message.payload))
    shop.pubsub.publish("orders", "at once", at=datetime(2020, 1, 1, tzinfo=UTC), expires=5)
    shop.pubsub.publish("orders", "later", at=shop.clock.now() + timedelta(seconds=4), expires=5, key="ключ 🎈")
    shop.work()
    assert shop.wait_until(1) == ["at once"]
    shop.clock.advance(4)
    assert shop.wait_until(2) == ["at once", "later"]


# Deduplication


def test_a_second_publish_with_the_same_key_returns_the_first_id(shop: Shop) -> None:
    shop.pubsub.subscribe("orders")(lambda message: shop.note(message.id))
    shop.work()
    orders = shop.pubsub.topic("orders")
    first = orders.publish(1, dedup="a")
    assert orders.publish(2, dedup="a") == first
    assert orders.publish(3, dedup=("a", 10)) == first
    other = orders.publish(4, dedup=("b", timedelta(seconds=10)))
    shop.clock.advance(11)
    third = orders.publish(5, dedup="b")
    assert third != other
    assert orders.publish(6, dedup="a") == first
    shop.clock.advance(300)
    assert orders.publish(7, dedup="a") not in (first, third)
    assert shop.wait_until(4)[:3] == [first, other, third]


# Expiry


def test_a_message_that_expired_is_a_dead_letter_and_not_handled(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.pubsub.subscribe("orders")(lambda message: shop.note((message.payload, message.expires_at)))
    began = shop.clock.now().replace(microsecond=250_000)
    shop.pubsub.publish("orders", "late", expires=60)
    shop.pubsub.publish("orders", "in time", expires=timedelta(hours=1))
    shop.clock.advance(60)
    worker = shop.work()
    assert shop.wait_until(1) == [("in time", began + timedelta(hours=1))]
    shop.rest(worker)
    (letter,) = shop.pubsub.dead_letters("orders")
    assert (letter.reason.kind, letter.message.payload, letter.message.attempt) == ("expired", b'"late"', 1)
    assert letter.reason.detail == "it was to be handled before 2030-06-01T12:01:00.250000+00:00"
    (record,) = [one for one in caplog.records if "expired" in one.getMessage()]
    assert record.levelno == logging.ERROR


def test_a_subscription_may_want_expired_messages_dropped(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.pubsub.subscribe("orders", expired="drop")(lambda message: shop.note(message.payload))
    shop.pubsub.publish("orders", "late", expires=1)
    shop.pubsub.publish("orders", "plain")
    shop.clock.advance(1)
    worker = shop.work()
    assert shop.wait_until(1) == ["plain"]
    shop.rest(worker)
    assert list(shop.pubsub.dead_letters("orders")) == []
    assert [group.pending for group in shop.pubsub.inspector.groups("orders")] == [0]
    assert "expired, and dropped: orders" in caplog.text


def test_a_retry_that_comes_after_the_expiry_is_not_handled(shop: Shop) -> None:
    @shop.pubsub.subscribe("orders", retry=FixedDelay(30, 5))
    def fail(message: Message[Any]) -> None:
        shop.note(message.attempt)
        raise ValueError

    shop.pubsub.publish("orders", 1, expires=45)
    worker = shop.work()
    for count in (1, 2):
        shop.wait_until(count)
        until_parked(shop)
        shop.clock.advance(30)
    deadline = threading.Event()
    while not list(shop.pubsub.dead_letters("orders")):
        assert not deadline.wait(0.01)
    (letter,) = shop.pubsub.dead_letters("orders")
    assert (letter.reason.kind, letter.message.attempt, shop.seen) == ("expired", 3, [1, 2])
    assert letter.first_failed_at < letter.last_failed_at
    shop.rest(worker)


def until_parked(shop: Shop) -> None:
    """Wait until the retry is where moving the clock on reaches it."""
    broker = shop.pubsub.runtime.broker
    assert isinstance(broker, MemoryBroker)
    group = broker._log("orders").groups["billing"]
    waited = threading.Event()
    while not group._parked:
        assert not waited.wait(0.005)


def test_what_shall_become_of_expired_messages_is_checked(shop: Shop) -> None:
    with pytest.raises(SubscriptionError, match=r"expired='dropp'\. Did you mean 'drop'"):
        shop.pubsub.subscribe("orders", expired="dropp")  # type: ignore[arg-type]


# Schedules


def test_a_cron_handler_is_called_at_each_tick(shop: Shop) -> None:
    @shop.pubsub.cron("*/5 * * * * *", name="tick")
    def tick(message: Message[Any]) -> None:
        shop.note((message.scheduled_for, message.source, message.topic, message.payload))

    @shop.pubsub.every(timedelta(seconds=4))
    def often() -> None:
        shop.note("often")

    shop.work()
    shop.clock.advance(10)
    ticks = shop.wait_until(4)
    noon = datetime(2030, 6, 1, 12, tzinfo=UTC)
    assert sorted(one for one in ticks if one != "often") == [
        (noon + timedelta(seconds=seconds), "cron", "tick", None) for seconds in (5, 10)
    ]
    assert ticks.count("often") == 2


def test_a_typed_message_is_published_at_each_tick(shop: Shop) -> None:
    orders = shop.pubsub.topic("orders", Order)
    orders.schedule("0 13 * * *", Order(order_id=7), tz="Europe/Berlin")
    orders.schedule(3600, Order(order_id=8), name="hourly")
    shop.pubsub.schedule("plain", timedelta(hours=2), {"a": 1})

    @orders.subscribe()
    def note(order: Order) -> None:
        shop.note(order.order_id)

    shop.pubsub.subscribe("plain")(lambda message: shop.note(message.payload))
    shop.work()
    shop.clock.advance(23 * 3600)  # from noon to 11:00, UTC: 13:00 in Berlin, where it is summer
    seen = shop.wait_until(23 + 1 + 11)
    assert (seen.count(7), seen.count(8), seen.count({"a": 1})) == (1, 23, 11)
    assert [(one.name, one.topic, str(one.spec)) for one in shop.pubsub.schedules] == [
        ("orders", "orders", "0 13 * * * Europe/Berlin"),
        ("hourly", "orders", "every 3600 s"),
        ("plain", "plain", "every 7200 s"),
    ]


def test_publish_middleware_sees_what_schedules_publish(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    @shop.pubsub.publish_middleware
    def add_tenant(message: Message[Any], call_next: Callable[[Message[Any]], None]) -> None:
        assert message.scheduled_for is not None
        if message.scheduled_for.second == 2:
            return  # kept back
        if message.scheduled_for.second == 3:
            raise KeyError("tenant")
        call_next(replace(message, headers={**message.headers, "tenant": "a"}))

    shop.pubsub.every(1, name="tick")(
        lambda message: shop.note((message.scheduled_for.second, message.headers["tenant"]))
    )
    shop.work()
    shop.clock.advance(4)
    assert shop.wait_until(2) == [(1, "a"), (4, "a")]
    assert "the message of the tick" in caplog.text


def test_a_schedule_fires_once_for_many_workers(shop: Shop) -> None:
    shop.pubsub.every(1, name="tick")(lambda message: shop.note(message.scheduled_for.second))
    for _ in range(3):
        shop.work()
    for _ in range(10):
        shop.clock.advance(1)
    assert sorted(shop.wait_until(10)) == list(range(1, 11))
    shop.close()
    assert len(shop.seen) == 10


@pytest.mark.parametrize(
    ("missed", "made_up"), [("skip", []), ("once", [20]), ("all", list(range(2, 21)))], ids=["skip", "once", "all"]
)
def test_ticks_that_no_worker_was_there_for(
    shop: Shop, caplog: pytest.LogCaptureFixture, missed: Missed, made_up: list[int]
) -> None:
    shop.pubsub.every(1, name="tick", missed=missed)(lambda message: shop.note(message.scheduled_for.second))
    worker = shop.work()
    shop.clock.advance(1)
    assert shop.wait_until(1) == [1]
    shop.rest(worker)
    shop.clock.advance(19)
    shop.work()
    shop.clock.advance(1)
    assert shop.wait_until(1 + len(made_up) + 1) == [1, *made_up, 21]
    assert "schedule tick missed ticks" in caplog.text


def test_the_schedules_of_the_original_package_run(shop: Shop) -> None:
    from flask import Flask

    from pubsub_flask import Consumer, Msg

    app = Flask("shop")
    consumer = Consumer("shop")

    @consumer.subscribe("hello_word_cron", cron="*/5 * * * * *", retry_count=0)
    def hello_word_cron(msg: Msg) -> None:
        shop.note((msg.stream_name, msg.retry_count, msg.scheduled_for is not None))

    consumer._pubsub._clock = shop.clock
    consumer.init_app(app)
    shop.pubsub = consumer._pubsub
    shop.work()
    shop.clock.advance(5)
    assert shop.wait_until(1) == [("hello_word_cron", 0, True)]


@pytest.mark.parametrize(
    ("declare", "error"),
    [
        (lambda pubsub: pubsub.every(0), "interval of 0"),
        (lambda pubsub: pubsub.every(-5), "interval of -5"),
        (lambda pubsub: pubsub.every(math.inf), "interval of inf"),
        (lambda pubsub: pubsub.cron("0 0 30 2 *"), "never fires"),
        (lambda pubsub: pubsub.cron("* * * * *", missed="never"), "missed='never'"),
        (lambda pubsub: pubsub.schedule("orders", "* * *", 1), "has 3 fields"),
        (lambda pubsub: pubsub.schedule("orders", 60, 1, missed="al"), "Did you mean 'all'"),
        (lambda pubsub: pubsub.schedule("orders", 60, 1, name="no name"), "not a schedule name"),
        (lambda pubsub: (pubsub.schedule("a", 60, 1), pubsub.schedule("a", 30, 1)), "give this one another name="),
        (lambda pubsub: pubsub.schedule(pubsub.topic("orders", Order), 60, {"order_id": "x"}), "schedule 'orders'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_where_it_is_declared(
    shop: Shop, declare: Callable[[PubSub], object], error: str
) -> None:
    with pytest.raises(PubSubError, match=error):
        declare(shop.pubsub)


# The scheduler, step by step


class Plan:
    """A scheduler on memory, whose clock moves only here."""

    def __init__(self, *schedules: Schedule, lease: float = 8.0, start: float = 1000.5) -> None:
        self.clock = ManualClock(datetime.fromtimestamp(start, UTC))
        self.options = BrokerOptions(self.clock, "plan", 60.0, 5.0, {})
        self.broker = MemoryBroker(open_memory("memory://", self.options)._store, self.options)  # type: ignore[attr-defined]
        self.fired: list[float] = []
        self.schedules = schedules
        self.lease = lease
        self.scheduler = self.another()

    def another(self) -> Scheduler:
        return Scheduler(self.schedules, self.broker, "shop", self.message, self.lease)

    def message(self, schedule: Schedule, tick: float) -> Message[bytes]:
        moment = datetime.fromtimestamp(tick, UTC)
        return Message(
            f"{schedule.name}-{tick:g}", schedule.topic, b"null", moment, source="cron", scheduled_for=moment
        )

    def ticks(self, topic: str = "tick") -> list[str]:
        return [message.id for _, message in self.broker._log(topic).entries.values()]


EACH_SECOND = Schedule("tick", "tick", EverySpec(1))


def test_ticks_within_the_lease_are_late_and_not_missed() -> None:
    plan = Plan(EACH_SECOND)
    assert plan.scheduler.run_due() == 0.5
    plan.clock.advance(7.9)
    assert plan.scheduler.run_due() == pytest.approx(0.6)
    assert plan.ticks() == [f"tick-{second}" for second in range(1001, 1009)]


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("once", 1), ("all", 9)])
def test_who_was_away_for_longer_than_the_lease_missed_ticks(missed: Missed, count: int) -> None:
    plan = Plan(replace(EACH_SECOND, missed=missed))
    plan.scheduler.run_due()
    plan.clock.advance(9)
    plan.scheduler.run_due()
    assert plan.ticks() == [f"tick-{second}" for second in range(1010 - count, 1010)]
    plan.clock.advance(1)
    plan.scheduler.run_due()
    assert len(plan.ticks()) == count + 1


def test_making_up_for_much_does_not_hold_up_other_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call each is fired for a second, and once at least, however long that takes."""
    plan = Plan(replace(EACH_SECOND, missed="all"), Schedule("other", "other", EverySpec(10)))
    scheduler = Scheduler(plan.schedules, plan.broker, "shop", plan.message, plan.lease, at_once=1.0)
    scheduler.run_due()
    plan.clock.advance(20)
    moments = itertools.count(0.0, 0.3)  # each look at the clock is so much later than the last
    monkeypatch.setattr(schedule_module, "monotonic", lambda: next(moments))
    for done in (4, 8, 12):
        assert scheduler.run_due() == 0.0, "it wants to be called again at once"
        assert len(plan.ticks()) == done
        assert plan.ticks("other") == ["other-1020"]
    moments = itertools.count(0.0, 14.0)
    assert scheduler.run_due() == 0.0
    assert len(plan.ticks()) == 13
    while scheduler.run_due() == 0.0:
        continue
    assert plan.ticks() == [f"tick-{second}" for second in range(1001, 1021)]


def test_ticks_that_come_while_a_message_is_made_for_long_are_late_and_not_missed() -> None:
    plan = Plan(replace(EACH_SECOND, missed="skip"), Schedule("slow", "slow", EverySpec(5)))

    def make(schedule: Schedule, tick: float) -> Message[bytes]:
        if schedule.name == "slow":
            plan.clock.advance(2 * plan.lease)
        return plan.message(schedule, tick)

    scheduler = Scheduler(plan.schedules, plan.broker, "shop", make, plan.lease)
    scheduler.run_due()
    plan.clock.advance(5)
    scheduler.run_due()
    scheduler.run_due()
    assert plan.ticks()[:20] == [f"tick-{second}" for second in range(1001, 1021)]


def test_who_is_stopped_fires_nothing_more() -> None:
    plan = Plan(EACH_SECOND)

    def make(schedule: Schedule, tick: float) -> Message[bytes]:
        scheduler.stop()  # as another thread does meanwhile
        return plan.message(schedule, tick)

    scheduler = Scheduler(plan.schedules, plan.broker, "shop", make, plan.lease)
    scheduler.run_due()
    plan.clock.advance(3)
    scheduler.run_due()
    scheduler.run_due()
    assert plan.ticks() == ["tick-1001"]


def test_what_is_made_up_for_is_bounded() -> None:
    plan = Plan(replace(EACH_SECOND, missed="all"))
    plan.scheduler.run_due()
    plan.clock.advance(5000)
    plan.scheduler.run_due()
    assert plan.ticks()[0] == f"tick-{1000 + 5000 - MOST_MISSED + 1}"
    assert len(plan.ticks()) == MOST_MISSED


def test_a_new_process_does_not_repeat_what_another_fired() -> None:
    plan = Plan(replace(EACH_SECOND, missed="all"))
    plan.scheduler.run_due()
    plan.clock.advance(3)
    plan.scheduler.run_due()
    other = plan.another()
    other.run_due()
    assert plan.ticks() == ["tick-1001", "tick-1002", "tick-1003"]
    plan.clock.advance(1)
    other.run_due()
    plan.scheduler.run_due()
    assert len(plan.ticks()) == 4


def test_a_clock_that_is_set_back_repeats_nothing() -> None:
    plan = Plan(EACH_SECOND)
    plan.scheduler.run_due()
    plan.clock.advance(3)
    plan.scheduler.run_due()
    plan.clock._time -= 10
    assert plan.scheduler.run_due() == pytest.approx(10.5)
    assert plan.another().run_due() == pytest.approx(10.5)
    plan.clock.advance(10.5)
    plan.scheduler.run_due()
    assert plan.ticks() == ["tick-1001", "tick-1002", "tick-1003", "tick-1004"]


def test_a_tick_that_is_early_for_the_broker_is_fired_later(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(EACH_SECOND)
    plan.scheduler.run_due()
    ahead = [0.6]
    monkeypatch.setattr(plan.broker, "time", lambda: plan.clock.time() + ahead[0])
    fire = plan.broker.fire

    def fire_by_its_own_clock(key: ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> str:
        if tick > plan.clock.time():
            ahead[0] = 0.0  # as a broker that asks its server again
            return "early"
        return fire(key, spec, tick, message)

    monkeypatch.setattr(plan.broker, "fire", fire_by_its_own_clock)
    assert plan.scheduler.run_due() == pytest.approx(0.5)
    assert plan.ticks() == []
    plan.clock.advance(0.5)
    monkeypatch.undo()
    plan.scheduler.run_due()
    assert plan.ticks() == ["tick-1001"]


def test_a_broker_that_is_away_costs_no_tick_within_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(EACH_SECOND)
    plan.scheduler.run_due()

    def away(*_: object) -> Any:
        raise BrokerUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(plan.broker, "fire", away)
        for _ in range(3):
            plan.clock.advance(1)
            with pytest.raises(BrokerUnavailable):
                plan.scheduler.run_due()
    plan.scheduler.run_due()
    assert plan.ticks() == ["tick-1001", "tick-1002", "tick-1003"]


@contextlib.contextmanager
def tick_is_full(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the topic "tick" take nothing."""
    fire = plan.broker.fire

    def full(key: ScheduleKey, *rest: Any) -> str:
        if key.topic == "tick":
            raise BrokerFull("full")
        return fire(key, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(plan.broker, "fire", full)
        yield


def test_a_full_topic_holds_up_no_other_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(EACH_SECOND, Schedule("other", "other", EverySpec(1)))
    plan.scheduler.run_due()
    with tick_is_full(plan, monkeypatch):
        plan.clock.advance(1)
        with pytest.raises(BrokerFull):
            plan.scheduler.run_due()
    assert (plan.ticks(), plan.ticks("other")) == ([], ["other-1001"])
    plan.scheduler.run_due()
    assert (plan.ticks(), plan.ticks("other")) == (["tick-1001"], ["other-1001"])


def test_a_topic_that_stays_full_costs_other_schedules_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose worker is there all the time, so that nothing of theirs is missed."""
    other = Schedule("other", "other", EverySpec(1), missed="skip")
    plan = Plan(EACH_SECOND, other)
    plan.scheduler.run_due()
    with tick_is_full(plan, monkeypatch):
        for _ in range(60):
            plan.clock.advance(1)
            with pytest.raises(BrokerFull):
                plan.scheduler.run_due()
    assert plan.ticks("other") == [f"other-{second}" for second in range(1001, 1061)]
    plan.scheduler.run_due()
    made_up = plan.ticks()
    assert made_up[-1] == "tick-1060", "the last is made up for"
    assert len(made_up) <= plan.lease + 1


def test_schedules_are_named_again_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(Schedule("nightly", "nightly", CronSpec("0 3 * * *")), lease=math.inf)
    named: list[bool] = []
    join = plan.broker.join_schedules

    def noted(owner: str, schedules: Any, *, is_start: bool = False) -> Any:
        named.append(is_start)
        return join(owner, schedules, is_start=is_start)

    monkeypatch.setattr(plan.broker, "join_schedules", noted)
    for _ in range(5):
        plan.scheduler.run_due()
        plan.clock.advance(30)
    assert named == [True, False, False]


def test_without_schedules_those_of_earlier_versions_are_forgotten() -> None:
    plan = Plan(EACH_SECOND)
    plan.scheduler.run_due()
    plan.clock.advance(200)
    plan.schedules = ()
    assert plan.another().run_due() == math.inf
    assert plan.broker.schedules() == []


@pytest.mark.parametrize("server", ["memory", "redis"])
def test_a_worker_may_have_schedules_only(request: pytest.FixtureRequest, server: str) -> None:
    url = "memory://" if server == "memory" else request.getfixturevalue(server).url
    pubsub = PubSub(url, namespace=f"only-{uuid.uuid4().hex[:8]}")
    pubsub.schedule("orders", 0.1, {"a": 1})
    reader = PubSub(url, namespace=pubsub.settings.namespace)
    seen = threading.Event()
    reader.subscribe("orders")(lambda message: seen.set())
    if server == "memory":
        reader._own_runtime = pubsub.runtime
    with Worker(pubsub), Worker(reader):
        assert seen.wait(WITHIN)
    pubsub.close()
    reader.close()


def test_a_worker_without_handlers_and_schedules_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is nothing to do"):
        Worker(PubSub("memory://"))
