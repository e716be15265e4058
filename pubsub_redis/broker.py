"""The Redis broker: publishing, and making consumers."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

from pubsub_core.backlog import DropLog, backlog_is_full, refuse_what_cannot_fit
from pubsub_core.broker import (
    IN_MEMORY,
    NO_TERMS,
    USUAL,
    BrokerOptions,
    Durability,
    Fired,
    Membership,
    ScheduleKey,
    Terms,
)
from pubsub_core.errors import (
    BrokerError,
)
from pubsub_core.message import Message
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.entry import Now, entry_values, packed_adds, read_delayed
from pubsub_redis.faults import FOREIGN, broker_errors, translated
from pubsub_redis.groups import room_of
from pubsub_redis.inspector import RedisInspector
from pubsub_redis.keys import schedules_key
from pubsub_redis.link import Command, Link, script_call
from pubsub_redis.publish import CANNOT, UNFENCED_FOR, Publish, Sent, chunks
from pubsub_redis.servers import Node, Servers

_TIME_IS_GOOD_FOR = 10.0  # seconds

_PIECE = 64
_LOOKED_FOR = 128  # messages at most: to be woken for the reply to more makes no difference
_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"

_TROUBLE: tuple[type[Exception], ...] = (*FOREIGN, BrokerError)


class RedisBroker(RedisInspector):
    """A broker on Redis Streams. A call borrows a connection for as long as it runs; a forked child makes new ones."""

    def __init__(self, servers: Servers, options: BrokerOptions, shown_url: str) -> None:
        super().__init__(servers, options, shown_url)
        self.drops = DropLog()
        self._unfenced: dict[Sent, float] = {}
        self.may_kill: bool | None = None  # connections, to fence off what is on its way there; None: not known yet
        self._ahead: float | None = None  # of time.monotonic() the server's clock is, by so many seconds
        self._ahead_since = -math.inf

    # Publishing

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: Durability = IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, Terms] = NO_TERMS,
    ) -> Sequence[str]:
        """Store the messages. See the seam."""
        refuse_what_cannot_fit(messages, self.options.topics, terms)
        began = time.monotonic(), self.options.clock.time()
        stored = 0
        doubtful: tuple[Sequence[Message[bytes]], Sent] | None = None
        if not (again or terms) and durability == IN_MEMORY and self._is_plain(messages):
            # Nearly all publishes: sent, answered, done. Whatever goes wrong is for the long way, which looks first.
            for chunk in (messages,) if len(messages) == 1 else chunks(messages):
                sent = self._store_plain(chunk)
                if sent is not True:
                    doubtful = sent and (chunk, sent)
                    break
                stored += len(chunk)
            else:
                return [message.id for message in messages]
        publish = Publish(self, messages, durability, terms, began, again=again)
        publish.note_stored(messages[:stored])
        if doubtful is not None:
            publish.note_doubt(*doubtful)
        return publish.run()

    def _is_plain(self, messages: Sequence[Message[bytes]]) -> bool:
        """Whether they all go to one topic, which may hold any number, and what is on its way can be fenced off."""
        if self.may_kill is False:
            return False
        topic = messages[0].topic if messages else ""
        if topic in self.options.topics and self.options.topics[topic].max_backlog is not None:
            return False
        return len(messages) == 1 or {message.topic for message in messages} == {topic}

    def _store_plain(self, messages: Sequence[Message[bytes]]) -> "Literal[True] | Sent | None":
        """Store the messages of a topic, all or none, and return True; otherwise the connection on which they may have
        been stored, None if nothing was sent.
        """
        stream = self.keys(messages[0].topic).stream
        packed_stream = stream.encode()
        sent = None
        try:
            node = self.servers.node_of(stream)
            link = self._borrow(node)
            try:
                link.open(self.options.publish_timeout)
                self.learn_to_fence(link)
                if not self.may_kill:
                    return None
                sent = (node, link.client_id, link.address)
                count = len(messages)
                looks = count <= _LOOKED_FOR and len(self._lent) == 1  # others who publish would be kept from running
                if count == 1:
                    link.send_packed(packed_adds(packed_stream, messages, self.options.clock.time), 1)
                    results = link.read_many(1, looks=looks)
                else:
                    link.send_packed(_in_pieces(packed_stream, messages, self.options.clock.time), count + 2)
                    begun, *queued, results = link.read_many(count + 2, looks=looks)
                    if isinstance(begun, Exception):  # not permitted, so they went without
                        results = queued
                    elif isinstance(results, Exception):
                        results = [results]
                if set(map(type, results)) == {bytes}:
                    return True
                link.close()
                refused = sum(isinstance(one, Exception) for one in results)
                if refused == len(results):
                    sent = None
            finally:
                self._take_back(node, link)
        except _TROUBLE:
            return sent
        return sent

    def cancel(self, topic: str, message_id: str) -> bool:
        """Delete a message that is not due yet. See the seam."""
        keys = self.keys(topic)
        record = self.call(keys.stream, ("HGET", keys.delayed_messages, message_id), "cancelling")
        if record is None:
            return False
        _, dedup = read_delayed(topic, record)
        names = (keys.delayed, keys.delayed_messages, *([dedup] if dedup else []))
        return bool(self.call(keys.stream, script_call("cancel", names, message_id), "cancelling"))

    def learn_to_fence(self, link: Link) -> None:
        """Find out, once, whether connections may be killed."""
        if self.may_kill is None:
            (reply,) = link.ask([("CLIENT", "KILL", "ID", 0)])  # no connection has this id
            error = translated(reply, "") if isinstance(reply, Exception) else None
            self.may_kill = bool(link.address) and not isinstance(error, CANNOT)

    def remember_unfenced(self, sent: Iterable[Sent]) -> None:
        """Note connections on which something may still be carried out."""
        now = time.monotonic()
        self._unfenced.update(dict.fromkeys(sent, now))
        for one, since in list(self._unfenced.items()):
            if now - since > UNFENCED_FOR:
                self.forget_unfenced(one)

    def unfenced_on(self, node: Node) -> set[Sent]:
        """Return those of a node."""
        since = time.monotonic() - UNFENCED_FOR
        return {one for one, noted in list(self._unfenced.items()) if one[0] == node and noted > since}

    def forget_unfenced(self, sent: Sent) -> None:
        """Note that nothing can be carried out on the connection any more."""
        self._unfenced.pop(sent, None)

    # Time and schedules

    def time(self) -> float:
        """Return the server's time, as it was told lately. See the seam."""
        if time.monotonic() - self._ahead_since > _TIME_IS_GOOD_FOR:
            try:
                self._ask_for_time()
            except BrokerError:
                if self._ahead is None:
                    raise
        return time.monotonic() + cast(float, self._ahead)

    def _ask_for_time(self) -> None:
        asked = time.monotonic()
        seconds, microseconds = self.call(self.options.namespace, ("TIME",), "asking for the time")
        answered = time.monotonic()
        self._ahead = int(seconds) + int(microseconds) / 1e6 - (asked + answered) / 2
        self._ahead_since = answered

    def join_schedules(
        self, owner: str, schedules: Mapping[ScheduleKey, str], *, is_start: bool = False
    ) -> Mapping[ScheduleKey, float]:
        """Name the schedules of an application. See the seam. One round trip per node, and two more."""
        index = schedules_key(self.options.namespace)
        how = "start" if is_start else "name"
        last_ticks: dict[ScheduleKey, float] = {}
        for one_node in self._by_node(schedules):
            commands = [self._schedule_command(key, owner, schedules[key], how) for key in one_node]
            replies = self.call_all(self.keys(one_node[0].topic).stream, commands, "naming schedules")
            last_ticks |= {key: last / 1000 for key, (_, last) in zip(one_node, replies, strict=True)}
        if schedules:
            names = [part for key in schedules for part in (" ".join(key), owner)]
            self.call(index, ("HSET", index, *names), "naming schedules")
        for key, owned_by in self.known_schedules().items():
            if owned_by == owner and key not in schedules:
                self._forget_schedule(key, owner)
        return last_ticks

    def _by_node(self, schedules: Iterable[ScheduleKey]) -> Iterable[list[ScheduleKey]]:
        by_node: dict[Node, list[ScheduleKey]] = defaultdict(list)
        with broker_errors(f"naming schedules at {self.shown_url}"):
            for key in schedules:
                by_node[self.servers.node_of(self.keys(key.topic).stream)].append(key)
        return by_node.values()

    def _forget_schedule(self, key: ScheduleKey, owner: str) -> None:
        keys, index = self.keys(key.topic), schedules_key(self.options.namespace)
        command = script_call(
            "forget_schedule", (keys.schedules,), key.name, owner, int(self.options.superseded_for * 1000)
        )
        if self.call(keys.stream, command, "forgetting a schedule"):
            self.call(index, ("HDEL", index, " ".join(key)), "forgetting a schedule")

    def fire(self, key: ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> Fired:
        """Publish the message of a tick, once. See the seam."""
        options = self.options.topics.get(key.topic, USUAL)
        more = (round(tick * 1000), *room_of(options), *entry_values(message, self.options.clock.time))
        command = self._schedule_command(key, "-", spec, "fire", *more)
        came_of_it, _ = self.call(self.keys(key.topic).stream, command, f"schedule {key.name!r}")
        fired = came_of_it.decode()
        if fired == "full":
            raise backlog_is_full(key.topic, options.max_backlog)
        if fired == "early":
            self._ahead_since = -math.inf  # its clock is not what we thought
        return cast(Fired, fired)

    def _schedule_command(self, key: ScheduleKey, owner: str, spec: str, how: str, *more: str | bytes | int) -> Command:
        keys = self.keys(key.topic)
        return script_call(
            "schedule", (keys.schedules, keys.stream, keys.dropped, keys.floors),
            key.name, owner, spec, how, int(self.options.superseded_for * 1000), *more,
        )  # fmt: skip

    # Consuming; looking is in RedisInspector

    def consumer(self, memberships: Sequence[Membership], name: str) -> RedisConsumer:
        """Return a consumer. See the seam."""
        return RedisConsumer(self, memberships, name)

    def for_tests(self) -> "RedisBroker":
        """Return a broker of the same servers that obeys tests. See `pubsub_core.testing.controlled`."""
        from pubsub_redis.controlled import ControlledRedisBroker  # it is built on this one

        return ControlledRedisBroker(self.servers, self.options, self.shown_url)

    def close(self) -> None:
        """Close every connection of this process that nobody uses now."""
        self.drops.close()
        self.close_idle()


def _in_pieces(stream: bytes, messages: Sequence[Message[bytes]], now: Now) -> Iterator[bytes]:
    """Pack a transaction piece by piece, so that the server reads the one while the next is packed."""
    before = _MULTI
    for at in range(0, len(messages), _PIECE):
        packed = packed_adds(stream, messages[at : at + _PIECE], now)
        yield b"".join([before, *packed, b"" if at + _PIECE < len(messages) else _EXEC])
        before = b""
