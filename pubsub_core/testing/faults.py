"""Faults that a test may order: of publishing, and of handling."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pubsub_core.backends import masked
from pubsub_core.errors import BrokerUnavailable, PublishUncertain, Unsupported
from pubsub_core.message import Delivery, Message
from pubsub_core.outcome import Acked, Outcome
from pubsub_core.topic import Topic

if TYPE_CHECKING:
    from pubsub_core.testing.kit import Kit


@dataclass(slots=True)
class _Ordered:
    """A fault that waits for its time. None as topic, or group, stands for any."""

    what: str
    topic: str | None
    group: str | None
    times: int

    def strikes(self, topic: str, group: str | None = None) -> bool:
        if not self.times or self.topic not in (None, topic) or self.group not in (None, group):
            return False
        self.times -= 1
        return True

    def __str__(self) -> str:
        where = f" on topic {self.topic!r}" if self.topic else ""
        return f"{self.what}{where}" + (f", {self.times} times" if self.times > 1 else "")


class Faults:
    """What shall go wrong in this test. Each fault strikes `times` times, at the next occasions; `topic` narrows it.

    A fault that was ordered and never struck fails the test at its end: it did not test what it says.
    """

    def __init__(self, kit: "Kit") -> None:
        self._kit = kit
        self._publishing: list[tuple[_Ordered, bool | None]] = []  # and whether it is stored; None: it is refused
        self._crashes: list[_Ordered] = []
        self._acked: list[Delivery[bytes]] = []
        self._again: list[Delivery[bytes]] = []

    def fail_publish(self, topic: str | Topic[Any] | None = None, *, times: int = 1) -> None:
        """Have the next publish raise BrokerUnavailable. Nothing is stored."""
        self._publishing.append((self._order("fail_publish", topic, None, times), None))

    def lose_reply(self, topic: str | Topic[Any] | None = None, *, stored: bool, times: int = 1) -> None:
        """Have the next publish raise PublishUncertain. It is `stored`, or it is not: the publisher cannot know."""
        self._publishing.append((self._order("lose_reply", topic, None, times), stored))

    def crash_before_ack(
        self, topic: str | Topic[Any] | None = None, *, group: str | None = None, times: int = 1
    ) -> None:
        """Have the process die once the next handler is done, before its message is settled in any way.

        The message is delivered again, with `attempt` + 1, and one crash more: `PUBSUB_MAX_CRASHES` of them make it a
        dead letter. Raises Unsupported if the backend is one that knows nothing of tests.
        """
        if not self._kit.can_crash:
            raise Unsupported(
                f"no consumer of {masked(self._kit.pubsub.settings.url)} can be lost: its brokers have no for_tests() "
                "(pubsub_core.testing.controlled)"
            )
        self._crashes.append(self._order("crash_before_ack", topic, group, times))

    def redeliver(self, topic: str | Topic[Any] | None = None, *, group: str | None = None) -> int:
        """Have all that was acknowledged so far delivered again by the next `run_until_idle`; return how many.

        So it is if the process was thought dead while it was at work: each comes with `attempt` + 1.
        Raises AssertionError if there is nothing.
        """
        name = self._name(topic)
        again = [
            one for one in self._acked if name in (None, one.message.topic) and group in (None, one.subscription.group)
        ]
        if not again:
            where = f" on topic {name!r}" if name else ""
            raise AssertionError(f"nothing was acknowledged{where} that could be delivered again: run_until_idle first")
        self._again += [replace(one, message=replace(one.message, attempt=one.message.attempt + 1)) for one in again]
        return len(again)

    def outstanding(self) -> Sequence[str]:
        """Return what was ordered and has not struck yet."""
        ordered = [one for one, _ in self._publishing] + self._crashes
        waiting = [f"redeliver: {len(self._again)} messages"] if self._again else []
        return [str(one) for one in ordered if one.times] + waiting

    def _order(self, what: str, topic: str | Topic[Any] | None, group: str | None, times: int) -> _Ordered:
        if times < 1:
            raise ValueError(f"{what}(times={times!r}): 1 or more")
        return _Ordered(what, self._name(topic), group, times)

    def _name(self, topic: str | Topic[Any] | None) -> str | None:
        if topic is not None:
            self._kit.published(topic)  # raises, with the nearest name, if nobody declared it
        return topic.name if isinstance(topic, Topic) else topic

    # What the kit asks

    @contextmanager
    def publishing(self, messages: Sequence[Message[bytes]]) -> Iterator[None]:
        """Around the storing of messages: raise what was ordered, before or afterwards."""
        ids = [message.id for message in messages]
        is_stored = self._due(messages)
        if is_stored is None:
            raise BrokerUnavailable("the broker cannot be reached: ordered by pubsub_faults.fail_publish")
        if is_stored is False:
            raise PublishUncertain(_UNCERTAIN, ids)
        yield
        if is_stored is True:
            raise PublishUncertain(_UNCERTAIN, ids)

    def _due(self, messages: Sequence[Message[bytes]]) -> bool | str | None:
        for ordered, is_stored in self._publishing:
            if any(ordered.strikes(topic) for topic in sorted({message.topic for message in messages})):
                return is_stored
        return "no fault"

    def settling(self, delivery: Delivery[bytes], outcome: Outcome) -> bool:
        """Tell whether the process dies now, instead of settling the delivery."""
        if any(one.strikes(delivery.message.topic, delivery.subscription.group) for one in self._crashes):
            self._kit.crash()
            return True
        if isinstance(outcome, Acked):
            self._acked.append(delivery)
        return False

    def take_redelivered(self) -> list[Delivery[bytes]]:
        """Return what is to be delivered again, once."""
        again, self._again = self._again, []
        return again


_UNCERTAIN = "the connection broke, and nobody knows what was stored: ordered by pubsub_faults.lose_reply"
