"""What all commands have in common: how they come to the application, what they answer with, and how they end."""

import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, TypeVar

import click

from pubsub_core.broker import Count, GroupState, Inspector, ListsPauses
from pubsub_core.commands import Door, Misused, json_option
from pubsub_core.errors import (
    BrokerUnavailable,
    CodecError,
    ConfigurationError,
    PubSubError,
    StreamConflict,
    ValidationError,
)
from pubsub_core.message import SubscriptionKey
from pubsub_core.names import did_you_mean
from pubsub_core.pubsub import PubSub
from pubsub_core.target import default_target

OK, REFUSED, UNREACHABLE, NOT_FOUND, WARNINGS, ERRORS, INTERRUPTED = 0, 1, 3, 4, 5, 6, 130

EXIT_CODES = """\b
Exit codes:
  0  done
  1  refused by the broker, or not confirmed: nothing was changed, unless it says so
  2  wrong usage, wrong configuration, or the application cannot be imported
  3  the broker cannot be reached
  4  there is no such thing
  130  interrupted (Ctrl-C)
"""


T = TypeVar("T")


class Refused(click.ClickException):
    """The broker said no, or the application did."""

    exit_code = REFUSED


class Unreachable(click.ClickException):
    """The broker cannot be reached."""

    exit_code = UNREACHABLE


class Interrupted(click.ClickException):
    """Somebody pressed Ctrl-C."""

    exit_code = INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        """Say so on a line of its own."""
        end_line()
        super().show(file)


def end_line() -> None:
    """Go to the next line of a terminal, which has shown the Ctrl-C in this one."""
    if sys.stderr.isatty():
        click.echo(err=True)


class NotFound(click.ClickException):
    """There is no such thing."""

    exit_code = NOT_FOUND


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with: the application, or a broker alone, and where it answers."""

    pubsub: PubSub
    as_json: bool
    is_application: bool

    @property
    def inspector(self) -> Inspector:
        """The broker, as what looks and mends."""
        return self.pubsub.inspector

    def now(self) -> datetime:
        """Return the time of the broker."""
        return datetime.fromtimestamp(self.pubsub.runtime.broker.time(), UTC)

    def topics(self) -> list[str]:
        """Return the topics that the application declares, and those that workers consumed."""
        return sorted({one.name for one in self.pubsub.topics} | set(self.inspector.topics()))

    def each(self, topics: Iterable[str], look: Callable[[str], T]) -> tuple[list[T], dict[str, str]]:
        """Return what `look` returns for each topic, and by topic why others could not be looked at."""
        found: list[T] = []
        conflicts: dict[str, str] = {}
        for topic in topics:
            try:
                found.append(look(topic))
            except StreamConflict as error:
                conflicts[topic] = f"{topic} could not be looked at: {error}"
        return found, conflicts

    def handlers(self) -> dict[SubscriptionKey, str]:
        """Return the names of the application's handlers."""
        return {one.key: one.handler.name for one in self.pubsub.subscriptions()}

    def key(self, topic: str, group: str | None) -> SubscriptionKey:
        """Return a subscription's key: by default of the application's group, or of the topic's only one."""
        if group is None and not self.has_group:
            names = [one.key.group for one in self.inspector.groups(topic)]
            if len(names) != 1:
                raise Misused(f"which group of topic {topic!r}? Say --group; it has {', '.join(names) or 'none'}")
            (group,) = names
        return SubscriptionKey(topic, group or self.pubsub.settings.group)

    @property
    def has_group(self) -> bool:
        """Whether it is said which group is meant where none is named: a broker alone has none of its own."""
        return self.is_application or bool(os.environ.get("PUBSUB_GROUP"))

    def state(self, key: SubscriptionKey) -> GroupState:
        """Return how a group stands. Raises NotFound if there is none of that name."""
        states = {one.key: one for one in self.inspector.groups(key.topic)}
        if key not in states:
            raise NotFound(
                f"there is no group {key.group!r} of topic {key.topic!r}."
                f"{did_you_mean(key.group, [one.group for one in states])}"
            )
        return states[key]

    def check(self, key: SubscriptionKey) -> None:
        """Raise NotFound if no worker has made a group of that name, nor the application subscribes or it is paused."""
        if key not in self.handlers() and key not in self.pauses()[0]:
            self.state(key)

    def pauses(self) -> tuple[Sequence[SubscriptionKey], dict[str, str]]:
        """Return what is paused, groups too that are not made yet, as far as the broker can tell; else why not."""
        broker = self.inspector
        if not isinstance(broker, ListsPauses):
            return (), {}
        found, conflicts = self.each(["pauses"], lambda _: broker.paused_groups())
        return found[0] if found else (), conflicts

    def paused_ahead(
        self, states: Iterable[GroupState], unknown: Container[str], topic: str | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """Return what there is to say of groups, of a topic or of all, that are paused and not made yet.

        `states` are those that are made; of the topics that are `unknown` it cannot be said. And why there is none.
        """
        paused, conflicts = self.pauses()
        there = {one.key for one in states}
        ahead = [one for one in paused if one not in there and one.topic not in unknown and topic in (None, one.topic)]
        remarks = [
            f"{one.topic} / {one.group} is paused, and no worker has made the group yet: the pause holds when one does."
            f" To go on: resume {one.topic} --group {one.group}"
            for one in ahead
        ]
        return remarks, conflicts

    def check_topic(self, topic: str) -> None:
        """Raise NotFound if nobody declares, consumes or publishes to a topic of that name."""
        known = self.topics()
        state = self.inspector.topic(topic)
        if topic not in known and not (state.messages or state.delayed or state.groups):
            raise NotFound(f"there is no topic {topic!r}.{did_you_mean(topic, known)}")

    def answer(self, facts: Any, text: Callable[[], None]) -> None:
        """Write the facts as JSON, if that was asked for; else call `text`."""
        if self.as_json:
            click.echo(json.dumps(plain(facts), ensure_ascii=False))
        else:
            text()

    def table(self, rows: Sequence[Mapping[str, Any]], none: str) -> None:
        """Write rows as JSON, or as a table; `none` is what is said if there are none."""
        self.answer(rows, lambda: show_table(rows, none))


def command(
    door: Door,
    run: Callable[..., int | None],
    *params: click.Parameter,
    takes_target: bool,
    name: str,
    help: str,
    examples: Sequence[str] = (),
    exit_codes: str = EXIT_CODES,
) -> click.Command:
    """Return a command that calls `run(desk, **params)`, and ends with the code that it returns (None: 0)."""

    def callback(*, app: str | None = None, url: str | None = None, as_json: bool, **arguments: Any) -> None:
        try:
            pubsub, is_application = _application(door, app, url) if takes_target else (door(None)[1](), True)
            try:
                code = run(Desk(pubsub, as_json, is_application), **arguments)
            finally:
                pubsub.close()
        except (ConfigurationError, ValidationError, CodecError) as error:
            raise Misused(str(error)) from None
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except BrokerUnavailable as error:
            raise Unreachable(str(error)) from None
        except PubSubError as error:
            raise Refused(str(error)) from None
        click.get_current_context().exit(code or OK)

    shared: list[click.Parameter] = [json_option()]
    if takes_target:
        shared += [
            click.Option(
                ["-A", "--app"],
                metavar="TARGET",
                help="The application, as in `pubsub worker TARGET`. Default: PUBSUB_APP, else FLASK_APP.",
            ),
            click.Option(["--url"], help="Instead of an application, a broker. Default: PUBSUB_URL."),
        ]
    program = "pubsub" if takes_target else "flask --app shop pubsub"
    shown = "".join(f"  {program} {example}\n" for example in examples)
    epilog = f"\b\nExamples:\n{shown}\n{exit_codes}" if shown else exit_codes
    return click.Command(name, callback=callback, params=[*params, *shared], help=help, epilog=epilog)


def _application(door: Door, app: str | None, url: str | None) -> tuple[PubSub, bool]:
    """Return the application, or a PubSub of the broker alone, and whether it is the application."""
    if url is not None:
        return PubSub(url), False
    if app is not None or default_target() is not None:
        _, load = door(app)
        return load(), True
    if not os.environ.get("PUBSUB_URL"):
        raise ConfigurationError(
            "which broker? Name the application (--app shop:app, or PUBSUB_APP), or the broker (--url, or PUBSUB_URL)"
        )
    return PubSub(), False


def tell(remarks: Iterable[str]) -> int:
    """Write what is missing from an answer to stderr; return the code to end with."""
    code = OK
    for remark in remarks:
        click.echo(f"! {remark}", err=True)
        code = REFUSED
    return code


# Parameters that several commands have


def topic_argument() -> click.Argument:
    """Return the argument TOPIC."""
    return click.Argument(["topic"])


def group_option() -> click.Option:
    """Return the option --group."""
    return click.Option(
        ["-g", "--group"],
        help="Default: PUBSUB_GROUP, or that of the application; without one, the only group of the topic.",
    )


def limit_option(default: int) -> click.Option:
    """Return the option -n."""
    return click.Option(["-n", "--limit"], type=click.IntRange(min=1), default=default, show_default=True, metavar="N")


def yes_option() -> click.Option:
    """Return the option --yes."""
    return click.Option(["-y", "--yes"], is_flag=True, help="Do not ask: for scripts.")


def confirm(what: str, *, yes: bool) -> None:
    """Ask whether this shall be done, on stderr. Raises `click.Abort`, which ends with 1, if not."""
    if not yes:
        click.confirm(f"{what}\nGo on?", abort=True, err=True)


def moment(text: str, now: datetime) -> datetime:
    """Return a moment: an ISO time (without a zone: UTC), or so long ago, as in 90s, 30m, 2h, 7d.

    Raises ValueError for what is none, or lies before 1970.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if text[-1:] in units and text[:-1].replace(".", "", 1).isdigit():
        try:
            read = now - timedelta(seconds=float(text[:-1]) * units[text[-1]])
        except OverflowError:
            raise ValueError(text) from None
    else:
        read = datetime.fromisoformat(text)
        read = read if read.tzinfo else read.replace(tzinfo=UTC)
    if read.timestamp() < 0:
        raise ValueError(text)
    return read


# Answers


def plain(value: Any) -> Any:
    """Return a value as JSON has it. A count says whether it is exact; a time is ISO 8601."""
    if isinstance(value, datetime):
        plainer: Any = value.isoformat()
    elif isinstance(value, bytes):
        plainer = value.decode("utf-8", "backslashreplace")
    elif is_dataclass(value) and not isinstance(value, type):
        plainer = {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    elif isinstance(value, Mapping):
        plainer = {str(name): plain(one) for name, one in value.items()}
    elif isinstance(value, list | tuple):
        named = getattr(value, "_asdict", None)
        plainer = plain(named()) if named else [plain(one) for one in value]
    else:
        plainer = value
    return plainer


def shown(value: Any, now: datetime | None = None) -> str:
    """Return a value as a table has it."""
    match value:
        case None | "":
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = ago(value, now) if now else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case int():
            text = f"{value:,}"
        case float():
            text = seconds_in_words(value)
        case _:
            text = plain_text(str(value))
    return text


def plain_text(text: str) -> str:
    """Return text that does to a terminal nothing but being shown."""
    return "".join(one if one.isprintable() else " " for one in text)


def seconds_in_words(seconds: float) -> str:
    """Return how long that is, in the largest fitting unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago that was, or how soon it will be."""
    seconds = (now - moment).total_seconds()
    return f"{seconds_in_words(max(0.0, seconds))} ago" if seconds >= 0 else f"in {seconds_in_words(-seconds)}"


def show_table(rows: Sequence[Mapping[str, Any]], none: str, now: datetime | None = None) -> None:
    """Write a table to stdout: of rich, if it is a terminal and rich is there; else in plain columns."""
    if not rows:
        click.echo(none)
        return
    names = [*rows[0]]
    cells = [[shown(row[name], now) for name in names] for row in rows]
    numeric = [all(isinstance(row[name], int | float | Count | None) for row in rows) for name in names]
    if sys.stdout.isatty() and _show_rich(names, cells, numeric):
        return
    widths = [max(len(one[column]) for one in [names, *cells]) for column in range(len(names))]
    for line in [names, *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def _show_rich(names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console()
    table = Table(box=box.SIMPLE_HEAD)
    least = 0
    for name, right, *column in zip(names, numeric, *cells, strict=True):
        is_text = any(" " in cell for cell in column)
        table.add_column(name, justify="right" if right else "left", no_wrap=not is_text, overflow="fold")
        words = [word for cell in (name, *column) for word in (cell.split() if is_text else [cell])]
        least += max(map(len, words), default=0) + 2
    if least > console.width:
        return False  # an id that is cut cannot be copied
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)
    return True
