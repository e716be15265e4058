"""CPU time per message of one process, handling or publishing: the least of several rounds, which noise changes little.

    python -m benchmarks.cpu [--rounds 7] [--count 20000] [--what "drain untyped" ...]
    python -m benchmarks.cpu --json before.json         # then change something
    python -m benchmarks.cpu --against before.json      # ends with 1 if a ratio to redis-py got worse by more than 10 %

What is compared is the ratio to plain redis-py, measured in the same rounds: so another machine changes it little.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from benchmarks import backlogs
from benchmarks.once import OURS
from benchmarks.surroundings import as_sentence, surroundings
from tests.servers import redis_server

ALLOWED = 0.10


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU per message, and how many times as much plain redis-py takes: more is better."""

    microseconds: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.plain / self.microseconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--what", nargs="*", default=list(OURS), choices=list(OURS), metavar="WHAT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in FILE")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with those in FILE")
    parser.add_argument("--allow", type=float, default=ALLOWED, metavar="SHARE", help="how much worse is not worse")
    options = parser.parse_args()
    with redis_server() as server:
        about = surroundings(server.url)
        costs = measured(server.url, options.what, options.rounds, options.count)
    print(as_sentence(about))
    for what, cost in costs.items():
        print(f"{what:30} {cost.microseconds:6.1f} µs of CPU per message   {cost.ratio:5.2f} × plain redis-py")
    if options.json:
        found = {"surroundings": about, "costs": {what: asdict(cost) for what, cost in costs.items()}}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.against:
        kept = json.loads(options.against.read_text(encoding="utf-8"))["costs"]
        before = {what: Cost(**cost) for what, cost in kept.items()}
        lines, is_worse = compared(costs, before, options.allow)
        print("\n".join(lines))
        sys.exit(is_worse)


def measured(url: str, names: list[str], rounds: int, count: int) -> dict[str, Cost]:
    plain = dict.fromkeys(OURS[name][1] for name in names)
    least: dict[str, float] = {}
    for _ in range(rounds):
        for name in (*names, *plain):
            each = seconds(url, name, count) / count * 1e6
            least[name] = min(each, least.get(name, each))
    return {name: Cost(least[name], least[OURS[name][1]]) for name in names}


def seconds(url: str, what: str, count: int) -> float:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    if "drain" in what:
        backlogs.fill(url, count)
    command = [sys.executable, "-m", "benchmarks.once", what, str(count)]
    ended = subprocess.run(
        command, env={**os.environ, "BENCH_URL": url}, stdout=subprocess.PIPE, text=True, check=True, timeout=700
    )
    return float(ended.stdout)


def compared(now: Mapping[str, Cost], before: Mapping[str, Cost], allowed: float) -> tuple[list[str], bool]:
    """Return a line for each that was measured both times, and whether one of them got worse by more than allowed."""
    changes = {what: now[what].ratio / before[what].ratio - 1 for what in now if what in before}
    lines = [
        f"{what:30} {before[what].ratio:5.2f} × before, {now[what].ratio:5.2f} × now: {change:+.1%}"
        f"{'   WORSE' if change < -allowed else ''}"
        for what, change in changes.items()
    ]
    return lines, any(change < -allowed for change in changes.values())


if __name__ == "__main__":
    main()
