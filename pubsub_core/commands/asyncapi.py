"""`asyncapi`: what an application publishes and handles, as a document for other programs and people."""

import json
from pathlib import Path

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

_HELP = """Write an AsyncAPI 3.0 document of the topics, their schemas and versions, and the subscriptions.

{what}

The document is JSON. The schemas of earlier versions are those that `schema export` wrote."""


def asyncapi_command(door: Door, *, takes_target: bool) -> click.Command:
    """Return the command."""

    def asyncapi(
        *,
        output: Path | None,
        directory: Path,
        title: str | None,
        app_version: str,
        as_json: bool,
        target: str | None = None,
    ) -> None:
        with refusing():
            from pubsub_core.schema.asyncapi import asyncapi
            from pubsub_core.schema.export import Directory

            document = asyncapi(door(target)[1](), Directory(directory), title=title, version=app_version)
        text = json.dumps(document, indent=2, ensure_ascii=False)
        if output is None:
            click.echo(text)
        else:
            output.write_text(text + "\n", encoding="utf-8")
            if as_json:
                click.echo(json.dumps({"written": str(output)}))

    options = [
        click.Option(
            ["-o", "--output"],
            type=click.Path(path_type=Path, dir_okay=False, writable=True),
            metavar="FILE",
            help="Without it the document is printed.",
        ),
        directory_option("Where the schemas of earlier versions are."),
        click.Option(["--title"], metavar="TEXT", help="Of the application. Without it PUBSUB_GROUP."),
        click.Option(["--app-version"], default="1.0.0", show_default=True, metavar="TEXT", help="Of the application."),
        json_option("With --output, say in JSON which file was written; what is printed without is JSON anyway."),
    ]
    return click.Command(
        "asyncapi",
        callback=asyncapi,
        params=[*target_parameters(takes_target=takes_target), *options],
        help=_HELP.format(what=TARGET_HELP if takes_target else FLASK_HELP),
        epilog=examples("asyncapi", takes_target=takes_target) + _EXIT_CODES,
    )


_EXIT_CODES = """\b
Exit codes:
  0    written
  2    wrong usage, wrong configuration, or the application cannot be imported
"""
