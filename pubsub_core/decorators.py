"""What type checkers know of `@topic.subscribe()`. Nothing here is used when a program runs."""

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, overload

from pubsub_core.message import Message

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Accepts(Protocol[T_contra, P, R_co]):
    """A function of any signature `P` that can be called with one `T_contra`.

    Both at once: the first line is what a worker does with it, the second catches its signature, so that the decorated
    function keeps the names of its parameters.
    """

    @overload
    def __call__(self, taken: T_contra, /) -> R_co: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class HandlerDecorator(Protocol[T_co]):
    """Takes a handler of payloads `T_co`, or of messages with them, plain or async, and returns it as it is."""

    @overload
    def __call__(self, function: Accepts[T_co, P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Accepts[Message[T_co], P, R], /) -> Callable[P, R]: ...


class BatchHandlerDecorator(Protocol[T]):
    """Takes a handler of lists of payloads `T`, or of messages with them, plain or async, and returns it as it is."""

    @overload
    def __call__(self, function: Accepts[list[T], P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Accepts[list[Message[T]], P, R], /) -> Callable[P, R]: ...
