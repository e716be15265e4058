"""Where the CPU time of a message that is drained goes: `python -m benchmarks.parts [--rounds 9] [--count 20000]`.

Each part is run by itself on one thread, for as many messages as a read brings; the least of several rounds. What is
indented is part of what stands above it. Threads and the waking of one another are in none: `python -m benchmarks.cpu`
has all of a process.
"""

import argparse
import gc
import json
import logging
from collections.abc import Callable, Sequence
from time import thread_time
from typing import Any

import pydantic_core
from redis import Redis

from benchmarks.payload import DRAIN_TOPIC, GROUP, PAYLOAD, READY
from benchmarks.surroundings import as_sentence, surroundings
from pubsub_core import Delivery, Message, PubSub, Worker
from pubsub_core.codec import UntypedJson
from pubsub_redis.entry import read_new
from tests.servers import redis_server

AT_ONCE = 160
STREAM = f"pubsub:{{{DRAIN_TOPIC}}}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    with redis_server() as server:
        about = surroundings(server.url)
        found = measured(server.url, options.rounds, options.count)
    print(as_sentence(about))
    for part, microseconds in found.items():
        print(f"{part:62} {microseconds:5.2f} µs")


def measured(url: str, rounds: int, count: int) -> dict[str, float]:
    """Return the microseconds of each part, by its name."""
    logging.getLogger("pubsub").setLevel(logging.WARNING)
    least: dict[str, float] = {}
    for _ in range(rounds):
        for part, seconds in {**_ours(url, count), **_plain(url, count)}.items():
            least[part] = min(seconds / count * 1e6, least.get(part, float("inf")))
    return least


def _ours(url: str, count: int) -> dict[str, float]:
    with Redis.from_url(url) as client:
        client.flushall()
    pubsub = PubSub(url)

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP)
    def handle(message: Message) -> None:
        message.payload  # noqa: B018

    worker = Worker(pubsub, threads=1)
    consumer, executor = worker._consumer, worker._executor
    worker._timeouts._wakes_at = 0.0  # as if its thread looked at them
    key = worker.subscriptions[0].key
    consumer.receive({key: 1}, 0.0)
    with pubsub.batch() as batch:
        for _ in range(count):
            batch.publish(DRAIN_TOPIC, PAYLOAD)
    found = dict.fromkeys(
        ("read, and acknowledge those before", "  of it: make message and delivery", "hand over to a thread",
         "decode, call the handler, settle", "  of it: decode", "  of it: pydantic's parser"), 0.0,
    )  # fmt: skip
    entries = _entries(url, count)
    gc.collect()
    gc.freeze()  # as worker processes do with what is there before the first message
    codec = UntypedJson()
    done: list[Delivery[bytes]] = []
    seen = 0
    while seen < count:
        since = thread_time()
        deliveries: Any = consumer.receive({key: AT_ONCE}, 0.0, done)
        found["read, and acknowledge those before"] += thread_time() - since
        some = entries[seen : seen + len(deliveries)]
        seen += len(deliveries)
        done = list(deliveries)
        found["  of it: make message and delivery"] += _timed(read_new, key, some)
        found["hand over to a thread"] += _timed(_take_turns, worker._handover, deliveries)
        found["decode, call the handler, settle"] += _timed(_each, executor.execute, [[one] for one in done])
        payloads = [one.message.payload for one in done]
        found["  of it: decode"] += _timed(_each, codec.decode, payloads)
        found["  of it: pydantic's parser"] += _timed(_each, pydantic_core.from_json, payloads)
        worker._settler.take()
    gc.unfreeze()
    consumer.ack(done)
    consumer.close()
    pubsub.close()
    return found


def _plain(url: str, count: int) -> dict[str, float]:
    with Redis.from_url(url) as client:
        client.xgroup_create(STREAM, "plain", id="0")
        found = dict.fromkeys(("plain redis-py: read and acknowledge", "plain redis-py: json.loads"), 0.0)
        seen = 0
        while seen < count:
            since = thread_time()
            reply: Any = client.xreadgroup("plain", "plain", {STREAM: ">"}, count=AT_ONCE)
            entries = (reply[STREAM.encode()][0] if isinstance(reply, dict) else reply[0][1]) if reply else []
            client.xack(STREAM, "plain", *(entry_id for entry_id, _ in entries))
            found["plain redis-py: read and acknowledge"] += thread_time() - since
            found["plain redis-py: json.loads"] += _timed(_each, json.loads, [READY] * len(entries))
            seen += len(entries)
    return found


def _entries(url: str, count: int) -> list[tuple[bytes, list[bytes]]]:
    """Return the entries as a server sends them, in RESP2."""
    with Redis.from_url(url) as client:
        found: Any = client.xrange(STREAM, count=count)
    return [(entry_id, [part for pair in fields.items() for part in pair]) for entry_id, fields in found]


def _timed(work: Callable[..., object], *arguments: object) -> float:
    since = thread_time()
    work(*arguments)
    return thread_time() - since


def _each(work: Callable[[Any], object], these: Sequence[Any]) -> None:
    for one in these:
        work(one)


def _take_turns(handover: Any, deliveries: Any) -> None:
    reads = iter([deliveries])
    handover._read = lambda _: next(reads, None) or handover.stop()
    handover._is_stopped = False
    taken = handover.next()
    while taken:
        taken = handover.next(taken, 1e-6)


if __name__ == "__main__":
    main()
