"""What is counted of publishes and deliveries, and how Prometheus gets to see it."""

import json
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pubsub_core import (
    BrokerUnavailable,
    FixedDelay,
    ManualClock,
    Message,
    NoRetry,
    PubSub,
    Reject,
    Retry,
    SubscriptionKey,
    SystemClock,
    Worker,
)
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.metrics import BOUNDS, Counts, GroupCounts, Histogram, Look, Metrics, Page
from pubsub_core.prometheus import LOOK_EVERY, Collector, render

BILLING = SubscriptionKey("orders", "billing")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def pubsub(clock):
    pubsub = PubSub("memory://", group="billing", clock=clock)
    pubsub.metrics.start()
    yield pubsub
    pubsub.close()


def drain(pubsub: PubSub) -> GroupCounts:
    """Handle all there is, and return what was counted for the group."""
    with Worker(pubsub, threads=2, burst=True) as worker:
        assert worker.wait(10)
    return pubsub.metrics.snapshot().groups[BILLING]


def scraped(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Return the samples as Prometheus reads them: by name, topic, group, and what else there is."""
    return samples_of(generate_latest(registry).decode())


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    order = ("topic", "group", "reason", "le")
    return {
        (sample.name, *(sample.labels[name] for name in order if name in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# Publishing


def test_what_is_published_is_counted_by_topic_also_in_batches(pubsub):
    pubsub.publish("orders", 1)
    with pubsub.batch() as batch:
        batch.publish("orders", 2)
        batch.publish("mails", 3)

    assert pubsub.metrics.snapshot().published == {"orders": 2, "mails": 1}


def test_what_was_not_stored_is_not_counted(pubsub):
    pubsub.publish("orders", 1, dedup="once")
    pubsub.publish("orders", 1, dedup="once")

    @pubsub.publish_middleware
    def keep_back(message, call_next):
        if message.payload != "secret":
            call_next(message)

    pubsub.publish("orders", "secret")

    assert pubsub.metrics.snapshot().published == {"orders": 1}


def test_nothing_is_counted_before_it_is_asked_for():
    pubsub = PubSub("memory://")
    pubsub.publish("orders", 1)

    assert pubsub.metrics.snapshot() == Counts()
    pubsub.close()


def test_a_forked_process_counts_from_zero_and_finds_the_lock_free(pubsub):
    pubsub.publish("orders", 1)
    with pubsub.metrics._lock:  # as a thread of the parent would at the wrong moment
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if pubsub.metrics.snapshot() == Counts() else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pubsub.metrics.snapshot().published == {"orders": 1}


def a_message(new):
    return Message(new, "orders", b"1", published_at(new))


def test_counting_from_many_threads_loses_nothing():
    metrics = Metrics()
    metrics.start()
    message = a_message(IdMaker(SystemClock())())
    threads = [
        threading.Thread(target=lambda: [metrics.published([message], [message.id]) for _ in range(2_000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert metrics.snapshot().published["orders"] == 8_000


# Handling


def test_each_outcome_is_counted_as_what_it_is(pubsub):
    @pubsub.subscribe("orders", retry=FixedDelay(30, max_retries=1))
    def handle(message):
        what = message.payload
        if what == "reject":
            raise Reject("no")
        if what == "again" and message.attempt == 1:
            raise Retry(delay=60)
        if what == "fail":
            raise ValueError(what)

    for what in ("well", "well", "reject", "again", "fail"):
        pubsub.publish("orders", what)

    first = drain(pubsub)
    assert (first.handled, first.failed, first.retried, dict(first.dead)) == (2, 3, 2, {"rejected": 1})
    assert first.seconds.count == 5

    pubsub.runtime.clock.advance(61)
    both = drain(pubsub)
    assert (both.handled, both.failed, both.retried) == (3, 4, 2)
    assert dict(both.dead) == {"rejected": 1, "retries exhausted": 1}
    assert both.settled == 7


def test_what_expired_is_dropped_or_dead_and_took_no_time(pubsub):
    @pubsub.subscribe("orders", expired="drop")
    def handle(message):
        raise AssertionError("it is not called")

    @pubsub.subscribe("orders", group="audit")
    def audit(message):
        raise AssertionError("it is not called")

    pubsub.publish("orders", 1, expires=5)
    pubsub.runtime.clock.advance(6)

    counts = drain(pubsub)
    assert (counts.dropped, counts.failed, counts.seconds.count) == (1, 0, 0)
    other = pubsub.metrics.snapshot().groups[SubscriptionKey("orders", "audit")]
    assert (dict(other.dead), other.failed, other.seconds.count) == ({"expired": 1}, 0, 0)


def test_latency_is_from_publish_to_the_first_attempt_by_the_brokers_clock(pubsub):
    @pubsub.subscribe("orders", retry=FixedDelay(100, max_retries=5))
    def handle(message):
        if message.attempt == 1:
            raise ValueError

    pubsub.publish("orders", 1)
    pubsub.runtime.clock.advance(7)
    assert drain(pubsub).latency.total == pytest.approx(7, abs=0.5)

    pubsub.runtime.clock.advance(100)
    counts = drain(pubsub)
    assert (counts.seconds.count, counts.latency.count) == (2, 1)


def test_a_publisher_whose_clock_is_ahead_makes_no_latency_negative():
    pubsub = PubSub("memory://", group="billing")
    pubsub.metrics.start()
    seen = threading.Event()

    @pubsub.subscribe("orders")
    def handle(message):
        seen.set()

    broker = pubsub.runtime.broker
    ahead = ManualClock(datetime.now(UTC) + timedelta(hours=1))
    broker.publish([a_message(IdMaker(ahead)())])

    assert drain(pubsub).latency.total == 0
    assert seen.is_set()
    pubsub.close()


def test_a_handler_that_is_given_up_is_counted_once(pubsub):
    release = threading.Event()

    @pubsub.subscribe("orders", retry=NoRetry(), timeout=0.05)
    def handle(message):
        while not release.is_set():
            try:
                release.wait(0.01)
            except BaseException:
                continue

    pubsub.publish("orders", 1)
    with Worker(pubsub, threads=1) as worker:
        worker._timeouts._grace = 0.05
        never = threading.Event()
        for _ in range(1000):
            if worker.abandoned:
                break
            never.wait(0.01)
        assert worker.abandoned == 1
        release.set()
    counts = pubsub.metrics.snapshot().groups[BILLING]
    assert (dict(counts.dead), counts.seconds.count) == ({"retries exhausted": 1}, 1)


def test_what_schedules_publish_is_counted(pubsub):
    seen = threading.Event()

    @pubsub.every(10, name="tick")
    def tick():
        seen.set()

    with Worker(pubsub, threads=1):
        for _ in range(1000):
            pubsub.runtime.clock.advance(10)
            if seen.wait(0.01):
                break
        assert seen.is_set()
    counts = pubsub.metrics.snapshot()
    handled = counts.groups[SubscriptionKey("tick", "billing")].handled
    assert counts.published["tick"] >= handled >= 1


# The values themselves


def test_a_value_is_counted_in_the_bucket_whose_bound_is_the_first_not_below_it():
    histogram = Histogram()
    histogram.observe([0.0, 0.001])
    histogram.observe([0.0011, 299, 301])

    assert [bound for bound, count in zip((*BOUNDS, "more"), histogram.buckets, strict=True) for _ in range(count)] == [
        0.001, 0.001, 0.0025, 300.0, "more",
    ]  # fmt: skip
    assert histogram.total == pytest.approx(600.0021)


def test_counts_cross_processes_whole_and_add_up(pubsub):
    @pubsub.subscribe("orders", retry=NoRetry())
    def handle(message):
        if message.payload == "fail":
            raise ValueError

    for what in ("well", "fail"):
        pubsub.publish("orders", what)
    drain(pubsub)
    one = pubsub.metrics.snapshot()

    other = Counts.from_json(one.to_json())
    assert other == one or other.to_json() == one.to_json()
    other.add(one)
    assert other.published == {"orders": 4}
    assert other.groups[BILLING].handled == 2
    assert other.groups[BILLING].dead == {"retries exhausted": 2}
    assert other.groups[BILLING].seconds.count == 4
    assert one.groups[BILLING].handled == 1  # adding changes the sum alone


# Prometheus


def test_a_program_registers_a_collector_and_prometheus_reads_it(clock):
    pubsub = PubSub("memory://", group="billing", clock=clock)
    registry = CollectorRegistry()
    registry.register(Collector(pubsub))

    @pubsub.subscribe("orders")
    def handle(message):
        if message.payload == "no":
            raise Reject("no")

    pubsub.publish("orders", "yes")
    pubsub.publish("orders", "no")
    drain(pubsub)

    samples = scraped(registry)
    assert samples["pubsub_published_total", "orders"] == 2
    assert samples["pubsub_handled_total", "orders", "billing"] == 1
    assert samples["pubsub_dead_total", "orders", "billing", "rejected"] == 1
    assert samples["pubsub_handler_seconds_count", "orders", "billing"] == 2
    assert samples["pubsub_handler_seconds_bucket", "orders", "billing", "+Inf"] == 2
    assert samples["pubsub_delivery_seconds_count", "orders", "billing"] == 2
    pubsub.close()


def test_groups_are_looked_at_when_scraped_and_at_most_every_few_seconds(clock):
    pubsub = PubSub("memory://", group="billing", clock=clock)
    registry = CollectorRegistry()
    now = [0.0]
    registry.register(Collector(pubsub, groups=True, clock=lambda: now[0]))

    @pubsub.subscribe("orders")
    def handle(message):
        pass

    drain_nothing = Worker(pubsub, threads=1, burst=True)
    with drain_nothing:
        assert drain_nothing.wait(10)
    pubsub.publish("orders", 1)
    clock.advance(9)
    assert scraped(registry)["pubsub_lag", "orders", "billing"] == 1
    assert scraped(registry)["pubsub_oldest_seconds", "orders", "billing"] == pytest.approx(9)
    pubsub.publish("orders", 2)
    assert scraped(registry)["pubsub_lag", "orders", "billing"] == 1
    now[0] += LOOK_EVERY
    assert scraped(registry)["pubsub_lag", "orders", "billing"] == 2
    pubsub.close()


def test_while_the_broker_is_away_the_counts_are_there_and_the_groups_are_not(pubsub, monkeypatch):
    @pubsub.subscribe("orders")
    def handle(message):
        pass

    def away(topic):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(pubsub.runtime.broker, "groups", away)
    registry = CollectorRegistry()
    registry.register(Collector(pubsub, groups=True))
    pubsub.publish("orders", 1)

    samples = scraped(registry)
    assert samples["pubsub_published_total", "orders"] == 1
    assert not [name for name in samples if name[0] == "pubsub_lag"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openm")],
)
def test_the_page_of_a_worker_is_rendered_in_the_format_asked_for(accept, content_type):
    counts = Counts()
    counts.groups[BILLING] = GroupCounts(handled=3)
    page = Page(counts, {BILLING: 2}, {BILLING: Look(5, 4, 1.5)}, processes=2, crashes=1)
    page = Page.from_json(json.loads(json.dumps(page.to_json())))  # as it comes from the supervisor

    body, kind = render(page, accept)

    assert kind.startswith(content_type)
    if content_type == "text/plain":
        samples = samples_of(body.decode())
        assert samples["pubsub_handled_total", "orders", "billing"] == 3
        assert samples["pubsub_in_hand", "orders", "billing"] == 2
        assert samples["pubsub_pending", "orders", "billing"] == 4
        assert samples["pubsub_processes",] == 2
        assert samples["pubsub_crashes_total",] == 1
        assert samples["pubsub_lag", "orders", "billing"] == 5
    else:
        assert body.decode().rstrip().endswith("# EOF")
