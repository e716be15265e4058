"""Schedules and delayed messages, with processes, servers and clocks that do not keep to them."""

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

from tests.chaos import IS_LONG, on, on_each
from tests.chaos.field import Field, Record
from tests.chaos.gate import Gate
from tests.servers import RealServer

TWO = json.dumps({"first": "once", "second": "once"})
SECONDS = 60 if IS_LONG else 8


def seconds_from_now(field: Field) -> int:
    """Return the next full second of the server's clock, but one."""
    return int(field.client.time()[0]) + 2


def until_second(field: Field, second: float) -> None:
    """Wait until the server's clock shows that, and a little more for what is to happen then."""
    seconds, microseconds = field.client.time()
    time.sleep(max(0.0, second + 0.5 - seconds - microseconds / 1e6))


def check_each_once(field: Field, first: int, last: int, *names: str) -> int:
    """See that each tick from one to another was fired once; return how many that were."""
    for name in names:
        ticks = field.ticks(name)
        assert Counter(one for one in ticks if first <= one <= last) == Counter(range(first, last + 1)), name
        assert max(Counter(ticks).values()) == 1, name
        assert ticks == sorted(ticks), name
    return (last - first + 1) * len(names)


@on("redis")
def test_eight_processes_fire_each_tick_once(field: Field, record: Record) -> None:
    """Two schedules, each second; two of the workers have clocks that are an hour wrong."""
    for shift in ("0", "3600", "-3600", "0"):
        field.worker(CHAOS_SCHEDULES=TWO, CHAOS_CLOCK_SHIFT=shift)
    first = seconds_from_now(field)
    last = first + SECONDS - 1
    until_second(field, last)
    fired = check_each_once(field, first, last, "first", "second")
    field.end_workers()
    record(f"8 processes, 2 schedules each second for {SECONDS} s", field.judge(), fired=fired)


@on("valkey")
def test_all_workers_are_away_for_a_while(field: Field, record: Record) -> None:
    """Killed; when one comes back, it makes up for what was missed as each schedule says."""
    schedules = json.dumps({"skip": "skip", "once": "once", "all": "all"})
    supervisor = field.worker(CHAOS_SCHEDULES=schedules)
    first = seconds_from_now(field)
    until_second(field, first + 1)
    field.kill(supervisor, *field.children(supervisor))
    killed = first + 1
    until_second(field, killed + (20 if IS_LONG else 6))
    back = int(field.client.time()[0])
    field.worker(CHAOS_SCHEDULES=schedules)
    again = seconds_from_now(field)
    until_second(field, again + 1)
    check_each_once(field, first, again + 1, "all")
    # When it looked first is between `back` and `again`: what came before that was missed.
    missed = {name: [one for one in field.ticks(name) if killed < one <= back] for name in ("skip", "once")}
    assert missed["skip"] == []
    once = [one for one in field.ticks("once") if one > killed]
    assert back <= once[0] <= again
    assert len(missed["once"]) <= 1
    for name in ("skip", "once"):
        assert max(Counter(field.ticks(name)).values()) == 1
        assert {again, again + 1} <= set(field.ticks(name))
    field.end_workers(killed=[supervisor])
    record("all workers are killed, and away for a while: skip, once, all", field.judge(), away=back - killed)


@on("redis")
def test_a_process_that_is_frozen_over_its_ticks(field: Field, record: Record) -> None:
    """Another one fires them, and the frozen one repeats none when it goes on."""
    field.worker(processes=1, CHAOS_SCHEDULES=TWO)
    supervisor = field.worker(processes=1, CHAOS_SCHEDULES=TWO)
    (victim,) = field.children(supervisor)
    first = seconds_from_now(field)
    until_second(field, first)
    os.kill(victim, signal.SIGSTOP)
    until_second(field, first + (10 if IS_LONG else 4))
    os.kill(victim, signal.SIGCONT)
    last = seconds_from_now(field)
    until_second(field, last)
    fired = check_each_once(field, first, last, "first", "second")
    field.end_workers()
    record("a process is frozen over its ticks", field.judge(), fired=fired)


@on_each("how", "server", "network")
def test_a_server_that_is_away_over_a_tick(
    field: Field, gate: Gate, server: RealServer, record: Record, how: str
) -> None:
    """For less than a lease: the ticks are late, each is fired, and none twice, though replies are lost."""
    for _ in range(2):
        field.worker(gate.url, CHAOS_SCHEDULES=TWO)
    first = seconds_from_now(field)
    for second in range(4 if IS_LONG else 2):
        until_second(field, first + 3 * second + 0.45)  # just before a tick
        if how == "server":
            server.kill()
            time.sleep(0.3)
            server.start()
        else:
            gate.is_mute = True
            time.sleep(0.3)
            gate.cut()
            gate.is_mute = False
    last = seconds_from_now(field) + 1
    until_second(field, last + 1)
    fired = check_each_once(field, first, last, "first", "second")
    field.end_workers()
    record(f"the {how} is away over a tick", field.judge(), fired=fired)


@on("valkey")
def test_a_servers_clock_that_is_set_back_repeats_no_tick(
    shift_clock: Callable[[int], None], field: Field, record: Record
) -> None:
    """By 10 s: for so long nothing ticks."""
    field.worker(CHAOS_SCHEDULES=TWO)
    first = seconds_from_now(field)
    until_second(field, first + 1)
    shift_clock(-10)
    time.sleep(3)
    before = field.ticks("first")
    until_second(field, max(before) + 2)
    check_each_once(field, first, max(before) + 2, "first", "second")
    field.end_workers()
    record("the server's clock is set back by 10 s over schedules", field.judge())


@on("redis")
def test_thousands_of_messages_due_in_the_same_second(field: Field, record: Record) -> None:
    """Four processes move them at the same time: each comes once, and publishing goes on meanwhile."""
    count = 100_000 if IS_LONG else 5_000
    for _ in range(2):
        field.worker(CHAOS_WORK="0")
    pubsub = field.pubsub(publish_timeout=60)
    due = field.client.time()[0] + (60 if IS_LONG else 4)
    with pubsub.batch() as batch:
        for number in range(count):
            batch.publish("orders", {"do": "work"}, delay=max(0.0, due + number / count - time.time()))
    assert field.client.time()[0] < due, "publishing took too long"
    field.acknowledged = dict.fromkeys(batch.ids, time.time())
    until_second(field, due)
    took: list[float] = []
    while field.client.zcard(f"{field.stream}:delayed"):
        began = time.monotonic()
        field.publish_one(pubsub)
        took.append(time.monotonic() - began)
    verdict = field.settle(300)
    assert verdict.is_clean
    assert field.client.hlen(f"{field.stream}:delayed:messages") == 0
    field.end_workers()
    slow = sorted(took)[math.ceil(len(took) * 0.99) - 1] if took else 0.0
    record(f"{count} delayed messages due in the same second", verdict, publish_p99=slow)


@on_each("how", "server", "network", "processes")
def test_delayed_messages_under_attack(field: Field, gate: Gate, server: RealServer, record: Record, how: str) -> None:
    """Their publishers, those who move them, and the server are cut off at any moment: none is lost, none doubled."""
    for _ in range(2):
        supervisor = field.worker(gate.url, CHAOS_WORK="0.001")
        field.produce(gate.url, publish_timeout=10.0, delay=0.5)
    in_hand = 0
    for _ in range(6 if IS_LONG else 3):
        field.pause()
        if how == "server":
            server.kill()
            server.start()
        elif how == "network":
            gate.is_mute = True
            time.sleep(0.2)
            gate.cut()
            gate.is_mute = False
        else:
            field.until(lambda: bool(field.children(supervisor)), 20, "who died is replaced")
            in_hand += field.kill(field.random.choice(field.children(supervisor)))
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    field.end_workers()
    record(f"delayed messages, the {how} under attack", verdict, in_hand=in_hand)
