"""`config`: the settings in force."""

from dataclasses import fields

import click

from pubsub_core.backends import masked
from pubsub_core.commands import Door
from pubsub_core.commands.frame import Desk, command, show_table
from pubsub_core.settings import PREFIX, Settings


def config(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `config`."""

    def run(desk: Desk) -> None:
        settings = desk.pubsub.settings
        rows = []
        for one in fields(Settings):
            value = getattr(settings, one.name)
            text = masked(value) if one.name == "url" else f"{value:.12g}" if isinstance(value, float) else str(value)
            if one.name == "group" and not desk.has_group:
                text = ""  # it is the application's, and there is none
            rows.append({"setting": PREFIX + one.name.upper(), "value": text, "default": value == one.default})
        facts = {str(row["setting"]): row["value"] for row in rows}
        desk.answer(facts, lambda: show_table(rows, ""))

    return command(
        door, run, takes_target=takes_target, name="config",
        help="Show the settings in force, from keywords, the app's configuration and the environment. Passwords are "
        "masked. It does not connect.",
        examples=["config"],
    )  # fmt: skip
