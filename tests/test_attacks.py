"""Found by asking of each line between two calls: what if the reply is lost, or the request late, just here?"""

import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from pubsub_core import SystemClock
from pubsub_core.broker import BrokerOptions
from pubsub_core.errors import BrokerFull, BrokerUnavailable, LeaseLost
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_redis import open_redis
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.keys import control_channel, look_key, worker_key
from tests.chaos.gate import Gate
from tests.servers import Proxy, RealServer, proxy_to, redis_server, valkey_server
from tests.test_redis import REASON, WITHIN, Place, ids, load_scripts, names, publish
from tests.waiting import until

BILLING = SubscriptionKey("orders", "billing")


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


@pytest.fixture
def proxy(server: RealServer) -> Iterator[Proxy]:
    with proxy_to(server) as proxy:
        yield proxy


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A server that a test may do anything to."""
    with (redis_server if request.param == "redis" else valkey_server)() as server:
        yield server


@pytest.fixture
def own_place(own: RealServer) -> Iterator[Place]:
    with Redis.from_url(own.url, protocol=2) as client:
        place = Place(own.url, client)
        yield place
        client.config_set("maxmemory", 0)
        place.clean_up()


# Reads


def test_read_that_is_carried_out_late_strands_nothing(place: Place, proxy: Proxy) -> None:
    """It brings its messages to a connection that nobody listens to any more, in the name of a consumer that lives."""
    consumer = place.joined(place.broker(proxy.url, patience=0.5))
    proxy.hold_back(b"XREADGROUP")
    with pytest.raises(BrokerUnavailable):
        consumer.receive({BILLING: 10}, 0)
    assert not consumer.receive({BILLING: 10}, 0), "it is certain again"

    published = publish(place.broker(), 3)
    proxy.let_go.set()
    until(lambda: place.client.xpending(place.stream, "billing")["pending"] == 3)

    taken = place.take(consumer, 3)
    assert ids(taken) == published
    assert {one.message.attempt for one in taken} == {1}


def test_take_that_is_carried_out_late_strands_nothing(place: Place, proxy: Proxy) -> None:
    consumer = place.joined(place.broker(proxy.url, patience=1.0))
    publish(place.broker())
    (delivery,) = place.take(consumer, 1)
    load_scripts(place)
    consumer.nack(delivery, 3.0)  # longer than all that must happen before it is due, on a busy machine too
    consumer._groups[BILLING].due_at = 0.0
    proxy.hold_back(b"EVALSHA")
    with pytest.raises(BrokerUnavailable):
        consumer.receive({BILLING: 10}, 0)
    assert not consumer.receive({BILLING: 10}, 0), "it is certain again, and nothing is due"
    due = f"{place.stream}:due:billing"
    until(lambda: place.client.zrange(due, 0, -1, withscores=True)[0][1] / 1000 < time.time())
    proxy.let_go.set()
    until(lambda: place.client.zcard(due) == 0)

    (again,) = place.take(consumer, 1)
    assert (again.message.id, again.message.attempt) == (delivery.message.id, 2)


def test_what_comes_again_to_who_still_has_it_is_not_taken_for_that(place: Place, proxy: Proxy) -> None:
    """It was thought dead, takes the very delivery that it has, and the reply is lost."""
    one, other = place.joined(place.broker(proxy.url)), place.joined(place.broker())
    publish(place.broker())
    (first,) = place.take(one, 1)
    place.client.delete(worker_key(place.namespace, one.name))
    other._upkeep.take_over(BILLING, one.name.encode())
    load_scripts(place)
    one._groups[BILLING].suspects_at = 0.0
    proxy.lose_reply(to=b"EVALSHA")
    with pytest.raises(BrokerUnavailable):
        one.receive({BILLING: 10}, 0)
    taken = list(one.receive({BILLING: 10}, 0))
    with pytest.raises(LeaseLost):
        one.nack(first, 0)

    (again,) = taken or place.take(one, 1)
    assert (again.message.id, again.message.attempt, again.crashes) == (first.message.id, 2, 1)
    one.ack([again])
    assert place.client.xpending(place.stream, "billing")["pending"] == 0


# Releases


def released_in_doubt(place: Place, proxy: Proxy) -> tuple[RedisConsumer, RedisConsumer, Delivery[bytes]]:
    """Return a consumer, another one, and what the first released without getting to know it."""
    one, other = place.joined(place.broker(proxy.url)), place.joined(place.broker())
    publish(place.broker())
    (first,) = place.take(one, 1)
    load_scripts(place)
    proxy.lose_reply(to=b"EVALSHA")
    with pytest.raises(BrokerUnavailable):
        one.release([first])
    return one, other, first


def test_release_whose_reply_is_lost_takes_nothing_away_when_it_is_repeated(place: Place, proxy: Proxy) -> None:
    """It was carried out, and what it released is at work here again, in the same attempt."""
    one, other, first = released_in_doubt(place, proxy)
    (again,) = place.take(one, 1)
    assert (again.message.id, again.message.attempt) == (first.message.id, 1)

    one.release([first])
    assert not other.receive({BILLING: 1}, 0)
    assert not one.receive({BILLING: 1}, 0), "nor was it handed back as something that nobody saw"
    one.nack(again, 0)


def test_release_that_is_repeated_leaves_what_is_on_its_way_to_who_reads(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, first = released_in_doubt(place, proxy)
    taken = one._taken

    def repeat_first(*arguments: Any) -> Any:
        one.release([first])  # as the settler's thread may do just then
        return taken(*arguments)

    monkeypatch.setattr(one, "_taken", repeat_first)
    (again,) = place.take(one, 1)
    assert not other.receive({BILLING: 1}, 0)
    one.nack(again, 0)


@pytest.mark.parametrize("reads_on", [True, False])
def test_release_that_never_arrived_is_made_up_for(place: Place, proxy: Proxy, reads_on: bool) -> None:
    """By who reads; if nobody does, as all are busy or told to stop, by who maintains."""
    one, other = place.joined(place.broker(proxy.url, patience=0.5)), place.joined(place.broker())
    published = publish(place.broker(), 2)
    released, kept = place.take(one, 2)
    load_scripts(place)
    proxy.hold_back(b"EVALSHA")
    with pytest.raises(BrokerUnavailable):
        one.release([released])
    one.release([released])
    if reads_on:
        one.receive({}, 0)
    else:
        one.maintain()

    (again,) = place.take(other, 1)
    assert (again.message.id, again.message.attempt) == (published[0], 1)
    proxy.let_go.set()
    one.nack(kept, 0)


def test_release_without_memory_takes_nothing_away_when_there_is_some_again(own: RealServer, own_place: Place) -> None:
    """What could not be parked was handed out here meanwhile."""
    place = own_place
    one, other = place.joined(place.broker()), place.joined(place.broker())
    publish(place.broker())
    (first,) = place.take(one, 1)
    place.client.config_set("maxmemory", 1)
    with pytest.raises(BrokerFull):
        one.release([first])
    (again,) = one.receive({BILLING: 1}, 0)
    place.client.config_set("maxmemory", 0)

    one.release([first])
    assert not other.receive({BILLING: 1}, 0)
    one.nack(again, 0)


def test_suspect_that_could_not_be_released_without_memory_is_later(own: RealServer, own_place: Place) -> None:
    """It is not handed out here without its care, and nobody repeats the release."""
    place = own_place
    broker = place.broker()
    mortal, one, other = (place.joined(broker) for _ in range(3))
    publish(broker)
    place.take(mortal, 1)
    place.client.delete(worker_key(place.namespace, mortal.name))
    one._upkeep.take_over(BILLING, mortal.name.encode())
    (suspect,) = place.take(one, 1)
    place.client.config_set("maxmemory", 1)
    with pytest.raises(BrokerFull):
        one.release([suspect])
    assert not one.receive({BILLING: 1}, 0)
    place.client.config_set("maxmemory", 0)

    one._stragglers_at = min(one._stragglers_at, time.monotonic())
    one.receive({}, 0)
    (again,) = place.take(other, 1)
    assert (again.message.id, again.crashes) == (suspect.message.id, 1)


def test_who_was_away_hands_out_nothing_that_came_meanwhile(place: Place) -> None:
    """Also if it has given a new sign of life before it looks at what came: others may have it by then."""
    broker = place.broker(heartbeat=0.2)
    one, other = place.joined(broker), place.joined(broker)
    inside, go_on = threading.Event(), threading.Event()
    note = one._note_all

    def note_late(*arguments: Any) -> None:
        inside.set()
        assert go_on.wait(WITHIN)
        note(*arguments)

    one._note_all = note_late  # type: ignore[method-assign]
    receiving = place.in_thread(lambda: one.receive({BILLING: 1}, WITHIN))
    until(lambda: "xreadgroup" in {client["cmd"] for client in place.client.client_list() if "b" in client["flags"]})
    published = publish(broker)
    assert inside.wait(WITHIN)
    until(lambda: not place.client.exists(worker_key(place.namespace, one.name)))

    def is_taken_over() -> bool:
        other.maintain()
        return one.name not in names(place)

    until(is_taken_over)
    (taken,) = other.receive({BILLING: 1}, WITHIN)
    one.sign.give()
    go_on.set()
    assert not receiving.result(WITHIN)
    one._note_all = note  # type: ignore[method-assign]
    assert not one.receive({BILLING: 1}, 0)
    assert (taken.message.id, taken.message.attempt) == (published[0], 2)
    other.ack([taken])


@pytest.mark.parametrize(
    "word", ["", "pause", "due", "due\norders\nbilling", "due\norders\nbilling\nsoon", "due\n\n\n\n\n", b"\xff"]
)
def test_word_on_the_control_channel_that_nobody_knows_is_passed_over(place: Place, word: Any) -> None:
    """A later version may say more than this one understands."""
    broker = place.broker()
    consumer = place.joined(broker)
    waiting = place.waiting(consumer)
    assert place.client.publish(control_channel(place.namespace), word) == 1
    published = publish(broker)
    assert ids(waiting.result(WITHIN)) == published


@pytest.mark.parametrize("entry_id", ["1700000000000000000-0", "253402300800000-1", "18446744073709551615-7"])
def test_entry_whose_id_is_no_time_is_delivered_all_the_same(place: Place, entry_id: str) -> None:
    """Another program may have chosen it; one in nanoseconds is later than a calendar knows."""
    broker = place.broker()
    consumer = place.joined(broker)
    place.client.xadd(place.stream, {"order_id": "7"}, id=entry_id)
    (delivery,) = place.take(consumer, 1)
    assert delivery.message.position == entry_id
    consumer.nack(delivery, 0)
    (again,) = place.take(consumer, 1)
    consumer.dead_letter(again, REASON)
    (letter,) = broker.dead_letters(BILLING)
    assert letter.message.payload == b'{"order_id":"7"}'
    assert broker.groups("orders")


def test_consumer_without_memory_goes_on_after_a_reply_was_lost(own: RealServer, own_place: Place) -> None:
    """What it was given in that reply cannot be parked, so it has to be handed out: nothing else would free memory."""
    with proxy_to(own) as proxy:
        broker = own_place.broker(proxy.url)
        consumer = own_place.joined(broker)
        published = publish(broker, 5)
        (first,) = consumer.receive({BILLING: 1}, 1)
        own_place.client.config_set("maxmemory", 1)
        proxy.lose_reply(to=b"XREADGROUP")
        with pytest.raises(BrokerUnavailable):
            consumer.receive({BILLING: 3}, 0)
        assert proxy.struck.is_set()

        taken = []
        deadline = time.monotonic() + WITHIN
        while len(taken) < 4:
            assert time.monotonic() < deadline
            received = consumer.receive({BILLING: 2}, 0)
            assert len(received) <= 2
            taken += received
        assert ids(taken) == published[1:]
        assert {one.message.attempt for one in taken} == {1}
        consumer.ack([first, *taken])
        assert own_place.client.xpending(own_place.stream, "billing")["pending"] == 0
        assert not consumer.receive({BILLING: 2}, 0)


@pytest.mark.parametrize("is_seen", [True, False])
def test_who_was_thought_dead_and_came_back_is_missed_in_time_when_he_dies(place: Place, is_seen: bool) -> None:
    """Whether or not anybody looked while he lived."""
    broker = place.broker(heartbeat=0.2)
    one, other = place.joined(broker), place.joined(broker)

    def is_gone() -> bool:
        other.maintain()
        return one.name not in names(place)

    def let_pass(seconds: float, *alive: RedisConsumer) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            threading.Event().wait(min(consumer.maintain() for consumer in alive))

    one.sign.give()
    until(is_gone)
    let_pass(1.0, other)  # who finds out that he is in none of their groups any more
    one.sign.give()
    assert not one.receive({BILLING: 1}, 0)
    let_pass(0.7, one, *([other] if is_seen else []))

    published = publish(broker)
    (held,) = one.receive({BILLING: 1}, 1.0)
    died = time.monotonic()
    until(is_gone)
    (taken,) = place.take(other, 1)
    assert ids([held]) == ids([taken]) == published
    assert time.monotonic() - died < 5.0  # of 15 s with a heartbeat of 2 s, and what a busy machine adds to it


def test_the_dead_are_missed_though_connections_break_all_the_time(own_place: Place) -> None:
    """Each time but for a moment: so nobody's sign of life can have expired, and nobody is waited for."""
    place = own_place
    broker = place.broker(heartbeat=5.0)
    mortal, other = place.joined(broker), place.joined(broker)
    published = publish(broker)
    place.take(mortal, 1)
    place.client.delete(worker_key(place.namespace, mortal.name))

    def is_back() -> bool:
        try:
            return not other.receive({BILLING: 1}, 0)
        except BrokerUnavailable:
            return False

    for _ in range(2):
        place.client.client_kill_filter(_type="normal", skipme=True)
        assert not is_back(), "nothing broke, so this tells nothing"
        until(is_back)
        upkeep = other._upkeep
        upkeep.suspects = {one: since - 5.0 for one, since in upkeep.suspects.items()}  # a heartbeat passes
        place.client.delete(look_key(place.namespace, upkeep.concern))
        other._look_at = 0.0
        other.maintain()
    assert ids(place.take(other, 1)) == published


@pytest.mark.parametrize("what", ["outage", "loss"])
def test_nobody_is_taken_for_dead_just_after_all_signs_may_have_gone(own_place: Place, what: str) -> None:
    """It was long, or the server has lost ours too: whoever lives needs time to come back."""
    place = own_place
    broker = place.broker(heartbeat=5.0)
    holding, other = place.joined(broker), place.joined(broker)
    publish(broker)
    place.take(holding, 1)
    if what == "outage":
        other.sign.given_at -= 11.0
        place.client.delete(worker_key(place.namespace, holding.name))
    else:
        place.client.delete(*(worker_key(place.namespace, one.name) for one in (holding, other)))
    other.sign.due_at = 0.0
    other.maintain()  # whose thread may be the first to be back
    other._start_over()
    other.receive({}, 0)
    for _ in range(3):
        other._upkeep.suspects = {one: since - 5.0 for one, since in other._upkeep.suspects.items()}
        place.client.delete(look_key(place.namespace, other._upkeep.concern))
        other._look_at = 0.0
        other.maintain()
    assert not other.receive({BILLING: 1}, 0)


def test_what_a_killed_process_had_seen_counts_for_who_looks_next(place: Place) -> None:
    """He asks for his turn soon, and need not find the dead silent twice himself."""
    broker = place.broker(heartbeat=5.0)
    mortal, killed, other = (place.joined(broker) for _ in range(3))
    published = publish(broker)
    place.take(mortal, 1)
    look = look_key(place.namespace, killed._upkeep.concern)
    other.maintain()
    place.client.delete(look, worker_key(place.namespace, mortal.name))
    killed._look_at = 0.0
    killed.maintain()
    assert killed._upkeep.suspects

    assert place.client.pttl(look) <= 5_000, "others look sooner"
    place.client.delete(look)
    place.client.pexpire(f"{look}:silent", 5_000)  # a heartbeat passes
    other._look_at = 0.0
    other.maintain()
    assert ids(place.take(other, 1)) == published
    assert not place.client.exists(f"{look}:silent")


def test_who_is_refused_his_turn_asks_again_when_it_ends(place: Place) -> None:
    broker = place.broker(heartbeat=50.0)
    one, other = place.joined(broker), place.joined(broker)
    one.maintain()
    place.client.pexpire(look_key(place.namespace, one._upkeep.concern), 30_000)
    other.maintain()
    assert other._look_at < one._look_at


def test_signs_of_life_that_vanish_all_at_once_rob_nobody(place: Place) -> None:
    """As after a failover to a replica that was behind. One look finds all silent: only the second one counts."""
    broker = place.broker(heartbeat=0.2)
    holding, other = place.joined(broker), place.joined(broker)
    published = publish(broker, 3)
    held = place.take(holding, 3)

    def look() -> None:
        """Have the other look for the dead now, whosever turn it is."""
        place.client.delete(look_key(place.namespace, other._upkeep.concern))
        other._look_at = other._upkeep.scan_at = 0.0
        other.maintain()

    for _ in range(3):
        holding.sign.give()
        other.sign.give()
        place.client.delete(*(worker_key(place.namespace, one.name) for one in (holding, other)))
        look()
        assert other._upkeep.suspects, "nobody was found silent, so this tells nothing"
        holding.sign.give()
        end = time.monotonic() + 0.2  # a heartbeat, after which a second look counts
        until(lambda: time.monotonic() > end)  # noqa: B023
        look()
        assert not other._upkeep.suspects

    assert not other.receive({BILLING: 3}, 0)
    for one in held:
        holding.nack(one, 0)
    assert sorted((one.message.id, one.message.attempt) for one in place.take(other, 3)) == [
        (one, 2) for one in sorted(published)
    ]


def test_who_looks_after_many_groups_on_a_slow_server_is_not_taken_for_dead(server: RealServer, place: Place) -> None:
    """All that takes several times as long as a sign of life is good for."""
    gate = Gate(server.port)
    keys = [SubscriptionKey(f"orders-{number}", "billing") for number in range(40)]
    consumer = place.joined(place.broker(gate.url, heartbeat=0.25), *keys)
    consumer.maintain()
    consumer._look_at = consumer._upkeep.scan_at = consumer._upkeep.tidy_at = 0.0
    place.client.delete(look_key(place.namespace, consumer._upkeep.concern))
    gate.delay = 0.01

    before = time.monotonic()
    maintaining = place.in_thread(consumer.maintain)
    silent = 0
    while not maintaining.done():
        silent += not place.client.exists(worker_key(place.namespace, consumer.name))
    maintaining.result(WITHIN)
    assert time.monotonic() - before > 4 * 0.25, "it was not slow enough to tell anything"
    assert not silent

    gate.delay = 0.0
    consumer.close()
    gate.close()


def test_consumer_of_many_groups_remembers_no_more_in_all_than_one_of_few(place: Place) -> None:
    broker = place.broker()
    for count in (1, 10, 1000):
        keys = [SubscriptionKey(f"orders-{number}", "billing") for number in range(count)]
        groups = place.consumer(broker, *keys)._groups.values()
        assert sum(group.settled.maxlen or math.inf for group in groups) <= 100_000


@pytest.mark.parametrize("heartbeat", [0.5, 1.0, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("publish_timeout", [0.1, 5.0, 120.0])
def test_a_stuck_request_leaves_time_to_give_the_sign_of_life_anew(heartbeat: float, publish_timeout: float) -> None:
    options = BrokerOptions(SystemClock(), "pubsub", heartbeat, publish_timeout, {})
    patience = open_redis("redis://localhost:1", options).servers.connection("").socket_timeout
    age, pause = heartbeat, min(1.0, heartbeat)
    assert age + patience + pause < options.lease


def test_stalled_connection_is_given_up_before_the_sign_of_life_expires(place: Place, proxy: Proxy) -> None:
    """However long a publish may take."""
    options = BrokerOptions(SystemClock(), place.namespace, 2.0, 120.0, {})
    broker = open_redis(proxy.url, options)
    consumer = place.consumer(broker)
    consumer.sign.give()
    proxy.hold_back(b"PEXPIRE")
    before = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        consumer.sign.give()
    assert time.monotonic() - before < 2 * options.heartbeat
    consumer.sign.give()
    broker.close()


def test_entry_of_very_many_fields_becomes_a_dead_letter(place: Place) -> None:
    broker = place.broker()
    consumer = place.joined(broker)
    fields = {f"field {number}": f"{number} ✓" for number in range(6000)}
    place.client.xadd(place.stream, fields)
    (delivery,) = place.take(consumer, 1)
    consumer.dead_letter(delivery, REASON)
    (letter,) = broker.dead_letters(BILLING)
    assert json.loads(letter.message.payload) == fields
    assert broker.replay(BILLING, [letter.position]) == 1
    (again,) = place.take(consumer, 1)
    assert json.loads(again.message.payload) == fields
