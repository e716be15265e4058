"""The seam: what a backend must do. The docstrings are the specification, `pubsub_core.testing` its executable form.

Brokers see bytes: payload types live in the codec. Every method may raise a `BrokerError`; the caller decides whether
to try again. Where a method says "idempotent", repeating it after an error is safe and right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from pubsub_core.clock import Clock
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey

Start = Literal["earliest", "latest"] | datetime


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

    `streams` maps a topic to the name that the backend shall keep it under, for topics that asked for one. It grows as
    topics are declared, so look it up at each use. `heartbeat` is the seconds between two signs of life of a consumer;
    one without any for `4 * heartbeat` counts as gone. `publish_timeout` bounds a publish in all, in seconds.
    """

    clock: Clock
    namespace: str
    heartbeat: float
    publish_timeout: float
    streams: Mapping[str, str]


class Consumer(Protocol):
    """One worker process's membership in its groups.

    `receive` is called by one thread at a time; every other method by any thread, also while `receive` waits.
    A delivery that was received belongs to this consumer until it is settled, however long that takes, as long as
    `maintain` is called when it asks for it. If the process dies, others get its deliveries, with `attempt` + 1.
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

        Deliveries that are not this consumer's any more are left as they are. Idempotent.
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

    def publish(self, messages: Sequence[Message[bytes]]) -> None:
        """Store the messages, those of one topic in the order given. When it returns they are stored.

        Blocks for `publish_timeout` at most. Raises BrokerUnavailable, BrokerFull or NotPermitted if none was stored,
        and PublishUncertain, with the ids in question, if that cannot be known.
        """

    def consumer(self, memberships: Sequence[Membership], name: str) -> Consumer:
        """Return a consumer of these subscriptions. No I/O: the first `receive` joins the groups."""

    def close(self) -> None:
        """Close every connection. Idempotent. Consumers are closed on their own, before."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up. `position` is its place among the dead letters of its group."""

    position: str
    message: Message[bytes]
    subscription: SubscriptionKey
    reason: DeadLetterReason
    consumer: str
    died_at: datetime


@runtime_checkable
class Inspector(Protocol):
    """What may be looked at from outside. Optional: a broker that can be inspected has these methods too."""

    def dead_letters(self, key: SubscriptionKey, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the newest `limit` dead letters of the group, newest first."""


class Backend(Protocol):
    """What an entry point of the group `pubsub.backends` is: called with a URL of its scheme, it makes a broker.

    No I/O. Raises ConfigurationError, naming the URL with its password masked, if the URL cannot work.
    """

    def __call__(self, url: str, options: BrokerOptions, /) -> Broker:
        """Return a broker for `url`."""
