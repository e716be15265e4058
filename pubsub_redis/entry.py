"""Between messages and stream entries.

An entry of ours has always the same fields in the same order, whose names Redis then stores once per node of the
stream. Any other entry was written by another program: its fields, as a JSON object of texts, are the payload.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, cast

import pydantic_core

from pubsub_core.ids import published_at
from pubsub_core.message import NO_HEADERS, DeadLetterReason, Message, Source
from pubsub_redis.link import Command

_LETTER_FIELDS = 8


def add_command(stream: str, message: Message[bytes]) -> Command:
    """Return the XADD of a message."""
    headers = pydantic_core.to_json(dict(message.headers)) if message.headers else b""
    source = "" if message.source == "publish" else message.source
    # An empty key is not no key: "=" stands before one that there is.
    key = "" if message.key is None else "=" + message.key
    return (
        "XADD", stream, "*",
        "id", message.id, "payload", message.payload, "key", key, "headers", headers, "source", source,
    )  # fmt: skip


def read_entry(topic: str, group: str, entry_id: bytes, values: list[bytes], attempt: int) -> Message[bytes]:
    """Return the message of an entry: ours, or any other program's."""
    position = entry_id.decode()
    if len(values) == 10 and values[0] == b"id" and values[2] == b"payload" and values[6] == b"headers":
        try:
            message_id = values[1].decode()
            return Message(
                message_id,
                topic,
                values[3],
                published_at(message_id),
                values[5][1:].decode() if values[5] else None,
                _headers(values[7]) if values[7] else NO_HEADERS,
                attempt,
                group,
                cast("Source", values[9].decode()) if values[9] else "publish",
                position,
            )
        except (ValueError, TypeError):
            pass  # it only looks like ours: deliver it as what it is
    moment = datetime.fromtimestamp(int(position.partition("-")[0]) / 1000, UTC)
    return Message(position, topic, _foreign(values), moment, None, NO_HEADERS, attempt, group, "publish", position)


def _headers(encoded: bytes) -> Mapping[str, str]:
    headers = pydantic_core.from_json(encoded)
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise TypeError
    return MappingProxyType(headers)


def _foreign(values: list[bytes]) -> bytes:
    try:
        return pydantic_core.to_json({values[i].decode(): values[i + 1].decode() for i in range(0, len(values), 2)})
    except UnicodeDecodeError:
        return b"\n".join(values)  # no text, so no JSON: it becomes a dead letter that says so


def letter_fields(position: str, attempt: int, consumer: str, reason: DeadLetterReason) -> tuple[str, ...]:
    """Return the fields of a dead letter that stand before those of its entry."""
    return (
        "position", position, "attempt", str(attempt), "consumer", consumer, "reason", reason.kind,
        "error", reason.error, "detail", reason.detail, "traceback", reason.traceback, "version", "1",
    )  # fmt: skip


def read_letter(topic: str, group: str, values: list[bytes]) -> tuple[Message[bytes], DeadLetterReason, str]:
    """Return the message, the reason and the consumer of a dead letter."""
    own: dict[str, str] = {
        values[i].decode(): values[i + 1].decode("utf-8", "replace") for i in range(0, 2 * _LETTER_FIELDS, 2)
    }
    message = read_entry(topic, group, own["position"].encode(), values[2 * _LETTER_FIELDS :], int(own["attempt"]))
    kind: Any = own["reason"]
    return message, DeadLetterReason(kind, own["error"], own["detail"], own["traceback"]), own["consumer"]
