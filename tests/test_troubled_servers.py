"""Servers that are there, and cannot serve for a while: each says so in words of its own, here for real.

Workers and publishers wait for the end of it; nothing is lost, nothing comes twice, and the log says it once.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pubsub_core import BrokerUnavailable, Message, PubSub, Worker
from tests.servers import RealServer, redis_server, valkey_server
from tests.waiting import until

WITHIN = 20.0
HEARTBEAT = 0.2
PATIENCE = 3 * HEARTBEAT  # of a publish that is to fail; three of them take longer than a sign of life lasts

NOWHERE = ("127.0.0.1", 1)
ENDLESS = "while true do redis.call('PING') end"


@dataclass
class Place:
    """A server of its own, two workers on it, and what they handled."""

    server: RealServer
    client: Any
    handled: list[tuple[str, int]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def pubsub(self, **settings: Any) -> PubSub:
        return PubSub(self.server.url, group="billing", heartbeat=HEARTBEAT, **settings)

    def handle(self, message: Message[Any]) -> None:
        if message.payload == "hold":
            self.held.set()
            assert self.let_go.wait(WITHIN)
        self.handled.append((message.id, message.attempt))

    def answer(self) -> str:
        """Return what the server says to somebody who wants to write something."""
        with Redis.from_url(self.server.url, retry=Retry(NoBackoff(), 0)) as other:
            try:
                other.set("~probe", 1)
            except RedisError as error:
                return str(error)
        return "OK"


# Each says how it begins and ends.


@contextlib.contextmanager
def busy(place: Place) -> Iterator[None]:
    place.client.config_set("lua-time-limit", 50)
    with Redis.from_url(place.server.url) as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("EVAL", ENDLESS, 0)
        try:
            yield
        finally:
            place.client.script_kill()
            connection.disconnect()


@contextlib.contextmanager
def without_replicas(place: Place) -> Iterator[None]:
    place.client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        place.client.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def demoted(place: Place) -> Iterator[None]:
    """As the old master after a failover. What it has it keeps, as its master is not there to be copied."""
    place.client.replicaof(*NOWHERE)
    try:
        yield
    finally:
        place.client.replicaof("NO", "ONE")


@contextlib.contextmanager
def cut_off_from_its_master(place: Place) -> Iterator[None]:
    place.client.config_set("replica-serve-stale-data", "no")
    place.client.config_set("replica-read-only", "no")  # or writes were refused for that
    place.client.replicaof(*NOWHERE)
    try:
        yield
    finally:
        place.client.replicaof("NO", "ONE")


@contextlib.contextmanager
def crowded(place: Place) -> Iterator[None]:
    place.client.config_set("maxclients", 1)
    place.client.client_kill_filter(skipme=True)
    try:
        yield
    finally:
        place.client.config_set("maxclients", 1000)


@contextlib.contextmanager
def loading(place: Place) -> Iterator[None]:
    """It was killed, and reads what it has from its disk, which takes a while."""
    place.server.kill()
    place.server.start()
    try:
        yield
    finally:
        until(lambda: place.answer() == "OK", "it has loaded")


BREAKS_CONNECTIONS = (crowded, loading)

# What the server says, and redis-py of it. Where it has a script in hand, or its data to load, it is slow to say so,
# and the last attempt to connect may end before it does.
TROUBLES = {
    "BUSY|Timeout": busy,
    "NOREPLICAS|Not enough good replicas": without_replicas,
    "READONLY|read only replica": demoted,
    "MASTERDOWN|Link with MASTER is down": cut_off_from_its_master,
    "max number of clients": crowded,
    "LOADING|loading the dataset|Timeout": loading,
}


@pytest.fixture(params=["redis", "valkey"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    make = redis_server if request.param == "redis" else valkey_server
    # The delay is that of each command read from the disk, in microseconds.
    with make(appendonly="yes", appendfsync="always", auto_aof_rewrite_percentage="0", key_load_delay="100") as server:
        client = Redis.from_url(server.url, retry=Retry(NoBackoff(), 3), single_connection_client=True)
        place = Place(server, client)
        yield place
        client.close()


def outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [one.getMessage() for one in caplog.records]
    return [line.split(",")[0].split(" after")[0] for line in lines if line.startswith("the broker is")]


@pytest.mark.parametrize("says", TROUBLES, ids=lambda says: says.split("|")[0].replace(" ", "-"))
def test_a_server_that_cannot_serve_for_a_while_is_waited_for(
    place: Place, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    if says.startswith("LOADING"):
        with place.client.pipeline(transaction=False) as pipe:
            for _ in range(30_000):
                pipe.rpush("~much", "x")
            pipe.execute()
    newcomer, known = place.pubsub(publish_timeout=PATIENCE), place.pubsub(publish_timeout=PATIENCE)
    patient = place.pubsub(publish_timeout=WITHIN)
    consuming = [place.pubsub(), place.pubsub()]
    for one in consuming:
        one.subscribe("orders")(place.handle)
    published = [patient.publish("orders", "before") for _ in range(20)]
    with (
        Worker(consuming[0], threads=4),
        Worker(consuming[1], threads=4),
        ThreadPoolExecutor(1) as thread,
        contextlib.ExitStack() as whatever_happens,
    ):
        whatever_happens.callback(place.let_go.set)
        published.append(known.publish("orders", "hold"))
        until(lambda: place.held.is_set() and len(place.handled) == 20, "all but what is held are handled")

        with TROUBLES[says](place):
            until(lambda: any(word in place.answer() for word in says.split("|")), f"the server says {says}")
            # Who was connected when all connections were broken cannot know what came through of what he sends next.
            for one in (newcomer, newcomer if TROUBLES[says] in BREAKS_CONNECTIONS else known, newcomer):
                with pytest.raises(BrokerUnavailable, match=says):
                    one.publish("orders", "in vain")
            place.let_go.set()  # its acknowledgement has to wait, too
            until(lambda: len(place.handled) == 21, "what was held is handled")
            until(lambda: "the broker is away" in outages(caplog), "it is told")
            waiting = thread.submit(patient.publish, "orders", "meanwhile")
        published.append(waiting.result(WITHIN))

        published += [patient.publish("orders", "after") for _ in range(20)]
        until(lambda: len(place.handled) >= len(published), "all are handled")
        until(lambda: place.client.xpending("pubsub:{orders}", "billing")["pending"] == 0, "all are settled")
        until(lambda: outages(caplog)[-1] == "the broker is back", "it is told that it is back")
    for pubsub in (newcomer, known, patient, *consuming):
        pubsub.close()

    assert sorted(place.handled) == sorted((one, 1) for one in published), "each once, and none that was refused"
    assert place.client.xlen("pubsub:{orders}") == len(published)
    # Once for each worker; once more if a thread of it learns of its failure when the others are over it already.
    assert 2 <= outages(caplog).count("the broker is away") <= 4
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
