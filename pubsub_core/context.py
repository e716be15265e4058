"""What a handler may ask about the delivery it is working on."""

from contextvars import ContextVar
from typing import Any

from pubsub_core.message import Message

CORRELATION_ID = "correlation-id"
"""The header that messages inherit from the one whose handler published them."""

CURRENT_MESSAGE: ContextVar[Message[Any] | None] = ContextVar("pubsub_current_message", default=None)


def current_message() -> Message[Any]:
    """Return the message that the running handler works on, from anywhere below it.

    Raises LookupError outside of a handler, and in one that takes a batch. Works in `async def` handlers too; a thread
    that the handler starts itself does not see it unless it copies the context (`contextvars.copy_context`).
    """
    message = CURRENT_MESSAGE.get()
    if message is None:
        raise LookupError(
            "current_message() was called outside of a handler, or in one that takes a batch: no one message is at work"
        )
    return message
