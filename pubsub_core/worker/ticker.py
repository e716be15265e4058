"""Fires the schedules of a worker, on a thread of its own: what takes long there holds up no sign of life."""

import threading

from pubsub_core.errors import BrokerError
from pubsub_core.schedule import Scheduler
from pubsub_core.worker.outage import Outage
from pubsub_core.worker.threads import Died, library_thread

_WHAT = "firing schedules"


class Ticker:
    """Has a scheduler look whenever something is due, and every `look_every` seconds. Every method may be called twice.

    Nothing is fired before `begin`: whoever is to handle it must be there. A look may take as long as publish
    middleware does.
    """

    def __init__(self, scheduler: Scheduler, outage: Outage, look_every: float, died: Died) -> None:
        self._scheduler = scheduler
        self._outage = outage
        self._look_every = look_every
        self._may_fire = threading.Event()
        self._look_now = threading.Event()
        self._is_stopping = threading.Event()
        self.thread = library_thread("pubsub-schedules", self._run, died)

    def begin(self) -> None:
        """Fire what is due from now on."""
        self._may_fire.set()

    def look(self) -> None:
        """Look at once: the clock was moved."""
        self._look_now.set()

    def stop(self) -> None:
        """Ask it to fire nothing more."""
        self._scheduler.stop()
        self._is_stopping.set()
        self._may_fire.set()
        self._look_now.set()

    def join(self, timeout: float) -> None:
        """After `stop`: wait until the thread has ended, for so many seconds at most."""
        if self.thread.ident is not None:
            self.thread.join(timeout)

    def _run(self) -> None:
        self._may_fire.wait()
        while not self._is_stopping.is_set():
            self._look_now.wait(self._look())
            self._look_now.clear()

    def _look(self) -> float:
        """Fire what is due; return the seconds until the next look."""
        try:
            pause = self._scheduler.run_due()
        except BrokerError as error:
            self._outage.begin(_WHAT, error)
            return self._look_every
        self._outage.end(_WHAT)
        return min(self._look_every, pause)
