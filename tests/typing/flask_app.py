"""The `PubSub` of `pubsub_flask` is typed as that of `pubsub_core` is."""

from typing import assert_type

from flask import Flask
from pydantic import BaseModel

from pubsub_flask import Message, PubSub, Topic


class OrderPlaced(BaseModel):
    order_id: int


class OrderPaid(BaseModel):
    order_id: int


pubsub = PubSub(Flask(__name__))
orders = pubsub.topic("orders.placed", OrderPlaced)
assert_type(orders, Topic[OrderPlaced])

orders.publish(OrderPlaced(order_id=1))
orders.publish(OrderPaid(order_id=1))  # expect: arg-type


@orders.subscribe()
def charge(order: OrderPlaced) -> int:
    return order.order_id


@orders.subscribe(group="statistics")
async def count(message: Message[OrderPlaced]) -> None:
    assert_type(message.payload, OrderPlaced)


@orders.subscribe()  # expect: call-overload
def other(order: OrderPaid) -> None: ...


assert_type(charge(order=OrderPlaced(order_id=1)), int)
