"""Celery, with its pool of threads and without results."""

import os

from celery import Celery

from benchmarks.ours import note
from benchmarks.payload import PAYLOAD

WORKER = ["celery", "-A", "benchmarks.peers.celery", "worker", "--pool", "threads", "-c", "8", "-l", "WARNING"]

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.task_ignore_result = True


@app.task(name="nothing")
def nothing(payload: dict) -> None:
    note()


def publish(count: int) -> None:
    for _ in range(count):
        nothing.delay(PAYLOAD)
