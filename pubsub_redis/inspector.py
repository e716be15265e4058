"""What of Redis may be looked at, and mended, from outside: the `Inspector` of a RedisBroker.

Nothing here scans the keys of the server: topics and groups are known by name. What could be much comes in pages, or is
counted up to a bound.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from pubsub_core.broker import (
    ConsumerState,
    Count,
    DeadLetter,
    Delayed,
    Finding,
    Found,
    GroupState,
    InHand,
    Leftovers,
    ScheduleKey,
    ScheduleState,
    Standing,
    Start,
    TopicState,
)
from pubsub_core.clock import moment_at
from pubsub_core.errors import BrokerError, ConsumersPresent, NotPermitted, StreamConflict, Unsupported
from pubsub_core.ids import published_at
from pubsub_core.message import Message, SubscriptionKey
from pubsub_redis.connections import Connections
from pubsub_redis.entry import entry_fields, place_of, read_delayed, read_entry, read_letter, stored_at
from pubsub_redis.examiner import RedisExaminer
from pubsub_redis.faults import is_missing_group
from pubsub_redis.groups import start_id
from pubsub_redis.keys import (
    PARKED,
    REMOVED,
    TopicKeys,
    control_channel,
    paused_key,
    schedules_key,
    topics_key,
    worker_key,
)
from pubsub_redis.link import Command, script_call

_LETTERS = 100  # in one script call, or command
_SIGNS = 500  # in one command
_COUNTED = 10_000  # entries at most, where the server does not know how many there are
_LOOK_PAGE = 250  # entries that a script looks at: the server does nothing else meanwhile
_LOOKED_AT = 100_000  # entries at most, to find one
_CLOCKS_DIFFER = 10_000  # ms
_TRIM = 10_000  # entries in one command
_KEYS = 1000  # in one SCAN
_KEYS_IN_ALL = 200_000  # at most, to find what is left over
_LAST_OF_ALL = f"{2**64 - 1}-{2**64 - 1}"  # behind which a server refuses to look
_ENTRY_ID = re.compile(r"\d{1,15}-\d{1,20}")


class RedisInspector(Connections):
    """The part of a broker that looks."""

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
            reads: list[Command] = [("XRANGE", dead, one, one) for one in positions[start : start + _LETTERS]]
            for found in self.call_all(keys.stream, reads, "reading dead letters"):
                for entry_id, values in found:
                    letter = read_letter(key, entry_id, values)
                    fields = entry_fields(letter.message, self.options.clock.time, only=key.group)
                    arguments += [letter.position, *fields]
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

    def examine(self) -> Sequence[Finding]:
        """Return what is not as it should be with the server; of a cluster, with one of its servers. See the seam."""
        namespace = self.options.namespace
        return [
            *RedisExaminer(lambda command: self.call(namespace, command, "examining the server"), namespace).findings()
        ]

    def leftovers(self) -> Leftovers:
        """Return what is kept and on no list; of a cluster, on one of its servers. See the seam."""
        namespace = self.options.namespace
        whole = re.compile(rf"{re.escape(namespace)}:\{{([^{{}}]+)\}}(?::(?:due|suspects|failures|dead):([\w.-]+))?")
        topics: set[str] = set()
        groups: set[SubscriptionKey] = set()
        cursor, looked_at = b"0", 0
        while looked_at < _KEYS_IN_ALL:
            scan = ("SCAN", cursor, "MATCH", f"{namespace}:{{*", "COUNT", _KEYS)
            cursor, page = self.call(namespace, scan, "looking for what is left over")
            looked_at += _KEYS
            for found in (whole.fullmatch(key.decode("utf-8", "replace")) for key in page):
                if found is not None:
                    topics.add(found[1])
                    if found[2]:
                        groups.add(SubscriptionKey(found[1], found[2]))
            if cursor == b"0":
                break
        there = {
            SubscriptionKey(topic, facts[b"name"].decode())
            for topic in {one.topic for one in groups}
            for facts in self._group_facts(self.keys(topic))
        }
        is_complete = cursor == b"0" and not self.servers.is_cluster
        return Leftovers(sorted(topics - {*self.topics()}), sorted(groups - there), is_complete)

    # Topics and groups

    def topics(self) -> Sequence[str]:
        """Return the topics that workers consumed, or schedules publish to. See the seam."""
        key = topics_key(self.options.namespace)
        with self._naming_conflicts({key: "set", schedules_key(self.options.namespace): "hash"}):
            named = {name.decode() for name in self.call(key, ("SMEMBERS", key), "listing topics")}
            return sorted(named | {one.topic for one in self.known_schedules()})

    @contextlib.contextmanager
    def _naming_conflicts(self, kinds: Mapping[str, str]) -> Iterator[None]:
        """Have the error about a key of another type name it, which the server's does not.

        `kinds` are the keys that are looked at inside, each with the type that it should have.
        """
        try:
            yield
        except StreamConflict as error:
            raise StreamConflict(f"{error}. {self._conflict(kinds)}") from error

    def _conflict(self, kinds: Mapping[str, str]) -> str:
        move = "See what it is, and RENAME it out of the namespace, or DEL it"
        try:
            for key, kind in kinds.items():
                found = self.call(key, ("TYPE", key), "looking for a key of another type").decode()
                if found not in ("none", kind):
                    return f"Key {key!r} is of type {found}, not {kind}: somebody else wrote it. {move}"
        except NotPermitted:
            return f"It is one of these (a user with +type is told which): {', '.join(map(repr, kinds))}. {move}"
        return "It has gone meanwhile, so try again"

    def topic(self, topic: str) -> TopicState:
        """Return how a topic stands. See the seam."""
        keys = self.keys(topic)
        commands: list[Command] = [
            ("XLEN", keys.stream),
            ("XRANGE", keys.stream, "-", "+", "COUNT", 1),
            ("XREVRANGE", keys.stream, "+", "-", "COUNT", 1),
            ("ZCARD", keys.delayed),
            ("GET", keys.dropped),
        ]
        with self._naming_conflicts({keys.stream: "stream", keys.delayed: "zset", keys.dropped: "string"}):
            length, first, last, delayed, dropped = self.call_all(keys.stream, commands, "looking at a topic")
        oldest, newest = (stored_at(page[0][0].decode()) if page else None for page in (first, last))
        return TopicState(
            topic, length, oldest, newest, len(self._group_facts(keys)), delayed, int(dropped or 0), self._memory(keys)
        )

    def _memory(self, keys: TopicKeys) -> int | None:
        try:
            return cast("int | None", self.call(keys.stream, ("MEMORY", "USAGE", keys.stream), "measuring a topic"))
        except (NotPermitted, Unsupported):
            return None

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return how the groups stand. See the seam."""
        keys = self.keys(topic)
        facts = self._group_facts(keys)
        if not facts:
            return ()
        kinds = {paused_key(self.options.namespace): "hash", keys.dropped: "string"}
        kinds |= {keys.dead(one[b"name"].decode()): "stream" for one in facts}
        with self._naming_conflicts(kinds):
            return self._group_states(topic, keys, facts)

    def _group_states(self, topic: str, keys: TopicKeys, facts: Sequence[dict[bytes, Any]]) -> Sequence[GroupState]:
        shared: list[Command] = [("GET", keys.dropped), ("XLEN", keys.stream)]
        shared.append(("XRANGE", keys.stream, "-", "+", "COUNT", 1))
        dropped, length, first = self.call_all(keys.stream, shared, "looking at a topic")
        paused = self._paused()
        states = []
        for one in facts:
            name, last = one[b"name"].decode(), one[b"last-delivered-id"].decode()
            looks: list[Command] = [
                ("XPENDING", keys.stream, name, "-", "+", 1),
                ("XRANGE", keys.stream, last if last == _LAST_OF_ALL else f"({last}", "+", "COUNT", 1),
                ("XINFO", "CONSUMERS", keys.stream, name),
                ("XLEN", keys.dead(name)),
            ]
            try:
                pending, unread, consumers, dead = self.call_all(keys.stream, looks, "looking at a group")
            except BrokerError as error:
                if is_missing_group(error.__cause__):
                    continue  # it was removed meanwhile
                raise
            oldest = (pending or unread or [[None]])[0][0]
            in_hand = {row[b"name"]: row[b"pending"] for row in map(_facts, consumers)}
            parked = in_hand.pop(PARKED.encode(), 0)
            lag = Count(0) if not unread else self._lag(keys, one, last, length, first)
            states.append(
                GroupState(
                    SubscriptionKey(topic, name),
                    one[b"pending"],
                    len(in_hand),
                    None if oldest is None else stored_at(oldest.decode()),
                    int(dropped or 0),
                    lag,
                    parked,
                    dead,
                    SubscriptionKey(topic, name) in paused,
                    None if unread else self._passes_over_until(keys, last),
                )
            )
        return sorted(states, key=lambda state: state.key.group)

    def _passes_over_until(self, keys: TopicKeys, last: str) -> datetime | None:
        """Return until when entries get ids before the place of a group, None if the next one comes behind it."""
        milliseconds = place_of(last)[0]
        if milliseconds <= self.options.clock.time() * 1000:
            return None
        seconds, microseconds = self.call(keys.stream, ("TIME",), "looking at a group")
        if milliseconds <= int(seconds) * 1000 + int(microseconds) // 1000:
            return None
        is_ahead = place_of(last) > place_of(self._last_id(keys))
        return moment_at(milliseconds / 1000) if is_ahead else None

    def _last_id(self, keys: TopicKeys) -> str:
        """Return the last id that an entry had, deleted or not; where that may not be asked, of those that are kept."""
        try:
            facts = _facts(self.call(keys.stream, ("XINFO", "STREAM", keys.stream), "looking at a topic"))
            return cast(str, facts[b"last-generated-id"].decode())
        except (NotPermitted, Unsupported):
            newest = self.call(keys.stream, ("XREVRANGE", keys.stream, "+", "-", "COUNT", 1), "looking at a topic")
            return cast(str, newest[0][0].decode()) if newest else "0-0"

    def paused_groups(self) -> Sequence[SubscriptionKey]:
        """Return the groups that are paused. See the seam."""
        with self._naming_conflicts({paused_key(self.options.namespace): "hash"}):
            return sorted(self._paused())

    def _paused(self) -> set[SubscriptionKey]:
        index = paused_key(self.options.namespace)
        names = self.call(index, ("HGETALL", index), "looking for pauses")[::2]
        return {SubscriptionKey(*name.decode().split(" ")) for name in names}

    def _group_facts(self, keys: TopicKeys) -> list[dict[bytes, Any]]:
        try:
            with self._naming_conflicts({keys.stream: "stream"}):
                rows = self.call(keys.stream, ("XINFO", "GROUPS", keys.stream), "listing groups")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                return []
            raise
        return [_facts(row) for row in rows]

    def _lag(self, keys: TopicKeys, facts: dict[bytes, Any], last: str, length: int, first: Any) -> Count:
        """Return how many entries lie behind the last one handed out.

        The server does not know after a seek, or a restart of Redis 7.0: then they are counted, up to a bound.
        """
        known = facts.get(b"lag")
        if known is not None:
            return Count(known)
        if first and place_of(first[0][0].decode()) > place_of(last):
            return Count(length)
        total = 0
        while total < _COUNTED:
            count, end = self.call(keys.stream, script_call("count", (keys.stream,), last, _LOOK_PAGE), "counting")
            total += count
            if count < _LOOK_PAGE:
                return Count(total)
            last = end.decode()
        return Count(total, is_exact=False)

    # Consumers

    def consumers(
        self, key: SubscriptionKey, limit: int = 1000, *, after: str | None = None
    ) -> Sequence[ConsumerState]:
        """Return the consumers of a group. See the seam."""
        keys = self.keys(key.topic)
        try:
            rows = self.call(keys.stream, ("XINFO", "CONSUMERS", keys.stream, key.group), "listing consumers")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                return ()
            raise
        in_hand = {one[b"name"].decode("utf-8", "replace"): one[b"pending"] for one in map(_facts, rows)}
        names = sorted(name for name in in_hand if name != PARKED and (after is None or name > after))[: max(limit, 0)]
        signs = self._signs([worker_key(self.options.namespace, name) for name in names])
        return [_consumer(name, key, in_hand[name], sign) for name, sign in zip(names, signs, strict=True)]

    def _signs(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what consumers say of themselves, in as few round trips as may be."""
        signs: list[bytes | None] = []
        for start in range(0, len(keys), _SIGNS):
            page = keys[start : start + _SIGNS]
            if self.servers.is_cluster:
                signs += [self.call(one, ("GET", one), "looking for signs of life") for one in page]
            else:
                signs += self.call(page[0], ("MGET", *page), "looking for signs of life")
        return signs

    def in_hand(self, key: SubscriptionKey, consumer: str, limit: int = 100) -> Sequence[InHand]:
        """Return what a consumer has in hand. See the seam."""
        keys = self.keys(key.topic)
        if limit < 1:
            return ()
        pending = ("XPENDING", keys.stream, key.group, "-", "+", limit, consumer)
        try:
            rows = self.call(keys.stream, pending, "looking at what is in hand")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                return ()
            raise
        reads: list[Command] = [("XRANGE", keys.stream, row[0], row[0]) for row in rows]
        found = self.call_all(keys.stream, reads, "looking at what is in hand") if reads else ()
        held = []
        for (entry_id, _, idle, attempt), entries in zip(rows, found, strict=True):
            message = read_entry(key.topic, key.group, entry_id, entries[0][1], attempt) if entries else None
            held.append(
                InHand(key, consumer, entry_id.decode(), None if message is None else message.id, attempt, idle / 1000)
            )
        return held

    # Messages

    def peek(self, topic: str, limit: int = 100, *, after: str | datetime | None = None) -> Sequence[Message[bytes]]:
        """Return messages of a topic. See the seam."""
        keys = self.keys(topic)
        if limit < 1:
            return ()
        if after is None:
            newest = self.call(keys.stream, ("XREVRANGE", keys.stream, "+", "-", "COUNT", limit), "reading messages")
            entries = newest[::-1]
        else:
            start = str(int(after.timestamp() * 1000)) if isinstance(after, datetime) else f"({after}"
            entries = self.call(keys.stream, ("XRANGE", keys.stream, start, "+", "COUNT", limit), "reading messages")
        return [_published(topic, *entry) for entry in entries]

    def find(self, topic: str, message_id: str) -> Found | None:
        """Return a message, and how it stands. See the seam."""
        keys = self.keys(topic)
        looks: list[Command] = [
            ("ZSCORE", keys.delayed, message_id),
            ("HGET", keys.delayed_messages, message_id),
        ]
        score, record = self.call_all(keys.stream, looks, "looking for a message")
        if score is not None and record is not None:
            return Found(read_delayed(topic, record)[0], due_at=moment_at(float(score) / 1000))
        position = self._position_of(keys.stream, message_id, _LOOKED_AT)
        groups = {one[b"name"].decode(): one[b"last-delivered-id"].decode() for one in self._group_facts(keys)}
        if position is None:
            return self._found_dead(topic, message_id, sorted(groups))
        entries = self.call(keys.stream, ("XRANGE", keys.stream, position, position), "reading a message")
        if not entries:
            return None
        message = _published(topic, *entries[0])
        return Found(
            message, [self._standing(topic, name, position, message.id, groups[name]) for name in sorted(groups)]
        )

    def _position_of(self, stream: str, message_id: str, most: int) -> str | None:
        """Return the entry id of a message, None if it is not found among so many since it was published."""
        if _ENTRY_ID.fullmatch(message_id):
            return message_id
        try:
            published = int(published_at(message_id).timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            return None
        # Where it should be, first; then where it is if the clocks differ, or it was delayed.
        nearby = self._look_for(stream, message_id, str(published), most // 4)
        return nearby or self._look_for(stream, message_id, str(max(0, published - _CLOCKS_DIFFER)), most)

    def _look_for(self, stream: str, message_id: str, start: str, most: int) -> str | None:
        for _ in range(0, most, _LOOK_PAGE):
            command = script_call("find", (stream,), start, message_id, _LOOK_PAGE)
            found, last = self.call(stream, command, "looking for a message")
            if found:
                return cast(str, found.decode())
            if not last:
                return None
            start = f"({last.decode()}"
        return None

    def _found_dead(self, topic: str, message_id: str, names: Sequence[str]) -> Found | None:
        """Return a message that only dead letters still have."""
        for name in names:
            letter = self._letter_of(SubscriptionKey(topic, name), message_id)
            if letter is not None:
                message = replace(letter.message, group=None, attempt=1)
                others = [Standing(other, "settled") for other in names if other != name]
                return Found(message, sorted([Standing(name, "dead letter"), *others], key=lambda one: one.group))
        return None

    def _letter_of(self, key: SubscriptionKey, message_id: str) -> DeadLetter | None:
        keys = self.keys(key.topic)
        dead = keys.dead(key.group)
        position = None if _ENTRY_ID.fullmatch(message_id) else self._position_of(dead, message_id, _LOOKED_AT // 10)
        found = self.call(keys.stream, ("XRANGE", dead, position, position), "reading a letter") if position else ()
        return read_letter(key, *found[0]) if found else None

    def _standing(self, topic: str, group: str, position: str, message_id: str, last: str) -> Standing:
        if place_of(position) > place_of(last):
            return Standing(group, "waiting")
        keys = self.keys(topic)
        looks: list[Command] = [
            ("XPENDING", keys.stream, group, position, position, 1),
            ("ZSCORE", keys.due(group), position),
            ("ZSCORE", keys.suspects(group), position),
        ]
        pending, due, suspect = self.call_all(keys.stream, looks, "looking how a message stands")
        if pending:
            _, consumer, _, attempt = pending[0]
            score = due or suspect
            if consumer != PARKED.encode():
                return Standing(group, "in hand", consumer.decode("utf-8", "replace"), attempt)
            due_at = None if score is None else moment_at(float(score) / 1000)
            return Standing(group, "parked", attempt=attempt, due_at=due_at)
        is_dead = self._letter_of(SubscriptionKey(topic, group), message_id) is not None
        return Standing(group, "dead letter" if is_dead else "settled")

    # Mending

    def pause_group(self, key: SubscriptionKey, *, is_paused: bool) -> None:
        """Pause a group, or let it go on. See the seam."""
        index, name = paused_key(self.options.namespace), " ".join(key)
        if is_paused:
            self.call(index, ("HSETNX", index, name, int(time.time() * 1000)), "pausing a group")
        else:
            self.call(index, ("HDEL", index, name), "resuming a group")
        self._tell_all("pause", key, int(is_paused))

    def _tell_all(self, word: str, key: SubscriptionKey, value: int) -> None:
        """Say something to all consumers. A hint only: where it is not permitted, they look from time to time."""
        channel = control_channel(self.options.namespace)
        text = f"{word}\n{key.topic}\n{key.group}\n{value}"
        with contextlib.suppress(NotPermitted):
            self.call(channel, ("PUBLISH", channel, text), "telling the workers")

    def seek(self, key: SubscriptionKey, to: Start | str, *, force: bool = False) -> None:
        """Have a group go on reading elsewhere. See the seam."""
        keys = self.keys(key.topic)
        place = _place_before(to)
        if not force:
            self._check_at_rest(key, "moved")
        scripts = (keys.stream, keys.due(key.group), keys.suspects(key.group), keys.failures(key.group))
        try:
            more = self.call(keys.stream, script_call("seek", scripts, key.group, place), "moving a group")
        except BrokerError as error:
            if is_missing_group(error.__cause__):
                raise BrokerError(
                    f"there is no group {key.group!r} of topic {key.topic!r}. A worker makes it when it starts"
                ) from error
            raise
        self._tell_all("seek", key, 0)
        while more:
            more = self.call(keys.stream, script_call("seek", scripts, key.group, ""), "moving a group")

    def _check_at_rest(self, key: SubscriptionKey, what: str) -> None:
        """Raise ConsumersPresent if a group that is not paused has a consumer that lives."""
        if key in self._paused():
            return
        present = self._living(key)
        if present is not None:
            raise ConsumersPresent(
                f"group {key.group!r} of topic {key.topic!r} is consumed, by {present!r}, so it is not {what}: "
                "pause it, or stop its workers first"
            )

    def _living(self, key: SubscriptionKey) -> str | None:
        """Return a consumer of the group that lives, None if there is none."""
        return next((one.name for one in self.consumers(key) if one.is_alive), None)

    def purge(self, topic: str, *, everything: bool = False, force: bool = False) -> int:
        """Delete messages. See the seam."""
        keys = self.keys(topic)
        if not everything:
            return self._purge_settled(keys)
        names = [one[b"name"].decode() for one in self._group_facts(keys)]
        for name in names if not force else ():
            self._check_at_rest(SubscriptionKey(topic, name), "emptied")
        newest = self.call(keys.stream, ("XREVRANGE", keys.stream, "+", "-", "COUNT", 1), "looking at a topic")
        if not newest:
            return 0
        last = newest[0][0].decode()
        milliseconds, number = place_of(last)
        floor = f"{milliseconds}-{number + 1}"
        self.call(keys.stream, ("HSET", keys.floors, REMOVED, floor), "noting what is deleted")
        removed = 0
        while count := self.call(keys.stream, ("XTRIM", keys.stream, "MINID", "~", floor, "LIMIT", _TRIM), "deleting"):
            removed += int(count)
        removed += int(self.call(keys.stream, ("XTRIM", keys.stream, "MINID", floor), "deleting"))
        for name in names:
            parked = (keys.stream, keys.due(name), keys.suspects(name), keys.failures(name))
            while self.call(keys.stream, script_call("forget_parked", parked, name, last), "deleting what is parked"):
                continue
        return removed

    def _purge_settled(self, keys: TopicKeys) -> int:
        removed = 0
        while True:
            command = script_call("retain", (keys.stream, keys.floors), 0, 2**53, _TRIM)
            count, *_ = self.call(keys.stream, command, "deleting what is settled")
            removed += int(count)
            if not count:
                return removed

    def delayed(self, topic: str, limit: int = 100) -> Sequence[Delayed]:
        """Return what is not due yet. See the seam."""
        keys = self.keys(topic)
        if limit < 1:
            return ()
        listing = ("ZRANGE", keys.delayed, 0, limit - 1, "WITHSCORES")
        flat = self.call(keys.stream, listing, "listing delayed messages")
        if not flat:
            return ()
        records = self.call(keys.stream, ("HMGET", keys.delayed_messages, *flat[::2]), "listing delayed messages")
        return [
            Delayed(read_delayed(topic, record)[0], moment_at(float(score) / 1000))
            for record, score in zip(records, flat[1::2], strict=True)
            if record is not None
        ]

    def schedules(self) -> Sequence[ScheduleState]:
        """Return the schedules. See the seam."""
        states = []
        for key in sorted(self.known_schedules()):
            keys = self.keys(key.topic)
            with self._naming_conflicts({keys.schedules: "hash"}):
                state = self.call(keys.stream, ("HGET", keys.schedules, key.name), "listing schedules")
            if state is not None:
                last, _, paused, owner, spec = state.decode().split(" ", 4)
                last_tick = datetime.fromtimestamp(int(last) / 1000, UTC)
                states.append(ScheduleState(key, owner, spec, last_tick, paused == "1"))
        return states

    def known_schedules(self) -> dict[ScheduleKey, str]:
        """Return the schedules that are named, each with its owner."""
        index = schedules_key(self.options.namespace)
        flat = self.call(index, ("HGETALL", index), "looking for schedules")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {ScheduleKey(*name.decode().split(" ")): owner.decode() for name, owner in pairs}

    def pause_schedule(self, key: ScheduleKey, *, is_paused: bool) -> bool:
        """Pause a schedule, or let it go on. See the seam."""
        keys = self.keys(key.topic)
        command = script_call("pause_schedule", (keys.schedules,), key.name, int(is_paused))
        return bool(self.call(keys.stream, command, "pausing a schedule"))

    def remove_group(self, key: SubscriptionKey) -> None:
        """Delete a group. See the seam."""
        keys = self.keys(key.topic)
        present = self._living(key)
        if present is not None:
            raise ConsumersPresent(
                f"group {key.group!r} of topic {key.topic!r} is consumed, by {present!r}: stop its workers first"
            )
        try:
            self.call(keys.stream, ("XGROUP", "DESTROY", keys.stream, key.group), "removing a group")
        except BrokerError as error:
            if not is_missing_group(error.__cause__):
                raise
        self.call(
            keys.stream,
            ("HDEL", keys.floors, key.group, f"~times:{key.group}", f"~lost:{key.group}"),
            "removing a group",
        )
        self.pause_group(key, is_paused=False)
        self.call(keys.stream, ("DEL", *keys.of_group(key.group)), "removing a group")


def _facts(row: Sequence[Any]) -> dict[bytes, Any]:
    """Return a row of XINFO by the names of its fields."""
    return dict(zip(row[::2], row[1::2], strict=True))


def _place_before(to: Start | str) -> str:
    """Return the entry id behind which a group reads on."""
    if isinstance(to, str) and to not in ("earliest", "latest"):
        if not _ENTRY_ID.fullmatch(to):
            raise BrokerError(
                f"{to!r} is no position of a message: it is two numbers, as in 1700000000000-0. "
                "Or use 'earliest', 'latest', or a moment"
            )
        milliseconds, number = place_of(to)
        return f"{milliseconds}-{number - 1}" if number else f"{max(0, milliseconds - 1)}-{2**64 - 1}"
    return start_id(to)


def _published(topic: str, entry_id: bytes, values: list[bytes]) -> Message[bytes]:
    return replace(read_entry(topic, "", entry_id, values, 1), group=None)


def _consumer(name: str, key: SubscriptionKey, in_hand: int, sign: bytes | None) -> ConsumerState:
    about: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a sign that is not ours
        about = dict(json.loads(sign or b"{}"))
    since = about.get("since")
    return ConsumerState(
        name,
        key,
        in_hand,
        sign is not None,
        about.get("host"),
        about.get("pid"),
        about.get("version"),
        None if since is None else datetime.fromtimestamp(since, UTC),
    )
