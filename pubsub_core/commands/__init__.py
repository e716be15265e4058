"""The commands, through two doors: `pubsub X` takes TARGET, and `flask pubsub X` the app that Flask finds.

A command is a line in `COMMANDS`. What makes it imports click at most; what it needs is imported when it runs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import click

from pubsub_core.errors import PubSubError

if TYPE_CHECKING:
    from pubsub_core.pubsub import PubSub

LoadTarget = Callable[[], "PubSub"]
"""Loads the application."""

Door = Callable[[str | None], tuple[str, LoadTarget]]
"""Takes TARGET as it was typed, and returns what to call it, and how a process loads it."""

COMMANDS: Mapping[str, str] = {
    "worker": "pubsub_core.cli:worker_command",
    "schema": "pubsub_core.commands.schema:schema_command",
    "asyncapi": "pubsub_core.commands.asyncapi:asyncapi_command",
}
"""Each by the function that makes it, of a door, and of whether the command takes TARGET."""

TARGET_HELP = """TARGET names the application: module:attribute (a PubSub, or a Flask app with one),
module:create_app(), or module alone, which means its `pubsub`, its `app`, or the only PubSub in it. Without TARGET
PUBSUB_APP of the environment counts, else FLASK_APP."""

FLASK_HELP = "The application is what `flask --app` names."


class Refused(click.ClickException):
    """Wrong usage, wrong configuration, or an application that cannot be imported."""

    exit_code = 2


@contextmanager
def refusing() -> Iterator[None]:
    """Show an error of the library as a message without a traceback, and exit with 2."""
    try:
        yield
    except PubSubError as error:
        raise Refused(str(error)) from None


def make_command(name: str, door: Door, *, takes_target: bool) -> click.Command | None:
    """Return the command of that name; None if there is none."""
    if name not in COMMANDS:
        return None
    module, _, function = COMMANDS[name].partition(":")
    command: click.Command = getattr(import_module(module), function)(door, takes_target=takes_target)
    return command


def target_parameters(*, takes_target: bool) -> list[click.Parameter]:
    """Return the argument TARGET, for a command that takes it."""
    return [click.Argument(["target"], required=False, metavar="[TARGET]")] if takes_target else []
