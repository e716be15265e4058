"""What a handler may ask about the delivery it is working on."""

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from pubsub_core.message import Message

CORRELATION_ID = "correlation-id"
"""The header that messages inherit from the one whose handler published them."""


class OnlyCorrelation(Mapping[str, str]):
    """The headers of a message that was published without any: its id is its correlation id. Immutable."""

    __slots__ = ("_id",)

    def __init__(self, message_id: str) -> None:
        self._id = message_id

    def __getitem__(self, name: str) -> str:
        """Return the correlation id."""
        if name != CORRELATION_ID:
            raise KeyError(name)
        return self._id

    def __iter__(self) -> Iterator[str]:
        """Return the one name."""
        return iter((CORRELATION_ID,))

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def __repr__(self) -> str:
        """As a dict."""
        return repr(dict(self))


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
