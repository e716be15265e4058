"""Whether calling a function of the user's does its work, or only makes something that is still to be run."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a call of it runs first: the function of a partial, the `__call__` of an object."""
    while isinstance(function, partial):
        function = function.func
    if not (inspect.isroutine(function) or isinstance(function, type)):
        function = type(function).__call__
    return function


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine. What is under its decorators does not count."""
    return inspect.iscoroutinefunction(called(function))


def is_async_within(function: Callable[..., Any]) -> bool:
    """Whether it is async, or what it wraps: a plain decorator around an `async def` may return its coroutine."""
    layer: Callable[..., Any] | None = function
    while layer is not None:
        if is_async(layer):
            return True
        layer = layer.func if isinstance(layer, partial) else getattr(layer, "__wrapped__", None)
    return False


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a generator."""
    return inspect.isgeneratorfunction(called(function)) or inspect.isasyncgenfunction(called(function))


def still_to_run(returned: object) -> str | None:
    """Return what it is, in words, if a call returned what is still to be run; None if it is a result.

    A coroutine is closed, so that Python does not complain about it too.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        return "a coroutine"
    if inspect.isawaitable(returned):
        return f"an awaitable {type(returned).__name__}"
    return "a generator" if inspect.isgenerator(returned) or inspect.isasyncgen(returned) else None
