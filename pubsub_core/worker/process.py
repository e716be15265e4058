"""A worker within one process: handler threads, and the threads that serve them."""

import atexit
import logging
import math
import os
import random
import re
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType

from pubsub_core.broker import LEASE
from pubsub_core.clock import MovableClock
from pubsub_core.errors import BrokerError, ConfigurationError, NotPermitted, StreamConflict, WorkerError
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_core.pubsub import PubSub
from pubsub_core.runtime import Runtime
from pubsub_core.schedule import Scheduler
from pubsub_core.settings import Settings, keyword_layer
from pubsub_core.worker.event_loop import EventLoop
from pubsub_core.worker.executor import Executor
from pubsub_core.worker.handover import Credit, Handover
from pubsub_core.worker.outage import Outage
from pubsub_core.worker.settler import Settler
from pubsub_core.worker.threads import library_thread, start_unless_ending
from pubsub_core.worker.ticker import Ticker
from pubsub_core.worker.timeouts import Run, Timeouts

log = logging.getLogger("pubsub")

_WAIT = 5.0  # seconds a read waits for something new; a wake-up ends it at once
_BURST_WAIT = 0.05
_LOOK = 1.0  # seconds between two looks for what is too much in hand
_MAX_PAUSE = 5.0
_LEAVING = 5.0  # seconds at most, of those for a shutdown, that are kept for leaving where settling takes all it gets


@dataclass(frozen=True, slots=True)
class Progress:
    """How a worker is getting on. `read_age` is the seconds since a read succeeded, None before the first.

    `is_cut_off` says that something it wants of the broker fails. `running` is how many handlers are at work, `free`
    how many threads have nothing to do: while there are any, one of them reads.
    """

    read_age: float | None
    is_cut_off: bool
    running: int
    free: int
    in_hand: Mapping[SubscriptionKey, int]


class Worker:
    """Handles the subscriptions of a `PubSub` on threads of this process.

        with Worker(pubsub, threads=4):
            ...

    Leaving the block finishes what runs, for `PUBSUB_SHUTDOWN_TIMEOUT` seconds at most, and hands back the rest; so
    does the end of the interpreter. The command `pubsub worker` runs one in each of its processes. Not to be started
    before a fork.
    """

    def __init__(self, pubsub: PubSub, *, threads: int | None = None, burst: bool = False) -> None:
        if not isinstance(pubsub, PubSub):
            raise ConfigurationError(
                f"a Worker takes the PubSub whose handlers it runs, and this is a {type(pubsub).__name__}: "
                "pubsub = PubSub(url), then Worker(pubsub)"
            )
        self.subscriptions = pubsub.subscriptions()
        if not (self.subscriptions or pubsub.schedules):
            raise ConfigurationError("there is nothing to do: no handler is subscribed. Use @pubsub.subscribe(...)")
        self.settings = pubsub.settings
        count = (
            self.settings.threads if threads is None else Settings.parse(keyword_layer({"threads": threads})).threads
        )
        self._is_burst = burst
        broker, clock = pubsub.runtime.broker, pubsub.runtime.clock
        self._consumer = broker.consumer([one.membership for one in self.subscriptions], consumer_name())
        self._look_now = threading.Event()  # for the maintenance
        self._outage = Outage()
        scheduler = Scheduler(
            pubsub.schedules,
            broker,
            self.settings.group,
            pubsub.scheduled_message,
            lease_of(pubsub.runtime),
            note_fired=lambda message: pubsub.metrics.published([message], [message.id]),
            at_once=_LOOK,
        )
        look_every = min(_LOOK, self.settings.heartbeat)
        self._ticker = Ticker(scheduler, self._outage, look_every, self._died)
        if isinstance(clock, MovableClock):
            clock.on_move(self._look_now.set)
            clock.on_move(self._ticker.look)
        self._settler = Settler(self._consumer, self._outage, self._died)
        is_async = any(one.handler.is_async for one in self.subscriptions)
        self._timeouts = Timeouts(self._give_up, self._died)
        self._loop = EventLoop(self._timeouts.cancel_by, self._died) if is_async else None
        self._observer = pubsub.metrics.observer(broker.time, [one.key for one in self.subscriptions])
        self._executor = Executor(
            self.subscriptions,
            pubsub.handle_middleware(),
            self._consumer,
            self._settler,
            loop=self._loop,
            timeouts=self._timeouts,
            max_crashes=self.settings.max_crashes,
            broker_time=broker.time,
            observe=None if self._observer is None else self._observer.note,
        )
        self._handover = Handover(self.subscriptions, count, self._read, self._consumer.wake)
        self._handlers = [self._handler(number) for number in range(1, count + 1)]
        self._given_up = weakref.WeakSet[threading.Thread]()  # they may end before another takes their place
        self._maintenance = library_thread("pubsub-maintenance", self._maintain, self._died)
        self._process = 0
        self._stopping = threading.Event()
        self._is_over = threading.Event()
        self._was_read = False
        self._read_at = 0.0
        self._pause = 0.0
        self.failure: Exception | None = None
        """Why it stopped by itself (a BrokerError), or that one of its threads died (a WorkerError)."""
        self.on_death: Callable[[], None] = lambda: None
        """Called on a thread that dies, after `failure` is set. To be set before `start`; must not block or raise."""
        self.abandoned = 0
        """How many handler threads were given up, and replaced, as a handler would not stop after its timeout."""

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self._consumer.name

    def _handler(self, number: int) -> threading.Thread:
        return library_thread(f"pubsub-handler-{number}", self._handle, self._died)

    def start(self) -> None:
        """Start all threads. Returns at once; whether the broker is there shows later. Raises WorkerError if it was
        started or stopped before.
        """
        if self._process or self.is_stopping:
            raise WorkerError(
                "this worker was started or stopped before, and runs once: make a new one, Worker(pubsub)"
            )
        self._process = os.getpid()
        atexit.register(self._end_with_the_interpreter)
        if self._loop is not None:
            self._loop.start()
        for thread in self._needed():
            thread.start()

    @property
    def has_read(self) -> bool:
        """Whether it has read, so that it can work as it is configured."""
        return self._was_read

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop, or stopped by itself: a burst is over, or it failed."""
        return self._stopping.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether every thread that it needs is alive. False for a running worker means that it must be replaced."""
        needed = self._needed() if self._loop is None else [*self._needed(), self._loop.thread]
        return all(thread.is_alive() or thread in self._given_up for thread in needed)

    def _needed(self) -> list[threading.Thread]:
        served_by = (self._settler.thread, self._timeouts.thread, self._maintenance, self._ticker.thread)
        return [*served_by, *self._handlers]

    @property
    def progress(self) -> Progress:
        """How it is getting on."""
        running = len(self._handover.running())
        read_age = monotonic() - self._read_at if self._was_read else None
        return Progress(read_age, self._outage.is_on, running, len(self._handlers) - running, self._handover.in_hand())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is stopping; tell whether it is."""
        return self._stopping.wait(timeout)

    def stop(self) -> None:
        """Ask it to stop reading, and hand back what was not started. Returns at once; idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._ticker.stop()
        self._hand_back_unstarted()
        self._consumer.wake()
        self._look_now.set()

    def join(self, timeout: float | None = None) -> bool:
        """After `stop`: finish what runs, settle, leave. Tell whether all handlers finished within `timeout` seconds.

        The default is `PUBSUB_SHUTDOWN_TIMEOUT`. Deliveries whose handlers are still at it are given to others.
        """
        seconds = self.settings.shutdown_timeout if timeout is None else timeout
        deadline = monotonic() + seconds
        while alive := [thread for thread in self._handlers if thread.is_alive()]:
            if monotonic() >= deadline:
                break
            alive[0].join(min(_LOOK, max(0.0, deadline - monotonic())))  # it may be given up, and replaced, meanwhile
        self._timeouts.stop()
        self._timeouts.join()
        self._hand_back_unstarted()
        running = self._handover.running()
        if running:
            self._settler.do(partial(self._executor.give_up_running, running))
        self._settler.stop(max(deadline - min(_LEAVING, seconds / 5), monotonic() + 1))
        self._settler.join()
        self._is_over.set()
        self._look_now.set()
        if self._maintenance.is_alive():
            self._maintenance.join(max(1.0, deadline - monotonic()))
        else:
            self._leave()
        if self._loop is not None and not running:
            self._loop.stop()
            self._loop.join()
        self._ticker.join(max(0.0, deadline - monotonic()))  # else it is cut short: a tick is fired, or it is not
        atexit.unregister(self._end_with_the_interpreter)
        return not running

    def _hand_back_unstarted(self) -> None:
        """Have the settler do it: where the broker hangs it takes long, and who stops us is not to wait."""
        unstarted = self._handover.stop()
        if unstarted:
            self._settler.do(partial(self._executor.release, unstarted))

    def _leave(self) -> None:
        """Leave the groups, unless a handler still has to do with what came of them."""
        if not any(thread.is_alive() for thread in self._handlers):
            self._consumer.close()

    def _end_with_the_interpreter(self) -> None:
        """Stop, and wait until all is settled: else its threads would be cut off wherever they are."""
        if os.getpid() == self._process:  # a forked child has no such threads
            log.info("stopping: handlers get up to %.0f s to finish", self.settings.shutdown_timeout)
            self.stop()
            self.join()

    def __enter__(self) -> "Worker":
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, and wait until all is settled."""
        self.stop()
        self.join()

    # The threads

    def _handle(self) -> None:
        """Handle deliveries until there are no more to be had."""
        deliveries = self._handover.next()
        while deliveries:
            seconds = self._executor.execute(deliveries)
            if seconds is None:
                self._given_up.add(threading.current_thread())
                return
            deliveries = self._handover.next(deliveries, seconds)
        self._executor.release(self._handover.stop())  # what a read brought while it was stopped

    def _give_up(self, run: Run) -> None:
        """Settle a run that will not stop, and put another thread in the place of its own."""
        self._executor.give_up(run)
        self._handover.finished(run.deliveries, run.subscription.timeout or 0.0)
        if self._loop is not None and run.subscription.handler.is_async:
            self._loop.give_up(run.thread)
        for index, thread in enumerate(self._handlers):
            if thread.ident == run.thread:
                replacement = self._handler(index + 1)
                start_unless_ending(replacement)  # first: see `is_alive`
                self._handlers[index] = replacement
        self.abandoned += 1

    def _died(self, error: BaseException) -> None:
        name = threading.current_thread().name
        log.critical("the thread %s died: this worker has to be replaced", name, exc_info=error)
        if self.failure is None:
            self.failure = WorkerError(f"the thread {name} died: {type(error).__name__}")
            self.failure.__cause__ = error
        self.on_death()

    def _read(self, credit: Credit) -> Sequence[Delivery[bytes]]:
        """Read once, taking finished acknowledgements along. Never raises for what the broker does: it pauses."""
        done = self._settler.take()
        wait = _BURST_WAIT if self._is_burst else _WAIT
        if self._pause or not self._was_read:
            wait = 0.0  # to know soon whether the broker is there, or back
        if self._handover.holds_back:
            wait = 0.0
        try:
            deliveries = self._consumer.receive(credit, wait, done)
        except BrokerError as error:
            self._settler.give_back(done)
            self._note_failed_read(error)
            return ()
        self._read_at = monotonic()
        if not self._was_read:
            self._was_read = True
            self._ticker.begin()  # the groups are there
        self._pause = 0.0
        self._outage.end("reading")
        if self._observer is not None:
            self._observer.ask_for_time()
            self._observer.count()
        if self._stopping.is_set():
            self._executor.release(deliveries)
            self._look_now.set()  # the consumer may have more
            return ()
        if self._is_burst and not deliveries:
            was_asked_for_all = all(count > 0 for count in credit.values())  # what is not asked for does not come
            if was_asked_for_all and self._handover.is_empty:
                self.stop()
        return deliveries

    def _note_failed_read(self, error: BrokerError) -> None:
        if isinstance(error, (NotPermitted, StreamConflict)) and not self._was_read:
            self.failure = error  # nobody mends this by waiting
            self.stop()
            return
        self._outage.begin("reading", error)
        self._pause = min(_MAX_PAUSE, max(0.05, self._pause * 2))
        self._stopping.wait(self._pause * random.uniform(0.5, 1))

    def _maintain(self) -> None:
        """Keep the leases alive, also while the last handlers finish; hand back what turned out to be too much. At the
        end leave: where the broker hangs, that takes longer than others wait for it.
        """
        pause = 0.0
        while not self._is_over.is_set():
            self._look_now.wait(pause)
            self._look_now.clear()
            self._executor.release(self._handover.take_surplus())
            try:
                pause = min(_LOOK, self._consumer.maintain())
            except BrokerError as error:
                self._outage.begin("maintaining", error)
                self._consumer.wake()  # who waits to read may wait on a connection that is as dead
                pause = min(1.0, self.settings.heartbeat)
            else:
                self._outage.end("maintaining")
        self._leave()


def lease_of(runtime: Runtime) -> float:
    """Return for how many seconds who gave a sign of life counts as there: where a test moves time on, for ever."""
    return math.inf if isinstance(runtime.clock, MovableClock) else LEASE * runtime.settings.heartbeat


def consumer_name() -> str:
    """Return a name that no other process has, or will have."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
