"""What an order was, and what it is."""

from typing import Any

from pydantic import BaseModel

from pubsub_core import PubSub, Topic


class OldOrder(BaseModel):
    do: str
    total: float


class NewOrder(BaseModel):
    do: str
    cents: int


def declare_old(pubsub: PubSub) -> Topic[OldOrder]:
    return pubsub.topic("orders", OldOrder)


def declare_new(pubsub: PubSub) -> Topic[NewOrder]:
    orders = pubsub.topic("orders", NewOrder, version=2)

    @orders.upcast(from_version=1)
    def in_cents(payload: dict[str, Any]) -> dict[str, Any]:
        return {"do": payload["do"], "cents": round(payload["total"] * 100)}

    return orders
