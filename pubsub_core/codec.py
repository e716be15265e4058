"""Between payloads and bytes: JSON by pydantic, NaN and infinities refused both ways."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Generic, Protocol, TypeVar

import pydantic
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from pubsub_core.errors import ConfigurationError, InvalidPayload, Undecodable, ValidationError

T = TypeVar("T")

# A number too large for a float is read as an infinity. Every digit becomes "0", so that a plain search finds one.
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")

_NOT_FINITE = "NaN and infinities are not JSON"


class Codec(Protocol[T]):
    """Turns the payloads of one topic, or of one handler, into bytes and back. Thread-safe."""

    def encode(self, payload: T) -> bytes:
        """Return the bytes. Raises ValidationError if `payload` is not of this codec's type or cannot be written."""

    def decode(self, encoded: bytes) -> T:
        """Return the payload. Raises Undecodable or InvalidPayload, whose text never contains the payload."""


class UntypedJson:
    """Any JSON value: what the bytes say, as dict, list, str, int, float, bool or None."""

    def check(self) -> None:
        """Do nothing: there is no type that could be wrong."""

    def encode(self, payload: Any) -> bytes:
        """Return compact JSON. Models, dataclasses, UUIDs, datetimes and the like are written by pydantic."""
        try:
            encoded = pydantic_core.to_json(payload, inf_nan_mode="constants")
        except pydantic_core.PydanticSerializationError as error:
            raise ValidationError(f"the payload cannot be written as JSON: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"the payload cannot be written as JSON: {type(error).__name__}") from None
        if _may_hide_non_finite(encoded) and _has_non_finite(payload):
            raise ValidationError(f"the payload cannot be written as JSON: {_NOT_FINITE}")
        return encoded

    def decode(self, encoded: bytes) -> Any:
        """Return the JSON value."""
        try:
            value = pydantic_core.from_json(encoded, allow_inf_nan=False)
        except (ValueError, RecursionError) as error:
            raise Undecodable(f"the payload is not JSON: {error}") from None
        if _may_overflow(encoded) and _has_non_finite(value):  # NaN and Infinity as such are refused already
            raise Undecodable(f"the payload is not JSON: {_NOT_FINITE}")
        return value


class TypedJson(Generic[T]):
    """JSON of one type: a pydantic model, or whatever else a `TypeAdapter` takes.

    Writers are strict: the payload is of the type, or plain JSON data that fits it without conversion. Readers are
    lenient: pydantic's usual conversions, and unknown fields are ignored. The adapter is built at first use.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self._is_model = isinstance(schema, type) and issubclass(schema, BaseModel)
        self._built: TypeAdapter[T] | None = None

    @property
    def adapter(self) -> TypeAdapter[T]:
        """The pydantic adapter of the type."""
        if self._built is None:
            self._built = TypeAdapter(self.schema)
        return self._built

    def check(self, *, may_come_later: bool = False) -> None:
        """Raise ConfigurationError if pydantic does not know how to read the type.

        If it `may_come_later`, a name in it that is not defined yet is no reason.
        """
        try:
            self.adapter.validate_json(b"")
        except pydantic.ValidationError:
            return  # nothing is no JSON for any type; that it could be said is what counts
        except (pydantic.PydanticUserError, pydantic.PydanticUndefinedAnnotation) as error:
            is_undefined = error.code in ("class-not-fully-defined", "undefined-annotation")
            if not (may_come_later and is_undefined):
                raise ConfigurationError(
                    f"{type_name(self.schema)} cannot be the type of a payload: {error.message.splitlines()[0]}"
                ) from None

    def encode(self, payload: T) -> bytes:
        """Return compact JSON of a payload that fits the type."""
        adapter = self.adapter
        try:
            if not (self._is_model and type(payload) is self.schema):
                payload = self._validated(adapter, payload)
            encoded = adapter.dump_json(payload, warnings="error")
        except pydantic.ValidationError as error:
            problems = problems_of(error)
            raise ValidationError(
                f"the payload does not fit {type_name(self.schema)}: {_in_words(problems)}", problems
            ) from None
        except pydantic_core.PydanticSerializationError:
            raise ValidationError(
                f"the payload does not fit {type_name(self.schema)}: it holds values that its type does not allow"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"the payload cannot be written as JSON: {type(error).__name__}") from None
        if _may_hide_non_finite(encoded) and _has_non_finite(payload):
            raise ValidationError(f"the payload cannot be written as JSON: {_NOT_FINITE}")
        return encoded

    def _validated(self, adapter: TypeAdapter[T], payload: T) -> T:
        if isinstance(payload, Mapping) and (self._is_model or is_dataclass(self.schema)):
            # Plain data for a model: judged as a reader would see it, so that a date may be written as text.
            return adapter.validate_json(UntypedJson().encode(payload), strict=True)
        return adapter.validate_python(payload, strict=True)

    def decode(self, encoded: bytes) -> T:
        """Return the payload, validated."""
        if _may_read_as_non_finite(encoded):
            UntypedJson().decode(encoded)
        try:
            return self.adapter.validate_json(encoded)
        except pydantic.ValidationError as error:
            problems = problems_of(error)
            if any(kind == "json_invalid" for kind in _kinds(error)):
                raise Undecodable(f"the payload is not JSON: {_in_words(problems)}") from None
            raise InvalidPayload(f"the payload does not fit {type_name(self.schema)}: {_in_words(problems)}") from None
        except RecursionError:
            raise Undecodable("the payload is nested too deep") from None


def codec_for(schema: Any) -> UntypedJson | TypedJson[Any]:
    """Return the codec for a type; None and Any stand for any JSON value. Raises ConfigurationError as `check` does."""
    if schema is None or schema is Any:
        return UntypedJson()
    codec = TypedJson[Any](schema)
    codec.check(may_come_later=True)
    return codec


def type_name(schema: Any) -> str:
    """Return the short name of a type for people to read."""
    return getattr(schema, "__name__", None) or str(schema).replace("typing.", "")


def problems_of(error: pydantic.ValidationError) -> tuple[tuple[str, str], ...]:
    """Return (location, problem) pairs, without the offending values."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return tuple((".".join(str(part) for part in one["loc"]), one["msg"]) for one in details)


def _kinds(error: pydantic.ValidationError) -> list[str]:
    return [one["type"] for one in error.errors(include_url=False, include_context=False, include_input=False)]


def _in_words(problems: tuple[tuple[str, str], ...]) -> str:
    shown = [f"{where}: {what}" if where else what for where, what in problems[:5]]
    return "; ".join(shown) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def _may_hide_non_finite(written: bytes) -> bool:
    """Whether a NaN or an infinity may have been behind the JSON: pydantic writes "null" for some of them."""
    return b"null" in written or b"NaN" in written or b"Infinity" in written


def _may_read_as_non_finite(encoded: bytes) -> bool:
    return b"NaN" in encoded or b"Infinity" in encoded or _may_overflow(encoded)


def _may_overflow(encoded: bytes) -> bool:
    plain = encoded.translate(_DIGITS)
    return b"e000" in plain or b"e+000" in plain or (len(plain) >= 300 and _MANY_ZEROS in plain)


_MANY_ZEROS = b"0" * 300


def _has_non_finite(value: Any) -> bool:
    return _any_value(value, lambda one: isinstance(one, float) and not math.isfinite(one))


def _any_value(root: Any, is_wanted: Callable[[Any], bool]) -> bool:
    """Walk containers, models and dataclasses without recursion; each object once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if is_wanted(value):
            return True
        children = _children(value)
        if children and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(children)
    return False


def _children(value: Any) -> list[Any]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values()]
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name, None) for one in fields(value)]
    return []
