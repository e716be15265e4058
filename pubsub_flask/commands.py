"""`flask pubsub ...`: the commands of `pubsub`, for the app that Flask finds.

Flask imports this module on every call of `flask`, so it imports nothing but click until a command of ours is called.
The app is not loaded here either: the worker's processes load it, each for itself.
"""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pubsub_core.commands import LoadTarget


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


class _Commands(click.Group):
    """The commands of `pubsub`, looked up when one of them, or their help, is asked for."""

    def _all(self) -> click.Group:
        from pubsub_core.commands import COMMANDS, Commands, Entry

        own = {"dev": Entry("pubsub_flask.dev:dev", COMMANDS["dev"].short_help)}
        return Commands(_app_of_flask, takes_target=False, entries={**COMMANDS, **own})

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line."""
        from pubsub_core.commands import answering

        with answering():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that it names."""
        from pubsub_core.commands import answering

        with answering():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        return self._all().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        return self._all().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; of one that is misspelt, name the nearest."""
        return self._all().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what they do."""
        self._all().format_commands(ctx, formatter)


pubsub = _Commands("pubsub", help="Run workers for the messages of this app; see how they stand, and mend it.")
