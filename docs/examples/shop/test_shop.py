"""The tests of the shop: 20 of them, in less than a second; and the same on a real server.

pytest docs/examples/shop
pytest docs/examples/shop --pubsub-url=redis+embedded://
pytest docs/examples/shop --pubsub-url=redis://localhost:6379/0
"""

from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from shop import CardDeclined, Invoice, Mail, OrderPlaced, invoices, mails, orders, reminders

from pubsub_flask import ValidationError

ADA = {"customer": "ada", "total": 9.5}


@pytest.fixture
def client(pubsub_app, pubsub) -> FlaskClient:
    return pubsub_app.test_client()


@pytest.fixture
def books(pubsub_app):
    return pubsub_app.extensions["books"]


def test_an_order_is_published(client, published):
    answer = client.post("/orders/1", json=ADA)

    assert answer.status_code == 202
    assert published(orders).ids == [answer.json["id"]]
    assert published(orders).payloads == [OrderPlaced(order_id=1, customer="ada", total=9.5)]


def test_nothing_is_handled_before_the_test_says_so(client, books, run_until_idle):
    client.post("/orders/1", json=ADA)
    assert not books.charged

    run_until_idle()
    assert books.charged == {1: 9.5}


def test_a_charge_leads_to_an_invoice_and_a_mail(client, books, run_until_idle, published):
    client.post("/orders/1", json=ADA)

    run_until_idle()

    assert published("invoices") == [Invoice(order_id=1, total=9.5)]
    assert published("mails") == [Mail(to="customer", subject="Invoice 1")]
    assert len(books.sent) == 1


def test_everything_that_follows_has_the_correlation_id_of_the_order(client, books, run_until_idle):
    client.post("/orders/1", json=ADA, headers={"X-Request-ID": "ada-0001"})

    run_until_idle()

    assert books.sent == ["customer: Invoice 1 [ada-0001]"]


def test_orders_are_handled_in_order(client, books, run_until_idle):
    for order_id in (3, 1, 2):
        client.post(f"/orders/{order_id}", json=ADA)

    run_until_idle()

    assert list(books.charged) == [3, 1, 2]


def test_an_order_that_is_sent_twice_is_one(client, published):
    first, second = (client.post("/orders/1", json=ADA) for _ in range(2))

    assert first.json == second.json
    assert len(published(orders)) == 1


def test_after_five_minutes_it_is_another_order(client, published, pubsub_clock):
    client.post("/orders/1", json=ADA)
    pubsub_clock.advance(timedelta(minutes=5))
    client.post("/orders/1", json=ADA)

    assert len(published(orders)) == 2


def test_a_declined_card_is_an_error_of_the_handler(client, books, run_until_idle):
    books.declined.add("ada")
    client.post("/orders/1", json=ADA)

    with pytest.raises(CardDeclined):
        run_until_idle()


def test_a_declined_card_is_tried_again_after_a_minute(client, books, run_until_idle, pubsub_clock):
    books.declined.add("ada")
    client.post("/orders/1", json=ADA)
    run_until_idle(errors="retry")
    books.declined.clear()

    pubsub_clock.advance(59)
    run_until_idle()
    assert not books.charged

    pubsub_clock.advance(1)
    run_until_idle()
    assert books.charged == {1: 9.5}


def test_a_card_that_stays_declined_is_a_dead_letter(client, books, pubsub, run_until_idle, pubsub_clock):
    books.declined.add("ada")
    client.post("/orders/1", json=ADA)
    for _ in range(3):
        run_until_idle(errors="retry")
        pubsub_clock.advance(60)

    (letter,) = pubsub.dead_letters(orders, group="billing")
    assert letter.reason.error == "CardDeclined"
    assert letter.message.attempt == 3


def test_a_dead_letter_is_replayed(client, books, pubsub, run_until_idle, pubsub_clock):
    books.declined.add("ada")
    client.post("/orders/1", json=ADA)
    for _ in range(3):
        run_until_idle(errors="retry")
        pubsub_clock.advance(60)
    books.declined.clear()

    pubsub.dead_letters(orders, group="billing").replay()
    run_until_idle()

    assert books.charged == {1: 9.5}


def test_an_order_for_nothing_is_rejected(client, pubsub, run_until_idle, published):
    client.post("/orders/1", json={"customer": "ada", "total": 0})

    run_until_idle()

    assert [letter.reason.kind for letter in pubsub.dead_letters(orders, group="billing")] == ["rejected"]
    assert not published(invoices)


def test_who_does_not_pay_is_reminded_after_three_days(client, run_until_idle, pubsub_clock, published):
    client.post("/orders/1", json=ADA)
    run_until_idle()
    assert published(reminders).delayed.only().due_at == datetime(2030, 1, 4, tzinfo=UTC)

    pubsub_clock.advance(timedelta(days=3))
    run_until_idle()

    assert published(mails).where(to="ada").only().payload.subject == "Order 1: please pay"


def test_who_pays_is_not_reminded(client, run_until_idle, pubsub_clock, published):
    client.post("/orders/1", json=ADA)
    client.post("/orders/1/paid")
    run_until_idle()
    pubsub_clock.advance(timedelta(days=3))
    run_until_idle()

    assert not published(mails).where(to="ada")


def test_there_is_a_report_every_morning(client, books, run_until_idle, pubsub_clock):
    client.post("/orders/1", json=ADA)
    run_until_idle()

    pubsub_clock.advance(timedelta(days=2))
    run_until_idle()

    assert books.reports == ["01 Jan: 9.50", "02 Jan: 9.50"]


def test_a_crash_charges_nobody_twice(client, books, run_until_idle, pubsub_faults, published):
    client.post("/orders/1", json=ADA)

    pubsub_faults.crash_before_ack(orders, group="billing")
    run_until_idle()

    assert books.charged == {1: 9.5}
    assert len(published(invoices)) == 1


def test_a_message_that_comes_twice_charges_nobody_twice(client, run_until_idle, pubsub_faults, published):
    client.post("/orders/1", json=ADA)
    run_until_idle()

    pubsub_faults.redeliver(orders, group="billing")
    assert run_until_idle() == 1

    assert len(published(invoices)) == 1


@pytest.mark.parametrize("stored", [True, False])
def test_an_order_whose_reply_is_lost_is_taken_once(client, published, pubsub_faults, stored):
    pubsub_faults.lose_reply(orders, stored=stored)

    assert client.post("/orders/1", json=ADA).status_code == 202
    assert len(published(orders)) == 1


def test_without_a_broker_the_customer_is_told(client, published, pubsub_faults):
    pubsub_faults.fail_publish(orders)

    assert client.post("/orders/1", json=ADA).status_code == 503
    assert not published(orders)


def test_a_payload_of_another_type_is_refused(pubsub, published):
    with pytest.raises(ValidationError):
        orders.publish({"order_id": "one"})

    assert not published(orders)
