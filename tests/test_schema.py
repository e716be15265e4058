"""Schemas as files: exported, checked, and put into an AsyncAPI document; by command, through both doors."""

import json
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from click.testing import CliRunner, Result
from flask.cli import FlaskGroup
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainSerializer, computed_field

from pubsub_core import ConfigurationError, Message, PubSub
from pubsub_core.cli import main as pubsub_command
from pubsub_core.commands import COMMANDS
from pubsub_core.schema.asyncapi import asyncapi
from pubsub_core.schema.check import Verdict, check, export
from pubsub_core.schema.export import Directory
from pubsub_flask.commands import pubsub as flask_pubsub

ROOT = Path(__file__).resolve().parent.parent


class Line(BaseModel):
    sku: str
    quantity: int = 1


class OrderPlaced(BaseModel):
    """An order was placed."""

    order_id: int
    lines: list[Line]
    note: str | None = None


class OrderPlacedInEuro(BaseModel):
    order_id: int
    lines: list[Line]
    note: str | None = None
    euro: Decimal


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "schemas")


def declared(schema: Any, version: int | None = None, **others: Any) -> PubSub:
    """Return an application with the topic orders.placed, and others."""
    pubsub = PubSub("memory://", group="shop")
    pubsub.topic("orders.placed", schema, version=version)
    for name, one in others.items():
        pubsub.topic(name, one)
    return pubsub


def verdict(pubsub: PubSub, directory: Directory) -> Verdict:
    (found,) = check(pubsub, directory)
    return found


def found(one: Verdict) -> list[tuple[str, list[str]]]:
    return [(finding.what, [problem.path for problem in finding.problems]) for finding in one.findings]


BEFORE = "What was written before could not be read any more"
NOW = "Readers of the exported schema could not read what is written now"

# Files


def test_each_topic_with_a_schema_has_a_file_that_is_a_json_schema(directory):
    pubsub = declared(OrderPlaced, 3, numbers=list[int], untyped=None)

    assert [(one.topic, one.version, one.summary) for one in export(pubsub, directory)] == [
        ("numbers", 1, "written"),
        ("orders.placed", 3, "written"),
    ]

    assert directory.all() == [("numbers", 1), ("orders.placed", 3)]
    for path in directory.path.iterdir():
        document = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(document)
        assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_what_is_published_fits_the_file_and_what_is_accepted_fits_its_other_part(directory):
    pubsub = declared(OrderPlaced)
    export(pubsub, directory)
    document = directory.load("orders.placed", 1)
    encoded = pubsub.topic("orders.placed").codec.encode(OrderPlaced(order_id=1, lines=[Line(sku="a")]))

    jsonschema.validate(json.loads(encoded), document)
    with pytest.raises(jsonschema.ValidationError, match="'note' is a required property"):
        jsonschema.validate({"order_id": 1, "lines": []}, document)
    jsonschema.validate({"order_id": 1, "lines": [{"sku": "a"}]}, {"$ref": "#/x-read", "x-read": document["x-read"]})


def test_the_same_types_give_the_same_bytes(tmp_path):
    """In another process, with another seed of hashes."""
    code = textwrap.dedent("""
        import enum, sys
        from pathlib import Path
        from typing import Literal
        from pydantic import BaseModel
        from pubsub_core import PubSub
        from pubsub_core.schema.check import export
        from pubsub_core.schema.export import Directory

        class Size(enum.Enum):
            SMALL = "s"
            LARGE = "l"

        class Line(BaseModel):
            sku: str
            sizes: frozenset[Size] = frozenset(Size)
            kind: Literal["b", "a"] | None = None

        class Order(BaseModel):
            zebra: list[Line]
            apple: dict[str, Line]

        pubsub = PubSub("memory://")
        pubsub.topic("orders", Order)
        export(pubsub, Directory(Path(sys.argv[1])))
    """)
    texts = set()
    for seed in ("1", "2"):
        target = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, target], check=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT
        )
        texts.add((target / "orders.v1.json").read_bytes())

    assert len(texts) == 1
    assert list(json.loads(texts.pop())["properties"]) == ["zebra", "apple"]  # as they are declared


def test_exporting_again_changes_nothing(directory):
    export(declared(OrderPlaced), directory)
    before = directory.file("orders.placed", 1).stat().st_mtime_ns

    (again,) = export(declared(OrderPlaced), directory)

    assert again.summary == "unchanged"
    assert directory.file("orders.placed", 1).stat().st_mtime_ns == before


def test_other_files_of_the_directory_are_left_alone(directory):
    directory.path.mkdir()
    others = {"README.md": "schemas", "orders.placed.json": "{", "orders.v0.json": "{", "a.vx.json": "{"}
    for name, text in others.items():
        (directory.path / name).write_text(text)

    export(declared(OrderPlaced), directory)

    assert verdict(declared(OrderPlaced), directory).summary == "unchanged"
    assert {name: (directory.path / name).read_text() for name in others} == others


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is not a JSON Schema: it is a list"),
    ],
)
def test_a_file_that_is_broken_is_named(directory, text, why):
    directory.path.mkdir()
    directory.file("orders.placed", 1).write_bytes(text)

    for act in (check, export):
        with pytest.raises(ConfigurationError, match=rf"orders\.placed\.v1\.json {why}"):
            act(declared(OrderPlaced), directory)


def test_a_type_without_words_in_json_schema_is_refused_and_named(directory):
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        value: "Unknown"

    with pytest.raises(
        ConfigurationError, match=r"topic 'orders\.placed': Odd cannot be written as JSON Schema: Cannot"
    ):
        export(declared(Odd), directory)


class Unknown:
    """A class that pydantic knows nothing of."""


# Checking


def test_nothing_has_changed(directory):
    export(declared(OrderPlaced), directory)

    assert verdict(declared(OrderPlaced), directory) == Verdict("orders.placed", 1, "unchanged")


def test_what_was_never_exported_must_be(directory):
    one = verdict(declared(OrderPlaced), directory)

    assert one.summary == "not exported"
    assert found(one) == [(f"There is no {directory.file('orders.placed', 1)}", [])]
    assert "pubsub schema export" in one.findings[0].fix


def test_a_compatible_change_passes_and_is_exported(directory):
    class More(OrderPlaced):
        currency: str = "EUR"

    export(declared(OrderPlaced), directory)

    assert verdict(declared(More), directory) == Verdict("orders.placed", 1, "changed, and compatible")
    assert [one.summary for one in export(declared(More), directory)] == ["written"]
    assert verdict(declared(More), directory).summary == "unchanged"


def test_a_breaking_change_fails_naming_field_and_rule_and_what_to_do(directory):
    class Changed(BaseModel):
        order_id: str
        lines: list[Line]
        total: float

    export(declared(OrderPlaced), directory)

    one = verdict(declared(Changed), directory)

    assert one.summary == "changed, and breaks readers or writers"
    assert found(one) == [(BEFORE, ["order_id", "total"]), (NOW, ["order_id"])]
    assert [problem.rule for problem in one.findings[0].problems] == ["type", "required"]
    for said in ("version=2", "upcast(from_version=1)", "pubsub schema export"):
        assert said in one.findings[0].fix


def test_a_breaking_change_does_not_replace_the_file_unless_it_is_forced(directory):
    export(declared(OrderPlaced), directory)
    before = directory.load("orders.placed", 1)

    (refused,) = export(declared(OrderPlacedInEuro), directory)

    assert refused.summary == "not written, as it would break readers or writers"
    assert [what for what, _ in found(refused)] == [BEFORE]
    assert directory.load("orders.placed", 1) == before
    (forced,) = export(declared(OrderPlacedInEuro), directory, force=True)
    assert (forced.summary, forced.findings) == ("written", ())
    assert verdict(declared(OrderPlacedInEuro), directory).summary == "unchanged"


def test_a_new_version_may_break_with_the_one_before(directory):
    export(declared(OrderPlaced), directory)
    current = declared(OrderPlacedInEuro, 2)

    assert [what for what, _ in found(verdict(current, directory))] == [
        f"There is no {directory.file('orders.placed', 2)}"
    ]
    export(current, directory)

    assert verdict(current, directory) == Verdict("orders.placed", 2, "unchanged")
    assert directory.versions("orders.placed") == [1, 2]


def test_a_version_does_not_go_back(directory):
    export(declared(OrderPlaced), directory)
    export(declared(OrderPlacedInEuro, 2), directory)

    one = verdict(declared(OrderPlaced), directory)

    assert found(one) == [(f"There is {directory.file('orders.placed', 2)}, and the topic is at version 1", [])]
    assert "version=3" in one.findings[0].fix


def test_versions_are_compared_as_numbers(directory):
    export(declared(OrderPlaced, 9), directory)
    export(declared(OrderPlaced, 10), directory)

    assert verdict(declared(OrderPlaced, 10), directory).summary == "unchanged"


def test_a_topic_that_has_lost_its_schema_breaks_its_readers(directory):
    export(declared(OrderPlaced), directory)

    one = verdict(declared(None), directory)

    assert [what for what, _ in found(one)] == [NOW]


def test_a_topic_that_is_not_declared_any_more_is_told_and_is_no_failure(directory):
    export(declared(OrderPlaced, mails=str), directory)

    assert check(declared(OrderPlaced), directory)[1] == Verdict("mails", 1, "not declared here")


def test_a_type_that_cannot_read_what_it_writes_is_found(directory):
    class Torn(BaseModel):
        total: int = Field(validation_alias="in", serialization_alias="out")

    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")

        net: int

        @computed_field
        def gross(self) -> int:
            return self.net * 2

    class Renamed(BaseModel):
        total: int = Field(validation_alias=AliasChoices("amount", "total"), serialization_alias="total")

    for schema, paths in ((Torn, ["in"]), (Strict, ["gross"]), (Renamed, None)):
        export(declared(schema), directory, force=True)
        expected = [("Its own readers could not read what it writes", paths)] if paths else []
        assert found(verdict(declared(schema), directory)) == expected


def test_a_handler_that_asks_for_what_the_topic_does_not_carry_is_found(directory):
    class OnlyTheId(BaseModel):
        order_id: int

    class Euro(BaseModel):
        order_id: int
        euro: Decimal

    pubsub = declared(OrderPlaced)
    export(pubsub, directory)

    @pubsub.subscribe("orders.placed", group="fine")
    def fine(order: OnlyTheId) -> None: ...

    @pubsub.subscribe("orders.placed", group="wrong")
    def wrong(order: Euro) -> None: ...

    @pubsub.subscribe("orders.placed", group="untyped")
    def untyped(message: Message[Any]) -> None: ...

    ((what, paths),) = found(verdict(pubsub, directory))

    assert f"{__name__}.test_a_handler_that_asks_for_what_the_topic_does_not_carry_is_found.wrong (" in what
    assert paths == ["euro"]


def test_a_field_that_never_could_be_compared_does_not_fail_for_ever(directory):
    """A function writes it that does not say what: that it cannot be told is no news."""

    class Odd(BaseModel):
        odd: Annotated[int, PlainSerializer(lambda value: value)]

    class More(Odd):
        more: int = 0

    class Worse(BaseModel):
        odd: Annotated[str, PlainSerializer(lambda value: value)]

    export(declared(Odd), directory)

    assert verdict(declared(Odd), directory).summary == "unchanged"
    assert verdict(declared(More), directory).summary == "changed, and compatible"
    assert verdict(declared(Worse), directory).summary == "changed, and breaks readers or writers"


# AsyncAPI

OFFICIAL = json.loads((ROOT / "tests" / "asyncapi" / "3.0.0.json").read_text())


class Paid(BaseModel):
    kind: Literal["paid"] = "paid"
    position: tuple[int, str]


class Refused(BaseModel):
    kind: Literal["refused"] = "refused"
    discriminator: str
    prefixItems: list[str]


class Tree(BaseModel):
    branches: "list[Tree]" = []


def shop() -> PubSub:
    pubsub = PubSub("memory://", group="shop")
    orders = pubsub.topic("orders.placed", OrderPlacedInEuro, version=3)
    for version in (1, 2):
        orders.upcast(from_version=version)(lambda payload: payload)
    pubsub.topic("answers", Annotated[Paid | Refused, Field(discriminator="kind")])
    pubsub.topic("pairs", list[tuple[int, str]])
    pubsub.topic("trees", Tree)
    pubsub.topic("mails")
    pubsub.topic("crm", stream="crm/events")

    @orders.subscribe(group="billing")
    def charge(order: OrderPlacedInEuro) -> None:
        """Charge the customer.

        Once.
        """

    @pubsub.subscribe("mails")
    async def send(message: Message[Any]) -> None: ...

    @pubsub.cron("0 3 * * *", name="nightly")
    def nightly() -> None: ...

    return pubsub


def test_the_document_is_valid_asyncapi(directory):
    export(declared(OrderPlaced), directory)

    document = asyncapi(shop(), directory, title="Shop", version="2.1")

    jsonschema.Draft7Validator(OFFICIAL).validate(document)
    assert (document["asyncapi"], document["info"]) == ("3.0.0", {"title": "Shop", "version": "2.1"})
    for reference in references(document):
        assert resolved(document, reference) is not None


def test_the_official_schema_would_find_a_mistake(directory):
    document = asyncapi(shop(), directory)
    document["operations"]["send:mails"]["action"] = "publish"

    assert not jsonschema.Draft7Validator(OFFICIAL).is_valid(document)


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for one in part:
            yield from references(one)


def resolved(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_the_document_has_every_topic_subscription_schema_and_version(directory):
    export(declared(OrderPlaced), directory)

    document = asyncapi(shop(), directory)

    channels, operations = document["channels"], document["operations"]
    assert channels.keys() == {"orders.placed", "answers", "pairs", "trees", "mails", "crm", "nightly"}
    assert channels["crm"]["address"] == "crm/events"
    assert channels["orders.placed"]["messages"].keys() == {"v1", "v2", "v3"}
    received = {name: one for name, one in operations.items() if one["action"] == "receive"}
    assert received.keys() == {"receive:orders.placed:billing", "receive:mails:shop", "receive:nightly:shop"}
    assert received["receive:orders.placed:billing"]["summary"] == "Charge the customer."
    assert received["receive:orders.placed:billing"]["title"].endswith(".shop.charge")
    assert {name for name, one in operations.items() if one["action"] == "send"} == {f"send:{one}" for one in channels}
    assert operations["send:orders.placed"]["messages"] == [{"$ref": "#/channels/orders.placed/messages/v3"}]
    messages = document["components"]["messages"]
    first, second, third = (messages[f"orders.placed.v{version}"] for version in (1, 2, 3))
    assert first["payload"]["description"] == "An order was placed."  # as it was exported
    assert first["payload"]["properties"]["lines"]["items"] == {"$ref": "#/components/schemas/orders.placed.v1.Line"}
    assert "required" not in first["headers"]
    assert "payload" not in second  # nobody kept it
    assert second["headers"]["properties"]["schema-version"] == {"const": "2"}
    assert third["headers"]["required"] == ["schema-version"]
    assert third["payload"] == {"$ref": "#/components/schemas/OrderPlacedInEuro"}
    assert "payload" not in messages["mails.v1"]


def test_schemas_are_in_the_words_of_asyncapi(directory):
    document = asyncapi(shop(), directory)

    schemas, messages = document["components"]["schemas"], document["components"]["messages"]
    assert messages["answers.v1"]["payload"]["discriminator"] == "kind"
    pair = messages["pairs.v1"]["payload"]["items"]
    assert pair["items"] == [{"type": "integer"}, {"type": "string"}]
    assert "prefixItems" not in pair
    assert schemas["Refused"]["properties"].keys() == {"kind", "discriminator", "prefixItems"}  # names of fields
    assert schemas["Tree"]["properties"]["branches"]["items"] == {"$ref": "#/components/schemas/Tree"}


# Commands

SHOP = """
from flask import Flask
from pydantic import BaseModel
from pubsub_flask import PubSub

class OrderPlaced(BaseModel):
    order_id: int
    {field}

app = Flask(__name__)
app.config["PUBSUB_URL"] = "memory://"
pubsub = PubSub(app)
orders = pubsub.topic("orders.placed", OrderPlaced, version={version})
mails = pubsub.topic("mails")
{more}
"""

Run = Callable[..., Result]


@pytest.fixture(params=["pubsub", "flask"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what writes a shop, and runs a command on it through one of the doors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*words: str, field: str = "total: float", version: int = 1, more: str = "") -> Result:
        module = f"shop_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(SHOP.format(field=field, version=version, more=more))
        if request.param == "pubsub":
            at = 2 if words[0] == "schema" else 1
            return CliRunner().invoke(pubsub_command, [*words[:at], module, *words[at:]])
        return CliRunner().invoke(FlaskGroup(), ["--app", module, "pubsub", *words])

    return run


def test_a_schema_is_exported_and_checked(run, tmp_path):
    missing = run("schema", "check")
    exported = run("schema", "export")
    checked = run("schema", "check")

    assert missing.exit_code == 1, missing.output
    assert "There is no schemas/orders.placed.v1.json" in missing.output
    assert (exported.exit_code, exported.output) == (0, "orders.placed version 1: written\n")
    assert (checked.exit_code, checked.output) == (0, "orders.placed version 1: unchanged\n")
    assert sorted(path.name for path in (tmp_path / "schemas").iterdir()) == ["orders.placed.v1.json"]


def test_a_change_that_breaks_fails_and_says_how_to_go_on(run):
    run("schema", "export", "--dir", "here")

    for command in ("check", "export"):
        ended = run("schema", command, "--dir", "here", field="total: str")
        assert ended.exit_code == 1
        assert "    total: a number is written, and only text is read (type)\n" in ended.output
        assert ended.output.count("Declare it with version=2") == 1
    forced = run("schema", "export", "-d", "here", "--force", field="total: str")
    assert (forced.exit_code, forced.output) == (0, "orders.placed version 1: written\n")


def test_a_version_without_an_upcast_is_wrong_configuration(run):
    more = "@orders.subscribe()\ndef charge(order: OrderPlaced) -> None: ..."

    ended = run("schema", "check", version=2, more=more)

    assert ended.exit_code == 2
    assert "has no upcast from version 1" in ended.output
    assert "Traceback" not in ended.output


def test_an_application_without_schemas_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"empty_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text("from pubsub_core import PubSub\npubsub = PubSub('memory://')\n")

    for command in ("export", "check"):
        ended = CliRunner().invoke(pubsub_command, ["schema", command, module])
        assert (ended.exit_code, ended.output) == (0, "No topic here has a schema.\n")
    assert not (tmp_path / "schemas").exists()


def test_an_application_that_is_not_there_is_wrong_usage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for words in (["schema", "check", "nowhere"], ["schema", "export", "nowhere"], ["asyncapi", "nowhere"]):
        ended = CliRunner().invoke(pubsub_command, words)
        assert ended.exit_code == 2
        assert "there is no module 'nowhere'" in ended.output


def test_a_directory_that_cannot_be_written_is_wrong_usage(run, tmp_path):
    (tmp_path / "file").write_text("")

    ended = run("schema", "export", "--dir", "file/below")

    assert ended.exit_code == 2
    assert "file/below/orders.placed.v1.json cannot be written" in ended.output


def test_the_asyncapi_document_is_printed_or_written(run, tmp_path):
    run("schema", "export")
    changed = {"field": "cents: int", "version": 2, "more": "orders.upcast(from_version=1)(lambda payload: payload)"}

    printed = run("asyncapi", "--title", "Shop", "--app-version", "7", **changed)
    written = run("asyncapi", "-o", "asyncapi.json", "--title", "Shop", "--app-version", "7", **changed)

    assert (printed.exit_code, written.exit_code, written.output) == (0, 0, "")
    document = json.loads(printed.output)
    assert json.loads((tmp_path / "asyncapi.json").read_text()) == document
    jsonschema.Draft7Validator(OFFICIAL).validate(document)
    assert document["info"] == {"title": "Shop", "version": "7"}
    assert document["components"]["messages"]["orders.placed.v1"]["payload"]["required"] == ["order_id", "total"]


def test_every_command_has_both_doors():
    runner = CliRunner()
    for group in (pubsub_command, flask_pubsub):
        assert [*COMMANDS] == group.list_commands(None)
        listed = runner.invoke(group, ["--help"]).output
        for name in COMMANDS:
            assert f"  {name}" in listed
            assert runner.invoke(group, [name, "--help"]).exit_code == 0
        assert runner.invoke(group, ["nonsense"]).exit_code == 2


def test_options_may_come_from_variables_of_flask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"shop_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(SHOP.format(field="total: float", version=1, more=""))
    monkeypatch.setenv("FLASK_PUBSUB_SCHEMA_EXPORT_DIRECTORY", "elsewhere")

    ended = CliRunner().invoke(
        FlaskGroup(), ["--app", module, "pubsub", "schema", "export"], auto_envvar_prefix="FLASK"
    )

    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "elsewhere" / "orders.placed.v1.json").is_file()
