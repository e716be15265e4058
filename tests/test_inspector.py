"""What the conformance kit cannot ask of every backend: Redis where it does not know, and where it may not tell."""

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from redis import Redis

from pubsub_core.broker import BrokerOptions, Count, Membership
from pubsub_core.clock import SystemClock
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import Message, SubscriptionKey
from pubsub_redis import RedisBroker, open_redis
from tests.servers import RealServer

KEY = SubscriptionKey("orders", "billing")


def opened(url: str, namespace: str, heartbeat: float = 60.0) -> RedisBroker:
    return open_redis(url, BrokerOptions(SystemClock(), namespace, heartbeat, 10.0, {}))


@pytest.fixture
def broker(redis: RealServer) -> Iterator[RedisBroker]:
    broker = opened(redis.url, f"test-{uuid.uuid4().hex}")
    yield broker
    broker.close()


def publish(broker: RedisBroker, count: int) -> list[str]:
    new_id = IdMaker(SystemClock())
    ids = [new_id() for _ in range(count)]
    broker.publish([Message(one, KEY.topic, b"1", published_at(one)) for one in ids])
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


def test_a_message_that_many_others_were_published_with_is_found(broker: RedisBroker) -> None:
    ids = publish(broker, 3_000)
    for message_id in (ids[0], ids[1500], ids[-1]):
        found = broker.find(KEY.topic, message_id)
        assert found is not None
        assert found.message.id == message_id


def test_a_pause_holds_also_where_nobody_may_be_told(redis: RealServer) -> None:
    """Without rights to the control channel a consumer finds it at its next sign of life."""
    user, namespace = f"user-{uuid.uuid4().hex}", f"test-{uuid.uuid4().hex}"
    with Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "resetchannels", "+@all")
        broker = opened(redis.url.replace("redis://", f"redis://{user}:pw@"), namespace, heartbeat=0.25)
        consumer = broker.consumer([Membership(KEY)], "one")
        assert not consumer.receive({KEY: 10}, 0)
        broker.pause_group(KEY, is_paused=True)
        publish(broker, 1)
        for _ in range(6):
            threading.Event().wait(max(0.2, consumer.maintain()))
        assert not consumer.receive({KEY: 10}, 0.05)
        broker.pause_group(KEY, is_paused=False)
        deadline = time.monotonic() + 10
        while not (received := consumer.receive({KEY: 10}, 0.05)):
            assert time.monotonic() < deadline
            consumer.maintain()
        consumer.ack(received)
        consumer.close()
        broker.close()
        client.acl_deluser(user)


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
