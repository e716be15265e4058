"""Waiting for what nobody tells a test."""

import threading
import time
from collections.abc import Callable

from pubsub_core import PubSub, Worker

WITHIN = 30.0  # seconds


def until(claim: Callable[[], object], what: str = "it is so", *, within: float = WITHIN) -> None:
    """Wait until `claim` holds; fail if it does not within so many seconds."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not claim():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        pause.wait(0.005)


def handle_all(pubsub: PubSub) -> None:
    """Run the real worker until nothing is left to do."""
    with Worker(pubsub, threads=1, burst=True) as worker:
        assert worker.wait(20), "the worker did not come to an end"
    assert worker.failure is None
