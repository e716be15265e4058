"""The demo: a Flask shop over HTTP, a worker, a real Valkey; 1,000 orders, each of them accounted for.

    python docs/examples/demo/run.py [--orders 1000]

It starts `flask run` and `flask pubsub worker` for shop.py, posts the orders, and waits until every group has settled
every message. What the handlers wrote into the ledger, and the dead letters that the server keeps, are then compared
with the ids that HTTP returned. The exit status is 0 only if they match: in each group, every message was handled once
or is a dead letter, and nothing else was. It ends by itself, and stops all that it started.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shop import is_always_declined, is_declined_once

from pubsub_core import DeadLetter, Inspector, PubSub, SubscriptionKey
from pubsub_redis.embedded import stop_server

HERE = Path(__file__).resolve().parent
TOPIC = "orders.placed"
GROUPS = ("billing", "shipping", "statistics")
CLIENTS = 8
STARTS_WITHIN = 10.0
SETTLES_WITHIN = 12.0
STOPS_WITHIN = 5.0


class DemoFailed(Exception):
    """Something is not as it must be; the text says what."""


@dataclass(frozen=True)
class Ledger:
    """What the handlers wrote, by (group, message id)."""

    handled: Counter[tuple[str, str]]
    failed: Counter[tuple[str, str]]

    @classmethod
    def read(cls, directory: Path) -> "Ledger":
        lines = [line.split() for file in directory.glob("*.ledger") for line in file.read_text().splitlines()]
        return cls(
            Counter((group, message) for group, message, _, what in lines if what == "handled"),
            Counter((group, message) for group, message, _, what in lines if what == "failed"),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=1000, metavar="N")
    count = parser.parse_args().orders
    directory = Path(tempfile.mkdtemp(prefix="pubsub-demo-"))
    (directory / "ledger").mkdir()
    try:
        run(count, directory)
    except (DemoFailed, KeyboardInterrupt) as error:
        for log in sorted(directory.glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-15:]
            print("\n  ".join([f"\nThe end of {log}:", *tail]), file=sys.stderr)
        print(f"\nThe demo failed: {str(error) or 'interrupted'}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


def run(count: int, directory: Path) -> None:
    url = f"redis+embedded://{directory}/server"
    environment = {**os.environ, "PUBSUB_URL": url, "SHOP_LEDGER": str(directory / "ledger"), "PYTHONUNBUFFERED": "1"}
    with contextlib.ExitStack() as stack:
        stack.callback(stop_server, directory / "server")
        port = free_port()
        stack.enter_context(command(["run", "--port", str(port)], directory / "web.log", environment))
        worker = stack.enter_context(
            command(["pubsub", "worker", "--processes", "2", "--threads", "4"], directory / "worker.log", environment)
        )
        pubsub = PubSub(url)
        stack.callback(pubsub.close)
        show("server", f"{url} (a real Valkey, started for this)")
        show("web", f"flask --app shop run --port {port}")
        show("worker", "flask --app shop pubsub worker --processes 2 --threads 4")
        wait_until(lambda: listens(port), STARTS_WITHIN, "the web server to listen")

        began = time.monotonic()
        show("client", f"{CLIENTS} threads post {count:,} orders over HTTP")
        ids = post_orders(port, range(1, count + 1))
        published_in = time.monotonic() - began

        wait_until(
            lambda: worker.poll() is not None or is_settled(ids, directory / "ledger", dead_letters(pubsub, count)),
            SETTLES_WITHIN,
            "every group to settle every message",
            or_go_on=True,
        )
        seconds = time.monotonic() - began
        problem = stop_worker(worker)

        ledger = Ledger.read(directory / "ledger")
        dead = dead_letters(pubsub, count)
        summarize(ids, ledger, dead, published_in, seconds)
        check(ids, ledger, dead)
        if problem is not None:
            raise DemoFailed(problem)
        print("\nEvery message is accounted for: in each group handled once, or kept as a dead letter.")


def show(what: str, text: str) -> None:
    print(f"  {what:<8}{text}", flush=True)


# Processes


@contextlib.contextmanager
def command(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `flask --app shop ...` in a process group of its own, of which nothing is left afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "shop", *words],
            cwd=HERE,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_worker(worker: subprocess.Popen[bytes]) -> str | None:
    """Ask the worker to stop; return what was wrong with how it ended, if anything was."""
    if worker.poll() is not None:
        return f"the worker ended by itself, with exit status {worker.returncode}"
    worker.terminate()
    try:
        status = worker.wait(STOPS_WITHIN)
    except subprocess.TimeoutExpired:
        return f"the worker did not end within {STOPS_WITHIN:g} s of SIGTERM"
    return None if status == 0 else f"after SIGTERM the worker ended with exit status {status}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, or_go_on: bool = False) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            if or_go_on:
                return
            raise DemoFailed(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)


# Orders


def post_orders(port: int, order_ids: Sequence[int]) -> dict[int, str]:
    """Post the orders from a few threads, each on one connection; return the message id of each order."""
    mine = threading.local()

    def post(order_id: int) -> tuple[int, str]:
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        mine.connection.request("POST", f"/orders/{order_id}")
        response = mine.connection.getresponse()
        answer = response.read()
        if response.status != 202:
            raise DemoFailed(f"POST /orders/{order_id} was answered with {response.status}")
        return order_id, json.loads(answer)["id"]

    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            return dict(pool.map(post, order_ids))
        except (OSError, http.client.HTTPException) as error:
            raise DemoFailed(f"an order could not be posted: {error!r}") from error


# Accounts


def dead_letters(pubsub: PubSub, count: int) -> dict[str, Sequence[DeadLetter]]:
    broker = pubsub.runtime.broker
    assert isinstance(broker, Inspector)
    return {group: broker.dead_letters(SubscriptionKey(TOPIC, group), limit=count + 1) for group in GROUPS}


def is_settled(ids: Mapping[int, str], ledger: Path, dead: Mapping[str, Sequence[DeadLetter]]) -> bool:
    handled = Ledger.read(ledger).handled
    return sum(handled.values()) + sum(map(len, dead.values())) >= len(ids) * len(GROUPS)


def summarize(
    ids: Mapping[int, str],
    ledger: Ledger,
    dead: Mapping[str, Sequence[DeadLetter]],
    published_in: float,
    seconds: float,
) -> None:
    print(f"\n  {'published':<12}{len(ids):>9,}   in {published_in:.1f} s, over HTTP")
    print(f"\n  {'group':<12}{'handled':>9}{'retried':>9}{'dead letters':>14}")
    for group in GROUPS:
        handled = sum(number for (one, _), number in ledger.handled.items() if one == group)
        retried = sum(number for (one, _), number in ledger.failed.items() if one == group) - len(dead[group])
        print(f"  {group:<12}{handled:>9,}{retried:>9,}{len(dead[group]):>14,}")
    print(f"\n  {'seconds':<12}{seconds:>9.1f}   from the first order to the last message settled")


def check(ids: Mapping[int, str], ledger: Ledger, dead: Mapping[str, Sequence[DeadLetter]]) -> None:
    """Compare what was handled, failed and given up with what was published. Raises DemoFailed, saying what differs."""
    if len(set(ids.values())) != len(ids):
        raise DemoFailed("two orders got the same message id")
    always = {message for order, message in ids.items() if is_always_declined(order)}
    once = {message for order, message in ids.items() if is_declined_once(order)}
    for group in GROUPS:
        given_up = always if group == "billing" else set()
        failures = {**dict.fromkeys(always, 3), **dict.fromkeys(once, 1)} if group == "billing" else {}
        expect(f"{group}: handled", dict.fromkeys(set(ids.values()) - given_up, 1), of_group(ledger.handled, group))
        expect(f"{group}: failed attempts", failures, of_group(ledger.failed, group))
        letters = Counter(letter.message.id for letter in dead[group])
        expect(f"{group}: dead letters", dict.fromkeys(given_up, 1), letters)
    reasons = {(letter.reason.kind, letter.message.attempt) for letters in dead.values() for letter in letters}
    if reasons - {("retries exhausted", 3)}:
        raise DemoFailed(f"dead letters of other reasons or attempts: {reasons}")


def of_group(counts: Counter[tuple[str, str]], group: str) -> dict[str, int]:
    return {message: number for (one, message), number in counts.items() if one == group}


def expect(what: str, wanted: Mapping[str, int], found: Mapping[str, int]) -> None:
    wrong = [message for message in wanted.keys() | found.keys() if wanted.get(message, 0) != found.get(message, 0)]
    if wrong:
        one = wrong[0]
        raise DemoFailed(
            f"{what}: {len(wrong)} messages do not add up. One of them, {one}, is there {found.get(one, 0)} times, "
            f"and {wanted.get(one, 0)} times would be right"
        )


if __name__ == "__main__":
    sys.exit(main())
