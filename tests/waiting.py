"""Waiting for what nobody tells a test."""

import threading
import time
from collections.abc import Callable

WITHIN = 30.0  # seconds


def until(claim: Callable[[], object], what: str = "it is so", *, within: float = WITHIN) -> None:
    """Wait until `claim` holds; fail if it does not within so many seconds."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not claim():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        pause.wait(0.005)
