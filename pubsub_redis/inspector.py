"""What of Redis may be looked at, and mended, from outside: the `Inspector` of a RedisBroker."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pubsub_core.broker import BrokerOptions, DeadLetter, Delayed, GroupState, ScheduleKey, ScheduleState
from pubsub_core.errors import BrokerError, ConsumersPresent
from pubsub_core.message import SubscriptionKey
from pubsub_redis.entry import entry_fields, read_delayed, read_letter, stored_at
from pubsub_redis.faults import is_missing_group
from pubsub_redis.keys import PARKED, TopicKeys, worker_key
from pubsub_redis.link import Command, script_call

_LETTERS = 100  # in one script call, or command


class RedisInspector:
    """The part of a broker that looks. It asks by the means of the other part."""

    options: BrokerOptions

    if TYPE_CHECKING:

        def keys(self, topic: str) -> TopicKeys:
            """Return the keys of a topic."""

        def call(self, stream: str, command: Command, what: str) -> Any:
            """Run a command on the node that keeps `stream`. Raises our errors."""

        def call_all(self, stream: str, commands: Sequence[Command], what: str) -> list[Any]:
            """Run commands, all in one go. Raises the first error."""

        def known_schedules(self) -> dict[ScheduleKey, str]:
            """Return the schedules that are named, each with its owner."""

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
                    arguments += [letter.position, *entry_fields(letter.message, only=key.group)]
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
            Delayed(read_delayed(topic, record)[0], datetime.fromtimestamp(float(score) / 1000, UTC))
            for record, score in zip(records, flat[1::2], strict=True)
            if record is not None
        ]

    def schedules(self) -> Sequence[ScheduleState]:
        """Return the schedules. See the seam."""
        states = []
        for key in sorted(self.known_schedules()):
            keys = self.keys(key.topic)
            state = self.call(keys.stream, ("HGET", keys.schedules, key.name), "listing schedules")
            if state is not None:
                last, _, paused, owner, spec = state.decode().split(" ", 4)
                last_tick = datetime.fromtimestamp(int(last) / 1000, UTC)
                states.append(ScheduleState(key, owner, spec, last_tick, paused == "1"))
        return states

    def pause_schedule(self, key: ScheduleKey, *, is_paused: bool) -> bool:
        """Pause a schedule, or let it go on. See the seam."""
        keys = self.keys(key.topic)
        command = script_call("pause_schedule", (keys.schedules,), key.name, int(is_paused))
        return bool(self.call(keys.stream, command, "pausing a schedule"))

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
