"""Handle or publish so many messages in this process: `python -m benchmarks.once WHAT COUNT`, at BENCH_URL.

Prints the seconds of CPU time that this process took for them; when handling, from the first message to the last.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import redis

from benchmarks.models import Order
from benchmarks.payload import DRAIN_TOPIC, GROUP, PAYLOAD, READY
from pubsub_core import PubSub, Worker

STREAM = f"pubsub:{{{DRAIN_TOPIC}}}"
SIZE = 100


class Watch:
    """Counts messages, and notes the CPU time at the first and the last."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._began: float | None = None
        self.took = 0.0
        self.is_done = threading.Event()

    def note(self, number: int = 1) -> None:
        if self._began is None:
            self._began = process_time()
        self._left -= number
        if self._left <= 0 and not self.is_done.is_set():
            self.took = process_time() - self._began
            self.is_done.set()


def drain(count: int, *, threads: int = 1, takes: str = "message") -> float:
    logging.getLogger("pubsub").setLevel(logging.WARNING)
    pubsub = PubSub(os.environ["BENCH_URL"])
    watch = Watch(count)
    note = watch.note

    def handle(message) -> None:
        message.payload  # noqa: B018  # however late it is decoded, it is
        note()

    def handle_order(order: Order) -> None:
        note()

    def handle_batch(payloads: list[Any]) -> None:
        note(len(payloads))

    if takes == "batch":
        pubsub.subscribe(DRAIN_TOPIC, group=GROUP, batch=SIZE)(handle_batch)
    else:
        pubsub.subscribe(DRAIN_TOPIC, group=GROUP)(handle if takes == "message" else handle_order)
    with Worker(pubsub, threads=threads):
        if not watch.is_done.wait(600):
            raise TimeoutError("they were not all handled in 600 s")
    pubsub.close()
    return watch.took


def plain_drain(count: int) -> float:
    with redis.Redis.from_url(os.environ["BENCH_URL"]) as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        watch = Watch(count)
        while not watch.is_done.is_set():
            reply = client.xreadgroup(GROUP, "plain", {STREAM: ">"}, count=100, block=1000)
            # A list of one [stream, entries] in RESP2, a map of them in RESP3.
            for _, found in reply.items() if isinstance(reply, dict) else reply or ():
                entries = found[0] if found and isinstance(found[0], list) else found
                for _, fields in entries:
                    json.loads(fields[b"payload"])
                    watch.note()
                client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
    return watch.took


def publish(count: int, *, size: int | None = None) -> float:
    pubsub = PubSub(os.environ["BENCH_URL"])
    topic, order = pubsub.topic(DRAIN_TOPIC, Order), Order(**PAYLOAD)
    topic.publish(order)
    began = process_time()
    if size is None:
        for _ in range(count):
            topic.publish(order)
    else:
        for _ in range(count // size):
            with pubsub.batch() as batch:
                for _ in range(size):
                    batch.publish(topic, order)
    took = process_time() - began
    pubsub.close()
    return took


def plain_publish(count: int, *, size: int | None = None) -> float:
    with redis.Redis.from_url(os.environ["BENCH_URL"]) as client:
        client.xadd(STREAM, {"payload": READY})
        began = process_time()
        if size is None:
            for _ in range(count):
                client.xadd(STREAM, {"payload": READY})
        else:
            for _ in range(count // size):
                with client.pipeline(transaction=False) as pipeline:
                    for _ in range(size):
                        pipeline.xadd(STREAM, {"payload": READY})
                    pipeline.execute()
        return process_time() - began


Work = Callable[[int], float]

# What is measured, and the same work in plain redis-py.
PLAIN: dict[str, Work] = {
    "plain drain": plain_drain,
    "plain publish": plain_publish,
    "plain publish, batches of 100": partial(plain_publish, size=SIZE),
}
OURS: dict[str, tuple[Work, str]] = {
    "drain untyped": (drain, "plain drain"),
    "drain untyped, 8 threads": (partial(drain, threads=8), "plain drain"),
    "drain pydantic model": (partial(drain, takes="order"), "plain drain"),
    "drain batches of 100": (partial(drain, takes="batch"), "plain drain"),
    "publish typed": (publish, "plain publish"),
    "publish typed, batches of 100": (partial(publish, size=SIZE), "plain publish, batches of 100"),
}

if __name__ == "__main__":
    work = PLAIN[sys.argv[1]] if sys.argv[1] in PLAIN else OURS[sys.argv[1]][0]
    print(work(int(sys.argv[2])))
