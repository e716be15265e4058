"""`flask pubsub dev`: web, worker with its schedules, and a server, in one terminal. For development."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import IO

import click
from flask.cli import ScriptInfo

from pubsub_core.commands import Door
from pubsub_core.commands.frame import EXIT_CODES, Misused
from pubsub_core.errors import ConfigurationError

EMBEDDED = "redis+embedded:///./.pubsub"

_STOPS_WITHIN = 30.0
_COLORS = ("cyan", "magenta")


def dev(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `dev`."""
    del takes_target  # it is only behind the door of Flask

    def run(host: str, port: int) -> None:
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
        click.echo(
            f"web on http://{host}:{port}, worker with reload, broker {url.partition('@')[2] or url}. Ctrl-C ends all"
        )
        click.get_current_context().exit(_run_together(commands, environment))

    return click.Command(
        "dev",
        callback=run,
        params=[
            click.Option(["-h", "--host"], default="127.0.0.1", show_default=True),
            click.Option(["-p", "--port"], type=int, default=5000, show_default=True),
        ],
        help="Run the web application, a worker with its schedules and, if the app names no broker, a server of its "
        f"own ({EMBEDDED}), in one terminal. All start anew when a source file changes. When one ends, all end.",
        epilog=f"\b\nExample:\n  flask --app shop pubsub dev\n\n{EXIT_CODES}",
    )


def _run_together(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> int:
    """Run commands until one ends, or a signal comes; end the others, and return the code of the first."""
    ended: SimpleQueue[int] = SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    for (name, words), color in zip(commands.items(), _COLORS, strict=True):
        process = subprocess.Popen(  # noqa: S603  # our own commands
            words, env={**environment, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        processes.append(process)
        label = click.style(f"{name:>6} | ", fg=color)
        readers.append(threading.Thread(target=_copy, args=(process, label, ended), name=f"pubsub-dev-{name}"))
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


def _copy(process: subprocess.Popen[bytes], label: str, ended: "SimpleQueue[int]") -> None:
    """Copy what a process writes, a line at a time, and say when it has ended."""
    output: IO[bytes] | None = process.stdout
    for line in output or ():
        click.echo(label + line.decode("utf-8", "replace").rstrip("\n"))
    ended.put(process.wait())
