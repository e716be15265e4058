"""Each delivery goes to one thread, or back; whoever looks meanwhile."""

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest

from pubsub_core import Message, PubSub, SubscriptionKey
from pubsub_core.message import Delivery, delivery_of
from pubsub_core.worker.handover import Credit, Handover, _Idle
from tests.waiting import until

TOPICS = ("orders", "invoices")
WITHIN = 20.0
BILLING = SubscriptionKey("orders", "billing")


@pytest.fixture
def often() -> Iterator[None]:
    """Have threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def delivery(number: int, topic: str) -> Delivery[bytes]:
    message = Message(str(number), topic, b"", datetime(2030, 1, 1, tzinfo=UTC), position=str(number))
    return delivery_of(message, SubscriptionKey(topic, "billing"))


class Source:
    """What is read from: for each topic as many as are asked for, 50 at most."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics
        self.given = 0
        self.lock = threading.Lock()

    def read(self, credit: Credit) -> Sequence[Delivery[bytes]]:
        with self.lock:
            found: list[Delivery[bytes]] = []
            for topic in self.topics:
                for _ in range(min(50, credit[SubscriptionKey(topic, "billing")])):
                    found.append(delivery(self.given, topic))
                    self.given += 1
            return found


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("topics", [TOPICS[:1], TOPICS])
def test_each_goes_to_one_thread_or_is_given_back(topics: Sequence[str]) -> None:
    pubsub = PubSub("memory://")
    for topic in topics:
        pubsub.subscribe(topic, group="billing")(lambda message: None)
    for _ in range(40):
        source = Source(topics)
        handover = Handover(pubsub.subscriptions(), 4, source.read, lambda: None)
        _stopped_while_at_work(handover, source)


def _stopped_while_at_work(handover: Handover, source: Source) -> None:
    handled: list[Delivery[bytes]] = []
    back: list[Delivery[bytes]] = []
    is_stopped = threading.Event()

    def handle() -> None:
        taken = handover.next()
        while taken:
            handled.extend(taken)
            # Now and then as if it had taken long: then too much is in hand.
            taken = handover.next(taken, 1.0 if len(handled) % 197 == 0 else 1e-6)

    def look() -> None:
        while not is_stopped.is_set():
            back.extend(handover.take_surplus())
            handover.running()
            handover.in_hand()

    threads = [threading.Thread(target=handle) for _ in range(4)]
    looker = threading.Thread(target=look)
    for thread in (*threads, looker):
        thread.start()
    while source.given < 400 and any(thread.is_alive() for thread in threads):
        threading.Event().wait(0.0001)
    back.extend(handover.stop())
    is_stopped.set()
    for thread in (*threads, looker):
        thread.join(WITHIN)
        assert not thread.is_alive()

    back.extend(handover.stop())
    assert source.given >= 400
    seen = Counter(one.message.id for one in (*handled, *back))
    assert seen == Counter(str(number) for number in range(source.given))


def test_a_line_is_not_preferred_to_others_because_its_next_is_quick_to_take() -> None:
    pubsub = PubSub("memory://")
    for topic in TOPICS:
        pubsub.subscribe(topic, group="billing")(lambda message: None)
    found = [delivery(number, topic) for topic in TOPICS for number in range(10)]
    reads = iter([found])
    handover = Handover(pubsub.subscriptions(), 1, lambda _: next(reads, None) or handover.stop(), lambda: None)
    order = []
    taken = handover.next()
    while taken:
        order.append(taken[0].message.topic)
        taken = handover.next(taken, 1e-6)
    assert order == [*TOPICS] * 10


def test_nothing_is_started_after_stop() -> None:
    pubsub = PubSub("memory://")
    pubsub.subscribe("orders", group="billing")(lambda message: None)
    reads = iter([[delivery(number, "orders") for number in range(10)], [delivery(10, "orders")]])
    handover = Handover(pubsub.subscriptions(), 1, lambda _: next(reads), lambda: None)
    taken = handover.next()
    assert len(handover.stop()) == 9
    handover._lead({})  # what a read brings that was on its way
    assert handover.next(taken, 1e-6) == ()
    assert len(handover.stop()) == 1


def test_a_read_that_fails_takes_nothing_of_what_waits() -> None:
    pubsub = PubSub("memory://")
    pubsub.subscribe("orders", group="billing")(lambda message: None)

    def read(_: Credit) -> Sequence[Delivery[bytes]]:
        handover._lines[BILLING].waiting.append(delivery(1, "orders"))  # as a run that was given up leaves it
        handover._line_up(handover._lines[BILLING])
        raise RuntimeError("broken")

    handover = Handover(pubsub.subscriptions(), 1, read, lambda: None)
    with pytest.raises(RuntimeError, match="broken"):
        handover.next()
    assert handover.running() == []
    assert [one.message.id for one in handover.stop()] == ["1"]
    assert handover.is_empty


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [
        (0.03, 250, 500),  # it waited for the interpreter's lock, while the others had their turns
        (0.9, 1, 8),  # it is slow: one for each thread
    ],
)
def test_one_that_takes_long_counts_fully_unless_it_may_have_waited_for_the_others(
    seconds: float, least: int, most: int
) -> None:
    pubsub = PubSub("memory://")
    pubsub.subscribe("orders", group="billing")(lambda message: None)
    asked: list[int] = []

    def read(credit: Credit) -> Sequence[Delivery[bytes]]:
        asked.extend(credit.values())
        return [delivery(number, "orders") for number in range(100)]

    handover = Handover(pubsub.subscriptions(), 8, read, lambda: None)
    taken = handover.next()
    for _ in range(99):
        taken = handover.next(taken, 30e-6)
    handover.next(taken, seconds)
    assert least <= asked[-1] <= most


class Backlog:
    """Of each topic that has one there is always more. Notes what is asked for."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics
        self.asked: list[Credit] = []

    def read(self, credit: Credit) -> Sequence[Delivery[bytes]]:
        self.asked.append(credit)
        return [delivery(0, topic) for topic in self.topics for _ in range(credit[SubscriptionKey(topic, "billing")])]


def many(count: int, batch: int | None) -> tuple[PubSub, list[str]]:
    pubsub = PubSub("memory://")
    topics = [f"topic-{number}" for number in range(count)]
    for topic in topics:
        pubsub.subscribe(topic, group="billing", batch=batch)(lambda messages: None)
    return pubsub, topics


def test_many_that_take_batches_have_no_more_in_hand_than_the_threads_start_and_full_batches_in_turn() -> None:
    pubsub, topics = many(40, batch=500)
    backlog = Backlog(topics)
    handover = Handover(pubsub.subscriptions(), 4, backlog.read, lambda: None)
    started: Counter[str] = Counter()
    most = 0
    taken: Sequence[Delivery[bytes]] = ()
    for _ in range(80):
        taken = handover.next(taken, 20.0)
        assert len(taken) == 500
        assert handover.holds_back, "others have something too, so it is not to wait"
        started[taken[0].message.topic] += 1
        most = max(most, sum(handover.in_hand().values()))
    assert most == 4 * 500
    assert started == Counter(dict.fromkeys(topics, 2))


def test_those_that_had_nothing_are_asked_for_at_every_read_and_leave_the_rest_to_those_that_had() -> None:
    pubsub, topics = many(40, batch=500)
    backlog = Backlog(topics[:1])
    handover = Handover(pubsub.subscriptions(), 4, backlog.read, lambda: None)
    taken: Sequence[Delivery[bytes]] = ()
    for _ in range(40):
        taken = handover.next(taken, 20.0)
    busy, *idle = backlog.asked[-1].values()
    assert busy == 500
    assert set(idle) == {4 * 500 // 40}
    assert not handover.holds_back


@pytest.mark.parametrize("count", [1, 10, 100])
def test_however_many_are_quick_there_is_work_for_the_same_short_time_in_hand(count: int) -> None:
    pubsub, topics = many(count, batch=None)
    backlog = Backlog(topics)
    handover = Handover(pubsub.subscriptions(), 8, backlog.read, lambda: None)
    taken: Sequence[Delivery[bytes]] = ()
    most = 0
    for _ in range(3_000):
        taken = handover.next(taken, 0.001)
        most = max(most, sum(handover.in_hand().values()))
    assert 8 * 20 - count <= most <= 8 * 20 + count  # 20 ms for each thread, and one of each in any case


class Interrupted(BaseException):
    pass


def test_who_is_interrupted_as_he_is_woken_passes_it_on() -> None:
    """As by a timeout that comes late: otherwise what he was woken for would wait for the next that comes."""
    lock = threading.Lock()
    idle = _Idle(lock)
    woken: list[str] = []

    def wait() -> None:
        try:
            with lock:
                idle.wait()
            woken.append("woken")
        except Interrupted:
            woken.append("interrupted")

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda number=number: len(idle._asleep) == number)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threads[0].ident or 0), ctypes.py_object(Interrupted))

    with lock:
        idle.wake_one()
    threads[0].join(WITHIN)
    threads[1].join(WITHIN)
    assert sorted(woken) == ["interrupted", "woken"]
    assert threads[2].is_alive()

    with lock:
        idle.wake_all()
        idle.wake_one()  # nobody is asleep
    threads[2].join(WITHIN)
    assert sorted(woken) == ["interrupted", "woken", "woken"]
    assert not lock.locked()
