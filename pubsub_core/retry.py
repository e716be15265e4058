"""When a failed delivery is tried again: the protocol and three policies."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pubsub_core.errors import ConfigurationError

ErrorTypes = Sequence[type[BaseException]] | type[BaseException]


class RetryPolicy(Protocol):
    """Says how long to wait before a failed delivery is handed out again. Must be safe to call from many threads."""

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait after `attempt` (1 = the first) failed with `error`, or None to give up."""


def _check_numbers(policy: object, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConfigurationError(
                f"{type(policy).__name__}({name}={value!r}): {name} must be a finite number, 0 or more"
            )


def _types(errors: ErrorTypes) -> tuple[type[BaseException], ...]:
    return (errors,) if isinstance(errors, type) else tuple(errors)


def _is_retryable(error: Exception, retry_on: ErrorTypes, never_on: ErrorTypes) -> bool:
    return isinstance(error, _types(retry_on)) and not isinstance(error, _types(never_on))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialBackoff:
    """Wait `initial * factor ** (attempt - 1)` seconds, at most `maximum`; give up after `max_retries` retries.

    With `jitter` the wait is drawn evenly from 0 to that ("full jitter", AWS Architecture Blog, 2015), so that
    messages which failed together do not come back together. Errors that are not `retry_on`, or are `never_on`, give
    up at once. `rng` returns numbers in [0, 1); tests may pass a seeded one.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 600.0
    jitter: bool = True
    max_retries: int = 16
    retry_on: ErrorTypes = Exception
    never_on: ErrorTypes = ()
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        _check_numbers(
            self, initial=self.initial, factor=self.factor, maximum=self.maximum, max_retries=self.max_retries
        )

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait, or None to give up."""
        if attempt > self.max_retries or not _is_retryable(error, self.retry_on, self.never_on):
            return None
        try:
            delay = min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            delay = self.maximum
        return delay * self.rng.random() if self.jitter else delay

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return f"exponential ×{self.max_retries}"


@dataclass(frozen=True, slots=True)
class FixedDelay:
    """Wait `delay` seconds each time; give up after `max_retries` retries."""

    delay: float
    max_retries: int
    retry_on: ErrorTypes = field(default=Exception, kw_only=True)
    never_on: ErrorTypes = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        _check_numbers(self, delay=self.delay, max_retries=self.max_retries)

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait, or None to give up."""
        if attempt > self.max_retries or not _is_retryable(error, self.retry_on, self.never_on):
            return None
        return self.delay

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return f"{self.delay:g} s ×{self.max_retries}"


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Give up at the first failure: the message becomes a dead letter."""

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return None."""
        return None

    def __str__(self) -> str:
        """Short, for the worker's start-up table."""
        return "none"
