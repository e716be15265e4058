"""Whatever pydantic takes is the type of the topic's payloads."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, assert_type

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from pubsub_core import PubSub, Topic

T = TypeVar("T")


class Paid(BaseModel):
    kind: Literal["paid"] = "paid"


class Refused(BaseModel):
    kind: Literal["refused"] = "refused"


class Page(BaseModel, Generic[T]):
    items: list[T]


class Row(TypedDict):
    id: int


@dataclass
class Point:
    x: int


Answer = Annotated[Paid | Refused, Field(discriminator="kind")]

pubsub = PubSub()

assert_type(pubsub.topic("a", Paid), Topic[Paid])
assert_type(pubsub.topic("a", Paid, version=2, retention=60), Topic[Paid])
assert_type(pubsub.topic("a", Point), Topic[Point])
assert_type(pubsub.topic("a", Row), Topic[Row])
assert_type(pubsub.topic("a", int), Topic[int])
assert_type(pubsub.topic("a", list[Paid]), Topic[list[Paid]])
assert_type(pubsub.topic("a", dict[str, tuple[int, ...]]), Topic[dict[str, tuple[int, ...]]])
assert_type(pubsub.topic("a", Page[Paid]), Topic[Page[Paid]])
assert_type(pubsub.topic("a", Paid | Refused), Topic[Paid | Refused])
assert_type(pubsub.topic("a", Answer), Topic[Paid | Refused])
assert_type(pubsub.topic("a", list[Answer]), Topic[list[Paid | Refused]])
assert_type(pubsub.topic("a", Paid | None), Topic[Paid | None])
assert_type(pubsub.topic("a", Annotated[int, Field(gt=0)]), Topic[int])
assert_type(pubsub.topic("a"), Topic[Any])
assert_type(pubsub.topic("a", None), Topic[Any])
assert_type(pubsub.topic("a", Any), Topic[Any])

pubsub.topic("a", Paid(kind="paid"))  # expect: call-overload
pubsub.topic("a", 5)  # expect: call-overload
pubsub.topic("a", Paid, version="2")  # expect: call-overload
wrong: Topic[Refused] = pubsub.topic("a", Paid)  # expect: arg-type
