"""`doctor`: what is wrong, why it matters, and how to mend it."""

import click

from pubsub_core.commands import Door
from pubsub_core.commands.frame import ERRORS, OK, WARNINGS, Desk, command
from pubsub_core.doctor import examine

_EXIT_CODES = """\b
Exit codes:
  0  nothing is wrong; there may be notes
  2  wrong usage, wrong configuration, or the application cannot be imported
  5  there are warnings
  6  there are errors: messages are lost or not handled, or the broker cannot be reached
  130  interrupted (Ctrl-C)
"""


def doctor(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `doctor`."""

    def run(desk: Desk) -> int:
        findings = examine(desk.pubsub)

        def text() -> None:
            for one in findings:
                click.secho(f"{one.severity.upper()}: {one.what}", fg=_COLORS[one.severity], bold=True)
                click.echo(f"  why:  {one.why}")
                click.echo(f"  mend: {one.mend}")
            if not findings:
                click.echo("nothing is wrong")

        desk.answer(findings, text)
        worst = {one.severity for one in findings}
        return ERRORS if "error" in worst else WARNINGS if "warning" in worst else OK

    return command(
        door,
        run,
        takes_target=takes_target,
        name="doctor",
        help="Find out what is wrong with the server, its settings and rights, the topics and the groups; say why it "
        "matters, and how to mend it. Changes nothing.",
        examples=["doctor", "doctor --json"],
        exit_codes=_EXIT_CODES,
    )


_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
