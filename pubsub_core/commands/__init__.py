"""The commands, through two doors: `pubsub X` takes TARGET, and `flask pubsub X` the app that Flask finds.

A command is a line in `COMMANDS`. What makes it imports click at most; what it needs is imported when it runs.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pubsub_core.errors import PubSubError
from pubsub_core.names import did_you_mean

if TYPE_CHECKING:
    from pubsub_core.pubsub import PubSub

LoadTarget = Callable[[], "PubSub"]
"""Loads the application."""

Door = Callable[[str | None], tuple[str, LoadTarget]]
"""Takes TARGET as it was typed, and returns what to call it, and how a process loads it."""


class Entry(NamedTuple):
    """A command: the function that makes it, as "module:function", and what it does in a line.

    The function takes a `Door`, and `takes_target`: whether the application is named on the command line.
    """

    where: str
    short_help: str


COMMANDS: Mapping[str, Entry] = {
    "worker": Entry("pubsub_core.cli:worker_command", "Handle messages until told to stop."),
    "publish": Entry("pubsub_core.commands.publish:publish", "Publish messages, validated by their topic."),
    "status": Entry("pubsub_core.commands.status:status", "Show how everything stands, on one screen."),
    "topics": Entry("pubsub_core.commands.looking:topics", "List the topics."),
    "groups": Entry("pubsub_core.commands.looking:groups", "List the groups."),
    "workers": Entry("pubsub_core.commands.looking:workers", "List the worker processes, and what they have in hand."),
    "lag": Entry("pubsub_core.commands.looking:lag", "Show how far a group is behind."),
    "tail": Entry("pubsub_core.commands.looking:tail", "Show the newest messages of a topic."),
    "show": Entry("pubsub_core.commands.looking:show", "Show a message, and how it stands with each group."),
    "dead": Entry("pubsub_core.commands.dead:dead", "List, show, replay and discard dead letters."),
    "schedules": Entry("pubsub_core.commands.schedules:schedules", "List, run, pause and resume schedules."),
    "pause": Entry("pubsub_core.commands.mending:pause", "Have a group get nothing more, in the whole fleet."),
    "resume": Entry("pubsub_core.commands.mending:resume", "Let a paused group go on."),
    "seek": Entry("pubsub_core.commands.mending:seek", "Have a group go on reading at another place."),
    "purge": Entry("pubsub_core.commands.mending:purge", "Delete messages of a topic."),
    "remove-group": Entry("pubsub_core.commands.mending:remove_group", "Delete a group that nobody consumes."),
    "cancel": Entry("pubsub_core.commands.mending:cancel", "Cancel a message that is not due yet."),
    "config": Entry("pubsub_core.commands.config:config", "Show the settings in force, secrets masked."),
    "schema": Entry("pubsub_core.commands.schema:schema_command", "Keep schemas in files, and check changes."),
    "asyncapi": Entry("pubsub_core.commands.asyncapi:asyncapi_command", "Describe topics and handlers as AsyncAPI."),
    "doctor": Entry("pubsub_core.commands.doctor:doctor", "Find out what is wrong, and how to mend it."),
    "dev": Entry("pubsub_core.commands.dev:dev", "Run worker, web and server in one terminal, reloading."),
}
"""Every command of `pubsub` and of `flask pubsub`, by name. A module is imported when its command is called."""


OUTPUT_CLOSED = 141
"""The exit code of who writes to a pipe that nobody reads any more: as a shell shows a death by SIGPIPE."""


class Unwritten(click.ClickException):
    """What a command answers cannot be written."""


@contextmanager
def answering() -> Iterator[None]:
    """End without a traceback if the answer cannot be written; without a word if nobody wants it any more."""
    try:
        yield
    except OSError as error:
        if not _is_of_output(error):
            raise
        _forget_output()
        if error.errno == errno.EPIPE:
            raise SystemExit(OUTPUT_CLOSED) from None
        raise Unwritten(
            f"the answer could not be written to stdout: {error.strerror or error}. What the command had done by then "
            "stays done. Make room or write elsewhere, and see how things stand before running it again"
        ) from None


def _is_of_output(error: OSError) -> bool:
    """Whether it was raised where click or rich write, not in the application nor by what it works with."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return name.partition(".")[0] in ("click", "rich")


def _forget_output() -> None:
    """Have nothing written to stdout any more: the interpreter tries it again when it ends."""
    with suppress(OSError, ValueError):  # one that has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Commands(click.Group):
    """The commands of a table, for the applications behind a door. `--help` of the group imports none of them."""

    def __init__(
        self, door: Door, *, takes_target: bool, entries: Mapping[str, Entry] = COMMANDS, **options: Any
    ) -> None:
        super().__init__(**options)
        self._door = door
        self._takes_target = takes_target
        self._entries = entries

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line."""
        with answering():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that it names."""
        with answering():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names, in the order of the table."""
        return [*self._entries]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make the command of that name."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, function = entry.where.partition(":")
        command: click.Command = getattr(import_module(module), function)(self._door, takes_target=self._takes_target)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; of one that is misspelt, name the nearest."""
        name = args[0]
        if name not in self._entries and name[:1] != "-" and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}.{did_you_mean(name, self._entries)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the commands do, by the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in self._entries.items()])


TARGET_HELP = """TARGET names the application: module:attribute (a PubSub, or a Flask app with one),
module:create_app(), or module alone, which means its `pubsub`, its `app`, or the only PubSub in it. Without TARGET
PUBSUB_APP of the environment counts, else FLASK_APP."""

FLASK_HELP = "The application is what `flask --app` names."


class Misused(click.ClickException):
    """Wrong usage, wrong configuration, or an application that cannot be imported."""

    exit_code = 2


@contextmanager
def refusing() -> Iterator[None]:
    """Show an error of the library as a message without a traceback, and exit with 2."""
    try:
        yield
    except PubSubError as error:
        raise Misused(str(error)) from None


def target_parameters(*, takes_target: bool) -> list[click.Parameter]:
    """Return the argument TARGET, for a command that takes it."""
    return [click.Argument(["target"], required=False, metavar="[TARGET]")] if takes_target else []


def json_option(help: str = "Answer in JSON.") -> click.Option:
    """Return the option --json, which every command has."""
    return click.Option(["--json", "as_json"], is_flag=True, help=help)


def directory_option(help: str) -> click.Option:
    """Return the option --dir, of the commands that work with schemas in files."""
    return click.Option(
        ["-d", "--dir", "directory"],
        type=click.Path(path_type=Path, file_okay=False),
        default="schemas",
        show_default=True,
        metavar="DIR",
        help=help,
    )


def examples(name: str, *, takes_target: bool) -> str:
    """Return the examples of a command that takes TARGET, for the end of its help."""
    line = f"pubsub {name} shop:app" if takes_target else f"flask --app shop pubsub {name}"
    return f"\b\nExample:\n  {line}\n\n"
