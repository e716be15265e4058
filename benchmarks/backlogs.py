"""Fills topics fast: the server itself copies an entry, so that a million messages take seconds."""

import redis

from benchmarks.payload import DRAIN_TOPIC, PAYLOAD, READY
from pubsub_core import PubSub

CHUNK = 10_000

# KEYS[1] a stream with one entry; ARGV[1] the number of the first copy, ARGV[2] of the last.
# Where the first field is an id of ours, each copy has one of its own.
COPY = """
local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][2]
local prefix = entry[1] == 'id' and string.sub(entry[2], 1, 24)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  if prefix then entry[2] = string.format('%s%012d', prefix, number) end
  redis.call('XADD', KEYS[1], '*', unpack(entry))
end
"""


def fill(url: str, count: int) -> None:
    """Put so many messages into the topic that is drained, as `publish` writes them."""
    pubsub = PubSub(url)
    pubsub.publish(DRAIN_TOPIC, PAYLOAD)
    pubsub.close()
    _copy(url, f"pubsub:{{{DRAIN_TOPIC}}}", count)


def fill_plain(url: str, count: int) -> None:
    """Put so many entries of one field into the stream that plain redis-py drains."""
    with redis.Redis.from_url(url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": READY})
    _copy(url, DRAIN_TOPIC, count)


def _copy(url: str, stream: str, count: int) -> None:
    with redis.Redis.from_url(url, socket_timeout=60) as client:
        copy = client.register_script(COPY)
        for first in range(2, count + 1, CHUNK):
            copy(keys=[stream], args=[first, min(count, first + CHUNK - 1)])
        if (found := client.xlen(stream)) != count:
            raise RuntimeError(f"{stream} has {found:,} entries instead of {count:,}")
