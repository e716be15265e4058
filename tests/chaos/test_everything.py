"""One fault after the other, in an order that chance decides, as they come in a bad week."""

import math
import os
import signal
import time
from collections.abc import Callable

from tests.chaos import IS_LONG, on
from tests.chaos.field import Field, Record
from tests.chaos.gate import Gate
from tests.servers import RealServer


@on("valkey")
def test_one_fault_after_the_other(field: Field, gate: Gate, server: RealServer, record: Record) -> None:
    """No order of them loses anything, and only what the killed and the frozen had in hand may come twice."""
    supervisors = [field.worker(), field.worker(gate.url, PUBSUB_PUBLISH_TIMEOUT="0.8", CHAOS_WORK="0.05")]
    killed: list[int] = []
    in_hand = 0
    field.produce()
    field.produce(gate.url, publish_timeout=2.0)

    def anyone() -> int | None:
        children = field.children(field.random.choice(supervisors))
        return field.random.choice(children) if children else None

    def kill_process() -> None:
        nonlocal in_hand
        if victim := anyone():
            in_hand += field.kill(victim)

    def kill_worker() -> None:
        nonlocal in_hand
        victim = supervisors.pop(field.random.randrange(2))
        in_hand += field.kill(*field.children(victim), victim)
        killed.append(victim)
        supervisors.append(field.worker(CHAOS_WORK="0.02"))

    def freeze_process() -> None:
        nonlocal in_hand
        if victim := anyone():
            in_hand += field.freeze(victim)
            field.pause(2 * field.heartbeat, 8 * field.heartbeat)
            os.kill(victim, signal.SIGCONT)

    def restart_server() -> None:
        server.kill()
        field.pause(0.0, 2 * field.heartbeat)
        server.start()

    faults: dict[str, Callable[[], object]] = {
        "kill a process": kill_process,
        "kill a worker": kill_worker,
        "freeze a process": freeze_process,
        "restart the server": restart_server,
        "cut": gate.cut,
        "reset": lambda: gate.cut(reset=True),
        "half-open": gate.forget,
        "CLIENT KILL": field.kill_connections,
        "SCRIPT FLUSH": field.client.script_flush,
        "XGROUP DESTROY": lambda: field.client.xgroup_destroy(field.stream, "billing"),
    }
    # What a group had settled is known by who settled it. If both are gone at once nobody knows: docs/reliability.md.
    lost_process, lost_group = {"kill a process", "kill a worker", "freeze a process"}, {"XGROUP DESTROY"}
    last_at = dict.fromkeys(faults, -math.inf)

    def possible() -> list[str]:
        recent = {name for name, at in last_at.items() if time.monotonic() - at < 10 * field.heartbeat}
        left_out = (lost_group if recent & lost_process else set()) | (lost_process if recent & lost_group else set())
        return [name for name in faults if name not in left_out]

    happened: list[str] = []
    until = time.monotonic() + (90 if IS_LONG else 10)
    while time.monotonic() < until:
        happened.append(field.random.choice(possible()))
        faults[happened[-1]]()
        last_at[happened[-1]] = time.monotonic()
        field.pause(0.3, 1.5)
    verdict = field.settle(60)
    assert (verdict.lost, verdict.unknown) == ([], []), happened
    assert len(verdict.repeated) <= in_hand, (happened, verdict.repeated)
    field.end_workers(killed=killed)
    record("one fault after the other, as chance decides", verdict, in_hand=in_hand, faults=len(happened))
