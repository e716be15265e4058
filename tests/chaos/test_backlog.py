"""Workers that drain a topic as fast as they can, and have the next read on its way while they handle the last."""

import os
import signal
from collections.abc import Sequence

from tests.chaos import IS_LONG, on
from tests.chaos.field import Field, Record
from tests.chaos.gate import Gate
from tests.servers import RealServer

BACKLOG = 100_000 if IS_LONG else 30_000
IN_HAND = 500  # of one subscription; what is more was asked for ahead
FAST = {"CHAOS_WORK": "0", "CHAOS_BRISK": "60"}


def _until_ahead(field: Field, pids: Sequence[int]) -> int:
    """Wait until they have handled some more, and one of them has more than it works on; return its number."""
    before = field.handled
    field.until(lambda: field.handled > before + 1_000, 20, "they get on")
    found: list[int] = []

    def is_ahead() -> bool:
        found.extend(pid for pid in pids if field.in_hand(pid) > IN_HAND)
        return bool(found)

    field.until(is_ahead, 20, "one of them reads ahead")
    return found[0]


@on("redis")
def test_a_process_that_drains_is_killed(field: Field, record: Record) -> None:
    """What was on its way to it is neither lost nor kept from others."""
    supervisor = field.worker(**FAST)
    field.publish_backlog(BACKLOG)
    victim = _until_ahead(field, field.children(supervisor))
    in_hand = field.kill(victim)
    verdict = field.settle(60)
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= min(in_hand, IN_HAND), "what was on its way had not been started"
    field.end_workers()
    record("a process that drains a backlog is killed (SIGKILL)", verdict, in_hand=in_hand)


@on("valkey")
def test_a_process_that_drains_is_frozen(field: Field, record: Record) -> None:
    """When it goes on it starts nothing of what was on its way to it: others have that by then."""
    supervisor = field.worker(**FAST)
    field.publish_backlog(BACKLOG)
    victim = _until_ahead(field, field.children(supervisor))
    in_hand = field.freeze(victim)
    field.until_taken_over(victim)
    os.kill(victim, signal.SIGCONT)
    verdict = field.settle(60)
    assert (verdict.lost, verdict.unknown) == ([], [])
    assert len(verdict.repeated) <= min(in_hand, IN_HAND)
    field.end_workers()
    record("a process that drains a backlog is frozen, and goes on later", verdict, in_hand=in_hand)


@on("redis")
def test_a_backlog_outlasts_its_connections(field: Field, gate: Gate, server: RealServer, record: Record) -> None:
    """Connections are cut and killed, the server ends and comes back: each message runs once."""
    supervisor = field.worker(gate.url, **FAST)
    field.publish_backlog(2 * BACKLOG)
    children = field.children(supervisor)
    for fault in (gate.cut, field.kill_connections, lambda: gate.cut(reset=True), server.kill):
        _until_ahead(field, children)
        fault()
    server.start()
    verdict = field.settle(60)
    assert verdict.is_clean
    field.end_workers()
    record("connections are cut and killed, the server restarts, while a backlog is drained", verdict)


@on("valkey")
def test_a_group_that_is_drained_is_destroyed(field: Field, record: Record) -> None:
    """It is made anew where it was, by who knows what is settled."""
    supervisor = field.worker(**FAST)
    field.publish_backlog(BACKLOG)
    _until_ahead(field, field.children(supervisor))
    field.client.xgroup_destroy(field.stream, "billing")
    verdict = field.settle(60)
    assert verdict.is_clean
    field.end_workers()
    record("the group is destroyed while a backlog is drained", verdict)


@on("redis")
def test_workers_are_replaced_while_they_drain(field: Field, record: Record) -> None:
    """Whoever is told to stop gives back what was on its way to it, uncounted."""
    supervisors = [field.worker(**FAST)]
    field.publish_backlog(3 * BACKLOG)
    for _ in range(2):
        _until_ahead(field, field.children(supervisors[-1]))
        os.kill(supervisors[-1], signal.SIGTERM)
        supervisors.append(field.worker(**FAST))
    _until_ahead(field, field.children(supervisors[-1]))
    verdict = field.settle(60)
    assert verdict.is_clean
    assert {run.attempt for run in field.runs()} == {1}
    field.end_workers(killed=supervisors[:-1])
    record("workers are replaced (SIGTERM) while they drain a backlog", verdict)
