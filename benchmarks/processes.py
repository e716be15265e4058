"""Processes that are measured: started, watched from outside through /proc, and ended."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import redis

from benchmarks.tally import Tally

WITHIN = 120.0


@dataclass(frozen=True)
class Running:
    """A process at work, and the directory in which it leaves what it found."""

    process: subprocess.Popen[bytes]
    directory: Path
    words: Sequence[str]

    def check(self) -> None:
        """Raise, with the end of what it wrote, if it has failed."""
        if self.process.poll() not in (None, 0):
            log = (self.directory / "log").read_text(errors="replace")
            raise RuntimeError(f"{' '.join(self.words)} ended with {self.process.returncode}:\n{log[-3000:]}")

    def tally(self) -> Tally:
        return Tally(self.directory, self.check)

    def result(self) -> str:
        """Wait for the file `result`, and return what is in it."""
        path = self.directory / "result"
        deadline = monotonic() + WITHIN
        while not path.exists():
            self.check()
            if monotonic() > deadline:
                log = (self.directory / "log").read_text(errors="replace")
                raise TimeoutError(f"no result of {' '.join(self.words)}:\n{log[-3000:]}")
            sleep(0.01)
        return path.read_text()

    def workers(self) -> list[int]:
        """Return the ids of its children; of itself, if it has none."""
        return children(self.process.pid) or [self.process.pid]


@contextmanager
def running(url: str, expected: int, words: Sequence[str], **environment: str) -> Iterator[Running]:
    """Start a process that is to handle so many messages. Afterwards it is gone."""
    with tempfile.TemporaryDirectory(prefix="pubsub-bench-") as name:
        directory = Path(name)
        told = {"BENCH_URL": url, "BENCH_EXPECTED": str(expected), "BENCH_DIRECTORY": name, **environment}
        with (directory / "log").open("wb") as output:
            process = subprocess.Popen(words, env={**os.environ, **told}, stdout=output, stderr=output)
        try:
            yield Running(process, directory, words)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def worker(kind: str, *, processes: int = 1, threads: int = 8, log_level: str = "WARNING") -> list[str]:
    """Return the words of `pubsub worker` with an application of `benchmarks.ours`."""
    options = ["--processes", str(processes), "--threads", str(threads), "--log-level", log_level]
    return [sys.executable, "-m", "benchmarks.worker", f"benchmarks.ours:{kind}()", *options]


def wait_for_readers(url: str, readers: int = 1) -> None:
    """Wait until so many connections are blocked in a read."""
    deadline = monotonic() + WITHIN
    with redis.Redis.from_url(url) as client:
        while client.info("clients")["blocked_clients"] < readers:
            if monotonic() > deadline:
                raise TimeoutError(f"there are no {readers} that read")
            sleep(0.02)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def cpu_seconds(*pids: int) -> float:
    """Return the CPU time of these processes, of the threads that they have now. To the microsecond."""
    spent = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            spent += int(path.read_text().split()[0])
    return spent / 1e9


def idle_seconds() -> float:
    """Return how long the CPUs of this machine have had nothing to do, all together."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def rss_megabytes(pid: int, *, peak: bool = False) -> float:
    name = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(name, 1)[1].split(None, 1)[0]) / 1024
