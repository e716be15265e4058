"""Measure, print a table of medians and ratios.

    python -m benchmarks [--rounds 5] [--markdown FILE] [--quick]

Each measurement runs ours and the same work in plain redis-py in turn, round by round, against one redis-server of its
own: on the loopback, without persistence, emptied before each run.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import redis

from benchmarks import consuming, publishing
from tests.servers import redis_server

MARKER = '<!-- What follows is written by: make bench ARGS="--markdown docs/performance.md" -->'


@dataclass(frozen=True)
class Row:
    """One line of the table: the medians of what was measured in the rounds, with the ranges."""

    what: str
    unit: str
    ours: Sequence[float]
    plain: Sequence[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.plain)

    def cells(self) -> list[str]:
        return [f"{self.what} ({self.unit})", _spread(self.ours), _spread(self.plain), f"{self.ratio:.2f}"]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table into FILE, below its marker line")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, one round: to see that it runs")
    options = parser.parse_args()
    rounds, share = (1, 10) if options.quick else (options.rounds, 1)
    with redis_server() as server:
        rows = measure(server.url, rounds, share)
        about = environment(server.url)
    print(f"\n{about}\n")
    print(as_text(rows))
    if options.markdown:
        before = options.markdown.read_text(encoding="utf-8") if options.markdown.exists() else ""
        kept, marker, _ = before.partition(MARKER)
        table = f"{kept}{marker or MARKER}\n\n{about}\n\n{as_markdown(rows)}\n"
        options.markdown.write_text(table, encoding="utf-8")


def measure(url: str, rounds: int, share: int) -> list[Row]:
    few, many, drained, single = 5_000 // share, 50_000 // share, 50_000 // share, 300 // share
    rows = [
        compare("publish, one at a time", url, rounds, publishing.ours_one_by_one, publishing.plain_one_by_one, few),
        *(
            compare(
                f"publish, batches of {size:,}",
                url,
                rounds,
                lambda url, count, size=size: publishing.ours_in_batches(url, count, size),
                lambda url, count, size=size: publishing.plain_in_batches(url, count, size),
                many,
            )
            for size in (100, 1000)
        ),
        *(
            compare(
                f"drain {drained:,}, 1 process, log level {level}",
                url,
                rounds,
                lambda url, count, level=level: consuming.ours_drain(url, count, log_level=level),
                consuming.plain_drain,
                drained,
            )
            for level in ("WARNING", "INFO")
        ),
    ]
    return rows + latencies(url, rounds, single)


def compare(
    what: str,
    url: str,
    rounds: int,
    ours: Callable[[str, int], float],
    plain: Callable[[str, int], float],
    count: int,
) -> Row:
    """Run both in turn; who begins changes from round to round."""
    found: dict[Callable[[str, int], float], list[float]] = {ours: [], plain: []}
    for number in range(rounds):
        for one in (ours, plain) if number % 2 == 0 else (plain, ours):
            empty(url)
            found[one].append(one(url, count))
        _progress(f"{what}, round {number + 1}: {found[ours][-1]:,.0f} / {found[plain][-1]:,.0f} a second")
    return Row(what, "messages/s", found[ours], found[plain])


def latencies(url: str, rounds: int, count: int) -> list[Row]:
    found: dict[str, list[list[float]]] = {"ours": [], "plain": []}
    for number in range(rounds):
        for name in ("ours", "plain") if number % 2 == 0 else ("plain", "ours"):
            empty(url)
            one = consuming.ours_latency if name == "ours" else consuming.plain_latency
            found[name].append([seconds * 1e6 for seconds in one(url, count)])
        _progress(f"latency, round {number + 1}")
    return [
        Row(
            f"latency when idle, p{percent}",
            "µs",
            *([statistics.quantiles(run, n=100)[percent - 1] for run in found[name]] for name in ("ours", "plain")),
        )
        for percent in (50, 99)
    ]


def empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()


def environment(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        server = client.info("server")["redis_version"]
    return (
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs ({platform.machine()}, {platform.system()} "
        f"{platform.release()}), Redis {server} on the loopback without persistence, redis-py {version('redis')}, "
        f"hiredis {version('hiredis')}, pydantic {version('pydantic')}."
    )


HEADER = ["what", "ours: median [range]", "plain redis-py: median [range]", "ratio"]


def as_text(rows: Sequence[Row]) -> str:
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in pairs)
        for pairs in (list(enumerate(zip(line, widths, strict=True))) for line in table)
    )


def as_markdown(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.cells())} |" for row in rows)])


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
