"""The event loop on which a process's `async def` handlers run."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class EventLoop:
    """One loop on one thread. `start`, `stop` and `join` belong to the worker that owns it.

    `cancel_by` is given the way to cancel what runs for the calling thread, and None when that has ended.
    """

    def __init__(self, cancel_by: Callable[[Callable[[], None] | None], None]) -> None:
        self._cancel_by = cancel_by
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself does not keep them from being collected
        self._make()

    def _make(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._loop.run_forever, name="pubsub-event-loop", daemon=True)

    def start(self) -> None:
        """Run the loop."""
        self.thread.start()

    def renew(self) -> None:
        """Run what comes on a new loop: something on this one will not stop, and may hold up all else.

        What runs on the old one goes on there, on a thread that nobody waits for.
        """
        self._make()
        self.start()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a plain function that runs `function` on the loop, in the caller's context, and waits for it."""

        def call(*arguments: Any) -> None:
            loop = self._loop
            context = contextvars.copy_context()
            result: Future[None] = Future()
            tasks: list[asyncio.Task[None]] = []

            async def run() -> None:
                try:
                    await function(*arguments)
                except BaseException as error:  # noqa: BLE001  # carried over to the waiting thread, which decides
                    result.set_exception(error)
                else:
                    result.set_result(None)

            def start() -> None:
                task = loop.create_task(run(), context=context)
                tasks.append(task)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda _: _end(result))

            self._cancel_by(lambda: _cancel(loop, tasks))
            try:
                loop.call_soon_threadsafe(start)
                result.result()
            finally:
                self._cancel_by(None)

        return call

    def stop(self) -> None:
        """Ask the loop to end. What runs on it is left where it is."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        """Wait until it has ended."""
        if self.thread.ident is not None:
            self.thread.join()
        self._loop.close()


def _end(result: Future[None]) -> None:
    """See that nobody waits for a task that was cancelled before its first step: it never gets to say so itself."""
    if not result.done():
        result.set_exception(asyncio.CancelledError())


def _cancel(loop: asyncio.AbstractEventLoop, tasks: list[asyncio.Task[None]]) -> None:
    """Cancel a task from another thread. It was started before: the loop runs its callbacks in order."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
