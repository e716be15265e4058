"""Versions of a topic's schema: which one a message is of, and the functions that bring it to the current one."""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pubsub_core.errors import ConfigurationError, HandlerTimeout, InvalidPayload, ValidationError
from pubsub_core.message import NO_HEADERS, Message

if TYPE_CHECKING:
    from pubsub_core.codec import Codec

SCHEMA_VERSION = "schema-version"
"""The header that says which version a message's payload is of. Without it, it is of version 1."""

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Upcast:
    """How a payload of one version becomes one of the next. `name` and `where` are those of the user's function."""

    from_version: int
    function: Callable[[Any], Any]
    name: str
    where: str

    def __call__(self, payload: Any) -> Any:
        """Return the payload as the next version has it. Raises InvalidPayload if the function raises."""
        try:
            changed = self.function(payload)
        except HandlerTimeout:
            raise
        except Exception as error:  # noqa: BLE001  # the user's code; its text may quote the payload, so it is not shown
            raise InvalidPayload(f"{self} raised {type(error).__name__}{_line_of(error, self.function)}") from None
        if changed is None and payload is not None:
            raise InvalidPayload(f"{self} returned None: it must return the payload, changed or new")
        return changed

    def __str__(self) -> str:
        """Name and place."""
        return f"the upcast from version {self.from_version}, {self.name} ({self.where}),"


class Versions:
    """The versions of one topic's schema: 1 to `current`, and the upcasts between them.

    Upcasts are added at import time; everything else is safe from any thread.
    """

    def __init__(self, topic: str, current: int = 1) -> None:
        self.topic = topic
        self.current = current
        self._upcasts: dict[int, Upcast] = {}
        self._only_version = NO_HEADERS if current == 1 else MappingProxyType({SCHEMA_VERSION: str(current)})

    def add(self, upcast: Upcast) -> None:
        """Add the way from one version to the next. Raises ConfigurationError if it leads nowhere, or there is one."""
        first = upcast.from_version
        if isinstance(first, bool) or not isinstance(first, int) or first < 1:
            raise ConfigurationError(
                f"from_version={first!r} of {upcast.name} ({upcast.where}): it is a whole number, 1 or more"
            )
        if first >= self.current:
            raise ConfigurationError(
                f"{upcast} leads to version {first + 1} of topic {self.topic!r}, which is at version {self.current}: "
                f"declare it with version={first + 1}"
            )
        other = self._upcasts.get(first)
        if other is not None:
            raise ConfigurationError(
                f"topic {self.topic!r} has an upcast from version {first} already: {other.name} ({other.where}). "
                f"Remove it, or {upcast.name} ({upcast.where})"
            )
        _check_signature(upcast)
        self._upcasts[first] = upcast

    def check(self) -> None:
        """Raise ConfigurationError if there is a version from which no way leads to the current one."""
        missing = [version for version in range(1, self.current) if version not in self._upcasts]
        if missing:
            several = f"versions {', '.join(map(str, missing))}" if len(missing) > 1 else f"version {missing[0]}"
            raise ConfigurationError(
                f"topic {self.topic!r} is at version {self.current}, and has no upcast from {several}: messages that "
                "are still stored could not be read. Say what such a payload is one version later, with "
                f"@topic.upcast(from_version={missing[0]}) on a function from dict to dict"
            )

    def stamped(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers with the version that is published, which is left out if it is 1."""
        if self.current == 1 and SCHEMA_VERSION not in headers:
            return headers
        if not headers:
            return self._only_version
        others = {name: value for name, value in headers.items() if name != SCHEMA_VERSION}
        return MappingProxyType({**others, **self._only_version})

    def decode(self, codec: "Codec[Any]", message: Message[bytes]) -> Any:
        """Return the payload as `codec` reads it, brought from the version that it was published with.

        Raises Undecodable or InvalidPayload, whose text never contains the payload.
        """
        given = message.headers.get(SCHEMA_VERSION)
        version = 1 if given is None else _parsed(given)
        if version == self.current:
            return codec.decode(message.payload)
        if version > self.current:
            return self._newer(codec, message.payload, version)
        return self._older(codec, message.payload, version)

    def _newer(self, codec: "Codec[Any]", encoded: bytes, version: int) -> Any:
        try:
            return codec.decode(encoded)
        except InvalidPayload as error:
            raise InvalidPayload(
                f"the payload is of version {version}, and this application knows topic {self.topic!r} up to version "
                f"{self.current}. Replay it to workers that know version {version}. Read as version {self.current}: "
                f"{error}"
            ) from None

    def _older(self, codec: "Codec[Any]", encoded: bytes, version: int) -> Any:
        from pubsub_core.codec import UntypedJson  # pydantic, which is loaded by now

        plain = UntypedJson()
        payload = plain.decode(encoded)
        for step in range(version, self.current):
            payload = self._upcasts[step](payload)
        last = self._upcasts[self.current - 1]
        try:
            changed = plain.encode(payload)
        except ValidationError as error:
            raise InvalidPayload(f"{last} returned what is not JSON: {error}") from None
        try:
            return codec.decode(changed)
        except InvalidPayload as error:
            raise InvalidPayload(f"after {last} to version {self.current}: {error}") from None


def checked_version(topic: str, version: int | None) -> int:
    """Return the version of a topic; None is 1. Raises ConfigurationError if it is no version."""
    if version is None:
        return 1
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 10**9:
        raise ConfigurationError(f"topic {topic!r} has version={version!r}: it is a whole number, 1 or more")
    return version


def _parsed(given: str) -> int:
    if _VERSION.fullmatch(given) is None:
        raise InvalidPayload(f"the header {SCHEMA_VERSION} is {given[:40]!r}: it is a whole number, 1 or more")
    return int(given)


def _check_signature(upcast: Upcast) -> None:
    function = upcast.function
    if not callable(function):
        raise ConfigurationError(f"an upcast must be a function, not {type(function).__name__}: {function!r}")
    if any(is_of(function) for is_of in _NOT_PLAIN):
        raise ConfigurationError(f"{upcast} is a coroutine or generator function: write it without async and yield")
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        raise ConfigurationError(f"{upcast} must take one argument, the payload: {error}") from None


_NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


def _line_of(error: Exception, function: Callable[..., Any]) -> str:
    """Return " in line 12" for where in the function's file it was raised last."""
    path = getattr(inspect.unwrap(function), "__code__", None)
    lines = [
        one.lineno for one in traceback.extract_tb(error.__traceback__) if path and one.filename == path.co_filename
    ]
    return f" in line {lines[-1]}" if lines else ""
