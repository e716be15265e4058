"""The server, and the way to it: killed, cut, stalled, flushed, full."""

import contextlib
import os
import resource
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from pubsub_core import BrokerError, BrokerFull, DeadLetterReason, DeadLetters, Membership, PubSub, SubscriptionKey
from tests.chaos import IS_LONG, on, on_each
from tests.chaos.clock import ShiftedClock
from tests.chaos.field import Field, Record, is_alive, rounds
from tests.chaos.gate import Gate
from tests.servers import RealServer


def first_run_after(field: Field, moment: float) -> float:
    """Return the seconds until the first run that began after a moment."""
    return min(run.started for run in field.runs() if run.started > moment) - moment


@on("redis")
def test_a_killed_server_that_comes_back(field: Field, server: RealServer, record: Record) -> None:
    """With its data: every word it gave is kept."""
    field.worker()
    field.worker()
    for _ in range(2):
        field.produce()
    slowest = 0.0
    for _ in rounds():
        field.pause()
        server.kill()
        time.sleep(0.5)
        server.start()
        back = time.time()
        field.until(lambda: any(run.started > back for run in field.runs()), 10, "work goes on")  # noqa: B023
        slowest = max(slowest, first_run_after(field, back))
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    # Each process may say so for itself, once per outage.
    assert field.output().count("the broker is away") <= 4 * (len(list(rounds())) + 1)
    record("the server is killed and restarted under load", verdict,
           recovery=slowest)  # fmt: skip


@on_each("how", "cut", "reset", "delay", "half-open", "gone", "swallow")
def test_a_network_that_fails(field: Field, gate: Gate, record: Record, how: str) -> None:
    """Workers and producers come back, and nothing comes twice: the processes could still reach the server in time."""
    for _ in range(2):
        field.worker(gate.url, PUBSUB_PUBLISH_TIMEOUT="0.8")
        field.produce(gate.url, publish_timeout=10.0 if how != "half-open" else 3.0)
    for _ in rounds():
        field.pause()
        match how:
            case "cut" | "reset":
                gate.cut(reset=how == "reset")
            case "delay":
                gate.delay = 0.05
                time.sleep(0.5)
                gate.delay = 0.0
            case "half-open":
                gate.forget()
                time.sleep(4 * field.heartbeat)
            case "gone":
                gate.is_deaf = gate.is_mute = True
                time.sleep(2 * field.heartbeat)
                gate.cut(reset=True)  # as when the other side has forgotten the connection
                gate.is_deaf = gate.is_mute = False
            case _:
                gate.is_mute = True
                time.sleep(field.heartbeat)
                gate.cut()
                gate.is_mute = False
    verdict = field.settle()
    assert verdict.is_clean, field.output()
    field.end_workers()
    name = {"cut": "connections are closed", "reset": "connections are reset", "delay": "everything is late",
            "half-open": "connections are half-open", "gone": "nothing comes through, for 2 heartbeats",
            "swallow": "requests come through, replies do not"}[how]  # fmt: skip
    record(f"the network fails: {name}", verdict)


@on("redis")
def test_a_worker_that_is_cut_off_for_longer_than_its_lease(field: Field, gate: Gate, record: Record) -> None:
    """Others take over; when it is back it settles nothing that others own by then."""
    field.worker()
    supervisor = field.worker(gate.url, CHAOS_WORK="0.05")
    children = field.children(supervisor)
    field.produce()
    field.until_busy(*children)
    gate.is_deaf = gate.is_mute = True
    gone, in_hand = time.time(), 0
    while any(map(field.names_of, children)):
        in_hand = max(in_hand, field.in_hand(*children))
        assert time.time() - gone <= field.recovers_within
        time.sleep(0.05)
    time.sleep(0.5)
    gate.cut(reset=True)
    gate.is_deaf = gate.is_mute = False
    back = time.time()
    field.until(lambda: any(run.pid in children and run.started > back for run in field.runs()), 10, "it is back")
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    field.end_workers()
    record("a worker is cut off for longer than its lease", verdict, in_hand=in_hand)


@on("valkey")
def test_a_stalled_server(field: Field, server: RealServer, record: Record) -> None:
    """It answers nobody for longer than its clients have patience, and then carries out what was on the way."""
    field.worker()
    field.worker()
    field.produce(publish_timeout=1.0)
    time.sleep(1)
    server.pause()
    time.sleep(3)
    server.resume()
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    record("the server stalls for 3 s", verdict)


@on("redis")
def test_a_flushed_server(field: Field, record: Record) -> None:
    """What it had is gone, by definition; what it acknowledges afterwards is handled, once."""
    field.worker()
    field.worker()
    field.produce()
    for _ in rounds():
        field.pause()
        field.client.flushall()
        flushed = time.time()
    field.until(lambda: any(run.started > flushed for run in field.runs()), 10, "work goes on")
    took = first_run_after(field, flushed)
    time.sleep(1)
    gone = frozenset(one for one, began in field.acknowledged.items() if began <= flushed)
    verdict = field.settle(but=gone)
    assert verdict.is_clean
    field.end_workers()
    record("FLUSHALL under running workers", verdict, recovery=took)


@on_each("what", "group", "connections", "scripts")
def test_an_operators_command(field: Field, record: Record, what: str) -> None:
    """XGROUP DESTROY, CLIENT KILL, SCRIPT FLUSH: nothing is lost, and nothing comes twice."""
    field.worker()
    field.worker()
    for _ in range(2):
        field.produce()
    for _ in rounds():
        field.pause()
        match what:
            case "group":
                field.client.xgroup_destroy(field.stream, "billing")
            case "connections":
                field.kill_connections()
            case _:
                field.client.script_flush()
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    command = {"group": "XGROUP DESTROY", "connections": "CLIENT KILL", "scripts": "SCRIPT FLUSH"}[what]
    record(f"{command} under load", verdict)


@on("redis")
def test_a_server_without_memory(field: Field, record: Record) -> None:
    """Publishing is refused for certain, workers go on, and all is well when there is memory again."""
    field.worker()
    field.produce()
    time.sleep(0.7)
    field.client.config_set("maxmemory", 1)
    with pytest.raises(BrokerFull):
        field.pubsub().publish("orders", {"do": "work"})
    field.until(lambda: field.refused > 3, 10, "producers are refused")
    time.sleep(1)
    field.client.config_set("maxmemory", 0)
    time.sleep(1)
    verdict = field.settle()
    assert verdict.is_clean
    assert not field.uncertain
    field.end_workers()
    record("maxmemory reached and released", verdict, refused=field.refused)


def fill_disk(server: RealServer, more: int) -> None:
    """See that no file of the server grows by more than so many bytes, as if the disk were full then."""
    size = max(one.stat().st_size for one in Path(f"/proc/{server.pid}/cwd").resolve().rglob("*.aof"))
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))


@on("valkey")
def test_a_full_disk(field: Field, server: RealServer, record: Record) -> None:
    """A server that must write all it says ends itself; what it said is there when it comes back with room."""
    field.worker()
    fill_disk(server, 100_000)
    field.produce(publish_timeout=1.0)
    field.until(lambda: not is_alive(server.pid), 20, "the disk is full")
    server.kill()
    server.start()
    field.pause()
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    record("the disk is full (appendfsync always)", verdict)


@on("redis")
def test_a_full_disk_with_room_later(field: Field, server: RealServer, record: Record) -> None:
    """A server that writes once a second refuses to write meanwhile (MISCONF), and so do publishes."""
    field.client.config_set("appendfsync", "everysec")
    field.worker()
    field.produce(publish_timeout=1.0)
    field.pause()
    fill_disk(server, 0)
    field.until(lambda: field.refused > 0, 20, "producers are refused")
    time.sleep(1)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    room = time.time()
    field.until(lambda: any(run.started > room for run in field.runs()), 10, "work goes on")
    took = first_run_after(field, room)
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    record("the disk is full for a while (appendfsync everysec)", verdict, refused=field.refused, recovery=took)


@on("redis")
def test_forks_with_open_connections(field: Field, record: Record) -> None:
    """Eight children of a process that has published publish too: no reply goes astray."""
    pubsub = field.pubsub(publish_timeout=60.0)  # however slow the disk is that nine processes wait for
    field.publish_one(pubsub)
    logs = [Path(field.child_log(number)) for number in range(8)]
    pids = []
    for log in logs:
        pid = os.fork()
        if not pid:
            publish_in_child(pubsub, log)
        pids.append(pid)
    for _ in range(200):
        field.publish_one(pubsub)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * 8, "\n".join(log.read_text() for log, code in zip(logs, codes, strict=True) if code == 1)
    for log in logs:
        field.acknowledged.update(dict.fromkeys(log.read_text().split(), 0.0))
    assert len(field.acknowledged) == 1 + 9 * 200
    assert field.client.xlen(field.stream) == 1 + 9 * 200
    field.worker()
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    record("8 forks publish on after a connection was open", verdict)


def publish_in_child(pubsub: PubSub, log: Path) -> NoReturn:
    """Publish, write the ids to the log, and end; write what it raises instead, and end with 1."""
    code = 2
    try:
        try:
            log.write_text("\n".join([pubsub.publish("orders", {"do": "work"}) for _ in range(200)]))
            code = 0
        except BaseException:
            log.write_text(traceback.format_exc())
            code = 1
    finally:
        os._exit(code)


@on("valkey")
def test_thousands_of_dead_letters_replayed(field: Field, record: Record) -> None:
    """While workers run, and the replaying process is cut off in between."""
    count = 10_000 if IS_LONG else 2_000
    pubsub = field.pubsub()
    with pubsub.batch() as batch:
        for _ in range(count):
            batch.publish("orders", {"do": "work"})
    field.acknowledged = dict.fromkeys(batch.ids, time.time())
    bury(pubsub, count)
    letters = pubsub.dead_letters("orders", group="billing")
    field.worker(CHAOS_WORK="0")
    began = time.monotonic()
    while not is_empty(letters):
        killer = threading.Timer(0.3, field.kill_connections)
        killer.start()
        with contextlib.suppress(BrokerError):
            letters.replay()
        killer.cancel()
        killer.join()
    took = time.monotonic() - began
    verdict = field.settle(60)
    assert (verdict.lost, verdict.repeated) == ([], {})
    field.end_workers()
    record(f"{count} dead letters replayed while connections are killed", verdict, seconds=took)


def is_empty(letters: DeadLetters) -> bool:
    with contextlib.suppress(BrokerError):
        return not letters.newest(1)
    return False


def bury(pubsub: PubSub, left: int) -> None:
    """Make a dead letter of all that there is."""
    key = SubscriptionKey("orders", "billing")
    consumer = pubsub.runtime.broker.consumer([Membership(key)], "undertaker")
    while left:
        consumer.maintain()
        deliveries = consumer.receive({key: 200}, 0.0)
        left -= len(deliveries)
        for delivery in deliveries:
            consumer.dead_letter(delivery, DeadLetterReason("rejected"))
    consumer.close()


@on_each("shift", "3600", "-3600")
def test_clocks_that_are_an_hour_wrong(field: Field, record: Record, shift: str) -> None:
    """Of a worker's machine, or of a publisher's: time is that of the server."""
    field.worker(CHAOS_CLOCK_SHIFT=shift)
    field.worker()
    field.produce()
    field.produce(clock=ShiftedClock(float(shift)))
    (retried,) = field.publish(1, "fail once")
    time.sleep(2)
    verdict = field.settle()
    assert verdict.is_clean
    first, second = (run for run in field.runs() if run.message_id == retried)
    assert 0.2 <= second.started - first.started <= 0.2 + 0.5
    field.end_workers()
    record(f"the clocks of a worker and of a publisher are off by {shift} s", verdict)


@on_each("shift", "3600", "-3600")
def test_a_servers_clock_that_jumps_by_an_hour(
    shift_clock: Callable[[int], None], field: Field, record: Record, shift: str
) -> None:
    """Nobody is robbed, what waits for its retry is not late, and who dies afterwards is still noticed."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.2")
    field.produce()
    field.pause()
    before = field.client.time()[0]
    (retried,) = field.publish(1, "fail later")
    field.until(lambda: any(run.message_id == retried for run in field.runs()), 5, "it has failed")
    shift_clock(int(shift))
    field.until(lambda: abs(field.client.time()[0] - before - int(shift)) < 60, 5, "the clock has jumped")
    time.sleep(field.recovers_within)
    assert field.judge().repeated == {}
    victim = field.random.choice(field.children(supervisor))
    field.until_busy(victim)
    killed = time.time()
    in_hand = field.kill(victim)
    field.until_taken_over(victim)
    took = field.recovery({victim}, killed)
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    assert took <= field.recovers_within
    field.end_workers()
    record(f"the server's clock jumps by {shift} s, then a worker process is killed", verdict, in_hand=in_hand,
           recovery=took, heartbeat=field.heartbeat)  # fmt: skip
