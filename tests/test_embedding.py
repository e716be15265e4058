"""Publishing and working inside of other programs: web servers that fork, threads, handlers, interpreters that end."""

import http.client
import json
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from pubsub_core import Message, PubSub, SystemClock, Worker
from pubsub_core.ids import IdMaker
from pubsub_core.worker.threads import start_unless_ending
from tests.servers import RealServer
from tests.test_supervisor import BIN, WITHIN, Fleet


@pytest.fixture(params=["redis", "valkey"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    server: RealServer = request.getfixturevalue(request.param)
    fleet = Fleet(server.url)
    yield fleet
    fleet.close()


def stored(fleet: Fleet, topic: str = "orders") -> list[str]:
    return [fields[b"id"].decode() for _, fields in fleet.client.xrange(fleet.stream(topic))]


# In a web server that forks


def post(port: int, path: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN)
    connection.request("POST", path)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 202, answer
    return json.loads(answer)  # type: ignore[no-any-return]


@pytest.mark.parametrize("threads", ["1", "4"])
def test_processes_forked_by_gunicorn_publish_each_for_itself(fleet, threads):
    """The application was loaded, and had published, before the fork."""
    options = ["-w", "2", "--preload", "--threads", threads, "-b", "127.0.0.1:0", "--no-control-socket"]
    with fleet.run(BIN / "gunicorn", *options, "preloaded:app") as web:
        (listening,) = web.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")
        answers: list[dict[str, Any]] = []
        deadline = monotonic() + WITHIN
        with ThreadPoolExecutor(8) as clients:
            while len({answer["pid"] for answer in answers}) < 2:
                assert monotonic() < deadline, "one process answered everything"
                paths = ["/orders"] * 100 + ["/threads"] * 10
                answers += clients.map(lambda path: post(int(listening[1]), path), paths)
    (loaded_by,) = {answer["loaded_by"] for answer in answers}
    assert loaded_by not in {answer["pid"] for answer in answers}
    published = [one for answer in answers for one in answer["ids"]]
    assert len(published) == len(answers) // 110 * 180
    first, *others = stored(fleet)
    assert Counter(others) == Counter(published)
    assert first not in published


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_forked_while_a_thread_publishes_publish_too(fleet):
    """Whatever that thread was just doing: what it had locked stays locked in the child for ever.

    It has published before. Python itself does not bear a fork while a thread imports what it needs for the first time.
    """
    stop = threading.Event()

    def publish() -> list[str]:
        ids = []
        while not stop.is_set():
            ids.append(fleet.pubsub.publish("orders", {}))
        return ids

    published = [fleet.pubsub.publish("orders", {})]
    with ThreadPoolExecutor(2) as threads:
        publishing = [threads.submit(publish) for _ in range(2)]
        try:
            for _ in range(15):
                published.append(published_in_child(fleet.pubsub))
        finally:
            stop.set()
        for one in publishing:
            published += one.result(WITHIN)

    assert Counter(stored(fleet)) == Counter(published)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_opens_the_broker_opens_it_for_itself(fleet):
    fleet.pubsub.publish("orders", {})
    fleet.pubsub.close()
    with fleet.pubsub.runtime._lock:
        published = published_in_child(fleet.pubsub)
    assert stored(fleet)[1:] == [published]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ids_of_children_and_their_threads_differ_and_rise():
    make_id = IdMaker(SystemClock())

    def made_by_threads() -> str:
        together = threading.Barrier(4)

        def make(_: int) -> list[str]:
            together.wait(WITHIN)
            return [make_id() for _ in range(100)]

        with ThreadPoolExecutor(4) as threads:
            by_thread = list(threads.map(make, range(4)))
        assert all(sorted(ids) == ids for ids in by_thread)
        return " ".join(one for ids in by_thread for one in ids)

    made = [make_id()]
    for _ in range(20):
        made += in_child(made_by_threads).split()
        made += [make_id() for _ in range(100)]
    assert len(made) == len(set(made)) == 1 + 20 * 500


def published_in_child(pubsub: PubSub) -> str:
    """Return the id that a forked child published; fails if it hangs."""
    return in_child(lambda: pubsub.publish("orders", {}))


def in_child(act: Callable[[], str]) -> str:
    """Return what this returns in a forked child; fails with what it raises there, or if it does not return."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            try:
                answer, code = act(), 0
            except BaseException:
                answer, code = traceback.format_exc(), 1
            with os.fdopen(into, "w") as pipe:
                pipe.write(answer)
        finally:
            os._exit(code)
    os.close(into)
    with os.fdopen(out) as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, answer
    return answer


# From threads, and from handlers


def test_very_many_threads_publish_at_once(fleet):
    """More than a pool of redis-py has connections."""
    together = threading.Barrier(150)

    def publish() -> list[str]:
        together.wait(WITHIN)
        return [fleet.pubsub.publish("orders", {}) for _ in range(3)]

    with ThreadPoolExecutor(150) as threads:
        by_thread = [one.result(WITHIN) for one in [threads.submit(publish) for _ in range(150)]]

    ids = stored(fleet)
    assert Counter(ids) == Counter(one for published in by_thread for one in published)
    for published in by_thread:
        assert [one for one in ids if one in published] == published


def test_handlers_publish_one_message_each_and_batches(fleet):
    """Plain ones and those on the event loop, also to the topic that they handle."""
    pubsub = fleet.pubsub
    done = threading.Semaphore(0)

    @pubsub.subscribe("orders", group="billing")
    def charge(message: Message) -> None:
        pubsub.publish("invoices", {"of": message.id})
        if message.payload["number"] >= 0:
            pubsub.publish("orders", {"number": -1})
        done.release()

    @pubsub.subscribe("orders", group="shipping")
    async def ship(message: Message) -> None:
        with pubsub.batch() as batch:
            for _ in range(3):
                batch.publish("parcels", {"of": message.id})
        done.release()

    with Worker(pubsub, threads=4):
        fleet.publish(50)
        for _ in range(200):
            assert done.acquire(timeout=WITHIN)

    orders = stored(fleet)
    assert len(orders) == len(set(orders)) == 100
    for topic, times in (("invoices", 1), ("parcels", 3)):
        entries = fleet.client.xrange(fleet.stream(topic))
        assert len({fields[b"id"] for _, fields in entries}) == len(entries)
        assert Counter(json.loads(fields[b"payload"])["of"] for _, fields in entries) == dict.fromkeys(orders, times)
    assert (fleet.pending(), fleet.pending(group="shipping")) == (0, 0)


# At the end of the interpreter


def leaving(fleet: Fleet, how: str, code: int = 0) -> Any:
    """Run a program until it ends by itself, and return what it wrote."""
    warnings = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")  # of the fork beside threads
    with fleet.run(sys.executable, *warnings, "leaving.py", how) as program:
        assert program.wait() == code, program.output
        return program


@pytest.mark.parametrize(("how", "count"), [("atexit", 2), ("atexit-first-use", 1), ("thread", 200)])
def test_a_program_publishes_while_its_interpreter_ends(fleet, how, count):
    program = leaving(fleet, how)
    assert "Traceback" not in program.output
    published = [match[1] for match in program.find("^published (.*)")]
    assert len(published) == count
    assert stored(fleet) == published


def test_worker_processes_do_at_their_exit_what_the_application_asked_for_there(fleet):
    """And nothing of what the supervisor's own process is to do at its exit."""
    program = "import atexit; from pubsub_core.cli import main; atexit.register(print, 'supervisor leaves'); main()"
    with fleet.run(sys.executable, "-c", program, "worker", "leaves", "-p", "2") as worker:
        worker.wait_for("^joined", 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        pids = sorted(match[1] for match in worker.find(r"^joined (\d+)"))
        assert len(worker.find("supervisor leaves")) == 1
    farewells = [json.loads(fields[b"payload"]) for _, fields in fleet.client.xrange(fleet.stream("farewells"))]
    assert sorted(str(one["pid"]) for one in farewells) == pids


def test_no_thread_is_started_when_the_interpreter_ends(monkeypatch):
    """As since Python 3.12, which then refuses it; but whoever may not start one otherwise is told."""

    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    with pytest.raises(RuntimeError):
        start_unless_ending(Refused())
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    start_unless_ending(Refused())


@pytest.mark.parametrize(("how", "code"), [("worker", 0), ("async-worker", 0), ("failing-script", 1), ("fork", 0)])
def test_a_worker_that_runs_when_its_script_ends_drains(fleet, how, code):
    """As at SIGTERM: what runs is finished and settled, the rest handed back at once, and nothing counts as a crash."""
    program = leaving(fleet, how, code)
    assert program.output.count("Traceback") == (how == "failing-script")
    published = {match[1] for match in program.find("^published (.*)")}
    # Not at the beginning of a line: the traceback of the script is written piece by piece meanwhile.
    started = [match[1] for match in program.find(r"started (\S+) 1$")]
    assert len(published) == 10
    assert len(started) == 2
    assert sorted(match[1] for match in program.find(r"done (\S+) 1$")) == sorted(started)
    assert len(stored(fleet, "invoices")) == 2
    assert len(program.find("^child")) == (how == "fork")
    assert {one["name"] for one in fleet.client.xinfo_consumers(fleet.stream(), "billing")} <= {b"~parked"}
    with fleet.worker("shop", "--burst") as other:
        assert other.wait() == 0
        assert len(other.find(r"^done \d+ 1 ")) == 8
