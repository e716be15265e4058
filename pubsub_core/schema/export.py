"""The JSON Schemas of topics: made from their types, and kept in files, one per topic and version."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaWarningKind

from pubsub_core.codec import TypedJson, UntypedJson, type_name
from pubsub_core.errors import ConfigurationError
from pubsub_core.schema.compatibility import Described

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaMode
    from pydantic_core import core_schema

    from pubsub_core.pubsub import PubSub
    from pubsub_core.topic import Topic

Document = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

READ = "x-read"
"""Where a document has the schema of what readers accept, if that is not just what is written."""

_FILE = re.compile(r"(?P<topic>.+)\.v(?P<version>[1-9][0-9]*)\.json")


class JsonSchemas(GenerateJsonSchema):
    """What pydantic says of a type, and what it leaves out: bounds of dates and decimals, and the keys of dicts.

    Such bounds are under `x-constraints`, keys that are not text under `x-keys`. What is written has every field that
    is ever written: those with a default too.
    """

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def field_is_required(
        self,
        field: "core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField",
        total: bool,
    ) -> bool:
        """Say of a field that is written whether it always is; of one that is read, whether it must be there."""
        if self.mode == "validation" or field["type"] == "typed-dict-field":
            return super().field_is_required(field, total)
        return "serialization_exclude_if" not in field

    def ser_schema(self, schema: Any) -> Any:
        """Mark what is written by a function of the user's that does not say what it returns."""
        described = super().ser_schema(schema)
        if described is not None or schema["type"] not in ("function-plain", "function-wrap"):
            return described
        is_pydantics = getattr(schema["function"], "__module__", "").partition(".")[0] == "pydantic"
        return None if is_pydantics else {"x-written-by": "a function without a return annotation"}

    def decimal_schema(self, schema: "core_schema.DecimalSchema") -> Document:
        """Tell a decimal in text from other text."""
        described = super().decimal_schema(schema)
        kinds: list[Document] = described.get("anyOf", [described])
        kinds = [{"format": "decimal", **one} if one.get("type") == "string" else one for one in kinds]
        kinds = [_with_constraints(one, schema) for one in kinds]
        return {"anyOf": kinds} if "anyOf" in described else kinds[0]

    def date_schema(self, schema: "core_schema.DateSchema") -> Document:
        """Say the bounds of a date."""
        return _with_constraints(super().date_schema(schema), schema)

    def datetime_schema(self, schema: "core_schema.DatetimeSchema") -> Document:
        """Say the bounds of a datetime."""
        return _with_constraints(super().datetime_schema(schema), schema)

    def time_schema(self, schema: "core_schema.TimeSchema") -> Document:
        """Say the bounds of a time."""
        return _with_constraints(super().time_schema(schema), schema)

    def timedelta_schema(self, schema: "core_schema.TimedeltaSchema") -> Document:
        """Say the bounds of a timedelta."""
        return _with_constraints(super().timedelta_schema(schema), schema)

    def dict_schema(self, schema: "core_schema.DictSchema") -> Document:
        """Say what the keys are, if they are not any text."""
        described = super().dict_schema(schema)
        keys = schema.get("keys_schema", {"type": "any"})
        if keys["type"] not in ("str", "any") and "propertyNames" not in described:
            described["x-keys"] = self.generate_inner(keys)
        return described


_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "max_digits", "decimal_places", "now_op", "tz_constraint")


def _with_constraints(described: Document, schema: Mapping[str, Any]) -> Document:
    bounds = {name: str(schema[name]) for name in _BOUNDS if schema.get(name) is not None}
    return {**described, "x-constraints": bounds} if bounds else described


def has_schema(topic: "Topic[Any]") -> bool:
    """Whether a topic says what its payloads are."""
    return isinstance(topic.codec, TypedJson)


def document(topic: "Topic[Any]") -> Document:
    """Return the JSON Schema of what is written to a topic, with what its readers accept if that is not the same.

    A topic without a schema has one that fits everything. Raises ConfigurationError for a type that JSON Schema has no
    words for.
    """
    about = f"Topic {topic.name}, version {topic.version}: what is published."
    try:
        schemas = document_of(topic.codec)
    except ConfigurationError as error:
        raise ConfigurationError(f"topic {topic.name!r}: {error}") from None
    if READ in schemas:
        about += f" What readers accept is under {READ}."
    return {"$schema": DIALECT, "$comment": about, **schemas}


def document_of(codec: UntypedJson | TypedJson[Any]) -> Document:
    """Return what a codec writes as JSON Schema, and what it reads, under `READ`, if that is not the same."""
    if not isinstance(codec, TypedJson):
        return {}
    written, read = _made(codec, "serialization"), _made(codec, "validation")
    return written if written == read else {**written, READ: _made(codec, "validation", f"#/{READ}/$defs/{{model}}")}


def _made(codec: TypedJson[Any], mode: "JsonSchemaMode", references: str = DEFAULT_REF_TEMPLATE) -> Document:
    codec.check()
    try:
        return codec.adapter.json_schema(mode=mode, schema_generator=JsonSchemas, ref_template=references)
    except pydantic.PydanticUserError as error:
        raise ConfigurationError(
            f"{type_name(codec.schema)} cannot be written as JSON Schema: {error.message.splitlines()[0]}"
        ) from None


def written(of: Document) -> Described:
    """Return what is written, of a document."""
    return Described(of, of)


def read(of: Document) -> Described:
    """Return what readers accept, of a document."""
    return Described(of.get(READ, of), of)


def described_topics(pubsub: "PubSub") -> Sequence["Topic[Any]"]:
    """Return the topics that have a schema, by name."""
    return sorted((topic for topic in pubsub.topics if has_schema(topic)), key=lambda topic: topic.name)


class Directory:
    """The files of a directory: `<topic>.v<version>.json`. Nothing is created before something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, topic: str, version: int) -> Path:
        """Return the path of a document, whether it is there or not."""
        return self.path / f"{topic}.v{version}.json"

    def versions(self, topic: str) -> Sequence[int]:
        """Return the versions of a topic that there are files of, in order."""
        return sorted(version for name, version in self.all() if name == topic)

    def all(self) -> Sequence[tuple[str, int]]:
        """Return topic and version of every file."""
        if not self.path.is_dir():
            return ()
        names = [_FILE.fullmatch(path.name) for path in sorted(self.path.iterdir())]
        return [(name["topic"], int(name["version"])) for name in names if name]

    def load(self, topic: str, version: int) -> Document:
        """Return what a file says. Raises ConfigurationError if it is not a JSON object."""
        path = self.file(topic, version)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path} is not JSON: {error}. Restore it, as from version control") from None
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        if not isinstance(found, dict):
            raise ConfigurationError(f"{path} is not a JSON Schema: it is a {type(found).__name__}. Restore it")
        return found

    def save(self, topic: str, version: int, content: Document) -> bool:
        """Write a file, and return whether that changed it. The same content is always the same text."""
        path, text = self.file(topic, version), json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if path.is_file() and path.read_bytes() == text.encode():
            return False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
        return True
