"""Ours: the application of `pubsub worker benchmarks.ours_delayed:pubsub`. It notes how late each message is."""

import json
import os
from pathlib import Path
from time import time

from benchmarks.payload import GROUP
from pubsub_core import Message, PubSub

EXPECTED = int(os.environ.get("BENCH_EXPECTED", "1"))
RESULT = Path(os.environ.get("BENCH_RESULT", "bench-result"))

pubsub = PubSub(os.environ["BENCH_URL"])
lateness: list[float] = []


@pubsub.subscribe("bench.delayed", group=GROUP)
def note(message: Message) -> None:
    lateness.append(time() - message.payload["due"])
    if len(lateness) == EXPECTED:
        RESULT.write_text(json.dumps(lateness))


for _number in range(4):
    pubsub.subscribe(f"bench.idle-{_number}", group=GROUP)(lambda message: None)
