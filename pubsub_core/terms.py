"""What a publish says of when, and whether: read and checked, before anything is sent."""

import math
import re
from datetime import UTC, datetime, timedelta

from pubsub_core.broker import Terms
from pubsub_core.clock import seconds_of
from pubsub_core.errors import ValidationError
from pubsub_core.ids import published_at
from pubsub_core.names import is_text

Dedup = str | tuple[str, float | timedelta]
"""A key, or a key and a window in seconds."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def moment_of(topic: str, message_id: object) -> datetime:
    """Return when the message of an id was published. Raises ValidationError if it is no id of ours."""
    try:
        if isinstance(message_id, str) and _ID.fullmatch(message_id):
            return published_at(message_id)
    except (ValueError, OverflowError, OSError):
        pass  # a moment that no calendar knows
    raise ValidationError(
        f"id={message_id!r} on topic {topic!r}: it is for the id of an earlier publish, a UUID of version 7, in lower "
        "case"
    )


def checked_key(topic: str, key: object) -> str:
    """Return the key of a message. Raises ValidationError for what is none."""
    if not is_text(key):
        raise ValidationError(f"key={key!r} on topic {topic!r}: a key is text, without half surrogate pairs")
    return key


_DEDUP_LENGTH = 512
_DEDUP_WINDOW = 300.0


def _checked_seconds(topic: str, name: str, time: object) -> float:
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValidationError(
            f"{name}={time!r} on topic {topic!r}: it is a number of seconds, or a timedelta, 0 or more"
        )
    return float(seconds)


def expiry_of(topic: str, now: datetime, expires: float | timedelta) -> datetime:
    """Return when a message expires that is published now. Raises ValidationError for what is no length of time."""
    seconds = _checked_seconds(topic, "expires", expires)
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def terms_of(  # noqa: PLR0917  # by position, as what it is told of
    topic: str,
    published_at: datetime,
    delay: float | timedelta | None,
    at: datetime | None,
    expires: float | timedelta | None,
    dedup: Dedup | None,
) -> Terms:
    """Return when, and whether, a message is to be published that was first published then.

    Raises ValidationError for what cannot be.
    """
    if delay is not None and at is not None:
        raise ValidationError(f"delay={delay!r} and at={at!r} on topic {topic!r}: say one of them")
    wait = seconds = 0.0 if delay is None else _checked_seconds(topic, "delay", delay)
    if at is not None:
        if not isinstance(at, datetime) or at.utcoffset() is None:
            raise ValidationError(
                f"at={at!r} on topic {topic!r}: it is a datetime with a time zone: datetime(..., tzinfo=UTC)"
            )
        wait = max(0.0, (at - published_at).total_seconds())
    if expires is not None and wait >= seconds_of(expires):
        said = f"delay={delay!r}" if at is None else f"at={at!r}"
        raise ValidationError(
            f"{said} on topic {topic!r} is not before it expires, {expires!r} from now: it would never be handled"
        )
    key, window = dedup if isinstance(dedup, tuple) and len(dedup) == 2 else (dedup, _DEDUP_WINDOW)
    if dedup is not None and not (is_text(key) and 0 < len(key) <= _DEDUP_LENGTH):
        raise ValidationError(
            f"dedup={dedup!r} on topic {topic!r}: a key is text, 1 to {_DEDUP_LENGTH} characters; or a tuple of one "
            "and its window"
        )
    kept_for = _checked_seconds(topic, "the window of dedup", window)
    if kept_for < 0.001:
        raise ValidationError(f"dedup={dedup!r} on topic {topic!r}: the window is more than 0 seconds")
    return Terms(seconds, None if at is None else at.timestamp(), key, kept_for)
