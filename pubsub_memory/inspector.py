"""What of the memory broker may be looked at, and mended, from outside: its `Inspector`."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from heapq import nsmallest
from itertools import islice
from typing import cast

from pubsub_core.broker import (
    USUAL,
    BrokerOptions,
    ConsumerState,
    DeadLetter,
    Delayed,
    Found,
    GroupState,
    InHand,
    ScheduleKey,
    ScheduleState,
    Start,
    TopicState,
)
from pubsub_core.clock import moment_at
from pubsub_core.errors import BrokerError, ConsumersPresent
from pubsub_core.message import Message, SubscriptionKey
from pubsub_memory.store import Group, Log, Planned, Store


class MemoryInspector:
    """The part of a broker that looks."""

    _store: Store
    _options: BrokerOptions
    _schedules: dict[ScheduleKey, Planned]

    def dead_letters(
        self, key: SubscriptionKey, limit: int = 100, *, before: str | None = None
    ) -> Sequence[DeadLetter]:
        """Return the newest dead letters. See the seam."""
        with self._store.lock:
            group = self._group(key)
            letters = reversed(group.dead) if group else iter(())
            return list(islice((one for one in letters if _is_before(one, before)), max(limit, 0)))

    def replay(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Deliver dead letters to their group again. See the seam."""
        with self._store.lock:
            letters = self._remove_letters(key, positions)
            for letter in letters:
                self._log(key.topic).groups[key.group].replay(letter)
            self._store.ring()
            return len(letters)

    def discard(self, key: SubscriptionKey, positions: Sequence[str]) -> int:
        """Delete dead letters. See the seam."""
        with self._store.lock:
            return len(self._remove_letters(key, positions))

    def _remove_letters(self, key: SubscriptionKey, positions: Sequence[str]) -> list[DeadLetter]:
        group, chosen = self._group(key), set(positions)
        if group is None:
            return []
        removed = [one for one in group.dead if one.position in chosen]
        group.dead = [one for one in group.dead if one.position not in chosen]
        return removed

    def topics(self) -> Sequence[str]:
        """Return the topics that groups, messages or schedules are known of. See the seam."""
        with self._store.lock:
            named = {topic for topic, log in self._logs() if log.groups or log.end > 1 or log.delayed}
            return sorted(named | {key.topic for key in self._schedules})

    def _logs(self) -> list[tuple[str, Log]]:
        """Return the logs of the namespace, each by its topic."""
        prefix = f"{self._options.namespace}:"
        others = {one.stream: topic for topic, one in self._options.topics.items() if one.stream is not None}
        named = [(others.get(name), name, log) for name, log in self._store.logs.items()]
        return [
            (other or name.removeprefix(prefix), log)
            for other, name, log in named
            if other is not None or name.startswith(prefix)
        ]

    def topic(self, topic: str) -> TopicState:
        """Return how a topic stands. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic)) or Log()
            ends = [log.entries[number][0] for number in range(log.first, log.end)[:: max(1, log.end - log.first - 1)]]
            moments = [datetime.fromtimestamp(moment, UTC) for moment in ends]
            return TopicState(
                topic,
                log.end - log.first,
                moments[0] if moments else None,
                moments[-1] if moments else None,
                len(log.groups),
                len(log.delayed),
                log.dropped,
                None,
            )

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return how the groups stand. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic))
            groups = [log.groups[name] for name in sorted(log.groups)] if log else []
            dropped = log.dropped if log else 0
            return [one.state(len(self._store.consumers_of(one)), dropped) for one in groups]

    def consumers(
        self, key: SubscriptionKey, limit: int = 1000, *, after: str | None = None
    ) -> Sequence[ConsumerState]:
        """Return the consumers of a group. See the seam."""
        with self._store.lock:
            group = self._group(key)
            if group is None:
                return []
            states = [
                owner.about(group, sum(holder is owner for holder, _, _ in group.held.values()))
                for owner in self._store.consumers_of(group)
                if after is None or owner.name > after
            ]
            return sorted(states, key=lambda one: one.name)[: max(limit, 0)]

    def in_hand(self, key: SubscriptionKey, consumer: str, limit: int = 100) -> Sequence[InHand]:
        """Return what a consumer has in hand. See the seam."""
        with self._store.lock:
            group = self._group(key)
            now = self._options.clock.time()
            held = group.held.items() if group else ()
            mine = [(int(position), one, since) for position, (owner, one, since) in held if owner.name == consumer]
            mine.sort(key=lambda one: one[0])
            return [
                InHand(key, consumer, str(number), one.message.id, one.message.attempt, now - since)
                for number, one, since in mine[: max(limit, 0)]
            ]

    def peek(self, topic: str, limit: int = 100, *, after: str | datetime | None = None) -> Sequence[Message[bytes]]:
        """Return messages of a topic. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic)) or Log()
            if after is None:
                first = max(log.first, log.end - max(limit, 0))
            elif isinstance(after, datetime):
                first = log.number_of(after)
            else:
                first = max(log.first, int(after) + 1)
            numbers = range(first, min(log.end, first + max(limit, 0)))
            return [replace(log.entries[number][1], position=str(number)) for number in numbers]

    def find(self, topic: str, message_id: str) -> Found | None:
        """Return a message, and how it stands. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic)) or Log()
            if message_id in log.delayed:
                due, message, _ = log.delayed[message_id]
                return Found(message, due_at=moment_at(due))
            groups = [log.groups[name] for name in sorted(log.groups)]
            for number, (_, message) in log.entries.items():
                if message_id in (message.id, str(number)):
                    standings = [one.standing(number, message.id) for one in groups]
                    return Found(replace(message, position=str(number)), standings)
            for letter in [letter for group in groups for letter in group.dead if letter.message.id == message_id]:
                number = int(str(letter.message.position))
                standings = [one.standing(number, message_id) for one in groups]
                return Found(replace(letter.message, group=None, attempt=1), standings)
            return None

    def pause_group(self, key: SubscriptionKey, *, is_paused: bool) -> None:
        """Pause a group, or let it go on. See the seam."""
        with self._store.lock:
            paused = self._log(key.topic).paused
            if is_paused:
                paused.add(key.group)
            else:
                paused.discard(key.group)
            self._store.ring()

    def paused_groups(self) -> Sequence[SubscriptionKey]:
        """Return the groups that are paused. See the seam."""
        with self._store.lock:
            return sorted(SubscriptionKey(topic, name) for topic, log in self._logs() for name in log.paused)

    def seek(self, key: SubscriptionKey, to: Start | str, *, force: bool = False) -> None:
        """Have a group go on reading elsewhere. See the seam."""
        with self._store.lock:
            group = self._group(key)
            if group is None:
                raise BrokerError(
                    f"there is no group {key.group!r} of topic {key.topic!r}. A worker makes it when it starts"
                )
            log = group.log
            if isinstance(to, datetime) or to in ("earliest", "latest"):
                number = log.number_of(cast("Start", to))
            elif to.isdecimal():
                number = min(log.end, max(log.first, int(to)))
            else:
                raise BrokerError(
                    f"{to!r} is no position of a message: it is a number. Or use 'earliest', 'latest', or a moment"
                )
            if not force:
                self._check_at_rest(group, key, "moved")
            group.seek(number)
            self._store.ring()

    def _check_at_rest(self, group: Group, key: SubscriptionKey, what: str) -> None:
        present = self._store.consumers_of(group)
        if present and not group.is_paused:
            raise ConsumersPresent(
                f"group {key.group!r} of topic {key.topic!r} is consumed, by {present[0].name!r}, so it is not {what}: "
                "pause it, or stop its workers first"
            )

    def purge(self, topic: str, *, everything: bool = False, force: bool = False) -> int:
        """Delete messages. See the seam."""
        with self._store.lock:
            log = self._log(topic)
            for name, group in log.groups.items() if everything and not force else ():
                self._check_at_rest(group, SubscriptionKey(topic, name), "emptied")
            return log.purge(log.end if everything else log.first_unsettled())

    def delayed(self, topic: str, limit: int = 100) -> Sequence[Delayed]:
        """Return what is not due yet. See the seam."""
        with self._store.lock:
            first = nsmallest(max(limit, 0), self._log(topic).delayed.values(), key=lambda one: (one[0], one[1].id))
            return [Delayed(message, moment_at(due)) for due, message, _ in first]

    def schedules(self) -> Sequence[ScheduleState]:
        """Return the schedules. See the seam."""
        with self._store.lock:
            return [
                ScheduleState(key, one.owner, one.spec, datetime.fromtimestamp(one.last, UTC), one.is_paused)
                for key, one in sorted(self._schedules.items(), key=lambda item: item[0])
            ]

    def pause_schedule(self, key: ScheduleKey, *, is_paused: bool) -> bool:
        """Pause a schedule, or let it go on. See the seam."""
        with self._store.lock:
            known = self._schedules.get(key)
            if known is None:
                return False
            last = max(known.last, self._options.clock.time()) if known.is_paused and not is_paused else known.last
            self._schedules[key] = replace(known, last=last, is_paused=is_paused)
            return True

    def remove_group(self, key: SubscriptionKey) -> None:
        """Delete a group. See the seam."""
        with self._store.lock:
            group = self._group(key)
            if group is None:
                return
            present = self._store.consumers_of(group)
            if present:
                raise ConsumersPresent(
                    f"group {key.group!r} of topic {key.topic!r} is consumed, by {present[0].name!r}: stop it first"
                )
            del self._log(key.topic).groups[key.group]
            self._log(key.topic).paused.discard(key.group)

    def _group(self, key: SubscriptionKey) -> Group | None:
        log = self._store.logs.get(self._stream(key.topic))
        return log.groups.get(key.group) if log else None

    def _stream(self, topic: str) -> str:
        return self._options.topics.get(topic, USUAL).stream or f"{self._options.namespace}:{topic}"

    def _log(self, topic: str) -> Log:
        return self._store.log(self._stream(topic))


def _is_before(letter: DeadLetter, position: str | None) -> bool:
    return position is None or int(letter.position) < int(position)
