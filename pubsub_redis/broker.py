"""The Redis broker: publishing, and making consumers."""

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pubsub_core.broker import BrokerOptions, DeadLetter, Membership
from pubsub_core.errors import BrokerError, BrokerUnavailable, PublishUncertain
from pubsub_core.message import Message, SubscriptionKey
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.entry import add_command, read_letter
from pubsub_redis.faults import broker_errors, translated
from pubsub_redis.keys import TopicKeys, topic_keys
from pubsub_redis.link import Command, Link, checked
from pubsub_redis.servers import Node, Servers

_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024
_LOOK_PAGE = 1000


class RedisBroker:
    """A broker on Redis Streams. Each thread has a connection of its own to each node; a forked child makes new ones."""

    def __init__(self, servers: Servers, options: BrokerOptions, shown_url: str) -> None:
        self.servers = servers
        self.options = options
        self.shown_url = shown_url
        self._keys: dict[str, TopicKeys] = {}
        self._random = random.Random()
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget every connection: after `close`, and in a forked child, which must never use its parent's."""
        self._process = os.getpid()
        self._own = threading.local()
        self._links_lock = threading.Lock()
        self._links: list[Link] = []

    # Connections

    def link(self, node: Node) -> Link:
        """Return this thread's connection to a node."""
        if os.getpid() != self._process:
            self._start_afresh()
        links: dict[Node, Link] | None = getattr(self._own, "links", None)
        if links is None:
            links = self._own.links = {}
        link = links.get(node)
        if link is None:
            link = links[node] = self.new_link(node)
            with self._links_lock:
                self._links.append(link)
        return link

    def new_link(self, node: Node) -> Link:
        """Return a connection of its own, not yet open, which the caller closes."""
        return Link(self.servers.connection(node))

    def keys(self, topic: str) -> TopicKeys:
        """Return the keys of a topic."""
        keys = self._keys.get(topic)
        if keys is None:
            keys = topic_keys(self.options.namespace, topic, self.options.streams.get(topic))
            self._keys[topic] = keys
        return keys

    def call(self, stream: str, command: Command, what: str) -> Any:
        """Run a command on the node that keeps `stream`, on this thread's connection. Raises our errors."""
        with broker_errors(f"{what} at {self.shown_url}"):
            link = self.link(self.servers.node_of(stream))
        try:
            return link.call(*command, what=f"{what} at {self.shown_url}")
        except BrokerUnavailable:
            self.servers.forget()
            raise

    # Publishing

    def publish(self, messages: Sequence[Message[bytes]]) -> None:
        """Store the messages. See the seam."""
        deadline = time.monotonic() + self.options.publish_timeout
        for chunk in _chunks(messages):
            _Publish(self, chunk, deadline, self._random).run()

    # Consuming and looking

    def consumer(self, memberships: Sequence[Membership], name: str) -> RedisConsumer:
        """Return a consumer. See the seam."""
        return RedisConsumer(self, memberships, name)

    def dead_letters(self, key: SubscriptionKey, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the newest dead letters. See the seam."""
        keys = self.keys(key.topic)
        entries = self.call(
            keys.stream, ("XREVRANGE", keys.dead(key.group), "+", "-", "COUNT", limit), "listing dead letters"
        )
        letters = []
        for entry_id, values in entries:
            message, reason, consumer = read_letter(key.topic, key.group, values)
            position = entry_id.decode()
            died_at = datetime.fromtimestamp(int(position.partition("-")[0]) / 1000, UTC)
            letters.append(DeadLetter(position, message, key, reason, consumer, died_at))
        return letters

    def close(self) -> None:
        """Close every connection that threads of this process opened."""
        with self._links_lock:
            links, self._links = self._links, []
        if os.getpid() == self._process:
            for link in links:
                link.close()
        self._start_afresh()


class _Publish:
    """One publish, which may take several tries. Knows what is stored for certain, and what may be."""

    def __init__(
        self, broker: RedisBroker, messages: Sequence[Message[bytes]], deadline: float, rng: random.Random
    ) -> None:
        self._broker = broker
        self._waiting = list(messages)
        self._deadline = deadline
        self._random = rng
        self._began = time.monotonic()
        self._doubtful: dict[str, int] = {}  # message id → client id of the connection it was last sent on

    def run(self) -> None:
        """Try until all are stored, or the time is over, or the server refuses for certain."""
        pause = 0.02
        while True:
            try:
                with broker_errors(f"publishing to {self._broker.shown_url}"):
                    self._try_once()
                return
            except BrokerUnavailable as error:
                self._broker.servers.forget()
                now = time.monotonic()
                if now + pause >= self._deadline:
                    raise self._final(error) from error.__cause__
                threading.Event().wait(pause * (0.5 + self._random.random()))
                pause = min(pause * 2, 0.5)
            except BrokerError as error:
                raise self._final(error) from error.__cause__

    def _final(self, error: BrokerError) -> Exception:
        if not self._doubtful:
            return error
        return PublishUncertain(
            f"{error}. {len(self._doubtful)} messages were sent but not confirmed, and could not be looked for: "
            "they may be stored",
            tuple(self._doubtful),
        )

    def _try_once(self) -> None:
        by_node: dict[Node, list[Message[bytes]]] = defaultdict(list)
        for message in self._waiting:
            by_node[self._broker.servers.node_of(self._broker.keys(message.topic).stream)].append(message)
        for node, messages in by_node.items():
            link = self._broker.link(node)
            link.open()
            self._send(link, self._without_stored(link, messages) if self._doubtful else messages)

    def _send(self, link: Link, messages: Sequence[Message[bytes]]) -> None:
        keys = self._broker.keys
        commands = [add_command(keys(message.topic).stream, message) for message in messages]
        if not commands:
            return
        client_id = link.client_id
        for message in messages:
            self._doubtful[message.id] = client_id
        link.send(commands)
        refused: Exception | None = None
        for message in messages:
            reply = link.read()
            del self._doubtful[message.id]
            if isinstance(reply, Exception):
                refused = refused or reply
            else:
                self._waiting.remove(message) if self._waiting[0] is not message else self._waiting.pop(0)
        if refused is not None:
            topic = self._waiting[0].topic
            raise translated(refused, f"publishing to {topic!r} at {self._broker.shown_url}") from refused

    def _without_stored(self, link: Link, messages: list[Message[bytes]]) -> list[Message[bytes]]:
        """Find out which of the doubtful messages are stored, and return the others.

        The connection that they were sent on is killed first: afterwards nothing on it can still be carried out.
        """
        doubtful = {message.id for message in messages if message.id in self._doubtful}
        if not doubtful:
            return messages
        for client_id in {self._doubtful[one] for one in doubtful} - {link.client_id}:
            checked(link.ask([("CLIENT", "KILL", "ID", client_id)])[0], "fencing off a broken connection")
        seconds = checked(link.ask([("TIME",)])[0], "asking for the time")[0]
        oldest = (int(seconds) - int(time.monotonic() - self._began) - 2) * 1000
        stored: set[str] = set()
        for stream in {self._broker.keys(message.topic).stream for message in messages}:
            stored |= _ids_since(link, stream, oldest) & doubtful
        for one in doubtful:
            del self._doubtful[one]
        self._waiting = [message for message in self._waiting if message.id not in stored]
        return [message for message in messages if message.id not in stored]


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
