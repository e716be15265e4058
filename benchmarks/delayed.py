"""How late delayed messages are on an idle system, what being idle costs, and a burst of them.

    python -m benchmarks.delayed [--count 300] [--burst 100000]

One worker process of 8 threads with 5 topics, and one redis-server of its own, on the loopback, without persistence.
"""

import argparse
import json
import random
import statistics
from time import monotonic, sleep, time

import redis

from benchmarks.processes import running, wait_for_readers, worker
from pubsub_core import PubSub
from tests.servers import redis_server

TOPIC = "bench.delayed"
WORDS = worker("delayed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--burst", type=int, default=100_000)
    options = parser.parse_args()
    with redis_server() as server:
        _say("delayed, idle: lateness at the handler", lateness(server.url, options.count))
        print(f"idle: {idle(server.url):.2f} commands a second, per process with 5 topics")
        burst(server.url, options.burst)


def lateness(url: str, count: int) -> list[float]:
    """Messages with delays from 50 ms to 1 s, one by one: each is due when everybody sleeps, and many wake earlier."""
    chance = random.Random(7)
    pubsub = PubSub(url)

    with running(url, count, WORDS) as consumer:
        wait_for_readers(url)
        for _ in range(count):
            delay = chance.uniform(0.05, 1.0)
            pubsub.publish(TOPIC, {"due": time() + delay}, delay=delay)
            sleep(chance.uniform(0.0, 0.05))
        found = json.loads(consumer.result())
    pubsub.close()
    return found


def idle(url: str) -> float:
    """Commands that the server sees from a worker with nothing to do."""
    with running(url, 1, WORDS), redis.Redis.from_url(url) as client:
        wait_for_readers(url)
        sleep(3)
        before, began = client.info("stats")["total_commands_processed"], monotonic()
        sleep(30)
        after = client.info("stats")["total_commands_processed"]
        return float(after - before - 1) / (monotonic() - began)


def burst(url: str, count: int) -> None:
    """So many due in the same second: when the last one is handled, and what others' publishes feel of it."""
    pubsub = PubSub(url, publish_timeout=60)
    quiet = publishes(pubsub, 3)
    with running(url, count, WORDS) as consumer:
        wait_for_readers(url)
        due = time() + 5 + count / 5_000
        for start in range(0, count, 5_000):
            with pubsub.batch() as batch:
                for number in range(start, min(count, start + 5_000)):
                    at = due + number / count
                    batch.publish(TOPIC, {"due": at}, delay=max(0.0, at - time()))
        sleep(max(0.0, due - time()))
        busy = publishes(pubsub, 3)
        consumer.result()
        print(f"{count:,} due in the same second: the last was handled {time() - due:.1f} s after it began")
    _say("  publishing meanwhile", busy)
    _say("  publishing, quiet", quiet)
    pubsub.close()


def publishes(pubsub: PubSub, seconds: float) -> list[float]:
    took = []
    end = monotonic() + seconds
    while monotonic() < end:
        began = monotonic()
        pubsub.publish("bench.other", {"a": 1})
        took.append(monotonic() - began)
        sleep(0.002)
    return took


def _say(what: str, seconds: list[float]) -> None:
    cut = statistics.quantiles(seconds, n=100)
    print(
        f"{what}: p50 {cut[49] * 1000:.1f} ms, p99 {cut[98] * 1000:.1f} ms, most {max(seconds) * 1000:.1f} ms "
        f"(n={len(seconds)})"
    )


if __name__ == "__main__":
    main()
