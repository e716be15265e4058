"""A worker without threads of its own to handle on: the calling thread does it, and returns when nothing is due.

For tests (`pubsub_core.testing`), where time stands still meanwhile, and for eager publishing. Deliveries pass through
the same executor as in a `Worker`, so what becomes of them is the same.
"""

import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from pubsub_core.broker import Consumer
from pubsub_core.errors import BrokerError, InvalidPayload, NeverIdle, PubSubError, Undecodable, WorkerError
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_core.middleware import HandleNext
from pubsub_core.outcome import ACKED, Acked, DeadLettered, Dropped, Outcome, Released, Retried
from pubsub_core.pubsub import PubSub
from pubsub_core.retry import RetryPolicy
from pubsub_core.schedule import Scheduler
from pubsub_core.subscription import Subscription
from pubsub_core.worker.event_loop import EventLoop
from pubsub_core.worker.executor import Executor
from pubsub_core.worker.outage import Outage
from pubsub_core.worker.process import consumer_name, lease_of
from pubsub_core.worker.settler import Settler
from pubsub_core.worker.timeouts import Cancel, Run, Timeouts

log = logging.getLogger("pubsub")

Errors = Literal["raise", "retry"]
_Settled = tuple[Delivery[bytes], Outcome]

_TOLD = 3  # messages of a batch in the note of an error

MOST = 10_000
"""How many deliveries are handled in one go, before it is taken for a loop that never ends."""


class InlineWorker:
    """Handles the subscriptions of a `PubSub`, and fires its schedules, on whatever thread calls it; one at a time.

    It has one consumer, which joins its groups at `join`, and takes one delivery of each subscription per round, in the
    order in which they were declared; of one that takes batches, what a call is given. Handlers run in a fresh context
    (`contextvars`), as on a thread of a `Worker`.
    """

    def __init__(self, pubsub: PubSub, *, fires_schedules: bool = True) -> None:
        self._pubsub = pubsub
        self._fires_schedules = fires_schedules
        self._declared = -1
        self._subscriptions: Sequence[Subscription] = ()
        self._order: dict[SubscriptionKey, int] = {}
        self._batches: dict[SubscriptionKey, int] = {}  # how many a call of the handler is given
        self._consumer: Consumer | None = None
        self._scheduler: Scheduler | None = None
        self._loop: EventLoop | None = None
        self._timeouts = Timeouts(self._give_up, _died)
        self._at_work: _Executor | None = None
        self._joining = threading.RLock()
        self._waiting: list[Delivery[bytes]] = []  # received, and not started
        self._seen = _Seen()
        self.is_running = False
        """Whether handlers are at work: whoever publishes now is one of them."""

    def join(self) -> None:
        """Join the groups of what is declared by now, and name the schedules. Idempotent."""
        with self._joining:
            self._join()

    def _join(self) -> None:
        if self._declared == self._pubsub.declared and (self._consumer is not None or not self._subscriptions):
            return
        self._declared = self._pubsub.declared
        self.leave()
        if self._scheduler is not None:
            self._scheduler.run_due()  # for the one that comes after it, these would be missed
        runtime = self._pubsub.runtime
        self._subscriptions = [
            replace(one, retry=_WatchedPolicy(one.retry, self._seen)) for one in self._pubsub.subscriptions()
        ]
        self._order = {one.key: number for number, one in enumerate(self._subscriptions)}
        self._batches = {one.key: one.batch or 1 for one in self._subscriptions}
        if self._subscriptions:
            consumer = runtime.broker.consumer([one.membership for one in self._subscriptions], consumer_name())
            consumer.receive({}, 0.0)
            self._consumer = consumer
        schedules = self._pubsub.schedules if self._fires_schedules else ()
        self._scheduler = Scheduler(
            schedules, runtime.broker, runtime.settings.group, self._pubsub.scheduled_message, lease_of(runtime)
        )
        self._scheduler.run_due()

    def leave(self) -> None:
        """Leave the groups. The next `join` is as that of a new process."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def close(self) -> None:
        """Leave the groups, and end the event loop of `async def` handlers. Idempotent."""
        self.leave()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
            loop.join()

    def forsake(self) -> Consumer | None:
        """Forget the consumer without a word, as the end of its process would, but for what was not started."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None and self._waiting:
            consumer.release(self._waiting)
        self._waiting = []
        return consumer

    def run_until_idle(self, *, errors: Errors = "raise", limit: int = MOST) -> int:
        """Handle what is due, and what is published meanwhile; return how many deliveries that were.

        What a handler raises is raised here, after its message was settled as ever, by its retry policy; the rest waits
        for the next call. Of the errors of a `BatchFailure` it is the first that the policy judges. With errors="retry"
        it is not, and a retry that is due at once is among the deliveries.
        Raises NeverIdle if there is still more after `limit` of them.
        """
        if errors not in ("raise", "retry"):
            raise ValueError(f"errors={errors!r}: it is 'raise' or 'retry'")
        if self.is_running:
            raise WorkerError("run_until_idle was called inside of a handler: whoever runs that goes on afterwards")
        self._timeouts = Timeouts(self._give_up, _died)
        self.is_running = True
        try:
            self._timeouts.start()
            return self._run(errors, limit)
        finally:
            self.is_running = False
            self._timeouts.stop()
            self._timeouts.join()

    def _run(self, errors: Errors, limit: int) -> int:
        handled: Counter[str] = Counter()
        while True:
            self._receive()
            if not self._waiting:
                return handled.total()
            executor = self._at_work = self._executor()
            try:
                while self._waiting:
                    if handled.total() >= limit:
                        raise _never_idle(limit, handled)
                    deliveries = self._next()
                    handled[self._described(deliveries[0])] += len(deliveries)
                    self._handle(executor, deliveries, errors)
            finally:
                executor.release(self._waiting)
                self._waiting = []

    def _next(self) -> list[Delivery[bytes]]:
        """Take what the next call of a handler is given."""
        taken = [self._waiting.pop(0)]
        key, batch = taken[0].subscription, self._batches.get(taken[0].subscription, 1)
        while self._waiting and len(taken) < batch and not (taken[0].crashes or self._waiting[0].crashes):
            if self._waiting[0].subscription != key:
                break
            taken.append(self._waiting.pop(0))
        return taken

    def _receive(self) -> None:
        """Fire what is due, and take what one call of each handler is given, if there is anything."""
        self.join()
        assert self._scheduler is not None  # noqa: S101  # `join` made it
        self._scheduler.run_due()
        if self._consumer is not None:
            self._consumer.maintain()
            received = self._consumer.receive(self._batches, 0.0)
            self._waiting = sorted(received, key=lambda one: self._order.get(one.subscription, -1))

    def _executor(self) -> "_Executor":
        consumer = self._consumer
        assert consumer is not None  # noqa: S101  # there is a delivery of it
        if self._loop is None and any(one.handler.is_async for one in self._subscriptions):
            self._loop = EventLoop(self._cancel_by, _died)
            self._loop.start()
        runtime = self._pubsub.runtime
        return _Executor(
            self._settling,
            self._subscriptions,
            [self._seen.watch, *self._pubsub.handle_middleware()],
            consumer,
            _SettlesAtOnce(consumer, Outage(), _died),
            loop=self._loop,
            timeouts=self._timeouts,
            max_crashes=runtime.settings.max_crashes,
            broker_time=runtime.broker.time,
        )

    def _cancel_by(self, cancel: Cancel | None) -> None:
        self._timeouts.cancel_by(cancel)  # those of this run

    def _give_up(self, run: Run) -> None:
        """Settle a run that will not stop. The thread cannot be replaced: who called us waits until it ends."""
        log.error("%s will not be interrupted: whoever called it waits until it ends", run.subscription.handler.name)
        assert self._at_work is not None  # noqa: S101  # it runs
        self._at_work.give_up(run)

    def _settling(self, delivery: Delivery[bytes], outcome: Outcome) -> bool:
        """Tell whether the outcome of a delivery shall be lost, as if the process had ended just before. For tests."""
        del delivery, outcome
        return False

    def _handle(self, executor: "_Executor", deliveries: Sequence[Delivery[bytes]], errors: Errors) -> None:
        seen = self._seen
        seen.error = seen.always = None
        executor.settled.clear()
        contextvars.Context().run(executor.execute, deliveries)
        error = seen.always or (None if errors == "retry" else seen.error or _codec_error(executor.settled))
        if error is not None:
            error.add_note(f"Raised by {self._described(deliveries[0])}, {_told(deliveries, executor.settled)}")
            raise error.with_traceback(_from_the_handler_on(error.__traceback__))

    def _described(self, delivery: Delivery[bytes]) -> str:
        number = self._order.get(delivery.subscription)
        name = "(no handler)" if number is None else self._subscriptions[number].handler.name
        return f"{name}, handler of topic {delivery.message.topic!r} as group {delivery.subscription.group!r}"


class Eager:
    """Handles what a publish left behind, on the thread that published, before that publish returns.

    A publish inside of a handler, or of another thread meanwhile, is handled by the one that is at it already.
    """

    def __init__(self, pubsub: PubSub) -> None:
        self._worker = InlineWorker(pubsub, fires_schedules=False)
        self._is_at_work = threading.Lock()
        self._is_wanted = False

    def __call__(self) -> None:
        """Handle what is due. Raises what a handler raises."""
        self._is_wanted = True
        while self._is_wanted and self._is_at_work.acquire(blocking=False):
            try:
                self._is_wanted = False
                self._worker.run_until_idle()
            finally:
                self._worker.close()
                self._is_at_work.release()


class _Seen:
    """What went wrong in a call of a handler: `error` is for the retry policy, `always` is not to be hidden.

    Of several errors, which only a batch can have, it is the first.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.always: BaseException | None = None

    def watch(self, delivery: Delivery[Any], call_next: HandleNext) -> None:
        """A middleware. `KeyboardInterrupt`, and what pytest's `fail` and `skip` raise, are for who called us."""
        try:
            call_next(delivery)
        except Exception:
            raise
        except BaseException as error:
            self.always = error
            raise


class _WatchedPolicy:
    """A retry policy that is asked as ever, and tells what it was asked about."""

    def __init__(self, policy: RetryPolicy, seen: _Seen) -> None:
        self._policy = policy
        self._seen = seen

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        self._seen.error = self._seen.error or error
        try:
            return self._policy.next_delay(attempt, error)
        except Exception as broken:
            self._seen.always = self._seen.always or broken
            raise


class _Executor(Executor):
    """Keeps what it decided of the last call, and may be kept from settling it: then it settles nothing any more."""

    def __init__(self, intercept: Callable[[Delivery[bytes], Outcome], bool], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._intercept = intercept  # asked before a delivery is settled whether that is to be left out
        self._is_dead = False
        self._ack = lambda deliveries: self._settle(deliveries, ACKED)
        self.settled: list[_Settled] = []

    def _settle(self, deliveries: Sequence[Delivery[bytes]], outcome: Outcome) -> None:
        if self._is_dead:  # what is left of a batch dies with the rest
            return
        if not isinstance(outcome, Released):
            self.settled += ((one, outcome) for one in deliveries)
            if any(self._intercept(one, outcome) for one in deliveries):
                self._is_dead = True
                return
        super()._settle(deliveries, outcome)


class _SettlesAtOnce(Settler):
    """A settler without its thread. What the broker does not take is raised to who called us."""

    def ack(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        self._consumer.ack(deliveries)

    def try_again(self, settle: Callable[[], None], error: BrokerError) -> None:
        raise error

    def do(self, settle: Callable[[], None]) -> None:
        settle()


def _died(error: BaseException) -> None:
    log.critical("the thread %s died", threading.current_thread().name, exc_info=error)


def _from_the_handler_on(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of ours that led to the handler; whole if there are no others."""
    rest = trace
    while rest is not None and rest.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        rest = rest.tb_next
    return rest or trace


_OURS = ("pubsub_core.", "pubsub_flask.")


def _codec_error(settled: Sequence[_Settled]) -> PubSubError | None:
    """Return the error of the first message that did not even come to its handler."""
    for _, outcome in settled:
        match outcome:
            case DeadLettered(reason) if reason.kind == "undecodable":
                return Undecodable(reason.detail)
            case DeadLettered(reason) if reason.kind == "invalid payload":
                return InvalidPayload(reason.detail)
            case DeadLettered(reason) if reason.kind == "unknown handler":
                return WorkerError(reason.detail)
    return None


def _told(deliveries: Sequence[Delivery[bytes]], settled: Sequence[_Settled]) -> str:
    """Return what became of the messages of a call; of a batch, of the first few that failed."""
    if len(deliveries) == 1:
        return _one_told(deliveries[0], settled[0][1] if settled else None)
    if not settled:
        return f"a batch of {len(deliveries)}: it was interrupted"
    failed = [(one, outcome) for one, outcome in settled if not isinstance(outcome, Acked | Dropped)]
    told = [_one_told(one, outcome) for one, outcome in failed[:_TOLD]]
    if len(failed) > _TOLD:
        told.append(f"{len(failed) - _TOLD} more failed")
    if len(settled) > len(failed):
        told.append(f"{len(settled) - len(failed)} acknowledged")
    return f"a batch of {len(deliveries)}: " + "; ".join(told)


def _one_told(delivery: Delivery[bytes], outcome: Outcome | None) -> str:
    message = f"message {delivery.message.id}, attempt {delivery.message.attempt}"
    match outcome:
        case Retried(delay):
            return f"{message}: to be retried in {delay:g} s"
        case DeadLettered(reason):
            return f"{message}: now a dead letter ({reason.kind})"
        case Acked() | Dropped():
            return f"{message}: acknowledged"
    return f"{message}: it was interrupted"


def _never_idle(limit: int, handled: Counter[str]) -> NeverIdle:
    often = "; ".join(f"{count:,} by {name}" for name, count in handled.most_common(3))
    return NeverIdle(
        f"{limit:,} deliveries were handled, and there are still more: {often}. A handler that publishes to its own "
        "topic, or two that publish to each other's, never end. If there really are so many, pass limit="
    )
