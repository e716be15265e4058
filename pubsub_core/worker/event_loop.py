"""The event loop on which a process's `async def` handlers run."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any


class EventLoop:
    """One loop on one thread. `start`, `stop` and `join` belong to the worker that owns it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself does not keep them from being collected
        self.thread = threading.Thread(target=self._loop.run_forever, name="pubsub-event-loop", daemon=True)

    def start(self) -> None:
        """Run the loop."""
        self.thread.start()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a plain function that runs `function` on the loop, in the caller's context, and waits for it."""

        def call(*arguments: Any) -> None:
            context = contextvars.copy_context()
            result: Future[None] = Future()

            async def run() -> None:
                try:
                    await function(*arguments)
                except BaseException as error:  # noqa: BLE001  # carried over to the waiting thread, which decides
                    result.set_exception(error)
                else:
                    result.set_result(None)

            self._loop.call_soon_threadsafe(lambda: self._start(run(), context))
            result.result()

        return call

    def _start(self, run: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        task = self._loop.create_task(run, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Ask the loop to end. What runs on it is left where it is."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        """Wait until it has ended."""
        if self.thread.ident is not None:
            self.thread.join()
        self._loop.close()
