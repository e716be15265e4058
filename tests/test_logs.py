"""Log lines: their context, as JSON, sampled; and what is never in them."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pubsub_core import Message, NoRetry, PubSub, Worker
from pubsub_core.logs import (
    ContextFilter,
    JsonFormatter,
    LineHandler,
    Sampler,
    configure_logging,
    tell_left_out,
    write_held_lines,
)
from tests.test_supervisor import Fleet, fleet  # noqa: F401  # the fixture


class Lines(logging.Handler):
    """Keeps what a handler of logging with our filter and formatter would write."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(ContextFilter())
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, logger: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line["logger"] == logger]


@contextmanager
def attached(handler: logging.Handler) -> Iterator[None]:
    """Have all records from INFO on go to the handler."""
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    with attached(handler):
        yield handler


def drain(pubsub: PubSub) -> None:
    with Worker(pubsub, threads=2, burst=True) as worker:
        assert worker.wait(10)


# Lines that are written together


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a worker's handler writes of the library's logger."""
    stream = io.StringIO()
    with attached(LineHandler(stream)):
        yield stream


def log_handled(number: int) -> None:
    logging.getLogger("pubsub").info("handled %d", number, extra={"outcome": "handled"})


def test_lines_of_handled_messages_are_written_together(written):
    for number in range(3):
        log_handled(number)
    assert written.getvalue() == ""

    write_held_lines()

    assert written.getvalue() == "handled 0\nhandled 1\nhandled 2\n"
    write_held_lines()
    assert written.getvalue().count("\n") == 3


def test_any_other_line_is_written_at_once_behind_those_before_it(written):
    log_handled(0)
    logging.getLogger("shop").warning("low on stock")
    logging.getLogger("pubsub").warning("retried", extra={"outcome": "retried"})
    logging.getLogger("shop").warning("of another program", extra={"outcome": "handled"})
    assert written.getvalue() == "handled 0\nlow on stock\nretried\nof another program\n"


def test_lines_are_not_held_for_ever_if_nobody_asks_for_them(written):
    for number in range(500):
        log_handled(number)
    assert written.getvalue().splitlines() == [f"handled {number}" for number in range(500)]


def test_a_line_that_cannot_be_formatted_is_told_of(capsys):
    handler = LineHandler(io.StringIO())
    facts = {"name": "pubsub", "outcome": "handled", "msg": "handled %d"}
    handler.handle(logging.makeLogRecord({**facts, "args": ("not a number",)}))
    handler.handle(logging.makeLogRecord({**facts, "args": (1,)}))
    handler.flush()
    assert handler.stream.getvalue() == "handled 1\n"
    assert "not a number" in capsys.readouterr().err


def test_a_forked_child_leaves_the_lines_of_its_parent_to_it(written):
    log_handled(0)
    pid = os.fork()
    if pid == 0:
        write_held_lines()
        os._exit(written.getvalue() != "")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    write_held_lines()
    assert written.getvalue() == "handled 0\n"


def test_a_log_that_nobody_reads_any_more_stops_nobody(written):
    log_handled(0)
    written.close()
    write_held_lines()
    log_handled(1)


def test_a_worker_has_the_lines_written_soon(written):
    pubsub = PubSub("memory://", group="billing")
    pubsub.subscribe("orders")(lambda message: None)
    with Worker(pubsub, threads=2):
        ids = [pubsub.publish("orders", number) for number in range(3)]
        deadline = time.monotonic() + 10
        while not all(one in written.getvalue() for one in ids):
            assert time.monotonic() < deadline
            time.sleep(0.001)


# Context


def test_each_record_written_in_a_handler_has_the_message_at_work(lines):
    pubsub = PubSub("memory://", group="billing")

    @pubsub.subscribe("orders")
    def handle(message: Message) -> None:
        logging.getLogger("shop").info("charging %s", 9)

    @pubsub.subscribe("mails")
    async def send(message: Message) -> None:
        logging.getLogger("post").warning("sending", extra={"topic": "my own"})

    id = pubsub.publish("orders", {}, headers={"correlation-id": "request-7"})
    other = pubsub.publish("mails", {})
    logging.getLogger("shop").info("outside")
    drain(pubsub)

    outside, inside = lines.of("shop")
    assert "message_id" not in outside
    assert inside["message"] == "charging 9"
    assert {name: inside[name] for name in ("topic", "message_id", "group", "attempt", "correlation_id")} == {
        "topic": "orders",
        "message_id": id,
        "group": "billing",
        "attempt": 1,
        "correlation_id": "request-7",
    }
    (post,) = lines.of("post")
    assert (post["message_id"], post["correlation_id"]) == (other, other)  # without another, it is its own
    assert post["topic"] == "my own"  # what the record says itself counts
    pubsub.close()


def test_one_line_tells_of_each_settled_message(lines):
    pubsub = PubSub("memory://", group="billing")

    @pubsub.subscribe("orders", retry=NoRetry())
    def handle(message: Message) -> None:
        if message.payload == "bad":
            raise ValueError("the card is declined")

    good, bad = pubsub.publish("orders", "good"), pubsub.publish("orders", "bad")
    drain(pubsub)

    settled = {line["message_id"]: line for line in lines.of("pubsub") if "outcome" in line}
    assert settled[good]["outcome"] == "handled"
    assert settled[good]["seconds"] >= 0
    assert settled[good]["correlation_id"] == good
    assert settled[bad]["outcome"] == "dead"
    (failed,) = [line for line in lines.of("pubsub") if "exception" in line]
    assert failed["message_id"] == bad
    assert failed["exception"].endswith("ValueError: the card is declined")
    pubsub.close()


# JSON


def formatted(**changes: object) -> dict[str, object]:
    record = logging.LogRecord("shop", logging.WARNING, "shop.py", 1, "%s: %d", ("kiwis", 3), None)
    vars(record).update(changes)
    text = JsonFormatter().format(record)
    assert "\n" not in text

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line: dict[str, object] = json.loads(text, parse_constant=refuse)
    return line


def test_a_line_is_an_object_that_begins_with_what_every_line_has():
    line = formatted(created=0.5, order=7)

    assert list(line) == ["time", "level", "logger", "message", "process", "order"]
    assert line["time"] == "1970-01-01T00:00:00.500+00:00"
    assert (line["level"], line["logger"], line["message"], line["order"]) == ("WARNING", "shop", "kiwis: 3", 7)


@pytest.mark.parametrize(
    "odd", [object(), {1: "a", (2, 3): "b"}, float("nan"), {1, 2}, b"bytes", "two\nlines", "\ud800", [[]]]
)
def test_whatever_an_application_adds_to_a_record_the_line_is_json(odd):
    if isinstance(odd, list):
        odd.append(odd)

    line = formatted(odd=odd)

    assert line["message"] == "kiwis: 3"
    assert "odd" in line


# Sampling


def test_more_lines_on_handled_messages_than_asked_for_are_counted_instead():
    now = [0.0]
    sampler = Sampler(2, lambda: now[0])

    def record(outcome: str | None = "handled") -> logging.LogRecord:
        made = logging.LogRecord("pubsub", logging.INFO, "x.py", 1, "orders %s", ("17",), None)
        if outcome is not None:
            made.outcome = outcome
        return made

    assert [sampler.filter(record()) for _ in range(5)] == [True, True, False, False, False]
    assert all(sampler.filter(record(outcome)) for outcome in ("dead", "retried", "dropped", None) for _ in range(5))
    now[0] = 1.0
    next_one = record()
    assert sampler.filter(next_one)
    assert next_one.getMessage() == "orders 17 [and 3 more, not logged]"
    assert next_one.left_out == 3
    assert sampler.filter(record())
    assert not sampler.filter(record())
    assert sampler.close() == 1
    assert sampler.close() == 0


def test_what_was_left_out_last_is_told_at_the_end(lines):
    library = logging.getLogger("pubsub")
    configure_logging(None, sample=1)
    configure_logging(None, sample=1)
    try:
        (sampler,) = [one for one in library.filters if isinstance(one, Sampler)]
        sampler._clock = lambda: sampler._since
        for _ in range(4):
            library.info("handled", extra={"outcome": "handled"})
        tell_left_out()
        tell_left_out()
    finally:
        library.filters.clear()

    assert [line["message"] for line in lines.of("pubsub")] == [
        "handled",
        "3 more messages were handled, not logged",
    ]


# Configuring


def test_importing_and_using_the_library_configures_nothing():
    code = (
        "import logging, pubsub_core, pubsub_core.logs, pubsub_core.worker.supervisor, pubsub_flask\n"
        "pubsub = pubsub_core.PubSub('memory://'); pubsub.publish('orders', 1)\n"
        "assert not logging.getLogger().handlers\n"
        "names = [name for name in logging.root.manager.loggerDict if name.startswith('pubsub')]\n"
        "assert all(not logging.getLogger(name).handlers for name in names), names\n"
        "assert all(logging.getLogger(name).level == logging.NOTSET for name in names), names\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_the_application_configured_is_left_alone(lines):
    before = list(logging.getLogger().handlers)
    configure_logging("DEBUG", "json")
    assert logging.getLogger().handlers == before
    assert logging.getLogger().level == logging.INFO


# The worker


def json_lines(output: str) -> list[dict[str, object]]:
    """Return what is not written by the handlers of tests/apps/shop.py: all of it must be JSON."""
    own = re.compile(r"(started|done|sent|did it) ")
    return [json.loads(line) for line in output.splitlines() if not own.match(line)]


def test_a_worker_writes_json_alone_and_samples(fleet):  # noqa: F811
    with fleet.worker("shop", "-t", "2", "--log-format", "json", "--log-sample", "3") as worker:
        fleet.publish(200)
        fleet.publish(2, "fail")
        worker.wait_for("^done", 200)
        worker.wait_for('"outcome": "dead"', 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        lines = json_lines(worker.output)
    handled = [line for line in lines if line.get("outcome") == "handled"]
    assert 0 < len(handled) < 200
    assert len(handled) + sum(int(str(line.get("left_out", 0))) for line in lines) == 200
    assert [line["level"] for line in lines if "exception" in line] == ["ERROR", "ERROR"]
    assert any("shop · redis://" in str(line["message"]) for line in lines)


@pytest.mark.parametrize("target", ["raises", "shpo"])
def test_a_worker_that_cannot_start_says_so_in_json_too(fleet, target):  # noqa: F811
    with fleet.worker(target, "--json") as worker:
        assert worker.wait() == 2
        (line,) = json_lines(worker.output)
    assert line["level"] == "CRITICAL"
    assert ("exception" in line) == (target == "raises")


CANARY = "c4n4ry-in-the-coal-mine"


@pytest.mark.parametrize("form", ["text", "json"])
def test_payloads_headers_keys_and_passwords_are_in_no_line(fleet, form, tmp_path):  # noqa: F811
    (tmp_path / "mine.py").write_text(
        "from pydantic import BaseModel\n"
        "from pubsub_core import Message, NoRetry, PubSub, Reject, Retry\n"
        "pubsub = PubSub(group='mine')\n"
        "class Coal(BaseModel):\n"
        "    tons: int\n"
        "    secret: str = ''\n"
        "@pubsub.subscribe('coal', retry=NoRetry())\n"
        "def dig(coal: Coal) -> None:\n"
        "    if coal.tons == 1: raise ValueError('no coal')\n"
        "    if coal.tons == 2: raise Reject('not today')\n"
        "    if coal.tons == 3: raise Retry(delay=600)\n"
    )
    own = Fleet(fleet.url)
    payloads = [{"tons": tons, "secret": CANARY} for tons in range(4)]
    for payload in [*payloads, {"tons": CANARY}, {"secret": CANARY}, CANARY]:
        own.pubsub.publish("coal", payload, headers={"token": CANARY}, key=CANARY)
    own.client.xadd(own.stream("coal"), {"id": "x", "payload": b"{" + CANARY.encode()})
    options = ["--log-format", form, "--log-level", "DEBUG", "--health-port", "0"]
    url = fleet.url.replace("redis://", f"redis://:{CANARY}@")
    with own.worker("mine", *options, cwd=tmp_path) as worker:
        worker.wait_for("(?i)dead-lettered", 5)
        worker.wait_for("handled by")
        worker.wait_for("to be retried")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert CANARY not in worker.output
    with own.worker("mine", *options, cwd=tmp_path, PUBSUB_URL=url) as worker:
        assert worker.wait_for(r"redis://:?\*\*\*@")
        assert CANARY not in worker.output
    own.close()


def test_sampling_from_many_threads_loses_no_count():
    sampler = Sampler(10, lambda: 0.0)
    record = logging.LogRecord("pubsub", logging.INFO, "x.py", 1, "m", (), None)
    record.outcome = "handled"
    passed: list[bool] = []
    threads = [
        threading.Thread(target=lambda: passed.extend(sampler.filter(record) for _ in range(1000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(True) + sampler.close() == 4000
    assert passed.count(True) == 10
