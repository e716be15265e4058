"""A terminal for a command: what it writes is kept, and it can be typed at."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGINT

WITHIN = 20.0
CLEAR = "\x1b[2J"
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command that has a terminal for its output, and a terminal or a pipe for its input."""

    def __init__(
        self,
        *command: str,
        columns: int = 160,
        stdin: int | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(environment or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
            variables.pop(name, None)
        # As a shell starts it: who runs these tests in the background ignores Ctrl-C, and so would we.
        words = ["env", "--default-signal=INT", *command]
        if stdin is None:
            words = ["setsid", "--ctty", *words]  # so that a Ctrl-C that is typed arrives
        self._process = subprocess.Popen(
            words,
            stdin=theirs if stdin is None else stdin,
            stdout=theirs,
            stderr=theirs,
            cwd=directory,
            env=variables,
        )
        os.close(theirs)
        self._written = b""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # which is how a terminal says that nobody has it any more
            while some := os.read(self._ours, 65536):
                with self._news:
                    self._written += some
                    self._news.notify_all()

    @property
    def raw(self) -> str:
        """All that was written, with what moves the cursor and what colours."""
        return self._written.decode("utf-8", "replace").replace("\r\n", "\n")

    @property
    def text(self) -> str:
        """What was written, without."""
        return _STYLES.sub("", self.raw)

    def until(self, pattern: str) -> None:
        """Wait until something was written."""
        with self._news:
            assert self._news.wait_for(lambda: re.search(pattern, self.text), WITHIN), self.text

    def until_cleared(self, times: int) -> None:
        """Wait until the screen was cleared so often."""
        with self._news:
            assert self._news.wait_for(lambda: self.raw.count(CLEAR) >= times, WITHIN), self.raw

    def type(self, text: str) -> None:
        """Type at it."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(SIGINT)

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self._process.wait(WITHIN)
        self._reader.join(WITHIN)
        return code

    def close(self) -> None:
        """Let nothing be left."""
        self._process.kill()
        self.end()
        os.close(self._ours)


def screen_of(raw: str) -> str:
    """Return what a screen shows, of which this was written to a terminal: what was overwritten is gone."""
    text = _STYLES.sub("", raw.rpartition(CLEAR)[2])
    return "\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))


@contextmanager
def terminal(
    *command: str,
    columns: int = 160,
    stdin: int | None = None,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Terminal]:
    """Run a command at a terminal for as long as the context lasts."""
    one = Terminal(*command, columns=columns, stdin=stdin, directory=directory, environment=environment)
    try:
        yield one
    finally:
        one.close()
