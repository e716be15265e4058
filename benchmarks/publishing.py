"""Publishing: one at a time, from threads, in batches. Each side returns messages per second.

Ours publishes a pydantic model, which is validated and made JSON each time; redis-py is given the bytes.
"""

import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter

import redis

from benchmarks.models import Order
from benchmarks.payload import DRAIN_TOPIC, PAYLOAD, READY
from benchmarks.rows import REDIS_PY, Bench, Group, Row, at_least
from pubsub_core import PubSub

THREADS = 8


def ours_one_by_one(bench: Bench) -> float:
    pubsub, count = PubSub(bench.url), bench.few(5_000)
    topic, order = pubsub.topic(DRAIN_TOPIC, Order), Order(**PAYLOAD)
    topic.publish(order)
    seconds = timed(lambda: [topic.publish(order) for _ in range(count)])
    pubsub.close()
    return count / seconds


def plain_one_by_one(bench: Bench) -> float:
    count = bench.few(5_000)
    with redis.Redis.from_url(bench.url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": READY})
        return count / timed(lambda: [client.xadd(DRAIN_TOPIC, {"payload": READY}) for _ in range(count)])


def ours_from_threads(bench: Bench) -> float:
    pubsub, each = PubSub(bench.url), bench.few(1_000)
    topic, order = pubsub.topic(DRAIN_TOPIC, Order), Order(**PAYLOAD)
    topic.publish(order)
    rate = from_threads(lambda: [topic.publish(order) for _ in range(each)], each)
    pubsub.close()
    return rate


def plain_from_threads(bench: Bench) -> float:
    each = bench.few(1_000)
    with redis.Redis.from_url(bench.url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": READY})
        return from_threads(lambda: [client.xadd(DRAIN_TOPIC, {"payload": READY}) for _ in range(each)], each)


def ours_in_batches(bench: Bench, size: int) -> float:
    pubsub, batches = PubSub(bench.url), bench.few(50_000, size) // size
    topic, order = pubsub.topic(DRAIN_TOPIC, Order), Order(**PAYLOAD)
    topic.publish(order)

    def publish() -> None:
        for _ in range(batches):
            with pubsub.batch() as batch:
                for _ in range(size):
                    batch.publish(topic, order)

    seconds = timed(publish)
    pubsub.close()
    return batches * size / seconds


def plain_in_batches(bench: Bench, size: int) -> float:
    batches = bench.few(50_000, size) // size
    with redis.Redis.from_url(bench.url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": READY})

        def publish() -> None:
            for _ in range(batches):
                with client.pipeline(transaction=False) as pipeline:
                    for _ in range(size):
                        pipeline.xadd(DRAIN_TOPIC, {"payload": READY})
                    pipeline.execute()

        return batches * size / timed(publish)


def timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def from_threads(work: Callable[[], object], each: int) -> float:
    """Run `work` on each of the threads at once; return how many messages a second that were."""
    together = threading.Barrier(THREADS + 1)
    failed: list[BaseException] = []

    def run() -> None:
        together.wait()
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    together.wait()
    seconds = timed(lambda: [thread.join() for thread in threads])
    if failed:
        raise failed[0]
    return THREADS * each / seconds


def _group(name: str, what: str, ours: Callable[..., float], plain: Callable[..., float], bound: float) -> Group:
    row = Row(name, what, "messages/s", "ours", REDIS_PY, at_least(bound))
    return Group({"ours": ours, REDIS_PY: plain}, [row])


GROUPS = [
    _group("publish-single", "publish one at a time, typed", ours_one_by_one, plain_one_by_one, 1.4),
    _group(
        "publish-threads",
        f"publish one at a time from {THREADS} threads, typed",
        ours_from_threads,
        plain_from_threads,
        3,
    ),
    *(
        _group(
            f"publish-batch-{size}",
            f"publish in batches of {size:,}, typed",
            partial(ours_in_batches, size=size),
            partial(plain_in_batches, size=size),
            1.8,
        )
        for size in (100, 1000)
    ),
]
