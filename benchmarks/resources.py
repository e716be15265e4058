"""What it takes: an idle process, the server's memory, and the time to start."""

import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep

import redis

from benchmarks import processes
from benchmarks.payload import DRAIN_TOPIC, PAYLOAD, READY, to_json
from benchmarks.rows import REDIS_PY, Bench, Group, Row, at_most, no_more_than
from pubsub_core import PubSub

SETTLE = 5.0
SMALL = {"order_id": 1234567, "total": 9.5}


def idle(bench: Bench) -> tuple[float, float, float, float]:
    """Return commands a second, those of them that scripts ran, CPU-seconds per 10 s, and megabytes, of one process."""
    with (
        processes.running(bench.url, 1, processes.worker("idle")) as running,
        redis.Redis.from_url(bench.url) as client,
    ):
        processes.wait_for_readers(bench.url)
        _settle(bench)
        worker = running.workers()[0]
        with client.monitor() as monitor:  # which says, other than INFO commandstats, what came from scripts
            before, cpu, began = _commands(client), processes.cpu_seconds(worker), monotonic()
            sleep(bench.idle / bench.share)
            spent, seconds, after = processes.cpu_seconds(worker) - cpu, monotonic() - began, _commands(client)
            client.echo("over")
            in_scripts = 0
            while (seen := monitor.next_command())["command"] != "ECHO over":
                in_scripts += seen["client_type"] == "lua"
        megabytes = processes.rss_megabytes(worker)
    names = ", ".join(f"{count} {name}" for name, count in (after - before).most_common())
    bench.remark("idle-commands", f"in {seconds:.0f} s of the last round: {names}")
    return (after - before).total() / seconds, in_scripts / seconds, spent * 10 / seconds, megabytes


def idle_in_flask(bench: Bench) -> float:
    """Return the megabytes of one process."""
    with processes.running(bench.url, 1, processes.worker("idle_in_flask")) as running:
        processes.wait_for_readers(bench.url)
        _settle(bench)
        return processes.rss_megabytes(running.workers()[0])


def _settle(bench: Bench) -> None:
    sleep(SETTLE if bench.share == 1 else 0.2)


def _commands(client: redis.Redis) -> Counter[str]:
    """Return how often the server has carried out each command, in scripts too; but for INFO, which asks it."""
    stats = client.info("commandstats")
    return Counter(
        {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items() if name != "cmdstat_info"}
    )


def ours_stored(bench: Bench, payload: dict) -> float:
    """Return the bytes of server memory that a message takes."""
    pubsub, count = PubSub(bench.url), bench.few(20_000, 1_000)
    with pubsub.batch() as batch:
        for _ in range(count):
            batch.publish(DRAIN_TOPIC, payload)
    pubsub.close()
    return _used(bench, f"pubsub:{{{DRAIN_TOPIC}}}") / count


def bare_stored(bench: Bench, payload: dict) -> float:
    count, data = bench.few(20_000, 1_000), READY if payload is PAYLOAD else to_json(payload).encode()
    with redis.Redis.from_url(bench.url) as client, client.pipeline(transaction=False) as pipeline:
        for _ in range(count):
            pipeline.xadd(DRAIN_TOPIC, {"payload": data})
        pipeline.execute()
    return _used(bench, DRAIN_TOPIC) / count


def _used(bench: Bench, stream: str) -> float:
    with redis.Redis.from_url(bench.url) as client:
        return float(client.memory_usage(stream, samples=0))


def first_message(bench: Bench) -> float:
    """Return the seconds from starting `pubsub worker` to its handler's first message, which waits already."""
    pubsub = PubSub(bench.url)
    pubsub.publish(DRAIN_TOPIC, PAYLOAD)
    pubsub.close()
    words = [_pubsub(), "worker", "benchmarks.ours:untyped()", "--log-level", "WARNING"]
    began = perf_counter()
    with processes.running(bench.url, 1, words) as running:
        tally = running.tally()
        tally.go()
        return tally.wait_for(1) - began


def importing(bench: Bench) -> float:
    """Return the milliseconds of `import pubsub_core`, without those of starting Python."""
    code = "from time import perf_counter as now; a = now(); import pubsub_core; print(now() - a)"
    with tempfile.TemporaryDirectory() as elsewhere:
        ended = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, check=True)
    return float(ended.stdout) * 1000


def helping(bench: Bench) -> float:
    """Return the milliseconds of `pubsub --help`, all of it."""
    began = perf_counter()
    subprocess.run([_pubsub(), "--help"], capture_output=True, check=True)
    return (perf_counter() - began) * 1000


def _pubsub() -> str:
    return str(Path(sys.executable).with_name("pubsub"))


GROUPS = [
    Group(
        {"plain": idle, "flask": idle_in_flask},
        [
            Row("idle-commands", "idle, 5 topics: commands", "per s", "plain", target=no_more_than(2), digits=2),
            Row("idle-scripts", "idle, 5 topics: of these within scripts", "per s", "plain", place=1, digits=2),
            Row("idle-cpu", "idle, 5 topics: CPU", "s per 10 s", "plain", None, no_more_than(0.02), 2, 3),
            Row("idle-rss", "idle, 5 topics: resident memory", "MB", "plain", None, no_more_than(45), 3, 1),
            Row("idle-rss-flask", "the same of a Flask app", "MB", "flask", target=no_more_than(60), digits=1),
        ],
        rounds=2,
    ),
    *(
        Group(
            {"ours": partial(ours_stored, payload=payload), REDIS_PY: partial(bare_stored, payload=payload)},
            [
                Row(
                    f"server-memory{name}",
                    f"server memory per message of {size} bytes",
                    "bytes",
                    "ours",
                    REDIS_PY,
                    target,
                )
            ],
            rounds=1,
        )
        for name, payload, size, target in (
            ("", PAYLOAD, len(READY), at_most(1.35)),
            ("-small", SMALL, len(to_json(SMALL)), None),
        )
    ),
    Group(
        {"worker": first_message, "import": importing, "help": helping},
        [
            Row(
                "start-worker",
                "start of `pubsub worker` to its first message",
                "s",
                "worker",
                None,
                no_more_than(0.6),
                0,
                3,
            ),
            Row("start-import", "`import pubsub_core`", "ms", "import", target=no_more_than(80)),
            Row("start-help", "`pubsub --help`", "ms", "help", target=no_more_than(200)),
        ],
    ),
]
