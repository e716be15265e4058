"""The Redis backend: Redis ≥ 7.0 and Valkey ≥ 7.2; standalone, unix socket, Sentinel, Cluster, embedded."""

from pubsub_core.backends import masked
from pubsub_core.broker import BrokerOptions
from pubsub_redis.broker import RedisBroker
from pubsub_redis.servers import open_servers

_PATIENCE = 2.5  # seconds, with the usual settings, that a reply may take
_LEAST_PATIENCE = 0.75  # which is too much for heartbeats of less than 0.5 s; they are for tests


def open_redis(url: str, options: BrokerOptions) -> RedisBroker:
    """Return the broker of a URL of any scheme of ours. No I/O.

    Raises ConfigurationError for a URL that cannot work.
    """
    # Who waits for a dead connection must come back from it, and try again, before his sign of life has expired: that
    # was given up to a heartbeat ago, and there is up to another between the two tries.
    heartbeat = options.heartbeat
    patience = min(options.publish_timeout / 2, max(_PATIENCE, heartbeat), 1.5 * heartbeat)
    return RedisBroker(open_servers(url, timeout=max(_LEAST_PATIENCE, patience)), options, masked(url))


__all__ = ["RedisBroker", "open_redis"]
