"""Log lines with their context, as text or JSON. Nothing here happens at import: whoever wants it adds it.

    handler = logging.StreamHandler()
    handler.addFilter(ContextFilter())
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)

That is what `pubsub worker --log-format json` does.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pubsub_core.context import CORRELATION_ID, message_at_work

LogFormat = Literal["text", "json"]

FIELDS = ("topic", "message_id", "group", "attempt", "correlation_id")

_TEXT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_LIBRARY = "pubsub"


class ContextFilter(logging.Filter):
    """Gives each record the fields of the message at work where it was logged; it keeps back none.

        handler = logging.StreamHandler()
        handler.addFilter(ContextFilter())  # on a handler: on a logger it would miss the records of those below it

    The fields are `topic`, `message_id`, `group`, `attempt` and `correlation_id`. What a record has already, as by
    `extra=`, stays. Outside of a handler they are what `outside` says.
    """

    def __init__(self, outside: Any = None) -> None:
        super().__init__()
        self._outside = outside

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields."""
        message = message_at_work()
        if message is None:
            for name in FIELDS:
                vars(record).setdefault(name, self._outside)
            return True
        headers = message.headers
        values = (
            message.topic, message.id, message.group, message.attempt, headers.get(CORRELATION_ID, message.id)
        )  # fmt: skip
        for name, value in zip(FIELDS, values, strict=True):
            vars(record).setdefault(name, value)
        return True


class WorkerFormatter(logging.Formatter):
    """Shows which message a handler was at work on when it logged. Our own records say so themselves."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # as logging calls it
        """Return the line, without the traceback that may follow it."""
        line = super().formatMessage(record)
        if record.name == "pubsub" or getattr(record, "message_id", None) is None:
            return line
        facts = vars(record)
        return f"{line} [{facts.get('topic')} {facts['message_id']} attempt {facts.get('attempt')}]"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, process, the record's own fields, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A value that JSON cannot say is shown as its `str`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        own = {name: value for name, value in vars(record).items() if name not in _USUAL and name not in line}
        line |= {name: value for name, value in own.items() if value is not None or name not in FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            text = json.dumps(line, ensure_ascii=False, allow_nan=False, default=str)
        except (TypeError, ValueError):  # a key that is no text, a number that is none, or what contains itself
            text = json.dumps({name: str(value) for name, value in line.items()}, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes every line at once; but those of handled messages, of which there may be thousands a second, together.

    For each write, and for the lock of a handler, a thread lets go of Python's lock, and waits for it again. They are
    written by `flush`, before any other line, or when there are many. Safe to use from any thread.
    """

    _MANY = 500

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._held: deque[str] = deque()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._held.clear)  # they are its parent's

    def handle(self, record: logging.LogRecord) -> Any:
        """Write the record, or hold it for a while, if the filters let it through."""
        is_wanted = self.filter(record)
        if is_wanted:
            if record.name == _LIBRARY and getattr(record, "outcome", None) == "handled":
                self._hold(record)
            else:
                with self._locked():
                    self._write_held()
                    self.emit(record)
        return is_wanted

    def _hold(self, record: logging.LogRecord) -> None:
        try:
            self._held.append(self.format(record))
        except Exception:  # noqa: BLE001  # as every handler does: what cannot be formatted is told of, not raised
            self.handleError(record)
        if len(self._held) >= self._MANY:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        with self._locked():
            self._write_held()
            super().flush()

    def _write_held(self) -> None:
        lines: list[str] = []
        while self._held:  # others add to it without the lock
            lines.append(self._held.popleft() + self.terminator)
        if lines:
            with contextlib.suppress(OSError, ValueError):  # as in logging.shutdown: who reads the log is gone
                self.stream.write("".join(lines))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    @property
    def is_holding(self) -> bool:
        """Whether it holds lines back."""
        return bool(self._held)


def write_held_lines() -> None:
    """Have the lines written that `configure_logging`'s handler holds. To be called soon after messages are handled."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler) and handler.is_holding:
            handler.flush()


class Sampler(logging.Filter):
    """Lets through the lines of at most `most` handled messages a second, and says how many it left out.

    Only lines that tell of a handled message are left out: failures, retries and dead letters never are. Safe to use
    from any thread.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._passed = 0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is written; add to it what was left out since the last one."""
        if getattr(record, "outcome", None) != "handled":
            return True
        with self._lock:
            now = self._clock()
            if now - self._since >= 1.0:
                self._since, self._passed = now, 0
            if self._passed >= self._most:
                self._left_out += 1
                return False
            self._passed += 1
            left_out, self._left_out = self._left_out, 0
        if left_out:
            record.msg = f"{record.msg} [and {left_out} more, not logged]"
            record.left_out = left_out
        return True

    def close(self) -> int:
        """Return how many lines were left out and not told of yet."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return left_out


def configure_logging(level: str | None, form: LogFormat = "text", sample: int | None = None) -> None:
    """Log to stderr, unless the application has configured logging; None leaves all as it is.

    `sample` is set on the library's logger in any case.
    """
    library = logging.getLogger(_LIBRARY)
    if sample is not None and not any(isinstance(one, Sampler) for one in library.filters):
        library.addFilter(Sampler(sample))
    root = logging.getLogger()
    if level is None or root.handlers:
        return
    handler = LineHandler(sys.stderr)
    handler.addFilter(ContextFilter())
    handler.setFormatter(JsonFormatter() if form == "json" else WorkerFormatter(_TEXT, "%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(level.upper())


def tell_left_out() -> None:
    """Log how many lines were left out and not told of yet, if any."""
    library = logging.getLogger(_LIBRARY)
    left_out = sum(one.close() for one in library.filters if isinstance(one, Sampler))
    if left_out:
        library.info("%d more messages were handled, not logged", left_out, extra={"left_out": left_out})
