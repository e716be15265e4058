"""Spans of OpenTelemetry around publishing and handling. It needs the extra: pip install 'pubsub-streams[otel]'.

    from pubsub_core.otel import instrument

    instrument(pubsub)

The span of a handler continues the trace of its publish, which travels in the header `traceparent`. That of one that
takes batches begins a trace, as no one message has caused it, and links to the publish of each. The names are those
of the semantic conventions for messaging, v1.45, which are not stable yet: they stand here, and nowhere else.
"""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

from pubsub_core.errors import Retry
from pubsub_core.message import Delivery, Message
from pubsub_core.middleware import HandleNext, PublishNext
from pubsub_core.pubsub import PubSub

SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
MESSAGE_ID = "messaging.message.id"
CONSUMER_GROUP = "messaging.consumer.group.name"
ERROR_TYPE = "error.type"
MESSAGE_COUNT = "messaging.batch.message_count"
ATTEMPT = "pubsub.message.attempt"  # the conventions have no name for it

_SYSTEMS = {"rediss": "redis", "unix": "redis"}


def instrument(pubsub: PubSub, tracer_provider: TracerProvider | None = None) -> None:
    """Have each publish, and each handler, of a `PubSub` traced. Call it once, before other middleware is added.

    Without a `tracer_provider` it is the global one, also if that is set later. In a batch the span of a publish covers
    the adding to the batch. A `Retry` that a handler asks for is not an error; what else it raises is.
    """
    tracer = trace.get_tracer("pubsub", tracer_provider=tracer_provider)

    def publish(message: Message[Any], call_next: PublishNext) -> None:
        attributes = {**_attributes(pubsub, message), OPERATION_NAME: "publish", OPERATION_TYPE: "send"}
        with tracer.start_as_current_span(
            f"publish {message.topic}",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            headers = dict(message.headers)
            propagate.inject(headers)
            _noting_errors(span, lambda: call_next(replace(message, headers=MappingProxyType(headers))))

    def handle(delivery: Delivery[Any], call_next: HandleNext) -> None:
        message = delivery.message
        if _is_batch(message):
            parent = context.Context()
            origins = [_origin(one) for one in message.payload]
            attributes = {**_common(pubsub, message), MESSAGE_COUNT: len(origins)}
        else:
            parent = _origin(message)
            origins = [parent]
            attributes = {**_attributes(pubsub, message), ATTEMPT: message.attempt}
        published = [trace.get_current_span(one).get_span_context() for one in origins]
        attributes |= {
            OPERATION_NAME: "process",
            OPERATION_TYPE: "process",
            CONSUMER_GROUP: delivery.subscription.group,
        }
        with tracer.start_as_current_span(
            f"process {message.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=[Link(one) for one in published if one.is_valid],
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            _noting_errors(span, lambda: call_next(delivery))

    pubsub.publish_middleware(publish)
    pubsub.middleware(handle)


def _is_batch(message: Message[Any]) -> bool:
    """Whether it stands for several; a payload that came from a broker is never a list of messages."""
    payload = message.payload
    return isinstance(payload, list) and bool(payload) and isinstance(payload[0], Message)


def _origin(message: Message[Any]) -> context.Context:
    """Return the context in which it was published, as its headers tell."""
    return propagate.extract(message.headers, context=context.Context())


def _attributes(pubsub: PubSub, message: Message[Any]) -> dict[str, str | int]:
    return {**_common(pubsub, message), MESSAGE_ID: message.id}


def _common(pubsub: PubSub, message: Message[Any]) -> dict[str, str | int]:
    scheme = pubsub.settings.url.partition(":")[0].partition("+")[0]
    return {SYSTEM: _SYSTEMS.get(scheme, scheme), DESTINATION: message.topic}


def _noting_errors(span: Span, work: Callable[[], None]) -> None:
    try:
        work()
    except Retry:
        raise
    except BaseException as error:
        # Its class alone: the text of an error may hold what the payload held.
        span.set_attribute(ERROR_TYPE, type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
        raise
