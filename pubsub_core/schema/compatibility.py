"""Whether what one JSON Schema describes can be read by what another describes, and if not, why.

Of JSON Schema it knows what pydantic writes. Each rule is sound: if no problem is found, every value that fits the
written schema fits the read one. What it does not know is a problem too, unless both schemas say the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

Schema = Mapping[str, Any]

CANNOT_TELL = "cannot tell"

_ABOUT = ("$schema", "$id", "$comment", "title", "description", "default", "examples", "readOnly", "writeOnly")
_ANNOTATIONS = frozenset((*_ABOUT, "$defs", "x-read", "deprecated"))
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_OBJECTS = ("properties", "required", "additionalProperties", "patternProperties", "propertyNames")
_UNDERSTOOD: Mapping[str, tuple[str, ...]] = {
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": (*_OF_OBJECTS, "minProperties", "maxProperties"),
}
_NOTHING: Schema = {"not": {}}


@dataclass(frozen=True, slots=True)
class Problem:
    """One way in which a written value may not be readable. `path` is the field, "" the payload itself.

    Unless it `is_certain`, the schemas differ in a way that this module does not understand.
    """

    path: str
    rule: str
    what: str

    @property
    def is_certain(self) -> bool:
        """Whether there are values that cannot be read."""
        return self.rule != CANNOT_TELL

    def __str__(self) -> str:
        """Field, rule and reason."""
        return f"{self.path or 'the payload'}: {self.what} ({self.rule})"


@dataclass(frozen=True, slots=True)
class Described:
    """A schema, and the document that its references point into."""

    schema: Schema
    document: Schema

    def resolved(self, schema: Any) -> Schema:
        """Return a schema with its references followed, and without what is only said of it."""
        if isinstance(schema, bool):
            return {} if schema else _NOTHING
        seen = set()
        while "$ref" in schema or len(schema.get("allOf", ())) == 1:
            reference = schema.get("$ref")
            target = schema["allOf"][0] if reference is None else self.target(reference)
            if reference in seen:
                return _NOTHING  # it is defined as itself
            seen.add(reference)
            beside = {key: value for key, value in schema.items() if key not in _ANNOTATIONS | {"$ref", "allOf"}}
            schema = {**target, **beside} if beside else target
        return schema  # type: ignore[no-any-return]  # parsed JSON

    def target(self, reference: str) -> Any:
        """Return what a reference leads to."""
        target: Any = self.document
        for part in reference.removeprefix("#").split("/")[1:]:
            target = target[part.replace("~1", "/").replace("~0", "~")]
        return target


def problems(written: Described, read: Described) -> list[Problem]:
    """Return why values of `written` may not be readable by `read`; nothing if all are."""
    found = _Comparison(written, read).compare(written.schema, read.schema, "")
    return list(dict.fromkeys(found))


class _Comparison:
    """One comparison, with what it has taken on: what is being compared already holds, until a problem is found."""

    def __init__(self, written: Described, read: Described) -> None:
        self._written = written
        self._read = read
        self._under_way: set[tuple[int, int]] = set()

    def compare(self, written: Any, read: Any, path: str) -> list[Problem]:
        """Compare two schemas of any kind: each alternative of the written one with all of the read one."""
        written, read = self._written.resolved(written), self._read.resolved(read)
        pair = (id(written), id(read))
        if pair in self._under_way:
            return []
        self._under_way.add(pair)
        try:
            if not _asserted(read) or self._says_the_same(_asserted(written), _asserted(read)):
                return []
            wanted = list(_alternatives(self._read, read))
            return [
                problem
                for one in _alternatives(self._written, written, is_written=True)
                for problem in self._find(one, wanted, path)
            ]
        finally:
            self._under_way.discard(pair)

    def _find(self, written: Schema, wanted: Sequence[Schema], path: str) -> list[Problem]:
        """Compare one alternative with those that are read: it must fit one of them."""
        tried = [self._with(written, one, path) for one in wanted]
        if any(not found for found in tried):
            return []
        near = [found for found, one in zip(tried, wanted, strict=True) if _kind(one) == _kind(written)]
        if len(near) == 1:
            return near[0]
        is_certain = all(problem.is_certain for found in tried for problem in found)
        rule = ("value" if near else "type") if is_certain else CANNOT_TELL
        return [Problem(path, rule, f"{_in_words(written)} is written, and only {_all_in_words(wanted)} is read")]

    def _with(  # noqa: PLR0911  # a rule each, in the order in which they decide
        self, written: Schema, read: Schema, path: str
    ) -> list[Problem]:
        """Compare one alternative with one."""
        if not _asserted(read) or self._says_the_same(_asserted(written), _asserted(read)):
            return []
        if "oneOf" in read:
            return self._by_tag(written, read, path)
        kind, wanted = _kind(written), _kind(read)
        if kind == "any":
            return [Problem(path, CANNOT_TELL, f"any value may be written, and only {_in_words(read)} is read")]
        if kind != wanted and (kind, wanted) != ("integer", "number") and wanted != "any":
            return [Problem(path, "type", f"{_in_words(written)} is written, and {_in_words(read)} is read")]
        strange = _strange(written), _strange(read)
        if strange != ({}, {}) and not self._says_the_same(*strange):
            names = ", ".join(sorted({**strange[0], **strange[1]}))
            return [Problem(path, CANNOT_TELL, f"the schemas differ in {names}, which is not understood")]
        if "const" in written:
            return self._constant(written["const"], read, path)
        if "const" in read:
            return [Problem(path, "value", f"{_in_words(written)} is written, and only {_in_words(read)} is read")]
        return list(self._rules(wanted)(written, read, path))

    def _rules(self, kind: str) -> Callable[[Schema, Schema, str], Iterable[Problem]]:
        """Return what compares two schemas of a kind."""
        if kind in ("integer", "number"):
            return _numbers
        others = {"string": _strings, "array": self._arrays, "object": self._objects}
        return others.get(kind, lambda *_: ())

    def _says_the_same(self, written: Schema, read: Schema) -> bool:
        """Whether both say the same in the same words, those included that they refer to."""
        words, others = json.dumps(written, sort_keys=True), json.dumps(read, sort_keys=True)
        if words != others or '"$ref"' not in words:
            return words == others
        return _spelled_out(self._written, written, ()) == _spelled_out(self._read, read, ())

    def _by_tag(self, written: Schema, read: Schema, path: str) -> list[Problem]:
        """Compare with a discriminated union: the written tag says with which of its members."""
        said = read.get("discriminator", {})
        name, mapping = said.get("propertyName"), said.get("mapping")
        if name is None or mapping is None or _strange(read).keys() - {"oneOf", "discriminator"}:
            return [Problem(path, CANNOT_TELL, "it is a union that the schema does not say how to tell apart")]
        if _kind(written) != "object":
            return [Problem(path, "type", f"{_in_words(written)} is written, and an object with {name!r} is read")]
        at = f"{path}.{name}".lstrip(".")
        tags = _constants(self._written.resolved(written.get("properties", {}).get(name, True)))
        if tags is None:
            return [Problem(at, "value", f"any value may be written, and only {_values(mapping)} is read")]
        if name not in written.get("required", ()):
            return [Problem(at, "required", "it may be missing, and readers tell by it what the rest is")]
        found = []
        for tag in tags:
            if str(tag) not in mapping:
                found.append(Problem(at, "value", f"{tag!r} is written, and readers do not know it"))
                continue
            tagged = {**written, "properties": {**written["properties"], name: {"const": tag}}}
            member = {"$ref": mapping[str(tag)]}
            found += self._find(tagged, list(_alternatives(self._read, member)), f"{path}({name}={tag})")
        return found

    def _constant(self, value: Any, read: Schema, path: str) -> list[Problem]:
        """Compare one value with a schema."""
        if "const" in read:
            if _same(value, read["const"]):
                return []
            return [Problem(path, "value", f"{value!r} is written, and readers do not know it")]
        if isinstance(value, str) and ("pattern" in read or "format" in read):
            return [Problem(path, CANNOT_TELL, f"{value!r} is written, and only {_in_words(read)} is read")]
        exact: Schema = {"type": _kind({"const": value})}
        if isinstance(value, str):
            exact = {**exact, "minLength": len(value), "maxLength": len(value)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            step = value or read.get("multipleOf", 1)  # 0 is a multiple of everything
            exact = {**exact, "minimum": value, "maximum": value, "multipleOf": step}
        return [
            replace(one, what=f"{value!r} is written, and only {_in_words(read)} is read")
            for one in self._rules(_kind(read))(exact, read, path)
        ]

    def _arrays(self, written: Schema, read: Schema, path: str) -> Iterator[Problem]:
        most = written.get("maxItems")
        bounds = _Counts(written.get("minItems", 0), most), _Counts(read.get("minItems", 0), read.get("maxItems"))
        yield from _counted(*bounds, "Items", path)
        if read.get("uniqueItems") and not written.get("uniqueItems") and (most is None or most > 1):
            yield Problem(path, "uniqueItems", "an item may be there twice, and readers take it once")
        first, wanted = written.get("prefixItems", []), read.get("prefixItems", [])
        singled_out = max(len(first), len(wanted))
        for at in range(singled_out if most is None else min(singled_out, most)):
            one = first[at] if at < len(first) else written.get("items", True)
            other = wanted[at] if at < len(wanted) else read.get("items", True)
            yield from self.compare(one, other, f"{path}[{at}]")
        if most is None or most > singled_out:
            yield from self.compare(written.get("items", True), read.get("items", True), f"{path}[]")

    def _objects(self, written: Schema, read: Schema, path: str) -> Iterator[Problem]:
        fields, wanted = written.get("properties", {}), read.get("properties", {})
        others = _other_fields(written)
        required = set(written.get("required", ()))
        for name, schema in wanted.items():
            at = f"{path}.{name}".lstrip(".")
            if name in read.get("required", ()) and name not in required:
                yield Problem(at, "required", "it may be missing, and readers need it")
            if name in fields:
                yield from self.compare(fields[name], schema, at)
            elif others is not False:
                yield from self.compare(others, schema, at)
        if "patternProperties" in written or "patternProperties" in read:
            yield from self._patterns(written, read, path)
            return
        unknown = read.get("additionalProperties", True)
        for name in [one for one in fields if one not in wanted]:
            at = f"{path}.{name}".lstrip(".")
            if unknown is False:
                yield Problem(at, "unknown field", "it is written, and readers refuse what they do not know")
            else:
                yield from self.compare(fields[name], unknown, at)
        if others is not False and unknown is False:
            yield Problem(path, "unknown field", "any field may be written, and readers refuse what they do not know")
        elif others is not False:
            yield from self.compare(others, unknown, f"{path}{{}}")
        yield from self._names(written, read, path)
        yield from self._sizes(written, read, path)

    def _patterns(self, written: Schema, read: Schema, path: str) -> Iterator[Problem]:
        """Compare dicts whose keys have patterns: they must be the same ones."""
        patterns, wanted = written.get("patternProperties", {}), read.get("patternProperties", {})
        sides = [{**one, "patternProperties": sorted(one.get("patternProperties", ()))} for one in (written, read)]
        if "properties" in written or "properties" in read or not self._says_the_same(*map(_asserted, sides)):
            yield Problem(path, CANNOT_TELL, "the schemas differ in the names that fields may have")
            return
        for pattern, schema in patterns.items():
            yield from self.compare(schema, wanted[pattern], f"{path}{{}}")

    def _names(self, written: Schema, read: Schema, path: str) -> Iterator[Problem]:
        if "propertyNames" not in read:
            return
        wanted = {"type": "string", **self._read.resolved(read["propertyNames"])}
        for name in written.get("properties", {}):
            yield from self._find({"const": name}, list(_alternatives(self._read, wanted)), f"{path}{{key}}")
        if _other_fields(written) is not False:
            names = self._written.resolved(written.get("propertyNames", {}))
            yield from self.compare({"type": "string", **names}, wanted, f"{path}{{key}}")

    def _sizes(self, written: Schema, read: Schema, path: str) -> Iterator[Problem]:
        least = max(written.get("minProperties", 0), len(written.get("required", ())))
        is_closed = _other_fields(written) is False
        most = written.get("maxProperties", len(written.get("properties", {})) if is_closed else None)
        bounds = _Counts(least, most), _Counts(read.get("minProperties", 0), read.get("maxProperties"))
        yield from _counted(*bounds, "Properties", path)


def _alternatives(described: Described, schema: Any, *, is_written: bool = False) -> Iterator[Schema]:
    """Take a schema apart into those of which a value fits one. A discriminated union that is read stays whole."""
    schema = described.resolved(schema)
    asserted = _asserted(schema)
    if asserted.keys() == {"anyOf"}:
        for one in schema["anyOf"]:
            yield from _alternatives(described, one, is_written=is_written)
    elif is_written and asserted.keys() - {"discriminator"} == {"oneOf"}:
        tag = schema.get("discriminator", {}).get("propertyName")
        for one in schema["oneOf"]:
            for alternative in _alternatives(described, one, is_written=True):
                # Without its tag it would be none of them, whether or not the field has a default.
                needed = [*alternative.get("required", ()), *([tag] if tag else [])]
                yield {**alternative, "required": needed} if _kind(alternative) == "object" else alternative
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield from _alternatives(described, {**schema, "type": kind}, is_written=is_written)
    elif asserted == {"type": "null"}:
        yield {"const": None}
    elif "enum" in schema and asserted.keys() <= {"enum", "type"}:
        for value in schema["enum"]:
            yield {"const": value}
    elif "const" in schema and asserted.keys() <= {"const", "type"}:
        yield {"const": schema["const"]}
    elif schema is not _NOTHING or not is_written:
        yield schema


def _spelled_out(described: Described, part: Any, within: tuple[str, ...]) -> str:
    """Return the text of a schema with what its references lead to in their place."""
    if isinstance(part, list):
        return f"[{','.join(_spelled_out(described, one, within) for one in part)}]"
    if not isinstance(part, Mapping):
        return json.dumps(part)
    reference = part.get("$ref")
    if isinstance(reference, str):
        if reference in within:
            return f"again {within.index(reference)}"
        part, within = {**part, "$ref": described.target(reference)}, (*within, reference)
    return f"{{{','.join(f'{key}:{_spelled_out(described, part[key], within)}' for key in sorted(part))}}}"


def _asserted(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key not in _ANNOTATIONS}


def _strange(schema: Schema) -> Schema:
    """Return what a schema says that is not understood."""
    known = ("const",) if "const" in schema else _UNDERSTOOD.get(_kind(schema), ())
    return {key: value for key, value in _asserted(schema).items() if key not in known and key != "type"}


def _kind(schema: Schema) -> str:
    if "oneOf" in schema:
        return "object"
    if "const" in schema:
        value = schema["const"]
        return next((kind for of, kind in _KINDS if isinstance(value, of)), "null" if value is None else "any")
    return str(schema.get("type", "any"))


_KINDS: Sequence[tuple[Any, str]] = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"))


def _constants(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def _other_fields(written: Schema) -> Any:
    """Return the schema of the fields that are not listed; False if there are none.

    A model that ignores unknown fields when it reads has no `additionalProperties`, and writes none.
    """
    is_closed = "properties" in written or "patternProperties" in written
    return written.get("additionalProperties", not is_closed)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _numbers(written: Schema, read: Schema, path: str) -> Iterator[Problem]:
    is_whole = written.get("type") == "integer"
    for is_lower, rule, exclusive in ((True, "minimum", "exclusiveMinimum"), (False, "maximum", "exclusiveMaximum")):
        wanted = _bound(read, rule, exclusive, is_lower=is_lower, is_whole=is_whole)
        if wanted is None:
            continue
        given = _bound(written, rule, exclusive, is_lower=is_lower, is_whole=is_whole)
        if given is None or (given < wanted if is_lower else given > wanted):
            words = {"minimum": ("less", "or more"), "exclusiveMinimum": ("less", "and more")}
            words |= {"maximum": ("more", "or less"), "exclusiveMaximum": ("more", "and less")}
            said = exclusive if exclusive in read else rule
            yield Problem(path, said, f"it may be {words[said][0]} than what is read, {read[said]} {words[said][1]}")
    if "multipleOf" in read:
        wanted_step = Fraction(str(read["multipleOf"]))
        step = Fraction(str(written["multipleOf"])) if "multipleOf" in written else Fraction(int(is_whole))
        if step == 0 or step % wanted_step:
            yield Problem(path, "multipleOf", f"only multiples of {read['multipleOf']} are read")


def _bound(schema: Schema, rule: str, exclusive: str, *, is_lower: bool, is_whole: bool) -> tuple[Fraction, int] | None:
    """Return a bound that compares with others of its side: what is excluded lies just beyond it."""
    inward = 1 if is_lower else -1
    bounds = []
    if rule in schema:
        bounds.append((Fraction(str(schema[rule])), 0))
    if exclusive in schema:
        value = Fraction(str(schema[exclusive]))
        bounds.append((value + inward, 0) if is_whole and value.denominator == 1 else (value, inward))
    if not bounds:
        return None
    return max(bounds) if is_lower else min(bounds)


def _strings(written: Schema, read: Schema, path: str) -> Iterator[Problem]:
    form, wanted = written.get("format"), read.get("format")
    if wanted is not None and form != wanted:
        yield Problem(path, "format", f"{_in_words(written)} is written, and {_in_words(read)} is read")
        return
    if form != wanted and ("minLength" in read or "maxLength" in read or "pattern" in read):
        yield Problem(path, CANNOT_TELL, f"{_in_words(written)} is written, and {_in_words(read)} is read")
        return
    pattern = read.get("pattern")
    if pattern is not None and pattern != written.get("pattern"):
        rule = CANNOT_TELL if "pattern" in written else "pattern"
        yield Problem(path, rule, f"only text with the pattern {pattern} is read")
    counts, wanted_counts = (_Counts(one.get("minLength", 0), one.get("maxLength")) for one in (written, read))
    yield from _counted(counts, wanted_counts, "Length", path)


class _Counts(NamedTuple):
    """How many there may be of something."""

    least: int
    most: int | None


def _counted(written: _Counts, read: _Counts, rule: str, path: str) -> Iterator[Problem]:
    of = {"Length": "characters", "Items": "items", "Properties": "fields"}[rule]
    if written.least < read.least:
        yield Problem(path, f"min{rule}", f"it may have fewer {of} than the {read.least} that readers need")
    if read.most is not None and (written.most is None or written.most > read.most):
        yield Problem(path, f"max{rule}", f"it may have more {of} than the {read.most} that readers take")


def _in_words(schema: Schema) -> str:
    if "const" in schema:
        return "null" if schema["const"] is None else repr(schema["const"])
    if "oneOf" in schema:
        return "a union of objects"
    kind = str(schema.get("type", "any value"))
    words = {"integer": "an integer", "number": "a number", "string": "text", "boolean": "true or false"}
    words |= {"array": "a list", "object": "an object", "null": "null", "any value": "any value"}
    if "format" in schema:
        return f"text of the format {schema['format']}"
    return words.get(kind, kind)


def _all_in_words(schemas: Sequence[Schema]) -> str:
    return " or ".join(dict.fromkeys(map(_in_words, schemas))) or "nothing"


def _values(values: Mapping[str, Any]) -> str:
    return " or ".join(map(repr, values))
