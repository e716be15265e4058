"""Traces: a handler continues the trace of its publish."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from pubsub_core import BrokerUnavailable, FixedDelay, ManualClock, NoRetry, PubSub, Retry, Worker
from pubsub_core.otel import instrument


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def pubsub(provider):
    pubsub = PubSub("memory://", group="billing", clock=ManualClock())
    instrument(pubsub, provider)
    yield pubsub
    pubsub.close()


def drain(pubsub: PubSub) -> None:
    with Worker(pubsub, threads=2, burst=True) as worker:
        assert worker.wait(10)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_a_handler_continues_the_trace_of_its_publish_and_links_to_it(pubsub, provider, exporter):
    inside = []

    @pubsub.subscribe("orders")
    def handle(message):
        inside.append((get_current_span().get_span_context(), message.headers["traceparent"]))

    with provider.get_tracer("web").start_as_current_span("POST /orders"):
        id = pubsub.publish("orders", {"n": 1})
    drain(pubsub)

    (request,), (published,), (handled,) = (
        named(exporter, name) for name in ("POST /orders", "publish orders", "process orders")
    )
    assert published.kind is SpanKind.PRODUCER
    assert published.parent.span_id == request.context.span_id
    assert handled.kind is SpanKind.CONSUMER
    assert handled.context.trace_id == request.context.trace_id
    assert handled.parent.span_id == published.context.span_id
    assert [link.context.span_id for link in handled.links] == [published.context.span_id]
    assert dict(published.attributes) == {
        "messaging.system": "memory",
        "messaging.destination.name": "orders",
        "messaging.message.id": id,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    assert dict(handled.attributes) == {
        "messaging.system": "memory",
        "messaging.destination.name": "orders",
        "messaging.message.id": id,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "billing",
        "pubsub.message.attempt": 1,
    }
    ((context, traceparent),) = inside
    assert context.span_id == handled.context.span_id
    assert traceparent.startswith(f"00-{published.context.trace_id:032x}-{published.context.span_id:016x}-")


def test_a_batch_begins_a_trace_that_links_to_the_publish_of_each_and_what_it_publishes_continues_it(
    pubsub, provider, exporter
):
    @pubsub.subscribe("orders", batch=10)
    def handle(orders: list[int]) -> None:
        pubsub.publish("invoices", len(orders))

    for number in range(3):
        with provider.get_tracer("web").start_as_current_span("POST /orders"):
            pubsub.publish("orders", number)
    drain(pubsub)

    published, (handled,), (invoice,) = (
        named(exporter, name) for name in ("publish orders", "process orders", "publish invoices")
    )
    assert handled.parent is None
    assert handled.context.trace_id not in {span.context.trace_id for span in published}
    assert [link.context.span_id for link in handled.links] == [span.context.span_id for span in published]
    assert dict(handled.attributes) == {
        "messaging.system": "memory",
        "messaging.destination.name": "orders",
        "messaging.batch.message_count": 3,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "billing",
    }
    assert invoice.parent.span_id == handled.context.span_id


def test_a_payload_that_is_a_list_is_no_batch(pubsub, exporter):
    pubsub.subscribe("orders")(lambda message: None)
    id = pubsub.publish("orders", [1, 2])
    drain(pubsub)

    (handled,) = named(exporter, "process orders")
    assert handled.attributes["messaging.message.id"] == id


def test_what_an_async_handler_publishes_belongs_to_the_same_trace(pubsub, exporter):
    @pubsub.subscribe("orders")
    async def handle(message):
        pubsub.publish("invoices", {})

    pubsub.publish("orders", {})
    drain(pubsub)

    (first,), (handled,), (second,) = (
        named(exporter, name) for name in ("publish orders", "process orders", "publish invoices")
    )
    assert second.parent.span_id == handled.context.span_id
    assert second.context.trace_id == first.context.trace_id


def test_an_error_is_named_by_its_class_and_never_by_its_text(pubsub, exporter):
    @pubsub.subscribe("orders", retry=NoRetry())
    def handle(message):
        raise ValueError("card 4111-1111")

    pubsub.publish("orders", {})
    drain(pubsub)

    (handled,) = named(exporter, "process orders")
    assert handled.status.status_code is StatusCode.ERROR
    assert handled.attributes["error.type"] == "ValueError"
    assert "4111" not in handled.to_json()


def test_each_attempt_is_a_span_and_a_retry_asked_for_is_no_error(pubsub, exporter):
    @pubsub.subscribe("orders", retry=FixedDelay(1, max_retries=3))
    def handle(message):
        if message.attempt == 1:
            raise Retry(delay=1)

    pubsub.publish("orders", {})
    drain(pubsub)
    pubsub.runtime.clock.advance(2)
    drain(pubsub)

    first, second = named(exporter, "process orders")
    assert [one.attributes["pubsub.message.attempt"] for one in (first, second)] == [1, 2]
    assert first.status.status_code is StatusCode.UNSET
    assert first.context.trace_id == second.context.trace_id


def test_a_publish_that_fails_is_an_error_of_its_span(pubsub, exporter, monkeypatch):
    def away(*_, **__):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(pubsub.runtime.broker, "publish", away)
    with pytest.raises(BrokerUnavailable):
        pubsub.publish("orders", {})

    (published,) = named(exporter, "publish orders")
    assert published.attributes["error.type"] == "BrokerUnavailable"


def test_messages_of_a_batch_have_a_span_each(pubsub, exporter):
    seen = []

    @pubsub.subscribe("orders")
    def handle(message):
        seen.append(message.headers["traceparent"])

    with pubsub.batch() as batch:
        for number in range(3):
            batch.publish("orders", number)
    drain(pubsub)

    assert len(set(seen)) == 3
    assert len(named(exporter, "publish orders")) == 3


def test_a_message_from_elsewhere_begins_a_trace(pubsub, exporter):
    @pubsub.subscribe("orders")
    def handle(message):
        pass

    plain = PubSub("memory://", group="billing")
    fields = plain._fields(plain.runtime, "orders", 1, None, {"traceparent": "junk"}, None, None)
    pubsub.topic("orders")
    pubsub.runtime.broker.publish([plain._encoded(plain.runtime, fields)])
    drain(pubsub)
    plain.close()

    (handled,) = named(exporter, "process orders")
    assert handled.parent is None
    assert not handled.links


def test_without_an_sdk_nothing_changes():
    pubsub = PubSub("memory://", group="billing")
    instrument(pubsub)
    seen = []

    @pubsub.subscribe("orders")
    def handle(message):
        seen.append(dict(message.headers))

    id = pubsub.publish("orders", {}, headers={"a": "b"})
    drain(pubsub)
    pubsub.close()
    assert seen == [{"a": "b", "correlation-id": id}]
