"""A supervisor on a system that has no room for another process at first."""

import os
import sys

from pubsub_core import PubSub
from pubsub_core.worker.options import WorkerOptions
from pubsub_core.worker.supervisor import supervise

fork = os.fork
failures = [BlockingIOError(11, "Resource temporarily unavailable")] * 2


def fork_or_fail() -> int:
    if failures:
        raise failures.pop()
    return fork()


def load() -> PubSub:
    pubsub = PubSub(group="billing")
    pubsub.subscribe("orders")(lambda message: None)
    return pubsub


os.fork = fork_or_fail
sys.exit(supervise(load, WorkerOptions(target="forkless", burst=True, log_level="INFO")))
