"""Topics: named streams of messages of one schema."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pubsub_core.broker import Durability, Start, TopicOptions
from pubsub_core.retry import RetryPolicy

if TYPE_CHECKING:
    from pubsub_core.codec import TypedJson, UntypedJson

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Owner(Protocol):
    """What a topic needs of the `PubSub` that declared it."""

    def publish(
        self,
        topic: "str | Topic[T]",
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        durability: str | None = None,
        id: str | None = None,
    ) -> str:
        """See `PubSub.publish`."""

    def subscribe(
        self,
        topic: "str | Topic[Any]",
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
    ) -> Callable[[F], F]:
        """See `PubSub.subscribe`."""


class Topic(Generic[T]):
    """A named stream of messages of one schema, made by `PubSub.topic`. Immutable; safe to use from any thread.

    `durability` is what its publishes wait for that do not say otherwise; None: what the settings say.
    """

    def __init__(
        self, pubsub: Owner, name: str, schema: Any, options: TopicOptions, durability: Durability | None
    ) -> None:
        from pubsub_core.codec import codec_for  # pydantic, which nothing needs before the first topic

        self._pubsub = pubsub
        self.name = name
        self.schema = schema
        self.stream = options.stream
        self.options = options
        self.durability = durability
        self.codec: UntypedJson | TypedJson[T] = codec_for(schema)

    def __repr__(self) -> str:
        """Name and schema."""
        return f"Topic({self.name!r}, {getattr(self.schema, '__name__', self.schema)!s})"

    def publish(
        self,
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        durability: str | None = None,
        id: str | None = None,
    ) -> str:
        """Publish one message and return its id. See `PubSub.publish`."""
        return self._pubsub.publish(self, payload, key=key, headers=headers, durability=durability, id=id)

    def subscribe(
        self,
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
    ) -> Callable[[F], F]:
        """Return a decorator that makes a function this topic's handler for a group. See `PubSub.subscribe`."""
        return self._pubsub.subscribe(
            self, group=group, retry=retry, timeout=timeout, concurrency=concurrency, start=start
        )
