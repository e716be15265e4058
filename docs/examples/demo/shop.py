"""A shop: orders come in over HTTP, and three groups handle each of them.

flask --app shop run
flask --app shop pubsub worker --processes 2 --threads 4
curl -X POST http://localhost:5000/orders/1
"""

import os
from pathlib import Path
from typing import Any

from flask import Flask
from pydantic import BaseModel

from pubsub_flask import FixedDelay, Message, PubSub, current_message

LEDGER = Path(os.environ.get("SHOP_LEDGER", "."))


class OrderPlaced(BaseModel):
    order_id: int
    total: float


class CardDeclined(Exception):
    pass


app = Flask(__name__)
app.config["PUBSUB_URL"] = os.environ.get("PUBSUB_URL", "redis+embedded:///./.pubsub")
pubsub = PubSub(app)
orders = pubsub.topic("orders.placed", OrderPlaced)


@app.post("/orders/<int:order_id>")
def place(order_id: int) -> tuple[dict[str, Any], int]:
    return {"id": orders.publish(OrderPlaced(order_id=order_id, total=9.5))}, 202


@orders.subscribe(group="billing", retry=FixedDelay(0.2, max_retries=2))
def charge(order: OrderPlaced) -> None:
    if is_always_declined(order.order_id) or (is_declined_once(order.order_id) and current_message().attempt == 1):
        record("failed")
        raise CardDeclined(f"the card for order {order.order_id}")
    record("handled")


@orders.subscribe(group="shipping")
def ship(message: Message[OrderPlaced]) -> None:
    record("handled")


@orders.subscribe(group="statistics")
async def count(order: OrderPlaced) -> None:
    record("handled")


def is_declined_once(order_id: int) -> bool:
    return order_id % 10 == 3


def is_always_declined(order_id: int) -> bool:
    return order_id % 100 == 7


def record(what: str) -> None:
    """Append a line to this process's file in the ledger: what a handler did, with which message."""
    message = current_message()
    ledger = os.open(LEDGER / f"{os.getpid()}.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(ledger, f"{message.group} {message.id} {message.attempt} {what}\n".encode())
    finally:
        os.close(ledger)
