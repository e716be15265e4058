"""What a cluster does besides the contract, which it keeps too (test_conformance_redis)."""

from collections.abc import Iterator, Sequence

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from pubsub_core.errors import BrokerError
from pubsub_core.message import Message, SubscriptionKey
from pubsub_redis.consumer import RedisConsumer
from tests.servers import RealServer, cluster_url
from tests.test_redis import Place, ids, message
from tests.waiting import until

KEYS = [SubscriptionKey(f"topic-{number}", "billing") for number in range(8)]  # some are kept by the same node


@pytest.fixture
def place(cluster: list[RealServer]) -> Iterator[Place]:
    with Redis.from_url(cluster[0].url, protocol=2) as client:
        place = Place(cluster_url(cluster), client)
        yield place
        place.clean_up()


def taken(consumer: RedisConsumer, count: int, *, wait: float, errors: int = 0) -> list[str]:
    """Return the ids of so many deliveries, which come with so many errors at most."""
    found: list[str] = []
    raised: list[BrokerError] = []

    def is_all() -> bool:
        try:
            received = consumer.receive(dict.fromkeys(KEYS, 10), wait)
        except BrokerError as error:
            raised.append(error)
            assert len(raised) <= errors, raised
            return False
        consumer.ack(received)
        found.extend(ids(received))
        return len(found) >= count

    until(is_all)
    return found


@pytest.mark.parametrize("wait", [0.0, 1.0], ids=["at once", "waiting"])
def test_topics_of_one_group_are_read_wherever_they_are(place: Place, wait: float) -> None:
    broker = place.broker()
    consumer = place.joined(broker, *KEYS)
    sent = [message(key.topic) for key in KEYS for _ in range(20)]
    broker.publish(sent)
    assert sorted(taken(consumer, len(sent), wait=wait)) == sorted(ids_of(sent))
    late = [message(key.topic) for key in KEYS]
    waiting = place.in_thread(lambda: taken(consumer, len(late), wait=wait))
    for one in late:
        broker.publish([one])
    assert sorted(waiting.result()) == sorted(ids_of(late))


def test_publishing_and_reading_go_on_where_a_slot_was_moved_to(place: Place, cluster: list[RealServer]) -> None:
    broker = place.broker()
    consumer = place.joined(broker, *KEYS)
    before = [message(KEYS[0].topic) for _ in range(3)]
    broker.publish(before)
    move(broker.keys(KEYS[0].topic).stream, cluster)
    after = [message(key.topic) for key in KEYS]
    broker.publish(after)
    assert sorted(taken(consumer, 11, wait=0.1, errors=1)) == sorted(ids_of([*before, *after]))


def ids_of(messages: Sequence[Message[bytes]]) -> list[str]:
    return [one.id for one in messages]


def move(key: str, cluster: list[RealServer]) -> None:
    """Move the slot of a key to another node, with all that is in it."""
    slot = key_slot(key.encode())
    clients = [Redis.from_url(node.url, protocol=2) for node in cluster]
    names = [client.execute_command("CLUSTER", "MYID") for client in clients]
    source = next(number for number, client in enumerate(clients) if keeps(client, key))
    target = (source + 1) % len(cluster)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    while keys := clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        clients[source].execute_command("MIGRATE", "127.0.0.1", cluster[target].port, "", 0, 5000, "KEYS", *keys)
    for number in (target, source, *range(len(cluster))):
        clients[number].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
    for client in clients:
        client.close()


def keeps(client: Redis, key: str) -> bool:
    try:
        client.execute_command("EXISTS", key)
    except ResponseError:
        return False
    return True
