"""`pubsub`, the command. What a command needs is imported when it runs, so that `--help` is quick."""

import click

from pubsub_core import __version__
from pubsub_core.commands import (
    FLASK_HELP,
    TARGET_HELP,
    Commands,
    Door,
    LoadTarget,
    json_option,
    refusing,
    target_parameters,
)
from pubsub_core.errors import ConfigurationError

_EXIT_CODES = """\b
Exit codes:
  0    ended as asked: SIGTERM, Ctrl-C, or nothing left to do (--burst)
  1    crashed, or handlers did not finish in time
  2    wrong usage, wrong configuration, or the application cannot be imported
  130  a second Ctrl-C, which does not wait for the handlers
"""

_EXAMPLES = """\b
Examples:
  pubsub worker shop:pubsub
  pubsub worker shop:app --processes 4 --threads 10
  pubsub worker "shop:create_app()" --burst
  PUBSUB_APP=shop:app pubsub worker --reload
  pubsub worker shop:app --log-format json --health-port 9100 --health-host 0.0.0.0
"""

_FLASK_EXAMPLES = """\b
Examples:
  flask --app shop pubsub worker
  flask --app shop pubsub worker --processes 4 --threads 10
"""


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
        log_format: str,
        as_json: bool,
        log_sample: int | None,
        health_host: str,
        health_port: int | None,
    ) -> None:
        with refusing():
            called, load = door(target)
            from pubsub_core.worker.options import WorkerOptions
            from pubsub_core.worker.supervisor import supervise

            options = WorkerOptions(
                target=called,
                processes=processes,
                threads=threads,
                burst=burst,
                reload=reload,
                log_level=log_level,
                log_format="json" if as_json or log_format == "json" else "text",
                log_sample=log_sample,
                health_host=health_host,
                health_port=health_port,
            )
            code = supervise(load, options)
        click.get_current_context().exit(code)

    return click.Command(
        "worker",
        callback=worker,
        params=[*target_parameters(takes_target=takes_target), *_worker_options()],
        help=_WORKER_HELP.format(what=TARGET_HELP if takes_target else f"{FLASK_HELP} {_LOADED}"),
        epilog=f"{_EXAMPLES if takes_target else _FLASK_EXAMPLES}\n{_EXIT_CODES}",
    )


_WORKER_HELP = """Handle messages until told to stop.

{what}

SIGTERM and Ctrl-C stop reading, let the running handlers finish, and hand back the rest."""

_LOADED = "Each process of the worker loads it for itself."


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
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="JSON is one object a line, with the message at work.",
        ),
        json_option("The same as --log-format json."),
        click.Option(
            ["--log-sample"],
            type=number,
            metavar="N",
            help="Log at most so many handled messages a second and process, and count the others.",
        ),
        click.Option(
            ["--health-port", "--metrics-port"],
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help="Serve /livez, /readyz and /metrics there. 0 takes any that is free.",
        ),
        click.Option(
            ["--health-host"],
            default="127.0.0.1",
            show_default=True,
            metavar="ADDRESS",
            help="The address to serve them on; 0.0.0.0 is all.",
        ),
    ]


def _target_of_command_line(target: str | None) -> tuple[str, LoadTarget]:
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
