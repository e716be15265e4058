"""Measure, and print a table: ours, plain redis-py, the ratio, the target, whether it is met.

    python -m benchmarks [--only NAME ...] [--rounds 5] [--quick] [--markdown FILE] [--json FILE]
    python -m benchmarks --peers dramatiq,celery [--only celery-drain ...]
    python -m benchmarks --list

The two sides of a row run in turn, round by round, against one redis-server of their own: on the loopback, without
persistence, emptied before each run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import redis

from benchmarks import consuming, peers, publishing, resources
from benchmarks.rows import Bench, Group, Result, as_markdown, as_text, measure
from benchmarks.surroundings import as_sentence, surroundings
from tests.servers import redis_server

MARKER = '<!-- What follows is written by: make bench ARGS="--markdown docs/performance.md" -->'
QUICK = 100

GROUPS: Sequence[Group] = [*consuming.GROUPS, *publishing.GROUPS, *resources.GROUPS]
NAMES = [row.name for group in GROUPS for row in group.rows]


def main() -> None:
    options = parsed()
    if options.list:
        print("\n".join(f"{row.name:20} {row.what}" for group in options.groups for row in group.rows))
        return
    with redis_server() as server:
        about = surroundings(server.url)
        print(as_sentence(about), file=sys.stderr, flush=True)
        bench = Bench(server.url, server.pid, QUICK if options.quick else 1, options.idle)
        results = measured(options.groups, bench, 1 if options.quick else options.rounds, options.only)
    print(f"\n{as_sentence(about)}\n\n{as_text(results)}")
    if options.markdown:
        before = options.markdown.read_text(encoding="utf-8") if options.markdown.exists() else ""
        kept, marker, _ = before.partition(MARKER)
        table = f"{kept}{marker or MARKER}\n\n{as_sentence(about)}\n\n{as_markdown(results)}\n"
        options.markdown.write_text(table, encoding="utf-8")
    if options.json:
        found = {"surroundings": about, "rows": [result.as_json() for result in results]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0], epilog=f"NAME is one of: {', '.join(NAMES)}"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,NAME",
        help=f"beside other libraries too, those that are installed: {', '.join(peers.PEERS)}",
    )
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--idle", type=float, default=30.0, metavar="SECONDS", help="how long an idle process is watched (30)"
    )
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work, one round: to see that it runs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table into FILE, below its marker line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure into FILE")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(peers.PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}. The peers: {', '.join(peers.PEERS)}")
    options.groups = [*GROUPS, *(peers.groups(options.peers) if options.peers else [])]
    names = [row.name for group in options.groups for row in group.rows]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"there is no row {', '.join(sorted(unknown))}. The rows: {', '.join(names)}")
    options.only = options.only or names
    return options


def measured(groups: Sequence[Group], bench: Bench, rounds: int, names: Sequence[str]) -> list[Result]:
    results: list[Result] = []
    for group in groups:
        rows = [row for row in group.rows if row.name in names]
        if rows:
            results += measure(group, bench, rounds, rows, lambda: empty(bench.url), say)
    return results


def empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
