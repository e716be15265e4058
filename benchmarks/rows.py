"""What a row of the table is, how it is measured, and how it is shown.

Rows that share what they are measured beside stand in one `Group`: each of its sides runs once a round, so that the
figures of a row are never from different times.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

REDIS_PY = "redis-py"


@dataclass
class Bench:
    """What a side is measured with. `share`: a quick run does only so much of the work, `1 / share` of it.

    `idle` is how many seconds an idle process is watched.
    """

    url: str
    server_pid: int
    share: int = 1
    idle: float = 30.0
    remarks: dict[str, str] = field(default_factory=dict)

    def few(self, count: int, least: int = 10) -> int:
        """Return how many messages to take, where a full run takes `count`."""
        return max(least, count // self.share)

    def remark(self, row: str, text: str) -> None:
        """Say something beside the figures of a row. The last word on each counts."""
        self.remarks[row] = text


class Skipped(Exception):
    """What a side needs is not here. The text says what."""


Figures = float | tuple[float, ...]
Side = Callable[[Bench], Figures]


@dataclass(frozen=True)
class Target:
    """What is to be reached: by the ratio of the two sides, or by our own figure."""

    bound: float
    is_least: bool
    of: Literal["ratio", "figure"]

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}{' ×' if self.of == 'ratio' else ''}"


def at_least(bound: float) -> Target:
    return Target(bound, is_least=True, of="ratio")


def at_most(bound: float) -> Target:
    return Target(bound, is_least=False, of="ratio")


def no_more_than(bound: float) -> Target:
    return Target(bound, is_least=False, of="figure")


@dataclass(frozen=True)
class Row:
    """One line of the table: the figure of a side, `beside` that of another one, and what is to be reached.

    A side that returns several figures has one row for each: `place` says which.
    """

    name: str
    what: str
    unit: str
    side: str
    beside: str | None = None
    target: Target | None = None
    place: int = 0
    digits: int = 0


@dataclass(frozen=True)
class Group:
    """Rows that are measured together. `rounds`, if given, is the most that it does."""

    sides: Mapping[str, Side]
    rows: Sequence[Row]
    rounds: int | None = None


@dataclass(frozen=True)
class Result:
    """The figures of a row, round by round. Without any it was skipped, and `remark` says why."""

    row: Row
    ours: Sequence[float]
    beside: Sequence[float] = ()
    remark: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ours) / statistics.median(self.beside) if self.ours and self.beside else None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none, or no figure."""
        if self.row.target is None or not self.ours:
            return None
        value = self.ratio if self.row.target.of == "ratio" else statistics.median(self.ours)
        return None if value is None else self.row.target.is_met_by(value)

    def cells(self) -> list[str]:
        row, met = self.row, {True: "yes", False: "no", None: ""}[self.is_met]
        beside = f"{row.beside}: " if row.beside not in (None, REDIS_PY) else ""
        return [
            f"{row.what} ({row.unit})",
            self._spread(self.ours) if self.ours else "skipped",
            f"{beside}{self._spread(self.beside)}" if self.beside else "",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if row.target is None else str(row.target),
            met,
        ]

    def _spread(self, values: Sequence[float]) -> str:
        middle, least, most = (f"{value:,.{self.row.digits}f}" for value in (_median(values), min(values), max(values)))
        return middle if len(values) == 1 else f"{middle} [{least}–{most}]"

    def as_json(self) -> dict[str, Any]:
        row = self.row
        return {
            "name": row.name,
            "what": row.what,
            "unit": row.unit,
            "ours": list(self.ours),
            "beside": {row.beside: list(self.beside)} if row.beside else {},
            "ratio": self.ratio,
            "target": None if row.target is None else str(row.target),
            "is_met": self.is_met,
            "remark": self.remark,
        }


_median = statistics.median


def measure(
    group: Group, bench: Bench, rounds: int, rows: Sequence[Row], before: Callable[[], None], say: Callable[[str], None]
) -> list[Result]:
    """Measure these rows of a group. The sides take turns, and who begins changes from round to round."""
    wanted = {side for row in rows for side in (row.side, row.beside) if side}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in group.sides if name in wanted}
    skipped: dict[str, str] = {}
    for number in range(min(rounds, group.rounds or rounds)):
        for name in found if number % 2 == 0 else reversed(found):
            if name in skipped:
                continue
            before()
            try:
                figures = group.sides[name](bench)
            except Skipped as error:
                skipped[name] = str(error)
                say(f"{rows[0].name}: {name} is skipped: {error}")
                continue
            found[name].append(figures if isinstance(figures, tuple) else (figures,))
            say(f"{rows[0].name}, round {number + 1}: {name} {', '.join(f'{one:,.4g}' for one in found[name][-1])}")
    results = []
    for row in rows:
        ours = [figures[row.place] for figures in found[row.side]]
        beside = [figures[row.place] for figures in found[row.beside]] if row.beside else []
        remark = skipped.get(row.side) or skipped.get(row.beside or "") or bench.remarks.get(row.name, "")
        results.append(Result(row, ours, beside, remark))
    return results


HEADER = ["what", "ours: median [range]", "redis-py: median [range]", "ratio", "target", "met"]


def as_text(results: Sequence[Result]) -> str:
    table = [HEADER, *(result.cells() for result in results)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([*lines, *(["", *remarks] if (remarks := _remarks(results)) else [])])


def as_markdown(results: Sequence[Result]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|---:|---|"]
    table = [*lines, *(f"| {' | '.join(result.cells())} |" for result in results)]
    return "\n".join([*table, *(["", *(f"- {text}" for text in remarks)] if (remarks := _remarks(results)) else [])])


def _remarks(results: Sequence[Result]) -> list[str]:
    return [f"{result.row.what}: {result.remark}" for result in results if result.remark]
