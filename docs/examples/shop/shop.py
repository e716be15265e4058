"""A shop, to show how an application is tested. See test_shop.py, and docs/guides/testing.md."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

from flask import Flask, current_app, request
from pydantic import BaseModel

from pubsub_flask import BrokerError, FixedDelay, Message, PublishUncertain, PubSub, Reject, current_message

pubsub = PubSub()


class OrderPlaced(BaseModel):
    order_id: int
    customer: str
    total: float


class Invoice(BaseModel):
    order_id: int
    total: float


class Mail(BaseModel):
    to: str
    subject: str


orders = pubsub.topic("orders.placed", OrderPlaced)
invoices = pubsub.topic("invoices", Invoice)
reminders = pubsub.topic("orders.unpaid", OrderPlaced)
mails = pubsub.topic("mails", Mail)


class CardDeclined(Exception):
    """The bank says no, for now."""


@dataclass
class Books:
    """What the shop knows. A real one has a database."""

    charged: dict[int, float] = field(default_factory=dict)
    paid: set[int] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    declined: set[str] = field(default_factory=set)
    reports: list[str] = field(default_factory=list)


def books() -> Books:
    """Return those of the current app."""
    return cast(Books, current_app.extensions["books"])


def create_app() -> Flask:
    """Make the application."""
    app = Flask("shop")
    app.extensions["books"] = Books()
    pubsub.init_app(app)

    @app.post("/orders/<int:order_id>")
    def place(order_id: int) -> tuple[dict[str, object], int]:
        """Take an order. Whoever sends it twice gets the same answer twice."""
        form = request.get_json()
        order = OrderPlaced(order_id=order_id, customer=form["customer"], total=form["total"])
        try:
            message_id = orders.publish(order, key=order.customer, dedup=f"order-{order_id}")
        except PublishUncertain as error:
            message_id = orders.publish(order, key=order.customer, id=error.message_ids[0])
        except BrokerError:
            return {"error": "we cannot take orders now: try again soon"}, 503
        return {"id": message_id}, 202

    @app.post("/orders/<int:order_id>/paid")
    def paid(order_id: int) -> tuple[dict[str, object], int]:
        books().paid.add(order_id)
        return {}, 204

    return app


@orders.subscribe(group="billing", retry=FixedDelay(60, max_retries=2))
def charge(order: OrderPlaced) -> None:
    """Charge the customer, once, however often this is called; then write the invoice."""
    if order.total <= 0:
        raise Reject("nobody is charged nothing")
    if order.customer in books().declined:
        raise CardDeclined(order.customer)
    if order.order_id not in books().charged:
        books().charged[order.order_id] = order.total
    invoices.publish(Invoice(order_id=order.order_id, total=order.total), dedup=f"invoice-{order.order_id}")


@orders.subscribe(group="reminding")
def remind_later(order: OrderPlaced) -> None:
    """Look again in three days."""
    reminders.publish(order, delay=timedelta(days=3))


@reminders.subscribe(group="reminding")
def remind(order: OrderPlaced) -> None:
    """Write to those who did not pay."""
    if order.order_id not in books().paid:
        mails.publish(Mail(to=order.customer, subject=f"Order {order.order_id}: please pay"))


@invoices.subscribe(group="mailing")
def announce(message: Message[Invoice]) -> None:
    """Tell the customer."""
    mails.publish(Mail(to="customer", subject=f"Invoice {message.payload.order_id}"))


@mails.subscribe(group="mailing")
async def send(mail: Mail) -> None:
    """Send a mail."""
    books().sent.append(f"{mail.to}: {mail.subject} [{current_message().headers['correlation-id'][:8]}]")


@pubsub.cron("0 6 * * *", name="daily-report", group="reports")
def report(message: Message) -> None:
    """Sum up, every morning."""
    assert message.scheduled_for is not None
    books().reports.append(f"{message.scheduled_for:%d %b}: {sum(books().charged.values()):.2f}")
