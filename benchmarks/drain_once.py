"""Drain so many messages in this process: `python -m benchmarks.drain_once WHAT COUNT`, at BENCH_URL.

Prints the seconds of CPU time, and of time, that it took from the first message to the last.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from pydantic import BaseModel

from benchmarks.payload import DRAIN_TOPIC, GROUP
from pubsub_core import PubSub, Worker


class Customer(BaseModel):
    id: int
    name: str
    email: str


class Item(BaseModel):
    sku: str
    quantity: int


class Order(BaseModel):
    order_id: int
    customer: Customer
    total: float
    currency: str
    items: list[Item]
    note: str


class Watch:
    """Counts messages, and notes the time of the first and the last."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._is_running = False
        self.is_done = threading.Event()

    def note(self, number: int = 1) -> None:
        if not self._is_running:
            self._is_running = True
            self._began = time.process_time(), time.perf_counter()
        self._left -= number
        if self._left <= 0 and not self.is_done.is_set():
            self.took = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
            self.is_done.set()


def ours(count: int, *, threads: int = 1, **options: object) -> tuple[float, float]:
    logging.getLogger("pubsub").setLevel(logging.WARNING)
    pubsub = PubSub(os.environ["BENCH_URL"])
    watch = Watch(count)
    note = watch.note
    is_typed, size = options.pop("typed", False), options.get("batch")

    def handle(message) -> None:  # the message, as it is
        note()

    def handle_order(order: Order) -> None:
        note()

    def handle_many(payloads: list[Any]) -> None:
        note(len(payloads))

    handler: Callable[..., None] = handle_many if size else handle_order if is_typed else handle
    pubsub.subscribe(DRAIN_TOPIC, group=GROUP, **options)(handler)  # type: ignore[arg-type]
    with Worker(pubsub, threads=threads):
        watch.is_done.wait(600)
    pubsub.close()
    return watch.took


def plain(count: int) -> tuple[float, float]:
    stream = f"pubsub:{{{DRAIN_TOPIC}}}"
    with redis.Redis.from_url(os.environ["BENCH_URL"]) as client:
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        watch = Watch(count)
        while not watch.is_done.is_set():
            for _, entries in client.xreadgroup(GROUP, "plain", {stream: ">"}, count=100, block=1000):
                for _, fields in entries:
                    json.loads(fields[b"payload"])
                    watch.note()
                client.xack(stream, GROUP, *(entry_id for entry_id, _ in entries))
    return watch.took


WHAT: dict[str, Callable[[int], tuple[float, float]]] = {
    "untyped": ours,
    "untyped, 8 threads": lambda count: ours(count, threads=8),
    "pydantic model": lambda count: ours(count, typed=True),
    "untyped, batches of 100": lambda count: ours(count, batch=100),
    "plain redis-py": plain,
}

if __name__ == "__main__":
    print(*WHAT[sys.argv[1]](int(sys.argv[2])))
