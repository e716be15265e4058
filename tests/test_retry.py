"""Retries: what the policies say, and that the broker keeps to it, also over crashes and restarts."""

import math
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub_core import (
    ConfigurationError,
    ExponentialBackoff,
    FixedDelay,
    ManualClock,
    Message,
    NoRetry,
    NotConfirmed,
    PublishUncertain,
    PubSub,
    Reject,
    Retry,
    RetryPolicy,
    ValidationError,
)
from pubsub_core.worker.process import Worker
from tests.servers import RealServer, redis_server
from tests.test_supervisor import WITHIN, Fleet, is_ready
from tests.waiting import until

LATE = 0.5  # seconds that a redelivery may come after it is due, on an idle system

seconds = st.floats(0, 1e9)
attempts = st.integers(1, 10_000)
errors = st.sampled_from([ValueError, KeyError, IndexError, LookupError, OSError, ConnectionResetError, TimeoutError])


# What the policies say


@given(initial=seconds, factor=st.floats(0, 1e6), maximum=seconds, attempt=attempts, retries=st.integers(0, 10_000))
def test_backoff_is_what_its_formula_says(initial, factor, maximum, attempt, retries):
    policy = ExponentialBackoff(initial=initial, factor=factor, maximum=maximum, jitter=False, max_retries=retries)
    delay = policy.next_delay(attempt, ValueError())
    if attempt > retries:
        assert delay is None
        return
    try:
        expected = initial * factor ** (attempt - 1)
    except OverflowError:
        expected = math.inf if initial else 0.0
    assert delay is not None
    assert 0 <= delay <= maximum
    assert delay == pytest.approx(min(maximum, expected))


@given(initial=seconds, factor=st.floats(1, 1e6), maximum=seconds, attempt=attempts)
def test_backoff_never_becomes_shorter_and_never_longer_than_its_maximum(initial, factor, maximum, attempt):
    policy = ExponentialBackoff(initial=initial, factor=factor, maximum=maximum, jitter=False, max_retries=20_000)
    one, next_one = (policy.next_delay(number, ValueError()) for number in (attempt, attempt + 1))
    assert one is not None
    assert next_one is not None
    assert one <= next_one <= maximum


@given(initial=seconds, factor=st.floats(1, 1e6), maximum=seconds, attempt=attempts, seed=st.integers())
def test_full_jitter_is_between_nothing_and_the_backoff(initial, factor, maximum, attempt, seed):
    options: dict[str, Any] = {"initial": initial, "factor": factor, "maximum": maximum, "max_retries": 20_000}
    jittered = ExponentialBackoff(**options, rng=random.Random(seed)).next_delay(attempt, ValueError())
    most = ExponentialBackoff(**options, jitter=False).next_delay(attempt, ValueError())
    assert jittered is not None
    assert most is not None
    assert jittered == random.Random(seed).random() * most


def test_full_jitter_is_drawn_evenly():
    policy = ExponentialBackoff(initial=8, rng=random.Random(1))
    drawn = [policy.next_delay(1, ValueError()) or 0.0 for _ in range(8_000)]
    by_second = [sum(second <= one < second + 1 for one in drawn) for second in range(8)]
    assert all(850 < count < 1_150 for count in by_second), by_second


def test_usual_backoff_is_the_one_of_the_documentation():
    usual = ExponentialBackoff()
    assert (usual.initial, usual.factor, usual.maximum, usual.jitter, usual.max_retries) == (1, 2, 600, True, 16)
    plain = ExponentialBackoff(jitter=False)
    assert [plain.next_delay(attempt, ValueError()) for attempt in (1, 2, 3, 10, 11, 16, 17)] == [
        1, 2, 4, 512, 600, 600, None,
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_jitter_of_forked_processes_differs():
    """A handler of `__main__` has its policy from before the fork."""
    policy = ExponentialBackoff(initial=1e9, maximum=1e9)
    drawn = []
    for _ in range(2):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(into, repr(policy.next_delay(1, ValueError())).encode())
            os._exit(0)
        os.close(into)
        with os.fdopen(out) as pipe:
            drawn.append(pipe.read())
        os.waitpid(child, 0)
    assert drawn[0] != drawn[1]


@given(delay=seconds, retries=st.integers(0, 100), attempt=st.integers(1, 200))
def test_fixed_delay_is_always_the_same(delay, retries, attempt):
    assert FixedDelay(delay, retries).next_delay(attempt, ValueError()) == (delay if attempt <= retries else None)


@given(attempt=attempts, error=errors)
def test_no_retry_gives_up_at_once(attempt, error):
    assert NoRetry().next_delay(attempt, error()) is None


@given(
    error=errors,
    retry_on=st.one_of(errors, st.lists(errors), st.sets(errors), st.just(Exception)),
    never_on=st.one_of(errors, st.lists(errors), st.tuples(errors, errors)),
    is_fixed=st.booleans(),
)
def test_never_on_wins_over_retry_on_and_both_count_for_subclasses(error, retry_on, never_on, is_fixed):
    named: dict[str, Any] = {"retry_on": retry_on, "never_on": never_on}
    policy: RetryPolicy = FixedDelay(1, 3, **named) if is_fixed else ExponentialBackoff(**named)
    wanted = [retry_on] if isinstance(retry_on, type) else retry_on
    unwanted = [never_on] if isinstance(never_on, type) else never_on
    is_retried = any(issubclass(error, one) for one in wanted) and not any(issubclass(error, one) for one in unwanted)
    assert (policy.next_delay(1, error()) is not None) == is_retried


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_timedelta_is_its_seconds(delta):
    number = delta.total_seconds()
    assert FixedDelay(delta, 3).next_delay(1, ValueError()) == number
    assert str(FixedDelay(delta, 3)) == str(FixedDelay(number, 3))
    assert ExponentialBackoff(initial=delta, maximum=1e12, jitter=False).next_delay(1, ValueError()) == number
    assert ExponentialBackoff(initial=1e12, maximum=delta, jitter=False).next_delay(1, ValueError()) == number
    assert Retry(delay=delta).delay == number
    assert type(Retry(delay=delta).delay) is float


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, -math.inf, "60", None, timedelta(seconds=-1), True, [1]])
def test_delay_that_cannot_be_is_refused(delay):
    with pytest.raises(ValueError, match="a number of seconds or a timedelta, 0 or more"):
        Retry(delay=delay)
    with pytest.raises(ConfigurationError, match="must be a finite number, 0 or more"):
        FixedDelay(delay, 3)
    with pytest.raises(ConfigurationError, match="must be a finite number, 0 or more"):
        ExponentialBackoff(initial=delay)
    with pytest.raises(ConfigurationError, match="must be a finite number, 0 or more"):
        ExponentialBackoff(maximum=delay)


@pytest.mark.parametrize("factor", [-2, math.nan, math.inf, "2", timedelta(seconds=2)])
def test_factor_that_cannot_be_is_refused(factor):
    with pytest.raises(ConfigurationError, match=r"ExponentialBackoff\(factor=.* must be a finite number, 0 or more"):
        ExponentialBackoff(factor=factor)


@pytest.mark.parametrize("types", ["ValueError", [ValueError, "KeyError"], ValueError(), 3, int, SystemExit, None])
def test_what_is_no_exception_type_is_refused_when_it_is_written(types):
    """Else the first failure would show it, at night."""
    for name in ("retry_on", "never_on"):
        for make in (lambda **wrong: FixedDelay(1, 3, **wrong), ExponentialBackoff):
            with pytest.raises(ConfigurationError, match=f"{name}=.* must be subclasses of Exception"):
                make(**{name: types})


def test_number_of_retries_is_whole():
    with pytest.raises(ConfigurationError, match="max_retries must be a whole number"):
        FixedDelay(1, 2.5)  # type: ignore[arg-type]  # which is the point


@pytest.mark.parametrize(
    "error",
    [
        Retry(delay=3),
        Reject("no such customer"),
        Reject(),
        ValidationError("nothing was published", [("total", "is missing")]),
        PublishUncertain("it may be stored", ["id-1"]),
        NotConfirmed("it is stored", ["id-1", "id-2"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_carries_more_than_its_text_crosses_processes(error):
    """One that could not be read again would break the pool of processes that a handler gets it from."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


# What becomes of them: the worker asks the policy, the memory broker keeps the time


class Declined(ValueError):
    pass


def runs_until_settled(raised: Callable[[int], Exception | None], policy: RetryPolicy) -> tuple[list[float], str]:
    """Return when each attempt at one message was made, on a clock that stands still between them, and how it ended."""
    clock = ManualClock()
    pubsub = PubSub("memory://", group="billing", clock=clock, heartbeat=1e6)
    ran = threading.Semaphore(0)
    began = clock.time()
    at: list[float] = []

    def charge(message: Message[Any]) -> None:
        at.append(clock.time() - began)
        assert message.attempt == len(at)
        try:
            error = raised(message.attempt)
            if error is not None:
                raise error
        finally:
            ran.release()

    pubsub.subscribe("orders", retry=policy)(charge)
    pubsub.publish("orders", None)
    while True:
        with Worker(pubsub, threads=1):
            assert ran.acquire(timeout=WITHIN)
        letters = list(pubsub.dead_letters("orders"))
        if letters:
            return at, letters[0].reason.kind
        (group,) = pubsub.inspector.groups("orders")
        if not group.pending:
            return at, "done"
        clock.advance(1000)


def test_retry_does_not_ask_the_policy_and_counts():
    asked: list[int] = []

    class Noted:
        def next_delay(self, attempt: int, error: Exception) -> float | None:
            asked.append(attempt)
            return NoRetry().next_delay(attempt, error)

    at, end = runs_until_settled(lambda attempt: Retry(delay=timedelta(seconds=1)) if attempt < 20 else None, Noted())
    assert len(at) == 20
    assert end == "done"
    assert asked == []


def test_retries_asked_for_count_for_the_policy():
    """It is asked about attempts, whoever asked for them."""
    raised = [Retry(1), Retry(1), Declined(), Declined()]
    at, end = runs_until_settled(lambda attempt: raised[attempt - 1], FixedDelay(1, max_retries=3))
    assert (len(at), end) == (4, "retries exhausted")


@pytest.mark.parametrize(
    ("policy", "tries"),
    [
        (FixedDelay(1, 2), 3),
        (FixedDelay(1, 2, never_on=ValueError), 1),
        (FixedDelay(1, 2, retry_on=KeyError), 1),
        (FixedDelay(1, 2, retry_on=Exception, never_on=[Declined]), 1),
        (ExponentialBackoff(max_retries=1, retry_on=ValueError), 2),
        (NoRetry(), 1),
    ],
)
def test_what_the_policy_gives_up_is_a_dead_letter(policy, tries):
    at, end = runs_until_settled(lambda _: Declined(), policy)
    assert (len(at), end) == (tries, "retries exhausted")


# Over crashes and restarts: real servers


def test_retry_survives_the_worker_that_asked_for_it_and_the_server():
    later = 6.0
    with redis_server(appendonly="yes", appendfsync="always") as server:
        fleet = Fleet(server.url)
        due_key = f"{fleet.stream()}:due:billing"
        with fleet.worker("again", "-t", "2", LATER=str(later), PUBSUB_HEARTBEAT="0.3") as first:
            fleet.pubsub.publish("orders", {"number": 0, "steps": ["later", "done"]})
            first.wait_for("^shipping 0 1 ship")
            until(lambda: fleet.client.zcard(due_key) == 1 and fleet.pending(group="shipping") == 0)
            os.killpg(first.process.pid, signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL
        ((_, due),) = fleet.client.zrange(due_key, 0, -1, withscores=True)
        server.kill()
        server.start()
        with fleet.worker("again", PUBSUB_HEARTBEAT="0.3") as second:
            is_ready(second)
            (run,) = second.wait_for(r"^billing 0 (\d) done ([\d.]+)")
            assert run[1] == "2"
            assert -0.001 <= float(run[2]) - due / 1000 <= LATE
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
            assert not second.find("^shipping")
        assert fleet.pending() == 0
        fleet.close()


@pytest.fixture
def fleet(redis: RealServer) -> Iterator[Fleet]:
    fleet = Fleet(redis.url)
    yield fleet
    fleet.close()


def test_failures_requests_and_crashes_count_one_attempt_each(fleet):
    steps = ["fail", "exit", "later", "exit", "done"]
    with fleet.worker("again", "-t", "2", LATER="0.1", PUBSUB_HEARTBEAT="0.3") as worker:
        fleet.pubsub.publish("orders", {"number": 0, "steps": steps})
        worker.wait_for("^billing 0 5 done")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert [match[1] for match in worker.find(r"^billing 0 (\d \w+)")] == [
            f"{attempt} {step}" for attempt, step in enumerate(steps, 1)
        ]
        assert len(worker.find("^shipping 0 1 ")) == 1
    assert fleet.pending() == 0
    assert list(fleet.pubsub.dead_letters("orders", group="billing")) == []


def test_crash_uses_up_the_retries_of_the_policy(fleet):
    """Attempts are what it is asked about: two crashes and two failures are four, of three retries."""
    with fleet.worker("again", "-t", "1", PUBSUB_HEARTBEAT="0.3") as worker:
        fleet.pubsub.publish("orders", {"number": 0, "steps": ["exit", "exit", "fail", "fail"]})
        worker.wait_for(r"dead-lettered \(retries exhausted")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len(worker.find("^billing 0 ")) == 4
    (letter,) = list(fleet.pubsub.dead_letters("orders", group="billing"))
    assert (letter.message.attempt, letter.reason.kind) == (4, "retries exhausted")
