"""The Redis broker: publishing, and making consumers."""

import os
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pubsub_core.broker import IN_MEMORY, USUAL, BrokerOptions, DeadLetter, Durability, GroupState, Membership
from pubsub_core.errors import BrokerError, BrokerUnavailable, ConsumersPresent, PublishUncertain
from pubsub_core.message import Message, SubscriptionKey
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.entry import add_command, entry_fields, read_letter, stored_at
from pubsub_redis.faults import broker_errors, is_missing_group, translated
from pubsub_redis.keys import PARKED, TopicKeys, topic_keys, worker_key
from pubsub_redis.link import Command, Link, checked, script_call
from pubsub_redis.servers import Node, Servers

_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024
_LOOK_PAGE = 1000
_LETTERS = 100  # in one script call, or command

_Name = tuple[str, str]
"""A message's topic and id."""


class RedisBroker:
    """A broker on Redis Streams. A call borrows a connection for as long as it runs; a forked child makes new ones."""

    def __init__(self, servers: Servers, options: BrokerOptions, shown_url: str) -> None:
        self.servers = servers
        self.options = options
        self.shown_url = shown_url
        self._keys: dict[str, TopicKeys] = {}
        self._random = random.Random()
        self._idle: defaultdict[Node, deque[Link]] = defaultdict(deque)
        self._process = os.getpid()

    # Connections

    @contextmanager
    def borrowed(self, node: Node) -> Iterator[Link]:
        """Lend a connection to a node, perhaps not yet open. No other thread has it meanwhile."""
        if os.getpid() != self._process:
            self._idle = defaultdict(deque)  # the others are our parent's, which we must never use
            self._process = os.getpid()  # last: another thread of ours would take one of those
        idle = self._idle[node]
        link = _fit_one(idle) or self.new_link(node)
        try:
            yield link
        finally:
            if not link.is_open:
                _close_all(idle)  # most likely what broke this one broke them, too
                link.close()
            elif link.is_hurried:
                link.close()
            else:
                link.rest()
                idle.append(link)

    def new_link(self, node: Node) -> Link:
        """Return a connection of its own, not yet open, which the caller closes."""
        return Link(self.servers.connection(node))

    def keys(self, topic: str) -> TopicKeys:
        """Return the keys of a topic."""
        keys = self._keys.get(topic)
        if keys is None:
            keys = topic_keys(self.options.namespace, topic, self.options.topics.get(topic, USUAL).stream)
            self._keys[topic] = keys
        return keys

    def call(self, stream: str, command: Command, what: str) -> Any:
        """Run a command on the node that keeps `stream`. Raises our errors."""
        what = f"{what} at {self.shown_url}"
        try:
            with broker_errors(what):
                node = self.servers.node_of(stream)
            with self.borrowed(node) as link:
                try:
                    return link.call(*command, what=what)
                except BrokerUnavailable:
                    link.close()  # it may lead to a server that is not the master any more
                    raise
        except BrokerUnavailable:
            self.servers.forget()
            raise

    # Publishing

    def publish(self, messages: Sequence[Message[bytes]], durability: Durability = IN_MEMORY) -> None:
        """Store the messages. See the seam."""
        deadline = time.monotonic() + self.options.publish_timeout
        publish = _Publish(self, len(messages), deadline, self._random)
        for chunk in _chunks(messages):
            publish.run(chunk)

    # Consuming and looking

    def consumer(self, memberships: Sequence[Membership], name: str) -> RedisConsumer:
        """Return a consumer. See the seam."""
        return RedisConsumer(self, memberships, name)

    def dead_letters(
        self, key: SubscriptionKey, limit: int = 100, *, before: str | None = None
    ) -> Sequence[DeadLetter]:
        """Return the newest dead letters. See the seam."""
        keys = self.keys(key.topic)
        end = "+" if before is None else f"({before}"
        command = ("XREVRANGE", keys.dead(key.group), end, "-", "COUNT", limit)
        entries = self.call(keys.stream, command, "listing dead letters") if limit > 0 else ()
        return [read_letter(key, entry_id, values) for entry_id, values in entries]

    def replay(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Deliver dead letters to their group again, as new entries that all other groups pass over. See the seam."""
        keys = self.keys(key.topic)
        dead = keys.dead(key.group)
        moved = 0
        for start in range(0, len(positions), _LETTERS):
            arguments: list[str | bytes] = []
            for position in positions[start : start + _LETTERS]:
                for entry_id, values in self.call(keys.stream, ("XRANGE", dead, position, position), "reading letters"):
                    letter = read_letter(key, entry_id, values)
                    arguments += [position, *entry_fields(letter.message, only=key.group)]
            if arguments:
                moved += self.call(keys.stream, script_call("replay", (keys.stream, dead), *arguments), "replaying")
        return moved

    def discard(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Delete dead letters. See the seam."""
        keys = self.keys(key.topic)
        return sum(
            self.call(
                keys.stream, ("XDEL", keys.dead(key.group), *positions[start : start + _LETTERS]), "discarding letters"
            )
            for start in range(0, len(positions), _LETTERS)
        )

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return how the groups stand. See the seam."""
        keys = self.keys(topic)
        try:
            rows = self.call(keys.stream, ("XINFO", "GROUPS", keys.stream), "listing groups")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                return ()
            raise
        dropped = int(self.call(keys.stream, ("GET", keys.dropped), "counting dropped messages") or 0)
        facts = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        states = [self._state(topic, keys, one, dropped) for one in facts]
        return sorted(states, key=lambda one: one.key.group)

    def _state(self, topic: str, keys: TopicKeys, facts: dict[bytes, Any], dropped: int) -> GroupState:
        group = facts[b"name"].decode()
        consumers = self._consumers(keys.stream, group)
        first = self.call(keys.stream, ("XPENDING", keys.stream, group), "listing what is pending")[1]
        if first is None:
            after = "(" + facts[b"last-delivered-id"].decode()
            unread = self.call(keys.stream, ("XRANGE", keys.stream, after, "+", "COUNT", 1), "looking for a message")
            first = unread[0][0] if unread else None
        oldest = None if first is None else stored_at(first.decode())
        return GroupState(SubscriptionKey(topic, group), facts[b"pending"], len(consumers), oldest, dropped)

    def _consumers(self, stream: str, group: str) -> list[bytes]:
        rows = self.call(stream, ("XINFO", "CONSUMERS", stream, group), "listing consumers")
        names = [row[row.index(b"name") + 1] for row in rows]
        return [name for name in names if name != PARKED.encode()]

    def remove_group(self, key: SubscriptionKey) -> None:
        """Delete a group. See the seam."""
        keys = self.keys(key.topic)
        try:
            for name in self._consumers(keys.stream, key.group):
                sign = worker_key(self.options.namespace, name.decode("utf-8", "replace"))
                if self.call(sign, ("EXISTS", sign), "looking for a sign of life"):
                    raise ConsumersPresent(
                        f"group {key.group!r} of topic {key.topic!r} is consumed, by "
                        f"{name.decode('utf-8', 'replace')!r}: stop its workers first"
                    )
            self.call(keys.stream, ("XGROUP", "DESTROY", keys.stream, key.group), "removing a group")
        except BrokerError as error:
            if not is_missing_group(error.__cause__):
                raise
        self.call(keys.stream, ("HDEL", keys.floors, key.group, f"~times:{key.group}"), "removing a group")
        self.call(keys.stream, ("DEL", *keys.of_group(key.group)), "removing a group")

    def close(self) -> None:
        """Close every connection of this process that nobody uses now."""
        if os.getpid() != self._process:
            return
        for idle in [*self._idle.values()]:
            _close_all(idle)


class _Publish:
    """One publish, which may take several tries. Knows what is stored for certain, and what may be."""

    def __init__(self, broker: RedisBroker, count: int, deadline: float, rng: random.Random) -> None:
        self._broker = broker
        self._count = count
        self._stored = 0
        self._deadline = deadline
        self._random = rng
        self._began = time.monotonic()
        self._waiting: dict[_Name, Message[bytes]] = {}
        self._doubtful: dict[_Name, tuple[int, bytes]] = {}  # and the connection that they were last sent on

    def run(self, messages: Sequence[Message[bytes]]) -> None:
        """Try until all are stored, or the time is over, or the server refuses for certain."""
        self._waiting = {_name(message): message for message in messages}
        pause = 0.02
        while True:
            try:
                with broker_errors(f"publishing to {self._broker.shown_url}"):
                    self._try_once()
                return
            except BrokerUnavailable as error:
                self._broker.servers.forget()
                if time.monotonic() + pause >= self._deadline:
                    raise self._final(error) from error.__cause__
                threading.Event().wait(pause * (0.5 + self._random.random()))
                pause = min(pause * 2, 0.5)
            except BrokerError as error:
                raise self._final(error) from error.__cause__

    def _final(self, error: BrokerError) -> Exception:
        stored = f". Of {self._count} messages {self._stored} are stored" if self._stored else ""
        if not self._doubtful:
            return type(error)(f"{error}{stored}")
        return PublishUncertain(
            f"{error}{stored}. {len(self._doubtful)} messages were sent, not confirmed, and could not be looked for: "
            "they may be stored",
            tuple(message_id for _, message_id in self._doubtful),
        )

    def _try_once(self) -> None:
        by_node: dict[Node, list[Message[bytes]]] = defaultdict(list)
        for message in self._waiting.values():
            by_node[self._broker.servers.node_of(self._broker.keys(message.topic).stream)].append(message)
        for node, messages in by_node.items():
            with self._broker.borrowed(node) as link:
                link.open(self._deadline - time.monotonic())
                try:
                    self._send(link, self._without_stored(link, messages) if self._doubtful else messages)
                except BrokerUnavailable:
                    link.close()  # it may lead to a server that is not the master any more
                    raise

    def _send(self, link: Link, messages: Sequence[Message[bytes]]) -> None:
        """Send in one go: a single message as it is, those of one topic as a transaction, so that all or none of them
        are stored, in their order.
        """
        by_stream: dict[str, list[Message[bytes]]] = defaultdict(list)
        for message in messages:
            by_stream[self._broker.keys(message.topic).stream].append(message)
        batches = [_Batch(stream, members) for stream, members in by_stream.items()]
        if not batches:
            return
        self._doubtful.update(dict.fromkeys(map(_name, messages), (link.client_id, link.address)))
        link.send([command for batch in batches for command in batch.commands()])
        refused: list[BrokerError] = []
        for batch in batches:
            for message, reply in zip(batch.messages, batch.read_replies(link), strict=True):
                if isinstance(reply, Exception):
                    del self._doubtful[_name(message)]
                    what = f"publishing to {message.topic!r} (key {batch.stream!r}) at {self._broker.shown_url}"
                    error = translated(reply, what)
                    error.__cause__ = reply
                    refused.append(error)
                else:
                    self._is_stored(_name(message))
        if refused:
            raise refused[0]

    def _without_stored(self, link: Link, messages: list[Message[bytes]]) -> list[Message[bytes]]:
        """Find out which of the doubtful messages are stored, and return the others.

        The connection that they were sent on is killed first: afterwards nothing on it can still be carried out. It is
        named by its address too, as a server that was started anew gives its id to somebody else.
        """
        doubtful = [message for message in messages if _name(message) in self._doubtful]
        for client_id, address in {self._doubtful[_name(message)] for message in doubtful}:
            kill = ("CLIENT", "KILL", "ID", client_id, "ADDR", address)
            checked(link.ask([kill])[0], "fencing off a broken connection")
        if doubtful:
            seconds = checked(link.ask([("TIME",)])[0], "asking for the time")[0]
            oldest = (int(seconds) - int(time.monotonic() - self._began) - 2) * 1000
            for topic in {message.topic for message in doubtful}:
                found = _ids_since(link, self._broker.keys(topic).stream, oldest)
                for message in doubtful:
                    if message.topic == topic and message.id in found:
                        self._is_stored(_name(message))
        for message in doubtful:
            self._doubtful.pop(_name(message), None)
        return [message for message in messages if _name(message) in self._waiting]

    def _is_stored(self, name: _Name) -> None:
        self._stored += 1
        del self._waiting[name]
        del self._doubtful[name]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The messages of one publish that go to one stream."""

    stream: str
    messages: Sequence[Message[bytes]]

    def commands(self) -> list[Command]:
        """Return what to send."""
        adds = [add_command(self.stream, message) for message in self.messages]
        return adds if len(adds) == 1 else [("MULTI",), *adds, ("EXEC",)]

    def read_replies(self, link: Link) -> list[Any]:
        """Read what `commands` brings: the reply to each message.

        Whoever may not use transactions gets the replies at once, and so does without.
        """
        if len(self.messages) == 1:
            return [link.read()]
        link.read()
        replies = [link.read() for _ in self.messages]
        results = link.read()
        if isinstance(results, Exception):
            refused = next((one for one in replies if isinstance(one, Exception)), results)
            return [refused if one == b"QUEUED" else one for one in replies]
        queued = iter(results)
        return [next(queued) if one == b"QUEUED" else one for one in replies]


def _fit_one(idle: deque[Link]) -> Link | None:
    while True:
        try:
            link = idle.pop()  # the one used last: others may rest until their server closes them
        except IndexError:
            return None
        if link.is_fit():
            return link
        link.close()


def _close_all(idle: deque[Link]) -> None:
    while True:
        try:
            idle.pop().close()
        except IndexError:
            return


def _name(message: Message[bytes]) -> _Name:
    return message.topic, message.id


def _ids_since(link: Link, stream: str, oldest: int) -> set[str]:
    """Return the message ids in a stream since a moment of the server's clock, in ms."""
    found: set[str] = set()
    end = "+"
    while True:
        page = checked(
            link.ask([("XREVRANGE", stream, end, str(oldest), "COUNT", _LOOK_PAGE)])[0], "looking for messages"
        )
        found.update(values[1].decode("utf-8", "replace") for _, values in page if values[:1] == [b"id"])
        if len(page) < _LOOK_PAGE:
            return found
        end = "(" + page[-1][0].decode()


def _chunks(messages: Sequence[Message[bytes]]) -> Iterator[Sequence[Message[bytes]]]:
    """Cut into pieces that neither side has to hold for long."""
    chunk: list[Message[bytes]] = []
    size = 0
    for message in messages:
        if chunk and (len(chunk) >= _CHUNK_MESSAGES or size + len(message.payload) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += len(message.payload)
    if chunk:
        yield chunk
