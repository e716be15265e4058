"""Consuming, by one process of its own: draining a backlog, and the latency of single messages when idle."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import redis

from benchmarks import publishing
from benchmarks.payload import LATENCY_TOPIC, PAYLOAD, to_json
from pubsub_core import PubSub

WITHIN = 120.0
PAUSE = 0.01
WARM_UP = 20
OURS = ["-m", "benchmarks.worker"]
PLAIN = ["-m", "benchmarks.plain_consumer"]


def ours_drain(url: str, count: int, *, log_level: str) -> float:
    publishing.ours_in_batches(url, count, 500)
    return count / drained(url, count, [*OURS, "benchmarks.ours_drain:pubsub", *_worker(log_level)])


def plain_drain(url: str, count: int) -> float:
    publishing.plain_in_batches(url, count, 500)
    return count / drained(url, count, [*PLAIN, "drain"])


def drained(url: str, count: int, words: Sequence[str]) -> float:
    with _consumer(url, count + 1, words) as result:  # to warm up, publishing sends one more
        return float(result())


def ours_latency(url: str, count: int) -> list[float]:
    pubsub = PubSub(url)
    topic = pubsub.topic(LATENCY_TOPIC)
    words = [*OURS, "benchmarks.ours_latency:pubsub", *_worker("WARNING")]
    latencies = _latencies(url, count, words, topic.publish)
    pubsub.close()
    return latencies


def plain_latency(url: str, count: int) -> list[float]:
    with redis.Redis.from_url(url) as client:
        return _latencies(
            url,
            count,
            [*PLAIN, "latency"],
            lambda payload: client.xadd(LATENCY_TOPIC, {"payload": to_json(payload)}),
        )


def _latencies(url: str, count: int, words: Sequence[str], publish: Callable[[dict[str, Any]], Any]) -> list[float]:
    with _consumer(url, count + WARM_UP, words) as result:
        _wait_for_reader(url)
        for _ in range(count + WARM_UP):
            publish({**PAYLOAD, "sent": perf_counter()})  # one clock for all processes of a Linux machine
            sleep(PAUSE)
        return json.loads(result())[WARM_UP:]


def _worker(log_level: str) -> list[str]:
    return ["--processes", "1", "--threads", "8", "--log-level", log_level]


def _wait_for_reader(url: str) -> None:
    deadline = monotonic() + WITHIN
    with redis.Redis.from_url(url) as client:
        while not client.info("clients")["blocked_clients"]:
            if monotonic() > deadline:
                raise TimeoutError("nobody reads")
            sleep(0.02)


@contextmanager
def _consumer(url: str, count: int, words: Sequence[str]) -> Iterator[Callable[[], str]]:
    """Start a consumer; yield what waits for its result. Afterwards it is gone."""
    with tempfile.TemporaryDirectory(prefix="pubsub-bench-") as directory:
        path, log = Path(directory) / "result", Path(directory) / "log"
        environment = {**os.environ, "BENCH_URL": url, "BENCH_EXPECTED": str(count), "BENCH_RESULT": str(path)}
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, *words], env=environment, stdout=output, stderr=output)

        def result() -> str:
            deadline = monotonic() + WITHIN
            while not (path.exists() and path.read_text()):
                if monotonic() > deadline or process.poll() not in (None, 0):
                    raise TimeoutError(f"no result of {' '.join(words)}:\n{log.read_text(errors='replace')[-3000:]}")
                sleep(0.02)
            sleep(0.05)  # it may still be writing
            return path.read_text()

        try:
            yield result
        finally:
            process.terminate()
            process.wait(30)
