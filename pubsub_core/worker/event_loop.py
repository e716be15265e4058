"""The event loop on which a process's `async def` handlers run."""

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from pubsub_core.worker.forks import leave_fork
from pubsub_core.worker.threads import Died, library_thread, start_unless_ending

_CLEANING_UP = 1.0  # seconds
_UNSTARTED = inspect.CORO_CREATED


class EventLoop:
    """One loop on one thread. `start`, `stop` and `join` belong to the worker that owns it.

    `cancel_by` is given the way to cancel what runs for the calling thread, and None when that has ended.
    """

    def __init__(self, cancel_by: Callable[[Callable[[], None] | None], None], died: Died) -> None:
        self._cancel_by = cancel_by
        self._died = died
        self._calls: dict[int, _Call] = {}  # by the thread that waits; a loop does not keep its tasks by itself
        self._blocked: list[asyncio.AbstractEventLoop] = []
        self._loop, self.thread = self._make()

    def _make(self) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        loop = asyncio.new_event_loop()

        def run() -> None:
            try:
                loop.run_forever()
                loop.run_until_complete(_wind_up())
            finally:
                loop.close()  # first, so that each call either is among these or is refused
                for call in list(self._calls.values()):
                    if call.loop is loop:
                        call.end()

        return loop, library_thread("pubsub-event-loop", run, self._died)

    def start(self) -> None:
        """Run the loop."""
        self.thread.start()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a plain function that calls `function`, runs what that returns, if it is awaitable, on the loop, in
        the caller's context, and waits for it.
        """
        name = getattr(function, "__qualname__", repr(function))

        def call(*arguments: Any) -> Any:
            returned = function(*arguments)
            if not inspect.isawaitable(returned):
                return returned
            one = _Call(self._loop, name, returned)
            thread = threading.get_ident()
            self._calls[thread] = one
            self._cancel_by(one.cancel)  # before it starts: an interruption of this thread itself would not stop it
            try:
                one.loop.call_soon_threadsafe(one.start)
                return one.result.result()
            finally:
                self._cancel_by(None)
                del self._calls[thread]

        return call

    def give_up(self, thread: int) -> None:
        """Take note that what runs for a thread will not stop. If it blocks the loop, what comes runs on a new one.

        What else runs on the old one goes on when the loop does, on a thread that nobody waits for.
        """
        call = self._calls.get(thread)
        if call is not None and call.loop is self._loop and call.is_unheard:
            self._blocked.append(self._loop)
            loop, replacement = self._make()
            start_unless_ending(replacement)  # first: who looks whether it is alive must not find it unstarted
            self._loop, self.thread = loop, replacement

    def stop(self) -> None:
        """Ask the loop to end, and those that were blocked. What still runs on them is cancelled, and soon left."""
        for loop in (*self._blocked, self._loop):
            _call_soon(loop, loop.stop)

    def join(self) -> None:
        """Wait until the loop has ended; not for those that were blocked."""
        if self.thread.ident is None:
            self._loop.close()
        else:
            self.thread.join()


async def _wind_up() -> None:
    """Let the tasks that are left, of handlers that were given up or begun by handlers, clean up behind themselves."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLEANING_UP)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    """Have it called on the loop, if that has not ended."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        if not loop.is_closed():
            raise


class _Call:
    """One call of an async handler. `result` is done when it has ended in whatever way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, awaitable: Awaitable[Any]) -> None:
        self.loop = loop
        self._name = name
        self._process = os.getpid()
        self.result: Future[Any] = Future()
        self._awaitable = awaitable
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._is_heard = False

    @property
    def is_unheard(self) -> bool:
        """Whether the loop did not even come to cancel it."""
        return self._is_cancelled and not self._is_heard

    def cancel(self) -> None:
        """Have it cancelled. Safe from any thread, also before it starts."""
        self._is_cancelled = True
        _call_soon(self.loop, self._cancel)

    # On the loop

    def start(self) -> None:
        """Start it."""
        if self._is_heard:
            self.end()
            return
        self._task = self.loop.create_task(self._run(), context=self._context)
        self._task.add_done_callback(lambda _: self.end())

    def _cancel(self) -> None:
        self._is_heard = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            returned = await self._awaitable
        except BaseException as error:  # carried over to the waiting thread, which decides
            if os.getpid() != self._process:
                leave_fork(self._name, error)
            if self.result.done():  # nobody waits since the loop has ended
                raise
            self.result.set_exception(error)
        else:
            if os.getpid() != self._process:
                leave_fork(self._name, None)
            self.result.set_result(returned)

    def end(self) -> None:
        """See that nobody waits any more for what cannot say so itself: it never got to its first or its last step."""
        if not self.result.done():
            self.result.set_exception(asyncio.CancelledError())
            if inspect.iscoroutine(self._awaitable) and inspect.getcoroutinestate(self._awaitable) == _UNSTARTED:
                self._awaitable.close()  # or Python complains that it was never awaited
