"""Shows metrics to Prometheus. It needs the extra: pip install 'pubsub-streams[prometheus]'.

A worker serves its own (`--metrics-port`). A program that publishes, or runs a `Worker` within itself, registers:

    prometheus_client.REGISTRY.register(Collector(pubsub))
"""

import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from time import monotonic

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as PrometheusCollector
from prometheus_client.utils import floatToGoString

from pubsub_core.broker import Inspector
from pubsub_core.errors import BrokerError
from pubsub_core.metrics import BOUNDS, Counts, GroupCounts, Histogram, Looks, Page, look_at_groups
from pubsub_core.pubsub import PubSub

LOOK_EVERY = 5.0  # seconds

_GROUP = ("topic", "group")


class Collector(PrometheusCollector):
    """What a `PubSub` counts in this process, for a registry of prometheus_client. Counting begins when it is made.

    With `groups` it also asks the broker how the groups of the `PubSub`'s subscriptions stand: at a scrape, at most
    once in `LOOK_EVERY` seconds. While the broker is away those gauges are missing.
    """

    def __init__(self, pubsub: PubSub, *, groups: bool = False, clock: Callable[[], float] = monotonic) -> None:
        pubsub.metrics.start()
        self._pubsub = pubsub
        self._looks_at_groups = groups
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: Looks = {}
        self._looked_at: float | None = None

    def describe(self) -> Iterator[Metric]:
        """Return the families without their values: registering asks for their names, and shall not ask the broker."""
        yield from count_families(Counts())
        if self._looks_at_groups:
            yield from look_families({})

    def collect(self) -> Iterator[Metric]:
        """Return the families."""
        yield from count_families(self._pubsub.metrics.snapshot())
        if self._looks_at_groups:
            yield from look_families(self._look())

    def _look(self) -> Looks:
        with self._lock:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= LOOK_EVERY:
                self._looked_at = now
                broker, keys = self._pubsub.runtime.broker, [one.key for one in self._pubsub.subscriptions()]
                try:
                    self._looks = look_at_groups(broker, broker.time(), keys) if isinstance(broker, Inspector) else {}
                except BrokerError:  # what shows it is that they are missing; whoever publishes gets the error
                    self._looks = {}
            return self._looks


def count_families(counts: Counts) -> Iterator[Metric]:
    """Return what was counted, as families of Prometheus."""
    published = CounterMetricFamily("pubsub_published", "Messages that were stored.", labels=("topic",))
    for topic, count in counts.published.items():
        published.add_metric((topic,), count)
    yield published
    counters: list[tuple[str, str, Callable[[GroupCounts], int]]] = [
        ("pubsub_handled", "Deliveries whose handler returned.", lambda one: one.handled),
        ("pubsub_failed", "Attempts that were started and not handled.", lambda one: one.failed),
        ("pubsub_retried", "Deliveries given back, to be delivered again.", lambda one: one.retried),
        ("pubsub_dropped", "Messages that had expired, of subscriptions that drop those.", lambda one: one.dropped),
    ]
    for name, what, value in counters:
        counter = CounterMetricFamily(name, what, labels=_GROUP)
        for key, one in counts.groups.items():
            counter.add_metric(key, value(one))
        yield counter
    dead = CounterMetricFamily("pubsub_dead", "Deliveries that became dead letters.", labels=(*_GROUP, "reason"))
    for key, one in counts.groups.items():
        for reason, count in one.dead.items():
            dead.add_metric((*key, reason), count)
    yield dead
    histograms: list[tuple[str, str, Callable[[GroupCounts], Histogram]]] = [
        ("pubsub_handler_seconds", "What handlers took, middleware included.", lambda one: one.seconds),
        ("pubsub_delivery_seconds", "From publish to the start of the first attempt.", lambda one: one.latency),
    ]
    for name, what, values in histograms:
        histogram = HistogramMetricFamily(name, what, labels=_GROUP)
        for key, one in counts.groups.items():
            histogram.add_metric(key, _buckets(values(one)), values(one).total)
        yield histogram


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, accumulate(histogram.buckets), strict=True)]


def look_families(looks: Looks) -> Iterator[Metric]:
    """Return how groups stand, as families of Prometheus."""
    lag = GaugeMetricFamily("pubsub_lag", "Messages that the group was not handed yet.", labels=_GROUP)
    pending = GaugeMetricFamily("pubsub_pending", "Messages handed out and not settled.", labels=_GROUP)
    oldest = GaugeMetricFamily("pubsub_oldest_seconds", "Age of the oldest message not settled.", labels=_GROUP)
    for key, one in looks.items():
        lag.add_metric(key, one.lag)
        pending.add_metric(key, one.pending)
        oldest.add_metric(key, one.oldest)
    yield from (lag, pending, oldest)


def render(page: Page, accept: str) -> tuple[bytes, str]:
    """Return the page of a worker in the format that the HTTP header `Accept` asks for, and its content type."""
    registry = CollectorRegistry()
    registry.register(_PageCollector(page))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _PageCollector(PrometheusCollector):
    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        page = self._page
        yield from count_families(page.counts)
        yield from look_families(page.looks)
        in_hand = GaugeMetricFamily("pubsub_in_hand", "Deliveries that this worker has in hand.", labels=_GROUP)
        for key, count in page.in_hand.items():
            in_hand.add_metric(key, count)
        yield in_hand
        yield GaugeMetricFamily("pubsub_processes", "Processes of this worker that run.", page.processes)
        yield CounterMetricFamily("pubsub_crashes", "Processes of this worker that crashed.", page.crashes)
