"""taskiq, with streams of Redis and no results. It runs coroutines, on one event loop."""

import asyncio
import os

from taskiq_redis import RedisStreamBroker

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["taskiq", "worker", "benchmarks.peers.taskiq:broker", "--workers", "1", "--log-level", "WARNING"]

broker = RedisStreamBroker(os.environ["BENCH_URL"])


@broker.task
async def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    asyncio.run(_publish(count))


async def _publish(count: int) -> None:
    await broker.startup()
    for _ in range(count):
        await nothing.kiq(PAYLOAD)
    await broker.shutdown()
