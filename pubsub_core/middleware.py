"""Functions around every handler, and around every publish. They are plain functions, also around `async def` handlers.

A handle middleware gets the decoded delivery and `call_next`; the handler runs inside `call_next`. What it raises,
before or after, is settled as if the handler had raised it; if it returns, the message is done, whether it called
`call_next` or not. The one added first is the outermost.

    def log_duration(delivery: Delivery[Any], call_next: HandleNext) -> None:
        started = monotonic()
        try:
            call_next(delivery)
        finally:
            log.info("handled", extra={"topic": delivery.message.topic, "seconds": monotonic() - started})

A publish middleware gets the message with its payload not yet encoded, and `call_next`, to which it may pass a copy
with another payload, key or headers (`dataclasses.replace`). What it raises is raised by `publish`; nothing is sent,
unless `call_next` had returned. If it does not call `call_next`, nothing is sent either.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pubsub_core.callables import is_async, still_to_run
from pubsub_core.errors import ConfigurationError
from pubsub_core.message import Delivery, Message

HandleNext = Callable[[Delivery[Any]], None]
HandleMiddleware = Callable[[Delivery[Any], HandleNext], None]

PublishNext = Callable[[Message[Any]], None]
PublishMiddleware = Callable[[Message[Any], PublishNext], None]

V = TypeVar("V")


def chain(
    middleware: Sequence[Callable[[V, Callable[[V], None]], None]], innermost: Callable[[V], None]
) -> Callable[[V], None]:
    """Return one callable that runs the middleware around `innermost`, the first of them outermost."""
    call = innermost
    for layer in reversed(middleware):
        call = _around(layer, call)
    return call


def _around(layer: Callable[[V, Callable[[V], None]], Any], call_next: Callable[[V], None]) -> Callable[[V], None]:
    def call(value: V) -> None:
        if (returned := layer(value, call_next)) is not None:
            _check_returned(layer, returned)

    return call


def _check_returned(layer: Callable[..., Any], returned: object) -> None:
    what = still_to_run(returned)
    if what is not None:
        raise ConfigurationError(
            f"middleware {getattr(layer, '__qualname__', layer)!s} returned {what}, which nobody runs, so it has done "
            "nothing: make it a plain `def` that does its work itself"
        )


def refuse_async(function: Callable[..., Any], what: str) -> None:
    """Raise ConfigurationError if calling it would only make a coroutine, which nobody awaits."""
    if is_async(function):
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', function)!s} is an `async def`, and cannot be {what}: make it a plain "
            "`def`. It works around `async def` handlers too"
        )
