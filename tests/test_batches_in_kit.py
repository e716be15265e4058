"""Handlers that take batches, as the test kit and eager publishing run them; what a worker reads ahead for them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

import pubsub_core
from pubsub_core import (
    BatchFailure,
    Delivery,
    FixedDelay,
    InvalidPayload,
    Message,
    NoRetry,
    PubSub,
    Reject,
    SubscriptionKey,
)
from pubsub_core.message import delivery_of
from pubsub_core.subscription import Subscription
from pubsub_core.worker.handover import Credit, Handover

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.pubsub(url="memory://")),
        pytest.param("fakeredis", marks=pytest.mark.pubsub(url="fakeredis://")),
    ]
)
def _on_each_backend(_pubsub_kit) -> None:
    """See pytest's ids: every test that uses it runs on each."""


kit = pytest.mark.usefixtures("_on_each_backend")


def publish(pubsub: PubSub, *payloads: Any) -> list[str]:
    with pubsub.batch() as batch:
        return [batch.publish("orders", payload) for payload in payloads]


@kit
def test_what_is_there_goes_in_one_call(pubsub, run_until_idle):
    calls = []
    pubsub.subscribe("orders", batch=3)(lambda messages: calls.append([one.payload for one in messages]))
    publish(pubsub, *range(7))

    assert run_until_idle() == 7
    assert calls == [[0, 1, 2], [3, 4, 5], [6]]


@kit
def test_the_first_error_is_raised_and_its_note_tells_of_each_message(pubsub, run_until_idle):
    @pubsub.subscribe("orders", batch=10, retry=FixedDelay(30, max_retries=1))
    def handle(numbers: list[int]) -> None:
        raise BatchFailure({0: ValueError("first"), 2: KeyError("second")})

    first, _, third = publish(pubsub, 0, 1, 2)
    with pytest.raises(ValueError, match="first") as raised:
        run_until_idle()

    (note,) = raised.value.__notes__
    assert note.endswith(
        f"a batch of 3: message {first}, attempt 1: to be retried in 30 s; "
        f"message {third}, attempt 1: to be retried in 30 s; 1 acknowledged"
    )


@kit
def test_a_note_tells_of_a_few_messages_and_counts_the_others(pubsub, run_until_idle):
    @pubsub.subscribe("orders", batch=10, retry=NoRetry())
    def handle(numbers: list[int]) -> None:
        raise ValueError

    publish(pubsub, *range(8))
    with pytest.raises(ValueError) as raised:  # it is the handler's, of no text
        run_until_idle()

    (note,) = raised.value.__notes__
    assert note.count("now a dead letter (retries exhausted)") == 3
    assert note.endswith("; 5 more failed")


@kit
def test_what_cannot_be_read_is_raised_beside_what_the_handler_rejects(pubsub, run_until_idle):
    @pubsub.subscribe("orders", batch=10)
    def handle(numbers: list[int]) -> None:
        raise BatchFailure({0: Reject("no")})

    publish(pubsub, 1, "two", 3)
    with pytest.raises(InvalidPayload) as raised:
        run_until_idle()

    assert "(invalid payload)" in raised.value.__notes__[0]
    assert "(rejected)" in raised.value.__notes__[0]


@kit
def test_a_crash_before_the_ack_leaves_all_of_the_batch_and_then_each_goes_alone(pubsub, run_until_idle, pubsub_faults):
    calls = []

    @pubsub.subscribe("orders", batch=10)
    def handle(messages: list[Message[int]]) -> None:
        calls.append([(one.payload, one.attempt) for one in messages])

    publish(pubsub, 0, 1, 2)
    pubsub_faults.crash_before_ack("orders")
    run_until_idle()

    assert calls == [[(0, 1), (1, 1), (2, 1)], [(0, 2)], [(1, 2)], [(2, 2)]]


@kit
def test_what_was_acknowledged_is_delivered_again_in_a_batch(pubsub, run_until_idle, pubsub_faults):
    calls = []
    pubsub.subscribe("orders", batch=10)(
        lambda messages: calls.append([(one.payload, one.attempt) for one in messages])
    )
    publish(pubsub, 0, 1)
    run_until_idle()

    assert pubsub_faults.redeliver("orders") == 2
    run_until_idle()
    assert calls == [[(0, 1), (1, 1)], [(0, 2), (1, 2)]]


def test_an_eager_publish_calls_the_handler_with_what_it_published():
    pubsub = pubsub_core.PubSub("memory://", eager=True)
    calls: list[list[int]] = []

    @pubsub.subscribe("orders", batch=10)
    def handle(numbers: list[int]) -> None:
        calls.append(numbers)

    pubsub.publish("orders", 0)
    publish(pubsub, 1, 2, 3)
    pubsub.close()

    assert calls == [[0], [1, 2, 3]]


# Reading ahead


def subscription(**options: Any) -> Subscription:
    pubsub = PubSub("memory://", group="billing")
    pubsub.subscribe("orders", **options)(lambda messages: None)
    (one,) = pubsub.subscriptions()
    return one


def deliveries(key: SubscriptionKey, count: int) -> list[Delivery[bytes]]:
    return [delivery_of(Message(str(n), key.topic, b"0", BEGIN), key) for n in range(count)]


@pytest.mark.parametrize(("seconds", "may_ask"), [(None, 0), (5.0, 0), (0.02, 0), (0.00001, 7)])
def test_while_its_calls_are_used_up_a_list_is_read_if_they_end_soon_or_nothing(seconds: float | None, may_ask: int):
    """A process that read ahead for a slow handler would keep from others what they could handle now.

    With a few, which a handler of 0.02 s for three takes soon, the next list would be as short, and so the one after.
    """
    one = subscription(batch=10, concurrency=1)
    asked: list[int] = []

    def read(credit: Credit) -> Sequence[Delivery[bytes]]:
        asked.append(credit[one.key])
        return deliveries(one.key, 3) if len(asked) != stop_at else stop()

    def stop() -> Sequence[Delivery[bytes]]:
        handover.stop()
        return ()

    stop_at = 2 if seconds is None else 3
    handover = Handover([one], 2, read, lambda: None)
    taken = handover.next()
    if seconds is not None:
        taken = handover.next(taken, seconds)
    assert len(taken) == 3

    assert handover.next() == ()  # another thread reads, while the first one handles
    assert asked[-1] == may_ask


@pytest.mark.parametrize(("concurrency", "asks"), [(1, False), (2, True)])
def test_who_reads_is_woken_when_a_call_ends_unless_it_asked_already(concurrency: int, asks: bool):
    one = subscription(batch=10, concurrency=concurrency)
    has_asked: list[bool] = []
    woken: list[bool] = []

    def read(credit: Credit) -> Sequence[Delivery[bytes]]:
        has_asked.append(credit[one.key] > 0)
        if len(has_asked) == 1:
            return deliveries(one.key, 3)
        handover.finished(taken, 5.0)
        handover.stop()
        return ()

    handover = Handover([one], 2, read, lambda: woken.append(True))
    taken = handover.next()

    assert handover.next() == ()
    assert has_asked == [True, asks]
    assert bool(woken) is not asks
