"""The sign of life of a consumer, by which others know that its deliveries are its own."""

import contextlib
import json
import math
import os
import socket
import time
from typing import TYPE_CHECKING

from pubsub_core import __version__
from pubsub_core.errors import BrokerFull
from pubsub_redis.keys import worker_key, workers_key

if TYPE_CHECKING:
    from pubsub_redis.broker import RedisBroker

LIST_EVERY = 60.0  # seconds between two times that a consumer puts itself on the list of those that there are


class SignOfLife:
    """Given by whoever reads or maintains, and withdrawn at the end.

    `lapses` is how often none was given for so long that others took this consumer for dead. `doubted_at` is when the
    last one was given that others may not have managed to give in time either: the one before had come half a lease
    earlier, when theirs may have been a heartbeat old already, or the server had lost it.
    """

    def __init__(self, broker: "RedisBroker", name: str) -> None:
        self._broker = broker
        self._name = name
        self._key = worker_key(broker.options.namespace, name)
        self._names = workers_key(broker.options.namespace)
        self._heartbeat = broker.options.heartbeat
        self._lease = broker.options.lease
        self._came_at: float | None = None
        self._listed_at = -math.inf
        self.lapses = 0
        self.doubted_at = -math.inf
        self.was_given = False
        self.given_at = 0.0  # of time.monotonic()
        self.due_at = 0.0

    def was_away(self, lapses: int) -> bool:
        """Whether none was given for so long, since there were so many lapses, that we were taken for dead."""
        return lapses != self.lapses or time.monotonic() - self.given_at > self._lease

    def give_if_due(self) -> None:
        """Give it once in a heartbeat."""
        now = time.monotonic()
        if now >= self.due_at:
            self.give()
            self.due_at = now + self._heartbeat

    def give(self) -> None:
        """Give a sign of life.

        A server without memory refuses a new one, but lets us renew the old. Who has none is safe meanwhile, as taking
        over would need memory, too.
        """
        expiry = int(1000 * self._lease)
        given_at = time.monotonic()
        was_given, since = self.was_given, given_at - self.given_at
        if was_given and since > self._lease:
            self.lapses += 1
        self.was_given = True
        is_there = self._broker.call(self._key, ("PEXPIRE", self._key, expiry), "giving a sign of life")
        if was_given and (since > self._lease / 2 or not is_there):
            self.doubted_at = time.monotonic()
        if not is_there:
            about = json.dumps(
                {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__, "since": self._since()}
            )
            with contextlib.suppress(BrokerFull):
                self._broker.call(self._key, ("SET", self._key, about, "PX", expiry), "giving a sign of life")
            self._listed_at = -math.inf
        self.given_at = given_at
        if given_at - self._listed_at >= LIST_EVERY:
            listing = ("ZADD", self._names, f"{self._broker.time():.3f}", self._name)
            with contextlib.suppress(BrokerFull):
                self._broker.call(self._names, listing, "giving a sign of life")
            self._listed_at = given_at

    def _since(self) -> float:
        """Return when we came, by the server's clock."""
        if self._came_at is None:
            self._came_at = round(self._broker.time(), 3)
        return self._came_at

    def withdraw(self) -> None:
        """Take it back, if one was given."""
        if self.was_given:
            self._broker.call(self._key, ("DEL", self._key), "leaving")
            self._broker.call(self._names, ("ZREM", self._names, self._name), "leaving")
