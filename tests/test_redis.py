"""What is particular to Redis: its connections, its keys, and what is left after the network or a server failed."""

import os
import threading
import time
import traceback
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis.exceptions as theirs
from pydantic import BaseModel
from redis import Redis

from pubsub_core import SystemClock
from pubsub_core.backends import masked
from pubsub_core.broker import BrokerOptions, Membership, ScheduleKey, TopicOptions
from pubsub_core.codec import UntypedJson, codec_for
from pubsub_core.errors import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    NotPermitted,
    PublishUncertain,
    StreamConflict,
    Undecodable,
)
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey
from pubsub_redis import RedisBroker, open_redis
from pubsub_redis import broker as broker_module
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.faults import broker_errors
from pubsub_redis.keys import worker_key
from pubsub_redis.link import SCRIPTS, Link, script
from pubsub_redis.servers import open_servers
from tests.servers import Proxy, RealServer, proxy_to, redis_server, valkey_server
from tests.waiting import until

WITHIN = 10.0
REASON = DeadLetterReason("rejected")

_new_id = IdMaker(SystemClock())


class Place:
    """A topic and a group of their own, on one server, and everything a test opens there."""

    def __init__(self, url: str, client: Any) -> None:
        self.url = url
        self.client = client
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.topic = "orders"
        self.key = SubscriptionKey(self.topic, "billing")
        self.stream = f"{self.namespace}:{{{self.topic}}}"
        self.topics: dict[str, TopicOptions] = {}
        self._opened: list[RedisBroker | RedisConsumer] = []
        self._threads = ThreadPoolExecutor(8)

    def broker(
        self,
        url: str | None = None,
        *,
        heartbeat: float = 60.0,
        publish_timeout: float = 10.0,
        patience: float | None = None,
    ) -> RedisBroker:
        """Return a broker that waits `patience` seconds for a reply: few, if one is held back, but not for all."""
        url = url or self.url
        options = BrokerOptions(SystemClock(), self.namespace, heartbeat, publish_timeout, self.topics)
        broker = RedisBroker(open_servers(url, timeout=patience or publish_timeout / 2), options, masked(url))
        self._opened.append(broker)
        return broker

    def consumer(self, broker: RedisBroker, *keys: SubscriptionKey, name: str | None = None) -> RedisConsumer:
        memberships = [Membership(key) for key in keys or [self.key]]
        consumer = broker.consumer(memberships, name or f"consumer-{uuid.uuid4().hex[:8]}")
        self._opened.append(consumer)
        return consumer

    def joined(self, broker: RedisBroker, *keys: SubscriptionKey, name: str | None = None) -> RedisConsumer:
        consumer = self.consumer(broker, *keys, name=name)
        assert not consumer.receive(dict.fromkeys(keys or [self.key], 10), 0)
        return consumer

    def take(self, consumer: RedisConsumer, count: int, key: SubscriptionKey | None = None) -> list[Delivery[bytes]]:
        """Receive until there are `count`, over errors, of which the consumer may have one."""
        taken: list[Delivery[bytes]] = []
        errors: list[BrokerError] = []
        deadline = time.monotonic() + WITHIN
        while len(taken) < count and time.monotonic() < deadline:
            try:
                taken += consumer.receive({key or self.key: 10}, 0.1)
            except BrokerError as error:
                errors.append(error)
                assert len(errors) == 1, errors
        assert len(taken) == count, f"{len(taken)} deliveries came instead of {count}"
        return taken

    def waiting(self, consumer: RedisConsumer) -> Future[Sequence[Delivery[bytes]]]:
        """Have the consumer wait, and return when the server knows."""

        def receive() -> Sequence[Delivery[bytes]]:
            received: Sequence[Delivery[bytes]] = ()
            deadline = time.monotonic() + WITHIN
            while not received and time.monotonic() < deadline:
                received = consumer.receive({self.key: 10}, WITHIN)
            return received

        waiting = self._threads.submit(receive)
        until(lambda: any(one["cmd"] == "xreadgroup" and "b" in one["flags"] for one in self.client.client_list()))
        return waiting

    def in_thread(self, function: Callable[[], Any]) -> Future[Any]:
        return self._threads.submit(function)

    def ids(self, stream: str | None = None) -> list[str]:
        return [fields[b"id"].decode() for _, fields in self.client.xrange(stream or self.stream)]

    def clean_up(self) -> None:
        for one in reversed(self._opened):
            one.close()
        self._threads.shutdown()


def message(topic: str = "orders", payload: bytes = b"{}") -> Message[bytes]:
    new = _new_id()
    return Message(id=new, topic=topic, payload=payload, published_at=published_at(new))


def publish(broker: RedisBroker, count: int = 1) -> list[str]:
    messages = [message() for _ in range(count)]
    broker.publish(messages)
    return [one.id for one in messages]


def ids(deliveries: Sequence[Delivery[bytes]]) -> list[str]:
    return [one.message.id for one in deliveries]


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> RealServer:
    """A server that other tests use, too."""
    shared: RealServer = request.getfixturevalue(request.param)
    return shared


@pytest.fixture
def place(server: RealServer) -> Iterator[Place]:
    with Redis.from_url(server.url) as client:
        place = Place(server.url, client)
        yield place
        place.clean_up()


@pytest.fixture
def proxy(server: RealServer) -> Iterator[Proxy]:
    with proxy_to(server) as proxy:
        yield proxy


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A server that a test may do anything to; it keeps its data."""
    make = redis_server if request.param == "redis" else valkey_server
    with make(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def own_place(own: RealServer) -> Iterator[Place]:
    with Redis.from_url(own.url) as client:
        place = Place(own.url, client)
        yield place
        own.resume() if own.is_running else own.start()
        place.clean_up()


# URLs.


@pytest.mark.parametrize(
    "query",
    [
        "protocol=3",
        "decode_responses=true",
        "protocol=3&decode_responses=true",
        "socket_timeout=0.01",
        "max_connections=1",
    ],
)
def test_url_does_not_change_how_the_library_reads_replies(place: Place, query: str) -> None:
    broker = place.broker(f"{place.url}?{query}")
    published = publish(broker, 3)
    consumer = place.consumer(broker)

    taken = place.take(consumer, 3)

    assert ids(taken) == published
    consumer.nack(taken[0], 0)
    (again,) = place.take(consumer, 1)
    consumer.dead_letter(again, REASON)
    assert [letter.message.id for letter in broker.dead_letters(place.key)] == published[:1]
    consumer.maintain()


@pytest.mark.parametrize(
    ("url", "number"),
    [("redis://host", 0), ("redis://host/", 0), ("rediss://host/3/", 3), ("redis+sentinel://host/service/3", 3)],
)
def test_the_path_of_a_url_is_the_number_of_a_database(url: str, number: int) -> None:
    assert open_servers(url, timeout=1.0).connection("").db == number


@pytest.mark.parametrize(
    "url",
    ["redis://host", "unix:///run/redis.sock", "redis+sentinel://host/service", "redis+cluster://host:7000"],
)
def test_a_process_may_connect_as_often_as_it_must(url: str) -> None:
    """However long it lives: redis-py would count the connections that were ever made."""
    servers = open_servers(url, timeout=1.0)
    node = "host:7000" if servers.is_cluster else ""
    for _ in range(1000):
        assert not servers.connection(node).is_connected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("rediss://me:secret@host?ssl_cert_reqs=none", "switches off the check of the server's certificate"),
        ("rediss://me:secret@host?ssl_check_hostname=False", "switches off the check of the server's certificate"),
        ("redis+cluster://me:secret@host?ssl=true&ssl_cert_reqs=NONE", "switches off the check"),
        ("redis://me:secret@host/0?sokcet_timeout=3", "does not know: 'sokcet_timeout'"),
        ("redis+sentinel://me:secret@host/service?sokcet_timeout=3", "does not know: 'sokcet_timeout'"),
        ("redis+cluster://me:secret@host?sokcet_timeout=3", "does not know: 'sokcet_timeout'"),
        ("redis+sentinel://me:secret@host", "names no service"),
        ("redis://me:secret@host:port", "cannot be"),
        ("redis://me:secret@host:6379/shop", "its path is not the number of a database.*PUBSUB_NAMESPACE"),
        ("rediss://me:secret@host/1/2", "its path is not the number of a database"),
        ("redis://me:secret@host/-1", "its path is not the number of a database"),
        ("redis+sentinel://me:secret@host/service/shop", "its path is not the number of a database"),
        ("redis+cluster://me:secret@host/1", "names a database, of which a cluster has only one"),
        ("redis://:5/secret@host/0", "its path is not the number of a database.*%2F"),
    ],
)
def test_url_that_cannot_work_is_refused_without_its_password(url: str, problem: str) -> None:
    options = BrokerOptions(SystemClock(), "test", 60.0, 10.0, {})

    with pytest.raises(ConfigurationError, match=problem) as refused:
        open_redis(url, options)

    assert "secret" not in "".join(traceback.format_exception(refused.value))


# Errors.


def _instance(kind: type[Exception]) -> Exception:
    try:
        return kind("12182 127.0.0.1:7000")
    except TypeError:
        return kind()


@pytest.mark.parametrize(
    "kind",
    [one for one in vars(theirs).values() if isinstance(one, type) and issubclass(one, Exception)]
    + [OSError, TimeoutError],
    ids=lambda kind: kind.__name__,
)
def test_every_error_of_redis_py_is_translated(kind: type[Exception]) -> None:
    original = _instance(kind)

    with pytest.raises(BrokerError, match=r"^doing this: ") as ours, broker_errors("doing this"):
        raise original

    assert ours.value.__cause__ is original


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (theirs.AuthenticationError("invalid username-password pair or user is disabled."), NotPermitted),
        (theirs.NoPermissionError("this user has no permissions to run the 'xadd' command"), NotPermitted),
        (theirs.ResponseError("ERR The user executing the script can't run this command: no permission"), NotPermitted),
        (theirs.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), BrokerFull),
        (theirs.ResponseError("ERR OOM command not allowed when used memory > 'maxmemory'. script: f"), BrokerFull),
        (theirs.BusyLoadingError("Redis is loading the dataset in memory"), BrokerUnavailable),
        (theirs.ReadOnlyError("You can't write against a read only replica."), BrokerUnavailable),
        (theirs.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), BrokerUnavailable),
        (theirs.ResponseError("NOREPLICAS Not enough good replicas to write."), BrokerUnavailable),
        (theirs.ResponseError("BUSY Redis is busy running a script."), BrokerUnavailable),
        (theirs.RedisClusterException("Redis Cluster cannot be connected."), BrokerUnavailable),
        (
            theirs.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
            StreamConflict,
        ),
        (theirs.ResponseError("BUSYGROUP Consumer Group name already exists"), BrokerError),
        (theirs.ResponseError("NOGROUP No such key 'MASK' or consumer group 'BUSY' in XREADGROUP"), BrokerError),
    ],
)
def test_error_becomes_the_one_that_says_what_to_do(error: Exception, ours: type[BrokerError]) -> None:
    with pytest.raises(BrokerError) as translated, broker_errors("doing this"):
        raise error

    assert type(translated.value) is ours


@pytest.mark.parametrize("userinfo", [":wrong-canary@", "nobody:wrong-canary@", ""])
def test_wrong_password_is_not_permitted_and_never_shown(userinfo: str) -> None:
    with redis_server(requirepass="right-canary") as server:
        place = Place(server.url.replace("redis://", f"redis://{userinfo}"), None)
        broker = place.broker()
        consumer = place.consumer(broker)
        for act in (lambda: publish(broker), lambda: consumer.receive({place.key: 1}, 0), consumer.maintain):
            with pytest.raises(NotPermitted) as refused:
                act()
            assert "canary" not in "".join(traceback.format_exception(refused.value))
        place.clean_up()


def test_server_that_is_down_is_unavailable_within_the_publish_timeout(own: RealServer) -> None:
    own.kill()
    place = Place(own.url.replace("redis://", "redis://me:canary@"), None)
    broker = place.broker(publish_timeout=1.0)

    before = time.monotonic()
    with pytest.raises(BrokerUnavailable) as down:
        publish(broker, 3)

    assert 0.5 < time.monotonic() - before < WITHIN / 2
    assert f"redis://***@127.0.0.1:{own.port}" in str(down.value)
    assert "canary" not in "".join(traceback.format_exception(down.value))
    with pytest.raises(BrokerUnavailable):
        place.consumer(broker).receive({place.key: 1}, 0)
    place.clean_up()


def test_frozen_server_is_unavailable_or_uncertain_within_the_publish_timeout(
    own: RealServer, own_place: Place
) -> None:
    used, unused = own_place.broker(publish_timeout=1.0), own_place.broker(publish_timeout=1.0)
    publish(used)
    own.pause()

    before = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publish(unused)
    between = time.monotonic()
    sent = [message(), message()]
    with pytest.raises(PublishUncertain) as uncertain:
        used.publish(sent)

    assert between - before < WITHIN / 2
    assert time.monotonic() - between < WITHIN / 2
    assert uncertain.value.message_ids == tuple(one.id for one in sent)


def test_key_of_another_type_is_named(place: Place) -> None:
    place.client.set(place.stream, "ours")
    broker = place.broker()
    consumer = place.consumer(broker)

    for act in (lambda: publish(broker), lambda: publish(broker, 3), lambda: consumer.receive({place.key: 1}, 0)):
        with pytest.raises(StreamConflict) as conflict:
            act()
        assert place.stream in str(conflict.value)
    assert place.client.get(place.stream) == b"ours"


def test_refused_batch_leaves_nothing_of_its_topic_and_says_what_else_is_stored(place: Place) -> None:
    place.client.set(f"{place.namespace}:{{blocked}}", "ours")
    batch = [message(topic) for topic in ("orders", "blocked", "orders", "blocked")]

    with pytest.raises(StreamConflict, match="Of 4 messages 2 are stored"):
        place.broker().publish(batch)

    assert place.ids() == [batch[0].id, batch[2].id]


# Keys and entries.


def test_fields_of_an_entry_are_always_the_same_in_the_same_order(place: Place) -> None:
    broker = place.broker()
    plain = message()
    full = Message(plain.id, "orders", b"[]", plain.published_at, key="k", headers={"b": "1", "a": "2"}, source="cron")

    broker.publish([plain])
    broker.publish([full, plain])

    entries = place.client.execute_command("XRANGE", place.stream, "-", "+")
    names = {tuple(fields) if isinstance(fields, dict) else tuple(fields[::2]) for _, fields in entries}
    assert names == {(b"id", b"payload", b"key", b"headers", b"source")}


@pytest.mark.parametrize("stream", ["legacy orders:all", "app:{orders}:v2"])
def test_topic_may_live_in_a_stream_of_any_name(place: Place, stream: str) -> None:
    stream = f"{place.namespace} {stream}"
    place.topics["orders"] = TopicOptions(stream)
    broker = place.broker()
    published = publish(broker, 3)
    consumer = place.consumer(broker)

    taken = place.take(consumer, 3)
    consumer.nack(taken[0], 3600)
    consumer.dead_letter(taken[1], REASON)

    assert ids(taken) == published == place.ids(stream)
    tag = "{orders}" if "{" in stream else f"{{{stream}}}"
    names = {key.decode() for key in place.client.keys(f"{place.namespace}:*") if b"worker" not in key}
    keys = names - {f"{place.namespace}:topics"}
    kinds = ("due:billing", "failures:billing", "dead:billing", "floors")
    assert keys == {f"{place.namespace}:{tag}:orders:{kind}" for kind in kinds}


@pytest.mark.parametrize("stream", ["", "a{b", "a{}b", "}{"])
def test_stream_that_could_not_live_in_a_cluster_is_refused(place: Place, stream: str) -> None:
    place.topics["orders"] = TopicOptions(stream)

    with pytest.raises(ConfigurationError, match="topic 'orders' has stream="):
        publish(place.broker())


def test_entry_of_another_program_is_read_as_the_handlers_type(place: Place) -> None:
    class Order(BaseModel):
        order_id: int
        total: float
        note: str | None = None

    place.client.xadd(place.stream, {"order_id": "7", "total": "9.5", "note": "Zoë ✓"})
    place.client.xadd(place.stream, {"order_id": b"\xff\xfe"})

    good, bad = place.take(place.consumer(place.broker()), 2)

    assert codec_for(Order).decode(good.message.payload) == Order(order_id=7, total=9.5, note="Zoë ✓")
    with pytest.raises(Undecodable):
        codec_for(Order).decode(bad.message.payload)


@pytest.mark.parametrize(
    "fields",
    [
        {"order_id": "7"},
        {f"field-{number}": str(number) for number in range(30)},
        {"position": "1-0", "attempt": "many", **{f"field-{number}": "" for number in range(10)}},
    ],
    ids=["short", "long", "odd"],
)
def test_dead_letter_of_another_program_is_listed_replayed_and_discarded(place: Place, fields: dict[str, str]) -> None:
    broker = place.broker()
    consumer = place.joined(broker)
    dead = broker.keys(place.topic).dead(place.key.group)
    for _ in range(2):
        place.client.xadd(dead, fields)

    newest, oldest = broker.dead_letters(place.key)

    assert newest.reason.kind == "undecodable"
    assert newest.reason.detail == "another program wrote it into the stream of dead letters"
    assert broker.replay(place.key, [oldest.position]) == 1
    (delivery,) = place.take(consumer, 1)
    assert UntypedJson().decode(delivery.message.payload) == fields
    assert broker.discard(place.key, [newest.position]) == 1
    assert not broker.dead_letters(place.key)


# Publishing over a connection that breaks.


@pytest.mark.parametrize("sent", [1, 2, 3])
def test_batch_whose_connection_is_killed_between_its_pieces_is_stored_once(
    place: Place, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = place.broker()
    first = publish(broker)
    in_pieces, struck = broker_module._in_pieces, []

    def pieces(*arguments: Any) -> Iterator[bytes]:
        for number, piece in enumerate(in_pieces(*arguments), 1):
            yield piece
            if number == sent:
                struck.append(place.client.client_kill_filter(_type="normal", skipme=True))

    monkeypatch.setattr(broker_module, "_in_pieces", pieces)
    published = publish(broker, 3 * broker_module._PIECE)

    assert struck
    assert place.ids() == first + published


@pytest.mark.parametrize("count", [1, 5])
def test_publish_after_its_connection_was_killed_is_stored_once(place: Place, count: int) -> None:
    broker = place.broker()
    published = publish(broker)

    place.client.client_kill_filter(_type="normal", skipme=True)
    published += publish(broker, count)

    assert place.ids() == published


@pytest.mark.parametrize("count", [1, 5, 1200])
def test_publish_whose_reply_is_lost_is_stored_once(place: Place, proxy: Proxy, count: int) -> None:
    broker = place.broker(proxy.url)
    published = publish(broker)

    proxy.lose_reply(to=b"XADD")
    published += publish(broker, count)

    assert proxy.struck.is_set()
    assert place.ids() == published


@pytest.mark.parametrize("count", [1, 5])
def test_publish_stuck_on_the_way_is_stored_once_though_it_arrives_later(
    place: Place, proxy: Proxy, count: int
) -> None:
    broker = place.broker(proxy.url, patience=0.5)
    published = publish(broker)

    proxy.hold_back(b"XADD")
    published += publish(broker, count)
    proxy.let_go.set()

    assert proxy.struck.is_set()
    published += publish(broker)
    threading.Event().wait(0.05)  # what was held back needs a moment to arrive, if it does
    assert place.ids() == published


def test_batch_of_several_topics_whose_replies_are_lost_is_stored_once(place: Place, proxy: Proxy) -> None:
    broker = place.broker(proxy.url)
    batch = [message(topic) for topic in ("orders", "invoices", "refunds") * 40]
    publish(broker)

    proxy.lose_reply(to=b"XADD")
    broker.publish(batch)

    assert place.ids()[1:] == [one.id for one in batch if one.topic == "orders"]
    for topic in ("invoices", "refunds"):
        assert place.ids(f"{place.namespace}:{{{topic}}}") == [one.id for one in batch if one.topic == topic]


def test_publishing_survives_a_restart_of_the_server(own: RealServer, own_place: Place) -> None:
    broker = own_place.broker()
    published = publish(broker)

    own.kill()
    publishing = own_place.in_thread(lambda: publish(broker, 3))
    own.start()
    published += publishing.result(WITHIN)

    assert own_place.ids() == published


def test_connection_left_in_the_middle_is_not_used_again(place: Place) -> None:
    """As if an interrupt had come between sending and reading."""
    broker = place.broker()
    publish(broker)

    with broker.borrowed("") as link:
        link.send([("ECHO", "of somebody else")])

    assert broker.call("", ("ECHO", "mine"), "asking") == b"mine"


def test_link_that_is_closed_says_so(place: Place) -> None:
    with place.broker().borrowed("") as link:
        link.open()
        link.close()
        with pytest.raises(theirs.ConnectionError):
            link.read()


def test_link_in_a_hurry_is_not_left_to_others_who_have_time(place: Place) -> None:
    broker = place.broker()
    with broker.borrowed("") as link:
        link.open(0.9 * link._usual_timeout)  # a hurry that a busy machine can keep up with
        link.ask([("PING",)])  # opens it, too
        assert link.is_hurried
    with broker.borrowed("") as another:
        another.open()
        assert another is not link
        assert not another.is_hurried


def test_a_broker_that_is_closed_keeps_no_connection_that_is_given_back_later(place: Place) -> None:
    broker = place.broker()
    with broker.borrowed("") as link:
        link.open()
        broker.close()
        assert link.call("PING", what="looking") == b"PONG"
    assert not link.is_open


def test_reply_that_is_slow_is_not_looked_for_all_the_time(place: Place) -> None:
    """To look costs as much as to sleep, if the reply comes at once; with a server that is far it is a waste."""
    looks = 0

    def look_in_vain(_: int) -> list[object]:
        nonlocal looks
        looks += 1
        return []

    with place.broker().borrowed("") as link:
        link.open()
        link._poll = look_in_vain
        for number in range(100):
            before = looks
            link.send([("ECHO", str(number))])
            link.look()
            assert link.read() == str(number).encode()
            assert (looks > before) == (number % 33 == 0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="where there is one processor nobody looks")
def test_reply_of_a_server_nearby_is_looked_for(place: Place) -> None:
    broker = place.broker()
    publish(broker)  # connects
    with broker.borrowed("") as link:
        assert link._poll is not None
        link.send([("PING",)])
        link.look()
        assert link.read() == b"PONG"
    broker.close()
    assert link._poll is None  # of a socket that is closed


def test_user_without_transactions_may_publish_batches(place: Place) -> None:
    user = place.namespace
    place.client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-multi", "-exec")
    broker = place.broker(place.url.replace("redis://", f"redis://{user}:pw@"))

    published = publish(broker, 5)

    assert place.ids() == published
    place.client.acl_deluser(user)


# Forks and threads.


def test_broker_is_safe_across_forks(place: Place) -> None:
    broker = place.broker()
    published = publish(broker)
    batches = [[message() for _ in range(50)] for _ in range(4)]

    children = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: that is what is tested
        for number, batch in enumerate(batches):
            child = os.fork()
            if not child:
                status = 1
                try:
                    for one in batch:
                        broker.publish([one])
                        if broker.call("", ("ECHO", f"{number} {one.id}"), "asking") != f"{number} {one.id}".encode():
                            os._exit(2)
                    broker.close()
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
    for number in range(50):
        published += publish(broker)
        assert broker.call("", ("ECHO", f"parent {number}"), "asking") == f"parent {number}".encode()

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    published += publish(broker)
    stored = place.ids()
    assert Counter(stored) == Counter([*published, *(one.id for batch in batches for one in batch)])
    for mine in (published, *([one.id for one in batch] for batch in batches)):
        assert [one for one in stored if one in mine] == mine


def test_threads_that_end_leave_no_connection(place: Place) -> None:
    broker = place.broker()
    before = len(place.client.client_list())

    for _ in range(20):
        thread = threading.Thread(target=publish, args=[broker])
        thread.start()
        thread.join()

    assert len(place.client.client_list()) <= before + 1


def test_nothing_is_left_of_a_closed_consumer_and_broker(place: Place) -> None:
    before = {one["id"] for one in place.client.client_list()}
    broker = place.broker()
    other = SubscriptionKey("orders", "shipping")
    consumer = place.consumer(broker, place.key, other, name="leaving")
    publish(broker, 3)
    place.take(consumer, 3)
    consumer.maintain()
    assert "leaving" in names(place)

    consumer.close()
    broker.close()

    assert names(place) == {"~parked"}
    assert names(place, "shipping") == set()
    assert not place.client.exists(worker_key(place.namespace, "leaving"))
    until(lambda: {one["id"] for one in place.client.client_list()} <= before)


def names(place: Place, group: str = "billing") -> set[str]:
    return {one["name"].decode() for one in place.client.xinfo_consumers(place.stream, group)}


def test_consumer_that_never_received_is_closed_without_a_word(
    own: RealServer, own_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks nobody, so it does not notice that nobody is there."""
    consumer = own_place.consumer(own_place.broker())
    own.kill()

    consumer.close()

    assert not caplog.records


# What vanishes while a consumer waits.


@pytest.mark.parametrize(
    "vanish",
    [
        lambda place: place.client.xgroup_destroy(place.stream, "billing"),
        lambda place: place.client.delete(place.stream),
        lambda place: place.client.flushall(),
        lambda place: place.client.client_kill_filter(_type="normal", skipme=True),
        lambda place: place.client.client_kill_filter(_type="pubsub", skipme=True),
    ],
    ids=["group", "stream", "everything", "connections", "subscription"],
)
def test_consumer_goes_on_when_something_vanishes_under_it(place: Place, vanish: Callable[[Place], Any]) -> None:
    broker = place.broker()
    consumer = place.joined(broker)
    waiting = place.waiting(consumer)

    vanish(place)
    published = publish(place.broker())

    error = waiting.exception(WITHIN)
    assert error is None or isinstance(error, BrokerError)
    taken = [*waiting.result()] if error is None else place.take(consumer, 1)
    assert ids(taken) == published
    consumer.nack(taken[0], 0)
    (again,) = place.take(consumer, 1)
    assert again.message.attempt == 2


def test_group_that_vanishes_while_another_delivers_is_made_anew(place: Place) -> None:
    other = SubscriptionKey("refunds", "billing")
    broker = place.broker()
    consumer = place.joined(broker, place.key, other)
    place.client.xgroup_destroy(place.stream, "billing")
    broker.publish([message("refunds")])
    consumer_takes = place.take(consumer, 1, other)

    published = publish(broker)

    assert [one.subscription for one in consumer_takes] == [other]
    assert ids(place.take(consumer, 1)) == published


def test_consumer_goes_on_when_its_server_is_started_anew(own: RealServer, own_place: Place) -> None:
    broker = own_place.broker()
    consumer = own_place.joined(broker)
    published = publish(broker, 2)
    held = own_place.take(consumer, 2)
    waiting = own_place.waiting(consumer)

    own.kill()
    assert isinstance(waiting.exception(WITHIN), BrokerUnavailable)
    with pytest.raises(BrokerUnavailable):
        consumer.receive({own_place.key: 1}, 0)
    own.start()
    consumer.ack(held[:1])
    more = publish(broker)

    assert ids(own_place.take(consumer, 1)) == more, "what it holds does not come again"
    consumer.nack(held[1], 0)
    (again,) = own_place.take(consumer, 1)
    assert (again.message.id, again.message.attempt) == (published[1], 2)


def test_outage_of_many_attempts_to_connect_is_over_when_the_server_is_back(own: RealServer, own_place: Place) -> None:
    broker = own_place.broker()
    consumer = own_place.joined(broker)
    own.kill()
    for _ in range(150):
        with pytest.raises(BrokerUnavailable):
            consumer.receive({own_place.key: 1}, 0)
        with pytest.raises(BrokerUnavailable):
            consumer.maintain()
    own.start()

    published = publish(own_place.broker())

    assert ids(own_place.take(consumer, 1)) == published


def test_outage_longer_than_a_sign_of_life_makes_nobody_lose_what_he_holds(own: RealServer, own_place: Place) -> None:
    broker = own_place.broker(heartbeat=0.1)
    holding, other = own_place.joined(broker), own_place.joined(broker)
    publish(broker)
    (held,) = own_place.take(holding, 1)
    other.maintain()

    own.kill()
    with pytest.raises(BrokerUnavailable):
        other.receive({own_place.key: 1}, 0)
    with pytest.raises(BrokerUnavailable):
        other.receive({own_place.key: 1}, 0)
    threading.Event().wait(0.5)
    own.start()
    back = time.monotonic()
    while time.monotonic() < back + 0.3:  # the other is back first, and looks for the dead as often as it may
        assert not other.receive({own_place.key: 1}, 0.01)
        other.maintain()
    holding.maintain()
    while time.monotonic() < back + 1.0:
        assert not other.receive({own_place.key: 1}, 0.01)
        other.maintain()
        holding.maintain()

    holding.nack(held, 0)


def test_scripts_are_sent_again_after_a_flush(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker)
    publish(broker, 3)
    nacked, released, dead = place.take(consumer, 3)
    settle: Mapping[str, Callable[[], None]] = {
        "nack": lambda: consumer.nack(nacked, 0),
        "release": lambda: consumer.release([released]),
        "dead_letter": lambda: consumer.dead_letter(dead, REASON),
    }

    for each in settle.values():
        place.client.script_flush()
        each()
    place.client.script_flush()

    assert Counter(one.message.attempt for one in place.take(consumer, 2)) == {1: 1, 2: 1}
    place.client.script_flush()
    consumer.close()
    assert names(place) == {"~parked"}


# Replies that are lost.


def load_scripts(place: Place) -> None:
    """So that it is not the reply "no such script" that gets lost."""
    for name in SCRIPTS:
        place.client.script_load(script(name)[0])


@pytest.mark.parametrize(
    ("lost", "attempts"), [(b"XREADGROUP", {1: 1, 2: 1}), (b"EVALSHA", {1: 1, 2: 1})], ids=["read", "take"]
)
def test_delivery_whose_reply_is_lost_comes_again_uncounted(
    place: Place, proxy: Proxy, lost: bytes, attempts: dict[int, int]
) -> None:
    broker = place.broker(proxy.url)
    consumer = place.consumer(broker)
    publish(broker)
    (delivery,) = place.take(consumer, 1)
    consumer.nack(delivery, 0.2)
    threading.Event().wait(0.25)
    publish(broker)

    load_scripts(place)
    proxy.lose_reply(to=lost)
    taken = place.take(consumer, 2)

    assert proxy.struck.is_set()
    assert Counter(one.message.attempt for one in taken) == attempts


@pytest.mark.parametrize("way", ["ack", "nack", "release", "dead_letter"])
def test_settlement_whose_reply_is_lost_may_be_repeated(place: Place, proxy: Proxy, way: str) -> None:
    broker = place.broker(proxy.url)
    consumer = place.consumer(broker)
    publish(broker)
    (delivery,) = place.take(consumer, 1)
    settle: Callable[[], None] = {
        "ack": lambda: consumer.ack([delivery]),
        "nack": lambda: consumer.nack(delivery, 0),
        "release": lambda: consumer.release([delivery]),
        "dead_letter": lambda: consumer.dead_letter(delivery, REASON),
    }[way]

    load_scripts(place)
    proxy.lose_reply(to=b"XACK" if way == "ack" else b"EVALSHA")
    with pytest.raises(BrokerUnavailable):
        settle()
    if way in ("ack", "release"):
        settle()
    else:
        with pytest.raises(LeaseLost):
            settle()

    assert proxy.struck.is_set()
    if way == "dead_letter":
        assert len(broker.dead_letters(place.key)) == 1
    if way in ("nack", "release"):
        assert place.take(consumer, 1)[0].message.attempt == (2 if way == "nack" else 1)
    else:
        assert place.client.xpending(place.stream, "billing")["pending"] == 0


# No memory.


def test_server_without_memory_refuses_publishes_and_is_worked_off_all_the_same(
    own: RealServer, own_place: Place
) -> None:
    broker = own_place.broker(heartbeat=0.25)
    published = publish(broker, 4)
    old = own_place.consumer(broker)
    (first,) = old.receive({own_place.key: 1}, 1.0)
    old.maintain()

    own_place.client.config_set("maxmemory", 1)
    for count in (1, 5):
        with pytest.raises(BrokerFull):
            publish(broker, count)
    for act in (lambda: old.nack(first, 0), lambda: old.dead_letter(first, REASON)):
        with pytest.raises(BrokerFull):
            act()
    new = own_place.consumer(own_place.broker(heartbeat=0.25))
    (second,) = new.receive({own_place.key: 1}, 1.0)
    new.ack([second])
    old.sign.give()  # who was silent for longer than his lease hands back what he gets
    (third,) = old.receive({own_place.key: 1}, 1.0)
    old.ack([third])
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        old.maintain()
        new.maintain()
        threading.Event().wait(0.01)
    own_place.client.config_set("maxmemory", 0)

    old.nack(first, 0)
    assert own_place.ids() == published
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        old.maintain()
        new.maintain()
    assert sorted(ids(own_place.take(new, 2))) == sorted([published[0], published[3]])


def test_many_schedules_are_named_in_as_many_round_trips_as_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = place.broker()
    schedules = {ScheduleKey(f"{place.topic}-{number % 7}", f"s{number}"): "every 1 s" for number in range(200)}
    first = dict([next(iter(schedules.items()))])
    broker.join_schedules("shop", first, is_start=True)  # the server knows the script by now
    sent: list[int] = []
    send = Link.send
    monkeypatch.setattr(Link, "send", lambda link, commands: sent.append(len(commands)) or send(link, commands))
    broker.join_schedules("shop", first)
    for_one = len(sent)
    last_ticks = broker.join_schedules("shop", schedules)
    assert len(sent) == 2 * for_one
    assert set(last_ticks) == set(schedules)
    assert {one.key for one in broker.schedules()} == set(schedules)
