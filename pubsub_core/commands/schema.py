"""`schema export` and `schema check`: the schemas of topics as files, and what has become of them since."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pubsub_core.commands import (
    FLASK_HELP,
    TARGET_HELP,
    Door,
    directory_option,
    examples,
    json_option,
    refusing,
    target_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pubsub_core.schema.check import Verdict

_EXPORT_HELP = """Write the JSON Schema of each topic to a file of its own: <topic>.v<version>.json.

{what}

Commit the files: `schema check` compares with them. A file is not replaced by a schema of the same version that breaks
readers or writers. What topics carry that have no schema is not known, so they have no file."""

_CHECK_HELP = """Compare the schemas of the topics with the files that `schema export` wrote. Changes nothing.

{what}

Messages stay in their topics while versions of an application come and go. So a change passes if what was written
before can still be read, and if readers that do not have the change can read what is written now. Other changes need a
new version of the schema, and an upcast."""

_EXPORT_CODES = """\b
Exit codes:
  0    all files are up to date
  1    a schema was not written: it would break readers or writers
  2    wrong usage, wrong configuration, or the application cannot be imported
"""

_CHECK_CODES = """\b
Exit codes:
  0    every change is compatible
  1    a change breaks readers or writers, or a schema is not exported
  2    wrong usage, wrong configuration, or the application cannot be imported
"""


def schema_command(door: Door, *, takes_target: bool) -> click.Command:
    """Return the group of the commands that concern schemas."""
    group = click.Group(
        "schema",
        help="Export the schemas of topics, and check what has changed.",
    )
    group.add_command(_export_command(door, takes_target=takes_target))
    group.add_command(_check_command(door, takes_target=takes_target))
    return group


def _export_command(door: Door, *, takes_target: bool) -> click.Command:
    def export(*, directory: Path, force: bool, as_json: bool, target: str | None = None) -> None:
        with refusing():
            from pubsub_core.schema.check import export
            from pubsub_core.schema.export import Directory

            verdicts = export(door(target)[1](), Directory(directory), force=force)
        _end_with(verdicts, as_json=as_json)

    force = click.Option(["--force"], is_flag=True, help="Replace files whatever breaks: if they were never released.")
    return click.Command(
        "export",
        callback=export,
        params=[
            *target_parameters(takes_target=takes_target),
            directory_option("Where the files are."),
            force,
            json_option(),
        ],
        help=_EXPORT_HELP.format(what=TARGET_HELP if takes_target else FLASK_HELP),
        short_help="Write the JSON Schema of each topic to a file.",
        epilog=examples("schema export", takes_target=takes_target) + _EXPORT_CODES,
    )


def _check_command(door: Door, *, takes_target: bool) -> click.Command:
    def check(*, directory: Path, as_json: bool, target: str | None = None) -> None:
        with refusing():
            from pubsub_core.schema.check import check
            from pubsub_core.schema.export import Directory

            verdicts = check(door(target)[1](), Directory(directory))
        _end_with(verdicts, as_json=as_json)

    return click.Command(
        "check",
        callback=check,
        params=[*target_parameters(takes_target=takes_target), directory_option("Where the files are."), json_option()],
        help=_CHECK_HELP.format(what=TARGET_HELP if takes_target else FLASK_HELP),
        short_help="Fail on changes that break readers or writers.",
        epilog=examples("schema check", takes_target=takes_target) + _CHECK_CODES,
    )


def _end_with(verdicts: "Sequence[Verdict]", *, as_json: bool) -> None:
    if as_json:
        from pubsub_core.commands.frame import plain

        click.echo(json.dumps(plain(verdicts), ensure_ascii=False))
    else:
        _show(verdicts)
    click.get_current_context().exit(1 if any(one.findings for one in verdicts) else 0)


def _show(verdicts: "Sequence[Verdict]") -> None:
    if not verdicts:
        click.echo("No topic here has a schema.")
    for verdict in verdicts:
        click.echo(f"{verdict.topic} version {verdict.version}: {verdict.summary}")
        for finding in verdict.findings:
            click.echo(f"  {finding.what}{':' if finding.problems else ''}")
            for problem in finding.problems:
                click.echo(f"    {problem}")
        for fix in dict.fromkeys(finding.fix for finding in verdict.findings if finding.fix):
            click.echo(f"  {fix}")
