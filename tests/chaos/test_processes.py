"""Worker processes that are killed, frozen, poisoned or caught in a loop."""

import os
import signal
import time
from pathlib import Path

from tests.chaos import IS_LONG, on, on_each
from tests.chaos.field import HEARTBEAT, RECOVERY, Field, Record, is_alive, rounds


@on("redis")
def test_a_killed_worker_process(field: Field, record: Record) -> None:
    """Its deliveries run elsewhere in time; only what it had in hand may come twice."""
    field.worker()
    supervisor = field.worker()
    field.produce()
    slowest, in_hand = 0.0, 0
    for _ in rounds():
        field.until(lambda: len(field.consumers()) >= 4, 20, "all processes are there")
        time.sleep(1)
        victim = field.children(supervisor)[0]
        os.kill(victim, signal.SIGSTOP)
        in_hand += field.in_hand(victim)
        os.kill(victim, signal.SIGKILL)
        killed = time.time()
        field.until(lambda: field.names_of(victim) == [], 2 * RECOVERY, "taken over")  # noqa: B023  # called in here
        time.sleep(0.5)
        slowest = max(slowest, field.recovery({victim}, killed))
    verdict = field.settle()
    assert not verdict.lost
    assert not verdict.unknown
    assert len(verdict.repeated) <= in_hand
    assert slowest <= RECOVERY
    field.end_workers()
    record("a worker process is killed (SIGKILL)", lost=0, repeated=len(verdict.repeated), in_hand=in_hand,
           published=verdict.published, recovery=slowest / HEARTBEAT * 2)  # fmt: skip


@on("valkey")
def test_all_worker_processes_killed(field: Field, record: Record) -> None:
    """Supervisors included. Those started afterwards take over."""
    pids = [field.worker(), field.worker()]
    field.produce()
    time.sleep(1.5)
    children = [child for pid in pids for child in field.children(pid)]
    for pid in [*pids, *children]:
        os.kill(pid, signal.SIGSTOP)
    in_hand = field.in_hand(*children)
    for pid in [*pids, *children]:
        os.kill(pid, signal.SIGKILL)
    killed = time.time()
    field.worker()
    verdict = field.settle()
    assert not verdict.lost
    assert not verdict.unknown
    assert len(verdict.repeated) <= in_hand
    # An idle group: the topic had no other worker meanwhile. The start of the new ones is part of the time.
    assert field.recovery(set(children), killed) <= RECOVERY + 3
    field.end_workers_after_kill(pids)
    record("all worker processes and supervisors are killed", lost=0, repeated=len(verdict.repeated), in_hand=in_hand,
           published=verdict.published)  # fmt: skip


@on("redis")
def test_a_killed_supervisor(field: Field, record: Record) -> None:
    """Its children notice, finish, and end by themselves: no orphan lives on, and nothing comes twice."""
    field.worker()
    supervisor = field.worker()
    children = field.children(supervisor)
    field.produce()
    time.sleep(0.7)
    os.kill(supervisor, signal.SIGKILL)
    took = field.until(lambda: not any(is_alive(pid) for pid in children), 10, "the orphans are gone")
    verdict = field.settle()
    assert (verdict.lost, verdict.repeated, verdict.unknown) == ([], {}, [])
    field.end_workers_after_kill([supervisor])
    record("the supervisor is killed", lost=0, repeated=0, published=verdict.published, recovery=took)


@on("valkey")
def test_a_frozen_worker_process(field: Field, record: Record) -> None:
    """Thought dead, it goes on later: it settles nothing that others own by then."""
    field.worker()
    supervisor = field.worker(CHAOS_WORK="0.05")
    field.produce()
    time.sleep(1)
    children = field.children(supervisor)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    in_hand = field.in_hand(*children)
    frozen = time.time()
    time.sleep(30 if IS_LONG else 2 * RECOVERY)
    slowest = field.recovery(set(children), frozen)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    assert slowest <= RECOVERY
    assert all(is_alive(pid) for pid in children), "they go on"
    field.end_workers()
    record("worker processes are frozen (SIGSTOP, SIGCONT)", lost=0, repeated=len(verdict.repeated), in_hand=in_hand,
           published=verdict.published, recovery=slowest / HEARTBEAT * 2)  # fmt: skip


@on("redis")
def test_slow_handlers_among_quick_ones(field: Field, record: Record) -> None:
    """However long they run: no other gets what they have."""
    field.worker()
    field.worker()
    slow = field.publish(6, "long")
    field.produce()
    time.sleep(4)
    verdict = field.settle()
    assert (verdict.lost, verdict.repeated, verdict.unknown) == ([], {}, [])
    assert set(slow) <= {run.message_id for run in field.runs() if run.ended and run.attempt == 1}
    field.end_workers()
    record("handlers run longer than 4 heartbeats", lost=0, repeated=0, published=verdict.published)


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
    assert len(starts) == 3
    assert [run.attempt for run in starts] == [1, 2, 3]
    assert letters[0].message.attempt == 4
    field.end_workers()
    record(f"a poison message ({how}) among 200", lost=0, repeated=len(verdict.repeated), dead_innocents=0)


@on_each("how", "spin", "sleep", "regex", "stubborn")
def test_a_handler_that_never_returns(field: Field, record: Record, how: str) -> None:
    """It is interrupted, or its process is replaced; the others go on, each once."""
    field.worker(CHAOS_TIMEOUT="0.5")
    (endless,) = field.publish(1, how)
    field.produce()
    field.until(lambda: sum(run.message_id == endless for run in field.runs()) >= 3, 40, "it was tried three times")
    verdict = field.settle(10, but=frozenset({endless}))
    assert (verdict.lost, verdict.repeated, verdict.unknown) == ([], {}, [])
    attempts = [run.attempt for run in field.runs() if run.message_id == endless]
    assert attempts == list(range(1, len(attempts) + 1))
    record(f"a handler that never returns ({how})", lost=0, repeated=0, published=verdict.published)


@on_each("thread", "pubsub-settler", "pubsub-maintenance", "pubsub-handler-1")
def test_the_death_of_a_library_thread(field: Field, record: Record, thread: str, tmp_path: Path) -> None:
    """The process is replaced within 5 s: never alive but deaf."""
    supervisor = field.worker(processes=1, CHAOS_DEATH=thread, CHAOS_DEATH_ONCE=f"{tmp_path}/once")
    (first,) = field.children(supervisor)
    field.produce(pause=0.05)
    field.until(lambda: bool(field.noted("death")), 10, "the thread was struck")
    field.until(lambda: first not in field.children(supervisor), 10, "its process is gone")
    field.until(lambda: any(run.pid != first for run in field.runs()), 10, "another works")
    ((_, struck),) = field.noted("death")
    took = min(run.started for run in field.runs() if run.pid != first) - struck
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= 4
    # A blocked thread is struck when it next runs Python code: a settler or reader at its next piece of work.
    assert took <= 5 + 1
    field.end_workers()
    record(f"the thread {thread} dies", lost=0, repeated=len(verdict.repeated), recovery=took)


@on("valkey")
def test_sigterm_under_load_and_sigkill_while_draining(field: Field, record: Record) -> None:
    """A drain repeats nothing; one cut short repeats what was in hand at most."""
    field.worker()
    field.produce()
    drained = field.worker()
    time.sleep(0.5)
    os.kill(drained, signal.SIGTERM)
    field.until(lambda: not field.children(drained), 5, "it has drained")
    before = field.judge()
    assert (before.repeated, before.unknown) == ({}, [])
    cut = field.worker(CHAOS_WORK="0.5")
    time.sleep(0.7)
    children = field.children(cut)
    os.kill(cut, signal.SIGTERM)
    time.sleep(0.1)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    in_hand = field.in_hand(*children)
    for pid in [*children, cut]:
        os.kill(pid, signal.SIGKILL)
    verdict = field.settle()
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= in_hand
    field.end_workers_after_kill([cut])
    record("SIGTERM under load; SIGKILL while draining", lost=0, repeated=len(verdict.repeated), in_hand=in_hand)
