"""What an application publishes and handles, as an AsyncAPI 3.0 document."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic import TypeAdapter

from pubsub_core.codec import TypedJson, type_name
from pubsub_core.errors import ConfigurationError
from pubsub_core.schema.export import READ, Directory, Document, JsonSchemas, described_topics
from pubsub_core.versions import SCHEMA_VERSION

if TYPE_CHECKING:
    from pubsub_core.pubsub import PubSub
    from pubsub_core.subscription import Subscription
    from pubsub_core.topic import Topic

_SCHEMAS = "#/components/schemas/"


def asyncapi(pubsub: "PubSub", directory: Directory, *, title: str | None = None, version: str = "1.0.0") -> Document:
    """Return the document. `directory` has the schemas of earlier versions; those that it lacks have no payload.

    Each topic is a channel, which the application may send to; each subscription is an operation that receives.
    """
    payloads, schemas = _current(pubsub)
    messages: Document = {}
    for topic in pubsub.topics:
        for one in range(1, topic.version + 1):
            payload = payloads.get(topic.name) if one == topic.version else _earlier(directory, topic, one, schemas)
            messages[_name(topic.name, one)] = _message(topic, one, payload)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title or pubsub.settings.group, "version": version},
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in pubsub.topics},
        "operations": {
            **{f"send:{topic.name}": _send(topic) for topic in pubsub.topics},
            **{f"receive:{one.topic}:{one.group}": _receive(one) for one in pubsub.subscriptions()},
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _current(pubsub: "PubSub") -> tuple[Document, Document]:
    """Return the payload of each topic that has a schema, and the schemas that these refer to."""
    adapters = [
        (topic.name, "serialization", topic.codec.adapter)
        for topic in described_topics(pubsub)
        if isinstance(topic.codec, TypedJson)
    ]
    try:
        made, shared = TypeAdapter.json_schemas(
            adapters,  # type: ignore[arg-type]  # "serialization" is one of the modes
            schema_generator=JsonSchemas,
            ref_template=f"{_SCHEMAS}{{model}}",
        )
    except pydantic.PydanticUserError as error:
        raise ConfigurationError(
            f"a schema cannot be written as JSON Schema: {error.message.splitlines()[0]}"
        ) from None
    payloads = {name: _in_asyncapi(payload) for (name, _), payload in made.items()}
    return payloads, {name: _in_asyncapi(schema) for name, schema in shared.get("$defs", {}).items()}


def _earlier(directory: Directory, topic: "Topic[Any]", version: int, schemas: Document) -> Document | None:
    """Return the payload of an earlier version, and add what it refers to to `schemas`."""
    if version not in directory.versions(topic.name):
        return None
    document = directory.load(topic.name, version)
    prefix = f"{_name(topic.name, version)}."
    for name, schema in document.get("$defs", {}).items():
        schemas[prefix + name] = _in_asyncapi(schema, prefix)
    return dict(_translated({key: value for key, value in document.items() if key not in _OF_FILES}, prefix))


_OF_FILES = ("$schema", "$comment", "$defs", READ)


def _name(topic: str, version: int) -> str:
    return f"{topic}.v{version}"


def _message(topic: "Topic[Any]", version: int, payload: Document | None) -> Document:
    headers: Document = {"type": "object", "properties": {"correlation-id": {"type": "string"}}}
    if version > 1:
        headers["properties"][SCHEMA_VERSION] = {"const": str(version)}
        headers["required"] = [SCHEMA_VERSION]
    message: Document = {
        "name": _name(topic.name, version),
        "contentType": "application/json",
        "headers": headers,
        "correlationId": {"location": "$message.header#/correlation-id"},
    }
    if version == topic.version and isinstance(topic.codec, TypedJson):
        message["title"] = type_name(topic.schema)
    return message if payload is None else {**message, "payload": payload}


def _channel(topic: "Topic[Any]") -> Document:
    versions = range(1, topic.version + 1)
    return {
        "address": topic.stream or topic.name,
        "messages": {f"v{one}": {"$ref": f"#/components/messages/{_name(topic.name, one)}"} for one in versions},
    }


def _send(topic: "Topic[Any]") -> Document:
    channel = f"#/channels/{topic.name}"
    return {
        "action": "send",
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/v{topic.version}"}],
    }


def _receive(subscription: "Subscription") -> Document:
    operation: Document = {
        "action": "receive",
        "title": subscription.handler.name,
        "channel": {"$ref": f"#/channels/{subscription.topic}"},
        "x-group": subscription.group,
    }
    said = (getattr(subscription.handler.function, "__doc__", None) or "").strip()
    return {**operation, "summary": said.splitlines()[0]} if said else operation


def _in_asyncapi(schema: Any, prefix: str = "") -> Any:
    """Return a schema of JSON Schema 2020-12 in the words of AsyncAPI's, which are those of draft 7.

    References to `$defs` become references to the document's schemas, under `prefix`.
    """
    if isinstance(schema, list):
        return [_in_asyncapi(one, prefix) for one in schema]
    return dict(_translated(schema, prefix)) if isinstance(schema, Mapping) else schema


def _translated(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in ("default", "const", "enum", "examples"):
            yield key, value
        elif key in ("properties", "patternProperties"):
            yield key, {name: _in_asyncapi(one, prefix) for name, one in value.items()}
        elif key == "$ref":
            yield key, value.replace("#/$defs/", _SCHEMAS + prefix)
        elif key == "discriminator":
            yield key, value["propertyName"]
        elif key == "prefixItems":
            yield "items", _in_asyncapi(value, prefix)
            yield "additionalItems", _in_asyncapi(schema.get("items", True), prefix)
        elif key != "items" or "prefixItems" not in schema:
            yield key, _in_asyncapi(value, prefix)
