"""Ours: the application of `pubsub worker benchmarks.ours_drain:pubsub`. Its handler counts, and does nothing else."""

import os
from itertools import count
from pathlib import Path
from time import perf_counter, process_time

from benchmarks.payload import DRAIN_TOPIC, GROUP
from pubsub_core import Message, PubSub

EXPECTED = int(os.environ.get("BENCH_EXPECTED", "1"))
RESULT = Path(os.environ.get("BENCH_RESULT", "bench-result"))

clock = process_time if os.environ.get("BENCH_CLOCK") == "cpu" else perf_counter

pubsub = PubSub(os.environ["BENCH_URL"])
topic = pubsub.topic(DRAIN_TOPIC)
next_number = count(1).__next__  # safe from any thread
began = 0.0


@topic.subscribe(group=GROUP)
def nothing(message: Message) -> None:
    global began  # noqa: PLW0603  # one number for the process
    number = next_number()
    if number == 1:
        began = clock()
    elif number == EXPECTED:
        RESULT.write_text(repr(clock() - began))
