"""An application that is operated by commands. For tests/test_commands.py: `declined` is what its handler refuses."""

from pydantic import BaseModel

from pubsub_core import NoRetry, PubSub


class OrderPlaced(BaseModel):
    order_id: int
    total: float = 1.0


declined: set[int] = set()
pubsub = PubSub(group="billing")
orders = pubsub.topic("orders", OrderPlaced)


@orders.subscribe(retry=NoRetry())
def charge(order: OrderPlaced) -> None:
    if order.order_id in declined:
        raise ValueError("the card is declined")


@pubsub.cron("0 0 1 1 *", name="yearly")
def report() -> None: ...
