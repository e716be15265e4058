"""Every error this library raises, in one tree.

    PubSubError
    ├── ConfigurationError          a setting, URL, name or target that cannot work (also a ValueError)
    │   └── SubscriptionError       a handler that cannot be subscribed as written
    ├── PublishError                a publish that did not end in "stored"
    │   ├── ValidationError         refused: not what the topic carries; nothing was sent (also a ValueError)
    │   │   └── PayloadTooLarge     refused: larger than PUBSUB_MAX_PAYLOAD; nothing was sent
    │   ├── PublishUncertain        the broker may or may not have stored it; `message_ids` says which
    │   └── NotConfirmed            it is stored, but disk or replicas did not confirm it in time
    ├── BrokerError                 the broker refused, or cannot be reached
    │   ├── BrokerUnavailable       not reachable, or not able to serve now; nothing was stored
    │   ├── BrokerFull              out of memory or disk; nothing was stored
    │   ├── NotPermitted            wrong password, or a command its user may not run
    │   ├── StreamConflict          a key of another type stands where the topic's stream should be
    │   ├── Unsupported             the server is too old, or not set up, for what was asked; nothing was done
    │   └── ConsumersPresent        a group that processes consume cannot be removed
    ├── CodecError                  bytes that cannot be turned into a payload
    │   ├── Undecodable             they are not JSON
    │   └── InvalidPayload          they are JSON, but not what the handler expects
    ├── LeaseLost                   the delivery belongs to another consumer by now
    └── WorkerError                 a worker that cannot run
        ├── HandlerTimeout          raised inside a handler that ran longer than its timeout
        └── NeverIdle               handlers publish for handlers without end, where somebody waits for the end

`Retry`, `Reject` and `BatchFailure` are not errors of the library: a handler raises them to say what shall become of
its messages.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any


class PubSubError(Exception):
    """The root of every error of this library."""


class _OfSeveral:
    """What an error of a publish of several messages knows of those that are stored all the same."""

    stored: Mapping[str, str] = MappingProxyType({})
    """Their ids, each with the id that stands for it: its own, or with `dedup` that of the first one."""

    @property
    def stored_ids(self) -> tuple[str, ...]:
        """Their ids, in the order of publishing. `commit()` of their batch does not send them again."""
        return tuple(self.stored)


class ConfigurationError(PubSubError, ValueError):
    """A setting, URL, name or target cannot work. The text names it and the fix."""


class SubscriptionError(ConfigurationError):
    """A handler cannot be subscribed as it is written. The text names its file and line.

    It is raised where the handler is declared; what only shows when it is called fails its message.
    """


class PublishError(_OfSeveral, PubSubError):
    """A publish did not end in "stored". Of a batch, `stored_ids` are the ids of those messages that did."""


class ValidationError(PublishError, ValueError):
    """The payload is not what the topic carries. Nothing was sent.

    `errors` is a tuple of (location, problem) pairs of strings; the offending values are not in it.
    """

    def __init__(self, message: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class PayloadTooLarge(ValidationError):
    """The encoded payload is larger than `PUBSUB_MAX_PAYLOAD` bytes. Nothing was sent."""


class _InDoubt(PublishError):
    """What `message_ids` names is not as sure as was asked for."""

    def __init__(self, message: str, message_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.message_ids = tuple(message_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole."""
        return type(self), (str(self), self.message_ids), self.__dict__


class PublishUncertain(_InDoubt):
    """The connection broke after the messages were sent, and looking for them failed too.

    They may be stored or not. `message_ids` are the ids that nobody can vouch for, in the order of publishing; others
    of a batch are stored if they are in `stored_ids`, and not if they are not. Publishing them again under these ids
    (`id=`, or `commit()` of their batch) stores nothing twice.
    """


class NotConfirmed(_InDoubt):
    """The messages are stored, but disk or replicas did not confirm that in time: they may be lost with the server.

    `message_ids` are their ids. Publishing them again under these ids (`id=`, or `commit()` of their batch) stores
    nothing twice, and asks for the confirmation again.
    """


class BrokerError(_OfSeveral, PubSubError):
    """The broker refused a request, or cannot be reached. Of a batch, only the messages of `stored_ids` are stored."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached or cannot serve now. What was asked has not been done."""


class BrokerFull(BrokerError):
    """The broker is out of memory or disk space. What was asked has not been done."""


class NotPermitted(BrokerError):
    """The broker refuses the credentials, or its user may not run the command. Trying again does not help."""


class StreamConflict(BrokerError):
    """A key of another type stands where the stream of a topic should be. Trying again does not help."""


class Unsupported(BrokerError):
    """The server is too old, or not set up, for what was asked. Nothing was done. Trying again does not help."""


class ConsumersPresent(BrokerError):
    """The group is consumed, so it cannot be removed. Nothing was changed."""


class CodecError(PubSubError):
    """Bytes could not be turned into a payload. Its text never contains the payload."""


class Undecodable(CodecError):
    """The bytes are not what the codec writes (for JSON: not JSON, NaN or an infinity, bad UTF-8, nested too deep)."""


class InvalidPayload(CodecError):
    """The bytes are well-formed but not of the type that the handler expects."""


class LeaseLost(PubSubError):
    """The delivery belongs to another consumer by now, so it cannot be settled here. Nothing was changed."""


class WorkerError(PubSubError):
    """A worker cannot run."""


class HandlerTimeout(WorkerError):
    """Raised inside a handler that ran longer than the `timeout` of its subscription."""


class NeverIdle(WorkerError):
    """So many messages were handled in one go, for a test or an eager publish, that it does not seem to end."""


class Retry(Exception):
    """Raise it in a handler to be called again with this message, after `delay` (seconds or a timedelta).

    The attempt counts, but the retry policy is not asked: a handler that always raises it is called for ever.
    """

    def __init__(self, delay: float | timedelta = 0) -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise ValueError(f"Retry(delay={delay!r}): the delay is a number of seconds or a timedelta, 0 or more")
        super().__init__(f"asked to be called again in {float(seconds)} s")
        self.delay = float(seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole: a handler may get it from a pool of them."""
        return type(self), (self.delay,)


class Reject(Exception):
    """Raise it in a handler to make the message a dead letter at once, with this reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "rejected by the handler")


class BatchFailure(Exception):
    """Raise it in a handler with `batch=` to fail some messages of the list it was given, and acknowledge the others.

    `errors` maps the index in that list to what the message failed with, as if a handler had raised it: a `Retry`, a
    `Reject`, or any other exception, which the retry policy judges. Raises TypeError or ValueError if it is not that.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        if not isinstance(errors, Mapping):
            raise TypeError(f"BatchFailure takes a mapping of index to exception, not {type(errors).__name__}")
        for index, error in errors.items():
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise ValueError(f"BatchFailure: {index!r} is no index of the list: those are 0, 1, 2 and so on")
            if not isinstance(error, BaseException):
                raise TypeError(f"BatchFailure: what stands for index {index} is no exception: {type(error).__name__}")
        super().__init__(f"{len(errors)} messages of a batch failed")
        self.errors = dict(errors)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole."""
        return type(self), (self.errors,)
