"""An application that publishes at the exit of each process that has loaded it."""

import atexit
import os
from typing import Any

from pubsub_core import Message, PubSub

pubsub = PubSub(group="billing")


def say_farewell() -> None:
    pubsub.publish("farewells", {"pid": os.getpid()})


atexit.register(say_farewell)


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    raise AssertionError


os.write(1, f"joined {os.getpid()}\n".encode())
