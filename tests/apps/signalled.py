"""A supervisor that is told to stop while it forks: the new process gets its SIGTERM before it can handle one."""

import os
import signal
import sys

from pubsub_core import PubSub
from pubsub_core.worker.options import WorkerOptions
from pubsub_core.worker.supervisor import supervise

supervisor = os.getpid()


def stop_both() -> None:
    os.kill(supervisor, signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def load() -> PubSub:
    pubsub = PubSub(group="billing")
    pubsub.subscribe("orders")(lambda message: None)
    return pubsub


os.register_at_fork(after_in_child=stop_both)
sys.exit(supervise(load, WorkerOptions(target="signalled")))
