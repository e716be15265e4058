"""Says once that the broker is away, and once that it is back."""

import logging
import threading
from time import monotonic

from pubsub_core.errors import BrokerError

log = logging.getLogger("pubsub")


class Outage:
    """Shared by all threads of a process that talk to the broker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def begin(self, error: BrokerError) -> None:
        """Note that the broker failed; log it if that is news."""
        with self._lock:
            is_news = self._since is None
            if is_news:
                self._since = monotonic()
        if is_news:
            log.warning("the broker is away, trying until it is back: %s", error)

    def end(self) -> None:
        """Note that the broker answered; log it if that is news."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            log.warning("the broker is back after %.1f s", monotonic() - since)
