"""The memory backend in one process: publish so many, then handle them on one thread."""

import logging
import threading
from time import perf_counter

from benchmarks.ours import EXPECTED, leave
from benchmarks.payload import DRAIN_TOPIC, GROUP, PAYLOAD
from pubsub_core import Message, PubSub, Worker


def main() -> None:
    logging.getLogger("pubsub").setLevel(logging.WARNING)
    pubsub = PubSub("memory://", group=GROUP)
    topic = pubsub.topic(DRAIN_TOPIC)
    handled, is_done = 0, threading.Event()

    @topic.subscribe()
    def count(message: Message) -> None:
        nonlocal handled
        message.payload  # noqa: B018  # however late it is decoded, it is
        handled += 1
        if handled == EXPECTED:
            is_done.set()

    topic.publish(PAYLOAD)  # makes what is made once
    began = perf_counter()
    for _ in range(EXPECTED - 1):
        topic.publish(PAYLOAD)
    with Worker(pubsub, threads=1):
        if not is_done.wait(300):
            raise TimeoutError(f"{handled} of {EXPECTED} were handled")
        seconds = perf_counter() - began
    leave(seconds)


if __name__ == "__main__":
    main()
