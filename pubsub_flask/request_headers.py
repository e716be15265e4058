"""What a message inherits from the request that it is published in."""

import re
import uuid
from collections.abc import Mapping

from flask import request

from pubsub_core.context import CORRELATION_ID
from pubsub_core.headers import TRACEPARENT

_ENVIRON_KEY = "pubsub.headers"

# They come from outside, and go into logs: what is not as it should be is not taken over.
_REQUEST_ID = re.compile(r"[!-~]{1,200}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def headers_of_request() -> Mapping[str, str]:
    """Return the current request's `X-Request-ID` as the correlation id, and its W3C `traceparent` as that.

    Without the first it is the id of the trace, and without either one that is made, the same for the whole request.
    """
    headers: Mapping[str, str] | None = request.environ.get(_ENVIRON_KEY)
    if headers is None:
        headers = request.environ[_ENVIRON_KEY] = _read()
    return headers


def _read() -> dict[str, str]:
    request_id = request.headers.get("X-Request-ID", "").strip()
    trace = _TRACEPARENT.fullmatch(request.headers.get("traceparent", "").strip())
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = trace[1] if trace else str(uuid.uuid4())
    return {CORRELATION_ID: request_id, **({TRACEPARENT: trace[0]} if trace else {})}
