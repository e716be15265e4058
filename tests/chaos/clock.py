"""Clocks that are wrong."""

from dataclasses import dataclass

from pubsub_core import SystemClock


@dataclass(frozen=True)
class ShiftedClock:
    """The clock of a machine that is so many seconds ahead."""

    seconds: float

    def time(self) -> float:
        return SystemClock().time() + self.seconds
