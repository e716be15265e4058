"""Reading ahead: what is on its way to a consumer before anybody wanted it is neither lost, repeated nor hoarded."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from redis import Redis

from pubsub_core import Message, PubSub, Worker
from pubsub_core.errors import BrokerError, BrokerUnavailable
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_core.worker import process as process_module
from pubsub_redis import consumer as consumer_module
from pubsub_redis.consumer import RedisConsumer, _Ahead
from pubsub_redis.keys import paused_key
from tests.servers import RealServer, proxy_to
from tests.test_redis import WITHIN, Place, ids, message, publish
from tests.waiting import until

BILLING = SubscriptionKey("orders", "billing")
COUNT, MOST = 2_000, 500


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> RealServer:
    shared: RealServer = request.getfixturevalue(request.param)
    return shared


@pytest.fixture
def place(server: RealServer) -> Iterator[Place]:
    with Redis.from_url(server.url, protocol=2) as client:
        place = Place(server.url, client)
        yield place
        place.clean_up()


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, whoever asks again asks soon enough."""
    monkeypatch.setattr(consumer_module, "_BRISK", 60.0)


class Hurried:
    """A consumer that reads as fast as it can, and has something on its way."""

    def __init__(self, place: Place, url: str | None = None) -> None:
        self.place = place
        self.consumer = place.joined(place.broker(url, patience=1.0))
        self.published = publish(place.broker(), COUNT)
        self.taken: list[Delivery[bytes]] = []
        while self.consumer._ahead is None:
            assert len(self.taken) < COUNT, "it never asked ahead"
            self.taken += self.receive()

    def receive(self, most: int = MOST) -> Sequence[Delivery[bytes]]:
        return self.consumer.receive({BILLING: most}, 0.05)

    def wait_for_reply(self) -> _Ahead:
        """Wait until what is on its way has arrived."""
        ahead = self.consumer._ahead
        assert ahead is not None
        until(ahead.link.has_more)
        return ahead

    def rest(self, *consumers: RedisConsumer) -> list[Delivery[bytes]]:
        """Return what is still to come, over an error, from these or from this one."""
        rest: list[Delivery[bytes]] = []
        for_so_long = time.monotonic() + WITHIN
        while len(rest) + len(self.taken) < COUNT and time.monotonic() < for_so_long:
            for one in consumers or [self.consumer]:
                try:
                    rest += one.receive({BILLING: MOST}, 0.05)
                except BrokerError:
                    continue
        return rest

    def check(self, rest: Sequence[Delivery[bytes]]) -> None:
        """All came, each once, as if nothing had been."""
        assert sorted(ids([*self.taken, *rest])) == self.published
        assert {(one.message.attempt, one.crashes) for one in rest} == {(1, 0)}


def test_all_come_once_and_in_order(place: Place) -> None:
    hurried = Hurried(place)
    rest = hurried.rest()
    assert ids([*hurried.taken, *rest]) == hurried.published
    assert not hurried.receive()
    assert hurried.consumer._ahead is None, "there is nothing left to ask for"


def test_who_takes_his_time_has_nothing_on_its_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_BRISK", 0.0)
    consumer = place.consumer(place.broker())
    publish(place.broker(), COUNT)
    for _ in range(3):
        assert len(consumer.receive({BILLING: MOST}, 0.05)) == MOST
        assert consumer._ahead is None


def test_acknowledgements_go_along(place: Place) -> None:
    hurried = Hurried(place)
    received = hurried.consumer.receive({BILLING: MOST}, 0.05, hurried.taken)
    assert received
    assert hurried.consumer._ahead is not None
    pending = place.client.xpending(place.stream, "billing")["pending"]
    assert pending <= len(received) + hurried.consumer._ahead.read.count
    hurried.consumer.ack(hurried.taken)  # once more: it does no harm


def test_no_more_is_handed_out_than_is_wanted_by_then(place: Place) -> None:
    hurried = Hurried(place)
    few = hurried.receive(most=7)
    assert len(few) == 7
    assert not hurried.receive(most=0)
    rest = hurried.rest()
    assert ids([*hurried.taken, *few, *rest]) == hurried.published, "what was kept comes first"


@pytest.mark.parametrize("of", ["those who are busy", "those who are told to stop"])
def test_what_was_more_than_was_wanted_goes_to_others(place: Place, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = Hurried(place)
    hurried.taken += hurried.receive(most=7)
    if of == "those who are busy":
        monkeypatch.setattr(consumer_module, "_STALE", 0.0)
    else:
        hurried.consumer.wake()
    hurried.consumer.maintain()
    hurried.check(hurried.rest(place.consumer(place.broker())))


def test_what_was_more_than_was_wanted_is_not_handed_out_while_the_group_is_paused(place: Place) -> None:
    hurried = Hurried(place)
    hurried.taken += hurried.receive(most=7)
    inspector = place.broker()
    inspector.pause_group(BILLING, is_paused=True)
    until(lambda: bool(hurried.consumer._control and hurried.consumer._control.has_more()))
    hurried.consumer._read_control()
    assert not hurried.receive()

    inspector.pause_group(BILLING, is_paused=False)
    hurried.consumer._look_for_pauses()
    hurried.check(hurried.rest())


@pytest.mark.parametrize("says", ["control", "key"])
def test_nothing_of_it_is_handed_out_while_the_group_is_paused(
    place: Place, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = Hurried(place)
    inspector = place.broker()
    if says == "control":
        inspector.pause_group(BILLING, is_paused=True)
        until(lambda: bool(hurried.consumer._control and hurried.consumer._control.has_more()))
    else:
        monkeypatch.setattr(consumer_module, "_PAUSES", 0.0)  # what was said is missed, and looked up
        place.client.hset(paused_key(place.namespace), " ".join(BILLING), "1")
    assert not hurried.receive()

    inspector.pause_group(BILLING, is_paused=False)
    hurried.consumer._look_for_pauses()
    hurried.check(hurried.rest())


def test_it_is_handed_back_to_others_if_nobody_comes_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are busy with handlers that have become slow."""
    hurried = Hurried(place)
    hurried.consumer.maintain()
    assert hurried.consumer._ahead is not None, "somebody may still come"

    monkeypatch.setattr(consumer_module, "_STALE", 0.0)
    hurried.consumer.maintain()

    assert hurried.consumer._ahead is None
    hurried.check(hurried.rest(place.consumer(place.broker())))
    pending = place.client.xpending_range(place.stream, "billing", "-", "+", COUNT, hurried.consumer.name)
    assert len(pending) == len(hurried.taken)


def test_it_is_handed_back_at_once_by_who_is_told_to_stop(place: Place) -> None:
    hurried = Hurried(place)
    hurried.consumer.wake()
    hurried.consumer.maintain()
    assert hurried.consumer._ahead is None
    hurried.check(hurried.rest(place.consumer(place.broker())))


def test_who_was_woken_asks_for_no_more(place: Place) -> None:
    hurried = Hurried(place)
    hurried.consumer.wake()
    hurried.taken += hurried.receive()
    assert hurried.consumer._ahead is None
    hurried.check(hurried.rest())


def test_who_closes_leaves_nothing_of_it_behind(place: Place) -> None:
    hurried = Hurried(place)
    other = place.consumer(place.broker())
    hurried.consumer.ack(hurried.taken)
    hurried.consumer.close()
    hurried.check(hurried.rest(other))


def test_who_closes_waits_for_what_is_carried_out_late(place: Place, server: RealServer) -> None:
    """Else it would be pending for somebody who has left."""
    with proxy_to(server) as proxy:
        hurried = Hurried(place, proxy.url)
        hurried.wait_for_reply()
        proxy.hold_back(b"XREADGROUP")
        hurried.taken += hurried.receive()
        assert hurried.consumer._ahead is not None
        assert proxy.struck.wait(WITHIN)
        hurried.consumer.ack(hurried.taken)
        closing = place.in_thread(hurried.consumer.close)
        until(lambda: hurried.consumer._is_closed)
        proxy.let_go.set()
        closing.result(WITHIN)
        hurried.check(hurried.rest(place.consumer(place.broker())))


def test_it_survives_the_death_of_its_connection(place: Place) -> None:
    hurried = Hurried(place)
    ahead = hurried.wait_for_reply()
    place.client.client_kill_filter(_id=ahead.link.client_id)
    hurried.check(hurried.rest())


def test_a_reply_that_is_lost_loses_nothing(place: Place, server: RealServer) -> None:
    with proxy_to(server) as proxy:
        hurried = Hurried(place, proxy.url)
        proxy.lose_reply(to=b"XREADGROUP")
        with pytest.raises(BrokerUnavailable):
            while True:
                hurried.taken += hurried.receive()
        assert len(hurried.taken) < COUNT
        hurried.check(hurried.rest())


def test_a_group_that_vanishes_meanwhile_is_made_anew(place: Place) -> None:
    hurried = Hurried(place)
    hurried.consumer.ack(hurried.taken)
    place.client.xgroup_destroy(place.stream, "billing")
    came = {*ids(hurried.taken)}
    deadline = time.monotonic() + WITHIN
    while len(came) < COUNT and time.monotonic() < deadline:
        try:
            came |= {*ids(hurried.receive())}
        except BrokerError:
            continue
    assert came == {*hurried.published}


@pytest.mark.parametrize("has_beaten", [False, True])
@pytest.mark.parametrize("most", [MOST, 7])
def test_who_was_frozen_hands_none_of_it_out(place: Place, has_beaten: bool, most: int) -> None:
    """Others may have taken it over meanwhile; also if it gives a sign of life before it reads again."""
    hurried = Hurried(place)
    hurried.taken += hurried.receive(most)
    hurried.consumer.sign.given_at -= 4 * hurried.consumer._heartbeat + 1
    pending = place.client.xpending_range(place.stream, "billing", "-", "+", COUNT, hurried.consumer.name)
    held = {one.message.position for one in hurried.taken}
    on_its_way = {one["message_id"].decode() for one in pending} - held
    assert on_its_way
    place.client.xclaim(place.stream, "billing", "another", 0, [*on_its_way], justid=True)
    if has_beaten:
        hurried.consumer.sign.give()

    rest = [*hurried.receive()]
    while more := hurried.receive():
        rest += more
    assert not {one.message.position for one in rest} & on_its_way
    assert len(hurried.taken) + len(rest) + len(on_its_way) == COUNT


@pytest.mark.parametrize("is_paused", [False, True])
def test_after_a_seek_all_comes_again_though_something_was_on_its_way(place: Place, is_paused: bool) -> None:
    """What was asked for before says nothing of where the group is now."""
    hurried = Hurried(place)
    hurried.consumer.ack(hurried.taken)
    inspector = place.broker()
    if is_paused:
        inspector.pause_group(BILLING, is_paused=True)
    inspector.seek(BILLING, "earliest", force=not is_paused)
    if is_paused:
        inspector.pause_group(BILLING, is_paused=False)
    until(lambda: bool(hurried.consumer._control and hurried.consumer._control.has_more()))

    came: set[str] = set()
    deadline = time.monotonic() + WITHIN
    while len(came) < COUNT and time.monotonic() < deadline:
        some = hurried.receive()
        came |= {*ids(some)}
        hurried.consumer.ack(some)
    assert came == {*hurried.published}


@pytest.mark.parametrize("what", ["published", "due"])
def test_what_is_there_is_returned_though_nothing_was_on_its_way(place: Place, what: str) -> None:
    """The reply to what was asked for ahead is from before the call."""
    hurried = Hurried(place)
    while len(hurried.taken) < COUNT:
        hurried.taken += hurried.receive()
    hurried.wait_for_reply()
    if what == "published":
        publish(place.broker(), 10)
    else:
        hurried.consumer.nack(hurried.taken[0], 0.0)
    assert len(hurried.consumer.receive({BILLING: MOST}, 0.0)) == (10 if what == "published" else 1)


def test_after_a_wake_up_it_reads_ahead_again(place: Place) -> None:
    consumer = place.joined(place.broker())
    publish(place.broker(), 5 * COUNT)
    is_ahead: list[bool] = []
    done: Sequence[Delivery[bytes]] = ()
    for number in range(16):
        if number == 4:
            consumer.wake()
        done = consumer.receive({BILLING: MOST}, 0.05, done)
        is_ahead.append(consumer._ahead is not None)
    assert not is_ahead[4]
    assert any(is_ahead[5:])


def test_each_group_reads_ahead_on_its_own_connection(place: Place) -> None:
    """They may be on different nodes."""
    audit = SubscriptionKey("invoices", "audit")
    consumer, broker = place.joined(place.broker(), BILLING, audit), place.broker()
    broker.publish([message("orders") for _ in range(COUNT)])
    broker.publish([message("invoices") for _ in range(COUNT)])
    for key in (BILLING, audit, BILLING, BILLING, audit, audit, BILLING):
        consumer.receive({key: MOST}, 0.05)
        ahead = consumer._ahead
        assert ahead is None or ahead.link is consumer._links[ahead.read.node, ahead.read.line]


def test_what_is_kept_goes_to_others_though_somebody_waits_for_another_group(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = SubscriptionKey("invoices", "audit")
    consumer = place.joined(place.broker(), BILLING, audit)
    publish(place.broker(), COUNT)
    taken: list[Delivery[bytes]] = []
    while consumer._ahead is None:
        taken += consumer.receive({BILLING: MOST}, 0.05)
    waiting = place.in_thread(lambda: consumer.receive({BILLING: 0, audit: 10}, WITHIN))
    until(lambda: consumer._ahead is None and bool(consumer._unparked))
    monkeypatch.setattr(consumer_module, "_STALE", 0.0)

    consumer.maintain()
    assert not waiting.result(WITHIN), "it is woken"
    consumer.receive({BILLING: 0, audit: 10}, 0)

    pending = place.client.xpending_range(place.stream, "billing", "-", "+", COUNT, consumer.name)
    assert {one["message_id"].decode() for one in pending} == {one.message.position for one in taken}


def test_what_was_kept_is_not_held_any_more_once_it_is_handed_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same, if it came again in a reply that is lost, would be taken for held, and be pending for ever."""
    hurried = Hurried(place)
    hurried.taken += hurried.receive(most=7)
    monkeypatch.setattr(consumer_module, "_PAUSES", 0.0)
    place.client.hset(paused_key(place.namespace), " ".join(BILLING), "1")
    assert not hurried.receive(most=100)
    consumer = hurried.consumer
    pending = place.client.xpending_range(place.stream, "billing", "-", "+", COUNT, consumer.name)
    assert {*consumer._groups[BILLING].held} <= {one["message_id"].decode() for one in pending}


def test_nothing_that_was_kept_is_handed_out_beside_one_that_may_kill(place: Place) -> None:
    hurried = Hurried(place)
    hurried.taken += hurried.receive(most=7)
    hurried.consumer._crashed["1-1"] = hurried.consumer._broker.options.max_crashes - 1
    assert not hurried.receive(most=100)


@pytest.mark.parametrize("is_told_to_stop", [False, True])
def test_worker_whose_handlers_become_slow_hoards_nothing(
    place: Place, is_told_to_stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it has read, and of what is on its way to it, others get all that it does not start."""
    if is_told_to_stop:
        monkeypatch.setattr(consumer_module, "_STALE", 60.0)  # that it was told to stop is enough
        monkeypatch.setattr(process_module, "_LOOK", 60.0)
    pubsub = PubSub(place.url, namespace=place.namespace, group="billing", heartbeat=60.0)
    slow, go_on = threading.Semaphore(0), threading.Event()
    seen: list[str] = []
    total = 6_000

    @pubsub.subscribe("orders")
    def handle(message: Message) -> None:
        seen.append(message.id)
        if len(seen) > total // 2 and threading.current_thread() in busy:
            slow.release()
            go_on.wait(WITHIN)

    first, second = Worker(pubsub, threads=2), Worker(pubsub, threads=2)
    busy = {*first._handlers}
    published = publish(place.broker(), total)
    try:
        with first:
            assert all(slow.acquire(timeout=WITHIN) for _ in busy)
            consumer = first._consumer
            assert isinstance(consumer, RedisConsumer)
            assert consumer._ahead is not None
            if is_told_to_stop:
                first.stop()
            with second:
                until(lambda: len(seen) == total)
                go_on.set()
    finally:
        go_on.set()
        pubsub.close()
    assert sorted(seen) == published
