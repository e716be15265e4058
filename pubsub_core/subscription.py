"""The declaration "this handler takes this topic as this group", and what is read off the handler's signature."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pubsub_core.broker import Membership, Start
from pubsub_core.callables import is_async_within, is_generator, still_to_run
from pubsub_core.errors import ConfigurationError, SubscriptionError
from pubsub_core.message import Message, SubscriptionKey
from pubsub_core.names import check_name, module_name
from pubsub_core.retry import RetryPolicy
from pubsub_core.versions import Versions

if TYPE_CHECKING:
    from pubsub_core.codec import TypedJson, UntypedJson


Expired = Literal["dead_letter", "drop"]


MOST_IN_BATCH = 500


class Takes(Enum):
    """What a handler is called with; one that takes a batch, with a list of these."""

    MESSAGE = "message"
    PAYLOAD = "payload"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Handler:
    """The user's function, and how to call it. `where` is its file and line.

    If it `is_async`, it or what it wraps, what it returns is to be awaited on the event loop.
    """

    function: Callable[..., Any]
    takes: Takes
    codec: "UntypedJson | TypedJson[Any]"
    is_async: bool
    name: str
    where: str

    def check_returned(self, returned: object) -> None:
        """Raise SubscriptionError if the function did nothing but return what would do its work.

        To be asked only about what is not None: that is on the path of each message.
        """
        what = still_to_run(returned)
        if what is not None:
            fix = (
                "Remove the yield"
                if what == "a generator"
                else "Await it in an `async def`; if a decorator or a lambda hides that the handler is one, give the "
                "decorator functools.wraps, or subscribe the function itself"
            )
            raise SubscriptionError(
                f"handler {self.name} ({self.where}) returned {what}, which nobody runs, so it has done nothing. {fix}"
            )


@dataclass(frozen=True, slots=True)
class Subscription:
    """One handler on one topic as one group. `group` is None until the default group is known.

    If it `drops_expired`, messages past their `expires_at` are acknowledged unseen; else they become dead letters.
    `versions` are those of the topic's schema. `batch` is how many messages the handler takes at once, in a list; None:
    one, as it is.
    """

    topic: str
    group: str | None
    handler: Handler
    retry: RetryPolicy
    timeout: float | None
    concurrency: int | None
    start: Start
    versions: Versions
    drops_expired: bool = False
    batch: int | None = None

    @property
    def key(self) -> SubscriptionKey:
        """What the broker knows it by. Only for subscriptions whose group is resolved."""
        if self.group is None:
            raise ValueError(f"the group of the subscription of {self.handler.name} is not resolved yet")
        return SubscriptionKey(self.topic, self.group)

    def decode(self, message: Message[bytes]) -> Any:
        """Return the payload as the handler wants it. Raises Undecodable or InvalidPayload."""
        return self.versions.decode(self.handler.codec, message)

    @property
    def membership(self) -> Membership:
        """What a consumer needs to know of it."""
        return Membership(self.key, self.start)


def where(function: Callable[..., Any]) -> str:
    """Return "path/file.py:12" of a function, relative to the working directory where that is shorter."""
    code = getattr(_written(function), "__code__", None)
    if code is None:
        return repr(function)
    path = os.path.relpath(code.co_filename) if os.path.isabs(code.co_filename) else code.co_filename
    return f"{min(path, code.co_filename, key=len)}:{code.co_firstlineno}"


def _written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as it was written, from under its decorators and partials; for an object, its `__call__`."""
    written: Any = inspect.unwrap(function)
    while isinstance(written, partial):
        written = inspect.unwrap(written.func)
    if isinstance(written, type):
        written = written.__init__  # type: ignore[misc]  # it is only looked at
    elif callable(written) and not inspect.isroutine(written):
        written = type(written).__call__
    return written  # type: ignore[no-any-return]  # what is not callable is refused later


def inspect_handler(
    function: Callable[..., Any],
    schema: Any,
    names: Mapping[str, Any],
    *,
    codec: "UntypedJson | TypedJson[Any] | None" = None,
    may_take_nothing: bool = False,
    takes_batch: bool = False,
) -> Handler:
    """Read off how to call `function`: with the message, the payload or (cron handlers) nothing; or a list of these.

    `schema` is the topic's payload type, or None, and `codec` the one for it, if there is one already. `names` are the
    local names at the decoration, for annotations that are text. Raises SubscriptionError, naming file and line, for a
    signature that cannot be called with one argument.
    """
    from pubsub_core.codec import codec_for  # pydantic, which nothing needs before the first handler

    name = _handler_name(function)
    place = where(function)
    if not callable(function):
        raise SubscriptionError(f"a handler must be a function, not {type(function).__name__}: {function!r}")
    if is_generator(function):
        raise SubscriptionError(f"handler {name} ({place}) is a generator: it would never run. Remove the yield")
    parameter = _only_parameter(function, name, place, may_take_nothing=may_take_nothing)
    if parameter is None:
        takes, wanted = Takes.NOTHING, None
    else:
        takes, wanted = _wanted(function, parameter, schema, names, place, takes_batch=takes_batch)
    try:
        own = codec if codec is not None and wanted == schema else codec_for(wanted)
    except ConfigurationError as error:
        raise SubscriptionError(f"handler {name} ({place}): {error}") from None
    return Handler(function, takes, own, is_async_within(function), name, place)


def _handler_name(function: Callable[..., Any]) -> str:
    written = _written(function)
    module = getattr(written, "__module__", None) or type(function).__module__
    names = getattr(written, "__globals__", {})
    if names.get("__name__") == module:
        module = module_name(names)
    return f"{module}.{getattr(written, '__qualname__', type(function).__qualname__)}".replace("<locals>.", "")


def _only_parameter(
    function: Callable[..., Any], name: str, place: str, *, may_take_nothing: bool
) -> inspect.Parameter | None:
    """Return the parameter that a handler is called with.

    How it can be called is for its decorators to say, which may give the function more than they take; what is wanted,
    for the function, whose parameter it is: the one of the same name, or the first.
    """
    try:
        own = [*inspect.signature(function, follow_wrapped=False).parameters.values()]
        written = [*inspect.signature(function).parameters.values()]
    except ValueError:
        raise SubscriptionError(
            f"handler {name} ({place}) has no signature that could be read: call it in a function of your own"
        ) from None
    needed = [one for one in own if one.default is one.empty and one.kind not in _VARIADIC]
    taken = [one for one in own if one.kind in _POSITIONAL]
    wanted = [one for one in written if one.kind in _POSITIONAL]
    if taken and all(one is taken[0] for one in needed):
        return next((one for one in wanted if one.name == taken[0].name), (wanted or taken)[0])
    if not taken and not needed:
        if wanted and any(one.kind is one.VAR_POSITIONAL for one in own):
            return wanted[0]
        if may_take_nothing:
            return None
    what = "one parameter (the payload or the Message)" + (", or none" if may_take_nothing else "")
    signature = ", ".join(str(one) for one in (own if taken or needed else written))
    raise SubscriptionError(f"handler {name} ({place}) takes ({signature}): a handler takes {what}")


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _wanted(
    function: Callable[..., Any],
    parameter: inspect.Parameter,
    schema: Any,
    names: Mapping[str, Any],
    place: str,
    *,
    takes_batch: bool,
) -> tuple[Takes, Any]:
    if parameter.annotation is parameter.empty:
        return Takes.MESSAGE, schema
    only = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    known = getattr(_written(function), "__globals__", {})
    try:
        annotation = get_type_hints(only, known, dict(names), include_extras=True)[parameter.name]
    except (NameError, TypeError) as error:
        raise SubscriptionError(
            f"the annotation {parameter.annotation!r} of handler {_handler_name(function)} ({place}) "
            f"cannot be resolved: {error}. Import the name, or define it before the handler"
        ) from None
    if takes_batch:
        if annotation is list:
            return Takes.PAYLOAD, schema
        if get_origin(annotation) not in (list, Sequence) or len(get_args(annotation)) != 1:
            from pubsub_core.codec import type_name  # pydantic, as above

            raise SubscriptionError(
                f"handler {_handler_name(function)} ({place}) takes {type_name(annotation)}, but with batch= it gets "
                "a list: annotate it as one, such as list[Order] or list[Message[Order]]"
            )
        (annotation,) = get_args(annotation)
        if annotation is Any:
            return Takes.PAYLOAD, schema
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return Takes.MESSAGE, schema
    takes, wanted = Takes.PAYLOAD, annotation
    if get_origin(annotation) is Message:
        takes, (wanted,) = Takes.MESSAGE, get_args(annotation)
    if _has_message(wanted):
        raise SubscriptionError(
            f"handler {_handler_name(function)} ({place}) takes {parameter.annotation!r}, and no payload holds a "
            "Message. Annotate it Message[A], Message[A | B] or Message[A | None], as its payload is; to be given a "
            f"list of messages, {'annotate it list[Message[A]]' if takes_batch else 'give batch='}"
        )
    return takes, schema if takes is Takes.MESSAGE and wanted is Any else wanted


def _has_message(annotation: Any) -> bool:
    """Whether a `Message` stands anywhere in a type."""
    if isinstance(annotation, type) and not get_args(annotation):
        return issubclass(annotation, Message)
    return get_origin(annotation) is Message or any(_has_message(one) for one in get_args(annotation))


def check_options(group: str | None, timeout: float | None, concurrency: int | None, start: Start) -> None:
    """Raise ConfigurationError for a group that has no such name, and SubscriptionError for what else cannot be."""
    if group is not None:
        check_name("group", group)
    if timeout is not None and not (is_of(timeout, int | float) and 0 < timeout < float("inf")):
        raise SubscriptionError(f"timeout={timeout!r}: the timeout is a number of seconds, more than 0")
    if concurrency is not None and not (is_of(concurrency, int) and concurrency >= 1):
        raise SubscriptionError(f"concurrency={concurrency!r}: how many may run at once, 1 or more")
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise SubscriptionError(f"start={start!r} has no time zone: use datetime(..., tzinfo=UTC)")
    elif start not in ("earliest", "latest"):
        raise SubscriptionError(f"start={start!r}: use 'earliest', 'latest' or an aware datetime")


def is_of(value: object, kind: Any) -> bool:
    """Whether it is a number of that kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def second_handler(
    topic: str, group: str | None, new: Handler, other: Handler, *, is_scheduled: bool = False
) -> SubscriptionError:
    """Return the error for a second handler of a topic and group. A schedule has a topic of its own, and may rename."""
    called = "the default group" if group is None else f"group {group!r}"
    fix = (
        f"To have {new.name} ({new.where}) see every message as well, give it a group of its own: "
        "subscribe(..., group='another')"
    )
    return SubscriptionError(
        f"topic {topic!r} has a handler for {called} already: {other.name} ({other.where}). "
        + (_fix_for_second(new, other) or (_renaming(new) if is_scheduled else fix))
    )


def second_schedule(name: str, new: Handler, others: Sequence[Handler]) -> SubscriptionError:
    """Return the error for a second schedule of a name; the others are the handlers of its topic."""
    taken = f"there is a schedule {name!r} already"
    if not others:
        return SubscriptionError(f"{taken}. {_renaming(new)}")
    same = next(filter(None, (_fix_for_second(new, one) for one in others)), None)
    return SubscriptionError(f"{taken}: {others[0].name} ({others[0].where}). {same or _renaming(new)}")


def _renaming(new: Handler) -> str:
    return f"Give {new.name} ({new.where}) another name="


def _fix_for_second(new: Handler, other: Handler) -> str | None:
    """Return the fix for a handler that is there because the function around it was called again."""
    if (new.name, new.where) != (other.name, other.where) or new.function is other.function:
        return None
    return (
        "That is the same one, declared again, as by a create_app() that is called twice: declare it at module level, "
        "or make the PubSub in that function too"
    )
