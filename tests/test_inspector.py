"""What the conformance kit cannot ask of every backend: Redis where it does not know, and where it may not tell."""

import re
import time
import uuid
from collections.abc import Iterator

import pytest
from redis import Redis

from pubsub_core.broker import BrokerOptions, Consumer, Count, Membership
from pubsub_core.clock import SystemClock
from pubsub_core.errors import StreamConflict
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import Delivery, Message, SubscriptionKey
from pubsub_redis import RedisBroker, open_redis
from tests.servers import RealServer

KEY = SubscriptionKey("orders", "billing")
OTHER = SubscriptionKey("invoices", "billing")
CREDIT = {KEY: 10, OTHER: 10}


def opened(url: str, namespace: str, heartbeat: float = 60.0) -> RedisBroker:
    return open_redis(url, BrokerOptions(SystemClock(), namespace, heartbeat, 10.0, {}))


@pytest.fixture
def broker(redis: RealServer) -> Iterator[RedisBroker]:
    broker = opened(redis.url, f"test-{uuid.uuid4().hex}")
    yield broker
    broker.close()


def publish(broker: RedisBroker, count: int, topic: str = KEY.topic) -> list[str]:
    new_id = IdMaker(SystemClock())
    ids = [new_id() for _ in range(count)]
    broker.publish([Message(one, topic, b"1", published_at(one)) for one in ids])
    return ids


def test_a_lag_that_the_server_does_not_know_is_counted_up_to_a_bound(broker: RedisBroker) -> None:
    publish(broker, 11_000)
    stream = broker.keys(KEY.topic).stream
    broker.call(stream, ("XGROUP", "CREATE", stream, KEY.group, "0"), "making a group")
    for place, expected in [(0, Count(11_000)), (500, Count(10_000, is_exact=False)), (10_997, Count(3))]:
        entries = broker.call(stream, ("XRANGE", stream, "-", "+", "COUNT", place + 1), "reading")
        position = entries[-1][0].decode()
        broker.seek(KEY, position)
        (state,) = broker.groups(KEY.topic)
        assert state.lag == expected, place
    assert (str(Count(10_000, is_exact=False)), str(Count(3))) == ("≥ 10,000", "3")


@pytest.mark.parametrize("position", ["99999999999999-0", "999999999999999-1"])
def test_a_group_that_is_moved_to_a_position_that_is_not_yet_stands_behind_the_newest(
    broker: RedisBroker, position: str
) -> None:
    publish(broker, 2)
    stream = broker.keys(KEY.topic).stream
    broker.call(stream, ("XGROUP", "CREATE", stream, KEY.group, "0"), "making a group")
    broker.seek(KEY, position)
    assert broker.groups(KEY.topic)[0].lag == Count(0)
    publish(broker, 1)
    assert broker.groups(KEY.topic)[0].lag == Count(1)


def test_a_message_that_many_others_were_published_with_is_found(broker: RedisBroker) -> None:
    ids = publish(broker, 3_000)
    for message_id in (ids[0], ids[1500], ids[-1]):
        found = broker.find(KEY.topic, message_id)
        assert found is not None
        assert found.message.id == message_id


def test_a_key_of_another_type_is_named_as_far_as_its_type_may_be_asked(redis: RealServer) -> None:
    user, namespace = f"user-{uuid.uuid4().hex}", f"test-{uuid.uuid4().hex}"
    with Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-type")
        client.set(f"{namespace}:{{orders}}:delayed", "not ours")
        for url, said in (
            (redis.url, f"Key '{namespace}:{{orders}}:delayed' is of type string, not zset"),
            (redis.url.replace("redis://", f"redis://{user}:pw@"), f"'{namespace}:{{orders}}:delayed'"),
        ):
            broker = opened(url, namespace)
            with pytest.raises(StreamConflict, match=re.escape(said)):
                broker.topic("orders")
            broker.close()
        client.acl_deluser(user)


@pytest.fixture
def untold(redis: RealServer) -> Iterator[RedisBroker]:
    """A broker whose user has no rights to the control channel: what is said to all is neither sent nor heard."""
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "resetchannels", "+@all")
        broker = opened(redis.url.replace("redis://", f"redis://{user}:pw@"), f"test-{uuid.uuid4().hex}")
        yield broker
        broker.close()
        client.acl_deluser(user)


@pytest.fixture
def consumer(untold: RedisBroker) -> Iterator[Consumer]:
    consumer = untold.consumer([Membership(KEY), Membership(OTHER)], "one")
    assert not consumer.receive(CREDIT, 0)
    yield consumer
    consumer.close()


def until_it_keeps_still(consumer: Consumer, broker: RedisBroker) -> None:
    """Publish and receive until nothing comes any more: within a second."""
    deadline = time.monotonic() + 1.0
    while True:
        publish(broker, 1)
        received = consumer.receive(CREDIT, 0.02)
        if not received:
            return
        consumer.ack(received)
        assert time.monotonic() < deadline


def test_a_pause_that_was_not_heard_holds_within_a_second_and_so_does_its_end(
    untold: RedisBroker, consumer: Consumer
) -> None:
    """No heartbeat helps: it comes once a minute here, and is not even given."""
    untold.pause_group(KEY, is_paused=True)
    until_it_keeps_still(consumer, untold)
    published = publish(untold, 5)
    assert not consumer.receive(CREDIT, 1.5)

    untold.pause_group(KEY, is_paused=False)
    received: list[Delivery[bytes]] = []
    deadline = time.monotonic() + 1.2
    while len(received) < 6 and time.monotonic() < deadline:
        received += consumer.receive(CREDIT, 1.0)

    assert {*published} < {one.message.id for one in received}
    assert {one.message.attempt for one in received} == {1}


def test_who_waits_quietly_and_did_not_hear_of_a_pause_hands_back_what_comes(
    untold: RedisBroker, consumer: Consumer
) -> None:
    """It goes uncounted to others, or to itself later; what is not paused is handed out."""
    newcomer = untold.consumer([Membership(KEY), Membership(OTHER)], "two")
    past(consumer)
    untold.pause_group(KEY, is_paused=True)
    published, others = publish(untold, 1), publish(untold, 1, OTHER.topic)

    received: list[Delivery[bytes]] = []
    while not received:
        received += consumer.receive(CREDIT, 0.5)
    assert [one.message.id for one in received] == others
    (state,) = untold.groups(KEY.topic)
    assert (state.parked, state.pending) in {(1, 1), (0, 0)}  # it came with the others, or the pause was known by then
    assert not newcomer.receive({KEY: 10}, 0.05)

    untold.pause_group(KEY, is_paused=False)
    deadline = time.monotonic() + 5
    while not (received := [*newcomer.receive({KEY: 10}, 0.2)]):
        assert time.monotonic() < deadline
    assert [(one.message.id, one.message.attempt) for one in received] == [(published[0], 1)]
    newcomer.close()


def test_who_waits_quietly_looks_for_pauses_no_more(untold: RedisBroker, consumer: Consumer) -> None:
    """Only what comes, or what is paused, makes it look: and then once a second at most."""
    past(consumer)
    before = looks(untold)
    assert not consumer.receive(CREDIT, 2.5)
    consumer.maintain()
    assert looks(untold) == before

    begun = time.monotonic()
    for _ in range(200):
        publish(untold, 1)
        consumer.ack(consumer.receive(CREDIT, 0.5))
    assert 1 <= looks(untold) - before <= 2 + (time.monotonic() - begun) / 0.9

    untold.pause_group(KEY, is_paused=True)
    until_it_keeps_still(consumer, untold)
    before = looks(untold)
    assert not consumer.receive(CREDIT, 2.0)
    assert looks(untold) - before <= 3


def test_a_pause_is_heard_before_the_next_read_of_one_that_was_busy(broker: RedisBroker) -> None:
    """It was said while all handlers were busy, and nobody listened."""
    consumer = broker.consumer([Membership(KEY)], "one")
    assert not consumer.receive({KEY: 10}, 0)
    publish(broker, 1)
    (held,) = consumer.receive({KEY: 1}, 5)
    broker.pause_group(KEY, is_paused=True)
    publish(broker, 1)
    assert not consumer.receive({KEY: 10}, 0.05, [held])
    assert not consumer.receive({KEY: 10}, 0)
    assert broker.groups(KEY.topic)[0].lag == Count(1)  # it was not even read
    consumer.close()


def past(consumer: Consumer) -> None:
    """Let pass the time in which a look for pauses is good."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        assert not consumer.receive(CREDIT, deadline - time.monotonic())


def looks(broker: RedisBroker) -> int:
    """Return how often HGETALL was called, by which consumers look for pauses."""
    info = broker.call("any", ("INFO", "commandstats"), "counting").decode()
    found = re.search(r"cmdstat_hgetall:calls=(\d+)", info)
    return int(found[1]) if found else 0


def test_a_consumer_that_comes_back_finds_the_pause(broker: RedisBroker) -> None:
    """Its connections broke, and what was said meanwhile it did not hear."""
    consumer = broker.consumer([Membership(KEY)], "one")
    assert not consumer.receive({KEY: 10}, 0)
    consumer._start_over()
    broker.pause_group(KEY, is_paused=True)
    publish(broker, 1)
    assert not consumer.receive({KEY: 10}, 0.05)
    consumer.close()


def test_a_sign_of_life_that_is_not_ours_says_nothing(broker: RedisBroker) -> None:
    """It is a consumer all the same, and it is alive."""
    stream = broker.keys(KEY.topic).stream
    broker.call(stream, ("XGROUP", "CREATE", stream, KEY.group, "0", "MKSTREAM"), "making a group")
    for name in ("old", "gone"):
        broker.call(stream, ("XGROUP", "CREATECONSUMER", stream, KEY.group, name), "making a consumer")
    sign = f"{broker.options.namespace}:worker:old"
    broker.call(sign, ("SET", sign, "not JSON"), "giving a sign of life")

    gone, old = broker.consumers(KEY)

    assert (old.name, old.is_alive, old.host, old.since) == ("old", True, None, None)
    assert (gone.name, gone.is_alive) == ("gone", False)
