"""An application that breaks the worker's library: a handler thread dies at the first message."""

import os
from typing import Any

from pubsub_core import Message, PubSub
from pubsub_core.worker.handover import Handover

pubsub = PubSub(group="billing")


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    os.write(1, f"started {message.payload['number']} {message.attempt} {os.getpid()}\n".encode())
    if message.attempt == 1:
        Handover.next = None  # type: ignore[assignment, method-assign]
