"""The recorded session of docs/guides/operating.md: two terminals, one of the worker and one of the operator.

A block `console` is typed at the operator's, or, if it starts the worker that stays, at the worker's: `$` begins what
is typed, and the rest is what the screen shows then. A block `text` is what the worker's terminal shows last.

    python -m tests.session

plays it in tmux, and writes into the guide what the screens showed. tests/test_operating_guide.py plays it on terminals
of its own, and compares.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.servers import redis_server
from tests.terminal import WITHIN, Terminal, screen_of

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "operating.md"
URL = "redis://localhost:6379/0"
COLUMNS = 130
BASH = ("bash", "--norc", "--noprofile", "--noediting")

_BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_QUESTION = re.compile(r"\[y/N\]: (\w+)$", re.MULTILINE)
_OF_THE_LIBRARY = re.compile(r'(?:^  File "[^"\n]*pubsub_core/[^\n]*\n(?:    [^\n]*\n)+)+', re.MULTILINE)
_PROMPT = "$"
_STAYS = "--reload"
_WATCHES = "--watch"
_CTRL_C = "^C"

# What differs each time, and what stands for it.
_DIFFERENT = [
    (_ID, "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\d\d:\d\d:\d\d \[\d+\]"), "TIME [PID]"),
    (re.compile(r"\d+(\.\d)? (ms|s|min) ago"), "AGO"),
    (re.compile(r"in \d+ ms"), "SOON"),
    (re.compile(r"\bshop-1-\d+-[0-9a-f]+"), "CONSUMER"),
    (re.compile(r"^pubsub \d+\.\d+\.\d+\S*", re.MULTILINE), "VERSION"),
    (re.compile(r"─+"), "─"),
    (re.compile(r" +"), " "),
]


class Step(NamedTuple):
    """Something that is typed, and what is shown then; without a command, what the worker's terminal shows last."""

    command: str | None
    output: str


class Screen(Protocol):
    """A terminal with a shell."""

    def begin(self) -> None:
        """Forget what it showed."""

    def type(self, text: str) -> None: ...

    def shown(self) -> str:
        """Return what it shows since `begin`."""


class Place(NamedTuple):
    """What is somewhere else each time: the server, and the directory."""

    url: str
    directory: Path

    def said_alike(self, text: str) -> str:
        """Return what was shown as the guide has it: with its names, and without the frames of the library."""
        host = re.compile(rf"\b{re.escape(socket.gethostname())}(?=-\d+-)")
        text = text.replace(self.url, URL).replace(os.fspath(self.directory), "/srv/shop")
        return host.sub("shop-1", _OF_THE_LIBRARY.sub("  ...\n", text))


def program() -> str:
    """Return the application of the guide."""
    return GUIDE.read_text().partition("```python\n")[2].partition("```")[0]


def steps() -> list[Step]:
    """Return what is done in the guide, in its order."""
    found: list[Step] = []
    for match in _BLOCK.finditer(GUIDE.read_text()):
        if match[1] == "text":
            found.append(Step(None, match[2]))
            continue
        for part in re.split(r"^\$ ", match[2], flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Step(command, output))
    return found


def comparable(text: str) -> list[str]:
    """Return the lines that are the same each time."""
    for pattern, stand_in in _DIFFERENT:
        text = pattern.sub(stand_in, text)
    return [line for one in text.splitlines() if (line := one.strip())]


def play(some: Sequence[Step], operator: Screen, worker: Screen, place: Place) -> Iterator[tuple[Step, Step]]:
    """Do what the steps say. Return each, with what was typed and shown; that it is the same is for who plays it.

    What does not end by itself is shown until it says what the guide says, or for some time.
    """
    ids: dict[str, str] = {}
    for step in some:
        if step.command is None:
            shown = _worker_shows(worker, step.output, place)
            yield step, Step(None, shown)
            continue
        command = step.command
        for old, new in ids.items():
            command = command.replace(old, new)
        if _STAYS in command:
            shown = _started(worker, command, step.output, place)
        else:
            shown = _typed(operator, command, step.output, place)
        ids |= dict(zip(_ID.findall(step.output), _ID.findall(shown), strict=False))
        yield step, Step(command, shown)


def _started(worker: Screen, command: str, output: str, place: Place) -> str:
    worker.begin()
    worker.type(f"{command}\n")
    return _worker_shows(worker, output, place)


def _worker_shows(worker: Screen, output: str, place: Place) -> str:
    """Return the last lines of the worker's terminal, as many as the guide shows."""
    if output.startswith(_CTRL_C):
        worker.type("\x03")

    def last() -> str:
        lines = place.said_alike(_without_prompt(worker.shown())).splitlines()
        return "".join(f"{line}\n" for line in lines[-len(output.splitlines()) :])

    _wait(lambda: comparable(last()) == comparable(output))
    return last()


def _typed(operator: Screen, command: str, output: str, place: Place) -> str:
    """Type a command at the operator's terminal, and what it asks for; return what the screen shows then."""
    operator.begin()
    operator.type(f"{command}\n")

    def shown() -> str:
        text = _without_prompt(operator.shown())
        return place.said_alike(text.removeprefix(f"{command}\n"))

    if answer := _QUESTION.search(output):
        _wait(lambda: shown().rstrip().endswith("[y/N]:"))
        operator.type(f"{answer[1]}\n")
    if _WATCHES in command:
        _wait(lambda: comparable(shown()) == comparable(output.removesuffix(f"{_CTRL_C}\n")))
        operator.type("\x03")
    _wait(lambda: operator.shown().rstrip().endswith(f"\n{_PROMPT}"))
    return shown()


def _without_prompt(text: str) -> str:
    lines = text.rstrip().split("\n")
    kept = lines[:-1] if lines[-1] == _PROMPT else lines
    return "\n".join(kept).strip("\n") + "\n"


def _wait(condition: Callable[[], bool]) -> None:
    """Wait until it holds, or for some time: then it is shown how it is."""
    deadline = time.monotonic() + WITHIN
    never = threading.Event()
    while not condition() and time.monotonic() < deadline:
        never.wait(0.05)


def environment() -> dict[str, str]:
    """Return what the shells have in their environment."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "PS1": f"{_PROMPT} ", "LANG": "C.UTF-8", "HISTFILE": "/dev/null"}


class ShellOnTerminal:
    """A shell on a terminal of our own."""

    def __init__(self, directory: Path) -> None:
        self._terminal = Terminal(*BASH, columns=COLUMNS, directory=directory, environment=environment())
        self._from = 0
        self._terminal.until(r"\$ $")

    def begin(self) -> None:
        self._from = len(self._terminal.raw)

    def type(self, text: str) -> None:
        self._terminal.type(text)

    def shown(self) -> str:
        return screen_of(self._terminal.raw[self._from :])

    def close(self) -> None:
        self._terminal.close()


# Recording


class Pane:
    """A shell in a pane of tmux."""

    def __init__(self, tmux: Sequence[str], name: str) -> None:
        self._tmux = tmux
        self._name = name
        _wait(lambda: self.shown().rstrip() == _PROMPT)

    def begin(self) -> None:
        self._run("send-keys", "-R")

    def type(self, text: str) -> None:
        for key, ctrl in (("Enter", "\n"), ("C-c", "\x03")):
            if text.endswith(ctrl):
                self._run("send-keys", "-l", text.removesuffix(ctrl))
                self._run("send-keys", key)

    def shown(self) -> str:
        text = self._run("capture-pane", "-p", "-J")
        return "\n".join(line.rstrip() for line in text.split("\n"))

    def _run(self, command: str, *words: str) -> str:
        line = [*self._tmux, command, "-t", self._name, *words]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout


@contextmanager
def panes(directory: Path) -> Iterator[tuple[Pane, Pane]]:
    """Open a window of tmux with two shells, one above the other."""
    tmux = ["tmux", "-L", f"pubsub-{os.getpid()}", "-f", "/dev/null"]
    shell = shlex.join(["env", *(f"{name}={value}" for name, value in environment().items()), *BASH])
    size = ["-x", str(COLUMNS), "-y", "100"]
    new = [*tmux, "new-session", "-d", "-s", "night", "-c", os.fspath(directory), *size, shell]
    subprocess.run(new, check=True)
    try:
        subprocess.run([*tmux, "split-window", "-t", "night", "-c", os.fspath(directory), shell], check=True)
        yield Pane(tmux, "night:0.1"), Pane(tmux, "night:0.0")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def recorded(text: str, played: Iterator[tuple[Step, Step]]) -> str:
    """Return the guide with what was shown in the place of what it showed."""
    done = ""
    for before, after in played:
        print(f"$ {after.command}\n{after.output}" if after.command else after.output)
        old, new = (f"$ {one.command}\n{one.output}" if one.command else one.output for one in (before, after))
        head, found, text = text.partition(old)
        assert found, old
        done += head + new
    return done + text


def main() -> None:
    """Record the session anew."""
    if shutil.which("tmux") is None:
        sys.exit("tmux is not installed. On Debian and Ubuntu: sudo apt-get install tmux")
    for name in [name for name in os.environ if name.startswith(("PUBSUB_", "FLASK_"))]:
        del os.environ[name]
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(appendonly="yes"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "shop.py").write_text(program().replace(URL, server.url))
        operator, worker = stack.enter_context(panes(directory))
        place = Place(server.url, directory)
        GUIDE.write_text(recorded(GUIDE.read_text(), play(steps(), operator, worker, place)))


if __name__ == "__main__":
    main()
