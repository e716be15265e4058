"""Topics: named streams of messages of one schema."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from pubsub_core.broker import USUAL, Durability, Overflow, Start, TopicOptions
from pubsub_core.decorators import BatchHandlerDecorator, HandlerDecorator
from pubsub_core.errors import ConfigurationError
from pubsub_core.names import did_you_mean
from pubsub_core.retry import RetryPolicy
from pubsub_core.schedule import Missed
from pubsub_core.subscription import Expired, is_of, where
from pubsub_core.terms import Dedup
from pubsub_core.versions import Upcast, Versions

if TYPE_CHECKING:
    from pubsub_core.codec import TypedJson, UntypedJson

T = TypeVar("T")
U = TypeVar("U", bound=Callable[[Any], Any])


class Owner(Protocol):
    """What a topic needs of the `PubSub` that declared it."""

    def publish(
        self,
        topic: "str | Topic[T]",
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        expires: float | timedelta | None = None,
        dedup: Dedup | None = None,
        durability: str | None = None,
        id: str | None = None,
    ) -> str:
        """See `PubSub.publish`."""

    def schedule(
        self,
        topic: "str | Topic[T]",
        when: str | float | timedelta,
        payload: T,
        *,
        tz: str = "UTC",
        missed: Missed = "once",
        name: str | None = None,
    ) -> None:
        """See `PubSub.schedule`."""

    def cancel(self, topic: "str | Topic[Any]", id: str) -> bool:
        """See `PubSub.cancel`."""

    @overload
    def subscribe(
        self,
        topic: "Topic[T]",
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: None = None,
    ) -> HandlerDecorator[T]: ...
    @overload
    def subscribe(
        self,
        topic: "Topic[T]",
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: int,
    ) -> BatchHandlerDecorator[T]: ...


class Topic(Generic[T]):
    """A named stream of messages of one schema, made by `PubSub.topic`. Immutable; safe to use from any thread.

    `version` is the one of the schema that is published. `durability` is what its publishes wait for that do not say
    otherwise; None: what the settings say.
    """

    def __init__(
        self,
        pubsub: Owner,
        name: str,
        schema: Any,
        options: TopicOptions,
        durability: Durability | None,
        *,
        version: int = 1,
    ) -> None:
        from pubsub_core.codec import codec_for  # pydantic, which nothing needs before the first topic

        self._pubsub = pubsub
        self.name = name
        self.schema = schema
        self.stream = options.stream
        self.options = options
        self.durability = durability
        self.version = version
        self.versions = Versions(name, version)
        self.codec: UntypedJson | TypedJson[T] = codec_for(schema)

    def __repr__(self) -> str:
        """Name, schema, and the version if it is not the first."""
        version = f", version={self.version}" if self.version > 1 else ""
        return f"Topic({self.name!r}, {getattr(self.schema, '__name__', self.schema)!s}{version})"

    def publish(
        self,
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        expires: float | timedelta | None = None,
        dedup: Dedup | None = None,
        durability: str | None = None,
        id: str | None = None,
    ) -> str:
        """Publish one message and return its id. See `PubSub.publish`."""
        return self._pubsub.publish(
            self,
            payload,
            key=key,
            headers=headers,
            delay=delay,
            at=at,
            expires=expires,
            dedup=dedup,
            durability=durability,
            id=id,
        )

    def cancel(self, id: str) -> bool:
        """Cancel a message that is not due yet; tell whether there was one. See `PubSub.cancel`."""
        return self._pubsub.cancel(self, id)

    def schedule(
        self,
        when: str | float | timedelta,
        payload: T,
        *,
        tz: str = "UTC",
        missed: Missed = "once",
        name: str | None = None,
    ) -> None:
        """Have `payload` published at each tick. See `PubSub.schedule`."""
        self._pubsub.schedule(self, when, payload, tz=tz, missed=missed, name=name)

    @overload
    def subscribe(
        self,
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: None = None,
    ) -> HandlerDecorator[T]: ...
    @overload
    def subscribe(
        self,
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: int,
    ) -> BatchHandlerDecorator[T]: ...
    def subscribe(self, **options: Any) -> Any:
        """Return a decorator that makes a function this topic's handler for a group. See `PubSub.subscribe`."""
        return self._pubsub.subscribe(self, **options)

    def upcast(self, *, from_version: int) -> Callable[[U], U]:
        """Return a decorator for a function that brings a payload of `from_version` to the next version.

        It takes the payload as plain JSON data (of a model: a dict), and returns it changed, or a new one; it may hold
        whatever can be published. A message of an earlier version passes through these functions, one after the other,
        and is then validated. If one raises, the message becomes a dead letter at once. Each earlier version needs one
        when a worker starts. Raises ConfigurationError if there is one already, or the version is not an earlier one.
        """

        def decorate(function: U) -> U:
            name = getattr(function, "__qualname__", type(function).__qualname__)
            self.versions.add(Upcast(from_version, function, name.replace("<locals>.", ""), where(function)))
            return function

        return decorate


def topic_options(
    topic: str,
    stream: str | None,
    retention: float | None,
    max_backlog: int | None,
    overflow: Overflow,
    *,
    is_new: bool,
) -> TopicOptions:
    """Return what was said of a topic. Raises ConfigurationError for what cannot be."""
    if retention is not None and not (is_of(retention, int | float) and 0 < retention < math.inf):
        raise ConfigurationError(f"topic {topic!r} has retention={retention!r}: it is a number of seconds, more than 0")
    if max_backlog is not None and not (is_of(max_backlog, int) and max_backlog >= 1):
        raise ConfigurationError(f"topic {topic!r} has max_backlog={max_backlog!r}: it is a whole number, 1 or more")
    if overflow not in _OVERFLOWS:
        raise ConfigurationError(
            f"topic {topic!r} has overflow={overflow!r}.{did_you_mean(str(overflow), _OVERFLOWS)} "
            "It is 'reject' or 'drop_oldest'"
        )
    if is_new and overflow != "reject" and max_backlog is None:
        raise ConfigurationError(f"topic {topic!r} has overflow={overflow!r}, and no max_backlog= that may overflow")
    return TopicOptions(stream, retention, max_backlog, overflow)


_OVERFLOWS = ("reject", "drop_oldest")


def contradicts(new: TopicOptions, known: TopicOptions) -> bool:
    """Whether something is said of a topic anew, and otherwise."""
    says_overflow = new.max_backlog is not None or new.overflow != USUAL.overflow
    return (
        (new.stream is not None and new.stream != known.stream)
        or (new.retention is not None and new.retention != known.retention)
        or (new.max_backlog is not None and new.max_backlog != known.max_backlog)
        or (says_overflow and new.overflow != known.overflow)
    )


def options_shown(topic: Topic[Any]) -> str:
    """Return what was declared of a topic besides its name and schema."""
    options = topic.options
    said: dict[str, Any] = {"retention": options.retention, "durability": topic.durability}
    if options.max_backlog is not None:
        said |= {"max_backlog": options.max_backlog, "overflow": options.overflow}
    shown = ", ".join(f"{name}={value!r}" for name, value in said.items() if value is not None)
    return f"{f' on stream {topic.stream!r}' if topic.stream else ''}{f' with {shown}' if shown else ''}"
