"""Ids: UUIDs of version 7 that rise within a process, and say when they were made."""

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import RFC_4122, UUID

import pytest

from pubsub_core import ManualClock, SystemClock
from pubsub_core.ids import IdMaker, _Span, published_at

START = datetime(2026, 11, 27, 10, 20, 30, 456_789, tzinfo=UTC)


def test_id_is_a_uuid_that_says_when_it_was_made() -> None:
    new, moment = IdMaker(ManualClock(START)).with_moment()
    one = UUID(new)
    assert str(one) == new
    assert (one.version, one.variant) == (7, RFC_4122)
    assert moment == published_at(new) == START.replace(microsecond=456_000)


def test_ids_of_one_millisecond_rise_and_say_the_same_moment() -> None:
    make = IdMaker(ManualClock(START))
    made = [make.with_moment() for _ in range(1000)]
    assert [new for new, _ in made] == sorted({new for new, _ in made})
    assert {moment for _, moment in made} == {published_at(made[0][0])}


@pytest.mark.parametrize(
    "tail",
    [
        (1 << 8) - 1,  # the last two digits are used up
        (1 << 48) - 1,  # so is the part behind the last hyphen
        (1 << 62) - 1,  # so are all bits behind the version
        ((1 << 10) - 1) << 62 | (1 << 62) - 1,
    ],
)
def test_ids_rise_where_a_part_of_them_is_used_up(tail: int) -> None:
    make = IdMaker(ManualClock(START))
    make()
    span = make._process.span
    make._process.span = _Span(span.milliseconds, span.moment, tail - 1)
    made = [make.with_moment() for _ in range(5)]
    assert {moment for _, moment in made} == {span.moment}
    made = [new for new, _ in made]
    assert made == sorted(set(made))
    assert [made[0][:-2] == new[:-2] for new in made] == [True, True, False, False, False]
    assert {(UUID(new).version, UUID(new).variant) for new in made} == {(7, RFC_4122)}


@pytest.mark.parametrize("step", [timedelta(milliseconds=1), timedelta(hours=1), timedelta(hours=-1)])
def test_ids_rise_while_the_clock_is_moved(step: timedelta) -> None:
    moments = iter([START, START + step])
    make = IdMaker(SimpleNamespace(time=lambda: next(moments).timestamp()))
    before, after = make(), make()
    assert before < after
    assert published_at(after) == published_at(before) + max(step, timedelta())


def test_threads_never_get_the_same_one() -> None:
    make = IdMaker(SystemClock())
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            by_thread = [*threads.map(lambda _: [make() for _ in range(5_000)], range(8))]
    finally:
        sys.setswitchinterval(before)
    assert all(one == sorted(one) for one in by_thread)
    assert len({new for one in by_thread for new in one}) == 40_000


def test_an_id_of_somebody_else_says_no_moment() -> None:
    with pytest.raises(ValueError, match="not a time-sortable message id: 'order-7'"):
        published_at("order-7")
