"""The dead letters of a group, as an application sees them: listed, replayed, discarded."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from pubsub_core import ConfigurationError, FixedDelay, NoRetry, PubSub, Reject, Worker
from tests.servers import RealServer

WITHIN = 10.0


@dataclass
class Shop:
    """A shop whose handler fails with what it is told to."""

    pubsub: PubSub
    handled: list[int] = field(default_factory=list)
    shipped: list[int] = field(default_factory=list)
    error: Exception | None = None

    def work(self) -> None:
        """Handle all that there is."""
        with Worker(self.pubsub, threads=2, burst=True) as worker:
            assert worker.wait(WITHIN)


@pytest.fixture(params=["memory", "redis"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    url = f"memory://{uuid.uuid4().hex}"
    if request.param == "redis":
        server: RealServer = request.getfixturevalue("redis")
        url = server.url
    pubsub = PubSub(url, group="billing", namespace=f"test-{uuid.uuid4().hex}")
    shop = Shop(pubsub)

    @pubsub.subscribe("orders", retry=NoRetry())
    def charge(order: int) -> None:
        if shop.error is not None:
            raise type(shop.error)(*shop.error.args)
        shop.handled.append(order)

    @pubsub.subscribe("orders", group="shipping")
    def ship(order: int) -> None:
        shop.shipped.append(order)

    yield shop
    pubsub.close()


def test_dead_letters_say_what_happened(shop: Shop) -> None:
    shop.error = ValueError("no such customer")
    message_id = shop.pubsub.publish("orders", 7)
    shop.work()

    (letter,) = shop.pubsub.dead_letters("orders")

    assert (letter.message.id, letter.message.payload, letter.message.attempt) == (message_id, b"7", 1)
    assert (letter.reason.kind, letter.reason.error, letter.reason.detail) == (
        "retries exhausted",
        "ValueError",
        "no such customer",
    )
    assert "raise type(shop.error)" in letter.reason.traceback
    assert letter.first_failed_at <= letter.last_failed_at
    assert letter.consumer


def test_a_replay_reaches_the_failing_group_alone(shop: Shop) -> None:
    shop.error = ValueError()
    for order in range(250):
        shop.pubsub.publish("orders", order)
    shop.work()
    letters = shop.pubsub.dead_letters("orders")
    assert len(list(letters)) == 250
    assert shop.handled == []
    shop.error = None

    assert letters.replay() == 250
    shop.work()

    assert sorted(shop.handled) == sorted(shop.shipped) == list(range(250))
    assert not list(letters)
    assert letters.replay() == 0


def test_some_are_replayed_and_some_discarded(shop: Shop) -> None:
    for order, error in enumerate([ValueError(), KeyError(), Reject("no"), KeyError()]):
        shop.error = error
        shop.pubsub.publish("orders", order)
        shop.work()
    letters = shop.pubsub.dead_letters("orders", group="billing")
    shop.error = None

    assert letters.replay(where=lambda letter: letter.reason.error == "KeyError") == 2
    assert letters.discard(letter for letter in letters.newest() if letter.reason.kind == "rejected") == 1
    with pytest.raises(ValueError, match="discard"):
        letters.discard()
    shop.work()
    assert shop.handled == [1, 3]
    assert [letter.reason.error for letter in letters] == ["ValueError"]
    assert letters.discard(letters) == 1
    assert not letters.newest()


def test_what_dies_again_is_replayed_once_per_call(shop: Shop) -> None:
    shop.error = ValueError()
    for order in range(3):
        shop.pubsub.publish("orders", order)
    shop.work()
    letters = shop.pubsub.dead_letters("orders")
    for _ in range(2):
        assert letters.replay() == 3
        shop.work()
    assert [letter.message.attempt for letter in letters] == [1, 1, 1]
    assert {letter.message.source for letter in letters} == {"replay"}


def test_a_replay_counts_its_attempts_anew() -> None:
    pubsub = PubSub(f"memory://{uuid.uuid4().hex}", group="billing")
    seen: list[int] = []

    @pubsub.subscribe("orders", retry=FixedDelay(0, 1))
    def charge(message):
        seen.append(message.attempt)
        raise ValueError

    pubsub.publish("orders", 1)
    for _ in range(2):
        with Worker(pubsub, threads=1, burst=True) as worker:
            assert worker.wait(WITHIN)
        pubsub.dead_letters("orders").replay()
    assert seen == [1, 2, 1, 2]


def test_dead_letters_of_nobody_are_none_and_of_no_name_are_refused(shop: Shop) -> None:
    assert not list(shop.pubsub.dead_letters("parcels", group="nobody"))
    with pytest.raises(ConfigurationError, match="topic"):
        shop.pubsub.dead_letters("a b")
