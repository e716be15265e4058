"""An application that breaks the worker's library: a handler thread dies at the first message, or at each process's."""

import os
from typing import Any

from pubsub_core import Message, PubSub
from pubsub_core.worker.handover import Handover

pubsub = PubSub(group="billing")
os.write(1, b"imported\n")


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    os.write(1, f"started {message.payload['number']} {message.attempt} {os.getpid()}\n".encode())
    if message.attempt == 1 or "DEAF" in os.environ:
        Handover.next = None  # type: ignore[assignment, method-assign]
