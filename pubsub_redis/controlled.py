"""The Redis broker as tests want it: on a real server, and by the clock of the test.

See `pubsub_core.testing.controlled`. The scripts are those of production, but for two things that they ask of the
server: what time it is, and an id for a new entry. Both are given by the test's clock, as one more argument, so that
due times, ticks, retention and the ids of entries are those of `memory://`, whatever the time is on the server. Only
signs of life go by the server's own time. What is stored has keys of the test's namespace, each of which is noted, so
that `erase` deletes them without looking for them.
"""

import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pubsub_core.broker import BrokerOptions, Consumer, Membership
from pubsub_core.clock import MovableClock
from pubsub_core.errors import BrokerError
from pubsub_core.message import Delivery, Message, SubscriptionKey
from pubsub_redis.broker import RedisBroker
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.faults import is_missing_group
from pubsub_redis.keys import worker_key
from pubsub_redis.link import SCRIPTS, Command, Link, script, sha_of
from pubsub_redis.servers import Node, Servers

# The clock's time comes as the last argument, and is taken away before the script looks at its arguments.
_PRELUDE = """local tested_ms = tonumber(table.remove(ARGV))
local tested_time = {math.floor(tested_ms / 1000), tested_ms % 1000 * 1000}
local tested_id = string.format('%.0f-*', tested_ms)
"""
_ADD = re.compile(r"('XADD', [^,]+, )'\*'")


class ControlledRedisBroker(RedisBroker):
    """Goes by the clock of its options, loses consumers at once, and erases what it stored."""

    def __init__(self, servers: Servers, options: BrokerOptions, shown_url: str) -> None:
        super().__init__(servers, options, shown_url)
        self._seen: set[str] = set()
        self._expiring: set[str] = set()
        self._moved_at = options.clock.time()
        if isinstance(options.clock, MovableClock):
            options.clock.on_move(self._age)

    def time(self) -> float:
        """Return the time of the clock."""
        return self.options.clock.time()

    def new_link(self, node: Node) -> Link:
        """Return a connection on which the clock's time is told."""
        return _ControlledLink(self.servers.connection(node), self)

    def _is_plain(self, messages: Sequence[Message[bytes]]) -> bool:
        """Return False: what is packed at once would not be told the clock's time."""
        return False

    def consumer(self, memberships: Sequence[Membership], name: str) -> RedisConsumer:
        """Return a consumer that looks for what is due at every `receive`."""
        return _ControlledConsumer(self, memberships, name)

    def lose(self, consumer: Consumer) -> None:
        """Have the consumer's deliveries taken over, as those of a process that gave no sign of life any more."""
        assert isinstance(consumer, _ControlledConsumer)  # noqa: S101  # this made it
        consumer.vanish()

    def erase(self) -> None:
        """Delete every key that was used here."""
        for key in sorted(self._seen):
            self.call(key, ("DEL", key), "erasing what a test stored")
        self._seen.clear()
        self._expiring.clear()

    def _age(self) -> None:
        """Let what the server itself forgets after a while come nearer to that by what the clock was moved."""
        now = self.time()
        moved, self._moved_at = round((now - self._moved_at) * 1000), now
        for key in sorted(self._expiring):
            left = self.call(key, ("PTTL", key), "moving the clock on")
            if left > moved:
                self.call(key, ("PEXPIRE", key, left - moved), "moving the clock on")
            elif left >= 0:
                self.call(key, ("DEL", key), "moving the clock on")

    def controlled(self, command: Command) -> Command:
        """Return what is sent instead of a command; take note of its keys."""
        name = command[0]
        now = str(round(self.time() * 1000))
        if name in ("EVALSHA", "EVAL"):
            count = int(command[2])
            keys = [str(key) for key in command[3 : 3 + count]]
            self._note(keys)
            source, sha = _controlled_scripts()[str(command[1])]
            if source == _controlled("add")[0]:
                self._expiring.update(keys[5:])  # its dedup keys
            return (name, sha if name == "EVALSHA" else source, *command[2:], now)
        if len(command) > 1:
            self._note([str(command[1])])
        if name == "XADD" and command[2] == "*":
            return (*command[:2], f"{now}-*", *command[3:])
        return command

    def _note(self, keys: Sequence[str]) -> None:
        self._seen.update(key for key in keys if key.startswith(f"{self.options.namespace}:"))


class _ControlledLink(Link):
    def __init__(self, connection: Any, broker: ControlledRedisBroker) -> None:
        super().__init__(connection)
        self._broker = broker

    def send(self, commands: Sequence[Command]) -> None:
        super().send([self._broker.controlled(one) for one in commands])


class _ControlledConsumer(RedisConsumer):
    def receive(
        self, credit: Mapping[SubscriptionKey, int], wait: float, done: Sequence[Delivery[bytes]] = ()
    ) -> list[Delivery[bytes]]:
        for group in self._groups.values():
            group.due_at = group.suspects_at = 0.0  # they are of this machine's clock
        self._quiet_until = 0.0
        if self._was_certain and time.monotonic() - self.sign.given_at > self._heartbeat:
            self.sign.give()  # a test may have stood still, in a debugger
        return super().receive(credit, wait, done)

    def vanish(self) -> None:
        """End without a word, and have what was in hand taken over."""
        sign = worker_key(self._namespace, self._name)
        self._broker.call(sign, ("DEL", sign), "losing a consumer")
        for key, group in self._groups.items():
            if group.was_made:
                try:
                    self._upkeep.take_over(key, self._name.encode())
                except BrokerError as error:
                    if not is_missing_group(error.__cause__):
                        raise
                group.was_made = False
                group.held.clear()
        self.sign.was_given = False
        self.close()


@cache
def _controlled(name: str) -> tuple[str, str]:
    """Return the source of a script that goes by the clock of a test, and its SHA-1."""
    source = _ADD.sub(r"\1tested_id", script(name)[0].replace("redis.call('TIME')", "tested_time"))
    return _PRELUDE + source, sha_of(_PRELUDE + source)


@cache
def _controlled_scripts() -> dict[str, tuple[str, str]]:
    """Return them by the source, and by the SHA-1, of those in production."""
    return {known: _controlled(name) for name in SCRIPTS for known in script(name)}
