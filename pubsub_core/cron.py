"""When a schedule ticks: cron expressions in local time, and plain intervals. Pure: the time comes in as an argument.

croniter expands the fields; the calendar and the clock changes are ours. Local times are whole seconds here, counted
as if the local clock had shown UTC since 1970, so that dates and times of the day are two divisions away.
"""

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo

from pubsub_core.errors import ConfigurationError
from pubsub_core.names import did_you_mean

_DAY = 86_400
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # local: the zone is put on it where it is read
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_LAST_YEAR = 9999

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

# Whether a spec fires at all is asked from here on, so that the answer is the same every day.
_PROBE = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
# A wildcard time that falls into this many clock changes in a row falls into every one.
_GAPS_IN_A_ROW = 500

# Multiples of less could be equal as floats; those of more could be later than any date.
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.001, 1e10


@dataclass(frozen=True, slots=True)
class CronSpec:
    """A cron expression, read on the clocks of a time zone.

    `expression` has five fields (minute hour day month weekday), or six with seconds first, or is one of `@hourly`,
    `@daily` (`@midnight`), `@weekly`, `@monthly`, `@yearly` (`@annually`). A field is a list of values, ranges (`1-5`;
    `FRI-MON` goes over the end) and steps (`*/5`, `10-50/10`, `10/15`). Months and weekdays have names; weekdays count
    from 0 or 7 = Sunday. `L` is the last day of the month, `L5` its last Friday, `MON#2` its second Monday. What has
    two readings, among cron programs or versions of croniter, is refused with the way to write what is meant.

    If the day or the weekday begins with `*`, both must fit; otherwise either is enough (Vixie's rule).

    `tz` is the IANA name of a time zone. Where its clocks change, Debian's rule decides:

    - Neither minute nor hour begins with `*`: the times are fixed. One that the clocks skip fires at the first instant
      after the gap, once, however many were skipped. One that they show twice fires the first time.
    - Minute or hour begins with `*`: the pace is kept. It fires at every instant whose local time fits: in both
      passes of a repeated hour, and not for times that no clock shows.
    """

    expression: str
    tz: str = "UTC"
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    _plan: "_Plan" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be read, has two readings, or never comes (30 February)."""
        set_once = object.__setattr__
        set_once(self, "_zone", _zone(self.tz))
        set_once(self, "_plan", _plan(self.expression))
        try:
            self.next_after(_PROBE)
        except _NeverFiresError:
            raise _cannot_be(
                self.expression, f"it never fires: in {self.tz} the clocks skip that time whenever it comes"
            ) from None

    def next_after(self, moment: float) -> float:
        """Return the first tick after `moment`, never `moment` itself. Both are seconds since 1970."""
        now = math.floor(moment)
        return float(self._next_fixed(now) if self._plan.is_fixed else self._next_paced(now))

    def latest_until(self, moment: float) -> float:
        """Return the last tick at or before `moment`. Both are seconds since 1970."""
        now = math.floor(moment)
        return float(self._latest_fixed(now) if self._plan.is_fixed else self._latest_paced(now))

    @property
    def key(self) -> str:
        """A text that tells schedules apart, now and in later versions. Aliases, case and spaces make no difference."""
        return f"cron {' '.join(self._plan.fields)} {self.tz}"

    def __str__(self) -> str:
        """As it was written, with its zone."""
        return f"{' '.join(self.expression.split())} {self.tz}"

    # Fixed times. `_instant` never falls while local times rise, so the first local time after now has the next tick.

    def _next_fixed(self, now: int) -> int:
        return self._instant(self._plan.first_after(self._shown_until(now)))

    def _latest_fixed(self, now: int) -> int:
        return self._instant(self._plan.last_until(self._shown_until(now)))

    def _shown_until(self, now: int) -> int:
        """Return the latest local time that clocks have shown: all of a repeated stretch, once they are back in it."""
        local, is_repeated = self._read(now)
        return self._change(local).until - 1 if is_repeated else local

    def _instant(self, local: int) -> int:
        """When a fixed local time has its tick: the first time that clocks show it, or when they have skipped it."""
        before, after = self._offsets(local)
        return self._change(local).at if before < after else local - before

    # Kept pace. A clock change is one of two things on the way: a gap, or a stretch of local times to walk twice.

    def _next_paced(self, now: int) -> int:
        local, is_repeated = self._read(now)
        found = self._plan.first_after(local)
        before, after = self._offsets(local)
        if before > after:
            change = self._change(local)
            if not is_repeated and found >= change.until:
                found = self._plan.first_after(change.since - 1)
                is_repeated = True
            if is_repeated and found < change.until:
                return found - after
        for _ in range(_GAPS_IN_A_ROW):
            before, after = self._offsets(found)
            if before >= after:
                return found - before
            found = self._plan.first_after(self._change(found).until - 1)
        raise _NeverFiresError

    def _latest_paced(self, now: int) -> int:
        local, is_repeated = self._read(now)
        found = self._plan.last_until(local)
        before, after = self._offsets(local)
        if before > after:
            change = self._change(local)
            if is_repeated and found < change.since:
                found = self._plan.last_until(change.until - 1)
                is_repeated = False
            if found >= change.since:
                return found - (after if is_repeated else before)
        for _ in range(_GAPS_IN_A_ROW):
            before, after = self._offsets(found)
            if before >= after:
                return found - after
            found = self._plan.last_until(self._change(found).since - 1)
        raise _NeverFiresError

    # The zone.

    def _read(self, instant: int) -> tuple[int, bool]:
        """Return what the local clock shows, and whether it shows that for the second time."""
        moment = datetime.fromtimestamp(instant, self._zone)
        return instant + _seconds(moment.utcoffset()), bool(moment.fold)

    def _offsets(self, local: int) -> tuple[int, int]:
        """Return the offsets from UTC before and after the change that `local` is in; without one they are equal.

        In a gap the first is the smaller one, in a stretch that is shown twice the greater one.
        """
        moment = (_EPOCH + timedelta(seconds=local)).replace(tzinfo=self._zone)
        return _seconds(moment.utcoffset()), _seconds(moment.replace(fold=1).utcoffset())

    def _change(self, local: int) -> "_Change":
        """Return the change that `local` is in."""
        offsets = self._offsets(local)
        early, late = local - max(offsets), local - min(offsets)
        while late - early > 1:
            middle = (early + late) // 2
            is_changed = _seconds(datetime.fromtimestamp(middle, self._zone).utcoffset()) == offsets[1]
            early, late = (early, middle) if is_changed else (middle, late)
        return _Change(late, late + min(offsets), late + max(offsets))


@dataclass(frozen=True, slots=True)
class EverySpec:
    """An interval of so many seconds. Ticks are its multiples since 1970, so all processes agree on them."""

    seconds: float

    def __post_init__(self) -> None:
        """Refuse what is no length of time."""
        is_number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not is_number or not _SHORTEST_INTERVAL <= self.seconds <= _LONGEST_INTERVAL:
            raise ConfigurationError(
                f"an interval of {self.seconds!r} s cannot be: it is a number of seconds from {_SHORTEST_INTERVAL:g} "
                f"to {_LONGEST_INTERVAL:g}"
            )
        object.__setattr__(self, "seconds", float(self.seconds))

    def next_after(self, moment: float) -> float:
        """Return the first tick after `moment`, never `moment` itself. Both are seconds since 1970."""
        return (self._count(moment) + 1) * self.seconds

    def latest_until(self, moment: float) -> float:
        """Return the last tick at or before `moment`. Both are seconds since 1970."""
        return self._count(moment) * self.seconds

    def _count(self, moment: float) -> int:
        """Return how many intervals have passed. The product decides: the quotient may be rounded over a tick."""
        count = math.floor(moment / self.seconds)
        while count * self.seconds > moment:
            count -= 1
        while (count + 1) * self.seconds <= moment:
            count += 1
        return count

    @property
    def key(self) -> str:
        """A text that tells schedules apart, now and in later versions."""
        return f"every {self.seconds!r}"

    def __str__(self) -> str:
        """Short, in seconds."""
        return f"every {int(self.seconds) if self.seconds.is_integer() else self.seconds} s"


Spec = CronSpec | EverySpec


def next_tick(key: str, moment: datetime) -> datetime | None:
    """Return the first tick after `moment` of the schedule that says `key` of itself, as `ScheduleState.spec` does.

    None if that cannot be read, as a later version wrote it.
    """
    kind, _, rest = key.partition(" ")
    expression, _, zone = rest.rpartition(" ")
    try:
        spec = EverySpec(float(rest)) if kind == "every" else CronSpec(expression, zone)
    except ValueError:
        return None
    return datetime.fromtimestamp(spec.next_after(moment.timestamp()), UTC)


class _NeverFiresError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of the local clocks `at` an instant: it skips, or shows twice, the local times `since` ≤ t < `until`."""

    at: int
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class _Times:
    """Times of the day, as seconds since midnight: every combination of these hours, minutes and seconds."""

    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]

    def first(self) -> int:
        return self.hours[0] * 3600 + self.minutes[0] * 60 + self.seconds[0]

    def first_from(self, time: int) -> int | None:
        hour, rest = divmod(time, 3600)
        minute, second = divmod(rest, 60)
        at_hour = bisect_left(self.hours, hour)
        if at_hour < len(self.hours) and self.hours[at_hour] == hour:
            at_minute = bisect_left(self.minutes, minute)
            if at_minute < len(self.minutes) and self.minutes[at_minute] == minute:
                at_second = bisect_left(self.seconds, second)
                if at_second < len(self.seconds):
                    return hour * 3600 + minute * 60 + self.seconds[at_second]
                at_minute += 1
            if at_minute < len(self.minutes):
                return hour * 3600 + self.minutes[at_minute] * 60 + self.seconds[0]
            at_hour += 1
        if at_hour < len(self.hours):
            return self.hours[at_hour] * 3600 + self.minutes[0] * 60 + self.seconds[0]
        return None

    def mirrored(self) -> "_Times":
        """The same times counted back from the end of the day, where the last one is the first."""
        return _Times(
            hours=tuple(23 - hour for hour in reversed(self.hours)),
            minutes=tuple(59 - minute for minute in reversed(self.minutes)),
            seconds=tuple(59 - second for second in reversed(self.seconds)),
        )


# The days of a month that fit depend on two things only: its length, and the weekday (0 = Sunday) of its first.
_Days = dict[tuple[int, int], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """An expression, ready to be walked along local times, on which it knows no zone and no clock change."""

    fields: tuple[str, ...]
    times: _Times
    times_back: _Times
    months: frozenset[int]
    days: _Days
    is_fixed: bool

    def first_after(self, local: int) -> int:
        day, time = divmod(local + 1, _DAY)
        first = self._first_day_from(day)
        found = self.times.first_from(time) if first == day else None
        if found is None:
            if first == day:
                first = self._first_day_from(day + 1)
            found = self.times.first()
        return first * _DAY + found

    def last_until(self, local: int) -> int:
        day, time = divmod(local, _DAY)
        last = self._last_day_until(day)
        found = self.times_back.first_from(_DAY - 1 - time) if last == day else None
        if found is None:
            if last == day:
                last = self._last_day_until(day - 1)
            found = self.times_back.first()
        return last * _DAY + _DAY - 1 - found

    def _first_day_from(self, day: int) -> int:
        start = date.fromordinal(_EPOCH_DAY + day)
        year, month, earliest = start.year, start.month, start.day
        while year <= _LAST_YEAR:
            if month in self.months:
                first, days = self._month(year, month)
                at = bisect_left(days, earliest)
                if at < len(days):
                    return first + days[at] - 1
            earliest = 1
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        raise _NeverFiresError

    def _last_day_until(self, day: int) -> int:
        start = date.fromordinal(_EPOCH_DAY + day)
        year, month, latest = start.year, start.month, start.day
        while year > 0:
            if month in self.months:
                first, days = self._month(year, month)
                at = bisect_right(days, latest)
                if at:
                    return first + days[at - 1] - 1
            latest = 31
            year, month = (year, month - 1) if month > 1 else (year - 1, 12)
        raise _NeverFiresError

    def _month(self, year: int, month: int) -> tuple[int, tuple[int, ...]]:
        """Return the day of its first, and its days that fit."""
        first = date(year, month, 1).toordinal()
        return first - _EPOCH_DAY, self.days[_length(year, month), first % 7]


def _length(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _seconds(offset: timedelta | None) -> int:
    # Every zone has an offset; the type is that of a datetime which may have no zone.
    return offset.days * _DAY + offset.seconds if offset is not None else 0


# Reading a zone.

# Files beside the zones: a machine's own time, and zones with leap seconds, which no clock here counts.
_LOCAL = ("localtime", "posixrules")
_VARIANTS = ("posix/", "right/")


def _zone(name: object) -> tzinfo:
    if name == "UTC":  # It needs no database.
        return UTC
    if not isinstance(name, str):
        raise ConfigurationError(f"tz={name!r}: a time zone is given by its name, such as 'Europe/Berlin'")
    zone = _find_zone(name)
    if zone is not None:
        return zone
    from zoneinfo import available_timezones

    known = available_timezones().difference(_LOCAL)
    if not known:
        raise ConfigurationError(
            f"tz={name!r}: there is no time zone database on this machine; install one: pip install tzdata"
        )
    raise ConfigurationError(
        f"tz={name!r} is not a time zone of the IANA database, such as 'Europe/Berlin'.{did_you_mean(name, known)}"
    )


def _find_zone(name: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo

    if name in _LOCAL or name.startswith(_VARIANTS):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # Not there, no name of a file, or a directory.
        return None


# Reading an expression.


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    lowest: int
    highest: int
    rule: str
    names: tuple[str, ...] = ()


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS = (
    _Field("second", 0, 59, "seconds are 0 to 59"),
    _Field("minute", 0, 59, "minutes are 0 to 59"),
    _Field("hour", 0, 23, "hours are 0 to 23"),
    _Field("day", 1, 31, "days are 1 to 31, or L for the last"),
    _Field("month", 1, 12, "months are 1 to 12, or JAN to DEC", _MONTHS),
    _Field("weekday", 0, 7, "weekdays are 0 (Sunday) to 7 (Sunday), or SUN to SAT", _WEEKDAYS),
)
_PART = re.compile(r"(?:\*|(?P<low>[0-9A-Z]+)(?:-(?P<high>[0-9A-Z]+))?)(?:/(?P<step>[0-9]{1,4}))?")
_NTH = re.compile(r"L(?P<last>[0-9])|(?P<weekday>[0-9A-Z]+)#[1-5]")


def _cannot_be(expression: object, why: str) -> ConfigurationError:
    return ConfigurationError(f"cron {expression!r} cannot be: {why}")


def _plan(expression: object) -> _Plan:
    fields = _split(expression)
    try:
        for kind, text in zip(_FIELDS, fields, strict=True):
            _check(kind, text)
    except ValueError as error:
        raise _cannot_be(expression, str(error)) from None
    (seconds, minutes, hours, days_of_month, months, weekdays), nth = _expand(expression, fields)
    times = _Times(hours=_whole(hours, 0, 23), minutes=_whole(minutes, 0, 59), seconds=_whole(seconds, 0, 59))
    months_of_year = frozenset(_whole(months, 1, 12))
    days = _days(months_of_year, days_of_month, weekdays, nth, is_both="*" in (fields[3][0], fields[5][0]))
    if not any(days.values()):
        raise _cannot_be(
            expression, f"it never fires: no date fits day {fields[3]}, month {fields[4]} and weekday {fields[5]}"
        )
    is_fixed = "*" not in (fields[1][0], fields[2][0])
    return _Plan(fields, times, times.mirrored(), months_of_year, days, is_fixed)


def _split(expression: object) -> tuple[str, ...]:
    """Return six fields in capitals."""
    if not isinstance(expression, str):
        raise _cannot_be(expression, "an expression is a string, such as '*/5 * * * *'")
    text = expression.strip().lower()
    if text.startswith("@"):
        if text not in _ALIASES:
            raise _cannot_be(
                expression, f"known are {', '.join(sorted(_ALIASES))}, and fields.{did_you_mean(text, _ALIASES)}"
            )
        text = _ALIASES[text]
    fields = text.upper().split()
    if len(fields) not in (5, 6):
        raise ConfigurationError(
            f"cron {expression!r} has {len(fields)} fields: use five (minute hour day month weekday), "
            "or six with seconds first"
        )
    return tuple(fields) if len(fields) == 6 else ("0", *fields)


def _check(kind: _Field, text: str) -> None:
    """Raise ValueError for what is wrong, and for what croniter reads otherwise than others, or than it did before."""
    parts = text.split(",")
    if kind.name == "weekday" and any("#" in part or "L" in part for part in parts):
        for part in parts:
            _check_nth(kind, part)
        return
    for part in parts:
        if part == "L" and kind.name == "day":
            continue
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{kind.name} {part!r} is no value, range (1-5), step (*/5, 10-50/10), or * for any")
        low, high, step = match["low"], match["high"], match["step"]
        if high is not None:
            _check_range(kind, part, _number(kind, low), _number(kind, high), step)
        elif low is not None:
            _check_value(kind, part, _number(kind, low), step)
        elif step is not None:
            _check_step(kind, part, kind.highest - kind.lowest, step)


def _check_nth(kind: _Field, part: str) -> None:
    match = _NTH.fullmatch(part)
    if match is None:
        raise ValueError(
            f"weekday {part!r}: use L5 for the last Friday of the month, MON#2 for its second Monday, "
            "and in one list only such, or none"
        )
    _number(kind, match["last"] or match["weekday"])


def _check_range(kind: _Field, part: str, low: int, high: int, step: str | None) -> None:
    length = (high - low) % 7 if kind.name == "weekday" and low > high else high - low
    if length == 0:
        # croniter takes it for the whole field, others for one value.
        raise ValueError(f"{kind.name} {part!r} is a range from a value to itself: write the value alone, or *")
    if low > high and step is not None:
        # croniter loses count where the range goes over the end.
        raise ValueError(f"{kind.name} {part!r} goes over the end of its range in steps: write it as two ranges")
    if step is not None:
        _check_step(kind, part, length, step)


def _check_value(kind: _Field, part: str, low: int, step: str | None) -> None:
    if step is None:
        return
    if kind.name == "weekday":
        # It ends on Saturday for croniter, on Sunday for others.
        raise ValueError(f"weekday {part!r} has no end: write it as a range, such as 1-5/2")
    _check_step(kind, part, kind.highest - low, step)


def _check_step(kind: _Field, part: str, length: int, step: str) -> None:
    # One value is hardly what a step is meant to give (*/90), and croniter 6 takes 59/15 for */15.
    if not 1 <= int(step) <= (min(length, 6) if kind.name == "weekday" else length):
        raise ValueError(f"{kind.name} {part!r}: a step of {step} reaches no second value; write what it shall fire at")


def _number(kind: _Field, text: str) -> int:
    if text in kind.names:
        return kind.names.index(text) + (kind.lowest if kind.name == "month" else 0)
    if text.isdigit() and len(text) <= 4 and kind.lowest <= int(text) <= kind.highest:
        return int(text)
    raise ValueError(f"{kind.name} {text!r}: {kind.rule}.{did_you_mean(text, kind.names)}")


_Values = list[int | str]
_Nth = dict[int, set[int | str]]


def _expand(expression: object, fields: tuple[str, ...]) -> tuple[list[_Values], _Nth]:
    """Have croniter say which values the fields stand for; "*" is all of them, "l" the last.

    It is asked for five fields at a time, seconds as if they were minutes: with six, croniter 6 knows no weekday 7.
    """
    from croniter import croniter

    try:
        (seconds, *_), _ = croniter.expand(f"{fields[0]} * * * *")
        others, nth = croniter.expand(" ".join(fields[1:]))
    except (ValueError, KeyError) as error:
        raise _cannot_be(expression, str(error)) from error
    return [seconds, *others], nth


def _whole(values: _Values, lowest: int, highest: int) -> tuple[int, ...]:
    if "*" in values:
        return tuple(range(lowest, highest + 1))
    return tuple(sorted(value for value in values if isinstance(value, int)))


def _days(months: frozenset[int], days_of_month: _Values, weekdays: _Values, nth: _Nth, *, is_both: bool) -> _Days:
    numbers = set(_whole(days_of_month, 1, 31))
    weekday_numbers = set(_whole(weekdays, 0, 6))

    def fits(day: int, length: int, weekday: int) -> bool:
        by_day = day in numbers or ("l" in days_of_month and day == length)
        by_weekday = weekday in weekday_numbers
        if weekday in nth:
            by_weekday = (day + 6) // 7 in nth[weekday] or ("l" in nth[weekday] and day + 7 > length)
        return (by_day and by_weekday) if is_both else (by_day or by_weekday)

    lengths = {_length(year, month) for month in months for year in (2000, 2001)}
    return {
        (length, first): tuple(day for day in range(1, length + 1) if fits(day, length, (first + day - 1) % 7))
        for length in lengths
        for first in range(7)
    }
