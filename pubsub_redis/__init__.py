"""The Redis backend: Redis ≥ 7.0 and Valkey ≥ 7.2; standalone, unix socket, Sentinel, Cluster, embedded."""

from pubsub_core.backends import masked
from pubsub_core.broker import BrokerOptions
from pubsub_redis.broker import RedisBroker
from pubsub_redis.servers import open_servers


def open_redis(url: str, options: BrokerOptions) -> RedisBroker:
    """Return the broker of a `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://` URL. No I/O.

    Raises ConfigurationError for a URL that cannot work.
    """
    return RedisBroker(open_servers(url, timeout=max(0.5, options.publish_timeout / 2)), options, masked(url))


def open_embedded(url: str, options: BrokerOptions) -> RedisBroker:
    """Return the broker of a `redis+embedded:///path` URL. The server is started at the first use."""
    return open_redis(url, options)


__all__ = ["RedisBroker", "open_embedded", "open_redis"]
