"""An application that cannot be imported while there is trouble: while the file that TROUBLE names exists."""

import os
from pathlib import Path
from typing import Any

from pubsub_core import Message, PubSub

if Path(os.environ["TROUBLE"]).exists():
    raise ConnectionError("no database")

pubsub = PubSub(group="billing")
os.write(1, f"imported {os.getpid()}\n".encode())


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    os.write(1, f"done {message.payload['number']} {message.attempt} {os.getpid()}\n".encode())
