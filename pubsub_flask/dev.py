"""`flask pubsub dev`: web, worker with its schedules, and a server, in one terminal. For development."""

import sys
from collections.abc import Mapping, Sequence

import click
from flask.cli import ScriptInfo

from pubsub_core.commands import Door, LoadTarget
from pubsub_core.commands.dev import dev_command


def dev(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `dev`, for the app that Flask finds."""

    def find(target: str | None, web: Sequence[str]) -> tuple[LoadTarget, Mapping[str, Sequence[str]]]:
        _, load = door(target)
        name = click.get_current_context().ensure_object(ScriptInfo).app_import_path
        flask = [sys.executable, "-m", "flask", *(["--app", name] if name else [])]
        return load, {
            "web": [*flask, "run", "--debug", *web],
            "worker": [*flask, "pubsub", "worker", "--reload"],
        }

    return dev_command(find, takes_target=takes_target, example="flask --app shop pubsub dev")
