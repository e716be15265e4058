"""How many messages the processes of a measurement have handled, counted in files that both sides map into memory.

A consumer's process makes its file at its first message, and waits there until there is a file `go`: so all of them
begin at once, and their start is not measured. Then each message, or batch of at most 255, sets the next byte. That
costs a consumer a tenth of a microsecond, and whoever waits no word with it.
"""

import itertools
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter, sleep

WITHIN = 300.0
SPARE = 1_000  # for what is delivered twice


def noting(directory: Path, expected: int) -> Callable[[int], None]:
    """Return the function that a handler calls with the number of messages it had. From any thread."""
    lock = threading.Lock()
    next_place = itertools.count().__next__
    marks: mmap.mmap | None = None

    def begin() -> mmap.mmap:
        nonlocal marks
        with lock:
            if marks is None:
                made = directory / f"{os.getpid()}.making"
                with made.open("w+b") as file:
                    file.truncate(expected + SPARE)
                    mapped = mmap.mmap(file.fileno(), 0)
                made.rename(made.with_suffix(".tally"))
                while not (directory / "go").exists():
                    sleep(0.0005)
                marks = mapped
            return marks

    def note(messages: int = 1) -> None:
        (marks or begin())[next_place()] = messages

    return note


class Tally:
    """What the processes have noted in a directory. `check` raises when one of them has ended."""

    def __init__(self, directory: Path, check: Callable[[], None] = lambda: None) -> None:
        self._directory = directory
        self._check = check
        self._marks: dict[Path, mmap.mmap] = {}
        self._counted: dict[Path, tuple[int, int]] = {}

    def go(self) -> float:
        """Let them begin. Return the time."""
        (self._directory / "go").touch()
        return perf_counter()

    def wait_for_processes(self, processes: int) -> None:
        """Wait until so many have had their first message."""
        self._wait(lambda: len(list(self._directory.glob("*.tally"))) >= processes, 0.001)

    def wait_for(self, messages: int) -> float:
        """Wait until so many messages were handled. Return the time."""
        self._wait(lambda: self.count() >= messages, 0.002)
        return perf_counter()

    def count(self) -> int:
        return sum(self.each())

    def each(self) -> list[int]:
        """Return how many messages each process handled."""
        for path in self._directory.glob("*.tally"):
            if path not in self._marks:
                with path.open("r+b") as file:
                    self._marks[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            marks = self._marks[path]
            place, count = self._counted.get(path, (0, 0))
            end = marks.find(b"\0", place)  # a thread that is late leaves a gap: what follows counts next time
            self._counted[path] = end, count + sum(marks[place:end])
        return [count for _, count in self._counted.values()]

    def _wait(self, is_so: Callable[[], bool], pause: float) -> None:
        deadline = monotonic() + WITHIN
        while not is_so():
            self._check()
            if monotonic() > deadline:
                raise TimeoutError(f"{self.count():,} messages were handled in {WITHIN:.0f} s, which is not all")
            sleep(pause)
