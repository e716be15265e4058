"""CPU time per message of a process that drains a backlog: the least of several rounds, which noise changes little.

    python -m benchmarks.cpu [--rounds 7] [--count 20000] [--what "untyped" ...]

To hold a change against: run it before and after, and compare the ratios to plain redis-py.
"""

import argparse
import os
import subprocess
import sys

import redis

from benchmarks import backlogs
from benchmarks.drain_once import WHAT
from tests.servers import redis_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--what", nargs="*", default=list(WHAT), choices=list(WHAT), metavar="WHAT")
    options = parser.parse_args()
    found: dict[str, list[float]] = {what: [] for what in (*options.what, "plain redis-py")}
    with redis_server() as server:
        for _ in range(options.rounds):
            for what, each in found.items():
                each.append(seconds(server.url, what, options.count) / options.count * 1e6)
    for what, each in found.items():
        ratio = min(found["plain redis-py"]) / min(each)
        print(f"{what:28} {min(each):6.1f} µs of CPU per message   {ratio:5.2f} × plain redis-py")


def seconds(url: str, what: str, count: int) -> float:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    backlogs.fill(url, count)
    command = [sys.executable, "-m", "benchmarks.drain_once", what, str(count)]
    ended = subprocess.run(
        command, env={**os.environ, "BENCH_URL": url}, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return float(ended.stdout.split()[0])


if __name__ == "__main__":
    main()
