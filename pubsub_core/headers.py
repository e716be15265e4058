"""The headers that a message gets besides those of its publish: inherited ones, and those that hooks add to all."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pubsub_core.context import CORRELATION_ID, message_at_work
from pubsub_core.errors import ValidationError

TRACEPARENT = "traceparent"

HeadersHook = Callable[[], Mapping[str, str]]


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
    hooks: Sequence[HeadersHook],
    inherited: Mapping[str, str] | None,
) -> Mapping[str, str]:
    """Return all of them: given ones win over those of hooks, of which the last wins, and these over inherited ones."""
    headers = dict(inherited or {})
    for hook in hooks:
        headers |= _checked(hook(), topic, f", by {getattr(hook, '__qualname__', repr(hook))}")
    headers |= _checked(given or {}, topic)
    return MappingProxyType(headers)


def _checked(headers: object, topic: str, by: str = "") -> Mapping[str, str]:
    if not isinstance(headers, Mapping):
        raise ValidationError(f"headers on topic {topic!r}{by}: they are a mapping, not {type(headers).__name__}")
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in headers.items()):
        raise ValidationError(f"headers on topic {topic!r}{by}: names and values are text")
    return headers
