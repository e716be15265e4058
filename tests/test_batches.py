"""Batches: large ones, and those that fail half way."""

import pickle
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

import pytest
from redis import Redis

from pubsub_core import BrokerFull, BrokerUnavailable, NotConfirmed, PublishUncertain, PubSub
from pubsub_core.broker import IN_MEMORY, NO_TERMS, Broker, Durability, Terms
from pubsub_core.message import Message
from pubsub_core.pubsub import Batch
from pubsub_core.worker.process import Worker
from tests.servers import Proxy, proxy_to

MANY = 100_000


class Faulty(Broker):
    """A broker that stores only so many messages of a publish once, and then says what it is told to say."""

    def __init__(self, inner: Broker) -> None:
        self._inner = inner
        self.calls: list[tuple[list[str], bool]] = []
        self.fails: Callable[[Sequence[Message[bytes]]], tuple[int, BaseException]] | None = None
        self.consumer = inner.consumer  # type: ignore[method-assign]
        self.time = inner.time  # type: ignore[method-assign]
        self.join_schedules = inner.join_schedules  # type: ignore[method-assign]
        self.close = inner.close  # type: ignore[method-assign]

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        self.calls.append(([one.id for one in messages], again))
        if self.fails is None:
            return self._inner.publish(messages, durability, again=again, terms=terms)
        count, error = self.fails(messages)
        ids = self._inner.publish(messages[:count], durability, again=again, terms=terms)
        if isinstance(error, BrokerUnavailable | PublishUncertain) and not error.stored:
            known = [one for one in messages[:count] if one.id not in getattr(error, "message_ids", ())]
            error.stored = {one.id: stands for one, stands in zip(known, ids, strict=False)}
        raise error


@pytest.fixture
def pubsub() -> PubSub:
    return PubSub("memory://", group="billing")


@pytest.fixture
def faulty(pubsub: PubSub) -> Faulty:
    broker = pubsub.runtime._broker = Faulty(pubsub.runtime.broker)
    return broker


def handled(pubsub: PubSub) -> list[Any]:
    seen: list[Any] = []
    pubsub.subscribe("orders")(lambda message: seen.append((message.id, message.payload)))
    with Worker(pubsub, threads=1, burst=True) as worker:
        assert worker.wait(20)
    return seen


def test_commit_after_a_failure_half_way_sends_only_the_rest(pubsub: PubSub, faulty: Faulty) -> None:
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(10)]
    faulty.fails = lambda _: (4, BrokerUnavailable("gone"))

    with pytest.raises(BrokerUnavailable) as failed:
        batch.commit()
    assert list(failed.value.stored_ids) == list(batch.ids) == ids[:4]
    faulty.fails = None
    ids.append(batch.publish("orders", 10))

    assert list(batch.commit()) == list(batch.ids) == ids
    assert faulty.calls == [(ids[:10], False), (ids[4:], False)]
    assert handled(pubsub) == [(message_id, number) for number, message_id in enumerate(ids)]
    assert batch.commit() == ()


def test_only_what_is_uncertain_is_looked_for(pubsub: PubSub, faulty: Faulty) -> None:
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(10)]
    faulty.fails = lambda messages: (6, PublishUncertain("lost", [one.id for one in messages[4:7]]))

    with pytest.raises(PublishUncertain) as failed:
        batch.commit()
    assert list(failed.value.stored_ids) == ids[:4]
    assert list(failed.value.message_ids) == ids[4:7]
    faulty.fails = None

    assert list(batch.commit()) == ids
    assert faulty.calls[1:] == [(ids[4:7], True), (ids[7:], False)]
    assert [message_id for message_id, _ in handled(pubsub)] == ids


def test_a_second_failure_goes_on_from_there(pubsub: PubSub, faulty: Faulty) -> None:
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(9)]
    faulty.fails = lambda messages: (3, PublishUncertain("lost", [messages[2].id]))
    with pytest.raises(PublishUncertain):
        batch.commit()
    faulty.fails = lambda messages: (len(messages), PublishUncertain("lost again", [messages[-1].id]))
    with pytest.raises(PublishUncertain):
        batch.commit()
    assert list(batch.ids) == ids[:2]
    faulty.fails = lambda messages: (0, BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable):
        batch.commit()
    assert list(batch.ids) == ids[:2]
    faulty.fails = None

    assert list(batch.commit()) == ids
    assert [message_id for message_id, _ in handled(pubsub)] == ids


class Interrupted(BaseException):
    """As a signal, or a timeout, may raise it anywhere."""


class Interruptible(Batch):
    """A batch whose commit is interrupted once it has sent all."""

    interrupts = 1

    def _forget(self, sent: Sequence[str] = ()) -> None:
        if sent and self.interrupts:
            self.interrupts -= 1
            raise Interrupted
        super()._forget(sent)


def test_commit_that_is_interrupted_when_all_is_sent_and_repeated_stores_nothing_twice() -> None:
    pubsub = PubSub(f"memory://{uuid.uuid4()}")  # nobody else's messages
    batch = Interruptible(pubsub, pubsub.runtime, None)
    ids = tuple(batch.publish("orders", number) for number in range(3))
    with pytest.raises(Interrupted):
        batch.commit()
    assert batch.commit() == ids
    assert batch.ids == ids
    assert tuple(one.id for one in pubsub.inspector.peek("orders")) == ids

    more = batch.publish("orders", 3)
    assert batch.commit() == (more,)
    assert batch.ids == (*ids, more)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NotConfirmed("late", ["?"]), RuntimeError("of another broker")])
def test_what_nobody_can_tell_is_looked_for_as_a_whole(pubsub: PubSub, faulty: Faulty, error: BaseException) -> None:
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(5)]
    faulty.fails = lambda _: (3, error)
    with pytest.raises(type(error)):
        batch.commit()
    faulty.fails = None

    assert list(batch.commit()) == ids
    assert faulty.calls[1:] == [(ids, True)]
    assert [message_id for message_id, _ in handled(pubsub)] == ids


def test_the_ids_are_those_that_stand_for_the_messages_also_after_a_failure(pubsub: PubSub, faulty: Faulty) -> None:
    first = pubsub.publish("orders", 0, dedup="a")
    batch = pubsub.batch()
    second, third = batch.publish("orders", 1, dedup="a"), batch.publish("orders", 2, dedup="b")
    faulty.fails = lambda _: (1, BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable) as failed:
        batch.commit()
    assert failed.value.stored == {second: first}
    faulty.fails = None

    assert batch.commit() == batch.ids == (first, third)


def test_one_id_in_two_topics_is_not_taken_for_stored_in_both(pubsub: PubSub, faulty: Faulty) -> None:
    known = pubsub.publish("refunds", 0)
    batch = pubsub.batch()
    for topic in ("refunds", "orders"):
        batch.publish(topic, 0, id=known)
    faulty.fails = lambda _: (1, BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable):
        batch.commit()
    faulty.fails = None
    batch.commit()
    assert handled(pubsub) == [(known, 0)]


def test_a_discarded_batch_says_what_it_was_and_sends_nothing(pubsub: PubSub, faulty: Faulty) -> None:
    batch = pubsub.batch()
    ids = [batch.publish(topic, 1) for topic in ("orders", "refunds", "orders", "refunds")]
    faulty.fails = lambda _: (1, BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable):
        batch.commit()
    faulty.fails = None

    assert batch.discard() == {"orders": 1, "refunds": 2}
    assert batch.discard() == {}
    assert batch.ids == (ids[0],)
    assert batch.commit() == ()
    assert len(handled(pubsub)) == 1


@pytest.mark.parametrize("error", [PublishUncertain("?", ["b"]), NotConfirmed("?", ["b"]), BrokerFull("?")])
def test_what_is_stored_crosses_processes_with_the_error(error: Any) -> None:
    assert error.stored_ids == ()
    error.stored = {"a": "first"}
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.stored_ids, copy.stored) == ("?", ("a",), {"a": "first"})
    assert getattr(copy, "message_ids", ("b",)) == ("b",)


# On servers.


class Place:
    def __init__(self, server: Any, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client: Any = Redis.from_url(server.url)
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.pubsub = PubSub(proxy.url, namespace=self.namespace, publish_timeout=1.5)

    def stored(self, topic: str = "orders") -> list[str]:
        return [fields[b"id"].decode() for _, fields in self.client.xrange(f"{self.namespace}:{{{topic}}}")]

    def wait_until_stored(self, ids: list[str]) -> None:
        deadline = monotonic() + 20
        while (stored := self.stored()) != ids:
            assert monotonic() < deadline, f"{len(stored)} are stored instead of {len(ids)}"
            threading.Event().wait(0.01)

    def adds(self) -> int:
        return int(self.client.info("commandstats").get("cmdstat_xadd", {}).get("calls", 0))


@pytest.fixture(params=["redis", "valkey"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    server = request.getfixturevalue(request.param)
    with proxy_to(server) as proxy:
        place = Place(server, proxy)
        yield place
        proxy.mend()
        place.pubsub.close()
        place.client.close()


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_connection_that_is_cut_half_way_costs_only_the_rest(place: Place, carried_out: bool) -> None:
    batch = place.pubsub.batch()
    ids = [batch.publish("orders", f"<{number}>") for number in range(2600)]
    place.proxy.cut(b"<1300>", carried_out=carried_out)

    with pytest.raises(PublishUncertain) as failed:
        batch.commit()

    assert list(failed.value.stored_ids) == list(batch.ids) == ids[:1000]
    assert list(failed.value.message_ids) == ids[1000:1500]
    place.wait_until_stored(ids[: 1500 if carried_out else 1000])
    place.proxy.mend()
    before = place.adds()
    assert list(batch.commit()) == list(batch.ids) == ids
    assert place.adds() - before == 2600 - (1500 if carried_out else 1000)
    assert place.stored() == ids


def test_a_batch_that_finds_no_room_half_way_says_what_is_stored(place: Place) -> None:
    place.pubsub.topic("bounded", max_backlog=700)
    place.pubsub.publish("bounded", "the first")
    batch = place.pubsub.batch()
    ids = [batch.publish("bounded" if number % 2 else "orders", number) for number in range(1400)]

    with pytest.raises(BrokerFull, match="Of 1400 messages") as failed:
        batch.commit()

    stored = {*place.stored(), *place.stored("bounded")}
    assert list(failed.value.stored_ids) == [one for one in ids if one in stored]
    place.client.xtrim(f"{place.namespace}:{{bounded}}", maxlen=0, approximate=False)
    assert list(batch.commit()) == ids
    assert place.stored() == ids[::2]


IDS_IN_ORDER = """
local ids = {}
for number, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do ids[number] = entry[2][2] end
return ids
"""


@pytest.mark.slow
@pytest.mark.timeout(300)  # it takes ten seconds of a processor that may have much else to do
def test_a_hundred_thousand_messages_take_no_second_copy(redis: Any) -> None:
    pubsub = PubSub(redis.url, namespace=f"test-{uuid.uuid4().hex[:12]}", publish_timeout=60.0)
    batch = pubsub.batch()
    payload = "x" * 500
    ids = [batch.publish("orders", payload) for _ in range(MANY)]

    tracemalloc.start()
    try:
        committed = batch.commit()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 30_000_000, f"{peak:,} bytes beside the {MANY * 500:,} of the payloads"
    # Compared apart from the assertions: pytest would spend minutes on the difference.
    is_in_order = list(committed) == list(batch.ids) == ids == sorted(ids)
    assert is_in_order
    with Redis.from_url(redis.url) as client:
        stream = f"{pubsub.settings.namespace}:{{orders}}"
        stored = [one.decode() for one in client.eval(IDS_IN_ORDER, 1, stream)]
        client.delete(stream)
    is_stored_once, count = stored == ids, len(stored)
    assert is_stored_once, f"{count} are stored"
    pubsub.close()
