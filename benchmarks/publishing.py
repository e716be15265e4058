"""Publishing from one thread: one at a time, and in batches. Each function returns messages per second."""

from time import perf_counter

import redis

from benchmarks.payload import DRAIN_TOPIC, PAYLOAD, to_json
from pubsub_core import PubSub


def ours_one_by_one(url: str, count: int) -> float:
    pubsub = PubSub(url)
    topic = pubsub.topic(DRAIN_TOPIC)
    topic.publish(PAYLOAD)
    began = perf_counter()
    for _ in range(count):
        topic.publish(PAYLOAD)
    seconds = perf_counter() - began
    pubsub.close()
    return count / seconds


def plain_one_by_one(url: str, count: int) -> float:
    with redis.Redis.from_url(url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": to_json(PAYLOAD)})
        began = perf_counter()
        for _ in range(count):
            client.xadd(DRAIN_TOPIC, {"payload": to_json(PAYLOAD)})
        return count / (perf_counter() - began)


def ours_in_batches(url: str, count: int, size: int) -> float:
    pubsub = PubSub(url)
    topic = pubsub.topic(DRAIN_TOPIC)
    topic.publish(PAYLOAD)
    began = perf_counter()
    for _ in range(count // size):
        with pubsub.batch() as batch:
            for _ in range(size):
                batch.publish(topic, PAYLOAD)
    seconds = perf_counter() - began
    pubsub.close()
    return count / seconds


def plain_in_batches(url: str, count: int, size: int) -> float:
    with redis.Redis.from_url(url) as client:
        client.xadd(DRAIN_TOPIC, {"payload": to_json(PAYLOAD)})
        began = perf_counter()
        for _ in range(count // size):
            with client.pipeline(transaction=False) as pipeline:
                for _ in range(size):
                    pipeline.xadd(DRAIN_TOPIC, {"payload": to_json(PAYLOAD)})
                pipeline.execute()
        return count / (perf_counter() - began)
