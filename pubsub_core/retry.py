"""When a failed delivery is tried again: the protocol and three policies."""

import inspect
import math
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from pubsub_core.callables import is_async
from pubsub_core.clock import seconds_of
from pubsub_core.errors import ConfigurationError, SubscriptionError

ErrorTypes = Collection[type[Exception]] | type[Exception]


class RetryPolicy(Protocol):
    """Says how long to wait before a failed delivery is handed out again. Must be safe to call from many threads."""

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait after `attempt` (1 = the first) failed with `error`, or None to give up."""


def _check_numbers(policy: object, **values: object) -> None:
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:  # type: ignore[operator]  # only a number gets there
            raise ConfigurationError(
                f"{type(policy).__name__}({name}={value!r}): {name} must be a finite number, 0 or more"
            )


def _check_count(policy: object, max_retries: object) -> None:
    if not isinstance(max_retries, int):
        raise ConfigurationError(
            f"{type(policy).__name__}(max_retries={max_retries!r}): max_retries must be a whole number"
        )


def _check_errors(policy: object, **values: ErrorTypes) -> None:
    for name, value in values.items():
        one_by_one = value if isinstance(value, Collection) else [value]
        for one in one_by_one:
            if not (isinstance(one, type) and issubclass(one, Exception)):
                # A handler that raises SystemExit and the like failed with a WorkerError, as far as a policy knows.
                raise ConfigurationError(
                    f"{type(policy).__name__}({name}={value!r}): {name} must be subclasses of Exception"
                )


def _types(errors: ErrorTypes) -> tuple[type[Exception], ...]:
    return (errors,) if isinstance(errors, type) else tuple(errors)


def _is_retryable(error: Exception, retry_on: ErrorTypes, never_on: ErrorTypes) -> bool:
    return isinstance(error, _types(retry_on)) and not isinstance(error, _types(never_on))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialBackoff:
    """Wait `initial * factor ** (attempt - 1)` seconds, at most `maximum`; give up after `max_retries` retries.

    `initial` and `maximum` are seconds, or a timedelta.
    With `jitter` the wait is drawn evenly from 0 to that ("full jitter", AWS Architecture Blog, 2015), so that
    messages which failed together do not come back together. Errors that are not `retry_on`, or are `never_on`, give
    up at once. `rng` returns numbers in [0, 1); tests may pass a seeded one.
    """

    initial: float | timedelta = 1.0
    factor: float = 2.0
    maximum: float | timedelta = 600.0
    jitter: bool = True
    max_retries: int = 16
    retry_on: ErrorTypes = Exception
    never_on: ErrorTypes = ()
    # One without a state, for processes that are forked after this was made would draw the same numbers from a copy.
    rng: random.Random = field(default_factory=random.SystemRandom, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_numbers(self, initial=seconds_of(self.initial), maximum=seconds_of(self.maximum))
        _check_numbers(self, factor=self.factor, max_retries=self.max_retries)
        _check_count(self, self.max_retries)
        _check_errors(self, retry_on=self.retry_on, never_on=self.never_on)

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait, or None to give up."""
        if attempt > self.max_retries or not _is_retryable(error, self.retry_on, self.never_on):
            return None
        initial, maximum = seconds_of(self.initial), seconds_of(self.maximum)
        try:
            delay = min(maximum, initial * float(self.factor) ** (attempt - 1))
        except OverflowError:
            delay = maximum if initial else 0.0
        return delay * self.rng.random() if self.jitter else delay

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return f"exponential ×{self.max_retries}"


@dataclass(frozen=True, slots=True)
class FixedDelay:
    """Wait `delay` (seconds or a timedelta) each time; give up after `max_retries` retries."""

    delay: float | timedelta
    max_retries: int
    retry_on: ErrorTypes = field(default=Exception, kw_only=True)
    never_on: ErrorTypes = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_numbers(self, delay=seconds_of(self.delay), max_retries=self.max_retries)
        _check_count(self, self.max_retries)
        _check_errors(self, retry_on=self.retry_on, never_on=self.never_on)

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait, or None to give up."""
        if attempt > self.max_retries or not _is_retryable(error, self.retry_on, self.never_on):
            return None
        return seconds_of(self.delay)

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return f"{seconds_of(self.delay):g} s ×{self.max_retries}"


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Give up at the first failure: the message becomes a dead letter."""

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return None."""
        return None

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return "none"


def policy_of(retry: RetryPolicy | None) -> RetryPolicy:
    """Return the policy that `retry=` says; of None, the usual one. Raises SubscriptionError for what is no policy."""
    if retry is None:
        return ExponentialBackoff()
    if isinstance(retry, type):
        arguments = "delay=60, max_retries=5" if retry is FixedDelay else ""
        raise SubscriptionError(f"retry={retry.__name__}: that is a class, write {retry.__name__}({arguments})")
    next_delay = getattr(retry, "next_delay", None)
    if not callable(next_delay):
        raise SubscriptionError(f"retry={retry!r}: it takes a retry policy, such as {_instead_of(retry)}")
    if is_async(next_delay):
        raise SubscriptionError(f"retry={retry!r}: its next_delay is an `async def`, make it a plain `def`")
    try:
        inspect.signature(next_delay).bind(1, Exception())
    except TypeError as error:
        raise SubscriptionError(
            f"retry={retry!r}: its next_delay must take two arguments, the attempt and the error: {error}"
        ) from None
    return retry


def _instead_of(retry: object) -> str:
    """Return the policy that was probably meant."""
    if isinstance(retry, int) and not isinstance(retry, bool) and retry > 0:
        return f"ExponentialBackoff(max_retries={retry})"
    return "ExponentialBackoff(max_retries=5)" if retry else "NoRetry()"
