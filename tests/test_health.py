"""What a worker says of itself at its port: whether it lives, is ready, and what it has done."""

import contextlib
import http.client
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import pytest

from pubsub_core import SubscriptionKey
from pubsub_core.metrics import Counts, GroupCounts, Look
from pubsub_core.worker.health import (
    CRASH_LOOP,
    LOOKS_ARE_GOOD_FOR,
    SILENT_AFTER,
    STALLED_AFTER,
    UNREAD_AFTER,
    ProcessState,
    StallWatch,
    newest_looks,
    why_not_live,
    why_not_ready,
)
from pubsub_core.worker.process import Progress
from pubsub_core.worker.report import Report
from tests.servers import redis_server
from tests.test_metrics import samples_of
from tests.test_supervisor import APPS, BIN, Fleet, Running, fleet  # noqa: F401  # the fixture

KEY = SubscriptionKey("orders", "billing")
WITHIN = 40.0


class Site:
    """The pages of a running worker."""

    def __init__(self, worker: Running) -> None:
        (found, *_) = worker.wait_for(r"health and metrics at http://127.0.0.1:(\d+)/readyz")
        self.port = int(found[1])

    def get(self, page: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, page)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def wait_for(self, page: str, status: int, text: str = "") -> str:
        """Wait until the page has that status, and the text matches; return it."""
        return self.wait_until(page, lambda had, body: had == status and re.search(text, body) is not None)

    def wait_until(self, page: str, is_right: Callable[[int, str], bool]) -> str:
        deadline, never = monotonic() + WITHIN, threading.Event()
        while not is_right(*(last := self.get(page))):
            assert monotonic() < deadline, last
            never.wait(0.1)
        return last[1]

    def wait_for_sample(self, value: float, *name: str) -> None:
        self.wait_until("/metrics", lambda _, body: samples_of(body).get(name) == value)


# Real workers


def test_a_worker_is_ready_when_its_processes_have_joined_and_counts_over_all_of_them(fleet):  # noqa: F811
    with fleet.worker("shop", "-p", "2", "-t", "2", "--health-port", "0") as worker:
        site = Site(worker)
        assert site.get("/livez") == (200, "ok\n")
        site.wait_for("/readyz", 200, "^ok\n$")
        site.wait_for_sample(0, "pubsub_handled_total", "orders", "billing")
        fleet.publish(40)
        fleet.publish(1, "fail")
        site.wait_for_sample(40, "pubsub_handled_total", "orders", "billing")
        site.wait_for_sample(1, "pubsub_dead_total", "orders", "billing", "retries exhausted")
        site.wait_for_sample(0, "pubsub_in_hand", "orders", "billing")
        site.wait_for_sample(0, "pubsub_lag", "orders", "billing")
        site.wait_for_sample(2, "pubsub_processes")
        assert samples_of(site.get("/metrics")[1])["pubsub_handler_seconds_count", "orders", "billing"] == 41


def test_what_a_dead_process_counted_stays_counted(fleet):  # noqa: F811
    with fleet.worker("shop", "-t", "2", "--health-port", "0") as worker:
        site = Site(worker)
        fleet.publish(10)
        pid = int(worker.wait_for(r"^done \d+ 1 (\d+)$", 10)[0][1])
        site.wait_for_sample(10, "pubsub_handled_total", "orders", "billing")
        os.kill(pid, signal.SIGKILL)
        site.wait_for_sample(1, "pubsub_crashes_total")
        assert samples_of(site.get("/metrics")[1])["pubsub_handled_total", "orders", "billing"] == 10
        fleet.publish(5, first=10)
        site.wait_for_sample(15, "pubsub_handled_total", "orders", "billing")


def test_a_worker_is_not_ready_while_its_server_does_not_answer(fleet):  # noqa: F811
    with redis_server() as server:
        own = Fleet(server.url)
        with own.worker("shop", "-t", "2", "--health-port", "0") as worker:
            site = Site(worker)
            site.wait_for("/readyz", 200)
            server.pause()
            try:
                site.wait_for("/readyz", 503, "cannot reach the broker")
                assert site.get("/livez")[0] == 200  # starting it anew would not help
            finally:
                server.resume()
            site.wait_for("/readyz", 200)
        own.close()


def test_a_worker_is_not_ready_before_it_has_reached_its_server():
    with redis_server() as server:
        own = Fleet(server.url)
        server.kill()
        with own.worker("shop", "-t", "2", "--health-port", "0") as worker:
            site = Site(worker)
            site.wait_for("/readyz", 503, "cannot reach the broker")
            server.start()
            site.wait_for("/readyz", 200)
        own.close()


def test_a_worker_is_not_ready_while_a_process_is_frozen(fleet):  # noqa: F811
    with fleet.worker("shop", "-p", "2", "-t", "2", "--health-port", "0") as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        fleet.publish(4)
        pid = int(worker.wait_for(r"^done \d+ 1 (\d+)$", 4)[0][1])
        os.kill(pid, signal.SIGSTOP)
        try:
            site.wait_for("/readyz", 503, rf"^process {pid} gave no sign of life for \d+ s\n$")
        finally:
            os.kill(pid, signal.SIGCONT)
        site.wait_for("/readyz", 200)


@pytest.mark.slow
def test_a_worker_is_not_ready_when_messages_wait_and_nobody_takes_them(fleet):  # noqa: F811
    with fleet.worker("idle", "--health-port", "0") as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        fleet.publish(3)
        site.wait_for_sample(3, "pubsub_lag", "orders", "billing")
        assert site.get("/readyz")[0] == 200  # it may only be busy
        site.wait_for("/readyz", 503, r"^stalled: 3 messages wait, and none was handled for \d+ s\n$")


def test_a_worker_that_drains_lives_and_is_not_ready(fleet):  # noqa: F811
    with fleet.worker("shop", "-t", "1", "--health-port", "0", GATE=fleet.gate) as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        fleet.publish(1, "hold")
        worker.wait_for("^started")
        site.wait_for_sample(1, "pubsub_in_hand", "orders", "billing")
        worker.signal(signal.SIGTERM)
        site.wait_for("/readyz", 503, "^stopping\n$")
        assert site.get("/livez") == (200, "ok\n")
        assert site.get("/metrics")[0] == 200
        fleet.open_gate(1)
        assert worker.wait() == 0


def test_a_supervisor_that_hangs_does_not_live(fleet):  # noqa: F811
    with fleet.worker("shop", "--health-port", "0") as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        worker.signal(signal.SIGSTOP)
        try:
            status, text = site.get("/livez")
        finally:
            worker.signal(signal.SIGCONT)
        assert (status, text) == (503, "the supervisor did not answer within 2 s\n")
        site.wait_for("/livez", 200)
        site.wait_for("/readyz", 200)


@pytest.mark.slow
def test_a_worker_whose_processes_keep_crashing_does_not_live(fleet):  # noqa: F811
    with fleet.worker("crashes", "--health-port", "0") as worker:
        site = Site(worker)
        assert site.get("/livez")[0] == 200
        site.wait_for("/livez", 503, rf"^crash loop: {CRASH_LOOP} processes in a row died soon after their start\n$")


def test_the_pages_come_back_if_their_process_is_killed(fleet):  # noqa: F811
    with fleet.worker("shop", "--health-port", "0") as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        children = f"/proc/{worker.process.pid}/task/{worker.process.pid}/children"
        with open(children) as file:
            _, pages = map(int, file.read().split())  # in the order of their starts
        os.kill(pages, signal.SIGKILL)
        worker.wait_for("the process that serves health and metrics ended; starting another")

        def is_back() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return site.get("/readyz")[0] == 200
            return False

        deadline, never = monotonic() + WITHIN, threading.Event()
        while not is_back():
            assert monotonic() < deadline, worker.output
            never.wait(0.1)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_nothing_is_left_at_the_port_when_a_worker_ends_or_is_killed(fleet):  # noqa: F811
    for number in (signal.SIGTERM, signal.SIGKILL):
        with fleet.worker("shop", "--health-port", "0") as worker:
            site = Site(worker)
            site.wait_for("/readyz", 200)
            worker.signal(number)
            worker.wait()  # until nobody has its output open any more
            with pytest.raises(ConnectionRefusedError):
                site.get("/livez")


def test_a_port_that_is_taken_is_told(fleet):  # noqa: F811
    with fleet.worker("shop", "--health-port", "0") as worker:
        port = Site(worker).port
        with fleet.worker("shop", "--metrics-port", str(port)) as other:
            assert other.wait() == 2
            assert re.search(rf"--health-port {port} on 127.0.0.1 cannot be had: .*in use", other.output)
            assert "Traceback" not in other.output


@pytest.mark.parametrize("options", [(), ("--log-format", "json")], ids=["text", "json"])
def test_a_port_that_the_system_chose_is_told_at_every_level(fleet, options):  # noqa: F811
    with fleet.worker("shop", "--health-port", "0", "--log-level", "CRITICAL", *options) as worker:
        assert Site(worker).get("/livez")[0] == 200
        if options:
            assert all(json.loads(line) for line in worker.lines)


def test_other_pages_and_heads_are_answered_as_http_wants_it(fleet):  # noqa: F811
    with fleet.worker("shop", "--health-port", "0") as worker:
        site = Site(worker)
        assert site.get("/") == (404, "there are /livez, /readyz, /metrics\n")
        assert site.get("/livez?verbose") == (200, "ok\n")
        assert site.get("/livez", "HEAD") == (200, "")
        assert site.get("/livez", "POST")[0] == 501


def test_without_the_client_of_prometheus_the_metrics_say_what_to_install(fleet, tmp_path):  # noqa: F811
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')\n")
    with fleet.worker("shop", "--health-port", "0", PYTHONPATH=os.fspath(tmp_path)) as worker:
        site = Site(worker)
        status, text = site.get("/metrics")
        assert status == 501
        assert "pip install 'pubsub-streams[prometheus]'" in text
        site.wait_for("/readyz", 200)


def test_flask_is_a_second_door_to_the_same_pages(fleet):  # noqa: F811
    with fleet.run(BIN / "flask", "--app", "web", "pubsub", "worker", "--health-port", "0") as worker:
        site = Site(worker)
        site.wait_for("/readyz", 200)
        fleet.publish(3)
        site.wait_for_sample(3, "pubsub_handled_total", "orders", "web")


# What is decided, with time as an argument


def report(**changes: object) -> Report:
    progress = Progress(read_age=0.1, is_cut_off=False, running=0, free=8, in_hand={})
    return Report(Counts(), replace(progress, **changes), {KEY: Look(lag=5, pending=0, oldest=9.0)}, looks_age=1.0)


def problems(given: Report | None, *, silent_for: float = 0.0, stalled_for: float = 0.0) -> list[str]:
    return why_not_ready([ProcessState(7, silent_for, given)], is_stopping=False, stalled_for=stalled_for)


@pytest.mark.parametrize(
    ("given", "silent_for", "expected"),
    [
        (report(), 0, None),
        (report(), SILENT_AFTER + 1, "gave no sign of life for 6 s"),
        (None, 0, "has not joined its groups yet"),
        (report(read_age=None), 0, "has not joined its groups yet"),
        (report(read_age=None, is_cut_off=True), 0, "cannot reach the broker"),
        (report(is_cut_off=True), 0, "cannot reach the broker"),
        (report(read_age=UNREAD_AFTER + 1), 0, "is stalled: it has not read for 16 s, and has threads that are free"),
        (report(read_age=UNREAD_AFTER + 1, running=8, free=0), 0, None),  # all are busy, so nobody reads
    ],
)
def test_a_process_is_a_problem_when_it_is_silent_cut_off_or_does_not_read(given, silent_for, expected):
    assert problems(given, silent_for=silent_for) == ([] if expected is None else [f"process 7 {expected}"])


def test_one_process_with_a_problem_is_enough():
    states = [ProcessState(1, 0, report()), ProcessState(2, 0, report(is_cut_off=True))]
    assert why_not_ready(states, is_stopping=False, stalled_for=0) == ["process 2 cannot reach the broker"]


def test_a_worker_without_a_process_or_that_stops_is_not_ready():
    assert why_not_ready([], is_stopping=False, stalled_for=0) == ["no process has loaded the application yet"]
    assert why_not_ready([ProcessState(1, 0, report())], is_stopping=True, stalled_for=0) == ["stopping"]


def test_a_stall_shows_after_a_while():
    assert problems(report(), stalled_for=STALLED_AFTER) == []
    assert problems(report(), stalled_for=STALLED_AFTER + 1) == [
        "stalled: 5 messages wait, and none was handled for 31 s"
    ]


def test_a_stall_is_lag_without_work_and_without_progress():
    def handled(count: int, given: Report) -> Report:
        return replace(given, counts=Counts(Counter(), {KEY: GroupCounts(handled=count)}))

    def watched(*steps: tuple[float, Report]) -> float:
        watch = StallWatch()
        for now, given in steps:
            watch.note(now, [ProcessState(1, 0.0, given)])
        return watch.seconds(steps[-1][0])

    idle, busy = report(), report(running=1, free=7)
    nothing_waits = replace(idle, looks={KEY: Look(lag=0, pending=3, oldest=9.0)})
    old = replace(idle, looks_age=LOOKS_ARE_GOOD_FOR)
    assert watched((0, idle), (1, idle), (100, idle)) == 99  # the first look may have seen what was just published
    assert watched((0, idle), (1, idle), (50, busy), (100, busy)) == 0
    assert watched((0, idle), (1, idle), (50, handled(1, idle)), (51, handled(1, idle)), (100, handled(1, idle))) == 49
    for quiet in (nothing_waits, old):
        assert watched((0, idle), (1, idle), (50, quiet), (100, quiet)) == 0


def test_the_newest_looks_count():
    old, new = replace(report(), looks_age=3.0), replace(report(), looks_age=2.0)
    assert newest_looks([old, new]) is new
    assert newest_looks([replace(report(), looks={})]) is None


def test_a_crash_loop_is_several_crashes_in_a_row():
    assert why_not_live(CRASH_LOOP - 1) == []
    assert why_not_live(CRASH_LOOP) == ["crash loop: 5 processes in a row died soon after their start"]


def test_a_report_crosses_the_pipe_whole():
    given = replace(report(in_hand={KEY: 2}), counts=Counts(Counter(orders=1), {KEY: GroupCounts(handled=3)}))
    assert Report.from_json(given.to_json()).to_json() == given.to_json()
