"""Random use of the seam, on the memory backend and on a real server side by side, against a model of the contract.

Hypothesis makes up the steps. Each backend has a model of its own beside it, since
the contract leaves some things open: which of several deliveries that are due comes first, and when a replay comes
among what is new. What it does not leave open is checked after every step.

    HYPOTHESIS_PROFILE=shrink pytest -n 0 --timeout 0 tests/test_state_machine.py     # the shortest steps that fail
    HYPOTHESIS_PROFILE=long pytest -n 0 --timeout 0 tests/test_state_machine.py       # many, and others each time
"""

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from time import monotonic
from typing import Any, Literal, TypeVar, assert_never

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis import Redis

from pubsub_core.broker import Broker, BrokerOptions, Consumer, DeadLetter, GroupState, Inspector, Membership
from pubsub_core.clock import Clock, ManualClock, SystemClock
from pubsub_core.errors import ConsumersPresent, LeaseLost
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import DeadLetterReason, Delivery, Message, Source, SubscriptionKey
from pubsub_memory import open_memory
from pubsub_redis import open_redis
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.keys import look_key, worker_key
from tests.servers import RealServer

TOPICS = ("orders", "parcels")
KEYS = tuple(SubscriptionKey(topic, group) for topic in TOPICS for group in ("billing", "shipping"))
HEARTBEAT = 60.0  # seconds: nobody is thought dead before a step says so
FAR = 1e6  # seconds: what is nacked for so long does not come again
MAX_CRASHES = 3
WITHIN = 10.0

_SHORT = settings(max_examples=30, stateful_step_count=30, derandomize=True, database=None)
_PROFILES = {
    "": settings(_SHORT, phases=[Phase.generate]),  # to shorten a failure takes minutes
    "shrink": _SHORT,
    "long": settings(max_examples=1000, stateful_step_count=60, print_blob=True),
}
_SETTINGS = settings(
    _PROFILES.get(os.environ.get("HYPOTHESIS_PROFILE", ""), _PROFILES[""]),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

T = TypeVar("T")
How = Literal["ack", "nack", "nack far", "release", "dead-letter", "receive"]
State = Literal["unread", "waiting", "held", "parked", "settled", "dead"]


# The model.


@dataclass(eq=False)
class Entry:
    """A message in a group. A replay makes a new one, which is `waiting` until it is handed out."""

    key: SubscriptionKey
    message: Message[bytes]
    source: Source
    state: State = "unread"
    attempt: int = 1
    crashes: int = 0
    holder: "Member | None" = None
    held: "Held | None" = None  # the last hand-over
    is_due: bool = False

    def park(self, *, is_due: bool = True, failures: int = 0, crashes: int = 0) -> None:
        self.state, self.holder, self.is_due = "parked", None, is_due
        self.attempt += failures
        self.crashes += crashes

    def settle(self) -> None:
        """What an ack does, whoever sends it, and however late."""
        if self.state in ("held", "parked"):
            self.state, self.holder = "settled", None

    @property
    def is_ready(self) -> bool:
        return self.state in ("unread", "waiting") or (self.state == "parked" and self.is_due)


@dataclass(eq=False)
class Held:
    """A delivery that a consumer was handed, and may use too late."""

    delivery: Delivery[bytes]
    entry: Entry
    member: "Member"

    @property
    def is_ours(self) -> bool:
        return self.entry.holder is self.member and self.entry.held is self


@dataclass(eq=False)
class Member:
    """A consumer: what it was handed and has not settled, and what it has settled or lost."""

    consumer: Consumer
    keys: Sequence[SubscriptionKey]
    hand: list[Held] = field(default_factory=list)
    past: list[Held] = field(default_factory=list)
    is_frozen: bool = False
    is_taken_over: bool = False
    has_thawed: bool = False

    def lay_down(self, helds: Iterable[Held]) -> None:
        for held in helds:
            if held in self.hand:
                self.hand.remove(held)
                self.past.append(held)


@dataclass(frozen=True)
class Letter:
    entry: Entry
    reason: DeadLetterReason
    consumer: str


@dataclass(eq=False)
class Group:
    entries: list[Entry] = field(default_factory=list)
    unread: deque[Entry] = field(default_factory=deque)
    letters: list[Letter] = field(default_factory=list)
    had_replays: bool = False

    def add(self, key: SubscriptionKey, message: Message[bytes]) -> None:
        entry = Entry(key, message, message.source)
        self.entries.append(entry)
        self.unread.append(entry)

    def ready(self, message_id: str) -> Entry:
        """Return what may be handed out under that id."""
        live = [one for one in self.entries if one.message.id == message_id and one.is_ready]
        assert live, (
            f"{message_id} was handed out, and is {[one for one in self.entries if one.message.id == message_id]}"
        )
        (entry,) = live
        return entry

    def in_state(self, *states: State) -> list[Entry]:
        return [one for one in self.entries if one.state in states]


# A backend beside its model.


class World:
    """A broker, everything that was done to it, and what must be the case now."""

    reuses_positions = False  # a replay has the place that it had, so what was handed out before it is not used late

    def __init__(self) -> None:
        self.namespace = f"random-{uuid.uuid4().hex[:12]}"
        self.brokers: list[Broker] = []
        self.broker = self.open_broker()
        assert isinstance(self.broker, Inspector)
        self.inspector: Inspector = self.broker
        self.topics: dict[str, list[Message[bytes]]] = {topic: [] for topic in TOPICS}
        self.groups: dict[SubscriptionKey, Group] = {}
        self.members: list[Member] = []
        self.alive: list[Member] = []
        self.frozen: list[Member] = []
        self._numbers = count(1)

    # What differs between backends

    def make_broker(self) -> Broker:
        """Return another broker that reaches the same messages, as each process has one."""
        raise NotImplementedError

    def notice_deaths(self, looker: Member) -> None:
        """Have `looker` find out that those who are frozen give no sign of life."""
        raise NotImplementedError

    def thaw(self, member: Member) -> None:
        """Have the consumer go on as after a long sleep."""
        raise NotImplementedError

    def clean_up(self) -> None:
        for member in self.members:
            member.consumer.close()
        for broker in self.brokers:
            broker.close()

    # Steps

    def open_broker(self) -> Broker:
        broker = self.make_broker()
        self.brokers.append(broker)
        return broker

    def publish(self, messages: Sequence[Message[bytes]], *, again: bool) -> None:
        self.broker.publish(messages, again=again)
        for message in messages:
            if message not in self.topics[message.topic]:
                self.topics[message.topic].append(message)
                for key, group in self.groups.items():
                    if key.topic == message.topic:
                        group.add(key, message)

    def open(self, keys: Sequence[SubscriptionKey]) -> Member:
        consumer = self.open_broker().consumer([Membership(key) for key in keys], f"consumer-{next(self._numbers)}")
        member = Member(consumer, keys)
        self.members.append(member)
        assert not consumer.receive({}, 0), "there was no credit"
        self.alive.append(member)
        for key in keys:
            if key not in self.groups:
                group = self.groups[key] = Group()
                for message in self.topics[key.topic]:
                    group.add(key, message)
        return member

    def pick(self, who: int, *, busy: bool = False) -> Member:
        """Return a consumer that is alive; if it shall be busy, one that has something, if there is anything."""
        member = self.alive[who % len(self.alive)] if self.alive else self.open(KEYS)
        if busy and not member.hand:
            self.receive(member, dict.fromkeys(KEYS, 2))
        return member

    def receive(self, member: Member, credit: Mapping[SubscriptionKey, int], done: Sequence[Held] = ()) -> list[Held]:
        """Receive until nothing more must come. A receive may return less than there is."""
        left = {key: credit[key] for key in member.keys if key in credit}
        received: list[Held] = []
        deadline = monotonic() + WITHIN
        wait = 0.0
        while True:
            batch = member.consumer.receive(left, wait, [one.delivery for one in done])
            self._acked(member, done)
            done = ()
            received += self._handed_out(member, left, batch)
            for one in batch:
                left[one.subscription] -= 1
            if not self._must_come(member, left):
                return received
            assert monotonic() < deadline, f"{member.consumer.name} got nothing more for {left}, and it has to"
            wait = 0.02

    def _handed_out(
        self, member: Member, credit: Mapping[SubscriptionKey, int], batch: Sequence[Delivery[bytes]]
    ) -> list[Held]:
        """Check that all this might come now, and note who has it."""
        suspects = [one.delivery for one in member.hand if one.delivery.crashes and one.is_ours]
        suspects += [one for one in batch if one.crashes]
        assert len(suspects) <= 1 or suspects[-1] not in batch, f"a suspect came beside another: {suspects}"
        if any(one.crashes >= MAX_CRASHES - 1 for one in suspects):
            assert not batch or (len(batch) == 1 and batch[0] is suspects[0]), f"{batch} came beside {suspects}"
        helds = []
        for delivery in batch:
            group = self.groups[delivery.subscription]
            entry = group.ready(delivery.message.id)
            assert_same(delivery.message, entry)
            assert delivery.crashes == entry.crashes
            assert delivery.message.position
            if entry.state == "unread":
                assert entry is group.unread.popleft(), "new messages came in another order than that of publishing"
            entry.state, entry.holder = "held", member
            entry.held = Held(delivery, entry, member)
            helds.append(entry.held)
        for key in KEYS:
            assert sum(one.subscription == key for one in batch) <= credit.get(key, 0), "more came than was asked for"
        member.hand += helds
        return helds

    def _must_come(self, member: Member, credit: Mapping[SubscriptionKey, int]) -> bool:
        """Whether something is there for the consumer. What it believes to have counts, though it may be settled."""
        suspects = [one.delivery.crashes for one in member.hand if one.delivery.crashes]
        if max(suspects, default=0) >= MAX_CRASHES - 1:
            return False
        ready = [one for key, asked in credit.items() if asked for one in self.groups[key].entries if one.is_ready]
        return any(not one.crashes or not suspects for one in ready)

    def settle(self, member: Member, helds: Sequence[Held], how: How, reason: DeadLetterReason) -> None:
        """Settle deliveries that the consumer has, or had once."""
        match how:
            case "ack":
                self.ack(member, [*helds, *helds])
            case "receive" if member in self.alive:
                self.receive(member, {}, helds)
            case "receive":
                self.ack(member, helds)
            case "release":
                self.release(member, [*helds, *helds])
            case "nack" | "nack far":
                for held in helds:
                    self.nack(held, is_far=how == "nack far")
            case "dead-letter":
                for held in helds:
                    self.dead_letter(held, reason)
            case _:
                assert_never(how)

    def ack(self, member: Member, helds: Sequence[Held]) -> None:
        member.consumer.ack([one.delivery for one in helds])
        self._acked(member, helds)

    def _acked(self, member: Member, helds: Sequence[Held]) -> None:
        for one in helds:
            one.entry.settle()
        member.lay_down(helds)

    def nack(self, held: Held, *, is_far: bool) -> None:
        if self._settles(held, lambda: held.member.consumer.nack(held.delivery, FAR if is_far else 0)):
            held.entry.park(is_due=not is_far, failures=1)

    def dead_letter(self, held: Held, reason: DeadLetterReason) -> None:
        if self._settles(held, lambda: held.member.consumer.dead_letter(held.delivery, reason)):
            held.entry.state, held.entry.holder = "dead", None
            self.groups[held.entry.key].letters.append(Letter(held.entry, reason, held.member.consumer.name))

    def _settles(self, held: Held, act: Callable[[], None]) -> bool:
        """Return whether it was settled. Whoever does not have it must be told so."""
        is_ours = held.is_ours
        try:
            act()
        except LeaseLost:
            assert not is_ours, f"{held} is still the consumer's"
        else:
            assert is_ours, f"{held} is not the consumer's any more, and it was not told so"
        held.member.lay_down([held])
        return is_ours

    def release(self, member: Member, helds: Sequence[Held]) -> None:
        member.consumer.release([one.delivery for one in helds])
        for one in helds:
            if one.is_ours:
                one.entry.park()
        member.lay_down(helds)

    def crash(self, member: Member) -> None:
        self.alive.remove(member)
        self.frozen.append(member)
        member.is_frozen = True

    def take_over(self) -> None:
        lost = [one for one in self.frozen if not one.is_taken_over]
        if not lost:
            return
        keys = {key for one in lost for key in one.keys}
        looker = next((one for one in self.alive if keys <= {*one.keys}), None) or self.open(KEYS)
        self.notice_deaths(looker)
        for member in lost:
            member.is_taken_over = True
            for entry in self._held_by(member):
                entry.park(failures=1, crashes=1)

    def _held_by(self, member: Member) -> list[Entry]:
        return [one for group in self.groups.values() for one in group.entries if one.holder is member]

    def go_on(self, member: Member) -> None:
        """End the frost. What the consumer had is its own, or it was told to forget it by now."""
        self.thaw(member)
        self.frozen.remove(member)
        self.alive.append(member)
        member.is_frozen = False
        if member.is_taken_over:
            member.is_taken_over, member.has_thawed = False, True

    def close(self, member: Member) -> None:
        member.consumer.close()
        self.alive.remove(member)
        for entry in self._held_by(member):
            entry.park()
        member.lay_down([*member.hand])

    def replay(self, key: SubscriptionKey, which: Sequence[int]) -> None:
        replayed = [one.entry for one in self._remove_letters(key, which, self.inspector.replay)]
        for entry in replayed:
            self.groups[key].entries.append(Entry(key, entry.message, "replay", "waiting"))
            self.groups[key].had_replays = True
        if self.reuses_positions:
            self._forget(lambda held: held.entry in replayed)

    def discard(self, key: SubscriptionKey, which: Sequence[int]) -> None:
        self._remove_letters(key, which, self.inspector.discard)

    def _remove_letters(
        self, key: SubscriptionKey, which: Sequence[int], remove: Callable[[SubscriptionKey, Sequence[str]], int]
    ) -> list[Letter]:
        there = [*reversed(self.groups[key].letters)] if key in self.groups else []
        removed = _picked(there, which)
        positions = _picked([one.position for one in self.inspector.dead_letters(key)], which)
        assert remove(key, positions) == len(removed)
        assert remove(key, positions) == 0, "they were there no more"
        if removed:
            self.groups[key].letters = [one for one in self.groups[key].letters if one not in removed]
        return removed

    def _forget(self, is_over: Callable[[Held], bool]) -> None:
        """Leave it at that: these deliveries are used late no more."""
        for member in self.members:
            member.past = [one for one in member.past if not is_over(one)]
            member.hand = [one for one in member.hand if not is_over(one)]

    def desert(self) -> None:
        """Leave nobody who consumes anything."""
        self.take_over()
        for member in [*self.alive]:
            self.close(member)

    def remove_group(self, key: SubscriptionKey) -> None:
        present = [one for one in [*self.alive, *self.frozen] if key in one.keys and not one.is_taken_over]
        if any(one.has_thawed for one in present):
            return  # a server does not know it again before it gets something
        if key in self.groups and self.groups[key].had_replays:
            return  # a server keeps the replays in the topic, for a group of that name that is made later
        try:
            self.inspector.remove_group(key)
        except ConsumersPresent:
            assert present
            return
        assert not present, f"{present[0].consumer.name} consumes it"
        self.groups.pop(key, None)
        self.frozen = [one for one in self.frozen if key not in one.keys]  # it would restore what it thinks was lost
        self._forget(lambda held: held.entry.key == key)

    # What must be the case after every step

    def check(self) -> None:
        for topic in TOPICS:
            states = self.inspector.groups(topic)
            assert [one.key for one in states] == sorted(key for key in self.groups if key.topic == topic)
            for state in states:
                self._check_group(state)
        for key in KEYS:
            self._check_letters(key, self.inspector.dead_letters(key))

    def _check_group(self, state: GroupState) -> None:
        group = self.groups[state.key]
        unsettled = group.in_state("unread", "waiting", "held", "parked")
        handed_out = len(group.in_state("held", "parked"))
        assert state.pending in range(handed_out, handed_out + len(group.in_state("waiting")) + 1)
        consumers = [one for one in [*self.alive, *self.frozen] if state.key in one.keys and not one.is_taken_over]
        certain = [one for one in consumers if not one.has_thawed]
        assert len(certain) <= state.consumers <= len(consumers)
        assert state.dropped == 0
        self._check_oldest(state, unsettled)

    def _check_oldest(self, state: GroupState, unsettled: Sequence[Entry]) -> None:
        if any(group.had_replays for key, group in self.groups.items() if key.topic == state.key.topic):
            # A server counts the replays of other groups until it has passed them over, and its own from then on.
            assert state.oldest_unsettled is not None or not unsettled
        elif unsettled:
            oldest = min(one.message.published_at for one in unsettled)
            assert state.oldest_unsettled is not None
            assert timedelta(milliseconds=-2) < state.oldest_unsettled - oldest < timedelta(seconds=WITHIN)
        else:
            assert state.oldest_unsettled is None

    def _check_letters(self, key: SubscriptionKey, letters: Sequence[DeadLetter]) -> None:
        expected = [*reversed(self.groups[key].letters)] if key in self.groups else []
        assert [one.message.id for one in letters] == [one.entry.message.id for one in expected]
        for letter, model in zip(letters, expected, strict=True):
            assert_same(letter.message, model.entry)
            assert (letter.subscription, letter.reason, letter.consumer) == (key, model.reason, model.consumer)
            assert letter.first_failed_at <= letter.last_failed_at
        if letters:
            assert [*self.inspector.dead_letters(key, 1)] == [*letters[:1]]
            assert [*self.inspector.dead_letters(key, before=letters[0].position)] == [*letters[1:]]

    def drain(self) -> None:
        """Everything that is published ends somewhere: nothing is lost, and nothing comes that was settled."""
        self.desert()
        last = self.open(KEYS)
        done: list[Held] = []
        while more := self.receive(last, dict.fromkeys(KEYS, 100), done):
            done = more
        self.ack(last, done)
        for key, group in self.groups.items():
            left = [one for one in group.entries if one.state not in ("settled", "dead") and one.is_ready]
            assert not left, f"{left} never came"
            assert len({one.message.id for one in group.entries}) == len(self.topics[key.topic])
        self.check()


def assert_same(message: Message[bytes], entry: Entry) -> None:
    """Check that a message is the one that was published, in its present attempt."""
    published = entry.message
    assert (message.id, message.topic, message.group) == (published.id, entry.key.topic, entry.key.group)
    assert (message.payload, message.key, dict(message.headers)) == (
        published.payload,
        published.key,
        dict(published.headers),
    )
    assert (message.attempt, message.source, message.published_at) == (
        entry.attempt,
        entry.source,
        published.published_at,
    )


class MemoryWorld(World):
    reuses_positions = True

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__()

    def make_broker(self) -> Broker:
        return open_memory(f"memory://{self.namespace}", _options(self.clock, self.namespace))

    def notice_deaths(self, looker: Member) -> None:
        for _ in range(2):
            self.clock.advance(2 * HEARTBEAT)
            for member in self.alive:
                member.consumer.maintain()

    def thaw(self, member: Member) -> None:
        member.consumer.maintain()


class RedisWorld(World):
    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = Redis.from_url(url, protocol=2)
        super().__init__()

    def make_broker(self) -> Broker:
        return open_redis(self._url, _options(SystemClock(), self.namespace))

    def notice_deaths(self, looker: Member) -> None:
        for member in self.frozen:
            self._client.delete(worker_key(self.namespace, member.consumer.name))
        consumer = looker.consumer
        assert isinstance(consumer, RedisConsumer)
        for _ in range(2):  # a heartbeat apart
            consumer._upkeep.suspects = {one: since - HEARTBEAT for one, since in consumer._upkeep.suspects.items()}
            consumer._look_at = 0.0
            self._client.delete(look_key(self.namespace, consumer._upkeep.concern))
            consumer.maintain()

    def thaw(self, member: Member) -> None:
        assert isinstance(member.consumer, RedisConsumer)
        member.consumer.sign.due_at = 0.0
        member.consumer.maintain()

    def clean_up(self) -> None:
        super().clean_up()
        keys = self._client.keys(f"{self.namespace}:*")
        if keys:
            self._client.delete(*keys)
        self._client.close()


def _options(clock: Clock, namespace: str) -> BrokerOptions:
    return BrokerOptions(clock, namespace, HEARTBEAT, 10.0, {}, max_crashes=MAX_CRASHES)


# The steps.

some = st.integers(0, 11)
picks = st.lists(some, min_size=1, max_size=4)
reasons = st.builds(
    DeadLetterReason,
    st.sampled_from(("retries exhausted", "rejected", "crashed", "expired")),
    st.sampled_from(("", "ValueError")),
    st.sampled_from(("", "no such order: ✗\n")),
)
contents = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(TOPICS),
        "payload": st.sampled_from((b"{}", b"", b"\xff\x00", b'{"order": 7}')),
        "key": st.sampled_from((None, "", "customer-7", "Zoë")),
        "headers": st.sampled_from(({}, {"correlation-id": "1"}, {"a": "", "": "✓"})),
        "source": st.sampled_from(("publish", "publish", "cron")),
    }
)
credits_ = st.tuples(*[st.sampled_from((0, 1, 2, 3, 10))] * len(KEYS))
how = st.sampled_from(("ack", "nack", "nack far", "release", "dead-letter", "receive"))


class RandomUse(RuleBasedStateMachine):
    """No rule draws anything that depends on what came before, so that a failure can be repeated and shortened."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._new_id = IdMaker(SystemClock())
        self._worlds: list[World] = [MemoryWorld(), RedisWorld(url)]
        self._is_sound = True

    def _in_both(self, step: Callable[[World], object]) -> None:
        self._is_sound = False
        for world in self._worlds:
            step(world)
            world.check()
        self._is_sound = True

    @initialize(batch=st.lists(contents, min_size=2, max_size=8))
    def begin(self, batch: list[dict[str, Any]]) -> None:
        self.publish(batch, again=0)

    @rule(batch=st.lists(contents, max_size=6), again=st.integers(0, 4))
    def publish(self, batch: list[dict[str, Any]], again: int) -> None:
        new = [self._message(one) for one in batch]
        stored = self._worlds[0].topics
        old = [message for messages in stored.values() for message in messages[-again:]] if again > 2 else []
        self._in_both(lambda world: world.publish([*old, *new], again=bool(old)))

    def _message(self, content: dict[str, Any]) -> Message[bytes]:
        new = self._new_id()
        return Message(id=new, published_at=published_at(new), **content)

    @rule(which=st.sets(st.sampled_from(KEYS), min_size=1))
    def open(self, which: set[SubscriptionKey]) -> None:
        self._in_both(lambda world: world.open(sorted(which)) if len(world.alive) < 4 else None)

    @rule(who=some, credit=credits_, done=st.one_of(st.just([]), picks))
    def receive(self, who: int, credit: Sequence[int], done: Sequence[int]) -> None:
        def step(world: World) -> None:
            member = world.pick(who)
            world.receive(member, dict(zip(KEYS, credit, strict=True)), _picked(member.hand, done))

        self._in_both(step)

    @rule(who=some, which=picks, how=how, again=st.one_of(st.none(), how), reason=reasons)
    def settle(self, who: int, which: Sequence[int], how: How, again: How | None, reason: DeadLetterReason) -> None:
        """Perhaps once more by the same deliveries, after some of them may have come again."""

        def step(world: World) -> None:
            member = world.pick(who, busy=True)
            helds = _picked(member.hand, which)
            world.settle(member, helds, how, reason)
            if again:
                world.receive(member, dict.fromkeys(KEYS, 10))
                world.settle(member, [one for one in helds if one in member.past], again, reason)

        self._in_both(step)

    @rule(who=some, busy=st.booleans(), noticed=st.integers(0, 3))
    def crash(self, who: int, busy: bool, noticed: int) -> None:
        """Perhaps several times, so that what one had another has, too."""

        def step(world: World) -> None:
            world.crash(world.pick(who, busy=busy))
            for _ in range(noticed):
                world.take_over()
                world.crash(world.pick(who, busy=True))

        self._in_both(step)

    @rule()
    def take_over(self) -> None:
        self._in_both(World.take_over)

    @rule(who=some)
    def thaw(self, who: int) -> None:
        self._in_both(lambda world: world.go_on(world.frozen[who % len(world.frozen)]) if world.frozen else None)

    @rule(who=some, which=picks, how=how, reason=reasons)
    def settle_late(self, who: int, which: Sequence[int], how: How, reason: DeadLetterReason) -> None:
        """By a consumer that is frozen, closed or alive: what it lost, or settled already."""

        def step(world: World) -> None:
            members = [one for one in world.members if one.past or (one.is_frozen and one.hand)]
            if members:
                member = members[who % len(members)]
                helds = [*member.past, *(member.hand if member.is_frozen else ())]
                world.settle(member, _picked(helds[::-1], which), how, reason)

        self._in_both(step)

    @rule(who=some)
    def close(self, who: int) -> None:
        self._in_both(lambda world: world.close(world.pick(who)))

    @rule(who=some, dead=picks, reason=reasons, replayed=picks)
    def bury_and_replay(self, who: int, dead: Sequence[int], reason: DeadLetterReason, replayed: Sequence[int]) -> None:
        def step(world: World) -> None:
            member = world.pick(who, busy=True)
            helds = _picked(member.hand, dead)
            world.settle(member, helds, "dead-letter", reason)
            for key in dict.fromkeys(one.entry.key for one in helds):
                world.replay(key, replayed)

        self._in_both(step)

    @rule(which=some, letters=picks, is_replayed=st.booleans())
    def mend(self, which: int, letters: Sequence[int], is_replayed: bool) -> None:
        def step(world: World) -> None:
            keys = [key for key, group in world.groups.items() if group.letters] or KEYS
            (world.replay if is_replayed else world.discard)(keys[which % len(keys)], letters)

        self._in_both(step)

    @rule(key=st.sampled_from(KEYS), is_deserted=st.sampled_from((False, False, False, True)))
    def remove_group(self, key: SubscriptionKey, is_deserted: bool) -> None:
        def step(world: World) -> None:
            if is_deserted:
                world.desert()
            world.remove_group(key)

        self._in_both(step)

    def teardown(self) -> None:
        try:
            if self._is_sound:
                self._in_both(World.drain)
        finally:
            for world in self._worlds:
                world.clean_up()


def _picked(there: Sequence[T], which: Sequence[int]) -> list[T]:
    """Return some of what is there, each once."""
    return [there[number] for number in dict.fromkeys(one % len(there) for one in which)] if there else []


@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_random_use_keeps_the_contract(server: str, request: pytest.FixtureRequest) -> None:
    running: RealServer = request.getfixturevalue(server)
    run_state_machine_as_test(lambda: RandomUse(running.url), settings=_SETTINGS)  # type: ignore[arg-type]  # a function does
