"""One publish, the long way: in as many tries as there is time for, without storing anything twice."""

import math
import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis.exceptions as theirs

from pubsub_core.backlog import backlog_is_full
from pubsub_core.broker import IN_MEMORY, USUAL, Durability, Terms, TopicOptions
from pubsub_core.errors import (
    BrokerError,
    BrokerUnavailable,
    NotConfirmed,
    NotPermitted,
    PublishUncertain,
    Unsupported,
)
from pubsub_core.message import Message
from pubsub_redis.entry import Now, add_command, entry_values, place_of
from pubsub_redis.faults import broker_errors, translated
from pubsub_redis.groups import due_prefix, room_of
from pubsub_redis.keys import REMOVED, TopicKeys, control_channel
from pubsub_redis.link import Command, Link, checked, script_call
from pubsub_redis.servers import Node

if TYPE_CHECKING:
    from pubsub_redis.broker import RedisBroker

UNFENCED_FOR = 3600.0  # seconds after which no network still holds a request back
CANNOT = (NotPermitted, Unsupported)  # kill a connection

_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024
_LOOK_PAGE = 1000
_LOOK_MARGIN = 10.0  # seconds by which clocks may differ
_FENCED = -2  # what the script says

_Name = tuple[str, str]
"""A message's topic and id."""

Sent = tuple[Node, int, bytes]
"""A connection by its node, and by the id and address that this knows it by."""


class Publish:
    """One publish, which may take several tries. Knows what is stored for certain, and what may be."""

    def __init__(
        self,
        broker: "RedisBroker",
        messages: Sequence[Message[bytes]],
        durability: Durability,
        terms: Mapping[str, Terms],
        began: tuple[float, float],
        *,
        again: bool,
    ) -> None:
        self._broker = broker
        self._messages = messages
        self._terms = terms
        self._others: dict[_Name, str] = {}  # the ids of those that were published before under the same dedup key
        self._durability = durability
        self._again = again
        self._began, self._began_at = began  # by time.monotonic(), and by the clock
        self._deadline = self._began + broker.options.publish_timeout
        self._waiting: dict[_Name, Message[bytes]] = {}
        # And the connection that they were last sent on, if it is known.
        self._doubtful: dict[_Name, Sent | None] = {_name(one): None for one in messages} if again else {}
        self._stored: dict[_Name, Sent | None] = {}
        self._unmarked: set[_Name] = set()  # which were sent without asking for their fence
        self._tokens: dict[_Name, str] = {}  # what opens their fences

    def note_stored(self, messages: Sequence[Message[bytes]]) -> None:
        """Note that these are stored already."""
        self._stored.update(dict.fromkeys(map(_name, messages)))

    def note_doubt(self, messages: Sequence[Message[bytes]], sent: Sent) -> None:
        """Note that these may be stored: they were sent on this connection."""
        self._doubtful.update(dict.fromkeys(map(_name, messages), sent))
        self._unmarked.update(map(_name, messages))

    def run(self) -> Sequence[str]:
        """Store and confirm, or raise what became of it. Returns the ids that stand for the messages."""
        for chunk in chunks(self._messages):
            self._waiting = {_name(message): message for message in chunk if _name(message) not in self._stored}
            try:
                self._persist(self._store, "publishing")
            except BrokerError as error:
                raise self._final(error) from error.__cause__
        if self._durability != IN_MEMORY:
            self._confirm()
        return [self._others.get(_name(message), message.id) for message in self._messages]

    def _persist(self, act: Callable[[], None], what: str) -> None:
        """Try until it is done. Raises a BrokerError if the time is over, or the server refuses for certain."""
        pause = 0.02
        while True:
            try:
                with broker_errors(f"{what} to {self._broker.shown_url}"):
                    act()
                return
            except BrokerUnavailable:
                self._broker.servers.forget()
                if time.monotonic() + pause >= self._deadline:
                    raise
                threading.Event().wait(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 0.5)

    @contextmanager
    def _link(self, node: Node) -> Iterator[Link]:
        """Lend an open connection, on which everything takes as long as there is time."""
        with self._broker.borrowed(node) as link:
            link.open(self._deadline - time.monotonic())
            try:
                yield link
            except BrokerUnavailable:
                link.close()  # it may lead to a server that is not the master any more
                raise

    def _by_node(self, messages: Iterable[Message[bytes]]) -> dict[Node, list[Message[bytes]]]:
        by_node: dict[Node, list[Message[bytes]]] = defaultdict(list)
        for message in messages:
            by_node[self._broker.servers.node_of(self._broker.keys(message.topic).stream)].append(message)
        return by_node

    # Storing

    def _store(self) -> None:
        for node, messages in self._by_node(self._waiting.values()).items():
            with self._link(node) as link:
                self._broker.learn_to_fence(link)
                if self._durability != IN_MEMORY:
                    _check_ability(link, self._durability, self._broker.shown_url)
                waiting = self._without_stored(node, link, messages) if self._doubtful else messages
                if waiting:
                    self._send(node, link, waiting)

    def _send(self, node: Node, link: Link, messages: Sequence[Message[bytes]]) -> None:
        """Send in one go: a single message as it is, those of one topic as a transaction, so that all or none of them
        are stored, in their order.
        """
        by_topic: dict[str, list[Message[bytes]]] = defaultdict(list)
        for message in messages:
            by_topic[message.topic].append(message)
        topics, now = self._broker.options.topics, self._broker.options.clock.time
        wake_up = control_channel(self._broker.options.namespace)
        tokens = self._tokens if self._asks_for_fences else None
        if tokens is None:
            self._unmarked.update(map(_name, messages))
        batches = [
            _Batch(self._broker.keys(topic), members, topics.get(topic, USUAL), self._terms, wake_up, now, tokens)
            for topic, members in by_topic.items()
        ]
        sent = (node, link.client_id, link.address)
        self._doubtful.update(dict.fromkeys(map(_name, messages), sent))
        link.send([command for batch in batches for command in batch.commands()])
        replies = [batch.read_replies(link) for batch in batches]
        refused: list[BrokerError] = []
        for batch, of_batch in zip(batches, replies, strict=True):
            is_unknown = isinstance(of_batch[0], theirs.NoScriptError)
            refused += self._note(batch, link.ask(batch.commands()) if is_unknown else of_batch, sent)
        if refused:
            raise refused[0]

    def _note(self, batch: "_Batch", replies: Sequence[Any], sent: Sent) -> list[BrokerError]:
        """Keep in mind what became of a batch, and return why what was not stored of it was not."""
        topic = batch.messages[0].topic
        if batch.is_scripted:
            (reply,) = replies
            if isinstance(reply, Exception):
                replies = [reply] * len(batch.messages)
            elif reply[0] == _FENCED:  # so they stay in doubt: somebody else may have stored them by now
                return [BrokerUnavailable(f"publishing to {topic!r}: somebody else publishes the same messages again")]
            elif reply[0] < 0:
                replies = [backlog_is_full(topic, batch.options.max_backlog)] * len(batch.messages)
            else:
                dropped, *replies = reply
                if dropped:
                    self._broker.drops.note(topic, dropped)
                self._others |= {
                    _name(message): other.decode()
                    for message, other in zip(batch.messages, replies, strict=True)
                    if other
                }
        refused: list[BrokerError] = []
        for message, reply in zip(batch.messages, replies, strict=True):
            if isinstance(reply, Exception):
                del self._doubtful[_name(message)]
                refused.append(self._refusal(batch, topic, reply))
            else:
                self._is_stored(_name(message), sent)
        return refused

    def _refusal(self, batch: "_Batch", topic: str, reply: Exception) -> BrokerError:
        if isinstance(reply, BrokerError):
            return reply
        what = f"publishing to {topic!r} (key {batch.keys.stream!r}) at {self._broker.shown_url}"
        error = translated(reply, what)
        error.__cause__ = reply
        return error

    def _is_stored(self, name: _Name, sent: Sent | None) -> None:
        self._stored[name] = sent
        del self._waiting[name]
        del self._doubtful[name]

    def _final(self, error: BrokerError) -> BrokerError | PublishUncertain:
        stored = f". Of {len(self._messages)} messages {len(self._stored)} are stored" if self._stored else ""
        sent = {name: one for name, one in self._doubtful.items() if one is not None}
        if not self._doubtful or (isinstance(error, Unsupported) and not sent):
            refused = type(error)(f"{error}{stored}")
            refused.stored = self._standing()
            return refused
        self._broker.remember_unfenced(one for name, one in sent.items() if name in self._unmarked)
        uncertain = PublishUncertain(
            f"{error}{stored}. {len(self._doubtful)} messages were sent, not confirmed, and could not be looked for: "
            "they may be stored. To publish them again under their ids (id=, or commit() of their batch) is safe",
            tuple(message_id for _, message_id in self._doubtful),
        )
        uncertain.stored = self._standing()
        return uncertain

    def _standing(self) -> dict[str, str]:
        """Return the ids of what is stored, each with the id that stands for it."""
        stored = [(message, _name(message)) for message in self._messages]
        return {message.id: self._others.get(name, message.id) for message, name in stored if name in self._stored}

    # Looking for what may be stored

    @property
    def _asks_for_fences(self) -> bool:
        return self._again or not self._broker.may_kill

    def _without_stored(self, node: Node, link: Link, messages: list[Message[bytes]]) -> list[Message[bytes]]:
        """Find out which of the doubtful messages are stored, and return the others.

        The connections that they were sent on are killed first: afterwards nothing on them can still be carried out.
        Where that is not permitted each message has a fence: requests that do not know what it holds by now store
        nothing. What was sent before that was known, and is not found, stays in doubt.
        """
        doubtful = [message for message in messages if _name(message) in self._doubtful]
        if not doubtful:
            return messages
        may_kill = self._broker.may_kill
        sent = {self._doubtful[name] for name in map(_name, doubtful) if may_kill or name in self._unmarked} - {None}
        unkilled = self._kill(link, sent | self._broker.unfenced_on(node) if self._again else sent)
        if unkilled is None:
            self._unmarked.difference_update(map(_name, doubtful))
        if self._asks_for_fences:
            self._fence(link, doubtful)
        oldest, since = self._moments(link, doubtful)
        found = self._found(link, doubtful, oldest)
        forgotten = self._forgotten(link, sorted({one.topic for one in doubtful if _name(one) not in found}), since)
        left = False
        for message in doubtful:
            name = _name(message)
            if name in found:
                self._is_stored(name, None)
            elif message.topic in forgotten:
                continue
            elif unkilled is None or not (self._again or name in self._unmarked):
                del self._doubtful[name]
            else:
                left = True
        if unkilled is not None and left:
            raise unkilled
        if forgotten:
            raise BrokerError(
                f"publishing to {', '.join(map(repr, sorted(forgotten)))} at {self._broker.shown_url}: what was stored "
                "there when the messages were sent has been removed meanwhile, so nobody can know whether they were "
                "among it. As new messages, without their ids, they may be handled twice"
            )
        return [message for message in messages if _name(message) in self._waiting]

    def _kill(self, link: Link, sent: Set[Sent | None]) -> BrokerError | None:
        """Kill the connections, which are named by their addresses too, as a server that was started anew gives their
        ids to others. Returns the error if that is not permitted.
        """
        for one in sent:
            if one is None:
                continue
            _, client_id, address = one
            kill = ("CLIENT", "KILL", "ID", client_id, "ADDR", address)
            try:
                if not address:
                    raise NotPermitted(
                        "fencing off a broken connection: its address is not known, as the user may not run CLIENT INFO"
                    )
                checked(link.ask([kill])[0], f"fencing off a broken connection to {self._broker.shown_url}")
            except CANNOT as error:
                self._broker.may_kill = False
                return error
            self._broker.forget_unfenced(one)
        return None

    def _fence(self, link: Link, messages: Sequence[Message[bytes]]) -> None:
        """Have every request that asks for fences store nothing of these messages, if it was sent before this."""
        for message in messages:
            self._tokens[_name(message)] = secrets.token_hex(8)
        # Where connections are killed only those are to be kept apart that publish the same again at the same time.
        seconds = 2 * self._broker.options.publish_timeout if self._broker.may_kill else UNFENCED_FOR
        expiry = math.ceil(seconds * 1000)
        fences = [self._broker.keys(message.topic).fence(message.id) for message in messages]
        sets: list[Command] = [
            ("SET", fence, self._tokens[_name(message)], "PX", expiry)
            for fence, message in zip(fences, messages, strict=True)
        ]
        for reply in link.ask(sets):
            checked(reply, "fencing off what may be on its way")

    def _moments(self, link: Link, wanted: Sequence[Message[bytes]]) -> tuple[int, int]:
        """Return since when these may have been stored, in ms of the server's clock: at the earliest, and most likely.

        By the time that passed here since, on the server's clock; or by when it was here. So one of the two clocks may
        be set forward meanwhile. Set back, the server's makes ids that only count up. Of what is published again nobody
        knows by which clock its id was made.
        """
        reply = checked(link.ask([("TIME",)])[0], "asking for the time")
        server_now = int(reply[0]) + int(reply[1]) / 1e6
        began = server_now - (time.monotonic() - self._began)
        made = min(one.published_at.timestamp() for one in wanted) if self._again else self._began_at
        ahead = max(0.0, self._broker.options.clock.time() - server_now)
        oldest = max(0.0, min(began, made - ahead) - _LOOK_MARGIN)
        return int(oldest * 1000), int((oldest if self._again else began) * 1000)

    def _found(self, link: Link, wanted: Sequence[Message[bytes]], oldest: int) -> set[_Name]:
        """Return which of the messages are stored, at `oldest` or later."""
        found = self._found_delayed(link, wanted)  # first: from there they go to where the others are
        for topic in {message.topic for message in wanted}:
            ids = {message.id for message in wanted if message.topic == topic and _name(message) not in found}
            if not ids:
                continue
            stored = self._stored_since(link, self._broker.keys(topic).stream, oldest, ids)
            found.update((topic, message_id) for message_id in stored)
        return found

    def _found_delayed(self, link: Link, wanted: Sequence[Message[bytes]]) -> set[_Name]:
        """Return which of the messages are stored and not due yet."""
        terms = [(one, self._terms[one.id]) for one in wanted if one.id in self._terms]
        delayed = [one for one, said in terms if said.delay or said.at is not None]
        if not delayed:
            return set()
        looks: list[Command] = [("ZSCORE", self._broker.keys(one.topic).delayed, one.id) for one in delayed]
        scores = [checked(reply, "looking for messages") for reply in link.ask(looks)]
        return {_name(one) for one, score in zip(delayed, scores, strict=True) if score is not None}

    def _stored_since(self, link: Link, stream: str, oldest: int, ids: Set[str]) -> set[str]:
        """Return which ids are those of messages in a stream since a moment of the server's clock, in ms."""
        found: set[str] = set()
        end = "+"
        while True:
            look = ("XREVRANGE", stream, end, str(oldest), "COUNT", _LOOK_PAGE)
            page = checked(link.ask([look])[0], "looking for messages")
            found.update(values[1].decode("utf-8", "replace") for _, values in page if values[:1] == [b"id"])
            if len(page) < _LOOK_PAGE or ids <= found:
                return found & ids
            if time.monotonic() > self._deadline:
                raise BrokerUnavailable(f"looking for messages in {stream!r}: not finished in time")
            end = "(" + page[-1][0].decode()

    def _forgotten(self, link: Link, topics: Sequence[str], since: int) -> set[str]:
        """Return the topics of which something may have been removed that was stored since a moment."""
        looks: list[Command] = [("HGET", self._broker.keys(topic).floors, REMOVED) for topic in topics]
        below = [checked(reply, "looking whether messages have been removed") for reply in link.ask(looks)]
        return {
            topic
            for topic, noted in zip(topics, below, strict=True)
            if noted is not None and place_of(noted.decode())[0] >= since
        }

    # Confirming

    def _confirm(self) -> None:
        """Wait until disk and replicas have what is stored."""
        waiting = {_name(message): message for message in self._messages}
        try:
            self._persist(lambda: self._confirm_on_nodes(waiting), "waiting for disk or replicas: publishing")
        except BrokerError as error:
            unconfirmed = NotConfirmed(
                f"{error}. {len(waiting)} messages were stored, but are not confirmed: they may be lost with the "
                "server. To publish them again under their ids (id=, or commit() of their batch) asks again",
                tuple(message_id for _, message_id in waiting),
            )
            unconfirmed.stored = self._standing()
            raise unconfirmed from error.__cause__ or error

    def _confirm_on_nodes(self, waiting: dict[_Name, Message[bytes]]) -> None:
        for node, messages in self._by_node(waiting.values()).items():
            with self._link(node) as link:
                here = (node, link.client_id, link.address)
                if any(self._stored[_name(message)] != here for message in messages):
                    self._write_behind(link, messages)
                self._await_confirmation(link)
            for message in messages:
                del waiting[_name(message)]

    def _write_behind(self, link: Link, messages: Sequence[Message[bytes]]) -> None:
        """Write something after the messages: the server speaks of what was written on the connection that asks.

        It might be another server by now, so they are looked for first.
        """
        ours = [message for message in messages if _name(message) not in self._others]
        lost = len(ours) - len(self._found(link, ours, self._moments(link, ours)[0])) if ours else 0
        if lost:
            raise BrokerError(f"{lost} messages at {self._broker.shown_url} are not there any more")
        write = ("INCRBY", self._broker.keys(messages[0].topic).dropped, 0)  # which changes nothing, and counts
        checked(link.ask([write])[0], "writing behind the messages")

    def _await_confirmation(self, link: Link) -> None:
        for command, wanted, name in _waits(self._durability):
            while True:
                reply = checked(link.ask([command])[0], f"waiting for {name} at {self._broker.shown_url}")
                count = reply if isinstance(reply, int) else reply[0]
                if count >= wanted:
                    break
                if time.monotonic() + _WAIT_STEP + _WAIT_SLACK > self._deadline:
                    raise BrokerError(
                        f"{self._broker.shown_url}: {count} of {wanted} said in time that they have it ({name})"
                    )


_WAIT_STEP = 0.2
_WAIT_SLACK = 0.1  # by which a server may be late to end a wait


def _waits(durability: Durability) -> list[tuple[Command, int, str]]:
    """Return the commands that wait, by how much their count has to be, and for what."""
    milliseconds = int(_WAIT_STEP * 1000)
    waits: list[tuple[Command, int, str]] = []
    if durability.replicas:
        waits.append((("WAIT", durability.replicas, milliseconds), durability.replicas, "replicas"))
    if durability.fsync:
        waits.append((("WAITAOF", 1, 0, milliseconds), 1, "disk"))
    return waits


def _check_ability(link: Link, durability: Durability, shown_url: str) -> None:
    """Raise Unsupported if the server cannot tell of disk or replicas. Asks once per connection."""
    if durability in link.confirms:
        return
    what = f"nothing was published to {shown_url}, as it cannot say when it is durable"
    if durability.replicas:
        checked(link.ask([("WAIT", 0, 1)])[0], what)
    if durability.fsync:
        try:
            checked(link.ask([("WAITAOF", 1, 0, 1)])[0], what)
        except Unsupported as error:
            raise Unsupported(
                f"{error}. durability='fsync' needs Redis 7.2 or newer, or Valkey, with `appendonly yes` (and, best, "
                "`appendfsync always`). Otherwise use 'memory', or 'replicas:N'"
            ) from error.__cause__
    link.confirms.add(durability)


@dataclass(frozen=True, slots=True)
class _Batch:
    """The messages of one publish that go to one topic on one node."""

    keys: TopicKeys
    messages: Sequence[Message[bytes]]
    options: TopicOptions
    terms: Mapping[str, Terms]
    wake_up: str
    now: Now
    tokens: Mapping[_Name, str] | None
    """What opens the fences of messages that may have been stored before; None if nobody asks for fences."""

    @property
    def is_scripted(self) -> bool:
        """Whether one script adds all of them, or none."""
        return (
            self.options.max_backlog is not None
            or self.tokens is not None
            or (bool(self.terms) and any(message.id in self.terms for message in self.messages))
        )

    def commands(self) -> list[Command]:
        """Return what to send."""
        if self.is_scripted:
            return [self._script()]
        adds = [add_command(self.keys.stream, message, self.now) for message in self.messages]
        return adds if len(adds) == 1 else [("MULTI",), *adds, ("EXEC",)]

    def _script(self) -> Command:
        names = [
            self.keys.stream,
            self.keys.dropped,
            self.keys.floors,
            self.keys.delayed,
            self.keys.delayed_messages,
        ]
        arguments: list[str | bytes | int] = []
        for message in self.messages:
            terms = self.terms.get(message.id, _AT_ONCE)
            which: str | int = ""
            if terms.dedup is not None:
                names.append(self.keys.dedup(terms.dedup))
                which = len(names)
            fence: tuple[str | int, str] = ("", "")
            if self.tokens is not None:
                names.append(self.keys.fence(message.id))
                fence = (len(names), self.tokens.get(_name(message), ""))
            arguments += (
                _when(terms),
                which,
                math.ceil(terms.window * 1000),
                *fence,
                *entry_values(message, self.now),
            )
        wake_up = due_prefix(self.messages[0].topic)
        return script_call("add", names, *room_of(self.options), self.wake_up, wake_up, *arguments)

    def read_replies(self, link: Link) -> list[Any]:
        """Read what `commands` brings: the reply to each message, or the one of the script.

        Whoever may not use transactions gets the replies at once, and so does without.
        """
        if len(self.messages) == 1 or self.is_scripted:
            return [link.read()]
        link.read()
        replies = [link.read() for _ in self.messages]
        results = link.read()
        if isinstance(results, Exception):
            refused = next((one for one in replies if isinstance(one, Exception)), results)
            return [refused if one == b"QUEUED" else one for one in replies]
        queued = iter(results)
        return [next(queued) if one == b"QUEUED" else one for one in replies]


_AT_ONCE = Terms()


def _when(terms: Terms) -> str:
    """Return when a message is due, as the script wants it."""
    if terms.at is not None:
        return f"@{math.ceil(terms.at * 1000)}"
    return f"+{math.ceil(terms.delay * 1000)}" if terms.delay else ""


def _name(message: Message[bytes]) -> _Name:
    return message.topic, message.id


def chunks(messages: Sequence[Message[bytes]]) -> Iterator[Sequence[Message[bytes]]]:
    """Cut into pieces that neither side has to hold for long."""
    if 0 < len(messages) <= _CHUNK_MESSAGES and sum([len(message.payload) for message in messages]) <= _CHUNK_BYTES:
        yield messages
        return
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
