"""A handler takes what the topic carries, as payload or as message, and stays the function that it was."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_type

from pydantic import BaseModel

from pubsub_core import Message, PubSub


class OrderPlaced(BaseModel):
    order_id: int


class ExpressOrderPlaced(OrderPlaced):
    courier: str


class OrderPaid(BaseModel):
    order_id: int


pubsub = PubSub()
orders = pubsub.topic("orders.placed", OrderPlaced)
answers = pubsub.topic("answers", OrderPlaced | OrderPaid)
untyped = pubsub.topic("mail.wanted")


@orders.subscribe()
def payload(order: OrderPlaced) -> int:
    return order.order_id


@orders.subscribe(group="message")
def message(message: Message[OrderPlaced]) -> None:
    assert_type(message.payload, OrderPlaced)


@orders.subscribe(group="async")
async def async_payload(order: OrderPlaced, *, log: bool = False) -> str:
    return "log" if log else ""


@orders.subscribe(group="async.message")
async def async_message(message: Message[OrderPlaced]) -> None: ...


@orders.subscribe(group="base")
def base(order: BaseModel) -> None: ...


@orders.subscribe(group="base.message")
def base_message(message: Message[BaseModel]) -> None: ...


@orders.subscribe(group="any.message")
def any_message(message: Message) -> None: ...  # type: ignore[type-arg]  # as people write it


@orders.subscribe(group="anything")
def anything(order: object) -> None: ...


# They are what they were, the names of their parameters included.
assert_type(payload(order=OrderPlaced(order_id=1)), int)
coroutine: Callable[[OrderPlaced], Coroutine[Any, Any, str]] = async_payload
coroutine_of_it = async_payload(order=OrderPlaced(order_id=1), log=True)
payload(OrderPaid(order_id=1))  # expect: arg-type
payload(oder=OrderPlaced(order_id=1))  # expect: call-arg


@orders.subscribe()  # expect: call-overload
def other_payload(order: OrderPaid) -> None: ...


@orders.subscribe()  # expect: call-overload
def other_message(message: Message[OrderPaid]) -> None: ...


@orders.subscribe()  # expect: call-overload
async def other_async(order: OrderPaid) -> None: ...


@orders.subscribe()  # expect: call-overload
async def other_async_message(message: Message[OrderPaid]) -> None: ...


@orders.subscribe()  # expect: call-overload
def narrower(order: ExpressOrderPlaced) -> None: ...


@orders.subscribe()  # expect: call-overload
def plain(order: dict[str, Any]) -> None: ...


@orders.subscribe()  # expect: call-overload
def nothing() -> None: ...


@orders.subscribe()  # expect: call-overload
def two(order: OrderPlaced, other: int) -> None: ...


@orders.subscribe()  # expect: call-overload
def by_name_only(*, order: OrderPlaced) -> None: ...


@orders.subscribe(timeout="30")  # expect: call-overload
def option(order: OrderPlaced) -> None: ...


# Batches


@orders.subscribe(group="batch", batch=100)
def batch(orders: list[OrderPlaced]) -> int:
    return len(orders)


@orders.subscribe(group="batch.messages", batch=100)
async def batch_of_messages(messages: list[Message[OrderPlaced]]) -> None: ...


@pubsub.subscribe(orders, group="batch.there", batch=100)
def batch_there(orders: Sequence[OrderPlaced]) -> None: ...


assert_type(batch(orders=[OrderPlaced(order_id=1)]), int)


@orders.subscribe(batch=100)  # expect: call-overload
def not_a_batch(order: OrderPlaced) -> None: ...


@orders.subscribe(batch=100)  # expect: call-overload
def other_batch(orders: list[OrderPaid]) -> None: ...


@orders.subscribe()  # expect: call-overload
def no_batch(orders: list[OrderPlaced]) -> None: ...


@orders.subscribe(batch="100")  # expect: call-overload
def batch_option(orders: list[OrderPlaced]) -> None: ...


# All that can be called


@dataclass
class Biller:
    rate: float

    def charge(self, order: OrderPlaced, twice: bool = False) -> None: ...

    def refund(self, order: OrderPaid) -> None: ...

    def __call__(self, message: Message[OrderPlaced]) -> None: ...


def with_rate(rate: float, order: OrderPlaced) -> None: ...


orders.subscribe()(Biller(1.0))
orders.subscribe()(Biller(1.0).charge)
orders.subscribe()(Biller(1.0).refund)  # expect: call-overload
orders.subscribe()(partial(with_rate, 1.0))
orders.subscribe()(lambda order: print(order.order_id))
orders.subscribe()(print)
orders.subscribe()(5)  # expect: call-overload


# Unions


@answers.subscribe()
def both(answer: OrderPlaced | OrderPaid) -> None: ...


@answers.subscribe()
def both_as_message(message: Message[OrderPlaced | OrderPaid]) -> None: ...


@answers.subscribe()  # expect: call-overload
def one_of_them(answer: OrderPaid) -> None: ...


# By the topic's object, or its name


@pubsub.subscribe(orders, group="statistics")
def by_object(order: OrderPlaced) -> int:
    return order.order_id


@pubsub.subscribe(orders)  # expect: call-overload
def by_object_wrong(order: OrderPaid) -> None: ...


@pubsub.subscribe("orders.placed")
def by_name(order: OrderPaid) -> int:
    return order.order_id


assert_type(by_object(order=OrderPlaced(order_id=1)), int)
assert_type(by_name(order=OrderPaid(order_id=1)), int)


# Topics without a schema take anything


@untyped.subscribe()
def untyped_payload(payload: dict[str, Any]) -> None: ...


@untyped.subscribe(group="model")
def untyped_model(payload: OrderPaid) -> int:
    return payload.order_id


@untyped.subscribe(group="message")
async def untyped_message(message: Message[OrderPaid]) -> None: ...


assert_type(untyped_model(payload=OrderPaid(order_id=1)), int)


# Upcasts


@orders.upcast(from_version=1)
def upcast(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


assert_type(upcast(payload={}), dict[str, Any])


@orders.upcast(from_version="1")  # expect: arg-type
def upcast_from_text(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@orders.upcast(from_version=1)  # expect: type-var
def upcast_of_two(payload: dict[str, Any], other: int) -> dict[str, Any]:
    return payload
