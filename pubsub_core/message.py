"""The values that travel: messages and their deliveries."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Source = Literal["publish", "cron", "replay"]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Message(Generic[T_co]):
    """One published fact. Immutable; `Message[bytes]` is on its way, `Message[Order]` is decoded.

    `id` is a time-sortable UUID made by the publisher; it stays the same over delays and retries. An entry that another
    program wrote into the stream has the backend's position as its id. `attempt`, `group` and `position` belong to the
    delivery at hand: `attempt` is 1 at the first, `position` is the backend's own offset (Redis: the entry id). On the
    publishing side they are 1, None and None. From `expires_at` on it is not handled any more, by the broker's clock.
    `scheduled_for` is the tick of the schedule that published it (`source` "cron").
    """

    id: str
    topic: str
    payload: T_co
    published_at: datetime
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    attempt: int = 1
    group: str | None = None
    source: Source = "publish"
    position: str | None = None
    expires_at: datetime | None = None
    scheduled_for: datetime | None = None

    def __repr__(self) -> str:
        """Without payload and headers, which may be secret or huge."""
        return (
            f"Message(id={self.id!r}, topic={self.topic!r}, group={self.group!r}, attempt={self.attempt}, "
            f"source={self.source!r}, position={self.position!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes, and be copied, whole: what makes the headers immutable does neither."""
        return _restored, (type(self), {**vars(self), "headers": dict(self.headers)})


class SubscriptionKey(NamedTuple):
    """What a broker knows a subscription by."""

    topic: str
    group: str


@dataclass(frozen=True)
class Delivery(Generic[T_co]):
    """One hand-over of a message to a consumer. It stays that consumer's until it is settled or its lease ends.

    `crashes` is how many processes died while they had the message in hand for this group.
    """

    message: Message[T_co]
    subscription: SubscriptionKey
    crashes: int = 0


# A frozen dataclass sets its fields one by one, through a call each. Of what is made for every message that comes, all
# are set in one go: a third of the time.
_new = object.__new__
_set_message_fields = vars(Message)["__dict__"].__set__
_set_delivery_fields = vars(Delivery)["__dict__"].__set__


# All fields of a message that is simply published; to be copied, which takes half the time of making them.
PLAIN_FIELDS: dict[str, Any] = vars(Message("", "", None, datetime.fromtimestamp(0, UTC)))


def message_of(fields: dict[str, Any]) -> Message[Any]:
    """Return the message that has these fields: all that a `Message` has, by name. For code on the path of each one."""
    message: Message[Any] = _new(Message)
    _set_message_fields(message, fields)
    return message


def _restored(kind: type[Message[Any]], fields: dict[str, Any]) -> Message[Any]:
    message = _new(kind)
    _set_message_fields(message, {**fields, "headers": MappingProxyType(fields["headers"])})
    return message


def delivery_of(message: Message[T], subscription: SubscriptionKey, crashes: int = 0) -> Delivery[T]:
    """Return a delivery, as `Delivery(...)` does."""
    delivery: Delivery[T] = _new(Delivery)
    _set_delivery_fields(delivery, {"message": message, "subscription": subscription, "crashes": crashes})
    return delivery


def first_deliveries_of(messages: Iterable[dict[str, Any]], subscription: SubscriptionKey) -> list[Delivery[Any]]:
    """Return the deliveries of messages that have these fields, each as `delivery_of(message_of(fields), ...)` does."""
    deliveries: list[Delivery[Any]] = []
    for fields in messages:
        message: Message[Any] = _new(Message)
        _set_message_fields(message, fields)
        delivery: Delivery[Any] = _new(Delivery)
        _set_delivery_fields(delivery, {"message": message, "subscription": subscription, "crashes": 0})
        deliveries.append(delivery)
    return deliveries


DeadLetterKind = Literal[
    "retries exhausted",
    "rejected",
    "undecodable",
    "invalid payload",
    "crashed",
    "expired",
    "unknown handler",
]


@dataclass(frozen=True, slots=True)
class DeadLetterReason:
    """Why a delivery was given up. `error` is the exception's class, `detail` its text, both cut to a length."""

    kind: DeadLetterKind
    error: str = ""
    detail: str = ""
    traceback: str = ""
