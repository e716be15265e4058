"""Handlers that run longer than they may."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pubsub_core import DeadLetterReason, FixedDelay, HandlerTimeout, Message, NoRetry, PubSub, Worker, current_message
from pubsub_core.worker import timeouts
from pubsub_core.worker.event_loop import EventLoop
from pubsub_core.worker.timeouts import Run
from tests.servers import RealServer
from tests.waiting import until

WITHIN = 15.0
SHORT = 0.7  # seconds: long enough for a handler to begin, and a quick one to end, while the machine is busy


@dataclass
class Place:
    """A PubSub with one topic, and what its handlers noted."""

    pubsub: PubSub
    notes: list[Any] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, what: Any) -> None:
        with self.changed:
            self.notes.append(what)
            self.changed.notify_all()

    def until(self, claim: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(claim, WITHIN), self.notes

    def letters(self) -> list[DeadLetterReason]:
        return [letter.reason for letter in self.pubsub.dead_letters("orders")]

    def until_letters(self, count: int) -> list[DeadLetterReason]:
        """Wait until there are so many dead letters."""
        until(lambda: len(self.letters()) >= count)
        return self.letters()


@pytest.fixture(params=["memory", "redis"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(timeouts, "GRACE", 0.3)
    url = f"memory://{uuid.uuid4().hex}"
    if request.param == "redis":
        server: RealServer = request.getfixturevalue("redis")
        url = server.url
    pubsub = PubSub(url, group="billing", namespace=f"test-{uuid.uuid4().hex}")
    yield Place(pubsub)
    pubsub.close()


def test_a_handler_that_takes_too_long_is_interrupted_and_retried(place: Place) -> None:
    @place.pubsub.subscribe("orders", timeout=SHORT, retry=FixedDelay(0, 1))
    def spin(message: Message) -> None:
        try:
            while message.attempt == 1:
                sum(range(100))
        except HandlerTimeout:
            place.note("interrupted")
            raise
        place.note(("done", message.attempt))

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        place.until(lambda: len(place.notes) == 2)
    assert place.notes == ["interrupted", ("done", 2)]


def test_a_dead_letter_of_a_timeout_says_which_and_where(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def dawdle(message: Message) -> None:
        while True:
            time.sleep(0.001)

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        (reason,) = place.until_letters(1)
    assert (reason.kind, reason.error) == ("retries exhausted", "HandlerTimeout")
    assert "dawdle ran longer than its timeout of 0.7 s" in reason.detail
    assert ", in dawdle" in reason.traceback  # on either of its lines
    assert [record.levelno for record in caplog.records if record.levelno >= logging.ERROR] == [logging.ERROR]


def test_an_async_handler_is_cancelled(place: Place) -> None:
    @place.pubsub.subscribe("orders", timeout=SHORT, retry=FixedDelay(0, 1))
    async def wait(message: Message) -> None:
        try:
            if message.attempt == 1:
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            place.note("cancelled")
            raise
        place.note(("done", message.attempt))

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        place.until(lambda: len(place.notes) == 2)
    assert place.notes == ["cancelled", ("done", 2)]


@pytest.mark.parametrize("kind", ["sleep", "stubborn", "async"])
def test_a_handler_that_will_not_stop_is_given_up(place: Place, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its delivery is retried, its thread replaced, and what it does later counts for nothing."""
    free, go_on = threading.Event(), threading.Event()

    def block(message: Message) -> None:
        place.note(("start", message.attempt))
        while not go_on.is_set() and message.attempt == 1:
            try:
                go_on.wait(3600 if kind != "stubborn" else 0.01)
            except HandlerTimeout:
                continue
        place.note(("end", message.attempt))
        free.set()

    if kind == "async":

        async def handler(message: Message) -> None:
            block(message)

    else:

        def handler(message: Message) -> None:  # type: ignore[misc]
            block(message)

    place.pubsub.subscribe("orders", timeout=SHORT, retry=FixedDelay(0, 1))(handler)
    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1) as worker:
        place.until(lambda: ("end", 2) in place.notes)
        assert worker.abandoned == 1
        assert worker.is_alive
        place.pubsub.publish("orders", 2)
        place.until(lambda: place.notes.count(("start", 1)) == 2)
        go_on.set()
        place.until(lambda: place.notes.count(("end", 1)) == 2)
    assert free.is_set()
    assert not place.letters()
    assert place.notes.count(("start", 2)) in (1, 2)
    with Worker(place.pubsub, threads=1, burst=True) as worker:
        assert worker.wait(WITHIN)
    assert sum(what == "start" for what, _ in place.notes) == sum(what == "end" for what, _ in place.notes)


def test_a_handler_that_catches_its_timeout_and_returns_has_failed(place: Place) -> None:
    """It was cut short: an `except Exception` that only logs must not lose the message."""

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def swallow(message: Message) -> None:
        try:
            while True:
                time.sleep(0.001)
        except Exception:
            return

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        (reason,) = place.until_letters(1)
    assert reason.error == "HandlerTimeout"


def test_a_timeout_hits_nothing_but_its_own_handler(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that end just when their time does: each is done or retried, and none disturbs the next."""
    monkeypatch.setattr(timeouts, "GRACE", WITHIN)  # a thread that waits for a busy processor is not to be given up
    wrong: list[str] = []

    @place.pubsub.subscribe("orders", timeout=0.002, retry=FixedDelay(0, 1000))
    def close_call(message: Message) -> None:
        end = time.perf_counter() + 0.0015 + (message.payload % 10) / 10_000
        while time.perf_counter() < end:
            pass
        if current_message().id != message.id:
            wrong.append(message.id)
        place.notes.append(message.payload)  # which no interruption can leave half done

    count = 400
    with place.pubsub.batch() as batch:
        for number in range(count):
            batch.publish("orders", number)
    with Worker(place.pubsub, threads=4) as worker:
        until(lambda: len(set(place.notes)) >= count / 2)
        assert worker.is_alive
        assert worker.abandoned == 0
    assert not wrong
    assert not place.letters()


def test_a_late_result_is_dropped_and_told_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()
    before = set(threading.enumerate())

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def block(message: Message) -> None:
        go_on.wait(WITHIN)

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1) as worker:
        (reason,) = place.until_letters(1)
        assert worker.abandoned == 1
        known = {*before, *worker._handlers}
        (late,) = {one for one in threading.enumerate() if one.name == "pubsub-handler-1"} - known
    assert late.is_alive()  # nobody waited for it
    go_on.set()
    late.join(WITHIN)
    assert (reason.kind, reason.error) == ("retries exhausted", "HandlerTimeout")
    assert "go_on.wait" in reason.traceback
    assert len(place.letters()) == 1
    assert [one.levelname for one in caplog.records if "has ended after all" in one.getMessage()] == ["WARNING"]


def test_one_handler_that_blocks_the_loop_costs_the_others_only_that_loop(place: Place) -> None:
    go_on, is_blocked = threading.Event(), threading.Event()

    @place.pubsub.subscribe("blocks", timeout=SHORT, retry=NoRetry())
    async def block(message: Message) -> None:
        is_blocked.set()
        go_on.wait(WITHIN)

    @place.pubsub.subscribe("orders", timeout=WITHIN)
    async def charge(message: Message) -> None:
        place.note(("start", message.payload))
        while message.payload == "first" and not go_on.is_set():
            await asyncio.sleep(0.01)
        place.note(("end", message.payload))

    with Worker(place.pubsub, threads=3) as worker:
        assert worker._loop is not None
        place.pubsub.publish("orders", "first")
        place.until(lambda: ("start", "first") in place.notes)
        place.pubsub.publish("blocks", 1)
        assert is_blocked.wait(WITHIN)
        place.pubsub.publish("blocks", 2)  # it waits for the same loop in vain
        until(lambda: worker.abandoned >= 1)
        place.pubsub.publish("orders", "second")
        place.until(lambda: ("end", "second") in place.notes)
        assert len(worker._loop._blocked) <= 2  # one for each that blocked a loop, none for those that waited
        assert worker.is_alive
        go_on.set()
        place.until(lambda: ("end", "first") in place.notes)
    assert place.notes.count(("start", "first")) == 1
    until(lambda: "pubsub-event-loop" not in {one.name for one in threading.enumerate()})


@pytest.mark.parametrize("is_async", [False, True])
def test_a_worker_is_alive_while_another_thread_takes_the_place_of_one_that_was_given_up(
    place: Place, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, alive = threading.Event(), []

    def block(message: Message) -> None:
        go_on.wait(WITHIN)

    async def block_the_loop(message: Message) -> None:
        go_on.wait(WITHIN)

    place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())(block_the_loop if is_async else block)
    worker = Worker(place.pubsub, threads=1)
    give_up = worker._executor.give_up

    def give_up_who_has_ended(run: Run) -> None:
        give_up(run)
        if not is_async:
            go_on.set()
            until(lambda: run.thread not in {one.ident for one in threading.enumerate()})
        alive.append(worker.is_alive)

    def start(thread: threading.Thread) -> None:
        alive.append(worker.is_alive)
        thread.start()

    monkeypatch.setattr(worker._executor, "give_up", give_up_who_has_ended)
    monkeypatch.setattr("pubsub_core.worker.process.start_unless_ending", start)
    monkeypatch.setattr("pubsub_core.worker.event_loop.start_unless_ending", start)
    with worker:
        place.pubsub.publish("orders", 1)
        until(lambda: worker.abandoned == 1)
        assert alive == [True] * (3 if is_async else 2)
        assert worker.is_alive
        go_on.set()


def test_a_task_that_will_not_be_cancelled_leaves_its_loop_to_the_others(place: Place) -> None:
    go_on = threading.Event()

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    async def stubborn(message: Message) -> None:
        while not go_on.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1) as worker:
        place.until_letters(1)
        assert worker._loop is not None
        assert worker._loop._blocked == []
        go_on.set()


def test_an_async_handler_that_is_cancelled_before_it_starts_never_does() -> None:
    started = threading.Event()

    async def handler() -> None:
        started.set()

    def cancel_by(cancel: Callable[[], None] | None) -> None:
        if cancel is not None:
            cancel()

    loop = EventLoop(cancel_by, lambda _: None)
    loop.start()
    with pytest.raises(asyncio.CancelledError):
        loop.wrap(handler)()
    loop.stop()
    loop.join()
    assert not started.is_set()


def test_the_loop_ends_with_what_is_left_on_it() -> None:
    begun = threading.Semaphore(0)
    ends: list[str] = []

    async def background() -> None:
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cleaned up")

    async def deaf() -> None:
        background_task = asyncio.create_task(background())
        begun.release()
        while not background_task.done():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    loop = EventLoop(lambda _: None, lambda _: None)
    loop.start()

    def wait_for_it() -> None:
        try:
            loop.wrap(deaf)()
        except asyncio.CancelledError:
            ends.append("the waiting thread was told")

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    assert begun.acquire(timeout=WITHIN)
    assert begun.acquire(timeout=WITHIN)
    loop.stop()
    loop.join()
    thread.join(WITHIN)
    assert ends == ["cleaned up", "the waiting thread was told"]
    gc.collect()  # asyncio logs an error for the deaf task: here, and not in whatever test comes later


def test_the_watch_ends_at_once_though_it_was_woken_for_something_else() -> None:
    watch = timeouts.Timeouts(lambda _: None, lambda _: None)

    class Woken(threading.Event):
        """Stops the watch just before it forgets that it was woken."""

        def clear(self) -> None:
            watch.stop()
            super().clear()

    watch._is_wanted_earlier = Woken()
    watch.start()
    watch._is_wanted_earlier.set()
    watch.thread.join(WITHIN)
    assert not watch.thread.is_alive()


def test_timeouts_are_enforced_while_draining(place: Place) -> None:
    started = threading.Event()

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def dawdle(message: Message) -> None:
        started.set()
        while True:
            time.sleep(0.001)

    place.pubsub.publish("orders", 1)
    worker = Worker(place.pubsub, threads=1)
    worker.start()
    assert started.wait(WITHIN)
    worker.stop()
    assert worker.join(WITHIN)
    assert [reason.error for reason in place.letters()] == ["HandlerTimeout"]


def test_nobody_is_interrupted_in_time(place: Place) -> None:
    @place.pubsub.subscribe("orders", timeout=5)
    def quick(message: Message) -> None:
        place.note(message.payload)

    with Worker(place.pubsub, threads=2):
        for number in range(50):
            place.pubsub.publish("orders", number)
        place.until(lambda: len(place.notes) == 50)
    assert not place.letters()


def test_middleware_sees_the_timeout(place: Place) -> None:
    @place.pubsub.middleware
    def watch(delivery: Any, call_next: Callable[[Any], None]) -> None:
        try:
            call_next(delivery)
        except HandlerTimeout:
            place.note("seen")
            raise

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def dawdle(message: Message) -> None:
        while True:
            time.sleep(0.001)

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        place.until_letters(1)
    assert place.notes == ["seen"]


def test_nobody_is_interrupted_while_he_logs(place: Place) -> None:
    """Its lock would be kept for ever, and everybody's next line would wait for it."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            inside.set()
            end = time.monotonic() + SHORT + 0.1
            while time.monotonic() < end:
                pass
            place.note("logged")

    log = logging.getLogger(f"shop-{uuid.uuid4().hex}")
    log.addHandler(Slow())

    @place.pubsub.subscribe("orders", timeout=SHORT, retry=NoRetry())
    def dawdle(message: Message) -> None:
        log.error("slow")
        while not go_on.is_set():
            time.sleep(0.001)

    place.pubsub.publish("orders", 1)
    with Worker(place.pubsub, threads=1):
        assert inside.wait(WITHIN)
        (reason,) = place.until_letters(1)
    assert place.notes == ["logged"]
    assert reason.error == "HandlerTimeout"
    log.error("nobody holds the lock")


STANDING = """
import faulthandler, gc, threading
from pubsub_core.worker.timeouts import frame_of

class Cycle:
    def __init__(self):
        self.me = self
        self.local = threading.local()
        self.local.me = self

def wait():
    end.wait()

faulthandler.dump_traceback_later(20, exit=True)
end = threading.Event()
threads = [threading.Thread(target=wait) for _ in range(5)]
for thread in threads:
    thread.start()
gc.collect()
gc.disable()
for _ in range(100):
    Cycle()
spare = [{} for _ in range(50)]  # so that the first thing to be allocated is a frame
gc.set_threshold(1)
del spare
gc.enable()
print(frame_of(threads[0].ident).f_code.co_name, gc.isenabled())
end.set()
"""


def test_to_see_where_a_thread_stands_starts_no_garbage_collection():
    """Python 3.11 hangs for good if it does, and the garbage ends a thread's locals."""
    ended = subprocess.run([sys.executable, "-c", STANDING], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout.split() == ["wait", "True"], ended.stderr


TRACED = """
import sys, threading, time
from pubsub_core import NoRetry, PubSub, Worker

pubsub = PubSub("memory://", group="billing")
ended = threading.Event()

@pubsub.subscribe("orders", timeout=0.05, retry=NoRetry())
def handle(message):
    try:
        while True:
            time.sleep(0.001)
    finally:
        ended.set()

def trace(frame, event, _):
    return trace

def call():
    pass

with Worker(pubsub, threads=1):
    pubsub.publish("orders", 1)
    assert ended.wait(20)
    while not pubsub.inspector.groups("orders")[0].dead:
        time.sleep(0.001)
sys.settrace(trace)
for _ in range(100):
    call()
sys.settrace(None)
print("went on")
"""


def test_code_that_is_traced_goes_on_after_a_timeout():
    """As for coverage: Python 3.11 does not, if an exception that was on its way to a thread is taken back."""
    ended = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout.split() == ["went", "on"], ended.stderr
