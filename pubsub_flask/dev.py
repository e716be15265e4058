"""`flask pubsub dev`: web, worker with its schedules, and a server, in one terminal. For development."""

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
from flask.cli import ScriptInfo

from pubsub_core.backends import masked
from pubsub_core.commands import Door, json_option
from pubsub_core.commands.frame import EXIT_CODES, Misused
from pubsub_core.errors import ConfigurationError

EMBEDDED = "redis+embedded:///./.pubsub"

_STOPS_WITHIN = 30.0
_COLORS = {"web": "cyan", "worker": "magenta"}

_Say = Callable[[str, str], None]
"""Writes a line of somebody."""


def dev(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `dev`."""
    del takes_target  # it is only behind the door of Flask

    def run(host: str, port: int, *, as_json: bool) -> None:
        _, load = door(None)
        try:
            url = load().settings.url
        except ConfigurationError as error:
            raise Misused(str(error)) from None
        name = click.get_current_context().ensure_object(ScriptInfo).app_import_path
        app = ["--app", name] if name else []
        flask = [sys.executable, "-m", "flask", *app]
        commands = {
            "web": [*flask, "run", "--debug", "--host", host, "--port", str(port)],
            "worker": [*flask, "pubsub", "worker", "--reload"],
        }
        environment = dict(os.environ)
        if url.startswith("memory:"):
            url = environment["PUBSUB_URL"] = EMBEDDED
        say = _as_json if as_json else _as_text
        say("dev", f"web on http://{host}:{port}, worker with reload, broker {masked(url)}. Ctrl-C ends all")
        click.get_current_context().exit(_run_together(commands, environment, say))

    return click.Command(
        "dev",
        callback=run,
        params=[
            click.Option(["-h", "--host"], default="127.0.0.1", show_default=True),
            click.Option(["-p", "--port"], type=int, default=5000, show_default=True),
            json_option("Write each line as an object of JSON, with who wrote it."),
        ],
        help="Run the web application, a worker with its schedules and, if the app names no broker, a server of its "
        f"own ({EMBEDDED}), in one terminal. All start anew when a source file changes. When one ends, all end.",
        epilog=f"\b\nExample:\n  flask --app shop pubsub dev\n\n{EXIT_CODES}",
    )


def _as_text(who: str, line: str) -> None:
    label = click.style(f"{who:>6} | ", fg=_COLORS.get(who))
    click.echo(label + line)


def _as_json(who: str, line: str) -> None:
    click.echo(json.dumps({"from": who, "line": line}, ensure_ascii=False))


def _run_together(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], say: _Say) -> int:
    """Run commands until one ends, or a signal comes; end the others, and return the code of the first."""
    ended: SimpleQueue[int] = SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    for name, words in commands.items():
        process = subprocess.Popen(  # noqa: S603  # our own commands
            words, env={**environment, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
