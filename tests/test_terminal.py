"""The commands as somebody at a terminal has them: tables, what moves, and Ctrl-C."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pubsub_core import NoRetry, PubSub, Worker
from tests.servers import RealServer, redis_server
from tests.terminal import CLEAR, WITHIN, terminal

PUBSUB = os.fspath(Path(sys.executable).parent / "pubsub")


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
    with terminal(PUBSUB, "status") as screen:
        assert screen.end() == 0, screen.text
    with terminal(PUBSUB, "dead", "list", "orders", "--group", "billing") as listed:
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


def test_an_id_stays_whole_on_a_narrow_terminal(shop: PubSub):
    """For it is there to be copied."""
    message_id = shop.publish("orders", -1)
    work(shop)
    for columns in (110, 80, 40):
        with terminal(PUBSUB, "dead", "list", "orders", "--group", "billing", columns=columns) as listed:
            assert listed.end() == 0
        assert message_id in listed.text
        assert ("─────" in listed.text) == (columns == 110)


def test_status_is_shown_again_until_it_is_interrupted(shop: PubSub):
    work(shop)
    with terminal(PUBSUB, "status", "--watch", "0.2") as screen:
        screen.until_cleared(2)
        shop.publish("orders", 1)
        screen.until("orders / billing: 1 messages wait")
        screen.interrupt()
        assert screen.end() == 0, screen.text
    assert "Traceback" not in screen.text
    assert "Abort" not in screen.text


def test_status_is_shown_every_other_second_if_nothing_else_is_said(shop: PubSub):
    work(shop)
    with terminal(PUBSUB, "status", "--watch") as screen:
        screen.until_cleared(2)
        screen.interrupt()
        assert screen.end() == 0, screen.text


def test_status_is_shown_through_an_outage(monkeypatch: pytest.MonkeyPatch):
    for name in ("PUBSUB_APP", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    with redis_server() as server:
        monkeypatch.setenv("PUBSUB_URL", server.url)
        with terminal(PUBSUB, "status", "--watch", "0.2") as screen:
            screen.until("no group is known yet")
            server.kill()
            screen.until("! the broker cannot be reached")
            cleared = screen.raw.count(CLEAR)
            server.start()
            screen.until(r"(?s)cannot be reached.*no group is known yet")
            screen.interrupt()
            assert screen.end() == 0, screen.text
            assert screen.raw.count(CLEAR) > cleared


def test_tail_follows_until_it_is_interrupted(shop: PubSub):
    first = shop.publish("orders", 1)
    with terminal(PUBSUB, "tail", "orders", "--follow", "--json") as screen:
        screen.until(first)
        more = [shop.publish("orders", number) for number in range(2, 30)]
        screen.until(more[-1])
        screen.interrupt()
        assert screen.end() == 0, screen.text
    assert [json.loads(line)["id"] for line in screen.text.splitlines()] == [first, *more]


def test_tail_of_a_topic_that_is_empty_shows_the_first_message(shop: PubSub):
    with terminal(PUBSUB, "tail", "orders", "--follow") as screen:
        deadline = time.monotonic() + WITHIN
        ids: list[str] = []
        while not any(one in screen.text for one in ids):  # it may not have begun to follow
            assert time.monotonic() < deadline
            ids.append(shop.publish("orders", 1))
            threading.Event().wait(0.1)
        screen.interrupt()
        assert screen.end() == 0, screen.text


def test_publishing_lines_draws_a_bar(shop: PubSub, tmp_path: Path):
    file = tmp_path / "orders.jsonl"
    file.write_text("".join(f"{number}\n" for number in range(3_000)))
    with terminal(PUBSUB, "publish", "orders", "--file", str(file), "--lines") as screen:
        assert screen.end() == 0, screen.text
    assert "publishing" in screen.text
    assert "100%  3,000 messages" in screen.text
    assert "3,000 messages published" in screen.text
    assert shop.inspector.topic("orders").messages == 3_000


def test_publishing_lines_that_is_interrupted_says_how_many_there_were(shop: PubSub):
    """The input is still open then: it waits for more."""
    to_read, to_write = os.pipe()
    with terminal(PUBSUB, "publish", "orders", "--file", "-", "--lines", stdin=to_read) as screen:
        os.close(to_read)
        os.write(to_write, b"".join(b"%d\n" % number for number in range(700)))
        deadline = time.monotonic() + WITHIN
        while shop.inspector.topic("orders").messages < 500:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        screen.interrupt()
        assert screen.end() == 130, screen.text
        os.close(to_write)
    assert "500 messages\n" in screen.text
    assert "%" not in screen.text  # nobody knows of how many
    assert "interrupted. 500 messages were published" in screen.text
    assert shop.inspector.topic("orders").messages == 500
    assert "Traceback" not in screen.text
