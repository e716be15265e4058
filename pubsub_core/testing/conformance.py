"""The executable form of `pubsub_core.broker`: every backend must pass `BrokerConformance`.

A backend subclasses it in a test module, says how to make a broker, and runs pytest:

    class TestRedis(BrokerConformance):
        def make_broker(self, options: BrokerOptions) -> Broker:
            return open_redis("redis://localhost:6379/15", options)

Each test has a namespace and topics of its own, so all may share a server. What `receive` may do, it may do here too:
return fewer than there are, or nothing, early. What it must do has to happen within `patience` seconds.
"""

import os
import random
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from time import monotonic

import pytest

from pubsub_core.broker import (
    Broker,
    BrokerOptions,
    Consumer,
    Durability,
    Inspector,
    Membership,
    Overflow,
    Start,
    TopicOptions,
)
from pubsub_core.errors import BrokerFull, ConsumersPresent, LeaseLost, NotConfirmed, Unsupported
from pubsub_core.message import DeadLetterReason, Delivery, Source, SubscriptionKey
from pubsub_core.testing.harness import FEATURES, LONG, REASON, SLACK, ids, needs
from pubsub_core.testing.inspect_conformance import InspectConformance
from pubsub_core.testing.time_conformance import TimeConformance

__all__ = ["FEATURES", "BrokerConformance"]


class BrokerConformance(TimeConformance, InspectConformance):
    """What every broker must do. Subclass it as `Test...`, and override what differs for the backend: see `Harness`."""

    # Publishing.

    def test_messages_of_a_topic_come_in_the_order_of_publishing(self, broker: Broker) -> None:
        """Single ones and batches alike."""
        key = self.key()
        published = [message_id for count in (1, 1, 7, 1, 30) for message_id in self.publish(broker, key.topic, count)]
        assert ids(self.take(self.consumer(broker, key), 40)) == published

    def test_a_batch_over_several_topics_keeps_the_order_of_each(self, broker: Broker) -> None:
        """However the topics alternate in the batch."""
        keys = [self.key() for _ in range(3)]
        batch = [self.message(random.choice(keys).topic) for _ in range(60)]
        broker.publish(batch)
        taken = self.take(self.consumer(broker, *keys), 60)
        for key in keys:
            assert ids(d for d in taken if d.subscription == key) == [m.id for m in batch if m.topic == key.topic]

    def test_a_large_batch_arrives_whole(self, broker: Broker) -> None:
        """2,500 messages: more than one request of most backends."""
        key = self.key()
        published = self.publish(broker, key.topic, 2500)
        assert ids(self.take(self.consumer(broker, key), 2500)) == published

    def test_publishing_nothing_does_nothing(self, broker: Broker) -> None:
        """An empty batch is no error."""
        key = self.key()
        broker.publish(())
        consumer = self.joined(broker, key)
        broker.publish([])
        self.nothing_comes(consumer)

    @pytest.mark.parametrize(
        "payload",
        [b"", b"\x00", bytes(range(256)), b"\r\n$3\r\n", "✓ naïve 日本".encode(), b"x" * 1_000_000],
        ids=["empty", "nul", "every byte", "protocol", "utf-8", "large"],
    )
    def test_a_payload_may_be_any_bytes(self, broker: Broker, payload: bytes) -> None:
        """They come back as they were."""
        key = self.key()
        broker.publish([self.message(key.topic, payload)])
        assert self.take_one(self.consumer(broker, key)).message.payload == payload

    @pytest.mark.parametrize("key", [None, "customer-7", "日本 \x00\n'\"", "None"])
    @pytest.mark.parametrize(
        "headers", [{}, {"correlation-id": "a"}, {"a": "", "ü": "\x00\n✓", "z": "x" * 5000, "null": "null"}]
    )
    @pytest.mark.parametrize("source", ["publish", "cron", "replay"])
    def test_a_message_arrives_as_it_was_published(
        self, broker: Broker, key: str | None, headers: dict[str, str], source: Source
    ) -> None:
        """All of its fields; those of the delivery are filled in."""
        billing = self.key()
        sent = self.message(billing.topic, b'{"n":1}', key=key, headers=headers, source=source)
        broker.publish([sent])
        delivery = self.take_one(self.consumer(broker, billing))
        got = delivery.message
        assert delivery.subscription == billing
        assert (got.id, got.topic, got.payload, got.key) == (sent.id, billing.topic, sent.payload, key)
        assert dict(got.headers) == headers
        assert got.source == source
        assert got.published_at.utcoffset() is not None
        assert abs(got.published_at - sent.published_at) < timedelta(milliseconds=1)
        assert (got.attempt, got.group) == (1, billing.group)
        assert got.position

    def test_every_message_of_a_topic_has_its_own_position(self, broker: Broker) -> None:
        """It is the same for every group."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        self.publish(broker, billing.topic, 20)
        positions = [d.message.position for d in self.take(self.consumer(broker, billing), 20)]
        assert len(set(positions)) == 20
        assert [d.message.position for d in self.take(self.consumer(broker, shipping), 20)] == positions

    def test_another_broker_reaches_the_same_messages(self, broker: Broker) -> None:
        """As another process would."""
        key = self.key()
        consumer = self.joined(self.open(), key)
        self.publish_and_take(broker, consumer, key)

    def test_namespaces_are_apart(self, broker: Broker) -> None:
        """A topic of the same name in another namespace is another topic."""
        key = self.key()
        stranger = self.joined(self.open(namespace=f"{self._namespace}-other"), key)
        self.publish(broker, key.topic)
        self.nothing_comes(stranger)
        self.take_one(self.consumer(broker, key))

    def test_a_topic_that_asked_for_a_stream_is_kept_under_its_name(self, broker: Broker) -> None:
        """Whatever the namespace, and also if it asked after the broker was made."""
        key = self.key()
        self.topics[key.topic] = TopicOptions(f"stream-{uuid.uuid4().hex[:12]}")
        consumer = self.joined(self.open(namespace=f"{self._namespace}-other"), key)
        (delivery,) = self.publish_and_take(broker, consumer, key)
        assert delivery.message.topic == key.topic

    def test_a_broker_may_be_closed_twice(self, broker: Broker) -> None:
        """Also one that was never used."""
        self.publish(broker, self.key().topic)
        for each in (broker, self.open()):
            each.close()
            each.close()

    # Groups.

    def test_every_group_sees_every_message(self, broker: Broker) -> None:
        """In the same order; what one has acknowledged is not done for the other."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        first, second = self.joined(broker, billing), self.joined(broker, shipping)
        published = self.publish(broker, billing.topic, 10)
        taken = self.take(first, 10)
        first.ack(taken)
        assert ids(taken) == published
        taken = self.take(second, 10)
        assert ids(taken) == published
        assert {d.message.group for d in taken} == {"shipping"}

    def test_consumers_of_a_group_share_its_messages(self, broker: Broker) -> None:
        """No two get the same, and none is left over."""
        key = self.key()
        published = self.publish(broker, key.topic, 30)
        consumers = [self.consumer(broker, key) for _ in range(3)]
        taken = [delivery for consumer in consumers for delivery in self.take(consumer, 10)]
        assert sorted(ids(taken)) == sorted(published)
        self.nothing_comes(*consumers)

    def test_one_consumer_may_be_in_several_groups_of_a_topic(self, broker: Broker) -> None:
        """It gets a delivery for each, and settles them one by one."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        consumer = self.consumer(broker, billing, shipping)
        self.publish(broker, billing.topic)
        first, second = sorted(self.take(consumer, 2), key=lambda delivery: delivery.subscription)
        assert (first.subscription, second.subscription) == (billing, shipping)
        assert (first.message.group, second.message.group) == ("billing", "shipping")
        consumer.ack([first])
        consumer.nack(second, 0)
        again = self.take_one(consumer)
        assert (again.subscription, again.message.attempt) == (shipping, 2)

    def test_a_new_group_starts_at_the_earliest_message(self, broker: Broker) -> None:
        """If it asks for that."""
        key = self.key()
        published = self.publish(broker, key.topic, 3)
        assert ids(self.take(self.consumer(broker, key, start="earliest"), 3)) == published

    def test_a_new_group_starts_after_the_latest_message(self, broker: Broker) -> None:
        """The first receive counts, not the making of the consumer."""
        key = self.key()
        self.publish(broker, key.topic, 3)
        consumer = self.consumer(broker, key, start="latest")
        self.publish(broker, key.topic, 3)
        assert not consumer.receive({key: 10}, wait=0)
        published = self.publish(broker, key.topic, 3)
        assert ids(self.take(consumer, 3)) == published

    @pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7))], ids=["utc", "elsewhere"])
    def test_a_new_group_starts_at_an_instant(self, broker: Broker, zone: timezone) -> None:
        """With the first message published at or after it."""
        key = self.key()
        self.publish(broker, key.topic, 3)
        self.pass_time(0.2)
        start = datetime.fromtimestamp(self.clock.time(), zone)
        self.pass_time(0.2)
        published = self.publish(broker, key.topic, 3)
        assert ids(self.take(self.consumer(broker, key, start=start), 3)) == published

    @pytest.mark.parametrize("start", ["earliest", "latest", datetime(2000, 1, 1, tzinfo=UTC)], ids=str)
    def test_a_group_may_be_made_before_its_topic(self, broker: Broker, start: Start) -> None:
        """It gets what is published from then on."""
        key = self.key()
        consumer = self.joined(broker, key, start=start)
        self.publish_and_take(broker, consumer, key)

    @pytest.mark.parametrize("start", ["earliest", "latest", datetime(2000, 1, 1, tzinfo=UTC)], ids=str)
    def test_a_group_that_exists_keeps_its_place(self, broker: Broker, start: Start) -> None:
        """Whatever start a later consumer names."""
        key = self.key()
        first = self.consumer(broker, key)
        published = self.publish(broker, key.topic, 5)
        first.ack(self.take(first, 2))
        self.leave(first)
        assert ids(self.take(self.consumer(broker, key, start=start), 3)) == published[2:]

    # Acknowledging.

    @pytest.mark.parametrize("way", ["ack", "done"])
    def test_what_is_acknowledged_never_comes_again(self, strict_broker: Broker, way: str) -> None:
        """By `ack` or by the next `receive`: not after a close, nor after a crash."""
        key = self.key()
        closing, crashing, other = (self.joined(strict_broker, key) for _ in range(3))
        for consumer in (closing, crashing):
            self.publish(strict_broker, key.topic, 3)
            taken = self.take(consumer, 3)
            if way == "ack":
                consumer.ack(taken)
            else:
                assert not consumer.receive({key: 1}, wait=0, done=taken)
        self.leave(closing)
        self.lose(crashing)
        self.nothing_comes(other, during=8 * self.heartbeat)

    def test_done_is_acknowledged_also_when_no_credit_is_left(self, broker: Broker) -> None:
        """With zero credit, and with none named at all."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        self.publish(broker, key.topic, 2)
        first, second = self.take(consumer, 2)
        assert not consumer.receive({key: 0}, wait=0, done=[first])
        assert not consumer.receive({}, wait=0, done=[second])
        self.leave(consumer)
        self.nothing_comes(other)

    def test_done_makes_room_in_the_same_receive(self, broker: Broker) -> None:
        """The next ones come with it."""
        key = self.key()
        consumer = self.consumer(broker, key)
        published = self.publish(broker, key.topic, 4)
        taken = self.take(consumer, 2)
        more = self.take(consumer, 2, done=taken)
        assert ids([*taken, *more]) == published

    def test_acknowledging_again_does_nothing(self, broker: Broker) -> None:
        """Nor does acknowledging nothing."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        self.publish(broker, key.topic, 3)
        taken = self.take(consumer, 3)
        consumer.ack(taken)
        consumer.ack(taken)
        consumer.ack([*taken, *taken])
        consumer.ack(())
        assert not consumer.receive({key: 10}, wait=0, done=taken)
        self.leave(consumer)
        self.nothing_comes(other)

    def test_one_ack_may_be_of_several_topics_and_groups(self, broker: Broker) -> None:
        """And leaves what it does not name."""
        keys = [self.key(), self.key()]
        keys += [self.key(key.topic, "shipping") for key in keys]
        consumer, other = self.joined(broker, *keys), self.joined(broker, *keys)
        for key in keys[:2]:
            self.publish(broker, key.topic, 3)
        taken = self.take(consumer, 12)
        kept = {key: next(d for d in taken if d.subscription == key) for key in keys}
        consumer.ack([d for d in taken if d is not kept[d.subscription]])
        self.leave(consumer)
        again = self.take(other, 4)
        assert {d.subscription: d.message.id for d in again} == {key: d.message.id for key, d in kept.items()}

    def test_a_late_ack_of_a_lost_delivery_ends_it(self, strict_broker: Broker) -> None:
        """The handler did succeed, so it is not delivered again."""
        key = self.key()
        frozen, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        self.publish(strict_broker, key.topic)
        late = self.take_one(frozen)
        self.lose(frozen)
        (taken,) = self.take_over(other, 1)
        frozen.ack([late])
        with pytest.raises(LeaseLost):
            other.nack(taken, 0)
        self.nothing_comes(frozen, other)

    def test_a_late_ack_ends_also_what_waits_for_its_retry(self, strict_broker: Broker) -> None:
        """Even though another consumer failed meanwhile."""
        key = self.key()
        frozen, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        self.publish(strict_broker, key.topic)
        late = self.take_one(frozen)
        self.lose(frozen)
        (taken,) = self.take_over(other, 1)
        other.nack(taken, 0.3)
        frozen.ack([late])
        self.nothing_comes(frozen, other, during=1.0)

    # Retrying.

    @pytest.mark.parametrize("delay", [0.3, 0.75])
    def test_a_nacked_delivery_comes_back_no_sooner_than_its_delay(self, broker: Broker, delay: float) -> None:
        """And not much later; it is the same message, with one attempt more."""
        key = self.key()
        consumer = self.consumer(broker, key)
        sent = self.message(key.topic, bytes(range(256)), key="k", headers={"a": "✓"})
        broker.publish([sent])
        first = self.take_one(consumer)
        before = self.clock.time()
        consumer.nack(first, delay)
        again = self.take_one(consumer, step=0.05)
        passed = self.clock.time() - before
        assert delay - SLACK <= passed <= delay + 2.0, f"nacked for {delay} s, it came after {passed} s"
        message = again.message
        assert (message.attempt, message.id, message.payload, message.key) == (2, sent.id, sent.payload, "k")
        assert dict(message.headers) == {"a": "✓"}
        assert (again.subscription, message.position) == (key, first.message.position)

    def test_a_nack_without_delay_comes_back_at_once(self, broker: Broker) -> None:
        """Attempts rise by one each time."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic)
        for attempt in range(1, 6):
            delivery = self.take_one(consumer)
            assert delivery.message.attempt == attempt
            consumer.nack(delivery, 0)

    def test_a_nacked_delivery_comes_to_its_own_group_only(self, broker: Broker) -> None:
        """To any consumer of it."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        consumer, colleague, other = (self.joined(broker, key) for key in (billing, billing, shipping))
        self.publish(broker, billing.topic)
        other.ack(self.take(other, 1))
        consumer.nack(self.take_one(consumer), 0)
        assert self.take_one(colleague).message.attempt == 2
        self.nothing_comes(other, consumer)

    def test_a_retry_does_not_hold_up_what_was_published_later(self, broker: Broker) -> None:
        """Only itself waits."""
        key = self.key()
        consumer = self.consumer(broker, key)
        published = self.publish(broker, key.topic, 3)
        consumer.nack(self.take_one(consumer), 0.5)
        assert ids(self.take(consumer, 2)) == published[1:]
        again = self.take_one(consumer, step=0.1)
        assert (again.message.id, again.message.attempt) == (published[0], 2)

    def test_retries_come_in_the_order_in_which_they_are_due(self, broker: Broker) -> None:
        """Not in that of the nacks."""
        key = self.key()
        consumer = self.consumer(broker, key)
        published = self.publish(broker, key.topic, 3)
        for delivery, delay in zip(self.take(consumer, 3), (0.9, 0.6, 0.3), strict=True):
            consumer.nack(delivery, delay)
        again = [self.take_one(consumer, step=0.05) for _ in range(3)]
        assert ids(again) == published[::-1]

    def test_a_second_nack_raises_lease_lost_and_changes_nothing(self, broker: Broker) -> None:
        """It comes back once, with one attempt more, and when the first nack said."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic)
        delivery = self.take_one(consumer)
        consumer.nack(delivery, 0)
        with pytest.raises(LeaseLost):
            consumer.nack(delivery, 3600)
        assert self.take_one(consumer).message.attempt == 2
        self.nothing_comes(consumer)

    @pytest.mark.parametrize("settled", ["ack", "nack", "release", "dead_letter"])
    def test_a_settled_delivery_can_be_neither_nacked_nor_dead_lettered(self, broker: Broker, settled: str) -> None:
        """LeaseLost says so; `release` and `ack` of it are no error."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic)
        delivery = self.take_one(consumer)
        match settled:
            case "ack":
                consumer.ack([delivery])
            case "nack":
                consumer.nack(delivery, 3600)
            case "release":
                consumer.release([delivery])
            case _:
                consumer.dead_letter(delivery, REASON)
        with pytest.raises(LeaseLost):
            consumer.nack(delivery, 0)
        with pytest.raises(LeaseLost):
            consumer.dead_letter(delivery, REASON)
        consumer.release([delivery])
        if settled == "release":
            assert self.take_one(consumer).message.attempt == 1
        else:
            self.nothing_comes(consumer)
        consumer.ack([delivery])

    def test_a_retry_outlives_the_consumer_that_asked_for_it(self, strict_broker: Broker) -> None:
        """It comes to another when it is due; the end of the first consumer does not count."""
        key = self.key()
        mortal, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        published = self.publish(strict_broker, key.topic)
        mortal.nack(self.take_one(mortal), 6 * self.heartbeat)
        self.lose(mortal)
        (again,) = self.take_over(other, 1)
        assert (again.message.id, again.message.attempt) == (published[0], 2)
        other.ack([again])
        self.nothing_comes(other, during=6 * self.heartbeat)

    # Releasing.

    def test_what_is_released_comes_at_once_and_uncounted(self, broker: Broker) -> None:
        """To another consumer, in the order of publishing, with the attempt that it had."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        published = self.publish(broker, key.topic, 25)
        taken = self.take(consumer, 25)
        consumer.release([*taken[20:], *taken[19:9:-1], *taken[:10]])
        again = self.take(other, 25)
        assert ids(again) == published
        assert {delivery.message.attempt for delivery in again} == {1}
        self.nothing_comes(consumer, other)

    def test_a_release_keeps_the_attempts_that_did_count(self, broker: Broker) -> None:
        """And the next nack counts on from there."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic)
        attempts = []
        for settle in ("nack", "release", "release", "nack", "release"):
            delivery = self.take_one(consumer)
            attempts.append(delivery.message.attempt)
            if settle == "nack":
                consumer.nack(delivery, 0)
            else:
                consumer.release([delivery])
        assert [*attempts, self.take_one(consumer).message.attempt] == [1, 2, 2, 2, 3, 3]

    def test_releasing_again_changes_nothing(self, broker: Broker) -> None:
        """Also when another consumer has it by now, or when it was acknowledged."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        self.publish(broker, key.topic, 2)
        first, second = self.take(consumer, 2)
        consumer.ack([second])
        consumer.release([first, second])
        consumer.release([first, second])
        again = self.take_one(other)
        consumer.release([first, second])
        consumer.release(())
        self.nothing_comes(consumer, other)
        other.nack(again, 0)
        assert self.take_one(other).message.attempt == 2

    def test_an_earlier_hand_over_settles_nothing_though_its_attempt_is_the_same(self, broker: Broker) -> None:
        """What was released came again to the same consumer: LeaseLost, or nothing for a release. An ack counts."""
        key = self.key()
        consumer, other = self.consumer(broker, key), self.joined(broker, key)
        self.publish(broker, key.topic)
        earlier = self.take_one(consumer)
        consumer.release([earlier])
        later = self.take_one(consumer)
        assert later.message.attempt == earlier.message.attempt == 1
        consumer.release([earlier])
        with pytest.raises(LeaseLost):
            consumer.nack(earlier, 0)
        with pytest.raises(LeaseLost):
            consumer.dead_letter(earlier, REASON)
        self.nothing_comes(consumer, other)
        consumer.nack(later, 0)
        again = self.take_one(consumer)
        assert again.message.attempt == 2
        consumer.ack([earlier])
        consumer.release([again])
        self.nothing_comes(consumer, other)

    def test_one_release_may_be_of_several_topics_and_groups(self, broker: Broker) -> None:
        """Each goes back to its own."""
        keys = [self.key(), self.key()]
        keys += [self.key(key.topic, "shipping") for key in keys]
        consumer, other = self.joined(broker, *keys), self.joined(broker, *keys)
        for key in keys[:2]:
            self.publish(broker, key.topic, 2)
        taken = self.take(consumer, 8)
        consumer.release(taken)
        again = self.take(other, 8)
        assert Counter((d.subscription, d.message.id, d.message.attempt) for d in again) == Counter(
            (d.subscription, d.message.id, 1) for d in taken
        )

    # Dead letters.

    @needs("inspect")
    def test_a_dead_letter_keeps_message_and_reason(self, broker: Broker) -> None:
        """Intact, with what else is known of it."""
        key = self.key()
        consumer = self.consumer(broker, key)
        sent = self.message(key.topic, bytes(range(256)), key="k", headers={"a": "✓"}, source="cron")
        broker.publish([sent])
        consumer.nack(self.take_one(consumer), 0)
        delivery = self.take_one(consumer)
        consumer.dead_letter(delivery, REASON)
        died_at = datetime.fromtimestamp(self.clock.time(), UTC)
        (letter,) = self.dead_letters(broker, key)
        kept = letter.message
        assert (kept.id, kept.topic, kept.payload, kept.key) == (sent.id, key.topic, sent.payload, "k")
        assert (dict(kept.headers), kept.source) == ({"a": "✓"}, "cron")
        assert abs(kept.published_at - sent.published_at) < timedelta(milliseconds=1)
        assert (kept.attempt, kept.group) == (2, key.group)
        assert (letter.reason, letter.subscription, letter.consumer) == (REASON, key, consumer.name)
        assert abs(letter.last_failed_at - died_at) < timedelta(seconds=self.patience)
        assert letter.position
        assert sent.published_at <= letter.first_failed_at <= letter.last_failed_at
        assert list(self.dead_letters(self.open(), key)) == [letter]

    @needs("inspect")
    def test_dead_letters_are_listed_newest_first(self, broker: Broker) -> None:
        """At most as many as asked for; each at a position of its own."""
        key = self.key()
        consumer = self.consumer(broker, key)
        published = self.publish(broker, key.topic, 5)
        for delivery in self.take(consumer, 5):
            consumer.dead_letter(delivery, DeadLetterReason("rejected", detail=delivery.message.id))
        letters = self.dead_letters(broker, key)
        assert [letter.message.id for letter in letters] == published[::-1]
        assert [letter.reason.detail for letter in letters] == published[::-1]
        assert len({letter.position for letter in letters}) == 5
        assert list(self.dead_letters(broker, key, limit=2)) == list(letters[:2])
        inspector = self.inspector(broker)
        assert list(inspector.dead_letters(key, 2, before=letters[1].position)) == list(letters[2:4])
        assert not inspector.dead_letters(key, 0)
        assert not inspector.dead_letters(key, before=letters[4].position)

    @needs("inspect")
    def test_dead_letters_are_those_of_one_group(self, broker: Broker) -> None:
        """A group without any has none, whether it exists or not."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        consumer, other = self.joined(broker, billing), self.joined(broker, shipping)
        self.publish(broker, billing.topic)
        consumer.dead_letter(self.take_one(consumer), REASON)
        assert len(self.dead_letters(broker, billing)) == 1
        assert not self.dead_letters(broker, shipping)
        assert not self.dead_letters(broker, self.key(billing.topic, "nobody"))
        assert not self.dead_letters(broker, self.key())
        assert self.take_one(other).message.attempt == 1

    @needs("inspect")
    def test_a_dead_letter_knows_when_it_failed_first(self, strict_broker: Broker) -> None:
        """By a nack or a crash; a release is no failure."""
        nacked, crashed = self.key(), self.key()
        for key in (nacked, crashed):
            mortal = self.joined(strict_broker, key)
            self.publish(strict_broker, key.topic)
            mortal.release([self.take_one(mortal)])
            self.pass_time(2 * self.heartbeat)
            before = self.clock.time()
            delivery = self.take_one(mortal)
            if key == nacked:
                mortal.nack(delivery, 2 * self.heartbeat)
            self.lose(mortal)
            other = self.joined(strict_broker, key)
            (delivery,) = self.take_over(other, 1)
            between = self.clock.time()
            self.pass_time(2 * self.heartbeat)
            other.dead_letter(delivery, REASON)
            (letter,) = self.dead_letters(strict_broker, key)
            first, last = letter.first_failed_at.timestamp(), letter.last_failed_at.timestamp()
            assert before - SLACK <= first <= between + SLACK < last + 2 * SLACK

    def inspector(self, broker: Broker) -> Inspector:
        """Return the broker as what it is, too."""
        assert isinstance(broker, Inspector), "a broker that is no Inspector leaves 'inspect' out of `features`"
        return broker

    def _buried(self, broker: Broker, key: SubscriptionKey, count: int) -> list[str]:
        """Publish so many messages that become dead letters of the group; return their ids."""
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic, count)
        for delivery in self.take(consumer, count):
            consumer.dead_letter(delivery, REASON)
        self.leave(consumer)
        return published

    @needs("inspect")
    def test_a_replay_comes_to_its_group_alone(self, broker: Broker) -> None:
        """As it was published, as the first attempt; the letter is gone."""
        billing = self.key()
        shipping, late = self.key(billing.topic, "shipping"), self.key(billing.topic, "late")
        consumer, other = self.joined(broker, billing), self.joined(broker, shipping)
        sent = self.message(billing.topic, bytes(range(256)), key="k", headers={"a": "✓"})
        broker.publish([sent])
        other.ack([self.take_one(other)])
        consumer.nack(self.take_one(consumer), 0)
        consumer.dead_letter(self.take_one(consumer), REASON)
        (letter,) = self.dead_letters(broker, billing)
        assert self.inspector(broker).replay(billing, [letter.position]) == 1
        assert not self.dead_letters(broker, billing)
        again = self.take_one(consumer)
        message = again.message
        assert (message.id, message.topic, message.payload, message.key) == (sent.id, *billing[:1], sent.payload, "k")
        assert (dict(message.headers), message.source, message.attempt) == ({"a": "✓"}, "replay", 1)
        assert abs(message.published_at - sent.published_at) < timedelta(milliseconds=1)
        assert (message.group, again.crashes) == (billing.group, 0)
        self.nothing_comes(other)
        newcomer = self.consumer(broker, late)
        assert ids(self.take(newcomer, 1)) == [sent.id]
        self.nothing_comes(newcomer)
        consumer.nack(again, 0)
        again = self.take_one(consumer)
        assert (again.message.attempt, again.message.source) == (2, "replay")
        consumer.dead_letter(again, REASON)
        (letter,) = self.dead_letters(broker, billing)
        assert (letter.message.id, letter.message.attempt) == (sent.id, 2)
        assert self.inspector(broker).replay(billing, [letter.position]) == 1
        consumer.ack([self.take_one(consumer)])
        self.nothing_comes(consumer, other)

    @needs("inspect")
    def test_a_replay_outlives_the_group_that_is_away(self, broker: Broker) -> None:
        """Nobody consumes it, and others pass over it: it waits."""
        key = self.key()
        published = self._buried(broker, key, 1)
        other = self.consumer(broker, self.key(key.topic, "shipping"))
        self.take(other, 1)
        (letter,) = self.dead_letters(broker, key)
        self.inspector(broker).replay(key, [letter.position])
        self.nothing_comes(other)
        assert ids(self.take(self.consumer(broker, key), 1)) == published

    @needs("inspect")
    def test_some_dead_letters_are_replayed_and_some_discarded(self, broker: Broker) -> None:
        """Those that are named, once; what is not there is no error. A discarded one is gone."""
        key = self.key()
        published = self._buried(broker, key, 250)
        consumer, inspector = self.joined(broker, key), self.inspector(broker)
        letters = self.dead_letters(broker, key, 250)[::-1]
        positions = [letter.position for letter in letters]
        assert inspector.discard(key, positions[200:]) == 50
        assert inspector.discard(key, positions[200:]) == 0
        assert inspector.replay(key, positions[:150]) == 150
        assert inspector.replay(key, positions[:150]) == 0
        assert inspector.replay(key, []) == inspector.discard(key, []) == 0
        assert inspector.replay(self.key(), positions) == inspector.discard(self.key(), positions) == 0
        assert sorted(ids(self.take(consumer, 150))) == sorted(published[:150])
        assert [letter.message.id for letter in self.dead_letters(broker, key)][::-1] == published[150:200][-100:]
        self.nothing_comes(consumer)

    @needs("inspect")
    def test_a_replay_wakes_who_waits(self, broker: Broker) -> None:
        """Promptly."""
        key = self.key()
        published = self._buried(broker, key, 1)
        receiving = self.waiting(self.joined(broker, key))
        self.inspector(self.open()).replay(key, [one.position for one in self.dead_letters(broker, key)])
        assert ids(receiving.result(5.0)) == published

    @needs("inspect")
    def test_groups_tell_how_they_stand(self, broker: Broker) -> None:
        """What they have in hand and have still to read, and by how many consumers."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        inspector = self.inspector(broker)
        assert not inspector.groups(billing.topic)
        consumer, _ = self.joined(broker, billing), self.joined(broker, billing)
        other = self.joined(broker, shipping)
        before = datetime.fromtimestamp(self.clock.time() - 1, UTC)
        self.publish(broker, billing.topic, 3)
        first, second, third = self.take(consumer, 3)
        consumer.nack(first, 3600)
        consumer.ack([second])
        self.leave(other)
        one, two = inspector.groups(billing.topic)
        assert (one.key, one.pending, one.consumers, one.dropped) == (billing, 2, 2, 0)
        assert (two.key, two.pending, two.consumers) == (shipping, 0, 0)
        for state in (one, two):
            assert state.oldest_unsettled is not None
            assert before <= state.oldest_unsettled <= datetime.fromtimestamp(self.clock.time() + 1, UTC)
        consumer.ack([first, third])
        assert inspector.groups(billing.topic)[0].oldest_unsettled is None

    @needs("inspect")
    def test_a_group_without_consumers_can_be_removed(self, broker: Broker) -> None:
        """With its dead letters; one that comes again begins anew."""
        key = self.key()
        published = self._buried(broker, key, 2)
        consumer, inspector = self.joined(broker, key), self.inspector(broker)
        consumer.maintain()
        with pytest.raises(ConsumersPresent, match=key.group):
            inspector.remove_group(key)
        assert len(self.dead_letters(broker, key)) == 2
        self.leave(consumer)
        inspector.remove_group(key)
        inspector.remove_group(key)
        inspector.remove_group(self.key())
        assert not inspector.groups(key.topic)
        assert not self.dead_letters(broker, key)
        assert ids(self.take(self.consumer(broker, key), 2)) == published

    @needs("inspect")
    def test_a_second_dead_letter_raises_lease_lost_and_changes_nothing(self, broker: Broker) -> None:
        """One is kept, with the first reason."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic)
        delivery = self.take_one(consumer)
        consumer.dead_letter(delivery, REASON)
        with pytest.raises(LeaseLost):
            consumer.dead_letter(delivery, DeadLetterReason("rejected"))
        assert [letter.reason for letter in self.dead_letters(broker, key)] == [REASON]

    def test_a_dead_letter_is_delivered_no_more(self, strict_broker: Broker) -> None:
        """Not to its group, after a close or a crash; the other group still gets the message."""
        billing = self.key()
        shipping = self.key(billing.topic, "shipping")
        closing, crashing, colleague = (self.joined(strict_broker, billing) for _ in range(3))
        other = self.joined(strict_broker, shipping)
        self.publish(strict_broker, billing.topic, 2)
        for consumer in (closing, crashing):
            consumer.dead_letter(self.take_one(consumer), REASON)
        self.leave(closing)
        self.lose(crashing)
        self.nothing_comes(colleague, during=8 * self.heartbeat)
        self.take(other, 2)

    # Consumers that vanish.

    def test_a_vanished_consumers_deliveries_come_to_another(self, strict_broker: Broker) -> None:
        """On an idle topic too, not before its heartbeat has run out; the attempt counts."""
        key = self.key()
        mortal, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        published = self.publish(strict_broker, key.topic, 3)
        taken = self.take(mortal, 3)
        mortal.ack(taken[1:2])
        last = self.lose(mortal)
        first = self.take_over(other, 1)
        passed = self.clock.time() - last
        other.ack(first)
        again = first + self.take_over(other, 1)
        # 4 heartbeats after the last sign of life, which may be as much as one older than the last call of `maintain`.
        assert passed >= 3 * self.heartbeat - SLACK, f"taken over {passed} s after a sign of life"
        assert ids(again) == [published[0], published[2]]
        assert [delivery.message.attempt for delivery in again] == [2, 2]
        self.nothing_comes(other, during=6 * self.heartbeat)

    def test_a_slow_consumer_keeps_its_deliveries_as_long_as_it_lives(self, strict_broker: Broker) -> None:
        """However long that takes: it settles them then."""
        key = self.key()
        slow, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        published = self.publish(strict_broker, key.topic, 2)
        first, second = self.take(slow, 2)
        self.nothing_comes(other, during=14 * self.heartbeat)
        slow.ack([first])
        slow.nack(second, 0)
        again = self.take_one(other)
        assert (again.message.id, again.message.attempt) == (published[1], 2)

    def test_what_many_hold_in_many_groups_is_taken_over(self, strict_broker: Broker) -> None:
        """Two consumers with 2 topics, 2 groups and 300 messages vanish at once: each comes once."""
        keys = [self.key(), self.key()]
        keys += [self.key(key.topic, "shipping") for key in keys]
        mortals = [self.joined(strict_broker, *keys) for _ in range(2)]
        other = self.joined(strict_broker, *keys)
        for key in keys[:2]:
            self.publish(strict_broker, key.topic, 150)
        held: Counter[tuple[SubscriptionKey, str]] = Counter()
        deadline = monotonic() + self.patience
        while held.total() < 600:
            assert monotonic() < deadline, f"{held.total()} of 600 deliveries came within {self.patience} s"
            for mortal in mortals:
                self.keep_alive()
                held.update((d.subscription, d.message.id) for d in mortal.receive(self.credit(mortal, 40), wait=0.02))
        for mortal in mortals:
            self.lose(mortal)
        again = self.take_over(other, 600)
        assert Counter((d.subscription, d.message.id) for d in again) == held
        assert set(held.values()) == {1}
        assert {d.message.attempt for d in again} == {2}
        self.nothing_comes(other, during=4 * self.heartbeat)

    def test_every_crash_counts(self, strict_broker: Broker) -> None:
        """So that a message which kills its process can be given up."""
        key = self.key()
        self.publish(strict_broker, key.topic)
        for attempt in (1, 2, 3):
            mortal = self.consumer(strict_broker, key)
            (delivery,) = self.take_over(mortal, 1)
            assert (delivery.message.attempt, delivery.crashes) == (attempt, attempt - 1)
            self.lose(mortal)

    def test_only_crashes_count_as_crashes(self, strict_broker: Broker) -> None:
        """Not a nack, a release or a close; and none of these makes a suspect innocent."""
        key = self.key()
        mortal, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        self.publish(strict_broker, key.topic)
        mortal.nack(self.take_one(mortal), 0)
        mortal.release([self.take_one(mortal)])
        delivery = self.take_one(mortal)
        assert (delivery.message.attempt, delivery.crashes) == (2, 0)
        self.lose(mortal)
        (delivery,) = self.take_over(other, 1)
        assert (delivery.message.attempt, delivery.crashes) == (3, 1)
        other.nack(delivery, 0)
        delivery = self.take_one(other)
        assert (delivery.message.attempt, delivery.crashes) == (4, 1)
        other.release([delivery])
        delivery = self.take_one(other)
        assert (delivery.message.attempt, delivery.crashes) == (4, 1)
        last = self.joined(strict_broker, key)
        self.leave(other)
        delivery = self.take_one(last)
        assert (delivery.message.attempt, delivery.crashes) == (4, 1)

    def _suspects(self, broker: Broker, keys: Sequence[SubscriptionKey], count: int, *others: Consumer) -> None:
        """Have so many messages of each topic crash a consumer, so that they are suspects when this returns."""
        mortal = self.joined(broker, *keys)
        for key in keys:
            self.publish(broker, key.topic, count)
        self.take(mortal, count * len(keys))
        self.lose(mortal)

    def test_suspects_come_one_at_a_time(self, strict_broker: Broker) -> None:
        """Of all subscriptions together; what is new comes beside, and another consumer gets another one."""
        keys = [self.key(), self.key()]
        self._suspects(strict_broker, keys, 3)
        first, second = self.joined(strict_broker, *keys), self.joined(strict_broker, *keys)
        held = self.take_over(first, 1) + self.take_over(second, 1)
        self.nothing_comes(first, second)
        for key in keys:
            self.publish(strict_broker, key.topic, 5)
        fresh = self.take(first, 10)
        assert {delivery.crashes for delivery in fresh} == {0}
        self.nothing_comes(first, second)
        first.ack(held[:1])
        second.nack(held[1], 3600)
        again = self.take(first, 1) + self.take(second, 1)
        self.nothing_comes(first, second)
        first.release(again[:1])
        second.dead_letter(again[1], REASON)
        rest = self.take_over(first, 3)
        assert {delivery.crashes for delivery in rest} == {1}
        assert len(set(ids([*held, *rest]))) == 5
        second.ack(rest)
        self.nothing_comes(first, second)

    def test_a_receive_that_waits_returns_the_next_suspect(self, strict_broker: Broker) -> None:
        """As soon as the one before is settled."""
        key = self.key()
        self._suspects(strict_broker, [key], 4)
        consumer = self.joined(strict_broker, key)
        (held,) = self.take_over(consumer, 1)
        for settle in ("ack", "nack", "dead_letter"):
            receiving = self.waiting(consumer)
            match settle:
                case "ack":
                    consumer.ack([held])
                case "nack":
                    consumer.nack(held, 3600)
                case _:
                    consumer.dead_letter(held, REASON)
            (held,) = receiving.result(3.0)
            assert held.crashes == 1

    def test_nothing_comes_beside_a_suspect_at_its_last_chance(self, strict_broker: Broker) -> None:
        """Once it is settled, the rest does."""
        key = self.key()
        self._suspects(strict_broker, [key], 1)
        mortal = self.joined(strict_broker, key)
        self.take_over(mortal, 1)
        self.lose(mortal)
        consumer = self.joined(strict_broker, key)
        (suspect,) = self.take_over(consumer, 1)
        assert suspect.crashes == 2
        self.publish(strict_broker, key.topic, 3)
        self.nothing_comes(consumer)
        receiving = self.waiting(consumer)
        consumer.ack([suspect])
        (first,) = receiving.result(3.0)
        assert {one.crashes for one in [first, *self.take(consumer, 2)]} == {0}

    @pytest.mark.parametrize("settle", ["nack", "dead_letter", "release"])
    def test_a_lost_delivery_cannot_be_settled_but_by_its_new_owner(self, strict_broker: Broker, settle: str) -> None:
        """LeaseLost, or nothing for a release: the frozen consumer changes nothing, and goes on."""
        key = self.key()
        frozen, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        published = self.publish(strict_broker, key.topic)
        late = self.take_one(frozen)
        self.lose(frozen)
        (taken,) = self.take_over(other, 1)
        match settle:
            case "nack":
                with pytest.raises(LeaseLost):
                    frozen.nack(late, 0)
            case "dead_letter":
                with pytest.raises(LeaseLost):
                    frozen.dead_letter(late, REASON)
            case _:
                frozen.release([late])
        if "inspect" in self.features:
            assert not self.dead_letters(strict_broker, key)
        self._alive.append(frozen)
        self.nothing_comes(frozen, other, during=6 * self.heartbeat)
        other.nack(taken, 0)
        again = self.take_one(other)
        assert (again.message.id, again.message.attempt) == (published[0], 3)

    def test_a_frozen_consumer_goes_on_when_it_wakes(self, strict_broker: Broker) -> None:
        """It gets new deliveries, and they are its own; what it lost it does not hand back when it closes."""
        key = self.key()
        frozen, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        self.publish(strict_broker, key.topic)
        self.take_one(frozen)
        self.lose(frozen)
        (lost,) = self.take_over(other, 1)
        self._alive.append(frozen)
        self.keep_alive()
        published = self.publish(strict_broker, key.topic)
        fresh = self.take_one(frozen)
        assert ids([fresh]) == published
        self.nothing_comes(other, during=6 * self.heartbeat)
        frozen.nack(fresh, 0)
        assert self.take_one(other).message.attempt == 2
        self.leave(frozen)
        self.nothing_comes(other)
        other.nack(lost, 0)
        assert self.take_one(other).message.attempt == 3

    def test_a_frozen_consumer_that_went_on_is_taken_over_from_again(self, strict_broker: Broker) -> None:
        """It is watched as before."""
        key = self.key()
        frozen, other = self.joined(strict_broker, key), self.joined(strict_broker, key)
        self.publish(strict_broker, key.topic)
        self.take_one(frozen)
        self.lose(frozen)
        other.ack(self.take_over(other, 1))
        self._alive.append(frozen)
        published = self.publish(strict_broker, key.topic)
        self.take_one(frozen)
        self.lose(frozen)
        (again,) = self.take_over(other, 1)
        assert (again.message.id, again.message.attempt) == (published[0], 2)

    def test_maintain_says_when_it_wants_to_be_called_again(self, strict_broker: Broker) -> None:
        """In time for its consumer to stay alive; before the first receive, too."""
        consumer = self.consumer(strict_broker, self.key())
        for _ in range(3):
            assert 0 <= consumer.maintain() < 4 * self.heartbeat
            consumer.receive(self.credit(consumer, 1), wait=0)

    # Closing a consumer.

    def test_close_hands_back_what_is_held(self, broker: Broker) -> None:
        """At once, uncounted, and nothing but what this consumer holds."""
        key = self.key()
        leaving, staying, other = (self.joined(broker, key) for _ in range(3))
        published = self.publish(broker, key.topic, 6)
        acked, nacked, *held = self.take(leaving, 4)
        kept = self.take(staying, 2)
        leaving.ack([acked])
        leaving.nack(nacked, 0.5)
        self.leave(leaving)
        again = self.take(other, 2)
        assert ids(again) == ids(held) == published[2:4]
        assert {delivery.message.attempt for delivery in again} == {1}
        assert not other.receive({key: 10}, wait=0)
        later = self.take_one(other, step=0.1)
        assert (later.message.id, later.message.attempt) == (published[1], 2)
        for delivery in kept:
            staying.nack(delivery, 0)
        assert {d.message.attempt for d in self.take(staying, 2)} == {2}

    def test_a_consumer_may_be_closed_twice(self, broker: Broker) -> None:
        """The second time nothing happens; nor if it never received."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        unused = self.consumer(broker, key)
        self.publish(broker, key.topic)
        self.take_one(consumer)
        self._alive = [other]
        self.leave(consumer)
        assert self.take_one(other).message.attempt == 1
        for each in (consumer, unused, unused):
            each.close()
        self.nothing_comes(other)

    def test_a_group_outlives_its_last_consumer(self, broker: Broker) -> None:
        """What is published meanwhile waits for the next one."""
        key = self.key()
        first = self.joined(broker, key, start="latest")
        self.leave(first)
        published = self.publish(broker, key.topic, 3)
        assert ids(self.take(self.consumer(broker, key, start="latest"), 3)) == published

    # Receiving.

    def test_a_consumer_has_the_name_that_it_was_given(self, broker: Broker) -> None:
        """Before and after it has joined."""
        consumer = broker.consumer([Membership(self.key())], "worker-7")
        assert consumer.name == "worker-7"
        self.leave(consumer)
        assert consumer.name == "worker-7"

    def test_no_more_than_the_credit_of_each_subscription_is_received(self, broker: Broker) -> None:
        """And nothing of those with a credit of 0, or with none: it stays for later."""
        some, more, zero, unnamed = keys = [self.key() for _ in range(4)]
        consumer = self.joined(broker, *keys)
        broker.publish([self.message(key.topic) for key in keys for _ in range(20)])
        received: Counter[SubscriptionKey] = Counter()
        for _ in range(3):
            got = Counter(d.subscription for d in consumer.receive({some: 2, more: 5, zero: 0}, wait=0.1))
            assert got[some] <= 2
            assert got[more] <= 5
            received += got
        assert received[zero] == received[unnamed] == 0
        rest = Counter(d.subscription for d in self.take(consumer, 80 - received.total()))
        assert rest + received == dict.fromkeys(keys, 20)

    def test_no_more_than_the_credit_is_received_of_what_comes_again(self, broker: Broker) -> None:
        """Together with what is new."""
        key = self.key()
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic, 10)
        for delivery in self.take(consumer, 10):
            consumer.nack(delivery, 0)
        self.publish(broker, key.topic, 10)
        attempts: Counter[int] = Counter()
        deadline = monotonic() + self.patience
        while attempts.total() < 20:
            assert monotonic() < deadline, f"only {attempts} came"
            received = consumer.receive({key: 3}, wait=0.02)
            assert len(received) <= 3
            attempts.update(delivery.message.attempt for delivery in received)
            consumer.ack(received)
        assert attempts == {1: 10, 2: 10}

    def test_a_busy_subscription_starves_no_other(self, broker: Broker) -> None:
        """One message of a quiet topic comes within a few receives, however much the busy one has."""
        busy, quiet = self.key(), self.key()
        for keys in ((busy, quiet), (quiet, busy)):
            consumer = self.consumer(broker, *keys)
            self.publish(broker, busy.topic, 200)
            self.publish(broker, quiet.topic)
            seen: list[SubscriptionKey] = []
            for _ in range(10):
                received = consumer.receive(dict.fromkeys(keys, 2), wait=0.1)
                seen += [delivery.subscription for delivery in received]
                consumer.ack(received)
            assert seen.count(quiet) == 1
            assert seen.count(busy) >= 8

    def test_an_empty_receive_returns_within_its_wait(self, broker: Broker) -> None:
        """At once, if it shall not wait."""
        consumer = self.joined(broker, self.key(), self.key())
        for wait in (0, 0.3):
            before = monotonic()
            assert len(consumer.receive(self.credit(consumer, 5), wait)) == 0
            assert monotonic() - before < wait + 1.5

    def test_a_receive_without_credit_returns_within_its_wait(self, broker: Broker) -> None:
        """There is nothing to ask for."""
        key = self.key()
        consumer = self.joined(broker, key)
        self.publish(broker, key.topic)
        before = monotonic()
        for credit in ({}, {key: 0}):
            assert len(consumer.receive(credit, 0.2)) == 0
        assert monotonic() - before < 3.0

    def test_wake_ends_a_receive_that_waits(self, broker: Broker) -> None:
        """Each time anew."""
        consumer = self.joined(broker, self.key())
        for _ in range(3):
            receiving = self.in_thread(consumer.receive, self.credit(consumer, 1), LONG)
            self.moment()
            consumer.wake()
            assert len(receiving.result(3.0)) == 0

    def test_a_wake_is_remembered_by_the_next_receive(self, broker: Broker) -> None:
        """If none waits at the time."""
        consumer = self.joined(broker, self.key())
        consumer.wake()
        consumer.wake()
        before = monotonic()
        assert len(consumer.receive(self.credit(consumer, 1), LONG)) == 0
        assert monotonic() - before < 3.0

    def test_a_receive_that_waits_returns_what_is_published(self, broker: Broker) -> None:
        """Promptly, whichever of its topics it is."""
        keys = [self.key() for _ in range(3)]
        consumer = self.joined(broker, *keys)
        for key in keys:
            receiving = self.waiting(consumer)
            published = self.publish(self.open(), key.topic)
            assert ids(receiving.result(3.0)) == published

    def test_a_receive_that_waits_returns_what_is_released(self, broker: Broker) -> None:
        """And what a closing consumer hands back."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(self.open(), key)
        published = self.publish(broker, key.topic, 2)
        first, second = self.take(consumer, 2)
        receiving = self.waiting(other)
        consumer.release([first])
        assert ids(receiving.result(5.0)) == ids([first])
        receiving = self.waiting(other)
        self.leave(consumer)
        assert ids(receiving.result(5.0)) == ids([second]) == published[1:]

    def test_a_receive_that_waits_returns_what_comes_due(self, broker: Broker) -> None:
        """Though it began to wait before the nack."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(self.open(), key)
        published = self.publish(broker, key.topic)
        delivery = self.take_one(consumer)
        receiving = self.waiting(other)
        consumer.nack(delivery, 0.5)
        self.moment()
        self.pass_time(0.6)
        (again,) = receiving.result(5.0)
        assert (again.message.id, again.message.attempt) == (published[0], 2)

    def test_a_receive_that_waits_holds_up_nothing_else(self, broker: Broker) -> None:
        """Neither other methods of its consumer nor the broker."""
        key, idle = self.key(), self.key()
        consumer = self.consumer(broker, key, idle)
        self.publish(broker, key.topic, 5)
        acked, nacked, released, dead, done = self.take(consumer, 5)
        receiving = self.in_thread(consumer.receive, {idle: 1}, LONG, [done])
        self.moment()
        before = monotonic()
        consumer.ack([acked])
        consumer.nack(nacked, 0)
        consumer.release([released])
        consumer.dead_letter(dead, REASON)
        consumer.maintain()
        self.publish(broker, key.topic)
        assert monotonic() - before < 5.0
        consumer.wake()
        assert len(receiving.result(3.0)) == 0
        self.take(self.consumer(broker, key), 3)

    def test_many_consumers_may_make_a_group_at_the_same_time(self, broker: Broker) -> None:
        """One makes it, and the others join."""
        key = self.key()
        published = self.publish(broker, key.topic, 40)
        consumers = [self.consumer(broker, key) for _ in range(8)]
        barrier = threading.Barrier(8)

        def receive(consumer: Consumer) -> list[str]:
            barrier.wait(self.patience)
            received: list[str] = []
            deadline = monotonic() + self.patience
            while len(received) < 5 and monotonic() < deadline:
                received += ids(consumer.receive({key: 5 - len(received)}, wait=0.1))
            return received

        receiving = [self.in_thread(receive, consumer) for consumer in consumers]
        assert sorted(one for each in receiving for one in each.result(2 * self.patience)) == sorted(published)

    def test_many_threads_lose_nothing_and_see_nothing_twice(self, broker: Broker) -> None:
        """Four publish; three consumers receive, acknowledge from two threads each, and are replaced over and over."""
        key = self.key()
        lock = threading.Lock()
        published: list[str] = []
        acked: Counter[str] = Counter()
        attempts: Counter[int] = Counter()
        everything_acked = threading.Event()
        deadline = monotonic() + 3 * self.patience

        def publish() -> None:
            for count in (1, 5, 1, 30, 1, 12) * 5:
                ids = self.publish(broker, key.topic, count)
                with lock:
                    published.extend(ids)

        def note(deliveries: Sequence[Delivery[bytes]]) -> Sequence[Delivery[bytes]]:
            with lock:
                acked.update(ids(deliveries))
                attempts.update(delivery.message.attempt for delivery in deliveries)
                if len(acked) == 1000:
                    everything_acked.set()
            return deliveries

        def maintain(consumer: Consumer, left: threading.Event) -> None:
            while not left.wait(0.02):
                consumer.maintain()

        def work() -> None:
            receives = 0
            while not everything_acked.is_set() and monotonic() < deadline:
                consumer = self.consumer(broker, key)
                self._alive.remove(consumer)
                left = threading.Event()
                maintaining = self.in_thread(maintain, consumer, left)
                done: Sequence[Delivery[bytes]] = ()
                settling: list[Future[None]] = []
                for _ in range(25):
                    received = consumer.receive({key: 7}, wait=0.05, done=done)
                    receives += 1
                    done = note(received[0::3])
                    acking = note(received[1::3])
                    settling.append(self.in_thread(consumer.ack, acking))
                    if receives % 2:
                        consumer.release(received[2::3])  # the others are handed back by `close`
                    if everything_acked.is_set():
                        break
                consumer.ack(done)
                for each in settling:
                    each.result(self.patience)
                left.set()
                maintaining.result(self.patience)
                self.leave(consumer)

        threads = [self.in_thread(publish) for _ in range(4)] + [self.in_thread(work) for _ in range(3)]
        for thread in threads:
            thread.result(4 * self.patience)
        assert acked == Counter(published)
        assert attempts == {1: 1000}
        self.nothing_comes(self.consumer(broker, key))

    # What only some backends can do.

    @needs("foreign")
    def test_an_entry_of_another_program_is_delivered(self, broker: Broker) -> None:
        """In its place among ours, with its position as its id; it is retried and acknowledged like any."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        before = self.publish(broker, key.topic)
        self.foreign(broker, key.topic, {"name": "Zoë", "n": "1", "": "", "payload": "\n✓"})
        after = self.publish(broker, key.topic)
        first, middle, last = self.take(consumer, 3)
        message = middle.message
        assert ids([first, last]) == before + after
        assert message.id == message.position
        assert (message.topic, message.group, message.attempt, message.source) == (*key, 1, "publish")
        assert isinstance(message.payload, bytes)
        assert "Zoë" in message.payload.decode() or b"Zo\\u00eb" in message.payload
        assert message.published_at.utcoffset() is not None
        consumer.nack(middle, 0)
        again = self.take_one(consumer)
        assert (again.message.id, again.message.payload, again.message.attempt) == (message.id, message.payload, 2)
        consumer.ack([again, first, last])
        self.leave(consumer)
        self.nothing_comes(other)

    @needs("undecodable")
    def test_an_entry_that_cannot_be_read_holds_up_nothing(self, broker: Broker) -> None:
        """It is delivered as best it can be, so that it can become a dead letter."""
        key = self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        before = self.publish(broker, key.topic)
        self.undecodable(broker, key.topic)
        after = self.publish(broker, key.topic)
        first, middle, last = self.take(consumer, 3)
        assert ids([first, last]) == before + after
        assert middle.message.position
        assert isinstance(middle.message.payload, bytes)
        consumer.dead_letter(middle, DeadLetterReason("undecodable"))
        if "inspect" in self.features:
            (letter,) = self.dead_letters(broker, key)
            assert (letter.message.id, letter.reason.kind) == (middle.message.id, "undecodable")
        consumer.ack([first, last])
        self.leave(consumer)
        self.nothing_comes(other)

    @needs("fork")
    def test_a_forked_child_may_use_the_broker_too(self, broker: Broker) -> None:
        """To publish, while its parent goes on receiving."""
        key = self.key()
        consumer = self.joined(broker, key)
        before = self.publish(broker, key.topic)
        message = self.message(key.topic)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: that is what is tested
            child = os.fork()
        if not child:
            status = 1
            try:
                broker.publish([message])
                status = 0
            finally:
                os._exit(status)
        after = self.publish(broker, key.topic)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child could not publish"
        assert sorted(ids(self.take(consumer, 3))) == sorted([*before, message.id, *after])
        self.publish_and_take(broker, consumer, key)

    # Bounded topics and durability

    def bounded(self, most: int, overflow: Overflow = "reject") -> SubscriptionKey:
        """Return the key of a subscription to a new topic that holds so many messages."""
        key = self.key()
        self.topics[key.topic] = TopicOptions(max_backlog=most, overflow=overflow)
        return key

    def test_a_bound_is_kept_or_refused(self, broker: Broker) -> None:
        """Whoever cannot keep it stores nothing, instead of more than was said."""
        key = self.bounded(5)
        try:
            published = self.publish(broker, key.topic)
        except Unsupported:
            published = []
        assert len(published) == ("bounded" in self.features)
        consumer = self.consumer(broker, key)
        assert ids(self.take(consumer, len(published))) == published
        self.nothing_comes(consumer, during=0.05)

    @needs("bounded")
    @pytest.mark.parametrize("count", [1, 3])
    def test_a_full_topic_refuses_more(self, broker: Broker, count: int) -> None:
        """All of a batch or nothing of it, with or without a group; and takes it when there is room again."""
        key = self.bounded(4)
        published = self.publish(broker, key.topic, 3)
        if count == 1:
            published += self.publish(broker, key.topic)
        for _ in range(2):
            with pytest.raises(BrokerFull, match=f"(?s){key.topic}.*max_backlog=4"):
                self.publish(broker, key.topic, count)
        consumer = self.consumer(broker, key)
        taken = self.take(consumer, len(published))
        assert ids(taken) == published
        with pytest.raises(BrokerFull):
            self.publish(broker, key.topic, count)
        consumer.ack(taken)
        published = self.publish(broker, key.topic, count)
        assert ids(self.take(consumer, count)) == published

    @needs("bounded")
    def test_only_what_every_group_has_settled_gives_way(self, broker: Broker) -> None:
        """In the order of publishing: an open delivery holds back what comes after it, too."""
        key = self.bounded(5)
        other = self.key(key.topic, "shipping")
        published = self.publish(broker, key.topic, 5)
        mine, theirs = self.consumer(broker, key), self.consumer(broker, other)
        taken, also_taken = self.take(mine, 5), self.take(theirs, 5)
        mine.ack(taken)
        with pytest.raises(BrokerFull):
            self.publish(broker, key.topic)
        theirs.ack([also_taken[0], *also_taken[2:]])
        theirs.nack(also_taken[1], 3600)
        published += self.publish(broker, key.topic)
        with pytest.raises(BrokerFull):
            self.publish(broker, key.topic)
        assert ids(self.take(mine, 1)) == ids(self.take(theirs, 1)) == published[5:]
        third = self.key(key.topic, "audit")
        assert ids(self.take(self.consumer(broker, third), 5)) == published[1:]

    @needs("bounded")
    def test_a_batch_that_can_never_fit_is_refused(self, broker: Broker) -> None:
        """However its messages would be dropped; nothing of it is stored, nor of what it has for other topics."""
        free = self.key()
        for overflow in ("reject", "drop_oldest"):
            key = self.bounded(3, overflow)
            with pytest.raises(BrokerFull, match=f"4 messages for topic '{key.topic}'"):
                broker.publish([self.message(free.topic), *(self.message(key.topic) for _ in range(4))])
            self.nothing_comes(self.consumer(broker, key, free), during=0.05)

    @needs("bounded")
    @pytest.mark.parametrize("count", [1, 3])
    def test_a_full_topic_may_drop_its_oldest(self, broker: Broker, count: int) -> None:
        """Whether a group has been handed them, or not; they are counted, and the others keep their order."""
        key = self.bounded(6, "drop_oldest")
        consumer = self.consumer(broker, key)
        published = [one for _ in range(12 // count) for one in self.publish(broker, key.topic, count)]
        taken = self.take(consumer, 6)
        assert ids(taken) == published[-6:]
        consumer.ack(taken[:count])
        published = self.publish(broker, key.topic, count)  # in place of what is settled: nothing is dropped
        assert ids(self.take(consumer, count)) == published
        if "inspect" in self.features:
            assert isinstance(broker, Inspector)
            assert [one.dropped for one in broker.groups(key.topic)] == [6]

    @needs("bounded")
    def test_what_waits_for_its_retry_may_be_dropped_too(self, broker: Broker) -> None:
        """What is in hand may still be settled."""
        key = self.bounded(2, "drop_oldest")
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic, 2)
        held, failed = self.take(consumer, 2)
        consumer.nack(failed, 0.05)
        published = self.publish(broker, key.topic, 2)
        self.pass_time(0.1)
        assert ids(self.take(consumer, 2)) == published
        consumer.ack([held])
        self.nothing_comes(consumer, during=0.1)

    @needs("bounded")
    def test_what_was_dropped_while_it_was_in_hand_is_a_whole_dead_letter(self, broker: Broker) -> None:
        """Also of a replay."""
        key = self.bounded(2, "drop_oldest")
        consumer = self.consumer(broker, key)
        published = self.message(key.topic, b'{"a":1}', key="", headers={"b": "c"})
        broker.publish([replace(published, expires_at=published.published_at + timedelta(hours=1))])
        for source, count in (("publish", 1), ("replay", 3)):
            taken = self.take(consumer, count)
            (delivery,) = [one for one in taken if one.message.id == published.id]
            consumer.ack([one for one in taken if one is not delivery])
            self.publish(broker, key.topic, 2)
            consumer.dead_letter(delivery, REASON)
            if "inspect" not in self.features:
                return
            assert isinstance(broker, Inspector)
            (letter,) = self.dead_letters(broker, key)
            assert letter.message == delivery.message
            assert letter.message.source == source
            assert (letter.message.payload, letter.message.key) == (published.payload, "")
            assert letter.message.headers == {"b": "c"}
            assert broker.replay(key, [letter.position]) == 1

    @needs("bounded")
    def test_a_large_batch_fits_into_a_large_topic(self, broker: Broker) -> None:
        """More than one request of most backends, and the settled before it is more than a script likes to count."""
        key = self.bounded(2500)
        consumer = self.consumer(broker, key)
        self.publish(broker, key.topic, 2500)
        consumer.ack(self.take(consumer, 2500))
        published = self.publish(broker, key.topic, 2400)
        assert ids(self.take(consumer, 2400)) == published

    @pytest.mark.parametrize("count", [1, 40])
    def test_publishing_again_stores_nothing_twice(self, broker: Broker, count: int) -> None:
        """What is stored already, by another broker too, is passed over; what is not is added."""
        for topic in [one.topic for one in (self.key(), self.bounded(count))[: 1 + ("bounded" in self.features)]]:
            batch = [self.message(topic) for _ in range(count)]
            broker.publish(batch[: count // 2])
            for one in (broker, self.open()):
                one.publish(batch, again=True)
            consumer = self.consumer(broker, SubscriptionKey(topic, "billing"))
            taken = self.take(consumer, count)
            assert ids(taken) == [one.id for one in batch]
            consumer.ack(taken)
            broker.publish(batch, again=True)
            self.nothing_comes(consumer, during=0.05)

    @pytest.mark.parametrize("durability", [Durability(fsync=True), Durability(replicas=1), Durability(True, 1)])
    def test_a_durability_is_confirmed_or_said_not_to_be(self, broker: Broker, durability: Durability) -> None:
        """Whatever the server can do: stored and confirmed, stored and not confirmed, or refused."""
        key = self.key()
        messages = [self.message(key.topic) for _ in range(3)]
        consumer = self.joined(broker, key)
        stored = unconfirmed = [message.id for message in messages]
        impatient = self.make_broker(BrokerOptions(self.clock, self._namespace, 60.0, 0.5, self.topics))
        self._brokers.append(impatient)
        try:
            impatient.publish(messages, durability)
        except NotConfirmed as error:
            unconfirmed = list(error.message_ids)
        except Unsupported:
            stored = unconfirmed = []
        assert unconfirmed == stored
        assert ids(self.take(consumer, len(stored))) == stored
        self.nothing_comes(consumer, during=0.05)
