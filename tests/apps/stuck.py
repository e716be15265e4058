"""An application whose handlers will not stop when their time is over, at the first attempt."""

import os
import re
import time
from typing import Any

from redis import Redis

from pubsub_core import FixedDelay, Message, PubSub
from pubsub_core.worker import timeouts

timeouts.GRACE = 0.3
pubsub = PubSub(group="billing")
os.write(1, b"imported\n")


@pubsub.subscribe("blocks", retry=FixedDelay(0, 3), timeout=0.5)
@pubsub.subscribe("orders", retry=FixedDelay(0, 3), timeout=60)
def work(message: Message[Any]) -> None:
    what, number = message.payload["do"], message.payload["number"]
    line = f"{number} {message.attempt} {os.getpid()}\n"
    os.write(1, f"started {line}".encode())
    if what == "hold":
        with Redis.from_url(pubsub.settings.url, socket_timeout=None) as client:
            assert client.blpop([os.environ["GATE"]], 60)
    elif message.attempt == 1 and what == "block":
        time.sleep(3600)
    elif message.attempt == 1 and what == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    os.write(1, f"done {line}".encode())
