"""The commands as somebody at a terminal has them: tables, what moves, and Ctrl-C."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGINT

import pytest

from pubsub_core import NoRetry, PubSub, Worker
from tests.servers import RealServer
from tests.test_docs import blocks
from tests.test_operating_guide import GUIDE

WITHIN = 20.0
PUBSUB = os.fspath(Path(sys.executable).parent / "pubsub")
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CLEAR = "\x1b[2J"


class Terminal:
    """A command that has a terminal for its output, and a pipe or a terminal for its input."""

    def __init__(self, *words: str, columns: int = 160, stdin: int | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        # As a shell starts it: who runs these tests in the background ignores Ctrl-C, and so would we.
        command = ["env", "--default-signal=INT", PUBSUB, *words]
        environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            command,
            stdin=theirs if stdin is None else stdin,
            stdout=theirs,
            stderr=theirs,
            env=environment,
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


@contextmanager
def terminal(*words: str, columns: int = 160, stdin: int | None = None) -> Iterator[Terminal]:
    one = Terminal(*words, columns=columns, stdin=stdin)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def shop(redis: RealServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubSub]:
    monkeypatch.setenv("PUBSUB_URL", redis.url)
    monkeypatch.setenv("PUBSUB_NAMESPACE", f"test-{uuid.uuid4().hex}")
    for name in ("PUBSUB_APP", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    pubsub = PubSub(group="billing")

    @pubsub.subscribe("orders", retry=NoRetry())
    def charge(order: int) -> None:
        if order < 0:
            raise ValueError("[bold]negative[/bold] \x1b[31m")

    yield pubsub
    pubsub.close()


def work(shop: PubSub) -> None:
    with Worker(shop, threads=1, burst=True) as worker:
        assert worker.wait(WITHIN)


def test_tables_are_drawn_and_plain_where_they_are_piped(shop: PubSub):
    ids = shop.publish("orders", -1), shop.publish("orders", 2)
    work(shop)
    with terminal("status") as screen:
        assert screen.end() == 0
    with terminal("dead", "list", "orders", "--group", "billing") as listed:
        assert listed.end() == 0
    piped = subprocess.run([PUBSUB, "groups"], capture_output=True, text=True, check=True).stdout

    assert "─────" in screen.text
    assert "\x1b[1m" in screen.raw
    assert "! orders / billing: 1 dead letters" in screen.text
    assert f"{ids[0]} " in listed.text
    assert "[bold]negative[/bold]" in listed.text  # as it is, and what would colour it is gone
    assert "\x1b[31m" not in listed.raw
    assert piped.splitlines()[0].split() == [
        "topic", "group", "waiting", "in", "hand", "parked", "dead", "oldest", "workers", "paused",
    ]  # fmt: skip
    assert "\x1b" not in piped


@pytest.mark.usefixtures("shop")
def test_the_guide_shows_the_screen_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUBSUB_NAMESPACE", f"test-{uuid.uuid4().hex}")
    night = PubSub(group="billing")

    @night.subscribe("orders.placed", retry=NoRetry())
    def charge(order: int) -> None:
        if order > 100:
            raise ValueError("more than the limit of the card")

    for number in range(1, 41):
        night.publish("orders.placed", 10 * number)
    work(night)
    with terminal("status") as screen:
        assert screen.end() == 0
    night.close()

    (shown,) = [one[2] for one in blocks(GUIDE, "text") if "─────" in one[2]]
    written = screen.text.replace(night.settings.url, "redis://localhost:6379/0")
    assert lines_of(written.replace(night.settings.namespace, "pubsub")) == lines_of(shown)


def lines_of(text: str) -> list[str]:
    """Return the lines, but for the time, what fills the width, and blank ones."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME", text)
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [line.replace("─", "") for line in lines if line]


def test_an_id_stays_whole_on_a_narrow_terminal(shop: PubSub):
    """For it is there to be copied."""
    message_id = shop.publish("orders", -1)
    work(shop)
    for columns in (110, 80, 40):
        with terminal("dead", "list", "orders", "--group", "billing", columns=columns) as listed:
            assert listed.end() == 0
        assert message_id in listed.text
        assert ("─────" in listed.text) == (columns == 110)


def test_status_is_shown_again_until_it_is_interrupted(shop: PubSub):
    work(shop)
    with terminal("status", "--watch", "0.2") as screen:
        screen.until_cleared(2)
        shop.publish("orders", 1)
        screen.until("orders / billing: 1 messages wait")
        screen.interrupt()
        assert screen.end() == 0
    assert "Traceback" not in screen.text
    assert "Abort" not in screen.text


def test_tail_follows_until_it_is_interrupted(shop: PubSub):
    first = shop.publish("orders", 1)
    with terminal("tail", "orders", "--follow", "--json") as screen:
        screen.until(first)
        more = [shop.publish("orders", number) for number in range(2, 30)]
        screen.until(more[-1])
        screen.interrupt()
        assert screen.end() == 0
    assert [json.loads(line)["id"] for line in screen.text.splitlines()] == [first, *more]


def test_tail_of_a_topic_that_is_empty_shows_the_first_message(shop: PubSub):
    with terminal("tail", "orders", "--follow") as screen:
        deadline = time.monotonic() + WITHIN
        ids: list[str] = []
        while not any(one in screen.text for one in ids):  # it may not have begun to follow
            assert time.monotonic() < deadline
            ids.append(shop.publish("orders", 1))
            threading.Event().wait(0.1)
        screen.interrupt()
        assert screen.end() == 0


def test_publishing_lines_draws_a_bar(shop: PubSub, tmp_path: Path):
    file = tmp_path / "orders.jsonl"
    file.write_text("".join(f"{number}\n" for number in range(3_000)))
    with terminal("publish", "orders", "--file", str(file), "--lines") as screen:
        assert screen.end() == 0
    assert "publishing" in screen.text
    assert "100%  3,000 messages" in screen.text
    assert "3,000 messages published" in screen.text
    assert shop.inspector.topic("orders").messages == 3_000


def test_publishing_lines_that_is_interrupted_says_how_many_there_were(shop: PubSub):
    """The input is still open then: it waits for more."""
    to_read, to_write = os.pipe()
    with terminal("publish", "orders", "--file", "-", "--lines", stdin=to_read) as screen:
        os.close(to_read)
        os.write(to_write, b"".join(b"%d\n" % number for number in range(700)))
        deadline = time.monotonic() + WITHIN
        while shop.inspector.topic("orders").messages < 500:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        screen.interrupt()
        assert screen.end() == 130
        os.close(to_write)
    assert "500 messages\n" in screen.text
    assert "%" not in screen.text  # nobody knows of how many
    assert "interrupted. 500 messages were published" in screen.text
    assert shop.inspector.topic("orders").messages == 500
    assert "Traceback" not in screen.text
