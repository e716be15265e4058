"""The seam: what a backend must do. The docstrings are the specification, `pubsub_core.testing` its executable form.

Brokers see bytes: payload types live in the codec. Every method may raise a `BrokerError`; the caller decides whether
to try again. Where a method says "idempotent", repeating it after an error is safe and right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from pubsub_core.clock import Clock
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey

Start = Literal["earliest", "latest"] | datetime
Fired = Literal["fired", "past", "early", "paused", "superseded"]
Overflow = Literal["reject", "drop_oldest"]


@dataclass(frozen=True, slots=True)
class Durability:
    """What a publish waits for before it returns, beside the server's word: its disk, and so many of its replicas."""

    fsync: bool = False
    replicas: int = 0

    def __or__(self, other: "Durability") -> "Durability":
        """Return what satisfies both."""
        return Durability(self.fsync or other.fsync, max(self.replicas, other.replicas))

    def __str__(self) -> str:
        """As it is written in settings."""
        parts = ["fsync"] if self.fsync else []
        parts += [f"replicas:{self.replicas}"] if self.replicas else []
        return "+".join(parts) or "memory"


IN_MEMORY = Durability()


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """What an application said of a topic.

    `stream` is the name that the backend shall keep it under, if not its own. `retention` is the seconds for which what
    every group has settled is kept (None: that of the broker). A topic with `max_backlog` never holds more messages
    than that: what every group has settled gives way first, then `overflow` decides: the publish is refused, or the
    oldest messages are dropped, which is counted and logged.
    """

    stream: str | None = None
    retention: float | None = None
    max_backlog: int | None = None
    overflow: Overflow = "reject"


USUAL = TopicOptions()


@dataclass(frozen=True, slots=True)
class Membership:
    """What a consumer needs to know of a subscription: whose it is, and where a new group begins.

    `start` counts only when the group is made for the first time: at the oldest message kept, after the newest, or at
    the first one published at or after an aware datetime.
    """

    key: SubscriptionKey
    start: Start = "earliest"


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What a backend gets to know besides its URL.

    `topics` has the options of the topics that have any. It grows as topics are declared, so look it up at each use.
    `heartbeat` is the seconds between two signs of life of a consumer; one without any for `lease` seconds counts as
    gone. `publish_timeout` bounds a publish in all, in seconds. `retention` is the seconds for which messages are kept
    that every group has settled, `dead_letter_retention` those for dead letters; at most `MOST_RETAINED` of a topic, or
    of a group. `max_crashes` is how many processes a message may take with it before it becomes a dead letter.
    For `superseded_for` seconds nobody may have named a schedule, for it to be forgotten or to become another one.
    """

    clock: Clock
    namespace: str
    heartbeat: float
    publish_timeout: float
    topics: Mapping[str, TopicOptions]
    retention: float = 86_400.0
    max_crashes: int = 3
    dead_letter_retention: float = 30 * 86_400.0
    superseded_for: float = 150.0

    @property
    def lease(self) -> float:
        """For how many seconds after a sign of life a consumer counts as there."""
        return LEASE * self.heartbeat


MOST_RETAINED = 100_000

LEASE = 4  # heartbeats


@dataclass(frozen=True, slots=True)
class Terms:
    """When a message is to be published, and whether.

    `delay` is the seconds to wait, by the broker's clock; with `at` (seconds since 1970) the moment by that clock, and
    one that is past is now. Of those with the same `dedup` on a topic within `window` seconds, only the first counts.
    """

    delay: float = 0.0
    at: float | None = None
    dedup: str | None = None
    window: float = 300.0


NO_TERMS: Mapping[str, Terms] = MappingProxyType({})


class ScheduleKey(NamedTuple):
    """What a broker knows a schedule by: the topic that it publishes to, and its name."""

    topic: str
    name: str


class Consumer(Protocol):
    """One worker process's membership in its groups.

    `receive` is called by one thread at a time; every other method by any thread, also while `receive` waits.
    A delivery that was received belongs to this consumer until it is settled, however long that takes, as long as
    `maintain` is called when it asks for it. It is settled by the very object that `receive` returned: a message that
    comes again may have the attempt that it had, and is another delivery. If the process dies, others get its
    deliveries, with `attempt` + 1 and `crashes` + 1.

    A delivery with `crashes` is a suspect: it may be what killed the process. So a consumer gets no suspect while it
    has another one, of any subscription; and nothing at all while it has one with `max_crashes - 1` or more: if that
    kills again, it was alone, but for what was in hand already.
    """

    @property
    def name(self) -> str:
        """The name given at the start: unique in the fleet, and never used again."""

    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Sequence[Delivery[bytes]]:
        """Acknowledge `done`, then return what there is, at most `credit[key]` deliveries of each subscription.

        Per topic in the order of publishing; a delivery that comes again (nack, release, a crash) when it is due.
        Waits up to `wait` seconds for the first one, less if `wake` is called; returns an empty sequence if none came.
        Only subscriptions with a credit of 1 or more are asked for. A group that does not exist is made, at its
        `start`. On an error `done` may have been acknowledged or not: pass it again, to this method or to `ack`.
        An entry that another program wrote is delivered too; see the backend for what its payload is.
        """

    def wake(self) -> None:
        """Make a `receive` that waits return soon; if none does, the next one. Never blocks, never raises."""

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Mark as done for their groups. Idempotent, and not fenced: the handler did succeed."""

    def nack(self, delivery: Delivery[bytes], delay: float) -> None:
        """Give back, to be delivered to this group no earlier than `delay` seconds from now, with `attempt` + 1.

        Raises LeaseLost, and changes nothing, if the delivery is not this consumer's any more. Repeating it after an
        error is safe: if the first did happen, the second raises LeaseLost.
        """

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Hand back unstarted: others get them at once, with the same `attempt`.

        Deliveries that are not this consumer's any more are left as they are. Idempotent: after an error too, even if
        they came again meanwhile.
        """

    def dead_letter(self, delivery: Delivery[bytes], reason: DeadLetterReason) -> None:
        """Keep the message and the reason in the group's dead letters, and end the delivery: both, or neither.

        Raises LeaseLost, and changes nothing, if the delivery is not this consumer's any more.
        """

    def maintain(self) -> float:
        """Do what must be done from time to time: give a sign of life, take over from consumers that are gone.

        Returns the seconds until it wants to be called again. Called by one thread at a time, beside `receive`.
        """

    def close(self) -> None:
        """Leave the groups. What is still held goes back uncounted, as by `release`. Idempotent; never raises.

        If the broker cannot be reached, others take over as if the process had died. Not to be called while `receive`
        runs.
        """


class Broker(Protocol):
    """A place that keeps messages. Safe to use from any thread, and from a forked child of the process that made it."""

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        """Store the messages, those of one topic in the order given. When it returns they are stored.

        `terms` has those of the messages that have any, by their ids. One that is not due yet is kept apart, seen by no
        group, and joins its topic when it is due, behind what is there then; that takes a consumer of the topic.
        Returns the ids that stand for the messages: their own, or for one whose `dedup` was used before, that of the
        first, and then it is not stored. Storing and looking are one.

        Blocks for `publish_timeout` at most. Raises BrokerUnavailable, BrokerFull or NotPermitted if none was stored
        but those that the error names (`stored`), and PublishUncertain, with the ids in question, if that cannot be
        known. `again` says that some may be stored already, by an earlier publish: those that are, by their ids, are
        not stored twice.

        With a `durability` the disk and the replicas have them too when it returns. Raises Unsupported if the server
        cannot say so: nothing was stored; and NotConfirmed if it did not say so in time: they are stored, and may still
        be lost with the server.
        A backend in memory has no disk and no replicas, and takes any durability as given.
        """

    def cancel(self, topic: str, message_id: str) -> bool:
        """Delete a message that is not due yet, and free its `dedup`. Tell whether there was one. Idempotent."""

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        """Return a consumer of these subscriptions. No I/O: the first `receive` joins the groups."""

    def time(self) -> float:
        """Return the seconds since 1970 by the broker's clock, as well as is known here.

        It may ask, and block. Raises a BrokerError only if it was never known.
        """

    def join_schedules(
        self, owner: str, schedules: Mapping[ScheduleKey, str], *, is_start: bool = False
    ) -> Mapping[ScheduleKey, float]:
        """Say that these are the schedules of an application; return the last tick of each, in seconds since 1970.

        The text says what the schedule is. Of a new one the last tick is now; so it is of one that was something else
        and becomes what is said here: that takes a process that starts (`is_start`), or that nobody has said the other
        for `superseded_for` seconds. Schedules of the same owner that nobody named for so long are forgotten. To be
        called again every minute. Idempotent.
        """

    def fire(self, key: ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> Fired:
        """Publish the message of a tick if nobody has fired this tick or a later one: one fires, whoever else tries.

        Otherwise nothing is published, and it says why: somebody was first ("past"), it has not come yet by the
        broker's clock ("early"), the schedule is paused, or it is another one by now ("superseded"). Raises BrokerFull
        if the topic has no room. Idempotent: after an error repeat it, and if it was fired then, it is "past".
        """

    def close(self) -> None:
        """Close every connection. Idempotent. Consumers are closed on their own, before."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up. `position` is its place among the dead letters of its group.

    `last_failed_at` is when it was given up; `first_failed_at` when its first failed attempt ended, or was cut short by
    the end of a process.
    """

    position: str
    message: Message[bytes]
    subscription: SubscriptionKey
    reason: DeadLetterReason
    consumer: str
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are. If it is not exact there are more: counting ended there, as it would have taken too long."""

    at_least: int
    is_exact: bool = True

    def __str__(self) -> str:
        """As it is shown."""
        return f"{self.at_least:,}" if self.is_exact else f"≥ {self.at_least:,}"


@dataclass(frozen=True, slots=True)
class TopicState:
    """How a topic stands: how many messages it keeps, settled ones too, and when the oldest and newest were stored.

    `delayed` are not among them yet. `dropped` is how many were dropped to bound its backlog, ever. `memory` is about
    how many bytes it takes, None if the backend cannot say.
    """

    topic: str
    messages: int
    oldest: datetime | None
    newest: datetime | None
    groups: int
    delayed: int
    dropped: int
    memory: int | None


@dataclass(frozen=True, slots=True)
class GroupState:
    """How a group stands. `pending` is what was handed out and is not settled, what waits for its retry included.

    `consumers` are the processes that have it now. `oldest_unsettled` is when the oldest message was published that the
    group has not settled, None if there is none. `dropped` is how many messages of the topic were dropped to bound its
    backlog, ever. `lag` is what was not handed out yet, `parked` what waits for its retry, `dead` its dead letters.
    While it `is_paused` its consumers ask for nothing. `passes_over_until` is None unless its place lies ahead of all
    that is stored, and of now: then it sees nothing that is stored until that moment.
    """

    key: SubscriptionKey
    pending: int
    consumers: int
    oldest_unsettled: datetime | None
    dropped: int
    lag: Count = Count(0)  # frozen
    parked: int = 0
    dead: int = 0
    is_paused: bool = False
    passes_over_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """How a consumer of a group stands, and what it said of itself: None where it said nothing.

    One that is not alive gave no sign of life for four heartbeats; others take over from it.
    """

    name: str
    key: SubscriptionKey
    in_hand: int
    is_alive: bool
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class InHand:
    """A delivery that a consumer has, since `seconds`. `message_id` is None if the message was deleted meanwhile."""

    key: SubscriptionKey
    consumer: str
    position: str
    message_id: str | None
    attempt: int
    seconds: float


Stands = Literal["waiting", "in hand", "parked", "settled", "dead letter"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a message stands with a group: `consumer` has it in hand; parked it comes again at `due_at`."""

    group: str
    stands: Stands
    consumer: str | None = None
    attempt: int | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A message, and how it stands with each group by name; or, not in its topic yet, when it is due."""

    message: Message[bytes]
    standings: Sequence[Standing] = ()
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Delayed:
    """A message that is not due yet."""

    message: Message[bytes]
    due_at: datetime


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """How a schedule stands. `spec` is what its application says it is, `last_tick` the last one fired, or passed over.

    `owner` is the application, as `join_schedules` had it. Of a new schedule `last_tick` is when it was first named.
    The next one is `pubsub_core.cron.next_tick(spec, now)`, unless it `is_paused`.
    """

    key: ScheduleKey
    owner: str
    spec: str
    last_tick: datetime
    is_paused: bool


@runtime_checkable
class Inspector(Protocol):
    """What may be looked at, and mended, from outside. Optional: a broker that can be inspected has these methods too.

    Every method is safe from any thread, and raises a `BrokerError`.
    """

    def dead_letters(
        self, key: SubscriptionKey, limit: int = 100, *, before: str | None = None
    ) -> Sequence[DeadLetter]:
        """Return the newest `limit` dead letters of the group, newest first; with `before`, those before a position."""

    def replay(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Deliver dead letters to their group again, and to no other; return how many of them were there.

        Each one is moved as a whole, or stays: the same id, payload, key and headers, `source` "replay", `attempt` 1.
        If it raises, some may have been moved; repeating it is safe.
        """

    def discard(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Delete dead letters for good; return how many of them were there."""

    def topics(self) -> Sequence[str]:
        """Return the topics of the namespace that a worker has consumed, or that hold messages, as far as is known."""

    def topic(self, topic: str) -> TopicState:
        """Return how a topic stands; one that is not there is empty."""

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return the groups of a topic, by name."""

    def consumers(
        self, key: SubscriptionKey, limit: int = 1000, *, after: str | None = None
    ) -> Sequence[ConsumerState]:
        """Return the first `limit` consumers of a group, by name; with `after`, of those behind that name."""

    def in_hand(self, key: SubscriptionKey, consumer: str, limit: int = 100) -> Sequence[InHand]:
        """Return the oldest `limit` deliveries that a consumer has in hand, in the order of the topic."""

    def peek(self, topic: str, limit: int = 100, *, after: str | datetime | None = None) -> Sequence[Message[bytes]]:
        """Return messages of a topic as they were published, handled or not: the newest `limit`, oldest first.

        With `after`, the first ones behind a position, or stored at or after an aware datetime.
        """

    def find(self, topic: str, message_id: str) -> Found | None:
        """Return a message by its id, or its position, and how it stands; None if it is not kept any more.

        It is looked for from when it was published on, among a bounded number of messages.
        """

    def pause_group(self, key: SubscriptionKey, *, is_paused: bool) -> None:
        """Have all consumers of a group ask for nothing more, or go on, within a second. What they have, they finish.

        It holds until it is taken back, also for consumers that join later. Idempotent.
        """

    def seek(self, key: SubscriptionKey, to: Start | str, *, force: bool = False) -> None:
        """Have a group go on reading at the oldest message kept, behind the newest, at a moment, or at a position.

        What is later than the newest message is taken for behind it, so that nothing to come is passed over.
        What is pending and lies behind that comes again, as new; what is pending and lies before it stays pending.
        Raises ConsumersPresent, changing nothing, if processes consume the group, unless it is paused, or by `force`:
        what a handler is at meanwhile may then come again. Raises BrokerError if there is no such group.
        """

    def purge(self, topic: str, *, everything: bool = False, force: bool = False) -> int:
        """Delete the messages that every group has settled, whatever retention says; return how many there were.

        With `everything`, delete all messages of the topic, and what groups have parked of them; not what is delayed,
        nor dead letters. That raises ConsumersPresent, changing nothing, if processes consume a group of it that is not
        paused, unless by `force`. Without a group, nothing is settled.
        """

    def delayed(self, topic: str, limit: int = 100) -> Sequence[Delayed]:
        """Return the next `limit` messages of a topic that are not due yet, the first one first."""

    def schedules(self) -> Sequence[ScheduleState]:
        """Return the schedules of all applications of the namespace, by topic and name."""

    def pause_schedule(self, key: ScheduleKey, *, is_paused: bool) -> bool:
        """Pause a schedule, or let it go on; tell whether it is known. Ticks in a pause are not made up for."""

    def remove_group(self, key: SubscriptionKey) -> None:
        """Delete a group that is not consumed any more, with what it has not settled and its dead letters. Idempotent.

        Raises ConsumersPresent, changing nothing, if a process consumes it.
        """


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What an examination found: what it is, why it matters, and how to mend it.

    An "error" loses messages, or keeps them from being handled; a "warning" may come to that; a "note" is to be known.
    `name` says what kind of finding it is, in a word or two, for scripts.
    """

    severity: Severity
    name: str
    what: str
    why: str
    mend: str


@runtime_checkable
class Examinable(Protocol):
    """A broker that can tell how its server is set up. Optional."""

    def examine(self) -> Sequence[Finding]:
        """Return what is not as it should be with the server. What may not be looked at is a warning, not an error.

        Raises BrokerUnavailable if it cannot be reached. Blocks for a dozen round trips.
        """


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is kept and on no list: topics that no worker consumed, and groups that are gone and left something.

    `is_complete` is False if there was too much to look at all of it.
    """

    topics: Sequence[str]
    groups: Sequence[SubscriptionKey]
    is_complete: bool


@runtime_checkable
class Searchable(Protocol):
    """A broker that can look through what it keeps for what no list has. Optional."""

    def leftovers(self) -> Leftovers:
        """Return what is left over. Bounded: some seconds at most. Raises NotPermitted if the user may not look."""


@runtime_checkable
class ListsPauses(Protocol):
    """A broker that knows what is paused, whether the group is there or not. Optional."""

    def paused_groups(self) -> Sequence[SubscriptionKey]:
        """Return the groups that are paused, by topic and name: those too that no consumer has made yet."""


class Backend(Protocol):
    """What an entry point of the group `pubsub.backends` is: called with a URL of its scheme, it makes a broker.

    No I/O. Raises ConfigurationError, naming the URL with its password masked, if the URL cannot work.
    """

    def __call__(self, url: str, options: BrokerOptions, /) -> Broker:
        """Return a broker for `url`."""
