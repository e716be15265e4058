"""`pubsub`, the command. What a command needs is imported when it runs, so that `--help` is quick."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pubsub_core import __version__
from pubsub_core.errors import ConfigurationError, PubSubError

if TYPE_CHECKING:
    from pubsub_core.worker.options import LoadTarget

Door = Callable[[str | None], "tuple[str, LoadTarget]"]
"""Takes TARGET as it was typed, and returns what to call it, and how a process of the worker loads it."""

_EXIT_CODES = """\b
Exit codes:
  0    ended as asked: SIGTERM, Ctrl-C, or nothing left to do (--burst)
  1    crashed
  2    wrong usage, wrong configuration, or the application cannot be imported
  130  a second Ctrl-C, which does not wait for the handlers
"""

_EXAMPLES = """\b
Examples:
  pubsub worker shop:pubsub
  pubsub worker shop:app --processes 4 --threads 10
  pubsub worker "shop:create_app()" --burst
  PUBSUB_APP=shop:app pubsub worker --reload
"""

_FLASK_EXAMPLES = """\b
Examples:
  flask --app shop pubsub worker
  flask --app shop pubsub worker --processes 4 --threads 10
"""


class _Refused(click.ClickException):
    exit_code = 2


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
    "doctor": Entry("pubsub_core.commands.doctor:doctor", "Find out what is wrong, and how to mend it."),
}
"""Every command of `pubsub` and of `flask pubsub`, by name. A module is imported when its command is called."""


class Commands(click.Group):
    """The commands of a table, for the applications behind a door. `--help` of the group imports none of them."""

    def __init__(
        self, door: Door, *, takes_target: bool, entries: Mapping[str, Entry] = COMMANDS, **options: Any
    ) -> None:
        super().__init__(**options)
        self._door = door
        self._takes_target = takes_target
        self._entries = entries

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the commands do, by the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in self._entries.items()])


def worker_command(door: Door, *, takes_target: bool) -> click.Command:
    """Return the command `worker`, for an application that is found by `door`."""

    def worker(
        target: str | None = None,
        *,
        processes: int | None,
        threads: int | None,
        burst: bool,
        reload: bool,
        log_level: str,
    ) -> None:
        try:
            called, load = door(target)
            from pubsub_core.worker.options import WorkerOptions
            from pubsub_core.worker.supervisor import supervise

            options = WorkerOptions(
                target=called, processes=processes, threads=threads, burst=burst, reload=reload, log_level=log_level
            )
            code = supervise(load, options)
        except PubSubError as error:
            raise _Refused(str(error)) from None
        click.get_current_context().exit(code)

    argument = click.Argument(["target"], required=False, metavar="[TARGET]")
    return click.Command(
        "worker",
        callback=worker,
        params=[*([argument] if takes_target else []), *_worker_options()],
        help=_WORKER_HELP.format(what=_TARGET_HELP if takes_target else _FLASK_HELP),
        short_help="Handle messages until told to stop.",
        epilog=f"{_EXAMPLES if takes_target else _FLASK_EXAMPLES}\n{_EXIT_CODES}",
    )


_WORKER_HELP = """Handle messages until told to stop.

{what}

SIGTERM and Ctrl-C stop reading, let the running handlers finish, and hand back the rest."""

_TARGET_HELP = """TARGET names the application: module:attribute (a PubSub, or a Flask app with one),
module:create_app(), or module alone, which means its `pubsub`, its `app`, or the only PubSub in it. Without TARGET
PUBSUB_APP of the environment counts, else FLASK_APP."""

_FLASK_HELP = "The application is what `flask --app` names. Each process of the worker loads it for itself."


def _worker_options() -> list[click.Parameter]:
    levels = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], case_sensitive=False)
    number = click.IntRange(min=1)
    return [
        click.Option(
            ["-p", "--processes"],
            type=number,
            metavar="N",
            help="Processes. Without it PUBSUB_PROCESSES counts, else 1.",
        ),
        click.Option(
            ["-t", "--threads"],
            type=number,
            metavar="N",
            help="Threads of each. Without it PUBSUB_THREADS counts, else 8.",
        ),
        click.Option(["--burst"], is_flag=True, help="End when there is nothing left to do."),
        click.Option(["--reload"], is_flag=True, help="Start anew when a source file changes. For development."),
        click.Option(
            ["-l", "--log-level"], type=levels, default="INFO", show_default=True, help="Log from this level on."
        ),
    ]


def _target_of_command_line(target: str | None) -> "tuple[str, LoadTarget]":
    from pubsub_core.target import default_target, load_target

    named = target or default_target()
    if named is None:
        raise ConfigurationError("which application? Name it, as in `pubsub worker shop:app`, or set PUBSUB_APP")
    return named, lambda: load_target(named)


main = click.version_option(__version__, package_name="pubsub-streams", message="pubsub-streams %(version)s")(
    Commands(
        _target_of_command_line,
        takes_target=True,
        name="pubsub",
        help="Run workers that handle the messages of an application; see how they stand, and mend it.",
        epilog="\b\nExamples:\n  pubsub worker shop:app --processes 4 --threads 10\n  pubsub status --app shop:app\n",
    )
)
