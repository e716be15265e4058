"""The part of the conformance kit about time: delayed messages, deduplication, expiry, schedules."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from pubsub_core.broker import Broker, Inspector, Overflow, ScheduleKey, Terms, TopicOptions
from pubsub_core.errors import BrokerFull
from pubsub_core.message import Delivery, Message
from pubsub_core.testing.harness import REASON, SLACK, Harness, ids, needs

_YEAR = 365 * 86_400.0


class TimeConformance(Harness):
    """What every broker must do about time. `BrokerConformance` has these tests too."""

    def publish_with(self, broker: Broker, topic: str, *terms: Terms | None) -> list[str]:
        """Publish a message for each of the terms, all at once; return their ids."""
        messages = [self.message(topic) for _ in terms]
        said = {one.id: own for one, own in zip(messages, terms, strict=True) if own is not None}
        broker.publish(messages, terms=said)
        return [one.id for one in messages]

    # Delayed messages.

    @pytest.mark.parametrize("delay", [0.3, 0.75])
    def test_a_delayed_message_comes_to_every_group_no_sooner_than_due(self, broker: Broker, delay: float) -> None:
        """By its delay, or at its moment."""
        key = self.key()
        other = self.key(key.topic, "shipping")
        consumers = [self.joined(broker, one) for one in (key, other)]
        began = self.clock.time()
        published = self.publish_with(broker, key.topic, Terms(delay), Terms(at=broker.time() + delay))
        for consumer in consumers:
            taken = self.take(consumer, 2, step=delay / 10)
            assert self.clock.time() - began >= delay - SLACK
            assert sorted(ids(taken)) == sorted(published)
            assert {(one.message.attempt, one.message.source) for one in taken} == {(1, "publish")}
            consumer.ack(taken)
        self.nothing_comes(*consumers, during=0.05)

    def test_a_moment_that_is_past_is_now(self, broker: Broker) -> None:
        """In the order of publishing."""
        key = self.key()
        terms = (None, Terms(at=broker.time() - _YEAR), Terms(), Terms(at=broker.time() - 5), None)
        published = self.publish_with(broker, key.topic, *terms)
        assert ids(self.take(self.consumer(broker, key), 5)) == published

    def test_delayed_messages_come_as_they_are_due(self, broker: Broker) -> None:
        """Those of one moment in the order of publishing; behind what was published meanwhile."""
        key = self.key()
        consumer = self.joined(broker, key)
        moment = broker.time() + 0.4
        terms = (Terms(0.6), Terms(at=moment), Terms(0.2), Terms(at=moment), None, Terms(at=moment))
        late, *same, _ = (published := self.publish_with(broker, key.topic, *terms))
        assert late == published[0]
        assert ids(self.take(consumer, 1)) == [published[4]]
        meanwhile = self.publish(broker, key.topic)
        expected = [*meanwhile, published[2], published[1], published[3], published[5], late]
        assert ids(self.take(consumer, 6, step=0.05)) == expected
        assert same[0] == published[1]

    def test_a_delayed_message_is_what_was_published(self, broker: Broker) -> None:
        """Payload, key, headers, and when it was made."""
        key = self.key()
        sent = self.message(key.topic, bytes(range(256)), key="k: ✓", headers={"a": "1:2", "b": ""})
        broker.publish([sent], terms={sent.id: Terms(0.05)})
        message = self.take_one(self.consumer(broker, key), step=0.05).message
        assert (message.id, message.payload, message.key, dict(message.headers)) == (
            sent.id, sent.payload, sent.key, dict(sent.headers)
        )  # fmt: skip
        assert (message.published_at, message.group) == (sent.published_at, key.group)

    def test_many_delayed_messages_come_once_each(self, broker: Broker) -> None:
        """To two consumers that move them at the same time."""
        key = self.key()
        one, other = (self.joined(broker, key) for _ in range(2))
        published = self.publish_with(broker, key.topic, *[Terms(0.1)] * 1200)
        self.pass_time(0.15)
        taken: list[Delivery[bytes]] = []
        deadline = monotonic() + self.patience
        while len(taken) < 1200:
            assert monotonic() < deadline, f"{len(taken)} of 1200 came"
            futures = [self.in_thread(each.receive, {key: 100}, wait=0.02) for each in (one, other)]
            taken += [delivery for future in futures for delivery in future.result(self.patience)]
        assert sorted(ids(taken)) == sorted(published)

    def test_a_receive_that_waits_returns_what_was_delayed(self, broker: Broker) -> None:
        """Without being told."""
        key = self.key()
        consumer = self.joined(broker, key)
        published = self.publish_with(broker, key.topic, Terms(0.4))
        waiting = self.waiting(consumer)
        self.pass_time(0.4)
        assert ids(waiting.result(self.patience)) == published

    def test_a_receive_that_waits_learns_of_what_is_due_earlier(self, broker: Broker) -> None:
        """Published by another broker, while it sleeps until the first one is due."""
        key = self.key()
        consumer = self.joined(broker, key)
        self.publish_with(broker, key.topic, Terms(3600))
        waiting = self.waiting(consumer)
        published = self.publish_with(self.open(), key.topic, Terms(0.3))
        self.pass_time(0.3)
        assert ids(waiting.result(self.patience)) == published

    def test_a_delayed_message_outlives_whoever_published_it(self, broker: Broker) -> None:
        """And needs nobody until there is a consumer."""
        key = self.key()
        other = self.open()
        published = self.publish_with(other, key.topic, Terms(0.05))
        other.close()
        self.pass_time(0.1)
        assert ids(self.take(self.consumer(broker, key), 1)) == published

    # Cancelling.

    def test_a_cancelled_message_never_comes(self, broker: Broker) -> None:
        """Also one that is years away; cancelling again, or what is none, does nothing."""
        key = self.key()
        consumer = self.joined(broker, key)
        soon, late, kept, now = self.publish_with(broker, key.topic, Terms(0.2), Terms(30 * _YEAR), Terms(0.2), None)
        assert [self.open().cancel(key.topic, one) for one in (soon, soon, late, now, "none")] == [
            True, False, True, False, False
        ]  # fmt: skip
        assert ids(self.take(consumer, 2, step=0.05)) == [now, kept]
        self.nothing_comes(consumer, during=0.1)
        assert not broker.cancel(key.topic, kept)

    @needs("inspect")
    def test_what_is_delayed_is_listed(self, broker: Broker) -> None:
        """The next one first."""
        assert isinstance(broker, Inspector)
        key = self.key()
        assert list(broker.delayed(key.topic)) == []
        sent = self.message(key.topic, b"[1]", key="k", headers={"a": "b"})
        broker.publish([sent], terms={sent.id: Terms(3600, dedup="x")})
        (far,) = self.publish_with(broker, key.topic, Terms(30 * _YEAR))
        first, second = broker.delayed(key.topic)
        assert (first.message, second.message.id) == (sent, far)
        assert abs(first.due_at.timestamp() - broker.time() - 3600) < 30
        assert [one.message.id for one in broker.delayed(key.topic, 1)] == [sent.id]

    # Deduplication.

    def test_a_second_message_with_the_same_key_is_not_stored(self, broker: Broker) -> None:
        """The first one's id stands for it; other keys and other topics are apart, and so is no key."""
        key, other = self.key(), self.key()
        first, second, third, plain, elsewhere = (self.message(topic) for topic in (*[key.topic] * 4, other.topic))
        once = Terms(dedup="order: 7 {✓}")
        assert list(broker.publish([first], terms={first.id: once})) == [first.id]
        again = [second, third, plain, elsewhere]
        terms = {second.id: once, third.id: Terms(dedup="order: 8"), elsewhere.id: once}
        assert list(self.open().publish(again, terms=terms)) == [first.id, third.id, plain.id, elsewhere.id]
        consumer = self.consumer(broker, key, other)
        assert sorted(ids(self.take(consumer, 4))) == sorted(one.id for one in (first, third, plain, elsewhere))
        self.nothing_comes(consumer, during=0.05)

    def test_a_key_is_free_again_after_its_window(self, broker: Broker) -> None:
        """Not before, however often it is asked for."""
        key = self.key()
        first, *_ = self.publish_with(broker, key.topic, *[Terms(dedup="a", window=0.5)] * 3)
        self.pass_time(0.1)
        late = self.message(key.topic)
        assert list(broker.publish([late], terms={late.id: Terms(dedup="a", window=0.5)})) == [first]
        self.pass_time(0.5)
        assert list(broker.publish([late], terms={late.id: Terms(dedup="a", window=0.5)})) == [late.id]
        assert ids(self.take(self.consumer(broker, key), 2)) == [first, late.id]

    def test_of_many_at_once_one_is_stored(self, broker: Broker) -> None:
        """And all are told its id."""
        key = self.key()
        brokers = [broker, self.open()]

        def publish(number: int) -> str:
            message = self.message(key.topic)
            (message_id,) = brokers[number % 2].publish([message], terms={message.id: Terms(dedup="a")})
            return message_id

        told = {one.result(self.patience) for one in [self.in_thread(publish, number) for number in range(16)]}
        consumer = self.consumer(broker, key)
        assert set(ids(self.take(consumer, 1))) == told
        self.nothing_comes(consumer, during=0.05)

    def test_delayed_messages_are_deduplicated_too(self, broker: Broker) -> None:
        """While they wait and after they came; whoever cancels one frees its key."""
        key = self.key()
        consumer = self.joined(broker, key)
        first, second, third, fourth = (self.message(key.topic) for _ in range(4))

        def told(message: Message[bytes], delay: float = 0.0) -> str:
            return broker.publish([message], terms={message.id: Terms(delay, dedup="a")})[0]

        assert told(first, 3600) == told(second) == first.id
        assert broker.cancel(key.topic, first.id)
        assert told(third, 0.1) == third.id
        consumer.ack(self.take(consumer, 1, step=0.05))
        assert told(fourth) == third.id
        self.nothing_comes(consumer, during=0.05)

    # Again.

    def test_publishing_again_knows_what_is_delayed(self, broker: Broker) -> None:
        """Whether it still waits, or has come; and what a dedup key stands for."""
        key = self.key()
        messages = [self.message(key.topic) for _ in range(4)]
        terms = {
            messages[0].id: Terms(3600), messages[1].id: Terms(0.05), messages[2].id: Terms(dedup="a"),
        }  # fmt: skip
        broker.publish(messages, terms=terms)
        consumer = self.consumer(broker, key)
        assert sorted(ids(self.take(consumer, 3, step=0.05))) == sorted(one.id for one in messages[1:])
        assert list(self.open().publish(messages, again=True, terms=terms)) == [one.id for one in messages]
        self.nothing_comes(consumer, during=0.1)
        assert broker.cancel(key.topic, messages[0].id)
        self.nothing_comes(consumer, during=0.05)

    # Bounded topics.

    @needs("bounded")
    @pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
    def test_a_delayed_message_keeps_to_the_bounds_of_its_topic(self, broker: Broker, overflow: Overflow) -> None:
        """It counts when it is due: then it waits for room, or the oldest are dropped for it."""
        key = self.key()
        self.topics[key.topic] = TopicOptions(max_backlog=2, overflow=overflow)
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic)
        delayed = self.publish_with(broker, key.topic, Terms(0.1), Terms(0.1), Terms(0.1))
        held = self.take(consumer, 1)
        assert ids(held) == published
        self.pass_time(0.15)
        if overflow == "drop_oldest":
            assert ids(self.take(consumer, 2)) == delayed[-2:]
            return
        first = self.take(consumer, 1)
        self.nothing_comes(consumer, during=0.1)
        consumer.ack([*held, *first])
        assert ids(first + self.take(consumer, 2, step=0.2)) == delayed

    # Expiry.

    def test_a_message_says_when_it_expires(self, broker: Broker) -> None:
        """By the broker's clock: counted from publishing, also if it is delayed, and the same at each attempt."""
        key = self.key()
        consumer = self.joined(broker, key)
        began = broker.time()
        plain, delayed, forever = (self.message(key.topic) for _ in range(3))
        expiring = [replace(one, expires_at=one.published_at + timedelta(seconds=60)) for one in (plain, delayed)]
        broker.publish([*expiring, forever], terms={delayed.id: Terms(0.3)})
        first, without, second = self.take(consumer, 3, step=0.05)
        assert (first.message.id, without.message.id, second.message.id) == (plain.id, forever.id, delayed.id)
        assert without.message.expires_at is None
        for delivery in (first, second):
            assert delivery.message.expires_at is not None
            left = delivery.message.expires_at.timestamp() - began
            assert 60 - SLACK - 0.005 <= left <= 60 + self.patience
        consumer.nack(first, 0.05)
        assert self.take_one(consumer, step=0.05).message.expires_at == first.message.expires_at

    def test_a_message_that_is_stored_late_expires_no_later(self, broker: Broker) -> None:
        """As that of a batch that is committed again; one whose time is over then has expired when it comes."""
        key = self.key()
        consumer = self.joined(broker, key)
        for left in (60, -60):
            now = self.clock.time()
            published_at, expires_at = (datetime.fromtimestamp(one, UTC) for one in (now - 3_600, now + left))
            broker.publish([replace(self.message(key.topic), published_at=published_at, expires_at=expires_at)])
            received = self.take_one(consumer).message
            assert received.expires_at is not None
            remaining = received.expires_at.timestamp() - broker.time()
            assert (0 < remaining <= 60 + SLACK) if left > 0 else remaining <= 0

    @needs("inspect")
    def test_a_replay_does_not_expire(self, broker: Broker) -> None:
        """Its letter still says when it did."""
        assert isinstance(broker, Inspector)
        key = self.key()
        consumer = self.joined(broker, key)
        sent = self.message(key.topic)
        broker.publish([replace(sent, expires_at=sent.published_at + timedelta(seconds=60))])
        consumer.dead_letter(self.take_one(consumer), REASON)
        (letter,) = self.dead_letters(broker, key)
        assert letter.message.expires_at is not None
        assert broker.replay(key, [letter.position]) == 1
        assert self.take_one(consumer).message.expires_at is None

    def test_the_broker_tells_the_time(self, broker: Broker) -> None:
        """Which goes on."""
        before = broker.time()
        assert abs(before - self.clock.time()) < 60
        self.pass_time(0.05)
        assert broker.time() - before >= 0.05 - SLACK

    # Schedules.

    def tick(self, topic: str, tick: float) -> Message[bytes]:
        """Return the message of a tick."""
        return self.message(topic, b"null", source="cron", scheduled_for=datetime.fromtimestamp(tick, UTC))

    def fire(self, broker: Broker, key: ScheduleKey, tick: float, spec: str = "every 1 s") -> str:
        """Fire a tick, and return what came of it."""
        return broker.fire(key, spec, tick, self.tick(key.topic, tick))

    def test_a_new_schedule_starts_now(self, broker: Broker) -> None:
        """One that is known goes on where it was."""
        topic = self.key().topic
        one, other = ScheduleKey(topic, "one"), ScheduleKey(topic, "other")
        assert broker.join_schedules("shop", {}) == {}
        began = broker.time()
        first = broker.join_schedules("shop", {one: "every 1 s"}, is_start=True)
        assert abs(first[one] - began) < self.patience
        self.pass_time(0.1)
        for is_start in (True, False):
            again = self.open().join_schedules("shop", {one: "every 1 s", other: "0 3 * * *"}, is_start=is_start)
            assert again[one] == first[one]
            assert again[other] > first[one]

    def test_a_tick_is_fired_once(self, broker: Broker) -> None:
        """By whoever is first; earlier ones are past then, and those to come are early."""
        key = self.key()
        schedule = ScheduleKey(key.topic, "minutely")
        last = broker.join_schedules("shop", {schedule: "every 1 s"}, is_start=True)[schedule]
        assert self.fire(broker, schedule, last) == "past"
        assert self.fire(broker, schedule, last + 3600) == "early"
        self.pass_time(0.3)
        assert self.fire(broker, schedule, last + 0.1) == "fired"
        other = self.open()
        assert [self.fire(other, schedule, last + after) for after in (0.1, 0.05, 0.2, 0.1)] == [
            "past", "past", "fired", "past"
        ]  # fmt: skip
        first, second = self.take(self.consumer(broker, key), 2)
        assert first.message.source == second.message.source == "cron"
        for delivery, tick in ((first, last + 0.1), (second, last + 0.2)):
            assert delivery.message.scheduled_for is not None
            assert abs(delivery.message.scheduled_for.timestamp() - tick) < 0.001

    def test_many_fire_each_tick_once(self, broker: Broker) -> None:
        """In the order of the ticks."""
        key = self.key()
        schedule = ScheduleKey(key.topic, "often")
        last = broker.join_schedules("shop", {schedule: "every 1 s"}, is_start=True)[schedule]
        self.pass_time(0.2)
        ticks = [last + number / 100 for number in range(1, 21)]
        brokers = [broker, self.open()]

        def fire_all(one: Broker) -> list[str]:
            return [self.fire(one, schedule, tick) for tick in ticks]

        futures = [self.in_thread(fire_all, random.choice(brokers)) for _ in range(8)]
        came_of_it = [outcome for future in futures for outcome in future.result(self.patience)]
        assert sorted(came_of_it) == ["fired"] * 20 + ["past"] * 140
        taken = self.take(self.consumer(broker, key), 20)
        moments = [one.message.scheduled_for for one in taken]
        assert [round(one.timestamp() - last, 2) for one in moments if one] == [number / 100 for number in range(1, 21)]

    def test_a_schedule_that_changed_takes_over_at_once(self, broker: Broker) -> None:
        """By a process that starts. One that has the old one still goes on only if that is not named any more."""
        key = self.key()
        schedule = ScheduleKey(key.topic, "nightly")
        old, new = self.open(superseded_for=1.0), self.open(superseded_for=1.0)
        last = old.join_schedules("shop", {schedule: "old"}, is_start=True)[schedule]
        self.pass_time(0.05)
        assert new.join_schedules("shop", {schedule: "new"})[schedule] == last
        assert self.fire(new, schedule, last + 0.01, "new") == "superseded"
        later = new.join_schedules("shop", {schedule: "new"}, is_start=True)[schedule]
        assert later > last
        self.pass_time(0.05)
        assert self.fire(old, schedule, later + 0.01, "old") == "superseded"
        assert self.fire(new, schedule, later + 0.01, "new") == "fired"
        self.pass_time(1.1)
        assert self.fire(old, schedule, later + 0.02, "old") == "past"  # it is the old one again, and starts now
        self.pass_time(0.05)
        assert self.fire(old, schedule, old.time() - 0.01, "old") == "fired"
        assert len(self.take(self.consumer(broker, key), 2)) == 2

    @needs("inspect")
    def test_a_schedule_that_nobody_names_is_forgotten(self, broker: Broker) -> None:
        """By its own application, and not at once: others may still have it."""
        one = self.open(superseded_for=1.0)
        assert isinstance(one, Inspector)
        mine, gone = ScheduleKey(self.key().topic, "mine"), ScheduleKey(self.key().topic, "gone")
        theirs = ScheduleKey(self.key().topic, "theirs")
        one.join_schedules("shop", {mine: "a", gone: "b"}, is_start=True)
        one.join_schedules("crm", {theirs: "c"}, is_start=True)
        one.join_schedules("shop", {mine: "a"}, is_start=True)
        assert {state.key for state in one.schedules()} == {mine, gone, theirs}
        self.pass_time(1.1)
        one.join_schedules("shop", {mine: "a"})
        known = {state.key: (state.owner, state.spec) for state in one.schedules()}
        assert known == {mine: ("shop", "a"), theirs: ("crm", "c")}
        assert isinstance(broker, Inspector)
        assert {state.key for state in broker.schedules()} == {mine, theirs}

    @needs("inspect")
    def test_a_paused_schedule_fires_nothing(self, broker: Broker) -> None:
        """And does not make up for it."""
        assert isinstance(broker, Inspector)
        key = self.key()
        schedule = ScheduleKey(key.topic, "nightly")
        assert not broker.pause_schedule(schedule, is_paused=True)
        last = broker.join_schedules("shop", {schedule: "every 1 s"}, is_start=True)[schedule]
        assert broker.pause_schedule(schedule, is_paused=True)
        self.pass_time(0.1)
        assert self.fire(broker, schedule, last + 0.02) == "paused"
        assert [state.is_paused for state in broker.schedules()] == [True]
        self.pass_time(0.1)
        for _ in range(2):
            assert broker.pause_schedule(schedule, is_paused=False)
        assert self.fire(broker, schedule, last + 0.05) == "past"
        (state,) = broker.schedules()
        assert not state.is_paused
        resumed = state.last_tick.timestamp()
        assert resumed >= last + 0.2 - 2 * SLACK
        self.pass_time(0.1)
        assert self.fire(broker, schedule, resumed + 0.05) == "fired"
        assert len(self.take(self.consumer(broker, key), 1)) == 1

    @needs("bounded")
    def test_a_tick_waits_for_room_in_its_topic(self, broker: Broker) -> None:
        """It is not fired then, and may be fired later."""
        key = self.key()
        self.topics[key.topic] = TopicOptions(max_backlog=1)
        schedule = ScheduleKey(key.topic, "nightly")
        last = broker.join_schedules("shop", {schedule: "every 1 s"}, is_start=True)[schedule]
        self.publish(broker, key.topic)
        self.pass_time(0.05)
        with pytest.raises(BrokerFull):
            self.fire(broker, schedule, last + 0.01)
        consumer = self.consumer(broker, key)
        consumer.ack(self.take(consumer, 1))
        assert self.fire(broker, schedule, last + 0.01) == "fired"
        assert self.take_one(consumer).message.source == "cron"
