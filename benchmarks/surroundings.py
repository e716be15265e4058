"""Where it was measured: what figures mean little without."""

import os
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from time import sleep
from typing import Any

import redis

SAMPLE = 0.5  # seconds for which the other processes are watched
BUSY = 0.05  # of a CPU


def surroundings(url: str) -> dict[str, Any]:
    """Return what can be said of machine, versions, and of what else ran when this began."""
    with redis.Redis.from_url(url) as client:
        server = client.info("server")["redis_version"]
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "redis": server,
        "versions": {name: version(name) for name in ("pubsub-streams", "redis", "hiredis", "pydantic")},
        "load": os.getloadavg()[0],
        "others": others(),
    }


def as_sentence(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    busy = ", ".join(f"{name} ({share:.0%} of a CPU)" for name, share in found["others"].items())
    return (
        f"Python {found['python']}, {found['cpus']} × {found['cpu']}, {found['kernel']}, Redis {found['redis']} on the "
        f"loopback without persistence, {versions}. Load average at the start: {found['load']:.2f}; other processes "
        f"at work then: {busy or 'none'}."
    )


def others() -> dict[str, float]:
    """Return what share of a CPU other processes use now, by their names; those that use little are left out."""
    before = _ticks()
    sleep(SAMPLE)
    used: Counter[str] = Counter()
    for (pid, name), ticks in _ticks().items():
        if int(pid) != os.getpid():
            used[name] += ticks - before.get((pid, name), ticks)
    shares = {name: ticks / os.sysconf("SC_CLK_TCK") / SAMPLE for name, ticks in used.most_common()}
    return {name: share for name, share in shares.items() if share >= BUSY}


def _ticks() -> dict[tuple[str, str], int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # it has ended
        name, rest = text.partition("(")[2].rsplit(")", 1)
        fields = rest.split()
        found[path.parent.name, name] = int(fields[11]) + int(fields[12])
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
