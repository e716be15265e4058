"""What is published is what the topic carries."""

from typing import assert_type

from pydantic import BaseModel

from pubsub_core import PubSub


class OrderPlaced(BaseModel):
    order_id: int


class ExpressOrderPlaced(OrderPlaced):
    courier: str


class OrderPaid(BaseModel):
    order_id: int


pubsub = PubSub()
orders = pubsub.topic("orders.placed", OrderPlaced)
answers = pubsub.topic("answers", OrderPlaced | OrderPaid)
numbers = pubsub.topic("numbers", list[int])
untyped = pubsub.topic("mail.wanted")

placed = OrderPlaced(order_id=1)
express = ExpressOrderPlaced(order_id=1, courier="bike")
paid = OrderPaid(order_id=1)

assert_type(orders.publish(placed), str)
orders.publish(express, key="1", headers={"campaign": "spring"})
orders.publish(paid)  # expect: arg-type
orders.publish({"order_id": 1})  # expect: arg-type
orders.publish("1")  # expect: arg-type
orders.publish(None)  # expect: arg-type
orders.publish()  # expect: call-arg
orders.publish(placed, headers={"n": 1})  # expect: dict-item
orders.publish(placed, kay="1")  # expect: call-arg

assert_type(pubsub.publish(orders, placed), str)
pubsub.publish(orders, paid)  # expect: misc
pubsub.publish(orders, {"order_id": 1})  # expect: misc
pubsub.publish("orders.placed", placed)
pubsub.publish("orders.placed", {"order_id": 1})
pubsub.publish(5, placed)  # expect: arg-type

answers.publish(placed)
answers.publish(paid)
answers.publish(1)  # expect: arg-type
numbers.publish([1, 2])
numbers.publish(["1"])  # expect: list-item
numbers.publish((1, 2))  # expect: arg-type
untyped.publish(placed)
untyped.publish({"to": "ada@example.org"})
untyped.publish(None)

with pubsub.batch() as batch:
    assert_type(batch.publish(orders, placed), str)
    batch.publish(orders, paid)  # expect: misc
    batch.publish("orders.placed", paid)
