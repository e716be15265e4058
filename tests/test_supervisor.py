"""The command `pubsub worker` as a user runs it: real processes, real signals, a real server."""

import contextlib
import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic, time
from typing import IO, Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import ResponseError

import pubsub_core
from pubsub_core import PubSub
from pubsub_core.worker.child import _spare_the_collector
from pubsub_core.worker.options import WorkerOptions
from pubsub_core.worker.reload import CHANGED
from pubsub_core.worker.supervisor import _Child, _Supervisor
from tests.servers import RealServer, redis_server

APPS = Path(__file__).parent / "apps"
BIN = Path(sys.executable).parent
WITHIN = 30.0  # seconds that anything may take before a test gives up on it


class Running:
    """A process and its children, what they wrote, and when they are gone. Killed when the `with` block is left."""

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        environment: dict[str, str],
        stderr: int | IO[bytes] = subprocess.STDOUT,
    ) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PUBSUB_", "FLASK_"))}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**clean, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._is_over = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="reader-of-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(WITHIN)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    def find(self, pattern: str) -> list[re.Match[str]]:
        """Return where the pattern matches, of each line."""
        with self._changed:
            return [match for line in self.lines if (match := re.search(pattern, line))]

    def wait_for(self, pattern: str, count: int = 1, within: float = WITHIN) -> list[re.Match[str]]:
        """Wait until that many lines match the pattern."""
        expression = re.compile(pattern)
        seen = found = 0

        def is_there() -> bool:
            nonlocal seen, found
            found += sum(expression.search(line) is not None for line in self.lines[seen:])
            seen = len(self.lines)
            return found >= count or self._is_over

        with self._changed:
            self._changed.wait_for(is_there, within)
        assert found >= count, f"{found} of {count} lines with {pattern!r} in:\n{self.output[-6000:]}"
        return self.find(pattern)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = WITHIN) -> int:
        """Wait until it has ended, and all that it started; return its exit code."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_over, within), f"it still runs:\n{self.output[-6000:]}"
        return self.process.wait(within)


class Fleet:
    """A server, a namespace of its own on it, and the means to start workers there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"t{uuid4().hex[:12]}"
        self.gate = f"{self.namespace}-gate"
        self.client = Redis.from_url(url)
        self.pubsub = PubSub(url, namespace=self.namespace)

    def run(
        self,
        *command: str | Path,
        cwd: Path = APPS,
        stderr: int | IO[bytes] = subprocess.STDOUT,
        **environment: str,
    ) -> Running:
        place = {"PUBSUB_URL": self.url, "PUBSUB_NAMESPACE": self.namespace}
        return Running(command, cwd, {**place, **environment}, stderr)

    def worker(
        self,
        target: str,
        *options: str,
        cwd: Path = APPS,
        stderr: int | IO[bytes] = subprocess.STDOUT,
        **environment: str,
    ) -> Running:
        return self.run(BIN / "pubsub", "worker", target, *options, cwd=cwd, stderr=stderr, **environment)

    def publish(self, count: int, do: str = "nothing", topic: str = "orders", first: int = 0) -> list[str]:
        with self.pubsub.batch() as batch:
            for number in range(first, first + count):
                batch.publish(topic, {"number": number, "do": do})
        return list(batch.ids)

    def open_gate(self, count: int) -> None:
        self.client.rpush(self.gate, *["go"] * count)

    def pending(self, topic: str = "orders", group: str = "billing") -> int:
        found: Any = self.client.xpending(self.stream(topic), group)
        return int(found["pending"])

    def wait_for_consumers(self, count: int) -> None:
        """Wait until so many processes have joined."""
        deadline = monotonic() + WITHIN
        pause = threading.Event()
        while True:
            with contextlib.suppress(ResponseError):  # there is no group yet
                rows = self.client.xinfo_consumers(self.stream(), "billing")
                if sum(row["name"] != b"~parked" for row in rows) >= count:
                    return
            assert monotonic() < deadline, f"not {count} consumers within {WITHIN} s"
            pause.wait(0.02)

    def stream(self, topic: str = "orders") -> str:
        return f"{self.namespace}:{{{topic}}}"

    def close(self) -> None:
        self.pubsub.close()
        self.client.close()


@pytest.fixture
def fleet(redis: RealServer) -> Iterator[Fleet]:
    fleet = Fleet(redis.url)
    yield fleet
    fleet.close()


def numbers(found: list[re.Match[str]]) -> list[int]:
    return sorted(int(match[1]) for match in found)


def is_ready(worker: Running) -> None:
    worker.wait_for(r"^  topic +group +handler")


# The main job


@pytest.mark.slow
def test_four_processes_of_ten_threads_handle_each_message_of_another_process_once(fleet):
    publish = (
        "from pubsub_core import PubSub\n"
        "pubsub = PubSub()\n"
        "for start in range(0, 20_000, 1_000):\n"
        "    with pubsub.batch() as batch:\n"
        "        for number in range(start, start + 1_000):\n"
        "            batch.publish('orders', {'number': number, 'do': 'nothing'})\n"
    )
    with fleet.worker("shop", "-p", "4", "-t", "10", "--log-level", "WARNING") as worker:
        fleet.wait_for_consumers(4)
        with fleet.run(sys.executable, "-c", publish) as publisher:
            worker.wait_for(r"^done (\d+) 1 ", 20_000)
            assert publisher.wait() == 0
        began = monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert monotonic() - began < 4  # a read that nobody woke would take 5
        done = worker.find(r"^done (\d+) (\d+) (\d+)$")
        assert numbers(done) == list(range(20_000))
        assert {match[2] for match in done} == {"1"}
        assert len({match[3] for match in done}) == 4
    assert fleet.pending() == 0


def test_it_says_at_its_start_what_it_does(fleet):
    host = fleet.url.removeprefix("redis://")
    with fleet.worker("shop:pubsub", "-t", "2", PUBSUB_URL=f"redis://:@{host}", PUBSUB_TIMEOUT="45") as worker:
        worker.wait_for(r"^  mails")
        head, *table = [line for line in worker.lines if line.startswith(("pubsub ", "  "))]
        assert head == f"pubsub {pubsub_core.__version__} · shop:pubsub · redis://***@{host} · 1 process × 2 threads"
        assert [line.split() for line in table] == [
            ["topic", "group", "handler", "retry", "timeout"],
            ["orders", "billing", "shop.charge", "none", "90", "s"],
            ["mails", "sender", "shop.send", "exponential", "×16", "45", "s"],
        ]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len(worker.find("topic +group")) == 1


def test_each_settled_message_is_one_line_and_a_traceback_is_written_once(fleet):
    with fleet.worker("shop", "-t", "1") as worker:
        ids = fleet.publish(1) + fleet.publish(1, "fail", first=1) + fleet.publish(1, "reject", first=2)
        (mail,) = fleet.publish(1, topic="mails")
        worker.wait_for(rf" {ids[2]} .* by ")
        worker.wait_for(rf" {mail} .* by ")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert worker.find(rf"INFO orders {ids[0]} handled by shop\.charge in \d+ ms \(attempt 1\)$")
        assert worker.find(rf"INFO mails {mail} handled by shop\.send in \d+ ms \(attempt 1\)$")
        assert worker.find(rf"ERROR orders {ids[1]} failed in shop\.charge \(attempt 1\): ValueError$")
        assert worker.find(
            rf"WARNING orders {ids[1]} dead-lettered \(retries exhausted: the card is declined\) by shop"
        )
        assert worker.find(rf"WARNING orders {ids[2]} dead-lettered \(rejected: no such customer\) by shop\.charge")
        assert worker.output.count("Traceback (most recent call last)") == 1
        assert worker.output.count("ValueError: the card is declined") == 1
        for settled in (ids[0], ids[2], mail):
            assert len(worker.find(settled)) == 1


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_handlers_finish_and_hands_the_rest_to_others_at_once(fleet, number):
    fleet.publish(40, "hold")
    with fleet.worker("shop", "-p", "2", "-t", "2", GATE=fleet.gate) as first:
        first.wait_for("^started", 4)
        with fleet.worker("shop", "-t", "4") as second:
            is_ready(second)
            if number == signal.SIGINT:
                os.killpg(first.process.pid, number)  # as a terminal does
            else:
                first.signal(number)
            second.wait_for("^done", 36)
            assert first.process.poll() is None
            fleet.open_gate(4)
            assert first.wait() == 0
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
            done = first.find(r"^done (\d+) 1 ") + second.find(r"^done (\d+) 1 ")
            assert numbers(done) == list(range(40))
            assert len(first.find("^started")) == 4
            assert len(second.find("^started")) == 36
            assert first.find("stopping: handlers get up to 25 s")
    assert fleet.pending() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_a_second_signal_leaves_at_once_and_nothing_is_lost(fleet, number, code):
    fleet.publish(10, "hold")
    with fleet.worker("shop", "-p", "2", "-t", "2", GATE=fleet.gate, PUBSUB_HEARTBEAT="0.3") as first:
        first.wait_for("^started", 4)
        first.signal(number)
        first.wait_for("stopping: handlers get up to")
        first.signal(number)
        began = monotonic()
        assert first.wait() == code
        assert monotonic() - began < 5
        assert first.find("leaving at once")
        assert not first.find("^done")
    with fleet.worker("shop", "--burst", PUBSUB_HEARTBEAT="0.3") as second:
        assert second.wait() == 0
        rest = numbers(second.find(r"^done (\d+) [12] "))  # 2 if it took long enough for others to be taken for dead
    with fleet.worker("shop", PUBSUB_HEARTBEAT="0.3") as third:
        third.wait_for(r"^done \d+ 2 ", 10 - len(rest))
        assert sorted(rest + numbers(third.find(r"^done (\d+) 2 "))) == list(range(10))


def test_a_ctrl_c_that_is_also_passed_on_is_one_request(fleet):
    """A terminal sends it to all, and whoever started the worker, as `dev` does, ends it by SIGTERM then."""
    fleet.publish(1, "hold")
    with fleet.worker("shop", GATE=fleet.gate) as worker:
        worker.wait_for("^started 0 1")
        worker.signal(signal.SIGINT)
        worker.wait_for("stopping: handlers get up to")
        worker.signal(signal.SIGTERM)
        fleet.open_gate(1)
        assert worker.wait() == 0
        assert worker.find("^done 0 1 ")
        assert not worker.find("leaving at once")


def test_a_handler_that_outlasts_the_deadline_is_given_to_others(fleet):
    fleet.publish(1, "hold")
    with fleet.worker("shop", GATE=fleet.gate, PUBSUB_SHUTDOWN_TIMEOUT="0.5") as first:
        first.wait_for("^started 0 1")
        first.signal(signal.SIGTERM)
        assert first.wait() == 1
        assert first.find("some handlers did not finish in time; their messages were given to others")
    with fleet.worker("shop", "--burst") as second:
        assert second.wait() == 0
        assert second.find("^done 0 2 ")


def test_what_does_not_stop_in_time_is_killed_once_and_waited_for(monkeypatch, caplog):
    """A process that is killed may still take a while to end: it swaps, or waits for a disk."""
    killed = []
    monkeypatch.setattr(os, "waitpid", lambda *_: (0, 0))
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    supervisor = _Supervisor(lambda: PubSub("memory://"), WorkerOptions(target="shop"), None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        supervisor._children[1] = _Child(1, ours, is_watcher=False)
        supervisor._stop_by = 0.0
        for _ in range(3):
            supervisor._reap()
    assert killed == [(1, signal.SIGKILL)]
    assert [record.getMessage() for record in caplog.records] == ["killing 1 processes that did not stop in time"]
    assert supervisor._patience() > 0


def test_a_process_that_is_told_to_stop_before_it_can_listen_stops(fleet):
    with fleet.run(sys.executable, "signalled.py") as worker:
        assert worker.wait() == 0


def test_burst_ends_when_nothing_is_left(fleet):
    fleet.publish(200)
    with fleet.worker("shop", "-p", "2", "--burst", "--log-level", "WARNING") as worker:
        assert worker.wait() == 0
        assert numbers(worker.find(r"^done (\d+) 1 ")) == list(range(200))
    assert fleet.pending() == 0


# Processes that die


def test_a_killed_process_is_replaced_and_others_get_its_deliveries_in_time(fleet):
    heartbeat = 0.3
    fleet.publish(2, "hold")
    with fleet.worker("shop", "-p", "3", "-t", "1", GATE=fleet.gate, PUBSUB_HEARTBEAT=str(heartbeat)) as worker:
        victim, sibling = worker.wait_for(r"^started (\d+) 1 (\d+)", 2)
        began = monotonic()
        os.kill(int(victim[2]), signal.SIGKILL)
        (again,) = worker.wait_for(rf"^done {victim[1]} 2 (\d+)")
        # 15 s are promised at a heartbeat of 2 s, and a busy machine may take its time
        assert monotonic() - began < 15 * heartbeat / 2 + 3
        assert again[1] not in {victim[2], sibling[2]}
        worker.wait_for(rf"process {victim[2]} was killed by SIGKILL; starting another in 0\.5 s")
        fleet.publish(2, "hold", first=2)
        held = worker.wait_for(r"^started [23] 1 (\d+)", 2)
        assert len({match[1] for match in held} | {sibling[2], victim[2]}) == 4  # so the third is at work, and a fourth
        fleet.open_gate(3)
        worker.wait_for("^done [123] 1 ", 3)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert fleet.pending() == 0


def test_processes_end_by_themselves_when_the_supervisor_is_killed(fleet):
    with fleet.worker("shop", "-p", "2", "-t", "1", GATE=fleet.gate) as worker:
        fleet.publish(10, "hold")
        worker.wait_for("^started", 2)
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.wait_for("the supervisor is gone: stopping", 2)
        fleet.open_gate(2)
        assert worker.wait() == -signal.SIGKILL
        assert len(worker.find("^done")) == 2
    with fleet.worker("shop", "--burst") as other:
        assert other.wait() == 0
        assert len(other.find(r"^done \d+ 1 ")) == 8


def test_a_process_whose_thread_died_is_replaced(fleet):
    fleet.publish(1)
    with fleet.worker("deaf", "-t", "2", PUBSUB_HEARTBEAT="0.3") as worker:
        worker.wait_for("^started 0 1 ")
        worker.wait_for("a thread of the worker died")
        fleet.publish(1, first=1)
        worker.wait_for("^started 1 1 ")


def test_a_process_whose_thread_died_is_replaced_in_time_however_often(fleet):
    """Each replacement is there within 5 s, and what was in hand goes on there, uncounted as a crash."""
    with fleet.worker("deaf", "-t", "2", PUBSUB_HEARTBEAT="0.3", DEAF="always") as worker:
        is_ready(worker)
        for number in range(5):
            fleet.publish(1, first=number)
            worker.wait_for(rf"^started {number} 1 ")
            began = monotonic()
            worker.wait_for("the thread pubsub-handler-. died", number + 1)
            worker.wait_for("^imported", number + 2)
            assert monotonic() - began < 5
        assert not worker.find("starting another in")
        assert len({match[1] for match in worker.find(r"^started \d+ 1 (\d+)")}) == 5
        worker.signal(signal.SIGTERM)
        worker.wait()
    assert fleet.pending() == 0


# Handlers that fork


def test_what_a_handler_forks_ends_by_a_signal_as_ever(fleet):
    fleet.publish(1, "terminate")
    fleet.publish(1, "pool")
    with fleet.worker("forks", "-t", "2") as worker:
        worker.wait_for(rf"^terminated {-signal.SIGTERM}$")
        worker.wait_for("^pool left$")
        worker.wait_for(r"^done by \d+, True$", 2)  # the worker's own handler stands
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert fleet.pending() == 0


@pytest.mark.parametrize("topic", ["orders", "invoices"])
@pytest.mark.parametrize(("do", "code"), [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_process_that_a_handler_forked_settles_nothing(fleet, topic, do, code):
    """It ends where it comes back from the handler, and says so unless it meant to."""
    fleet.publish(1, do, topic)
    with fleet.worker("forks", "-p", "1", "-t", "1") as worker:
        worker.wait_for(f"^{do} {code}$")
        fleet.publish(1, do, topic)
        worker.wait_for(r"^done by \d+", 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len(set(numbers(worker.find(r"^done by (\d+)")))) == 1
        assert len(worker.find("forked came back from the handler")) == (0 if do == "exit" else 2)
        assert len(worker.find(f" {topic} .* handled by")) == 2
        assert not worker.find("failed in")
    assert fleet.pending(topic) == 0


# Handlers that will not stop


def test_a_handler_that_will_not_stop_costs_the_others_of_its_process_nothing(fleet):
    """Its process is replaced at once, and ends only when what else it had in hand is done."""
    with fleet.worker("stuck", "-t", "3", GATE=fleet.gate) as worker:
        fleet.publish(1, "hold")
        (innocent,) = worker.wait_for(r"^started 0 1 (\d+)")
        fleet.publish(1, "block", "blocks", first=1)
        worker.wait_for(rf"^started 1 1 {innocent[1]}")
        worker.wait_for("^started 1 2 ")
        worker.wait_for("a handler will not stop: this process finishes what else it has")
        worker.wait_for("^imported", 2)
        fleet.publish(4, first=2)
        others = worker.wait_for(r"^done [2345] 1 (\d+)", 4)
        assert innocent[1] not in {match[1] for match in others}
        fleet.open_gate(1)
        worker.wait_for(rf"^done 0 1 {innocent[1]}")
        worker.wait_for(r"^done 1 2 ")
        assert len(worker.find("^started 0 ")) == 1
        assert len(worker.find("^started 1 ")) == 2
        assert not worker.find("starting another in")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert fleet.pending() == 0


def test_a_drain_does_not_wait_for_a_handler_that_was_given_up(fleet):
    with fleet.worker("stuck", "-t", "2") as worker:
        fleet.publish(1, "block", "blocks")
        worker.wait_for("^started 0 1")
        worker.signal(signal.SIGTERM)
        began = monotonic()
        assert worker.wait() == 0
        assert monotonic() - began < 10  # of 25
    with fleet.worker("stuck", "--burst") as other:
        assert other.wait() == 0
        assert other.find("^done 0 2 ")
    assert fleet.pending("blocks") == 0


def test_a_process_in_which_python_does_not_run_any_more_is_killed_and_replaced(fleet):
    with fleet.worker("stuck", "-t", "2", PUBSUB_HEARTBEAT="0.3") as worker:
        fleet.publish(1, "regex")
        (stuck,) = worker.wait_for(r"^started 0 1 (\d+)")
        worker.wait_for(rf"process {stuck[1]} does not answer any more: killing it")
        worker.wait_for("^done 0 2 ")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert fleet.pending() == 0


def test_processes_that_keep_crashing_are_started_ever_more_slowly(fleet):
    with fleet.worker("crashes") as worker:
        for seconds in ("0.5", "1.0", "2.0"):
            worker.wait_for(rf"process \d+ ended with 7; starting another in {seconds} s")
        assert len(worker.find("ended with 7")) == 3
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_an_application_that_cannot_be_loaded_for_a_while_costs_the_others_nothing(fleet, tmp_path):
    """As when it needs a database at its import: a process that died is replaced later, and the others go on."""
    trouble = tmp_path / "trouble"
    with fleet.worker("moody", "-p", "2", "-t", "1", TROUBLE=str(trouble)) as worker:
        worker.wait_for("^imported", 2)
        fleet.publish(1)
        worker.wait_for("^done 0 ")
        for number in (1, 2):  # so that the other one has worked for a while
            victim = worker.find(r"^imported (\d+)")[-1]
            if number == 2:
                trouble.touch()
            os.kill(int(victim[1]), signal.SIGKILL)
            worker.wait_for("^imported", 3) if number == 1 else worker.wait_for("ended with 2; starting another", 2)
        fleet.publish(1, first=1)
        (done,) = worker.wait_for(r"^done 1 1 (\d+)")
        assert done[1] == worker.find(r"^imported (\d+)")[0][1]
        trouble.unlink()
        worker.wait_for("^imported", 4)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert fleet.pending() == 0


def test_a_system_that_starts_no_process_for_a_while_is_asked_again(fleet):
    with fleet.run(sys.executable, "forkless.py") as worker:
        worker.wait_for(r"no process could be started: .*; starting another in 0\.5 s")
        worker.wait_for(r"no process could be started: .*; starting another in 1\.0 s")
        assert worker.wait() == 0
        assert worker.find("^  orders  billing")


# What cannot work


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("raises", ["Traceback", 'raise ValueError("the shop is closed")', "pubsub: 'raises' could not be loaded"]),
        ("exits", ["Traceback", "SystemExit: DATABASE_URL is not set", "pubsub: 'exits' could not be loaded"]),
        ("needs", ["needs.py:3 could not import what it needs: No module named 'a_library_that_is_not_there'"]),
        ("shpo", ["there is no module 'shpo'", "shop"]),
        ("shop:pubsb", ["has no attribute 'pubsb'", "pubsub"]),
    ],
)
def test_an_application_that_cannot_be_loaded_is_told_and_not_tried_again(fleet, target, expected):
    with fleet.worker(target, "-p", "4") as worker:
        assert worker.wait() == 2
        assert all(text in worker.output for text in expected), worker.output
        assert worker.output.count("Traceback") == (target in ("raises", "exits"))


@pytest.mark.parametrize("target", ["raises", "needs"])
def test_an_application_that_cannot_be_loaded_is_not_tried_again_though_nobody_reads_why(fleet, target):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody, fleet.worker(target, stderr=nobody) as worker:
        assert worker.wait() == 2


def test_a_worker_works_though_nobody_reads_what_it_says(fleet):
    fleet.publish(1)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody, fleet.worker("shop", "--burst", stderr=nobody) as worker:
        worker.wait_for("^done 0 1 ")
        assert worker.wait() == 0


def test_a_worker_on_memory_is_told_what_to_do_instead(fleet):
    with fleet.worker("shop", PUBSUB_URL="memory://") as worker:
        assert worker.wait() == 2
        assert "a worker cannot work with memory://" in worker.output
        assert "PUBSUB_URL=redis://localhost:6379/0" in worker.output
        assert "with Worker(pubsub)" in worker.output


def test_a_wrong_password_is_told_without_showing_it():
    with redis_server(requirepass="open-sesame") as server:
        url = server.url.replace("redis://", "redis://:wr0ng-s3cret@")
        with Running([BIN / "pubsub", "worker", "shop", "-p", "2"], APPS, {"PUBSUB_URL": url}) as worker:
            assert worker.wait() == 2
            assert "wr0ng-s3cret" not in worker.output
            assert re.search("(?i)password", worker.output)


def test_a_key_of_another_type_is_told_by_its_name(fleet):
    fleet.client.set(fleet.stream(), "not a stream")
    with fleet.worker("shop") as worker:
        assert worker.wait() == 2
        assert fleet.stream() in worker.output
        assert "Traceback" not in worker.output


def test_a_worker_waits_for_a_server_that_is_down_and_says_so_once():
    with redis_server() as server:
        fleet = Fleet(server.url)
        server.kill()
        with fleet.worker("shop", "-t", "2") as worker:
            worker.wait_for("the broker is away, trying until it is back")
            is_ready(worker)
            server.start()
            worker.wait_for("the broker is back after")
            fleet.publish(1)
            worker.wait_for("^done 0 1 ")
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
            assert len(worker.find("the broker is away")) == 1
            assert "Traceback" not in worker.output
        fleet.close()


def test_a_worker_goes_on_when_the_server_comes_back():
    with redis_server(appendonly="yes", appendfsync="always") as server:
        fleet = Fleet(server.url)
        with fleet.worker("shop", "-t", "2") as worker:
            fleet.publish(10)
            worker.wait_for("^done", 10)
            server.kill()
            worker.wait_for("the broker is away")
            server.start()
            fleet.publish(10, first=10)
            worker.wait_for("^done", 20)
            worker.wait_for("the broker is back after")
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
            assert numbers(worker.find(r"^done (\d+) 1 ")) == list(range(20))
            # Twice if one thread learns of it when the others are over it already.
            assert len(worker.find("the broker is away")) in (1, 2)
        fleet.close()


# The other doors


def test_flask_is_a_second_door_and_each_message_has_an_app_context_of_its_own(fleet):
    with fleet.run(BIN / "flask", "--app", "web", "pubsub", "worker", "-t", "2", "-p", "2") as worker:
        is_ready(worker)
        fleet.publish(20)
        worker.wait_for("^teardown", 20)
        assert numbers(worker.find(r"^handled (\d+) by web$")) == list(range(20))
        assert numbers(worker.find(r"^teardown (\d+)$")) == list(range(20))
        assert worker.find(r"^pubsub .* · web · redis://")
        assert worker.find(r"^  orders  web ")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_the_worker_finds_the_pubsub_of_a_flask_app(fleet):
    with fleet.worker("web:app", "--burst") as worker:
        assert worker.wait() == 0
        assert worker.find(r"^  orders  web ")


def test_flask_tells_that_an_app_cannot_be_loaded(fleet):
    with fleet.run(BIN / "flask", "--app", "raises", "pubsub", "worker") as worker:
        assert worker.wait() == 2
        assert "ValueError: the shop is closed" in worker.output


def test_a_consumer_runs_handlers_of_main(fleet):
    environment = {"REDIS_OF_TEST": fleet.url, "NAMESPACE_OF_TEST": fleet.namespace, "GATE": fleet.gate}
    with Running([sys.executable, "consumer.py"], APPS, environment) as worker:
        is_ready(worker)
        assert worker.find("4 processes × 10 threads")
        fleet.publish(100)
        by = Counter(match[2] for match in worker.wait_for(r"^started (\d+) (\d+)$", 40))
        assert list(by.values()) == [10] * 4
        fleet.open_gate(100)
        worker.wait_for("^done", 100)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert numbers(worker.find(r"^done (\d+) 0$")) == list(range(100))


def test_reload_starts_anew_when_a_file_changes(fleet, tmp_path):
    shutil.copy(APPS / "shop.py", tmp_path)
    shop = tmp_path / "shop.py"
    with fleet.worker("shop", "--reload", cwd=tmp_path) as worker:
        is_ready(worker)
        fleet.publish(1)
        worker.wait_for("^done 0 1 ")
        source = shop.read_text()

        shop.write_text("raise ValueError('half written')\n")
        worker.wait_for("waiting for a file to change")

        shop.write_text(source.replace('tell("done"', 'tell("did it"'))
        fleet.publish(1, first=1)
        worker.wait_for("^did it 1 1 ")
        assert worker.process.poll() is None
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize(
    ("name", "seconds", "code"),
    [
        ("shop.py", 0.0, CHANGED),
        ("shop.py", -60.0, 0),  # it was loaded as it is
        ("shop.py", 3600.0, 0),  # a clock was wrong: else it would start anew again and again
        ("notes.txt", 0.0, 0),
        ("node_modules/shop.py", 0.0, 0),
    ],
)
def test_a_file_that_changed_before_it_is_watched_is_seen(tmp_path, name, seconds, code):
    """While the application starts anew nobody watches."""
    since = time()
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    os.utime(file, (since + seconds, since + seconds))
    (tmp_path / "gone.py").symlink_to("nowhere")
    program = f"""
import socket, sys
from pubsub_core.worker import reload

ours, theirs = socket.socketpair()
look, reload._LOOK = reload._is_unchanged, 50

def look_once(*arguments):
    is_unchanged = look(*arguments)
    ours.close()  # the supervisor goes: else it would wait for a change
    return is_unchanged

reload._is_unchanged = look_once
sys.exit(reload.watch_for_changes(theirs, {since!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=WITHIN, check=False)
    assert ended.returncode == code


def test_thresholds_of_the_garbage_collector_that_an_application_sets_stay() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(1234, 5, 6)
        _spare_the_collector(before)
        assert gc.get_threshold() == (1234, 5, 6)

        gc.set_threshold(*before)
        _spare_the_collector(before)
        assert gc.get_threshold()[0] > before[0], "what is in hand is looked at more seldom"
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
