"""Whether a worker lives, and is ready: decided by what its processes report. Pure, so that time is an argument."""

from collections.abc import Sequence
from dataclasses import dataclass

from pubsub_core.worker.report import Report

SILENT_AFTER = 5.0  # seconds; a process reports each second
UNREAD_AFTER = 15.0  # a read waits for 5 s at most
STALLED_AFTER = 30.0
LOOKS_ARE_GOOD_FOR = 20.0
CRASH_LOOP = 5
"""So many processes in a row that died young are a crash loop."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the supervisor knows of a process that has loaded the application. `silent_for` is in seconds."""

    pid: int
    silent_for: float
    report: Report | None


class StallWatch:
    """Notices that messages wait, nobody works on any, and none is settled. For one thread."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._settled = -1

    def note(self, now: float, processes: Sequence[ProcessState]) -> None:
        """Take note of how it stands `now`."""
        reports = [one.report for one in processes if one.report is not None]
        settled = sum(report.counts.settled for report in reports)
        moves = settled != self._settled or any(report.progress.running for report in reports)
        self._settled = settled
        if moves or not waiting(reports):
            self._since = None
        elif self._since is None:
            self._since = now

    def seconds(self, now: float) -> float:
        """Return for how long it has been so."""
        return 0.0 if self._since is None else now - self._since


def waiting(reports: Sequence[Report]) -> int:
    """Return how many messages wait for the groups of these processes, as far as is known; for paused ones none do."""
    looks = newest_looks(reports)
    return 0 if looks is None else sum(look.lag for look in looks.looks.values() if not look.is_paused)


def newest_looks(reports: Sequence[Report]) -> Report | None:
    """Return the report with the newest looks at the groups, None if they are too old to say anything."""
    newest = min((one for one in reports if one.looks), key=lambda one: one.looks_age, default=None)
    return newest if newest is not None and newest.looks_age < LOOKS_ARE_GOOD_FOR else None


def why_not_live(crashes_in_a_row: int) -> list[str]:
    """Return why the worker should be started anew; nothing if it should not."""
    if crashes_in_a_row >= CRASH_LOOP:
        return [f"crash loop: {crashes_in_a_row} processes in a row died soon after their start"]
    return []


def why_not_ready(processes: Sequence[ProcessState], *, is_stopping: bool, stalled_for: float) -> list[str]:
    """Return what is wrong; nothing if messages are being handled, or would be if there were any."""
    if is_stopping:
        return ["stopping"]
    if not processes:
        return ["no process has loaded the application yet"]
    problems = [problem for one in processes if (problem := _problem(one))]
    if stalled_for > STALLED_AFTER:
        count = waiting([one.report for one in processes if one.report is not None])
        problems.append(f"stalled: {count} messages wait, and none was handled for {stalled_for:.0f} s")
    return problems


def _problem(process: ProcessState) -> str | None:
    who = f"process {process.pid}"
    if process.silent_for > SILENT_AFTER:
        return f"{who} gave no sign of life for {process.silent_for:.0f} s"
    if process.report is None:
        return f"{who} has not joined its groups yet"
    progress = process.report.progress
    if progress.is_cut_off:
        return f"{who} cannot reach the broker"
    if progress.read_age is None:
        return f"{who} has not joined its groups yet"
    if progress.read_age > UNREAD_AFTER and progress.free:
        return f"{who} is stalled: it has not read for {progress.read_age:.0f} s, and has threads that are free"
    return None
