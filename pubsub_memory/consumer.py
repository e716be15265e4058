"""A consumer of the memory broker."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from time import monotonic

from pubsub_core import __version__
from pubsub_core.broker import BrokerOptions, ConsumerState, Membership
from pubsub_core.clock import MovableClock
from pubsub_core.errors import LeaseLost
from pubsub_core.message import DeadLetterReason, Delivery, SubscriptionKey
from pubsub_memory.store import Group, Log, Store

_LONGEST_WAIT = 3600.0  # of one look at the bell, not of a receive


class MemoryConsumer:
    """See `pubsub_core.broker.Consumer`. Due times go by the clock of the options, waiting by that of the machine."""

    def __init__(
        self,
        store: Store,
        options: BrokerOptions,
        log_of: Callable[[str], Log],
        memberships: Sequence[Membership],
        name: str,
        *,
        move_due: Callable[[str, float], float],
    ) -> None:
        self.name = name
        self._sign_of_life = self._since = 0.0
        self._process = os.getpid()
        self._store = store
        self._clock = options.clock
        self._clock_moves_by_itself = not isinstance(options.clock, MovableClock)
        self._heartbeat = options.heartbeat
        self._lease = options.lease
        self._log_of = log_of
        self._move_due = move_due
        self._delayed_until = float("inf")  # what is delayed, of the topics that were asked for last
        self._memberships = tuple(memberships)
        self._groups: dict[SubscriptionKey, Group] = {}
        self._registered = False
        self._turn = 0
        self._woken = False
        self._last_chance = max(1, options.max_crashes - 1)
        # What is held that crashed somebody before, and how often.
        self._crashed: dict[tuple[SubscriptionKey, str | None], int] = {}
        self._bell: SimpleQueue[None] = SimpleQueue()  # its `put` is safe even in a signal handler

    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Sequence[Delivery[bytes]]:
        """Acknowledge `done`, and return what there is, waiting for the first one."""
        deadline = None
        while True:
            with self._store.lock:
                self._settle(done)
                if not self._registered:
                    self._join()
                wanted = {key: count for key, count in credit.items() if count > 0 and not self._groups[key].is_paused}
                taken = self._take(wanted)
                if taken or self._woken or wait <= 0:
                    self._woken = False
                    return taken
                now = monotonic()
                deadline = deadline or now + wait
                if now >= deadline:
                    return taken
                self._store.waiting.append(self)
                seconds = min(deadline - now, self._until_due(wanted), _LONGEST_WAIT)
            self._wait_for_bell(seconds)
            done = ()

    def _join(self) -> None:
        self._groups = {
            membership.key: self._log_of(membership.key.topic).group(membership.key, membership.start)
            for membership in self._memberships
        }
        self._sign_of_life = self._since = self._clock.time()
        self._registered = True
        self._store.register(self)

    def _take(self, credit: Mapping[SubscriptionKey, int]) -> list[Delivery[bytes]]:
        """Take from each subscription, beginning with another one each time."""
        now = self._clock.time()
        asked = [*credit]
        if len(asked) > 1:
            self._turn = (self._turn + 1) % len(asked)
            asked = asked[self._turn :] + asked[: self._turn]
        if self._is_at_last_chance():
            return []
        self._delayed_until = min(
            (self._move_due(key.topic, now) for key in asked if self._groups[key].log.delayed), default=float("inf")
        )
        taken = self._take_suspect(asked, now)
        if self._is_at_last_chance():
            return taken
        for key in asked:
            count = credit[key] - sum(one.subscription == key for one in taken) if taken else credit[key]
            taken += self._groups[key].take(self, count, now)
        return taken

    def _take_suspect(self, asked: Sequence[SubscriptionKey], now: float) -> list[Delivery[bytes]]:
        if not self._crashed:
            for key in asked:
                for suspect in self._groups[key].take_suspect(self, now):
                    self._crashed[key, suspect.message.position] = suspect.crashes
                    return [suspect]
        return []

    def _is_at_last_chance(self) -> bool:
        """Whether it has a suspect beside which it gets nothing: if that kills, it is alone."""
        return any(crashes >= self._last_chance for crashes in self._crashed.values())

    def _until_due(self, credit: Mapping[SubscriptionKey, int]) -> float:
        """Return for how many seconds of this machine nothing parked can come due. A clock that is moved rings."""
        if not self._clock_moves_by_itself:
            return _LONGEST_WAIT
        asked = [self._groups[key] for key in credit]
        due_at = min((group.due_at(suspects=not self._crashed) for group in asked), default=float("inf"))
        due_at = min(due_at, self._delayed_until)
        return max(due_at - self._clock.time(), 0.001)

    def _wait_for_bell(self, seconds: float) -> None:
        try:
            self._bell.get(timeout=seconds)
        except Empty:
            with self._store.lock:
                if self in self._store.waiting:
                    self._store.waiting.remove(self)

    def ring(self) -> None:
        """Make a `receive` that waits look again."""
        self._bell.put(None)

    def wake(self) -> None:
        """Make a `receive` that waits return soon; if none does, the next one. Takes no lock."""
        if not self._woken:
            self._woken = True
            self._bell.put(None)

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Mark as done for their groups."""
        with self._store.lock:
            self._settle(deliveries)

    def _settle(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        for delivery in deliveries:
            self._groups[delivery.subscription].settle(delivery.message.position)
            self._forget(delivery)

    def _forget(self, delivery: Delivery[bytes]) -> None:
        """Note that a delivery is held no more. After a suspect another one may be had."""
        if delivery.crashes and self._crashed.pop((delivery.subscription, delivery.message.position), None) is not None:
            self._bell.put(None)

    def nack(self, delivery: Delivery[bytes], delay: float) -> None:
        """Give back, to be delivered again after `delay` seconds of the clock. Raises LeaseLost if it is not ours."""
        with self._store.lock:
            group, held = self._give_up(delivery)
            now = self._clock.time()
            group.park_failed(held, now + delay, now)
            self._store.ring()

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Hand back unstarted. What is not ours is left as it is."""
        with self._store.lock:
            for delivery in deliveries:
                group = self._groups[delivery.subscription]
                held = group.give_up(self, delivery)
                if held is not None:
                    group.park(held, 0.0)
                    self._forget(held)
            self._store.ring()

    def dead_letter(self, delivery: Delivery[bytes], reason: DeadLetterReason) -> None:
        """Keep the message and the reason, and end the delivery. Raises LeaseLost if it is not ours."""
        with self._store.lock:
            group, held = self._give_up(delivery)
            group.bury(held, reason, self.name, self._clock.time())

    def _give_up(self, delivery: Delivery[bytes]) -> tuple[Group, Delivery[bytes]]:
        group = self._groups[delivery.subscription]
        held = group.give_up(self, delivery)
        if held is None:
            raise LeaseLost(
                f"the delivery {delivery.message!r} is not that of consumer {self.name!r} any more: "
                "it was settled, or taken over when the consumer gave no sign of life"
            )
        self._forget(held)
        return group, held

    def maintain(self) -> float:
        """Give a sign of life, and take over from consumers that gave none for four heartbeats."""
        with self._store.lock:
            self._sign_of_life = self._clock.time()
            self._store.remove_gone(self._sign_of_life)
        return self._heartbeat

    def is_gone(self) -> bool:
        """Return whether the last sign of life was four heartbeats ago."""
        return self._clock.time() - self._sign_of_life >= self._lease

    def lapse(self) -> None:
        """Take note that the consumer is watched no more. The next `receive` registers it anew."""
        self._registered = False
        self._crashed.clear()

    def has_joined(self, group: Group) -> bool:
        """Return whether it consumes the group."""
        return group in self._groups.values()

    def about(self, group: Group, in_hand: int) -> ConsumerState:
        """Return what there is to know of it, as a consumer of a group."""
        key = next(key for key, one in self._groups.items() if one is group)
        since = datetime.fromtimestamp(self._since, UTC)
        is_alive = not self.is_gone()
        return ConsumerState(self.name, key, in_hand, is_alive, socket.gethostname(), self._process, __version__, since)

    def close(self) -> None:
        """Leave the groups; what is still held goes back uncounted."""
        with self._store.lock:
            self._store.remove(self, self._clock.time(), is_dead=False)
