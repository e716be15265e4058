"""Between payloads and bytes."""

import contextlib
import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)
from typing_extensions import TypedDict

from pubsub_core.codec import TypedJson, UntypedJson, codec_for, type_name
from pubsub_core.errors import ConfigurationError, InvalidPayload, Undecodable, ValidationError


class Order(BaseModel):
    order_id: int
    total: float = 0.0
    placed: date | None = None


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


@dataclass
class Point:
    x: int
    y: float


class Pair(NamedTuple):
    a: int
    b: str


class Row(TypedDict):
    id: int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Paid(BaseModel):
    kind: Literal["paid"] = "paid"
    amount: Decimal


class Refused(BaseModel):
    kind: Literal["refused"] = "refused"
    why: str


Answer = Annotated[Paid | Refused, Field(discriminator="kind")]

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]
    more: bool = False


class Everything(BaseModel):
    id: uuid.UUID
    placed_at: datetime
    day: date
    at: time
    took: timedelta
    total: Decimal
    colour: Colour
    answer: Answer
    page: Page[Row]
    point: Point
    sizes: dict[Colour, int]
    tags: frozenset[str]
    pair: tuple[int, str]
    maybe: int | None
    text: bytes
    huge: int


EVERYTHING = Everything(
    id=uuid.UUID(int=7),
    placed_at=datetime(2030, 1, 1, 12, 30, 15, 123456, tzinfo=UTC),
    day=date(2030, 2, 3),
    at=time(23, 59, 59, 1),
    took=timedelta(days=-1, microseconds=1),
    total=Decimal("0.10"),
    colour=Colour.BLUE,
    answer=Refused(why="no funds"),
    page=Page[Row](items=[{"id": 1}], more=True),
    point=Point(1, 2.5),
    sizes={Colour.RED: 1},
    tags=frozenset({"a", "b"}),
    pair=(1, "é"),
    maybe=None,
    text=b"caf\xc3\xa9",
    huge=-(10**400),
)


class Binary(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    blob: bytes


class Text(BaseModel):
    blob: bytes


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)

# Untyped


@given(JSON)
def test_any_json_value_comes_back_as_it_was(value: Any) -> None:
    decoded = UntypedJson().decode(UntypedJson().encode(value))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    ("payload", "encoded"),
    [
        (Order(order_id=1, total=2.5), b'{"order_id":1,"total":2.5,"placed":null}'),
        (Point(1, 2.0), b'{"x":1,"y":2.0}'),
        (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (datetime(2030, 1, 1, tzinfo=UTC), b'"2030-01-01T00:00:00Z"'),
        (Decimal("1.50"), b'"1.50"'),
        ((1, 2), b"[1,2]"),
        ({"a": {1}}, b'{"a":[1]}'),
    ],
)
def test_common_types_are_written(payload: Any, encoded: bytes) -> None:
    assert UntypedJson().encode(payload) == encoded


def _nested(depth: int) -> list[Any]:
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer


def _holding_itself() -> list[Any]:
    payload: list[Any] = []
    payload.append(payload)
    return payload


@pytest.mark.parametrize(
    "payload",
    [object(), {"a": lambda: None}, [object()], {"a": b"\xff\xfe"}, _nested(100_000), _holding_itself()],
    ids=["an object", "a function", "an object in a list", "bytes", "nested without end", "holding itself"],
)
def test_what_json_cannot_say_is_refused(payload: Any) -> None:
    with pytest.raises(ValidationError, match="the payload cannot be written as JSON"):
        UntypedJson().encode(payload)


NON_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("number", NON_FINITE)
def test_nan_and_infinities_are_refused_wherever_they_are(number: float) -> None:
    order = Order(order_id=1, total=number)
    for payload in (
        number,
        [None, number],
        {"a": {"b": (1, number)}},
        order,
        [order],
        Point(1, number),
        Extra.model_validate({"x": number}),
    ):
        with pytest.raises(ValidationError, match="NaN and infinities are not JSON"):
            UntypedJson().encode(payload)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({"a": {1: "x", "1": "y"}}, "two keys that are the same text"),
        ([{Colour.RED: 1, "red": 2}], "two keys that are the same text"),
        ({uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}, "two keys that are the same text"),
        (_nested(300), "nested too deep"),
        (_nested(220), "more levels than a reader takes"),
        ([10**5_000], "more digits of an integer than a reader takes"),
        ({"a": [-(10**4_301)]}, "more digits of an integer than a reader takes"),
        ("half of a pair: \ud800", "half of a surrogate pair"),
        ({"\ud800": 1}, "half of a surrogate pair"),
        ({"a": b"\xff\xfe"}, 'ser_json_bytes="base64"'),
    ],
)
def test_what_no_reader_could_read_is_not_written(payload: Any, why: str) -> None:
    for codec in (UntypedJson(), TypedJson[Any](Any), TypedJson[Any](Page[Any])):
        with pytest.raises(ValidationError, match=why):
            codec.encode(payload if not isinstance(codec.schema, type) else Page[Any](items=[payload]))


@given(st.integers(100, 260), st.sampled_from([list, dict]), st.booleans())
def test_what_is_written_can_be_read(depth: int, kind: type, is_typed: bool) -> None:
    payload: Any = 0
    for _ in range(depth):
        payload = [payload] if kind is list else {"a": payload}
    codec = TypedJson[Any](JsonValue) if is_typed else UntypedJson()
    try:
        encoded = codec.encode(payload)
    except ValidationError:
        assert depth > 150  # pydantic's limits, which differ by type
    else:
        assert codec.decode(encoded) == payload


def test_of_two_equal_keys_the_last_one_counts() -> None:
    encoded = b'{"order_id":1,"order_id":2}'
    assert UntypedJson().decode(encoded) == {"order_id": 2}
    assert TypedJson[Order](Order).decode(encoded) == Order(order_id=2)


def test_words_that_look_like_it_are_fine() -> None:
    payload = {"NaN": "Infinity", "null": None, "text": "-Infinity null 1e999"}
    assert UntypedJson().decode(UntypedJson().encode(payload)) == payload


@pytest.mark.parametrize(
    "encoded", [b"", b"{", b"{'a': 1}", b"\xff", b'"\xed\xa0\x80"', b"[1,]", b"NaN", b"[Infinity]"]
)
def test_bytes_that_are_not_json_are_undecodable(encoded: bytes) -> None:
    for codec in (UntypedJson(), TypedJson[Any](Order)):
        with pytest.raises(Undecodable, match="the payload is not JSON"):
            codec.decode(encoded)


@pytest.mark.parametrize("encoded", [b"1e999", b"[-1e999]", b'{"total":1E+400}', b"1" + b"0" * 400 + b".0"])
def test_numbers_beyond_all_floats_are_undecodable(encoded: bytes) -> None:
    with pytest.raises(Undecodable):
        UntypedJson().decode(encoded)
    with pytest.raises(Undecodable):
        TypedJson[float](float).decode(encoded)


def test_bytes_nested_too_deep_are_undecodable() -> None:
    encoded = b"[" * 100_000 + b"]" * 100_000
    for codec in (UntypedJson(), TypedJson[Any](list[Any])):
        with pytest.raises(Undecodable):
            codec.decode(encoded)


# Typed


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        (Order, Order(order_id=1, total=2.5, placed=date(2030, 1, 1))),
        (Point, Point(1, 2.5)),
        (int, 5),
        (list[Order], [Order(order_id=1)]),
        (dict[str, datetime], {"a": datetime(2030, 1, 1, tzinfo=UTC)}),
        (Order | None, None),
        (Annotated[int, Field(gt=0)], 1),
        (Literal["a", "b"], "a"),
        (Pair, Pair(1, "b")),
        (Row, {"id": 1}),
        (Decimal, Decimal("1.50")),
        (bytes, b"text"),
        (Everything, EVERYTHING),
        (list[Everything], [EVERYTHING]),
        (Answer, Paid(amount=Decimal("0.10"))),
        (list[Answer], [Refused(why="no funds")]),
        (Page[Order], Page[Order](items=[Order(order_id=1)])),
        (dict[Colour, tuple[Point, ...]], {Colour.RED: (Point(1, 2.0),)}),
        (dict[int, int], {1: 1}),
        (Binary, Binary(blob=bytes(range(256)))),
        (list[Binary], [Binary(blob=b"\x00\xff")]),
        (Aliased, Aliased(orderId=1)),
        (timedelta, timedelta(days=1, seconds=1)),
        (uuid.UUID, uuid.UUID(int=1)),
        (Colour, Colour.RED),
        (bool, True),
        (None | str, None),
    ],
)
def test_payload_of_a_type_comes_back_as_that_type(schema: Any, payload: Any) -> None:
    codec = TypedJson[Any](schema)
    decoded = codec.decode(codec.encode(payload))
    assert decoded == payload
    assert type(decoded) is type(payload)


class ReadByAnotherName(BaseModel):
    name: str = Field(validation_alias="Name")


class WrittenByAnotherName(BaseModel):
    name: str = Field(serialization_alias="Name")


class LeftOut(BaseModel):
    name: str = Field(exclude=True)


class Computing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @computed_field
    def name(self) -> str:
        return "computed"


class HoldingJson(BaseModel):
    name: Json[dict[str, int]]


class Grid(BaseModel):
    name: dict[tuple[int, int], int]


@pytest.mark.parametrize(
    ("payload", "remedy"),
    [
        (ReadByAnotherName(Name="x"), "Name: Field required. A field is written under the name that it is read by"),
        (WrittenByAnotherName(name="x"), "name: Field required. A field is written under the name that it is read by"),
        (LeftOut(name="x"), "name: Field required.*no exclude=True"),
        (Computing(), r"name: Extra inputs are not permitted. A @computed_field is written too"),
        (HoldingJson.model_validate({"name": "{}"}), r"name: .*What a Json\[...\] holds is not written as text"),
        (Grid(name={(1, 2): 3}), r"name\.1,2.*It must be written as what it is read from"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_type_that_cannot_read_what_it_writes_is_refused_each_time(payload: BaseModel, remedy: str) -> None:
    codec = TypedJson[Any](type(payload))
    for _ in range(2):
        with pytest.raises(
            ValidationError, match=rf"a reader could not read the payload as {codec.schema.__name__}: {remedy}"
        ):
            codec.encode(payload)


class Login(BaseModel):
    token: SecretStr
    key: SecretBytes = SecretBytes(b"")


class Open(Login):
    @field_serializer("token")
    def shown(self, token: SecretStr) -> str:
        return token.get_secret_value()


@pytest.mark.parametrize("payload", [Login(token=SecretStr("t")), Login(token=SecretStr(""), key=SecretBytes(b"k"))])
def test_a_secret_of_which_asterisks_would_be_written_is_refused(payload: Login) -> None:
    for codec, whole in ((TypedJson[Any](Login), payload), (UntypedJson(), {"login": [payload]})):
        codec.encode(Login(token=SecretStr("")))  # nothing is hidden of nothing
        with pytest.raises(ValidationError, match=r"asterisks would be written.*@field_serializer"):
            codec.encode(whole)
    with pytest.raises(ValidationError, match="asterisks would be written"):
        TypedJson[Any](Login).encode({"token": "t"})


def test_a_secret_that_its_type_writes_arrives_and_so_do_asterisks() -> None:
    codec = TypedJson[Open](Open)
    assert codec.decode(codec.encode(Open(token=SecretStr("t")))).token.get_secret_value() == "t"
    assert UntypedJson().decode(UntypedJson().encode(["**********"])) == ["**********"]


class Doubling(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def doubled(cls, number: int) -> int:
        return 2 * number


def test_a_type_may_change_what_it_reads() -> None:
    codec = TypedJson[Doubling](Doubling)
    assert codec.decode(codec.encode(Doubling(number=1))).number == 4


def test_a_type_reads_its_first_payload_back_and_no_other() -> None:
    read = []

    class Order(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def noted(cls, number: int) -> int:
            read.append(number)
            return number

    codec = TypedJson[Order](Order)
    first, second = Order(number=1), Order(number=2)
    read.clear()
    codec.encode(first)
    codec.encode(second)
    assert read == [1]


def test_plain_data_that_fits_a_model_is_fine() -> None:
    codec = TypedJson[Order](Order)
    encoded = codec.encode({"order_id": 1, "placed": "2030-01-01"})  # type: ignore[arg-type]  # which is the point
    assert codec.decode(encoded) == Order(order_id=1, placed=date(2030, 1, 1))


def test_plain_data_may_hold_what_is_not_json_as_long_as_it_fits() -> None:
    plain = {"blob": b"text"}  # which is also base64, of something else
    assert TypedJson[Binary](Binary).decode(TypedJson[Any](Binary).encode(plain)) == Binary(blob=b"text")
    everything = EVERYTHING.model_dump() | {"point": EVERYTHING.point}
    codec = TypedJson[Any](Everything)
    assert codec.decode(codec.encode(everything)) == EVERYTHING


def test_bytes_that_are_not_text_are_refused_with_the_way_to_keep_them() -> None:
    with pytest.raises(ValidationError, match=r'model_config = ConfigDict\(ser_json_bytes="base64"'):
        TypedJson[Text](Text).encode(Text(blob=b"\xff"))


def test_a_field_is_written_under_the_name_that_readers_look_for() -> None:
    assert TypedJson[Aliased](Aliased).encode(Aliased(orderId=1)) == b'{"orderId":1}'
    assert UntypedJson().encode(Aliased(orderId=1)) == b'{"orderId":1}'


@pytest.mark.parametrize("encoded", [b'{"order_id":1,"total":1' + b"0" * 400 + b"}", b'{"order_id":1,"total":"1e999"}'])
def test_what_would_be_read_as_an_infinity_is_undecodable(encoded: bytes) -> None:
    with pytest.raises((Undecodable, InvalidPayload)):
        TypedJson[Order](Order).decode(encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        b"[" * 1_000 + b"]" * 1_000,
        b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
        b'{"order_id":' + b"9" * 5_000 + b"}",
        b'{"order_id":1,"placed":"\xff\xfe"}',
        b'{"\xff":1}',
        b'{"order_id":NaN}',
        b'{"order_id":1,"total":-Infinity}',
        b'"\\ud800"',
        b"\x00",
    ],
)
@pytest.mark.parametrize("schema", [None, Order, Point, Row, Everything, list[Order], Answer, Page[Order], JsonValue])
def test_hostile_bytes_have_a_clear_end(schema: Any, encoded: bytes) -> None:
    with pytest.raises((Undecodable, InvalidPayload)) as caught:
        codec_for(schema).decode(encoded)
    assert len(str(caught.value)) < 1_000


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@pytest.mark.parametrize("schema", [None, Order, list[Answer], Everything])
def test_any_bytes_are_read_or_refused(schema: Any, encoded: bytes) -> None:
    codec = codec_for(schema)
    with contextlib.suppress(Undecodable, InvalidPayload):
        payload = codec.decode(encoded)
        assert codec.decode(codec.encode(payload)) == payload


@pytest.mark.parametrize(
    ("schema", "payload", "problem"),
    [
        (Order, {"order_id": "1"}, "order_id: Input should be a valid integer"),
        (Order, {}, "order_id: Field required"),
        (Order, 5, "the payload does not fit Order"),
        (Order, Point(1, 2.0), "the payload does not fit Order"),
        (int, "5", "the payload does not fit int"),
        (int, True, "the payload does not fit int"),
        (list[int], [1, "2"], "1: Input should be a valid integer"),
        (dict[str, int], {"a": 1.5}, "a: Input should be a valid integer"),
    ],
)
def test_writers_are_strict(schema: Any, payload: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TypedJson[Any](schema).encode(payload)


def test_model_that_was_changed_to_hold_something_else_is_refused() -> None:
    order = Order(order_id=1)
    order.order_id = "secret"  # type: ignore[assignment]  # which is the point
    with pytest.raises(ValidationError, match="it holds values that its type does not allow") as caught:
        TypedJson[Order](Order).encode(order)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("number", NON_FINITE)
def test_nan_and_infinities_are_refused_in_models(number: float) -> None:
    with pytest.raises(ValidationError):
        TypedJson[Order](Order).encode(Order(order_id=1, total=number))
    with pytest.raises(ValidationError):
        TypedJson[float](float).encode(number)


def test_readers_are_lenient() -> None:
    decoded = TypedJson[Order](Order).decode(b'{"order_id":"7","total":1,"added_later":true}')
    assert decoded == Order(order_id=7, total=1.0)


def test_what_does_not_fit_is_an_invalid_payload_and_is_not_quoted() -> None:
    with pytest.raises(InvalidPayload) as caught:
        TypedJson[Order](Order).decode(b'{"order_id":"secret-value"}')
    text = str(caught.value)
    assert text.startswith("the payload does not fit Order: order_id: Input should be a valid integer")
    assert "secret-value" not in text


def test_validation_errors_carry_locations_without_values() -> None:
    with pytest.raises(ValidationError) as caught:
        TypedJson[Order](Order).encode({"order_id": "secret", "total": "secret"})  # type: ignore[arg-type]
    assert [where for where, _ in caught.value.errors] == ["order_id", "total"]
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.errors)


def test_many_problems_are_cut_short() -> None:
    with pytest.raises(ValidationError, match="and 15 more"):
        TypedJson[list[int]](list[int]).encode(["x"] * 20)  # type: ignore[list-item]


# Which codec


@pytest.mark.parametrize("schema", [None, Any])
def test_no_type_is_any_json(schema: Any) -> None:
    assert isinstance(codec_for(schema), UntypedJson)


def test_a_type_is_its_codec() -> None:
    codec = codec_for(Mapping[str, int])
    assert isinstance(codec, TypedJson)
    assert codec.decode(b'{"a":1}') == {"a": 1}


def test_names_of_types_are_short() -> None:
    assert [type_name(one) for one in (Order, int, list[Order])] == ["Order", "int", "list"]
    assert [type_name(one) for one in (Answer, Order | None)] == ["Paid | Refused", "Order | None"]


class Unknown:
    """A class that pydantic knows nothing of."""


class Tree(BaseModel):
    branches: "list[Branch]"  # type: ignore[name-defined]  # noqa: F821  # never defined


@pytest.mark.parametrize("schema", [Unknown, list[Unknown], dict[str, Unknown]])
def test_type_that_pydantic_does_not_know_is_refused_at_once(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the type of a payload: Unable to generate"):
        codec_for(schema)


def test_name_that_is_not_defined_yet_is_refused_only_when_it_must_be_known() -> None:
    codec = codec_for(Tree)
    with pytest.raises(ConfigurationError, match=r"Tree cannot be the type of a payload: a name in it is not defined"):
        codec.check()
