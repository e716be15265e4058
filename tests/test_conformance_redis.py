"""The Redis backend keeps the contract on Redis, Valkey, a cluster of Redis, and fakeredis."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from pubsub_core.broker import Broker, BrokerOptions
from pubsub_core.testing.conformance import FEATURES, BrokerConformance
from pubsub_redis import RedisBroker, open_redis
from tests.servers import FakedServer, RealServer, cluster_url


class RedisConformance(BrokerConformance):
    heartbeat: ClassVar[float] = 0.15  # a busy machine must manage to call `maintain` within four of them
    url: str

    def make_broker(self, options: BrokerOptions) -> RedisBroker:
        return open_redis(self.url, options)

    def foreign(self, broker: Broker, topic: str, fields: Mapping[str, str]) -> None:
        flat = [part for pair in fields.items() for part in pair]
        self._add(broker, topic, *flat)

    def undecodable(self, broker: Broker, topic: str) -> None:
        self._add(broker, topic, "id", b"\xff", "payload", b"{", "key", "", "headers", b"{", "source", "")

    def _add(self, broker: Broker, topic: str, *fields: str | bytes) -> None:
        assert isinstance(broker, RedisBroker)
        stream = broker.keys(topic).stream
        broker.call(stream, ("XADD", stream, "*", *fields), "adding")


class TestRedis(RedisConformance):
    @pytest.fixture(autouse=True)
    def _server(self, redis: RealServer) -> None:
        self.url = redis.url


class TestValkey(RedisConformance):
    @pytest.fixture(autouse=True)
    def _server(self, valkey: RealServer) -> None:
        self.url = valkey.url


class TestCluster(RedisConformance):
    @pytest.fixture(autouse=True)
    def _servers(self, cluster: list[RealServer]) -> None:
        self.url = cluster_url(cluster)


class TestFakeredis(RedisConformance):
    features: ClassVar[frozenset[str]] = FEATURES - {"fork"}

    @pytest.fixture(autouse=True)
    def _server(self, fakeredis: FakedServer) -> None:
        self.url = fakeredis.url
