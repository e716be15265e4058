"""What a publish promises: how durable it is, how full a topic may get, and that nothing is stored twice."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from pubsub_core import Durability, ManualClock, PubSub, SystemClock, TopicOptions
from pubsub_core.backends import masked
from pubsub_core.backlog import LOG_EVERY, DropLog
from pubsub_core.broker import IN_MEMORY, NO_TERMS, Broker, BrokerOptions, Terms
from pubsub_core.clock import Clock
from pubsub_core.errors import (
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    NotConfirmed,
    NotPermitted,
    PublishUncertain,
    Unsupported,
    ValidationError,
)
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import Message
from pubsub_core.settings import Settings, parse_durability
from pubsub_redis import RedisBroker
from pubsub_redis import publish as publish_module
from pubsub_redis.faults import translated
from pubsub_redis.keys import topic_keys
from pubsub_redis.link import script, script_call
from pubsub_redis.servers import open_servers
from tests.servers import Proxy, RealServer, proxy_to, redis_server, valkey_server
from tests.waiting import until

WITHIN = 10.0

_new_id = IdMaker(SystemClock())


class Recorder(Broker):
    """A broker that notes what is published, and fails as it is told to."""

    def __init__(self) -> None:
        self.published: list[tuple[list[str], Durability, bool]] = []
        self.fails: Exception | None = None

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        self.published.append(([message.id for message in messages], durability, again))
        if self.fails is not None:
            raise self.fails
        return [message.id for message in messages]

    def consumer(self, memberships: Any, name: str) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


def recorded(pubsub: PubSub) -> Recorder:
    recorder = Recorder()
    pubsub.runtime._broker = recorder
    return recorder


# What is asked for.


@pytest.mark.parametrize(
    ("text", "durability"),
    [
        ("memory", IN_MEMORY),
        ("fsync", Durability(fsync=True)),
        ("replicas:1", Durability(replicas=1)),
        ("replicas:12", Durability(replicas=12)),
        ("fsync+replicas:2", Durability(fsync=True, replicas=2)),
        ("replicas:2+fsync", Durability(fsync=True, replicas=2)),
    ],
)
def test_durability_is_read_from_its_text(text: str, durability: Durability) -> None:
    assert parse_durability(text) == durability
    assert Settings.parse({"PUBSUB_DURABILITY": text}).durability == durability
    assert parse_durability(str(durability)) == durability


@pytest.mark.parametrize(
    "text",
    [
        *("", "disk", "replicas", "replicas:", "replicas:0", "replicas:-1", "replicas:1.5", "replicas:²", "fsync:1"),
        *("FSYNC", "fsync+", "+fsync", "fsync+disk", "memory+fsync", " fsync", 1, True, None),
    ],
)
def test_durability_that_says_nothing_is_refused(text: Any) -> None:
    pubsub = PubSub("memory://")
    attempts = [lambda: pubsub.batch(durability=text), lambda: pubsub.publish("a", 1, durability=text)]
    attempts += [lambda: pubsub.topic("orders", durability=text), lambda: PubSub("memory://", durability=text)]
    for attempt in attempts if text is not None else [lambda: parse_durability(None)]:
        with pytest.raises(
            ConfigurationError, match=r"(?i)durability=.* cannot be: it must be 'memory', 'fsync', 'rep"
        ):
            attempt()


def test_durability_of_the_publish_wins_over_that_of_the_topic_and_of_the_settings() -> None:
    pubsub = PubSub("memory://", durability="replicas:1")
    recorder = recorded(pubsub)
    plain = pubsub.topic("plain")
    durable = pubsub.topic("durable", durability="fsync")
    light = pubsub.topic("light", durability="memory")

    plain.publish(1)
    durable.publish(1)
    light.publish(1)
    durable.publish(1, durability="replicas:2")
    pubsub.publish("durable", 1, durability="memory")
    pubsub.publish("undeclared", 1)

    one = Durability(replicas=1)
    assert [asked for _, asked, _ in recorder.published] == [
        one, Durability(fsync=True), IN_MEMORY, Durability(replicas=2), IN_MEMORY, one,
    ]  # fmt: skip


def test_batch_waits_for_all_that_its_messages_ask_for() -> None:
    pubsub = PubSub("memory://")
    recorder = recorded(pubsub)
    topics = [pubsub.topic("a"), pubsub.topic("b", durability="fsync"), pubsub.topic("c", durability="replicas:2")]

    for chosen in (topics[:1], topics[:2], topics):
        with pubsub.batch() as batch:
            for topic in chosen:
                batch.publish(topic, 1)
    with pubsub.batch(durability="replicas:1") as batch:
        for topic in topics:
            batch.publish(topic, 1)
    batch.publish(topics[0], 1)
    batch.commit()

    both = Durability(fsync=True, replicas=2)
    asked = [asked for _, asked, _ in recorder.published]
    assert asked == [IN_MEMORY, Durability(fsync=True), both, Durability(replicas=1), Durability(replicas=1)]


def test_environment_may_ask_for_durability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_DURABILITY", "fsync")
    assert PubSub("memory://").settings.durability == Durability(fsync=True)
    monkeypatch.setenv("PUBSUB_DURABILITY", "disc")
    with pytest.raises(ConfigurationError, match="PUBSUB_DURABILITY='disc' cannot be: it must be 'memory', 'fsync'"):
        _ = PubSub("memory://").settings


# What is said of a topic.


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_backlog": 0}, "max_backlog=0: it is a whole number, 1 or more"),
        ({"max_backlog": True}, "max_backlog=True: it is a whole number"),
        ({"max_backlog": 1.0}, "max_backlog=1.0: it is a whole number"),
        ({"max_backlog": "5"}, "max_backlog='5': it is a whole number"),
        ({"retention": 0}, "retention=0: it is a number of seconds, more than 0"),
        ({"retention": float("inf")}, "retention=inf"),
        ({"retention": float("nan")}, "retention=nan"),
        ({"retention": "day"}, "retention='day'"),
        ({"max_backlog": 5, "overflow": "drop-oldest"}, "overflow='drop-oldest'. Did you mean 'drop_oldest'?"),
        ({"max_backlog": 5, "overflow": None}, "overflow=None. It is 'reject' or 'drop_oldest'"),
        ({"overflow": "drop_oldest"}, "overflow='drop_oldest', and no max_backlog= that may overflow"),
    ],
)
def test_topic_option_that_cannot_be_is_refused(options: dict[str, Any], problem: str) -> None:
    pubsub = PubSub("memory://")
    with pytest.raises(ConfigurationError) as refused:
        pubsub.topic("orders", **options)
    assert f"topic 'orders' has {problem}" in str(refused.value)
    assert pubsub.topic("orders", max_backlog=5).options == TopicOptions(max_backlog=5)


def test_topic_options_reach_the_broker() -> None:
    pubsub = PubSub("memory://")
    pubsub.topic("plain", durability="fsync")
    pubsub.topic("orders", retention=60, max_backlog=5, overflow="drop_oldest")
    assert dict(pubsub.runtime.topics) == {"orders": TopicOptions(None, 60, 5, "drop_oldest")}


@pytest.mark.parametrize(
    "other",
    [{"retention": 61}, {"max_backlog": 6}, {"max_backlog": 5, "overflow": "reject"}, {"durability": "memory"}],
)
def test_topic_redeclared_with_other_options_is_refused(other: dict[str, Any]) -> None:
    pubsub = PubSub("memory://")
    said: dict[str, Any] = {"retention": 60, "max_backlog": 5, "overflow": "drop_oldest", "durability": "fsync"}
    orders = pubsub.topic("orders", **said)

    assert pubsub.topic("orders") is pubsub.topic("orders", **said) is orders
    assert pubsub.topic("orders", overflow="drop_oldest") is pubsub.topic("orders", durability="fsync") is orders
    with pytest.raises(ConfigurationError) as refused:
        pubsub.topic("orders", **other)
    assert "is declared already, as Topic('orders', None) with retention=60, " in str(refused.value)
    assert "max_backlog=5, overflow='drop_oldest'" in str(refused.value)


def test_drops_are_logged_in_the_sum_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    drops = DropLog(lambda: now)

    drops.note("orders", 1)
    for _ in range(50):
        drops.note("orders", 2)
    drops.note("invoices", 3)
    now += LOG_EVERY
    drops.note("orders", 4)
    drops.note("orders", 5)
    drops.close()
    drops.close()

    facts = [(vars(one)["topic"], vars(one)["dropped"]) for one in caplog.records]
    assert facts == [("orders", 1), ("invoices", 3), ("orders", 104), ("orders", 5)]
    assert {one.levelno for one in caplog.records} == {logging.WARNING}


# Again, under the same id.


def test_message_is_published_again_under_its_id() -> None:
    pubsub = PubSub("memory://")
    recorder = recorded(pubsub)
    recorder.fails = PublishUncertain("lost", ["?"])
    orders = pubsub.topic("orders")
    with pytest.raises(PublishUncertain):
        orders.publish(1)
    ((message_id,), _, again) = recorder.published.pop()
    assert not again
    recorder.fails = None

    assert orders.publish(1, id=message_id) == pubsub.publish("orders", 1, id=message_id) == message_id
    with pubsub.batch() as batch:
        assert batch.publish(orders, 1, id=message_id) == message_id
        other = batch.publish(orders, 2)

    assert recorder.published == [([message_id], IN_MEMORY, True)] * 2 + [([message_id, other], IN_MEMORY, True)]


@pytest.mark.parametrize(
    "bad",
    [
        *("", "7", 7, "order-7", "00000000-0000-0000-0000-000000000000", "0194d1b7-9a3c-4f00-8000-000000000000"),
        *("0194D1B7-9A3C-7F00-8000-000000000000", "0194d1b7-9a3c-7f00-8000-000000000000\n"),
        "ffffffff-ffff-7000-8000-000000000000",
    ],
)
def test_id_that_no_publish_made_is_refused(bad: Any) -> None:
    pubsub = PubSub("memory://")
    recorder = recorded(pubsub)
    for publish in (pubsub.publish, pubsub.batch().publish):
        with pytest.raises(ValidationError, match="it is for the id of an earlier publish"):
            publish("orders", 1, id=bad)
    assert not recorder.published


def test_batch_that_failed_is_committed_again_and_says_so() -> None:
    pubsub = PubSub("memory://")
    recorder = recorded(pubsub)
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(3)]
    recorder.fails = PublishUncertain("lost", ids)
    for _ in range(2):
        with pytest.raises(PublishUncertain):
            batch.commit()
    recorder.fails = None
    ids.append(batch.publish("orders", 3))

    assert batch.commit() == tuple(ids) == batch.ids
    batch.publish("orders", 4)
    batch.commit()

    assert [(len(sent), again) for sent, _, again in recorder.published] == [
        (3, False), (3, True), (3, True), (1, False), (1, False)
    ]  # fmt: skip


# On Redis.


class Place:
    """A topic of its own on one server, and what a test opens there."""

    def __init__(self, server: RealServer) -> None:
        self.server = server
        self.client: Any = Redis.from_url(server.url)
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.stream = f"{self.namespace}:{{orders}}"
        self.topics: dict[str, TopicOptions] = {}
        self._opened: list[RedisBroker] = []

    def broker(
        self,
        url: str | None = None,
        *,
        publish_timeout: float = WITHIN,
        patience: float = WITHIN / 2,
        clock: Clock | None = None,
    ) -> RedisBroker:
        """Return a broker that waits so many seconds for a reply: few, if one is held back, but not for the whole."""
        url = url or self.server.url
        options = BrokerOptions(clock or SystemClock(), self.namespace, 60.0, publish_timeout, self.topics)
        broker = RedisBroker(open_servers(url, timeout=patience), options, masked(url))
        self._opened.append(broker)
        return broker

    def as_user(self, *rules: str) -> str:
        """Return the URL for a user who may do all but for `rules`."""
        self.client.execute_command("ACL", "SETUSER", self.namespace, "on", ">pw", "~*", "&*", "+@all", *rules)
        return self.server.url.replace("redis://", f"redis://{self.namespace}:pw@")

    def ids(self) -> list[str]:
        return [fields[b"id"].decode() for _, fields in self.client.xrange(self.stream)]

    def calls(self, command: str) -> int:
        stats = self.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))

    def close(self) -> None:
        for one in self._opened:
            one.close()
        self.client.close()


def message(topic: str = "orders", payload: bytes = b"{}") -> Message[bytes]:
    new = _new_id()
    return Message(id=new, topic=topic, payload=payload, published_at=published_at(new))


def allow(broker: RedisBroker, seconds: float) -> None:
    """From now on its publishes may take so long: few for one that must fail, many for one that must not."""
    object.__setattr__(broker.options, "publish_timeout", seconds)


def publish(broker: RedisBroker, count: int = 1, durability: Durability = IN_MEMORY) -> list[str]:
    messages = [message() for _ in range(count)]
    broker.publish(messages, durability)
    return [one.id for one in messages]


@pytest.fixture(params=["redis", "valkey"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """On a server that other tests use, too."""
    place = Place(request.getfixturevalue(request.param))
    yield place
    place.close()


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest) -> Iterator[Place]:
    """On a server that a test may do anything to."""
    with (redis_server if request.param == "redis" else valkey_server)(repl_diskless_sync_delay="0") as server:
        place = Place(server)
        yield place
        if server.is_running:
            server.resume()
        place.close()


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    with proxy_to(place.server) as proxy:
        yield proxy


@pytest.fixture
def replica(own: Place) -> Iterator[RealServer]:
    is_valkey = "valkey_version" in own.client.info("server")
    with (valkey_server if is_valkey else redis_server)(replicaof=f"127.0.0.1 {own.server.port}") as replica:
        with Redis.from_url(replica.url) as client:
            until(lambda: client.info("replication")["master_link_status"] == "up")
        yield replica
        replica.resume()


def until_it_waits(place: Place, count: int) -> None:
    """Return when so many messages are stored, and the publisher knows: its connection is blocked by its WAIT.

    The WAIT that asks whether the server has one comes before the messages, and does not block.
    """
    until(lambda: place.client.xlen(place.stream) == count and place.client.info("clients")["blocked_clients"] > 0)


FSYNC = Durability(fsync=True)
REPLICA = Durability(replicas=1)
BOTH = Durability(fsync=True, replicas=1)


@pytest.mark.parametrize("count", [1, 3, 1200])
def test_publish_to_disk_returns_when_the_server_says_so(count: int) -> None:
    with valkey_server(appendonly="yes", appendfsync="always") as server:
        place = Place(server)
        broker = place.broker()
        published = publish(broker, count, FSYNC) + publish(broker, 1, FSYNC)
        assert place.ids() == published
        assert place.calls("waitaof") == 3  # one to see whether it can
        server.kill()
        server.start()
        assert place.ids() == published
        place.close()


def test_disk_of_a_server_without_one_is_unsupported_and_nothing_is_stored(place: Place) -> None:
    broker = place.broker()
    for _ in range(2):
        with pytest.raises(
            Unsupported, match=r"durability='fsync' needs Redis 7\.2 or newer, or Valkey, with `appendo"
        ):
            publish(broker, 3, FSYNC)
    with pytest.raises(Unsupported):
        broker.publish([message()], FSYNC, again=True)
    assert place.ids() == []
    published = publish(broker)
    assert place.ids() == published


def test_disk_that_never_syncs_is_not_confirmed() -> None:
    with valkey_server(appendonly="yes", appendfsync="no") as server:
        place = Place(server)
        with pytest.raises(NotConfirmed, match=r"0 of 1 said in time that they have it \(disk\)"):
            publish(place.broker(publish_timeout=1.0), 1, FSYNC)
        assert len(place.ids()) == 1
        place.close()


def test_disk_that_is_switched_off_later_is_not_confirmed() -> None:
    with valkey_server(appendonly="yes") as server:
        place = Place(server)
        broker = place.broker()
        published = publish(broker, 1, FSYNC)
        place.client.config_set("appendonly", "no")
        with pytest.raises(NotConfirmed, match="appendonly is disabled"):
            publish(broker, 1, FSYNC)
        assert place.ids()[:1] == published
        assert len(place.ids()) == 2
        place.close()


@pytest.mark.parametrize("step", [0.2, 60.0])
def test_replica_that_is_not_there_is_not_confirmed_within_the_time(
    own: Place, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if there is less time than one WAIT would take."""
    monkeypatch.setattr(publish_module, "_WAIT_STEP", step)
    broker = own.broker(publish_timeout=1.0)
    batch = [message() for _ in range(3)]

    for again in (False, True):
        before = time.monotonic()
        with pytest.raises(NotConfirmed, match="stored, but are not confirmed") as unconfirmed:
            broker.publish(batch, REPLICA, again=again)
        assert time.monotonic() - before < WITHIN / 2
        assert list(unconfirmed.value.message_ids) == [one.id for one in batch]

    assert own.ids() == [one.id for one in batch]


@pytest.mark.parametrize("count", [1, 3, 1200])
def test_replica_has_what_a_publish_that_waits_for_it_has_stored(own: Place, replica: RealServer, count: int) -> None:
    broker = own.broker()
    with Redis.from_url(replica.url) as there:
        for _ in range(3):
            publish(broker, count, REPLICA)
            assert there.xlen(own.stream) == own.client.xlen(own.stream)
    with pytest.raises(NotConfirmed, match="1 of 2 said in time"):
        publish(own.broker(publish_timeout=2.0), 1, Durability(replicas=2))


def test_frozen_replica_is_not_confirmed_until_it_goes_on(own: Place, replica: RealServer) -> None:
    broker = own.broker()
    batch = [message() for _ in range(3)]
    publish(broker, 1, REPLICA)
    replica.pause()
    allow(broker, 1.0)
    with pytest.raises(NotConfirmed):
        broker.publish(batch, REPLICA)

    replica.resume()
    until(lambda: own.client.wait(1, 100) == 1)
    allow(broker, WITHIN)
    written = own.calls("incrby")
    broker.publish(batch, REPLICA, again=True)

    assert own.ids()[1:] == [one.id for one in batch]
    assert own.calls("incrby") > written  # a connection's WAIT speaks of what was written on it, so something was


@pytest.mark.parametrize("lost", [b"XADD", b"WAIT"])
@pytest.mark.parametrize("count", [1, 3])
def test_lost_reply_is_asked_for_anew(own: Place, replica: RealServer, lost: bytes, count: int) -> None:
    with proxy_to(own.server) as proxy:
        broker = own.broker(proxy.url)
        published = publish(broker, 1, REPLICA)

        proxy.lose_reply(to=lost)
        published += publish(broker, count, REPLICA)

        assert proxy.struck.is_set()
        assert own.ids() == published
        assert own.calls("incrby") == 1
        with Redis.from_url(replica.url) as there:
            assert there.xlen(own.stream) == count + 1


def test_server_that_dies_before_it_confirms_is_not_confirmed(own: Place) -> None:
    broker = own.broker(publish_timeout=3.0)
    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(publish, broker, 2, REPLICA)
        until_it_waits(own, 2)
        own.server.kill()
        with pytest.raises(NotConfirmed, match="2 messages were stored, but are not confirmed"):
            publishing.result(WITHIN)


def test_flushed_server_does_not_confirm_what_is_gone(own: Place, replica: RealServer) -> None:
    broker = own.broker()
    publish(broker, 1, REPLICA)
    replica.pause()
    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(publish, broker, 2, REPLICA)
        until_it_waits(own, 3)
        own.client.flushall()
        own.client.client_kill_filter(_type="normal", skipme=True)
        replica.resume()
        with pytest.raises(NotConfirmed, match=r"2 messages at .* are not there any more"):
            publishing.result(WITHIN)


def test_user_who_may_not_wait_is_told_before_anything_is_sent(place: Place) -> None:
    broker = place.broker(place.as_user("-wait"))
    with pytest.raises(NotPermitted, match="nothing was published"):
        publish(broker, 1, REPLICA)
    assert place.ids() == []


# A bounded topic.


@pytest.mark.parametrize("count", [1, 5])
def test_bounded_topic_survives_that_scripts_vanish(place: Place, count: int) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=100)
    broker = place.broker()
    published = publish(broker, count)
    place.client.script_flush()
    batch = [message(topic) for topic in ("invoices", "orders", "refunds")]
    broker.publish(batch)
    assert place.ids() == [*published, batch[1].id]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_bounded_publish_whose_reply_is_lost_is_stored_once(
    place: Place, proxy: Proxy, count: int, overflow: Any
) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=count + 1, overflow=overflow)
    broker = place.broker(proxy.url)
    published = publish(broker)

    proxy.lose_reply(to=b"EVALSHA")
    published += publish(broker, count)

    assert proxy.struck.is_set()
    assert place.ids() == published


def test_bounded_publish_stuck_on_the_way_is_stored_once(place: Place, proxy: Proxy) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=100)
    broker = place.broker(proxy.url, patience=0.5)
    published = publish(broker)

    proxy.hold_back(b"EVALSHA")
    published += publish(broker, 3)
    proxy.let_go.set()

    assert proxy.struck.is_set()
    published += publish(broker)
    threading.Event().wait(0.05)  # what was held back needs a moment to arrive, if it does
    assert place.ids() == published


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_bounded_topic_under_maxmemory_is_full_and_nothing_is_half_done(own: Place, overflow: Any) -> None:
    own.topics["orders"] = TopicOptions(max_backlog=10, overflow=overflow)
    broker = own.broker()
    published = publish(broker, 8)
    own.client.config_set("maxmemory", 1)

    with pytest.raises(BrokerFull, match="maxmemory"):
        publish(broker, 2)
    assert own.ids() == published

    own.client.config_set("maxmemory", 0)
    published += publish(broker, 2)
    own.client.config_set("maxmemory", 1)
    if overflow == "reject":
        with pytest.raises(BrokerFull, match="max_backlog=10"):
            publish(broker, 2)
    else:
        published = published[2:] + publish(broker, 2)  # it takes no more memory than it frees
    assert own.ids() == published
    own.client.config_set("maxmemory", 0)


@pytest.mark.parametrize("denied", ["-xtrim", "-xinfo|groups", "-xpending", "-xadd", "-evalsha", "-xlen"])
def test_user_who_may_not_do_all_of_it_does_none_of_it(place: Place, denied: str) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=3, overflow="reject" if denied == "-xadd" else "drop_oldest")
    published = publish(place.broker(), 2 if denied == "-xadd" else 3)
    place.client.xgroup_create(place.stream, "billing", "0")
    place.client.xreadgroup("billing", "one", {place.stream: ">"}, 1)

    with pytest.raises(NotPermitted):
        publish(place.broker(place.as_user(denied)))

    assert place.ids() == published


def test_settled_messages_stay_while_there_is_room(place: Place) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=300)
    broker = place.broker()
    published = publish(broker, 250)
    place.client.xgroup_create(place.stream, "billing", "$")
    published += publish(broker, 50)
    assert place.ids() == published
    for count in (1, 7, 120):
        published = [*published, *publish(broker, count)][-300:]
        assert place.ids() == published
    place.client.xgroup_setid(place.stream, "billing", "$")
    published = [*published, *publish(broker, 300)][-300:]
    assert place.ids() == published
    assert place.client.get(f"{place.stream}:dropped") is None


def test_topic_whose_bound_was_lowered_gives_all_that_is_settled(place: Place) -> None:
    publish(place.broker(), 5000)
    place.client.xgroup_create(place.stream, "billing", "$")
    place.topics["orders"] = TopicOptions(max_backlog=10)
    published = publish(place.broker(), 10)
    assert place.ids() == published


def test_drop_is_counted_and_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=5, overflow="drop_oldest")
    broker = place.broker()
    publish(broker, 5)
    for _ in range(20):
        publish(broker, 2)
    broker.close()
    assert place.client.get(f"{place.stream}:dropped") == b"40"
    assert [vars(one)["dropped"] for one in caplog.records if one.name == "pubsub"] == [2, 38]


# Again, on Redis.


def test_publish_stuck_in_a_frozen_server_is_stored_once_when_it_is_published_again(own: Place) -> None:
    broker = own.broker()
    published = publish(broker)
    batch = [message() for _ in range(3)]
    own.server.pause()
    allow(broker, 0.6)
    with pytest.raises(PublishUncertain) as uncertain:
        broker.publish(batch)
    with pytest.raises(PublishUncertain):
        broker.publish(batch, again=True)
    assert list(uncertain.value.message_ids) == [one.id for one in batch]

    own.server.resume()
    allow(broker, WITHIN)
    broker.publish(batch, again=True)

    assert own.ids() == [*published, *(one.id for one in batch)]


def restricted(place: Place, proxy: Proxy, *rules: str, patience: float = 0.5) -> RedisBroker:
    """Return a broker, through the proxy, of a user who may not kill connections."""
    place.as_user(*(rules or ("-client|kill",)))
    load_scripts(place)  # so that it is not the reply "no such script" that gets lost
    return place.broker(proxy.url.replace("redis://", f"redis://{place.namespace}:pw@"), patience=patience)


def load_scripts(place: Place) -> None:
    place.client.script_load(script("add")[0])


@pytest.mark.parametrize("rule", ["-client|kill", "-client +client|info +client|setname"])
@pytest.mark.parametrize("count", [1, 3, 1200])
def test_user_who_may_not_kill_connections_publishes_each_message_once(
    place: Place, proxy: Proxy, rule: str, count: int
) -> None:
    """What is on its way cannot be fenced off by killing its connection, so each message has a fence."""
    broker = restricted(place, proxy, *rule.split())
    published = publish(broker, count)

    proxy.lose_reply(to=b"EVALSHA")
    published += publish(broker, count)
    assert proxy.struck.is_set()

    proxy.hold_back(b"EVALSHA")
    published += publish(broker, count)
    assert proxy.struck.is_set()
    calls = place.calls("evalsha")
    proxy.let_go.set()
    until(lambda: place.calls("evalsha") > calls)
    published += publish(broker)
    assert place.ids() == published


@pytest.mark.parametrize(
    "terms",
    [Terms(delay=3600.0), Terms(dedup="same", window=0.001), Terms(dedup="same")],
    ids=["delay", "short window", "window"],
)
def test_user_who_may_not_kill_connections_keeps_to_the_terms(place: Place, proxy: Proxy, terms: Terms) -> None:
    broker = restricted(place, proxy)
    one = message()
    proxy.hold_back(b"EVALSHA")
    assert broker.publish([one], terms={one.id: terms}) == [one.id]
    assert proxy.struck.is_set()
    calls = place.calls("evalsha")
    proxy.let_go.set()
    until(lambda: place.calls("evalsha") > calls)
    stored = place.client.zrange(broker.keys("orders").delayed, 0, -1) if terms.delay else place.ids()
    assert [*stored] in ([one.id], [one.id.encode()])


def test_what_was_sent_while_connections_could_be_killed_stays_in_doubt_when_they_cannot(
    place: Place, proxy: Proxy
) -> None:
    broker = restricted(place, proxy, "+client|kill")
    allow(broker, 2.0)
    published = publish(broker)
    stuck = message()

    place.as_user("-client|kill")
    proxy.hold_back(b"XADD")
    with pytest.raises(PublishUncertain, match="client"):  # it may not be fenced off, and is not to be found
        broker.publish([stuck])
    with pytest.raises(PublishUncertain):
        broker.publish([stuck], again=True)
    assert place.ids() == published
    place.as_user("+client|kill")
    broker.publish([stuck], again=True)
    proxy.let_go.set()

    published += [stuck.id, *publish(broker)]
    threading.Event().wait(0.05)  # what was held back needs a moment to arrive, if it does
    assert place.ids() == published


def test_what_was_sent_on_a_connection_of_unknown_address_stays_in_doubt(place: Place, proxy: Proxy) -> None:
    """Its id alone may be that of another one by now, so it is not killed. Afterwards each message has a fence."""
    broker = restricted(place, proxy, "+client|kill")
    allow(broker, 2.0)
    published = publish(broker)
    place.as_user("-client|info")
    proxy.lose_reply(to=b"XADD")
    published += publish(broker)  # which opened another connection
    stuck = message()

    proxy.hold_back(b"XADD")
    with pytest.raises(PublishUncertain, match="CLIENT INFO"):
        broker.publish([stuck])
    proxy.let_go.set()
    until(lambda: place.ids() == [*published, stuck.id])
    assert broker.publish([stuck], again=True) == [stuck.id]
    published += [stuck.id, *publish(broker)]
    proxy.lose_reply(to=b"EVALSHA")
    published += publish(broker)
    assert proxy.struck.is_set()
    assert place.ids() == published


def test_message_is_published_again_by_another_process_than_the_one_that_may_not_kill_its_connection(
    place: Place, proxy: Proxy
) -> None:
    broker = restricted(place, proxy)
    published = publish(broker)
    stuck = [message() for _ in range(3)]
    allow(broker, 0.4)
    proxy.hold_back(b"EVALSHA")
    with pytest.raises(PublishUncertain):
        broker.publish(stuck)

    other = place.broker(place.as_user("-client|kill"))
    other.publish(stuck, again=True)
    other.publish(stuck, again=True)
    calls = place.calls("evalsha")
    proxy.let_go.set()

    until(lambda: place.calls("evalsha") > calls)
    assert place.ids() == [*published, *(one.id for one in stuck)]


def test_request_that_is_published_again_and_held_back_for_longer_than_fences_last_stores_nothing(
    place: Place, proxy: Proxy
) -> None:
    """Its connection is killed, where that is permitted: fences are there for a short time then."""
    broker = place.broker(proxy.url, patience=0.5)
    publish(broker)
    load_scripts(place)
    stuck = message()
    proxy.hold_back(b"EVALSHA")
    broker.publish([stuck], again=True)
    assert proxy.struck.is_set()
    fence = broker.keys("orders").fence(stuck.id)
    assert 0 < place.client.pttl(fence) <= 2000 * WITHIN
    place.client.delete(fence)
    proxy.let_go.set()
    threading.Event().wait(0.05)  # what was held back needs a moment to arrive, if it does
    assert place.ids()[1:] == [stuck.id]


@pytest.mark.parametrize("rule", ["+@all", "-client|kill"])
def test_those_who_publish_the_same_again_at_once_store_it_once(place: Place, rule: str) -> None:
    """As several processes may that work off one table of what is to be published."""
    url = place.as_user(rule)
    brokers = [place.broker(url) for _ in range(4)]
    for _ in range(20):
        batch = [message() for _ in range(3)]
        together = threading.Barrier(len(brokers))

        def publish_again(broker: RedisBroker, batch: list[Any] = batch, together: Any = together) -> None:
            together.wait(WITHIN)
            broker.publish(batch, again=True)

        with ThreadPoolExecutor(len(brokers)) as threads:
            list(threads.map(publish_again, brokers))
        assert place.ids()[-3:] == [one.id for one in batch]
    assert len(place.ids()) == 60


def test_whether_connections_may_be_killed_is_asked_once(own: Place) -> None:
    for url in (own.server.url, own.as_user("-client|kill")):
        broker = own.broker(url)
        before = own.client.info("commandstats").get("cmdstat_client|kill", {"calls": 0, "rejected_calls": 0})
        for _ in range(5):
            publish(broker)
            publish(broker, 3)
        after = own.client.info("commandstats")["cmdstat_client|kill"]
        assert sum(after[one] - before[one] for one in ("calls", "rejected_calls")) == 1


def test_batch_whose_fate_is_unknown_is_committed_again_without_a_duplicate(own: Place) -> None:
    pubsub = PubSub(own.server.url, namespace=own.namespace, publish_timeout=WITHIN)
    broker = pubsub.runtime.broker
    assert isinstance(broker, RedisBroker)
    pubsub.publish("orders", 0)
    batch = pubsub.batch()
    ids = [batch.publish("orders", number) for number in range(5)]
    own.server.pause()
    allow(broker, 0.6)
    with pytest.raises(PublishUncertain):
        batch.commit()
    own.server.resume()
    allow(broker, WITHIN)

    assert list(batch.commit()) == own.ids()[1:] == ids
    pubsub.close()


def test_batch_that_was_stored_in_part_is_completed(place: Place) -> None:
    pubsub = PubSub(place.server.url, namespace=place.namespace)
    pubsub.topic("orders", max_backlog=2000)
    batch = pubsub.batch()
    for number in range(1200):
        batch.publish("orders", number)
    publish(place.broker(), 1000)
    with pytest.raises(BrokerFull, match=r"Of 1200 messages 1000 are stored"):
        batch.commit()

    place.client.xtrim(place.stream, maxlen=1000, approximate=False)
    ids = batch.commit()

    assert place.ids() == list(ids)
    assert len(ids) == 1200
    pubsub.close()


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("again", [False, True])
def test_clock_of_the_publisher_may_be_wrong(place: Place, proxy: Proxy, hours: int, again: bool) -> None:
    clock = ManualClock(datetime.now(UTC) + timedelta(hours=hours))
    broker = place.broker(proxy.url, clock=clock)
    make_id = IdMaker(clock)
    new = make_id()
    late = Message(id=new, topic="orders", payload=b"", published_at=published_at(new))
    publish(broker)
    if again:
        broker.publish([late])
        broker.publish([late], again=True)
    else:
        proxy.lose_reply(to=b"XADD")
        broker.publish([late])
    assert place.ids()[1:] == [new]


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_of_the_server_may_be_set(place: Place, hours: int) -> None:
    """As if it had been so many hours ahead when the message was stored, and is right now."""
    stored_at = time.time() + 3600 * hours
    clock = ManualClock(datetime.fromtimestamp(stored_at if hours < 0 else time.time(), UTC))
    one = message() if hours > 0 else _made_at(stored_at)
    place.client.execute_command(
        "XADD", place.stream, f"{int(stored_at * 1000)}-0",
        "id", one.id, "payload", "", "key", "", "headers", "", "source", "",
    )  # fmt: skip

    place.broker(clock=clock).publish([one], again=True)

    assert place.ids() == [one.id]


def _made_at(moment: float) -> Message[bytes]:
    new = IdMaker(ManualClock(datetime.fromtimestamp(moment, UTC)))()
    return Message(id=new, topic="orders", payload=b"", published_at=published_at(new))


def _drop(place: Place) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=2, overflow="drop_oldest")
    publish(place.broker(), 2)


def _give_way(place: Place) -> None:
    """As messages of a bounded topic do that every group has settled."""
    place.client.xgroup_create(place.stream, "billing", "$")
    place.topics["orders"] = TopicOptions(max_backlog=1)
    publish(place.broker())
    place.client.xgroup_setid(place.stream, "billing", "$")


def _trim(place: Place) -> None:
    """As retention does."""
    place.client.xgroup_create(place.stream, "billing", "$")
    floors = topic_keys(place.namespace, "orders", None).floors
    place.broker().call(place.stream, script_call("retain", (place.stream, floors), 0, 2**53, 500), "trimming")


def _purge(place: Place) -> None:
    place.broker().purge("orders", everything=True)


REMOVALS = pytest.mark.parametrize("remove", [_drop, _give_way, _trim, _purge])


@REMOVALS
@pytest.mark.parametrize("again", [False, True])
def test_a_publish_that_may_have_been_handled_and_removed_stays_in_doubt(
    place: Place, proxy: Proxy, remove: Callable[[Place], None], again: bool
) -> None:
    broker, one = place.broker(proxy.url), message()
    with ThreadPoolExecutor(1) as threads:
        if again:
            broker.publish([one])
            remove(place)
            publishing = threads.submit(broker.publish, [one], again=True)
        else:
            publish(broker)
            proxy.cut(b"XADD", carried_out=True)
            publishing = threads.submit(broker.publish, [one])
            until(lambda: one.id in place.ids())
            remove(place)
            proxy.mend()
        with pytest.raises(PublishUncertain, match="has been removed meanwhile") as caught:
            publishing.result(WITHIN)

    assert caught.value.message_ids == (one.id,)
    assert one.id not in place.ids()


@REMOVALS
def test_a_publish_that_was_not_carried_out_is_stored_though_older_ones_were_removed(
    place: Place, proxy: Proxy, remove: Callable[[Place], None]
) -> None:
    for number in range(1, 4):
        place.client.xadd(place.stream, {"of": "long ago"}, f"{number}-1")
    remove(place)
    broker, one = place.broker(proxy.url), message()
    proxy.cut(one.id.encode(), carried_out=False)

    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(broker.publish, [one])
        until(proxy.struck.is_set)
        proxy.mend()
        publishing.result(WITHIN)

    assert place.ids()[-1] == one.id


def test_looking_for_a_message_ends_in_time(place: Place) -> None:
    broker = place.broker(publish_timeout=0.1)
    fill = "for _ = 1, 200000 do redis.call('XADD', KEYS[1], '*', 'id', 'other') end"
    place.client.eval(fill, 1, place.stream)

    before = time.monotonic()
    with pytest.raises(PublishUncertain):
        broker.publish([message()], again=True)

    assert time.monotonic() - before < WITHIN / 2
    assert place.client.xlen(place.stream) == 200_000


# Errors.


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("Transaction discarded because of: READONLY You can't write against a read only replica.", BrokerUnavailable),
        ("EXECABORT Transaction discarded because of: MISCONF Errors writing to the AOF file", BrokerUnavailable),
        ("Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'.", BrokerFull),
        ("unknown command 'WAITAOF', with args beginning with: '1' '0' '1' ", Unsupported),
        ("WAITAOF cannot be used when numlocal is set but appendonly is disabled.", Unsupported),
        ("WAIT cannot be used with replica instances. Please also note that", BrokerUnavailable),
        ("DENIED Redis is running in protected mode", NotPermitted),
    ],
)
def test_error_of_a_publish_becomes_ours(text: str, ours: type[Exception]) -> None:
    assert type(translated(ResponseError(text), "publishing")) is ours
