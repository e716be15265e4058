"""An application whose handler forks, as the payload says. What it is told goes to stdout, in one piece each."""

import multiprocessing
import os
import signal
import sys
import time
from typing import Any

from pubsub_core import Message, NoRetry, PubSub

pubsub = PubSub(group="billing")


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


@pubsub.subscribe("orders", retry=NoRetry(), timeout=60)
def charge(message: Message[Any]) -> None:
    do(message.payload["do"])


@pubsub.subscribe("invoices", retry=NoRetry(), timeout=60)
async def write(message: Message[Any]) -> None:
    do(message.payload["do"])


def do(what: str) -> None:
    if what == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            tell(f"pool {pool.map(abs, [-1, -2])}")
        tell("pool left")
    elif what == "terminate":
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join()
        tell(f"terminated {process.exitcode}")
    else:
        child = os.fork()
        if child == 0:
            if what == "raise":
                raise KeyError(what)
            if what == "exit":
                sys.exit(7)
            return
        tell(f"{what} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
    tell(f"done by {os.getpid()}, {signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL}")
