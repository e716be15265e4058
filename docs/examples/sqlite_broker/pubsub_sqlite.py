"""A broker in one file, for programs on one machine: `sqlite:///shop.db`. See docs/guides/writing-a-backend.md.

Every method is one transaction, which SQLite carries out as a whole or not at all, one after the other. So what failed
was not done, and no publish is ever uncertain. What each method promises stands in `pubsub_core.broker`.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from pubsub_core import broker as seam
from pubsub_core.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigurationError, LeaseLost, Unsupported
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey

_Db = sqlite3.Connection
_Taken = list[Delivery[bytes]]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, stream, id, stored REAL, payload, facts);
CREATE INDEX IF NOT EXISTS messages_of_a_stream ON messages (stream, seq);
CREATE INDEX IF NOT EXISTS messages_by_id ON messages (stream, id);
CREATE TABLE IF NOT EXISTS delayed (stream, id, due REAL, payload, facts, PRIMARY KEY (stream, id));
CREATE TABLE IF NOT EXISTS dedup (stream, key, id, until REAL, PRIMARY KEY (stream, key));
CREATE TABLE IF NOT EXISTS groups (stream, name, last INTEGER, PRIMARY KEY (stream, name));
-- What a group was handed and has not settled. What has no owner waits until it is due.
CREATE TABLE IF NOT EXISTS deliveries (stream, name, seq INTEGER, owner, due REAL, attempt INTEGER, crashes INTEGER,
    PRIMARY KEY (stream, name, seq));
CREATE INDEX IF NOT EXISTS deliveries_of_an_owner ON deliveries (owner);
CREATE TABLE IF NOT EXISTS consumers (name PRIMARY KEY, seen REAL);
CREATE TABLE IF NOT EXISTS dead_letters (stream, name, died REAL, payload, facts, reason);
CREATE TABLE IF NOT EXISTS schedules (namespace, topic, name, owner, spec, last REAL, named REAL,
    PRIMARY KEY (namespace, topic, name));
"""

_POLL = 0.02  # seconds between two looks of a `receive` that waits: nobody tells us what other processes write


def open_sqlite(url: str, options: seam.BrokerOptions, /) -> "SqliteBroker":
    """Return a broker for `sqlite:///file`, or `sqlite:////absolute/file`, which is made when it is first used."""
    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    if parts.netloc or parts.query or parts.fragment or not path:
        raise ConfigurationError(f"PUBSUB_URL {url!r} is not sqlite:/// and the path of a file")
    return SqliteBroker(path, options)


class SqliteBroker:
    """Keeps messages in an SQLite file. Its threads take turns."""

    def __init__(self, path: str, options: seam.BrokerOptions) -> None:
        self.options = options
        self._path = path
        self._lock = threading.Lock()
        self._connection: _Db | None = None

    @contextmanager
    def transaction(self, what: str, *, fsync: bool = False) -> Iterator[_Db]:
        """Do what is done with the connection as a whole, or not at all. Raises our errors in place of SQLite's."""
        with self._lock:
            try:
                db = self._connection = self._connection or self._open()
                db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                kind = BrokerFull if "full" in str(error) else BrokerUnavailable
                raise kind(f"{what} at sqlite:///{self._path}: {error}. Nothing was done") from error

    def _open(self) -> _Db:
        db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
        return db

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def time(self) -> float:
        return self.options.clock.time()

    def stream(self, topic: str) -> str:
        """Return what a topic is kept under."""
        return self.options.topics.get(topic, seam.USUAL).stream or f"{self.options.namespace}:{topic}"

    # Publishing

    def publish(
        self,
        messages: Sequence[Message[bytes]],
        durability: seam.Durability = seam.IN_MEMORY,
        *,
        again: bool = False,
        terms: Mapping[str, seam.Terms] = seam.NO_TERMS,
    ) -> Sequence[str]:
        if durability.replicas:
            raise Unsupported("nothing was published: an SQLite file has no replicas. Use 'memory' or 'fsync'")
        for topic in {message.topic for message in messages}:
            if self.options.topics.get(topic, seam.USUAL).max_backlog is not None:
                raise Unsupported(f"nothing was published: topic {topic!r} has a max_backlog, which sqlite:// has not")
        with self.transaction("publishing", fsync=durability.fsync) as db:
            return [self._publish(db, one, terms.get(one.id, seam.Terms()), again=again) for one in messages]

    def _publish(self, db: _Db, message: Message[bytes], own: seam.Terms, *, again: bool) -> str:
        """Store a message, at once or for later; return the id that stands for it."""
        now, stream = self.time(), self.stream(message.topic)
        if again:
            looks = [f"SELECT 1 FROM {table} WHERE stream = ? AND id = ?" for table in ("messages", "delayed")]
            if any(db.execute(look, (stream, message.id)).fetchone() for look in looks):
                return message.id
        if own.dedup is not None:
            known = "SELECT id FROM dedup WHERE stream = ? AND key = ? AND until > ?"
            first = db.execute(known, (stream, own.dedup, now)).fetchone()
            if first is not None:
                return str(first[0])
            _put(db, "dedup", stream, own.dedup, message.id, now + own.window)
        due = now + own.delay if own.at is None else own.at
        if due <= now:
            _put(db, "messages", None, stream, message.id, now, message.payload, _facts(message))
        else:
            _put(db, "delayed", stream, message.id, due, message.payload, _facts(message))
        return message.id

    def move_due(self, db: _Db, topic: str, now: float) -> None:
        """Store what is due of the delayed messages."""
        stream, due = self.stream(topic), "FROM delayed WHERE stream = ?1 AND due <= ?2"
        moved = f"SELECT NULL, stream, id, ?2, payload, facts {due} ORDER BY due, id"
        db.execute(f"INSERT INTO messages {moved}", (stream, now))
        db.execute(f"DELETE {due}", (stream, now))

    def cancel(self, topic: str, message_id: str) -> bool:
        names = (self.stream(topic), message_id)
        with self.transaction("cancelling") as db:
            was_there = db.execute("DELETE FROM delayed WHERE stream = ? AND id = ?", names).rowcount > 0
            if was_there:
                db.execute("DELETE FROM dedup WHERE stream = ? AND id = ?", names)
        return was_there

    def consumer(self, memberships: Sequence[seam.Membership], name: str) -> "SqliteConsumer":
        return SqliteConsumer(self, memberships, name)

    # Schedules

    def join_schedules(
        self, owner: str, schedules: Mapping[seam.ScheduleKey, str], *, is_start: bool = False
    ) -> Mapping[seam.ScheduleKey, float]:
        now, last_ticks = self.time(), {}
        long_ago = now - self.options.superseded_for
        with self.transaction("naming schedules") as db:
            for key, spec in schedules.items():
                _, known, last, named = self._schedule(db, key) or (owner, spec, now, now)
                if known != spec and (is_start or named < long_ago):
                    known, last = spec, max(last, now)
                if known == spec:
                    _put(db, "schedules", self.options.namespace, *key, owner, spec, last, now)
                last_ticks[key] = last
            unnamed = "DELETE FROM schedules WHERE namespace = ? AND owner = ? AND named < ?"
            db.execute(unnamed, (self.options.namespace, owner, long_ago))
        return last_ticks

    def _schedule(self, db: _Db, key: seam.ScheduleKey) -> Any:
        known = "SELECT owner, spec, last, named FROM schedules WHERE namespace = ? AND topic = ? AND name = ?"
        return db.execute(known, (self.options.namespace, *key)).fetchone()

    def fire(self, key: seam.ScheduleKey, spec: str, tick: float, message: Message[bytes]) -> seam.Fired:
        now = self.time()
        with self.transaction("firing a schedule") as db:
            owner, known, last, named = self._schedule(db, key) or ("-", spec, tick - 0.001, now)
            if known != spec:
                if named >= now - self.options.superseded_for:
                    return "superseded"
                last = max(last, now)
                _put(db, "schedules", self.options.namespace, *key, owner, spec, last, now)
            if tick > now:
                return "early"
            if tick <= last:
                return "past"
            _put(db, "messages", None, self.stream(key.topic), message.id, now, message.payload, _facts(message))
            _put(db, "schedules", self.options.namespace, *key, owner, spec, tick, now)
        return "fired"


_MINE = "stream = ? AND name = ? AND seq = ? AND owner = ? AND attempt = ?"


class SqliteConsumer:
    """One process's membership in groups."""

    def __init__(self, broker: SqliteBroker, memberships: Sequence[seam.Membership], name: str) -> None:
        self.name = name
        self._broker = broker
        self._memberships = memberships
        self._bell: SimpleQueue[None] = SimpleQueue()  # its `put` is safe even in a signal handler
        self._is_woken = False
        self._latest: WeakValueDictionary[tuple[Any, ...], Delivery[bytes]] = WeakValueDictionary()

    # Receiving

    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> Sequence[Delivery[bytes]]:
        deadline = monotonic() + wait
        while True:
            with self._broker.transaction("receiving") as db:
                self._ack(db, done)
                taken = self._take(db, {key: count for key, count in credit.items() if count > 0})
            done = ()
            left = deadline - monotonic()
            if taken or self._is_woken or left <= 0:
                self._is_woken = False
                return taken
            with suppress(Empty):
                self._bell.get(timeout=min(left, _POLL))

    def _take(self, db: _Db, credit: Mapping[SubscriptionKey, int]) -> _Taken:
        now, taken = self._broker.time(), _Taken()
        self._join(db, now)
        crashes = "SELECT coalesce(max(crashes), 0) FROM deliveries WHERE owner = ?"
        (worst,) = db.execute(crashes, (self.name,)).fetchone()
        for key in credit if not worst else ():  # no suspect beside another one
            taken = taken or self._take_parked(db, key, 1, now, suspects=True)
        if max([worst, *(one.crashes for one in taken)]) >= self._broker.options.max_crashes - 1:
            return taken  # nothing beside one at its last chance
        for key, count in credit.items():
            self._broker.move_due(db, key.topic, now)
            count -= sum(one.subscription == key for one in taken)  # noqa: PLW2901
            parked = self._take_parked(db, key, count, now, suspects=False)
            taken += parked + self._take_new(db, key, count - len(parked))
        return taken

    def _join(self, db: _Db, now: float) -> None:
        """Register, if this is the first time, or if others thought us gone. A group that does not exist is made."""
        if db.execute("INSERT OR IGNORE INTO consumers VALUES (?, ?)", (self.name, now)).rowcount:
            for one in self._memberships:
                stream = self._broker.stream(one.key.topic)
                group = (stream, one.key.group, self._before(db, stream, one.start))
                db.execute("INSERT OR IGNORE INTO groups VALUES (?, ?, ?)", group)

    def _before(self, db: _Db, stream: str, start: seam.Start) -> int:
        """Return the number after which a new group begins."""
        if start == "earliest":
            return 0
        since = start.timestamp() - 5e-7 if isinstance(start, datetime) else float("inf")  # a datetime is no finer
        first = "SELECT min(seq) - 1 FROM messages WHERE stream = ? AND stored >= ?"
        newest = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'messages'"
        return int(db.execute(f"SELECT coalesce(({first}), ({newest}), 0)", (stream, since)).fetchone()[0])

    def _take_parked(self, db: _Db, key: SubscriptionKey, count: int, now: float, *, suspects: bool) -> _Taken:
        due = """SELECT seq, attempt, crashes FROM deliveries WHERE stream = ? AND name = ? AND owner IS NULL
            AND due <= ? AND (crashes > 0) = ? ORDER BY due, seq LIMIT ?"""
        return self._hand_over(db, key, due, now, suspects, count)

    def _take_new(self, db: _Db, key: SubscriptionKey, count: int) -> _Taken:
        new = """SELECT seq, 1, 0 FROM messages WHERE stream = ?1
            AND seq > (SELECT last FROM groups WHERE stream = ?1 AND name = ?2) ORDER BY seq LIMIT ?3"""
        taken = self._hand_over(db, key, new, count)
        if taken:
            last = (taken[-1].message.position, self._broker.stream(key.topic), key.group)
            db.execute("UPDATE groups SET last = ? WHERE stream = ? AND name = ?", last)
        return taken

    def _hand_over(self, db: _Db, key: SubscriptionKey, query: str, *values: float) -> _Taken:
        """Make what a query finds this consumer's."""
        group, taken = (self._broker.stream(key.topic), key.group), []
        for seq, attempt, crashes in db.execute(query, (*group, *values)).fetchall():
            _put(db, "deliveries", *group, seq, self.name, None, attempt, crashes)
            payload, facts = db.execute("SELECT payload, facts FROM messages WHERE seq = ?", (seq,)).fetchone()
            self._latest[*group, seq] = one = Delivery(_message(key, payload, facts, seq, attempt), key, crashes)
            taken.append(one)
        return taken

    def wake(self) -> None:
        self._is_woken = True
        self._bell.put(None)

    # Settling

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        with self._broker.transaction("acknowledging") as db:
            self._ack(db, deliveries)

    def _ack(self, db: _Db, deliveries: Sequence[Delivery[bytes]]) -> None:
        names = [self._names(one)[:3] for one in deliveries]  # whoever owns it by now: the handler did succeed
        db.executemany("DELETE FROM deliveries WHERE stream = ? AND name = ? AND seq = ?", names)

    def nack(self, delivery: Delivery[bytes], delay: float) -> None:
        again = f"UPDATE deliveries SET owner = NULL, due = ?, attempt = attempt + 1 WHERE {_MINE}"
        with self._broker.transaction("giving back") as db:
            due = self._broker.time() + delay
            self._must_be_mine(delivery, db.execute(again, (due, *self._names(delivery))))

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        with self._broker.transaction("releasing") as db:
            names = [self._names(one) for one in deliveries]
            db.executemany(f"UPDATE deliveries SET owner = NULL, due = 0 WHERE {_MINE}", names)

    def dead_letter(self, delivery: Delivery[bytes], reason: DeadLetterReason) -> None:
        message, names = delivery.message, self._names(delivery)
        with self._broker.transaction("dead-lettering") as db:
            self._must_be_mine(delivery, db.execute(f"DELETE FROM deliveries WHERE {_MINE}", names))
            facts = (_facts(message), json.dumps(asdict(reason)))
            _put(db, "dead_letters", *names[:2], self._broker.time(), message.payload, *facts)

    def _names(self, delivery: Delivery[bytes]) -> tuple[str | int | None, ...]:
        message, group = delivery.message, delivery.subscription.group
        place = self._broker.stream(message.topic), group, int(message.position or 0)
        return *place, self.name if self._latest.get(place) is delivery else None, message.attempt  # it equals none

    def _must_be_mine(self, delivery: Delivery[bytes], changed: sqlite3.Cursor) -> None:
        if not changed.rowcount:
            raise LeaseLost(f"{delivery.message!r} is not that of consumer {self.name!r} any more: nothing was changed")

    # Looking after it all

    def maintain(self) -> float:
        options, now = self._broker.options, self._broker.time()
        with self._broker.transaction("maintaining") as db:
            db.execute("UPDATE consumers SET seen = ? WHERE name = ?", (now, self.name))
            late = (now - options.lease,)
            for (name,) in db.execute("SELECT name FROM consumers WHERE seen <= ?", late).fetchall():
                self._give_back(db, name, crashed=True)
            self._retain(db, now)
        return options.heartbeat

    def _give_back(self, db: _Db, name: str, *, crashed: bool) -> None:
        """Hand what a consumer holds to others, and watch it no more."""
        counted = "attempt = attempt + ?1, crashes = crashes + ?1"
        db.execute(f"UPDATE deliveries SET owner = NULL, due = 0, {counted} WHERE owner = ?2", (crashed, name))
        db.execute("DELETE FROM consumers WHERE name = ?", (name,))

    def _retain(self, db: _Db, now: float) -> None:
        """Delete what was kept for long enough: never a message that some group has not settled."""
        options = self._broker.options
        floor = """SELECT min(coalesce((SELECT min(seq) FROM deliveries AS open
            WHERE open.stream = groups.stream AND open.name = groups.name), last + 1)) FROM groups WHERE stream = ?1"""
        for topic in {one.key.topic for one in self._memberships}:
            kept = options.topics.get(topic, seam.USUAL).retention or options.retention
            settled = f"DELETE FROM messages WHERE stream = ?1 AND stored < ?2 AND seq < ({floor})"
            db.execute(settled, (self._broker.stream(topic), now - kept))
        db.execute("DELETE FROM dead_letters WHERE died < ?", (now - options.dead_letter_retention,))
        db.execute("DELETE FROM dedup WHERE until < ?", (now,))

    def close(self) -> None:
        with suppress(BrokerError), self._broker.transaction("leaving") as db:
            self._give_back(db, self.name, crashed=False)


def _put(db: _Db, table: str, *row: Any) -> None:
    db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _facts(message: Message[bytes]) -> str:
    """Return all of a message but its payload, and what belongs to a delivery."""
    moments = (message.published_at, message.expires_at, message.scheduled_for)
    written = [moment and moment.isoformat() for moment in moments]
    return json.dumps([message.id, message.key, dict(message.headers), message.source, *written])


def _message(key: SubscriptionKey, payload: bytes, facts: str, seq: int, attempt: int) -> Message[bytes]:
    message_id, message_key, headers, source, *written = json.loads(facts)
    published_at, *rest = (moment and datetime.fromisoformat(moment) for moment in written)
    delivery = (attempt, key.group, source, str(seq))
    return Message(message_id, key.topic, payload, published_at, message_key, headers, *delivery, *rest)
