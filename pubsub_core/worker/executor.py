"""From a delivery to its settlement: decode → middleware → handler → outcome → settle."""

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar, assert_never

from pubsub_core.broker import Consumer
from pubsub_core.context import AT_WORK, CORRELATION_ID, decoded
from pubsub_core.errors import (
    BrokerError,
    CodecError,
    LeaseLost,
    Reject,
    Retry,
    Undecodable,
    WorkerError,
)
from pubsub_core.message import (
    DeadLetterKind,
    DeadLetterReason,
    Delivery,
    Message,
    delivery_of,
    message_of,
)
from pubsub_core.metrics import Observed
from pubsub_core.middleware import HandleMiddleware, HandleNext, chain
from pubsub_core.outcome import ACKED, Acked, DeadLettered, Dropped, Outcome, Released, Retried
from pubsub_core.subscription import Subscription, Takes
from pubsub_core.worker.batches import BatchCall
from pubsub_core.worker.event_loop import EventLoop
from pubsub_core.worker.forks import leave_fork
from pubsub_core.worker.settler import Settler
from pubsub_core.worker.timeouts import Run, Timeouts, frame_of, timed_out

log = logging.getLogger("pubsub")

T = TypeVar("T")

CheckReturned = Callable[[object], None]  # that of the `Handler`; who calls the function asks it about all but None

_DETAIL_LENGTH = 1_000
_TRACEBACK_LENGTH = 8_000
_FRAMES = 50
_POLICY_BROKEN_DELAY = 60.0  # seconds; a policy that raises must not decide that a message dies


class Executor:
    """Runs handlers on the calling thread and settles what comes of it. Safe to use from many threads at once."""

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        middleware: Sequence[HandleMiddleware],
        consumer: Consumer,
        settler: Settler,
        *,
        loop: EventLoop | None,
        timeouts: Timeouts,
        max_crashes: int,
        broker_time: Callable[[], float],
        observe: Callable[[Observed], None] | None = None,
    ) -> None:
        self._observe = observe
        self._broker_time = broker_time
        self._timeouts = timeouts
        self._max_crashes = max_crashes
        self._consumer = consumer
        self._settler = settler
        self._ack = settler.ack  # as `_settle` does it, without a call more: this is on the path of each message
        self._plans = {one.key: _plan(one, middleware, loop) for one in subscriptions}

    def execute(self, deliveries: Sequence[Delivery[bytes]]) -> float | None:
        """Handle what one call of a handler takes, and settle it. Never raises for what a handler or the broker does.

        Returns the seconds that it took; None if it was given up meanwhile, and the calling thread with it: it has been
        replaced.
        """
        delivery = deliveries[0]
        plan = self._plans.get(delivery.subscription)
        if plan is not None and plan.takes_batch:
            started = monotonic()
            suspicious = any(one.crashes or one.message.expires_at is not None for one in deliveries)
            left = [one for one in deliveries if not self._refuse(one, plan)] if suspicious else deliveries
            return self._execute_batch(left, plan) if left else monotonic() - started
        is_suspicious = plan is None or delivery.crashes or delivery.message.expires_at is not None
        started = monotonic()
        if is_suspicious and self._refuse(delivery, plan):
            return monotonic() - started
        assert plan is not None  # noqa: S101  # what nobody subscribes is refused
        run, outcome, error = self._timeouts.run(
            deliveries, plan.subscription, started + plan.timeout, plan.attempt, delivery
        )
        AT_WORK.set(None)
        if run.is_given_up:
            _end_late(run, error)
            return None
        if outcome is None:
            assert error is not None  # noqa: S101  # there is no third way to get here
            outcome = _failed(delivery.message, plan.subscription, error)
        if self._observe is not None:
            self._observe((delivery, outcome, started, monotonic() - started))
        if log.isEnabledFor(logging.INFO):
            _log_settled(delivery.message, plan.subscription, outcome, monotonic() - started)
        if outcome is ACKED:
            self._ack(deliveries)
        else:
            self._settle(deliveries, outcome)
        return monotonic() - started  # with what it took to log, count and settle it

    def _execute_batch(self, deliveries: Sequence[Delivery[bytes]], plan: "_Plan") -> float | None:
        """Handle several in one call, and settle each as if it had been alone."""
        started = monotonic()
        AT_WORK.set(None)  # it is none of them
        if plan.give is not None:
            batch = BatchCall(deliveries, lambda one: plan.read(one.message), plan.give)
        else:
            batch = BatchCall(
                deliveries,
                lambda one: decoded(one.message, plan.read(one.message)),
                lambda messages: plan.call(_of_many(messages), deliveries[0]),
            )
        run, is_done, error = self._timeouts.run(
            deliveries, plan.subscription, started + plan.timeout, BatchCall.attempt, batch
        )
        AT_WORK.set(None)
        if run.is_given_up:
            _end_late(run, error)
            return None
        outcomes = _outcomes_of(batch, None if is_done else error, plan.subscription)
        seconds = monotonic() - started
        if self._observe is not None:
            for one, outcome in outcomes:
                self._observe((one, outcome, started, seconds))
        if log.isEnabledFor(logging.INFO):
            for one, outcome in outcomes:
                _log_settled(one.message, plan.subscription, outcome, seconds)
        if done := [one for one, outcome in outcomes if outcome is ACKED]:
            self._settle(done, ACKED)
        for one, outcome in outcomes:
            if outcome is not ACKED:
                self._settle([one], outcome)
        return monotonic() - started

    def _refuse(self, delivery: Delivery[bytes], plan: "_Plan | None") -> bool:
        """Settle a delivery that is not even to be started; tell whether it is not."""
        expires_at = delivery.message.expires_at
        if (
            plan is not None
            and delivery.crashes < self._max_crashes
            and (expires_at is None or self._broker_time() < expires_at.timestamp())
        ):
            return False
        refused = self._refused(delivery, plan.subscription if plan else None)
        if self._observe is not None:
            self._observe((delivery, refused, monotonic(), None))
        self._settle([delivery], refused)
        return True

    def _refused(self, delivery: Delivery[bytes], subscription: Subscription | None) -> Outcome:
        """Return the outcome of a delivery that is not even started."""
        if subscription is None:
            reason = DeadLetterReason(
                "unknown handler", detail=f"this worker does not subscribe {delivery.subscription}"
            )
        elif delivery.crashes >= self._max_crashes:
            detail = f"{delivery.crashes} processes died while they had it in hand"
            reason = DeadLetterReason("crashed", detail=detail)
        elif subscription.drops_expired:
            log.warning("expired, and dropped: %s", _of(delivery), extra=_fields(delivery))
            return Dropped()
        else:
            expires_at = delivery.message.expires_at
            assert expires_at is not None  # noqa: S101  # that is why it is here
            reason = DeadLetterReason("expired", detail=f"it was to be handled before {expires_at.isoformat()}")
        log.error("dead-lettered (%s: %s): %s", reason.kind, reason.detail, _of(delivery), extra=_fields(delivery))
        return DeadLettered(reason)

    def give_up(self, run: Run) -> None:
        """Settle a run that will not stop, as one that failed with HandlerTimeout. Returns at once."""
        frame = frame_of(run.thread)
        error = timed_out(run, None)
        error.add_note("It would not be interrupted. It stands here:\n" + "".join(traceback.format_stack(frame)[-20:]))
        seconds = run.subscription.timeout or 0.0
        for delivery in run.deliveries:
            outcome = _failed(delivery.message, run.subscription, error)
            if self._observe is not None:
                self._observe((delivery, outcome, monotonic() - seconds, seconds))
            self._settler.do(partial(self._settle, [delivery], outcome))

    def _settle(self, deliveries: Sequence[Delivery[bytes]], outcome: Outcome) -> None:
        """Carry out what was decided, of one delivery or, if they are done or released, of several. The only place that
        does.

        If the broker cannot be reached the settler tries again, so that this thread is free for other messages.
        """
        try:
            match outcome:
                case Acked() | Dropped():
                    self._settler.ack(deliveries)
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of a subscription before any message comes.

    `attempt` decodes a delivery and calls its handler, through the middleware. `read`, `call` and `give` are for one
    that `takes_batch`: what decodes, what gets the message that stands for all, and, if the handler wants no more than
    their payloads and there is no middleware, what calls it with them.
    """

    subscription: Subscription
    timeout: float
    attempt: Callable[[Delivery[bytes]], Outcome]
    takes_batch: bool
    read: Callable[[Message[bytes]], Any]
    call: Callable[[Message[Any], Delivery[bytes]], None]
    give: Callable[[list[Any]], None] | None


def _plan(subscription: Subscription, middleware: Sequence[HandleMiddleware], loop: EventLoop | None) -> _Plan:
    assert subscription.timeout is not None  # noqa: S101  # those of a worker are resolved
    takes, takes_batch = subscription.handler.takes, subscription.batch is not None
    function = _function_of(subscription, loop)
    check = subscription.handler.check_returned
    last = _caller(function, takes, check, takes_batch=takes_batch)
    call = _through(chain(middleware, _innermost(last))) if middleware else last
    attempt = _attempt_by(subscription, _call_with_payload(call, function, takes, check, is_direct=not middleware))
    give = _checked(function, check) if takes_batch and not middleware and takes is Takes.PAYLOAD else None
    return _Plan(subscription, subscription.timeout, attempt, takes_batch, _reader(subscription), call, give)


def _reader(subscription: Subscription) -> Callable[[Message[bytes]], Any]:
    """Return what decodes the payload of a message. It raises CodecError."""
    has_versions = subscription.versions.current > 1
    decode = subscription.handler.codec.decode  # of the current version, as a message without headers is if need be

    def read(raw: Message[bytes]) -> Any:
        return subscription.decode(raw) if raw.headers or has_versions else decode(raw.payload)

    return read


def _attempt_by(
    subscription: Subscription, call: Callable[[Delivery[bytes], Any], None]
) -> Callable[[Delivery[bytes]], Outcome]:
    """Return what decodes a delivery, as `_reader` does, and calls its handler. It raises what that raises."""
    has_versions = subscription.versions.current > 1
    decode = subscription.handler.codec.decode

    def attempt(delivery: Delivery[bytes]) -> Outcome:
        raw = delivery.message
        try:
            payload = subscription.decode(raw) if raw.headers or has_versions else decode(raw.payload)
        except CodecError as error:
            return _unreadable(error)
        try:
            call(delivery, payload)
        except (Retry, Reject) as request:
            return _as_asked(request)
        return ACKED

    return attempt


def _call_with_payload(
    call: Callable[[Message[Any], Delivery[bytes]], None],
    function: Callable[..., Any],
    takes: Takes,
    check: CheckReturned,
    *,
    is_direct: bool,
) -> Callable[[Delivery[bytes], Any], None]:
    """Return what calls a handler, and notes what it works on. Who does not ask for the message gets none made."""

    def with_message(delivery: Delivery[bytes], payload: Any) -> None:
        message = decoded(delivery.message, payload)
        AT_WORK.set(message)
        call(message, delivery)

    def with_payload(delivery: Delivery[bytes], payload: Any) -> None:
        AT_WORK.set((delivery.message, payload))
        if (returned := function(payload)) is not None:
            check(returned)

    def with_nothing(delivery: Delivery[bytes], payload: Any) -> None:
        AT_WORK.set((delivery.message, payload))
        if (returned := function()) is not None:
            check(returned)

    if takes is Takes.MESSAGE or not is_direct:
        return with_message
    return with_payload if takes is Takes.PAYLOAD else with_nothing


def _unreadable(error: CodecError) -> DeadLettered:
    return DeadLettered(_reason("undecodable" if isinstance(error, Undecodable) else "invalid payload", error))


def _as_asked(request: Retry | Reject) -> Outcome:
    return Retried(request.delay) if isinstance(request, Retry) else DeadLettered(_reason("rejected", request))


def _checked(function: Callable[[T], Any], check: CheckReturned) -> Callable[[T], None]:
    """Return what calls a handler with one argument, and checks that it did its work."""

    def call(argument: T) -> None:
        if (returned := function(argument)) is not None:
            check(returned)

    return call


def _caller(
    function: Callable[..., Any], takes: Takes, check: CheckReturned, *, takes_batch: bool
) -> Callable[[Message[Any], Delivery[bytes] | None], None]:
    """Return what calls the handler the way its signature wants it."""

    def with_payloads(message: Message[Any], _: object) -> None:
        if (returned := function([one.payload for one in message.payload])) is not None:
            check(returned)

    def with_message(message: Message[Any], _: object) -> None:
        if (returned := function(message)) is not None:
            check(returned)

    def with_payload(message: Message[Any], _: object) -> None:
        if (returned := function(message.payload)) is not None:
            check(returned)

    def with_nothing(_: object, __: object) -> None:
        if (returned := function()) is not None:
            check(returned)

    if takes_batch:
        return with_payload if takes is Takes.MESSAGE else with_payloads  # its payload is the messages
    return {Takes.MESSAGE: with_message, Takes.PAYLOAD: with_payload, Takes.NOTHING: with_nothing}[takes]


def _function_of(subscription: Subscription, loop: EventLoop | None) -> Callable[..., Any]:
    """Return the handler's function; of one that is async, one that waits for it."""
    if not subscription.handler.is_async:
        return subscription.handler.function
    assert loop is not None  # noqa: S101  # the worker makes one if any handler is async
    return loop.wrap(subscription.handler.function)


def _innermost(call: Callable[[Message[Any], None], None]) -> HandleNext:
    """Return what stands at the end of the middleware."""
    return lambda delivery: call(delivery.message, None)


def _through(first: HandleNext) -> Callable[[Message[Any], Delivery[bytes]], None]:
    """Return what calls the first middleware."""

    def call(message: Message[Any], delivery: Delivery[bytes]) -> None:
        first(delivery_of(message, delivery.subscription, delivery.crashes))

    return call


def _of_many(messages: list[Message[Any]]) -> Message[list[Message[Any]]]:
    """Return the message that stands for a batch, before middleware: the first, with all of them as its payload."""
    return message_of({**vars(messages[0]), "payload": messages})


def _outcomes_of(
    batch: BatchCall, error: BaseException | None, subscription: Subscription
) -> list[tuple[Delivery[bytes], Outcome]]:
    """Return what becomes of each delivery of a batch whose handler raised this."""
    if error is None and batch.is_readable:
        return [(one, ACKED) for one in batch.deliveries]
    outcomes: list[tuple[Delivery[bytes], Outcome]] = [(one, _unreadable(why)) for one, why in batch.unreadable()]
    told: BaseException | None = None
    for one, own in batch.readable(error):
        if own is None:
            outcomes.append((one, ACKED))
        elif isinstance(own, Retry | Reject):
            outcomes.append((one, _as_asked(own)))
        else:
            outcomes.append((one, _failed(one.message, subscription, own, with_trace=own is not told)))
            told = own
    return outcomes


def _failed(
    message: Message[bytes], subscription: Subscription, error: BaseException, *, with_trace: bool = True
) -> Outcome:
    """Log the failure, once, and ask the policy what becomes of the message."""
    log.error(
        "%s %s failed in %s (attempt %d): %s",
        message.topic,
        message.id,
        subscription.handler.name,
        message.attempt,
        type(error).__name__,
        exc_info=error if with_trace else None,
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


def _end_late(run: Run, error: BaseException | None) -> None:
    """Leave alone what others have settled, or will settle."""
    if run.is_forked:
        leave_fork(run.subscription.handler.name, error)
    delivery = run.deliveries[0]
    log.warning("a handler that was given up has ended after all: %s", _of(delivery), extra=_fields(delivery))


def _reason(kind: DeadLetterKind, error: BaseException) -> DeadLetterReason:
    trace = "".join(traceback.format_exception(error, limit=-_FRAMES))[-_TRACEBACK_LENGTH:]
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
            level, name, what = logging.INFO, "handled", "handled by"
        case Retried(delay):
            level, name, what = logging.INFO, "retried", f"to be retried in {delay:.1f} s by"
        case DeadLettered(reason):
            what = f"dead-lettered ({reason.kind}: {reason.detail or reason.error}) by"
            level, name = logging.WARNING, "dead"
        case Released():
            level, name, what = logging.INFO, "released", "handed back by"
        case Dropped():
            level, name, what = logging.WARNING, "dropped", "dropped by"
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
        extra={**_fields(message), "seconds": round(seconds, 6), "outcome": name},
    )


def _of(delivery: Delivery[bytes]) -> str:
    return f"{delivery.message.topic} {delivery.message.id} (attempt {delivery.message.attempt})"


def _fields(about: Message[bytes] | Delivery[bytes]) -> dict[str, Any]:
    message = about.message if isinstance(about, Delivery) else about
    return {
        "topic": message.topic,
        "message_id": message.id,
        "group": message.group,
        "attempt": message.attempt,
        "correlation_id": message.headers.get(CORRELATION_ID, message.id),
    }
