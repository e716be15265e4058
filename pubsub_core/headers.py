"""The headers that a message gets besides those of its publish: inherited, and made by functions of the application."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pubsub_core.context import CORRELATION_ID, message_at_work
from pubsub_core.errors import ValidationError
from pubsub_core.names import is_text

TRACEPARENT = "traceparent"

MakeHeaders = Callable[[], Mapping[str, str]]


def inherited_headers() -> Mapping[str, str] | None:
    """Return what is inherited from the message at work here; None outside of a handler."""
    current = message_at_work()
    if current is None:
        return None
    inherited = {CORRELATION_ID: current.headers.get(CORRELATION_ID, current.id)}
    if TRACEPARENT in current.headers:
        inherited[TRACEPARENT] = current.headers[TRACEPARENT]
    return inherited


def merged_headers(
    topic: str,
    given: Mapping[str, str] | None,
    makers: Sequence[MakeHeaders],
    inherited: Mapping[str, str] | None,
) -> Mapping[str, str]:
    """Return all of them: given ones win over those that are made, of which the last wins, and these over inherited."""
    headers = dict(inherited or {})
    for make in makers:
        headers |= checked_headers(make(), topic, f", by {getattr(make, '__qualname__', repr(make))}")
    headers |= checked_headers(given or {}, topic)
    return MappingProxyType(headers)


def checked_headers(headers: object, topic: str, by: str = "") -> Mapping[str, str]:
    """Return headers that can be sent. Raises ValidationError, which tells `by` what they were given."""
    if not isinstance(headers, Mapping):
        raise ValidationError(f"headers on topic {topic!r}{by}: they are a mapping, not {type(headers).__name__}")
    if not all(is_text(name) and is_text(value) for name, value in headers.items()):
        raise ValidationError(
            f"headers on topic {topic!r}{by}: names and values are text, without half surrogate pairs"
        )
    return headers
