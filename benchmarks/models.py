"""The pydantic model of the payload."""

from pydantic import BaseModel


class Customer(BaseModel):
    id: int
    name: str
    email: str


class Item(BaseModel):
    sku: str
    quantity: int


class Order(BaseModel):
    order_id: int
    customer: Customer
    total: float
    currency: str
    items: list[Item]
    note: str
