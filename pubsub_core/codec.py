"""Between payloads and bytes: JSON by pydantic. What a reader could not read is refused when it is written.

That is NaN and infinities, more levels and longer numbers than JSON readers take, two keys of a dict that are the same
text, bytes that are not UTF-8, and secrets, of which pydantic writes asterisks. Whether a type can read what it writes
shows with the first payload of it. A field is written under its alias, if it has one, as it is read.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Protocol, TypeVar, Union, get_args, get_origin

import pydantic
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from pubsub_core.errors import ConfigurationError, InvalidPayload, Undecodable, ValidationError

T = TypeVar("T")

# A number too large for a float is read as an infinity. Every digit becomes "0", so that a plain search finds one.
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")

# What pydantic reads: so many levels (it writes some more), and so many digits of an integer (it writes any number).
_READABLE_LEVELS = 200
_SURELY_READABLE = 2 * _READABLE_LEVELS  # bytes: what is no longer closes every level that it opens
_MORE_DIGITS_THAN_READABLE = b"0" * 4301

_NOT_FINITE = "NaN and infinities are not JSON"
_SAME_KEYS = "a dict in it has two keys that are the same text in JSON, so that a reader would lose one"

# What pydantic writes in place of a secret, and the byte that tells that it may have.
_MASK = b'"**********"'
_STAR = ord("*")

_MASKED = (
    "it has a secret (SecretStr, SecretBytes), of which asterisks would be written. Send a reference to it; or, if all "
    "who can read the topic may know it, give the field a @field_serializer that returns get_secret_value()"
)

# By the kind of pydantic's error: why a type writes what it cannot read.
_REMEDIES = {
    "missing": "A field is written under the name that it is read by, and not left out: alias= in place of "
    "validation_alias= or serialization_alias= alone, and no exclude=True without a default",
    "extra_forbidden": 'A @computed_field is written too, which extra="forbid" keeps from being read',
    "json_type": "What a Json[...] holds is not written as text: annotate the field with the type that it holds",
}
_REMEDY = "It must be written as what it is read from: give it a serializer and a validator that fit, or another type"

_BYTES_AS_BASE64 = (
    "it has bytes that are not UTF-8. Keep them in a model with "
    'model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'
)


# What pydantic raises for a type that it cannot read, or not yet.
Unusable = pydantic.PydanticUserError | pydantic.PydanticUndefinedAnnotation
_UNUSABLE = get_args(Unusable)


class Codec(Protocol[T]):
    """Turns the payloads of one topic, or of one handler, into bytes and back. Thread-safe."""

    def encode(self, payload: T) -> bytes:
        """Return the bytes. Raises ValidationError if `payload` is not of this codec's type or cannot be written."""

    def decode(self, encoded: bytes) -> T:
        """Return the payload. Raises Undecodable or InvalidPayload, whose text never contains the payload."""


class UntypedJson:
    """Any JSON value: what the bytes say, as dict, list, str, int, float, bool or None.

    Of two equal keys in an object the last one counts.
    """

    schema: None = None

    def check(self) -> None:
        """Do nothing: there is no type that could be wrong."""

    def encode(self, payload: Any) -> bytes:
        """Return compact JSON. Models, dataclasses, UUIDs, datetimes and the like are written by pydantic."""
        try:
            encoded = pydantic_core.to_json(payload, inf_nan_mode="constants")
        except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
            raise ValidationError(f"the payload cannot be written as JSON: {_why_unwritable(error)}") from None
        if _has_words(encoded) or not _is_plain(payload):
            _refuse_what_is_lost(payload, encoded)
        if _STAR in encoded:
            _refuse_masked(payload, encoded)
        if len(encoded) > _SURELY_READABLE:
            _refuse_unreadable(encoded)
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
    lenient: pydantic's usual conversions, and unknown fields are ignored. The adapter is built at first use, and the
    first payload is read back, to see whether the type can.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self._is_model = isinstance(schema, type) and issubclass(schema, BaseModel)
        self._built: TypeAdapter[T] | None = None
        self._may_have_same_keys = True
        self._can_read_itself = False

    @property
    def adapter(self) -> TypeAdapter[T]:
        """The pydantic adapter of the type."""
        if self._built is None:
            built = TypeAdapter[T](self.schema)
            self._may_have_same_keys = _allows_same_keys(built)
            self._built = built
        return self._built

    def check(self, *, may_come_later: bool = False) -> None:
        """Raise ConfigurationError if pydantic does not know how to read the type.

        If it `may_come_later`, a name in it that is not defined yet is no reason.
        """
        try:
            self.adapter.validate_json(b"")
        except pydantic.ValidationError:
            return  # nothing is no JSON for any type; that it could be said is what counts
        except _UNUSABLE as error:
            if not (may_come_later and _is_undefined(error)):
                raise self._unusable(error) from None

    def _unusable(self, error: Unusable) -> ConfigurationError:
        called = self.schema if get_args(self.schema) else type_name(self.schema)
        why = (
            "a name in it is not defined. Define or import that where the type is written; a model that was written "
            "before it needs model_rebuild()"
            if _is_undefined(error)
            else error.message.splitlines()[0]
        )
        return ConfigurationError(f"{called} cannot be the type of a payload: {why}")

    def encode(self, payload: T) -> bytes:
        """Return compact JSON of a payload that fits the type. Raises ConfigurationError if that is not defined yet."""
        try:
            adapter = self.adapter
            if not (self._is_model and type(payload) is self.schema):
                payload = self._validated(adapter, payload)
            encoded: bytes = adapter.serializer.to_json(payload, warnings="error", by_alias=True)  # as `dump_json` does
        except pydantic.ValidationError as error:
            problems = problems_of(error)
            raise ValidationError(
                f"the payload does not fit {type_name(self.schema)}: {_in_words(problems)}", problems
            ) from None
        except _UNUSABLE as error:
            raise self._unusable(error) from None
        except pydantic_core.PydanticSerializationError as error:
            known = _known_reason(error)
            if known is not None:
                raise ValidationError(f"the payload cannot be written as JSON: {known}") from None
            raise ValidationError(
                f"the payload does not fit {type_name(self.schema)}: it holds values that its type does not allow"
            ) from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise ValidationError(f"the payload cannot be written as JSON: {_why_unwritable(error)}") from None
        if _may_hide_non_finite(encoded) and _has_non_finite(payload):
            raise ValidationError(f"the payload cannot be written as JSON: {_NOT_FINITE}")
        if self._may_have_same_keys and _has_same_keys(payload):
            raise ValidationError(f"the payload cannot be written as JSON: {_SAME_KEYS}")
        if _STAR in encoded:
            _refuse_masked(payload, encoded)
        if len(encoded) > _SURELY_READABLE:
            _refuse_unreadable(encoded)
        if not self._can_read_itself:
            self._read_back(encoded)
        return encoded

    def _read_back(self, encoded: bytes) -> None:
        """Raise ValidationError if the type cannot read what it wrote; else note that it can."""
        try:
            self.adapter.validate_json(encoded)
        except pydantic.ValidationError as error:
            problems = problems_of(error)
            remedies = dict.fromkeys(_REMEDIES.get(kind, _REMEDY) for kind in _kinds(error))  # each once, in order
            raise ValidationError(
                f"a reader could not read the payload as {type_name(self.schema)}: {_in_words(problems)}. "
                f"{'. '.join(remedies)}",
                problems,
            ) from None
        self._can_read_itself = True

    def _validated(self, adapter: TypeAdapter[T], payload: T) -> T:
        is_plain_data = isinstance(payload, Mapping) and (self._is_model or is_dataclass(self.schema))
        if is_plain_data and not _any_value(payload, lambda one: isinstance(one, bytes | bytearray)):
            # Plain data for a model: judged as a reader would see it, so that a date may be written as text. JSON has
            # no bytes, though: how they are written is for the model to say.
            return adapter.validate_json(UntypedJson().encode(payload), strict=True)
        return adapter.validate_python(payload, strict=True)

    def decode(self, encoded: bytes) -> T:
        """Return the payload, validated."""
        is_suspicious = _may_read_as_non_finite(encoded)
        if is_suspicious:
            UntypedJson().decode(encoded)
        try:
            payload = self.adapter.validate_json(encoded)
        except pydantic.ValidationError as error:
            problems = problems_of(error)
            if any(kind == "json_invalid" for kind in _kinds(error)):
                raise Undecodable(f"the payload is not JSON: {_in_words(problems)}") from None
            raise InvalidPayload(f"the payload does not fit {type_name(self.schema)}: {_in_words(problems)}") from None
        except RecursionError:
            raise Undecodable("the payload is nested too deep") from None
        if is_suspicious and _has_non_finite(payload):  # an integer of hundreds of digits, where a float is due
            raise Undecodable(f"the payload has a number that no float can hold: {_NOT_FINITE}")
        return payload


def codec_for(schema: Any) -> UntypedJson | TypedJson[Any]:
    """Return the codec for a type; None and Any stand for any JSON value. Raises ConfigurationError as `check` does."""
    if schema is None or schema is Any:
        return UntypedJson()
    if isinstance(schema, str):
        raise ConfigurationError(f"{schema!r} cannot be the type of a payload: it is a text. Give the type itself")
    codec = TypedJson[Any](schema)
    codec.check(may_come_later=True)
    return codec


def _is_undefined(error: Unusable) -> bool:
    return error.code in ("class-not-fully-defined", "undefined-annotation")


def type_name(schema: Any) -> str:
    """Return the short name of a type for people to read."""
    origin = get_origin(schema)
    if origin is Annotated:
        return type_name(get_args(schema)[0])
    if origin in (Union, UnionType):
        return " | ".join("None" if one is NoneType else type_name(one) for one in get_args(schema))
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


def _why_unwritable(error: Exception) -> str:
    """Return why a payload without a type cannot be written."""
    known = _known_reason(error)
    if known is not None:
        return known
    return str(error) if isinstance(error, pydantic_core.PydanticSerializationError) else type(error).__name__


def _known_reason(error: Exception) -> str | None:
    """Return what an error of pydantic's means, if it is about how JSON is written; None if it is about a value."""
    text = str(error)
    if not text.startswith("Error serializing to JSON:"):
        return None
    if "invalid utf-8 sequence" in text:
        return _BYTES_AS_BASE64
    if "surrogates not allowed" in text:
        return "it has text with half of a surrogate pair, which no UTF-8 can say"
    if "depth exceeded" in text or "Circular reference" in text:
        return "it is nested too deep, or holds itself"
    return None


def _refuse_what_is_lost(payload: Any, encoded: bytes) -> None:
    if _may_hide_non_finite(encoded) and _has_non_finite(payload):
        raise ValidationError(f"the payload cannot be written as JSON: {_NOT_FINITE}")
    if _has_same_keys(payload):
        raise ValidationError(f"the payload cannot be written as JSON: {_SAME_KEYS}")


def _refuse_masked(payload: Any, encoded: bytes) -> None:
    """Raise ValidationError if asterisks stand for a secret. Only what holds both is refused."""
    if _MASK in encoded and _any_value(payload, _is_secret):
        raise ValidationError(f"the payload cannot be written as JSON: {_MASKED}")


def _is_secret(value: Any) -> bool:
    return hasattr(type(value), "get_secret_value") and bool(value.get_secret_value())  # an empty one is not masked


def _refuse_unreadable(encoded: bytes) -> None:
    """Raise ValidationError for JSON that no reader could read. Only what looks like it is tried."""
    size = len(encoded)
    is_deep = size > _SURELY_READABLE and encoded.count(b"[") + encoded.count(b"{") > _READABLE_LEVELS
    is_long = size >= len(_MORE_DIGITS_THAN_READABLE) and _MORE_DIGITS_THAN_READABLE in encoded.translate(_DIGITS)
    if is_deep or is_long:
        try:
            pydantic_core.from_json(encoded)
        except ValueError as error:
            more = "digits of an integer" if "number out of range" in str(error) else "levels"
            raise ValidationError(
                f"the payload cannot be written as JSON: it has more {more} than a reader takes"
            ) from None


_SCALARS: Collection[type] = frozenset({str, int, float, bool, NoneType})


def _is_plain(value: Any) -> bool:
    """Whether it is dicts with keys of text, lists and scalars, and nothing else. What was written is not too deep."""
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    elif kind is not list:
        return kind in _SCALARS
    for one in value:  # noqa: SIM110  # all() takes twice as long, and this is done at every publish
        if type(one) not in _SCALARS and not _is_plain(one):
            return False
    return True


def _has_same_keys(value: Any) -> bool:
    """Whether a dict in it would be written with a key twice. What was written is not too deep, nor holds itself."""
    if _is_plain(value):
        return False
    if isinstance(value, Mapping):
        return _writes_a_key_twice(value) or any(map(_has_same_keys, value.values()))
    return any(map(_has_same_keys, _children(value)))


def _writes_a_key_twice(value: Mapping[Any, Any]) -> bool:
    if all(type(key) is str for key in value):
        return False
    return len({next(iter(pydantic_core.to_jsonable_python({key: None}))) for key in value}) < len(value)


def _allows_same_keys(adapter: TypeAdapter[Any]) -> bool:
    """Whether payloads of the type may have dicts whose keys are of several types."""
    return any(
        part.get("type") == "any"
        or (part.get("type") == "dict" and part.get("keys_schema", {}).get("type", "any") in _MIXED)
        for part in parts_of(adapter.core_schema)
    )


def parts_of(core_schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every dict in a schema of pydantic's core, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [core_schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)


_MIXED = ("any", "union", "tagged-union", "nullable", "enum", "literal", "definition-ref")


def _may_hide_non_finite(written: bytes) -> bool:
    """Whether a NaN or an infinity may have been behind the JSON: pydantic writes "null" for those of models, and the
    words for all others.
    """
    # `in` takes a third longer than `find`, but looks for a byte in no time.
    return written.find(b"null") >= 0 or ((_N in written or _I in written) and _has_words(written))


def _may_read_as_non_finite(encoded: bytes) -> bool:
    return _has_words(encoded) or _may_overflow(encoded)


def _has_words(encoded: bytes) -> bool:
    # To look for a single byte takes a tenth of the time of looking for a word.
    return (_N in encoded and b"NaN" in encoded) or (_I in encoded and b"Infinity" in encoded)


_N, _I = b"NI"


def _may_overflow(encoded: bytes) -> bool:
    plain = encoded.translate(_DIGITS, b"+")
    return plain.find(b"0e000") >= 0 or (len(plain) >= 300 and _MANY_ZEROS in plain)


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
