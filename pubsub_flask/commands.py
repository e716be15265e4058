"""`flask pubsub ...`: the commands of `pubsub`, for the app that Flask finds.

Flask imports this module on every call of `flask`, so it imports nothing but click until a command of ours is called.
Nor is the app loaded before a command needs it; of a worker, the processes load it, each for itself.
"""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pubsub_core.commands import LoadTarget


class _Commands(click.Group):
    """Commands that are made when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        from pubsub_core.commands import COMMANDS

        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        from pubsub_core.commands import make_command

        return make_command(cmd_name, _app_of_flask, takes_target=False)


pubsub = _Commands("pubsub", help="Run workers for the messages of this app, and describe what it publishes.")


def _app_of_flask(_: str | None) -> "tuple[str, LoadTarget]":
    from flask.cli import NoAppException, ScriptInfo

    from pubsub_core.errors import ConfigurationError
    from pubsub_core.pubsub import PubSub
    from pubsub_core.target import pubsub_of

    info = click.get_current_context().ensure_object(ScriptInfo)
    name = info.app_import_path or "the Flask app"

    def load() -> PubSub:
        try:
            app = info.load_app()
        except NoAppException as error:
            raise ConfigurationError(error.format_message()) from error
        return pubsub_of(app, name)

    return name, load
