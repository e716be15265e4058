"""Theirs: a consumer in plain redis-py. One thread: XREADGROUP COUNT 100, json.loads of each, one XACK per batch.

python -m benchmarks.plain_consumer drain|latency
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter

import redis

from benchmarks.payload import DRAIN_TOPIC, GROUP, LATENCY_TOPIC
from benchmarks.tally import noting

EXPECTED = int(os.environ.get("BENCH_EXPECTED", "1"))
DIRECTORY = Path(os.environ.get("BENCH_DIRECTORY", "."))
BLOCK = 5000


def batches(client: redis.Redis, stream: str):
    """Yield the entries of each read, and acknowledge them when the loop comes back for more."""
    while True:
        # A list of one [stream, entries] in RESP2, a map of them in RESP3.
        reply = client.xreadgroup(GROUP, "one", {stream: ">"}, count=100, block=BLOCK)
        for _, found in reply.items() if isinstance(reply, dict) else reply or ():
            entries = found[0] if found and isinstance(found[0], list) else found
            yield entries
            client.xack(stream, GROUP, *[entry_id for entry_id, _ in entries])


def drain(client: redis.Redis) -> None:
    note = noting(DIRECTORY, EXPECTED)
    for entries in batches(client, DRAIN_TOPIC):
        for _, fields in entries:
            json.loads(fields[b"payload"])
            note()


def latency(client: redis.Redis) -> None:
    latencies: list[float] = []
    for entries in batches(client, LATENCY_TOPIC):
        for _, fields in entries:
            payload = json.loads(fields[b"payload"])
            latencies.append(perf_counter() - payload["sent"])
        if len(latencies) >= EXPECTED:
            written = DIRECTORY / "result.part"
            written.write_text(json.dumps(latencies))
            written.rename(DIRECTORY / "result")
            return


if __name__ == "__main__":
    # redis-py 8 would give up a blocked read after 5 s by default.
    with redis.Redis.from_url(os.environ["BENCH_URL"], socket_timeout=2 * BLOCK / 1000) as plain:
        plain.xgroup_create(DRAIN_TOPIC if sys.argv[1] == "drain" else LATENCY_TOPIC, GROUP, "0", mkstream=True)
        {"drain": drain, "latency": latency}[sys.argv[1]](plain)
