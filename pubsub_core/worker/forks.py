"""A process that a handler forks is no worker: it must not settle what it got a copy of, nor handle anything else."""

import logging
import os
import sys
from typing import NoReturn

log = logging.getLogger("pubsub")


def leave_fork(handler: str, error: BaseException | None) -> NoReturn:
    """End this process, whose copy of a handler's call came to its end: returned, or raised `error`."""
    code = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):  # it says itself that it is at its end
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        else:
            log.error(
                "a process that %s forked came back from the handler. It is no worker, so it ends here; the worker "
                "settles the message. Have it end itself: with os._exit(), or as a multiprocessing.Process",
                handler,
                exc_info=error,
            )
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
