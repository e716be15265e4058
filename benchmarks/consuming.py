"""Consuming, by processes of their own: draining a backlog, latency when idle, slow handlers, many topics at once."""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter, sleep
from typing import Any

import redis

from benchmarks import backlogs, ours, processes
from benchmarks.payload import DRAIN_TOPIC, LATENCY_TOPIC, PAYLOAD, to_json
from benchmarks.rows import REDIS_PY, Bench, Group, Row, at_least, at_most, no_more_than
from pubsub_core import PubSub

PLAIN = [sys.executable, "-m", "benchmarks.plain_consumer"]
DRAINED, BACKLOG = 50_000, 1_000_000
PAUSE, WARM_UP = 0.01, 20
SLOW_ONES = 200
BURSTS, BURST_EVERY = 40, 0.1


@dataclass(frozen=True)
class Drained:
    """What draining a backlog took: seconds of time, of CPU in the consumers and in the server; and memory, in MB.

    `idle` are the seconds that the CPUs of the machine had nothing to do.
    """

    seconds: float
    consumers_cpu: float
    server_cpu: float
    idle: float
    grown: float


def drained(
    bench: Bench, count: int, words: Sequence[str], *, count_of_processes: int = 1, **environment: str
) -> Drained:
    """Let processes drain so many messages that are there already. They begin at once, when all have started."""
    with processes.running(bench.url, count, words, **environment) as running:
        tally = running.tally()
        tally.wait_for_processes(count_of_processes)
        workers = running.workers()
        lean = sum(processes.rss_megabytes(pid) for pid in workers)
        before = _spent(workers, bench)
        began = tally.go()
        ended = tally.wait_for(count)
        spent = [after - earlier for after, earlier in zip(_spent(workers, bench), before, strict=True)]
        fat = sum(processes.rss_megabytes(pid, peak=True) for pid in workers)
    return Drained(ended - began, *spent, grown=fat - lean)


def _spent(workers: Sequence[int], bench: Bench) -> tuple[float, float, float]:
    return processes.cpu_seconds(*workers), processes.cpu_seconds(bench.server_pid), processes.idle_seconds()


def drain(bench: Bench, kind: str, *, log_level: str = "WARNING") -> float:
    count = bench.few(DRAINED, 500)
    backlogs.fill(bench.url, count)
    return count / drained(bench, count, processes.worker(kind, log_level=log_level)).seconds


def plain_drain(bench: Bench) -> float:
    count = bench.few(DRAINED, 500)
    backlogs.fill_plain(bench.url, count)
    return count / drained(bench, count, [*PLAIN, "drain"]).seconds


def memory_drain(bench: Bench) -> float:
    """Publish on the memory backend, then handle on one thread, in a process of its own: both are in the time."""
    count = bench.few(DRAINED, 500)
    with processes.running(bench.url, count, [sys.executable, "-m", "benchmarks.in_memory"]) as running:
        return count / float(running.result())


def scaled(bench: Bench, count_of_processes: int) -> float:
    count = bench.few(2 * DRAINED, 2_000)
    backlogs.fill(bench.url, count)
    words = processes.worker("untyped", processes=count_of_processes)
    took = drained(bench, count, words, count_of_processes=count_of_processes)
    if count_of_processes == 2:
        bench.remark("drain-2-processes", _bound(took, os.cpu_count() or 1))
    return count / took.seconds


def _bound(took: Drained, cpus: int) -> str:
    """Say what kept 2 processes from being faster, by the CPU time that each used."""
    server, both, idle = (one / took.seconds for one in (took.server_cpu, took.consumers_cpu, took.idle))
    if server > 0.9:
        bound = "the server, which has one thread for commands"
    elif idle > 0.1 * cpus:
        bound = "waiting: for each other, or for their locks"
    elif server + both > 0.9 * (cpus - idle):
        bound = "the CPUs, which server and processes share"
    else:
        bound = "other programs, which had the rest"
    used = f"2 processes used {both:.2f} CPUs together, the server {server:.2f}; {idle:.2f} of {cpus} were idle"
    return f"{used}. Bound by {bound}"


def backlog(bench: Bench, count: int) -> tuple[float, float]:
    """Return the rate, and by how many megabytes the worker grew from the first message on."""
    count = bench.few(count, 1_000)
    backlogs.fill(bench.url, count)
    took = drained(bench, count, processes.worker("untyped"))
    return count / took.seconds, took.grown


# Latency.


def ours_latency(bench: Bench) -> tuple[float, float]:
    pubsub = PubSub(bench.url)
    topic = pubsub.topic(LATENCY_TOPIC)
    found = _latencies(bench, processes.worker("latency"), topic.publish)
    pubsub.close()
    return found


def plain_latency(bench: Bench) -> tuple[float, float]:
    with redis.Redis.from_url(bench.url) as client:
        return _latencies(
            bench, [*PLAIN, "latency"], lambda payload: client.xadd(LATENCY_TOPIC, {"payload": to_json(payload)})
        )


def _latencies(bench: Bench, words: Sequence[str], publish: Callable[[dict[str, Any]], Any]) -> tuple[float, float]:
    count = bench.few(400) + WARM_UP
    with processes.running(bench.url, count, words) as running:
        processes.wait_for_readers(bench.url)
        for _ in range(count):
            publish({**PAYLOAD, "sent": perf_counter()})  # one clock for all processes of a Linux machine
            sleep(PAUSE)
        found = [seconds * 1e6 for seconds in json.loads(running.result())[WARM_UP:]]
    cut = statistics.quantiles(found, n=100)
    return cut[49], cut[98]


# Slow handlers.


def slow_handlers(bench: Bench, count_of_processes: int, threads: int) -> float:
    """Return how long idle workers take for messages that are sent all at once."""
    count = bench.few(SLOW_ONES, 20)
    words = processes.worker("slow", processes=count_of_processes, threads=threads)
    pubsub = PubSub(bench.url)
    with processes.running(bench.url, count, words) as running:
        tally = running.tally()
        tally.go()
        processes.wait_for_readers(bench.url, count_of_processes)
        with pubsub.batch() as batch:
            for _ in range(count):
                batch.publish(DRAIN_TOPIC, PAYLOAD)
            began = perf_counter()
        ended = tally.wait_for(count)
        if count_of_processes > 1:
            shares = " and ".join(str(one) for one in tally.each())
            bench.remark(f"slow-{count_of_processes}-processes", f"shared as {shares} in the last round")
    pubsub.close()
    return ended - began


# Many topics.


def in_mix(bench: Bench, kind: str, topics: int, readers: int) -> float:
    """Publish a message to each topic, again and again; return the rate of the slowest of the fast subscriptions."""
    bursts = max(3, BURSTS // bench.share)
    pubsub = PubSub(bench.url)
    with processes.running(bench.url, bursts, processes.worker(kind)) as running:
        processes.wait_for_readers(bench.url, readers)
        began = perf_counter()
        for burst in range(bursts):
            with pubsub.batch() as batch:
                for topic in range(topics):
                    batch.publish(f"bench.mix-{topic}", PAYLOAD)
            with contextlib.suppress(ValueError):  # it is late
                sleep(began + (burst + 1) * BURST_EVERY - perf_counter())
        last = json.loads(running.result())
    pubsub.close()
    return bursts / (max(last.values()) - began)


MIX = f"slowest fast one of {ours.TOPICS} topics × {ours.GROUPS} subscriptions, one in {ours.EVERY} slow"
SLOW_TEXT = f"{SLOW_ONES} × 50 ms handlers"

GROUPS = [
    Group(
        {
            "untyped": partial(drain, kind="untyped"),
            "typed": partial(drain, kind="typed"),
            "flask": partial(drain, kind="in_flask"),
            "batch": partial(drain, kind="batch"),
            "info": partial(drain, kind="untyped", log_level="INFO"),
            "memory": memory_drain,
            REDIS_PY: plain_drain,
        },
        [
            Row("drain", "drain, 1 process × 8 threads, untyped", "messages/s", "untyped", REDIS_PY, at_least(1.0)),
            Row("drain-typed", "drain, pydantic model", "messages/s", "typed", REDIS_PY, at_least(0.7)),
            Row(
                "drain-flask",
                "drain, pydantic model, a Flask app context per message",
                "messages/s",
                "flask",
                REDIS_PY,
                at_least(0.4),
            ),
            Row("drain-batch", "drain, batch handler of 100, untyped", "messages/s", "batch", REDIS_PY, at_least(1.2)),
            Row("drain-info", "drain, untyped, a log line for each message", "messages/s", "info", REDIS_PY),
            Row(
                "memory-backend",
                "memory backend: publish, then handle on 1 thread",
                "messages/s",
                "memory",
                REDIS_PY,
                at_least(1.3),
            ),
        ],
    ),
    Group(
        {"2 processes": partial(scaled, count_of_processes=2), "1 process": partial(scaled, count_of_processes=1)},
        [
            Row(
                "drain-2-processes",
                "drain, 2 processes beside 1",
                "messages/s",
                "2 processes",
                "1 process",
                at_least(1.7),
            )
        ],
    ),
    Group(
        {
            "mixed": partial(in_mix, kind="mixed", topics=ours.TOPICS, readers=ours.GROUPS),
            "alone": partial(in_mix, kind="alone", topics=1, readers=1),
        },
        [Row("mixed", MIX, "messages/s", "mixed", "alone", at_least(0.8), digits=2)],
    ),
    Group(
        {"ours": ours_latency, REDIS_PY: plain_latency},
        [
            Row("latency-p50", "latency publish → handler, idle, p50", "µs", "ours", REDIS_PY, at_most(1.0)),
            Row("latency-p99", "latency publish → handler, idle, p99", "µs", "ours", REDIS_PY, at_most(1.3), place=1),
        ],
    ),
    Group(
        {
            "1 process": partial(slow_handlers, count_of_processes=1, threads=10),
            "2 processes": partial(slow_handlers, count_of_processes=2, threads=5),
        },
        [
            Row("slow", f"{SLOW_TEXT}, 10 threads", "s", "1 process", target=no_more_than(1.03), digits=3),
            Row(
                "slow-2-processes",
                f"{SLOW_TEXT}, 2 processes × 5 threads",
                "s",
                "2 processes",
                target=no_more_than(1.06),
                digits=3,
            ),
        ],
    ),
    Group(
        {"long": partial(backlog, count=BACKLOG), "short": partial(backlog, count=DRAINED)},
        [
            Row("backlog", f"backlog of {BACKLOG:,}: drain", "messages/s", "long", "short", at_least(0.9)),
            Row(
                "backlog-memory",
                f"backlog of {BACKLOG:,}: growth of the worker",
                "MB",
                "long",
                "short",
                no_more_than(20),
                place=1,
                digits=1,
            ),
        ],
        rounds=3,
    ),
]
