"""What a worker process tells its supervisor, over the pipe between them: a JSON object a line."""

import contextlib
import json
import logging
import socket
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pubsub_core.broker import Broker, Inspector
from pubsub_core.errors import BrokerError
from pubsub_core.message import SubscriptionKey
from pubsub_core.metrics import Counts, Looks, Metrics, look_at_groups, looks_from_json, looks_to_json
from pubsub_core.worker.process import Progress, Worker
from pubsub_core.worker.threads import library_thread

log = logging.getLogger("pubsub")

LOOK = b"look\n"
"""What a supervisor writes to have a process look at the groups."""

_REPORT_EVERY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Report:
    """What one process counted since its start, and how it is getting on.

    `looks` is what the broker last said of the groups, to this process, `looks_age` seconds ago.
    """

    counts: Counts
    progress: Progress
    looks: Looks
    looks_age: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        progress = self.progress
        return {
            "counts": self.counts.to_json(),
            "progress": [progress.read_age, progress.is_cut_off, progress.running, progress.free],
            "in_hand": [[*key, count] for key, count in progress.in_hand.items()],
            "looks": looks_to_json(self.looks),
            "looks_age": self.looks_age,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Report":
        """Return what `to_json` was called on."""
        in_hand = {SubscriptionKey(topic, group): count for topic, group, count in said["in_hand"]}
        read_age, is_cut_off, running, free = said["progress"]
        progress = Progress(read_age, is_cut_off, running, free, in_hand)
        return cls(Counts.from_json(said["counts"]), progress, looks_from_json(said["looks"]), said["looks_age"])


class ToSupervisor:
    """This side of the pipe. For one thread."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._unsent = b""
        self._has_told_of_work = False

    def tell(self, **facts: object) -> None:
        """Write facts; blocks until they are written, or the supervisor is gone."""
        try:
            self._pipe.sendall(self._unsent + json.dumps(facts).encode() + b"\n")
        except OSError:
            log.warning("the supervisor is gone")  # the main loop sees it, too, and stops
        self._unsent = b""

    def give_sign(self, facts: dict[str, Any] | None = None, *, has_worked: bool = False) -> None:
        """Write a sign of life, with these facts if there are any. Never blocks: what does not fit follows later."""
        if not self._unsent:
            if has_worked and not self._has_told_of_work:
                self._has_told_of_work = True
                facts = {**(facts or {}), "has_worked": True}
            self._unsent = b"\n" if facts is None else json.dumps(facts).encode() + b"\n"
        with contextlib.suppress(OSError):  # full, so the supervisor is frozen; or it is gone, which the reader sees
            self._unsent = self._unsent[self._pipe.send(self._unsent, socket.MSG_DONTWAIT) :]


class Reporter:
    """Makes the reports of a process. All but the looking at groups is for one thread."""

    def __init__(self, worker: Worker, metrics: Metrics, broker: Broker) -> None:
        self._worker = worker
        self._metrics = metrics
        self._due_at = 0.0
        self._looker = _Looker(worker, broker) if isinstance(broker, Inspector) else None

    def report_if_due(self) -> dict[str, Any] | None:
        """Return a report, or None if the last one is not old yet."""
        if monotonic() < self._due_at:
            return None
        self._due_at = monotonic() + _REPORT_EVERY
        return self.report()

    def report(self) -> dict[str, Any]:
        """Return a report."""
        looks, age = ({}, 0.0) if self._looker is None else self._looker.seen()
        return {"report": Report(self._metrics.snapshot(), self._worker.progress, looks, age).to_json()}

    def look(self) -> None:
        """Have the groups looked at, on a thread of its own: the broker may not answer. A later report tells."""
        if self._looker is not None:
            self._looker.is_wanted.set()


class _Looker:
    def __init__(self, worker: Worker, broker: Broker) -> None:
        self._keys = [one.key for one in worker.subscriptions]
        self._broker = broker
        self._seen: tuple[Looks, float] = ({}, 0.0)
        self.is_wanted = threading.Event()
        library_thread("pubsub-looker", self._run, _died).start()

    def seen(self) -> tuple[Looks, float]:
        looks, at = self._seen
        return looks, monotonic() - at

    def _run(self) -> None:
        broker = self._broker
        assert isinstance(broker, Inspector)  # noqa: S101  # see Reporter
        while True:
            self.is_wanted.wait()
            self.is_wanted.clear()
            try:
                looks = look_at_groups(broker, self._broker.time(), self._keys)
            except BrokerError as error:  # whoever reads says that it is away; here it shows as looks that grow old
                log.debug("the groups could not be looked at: %s", error)
                continue
            self._seen = (looks, monotonic())


def _died(error: BaseException) -> None:
    log.error("the groups are not looked at any more: lag and age of messages are not shown", exc_info=error)


def sums(counts: Counts, reports: list[Report]) -> tuple[Counts, dict[SubscriptionKey, int]]:
    """Return `counts` and those of the reports, added up, and all that is in hand."""
    total = Counts()
    total.add(counts)
    in_hand: dict[SubscriptionKey, int] = {}
    for report in reports:
        total.add(report.counts)
        for key, count in report.progress.in_hand.items():
            in_hand[key] = in_hand.get(key, 0) + count
    return total, in_hand
