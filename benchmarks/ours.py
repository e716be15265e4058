"""Ours: the applications of `pubsub worker "benchmarks.ours:KIND()"`. Their handlers count, and do nothing else."""

import functools
import json
import os
import threading
from pathlib import Path
from time import perf_counter, sleep, time
from typing import Any

from benchmarks.payload import DRAIN_TOPIC, GROUP, LATENCY_TOPIC
from benchmarks.tally import noting
from pubsub_core import Message, PubSub

EXPECTED = int(os.environ.get("BENCH_EXPECTED", "1"))
DIRECTORY = Path(os.environ.get("BENCH_DIRECTORY", "."))
BATCH = 100
SLOW = 0.05

# Of the mixed topics.
TOPICS, GROUPS, EVERY, SLOW_IN_MIX = 50, 10, 10, 0.01


def _pubsub() -> PubSub:
    return PubSub(os.environ["BENCH_URL"])


note = noting(DIRECTORY, EXPECTED)


def untyped() -> PubSub:
    pubsub = _pubsub()

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP)
    def nothing(message: Message) -> None:
        message.payload  # noqa: B018  # however late it is decoded, it is
        note()

    return pubsub


def batch() -> PubSub:
    pubsub = _pubsub()

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP, batch=BATCH)
    def nothing(payloads: list[Any]) -> None:
        note(len(payloads))

    return pubsub


def typed() -> PubSub:
    from benchmarks.models import Order

    pubsub = _pubsub()

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP)
    def nothing(order: Order) -> None:
        note()

    return pubsub


def in_flask():
    """A Flask app, each of whose handlers runs in an app context of its own."""
    from flask import Flask

    import pubsub_flask
    from benchmarks.models import Order

    app = Flask(__name__)
    pubsub = pubsub_flask.PubSub(app, url=os.environ["BENCH_URL"])

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP)
    def nothing(order: Order) -> None:
        note()

    return app


def slow() -> PubSub:
    pubsub = _pubsub()

    @pubsub.subscribe(DRAIN_TOPIC, group=GROUP)
    def wait(message: Message) -> None:
        sleep(SLOW)
        note()

    return pubsub


def idle() -> PubSub:
    pubsub = _pubsub()
    for number in range(5):
        pubsub.subscribe(f"bench.idle-{number}", group=GROUP)(_nothing)
    return pubsub


def idle_in_flask():
    from flask import Flask

    import pubsub_flask

    app = Flask(__name__)
    pubsub = pubsub_flask.PubSub(app, url=os.environ["BENCH_URL"])
    for number in range(5):
        pubsub.subscribe(f"bench.idle-{number}", group=GROUP)(_nothing)
    return app


def _nothing(message: Message) -> None:
    pass


def latency() -> PubSub:
    """It notes how old each message is."""
    pubsub = _pubsub()
    found: list[float] = []

    @pubsub.subscribe(LATENCY_TOPIC, group=GROUP)
    def take(message: Message) -> None:
        found.append(perf_counter() - message.payload["sent"])
        if len(found) == EXPECTED:
            leave(found)

    return pubsub


def delayed() -> PubSub:
    """It notes how late each message is. Four more topics are idle."""
    pubsub = _pubsub()
    found: list[float] = []

    @pubsub.subscribe("bench.delayed", group=GROUP)
    def take(message: Message) -> None:
        found.append(time() - message.payload["due"])
        if len(found) == EXPECTED:
            leave(found)

    for number in range(4):
        pubsub.subscribe(f"bench.idle-{number}", group=GROUP)(_nothing)
    return pubsub


def mixed() -> PubSub:
    """50 topics with 10 subscriptions each, one of which is slow. It notes when each fast one had its last message."""
    return _many(range(TOPICS), range(GROUPS))


def alone() -> PubSub:
    """One of the fast subscriptions of `mixed`."""
    return _many([0], [1])


def _many(topics, groups) -> PubSub:
    pubsub = _pubsub()
    each = EXPECTED  # messages of each topic
    left = len(topics) * len(groups) * each
    last: dict[str, float] = {}
    lock = threading.Lock()

    def take(name: str, is_slow: bool, message: Message) -> None:
        nonlocal left
        if is_slow:
            sleep(SLOW_IN_MIX)
        with lock:
            if not is_slow:
                last[name] = perf_counter()
            left -= 1
            if left == 0:
                leave(last)

    for topic in topics:
        for group in groups:
            name = f"bench.mix-{topic}"
            is_slow = (topic + group) % EVERY == 0
            pubsub.subscribe(name, group=f"bench-{group}")(functools.partial(take, f"{name} {group}", is_slow))
    return pubsub


def leave(found: object) -> None:
    """Leave a result for whoever measures: whole, or not yet there."""
    written = DIRECTORY / "result.part"
    written.write_text(json.dumps(found))
    written.rename(DIRECTORY / "result")
