"""An application whose handlers do what the payload says, and tell it on stdout. For tests/test_supervisor.py."""

import os
from typing import Any

from redis import Redis

from pubsub_core import Message, NoRetry, PubSub, Reject

pubsub = PubSub(group="billing")


def tell(*words: object) -> None:
    """Write a line in one piece: other processes write to the same pipe."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


@pubsub.subscribe("orders", retry=NoRetry(), timeout=90)
def charge(message: Message[Any]) -> None:
    what, number = message.payload["do"], message.payload["number"]
    tell("started", number, message.attempt, os.getpid())
    if what == "fail":
        raise ValueError("the card is declined")
    if what == "reject":
        raise Reject("no such customer")
    if what == "hold" and message.attempt == 1 and (gate := os.environ.get("GATE")):
        with Redis.from_url(pubsub.settings.url, socket_timeout=None) as client:
            assert client.blpop([gate], 60)
    tell("done", number, message.attempt, os.getpid())


@pubsub.subscribe("mails", group="sender")
async def send(message: Message[Any]) -> None:
    tell("sent", message.payload["number"])
