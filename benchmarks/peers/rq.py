"""RQ: its worker takes one job at a time, and forks a process for each, which has all imported already."""

import os

from redis import Redis
from rq import Queue, Worker

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["benchmarks.peers.rq"]

queue = Queue("bench", connection=Redis.from_url(os.environ["BENCH_URL"]))


def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    for _ in range(count):
        queue.enqueue("benchmarks.peers.rq.nothing", PAYLOAD, result_ttl=0)


if __name__ == "__main__":
    Worker([queue], connection=queue.connection).work(logging_level="WARNING")
