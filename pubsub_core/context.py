"""What a handler may ask about the delivery it is working on."""

from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pubsub_core.message import Message, message_of

CORRELATION_ID = "correlation-id"
"""The header that messages inherit from the one whose handler published them."""

AT_WORK: ContextVar[Message[Any] | tuple[Message[bytes], Any] | None] = ContextVar("pubsub_at_work", default=None)
"""The message at work, decoded; or, for a handler that wants its payload only, as it came and the decoded payload."""


def message_at_work() -> Message[Any] | None:
    """Return the message that the running handler works on; None outside of one, and in one that takes a batch."""
    at_work = AT_WORK.get()
    if isinstance(at_work, tuple):
        at_work = decoded(*at_work)
        AT_WORK.set(at_work)
    return at_work


def decoded(raw: Message[bytes], payload: Any) -> Message[Any]:
    """Return the message as its handler gets it: decoded, and always with a correlation id."""
    fields = vars(raw).copy()
    headers = raw.headers
    if CORRELATION_ID not in headers:
        fields["headers"] = MappingProxyType(
            {**headers, CORRELATION_ID: raw.id} if headers else {CORRELATION_ID: raw.id}
        )
    fields["payload"] = payload
    return message_of(fields)


def current_message() -> Message[Any]:
    """Return the message that the running handler works on, from anywhere below it.

    Raises LookupError outside of a handler, and in one that takes a batch. Works in `async def` handlers too; a thread
    that the handler starts itself does not see it unless it copies the context (`contextvars.copy_context`).
    """
    message = message_at_work()
    if message is None:
        raise LookupError(
            "current_message() was called outside of a handler, or in one that takes a batch: no one message is at work"
        )
    return message
