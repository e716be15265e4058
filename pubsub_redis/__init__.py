"""The Redis backend: Redis ≥ 7.0 and Valkey ≥ 7.2; standalone, unix socket, Sentinel, Cluster, embedded."""

from pubsub_core.backends import masked
from pubsub_core.broker import BrokerOptions
from pubsub_redis.broker import RedisBroker
from pubsub_redis.servers import open_servers

_PATIENCE = 2.5  # seconds, with the usual settings, that a reply may take


def open_redis(url: str, options: BrokerOptions) -> RedisBroker:
    """Return the broker of a URL of any scheme of ours. No I/O.

    Raises ConfigurationError for a URL that cannot work.
    """
    # Who waits for a dead connection must come back from it before his sign of life has expired.
    patience = min(options.publish_timeout / 2, max(_PATIENCE, options.heartbeat))
    return RedisBroker(open_servers(url, timeout=max(0.5, patience)), options, masked(url))


__all__ = ["RedisBroker", "open_redis"]
