"""A redelivery never comes later than 0.5 s after it is due, on an idle system, nor before. With real workers."""

import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from redis import Redis

from pubsub_core import Membership, Message, PubSub, Retry, SubscriptionKey, Worker
from tests.servers import RealServer
from tests.test_supervisor import WITHIN, Fleet

LATE = 0.5  # seconds, as promised
TAKEN_WITHIN = 1.0  # seconds, by others, after it was handed back
EARLY = 0.001  # what is due is kept in whole milliseconds
DELAYS = [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0]

BILLING = SubscriptionKey("orders", "billing")


class Idle:
    """Workers that have nothing to do but `orders`, for two groups, of which one fails at the first attempt.

    All moments are those of one clock: that of the server, or of this machine.
    """

    def __init__(self, url: str) -> None:
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.client = None if url.startswith("memory:") else Redis.from_url(url)
        self.stream = f"{self.namespace}:{{orders}}"
        self._changed = threading.Condition()
        self._numbers = iter(range(10**6))
        self.runs: dict[int, list[tuple[int, float]]] = defaultdict(list)  # attempt and moment, of `billing`
        self.shipped: list[int] = []
        self.pubsub = PubSub(url, group="billing", namespace=self.namespace)
        self.pubsub.subscribe("orders", group="billing")(self._charge)
        self.pubsub.subscribe("orders", group="shipping")(self._ship)

    def _charge(self, message: Message[Any]) -> None:
        self._note(lambda: self.runs[message.payload["number"]].append((message.attempt, self.now())))
        if message.attempt == 1:
            raise Retry(delay=message.payload["delay"])

    def _ship(self, message: Message[Any]) -> None:
        self._note(lambda: self.shipped.append(message.payload["number"]))

    def _note(self, note: Callable[[], None]) -> None:
        with self._changed:
            note()
            self._changed.notify_all()

    def now(self) -> float:
        if self.client is None:
            return time.time()
        whole, fraction = self.client.time()
        return whole + fraction / 1e6

    def publish(self, delays: Sequence[float]) -> list[int]:
        """Publish messages that fail at first, and are asked for again after so long; return their numbers."""
        numbers = [next(self._numbers) for _ in delays]
        with self.pubsub.batch() as batch:
            for number, delay in zip(numbers, delays, strict=True):
                batch.publish("orders", {"number": number, "delay": delay})
        return numbers

    def wait_for_runs(self, numbers: Sequence[int], count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: all(len(self.runs[number]) >= count for number in numbers), WITHIN), {
                number: self.runs[number] for number in numbers
            }

    def wait_for_shipping(self, numbers: Sequence[int]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(numbers) <= set(self.shipped), WITHIN)

    def late(self, delays: Sequence[float]) -> list[float]:
        """Have messages retried after these delays; return by how much each was late."""
        numbers = self.publish(delays)
        self.wait_for_runs(numbers, 2)
        late = []
        for number, delay in zip(numbers, delays, strict=True):
            (first, failed), (second, ran) = self.runs[number]
            assert (first, second) == (1, 2)
            late.append(ran - failed - delay)  # a little more than it was: it was due a moment after it failed
        return late

    def close(self) -> None:
        self.pubsub.close()
        if self.client is not None:
            self.client.close()


@pytest.fixture(params=["memory", "redis", "valkey"])
def idle(request: pytest.FixtureRequest) -> Iterator[Idle]:
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
    else:
        server: RealServer = request.getfixturevalue(request.param)
        url = server.url
    idle = Idle(url)
    yield idle
    idle.close()


class Canary:
    """Tells whether the machine is idle: by how much a thread that only sleeps was late to wake up."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary")

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(0.01):
            now = time.monotonic()
            self.worst = max(self.worst, now - before - 0.01)
            before = now

    def __enter__(self) -> "Canary":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def assert_in_time(measure: Callable[[], list[float]], within: float = LATE) -> None:
    """What is promised holds on an idle system: where this one was busy meanwhile, it is measured again."""
    for _ in range(5):
        with Canary() as canary:
            late = measure()
        assert min(late) >= -EARLY
        if max(late) <= within:
            return
        assert canary.worst > 0.03, f"late by up to {max(late):.3f} s"
    pytest.fail(f"late by up to {max(late):.3f} s each time; this machine is never idle, by up to {canary.worst:.3f} s")


def test_what_is_handed_back_runs_elsewhere_in_time(idle: Idle) -> None:
    """A process that drains hands back what it has not started, and others, which wait, have it within 1 s."""

    def measure() -> list[float]:
        leaving = idle.pubsub.runtime.broker.consumer([Membership(BILLING)], f"leaving-{uuid.uuid4().hex[:8]}")
        leaving.maintain()
        leaving.receive({BILLING: 1}, 0)  # so that there is a group
        numbers = idle.publish([0.0] * 100)
        held: list[Any] = []
        while len(held) < 100:
            held += leaving.receive({BILLING: 100 - len(held)}, WITHIN)
        with Worker(idle.pubsub, threads=4):
            idle.wait_for_shipping(numbers)  # of another group, so they have joined, and have nothing to do
            assert not any(idle.runs[number] for number in numbers)
            began = idle.now()
            leaving.release(held)
            idle.wait_for_runs(numbers, 2)  # each fails once
        leaving.close()
        assert [attempt for number in numbers for attempt, _ in idle.runs[number]] == [1, 2] * 100, "it is not counted"
        return [idle.runs[number][0][1] - began for number in numbers]

    assert_in_time(measure, TAKEN_WITHIN)


def test_one_redelivery_after_the_other_is_in_time(idle: Idle) -> None:
    with Worker(idle.pubsub, threads=2), Worker(idle.pubsub, threads=2):
        assert_in_time(lambda: [late for delay in DELAYS for late in idle.late([delay])])
    assert sorted(idle.shipped) == sorted(idle.runs), "only the group that failed gets it again"


def test_redeliveries_that_wait_together_are_in_time(idle: Idle) -> None:
    with Worker(idle.pubsub, threads=2), Worker(idle.pubsub, threads=2):
        assert_in_time(lambda: idle.late(DELAYS[::-1] + DELAYS))


def test_a_crowd_of_redeliveries_is_in_time(idle: Idle) -> None:
    """Those that are due one after the other, and many that are due at once."""
    delays = [1.0 + (0.003 * number if number < 100 else 0.2) for number in range(150)]
    with Worker(idle.pubsub, threads=4):
        assert_in_time(lambda: idle.late(delays))
    assert sorted(idle.shipped) == sorted(idle.runs)


@pytest.mark.parametrize("delay", [0.05, 0.3, 1.0])
def test_an_earlier_redelivery_that_another_worker_asks_for_while_all_sleep_is_in_time(
    idle: Idle, delay: float
) -> None:
    """They slept until one that is due in an hour."""

    def measure() -> list[float]:
        broker = idle.pubsub.runtime.broker
        other = broker.consumer([Membership(BILLING)], f"other-{uuid.uuid4().hex}")
        other.maintain()
        (number,) = idle.publish([0.0])
        (delivery,) = other.receive({BILLING: 1}, WITHIN)
        with Worker(idle.pubsub, threads=2), Worker(idle.pubsub, threads=2):
            idle.wait_for_runs(idle.publish([3600.0]), 1)
            until_asleep(idle)
            due = idle.now() + delay
            other.nack(delivery, delay)
            idle.wait_for_runs([number], 1)
        other.close()
        ((attempt, ran),) = idle.runs[number]
        assert attempt == 2
        return [ran - due]

    assert_in_time(measure)


def until_asleep(idle: Idle, others: int = 0) -> None:
    """Return when the workers wait, of each a connection for each of its groups; besides so many other connections."""
    if idle.client is None:
        return  # a reader that does not wait yet will look anyway
    deadline = time.monotonic() + WITHIN
    while idle.client.info("clients")["blocked_clients"] != 4 + others or held(idle):
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def held(idle: Idle) -> int:
    """Return how many deliveries somebody is at, but for the one of the consumer that gives back."""
    assert idle.client is not None
    rows = [row for group in ("billing", "shipping") for row in idle.client.xinfo_consumers(idle.stream, group)]
    return sum(row["pending"] for row in rows if not row["name"].startswith((b"~parked", b"other-", b"parks-")))


@pytest.mark.parametrize("delay", ["0.05", "0.3", "1.0"])
@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_an_earlier_redelivery_that_another_process_asks_for_while_all_sleep_is_in_time(
    request: pytest.FixtureRequest, server: str, delay: str
) -> None:
    """And ends then. It has its own connections, and its own clock, which does not count."""
    place: RealServer = request.getfixturevalue(server)
    idle = Idle(place.url)
    fleet = Fleet(place.url)
    fleet.namespace, fleet.gate = idle.namespace, f"{idle.namespace}-gate"

    def measure() -> list[float]:
        (number,) = idle.publish([0.0])
        with fleet.run(sys.executable, "parks.py", GATE=fleet.gate, GATE_DELAY=delay) as other:
            other.wait_for("^took 1")
            with Worker(idle.pubsub, threads=2), Worker(idle.pubsub, threads=2):
                idle.wait_for_runs(idle.publish([3600.0]), 1)
                until_asleep(idle, others=1)  # which waits at the gate
                fleet.open_gate(1)
                (parked,) = other.wait_for(r"^parked ([\d.]+)")
                assert other.wait() == 0
                idle.wait_for_runs([number], 1)
        ((attempt, ran),) = idle.runs[number]
        assert attempt == 2
        return [ran - float(parked[1]) - float(delay)]

    assert_in_time(measure)
    fleet.close()
    idle.close()
