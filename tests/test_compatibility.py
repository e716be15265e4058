"""Which changes of a schema can be read: what is called compatible validates, and what is not is named."""

import contextlib
import enum
import json
import string
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

import pytest
from annotated_types import Ge, Gt, Le, Len, MultipleOf
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    PlainSerializer,
    TypeAdapter,
    computed_field,
    create_model,
)
from typing_extensions import TypedDict

from pubsub_core import ValidationError
from pubsub_core.codec import TypedJson, codec_for
from pubsub_core.schema.compatibility import Described, Problem, problems
from pubsub_core.schema.export import document_of, read, written

# What is called compatible validates


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class MoreSizes(enum.Enum):
    SMALL = "s"
    LARGE = "l"
    HUGE = "h"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Kind:
    """A type, and values of it."""

    type: Any
    values: st.SearchStrategy[Any]


def tagged(tag: str, **fields: Any) -> type[BaseModel]:
    return create_model(f"Tagged{tag}", kind=(Literal[tag], ...), **fields)  # type: ignore[call-overload]


PAID, LATE, LOST = tagged("paid", cents=(int, ...)), tagged("late", days=(int, 0)), tagged("lost")

TAGGED = {
    PAID: st.builds(PAID, kind=st.just("paid"), cents=st.integers(0, 9)),
    LATE: st.builds(LATE, kind=st.just("late"), days=st.integers(0, 9)),
    LOST: st.builds(LOST, kind=st.just("lost")),
}

TEXT = st.text(string.ascii_lowercase + "é\x00", max_size=6)


@st.composite
def numbers(draw: st.DrawFn) -> Kind:
    low, high = draw(st.none() | st.integers(-3, 0)), draw(st.none() | st.integers(6, 8))
    is_whole = draw(st.booleans())
    limits: list[Any] = [Ge(low)] if low is not None else []
    limits += [Le(high)] if high is not None else []
    if is_whole:
        step = draw(st.sampled_from([1, 2, 3, 6]))
        values: Any = st.integers(
            -(-(low if low is not None else -(10**20)) // step), (high if high is not None else 10**20) // step
        )
        return Kind(Annotated[(int, *limits, MultipleOf(step))], values.map(lambda value: value * step))
    return Kind(
        Annotated[(float, *limits, Le(10**300))],
        st.floats(low if low is not None else -10.0, high if high is not None else 10.0),
    )


@st.composite
def texts(draw: st.DrawFn) -> Kind:
    least, most = draw(st.integers(0, 2)), draw(st.none() | st.integers(2, 5))
    values = st.text(string.ascii_lowercase + "é", min_size=least, max_size=6 if most is None else most)
    kind = draw(st.sampled_from(["str", "pattern", "bytes", "literal"]))
    if kind == "pattern":
        return Kind(Annotated[str, Field(pattern=draw(st.sampled_from(["^a", "^ab"])))], st.sampled_from(["ab", "abc"]))
    if kind == "literal":
        chosen = draw(st.lists(st.sampled_from(["a", "b", "c", 1, 2, True, None]), min_size=1, unique_by=repr))
        return Kind(Literal[tuple(chosen)], st.sampled_from(chosen))
    if kind == "bytes":
        return Kind(
            Annotated[bytes, Len(least, most)],
            st.binary(min_size=least, max_size=6 if most is None else most).map(
                lambda one: bytes(97 + byte % 26 for byte in one)
            ),
        )
    return Kind(Annotated[str, Len(least, most)], values)


SCALARS = st.one_of(
    numbers(),
    texts(),
    st.sampled_from(
        [
            Kind(bool, st.booleans()),
            Kind(type(None), st.none()),
            Kind(date, st.dates(date(2000, 1, 1), date(2040, 1, 1))),
            Kind(Annotated[date, Ge(date(2020, 1, 1))], st.dates(date(2020, 1, 1), date(2040, 1, 1))),
            Kind(datetime, st.datetimes(timezones=st.just(UTC))),
            Kind(timedelta, st.timedeltas(timedelta(0), timedelta(9))),
            Kind(Annotated[timedelta, Gt(timedelta(1))], st.timedeltas(timedelta(2), timedelta(9))),
            Kind(Decimal, st.decimals(-9, 9, places=2)),
            Kind(Annotated[Decimal, Ge(0)], st.decimals(0, 9, places=2)),
            Kind(Annotated[Decimal, Field(max_digits=3, decimal_places=1)], st.decimals(0, 9, places=1)),
            Kind(uuid.UUID, st.uuids()),
            Kind(Size, st.sampled_from(Size)),
            Kind(MoreSizes, st.sampled_from(MoreSizes)),
            Kind(Priority, st.sampled_from(Priority)),
            Kind(Any, st.none() | st.integers(0, 3) | TEXT | st.lists(st.integers(0, 3), max_size=2)),
            Kind(JsonValue, st.none() | st.integers(0, 3) | TEXT),
        ]
    ),
)  # fmt: skip


@st.composite
def unions(draw: st.DrawFn, inner: st.SearchStrategy[Kind]) -> Kind:
    one, other = draw(inner), draw(inner)
    with contextlib.suppress(TypeError):  # as of unhashable members of Literal and the like
        return Kind(one.type | other.type, one.values | other.values)
    return one


@st.composite
def choices(draw: st.DrawFn) -> Kind:
    members = draw(st.lists(st.sampled_from(list(TAGGED)), min_size=1, unique=True))
    values = st.one_of([TAGGED[one] for one in members])
    if len(members) == 1:
        return Kind(members[0], values)
    union = members[0] | members[1] if len(members) == 2 else members[0] | members[1] | members[2]
    return Kind(Annotated[union, Field(discriminator="kind")] if draw(st.booleans()) else union, values)


@st.composite
def collections(draw: st.DrawFn, inner: st.SearchStrategy[Kind]) -> Kind:
    one = draw(inner)
    least, most = draw(st.integers(0, 1)), draw(st.none() | st.integers(1, 3))
    match draw(st.sampled_from(["list", "set", "tuple", "dict", "by int", "by size", "by pattern", "maybe"])):
        case "list":
            return Kind(
                Annotated[list[one.type], Len(least, most)],
                st.lists(one.values, min_size=least, max_size=3 if most is None else most),
            )  # type: ignore[name-defined]
        case "set":
            return Kind(set[int], st.sets(st.integers(0, 3), max_size=3))
        case "tuple":
            other = draw(inner)
            return Kind(tuple[one.type, other.type], st.tuples(one.values, other.values))  # type: ignore[name-defined]
        case "dict":
            return Kind(
                Annotated[dict[str, one.type], Len(least, most)],
                st.dictionaries(
                    st.sampled_from("abcde"), one.values, min_size=least, max_size=3 if most is None else most
                ),
            )  # type: ignore[name-defined]
        case "by int":
            return Kind(dict[int, one.type], st.dictionaries(st.integers(0, 3), one.values, max_size=2))  # type: ignore[name-defined]
        case "by size":
            return Kind(dict[Size, one.type], st.dictionaries(st.sampled_from(Size), one.values, max_size=2))  # type: ignore[name-defined]
        case "by pattern":
            return Kind(
                dict[Annotated[str, Field(pattern="^a")], one.type],
                st.dictionaries(st.sampled_from(["a", "ab"]), one.values, max_size=2),
            )  # type: ignore[name-defined]
    return Kind(one.type | None, one.values | st.none()) if one.type is not Any else one


@dataclass
class FieldOf:
    """A field of a model: its kind, and what it is if it is not given."""

    kind: Kind
    default: Any = ...


@dataclass
class Shape:
    """What a model is made from."""

    fields: dict[str, FieldOf]
    extra: str

    def kind(self) -> Kind:
        made = {name: (one.kind.type, one.default) for name, one in self.fields.items()}
        model = create_model("Model", __config__=ConfigDict(extra=self.extra), **made)  # type: ignore[call-overload,typeddict-item]
        required = {name: one.kind.values for name, one in self.fields.items() if one.default is ...}
        others = {name: one.kind.values for name, one in self.fields.items() if one.default is not ...}
        if self.extra == "allow":
            others |= {name: st.integers(0, 3) | TEXT for name in "abcx" if name not in made}
        values = st.fixed_dictionaries(required, optional=others).map(lambda given: model(**given))
        return Kind(model, values)


def fields_of(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[FieldOf]:
    @st.composite
    def field(draw: st.DrawFn) -> FieldOf:
        kind = draw(inner)
        return FieldOf(kind, draw(kind.values) if draw(st.booleans()) else ...)

    return field()


def shapes(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Shape]:
    names = st.dictionaries(st.sampled_from("abcd"), fields_of(inner), max_size=3)
    return st.builds(Shape, names, st.sampled_from(["ignore", "ignore", "ignore", "forbid", "allow"]))


KINDS = st.recursive(
    SCALARS | choices(),
    lambda inner: collections(inner) | unions(inner) | shapes(inner).map(Shape.kind),
    max_leaves=3,
)


FAMILIES = [numbers(), numbers(), texts(), collections(SCALARS), collections(numbers()), choices(), shapes(SCALARS)]


@st.composite
def siblings(draw: st.DrawFn) -> tuple[Kind, Kind]:
    """Two types that differ in a detail, such as a bound."""
    family = draw(st.sampled_from(FAMILIES))
    one, other = draw(family), draw(family)
    return tuple(kind.kind() if isinstance(kind, Shape) else kind for kind in (one, other))  # type: ignore[return-value]


@st.composite
def changes(draw: st.DrawFn) -> tuple[Kind, Kind]:
    """A model, and the same with some of its fields changed."""
    old = draw(shapes(KINDS))
    fields = {}
    for name, one in old.fields.items():
        match draw(st.sampled_from(["keep", "keep", "keep", "drop", "retype", "default", "require", "widen"])):
            case "keep":
                fields[name] = one
            case "retype":
                fields[name] = draw(fields_of(KINDS))
            case "default":
                fields[name] = FieldOf(one.kind, draw(one.kind.values))
            case "require":
                fields[name] = FieldOf(one.kind)
            case "widen":
                other = draw(unions(st.sampled_from([one.kind, draw(KINDS)])))
                fields[name] = FieldOf(other, one.default)
    fields |= draw(st.dictionaries(st.sampled_from("abcdef"), fields_of(KINDS), max_size=1))
    extra = old.extra if draw(st.booleans()) else draw(st.sampled_from(["ignore", "forbid", "allow"]))
    return old.kind(), Shape(fields, extra).kind()


def documents(*kinds: Kind) -> list[tuple[TypedJson[Any], Any]]:
    codecs = [TypedJson[Any](kind.type) for kind in kinds]
    return [(codec, document_of(codec)) for codec in codecs]


def checks(pairs: st.SearchStrategy[tuple[Kind, Kind]], examples: int) -> Any:
    def decorate(function: Any) -> Any:
        return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(
            given(pairs, st.data())(function)
        )

    return decorate


@checks(siblings(), 150)
def test_details_that_are_called_compatible_validate(change: tuple[Kind, Kind], data: st.DataObject) -> None:
    validate(*change, data)


@checks(changes(), 50)
def test_changes_that_are_called_compatible_validate(change: tuple[Kind, Kind], data: st.DataObject) -> None:
    validate(*change, data)


@checks(st.tuples(KINDS, KINDS), 50)
def test_whatever_is_called_compatible_validates(change: tuple[Kind, Kind], data: st.DataObject) -> None:
    validate(*change, data)


def validate(old: Kind, new: Kind, data: st.DataObject) -> None:
    """Hold both answers to what the codecs do with values."""
    (old_codec, old_document), (new_codec, new_document) = documents(old, new)
    if not problems(read(old_document), read(new_document)):
        event("new readers read what was written before")
        for payload in data.draw(st.lists(old.values, min_size=1, max_size=5)):
            encoded = written_by(old_codec, payload)
            new_codec.decode(encoded)
            sparse = without_some(data, encoded)
            if reads(old_codec, sparse):  # another program may have written it
                new_codec.decode(sparse)
    if not problems(written(new_document), read(old_document)):
        event("old readers read what is written now")
        for payload in data.draw(st.lists(new.values, min_size=1, max_size=5)):
            old_codec.decode(written_by(new_codec, payload))
    assert not problems(read(old_document), read(old_document))
    assert not [one for one in problems(written(old_document), read(old_document)) if one.is_certain]


def written_by(codec: TypedJson[Any], payload: Any) -> bytes:
    try:
        return codec.encode(payload)
    except ValidationError:
        assume(False)
        raise


def without_some(data: st.DataObject, encoded: bytes) -> bytes:
    payload = json.loads(encoded)
    if isinstance(payload, dict) and payload:
        for name in data.draw(st.lists(st.sampled_from(sorted(payload)), unique=True)):
            del payload[name]
    return json.dumps(payload).encode()


def reads(codec: TypedJson[Any], encoded: bytes) -> bool:
    try:
        codec.decode(encoded)
    except Exception as error:
        return type(error).__name__ not in ("InvalidPayload", "Undecodable")
    return True


# What is called incompatible, and why


def of(extra: Literal["ignore", "forbid", "allow"] = "ignore", **fields: Any) -> type[BaseModel]:
    """Return a model. A field is a type, or a type and a default."""
    made = {name: one if isinstance(one, tuple) else (one, ...) for name, one in fields.items()}
    return create_model("Model", __config__=ConfigDict(extra=extra), **made)  # type: ignore[call-overload,no-any-return]


class Row(TypedDict):
    a: int
    b: NotRequired[str]


class WholeRow(TypedDict):
    a: int
    b: str


class Tree(BaseModel):
    name: str
    branches: "list[Tree]" = []


class Thing(BaseModel):
    name: str
    branches: "list[OtherThing]" = []


class OtherThing(BaseModel):
    name: int
    branches: "list[Thing]" = []


class Forest(BaseModel):
    name: str
    branches: "list[Forest]" = []


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]


def choice(*members: Any) -> Any:
    union = members[0]
    for one in members[1:]:
        union |= one
    return Annotated[union, Field(discriminator="kind")]


PAID_IN_TEXT = tagged("paid", cents=(str, ...))
WITH_DEFAULT_TAG = create_model("Free", kind=(Literal["free"], "free"))


def patterned(pattern: str) -> Any:
    return Annotated[str, Field(pattern=pattern)]


CENTS = [("(kind=paid).cents", "type")]
NONE: list[tuple[str, str]] = []
ONE = "the payload"


@pytest.mark.parametrize(
    ("old", "new", "writers", "readers"),
    [
        # Fields
        (of(a=int), of(a=int, b=(int, 0)), NONE, NONE),
        (of(a=int), of(a=int, b=int), [("b", "required")], NONE),
        (of(a=int), of(b=(int, 0)), NONE, [("a", "required")]),
        (of(a=int, b=(int, 0)), of(a=int), NONE, NONE),
        (of(a=int), of(a=(int, 0)), NONE, NONE),
        (of(a=(int, 0)), of(a=int), [("a", "required")], NONE),
        (of(a=(int, 0)), of(a=(int, 7)), NONE, NONE),
        (of(a=int), of(a=int | None), NONE, [("a", "type")]),
        (of(a=int | None), of(a=int), [("a", "type")], NONE),
        (of(a=int), of(a=str), [("a", "type")], [("a", "type")]),
        (of(total=float), of(total_cents=int), [("total_cents", "required")], [("total", "required")]),
        (of(a=of(b=of(c=int))), of(a=of(b=of(c=str))), [("a.b.c", "type")], [("a.b.c", "type")]),
        (of(a=list[of(b=int)]), of(a=list[of(b=int, c=int)]), [("a[].c", "required")], NONE),  # type: ignore[misc]
        (of(a=dict[str, of(b=int)]), of(a=dict[str, of(b=str)]), [("a{}.b", "type")], [("a{}.b", "type")]),  # type: ignore[misc]
        (of(title=int), of(title=str), [("title", "type")], [("title", "type")]),
        # Unknown fields
        (of(a=int), of("forbid", a=int), NONE, NONE),
        (of("forbid", a=int), of("forbid", a=int, b=(int, 0)), NONE, [("b", "unknown field")]),
        (of(a=int, b=(int, 0)), of("forbid", a=int), [("b", "unknown field")], NONE),
        (of("allow", a=int), of(a=int), NONE, NONE),
        (of(a=int), of("allow", a=int), NONE, NONE),
        (of("forbid", a=int), of("allow", a=int), NONE, [(ONE, "unknown field")]),
        (of("allow", a=int), of("forbid", a=int), [(ONE, "unknown field")], NONE),
        (of("allow", a=int), of("allow", a=int, b=(int, 0)), [("b", "cannot tell")], NONE),
        # Numbers
        (of(a=int), of(a=float), NONE, [("a", "type")]),
        (Annotated[int, Ge(1)], Annotated[int, Gt(0)], NONE, NONE),
        (Annotated[int, Ge(1)], Annotated[int, Ge(2)], [(ONE, "minimum")], NONE),
        (Annotated[int, Le(9)], int, NONE, [(ONE, "maximum")]),
        (Annotated[float, Ge(1)], Annotated[float, Gt(1)], [(ONE, "exclusiveMinimum")], NONE),
        (Annotated[int, MultipleOf(6)], Annotated[int, MultipleOf(3)], NONE, [(ONE, "multipleOf")]),
        (Annotated[float, MultipleOf(0.5)], Annotated[float, MultipleOf(0.25)], NONE, [(ONE, "multipleOf")]),
        (float, Annotated[float, MultipleOf(0.5)], [(ONE, "multipleOf")], NONE),
        (Annotated[Decimal, Ge(0)], Decimal, [(ONE, "cannot tell")], [(ONE, "cannot tell")]),
        (Decimal, Annotated[Decimal, Field(max_digits=3)], [(ONE, "cannot tell")], [(ONE, "cannot tell")]),
        (Decimal, str, [(ONE, "type")], [(ONE, "format")]),
        (Decimal, float, [(ONE, "type")], NONE),
        # Text
        (str, Annotated[str, Field(max_length=3)], [(ONE, "maxLength")], NONE),
        (str, Annotated[str, Field(min_length=1)], [(ONE, "minLength")], NONE),
        (str, patterned("^a"), [(ONE, "pattern")], NONE),
        (patterned("^b"), patterned("^a"), [(ONE, "cannot tell")], [(ONE, "cannot tell")]),
        (uuid.UUID, str, NONE, [(ONE, "format")]),
        (uuid.UUID, Annotated[str, Field(min_length=1)], [(ONE, "cannot tell")], [(ONE, "format")]),
        (date, datetime, [(ONE, "format")], [(ONE, "format")]),
        (date, Annotated[date, Ge(date(2020, 1, 1))], [(ONE, "cannot tell")], [(ONE, "cannot tell")]),
        (str, Json[int], [(ONE, "cannot tell")], [(ONE, "type")]),
        # Values
        (Size, MoreSizes, NONE, [(ONE, "value")]),
        (Size, str, NONE, [(ONE, "value")]),
        (Size, Annotated[str, Field(max_length=1)], NONE, [(ONE, "value")]),
        (Size, Annotated[str, Field(min_length=2)], [(ONE, "minLength")] * 2, [(ONE, "value")]),
        (Size, uuid.UUID, [(ONE, "cannot tell")] * 2, [(ONE, "value")]),
        (Size, Literal["l", "s"], NONE, NONE),
        (Literal["a"], Literal["a", None], NONE, [(ONE, "type")]),
        (Literal["a", None], Literal["a"] | None, NONE, NONE),
        (Literal[1], Literal[True], [(ONE, "type")], [(ONE, "type")]),
        (Literal[0, 6], Annotated[int, MultipleOf(3)], NONE, [(ONE, "value")]),
        (Literal[4], Annotated[int, MultipleOf(3)], [(ONE, "multipleOf")], [(ONE, "value")]),
        (Literal[True], bool, NONE, [(ONE, "value")]),
        (Priority, int, NONE, [(ONE, "value")]),
        # Unions
        (int, int | str, NONE, [(ONE, "type")]),
        (int | str, str | int, NONE, NONE),
        (int | str, int | str | list[int], NONE, [(ONE, "type")]),
        (list[int] | None, list[str] | None, [("[]", "type")], [("[]", "type")]),
        (int, Any, NONE, [(ONE, "cannot tell")]),
        (Any, JsonValue, NONE, NONE),
        (choice(PAID, LATE), choice(LATE, PAID), NONE, NONE),
        (choice(PAID, LATE), choice(PAID, LATE, LOST), NONE, [("kind", "value")]),
        (choice(LATE, PAID), choice(LATE, PAID_IN_TEXT), CENTS, CENTS),
        (choice(PAID, LATE), PAID | LATE, NONE, NONE),
        (PAID, choice(PAID, LATE), NONE, [("kind", "value"), ("cents", "required")]),
        (WITH_DEFAULT_TAG, choice(WITH_DEFAULT_TAG, PAID), [("kind", "required")], [("kind", "value")]),
        (choice(WITH_DEFAULT_TAG, PAID), choice(WITH_DEFAULT_TAG, PAID, LATE), NONE, [("kind", "value")]),
        (of(kind=str), choice(PAID, LATE), [("kind", "value")], NONE),
        (int, choice(PAID, LATE), [(ONE, "type")], [(ONE, "type")]),
        (of(a=choice(PAID, LATE)), of(a=choice(PAID, LATE) | None), NONE, [("a", "type")]),
        # Lists
        (list[int], list[str], [("[]", "type")], [("[]", "type")]),
        (list[int], Annotated[list[int], Len(1)], [(ONE, "minItems")], NONE),
        (list[int], Annotated[list[int], Len(0, 3)], [(ONE, "maxItems")], NONE),
        (list[int], set[int], [(ONE, "uniqueItems")], NONE),
        (list[int], tuple[int, ...], NONE, NONE),
        (tuple[int, int], list[int], NONE, [(ONE, "minItems"), (ONE, "maxItems")]),
        (tuple[int, str], tuple[int, int], [("[1]", "type")], [("[1]", "type")]),
        (tuple[int, str], tuple[int], [(ONE, "maxItems")], [(ONE, "minItems")]),
        # Dicts
        (dict[str, int], dict[str, float], NONE, [("{}", "type")]),
        (dict[str, int], dict[int, int], [(ONE, "cannot tell")], [(ONE, "cannot tell")]),
        (dict[str, int], dict[Size, int], [("{key}", "value")], NONE),
        (dict[str, int], Annotated[dict[str, int], Len(1)], [(ONE, "minProperties")], NONE),
        (dict[str, int], Annotated[dict[str, int], Len(0, 1)], [(ONE, "maxProperties")], NONE),
        (of(a=int), dict[str, int], NONE, [("a", "required")]),
        (of(a=int, b=str), dict[str, int], [("b", "type")], [("a", "required"), ("b", "required"), ("b", "type")]),
        (of(a=int), Annotated[dict[str, int], Len(2)], [(ONE, "minProperties")], [("a", "required")]),
        (of(a=int), dict[Size, int], [("{key}", "value")], [("a", "required")]),
        (dict[str, int], dict[patterned("^a"), int], [(ONE, "cannot tell")], [(ONE, "cannot tell")]),  # type: ignore[misc]
        (Row, WholeRow, [("b", "required")], NONE),
        (WholeRow, Row, NONE, [("b", "required")]),
        # The same in another form
        (Tree, Forest, NONE, NONE),
        (Page[int], of(items=list[int]), NONE, NONE),
        (Page[int], Page[str], [("items[]", "type")], [("items[]", "type")]),
        (of(a=int), of(a=Annotated[int, Field(description="a number", examples=[1], title="The a")]), NONE, NONE),
    ],
)  # fmt: skip
def test_each_change_is_compatible_or_says_what_breaks(old, new, writers, readers):
    old_document, new_document = document_of(codec_for(old)), document_of(codec_for(new))

    def named(found: list[Problem]) -> list[tuple[str, str]]:
        return [(one.path or ONE, one.rule) for one in found]

    assert named(problems(read(old_document), read(new_document))) == writers
    assert named(problems(written(new_document), read(old_document))) == readers


def test_types_that_refer_to_themselves_come_to_an_end():
    tree, thing = document_of(codec_for(Tree)), document_of(codec_for(Thing))

    assert [(one.path, one.rule) for one in problems(read(tree), read(thing))] == [("branches[].name", "type")]


def test_problems_read_well():
    old, new = (document_of(codec_for(one)) for one in (of(a=int, b=Size), of(a=str, b=Literal["s"], c=int)))

    assert [str(one) for one in problems(read(old), read(new))] == [
        "a: an integer is written, and only text is read (type)",
        "b: 'l' is written, and readers do not know it (value)",
        "c: it may be missing, and readers need it (required)",
    ]


# What JSON Schema says, and this module does not understand


def described(schema: Any, **document: Any) -> Described:
    return Described(schema, {**schema, **document} if isinstance(schema, dict) else document)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "not": {"const": 3}},
        {"if": {"type": "integer"}, "then": {"minimum": 3}},
        {"type": "array", "contains": {"type": "integer"}},
        {"allOf": [{"type": "integer"}, {"minimum": 3}]},
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"type": "string", "contentEncoding": "base64"},
        {"enum": ["a"], "x-strange": 1},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
    ],
)
def test_what_is_not_understood_is_compatible_only_with_itself(schema):
    assert not problems(described(schema), described(dict(schema)))
    for other in ({"type": "integer"}, {"type": "array"}, {"type": "string"}, {"type": "object"}):
        found = problems(described(other), described(schema)) + problems(described(schema), described(other))
        assert found
        assert {one.rule for one in found} <= {"cannot tell", "type", "value"}


def test_what_is_not_understood_is_the_same_only_if_what_it_refers_to_is():
    schema = {"oneOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}
    a = {"A": {"type": "object", "properties": {"again": {"$ref": "#/$defs/A"}}}}
    b = {"A": {"type": "object", "properties": {"again": {"$ref": "#/$defs/A"}, "b": {"type": "integer"}}}}

    assert not problems(described(schema, **{"$defs": a}), described(schema, **{"$defs": json.loads(json.dumps(a))}))
    assert problems(described(schema, **{"$defs": a}), described(schema, **{"$defs": b}))


@pytest.mark.parametrize(
    ("schema", "read_by", "rules"),
    [
        ({"type": ["integer", "null"]}, {"type": ["null", "integer", "string"]}, []),
        ({"type": ["integer", "null"]}, {"type": "integer"}, ["type"]),
        ({"allOf": [{"type": "integer"}]}, {"type": "number"}, []),
        (True, True, []),
        (True, {"type": "integer"}, ["cannot tell"]),
        (False, {"type": "integer"}, []),
        ({"type": "integer"}, False, ["cannot tell"]),
        ({"type": "object"}, {"type": "object", "properties": {"a": {"type": "integer"}}}, ["cannot tell"]),
        ({"const": [1]}, {"type": "array"}, ["cannot tell"]),
        ({"type": "array", "items": False, "prefixItems": [{"const": 1}]}, {"type": "array"}, []),
    ],
)  # fmt: skip
def test_forms_that_other_programs_write_are_understood(schema, read_by, rules):
    assert [one.rule for one in problems(described(schema), described(read_by))] == rules


# What pydantic leaves out


def test_a_function_that_writes_a_field_and_does_not_say_what_is_not_trusted():
    mute = of(a=Annotated[int, PlainSerializer(lambda value: f"{value} EUR")])
    telling = of(a=Annotated[int, PlainSerializer(lambda value: value, return_type=int)])
    plain, silent, said = (document_of(codec_for(one)) for one in (of(a=int), mute, telling))

    assert [one.rule for one in problems(written(silent), read(plain))] == ["cannot tell"]
    assert not problems(written(said), read(plain))


def test_what_is_written_may_lack_only_fields_that_are_left_out_at_times():
    class Sparse(BaseModel):
        a: int = 1
        b: int = Field(1, exclude=True)

        @computed_field
        def c(self) -> int:
            return self.a

    found = document_of(codec_for(Sparse))

    assert (found["required"], found["properties"].keys()) == (["a", "c"], {"a", "c"})
    assert found["x-read"]["properties"].keys() == {"a", "b"}
    assert "required" not in found["x-read"]


def test_references_in_what_is_read_lead_to_its_own_definitions():
    found = document_of(codec_for(Tree))

    assert TypeAdapter(Tree).json_schema()["$defs"].keys() == found["x-read"]["$defs"].keys()
    assert found["x-read"]["$ref"] == "#/x-read/$defs/Tree"
