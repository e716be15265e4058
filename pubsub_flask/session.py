"""What is published on `pubsub.session`: kept for as long as an app context lasts, sent when it is committed."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from flask import Flask, appcontext_tearing_down, g, has_request_context, request, request_tearing_down

from pubsub_core.pubsub import Batch

log = logging.getLogger("pubsub")

_ATTRIBUTE = "_pubsub_sessions"


def session_of_context(app: Flask, key: str, make: Callable[[], Batch]) -> Batch:
    """Return the session of the current app context of `app`, or of the request, which is made at its first use.

    An app context may be older than the request that runs in it (Flask before 3.2), and have several of them.
    """
    sessions: dict[tuple[str, Any], Batch] = g.setdefault(_ATTRIBUTE, {})
    scope = _request() if has_request_context() else None
    session = sessions.get((key, scope))
    if session is None:
        # Signals, not teardown functions: these cannot be added any more when the app has served a request.
        appcontext_tearing_down.connect(_discard_all, app)
        request_tearing_down.connect(_discard_of_request, app)
        session = sessions[key, scope] = make()
    return session


def _request() -> object:
    return cast(Any, request)._get_current_object()  # noqa: SLF001  # Flask documents it


def _discard_of_request(_: Flask, exc: BaseException | None = None, **__: Any) -> None:
    scope = _request()
    sessions: dict[tuple[str, Any], Batch] = g.get(_ATTRIBUTE, {})
    for key in [key for key in sessions if key[1] is scope]:
        discard(sessions.pop(key), exc)


def _discard_all(_: Flask, exc: BaseException | None = None, **__: Any) -> None:
    sessions: dict[tuple[str, Any], Batch] = g.pop(_ATTRIBUTE, {})
    for session in sessions.values():
        discard(session, exc)


def discard(session: Batch, error: BaseException | None = None, hint: str = "") -> None:
    """Forget what was not committed, and tell of it."""
    counts = Counter(session.discard())
    if not counts:
        return
    log.warning(
        "%d messages of a session were not committed%s, and are discarded: %s%s",
        counts.total(),
        f" before {type(error).__name__}" if error is not None else "",
        ", ".join(f"{count} of {topic!r}" for topic, count in counts.items()),
        hint,
        extra={"discarded": counts.total(), "topics": list(counts)},
    )
