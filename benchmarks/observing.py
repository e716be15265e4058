"""What metrics cost: a backlog is drained by one process with them, scraped each second, and without, in turn.

python -m benchmarks.observing [--rounds 7] [--count 400000]
"""

import argparse
import itertools
import json
import logging
import statistics
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from time import process_time

from benchmarks import backlogs, consuming, processes
from benchmarks.__main__ import empty
from benchmarks.payload import DRAIN_TOPIC, GROUP
from benchmarks.rows import Bench
from benchmarks.surroundings import as_sentence, surroundings
from pubsub_core import Message, PubSub, Worker
from pubsub_core.worker.report import Reporter
from tests.servers import redis_server
from tests.test_docs import free_port

CHUNK = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--count", type=int, default=400_000, metavar="N")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--within", action="store_true")
    options = parser.parse_args()
    if options.within:
        with redis_server() as server:
            print(as_sentence(surroundings(server.url)), flush=True)
            within(server.url, options.rounds * options.count)
        return
    found: dict[bool, list[float]] = {True: [], False: []}
    with redis_server() as server:
        print(as_sentence(surroundings(server.url)), flush=True)
        for number in range(options.rounds):
            for is_on in (True, False) if number % 2 == 0 else (False, True):
                empty(server.url)
                bench = Bench(server.url, server.pid)
                found[is_on].append(drain(bench, options.count, clock=options.clock, is_on=is_on))
            with_it, without = found[True][-1], found[False][-1]
            print(f"round {number + 1}: with metrics {with_it:,.0f} / without {without:,.0f} messages/s", flush=True)
    with_it, without = statistics.median(found[True]), statistics.median(found[False])
    pairs = statistics.median(on / off for on, off in zip(found[True], found[False], strict=True))
    print(f"medians: with metrics {with_it:,.0f}, without {without:,.0f} messages/s")
    print(f"cost: {1 - with_it / without:.1%} by the medians, {1 - pairs:.1%} by the median of the rounds' ratios")


def drain(bench: Bench, count: int, *, clock: str, is_on: bool) -> float:
    """Return the messages per second of time, or of CPU time."""
    backlogs.fill(bench.url, count)
    words = processes.worker("untyped")
    if is_on:
        port = free_port()
        with scraped(port):
            took = consuming.drained(bench, count, [*words, "--metrics-port", str(port)])
    else:
        took = consuming.drained(bench, count, words)
    return count / (took.consumers_cpu if clock == "cpu" else took.seconds)


def within(url: str, count: int) -> None:
    logging.getLogger("pubsub").setLevel(logging.WARNING)
    pubsub = PubSub(url, group=GROUP)
    pubsub.metrics.start()
    topic = pubsub.topic(DRAIN_TOPIC)
    backlogs.fill(url, count)
    marks: list[float] = []
    next_number = itertools.count(1).__next__
    is_over = threading.Event()

    @topic.subscribe()
    def nothing(message: Message) -> None:
        number = next_number()
        if number % CHUNK == 0:
            marks.append(process_time())
            worker._executor._observe = observe if number // CHUNK % 2 else None
            if number == count // CHUNK * CHUNK:
                is_over.set()

    worker = Worker(pubsub, threads=8)
    observe = worker._executor._observe
    reporter = Reporter(worker, pubsub.metrics, pubsub.runtime.broker)

    with worker:
        while not is_over.wait(1.0):
            json.dumps(reporter.report())
    pubsub.close()
    each = [(end - begin) / CHUNK * 1e6 for begin, end in itertools.pairwise(marks)]
    counted, uncounted = each[0::2], each[1::2]
    extra = statistics.median(on - off for on, off in zip(counted, uncounted, strict=False))
    print(f"counted: median {statistics.median(counted):.2f} µs a message, the fastest {min(counted):.2f}")
    print(f"not counted: median {statistics.median(uncounted):.2f} µs, the fastest {min(uncounted):.2f}")
    print(f"counting: {extra:.2f} µs a message, {extra / statistics.median(uncounted):.1%} ({len(each)} chunks)")


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Ask for the metrics each second; see that there was an answer."""
    is_over, answers = threading.Event(), []

    def scrape() -> None:
        while not is_over.wait(1.0):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    answers.append(response.read())
            except (urllib.error.URLError, OSError):
                continue  # it has not started yet, or has ended

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if not any(b"pubsub_handled_total{" in answer for answer in answers):
        raise RuntimeError("the metrics were never answered: take a larger --count")


if __name__ == "__main__":
    main()
