"""One worker process's membership in its groups, on Redis Streams.

The pending list is the truth. What is pending under this consumer's name is what it works on now; what comes again is
pending under `~parked` and listed in the group's due zset. A delivery leaves the pending list only by ack or by
becoming a dead letter, so a crash at any point loses nothing.
"""

import contextlib
import logging
import math
import select
import socket
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from pubsub_core.broker import USUAL, Membership
from pubsub_core.errors import BrokerError, BrokerFull, BrokerUnavailable, LeaseLost, PubSubError
from pubsub_core.message import DeadLetterReason, Delivery, SubscriptionKey, delivery_of
from pubsub_redis.entry import entry_again, is_for_another, letter_fields, place_of, read_entry, read_new
from pubsub_redis.faults import FOREIGN, is_missing_group, translated
from pubsub_redis.groups import Group, due_text, joined, room_of, shown, start_id
from pubsub_redis.keys import (
    control_channel,
    paused_key,
)
from pubsub_redis.link import Command, Link, checked, script_call
from pubsub_redis.servers import Node
from pubsub_redis.sign import SignOfLife
from pubsub_redis.upkeep import Upkeep, name_topics, take_over_command

if TYPE_CHECKING:
    from pubsub_redis.broker import RedisBroker

log = logging.getLogger(__name__)

_TAKE = 100  # due entries per script call: a burst must not stall the server
_CONTROL = "~control"  # no group has such a name
# Seconds between two looks for what is due, where nothing is known of: the safety net below the wake-ups.
_LOOK_FOR_DUE = 120.0
_LOOK_FOR_DUE_UNTOLD = 10.0  # where wake-ups may not be heard
_MOST = 500  # entries of a topic in one read
_REMEMBERED = 20_000  # settled entries per group, at most; who drains a backlog may settle more between two looks
_REMEMBERED_IN_ALL = 100_000
_PAUSES = 0.9  # seconds, at least, between two looks for what is paused
_PAGE = 500  # pending entries in one command
# Seconds, after an error, from one look for what was carried out late to the next: ever more, and for so long.
_FIRST_STRAGGLERS = 1.0
_LAST_STRAGGLERS = 60.0
_STRAGGLES = 3600.0
# More is asked for before it is wanted where so many are wanted at once, and were wanted again within so many seconds:
# fewer by so many, as not quite as many may be wanted then.
_AHEAD_FROM = 250
_BRISK = 0.05
_AHEAD_LESS = 50
_STALE = 1.0  # seconds after which nobody seems to want them any more
_QUIET = 5.0  # seconds, at most, for which one who made a lost group anew reads nothing
_REJOIN = 5.0  # seconds between two tries to join what cannot be joined
_MARGIN = 1.0  # seconds that the server would wait longer than we do, if we did not call it off

Deliveries = list[Delivery[bytes]]

_Settled = list[tuple[Group, list[str], Deliveries]]
"""Deliveries that are done, or otherwise not ours any more, by subscription; with their positions."""


_Place = tuple[Node, int, str]
"""What one command may read of: a node, a slot and a group."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An XREADGROUP to send: topics of one group, node and slot that may be asked for the same count."""

    node: Node
    slot: int
    group: str
    groups: list[Group]
    count: int

    @property
    def line(self) -> str:
        """The name of the connection that it may block."""
        return f"{self.group}:{self.slot}"

    def command(self, consumer: str, block: float | None) -> Command:
        blocking = () if block is None else ("BLOCK", max(1, int(block * 1000)))
        streams = [one.keys.stream for one in self.groups]
        return (
            "XREADGROUP", "GROUP", self.group, consumer, "COUNT", self.count, *blocking,
            "STREAMS", *streams, *([">"] * len(streams)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A read that was sent before anybody wanted it. Its reply is on its way on this connection."""

    read: _Read
    link: Link
    since: float


class RedisConsumer:
    """See the seam. `receive` has connections of its own; the other methods use the calling thread's."""

    def __init__(self, broker: "RedisBroker", memberships: Sequence[Membership], name: str) -> None:
        self._broker = broker
        self._name = name
        remembered = min(_REMEMBERED, _REMEMBERED_IN_ALL // max(1, len(memberships)))
        self._groups = {
            one.key: Group(
                one.key,
                one.start,
                keys := broker.keys(one.key.topic),
                broker.servers.slot_of(keys.stream),
                settled=deque(maxlen=remembered),
            )
            for one in memberships
        }
        self._namespace = broker.options.namespace
        self._heartbeat = broker.options.heartbeat
        self._lease = broker.options.lease
        self._links: dict[tuple[Node, str], Link] = {}  # of `receive`; see `_link`
        self._control: Link | None = None
        self._reading = threading.Lock()  # held by who uses these connections
        self._ahead: _Ahead | None = None
        self._is_brisk = False
        self._wanted_at = -math.inf  # when as many were handed out as make it worth while to ask ahead
        self._is_woken = False
        self._turn = 0
        self._quiet_until = 0.0
        self._is_certain = False  # whether `held` is what the server thinks, and all groups are there
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._was_certain = False
        self._certain_at = -math.inf  # when it came to be so last
        self._unparked: Deliveries = []  # pending under our name, held, and not yet handed out
        self._kept_at = math.inf  # since when there are some that could be parked
        self._is_overdue = False  # those, and what was asked for ahead
        self._lapses_known = 0  # when those, and what was asked for ahead, came to be ours
        self._stragglers_at = self._stragglers_until = math.inf
        self._stragglers_pause = 0.0
        self._rejoin_at = math.inf  # groups that are left out
        self._looked_for_pauses_at = -math.inf
        self._look_at = 0.0
        self._patient_until = 0.0
        self._crashed: dict[str, int] = {}  # what is held that crashed somebody before: entry id → how often
        self._most = (
            _MOST  # per topic and read, fewer after a read that broke: it may have been too much for the server
        )
        self._is_closed = False
        self.sign = SignOfLife(broker, name)
        self._upkeep = Upkeep(broker, name, self._groups, wake=self.wake, sign=self.sign)

    @property
    def name(self) -> str:
        """The consumer's name, in every group."""
        return self._name

    # Receiving: called by one thread at a time

    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Deliveries:
        """See the seam. One round trip per call under load: the acknowledgements go with the next read."""
        with self._reading:
            return self._receive_by(time.monotonic() + wait, credit, done)

    def _receive_by(
        self, deadline: float, credit: Mapping[SubscriptionKey, int], done: Sequence[Delivery[bytes]]
    ) -> Deliveries:
        self._is_brisk = time.monotonic() - self._wanted_at < _BRISK
        try:
            lapses = self.sign.lapses
            if (self._ahead or self._unparked) and self.sign.was_away(self._lapses_known):
                self._forget_unparked([])
                self._is_certain = False  # others may have these
            if not self._is_certain:
                self._make_certain()
                lapses = self.sign.lapses
            elif self._is_overdue:
                self._hand_back_what_waits()
            elif time.monotonic() >= self._rejoin_at:
                self._join_all()
            elif time.monotonic() >= self._stragglers_at:
                self._look_for_stragglers()
            settled = self._by_group(done)
            received = self._hand_out_unparked(credit, settled) or self._receive(credit, deadline, settled)
        except BaseException as error:
            self._most = max(1, self._most // 8)
            self._start_over()
            self._raise_ours(error)
            raise
        self._lapses_known = lapses
        if received and self.sign.was_away(lapses):
            self._is_certain = False  # others may have these: the next call hands back what is ours
            self._forget_unparked(received)
            return []
        if received and time.monotonic() - self._looked_for_pauses_at >= _PAUSES:
            received = self._hand_back_paused(received)
        # Not earlier: what the server gave us and an error kept from the caller is handed back.
        for group, positions, those in self._by_group(received):
            group.was_used = True
            group.held.update(zip(positions, those, strict=True))
            if any(map(_CRASHES, those)):
                self._crashed.update((_position(one), one.crashes) for one in those if one.crashes)
        if received:
            self._most = min(_MOST, 2 * self._most)
        self._wanted_at = time.monotonic() if len(received) >= _AHEAD_FROM - _AHEAD_LESS else -math.inf
        return received

    def _raise_ours(self, error: BaseException) -> None:
        if isinstance(error, FOREIGN):
            raise translated(error, f"reading from {self._broker.shown_url}") from error

    def _receive(self, credit: Mapping[SubscriptionKey, int], deadline: float, done: _Settled) -> Deliveries:
        while True:
            if self._control is not None and self._control.has_more():
                self._read_control()
            if time.monotonic() >= self._look_for_pauses_at():
                self._look_for_pauses()
            now = time.monotonic()
            wanted = self._wanted(credit)
            is_due = any(self._due_at(group) <= now for group, _ in wanted)
            if self._crashed and any(one.crashes for _, _, those in done for one in those):
                is_due = True  # after that another suspect may be taken
            reads = _reads(wanted)
            has_backlog = len(reads) > 1 and any(group.is_hot for group, _ in wanted)
            if self._ahead is not None:
                more = [] if is_due or now >= deadline else reads
                received = self._collect(self._ahead, more, {group.key: count for group, count in wanted}, done)
                if not received and self._is_certain:  # that was asked for some time ago: there may be something by now
                    done = []
                    continue
            elif is_due or has_backlog or now >= deadline:
                received = self._sweep(wanted, done)
            else:
                quiet = [self._quiet_until] if self._quiet_until > now else []
                until = min(
                    [deadline, self._look_for_pauses_at(), *quiet, *(self._due_at(group) for group, _ in wanted)]
                )
                received, is_woken = self._block(reads, until - now, done)
                if is_woken:
                    return received
            done = []
            if received or time.monotonic() >= deadline or not self._is_certain:
                return received

    def _wanted(self, credit: Mapping[SubscriptionKey, int]) -> list[tuple[Group, int]]:
        """Return what may be asked for now. Nothing beside a suspect at its last chance: if it kills, it is alone."""
        if any(map(self._is_last, [*self._crashed.values()])) or time.monotonic() < self._quiet_until:
            return []
        asked = [(self._groups[key], min(count, self._most)) for key, count in credit.items() if count > 0]
        wanted = [(group, count) for group, count in asked if not (group.is_paused or group.is_left_out)]
        if self._most == 1 and len(wanted) > 1:
            self._turn += 1
            return [wanted[self._turn % len(wanted)]]
        return wanted

    def _due_at(self, group: Group) -> float:
        return group.due_at if self._crashed else min(group.due_at, group.suspects_at)

    def _sweep(self, wanted: list[tuple[Group, int]], done: _Settled) -> Deliveries:
        """Acknowledge, take what is due and read what is new, without waiting.

        One round trip per node, two if something may be due.
        """
        acks = self._ack_commands(done)
        taken = self._take_suspect(wanted, acks)
        if self._is_at_last_chance(taken):
            for node, commands in acks.items():
                self._check_all(self._link(node, "").ask(commands))
            self._forget(done, settled=True)
            return taken
        left = Counter({group.key: count for group, count in wanted})
        left.subtract(one.subscription for one in taken)
        now = time.monotonic()
        due = [(group, left[group.key]) for group, _ in wanted if left[group.key] > 0 and group.due_at <= now]
        again = self._take(due, acks) if due else []
        left.subtract(one.subscription for one in again)
        taken += again
        by_node: dict[Node, list[_Read]] = defaultdict(list)
        for read in _reads([(group, left[group.key]) for group, _ in wanted if left[group.key] > 0]):
            by_node[read.node].append(read)
        received = taken
        for node in {*acks, *by_node}:
            first, reads = acks.get(node, []), by_node[node]
            replies = self._link(node, "").ask([*first, *(read.command(self._name, None) for read in reads)])
            self._check_all(replies[: len(first)])
            self._note_all(reads, replies[len(first) :], received)
        self._forget(done, settled=True)
        return received

    def _is_last(self, crashes: int) -> bool:
        return crashes >= max(1, self._broker.options.max_crashes - 1)

    def _is_at_last_chance(self, taken: Deliveries) -> bool:
        return any(one.crashes and self._is_last(one.crashes) for one in taken)

    def _take_suspect(self, wanted: list[tuple[Group, int]], acks: dict[Node, list[Command]]) -> Deliveries:
        """Take one that crashed somebody, if we have none. If there is none, one that only is due."""
        if self._crashed:
            return []
        now = time.monotonic()
        suspicious = min((one for one, _ in wanted if one.suspects_at <= now), key=_suspects_at, default=None)
        return [] if suspicious is None else self._take([(suspicious, 1)], acks, 1)

    def _take(self, due: list[tuple[Group, int]], acks: dict[Node, list[Command]], suspects: int = 0) -> Deliveries:
        """Acknowledge on the nodes where something may be due, and take it."""
        by_node = defaultdict(list)
        for group, count in due:
            by_node[group.node].append((group, count))
        taken: Deliveries = []
        for node, here in by_node.items():
            first = acks.pop(node, [])
            commands = [self._take_command(group, count, suspects) for group, count in here]
            replies = self._link(node, "").ask([*first, *commands])
            self._check_all(replies)
            for (group, _), reply in zip(here, replies[len(first) :], strict=True):
                taken += self._taken(group, reply)
        return taken

    def _block(self, reads: list[_Read], wait: float, done: _Settled) -> tuple[Deliveries, bool]:
        """Acknowledge, then wait for the first new entry. Also tells whether `wake` was called.

        When it returns nothing is on its way any more: what did not answer is called off. So it is we who look at the
        clock; a server that has little to do looks ten times a second only.
        """
        acks = self._ack_commands(done)
        asked: list[tuple[_Read, Link]] = []
        for read in _merged(reads):
            link = self._link(read.node, read.line)
            first = acks.pop(read.node, [])
            link.send([*first, read.command(self._name, wait + _MARGIN)])
            self._check_all([link.read() for _ in first])
            asked.append((read, link))
        for node, commands in acks.items():
            self._check_all(self._link(node, "").ask(commands))
        self._forget(done, settled=True)
        ready, is_woken = self._wait([link for _, link in asked], wait)
        if len(ready) < len(asked):
            self._call_off([(read, link) for read, link in asked if link not in ready])
        received: Deliveries = []
        self._note_all([read for read, _ in asked], [link.read() for _, link in asked], received)
        more = None if is_woken else self._next_ahead(reads)
        if more is not None:
            self._ask_ahead(more)
        return received, is_woken

    def _next_ahead(self, reads: Sequence[_Read]) -> _Read | None:
        """Return what to ask for ahead, so that the server works on it while we do on what came.

        Only where one group is read as fast as it can be: then it is wanted as soon as we are done with that.
        """
        if not self._is_brisk or self._is_woken or self._crashed or self._unparked or len(reads) != 1:
            return None
        (read,) = reads
        if len(read.groups) > 1 or not read.groups[0].is_hot or read.count < _AHEAD_FROM:
            return None
        return replace(read, count=read.count - _AHEAD_LESS)

    def _ask_ahead(self, read: _Read) -> None:
        link = self._link(read.node, read.line)
        link.send([read.command(self._name, None)])
        self._ahead = _Ahead(read, link, time.monotonic())

    def _collect(
        self, ahead: _Ahead, reads: Sequence[_Read], wanted: Mapping[SubscriptionKey, int], done: _Settled
    ) -> Deliveries:
        """Acknowledge, ask ahead for more, if these `reads` are such, and return what was asked for ahead last time.

        What is more than is wanted by now is kept for the next call. The server answers together what comes together:
        so more is not asked for together with the acknowledgements, whose replies are waited for.
        """
        self._ahead = None
        link, acks = ahead.link, self._ack_commands(done)
        first = acks.pop(ahead.read.node, [])
        if first:
            link.send(first)
        reply = link.read()
        more = self._next_ahead(reads)
        if more is not None:
            self._ask_ahead(more)
        received: Deliveries = []
        self._note_all([ahead.read], [reply], received)
        self._check_all([link.read() for _ in first])
        for node, commands in acks.items():
            self._check_all(self._link(node, "").ask(commands))
        self._forget(done, settled=True)
        (group,) = ahead.read.groups
        count = wanted.get(group.key, 0)
        self._keep_back(group, received[count:])
        return received[:count]

    def _keep_back(self, group: Group, more: Deliveries) -> None:
        """Keep what came though it is not wanted just now: it will be soon, or somebody else gets it."""
        if not more:
            return
        if group.is_paused:
            self._hand_back(group, _entries_of(more))
            return
        group.held.update(zip(map(_POSITION, more), more, strict=True))
        self._unparked += more
        self._kept_at = time.monotonic()

    def _drop_ahead(self) -> None:
        """Read what was asked for ahead, if there is something, and do not keep it: it is pending, and not held."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.link.read()

    def _hand_back_what_waits(self) -> None:
        """Hand back what was asked for ahead, and what was kept back of it."""
        self._is_overdue = False
        if self._kept_at < math.inf:
            self._forget_unparked([])
        self._hand_back_unseen()

    def _hand_back_stale(self) -> None:
        """Hand back what was asked for ahead, if nobody came for it: all who could are busy, or told to stop.

        So it is with what an error kept from being released.
        """
        ahead = self._ahead
        since = min(self._kept_at, math.inf if ahead is None else ahead.since)
        is_stale = self._is_overdue or time.monotonic() - since > _STALE
        if not is_stale and (since == math.inf or not self._is_woken):
            return
        if not self._reading.acquire(blocking=False):
            if is_stale:  # who reads may wait for something else
                self._is_overdue = True
                self.wake()
            return
        try:
            self._hand_back_what_waits()
        except BaseException as error:
            self._start_over()
            self._raise_ours(error)
            raise
        finally:
            self._reading.release()

    def _wait(self, links: Sequence[Link], wait: float) -> tuple[list[Link], bool]:
        """Wait until one of the links has a reply, somebody wakes us, or something is due earlier than we knew."""
        answered = [link for link in links if link.has_more()]  # it may have come with the reply before it
        if answered:
            return answered, self._take_wake_up() if self._is_woken else False
        poll = select.poll()
        by_fd = {link.fileno(): link for link in links}
        wakes = self._wake_out.fileno()
        for fd in [*by_fd, wakes, *([self._control.fileno()] if self._control else [])]:
            poll.register(fd, select.POLLIN)
        ready: list[Link] = []
        others: list[int] = []
        for fd, _ in poll.poll(wait * 1000):
            if fd in by_fd:
                ready.append(by_fd[fd])
            else:
                others.append(fd)
        if others:
            if wakes in others:
                return ready, self._take_wake_up()
            self._read_control()
        return ready, False

    def _take_wake_up(self) -> Literal[True]:
        _drain(self._wake_out)
        self._is_woken = False
        return True

    def _call_off(self, waiting: Sequence[tuple[_Read, Link]]) -> None:
        """Make the server answer blocked reads now.

        It may see this before the read itself, which comes on another connection: so until there is an answer.
        """
        deadline = time.monotonic() + 2 * _MARGIN
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError("no answer to a read that was called off")
            by_node = defaultdict(list)
            for read, link in waiting:
                by_node[read.node].append(link)
            for node, links in by_node.items():
                self._check_all(self._link(node, "").ask([("CLIENT", "UNBLOCK", link.client_id) for link in links]))
            poll = select.poll()
            for _, link in waiting:
                poll.register(link.fileno(), select.POLLIN)
            answered = {fd for fd, _ in poll.poll(20)}
            waiting = [(read, link) for read, link in waiting if link.fileno() not in answered]

    def _read_control(self) -> None:
        """Take note of what is said to all: a group has something due earlier than it had, is paused, or reads anew."""
        control = self._control
        assert control is not None  # noqa: S101  # only called when there is one
        ahead = self._ahead
        is_moved = False
        while True:
            message = control.read()
            if isinstance(message, list) and message[0] == b"message":
                try:
                    word, topic, group, value = message[2].decode().split("\n")
                    for known in self._groups.values():
                        if known.key.topic == topic and group in ("", known.key.group):  # "": it is delayed, for all
                            _note_control(known, word, value)
                            is_moved |= word == "seek" and ahead is not None and known in ahead.read.groups
                except ValueError:
                    log.debug("passed over what is said to all, as this version does not understand it")
            if not control.has_more():
                break
        if is_moved:
            self._hand_back_unseen()  # what was asked for before that says nothing of where the group is now

    def _take_command(self, group: Group, count: int, suspects: int) -> Command:
        keys = group.keys
        room = room_of(self._broker.options.topics.get(group.key.topic, USUAL))
        return script_call(
            "take", (*group.parked_keys, keys.dropped, keys.floors, keys.delayed, keys.delayed_messages),
            group.key.group, self._name, min(count, _TAKE), suspects, *room,
        )  # fmt: skip

    def _taken(self, group: Group, reply: Any) -> Deliveries:
        now = time.monotonic()
        least_often = _LOOK_FOR_DUE_UNTOLD if self._control is None else _LOOK_FOR_DUE
        next_due, next_suspect, next_delayed = (
            now + (least_often if next_in < 0 else min(least_often, next_in / 1000)) for next_in in reply[:3]
        )
        group.due_at, group.suspects_at = min(next_due, next_delayed), next_suspect
        if reply[3]:
            self._broker.drops.note(group.key.topic, reply[3])
        entries = [(entry_id, attempt, crashes, values) for entry_id, attempt, crashes, values in reply[4:]]
        self._pass_over(group, [one[0] for one in entries if is_for_another(one[3], group.key.group)])
        return [
            self._delivery(group, entry_id, values, attempt, crashes)
            for entry_id, attempt, crashes, values in entries
            if not is_for_another(values, group.key.group)
        ]

    def _pass_over(self, group: Group, entry_ids: list[bytes]) -> None:
        """Acknowledge what is addressed to another group."""
        if entry_ids:
            acks: Command = ("XACK", group.keys.stream, group.key.group, *entry_ids)
            self._check_all(self._link(group.node, "").ask([acks]))

    def _note_all(self, reads: Sequence[_Read], replies: Sequence[Any], received: Deliveries) -> None:
        """Turn the replies of reads into deliveries. Raises the first error only if there is nothing to hand out."""
        errors: list[Exception] = []
        foreign: list[tuple[Group, list[bytes]]] = []
        for read, reply in zip(reads, replies, strict=True):
            if isinstance(reply, Exception):
                errors.append(reply)
                continue
            by_stream = {one.keys.stream: one for one in read.groups}
            for one in read.groups:
                one.is_hot = False
            for stream, entries in reply or ():
                group = by_stream[stream.decode()]
                if _is_not_newer(entries[0][0], group.newest):
                    self._is_certain = False  # the group was lost, and somebody made it anew: these came before
                    continue
                group.newest = entries[-1][0]
                group.is_hot = len(entries) >= read.count
                ours, replayed = read_new(group.key, entries)
                received += ours
                if replayed:
                    foreign.append((group, replayed))
        for group, entry_ids in foreign:
            self._pass_over(group, entry_ids)
        if errors and not received:
            self._check_all(errors)
        elif errors:
            self._is_certain = False  # hand out what came; the next call gets certain, and finds out what is wrong

    def _delivery(
        self, group: Group, entry_id: bytes, values: list[bytes], attempt: int, crashes: int
    ) -> Delivery[bytes]:
        message = read_entry(group.key.topic, group.key.group, entry_id, values, attempt)
        return delivery_of(message, group.key, crashes)

    def _check_all(self, replies: Sequence[Any]) -> None:
        """Raise the first error among the replies."""
        for reply in replies:
            checked(reply, f"reading from {self._broker.shown_url}")

    # Joining, and getting certain again after an error

    def _make_certain(self) -> None:
        """Show that we live, join the groups, and hand back what the server gave us in a reply that never came.

        In a long outage all signs of life may expire, so nobody is taken for dead before he had time to come back.
        """
        self.sign.give()
        self._broker.time()
        for group in self._groups.values():
            group.node = self._broker.servers.node_of(group.keys.stream)
        self._join_all()
        self._control = self._subscribed()
        name_topics(self._broker, self._groups)
        self._look_for_pauses()
        self._hand_back_unseen()
        for group in self._groups.values():
            group.due_at = group.suspects_at = 0.0
        if self._was_certain:
            if self.sign.doubted_at > self._certain_at:
                self._patient_until = time.monotonic() + self._lease
            self._expect_stragglers()
        self._certain_at = time.monotonic()
        self._is_certain = self._was_certain = True

    def _look_for_pauses(self) -> None:
        """Find out which groups are paused: what is said on the control channel may be missed.

        Nobody who waits needs to know. So this is done when something came, before it is handed out, and while a group
        is paused; both only if it was not done lately.
        """
        key = paused_key(self._namespace)
        self._looked_for_pauses_at = time.monotonic()
        paused = {name.decode() for name in self._broker.call(key, ("HGETALL", key), "looking for pauses")[::2]}
        for group in self._groups.values():
            was_paused, group.is_paused = group.is_paused, " ".join(group.key) in paused
            if group.is_paused != was_paused:
                self.wake()

    def _look_for_pauses_at(self) -> float:
        """Return when to look next whether what is paused still is: nothing else that we wait for would tell."""
        is_any_paused = any(group.is_paused for group in self._groups.values())
        return self._looked_for_pauses_at + _PAUSES if is_any_paused else math.inf

    def _hand_back_paused(self, received: Deliveries) -> Deliveries:
        """Find out what is paused by now, hand back what came of that, uncounted, and return the rest."""
        self._look_for_pauses()
        kept = [one for one in received if not self._groups[one.subscription].is_paused]
        if len(kept) < len(received):
            for key, group in self._groups.items():
                if group.is_paused:
                    paused = [one for one in received if one.subscription == key]
                    self._forget(self._by_group(paused))  # some may be held: they were kept back
                    self._hand_back(group, _entries_of(paused))
        return kept

    def _subscribed(self) -> Link | None:
        """Return a connection on which wake-ups come, or None if that is not permitted: we look by ourselves too."""
        link = self._link(self._any_node(), _CONTROL)
        (reply,) = link.ask([("SUBSCRIBE", control_channel(self._namespace))])
        return None if isinstance(reply, Exception) else link

    def _any_node(self) -> Node:
        streams = [group.keys.stream for group in self._groups.values()]
        return self._broker.servers.node_of(streams[0] if streams else self._namespace)

    def _join_all(self) -> None:
        """Join the groups. One that cannot be, for what is wrong with its topic alone, is left out until it can be.

        Not at the start: whoever starts a worker shall know.
        """
        refused: BrokerError | None = None
        for group in self._groups.values():
            try:
                self._join(group)
            except (BrokerUnavailable, BrokerFull):
                raise
            except BrokerError as error:
                if not self._was_certain:
                    raise
                refused = error
                if not group.is_left_out:
                    log.warning("%s is left out, and tried again every %g s: %s", shown(group.key), _REJOIN, error)
                group.is_left_out = True
            else:
                if group.is_left_out:
                    log.warning("%s is joined again", shown(group.key))
                    group.due_at = group.suspects_at = 0.0
                group.is_left_out = False
        self._rejoin_at = math.inf if refused is None else time.monotonic() + _REJOIN
        if refused is not None and not joined(self._groups):
            raise refused

    def _join(self, group: Group) -> None:
        """Make the group if there is none. One that was lost is restored: better twice than never, but better once.

        Where nothing is known of a lost group, it begins with the oldest message.
        """
        what = f"joining group {group.key.group!r} of topic {group.key.topic!r} (key {group.keys.stream!r})"
        link = self._link(group.node, "")
        times_made, is_behind = self._restore(group, lambda command: link.call(*command, what=what))
        # Not every server does this at a read that brings nothing, and nobody shall take the group for deserted.
        with contextlib.suppress(BrokerFull):
            link.call("XGROUP", "CREATECONSUMER", group.keys.stream, group.key.group, self._name, what=what)
        group.was_made = True
        if group.times_made not in (None, times_made):
            log.warning("%s was lost, and is made anew", shown(group.key))
            # For others to do the same, also those whose handlers are all busy: they look every other heartbeat.
            self._quiet_until = time.monotonic() + min(_QUIET, 2.25 * self._heartbeat)
            self._take_back(group)
        elif is_behind and group.held:  # it is there, and does not know what it handed us: the server forgot that
            self._take_back(group)
        group.times_made = times_made

    def _restore(self, group: Group, call: Callable[[Command], Any]) -> tuple[int, bool]:
        """Make the group if there is none, and have it know of all that we were handed; what it did not is parked.

        Returns how often it was made, and whether it did not know of some.
        """
        keys = (*group.parked_keys[:3], group.keys.floors)
        start = "0" if group.was_made else start_id(group.start)
        is_behind, more = False, 1
        while more:
            command = script_call("join", keys, group.key.group, start, group.newest, int(1000 * self._lease))
            times_made, parked, more = call(command)
            is_behind |= parked > 0
        return times_made, is_behind

    def _take_back(self, group: Group) -> None:
        """After the group was lost and made anew: take back what we hold, and acknowledge again what we settled."""
        held, settled = _entries_of([*group.held.values()]), [*group.settled]
        keys = group.parked_keys[:3]
        for start in range(0, len(held), 200):
            pairs = [part for one in held[start : start + 200] for part in one]
            self._call(script_call("take_back", keys, group.key.group, self._name, *pairs), "taking back")
        for start in range(0, len(settled), 1000):
            self._call(("XACK", group.keys.stream, group.key.group, *settled[start : start + 1000]), "taking back")

    def _hand_back_unseen(self) -> None:
        """Park, uncounted, what is pending under our name though we do not hold it, in that attempt."""
        self._drop_ahead()
        by_node: dict[Node, list[Group]] = defaultdict(list)
        for group in joined(self._groups):
            by_node[group.node].append(group)
        for node, groups in by_node.items():
            pages = self._link(node, "").ask([self._pending_command(group, "-") for group in groups])
            for group, reply in zip(groups, pages, strict=True):
                page = checked(reply, "reading what is pending")
                while page:
                    entries = [(one[0].decode(), int(one[3])) for one in page]
                    self._hand_back(group, [one for one in entries if not group.holds(*one)])
                    if len(page) < _PAGE:
                        break
                    command = self._pending_command(group, f"({entries[-1][0]}")
                    page = self._link(node, "").call(*command, what="reading what is pending")

    def _pending_command(self, group: Group, first: str) -> Command:
        return ("XPENDING", group.keys.stream, group.key.group, first, "+", _PAGE, self._name)

    def _hand_back(self, group: Group, unseen: list[tuple[str, int]]) -> None:
        for start in range(0, len(unseen), 200):
            some = unseen[start : start + 200]
            command = self._park_command(group, 0.0, some, counts=False)
            try:
                self._link(group.node, "").call(*command, what="handing back")
            except BrokerFull:
                self._keep_unparked(group, some)
            else:
                group.due_at = group.suspects_at = 0.0

    def _expect_stragglers(self) -> None:
        now = time.monotonic()
        self._stragglers_until = now + _STRAGGLES
        self._stragglers_at, self._stragglers_pause = now + _FIRST_STRAGGLERS, _FIRST_STRAGGLERS

    def _look_for_stragglers(self) -> None:
        """Hand back what came to us after all: a read that a network held back may be carried out when we have long
        given it up, and brings its messages to a connection that nobody listens to.
        """
        self._hand_back_unseen()
        now = time.monotonic()
        self._stragglers_pause = min(2 * self._stragglers_pause, _LAST_STRAGGLERS)
        self._stragglers_at = now + self._stragglers_pause if now < self._stragglers_until else math.inf

    def _keep_unparked(self, group: Group, unseen: list[tuple[str, int]]) -> None:
        """Have what a server without memory cannot park handed out here: what is not settled keeps it from freeing any.

        Those that crashed somebody stay where they are until there is memory: they are to be handed out with care.
        """
        link, name = self._link(group.node, ""), group.key.group
        positions = [position for position, _ in unseen]
        failures = link.call("HMGET", group.keys.failures(name), *positions, what="reading what is pending")
        unseen = [
            one for one, failed in zip(unseen, failures, strict=True) if failed is None or failed.startswith(b"0 ")
        ]
        if len(unseen) < len(positions):
            self._expect_stragglers()
        found = link.ask([("XRANGE", group.keys.stream, position, position) for position, _ in unseen])
        gone: list[bytes] = []
        for (position, attempt), reply in zip(unseen, found, strict=True):
            entries = checked(reply, "reading what is pending")
            if entries and not is_for_another(entries[0][1], name):
                group.held[position] = kept = self._delivery(group, entries[0][0], entries[0][1], attempt, 0)
                self._unparked.append(kept)
            else:
                gone.append(position.encode())
        self._pass_over(group, gone)

    def _hand_out_unparked(self, credit: Mapping[SubscriptionKey, int], done: _Settled) -> Deliveries:
        """Return what was kept back or could not be parked, as far as it is asked for, after the acknowledgements."""
        if not self._unparked or any(map(self._is_last, [*self._crashed.values()])):
            return []
        left, chosen, kept = Counter(credit), [], []
        for one in self._unparked:
            if left[one.subscription] > 0 and not self._groups[one.subscription].is_paused:
                left[one.subscription] -= 1
                chosen.append(one)
            else:
                kept.append(one)
        if chosen:
            self._ack(done)
            self._unparked = kept
            if not kept:
                self._kept_at = math.inf
        return chosen

    def _forget_unparked(self, received: Deliveries) -> None:
        """Note that others may have what was kept back or could not be parked, also what was just to be handed out."""
        self._forget(self._by_group([*self._unparked, *received]))
        self._unparked.clear()
        self._kept_at = math.inf

    def _start_over(self) -> None:
        """After an error: close every connection of `receive`, and get certain again at the next call."""
        self._is_certain = False
        self._ahead = None
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._control = None
        self._broker.servers.forget()

    def _link(self, node: Node, line: str) -> Link:
        """Return `receive`'s connection to a node: one for each line to block on, "" for what does not block."""
        link = self._links.get((node, line))
        if link is None:
            link = self._links[node, line] = self._broker.new_link(node)
            link.open()
        return link

    def wake(self) -> None:
        """See the seam."""
        self._is_woken = True
        try:
            self._wake_in.send(b"\0")
        except (BlockingIOError, OSError):
            return  # it is full, so a wake-up is waiting already; or closed, so nobody waits

    # Settling: called by any thread

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """See the seam. One round trip per command."""
        self._ack(self._by_group(deliveries))

    def _ack(self, done: _Settled) -> None:
        for commands in self._ack_commands(done).values():
            for command in commands:
                self._call(command, "acknowledging")
        self._forget(done, settled=True)

    def nack(self, delivery: Delivery[bytes], delay: float) -> None:
        """See the seam."""
        if self._came_again(delivery):
            raise _lost(delivery)
        lost = self._park([delivery], delay, counts=True)
        self._forget(self._by_group([delivery]))
        if lost:
            raise _lost(delivery)

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """See the seam. After an error they are handed back by who reads: repeating it changes nothing.

        They may be back in the same attempt, and at work, before the reply would have come; and what is on its way to
        who reads, only he knows.
        """
        held = [one for one in deliveries if self._is_held(one)]
        try:
            self._park(held, 0.0, counts=False)
        except BrokerError:
            self._forget(self._by_group(held))
            self._expect_stragglers()
            self._is_overdue = True  # not earlier: it is looked at what is not held
            self.wake()
            raise
        self._forget(self._by_group(held))

    def dead_letter(self, delivery: Delivery[bytes], reason: DeadLetterReason) -> None:
        """See the seam."""
        if self._came_again(delivery):
            raise _lost(delivery)
        group = self._groups[delivery.subscription]
        position, attempt = _position(delivery), delivery.message.attempt
        command = script_call(
            "bury",
            (group.keys.stream, group.keys.dead(group.key.group), group.keys.failures(group.key.group)),
            group.key.group, self._name, position, attempt, *entry_again(delivery),
            *letter_fields(position, attempt, self._name, reason),
        )  # fmt: skip
        is_ours = self._call(command, "writing a dead letter")
        self._forget(self._by_group([delivery]), settled=bool(is_ours))
        if not is_ours:
            raise _lost(delivery)

    def _is_held(self, delivery: Delivery[bytes]) -> bool:
        return self._groups[delivery.subscription].held.get(_position(delivery)) is delivery

    def _came_again(self, delivery: Delivery[bytes]) -> bool:
        """Whether we hold a later hand-over of it. That may have the same attempt: a release does not count."""
        held = self._groups[delivery.subscription].held
        return held.get(_position(delivery), delivery) is not delivery

    def _park(self, deliveries: Sequence[Delivery[bytes]], delay: float, *, counts: bool) -> list[bytes]:
        lost = []
        for group, _, those in self._by_group(deliveries):
            entries = sorted(_entries_of(those), key=_place)  # what comes again at the same time keeps its order
            for start in range(0, len(entries), 200):
                command = self._park_command(group, delay, entries[start : start + 200], counts=counts)
                lost += self._call(command, "giving back")
            group.due_at = min(group.due_at, time.monotonic() + delay)
            group.suspects_at = min(group.suspects_at, group.due_at)
        if deliveries:
            self.wake()
        return lost

    def _park_command(self, group: Group, delay: float, entries: Sequence[tuple[str, int]], *, counts: bool) -> Command:
        flat = [part for entry in entries for part in entry]
        milliseconds = int(delay * 1000 + 0.999)
        return script_call(
            "park", group.parked_keys, group.key.group, self._name, milliseconds, int(counts),
            control_channel(self._namespace), due_text(group.key, delay), *flat,
        )  # fmt: skip

    def _by_group(self, deliveries: Sequence[Delivery[bytes]]) -> _Settled:
        return [(self._groups[key], [*map(_POSITION, those)], those) for key, those in _by_subscription(deliveries)]

    def _ack_commands(self, done: _Settled) -> dict[Node, list[Command]]:
        commands: dict[Node, list[Command]] = defaultdict(list)
        for group, positions, those in done:
            name = group.key.group
            commands[group.node].append(("XACK", group.keys.stream, name, *positions))
            failed = [
                position for position, attempt in zip(positions, map(_ATTEMPT, those), strict=True) if attempt > 1
            ]
            if failed:
                commands[group.node].append(("HDEL", group.keys.failures(name), *failed))
        return commands

    def _forget(self, deliveries: _Settled, *, settled: bool = False) -> None:
        for group, positions, those in deliveries:
            held = group.held
            if settled:
                group.settled.extend(positions)
            for position, one in zip(positions, those, strict=True):
                if held.get(position) is one:
                    held.pop(position, None)
                    if self._crashed and one.crashes and self._crashed.pop(position, None) is not None:
                        self.wake()  # now another one may be taken

    def _call(self, command: Command, what: str) -> Any:
        """Run a command on the calling thread's connection; its first key, or that of its script, says where."""
        stream = str(command[3] if command[0] == "EVALSHA" else command[1])
        return self._broker.call(stream, command, what)

    # From time to time: called by one thread at a time, beside `receive`

    def maintain(self) -> float:
        """See the seam. Of a whole fleet one process looks for dead consumers, every other heartbeat."""
        now = time.monotonic()
        self.sign.give_if_due()
        self._hand_back_stale()
        if now >= self._look_at:
            self._take_back_if_lost()
            self._look_at = now + 2 * self._heartbeat
            upkeep = self._upkeep
            if now < self._patient_until:
                upkeep.suspects.clear()
            if self._is_certain and (upkeep.suspects or upkeep.is_our_turn()):
                if now >= self._patient_until:
                    upkeep.look_for_dead_consumers()
                upkeep.retain()
                self._look_at = now + (self._heartbeat if upkeep.suspects else 2 * self._heartbeat)
            elif self._is_certain:
                self._look_at = min(self._look_at, upkeep.turn_at)
        return max(0.0, min(self.sign.due_at, self._look_at) - time.monotonic())

    def _take_back_if_lost(self) -> None:
        """Take back what we hold of groups that were lost, also while all handlers are busy and nobody reads."""
        for group in self._upkeep.alive(self._groups.values()):
            if group.held and group.times_made is not None:
                command = ("HGET", group.keys.floors, f"~times:{group.key.group}")
                times_made = int(self._call(command, "looking for lost groups") or 0)
                if times_made not in (0, group.times_made):
                    self._restore(group, lambda command: self._call(command, "restoring a lost group"))
                    self._take_back(group)

    def close(self) -> None:
        """See the seam."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(*FOREIGN):  # where it cannot be had, others find what it brings
            self._drop_ahead()
        try:
            self._leave_all()
        except BrokerUnavailable:  # perhaps only the connection was dead that this came to
            self._leave_late()
        except PubSubError as error:
            _say_left_without_a_word(error)
        self._start_over()
        self._wake_in.close()
        self._wake_out.close()

    def _leave_late(self) -> None:
        try:
            self._leave_all()
        except PubSubError as error:
            _say_left_without_a_word(error)

    def _leave_all(self) -> None:
        for group in self._groups.values():
            if group.was_made:
                self._leave(group)
        self.sign.withdraw()

    def _leave(self, group: Group) -> None:
        group.held.clear()
        pending = ("XPENDING", group.keys.stream, group.key.group, "-", "+", 200, self._name)
        try:
            while page := self._call(pending, "leaving"):
                entries = [(one[0].decode(), int(one[3])) for one in page]
                self._call(self._park_command(group, 0.0, entries, counts=False), "handing back")
            self._call(take_over_command(self._namespace, group, self._name.encode()), "leaving")
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            if not is_missing_group(error.__cause__):
                log.warning("group %r was left without handing back, others will take over: %s", group.key.group, error)


def _note_control(group: Group, word: str, value: str) -> None:
    if word == "due":
        group.due_at = min(group.due_at, time.monotonic() + float(value))
        group.suspects_at = min(group.suspects_at, group.due_at)
    elif word == "pause":
        group.is_paused = value == "1"
    elif word == "seek":  # what comes may be older than what came, and what we settled is not settled any more
        group.newest = b""
        group.settled.clear()


def _reads(wanted: Sequence[tuple[Group, int]]) -> list[_Read]:
    """Group what is wanted into as few reads as the counts allow: a hot topic by its credit, the cold by the least."""
    hot: dict[tuple[_Place, int], list[Group]] = defaultdict(list)
    cold: dict[_Place, list[tuple[Group, int]]] = defaultdict(list)
    for group, count in wanted:
        place = (group.node, group.slot, group.key.group)
        if group.is_hot:
            hot[place, count].append(group)
        else:
            cold[place].append((group, count))
    reads = [_Read(*place, groups, count) for (place, count), groups in hot.items()]
    reads += [
        _Read(*place, [one for one, _ in members], min(count for _, count in members))
        for place, members in cold.items()
    ]
    return reads


def _merged(reads: Sequence[_Read]) -> list[_Read]:
    """Return one read for each line, to block on."""
    by_line: dict[tuple[Node, str], _Read] = {}
    for read in reads:
        place = (read.node, read.line)
        other = by_line.get(place)
        if other is not None:
            read = replace(read, groups=other.groups + read.groups, count=min(other.count, read.count))  # noqa: PLW2901
        by_line[place] = read
    return list(by_line.values())


def _is_not_newer(entry_id: bytes, other: bytes) -> bool:
    if not other:
        return False
    (time, _, number), (other_time, _, other_number) = entry_id.partition(b"-"), other.partition(b"-")
    # Of numbers without zeros before them the longer one is more.
    return (len(time), time, len(number), number) <= (len(other_time), other_time, len(other_number), other_number)


def _suspects_at(group: Group) -> float:
    return group.suspects_at


def _say_left_without_a_word(error: PubSubError) -> None:
    log.warning("left without a word, others notice it once the sign of life expires: %s", error)


# Of many at once: a third quicker than by a name and a dot each time.
_POSITION: Callable[[Delivery[bytes]], str] = attrgetter("message.position")
_ATTEMPT: Callable[[Delivery[bytes]], int] = attrgetter("message.attempt")
_CRASHES: Callable[[Delivery[bytes]], int] = attrgetter("crashes")


def _by_subscription(deliveries: Sequence[Delivery[bytes]]) -> Iterable[tuple[SubscriptionKey, Deliveries]]:
    if len(deliveries) == 1:
        return [(deliveries[0].subscription, [*deliveries])]
    found: dict[SubscriptionKey, Deliveries] = {}
    last: SubscriptionKey | None = None
    those: Deliveries = []
    for one in deliveries:
        if one.subscription is not last:
            last = one.subscription
            those = found.setdefault(last, [])
        those.append(one)
    return found.items()


def _entries_of(deliveries: Deliveries) -> list[tuple[str, int]]:
    """Return the position and the attempt of each."""
    return [*zip(map(_POSITION, deliveries), map(_ATTEMPT, deliveries), strict=True)]


def _place(entry: tuple[str, int]) -> tuple[int, int]:
    return place_of(entry[0])


def _position(delivery: Delivery[bytes]) -> str:
    position = delivery.message.position
    assert position is not None  # noqa: S101  # `_delivery` sets it on every one
    return position


def _lost(delivery: Delivery[bytes]) -> LeaseLost:
    message = delivery.message
    return LeaseLost(
        f"message {message.id} of topic {message.topic!r}, group {message.group!r}, attempt {message.attempt} "
        "belongs to another consumer by now"
    )


def _drain(wake: socket.socket) -> None:
    try:
        while wake.recv(4096):
            continue
    except BlockingIOError:
        return
