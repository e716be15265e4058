"""An application whose handler does, at each attempt, what the payload says for it. For tests/test_retry.py."""

import os
from datetime import timedelta
from typing import Any

from redis import Redis

from pubsub_core import FixedDelay, Message, PubSub, Retry

pubsub = PubSub(group="billing")


def tell(message: Message[Any], what: str) -> None:
    """Write a line in one piece, with the server's time."""
    with Redis.from_url(pubsub.settings.url) as client:
        seconds, microseconds = client.time()
    line = f"{message.group} {message.payload['number']} {message.attempt} {what} {seconds}.{microseconds:06}\n"
    os.write(1, line.encode())


@pubsub.subscribe("orders", retry=FixedDelay(0.2, max_retries=3))
def charge(message: Message[Any]) -> None:
    steps = message.payload["steps"]
    step = steps[min(message.attempt, len(steps)) - 1]
    tell(message, step)
    if step == "fail":
        raise ValueError("the card is declined")
    if step == "exit":
        os._exit(7)
    if step == "later":
        raise Retry(delay=timedelta(seconds=float(os.environ["LATER"])))


@pubsub.subscribe("orders", group="shipping")
def ship(message: Message[Any]) -> None:
    tell(message, "ship")
