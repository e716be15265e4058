"""The threads that a worker cannot do without."""

import threading
from collections.abc import Callable

Died = Callable[[BaseException], None]


def library_thread(name: str, run: Callable[[], None], died: Died) -> threading.Thread:
    """Return a thread, not started, that calls `died` if it ends by an exception: nobody else would notice."""

    def run_or_tell() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001  # the worker logs it, and shows it
            died(error)

    return threading.Thread(target=run_or_tell, name=name, daemon=True)


def start_unless_ending(thread: threading.Thread) -> None:
    """Start it, unless the interpreter is ending, which allows no new threads since Python 3.12.

    A worker is drained by then, so what the thread was to do will not come any more.
    """
    try:
        thread.start()
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
