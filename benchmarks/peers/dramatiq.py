"""dramatiq, with its Redis broker."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["dramatiq", "benchmarks.peers.dramatiq", "--processes", "1", "--threads", "8"]

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_URL"]))


@dramatiq.actor
def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    for _ in range(count):
        nothing.send(PAYLOAD)
