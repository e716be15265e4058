"""Huey, with its worker threads and without results."""

import os

from huey import RedisHuey

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["huey.bin.huey_consumer", "benchmarks.peers.huey.huey", "-w", "8", "-k", "thread", "-q"]

huey = RedisHuey("bench", url=os.environ["BENCH_URL"], results=False)


@huey.task()
def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    for _ in range(count):
        nothing(PAYLOAD)
