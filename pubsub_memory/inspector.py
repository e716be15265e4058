"""What of the memory broker may be looked at, and mended, from outside: its `Inspector`."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from heapq import nsmallest
from itertools import islice

from pubsub_core.broker import USUAL, BrokerOptions, DeadLetter, Delayed, GroupState, ScheduleKey, ScheduleState
from pubsub_core.errors import ConsumersPresent
from pubsub_core.message import SubscriptionKey
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

    def groups(self, topic: str) -> Sequence[GroupState]:
        """Return how the groups stand. See the seam."""
        with self._store.lock:
            log = self._store.logs.get(self._stream(topic))
            groups = [log.groups[name] for name in sorted(log.groups)] if log else []
            dropped = log.dropped if log else 0
            return [one.state(len(self._store.consumers_of(one)), dropped) for one in groups]

    def delayed(self, topic: str, limit: int = 100) -> Sequence[Delayed]:
        """Return what is not due yet. See the seam."""
        with self._store.lock:
            first = nsmallest(max(limit, 0), self._log(topic).delayed.values(), key=lambda one: (one[0], one[1].id))
            return [Delayed(message, datetime.fromtimestamp(due, UTC)) for due, message, _ in first]

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

    def _group(self, key: SubscriptionKey) -> Group | None:
        log = self._store.logs.get(self._stream(key.topic))
        return log.groups.get(key.group) if log else None

    def _stream(self, topic: str) -> str:
        return self._options.topics.get(topic, USUAL).stream or f"{self._options.namespace}:{topic}"

    def _log(self, topic: str) -> Log:
        return self._store.log(self._stream(topic))


def _is_before(letter: DeadLetter, position: str | None) -> bool:
    return position is None or int(letter.position) < int(position)
