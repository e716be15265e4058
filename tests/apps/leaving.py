"""A program that publishes, or works, while its interpreter shuts down, in the way that its argument says.

It writes each id that it published to stdout. For tests/test_embedding.py.
"""

import asyncio
import atexit
import os
import sys
import threading

from pubsub_core import Message, PubSub, Worker

pubsub = PubSub(group="billing")


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def publish(number: int) -> None:
    tell("published", pubsub.publish("orders", {"number": number, "do": "nothing"}))


def publish_for_long() -> None:
    threading.main_thread().join()
    for number in range(200):
        publish(number)


def handle(message: Message) -> None:
    tell("started", message.id, message.attempt)
    threading.main_thread().join()  # until the interpreter shuts down
    pubsub.publish("invoices", message.payload)
    tell("done", message.id, message.attempt)


async def handle_async(message: Message) -> None:
    tell("started", message.id, message.attempt)
    while threading.main_thread().is_alive():
        await asyncio.sleep(0.01)
    pubsub.publish("invoices", message.payload)
    tell("done", message.id, message.attempt)


class Started(threading.Event):
    """Set when so many handlers have begun."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = threading.Semaphore(count - 1)

    def note(self) -> None:
        if not self._left.acquire(blocking=False):
            self.set()


def work(handler: object, *, fails: bool = False) -> None:
    """Leave a worker running when the script ends: two handlers are at it, and more waits."""
    started = Started(2)

    @pubsub.middleware
    def note(delivery: object, call_next: object) -> None:
        started.note()
        call_next(delivery)  # type: ignore[operator]

    pubsub.subscribe("orders")(handler)  # type: ignore[arg-type]
    worker = Worker(pubsub, threads=2)
    worker.start()
    for number in range(10):
        publish(number)
    assert started.wait(20)
    if fails:
        raise ValueError("the script fails")


def work_in_a_fork() -> None:
    """A child that leaves as its parent would must not wait for threads that it does not have."""
    work(handle)
    if os.fork() == 0:
        tell("child")
        sys.exit(0)
    os.wait()


match sys.argv[1]:
    case "atexit":
        publish(0)
        atexit.register(publish, 1)
    case "atexit-first-use":
        atexit.register(publish, 0)
    case "thread":
        threading.Thread(target=publish_for_long).start()
    case "worker":
        work(handle)
    case "async-worker":
        work(handle_async)
    case "failing-script":
        work(handle, fails=True)
    case "fork":
        work_in_a_fork()
