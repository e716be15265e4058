"""Between messages and stream entries.

An entry of ours has always the same fields in the same order, whose names Redis then stores once per node of the
stream. Any other entry was written by another program: its fields, as a JSON object of texts, are the payload.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, cast

import pydantic_core

from pubsub_core.broker import DeadLetter
from pubsub_core.clock import moment_at
from pubsub_core.ids import published_at
from pubsub_core.message import (
    NO_HEADERS,
    PLAIN_FIELDS,
    DeadLetterKind,
    DeadLetterReason,
    Delivery,
    Message,
    Source,
    SubscriptionKey,
    first_deliveries_of,
    message_of,
)
from pubsub_redis.link import Command

_LETTER_FIELDS = 9
Now = Callable[[], float]

_REPLAY = "replay:"
_ENTRY_ID = re.compile(r"\d{1,15}-\d{1,20}")


def place_of(entry_id: str) -> tuple[int, int]:
    """Return what entry ids are sorted by."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def add_command(stream: str, message: Message[bytes], now: Now) -> Command:
    """Return the XADD of a message."""
    return ("XADD", stream, "*", *entry_fields(message, now))


def packed_adds(stream: bytes, messages: Iterable[Message[bytes]], now: Now) -> list[bytes]:
    """Return the XADDs of messages as they go over the wire (RESP): `add_command` of each, packed."""
    begin = _BEGIN % (len(stream), stream)
    packed: list[bytes] = []
    for message in messages:
        message_id, payload = message.id.encode(), message.payload
        if (
            not message.headers
            and message.key is None
            and message.source == "publish"
            and message.expires_at is None
            and len(message_id) == 36
        ):  # as nearly all are
            packed.append(b"%b%b\r\n$7\r\npayload\r\n$%d\r\n%b%b" % (begin, message_id, len(payload), payload, _END))
        else:
            values = [one.encode() if isinstance(one, str) else one for one in entry_values(message, now)]
            packed.append(_ADD % (len(stream), stream, *(part for one in values for part in (len(one), one))))
    return packed


_XADD = b"*13\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$2\r\nid\r\n"
_BEGIN = _XADD + b"$36\r\n"
_END = b"\r\n$3\r\nkey\r\n$0\r\n\r\n$7\r\nheaders\r\n$0\r\n\r\n$6\r\nsource\r\n$0\r\n\r\n"
_ADD = (
    _XADD + b"$%d\r\n%b\r\n$7\r\npayload\r\n$%d\r\n%b\r\n$3\r\nkey\r\n$%d\r\n%b\r\n"
    b"$7\r\nheaders\r\n$%d\r\n%b\r\n$6\r\nsource\r\n$%d\r\n%b\r\n"
)


def entry_fields(message: Message[bytes], now: Now, only: str | None = None) -> tuple[str | bytes, ...]:
    """Return the names and values of a message's entry. All groups but `only` pass over it, if that is given."""
    message_id, payload, key, headers, source = entry_values(message, now, only)
    return "id", message_id, "payload", payload, "key", key, "headers", headers, "source", source


def entry_values(message: Message[bytes], now: Now, only: str | None = None) -> tuple[str | bytes, ...]:
    """Return the five values of a message's entry, which is stored `now`: by the clock of who publishes."""
    headers = pydantic_core.to_json(dict(message.headers)) if message.headers else b""
    # An empty key is not no key: "=" stands before one that there is.
    key = "" if message.key is None else "=" + message.key
    plain = only is None and _is_plain(message)
    return message.id, message.payload, key, headers, "" if plain else _source(message, now, only)


def _is_plain(message: Message[bytes]) -> bool:
    """Whether it was simply published, so that there is nothing to say of its source."""
    return message.source == "publish" and message.expires_at is None


def _source(message: Message[bytes], now: Now, only: str | None) -> str:
    """Return where a message came from: words, of which a message that is simply published has none.

    `cron`, or `replay:` and a group, comes first; then, of a tick, `for:` and its time, and `life:` with the
    milliseconds from being stored to expiring, so that the server's clock may be another. A replay does not expire.
    """
    words = []
    if only is not None:
        words.append(f"{_REPLAY}{only}")
    elif message.source != "publish":
        words.append(message.source)
    if message.scheduled_for is not None:
        words.append(f"for:{round(message.scheduled_for.timestamp() * 1000)}")
    if message.expires_at is not None and only is None:
        words.append(f"life:{max(0, round((message.expires_at.timestamp() - now()) * 1000))}")
    return " ".join(words)


def is_for_another(values: list[bytes], group: str) -> bool:
    """Whether an entry is a replay for another group than this one."""
    if len(values) != 10 or not values[9] or values[8] != b"source" or not values[9].startswith(_REPLAY.encode()):
        return False
    return values[9].split(b" ", 1)[0] != (_REPLAY + group).encode()


def read_entry(topic: str, group: str, entry_id: bytes, values: list[bytes], attempt: int) -> Message[bytes]:
    """Return the message of an entry: ours, or any other program's."""
    position = entry_id.decode()
    if len(values) == 10 and values[0] == b"id" and values[2] == b"payload" and values[6] == b"headers":
        _, id_, _, payload, _, key, _, headers, _, words = values
        try:
            message_id = id_.decode()
            source, expires_at, scheduled_for = _read_source(words, position) if words else _PUBLISHED
            return message_of(
                {
                    "id": message_id,
                    "topic": topic,
                    "payload": payload,
                    "published_at": _published_at(message_id),
                    "key": key[1:].decode() if key else None,
                    "headers": _headers(headers) if headers else NO_HEADERS,
                    "attempt": attempt,
                    "group": group,
                    "source": source,
                    "position": position,
                    "expires_at": expires_at,
                    "scheduled_for": scheduled_for,
                }
            )
        except (ValueError, TypeError):
            pass  # it only looks like ours: deliver it as what it is
    return Message(
        position, topic, _foreign(values), stored_at(position), None, NO_HEADERS, attempt, group, "publish", position
    )


def read_new(
    key: SubscriptionKey, entries: Sequence[tuple[bytes, list[bytes]]]
) -> tuple[list[Delivery[bytes]], list[bytes]]:
    """Return the deliveries of what a group reads for the first time, and the ids of entries for other groups.

    As `read_entry` for each; but of entries of ours, as nearly all are, a good deal quicker.
    """
    global _latest  # noqa: PLW0603  # one value, replaced as a whole: any thread may
    topic, group = key
    usual = {**PLAIN_FIELDS, "topic": topic, "group": group}
    messages: list[dict[str, Any]] = []
    foreign: list[bytes] = []
    latest, moment = _latest
    for entry_id, values in entries:
        try:
            id_name, id_, payload_name, payload, _, entry_key, headers_name, headers, _, words = values
            message_id = id_.decode()
            if not message_id.startswith(latest) and message_id[13:15] == "-7":
                moment = published_at(message_id)
                latest = message_id[:15]
        except ValueError:
            message_id = ""
        if (
            message_id.startswith(latest)
            and len(message_id) == 36
            and not (words or headers or entry_key)
            and id_name == b"id"
            and payload_name == b"payload"
            and headers_name == b"headers"
        ):
            fields = usual.copy()
            fields["id"] = message_id
            fields["payload"] = payload
            fields["published_at"] = moment
            fields["position"] = entry_id.decode()
            messages.append(fields)
        elif is_for_another(values, group):
            foreign.append(entry_id)
        else:
            messages.append(vars(read_entry(topic, group, entry_id, values, 1)))
    _latest = latest, moment
    return first_deliveries_of(messages, key), foreign


_PUBLISHED: tuple[Source, None, None] = ("publish", None, None)


def _read_source(words: bytes, position: str) -> tuple[Source, datetime | None, datetime | None]:
    """Return what `_source` wrote: the source, when the message expires, and its tick."""
    source: Source = "publish"
    expires_at = scheduled_for = None
    for word in words.decode().split(" "):
        kind, _, value = word.partition(":")
        if kind == "life":
            expires_at = moment_at((int(position.partition("-")[0]) + int(value)) / 1000)
        elif kind == "for":
            scheduled_for = moment_at(int(value) / 1000)
        else:
            source = cast("Source", kind)
    return source, expires_at, scheduled_for


_latest: tuple[str, datetime] = ("?", datetime.fromtimestamp(0, UTC))


def _published_at(message_id: str) -> datetime:
    """Return when a message was made, by its id: one of ours, or that of a replayed entry of another program.

    Messages that come one after the other were often made in the same millisecond: the latest one is remembered, with
    what ids of its millisecond begin with.
    """
    global _latest  # noqa: PLW0603  # one value, replaced as a whole: any thread may
    latest, moment = _latest
    if not message_id.startswith(latest) or len(message_id) != 36:
        if _ENTRY_ID.fullmatch(message_id):
            return stored_at(message_id)
        moment = published_at(message_id)
        _latest = message_id[:15], moment
    return moment


def stored_at(entry_id: str) -> datetime:
    """Return when the server stored an entry, by its id. Another program may have chosen one that is no time."""
    return moment_at(int(entry_id.partition("-")[0]) / 1000)


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


_RECORD_PREFIX = re.compile(rb"(\d+):")


def read_delayed(topic: str, record: bytes) -> tuple[Message[bytes], str]:
    """Return a message that is not due yet, and its dedup key or "". See `delayed.lua` for the format."""
    texts: list[bytes] = []
    at = 0
    while found := _RECORD_PREFIX.match(record, at):
        at = found.end() + int(found[1])
        texts.append(record[found.end() : at])
    posted, dedup, *values = texts
    names = (b"id", b"payload", b"key", b"headers", b"source")
    fields = [part for pair in zip(names, values, strict=True) for part in pair]
    message = read_entry(topic, "", posted + b"-0", fields, 1)
    return replace(message, group=None, position=None), dedup.decode()


def entry_again(delivery: Delivery[bytes]) -> tuple[str | bytes, ...]:
    """Return the names and values of the entry that a delivery was made from, for when it is gone."""
    message, position = delivery.message, delivery.message.position or ""
    only = delivery.subscription.group if message.source == "replay" else None
    return entry_fields(message, lambda: stored_at(position).timestamp(), only)


def letter_fields(position: str, attempt: int, consumer: str, reason: DeadLetterReason) -> tuple[str, ...]:
    """Return the fields of a dead letter that stand before those of its entry, behind that of the first failure."""
    return (
        "position", position, "attempt", str(attempt), "consumer", consumer, "reason", reason.kind,
        "error", reason.error, "detail", reason.detail, "traceback", reason.traceback, "version", "1",
    )  # fmt: skip


def read_letter(key: SubscriptionKey, entry_id: bytes, values: list[bytes]) -> DeadLetter:
    """Return the dead letter of an entry of the group's dead stream: ours, or what somebody else wrote there."""
    position = entry_id.decode()
    last = stored_at(position)
    try:
        own = {values[i].decode(): values[i + 1].decode("utf-8", "replace") for i in range(0, 2 * _LETTER_FIELDS, 2)}
        entry_at, attempt = own["position"].encode(), int(own["attempt"])
        reason = DeadLetterReason(cast("DeadLetterKind", own["reason"]), own["error"], own["detail"], own["traceback"])
        first = datetime.fromtimestamp(int(own["first"]) / 1000, UTC) if own["first"] else last
        consumer = own["consumer"]
    except (IndexError, KeyError, ValueError, OverflowError, OSError):
        message = read_entry(key.topic, key.group, entry_id, values, 1)
        reason = DeadLetterReason("undecodable", detail="another program wrote it into the stream of dead letters")
        return DeadLetter(position, message, key, reason, "", last, last)
    message = read_entry(key.topic, key.group, entry_at, values[2 * _LETTER_FIELDS :], attempt)
    return DeadLetter(position, message, key, reason, consumer, min(first, last), last)
