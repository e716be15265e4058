"""FastStream, with a consumer group on a stream. It runs coroutines, on one event loop."""

import asyncio
import contextlib
import os

import redis
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

from benchmarks.ours import note
from benchmarks.payload import DRAIN_TOPIC, GROUP, PAYLOAD

WORKER = ["faststream", "run", "benchmarks.peers.faststream:app", "--log-level", "warning"]

broker = RedisBroker(os.environ["BENCH_URL"])
app = FastStream(broker)


@broker.subscriber(stream=StreamSub(DRAIN_TOPIC, group=GROUP, consumer="one", max_records=100))
async def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    # Its subscriber would make the group behind what is there already.
    with redis.Redis.from_url(os.environ["BENCH_URL"]) as client, contextlib.suppress(redis.ResponseError):
        client.xgroup_create(DRAIN_TOPIC, GROUP, "0", mkstream=True)
    asyncio.run(_publish(count))


async def _publish(count: int) -> None:
    async with broker:
        for _ in range(count):
            await broker.publish(PAYLOAD, stream=DRAIN_TOPIC)
