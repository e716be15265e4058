"""Schedules: recurring publishes. What they are, and which of their ticks are to be fired when."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from pubsub_core.broker import Broker, ScheduleKey
from pubsub_core.errors import BrokerError, ConfigurationError
from pubsub_core.message import Message
from pubsub_core.names import did_you_mean

if TYPE_CHECKING:
    from pubsub_core.cron import Spec

log = logging.getLogger("pubsub")

Missed = Literal["skip", "once", "all"]

MOST_MISSED = 1000
"""How many missed ticks are made up for, with `missed="all"`: the newest."""

_NAME_AGAIN = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring publish of `payload` to `topic`.

    A tick is missed when no worker was there to fire it: `missed` says whether such ticks are dropped, made up for by
    the last of them alone, or by all, `MOST_MISSED` at most.
    """

    name: str
    topic: str
    spec: "Spec"
    missed: Missed = "once"
    payload: Any = None

    @property
    def key(self) -> ScheduleKey:
        """What the broker knows it by."""
        return ScheduleKey(self.topic, self.name)


MakeMessage = Callable[[Schedule, float], Message[bytes] | None]
"""Makes the message of a tick; None if there is to be none."""


class Scheduler:
    """Fires the ticks of schedules, beside any number of others that do the same. For one thread at a time.

    `owner` is the application. Times are those of the broker's clock. Who looked at a schedule within `lease` seconds
    was there: its ticks since then are late at most, not missed. It fires for `at_once` seconds of each schedule in
    one call, the rest by the next: so one that has much to make up for does not hold up the others for long.
    """

    def __init__(
        self,
        schedules: Sequence[Schedule],
        broker: Broker,
        owner: str,
        make_message: MakeMessage,
        lease: float,
        *,
        note_fired: Callable[[Message[bytes]], None] = lambda _: None,
        at_once: float = math.inf,
    ) -> None:
        self._at_once = at_once
        self._note_fired = note_fired
        self._schedules = schedules
        self._broker = broker
        self._owner = owner
        self._make_message = make_message
        self._lease = lease
        self._seen: dict[ScheduleKey, float] = {}  # up to here every tick was fired, or passed over
        self._looked_at: dict[ScheduleKey, float] = {}  # when all that was due then was fired
        self._named_at: float | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Fire nothing more, not even what `run_due` is about to. From any thread."""
        self._is_stopped = True

    def run_due(self) -> float:
        """Fire what is due; return the seconds until the next tick, `inf` without a schedule. Blocks for the broker.

        Raises a BrokerError; what was not fired then is fired by the next call.
        """
        now = self._broker.time()
        absent = [one for one in self._schedules if self._was_away(one, now)]
        if absent or self._named_at is None:
            self._begin(absent, now)
        elif abs(now - self._named_at) >= _NAME_AGAIN and self._schedules:
            self._name(now, is_start=False)
        failure: BrokerError | None = None
        looked_at: list[ScheduleKey] = []
        for one in self._schedules:
            try:
                self._fire_until(one, now)
                looked_at.append(one.key)
            except BrokerError as error:
                failure = failure or error  # of a topic that is full, perhaps: the others go on
        # Not the time when it began: whoever was at it that long was there.
        self._looked_at |= dict.fromkeys(looked_at, self._broker.time())
        if failure is not None:
            raise failure
        next_at = min((one.spec.next_after(self._seen[one.key]) for one in self._schedules), default=math.inf)
        return max(0.0, next_at - self._broker.time())

    def _was_away(self, one: Schedule, now: float) -> bool:
        looked_at = self._looked_at.get(one.key)
        return looked_at is None or now - looked_at > self._lease

    def _begin(self, absent: Sequence[Schedule], now: float) -> None:
        """After a start, or an absence: find out which ticks were missed, and pass over those that shall be."""
        last_ticks = self._name(now, is_start=self._named_at is None)
        for one in absent:
            last = max(last_ticks[one.key], self._seen.get(one.key, 0.0))
            if one.spec.next_after(last) <= now:
                log.warning("schedule %s missed ticks: %s", one.name, _MADE_UP[one.missed])
            self._seen[one.key] = _seen_after_absence(one, last, now)
            self._looked_at[one.key] = now

    def _name(self, now: float, *, is_start: bool) -> Mapping[ScheduleKey, float]:
        specs = {one.key: one.spec.key for one in self._schedules}
        last_ticks = self._broker.join_schedules(self._owner, specs, is_start=is_start)
        self._named_at = now
        return last_ticks

    def _fire_until(self, one: Schedule, now: float) -> None:
        """Fire what was due by then, as far as there is time, but one at least."""
        until = monotonic() + self._at_once
        while not self._is_stopped and (tick := one.spec.next_after(self._seen[one.key])) <= now:
            message = self._message_of(one, tick)
            if message is not None:
                fired = self._broker.fire(one.key, one.spec.key, tick, message)
                if fired == "early":
                    return
                if fired == "fired":
                    self._note_fired(message)
                log.debug("schedule %s, tick %s: %s", one.name, tick, fired)
            self._seen[one.key] = tick
            if monotonic() >= until:
                return

    def _message_of(self, one: Schedule, tick: float) -> Message[bytes] | None:
        try:
            return self._make_message(one, tick)
        except Exception:  # the application's own: publish middleware
            log.exception("schedule %s: the message of the tick at %s could not be made", one.name, tick)
            return None


_MADE_UP: Mapping[Missed, str] = {
    "skip": "they are dropped",
    "once": "the last one is made up for",
    "all": f"they are made up for, the last {MOST_MISSED} at most",
}


def _seen_after_absence(schedule: Schedule, last: float, now: float) -> float:
    """Return up to where the ticks that were missed since `last` are passed over."""
    if schedule.missed == "skip":
        return max(last, now)
    most = 1 if schedule.missed == "once" else MOST_MISSED
    made_up = list(islice(takewhile(lambda tick: tick > last, _backwards(schedule.spec, now)), most))
    return _just_before(made_up[-1]) if made_up else last


def _backwards(spec: "Spec", moment: float) -> Iterator[float]:
    while True:
        moment = spec.latest_until(moment)
        yield moment
        moment = _just_before(moment)


def _just_before(moment: float) -> float:
    return moment - 0.0005  # ticks are told apart by milliseconds


_MISSED = ("skip", "once", "all")


def check_missed(missed: object) -> None:
    """Raise ConfigurationError if it does not say what becomes of missed ticks."""
    if missed not in _MISSED:
        raise ConfigurationError(
            f"missed={missed!r}.{did_you_mean(str(missed), _MISSED)} It is 'skip', 'once' or 'all'"
        )
