"""From a delivery to its settlement: decode → middleware → handler → outcome → settle."""

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, assert_never

from pubsub_core.broker import Consumer
from pubsub_core.context import CURRENT_MESSAGE
from pubsub_core.errors import BrokerError, CodecError, LeaseLost, Reject, Retry, Undecodable, WorkerError
from pubsub_core.message import DeadLetterKind, DeadLetterReason, Delivery, Message, SubscriptionKey
from pubsub_core.middleware import HandleMiddleware, HandleNext, chain
from pubsub_core.outcome import Acked, DeadLettered, Outcome, Released, Retried
from pubsub_core.subscription import Subscription, Takes
from pubsub_core.worker.event_loop import EventLoop
from pubsub_core.worker.settler import Settler

log = logging.getLogger("pubsub")

_DETAIL_LENGTH = 1_000
_TRACEBACK_LENGTH = 8_000
_POLICY_BROKEN_DELAY = 60.0  # seconds; a policy that raises must not decide that a message dies


class Executor:
    """Runs handlers on the calling thread and settles what comes of it. Safe to use from many threads at once."""

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        middleware: Sequence[HandleMiddleware],
        consumer: Consumer,
        settler: Settler,
        loop: EventLoop | None,
    ) -> None:
        self._consumer = consumer
        self._settler = settler
        self._subscriptions: Mapping[SubscriptionKey, Subscription] = {one.key: one for one in subscriptions}
        self._calls: Mapping[SubscriptionKey, HandleNext] = {
            one.key: chain(middleware, _caller(one, loop)) for one in subscriptions
        }

    def execute(self, delivery: Delivery[bytes]) -> None:
        """Handle one delivery, and settle it. Never raises for what a handler or the broker does."""
        subscription = self._subscriptions[delivery.subscription]
        started = monotonic()
        outcome = self._run(delivery, subscription)
        if log.isEnabledFor(logging.INFO):
            _log_settled(delivery.message, subscription, outcome, monotonic() - started)
        self._settle([delivery], outcome)

    def _run(self, delivery: Delivery[bytes], subscription: Subscription) -> Outcome:
        raw = delivery.message
        try:
            decoded = _with_payload(raw, subscription.handler.codec.decode(raw.payload))
        except CodecError as error:
            return DeadLettered(_reason("undecodable" if isinstance(error, Undecodable) else "invalid payload", error))
        token = CURRENT_MESSAGE.set(decoded)
        try:
            self._calls[delivery.subscription](Delivery(decoded, delivery.subscription))
        except Retry as request:
            return Retried(request.delay)
        except Reject as request:
            return DeadLettered(_reason("rejected", request))
        except BaseException as error:  # noqa: BLE001  # sys.exit() in a handler is a failed handler, too
            return _failed(raw, subscription, error)
        finally:
            CURRENT_MESSAGE.reset(token)
        return Acked()

    def _settle(self, deliveries: Sequence[Delivery[bytes]], outcome: Outcome) -> None:
        """Carry out what was decided, of one delivery or, if they are released, of several. The only place that does.

        If the broker cannot be reached the settler tries again, so that this thread is free for other messages.
        """
        try:
            match outcome:
                case Acked():
                    self._settler.ack(deliveries[0])
                case Retried(delay):
                    self._consumer.nack(deliveries[0], delay)
                case DeadLettered(reason):
                    self._consumer.dead_letter(deliveries[0], reason)
                case Released():
                    self._consumer.release(deliveries)
                case _:
                    assert_never(outcome)
        except LeaseLost as error:
            log.warning("lease lost: %s; the other consumer settles it", error)
        except BrokerError as error:
            self._settler.try_again(lambda: self._settle(deliveries, outcome), error)

    def release(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Hand back deliveries that were not started, all in one call."""
        if deliveries:
            self._settle(deliveries, Released())

    def give_up_running(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        """Give deliveries whose handlers are cut short to others, at once; their attempts count."""
        for delivery in deliveries:
            self._settle([delivery], Retried(0.0))


def _caller(subscription: Subscription, loop: EventLoop | None) -> HandleNext:
    """Return what calls the handler the way its signature wants it."""
    handler = subscription.handler
    function = handler.function
    if handler.is_async:
        assert loop is not None  # noqa: S101  # the worker makes one if any handler is async
        function = loop.wrap(function)

    def with_message(delivery: Delivery[Any]) -> None:
        function(delivery.message)

    def with_payload(delivery: Delivery[Any]) -> None:
        function(delivery.message.payload)

    def with_nothing(_: Delivery[Any]) -> None:
        function()

    return {Takes.MESSAGE: with_message, Takes.PAYLOAD: with_payload, Takes.NOTHING: with_nothing}[handler.takes]


def _with_payload(raw: Message[bytes], payload: Any) -> Message[Any]:
    headers = raw.headers or {"correlation-id": raw.id}
    return Message(
        raw.id,
        raw.topic,
        payload,
        raw.published_at,
        raw.key,
        headers if "correlation-id" in headers else {**headers, "correlation-id": raw.id},
        raw.attempt,
        raw.group,
        raw.source,
        raw.position,
    )


def _failed(message: Message[bytes], subscription: Subscription, error: BaseException) -> Outcome:
    """Log the failure, once, and ask the policy what becomes of the message."""
    log.error(
        "%s %s failed in %s (attempt %d): %s",
        message.topic,
        message.id,
        subscription.handler.name,
        message.attempt,
        type(error).__name__,
        exc_info=error,
        extra=_fields(message),
    )
    if not isinstance(error, Exception):
        text = f"the handler raised {type(error).__name__}: {_text(error)}"
        error = WorkerError(text).with_traceback(error.__traceback__)
    try:
        delay = subscription.retry.next_delay(message.attempt, error)
        if delay is not None and not 0 <= delay < math.inf:
            raise ValueError(f"it returned {delay!r}: seconds, 0 or more, or None")
    except BaseException as broken:
        log.exception("the retry policy of %s failed: %s", subscription.handler.name, type(broken).__name__)
        return Retried(_POLICY_BROKEN_DELAY)
    return DeadLettered(_reason("retries exhausted", error)) if delay is None else Retried(delay)


def _reason(kind: DeadLetterKind, error: BaseException) -> DeadLetterReason:
    trace = "".join(traceback.format_exception(error))[-_TRACEBACK_LENGTH:]
    return DeadLetterReason(kind, type(error).__name__, _text(error)[:_DETAIL_LENGTH], _writable(trace))


def _text(error: BaseException) -> str:
    """Return the error's text. It is the user's, so it may raise instead, or hold what UTF-8 cannot say."""
    try:
        return _writable(str(error))
    except Exception as broken:  # noqa: BLE001  # the text says so
        return f"(its text cannot be had: {type(broken).__name__})"


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _log_settled(message: Message[bytes], subscription: Subscription, outcome: Outcome, seconds: float) -> None:
    match outcome:
        case Acked():
            level, what = logging.INFO, "handled by"
        case Retried(delay):
            level, what = logging.INFO, f"to be retried in {delay:.1f} s by"
        case DeadLettered(reason):
            level, what = logging.WARNING, f"dead-lettered ({reason.kind}: {reason.detail or reason.error}) by"
        case Released():
            level, what = logging.INFO, "handed back by"
        case _:
            assert_never(outcome)
    log.log(
        level,
        "%s %s %s %s in %.0f ms (attempt %d)",
        message.topic,
        message.id,
        what,
        subscription.handler.name,
        seconds * 1000,
        message.attempt,
        extra={**_fields(message), "seconds": seconds},
    )


def _fields(message: Message[bytes]) -> dict[str, Any]:
    return {
        "topic": message.topic,
        "message_id": message.id,
        "group": message.group,
        "attempt": message.attempt,
    }
