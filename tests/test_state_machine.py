"""The seam, driven at random on memory and on a real server side by side: what can be seen of both is the same.

What a `receive` must bring is what a model of a few dictionaries says; the two backends are held against it, and so
against each other. `HYPOTHESIS_PROFILE=long` makes many more and longer walks.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from pubsub_core import ManualClock, SystemClock
from pubsub_core.broker import Broker, BrokerOptions, Consumer, Inspector, Membership
from pubsub_core.errors import LeaseLost
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey
from pubsub_memory import open_memory
from pubsub_redis import open_redis
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.keys import look_key, worker_key

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
KEYS = [SubscriptionKey(topic, group) for topic in ("orders", "mails") for group in ("billing", "audit")]
PATIENCE = 5.0
HEARTBEAT = 60.0

_new_id = IdMaker(SystemClock())


class Side:
    """One backend, its consumers by number, and how to make one of them vanish."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.consumers: dict[int, Consumer] = {}
        self.gone: list[Consumer] = []

    def open(self, number: int) -> None:
        consumer = self.broker.consumer([Membership(key) for key in KEYS], f"consumer-{number}-{uuid.uuid4().hex[:6]}")
        consumer.receive({}, 0)
        self.consumers[number] = consumer

    def bury(self, number: int) -> None:
        """Have the others find out that a consumer is dead."""
        raise NotImplementedError


class MemorySide(Side):
    def __init__(self) -> None:
        self.clock = ManualClock()
        options = BrokerOptions(self.clock, "walk", HEARTBEAT, 5.0, {})
        super().__init__(open_memory(f"memory://{uuid.uuid4().hex}", options))

    def bury(self, number: int) -> None:
        """Let time pass in which all others give signs of life."""
        living = [consumer for other, consumer in self.consumers.items() if other != number]
        for _ in range(10):
            for consumer in living:
                consumer.maintain()
            self.clock.advance(HEARTBEAT / 2)
        for consumer in living:
            consumer.maintain()


class RedisSide(Side):
    def __init__(self, url: str, client: Any) -> None:
        self.namespace = f"walk-{uuid.uuid4().hex[:10]}"
        self.client = client
        super().__init__(open_redis(url, BrokerOptions(SystemClock(), self.namespace, HEARTBEAT, 5.0, {})))

    def bury(self, number: int) -> None:
        """Take its sign of life away, and have one of the others look twice."""
        self.client.delete(worker_key(self.namespace, self.consumers[number].name))
        looker = next(consumer for other, consumer in self.consumers.items() if other != number)
        assert isinstance(looker, RedisConsumer)
        for _ in range(3):
            self.client.delete(look_key(self.namespace, looker._concern))
            looker._look_at = 0.0
            looker._suspects = dict.fromkeys(looker._suspects, -1e9)  # as if a heartbeat had passed since
            looker.maintain()


@dataclass
class Held:
    """A delivery that was handed out, as both sides know it. `is_ours` until it is settled or taken away."""

    number: int
    key: SubscriptionKey
    message_id: str
    attempt: int
    crashes: int
    deliveries: tuple[Delivery[bytes], ...]
    is_ours: bool = True


@dataclass
class Waiting:
    """What a group has still to be handed: attempt (of the next hand-over) and crashes by message id."""

    unread: list[str] = field(default_factory=list)
    again: dict[str, tuple[int, int]] = field(default_factory=dict)
    parked: set[str] = field(default_factory=set)  # for an hour: not seen again in a walk
    dead: list[tuple[str, int]] = field(default_factory=list)  # id and attempt, the oldest first


class Walk(RuleBasedStateMachine):
    """A random walk over the seam."""

    make_sides: ClassVar[Callable[[], list[Side]]]

    def __init__(self) -> None:
        super().__init__()
        self.sides = type(self).make_sides()
        self.groups = {key: Waiting() for key in KEYS}
        self.messages: dict[str, Message[bytes]] = {}
        self.held: list[Held] = []
        self.open: set[int] = set()
        self.count = 0

    @initialize()
    def begin(self) -> None:
        self.open_consumer()
        self.open_consumer()

    def ours(self, number: int) -> list[Held]:
        return [one for one in self.held if one.is_ours and one.number == number]

    # Rules

    @rule(
        topics=st.lists(st.sampled_from(["orders", "mails"]), min_size=1, max_size=4),
        key=st.none() | st.text(max_size=5),
        payload=st.binary(max_size=20),
        headers=st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=4), max_size=2),
    )
    def publish(self, topics: list[str], key: str | None, payload: bytes, headers: dict[str, str]) -> None:
        batch = []
        for topic in topics:
            new = _new_id()
            batch.append(Message(new, topic, payload, published_at(new), key, headers))
        for side in self.sides:
            side.broker.publish(batch)
        for message in batch:
            self.messages[message.id] = message
            for group in KEYS:
                if group.topic == message.topic:
                    self.groups[group].unread.append(message.id)

    @precondition(lambda self: len(self.open) < 4)
    @rule()
    def open_consumer(self) -> None:
        self.count += 1
        for side in self.sides:
            side.open(self.count)
        self.open.add(self.count)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), credit=st.integers(1, 3))
    def receive(self, data: st.DataObject, credit: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        key = data.draw(st.sampled_from(KEYS))
        waiting = self.groups[key]
        suspects = [one for one, (_, crashes) in waiting.again.items() if crashes]
        plain = [one for one, (_, crashes) in waiting.again.items() if not crashes]
        has_suspect = any(one.crashes for one in self.ours(number))
        is_alone = any(one.crashes >= 2 for one in self.ours(number))
        count = min(credit, len(plain) + len(waiting.unread) + min(len(suspects), not has_suspect))
        got = [self.take(side, number, key, credit, 0 if is_alone else count) for side in self.sides]
        assert [shown(one) for one in got[0]] == [shown(one) for one in got[1]] or same(got)
        by_id = [{one.message.id: one for one in side} for side in got]
        assert set(by_id[0]) == set(by_id[1])
        fresh = [one.message.id for one in got[0] if one.message.id not in waiting.again]
        assert fresh == waiting.unread[: len(fresh)], "in the order of publishing"
        assert sum(one.crashes > 0 for one in got[0]) + has_suspect <= 1 or not any(one.crashes for one in got[0])
        for message_id, first in by_id[0].items():
            pair = (first, by_id[1][message_id])
            attempt, crashes = waiting.again.pop(message_id, (1, 0))
            sent = self.messages[message_id]
            for one in pair:
                assert (one.message.attempt, one.crashes, one.message.group) == (attempt, crashes, key.group)
                assert (one.message.payload, one.message.key) == (sent.payload, sent.key)
                assert dict(one.message.headers) == dict(sent.headers)
            if message_id in waiting.unread:
                waiting.unread.remove(message_id)
            self.held.append(Held(number, key, message_id, attempt, crashes, pair))

    def take(self, side: Side, number: int, key: SubscriptionKey, credit: int, count: int) -> list[Delivery[bytes]]:
        """Receive `count`, which may take several calls; with none to come, see that none comes."""
        taken: list[Delivery[bytes]] = []
        deadline = time.monotonic() + PATIENCE
        while True:
            taken += side.consumers[number].receive({key: credit - len(taken)}, 0)
            if len(taken) >= count:
                return taken
            # One suspect alone may come first, and at its last chance nothing else beside it.
            if any(one.crashes >= 2 for one in taken):
                return taken
            assert time.monotonic() < deadline, f"{type(side).__name__}: {len(taken)} of {count} came"
            threading.Event().wait(0.002)

    @precondition(lambda self: any(one.is_ours for one in self.held))
    @rule(data=st.data(), how=st.sampled_from(["ack", "done", "nack", "park", "release", "dead_letter"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from([one for one in self.held if one.is_ours]))
        waiting = self.groups[one.key]
        for side, delivery in zip(self.sides, one.deliveries, strict=True):
            consumer = side.consumers[one.number]
            match how:
                case "ack":
                    consumer.ack([delivery])
                case "done":
                    assert not consumer.receive({}, 0, done=[delivery])
                case "nack":
                    consumer.nack(delivery, 0)
                case "park":
                    consumer.nack(delivery, 3600)
                case "release":
                    consumer.release([delivery])
                case _:
                    consumer.dead_letter(delivery, DeadLetterReason("rejected", detail=one.message_id))
        one.is_ours = False
        match how:
            case "nack":
                waiting.again[one.message_id] = (one.attempt + 1, one.crashes)
            case "park":
                waiting.parked.add(one.message_id)
            case "release":
                waiting.again[one.message_id] = (one.attempt, one.crashes)
            case "dead_letter":
                waiting.dead.append((one.message_id, one.attempt))

    @precondition(lambda self: any(not one.is_ours and one.number in self.open for one in self.held))
    @rule(data=st.data(), how=st.sampled_from(["nack", "release", "dead_letter"]))
    def settle_late(self, data: st.DataObject, how: str) -> None:
        """What is not ours any more cannot be settled, and is not changed."""
        late = [one for one in self.held if not one.is_ours and one.number in self.open and not self.is_ours_again(one)]
        if not late:
            return
        one = data.draw(st.sampled_from(late))
        for side, delivery in zip(self.sides, one.deliveries, strict=True):
            consumer = side.consumers[one.number]
            if how == "release":
                consumer.release([delivery])
                continue
            with pytest.raises(LeaseLost):
                if how == "nack":
                    consumer.nack(delivery, 0)
                else:
                    consumer.dead_letter(delivery, DeadLetterReason("rejected"))

    def is_ours_again(self, late: Held) -> bool:
        """Whether the same attempt came to the same consumer again: a release does that."""
        same = (late.number, late.key, late.message_id, late.attempt)
        return any((one.number, one.key, one.message_id, one.attempt) == same for one in self.held if one.is_ours)

    @precondition(lambda self: len(self.open) > 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        for side in self.sides:
            side.bury(number)
            side.gone.append(side.consumers.pop(number))
        self.open.discard(number)
        for one in self.ours(number):
            one.is_ours = False
            self.groups[one.key].again[one.message_id] = (one.attempt + 1, one.crashes + 1)

    @precondition(lambda self: len(self.open) > 1)
    @rule(data=st.data())
    def close_consumer(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        for side in self.sides:
            side.consumers.pop(number).close()
        self.open.discard(number)
        for one in self.ours(number):
            one.is_ours = False
            self.groups[one.key].again[one.message_id] = (one.attempt, one.crashes)

    @precondition(lambda self: any(group.dead for group in self.groups.values()))
    @rule(data=st.data(), is_replay=st.booleans())
    def empty_dead_letters(self, data: st.DataObject, is_replay: bool) -> None:
        """Discard some, or replay and settle them: a replay is as good as new, to this group only."""
        key = data.draw(st.sampled_from([key for key, group in self.groups.items() if group.dead]))
        waiting = self.groups[key]
        chosen = data.draw(st.sets(st.sampled_from([one for one, _ in waiting.dead]), min_size=1))
        waiting.dead = [one for one in waiting.dead if one[0] not in chosen]
        for side in self.sides:
            inspector = side.broker
            assert isinstance(inspector, Inspector)
            letters = [one for one in inspector.dead_letters(key) if one.message.id in chosen]
            positions = [one.position for one in letters]
            act = inspector.replay if is_replay else inspector.discard
            assert act(key, positions) == len(chosen)
            assert act(key, positions) == 0
        if is_replay:
            self.work_off(key, chosen)

    def work_off(self, key: SubscriptionKey, replayed: set[str]) -> None:
        """Receive, as a new consumer, all that waits in the group, and acknowledge the replays; hand back the rest.

        The backends may put a replay at different places among what waits; that it comes, once and as new, is the same.
        """
        waiting = self.groups[key]
        for side in self.sides:
            found: set[str] = set()
            rest: list[Delivery[bytes]] = []
            consumer = side.broker.consumer([Membership(key)], f"reader-{uuid.uuid4().hex[:8]}")
            deadline = time.monotonic() + PATIENCE
            while found != replayed:
                assert time.monotonic() < deadline, f"{type(side).__name__}: {replayed - found} did not come"
                for one in consumer.receive({key: 50}, 0):
                    if one.message.source == "replay":
                        assert (one.message.attempt, one.crashes) == (1, 0)
                        assert one.message.id not in found
                        found.add(one.message.id)
                        consumer.ack([one])
                    else:
                        rest.append(one)
            consumer.release(rest)
            for one in rest:
                if one.message.id in waiting.unread:
                    waiting.unread.remove(one.message.id)
                    waiting.again[one.message.id] = (1, 0)
            consumer.close()
        # What one side read and handed back the other may not have read: from here on both have.
        everything = {*waiting.again, *waiting.unread}
        for side in self.sides:
            self.read_and_hand_back(side, key)
        for message_id in everything & set(waiting.unread):
            waiting.unread.remove(message_id)
            waiting.again[message_id] = (1, 0)

    def read_and_hand_back(self, side: Side, key: SubscriptionKey) -> None:
        consumer = side.broker.consumer([Membership(key)], f"reader-{uuid.uuid4().hex[:8]}")
        while consumer.receive({key: 100}, 0.02):
            continue
        consumer.close()

    # What must always be so

    @invariant()
    def letters_are_the_same(self) -> None:
        for key, waiting in self.groups.items():
            for side in self.sides:
                inspector = side.broker
                assert isinstance(inspector, Inspector)
                letters = inspector.dead_letters(key)[::-1]
                assert [(one.message.id, one.message.attempt) for one in letters] == waiting.dead
                assert all(one.reason == DeadLetterReason("rejected", detail=one.message.id) for one in letters)

    @invariant()
    def groups_stand_the_same(self) -> None:
        for topic in ("orders", "mails"):
            states = []
            for side in self.sides:
                inspector = side.broker
                assert isinstance(inspector, Inspector)
                states.append([(one.key, one.pending, one.consumers) for one in inspector.groups(topic)])
            assert states[0] == states[1]

    def teardown(self) -> None:
        for side in self.sides:
            for consumer in [*side.consumers.values(), *side.gone]:
                consumer.close()
            side.broker.close()


def shown(one: Delivery[bytes]) -> tuple[Any, ...]:
    message = one.message
    return message.id, message.attempt, one.crashes, message.source


def same(got: list[list[Delivery[bytes]]]) -> bool:
    """Whether both brought the same, in an order that may differ for what comes again."""
    return sorted(map(shown, got[0])) == sorted(map(shown, got[1]))


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_memory_and_server_behave_alike(name: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    with Redis.from_url(server.url, protocol=2) as client:

        class Here(Walk):
            @staticmethod
            def make_sides() -> list[Side]:
                return [MemorySide(), RedisSide(server.url, client)]

        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=400 if IS_LONG else 25,
                stateful_step_count=60 if IS_LONG else 25,
                deadline=None,
                derandomize=not IS_LONG,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
