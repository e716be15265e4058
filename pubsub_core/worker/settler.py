"""Acknowledges what is done, many in one go, and tries again what the broker would not take."""

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from pubsub_core.broker import Consumer
from pubsub_core.errors import BrokerError
from pubsub_core.logs import write_held_lines
from pubsub_core.message import Delivery
from pubsub_core.worker.outage import Outage
from pubsub_core.worker.threads import Died, library_thread

log = logging.getLogger("pubsub")

_GROUP_SECONDS = 0.005
_MAX_PAUSE = 2.0
_WHAT = "settling"


class Settler:
    """Collects acknowledgements. The next read takes them along (`take`); if none comes soon, its thread sends them.

    So nothing that is done stays unacknowledged for longer than about 10 ms, and no acknowledgement costs a round trip
    of its own under load. Every method is safe from any thread.
    """

    def __init__(self, consumer: Consumer, outage: Outage, died: Died) -> None:
        self._consumer = consumer
        self._outage = outage
        self._lock = threading.Lock()
        self._done: deque[Delivery[bytes]] = deque()  # its own methods need no lock
        self._takes = 0
        self._again: list[Callable[[], None]] = []
        self._has_work = threading.Event()
        self._is_stopping = threading.Event()
        self._deadline = math.inf
        self._has_ended = False  # as it should
        self.thread = library_thread("pubsub-settler", self._run, died)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Have them acknowledged soon."""
        self._done.extend(deliveries)
        if not self._has_work.is_set():
            self._has_work.set()

    def take(self) -> list[Delivery[bytes]]:
        """Return what waits to be acknowledged; who takes it sees to it, or gives it back."""
        self._takes += 1
        done = self._done
        taken = []
        with suppress(IndexError):  # another thread may take, too
            for _ in range(len(done)):
                taken.append(done.popleft())  # one that fails half way must keep what it has
        return taken

    def give_back(self, done: list[Delivery[bytes]]) -> None:
        """Take back what could not be acknowledged for certain: repeating it does no harm."""
        if done:
            self._done.extendleft(reversed(done))
            self._has_work.set()

    def try_again(self, settle: Callable[[], None], error: BrokerError) -> None:
        """Have a settlement that the broker did not take tried again, until it does."""
        with self._lock:
            self._again.append(settle)
            self._outage.begin(_WHAT, error)
        self._has_work.set()

    def do(self, settle: Callable[[], None]) -> None:
        """Have a settlement carried out soon, on the settler's thread."""
        with self._lock:
            self._again.append(settle)
        self._has_work.set()

    def stop(self, deadline: float) -> None:
        """Settle what is left, until `deadline` (of time.monotonic) at the latest, and end the thread."""
        self._deadline = deadline
        self._is_stopping.set()
        self._has_work.set()

    def join(self) -> None:
        """Wait until the thread has ended. If it died, what it left is settled here, once."""
        if self.thread.ident is not None:
            self.thread.join()
        if not self._has_ended:
            self._flush()

    def _run(self) -> None:
        pause = _GROUP_SECONDS
        while True:
            self._has_work.wait()
            takes = self._takes
            self._is_stopping.wait(pause)
            write_held_lines()
            if takes != self._takes and not (self._again or self._is_stopping.is_set()):
                continue  # the reads take them along: what waits now is younger than that
            self._has_work.clear()
            pause = _GROUP_SECONDS if self._flush() else min(_MAX_PAUSE, max(0.05, pause * 2)) * random.uniform(0.5, 1)
            if self._is_stopping.is_set():
                with self._lock:
                    left = len(self._done) + len(self._again)
                if left and monotonic() >= self._deadline:
                    log.warning("%d deliveries could not be settled in time: they will be delivered again", left)
                    left = 0
                if not left:
                    self._has_ended = True
                    return
                threading.Event().wait(min(pause, 0.2))

    def _flush(self) -> bool:
        """Settle what waits; tell whether the broker took it all."""
        done = self.take()
        if done:
            try:
                self._consumer.ack(done)
            except BrokerError as error:
                self._outage.begin(_WHAT, error)
                self.give_back(done)
                return False
            except BaseException:
                self.give_back(done)  # this thread ends; `join` settles them
                raise
        with self._lock:
            again, self._again = self._again, []
        for number, settle in enumerate(again):
            if monotonic() >= self._deadline:  # where the broker hangs, each of them takes long
                with self._lock:
                    self._again += again[number:]
                break
            settle()  # it comes back to `try_again` if the broker still does not take it
        if self._again:
            self._has_work.set()
            return False
        with self._lock:
            if not (self._done or self._again):
                self._outage.end(_WHAT)
        return True
