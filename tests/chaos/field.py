"""The field of the attack: a server, workers, producers, and the checker of what came of it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pubsub_core import PublishUncertain, PubSub, PubSubError, SubscriptionKey
from tests.servers import RealServer

HERE = Path(__file__).parent
HEARTBEAT = 0.4
DEFAULT_HEARTBEAT = 2.0
_BYTES_OF_A_RUN = 155  # in the log
_NOISE = 0.5  # seconds; a short heartbeat scales the promise down, and not what a busy machine adds to it


@dataclass
class Run:
    """One run of the handler."""

    message_id: str
    attempt: int
    pid: int
    started: float
    ended: float | None = None
    has_failed: bool = False

    @property
    def is_cut_off(self) -> bool:
        """Whether it was neither successful nor an error, as far as is known."""
        return self.ended is None and not self.has_failed


@dataclass
class Verdict:
    """What the log says, held against what was acknowledged."""

    published: int
    lost: list[str]
    repeated: dict[str, list[Run]]
    unknown: list[str]
    """Handled, though no publish said so: only those may be that ended in PublishUncertain."""

    @property
    def is_clean(self) -> bool:
        """Each exactly once."""
        return not (self.lost or self.repeated or self.unknown)


class Field:
    """One attack. Everything that it starts it stops."""

    def __init__(self, server: RealServer, directory: Path, heartbeat: float = HEARTBEAT) -> None:
        self.server = server
        self.heartbeat = heartbeat
        self.recovers_within = 7.5 * heartbeat + (0.0 if heartbeat == DEFAULT_HEARTBEAT else _NOISE)
        """Within so many seconds what a dead process had runs elsewhere: 15 s with the default heartbeat of 2 s."""
        seed = int(os.environ.get("CHAOS_SEED") or uuid.uuid4().int % 100_000)
        print(f"to have the faults at the same moments: CHAOS_SEED={seed}")
        self.random = random.Random(seed)
        self.namespace = f"chaos-{uuid.uuid4().hex[:8]}"
        self.stream = f"{self.namespace}:{{orders}}"
        self.client = Redis.from_url(server.url, protocol=2, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        self._log = directory / "runs.log"
        self._log.touch()
        self._output = directory / "workers.log"
        self._directory = directory
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()
        self._producers: list[threading.Thread] = []
        self._opened: list[PubSub] = []
        self._lock = threading.Lock()
        self.acknowledged: dict[str, float] = {}
        """Message id → when its publish began."""
        self.uncertain: set[str] = set()
        self.refused = 0

    # What acts

    def pubsub(self, url: str | None = None, **settings: Any) -> PubSub:
        """Return a PubSub of this field; closed at the end."""
        pubsub = PubSub(
            url or self.server.url, namespace=self.namespace, group="billing", heartbeat=self.heartbeat, **settings
        )
        self._opened.append(pubsub)
        return pubsub

    def worker(
        self,
        url: str | None = None,
        *,
        app: str = "tests.chaos.app:pubsub",
        processes: int = 2,
        threads: int = 4,
        **more: str,
    ) -> int:
        """Start `pubsub worker`; return the pid of its supervisor when all its processes have joined."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PUBSUB_", "FLASK_"))}
        settings = {
            "PUBSUB_URL": url or self.server.url,
            "PUBSUB_NAMESPACE": self.namespace,
            "PUBSUB_HEARTBEAT": str(self.heartbeat),
            "PUBSUB_SHUTDOWN_TIMEOUT": "10",
            "CHAOS_LOG": str(self._log),
            "PYTHONPATH": str(HERE.parent.parent),
        }
        command = [str(Path(sys.executable).parent / "pubsub"), "worker", app, "-l", "WARNING"]
        before = set(self.consumers())
        with self._output.open("ab") as output:
            process = subprocess.Popen(
                [*command, "-p", str(processes), "-t", str(threads)],
                env={**clean, **settings, **more},
                cwd=HERE.parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._workers.append(process)
        self.until(lambda: len(set(self.consumers()) - before) >= processes, 20, "the worker has joined")
        return process.pid

    def produce(
        self,
        url: str | None = None,
        *,
        pause: float = 0.005,
        delay: float = 0.0,
        declare: Callable[[PubSub], object] | None = None,
        more: Mapping[str, object] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        """Publish one after the other until `stop_producing`, noting what was acknowledged.

        `declare` tells the publisher of its topics, and `more` is what its payloads have besides.
        """
        pubsub = self.pubsub(url, **settings)
        if declare is not None:
            declare(pubsub)

        def run() -> None:
            while not self._stopping.wait(pause):
                self.publish_one(pubsub, delay=self.random.uniform(0, delay), more=more)

        thread = threading.Thread(target=run, name="producer", daemon=True)
        self._producers.append(thread)
        thread.start()

    def publish_one(
        self,
        pubsub: PubSub,
        do: str = "work",
        *,
        delay: float = 0.0,
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> str | None:
        """Publish one, and note what came of it."""
        began = time.time()
        try:
            message_id = pubsub.publish("orders", {"do": do, **more}, delay=delay or None)
        except PublishUncertain as error:
            with self._lock:
                self.uncertain.update(error.message_ids)
        except PubSubError:
            with self._lock:
                self.refused += 1
        else:
            with self._lock:
                self.acknowledged[message_id] = began
            return message_id
        return None

    def publish(self, count: int, do: str = "work") -> list[str]:
        """Publish so many, all of which must be acknowledged."""
        pubsub = self.pubsub()
        ids = [self.publish_one(pubsub, do) for _ in range(count)]
        assert all(ids)
        return [one for one in ids if one]

    def publish_backlog(self, count: int) -> None:
        """Publish so many in batches, all of which must be acknowledged; none is handled before all are there."""
        pubsub, key = self.pubsub(), SubscriptionKey("orders", "billing")
        pubsub.inspector.pause_group(key, is_paused=True)
        for _ in range(count // 500):
            began = time.time()
            with pubsub.batch() as batch:
                for _ in range(500):
                    batch.publish("orders", {"do": "work"})
            self.acknowledged.update(dict.fromkeys(batch.ids, began))
        pubsub.inspector.pause_group(key, is_paused=False)

    def stop_producing(self) -> None:
        """End the producers."""
        self._stopping.set()
        for thread in self._producers:
            thread.join(30)
            assert not thread.is_alive(), "a producer hangs"
        self._producers.clear()
        self._stopping.clear()

    def child_log(self, number: int) -> str:
        """A file of its own for a child that publishes."""
        return str(self._directory / f"child-{number}")

    # What is seen from outside

    @property
    def handled(self) -> int:
        """How many runs there were so far, more or less."""
        return self._log.stat().st_size // _BYTES_OF_A_RUN

    def consumers(self) -> list[str]:
        """The names in the group, but for the one under which parked entries are kept."""
        try:
            rows = self.client.xinfo_consumers(self.stream, "billing")
        except RedisError:
            return []
        return [row["name"].decode() for row in rows if row["name"] != b"~parked"]

    def names_of(self, pid: int) -> list[str]:
        """The names in the group of one process: one, or none."""
        return [name for name in self.consumers() if f"-{pid}-" in name]

    def children(self, supervisor: int) -> list[int]:
        """The worker processes of a supervisor."""
        found = subprocess.run(["pgrep", "-P", str(supervisor)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def in_hand(self, *pids: int) -> int:
        """How many deliveries the server says the processes have: of dead ones, until others take over."""
        try:
            rows = self.client.xinfo_consumers(self.stream, "billing")
        except RedisError:
            return 0
        return sum(row["pending"] for row in rows if any(f"-{pid}-" in row["name"].decode() for pid in pids))

    def kill(self, *pids: int) -> int:
        """SIGKILL. Returns how many deliveries the processes had in hand, as the server sees it."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.until(lambda: not any(map(is_alive, pids)), 5, "the killed are dead")
        return self.in_hand(*pids)

    def kill_connections(self) -> None:
        """CLIENT KILL of all but this one."""
        self.client.client_kill_filter(_type="normal", skipme=True)

    def freeze(self, *pids: int) -> int:
        """SIGSTOP. Returns how many deliveries the processes had in hand before others took over.

        A read that waited at the server then may bring them some more.
        """
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        most = 0
        deadline = time.monotonic() + 2 * self.heartbeat  # earlier than anybody may take over
        while time.monotonic() < deadline:
            most = max(most, self.in_hand(*pids))
            time.sleep(0.05)
        return most

    def until_taken_over(self, *pids: int) -> None:
        """Wait until others have what the processes had."""
        within = 2 * self.recovers_within
        self.until(lambda: not any(map(self.names_of, pids)), within, "others have taken over")

    def until_busy(self, *pids: int) -> None:
        """Wait until each of the processes has something in hand."""
        self.until(lambda: all(self.in_hand(pid) for pid in pids), 20, "they have something in hand")

    def pause(self, least: float = 0.4, most: float = 1.2) -> None:
        """Let the work go on for a time that nobody knows in advance."""
        time.sleep(self.random.uniform(least, most))

    def _lines(self) -> list[bytes]:
        """The lines of the log, but for one that is being written just now."""
        return self._log.read_bytes().rpartition(b"\n")[0].splitlines()

    def runs(self) -> list[Run]:
        """All runs so far, in the order of their beginning."""
        runs: list[Run] = []
        open_runs: dict[tuple[str, int, int], Run] = {}
        for line in self._lines():
            what, message_id, attempt, pid, moment = json.loads(line)
            if what == "start":
                run = Run(message_id, attempt, pid, moment)
                open_runs[message_id, attempt, pid] = run
                runs.append(run)
            elif what == "end":
                open_runs[message_id, attempt, pid].ended = moment
            elif what == "failure":
                open_runs[message_id, attempt, pid].has_failed = True
        return runs

    def noted(self, what: str) -> list[tuple[int, float]]:
        """The process and the time of each note of this kind."""
        lines = map(json.loads, self._lines())
        return [(line[3], line[4]) for line in lines if line[0] == what]

    def messages_noted(self, what: str) -> list[str]:
        """The message of each note of this kind."""
        return [line[1] for line in map(json.loads, self._lines()) if line[0] == what]

    def ticks(self, schedule: str) -> list[int]:
        """The ticks that a schedule has fired, in seconds since 1970: what stands in its stream."""
        entries = self.client.xrange(f"{self.namespace}:{{{schedule}}}")
        words = [fields[b"source"].decode().split() for _, fields in entries]
        assert all(kind == "cron" for kind, _ in words)
        return [int(tick.removeprefix("for:")) // 1000 for _, tick in words]

    def output(self) -> str:
        """What the workers wrote."""
        return self._output.read_text(errors="replace")

    def until(self, claim: Callable[[], bool], within: float, what: str) -> float:
        """Wait until `claim` holds; return the seconds that it took."""
        began = time.monotonic()
        while not claim():
            assert time.monotonic() - began < within, f"not within {within} s: {what}\n{self.output()[-3000:]}"
            time.sleep(0.02)
        return time.monotonic() - began

    def settle(self, within: float = 30.0, *, but: frozenset[str] = frozenset(), left: int = 0) -> Verdict:
        """Wait until all that was acknowledged has run to its end, and no more than `left` is pending; then judge.

        `but` are messages that cannot run to their end: they are no part of the verdict.
        """
        self.stop_producing()
        wanted = set(self.acknowledged) - but
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if wanted <= {run.message_id for run in self.runs() if run.ended} and 0 <= self.pending() <= left:
                break
            time.sleep(0.05)
        return self.judge(but)

    def pending(self) -> int:
        """How many deliveries of the group are not settled."""
        try:
            return int(self.client.xpending(self.stream, "billing")["pending"])
        except RedisError:
            return -1

    def judge(self, but: frozenset[str] = frozenset()) -> Verdict:
        """Hold the log against what was acknowledged."""
        ended: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs():
            if run.ended is not None and run.message_id not in but:
                ended[run.message_id].append(run)
        return Verdict(
            len(self.acknowledged),
            sorted(set(self.acknowledged) - but - set(ended)),
            {message_id: runs for message_id, runs in ended.items() if len(runs) > 1},
            sorted(set(ended) - set(self.acknowledged) - self.uncertain),
        )

    def recovery(self, dead: set[int], since: float) -> float:
        """Return the seconds until the last run that died with these processes was begun again elsewhere."""
        cut = {run.message_id for run in self.runs() if run.pid in dead and run.is_cut_off}
        if not cut:  # it died between two runs
            return 0.0
        again: dict[str, float] = {}

        def is_begun_again() -> bool:
            for run in self.runs():
                if run.message_id in cut and run.pid not in dead and run.started > since:
                    again.setdefault(run.message_id, run.started)
            return set(again) == cut

        self.until(is_begun_again, 2 * self.recovers_within, f"all {len(cut)} are begun again")
        return max(again.values()) - since

    def end_workers(self, *, killed: Sequence[int] = ()) -> None:
        """SIGTERM to every worker, but for supervisors that were killed; see that they end well and leave nothing."""
        for process in [one for one in self._workers if one.pid in killed]:
            process.wait(10)
            assert not self.group_of(process.pid), "a process is left over"
            self._workers.remove(process)
        within = 2 * self.recovers_within
        deadline = time.monotonic() + within
        # Who lives is asked each time: who takes the place of the killed may come while the dead are still there.
        while dead := self._names_of_the_dead():
            assert time.monotonic() < deadline, f"not cleared away within {within} s: {dead}\n{self.output()[-3000:]}"
            time.sleep(0.02)
        for process in self._workers:
            assert process.poll() is None, "a supervisor ended by itself"
            process.send_signal(signal.SIGTERM)
        assert {process.wait(20) for process in self._workers} <= {0}
        left = [pid for process in self._workers for pid in self.group_of(process.pid)]
        assert not left, f"processes left over: {left}"
        self._workers.clear()
        self._close_publishers()
        assert self.consumers() == [], "names of consumers are left over"
        assert self.pending() == 0
        assert not self.client.keys(f"{self.namespace}:worker:*")
        self.until(lambda: len(self.client.client_list()) == 1, 5, "no connection is left over, but for this one")

    def _close_publishers(self) -> None:
        for pubsub in self._opened:
            pubsub.close()
        self._opened.clear()

    def _names_of_the_dead(self) -> list[str]:
        names = self.consumers()  # first: who joins in between lives
        alive = [pid for process in self._workers for pid in self.group_of(process.pid)]
        return [name for name in names if int(name.split("-")[-2]) not in alive]

    def group_of(self, session: int) -> list[int]:
        """The processes of a session that are alive."""
        found = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True, check=False)
        return [pid for pid in map(int, found.stdout.split()) if is_alive(pid)]

    def close(self) -> None:
        """Stop all that runs, whatever happened."""
        self._stopping.set()
        for process in self._workers:
            for pid in self.group_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        for thread in self._producers:
            thread.join(30)
        self._close_publishers()
        self.client.close()


def is_alive(pid: int) -> bool:
    """Whether a process runs, or could."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@dataclass
class Record:
    """What was measured, for docs/reliability.md."""

    path: Path | None = field(default_factory=lambda: Path(name) if (name := os.environ.get("CHAOS_RECORD")) else None)

    def __call__(self, fault: str, verdict: Verdict, **measured: object) -> None:
        """Note one row."""
        counts = {"published": verdict.published, "lost": len(verdict.lost), "repeated": len(verdict.repeated)}
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"fault": fault, **counts, **measured}) + "\n")


def rounds() -> Iterator[int]:
    """How often a fault is repeated within one attack: twice, or what CHAOS_ROUNDS says."""
    yield from range(int(os.environ.get("CHAOS_ROUNDS", "2")))
