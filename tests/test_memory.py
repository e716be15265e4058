"""What is particular to the memory broker. What every broker must do is in the conformance kit."""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime
from time import monotonic

import pytest

from pubsub_core.backends import open_broker
from pubsub_core.broker import Broker, BrokerOptions, Inspector, Membership
from pubsub_core.clock import Clock, ManualClock, SystemClock
from pubsub_core.errors import ConfigurationError, LeaseLost
from pubsub_core.message import Delivery, Message, SubscriptionKey
from pubsub_memory import open_memory
from pubsub_memory.broker import MemoryBroker
from pubsub_memory.handover import hand_over
from pubsub_memory.store import KEPT_FOR_LOOKING_BACK, Log
from tests.waiting import until

BILLING = SubscriptionKey("orders", "billing")
SHIPPING = SubscriptionKey("orders", "shipping")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def open_url(clock: ManualClock) -> Callable[..., MemoryBroker]:
    def open_url(url: str = "memory://", clock: Clock = clock, namespace: str = "shop") -> MemoryBroker:
        broker = open_memory(url, BrokerOptions(clock, namespace, 5.0, 10.0, {}))
        assert isinstance(broker, MemoryBroker)
        return broker

    return open_url


def message(number: int = 0, topic: str = "orders") -> Message[bytes]:
    return Message(str(number), topic, b"{}", datetime(2030, 1, 1, tzinfo=UTC))


def ids(deliveries: Iterable[Delivery[bytes]]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def received(broker: Broker, key: SubscriptionKey = BILLING, count: int = 10) -> list[str]:
    return ids(broker.consumer([Membership(key)], f"c-{os.urandom(4).hex()}").receive({key: count}, 0))


def log_of(broker: MemoryBroker, topic: str = "orders") -> Log:
    return broker._log(topic)


# Names.


@pytest.fixture
def url() -> str:
    """A name that no other test has: messages of a name last until its brokers are collected as garbage."""
    return f"memory://shop-{os.urandom(4).hex()}"


def test_brokers_of_one_name_share_their_messages(open_url, url):
    first, second = open_url(url), open_url(f"{url}/")
    first.publish([message(7)])
    assert received(second) == ["7"]


def test_brokers_of_different_names_do_not(open_url, url):
    first, second = open_url(url), open_url(url.replace("shop", "Shop"))
    first.publish([message()])
    assert received(second) == []


def test_brokers_without_a_name_share_nothing(open_url):
    first, second = open_url(), open_url()
    first.publish([message()])
    assert received(second) == []


def test_the_messages_outlive_the_closing_of_one_of_the_brokers(open_url, url):
    first, second = open_url(url), open_url(url)
    first.publish([message(7)])
    first.close()
    del first
    gc.collect()
    assert received(second) == ["7"]


@pytest.mark.parametrize("is_named", [False, True])
def test_a_dropped_broker_is_not_kept_alive_by_its_clock_or_its_name(open_url, clock, url, is_named):
    url = url if is_named else "memory://"
    broker = open_url(url)
    broker.publish([message()])
    consumer = broker.consumer([Membership(BILLING)], "c")
    assert len(consumer.receive({BILLING: 1}, 0)) == 1
    store = weakref.ref(broker._store)
    del broker, consumer
    gc.collect()
    assert store() is None
    clock.advance(1)  # calls what the broker registered
    assert received(open_url(url)) == []


def test_memory_is_found_by_its_scheme(clock):
    broker = open_broker("memory://", BrokerOptions(clock, "shop", 5.0, 10.0, {}))
    assert isinstance(broker, MemoryBroker)
    assert isinstance(broker, Inspector)


@pytest.mark.parametrize(
    "url",
    ["memory:", "memory:shop", "memory:///shop", "memory://a/b", "memory://a?b=c", "memory://a#b", "memory://a b"],
)
def test_a_url_that_says_more_is_refused(open_url, url):
    with pytest.raises(ConfigurationError):
        open_url(url)


def test_a_refusal_does_not_show_a_password(open_url):
    with pytest.raises(ConfigurationError) as error:
        open_url("memory://me:hunter2@shop")
    assert "hunter2" not in str(error.value)


# Deliveries.


def test_a_delivery_is_what_replace_would_make():
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    sent = Message("1", "orders", b"x", moment, "k", {"a": "b"}, source="cron", expires_at=moment, scheduled_for=moment)
    delivery = hand_over(sent, SubscriptionKey("orders", "billing"), 3, "17")
    assert delivery == Delivery(replace(sent, attempt=3, group="billing", position="17"), BILLING)
    assert [getattr(delivery.message, field.name) is not None for field in fields(Message)] == [True] * 12
    assert hash(delivery.subscription) == hash(BILLING)


def test_subscriptions_take_turns_in_coming_first(open_url):
    broker = open_url()
    keys = [SubscriptionKey(topic, "billing") for topic in ("a", "b", "c")]
    broker.publish([message(topic=key.topic) for key in keys for _ in range(3)])
    consumer = broker.consumer([Membership(key) for key in keys], "c")
    firsts = {consumer.receive(dict.fromkeys(keys, 1), 0)[0].subscription for _ in range(3)}
    assert firsts == set(keys)


def test_a_retry_is_due_when_the_clock_says_so(open_url, clock):
    broker = open_url()
    broker.publish([message()])
    consumer = broker.consumer([Membership(BILLING)], "c")
    consumer.nack(consumer.receive({BILLING: 1}, 0)[0], 3600)
    clock.advance(3599)
    assert not consumer.receive({BILLING: 1}, 0)
    clock.advance(1)
    assert consumer.receive({BILLING: 1}, 0)[0].message.attempt == 2


def test_moving_the_clock_ends_the_wait_for_a_retry(open_url, clock):
    broker = open_url()
    broker.publish([message()])
    consumer = broker.consumer([Membership(BILLING)], "c")
    consumer.nack(consumer.receive({BILLING: 1}, 0)[0], 3600)
    with ThreadPoolExecutor() as threads:
        receiving = threads.submit(consumer.receive, {BILLING: 1}, 60)
        until(lambda: consumer in broker._store.waiting)
        clock.advance(3600)
        assert len(receiving.result(10)) == 1


def test_a_clock_that_goes_by_itself_ends_the_wait_for_a_retry(open_url):
    broker = open_url(clock=SystemClock())
    broker.publish([message()])
    consumer = broker.consumer([Membership(BILLING)], "c")
    consumer.nack(consumer.receive({BILLING: 1}, 0)[0], 0.1)
    before = monotonic()
    assert len(consumer.receive({BILLING: 1}, 30)) == 1
    assert 0.09 < monotonic() - before < 10


def test_a_group_may_start_at_the_very_instant_of_a_message(open_url, clock):
    broker = open_url()
    clock.advance(1 / 3)  # not a whole number of microseconds
    broker.publish([message(1)])
    clock.advance(1 / 3)
    instant = clock.now()
    broker.publish([message(2)])
    late = broker.consumer([Membership(BILLING, instant)], "c")
    assert ids(late.receive({BILLING: 10}, 0)) == ["2"]


def test_messages_stay_in_order_when_the_clock_is_set_back(open_url):
    class Back(SystemClock):
        now = 100.0

        def time(self) -> float:
            return self.now

    clock = Back()
    broker = open_url(clock=clock)
    broker.publish([message(1)])
    clock.now = 50.0
    broker.publish([message(2)])
    clock.now = 200.0
    broker.publish([message(3)])
    starting_at_100 = broker.consumer([Membership(BILLING, datetime.fromtimestamp(100, UTC))], "c")
    assert ids(starting_at_100.receive({BILLING: 10}, 0)) == ["1", "2", "3"]
    starting_at_150 = broker.consumer([Membership(SHIPPING, datetime.fromtimestamp(150, UTC))], "d")
    assert ids(starting_at_150.receive({SHIPPING: 10}, 0)) == ["3"]


def test_a_consumer_that_vanished_is_forgotten(open_url, clock):
    broker = open_url()
    broker.publish([message()])
    mortal, other = (broker.consumer([Membership(BILLING)], name) for name in ("mortal", "other"))
    (lost,) = mortal.receive({BILLING: 1}, 0)
    other.receive({BILLING: 1}, 0)
    clock.advance(19.9)
    other.maintain()
    assert not other.receive({BILLING: 1}, 0)
    clock.advance(0.1)
    other.maintain()
    with pytest.raises(LeaseLost, match="mortal"):
        mortal.nack(lost, 0)
    assert list(broker._store._consumers) == ["other"]
    assert other.receive({BILLING: 1}, 0)[0].message.attempt == 2


def test_an_older_delivery_of_a_message_cannot_settle_a_newer_one(open_url, clock):
    broker = open_url()
    broker.publish([message()])
    consumer, other = (broker.consumer([Membership(BILLING)], name) for name in ("c", "other"))
    (old,) = consumer.receive({BILLING: 1}, 0)
    clock.advance(20)
    other.maintain()
    (new,) = consumer.receive({BILLING: 1}, 0)
    with pytest.raises(LeaseLost):
        consumer.nack(old, 0)
    consumer.nack(new, 0)
    assert consumer.receive({BILLING: 1}, 0)[0].message.attempt == 3


# Retention.


def test_a_topic_without_groups_keeps_everything(open_url):
    broker = open_url()
    for _ in range(5):
        broker.publish([message(n) for n in range(KEPT_FOR_LOOKING_BACK)])
    assert len(received(broker, count=10_000)) == 5 * KEPT_FOR_LOOKING_BACK


def test_what_every_group_was_handed_is_dropped_but_for_the_newest(open_url):
    broker = open_url()
    consumer = broker.consumer([Membership(BILLING)], "c")
    for n in range(3 * KEPT_FOR_LOOKING_BACK):
        broker.publish([message(n)])
        consumer.ack(consumer.receive({BILLING: 1}, 0))
        assert len(log_of(broker).entries) <= KEPT_FOR_LOOKING_BACK
    assert received(broker, SHIPPING, 10_000)[-1] == str(3 * KEPT_FOR_LOOKING_BACK - 1)
    assert len(log_of(broker).entries) >= KEPT_FOR_LOOKING_BACK // 2


def test_a_slow_group_keeps_what_it_has_not_seen(open_url):
    broker = open_url()
    fast, slow = (broker.consumer([Membership(key)], key.group) for key in (BILLING, SHIPPING))
    count = 3 * KEPT_FOR_LOOKING_BACK
    slow.receive({SHIPPING: 1}, 0)
    broker.publish([message(n) for n in range(count)])
    fast.ack(fast.receive({BILLING: count}, 0))
    assert len(log_of(broker).entries) == count
    assert ids(slow.receive({SHIPPING: count}, 0)) == [str(n) for n in range(count)]


def test_what_is_held_or_parked_outlives_its_place_in_the_log(open_url, clock):
    broker = open_url()
    consumer = broker.consumer([Membership(BILLING)], "c")
    broker.publish([message(-1), message(-2)])
    held, parked = consumer.receive({BILLING: 2}, 0)
    consumer.nack(parked, 60)
    broker.publish([message(n) for n in range(3 * KEPT_FOR_LOOKING_BACK)])
    consumer.ack(consumer.receive({BILLING: 10_000}, 0))
    assert log_of(broker).first > 2
    consumer.release([held])
    clock.advance(60)
    assert ids(consumer.receive({BILLING: 10}, 0)) == ["-1", "-2"]


def test_nothing_is_left_of_what_is_settled(open_url, clock):
    broker = open_url()
    consumer = broker.consumer([Membership(BILLING)], "c")
    for n in range(200):
        broker.publish([message(n)])
        (delivery,) = consumer.receive({BILLING: 1}, 0)
        consumer.nack(delivery, 1)
        clock.advance(1)
        (delivery,) = consumer.receive({BILLING: 1}, 0)
        consumer.ack([delivery])
    group = log_of(broker).groups["billing"]
    assert not group.held
    assert not group._parked
    assert not group._due
    consumer.close()
    assert not broker._store._consumers
    assert not broker._store.waiting


# Threads and processes.


def test_a_receive_that_ends_empty_waits_no_longer(open_url):
    broker = open_url()
    consumer = broker.consumer([Membership(BILLING)], "c")
    assert not consumer.receive({BILLING: 1}, 0.01)
    assert not broker._store.waiting


def test_many_wakes_end_one_receive(open_url):
    consumer = open_url().consumer([Membership(BILLING)], "c")
    for _ in range(1000):
        consumer.wake()
    assert not consumer.receive({BILLING: 1}, 30)
    before = monotonic()
    assert not consumer.receive({BILLING: 1}, 0.05)
    assert monotonic() - before >= 0.04


def test_wake_needs_no_lock(open_url):
    broker = open_url()
    consumer = broker.consumer([Membership(BILLING)], "c")
    with broker._store.lock:  # as when a signal handler interrupts the thread that has it
        consumer.wake()
    assert not consumer.receive({BILLING: 1}, 30)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_others_publish_goes_on_with_a_copy_in_order(open_url):
    broker = open_url()
    stop = threading.Event()

    def work(key: SubscriptionKey) -> None:
        consumer = broker.consumer([Membership(key)], key.topic)
        while not stop.is_set():
            broker.publish([message(n, key.topic) for n in range(50)])
            consumer.ack(consumer.receive({key: 50}, 0))

    def is_well() -> bool:
        broker.publish([message(1)])
        return received(broker) == ["1"]

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(work, SubscriptionKey(f"other-{n}", "billing")) for n in range(3)]
        try:
            statuses = [in_child(is_well) for _ in range(20)]
        finally:
            stop.set()
        for each in working:
            each.result(10)
    assert statuses == [0] * 20
    assert received(broker) == []


def in_child(is_well: Callable[[], bool]) -> int:
    """Return 0 if `is_well` is true in a forked child; -14 (SIGALRM) if it did not end in 10 seconds."""
    child = os.fork()
    if not child:
        status = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            status = 0 if is_well() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
