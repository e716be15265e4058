"""RQ: its worker takes one job at a time, and starts a process for each."""

import os

from redis import Redis
from rq import Queue

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["rq.cli", "worker", "--url", os.environ["BENCH_URL"], "--quiet", "bench"]

queue = Queue("bench", connection=Redis.from_url(os.environ["BENCH_URL"]))


def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    for _ in range(count):
        queue.enqueue("benchmarks.peers.rq.nothing", PAYLOAD, result_ttl=0)
