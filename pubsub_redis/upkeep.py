"""What one process of a fleet does for all, from time to time: it looks for dead consumers, and for what may go."""

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pubsub_core.broker import MOST_RETAINED, USUAL
from pubsub_core.errors import BrokerError, BrokerFull, NotPermitted
from pubsub_core.message import SubscriptionKey
from pubsub_redis.entry import stored_at
from pubsub_redis.faults import is_missing_group
from pubsub_redis.groups import Group, due_text, joined, shown
from pubsub_redis.keys import PARKED, control_channel, look_key, told_key, topics_key, worker_key, workers_key
from pubsub_redis.link import Command, script_call
from pubsub_redis.sign import SignOfLife

if TYPE_CHECKING:
    from pubsub_redis.broker import RedisBroker

log = logging.getLogger(__name__)

_TRIM = 10_000  # entries in one script call
_TIDY = 60.0  # seconds
_TIDY_IDLE = 300.0
_RETAIN_IDLE = 120.0  # seconds between two looks at what may go, of a topic that this process has nothing to do with
_SCAN = 60.0  # seconds between two looks at the names in the groups, where no worker is known to be silent
_FORGOTTEN_AFTER = 600.0  # seconds for which those who look are reminded of a worker that is silent
_NO_KEY = -2  # what PTTL says of one

T = TypeVar("T")


class Upkeep:
    """Of the groups of one consumer. Its methods are called by one thread at a time.

    `wake` wakes who waits to read, `sign` is that of this consumer, which is given meanwhile.
    """

    def __init__(
        self,
        broker: "RedisBroker",
        name: str,
        groups: Mapping[SubscriptionKey, Group],
        *,
        wake: Callable[[], None],
        sign: SignOfLife,
    ) -> None:
        self._broker = broker
        self._name = name
        self._groups = groups
        self._wake = wake
        self._own_sign = sign
        self._namespace = broker.options.namespace
        self._heartbeat = broker.options.heartbeat
        self.concern = _digest(groups)
        self.suspects: dict[tuple[SubscriptionKey, bytes], float] = {}
        """Consumers that were found silent once, and when: they are taken over from if they are found so again."""
        self.turn_at = math.inf  # when to ask for our turn again, where it was somebody else's
        self.tidy_at = 0.0
        self.scan_at = 0.0
        # Silent workers that are in none of our groups any more, and when they were listed: who comes back is anew.
        self._cleared: dict[bytes, float] = {}
        self._reported: set[SubscriptionKey] = set()  # groups that nobody consumes

    def alive(self, items: Iterable[T]) -> Iterator[T]:
        """Go through what may take long, giving signs of life meanwhile."""
        for one in items:
            self._own_sign.give_if_due()
            yield one

    def is_our_turn(self) -> bool:
        """Whether it is this process that looks, of all that have the same groups, this time."""
        key = look_key(self._namespace, self.concern)
        period = int(1800 * self._heartbeat)
        self.turn_at = math.inf
        try:
            if self._broker.call(key, ("SET", key, self._name, "NX", "PX", period), "taking turns"):
                return True
            left = self._broker.call(key, ("PTTL", key), "taking turns")
            if left <= period:
                # A bit later than it ends: who has the turn after it may have something to tell us by then.
                self.turn_at = time.monotonic() + max(0, left) / 1000 + 0.1 * self._heartbeat
                return False
            # The server's clock was set back, and this would hold for as much longer.
            return bool(self._broker.call(key, ("SET", key, self._name, "PX", period), "taking turns"))
        except BrokerFull:
            return False  # taking over would need memory, too

    def look_for_dead_consumers(self) -> None:
        """Take over from consumers that gave no sign of life at two looks, a heartbeat apart.

        One look is not enough: a failover or a flush makes all signs vanish at once, and the living need a moment to
        give new ones. The first may be that of a process that was killed meanwhile.
        """
        now = time.monotonic()
        silent_workers = dict(self._silent_workers().items() - self._cleared.items())
        if not (silent_workers or self.suspects or now >= self.scan_at):
            return
        silent = set(self._silent_consumers())
        self.scan_at = now + _SCAN
        present = {name for _, name in silent}
        self._cleared |= {name: at for name, at in silent_workers.items() if name not in present}
        if silent - self.suspects.keys():
            self.suspects = {one: at for one, at in self._told(now).items() if one in silent} | self.suspects
        before = {*self.suspects}
        for suspect, since in [*self.suspects.items()]:
            if suspect not in silent:
                del self.suspects[suspect]
            elif now - since >= self._heartbeat * 0.9:
                del self.suspects[suspect]  # first: if that fails, it must be found silent twice again
                silent.discard(suspect)
                self.take_over(*suspect)
        for suspect in silent:
            self.suspects.setdefault(suspect, now)
        if before != {*self.suspects}:
            self._tell()

    def _tell(self) -> None:
        """Tell who looks next whom we found silent, and have him look soon, in case we are gone by then."""
        look, told = look_key(self._namespace, self.concern), told_key(self._namespace, self.concern)
        if not self.suspects:
            self._broker.call(told, ("DEL", told), "looking for dead consumers")
            return
        text = json.dumps([[*key, name.decode("latin-1")] for key, name in self.suspects])
        with contextlib.suppress(BrokerFull):
            self._broker.call(
                told, ("SET", told, text, "PX", int(2000 * self._heartbeat)), "looking for dead consumers"
            )
            self._broker.call(look, ("PEXPIRE", look, int(1000 * self._heartbeat)), "looking for dead consumers")

    def _told(self, now: float) -> dict[tuple[SubscriptionKey, bytes], float]:
        """Return whom another process found silent lately, and when."""
        told = told_key(self._namespace, self.concern)
        text = self._broker.call(told, ("GET", told), "looking for dead consumers")
        left = self._broker.call(told, ("PTTL", told), "looking for dead consumers") / 1000
        if text is None or not 0 <= left <= 2 * self._heartbeat:
            return {}
        since = now + left - 2 * self._heartbeat
        return {
            (SubscriptionKey(topic, group), name.encode("latin-1")): since for topic, group, name in json.loads(text)
        }

    def _silent_workers(self) -> dict[bytes, float]:
        """Return the workers that give no sign of life, whatever their groups, and when they were listed; cheaply.

        Somebody has to look into the groups for what they had. Who is not listed is found there, once in `_SCAN`.
        """
        names = workers_key(self._namespace)
        listed = self._broker.call(names, ("ZRANGE", names, 0, -1, "WITHSCORES"), "looking for dead workers")
        others = {name: float(at) for name, at in zip(listed[::2], listed[1::2], strict=True)}
        others.pop(self._name.encode(), None)
        signs = [self._sign_of(name) for name in others]
        if not signs:
            return {}
        if not self._broker.servers.is_cluster:
            alive = self._broker.call(signs[0], ("EXISTS", *signs), "looking for dead workers")
            if alive == len(signs):
                return {}
        silent = {name: at for name, at in self.alive(others.items()) if not self._has_sign(name)}
        self._cleared = dict(self._cleared.items() & silent.items())
        forgotten = [name for name, at in silent.items() if at < self._broker.time() - _FORGOTTEN_AFTER]
        if forgotten:
            self._broker.call(names, ("ZREM", names, *forgotten), "looking for dead workers")
        return silent

    def _silent_consumers(self) -> Iterator[tuple[SubscriptionKey, bytes]]:
        alive = {self._name.encode(): True, PARKED.encode(): True}
        for group in self.alive(joined(self._groups)):
            for name in self.alive(self._consumers_named(group.keys.stream, group.key.group)):
                if name not in alive:
                    alive[name] = self._has_sign(name)
                if not alive[name]:
                    yield group.key, name

    def _consumers_named(self, stream: str, group: str) -> list[bytes]:
        command = ("XINFO", "CONSUMERS", stream, group)
        try:
            rows = self._broker.call(stream, command, "looking for dead consumers")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                return []  # the next `receive` makes it anew
            raise
        return [row[row.index(b"name") + 1] for row in rows]

    def _sign_of(self, consumer: bytes) -> str:
        return worker_key(self._namespace, consumer.decode("utf-8", "replace"))  # ours are UTF-8, others give no signs

    def _has_sign(self, consumer: bytes) -> bool:
        sign = self._sign_of(consumer)
        left = self._broker.call(sign, ("PTTL", sign), "looking for a sign of life")
        expiry = int(1000 * self._broker.options.lease)
        if left > 2 * expiry:  # the server's clock was set back: who lives will say so again before it expires
            self._broker.call(sign, ("PEXPIRE", sign, expiry), "looking for a sign of life")
        return bool(left != _NO_KEY)

    def take_over(self, key: SubscriptionKey, dead: bytes) -> None:
        """Park what a consumer has pending in a group, as something that crashed it, unless it gives a sign of life."""
        group = self._groups[key]
        signs = () if self._broker.servers.is_cluster else (self._sign_of(dead),)
        if not signs and self._has_sign(dead):
            return
        command = take_over_command(self._namespace, group, dead, *signs)
        while True:
            parked, is_gone = self._broker.call(group.keys.stream, command, "taking over")
            group.suspects_at = 0.0
            if is_gone or not parked:
                self._wake()
                return

    def retain(self) -> None:
        """Trim what every group has settled, and report the groups that nobody consumes and that keep it from being."""
        options = self._broker.options
        now = time.monotonic()
        is_tidying = now >= self.tidy_at
        was_used = {one.keys.stream for one in self._groups.values() if one.was_used}
        for stream, group in self.alive({one.keys.stream: one for one in joined(self._groups)}.items()):
            topic = options.topics.get(group.key.topic, USUAL)
            keep = options.retention if topic.retention is None else topic.retention
            if not (stream in was_used or is_tidying or now - group.retained_at >= min(_RETAIN_IDLE, keep)):
                continue
            group.retained_at = now
            keys = (stream, group.keys.floors)
            command = script_call("retain", keys, int(keep * 1000), MOST_RETAINED, _TRIM)
            _, *floors = self._broker.call(stream, command, "trimming what is settled")
            if is_tidying:
                self._report_idle_groups(group, keep, [(name.decode(), floor.decode()) for name, floor in floors])
        if is_tidying:
            self.tidy_at = now + (_TIDY if was_used else _TIDY_IDLE)
            name_topics(self._broker, self._groups)
            for group in self.alive(joined(self._groups)):
                self._tidy(group)
        for group in self._groups.values():
            group.was_used = bool(group.held)

    def _tidy(self, group: Group) -> None:
        name = group.key.group
        keys = (group.keys.stream, group.keys.failures(name), group.keys.dead(name))
        keep = int(self._broker.options.dead_letter_retention * 1000)
        command = script_call("tidy", keys, name, group.tidied_to, keep, MOST_RETAINED)
        try:
            group.tidied_to, removed = self._broker.call(group.keys.stream, command, "tidying up")
        except BrokerError as error:
            if not is_missing_group(error.__cause__):
                raise
            return
        if removed:
            log.info("%d old dead letters of %s removed", removed, shown(group.key))

    def _report_idle_groups(self, group: Group, keep: float, floors: Sequence[tuple[str, str]]) -> None:
        """Log, once each, the groups without any process whose oldest message is older than what is kept anyway."""
        topic = group.key.topic
        ours = {key.group for key in self._groups if key.topic == topic}
        newest = max((_milliseconds(floor) for _, floor in floors), default=0)
        for name, floor in floors:
            key = SubscriptionKey(topic, name)
            is_behind = newest - _milliseconds(floor) > keep * 1000
            if name in ours or key in self._reported or not is_behind:
                continue
            if [one for one in self._consumers_named(group.keys.stream, name) if one != PARKED.encode()]:
                continue
            self._reported.add(key)
            log.warning(
                "nobody consumes %s, so no message of the topic since %s is removed: start a worker for the group, "
                "or remove it",
                shown(key),
                stored_at(floor).isoformat(timespec="seconds"),
            )


def name_topics(broker: "RedisBroker", keys: Iterable[SubscriptionKey]) -> None:
    """Put topics on the list by which others find them."""
    index = topics_key(broker.options.namespace)
    topics = sorted({one.topic for one in keys})
    with contextlib.suppress(BrokerFull, NotPermitted):
        if topics:
            broker.call(index, ("SADD", index, *topics), "naming topics")


def take_over_command(namespace: str, group: Group, consumer: bytes, *signs: str) -> Command:
    """Return what takes over from a consumer what is left of it, 200 at a time; unless one of the signs is there."""
    name = group.key.group
    keys = (group.keys.stream, group.keys.suspects(name), group.keys.failures(name), *signs)
    return script_call(
        "take_over", keys, group.key.group, consumer, 200, control_channel(namespace), due_text(group.key, 0)
    )


def _milliseconds(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _digest(keys: Iterable[SubscriptionKey]) -> str:
    return hashlib.sha1(repr(sorted(keys)).encode(), usedforsecurity=False).hexdigest()[:12]
