"""Worker processes that are killed, frozen, poisoned or caught in a loop."""

import os
import signal
import time
from pathlib import Path

from tests.chaos import IS_LONG, on, on_each, with_heartbeats
from tests.chaos.field import Field, Record, is_alive, rounds


@on("redis")
@with_heartbeats
def test_a_killed_worker_process(field: Field, record: Record) -> None:
    """Its deliveries run elsewhere in time; only what it had in hand may come twice."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.2")
    field.produce()
    slowest, in_hand = 0.0, 0
    for _ in rounds():
        field.until(lambda: len(field.consumers()) >= 4, 20, "all processes are there")
        field.pause()
        victim = field.random.choice(field.children(supervisor))
        field.until_busy(victim)
        killed = time.time()
        in_hand += field.kill(victim)
        field.until_taken_over(victim)
        slowest = max(slowest, field.recovery({victim}, killed))
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    assert slowest <= field.recovers_within
    field.end_workers()
    record("a worker process is killed (SIGKILL) under load", verdict, in_hand=in_hand,
           recovery=slowest, heartbeat=field.heartbeat)  # fmt: skip


@on("valkey")
@with_heartbeats
def test_a_killed_worker_process_of_an_idle_topic(field: Field, record: Record) -> None:
    """Nothing new comes that could wake the others: they find what it had all the same."""
    other = field.worker(processes=1)
    ids = field.publish(2, "hang once")
    field.until(lambda: len(field.runs()) == 2, 10, "it has them all")
    field.worker()
    (victim,) = field.children(other)
    os.kill(other, signal.SIGKILL)
    killed = time.time()
    assert field.kill(victim) == 2
    field.until(lambda: len(field.runs()) == 4, 30, "they run again")
    took = field.recovery({victim}, killed)
    verdict = field.settle()
    assert verdict.is_clean
    assert [run.attempt for run in field.runs()] == [1, 1, 2, 2]
    assert {run.message_id for run in field.runs()} == set(ids)
    assert took <= field.recovers_within
    field.end_workers(killed=[other])
    record("a worker process is killed, the topic idle", verdict, in_hand=2, recovery=took,
           heartbeat=field.heartbeat)  # fmt: skip


@on("valkey")
def test_all_worker_processes_killed(field: Field, record: Record) -> None:
    """Supervisors included. Those started afterwards take over."""
    pids = [field.worker(CHAOS_WORK="0.05"), field.worker(CHAOS_WORK="0.05")]
    field.produce()
    field.pause()
    children = [child for pid in pids for child in field.children(pid)]
    field.until_busy(*children)
    killed = time.time()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    in_hand = field.kill(*children)
    field.worker()
    started = time.time()
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    # Nobody could take over before there was somebody.
    took = field.recovery(set(children), killed) - (started - killed)
    assert took <= field.recovers_within
    field.end_workers(killed=pids)
    record("all worker processes and supervisors are killed", verdict, in_hand=in_hand, recovery=took,
           heartbeat=field.heartbeat)  # fmt: skip


@on("redis")
def test_a_killed_supervisor(field: Field, record: Record) -> None:
    """Its children notice, finish, and end by themselves: no orphan lives on, and nothing comes twice."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.05")
    children = field.children(supervisor)
    field.produce()
    field.until_busy(*children)
    os.kill(supervisor, signal.SIGKILL)
    took = field.until(lambda: not any(is_alive(pid) for pid in children), 10, "the orphans are gone")
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers(killed=[supervisor])
    record("the supervisor is killed", verdict, recovery=took)


@on("valkey")
@with_heartbeats
def test_a_frozen_worker_process(field: Field, record: Record) -> None:
    """Thought dead, it goes on later: it settles nothing that others own by then."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.05")
    field.produce()
    children = field.children(supervisor)
    field.until_busy(*children)
    frozen = time.time()
    in_hand = field.freeze(*children)
    field.until_taken_over(*children)
    time.sleep(max(0.0, (30 if IS_LONG else 0) - (time.time() - frozen)))
    slowest = field.recovery(set(children), frozen)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    assert slowest <= field.recovers_within
    assert all(is_alive(pid) for pid in children), f"they go on\n{field.output()}"
    field.end_workers()
    record("worker processes are frozen, and go on later (SIGSTOP, SIGCONT)", verdict, in_hand=in_hand,
           recovery=slowest, heartbeat=field.heartbeat)  # fmt: skip


@on("redis")
def test_a_frozen_worker_process_that_goes_on_in_time(field: Field, record: Record) -> None:
    """Frozen for a shorter time than its lease: nothing comes twice."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.05")
    field.produce()
    children = field.children(supervisor)
    for _ in rounds():
        field.until_busy(*children)
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * field.heartbeat)
        for pid in children:
            os.kill(pid, signal.SIGCONT)
        field.pause(2 * field.heartbeat, 3 * field.heartbeat)
    verdict = field.settle()
    assert verdict.is_clean
    field.end_workers()
    record("worker processes are frozen for 2 heartbeats", verdict, heartbeat=field.heartbeat)


@on("redis")
def test_slow_handlers_among_quick_ones(field: Field, record: Record) -> None:
    """However long they run: no other gets what they have."""
    field.worker()
    field.worker()
    slow = field.publish(6, "long")
    field.produce()
    time.sleep(4)
    verdict = field.settle()
    assert verdict.is_clean
    assert set(slow) <= {run.message_id for run in field.runs() if run.ended and run.attempt == 1}
    field.end_workers()
    record("handlers run for 10 heartbeats", verdict)


@on_each("how", "exit", "segfault", "hog")
def test_a_poison_message_among_innocents(field: Field, record: Record, how: str) -> None:
    """It becomes a dead letter after three processes; not one of the 200 beside it does."""
    field.publish(100)
    (poison,) = field.publish(1, how)
    field.publish(100)
    field.worker(CHAOS_WORK="0.02")
    field.worker(CHAOS_WORK="0.02")
    verdict = field.settle(60, but=frozenset({poison}))
    assert (verdict.lost, verdict.unknown) == ([], [])
    letters = field.pubsub().dead_letters("orders", group="billing").newest()
    assert [(one.message.id, one.reason.kind) for one in letters] == [(poison, "crashed")]
    starts = [run for run in field.runs() if run.message_id == poison]
    assert [run.attempt for run in starts] == [1, 2, 3]
    assert letters[0].message.attempt == 4
    # What was done but not acknowledged when a process died; and two of the three had nothing in hand but the poison.
    assert len(verdict.repeated) <= 8
    field.end_workers()
    name = {"exit": "os._exit", "segfault": "a segmentation fault", "hog": "SIGKILL, as when memory is out"}[how]
    record(f"a poison message ({name}) among 200", verdict, dead_innocents=0)


@on_each("how", "spin", "sleep", "regex", "stubborn")
def test_a_handler_that_never_returns(field: Field, record: Record, how: str) -> None:
    """It is interrupted, or its process is replaced; the others go on, each once."""
    field.worker(CHAOS_TIMEOUT="0.5")
    (endless,) = field.publish(1, how)
    field.produce(pause=0.02)
    tries = 3 if IS_LONG else 2
    field.until(lambda: sum(run.message_id == endless for run in field.runs()) >= tries, 60, "it was tried again")
    verdict = field.settle(but=frozenset({endless}), left=1)
    assert (verdict.lost, verdict.unknown) == ([], [])
    # A regular expression keeps the whole process from running, so it is killed, with what was done and not yet told.
    assert len(verdict.repeated) <= (4 * tries if how == "regex" else 0)
    attempts = [run.attempt for run in field.runs() if run.message_id == endless]
    assert attempts == list(range(1, len(attempts) + 1))
    name = {"spin": "a loop in Python", "sleep": "one call in C", "regex": "one call in C that keeps all from running",
            "stubborn": "it catches everything"}[how]  # fmt: skip
    record(f"a handler that never returns ({name})", verdict)


@on_each(
    "thread",
    "pubsub-settler",
    "pubsub-maintenance",
    "pubsub-schedules",
    "pubsub-handler-1",
    "pubsub-timeouts",
    "pubsub-event-loop",
)
def test_the_death_of_a_library_thread(field: Field, record: Record, thread: str, tmp_path: Path) -> None:
    """The process is replaced within 5 s: never alive but deaf."""
    supervisor = field.worker(
        processes=1,
        CHAOS_DEATH=thread,
        CHAOS_DEATH_ONCE=f"{tmp_path}/once",
        # The thread that watches the timeouts sleeps until the next one, and dies when it wakes up.
        CHAOS_TIMEOUT="2" if thread == "pubsub-timeouts" else "60",
        CHAOS_ASYNC="1" if thread == "pubsub-event-loop" else "",
    )
    (first,) = field.children(supervisor)
    field.produce(pause=0.05)
    field.until(lambda: bool(field.noted("death")), 20, "the thread is dead")
    field.until(lambda: first not in field.children(supervisor), 10, "its process is gone")
    field.until(lambda: any(run.pid != first for run in field.runs()), 10, "another works")
    ((_, died),) = field.noted("death")
    took = min(run.started for run in field.runs() if run.pid != first) - died
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= 4
    assert took <= 5
    field.end_workers()
    record(f"the thread {thread} dies", verdict, recovery=took)


@on("valkey")
def test_sigterm_under_load_and_sigkill_while_draining(field: Field, record: Record) -> None:
    """A drain repeats nothing; one cut short repeats what was in hand at most."""
    field.worker()
    field.produce()
    drained = field.worker(CHAOS_WORK="0.05")
    field.until_busy(*field.children(drained))
    os.kill(drained, signal.SIGTERM)
    field.until(lambda: not field.children(drained), 5, "it has drained")
    before = field.judge()
    assert (before.repeated, before.unknown) == ({}, [])
    cut = field.worker(CHAOS_WORK="0.5")
    children = field.children(cut)
    field.until_busy(*children)
    os.kill(cut, signal.SIGTERM)
    field.pause(0.05, 0.3)
    in_hand = field.kill(cut, *(child for child in children if is_alive(child)))
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    field.end_workers(killed=[cut, drained])
    record("SIGTERM under load; SIGKILL while draining", verdict, in_hand=in_hand)
