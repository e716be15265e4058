"""The part of the conformance kit about looking and mending: topics, groups, consumers, messages, pauses, seeks."""

from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from pubsub_core import __version__
from pubsub_core.broker import Broker, Consumer, Count, Found, Inspector, ListsPauses, ScheduleKey, Terms
from pubsub_core.errors import BrokerError, ConsumersPresent, LeaseLost
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_core.testing.harness import REASON, SLACK, Harness, ids, needs


class InspectConformance(Harness):
    """What every broker that is an `Inspector` must do. `BrokerConformance` has these tests too."""

    def looking(self, broker: Broker) -> Inspector:
        """Return the broker as what it is, too."""
        assert isinstance(broker, Inspector), "a broker that is no Inspector leaves 'inspect' out of `features`"
        return broker

    def moment_now(self) -> datetime:
        """Return the time as a datetime."""
        return datetime.fromtimestamp(self.clock.time(), UTC)

    # Looking.

    @needs("inspect")
    def test_topics_are_known_by_who_consumes_them(self, broker: Broker) -> None:
        """And by schedules; for good, also when nobody is there any more. Other namespaces have their own."""
        inspector, key, other = self.looking(broker), self.key(), self.key()
        assert not inspector.topics()
        self.leave(self.joined(broker, key, self.key(key.topic, "shipping")))
        broker.join_schedules("shop", {ScheduleKey(other.topic, "nightly"): "every 1 s"}, is_start=True)
        assert inspector.topics() == sorted([key.topic, other.topic])
        elsewhere = self.looking(self.open(namespace=f"{self._namespace}-elsewhere"))
        assert not elsewhere.topics()

    @needs("inspect")
    def test_a_topic_tells_how_it_stands(self, broker: Broker) -> None:
        """How many messages it keeps and since when, how many are to come, and how many groups it has."""
        inspector, key = self.looking(broker), self.key()
        empty = inspector.topic(key.topic)
        assert (empty.topic, empty.messages, empty.oldest, empty.newest) == (key.topic, 0, None, None)
        assert (empty.groups, empty.delayed, empty.dropped) == (0, 0, 0)
        self.joined(broker, key)
        before = self.moment_now()
        self.publish(broker, key.topic)
        self.pass_time(0.05)
        self.publish(broker, key.topic, 2)
        late = self.message(key.topic)
        broker.publish([late], terms={late.id: Terms(3600)})
        state = inspector.topic(key.topic)
        assert (state.messages, state.groups, state.delayed) == (3, 1, 1)
        assert state.oldest is not None
        assert state.newest is not None
        assert before - timedelta(seconds=SLACK) <= state.oldest < state.newest
        assert state.memory is None or state.memory > 0

    @needs("inspect")
    def test_groups_tell_what_waits_and_what_is_parked_and_dead(self, broker: Broker) -> None:
        """Apart from what is in hand."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        self.publish(broker, key.topic, 7)
        first, second, third, fourth = self.take(consumer, 4)
        consumer.nack(first, 3600)
        consumer.nack(second, 3600)
        consumer.dead_letter(third, REASON)
        (state,) = inspector.groups(key.topic)
        assert (state.lag, state.pending, state.parked, state.dead) == (Count(3), 3, 2, 1)
        consumer.ack([fourth])
        taken = self.take(consumer, 3)
        (state,) = inspector.groups(key.topic)
        assert (state.lag, state.pending, state.parked, state.dead) == (Count(0), 5, 2, 1)
        consumer.ack(taken)

    @needs("inspect")
    def test_consumers_tell_who_they_are(self, broker: Broker) -> None:
        """By name, a page at a time; one that left is not among them."""
        inspector, key = self.looking(broker), self.key()
        assert not inspector.consumers(key)
        before = self.moment_now()
        consumers = [self.joined(broker, key) for _ in range(5)]
        names = sorted(one.name for one in consumers)
        self.publish(broker, key.topic, 3)
        taken = self.take(consumers[0], 2)
        states = inspector.consumers(key)
        assert [one.name for one in states] == names
        assert {one.key for one in states} == {key}
        assert [one.name for one in inspector.consumers(key, 2)] == names[:2]
        assert [one.name for one in inspector.consumers(key, 2, after=names[1])] == names[2:4]
        assert not inspector.consumers(key, after=names[-1])
        held = {one.name: one.in_hand for one in states}
        assert (held.pop(consumers[0].name), set(held.values())) == (2, {0})
        for one in states:
            assert one.is_alive
            assert one.host
            assert one.pid
            assert one.version == __version__
            assert one.since is not None
            assert abs(one.since - before) < timedelta(seconds=self.patience)
        consumers[0].ack(taken)
        self.leave(consumers[0])
        assert consumers[0].name not in [one.name for one in inspector.consumers(key)]

    @needs("inspect")
    def test_what_a_consumer_has_in_hand_is_told(self, broker: Broker) -> None:
        """Which messages, in which attempt, for how long; not what is parked."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic, 4)
        parked, *held = self.take(consumer, 3)
        consumer.nack(parked, 3600)
        again, *_ = held
        consumer.nack(again, 0)
        held = [self.take_one(consumer, step=0.05), held[1]]
        self.pass_time(0.2)
        in_hand = inspector.in_hand(key, consumer.name)
        assert [(one.message_id, one.attempt) for one in in_hand] == [(published[1], 2), (published[2], 1)]
        assert [(one.key, one.consumer) for one in in_hand] == [(key, consumer.name)] * 2
        assert all(0.2 - SLACK <= one.seconds < self.patience for one in in_hand)
        assert [one.position for one in in_hand] == [one.message.position for one in held]
        assert len(inspector.in_hand(key, consumer.name, 1)) == 1
        assert not inspector.in_hand(key, consumer.name, 0)
        assert not inspector.in_hand(key, "nobody")
        assert not inspector.in_hand(self.key(), consumer.name)

    @needs("inspect")
    def test_messages_can_be_peeked_at(self, broker: Broker) -> None:
        """The newest, those behind a position, those from a moment on; handing out nothing."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        assert not inspector.peek(key.topic)
        first = self.publish(broker, key.topic, 3)
        self.pass_time(0.3)
        middle = self.moment_now() - timedelta(seconds=0.15)
        second = self.publish(broker, key.topic, 3)
        everything = inspector.peek(key.topic)
        assert [one.id for one in everything] == first + second
        assert [one.payload for one in everything] == [b"0", b"1", b"2"] * 2
        assert {(one.group, one.attempt) for one in everything} == {(None, 1)}
        assert [one.id for one in inspector.peek(key.topic, 2)] == second[1:]
        assert [one.id for one in inspector.peek(key.topic, 2, after=everything[1].position)] == [first[2], second[0]]
        assert [one.id for one in inspector.peek(key.topic, after=middle)] == second
        assert not inspector.peek(key.topic, after=everything[-1].position)
        assert not inspector.peek(key.topic, 0)
        assert ids(self.take(consumer, 6)) == first + second

    @needs("inspect")
    def test_a_message_is_found_and_tells_how_it_stands_with_each_group(self, broker: Broker) -> None:
        """By its id, and by its position."""
        inspector, key = self.looking(broker), self.key(group="a")
        keys = [key, *(self.key(key.topic, group) for group in "bcde")]
        consumers = [self.joined(broker, one) for one in keys]
        sent = self.message(key.topic, b'{"number":7}', key="k", headers={"a": "b"})
        broker.publish([sent])
        assert self.stands(inspector.find(key.topic, sent.id)) == ["waiting"] * 5
        acked, held, parked, dead = [self.take_one(one) for one in consumers[:4]]
        consumers[0].ack([acked])
        consumers[2].nack(parked, 3600)
        consumers[3].dead_letter(dead, REASON)
        found = inspector.find(key.topic, sent.id)
        assert found is not None
        assert self.stands(found) == ["settled", "in hand", "parked", "dead letter", "waiting"]
        assert [one.group for one in found.standings] == [one.group for one in keys]
        assert (found.standings[1].consumer, found.standings[1].attempt) == (consumers[1].name, 1)
        due_at = found.standings[2].due_at
        assert due_at is not None
        assert abs(due_at - self.moment_now() - timedelta(hours=1)) < timedelta(minutes=1)
        message = found.message
        assert (message.id, message.payload, message.key) == (sent.id, sent.payload, "k")
        assert (dict(message.headers), message.group, message.attempt) == ({"a": "b"}, None, 1)
        assert message.position == held.message.position
        assert inspector.find(key.topic, str(message.position)) == found
        assert inspector.find(key.topic, self.message(key.topic).id) is None
        assert inspector.find(self.key().topic, sent.id) is None
        assert inspector.find(key.topic, "no such thing") is None

    def stands(self, found: Found | None) -> list[str]:
        """Return how a message stands, by the names of the groups."""
        assert found is not None
        return [one.stands for one in found.standings]

    @needs("inspect")
    def test_a_message_is_found_before_it_is_due_and_after_it_was_deleted(self, broker: Broker) -> None:
        """As long as a dead letter has it."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        late = self.message(key.topic)
        broker.publish([late], terms={late.id: Terms(3600)})
        found = inspector.find(key.topic, late.id)
        assert found is not None
        assert found.due_at is not None
        assert (found.message.id, found.standings) == (late.id, ())
        (published,) = self.publish(broker, key.topic)
        consumer.dead_letter(self.take_one(consumer), REASON)
        assert inspector.purge(key.topic) == 1
        found = inspector.find(key.topic, published)
        assert self.stands(found) == ["dead letter"]

    # Pauses.

    @needs("inspect")
    def test_a_paused_group_gets_nothing_until_it_is_resumed(self, broker: Broker) -> None:
        """Also who joins later; what is in hand may be finished; other groups go on."""
        inspector, key = self.looking(broker), self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, self.key(key.topic, "shipping"))
        first = self.publish(broker, key.topic)
        held = self.take_one(consumer)
        for _ in range(2):
            inspector.pause_group(key, is_paused=True)
        (state, another) = inspector.groups(key.topic)
        assert (state.is_paused, another.is_paused) == (True, False)
        self._until_it_keeps_still(consumer, broker, key)
        consumer.nack(held, 0)
        newcomer = self.consumer(broker, key)
        second = self.publish(broker, key.topic)
        self.nothing_comes(consumer, newcomer)
        assert first[0] in ids(self.take(other, len(self.looking(broker).peek(key.topic))))
        self.leave(newcomer)
        for _ in range(2):
            inspector.pause_group(key, is_paused=False)
        assert not inspector.groups(key.topic)[0].is_paused
        assert {first[0], second[0]} <= set(ids(self._all_of(consumer)))

    @needs("inspect")
    def test_what_is_paused_is_listed_whether_the_group_is_there_or_not(self, broker: Broker) -> None:
        """Of this namespace; and it holds from when a consumer makes the group."""
        inspector, key, other = self.looking(broker), self.key(), self.key()
        if not isinstance(inspector, ListsPauses):
            pytest.skip("the broker does not list what is paused")
        assert not inspector.paused_groups()
        for one in (key, other):
            inspector.pause_group(one, is_paused=True)
        assert inspector.paused_groups() == sorted([key, other])
        assert not inspector.groups(key.topic)
        elsewhere = self.open(namespace=f"{self._namespace}-elsewhere")
        assert isinstance(elsewhere, ListsPauses)
        assert not elsewhere.paused_groups()
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic)
        self.nothing_comes(consumer)
        assert inspector.groups(key.topic)[0].is_paused
        for one in (key, other):
            inspector.pause_group(one, is_paused=False)
        assert not inspector.paused_groups()
        assert ids([self.take_one(consumer)]) == published

    def _until_it_keeps_still(self, consumer: Consumer, broker: Broker, key: SubscriptionKey) -> None:
        """Wait until a pause has reached a consumer, for a second at most: by what is said to it, or as it looks."""
        deadline = monotonic() + 1.0
        while True:
            published = self.publish(broker, key.topic)
            received = consumer.receive({key: 100}, wait=0.05)
            if not received:
                return
            assert monotonic() < deadline, f"a paused group was handed {published}"
            consumer.ack(received)

    def _all_of(self, consumer: Consumer) -> list[Delivery[bytes]]:
        """Receive at least one delivery, and then until no more come."""
        taken: list[Delivery[bytes]] = []
        deadline = monotonic() + self.patience
        while monotonic() < deadline:
            self.keep_alive()
            received = consumer.receive(self.credit(consumer, 100), wait=0.1)
            if taken and not received:
                break
            taken += received
        return taken

    @needs("inspect")
    def test_a_pause_reaches_who_waits_and_so_does_its_end(self, broker: Broker) -> None:
        """Within a second, by any broker of the namespace."""
        key = self.key()
        receiving = self.waiting(self.joined(broker, key))
        inspector = self.looking(self.open())
        inspector.pause_group(key, is_paused=True)
        self.moment()
        published = self.publish(broker, key.topic)
        self.moment()
        assert not receiving.done()
        inspector.pause_group(key, is_paused=False)
        assert ids(receiving.result(1.0)) == published

    # Seeking.

    @needs("inspect")
    def test_a_group_is_moved_only_while_it_rests(self, broker: Broker) -> None:
        """While nobody consumes it, or it is paused, or by force."""
        inspector, key = self.looking(broker), self.key()
        with pytest.raises(BrokerError, match=key.group):
            inspector.seek(key, "earliest")
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic, 3)
        consumer.ack(self.take(consumer, 3))
        with pytest.raises(ConsumersPresent, match=key.group):
            inspector.seek(key, "earliest")
        self.nothing_comes(consumer)
        inspector.pause_group(key, is_paused=True)
        inspector.seek(key, "earliest")
        inspector.pause_group(key, is_paused=False)
        taken = self._all_of(consumer)
        assert ids(taken) == published
        consumer.ack(taken)
        inspector.seek(key, "earliest", force=True)
        again = self._all_of(consumer)
        assert ids(again) == published
        assert {one.message.attempt for one in again} == {1}
        consumer.ack(again)
        self.nothing_comes(consumer)

    @needs("inspect")
    def test_a_group_is_moved_to_a_position_a_moment_or_an_end(self, broker: Broker) -> None:
        """And goes on from there, each message once."""
        inspector, key = self.looking(broker), self.key()
        self.leave(self.joined(broker, key))
        first = self.publish(broker, key.topic, 2)
        self.pass_time(0.3)
        middle = self.moment_now() - timedelta(seconds=0.15)
        second = self.publish(broker, key.topic, 2)
        position = str(inspector.peek(key.topic)[1].position)
        places: list[tuple[str | datetime, list[str]]] = [
            (middle, second),
            (position, [first[1], *second]),
            ("latest", []),
            ("earliest", first + second),
        ]
        for to, expected in places:
            inspector.seek(key, to)
            assert inspector.groups(key.topic)[0].lag == Count(len(expected))
            consumer = self.consumer(broker, key)
            taken = self.take(consumer, len(expected))
            assert ids(taken) == expected
            consumer.ack(taken)
            self.nothing_comes(consumer, during=0.05)
            self.leave(consumer)
        with pytest.raises(BrokerError, match="position"):
            inspector.seek(key, "yesterday")

    @needs("inspect")
    def test_a_group_that_is_moved_into_the_future_misses_nothing(self, broker: Broker) -> None:
        """It stands behind the newest message, and takes what is published next."""
        inspector, key = self.looking(broker), self.key()
        self.leave(self.joined(broker, key))
        self.publish(broker, key.topic, 2)
        inspector.seek(key, self.moment_now() + timedelta(hours=1))
        assert inspector.groups(key.topic)[0].lag == Count(0)
        later = self.publish(broker, key.topic, 2)
        assert ids(self.take(self.consumer(broker, key), 2)) == later

    @needs("inspect")
    def test_what_is_pending_stays_or_comes_as_new(self, broker: Broker) -> None:
        """It stays if it lies before the place; behind it comes again, once, as the first attempt."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic, 4)
        for one in self.take(consumer, 4):
            consumer.nack(one, 0)
        self.leave(consumer)
        inspector.seek(key, str(inspector.peek(key.topic)[2].position))
        (state,) = inspector.groups(key.topic)
        assert (state.pending, state.parked, state.lag) == (2, 2, Count(2))
        consumer = self.consumer(broker, key)
        taken = {one.message.id: one.message.attempt for one in self.take(consumer, 4)}
        assert taken == dict(zip(published, [2, 2, 1, 1], strict=True))
        self.nothing_comes(consumer)

    @needs("inspect")
    def test_what_is_in_hand_while_a_group_is_moved_comes_again(self, broker: Broker) -> None:
        """And is not that consumer's any more."""
        inspector, key = self.looking(broker), self.key()
        consumer, other = self.joined(broker, key), self.joined(broker, key)
        self.publish(broker, key.topic)
        held = self.take_one(consumer)
        inspector.seek(key, "earliest", force=True)
        with pytest.raises(LeaseLost):
            consumer.nack(held, 0)
        again = self.take_one(other)
        assert (again.message.id, again.message.attempt) == (held.message.id, 1)
        other.ack([again])
        self.nothing_comes(consumer, other)

    # Purging.

    @needs("inspect")
    def test_a_purge_deletes_what_every_group_has_settled(self, broker: Broker) -> None:
        """And nothing else."""
        inspector, key = self.looking(broker), self.key()
        other = self.key(key.topic, "shipping")
        assert inspector.purge(key.topic) == 0
        published = self.publish(broker, key.topic, 5)
        assert inspector.purge(key.topic) == 0
        one, two = self.consumer(broker, key), self.consumer(broker, other)
        one.ack(self.take(one, 5))
        first, second, third = self.take(two, 3)
        two.ack([first, third])
        assert inspector.purge(key.topic) == 1
        assert [message.id for message in inspector.peek(key.topic)] == published[1:]
        two.ack([second])
        assert inspector.purge(key.topic) == 2
        assert ids(self.take(two, 2)) == published[3:]

    @needs("inspect")
    def test_a_topic_is_emptied_only_while_its_groups_rest(self, broker: Broker) -> None:
        """Then nothing of it comes any more; what is published later does."""
        inspector, key = self.looking(broker), self.key()
        consumer = self.joined(broker, key)
        self.publish(broker, key.topic, 5)
        for one in self.take(consumer, 2):
            consumer.nack(one, 0)
        with pytest.raises(ConsumersPresent, match=key.group):
            inspector.purge(key.topic, everything=True)
        assert inspector.topic(key.topic).messages == 5
        self.leave(consumer)
        assert inspector.purge(key.topic, everything=True) == 5
        (state,) = inspector.groups(key.topic)
        assert (state.pending, state.lag, state.oldest_unsettled) == (0, Count(0), None)
        assert inspector.topic(key.topic).messages == 0
        consumer = self.joined(broker, key)
        published = self.publish(broker, key.topic)
        consumer.ack([self.take_one(consumer)])
        self.nothing_comes(consumer)
        assert published
        self.publish(broker, key.topic, 3)
        assert inspector.purge(key.topic, everything=True, force=True) >= 3
        self.nothing_comes(consumer)
