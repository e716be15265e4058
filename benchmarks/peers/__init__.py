"""Other libraries that run functions off Redis, as their documentation says: one process, 8 threads where it has any.

Each module has `publish(count)`, and `WORKER`, the words after `python -m` that start its worker. Its function counts,
and does nothing else. Nothing here is needed for `--peers` to be left out, and none of them is a dependency.
"""

import importlib.util
import sys
from dataclasses import dataclass
from functools import partial

from benchmarks import consuming, processes, publishing
from benchmarks.rows import Bench, Group, Row, Skipped


@dataclass(frozen=True)
class Peer:
    """How many messages to measure it with, and how it is installed."""

    name: str
    install: str
    count: int = 5_000


PEERS = {
    peer.name: peer
    for peer in (
        Peer("dramatiq", "dramatiq[redis]"),
        Peer("faststream", "faststream[redis,cli]"),
        Peer("celery", "celery[redis]"),
        Peer("rq", "rq", 200),  # which starts a process for each
        Peer("huey", "huey"),
        Peer("taskiq", "taskiq taskiq-redis"),
    )
}


def publishes(bench: Bench, peer: Peer) -> float:
    """Return how many messages a second it publishes, one at a time."""
    _check(peer)
    count = bench.few(peer.count)
    with processes.running(bench.url, count, _publisher(peer, count)) as running:
        return count / float(running.result())


def drains(bench: Bench, peer: Peer) -> float:
    """Return how many messages a second its worker handles of those that are there."""
    _check(peer)
    count = bench.few(peer.count)
    with processes.running(bench.url, count, _publisher(peer, count)) as running:
        running.result()
    words = [sys.executable, "-m", "benchmarks.peers.run", peer.name, "worker"]
    with processes.running(bench.url, count, words) as running:
        tally = running.tally()
        tally.wait_for_processes(1)
        began = tally.go()
        return count / (tally.wait_for(count) - began)


def _publisher(peer: Peer, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.run", peer.name, "publish", str(count)]


def _check(peer: Peer) -> None:
    if importlib.util.find_spec(peer.name) is None:
        raise Skipped(f"{peer.name} is not installed; `{sys.executable} -m pip install {peer.install!r}` does it")


def groups(names: list[str]) -> list[Group]:
    """Return the rows in which ours stands beside these."""
    peers = [PEERS[name] for name in names]
    return [
        Group(
            {"ours": partial(consuming.drain, kind="untyped"), **{p.name: partial(drains, peer=p) for p in peers}},
            [Row(f"{p.name}-drain", f"drain, beside {p.name}", "messages/s", "ours", p.name) for p in peers],
        ),
        Group(
            {"ours": publishing.ours_one_by_one, **{p.name: partial(publishes, peer=p) for p in peers}},
            [
                Row(f"{p.name}-publish", f"publish one at a time, beside {p.name}", "messages/s", "ours", p.name)
                for p in peers
            ],
        ),
    ]
