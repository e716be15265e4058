"""Which message a log record is about. Nothing here is configured by itself, except by `pubsub worker`."""

import logging
from typing import Any

from pubsub_core.context import CORRELATION_ID, CURRENT_MESSAGE

FIELDS = ("topic", "message_id", "group", "attempt", "correlation_id")


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
        message = CURRENT_MESSAGE.get()
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
