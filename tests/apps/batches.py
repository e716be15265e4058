"""Handles batches; a message that is to kill its process does so, in the midst of its call."""

import os
import signal
from typing import Any

from pubsub_core import PubSub

pubsub = PubSub(group="batches")


@pubsub.subscribe("orders", batch=10)
def handle(orders: list[dict[str, Any]]) -> None:
    for order in orders:
        if order["kills"]:
            os.write(1, f"died of {order['number']} with {len(orders)}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.write(1, f"batch {' '.join(str(order['number']) for order in orders)}\n".encode())
