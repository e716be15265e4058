"""What a test published, as it asks about it: payloads, filters, and errors that show what comes near."""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, overload

import pydantic_core

from pubsub_core.errors import ConfigurationError
from pubsub_core.message import Message
from pubsub_core.names import did_you_mean
from pubsub_core.topic import Topic

T = TypeVar("T")

_SHOWN = 5
_MISSING = object()


@dataclass(frozen=True, slots=True, repr=False)
class PublishedMessage(Message[T]):
    """A message that was published. One with a `due_at` was delayed until then."""

    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One that was published, as the broker got it."""

    message: Message[bytes]
    due_at: datetime | None


class Payloads(list[Any]):
    """The payloads, in the order of publishing: a list whose comparison, where it fails, is explained."""

    def __init__(self, payloads: Iterable[Any], topic: str, others: str) -> None:
        super().__init__(payloads)
        self.topic = topic
        self.others = others

    def __eq__(self, other: object) -> bool:
        """Compare with a list, or a tuple, of payloads."""
        return list(self) == (list(other) if isinstance(other, tuple) else other)

    def __ne__(self, other: object) -> bool:
        """Compare with a list, or a tuple, of payloads."""
        return not self == other

    __hash__ = None  # as of every list


class Publications(Sequence[PublishedMessage[T]], Generic[T]):
    """What was published to one topic in this test so far, in order. Compares as the list of its payloads."""

    def __init__(self, topic: str, messages: Sequence[PublishedMessage[T]], others: str, asked: str = "") -> None:
        self.topic = topic
        self.messages: Sequence[PublishedMessage[T]] = tuple(messages)
        """Each as a `Message`, with `due_at` if it was delayed."""
        self._others = others
        self._asked = asked
        self._misses: Sequence[PublishedMessage[T]] = ()
        self._expected: Mapping[str, Any] = {}

    @property
    def payloads(self) -> list[T]:
        """The payloads, of the type that the topic declares."""
        return Payloads((one.payload for one in self.messages), self.topic, self._others)

    @property
    def ids(self) -> list[str]:
        """The ids that `publish` returned."""
        return [one.id for one in self.messages]

    @property
    def delayed(self) -> "Publications[T]":
        """Those that were published with `delay` or `at`, and were not due at once."""
        return self._some([one for one in self.messages if one.due_at is not None], "delayed")

    def where(self, predicate: Callable[[T], object] | None = None, /, **fields: Any) -> "Publications[T]":
        """Return those whose payload the predicate takes, and has these fields (or keys)."""
        fits = [
            one
            for one in self.messages
            if (predicate is None or predicate(one.payload)) and not _differences(one.payload, fields)
        ]
        said = [f"{name}={value!r}" for name, value in fields.items()]
        said += [getattr(predicate, "__name__", repr(predicate))] if predicate is not None else []
        found = self._some(fits, f"where({', '.join(said)})")
        found._misses = [one for one in self.messages if one not in fits]  # noqa: SLF001  # one of ours
        found._expected = fields  # noqa: SLF001
        return found

    def only(self) -> PublishedMessage[T]:
        """Return the only one. Raises AssertionError, with what comes near, if there is none, or several."""
        __tracebackhide__ = True
        if len(self.messages) != 1:
            raise AssertionError(
                f"expected one message, and there are {len(self.messages)}:\n" + "\n".join(self._in_words())
            )
        return self.messages[0]

    def _some(self, messages: Sequence[PublishedMessage[T]], asked: str) -> "Publications[T]":
        return Publications(self.topic, messages, self._others, f"{self._asked}.{asked}")

    @overload
    def __getitem__(self, index: int) -> PublishedMessage[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PublishedMessage[T]]: ...
    def __getitem__(self, index: int | slice) -> PublishedMessage[T] | Sequence[PublishedMessage[T]]:
        """Return one, or some, in the order of publishing."""
        return self.messages[index]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.messages)

    def __iter__(self) -> Iterator[PublishedMessage[T]]:
        """In the order of publishing."""
        return iter(self.messages)

    def __eq__(self, other: object) -> bool:
        """Compare with a list of payloads, or with the same."""
        if isinstance(other, Publications):
            return self.topic == other.topic and self.ids == other.ids
        return self.payloads == other

    __hash__ = None  # type: ignore[assignment]  # it compares as a list

    def __repr__(self) -> str:
        """The payloads, and what comes near if there are none."""
        return f"<{'; '.join(self._in_words())}>"

    def _in_words(self) -> list[str]:
        what = f"published({self.topic!r}){self._asked}"
        if self.messages:
            lines = [f"{what}: {len(self.messages)}", *(f"{_shown(one)}" for one in self.messages[:_SHOWN])]
            lines += [f"and {len(self.messages) - _SHOWN} more"] if len(self.messages) > _SHOWN else []
        else:
            lines = [f"{what}: nothing", *self._near()]
        return lines

    def _near(self) -> list[str]:
        if not self._misses:
            return [self._others]
        near = sorted(self._misses, key=lambda one: len(_differences(one.payload, self._expected)))
        lines = [f"{len(near)} did not fit" + (", the nearest first:" if len(near) > 1 else ":")]
        for one in near[:_SHOWN]:
            why = "; ".join(_differences(one.payload, self._expected))
            lines.append(_shown(one) + (f": {why}" if why else ""))
        return lines


def publications(
    topic: str | Topic[Any], topics: Mapping[str, Topic[Any]], records: Sequence[Record]
) -> Publications[Any]:
    """Return what was published to a topic. Raises ConfigurationError if nobody declared it."""
    name = topic.name if isinstance(topic, Topic) else topic
    known = topics.get(name)
    if known is None:
        declared = ", ".join(repr(one) for one in sorted(topics)) or "none at all"
        raise ConfigurationError(f"nobody declared a topic {name!r}.{did_you_mean(name, topics)} Declared: {declared}")
    counts: dict[str, int] = {}
    for record in records:
        counts[record.message.topic] = counts.get(record.message.topic, 0) + 1
    counts.pop(name, None)
    elsewhere = ", ".join(f"{other!r} ({count})" for other, count in counts.items())
    others = f"published to other topics: {elsewhere}" if elsewhere else "nothing was published to any other topic"
    messages = [_decoded(one, known) for one in records if one.message.topic == name]
    return Publications(name, messages, others)


def _decoded(record: Record, topic: Topic[Any]) -> PublishedMessage[Any]:
    raw = record.message
    return PublishedMessage(
        id=raw.id,
        topic=raw.topic,
        payload=topic.codec.decode(raw.payload),
        published_at=raw.published_at,
        key=raw.key,
        headers=raw.headers,
        source=raw.source,
        expires_at=raw.expires_at,
        scheduled_for=raw.scheduled_for,
        due_at=record.due_at,
    )


def explain(operator: str, left: object, right: object) -> list[str] | None:
    """Return what pytest shall say of a comparison with payloads that failed; None if it is not ours to explain."""
    if operator != "==":
        return None
    left, right = (one.payloads if isinstance(one, Publications) else one for one in (left, right))
    if isinstance(left, Payloads) and isinstance(right, list | tuple):
        actual, expected = left, list(right)
    elif isinstance(right, Payloads) and isinstance(left, list | tuple):
        actual, expected = right, list(left)
    else:
        return None
    headline = f"what was published to {actual.topic!r} is not what was expected"
    return [headline, *_compared(actual, expected), actual.others]


def _compared(actual: Sequence[Any], expected: Sequence[Any]) -> list[str]:
    missing, surplus = list(expected), []
    for one in actual:
        if one in missing:
            missing.remove(one)
        else:
            surplus.append(one)
    if not missing and not surplus:
        return ["the same payloads, in another order:", *(f"  {_text(one)}" for one in actual)]
    lines: list[str] = []
    for wanted in missing[:_SHOWN]:
        nearest = max(surplus, key=lambda one: _likeness(one, wanted), default=_MISSING)
        if nearest is _MISSING:
            lines.append(f"missing: {_text(wanted)}")
            continue
        surplus.remove(nearest)
        if _plain(nearest) == _plain(wanted):
            kinds = type(nearest).__name__, type(wanted).__name__
            lines.append(f"a {kinds[0]} was published, and a {kinds[1]} of the same content expected: {_text(nearest)}")
        else:
            lines.append("missing (-), and the nearest that was published (+):")
            lines += [f"  {line}" for line in difflib.ndiff(_lines(wanted), _lines(nearest)) if line[0] != "?"]
    lines += [f"and {len(missing) - _SHOWN} more are missing"] if len(missing) > _SHOWN else []
    lines += [f"not expected: {_text(one)}" for one in surplus[:_SHOWN]]
    lines += [f"and {len(surplus) - _SHOWN} more were not expected"] if len(surplus) > _SHOWN else []
    return lines


def _differences(payload: Any, fields: Mapping[str, Any]) -> list[str]:
    differences = []
    for name, wanted in fields.items():
        found = payload.get(name, _MISSING) if isinstance(payload, Mapping) else getattr(payload, name, _MISSING)
        if found is _MISSING:
            differences.append(f"it has no {name}")
        elif found != wanted:
            differences.append(f"{name} is {found!r}, not {wanted!r}")
    return differences


def _likeness(one: Any, other: Any) -> float:
    return difflib.SequenceMatcher(None, _lines(one), _lines(other)).ratio()


def _plain(payload: Any) -> Any:
    return pydantic_core.to_jsonable_python(payload, fallback=repr)


def _lines(payload: Any) -> list[str]:
    """Return the payload in lines: its type, if that is no plain one, and its content."""
    first, *rest = json.dumps(_plain(payload), indent=2, ensure_ascii=False).splitlines()
    name = "" if isinstance(payload, dict | list | str | int | float | None) else type(payload).__name__
    return [f"{name} " * bool(name) + first, *rest]


def _text(payload: Any) -> str:
    return repr(payload)


def _shown(message: PublishedMessage[Any]) -> str:
    due = f"  (delayed until {message.due_at.isoformat()})" if message.due_at else ""
    return _text(message.payload) + due
