"""Ours: the application of `pubsub worker benchmarks.ours_latency:pubsub`. It notes how old each message is."""

import json
import os
from pathlib import Path
from time import perf_counter

from benchmarks.payload import GROUP, LATENCY_TOPIC
from pubsub_core import Message, PubSub

EXPECTED = int(os.environ.get("BENCH_EXPECTED", "1"))
RESULT = Path(os.environ.get("BENCH_RESULT", "bench-result"))

pubsub = PubSub(os.environ["BENCH_URL"])
topic = pubsub.topic(LATENCY_TOPIC)
latencies: list[float] = []


@topic.subscribe(group=GROUP)
def note(message: Message) -> None:
    latencies.append(perf_counter() - message.payload["sent"])
    if len(latencies) == EXPECTED:
        RESULT.write_text(json.dumps(latencies))
