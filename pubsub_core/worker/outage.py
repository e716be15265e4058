"""Says once that the broker is away, and once that it is back."""

import logging
import threading
from time import monotonic

from pubsub_core.errors import BrokerError

log = logging.getLogger("pubsub")


class Outage:
    """Shared by all threads of a process that talk to the broker.

    It lasts for as long as anything they do fails: a full broker may refuse retries while it is read without trouble.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._since = 0.0

    @property
    def is_on(self) -> bool:
        """Whether anything fails."""
        return bool(self._failing)

    def begin(self, what: str, error: BrokerError) -> None:
        """Note that `what` failed; log it if that is news."""
        with self._lock:
            is_news = not self._failing
            self._failing.add(what)
            if is_news:
                self._since = monotonic()
        if is_news:
            log.warning("the broker is away, trying until it is back: %s", error)

    def end(self, what: str) -> None:
        """Note that `what` succeeded; log it if nothing fails any more."""
        if what not in self._failing:
            return
        with self._lock:
            is_over = self._failing == {what}
            self._failing.discard(what)
        if is_over:
            log.warning("the broker is back after %.1f s", monotonic() - self._since)
