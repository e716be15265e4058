"""The connections of a broker: one is borrowed for a call, and kept for the next one."""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pubsub_core.broker import USUAL, BrokerOptions
from pubsub_core.errors import BrokerUnavailable
from pubsub_redis.faults import broker_errors
from pubsub_redis.keys import TopicKeys, topic_keys
from pubsub_redis.link import Command, Link, checked
from pubsub_redis.servers import Node, Servers


class Connections:
    """Runs commands on the servers of a URL. Safe from any thread; a forked child makes connections of its own."""

    def __init__(self, servers: Servers, options: BrokerOptions, shown_url: str) -> None:
        self.servers = servers
        self.options = options
        self.shown_url = shown_url
        self._keys: dict[str, TopicKeys] = {}
        self._idle: defaultdict[Node, deque[Link]] = defaultdict(deque)
        self._lent: dict[int, Link] = {}  # by thread
        self._process = os.getpid()
        self._is_closed = False

    @contextmanager
    def borrowed(self, node: Node) -> Iterator[Link]:
        """Lend a connection to a node, perhaps not yet open. No other thread has it meanwhile."""
        link = self._borrow(node)
        try:
            yield link
        finally:
            self._take_back(node, link)

    def _borrow(self, node: Node) -> Link:
        if os.getpid() != self._process:
            self._idle = defaultdict(deque)  # the others are our parent's, which we must never use
            self._lent = {}
            self._process = os.getpid()  # last: another thread of ours would take one of those
        link = _fit_one(self._idle[node]) or self.new_link(node)
        self._lent[threading.get_ident()] = link
        return link

    def _take_back(self, node: Node, link: Link) -> None:
        self._lent.pop(threading.get_ident(), None)
        if link.is_open and not (link.is_hurried or self._is_closed):
            link.rest()
            self._idle[node].append(link)
            return
        if not link.is_open:
            _close_all(self._idle[node])  # most likely what broke this one broke them, too
        link.close()

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
        return self.call_all(stream, [command], what)[0]

    def call_all(self, stream: str, commands: Sequence[Command], what: str) -> list[Any]:
        """Run commands, all in one go. Raises the first error."""
        what = f"{what} at {self.shown_url}"
        try:
            with broker_errors(what):
                node = self.servers.node_of(stream)
            with self.borrowed(node) as link:
                try:
                    with broker_errors(what):
                        replies = link.ask(commands)
                    return [checked(reply, what) for reply in replies]
                except BrokerUnavailable:
                    link.close()  # it may lead to a server that is not the master any more
                    raise
        except BrokerUnavailable:
            self.servers.forget()
            raise

    def close_idle(self) -> None:
        """Close every connection of this process: those that are in use, as soon as they are given back."""
        self._is_closed = True
        if os.getpid() != self._process:
            return
        for idle in [*self._idle.values()]:
            _close_all(idle)


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
