"""`dev`: worker with its schedules, a server, and the web application if there is one, in one terminal."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import IO

import click

from pubsub_core.backends import masked
from pubsub_core.commands import Door, LoadTarget, Misused, json_option, target_parameters
from pubsub_core.commands.frame import EXIT_CODES
from pubsub_core.errors import ConfigurationError

EMBEDDED = "redis+embedded:///./.pubsub"

Find = Callable[[str | None, Sequence[str]], tuple[LoadTarget, Mapping[str, Sequence[str]]]]
"""Takes TARGET and the options of the web server; returns what loads the application, and the commands to run."""

_STOPS_WITHIN = 30.0
_COLORS = {"web": "cyan", "worker": "magenta"}

_Say = Callable[[str, str], None]
"""Writes a line of somebody."""


def dev(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `dev`, for an application that may have a Flask app."""

    def find(target: str | None, web: Sequence[str]) -> tuple[LoadTarget, Mapping[str, Sequence[str]]]:
        from pubsub_core.target import names_flask_app

        called, load = door(target)
        commands = {"worker": [sys.executable, "-m", "pubsub_core", "worker", called, "--reload"]}
        if names_flask_app(called):
            commands = {"web": [sys.executable, "-m", "flask", "--app", called, "run", "--debug", *web], **commands}
        return load, commands

    return dev_command(find, takes_target=takes_target, example="pubsub dev shop:app")


def dev_command(find: Find, *, takes_target: bool, example: str) -> click.Command:
    """Return the command `dev`, for the application that `find` finds."""

    def run(host: str, port: int, *, as_json: bool, target: str | None = None) -> None:
        if os.environ.get("PUBSUB_URL", "memory:").startswith("memory:"):
            os.environ["PUBSUB_URL"] = EMBEDDED
        try:
            load, commands = find(target, ["--host", host, "--port", str(port)])
            url = load().settings.url
        except ConfigurationError as error:
            raise Misused(str(error)) from None
        if url.startswith("memory:"):
            raise Misused(
                f"the application itself names {url}, whose messages no other process sees. Leave PUBSUB_URL out, and "
                "dev runs a server"
            )
        say = _as_json if as_json else _as_text
        web = f"web on http://{host}:{port}, " if "web" in commands else ""
        say("dev", f"{web}worker with reload, broker {masked(url)}. Ctrl-C ends all")
        click.get_current_context().exit(_run_together(commands, say))

    return click.Command(
        "dev",
        callback=run,
        params=[
            *target_parameters(takes_target=takes_target),
            click.Option(["-h", "--host"], default="127.0.0.1", show_default=True, help="Of the web application."),
            click.Option(["-p", "--port"], type=int, default=5000, show_default=True, help="Of the web application."),
            json_option("Write each line as an object of JSON, with who wrote it."),
        ],
        help="Run a worker with its schedules, the web application if there is a Flask app and, if no broker is named, "
        f"a server of its own ({EMBEDDED}), in one terminal. All start anew when a source file changes. When one ends, "
        "all end.",
        epilog=f"\b\nExample:\n  {example}\n\n{EXIT_CODES}",
    )


def _as_text(who: str, line: str) -> None:
    label = click.style(f"{who:>6} | ", fg=_COLORS.get(who))
    click.echo(label + line)


def _as_json(who: str, line: str) -> None:
    click.echo(json.dumps({"from": who, "line": line}, ensure_ascii=False))


def _run_together(commands: Mapping[str, Sequence[str]], say: _Say) -> int:
    """Run commands until one ends, or a signal comes; end the others, and return the code of the first."""
    ended: SimpleQueue[int] = SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    for name, words in commands.items():
        process = subprocess.Popen(  # noqa: S603  # our own commands
            words, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        processes.append(process)
        readers.append(threading.Thread(target=_copy, args=(process, name, say, ended), name=f"pubsub-dev-{name}"))
    signal.signal(signal.SIGTERM, lambda *_: ended.put(0))
    for reader in readers:
        reader.start()
    try:
        code = ended.get()
    except KeyboardInterrupt:
        code = 0
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
    for reader in readers:
        reader.join()
    return code


def _copy(process: subprocess.Popen[bytes], name: str, say: _Say, ended: "SimpleQueue[int]") -> None:
    """Copy what a process writes, a line at a time, and say when it has ended."""
    output: IO[bytes] | None = process.stdout
    for line in output or ():
        say(name, line.decode("utf-8", "replace").rstrip("\n"))
    ended.put(process.wait())
