"""The object that an application holds: it declares topics and subscriptions, and publishes."""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pubsub_core.backends import masked
from pubsub_core.broker import (
    IN_MEMORY,
    NO_TERMS,
    USUAL,
    Durability,
    Inspector,
    Overflow,
    Start,
    Terms,
    TopicOptions,
)
from pubsub_core.clock import Clock, SystemClock, seconds_of
from pubsub_core.dead_letters import DeadLetters
from pubsub_core.decorators import BatchHandlerDecorator, HandlerDecorator
from pubsub_core.errors import (
    BrokerError,
    ConfigurationError,
    PayloadTooLarge,
    PublishUncertain,
    SubscriptionError,
    ValidationError,
)
from pubsub_core.headers import MakeHeaders, checked_headers, inherited_headers, merged_headers
from pubsub_core.message import PLAIN_FIELDS, Message, SubscriptionKey, message_of
from pubsub_core.metrics import Metrics
from pubsub_core.middleware import HandleMiddleware, PublishMiddleware, chain, refuse_async
from pubsub_core.names import check_name, did_you_mean, is_name, module_name
from pubsub_core.retry import RetryPolicy, policy_of
from pubsub_core.runtime import Runtime
from pubsub_core.schedule import Missed, Schedule, check_missed
from pubsub_core.settings import Settings, keyword_layer, parse_durability
from pubsub_core.subscription import (
    MOST_IN_BATCH,
    Expired,
    Handler,
    Subscription,
    check_options,
    inspect_handler,
    is_of,
    second_handler,
    second_schedule,
)
from pubsub_core.terms import Dedup, checked_key, expiry_of, moment_of, terms_of
from pubsub_core.topic import Topic, contradicts, options_shown, topic_options
from pubsub_core.versions import checked_version

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from pubsub_core.cron import Spec

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_EXPIRED = ("dead_letter", "drop")


class PubSub:
    """Topics, subscriptions and schedules of an application, and the way to publish.

        pubsub = PubSub("redis://localhost:6379/0", group="billing")

    Without a URL, `PUBSUB_URL` of the environment counts, and without that `memory://`. `settings` are those of
    `Settings`, by name (`threads=4`); they win over the environment. Declaring is meant for import time; publishing is
    safe from any thread, and from forked children. Nothing connects before the first use.
    """

    def __init__(
        self, url: str | None = None, *, group: str | None = None, clock: Clock | None = None, **settings: Any
    ) -> None:
        self._keywords = keyword_layer({"url": url, "group": group, **settings})
        self._clock: Clock = clock or SystemClock()
        self._default_group = _group_of(sys._getframe(1).f_globals)  # noqa: SLF001  # the public way is 100x slower
        self._topics: dict[str, Topic[Any]] = {}
        self._topic_options: dict[str, TopicOptions] = {}
        self._subscriptions: dict[tuple[str, str | None], Subscription] = {}
        self._schedules: dict[str, Schedule] = {}
        self._handle_middleware: list[HandleMiddleware] = []
        self._publish_middleware: list[PublishMiddleware] = []
        self._header_makers: list[MakeHeaders] = []
        self._own_runtime: Runtime | None = None
        self._stand_ins: list[Runtime] = []  # of a test; shared with copies of this
        self.metrics = Metrics()
        """What happened to messages in this process, counted from `metrics.start()` on."""
        Settings.parse(self._keywords)

    # Declaring

    @overload
    def topic(
        self,
        name: str,
        schema: None = None,
        *,
        stream: str | None = None,
        retention: float | None = None,
        max_backlog: int | None = None,
        overflow: Overflow = "reject",
        durability: str | None = None,
        version: int | None = None,
    ) -> Topic[Any]: ...
    @overload
    def topic(
        self,
        name: str,
        schema: "TypeForm[T]",
        *,
        stream: str | None = None,
        retention: float | None = None,
        max_backlog: int | None = None,
        overflow: Overflow = "reject",
        durability: str | None = None,
        version: int | None = None,
    ) -> Topic[T]: ...
    def topic(
        self,
        name: str,
        schema: Any = None,
        *,
        stream: str | None = None,
        retention: float | None = None,
        max_backlog: int | None = None,
        overflow: Overflow = "reject",
        durability: str | None = None,
        version: int | None = None,
    ) -> Topic[Any]:
        """Return the topic of that name, declaring it the first time.

        `schema` is what its payloads are: a pydantic model or any type that a `TypeAdapter` takes; without it, any JSON
        value. `stream` is for a stream that another program fills under a key of its own. `retention` is the seconds
        for which messages are kept that every group has settled (`PUBSUB_RETENTION`). A topic with `max_backlog` never
        holds more messages than that: what every group has settled gives way first, then `overflow` decides: "reject"
        has the publish raise BrokerFull, "drop_oldest" deletes the oldest messages, handled or not. `durability` is
        what its publishes wait for, see `publish`. `version` is that of the schema, 1 unless it is said: raise it with
        a change that breaks readers, and see `Topic.upcast`. Naming the topic again is fine as long as nothing
        contradicts; else ConfigurationError.
        """
        check_name("topic", name, "For a stream of another key name, give the topic a name and pass stream=")
        known = self._topics.get(name)
        options = topic_options(name, stream, retention, max_backlog, overflow, is_new=known is None)
        asked = None if durability is None else parse_durability(durability)
        if known is None:
            known = self._topics[name] = Topic(
                self, name, schema, options, asked, version=checked_version(name, version)
            )
            if options != USUAL:
                self._topic_options[name] = options
        elif (
            (schema is not None and schema != known.schema)
            or (asked is not None and asked != known.durability)
            or (version is not None and checked_version(name, version) != known.version)
            or contradicts(options, known.options)
        ):
            raise ConfigurationError(
                f"topic {name!r} is declared already, as {known!r}{options_shown(known)}: use that object, or another "
                "name"
            )
        return known

    @overload
    def subscribe(
        self,
        topic: str,
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: int | None = None,
    ) -> Callable[[F], F]: ...
    @overload
    def subscribe(
        self,
        topic: Topic[T],
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: None = None,
    ) -> HandlerDecorator[T]: ...
    @overload
    def subscribe(
        self,
        topic: Topic[T],
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: int,
    ) -> BatchHandlerDecorator[T]: ...
    def subscribe(
        self,
        topic: str | Topic[Any],
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        start: Start = "earliest",
        expired: Expired = "dead_letter",
        batch: int | None = None,
    ) -> Any:
        """Return a decorator that makes a function the handler of `topic` for `group`, and leaves it unchanged.

        The function takes the payload (annotated with its type), or the message (annotated `Message[...]`, or not at
        all); it may be `async def`. `group` defaults to `PUBSUB_GROUP`; every group sees every message. `retry`
        defaults to `ExponentialBackoff()`. `timeout` is in seconds (`PUBSUB_TIMEOUT`). `concurrency` is how many of
        this subscription may run at once in a process. `start` counts when the group is first made. `expired` is what
        becomes of messages past their `expires`: a "dead_letter", or "drop".
        With `batch` the function is given a list of so many payloads (or messages) at most: of those that are there, it
        does not wait for more. What it raises fails all of them, `BatchFailure` some; `timeout` and `concurrency` are
        about calls then.
        Raises SubscriptionError for a signature or an option that cannot be, or a second handler on the same topic and
        group.
        """
        declared = self._own(topic, "subscribe to it")
        check_options(group, timeout, concurrency, start)
        policy = policy_of(retry)
        if batch is not None and not (is_of(batch, int) and 1 <= batch <= MOST_IN_BATCH):
            raise SubscriptionError(f"batch={batch!r}: how many messages in a list at most, from 1 to {MOST_IN_BATCH}")
        if expired not in _EXPIRED:
            raise SubscriptionError(
                f"expired={expired!r}.{did_you_mean(str(expired), _EXPIRED)} It is 'dead_letter' or 'drop'"
            )

        def decorate(function: F) -> F:
            names = sys._getframe(1).f_locals  # noqa: SLF001  # annotations may name what is local there
            handler = inspect_handler(
                function, declared.schema, names, codec=declared.codec, takes_batch=batch is not None
            )
            self._add(
                Subscription(
                    declared.name,
                    group,
                    handler,
                    policy,
                    timeout,
                    concurrency,
                    start,
                    declared.versions,
                    drops_expired=expired == "drop",
                    batch=batch,
                )
            )
            return function

        return decorate

    def cron(
        self,
        expression: str,
        *,
        tz: str = "UTC",
        missed: Missed = "once",
        name: str | None = None,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function called at each tick of a cron expression (five fields, or six).

        Of six fields the first are the seconds. `tz` is the time zone that it is read in, such as "Europe/Berlin". Each
        tick is fired once, however many workers there are. When none was there for it, it was `missed`: then "skip"
        drops it, "once" makes up for the last one, and "all" for each.
        The function takes nothing, or the message, whose `scheduled_for` is the tick. The schedule, and the topic that
        it publishes to, is called `name`, by default after the function.
        Raises ConfigurationError for an expression that cannot be read or never comes, or a name that is taken.
        """
        from pubsub_core.cron import CronSpec  # of a size that only those who schedule should load

        return self._scheduled(
            CronSpec(expression, tz), missed, name, group=group, retry=retry, timeout=timeout, concurrency=concurrency
        )

    def every(
        self,
        interval: float | timedelta,
        *,
        missed: Missed = "once",
        name: str | None = None,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that has a function called each `interval` (seconds, or a timedelta). See `cron`.

        Its ticks are the multiples of the interval since 1970, UTC, so that all processes have the same.
        """
        from pubsub_core.cron import EverySpec

        return self._scheduled(
            EverySpec(seconds_of(interval)), missed, name, group=group, retry=retry, timeout=timeout,
            concurrency=concurrency,
        )  # fmt: skip

    def _scheduled(
        self,
        spec: "Spec",
        missed: Missed,
        name: str | None,
        *,
        group: str | None,
        retry: RetryPolicy | None,
        timeout: float | None,
        concurrency: int | None,
    ) -> Callable[[F], F]:
        check_options(group, timeout, concurrency, "latest")
        policy = policy_of(retry)
        check_missed(missed)

        def decorate(function: F) -> F:
            names = sys._getframe(1).f_locals  # noqa: SLF001  # annotations may name what is local there
            handler = inspect_handler(function, None, names, may_take_nothing=True)
            hint = "" if name else f"That is the name of the function ({handler.where}): give it one with name="
            called = check_name("schedule", name or handler.name, hint)
            self._check_free(called, group, handler)
            topic = self.topic(called)
            self._add(
                Subscription(
                    topic.name,
                    group,
                    handler,
                    policy,
                    timeout,
                    concurrency,
                    "latest",
                    topic.versions,
                )
            )
            self._schedules[topic.name] = Schedule(topic.name, topic.name, spec, missed)
            return function

        return decorate

    def schedule(
        self,
        topic: str | Topic[T],
        when: str | float | timedelta,
        payload: T,
        *,
        tz: str = "UTC",
        missed: Missed = "once",
        name: str | None = None,
    ) -> None:
        """Have `payload` published to `topic` at each tick of a cron expression, or each so many seconds. See `cron`.

        The schedule is called `name`, by default after the topic. Raises ValidationError for a payload that does not
        fit the topic, and ConfigurationError for an expression that cannot be, or a name that is taken.
        """
        from pubsub_core.cron import CronSpec, EverySpec

        declared = self._own(topic, "schedule it")
        spec = CronSpec(when, tz) if isinstance(when, str) else EverySpec(seconds_of(when))
        check_missed(missed)
        called = check_name("schedule", name or declared.name)
        if called in self._schedules:
            raise ConfigurationError(f"there is a schedule {called!r} already: give this one another name=")
        try:
            declared.codec.encode(payload)
        except ValidationError as error:
            raise ValidationError(f"schedule {called!r} of topic {declared.name!r}: {error}", error.errors) from None
        self._schedules[called] = Schedule(called, declared.name, spec, missed, payload)

    def _own(self, topic: str | Topic[Any], action: str) -> Topic[Any]:
        """Return the topic; raise ConfigurationError for one of another PubSub, which may have another key here."""
        declared = topic if isinstance(topic, Topic) else self.topic(topic)
        if self._topics.get(declared.name) is not declared:
            raise _foreign(declared, action)
        return declared

    def _check_free(self, name: str, group: str | None, handler: Handler) -> None:
        """Raise SubscriptionError if there is such a schedule, or its topic has a handler for the group."""
        if name in self._schedules:
            others = [one.handler for one in self._subscriptions.values() if one.topic == name]
            raise second_schedule(name, handler, others)
        self._check_first(name, group, handler, is_scheduled=True)

    def _check_first(self, topic: str, group: str | None, handler: Handler, *, is_scheduled: bool = False) -> None:
        """Raise SubscriptionError if the topic has a handler for the group."""
        other = self._subscriptions.get((topic, group))
        if other is not None:
            raise second_handler(topic, group, handler, other.handler, is_scheduled=is_scheduled)

    def _add(self, new: Subscription) -> None:
        self._check_first(new.topic, new.group, new.handler)
        self._subscriptions[new.topic, new.group] = new

    def middleware(self, function: HandleMiddleware) -> HandleMiddleware:
        """Add a middleware around every handler. The first added is the outermost. Usable as a decorator."""
        refuse_async(function, "middleware")
        self._handle_middleware.append(function)
        return function

    def publish_middleware(self, function: PublishMiddleware) -> PublishMiddleware:
        """Add a middleware around every publish. The first added is the outermost. Usable as a decorator."""
        refuse_async(function, "publish_middleware")
        self._publish_middleware.append(function)
        return function

    def headers(self, function: MakeHeaders) -> MakeHeaders:
        """Have a function called at each publish, which returns headers to add. Usable as a decorator.

        It is called where `publish` is, also that of a batch, so it may look at what is current there: the tenant, the
        user. Headers that the publish is given win over it, and it wins over inherited ones; of several functions the
        last wins. What it raises is raised by `publish`; nothing is sent. Schedules do not call it.
        """
        refuse_async(function, "headers")
        self._header_makers.append(function)
        return function

    # Publishing

    def publish(
        self,
        topic: str | Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        expires: float | timedelta | None = None,
        dedup: Dedup | None = None,
        durability: str | None = None,
        id: str | None = None,
    ) -> str:
        """Publish one message and return its id, a time-sortable UUID. When it returns the message is stored.

        It is delivered `delay` (seconds, or a timedelta) from now, or `at` a moment, an aware datetime, by the broker's
        clock; a moment that is past is now. What is not handled when it `expires` (seconds or a timedelta from now) is
        not handled any more. `dedup` is a key, or a key and a window in seconds (300): if a message with that key was
        published to the topic within the window, nothing is published, and the id of that one is returned.
        With `durability` "fsync" the server's disk has it too, with "replicas:N" so many of its replicas, with
        "fsync+replicas:N" both; without, what the topic or else `PUBSUB_DURABILITY` says counts. `id` is for a message
        that was published before, and may or may not be stored: the id of that time. It is not stored twice.
        Blocks for `PUBSUB_PUBLISH_TIMEOUT` seconds at most. Raises ValidationError (nothing was sent) for a payload
        that does not fit the topic; BrokerUnavailable, BrokerFull, NotPermitted or Unsupported (nothing was stored);
        NotConfirmed (it is stored, but disk or replicas did not say so in time); or PublishUncertain.
        """
        runtime = self.runtime
        fields = self._fields(runtime, topic, payload, key, headers, expires, id)
        name, own_id = fields["topic"], fields["id"]
        asked = self._durability(runtime, name, durability)
        terms = NO_TERMS
        if delay is not None or at is not None or dedup is not None:
            terms = {own_id: terms_of(name, fields["published_at"], delay, at, expires, dedup)}
        ids: Sequence[str] = (own_id,)

        def send(encoded: "Message[bytes]") -> None:  # in quotes: it would be evaluated at each publish
            nonlocal ids
            ids = runtime.broker.publish([encoded], asked, again=id is not None, terms=terms)
            self.metrics.published([encoded], ids)

        self._through(runtime, fields, send)
        if runtime.settings.eager:
            self._drain(runtime)
        return ids[0]

    def cancel(self, topic: str | Topic[Any], id: str) -> bool:
        """Cancel a message that was published with `delay` or `at`; tell whether it was not delivered yet, and now is
        never. Frees its `dedup` key. Blocks for a round trip or two. Idempotent: the second time it is False.
        """
        name = topic.name if isinstance(topic, Topic) else check_name("topic", topic)
        return self.runtime.broker.cancel(name, id)

    def batch(self, *, durability: str | None = None) -> "Batch":
        """Return a batch: what is published on it is sent together, in order, when its `with` block is left.

        It waits for `durability`, or without for all that the topics of its messages ask for.
        """
        return Batch(self, self.runtime, None if durability is None else parse_durability(durability))

    def _drain(self, runtime: Runtime) -> None:
        """Have what was published handled before the outermost publish returns."""
        # By name: the worker stands above us, and only who is eager needs it.
        runtime.drain(lambda: importlib.import_module("pubsub_core.worker.inline").Eager(self.serving(runtime)))

    def _durability(self, runtime: Runtime, topic: str, given: str | None) -> Durability:
        if given is not None:
            return parse_durability(given)
        return self._topics[topic].durability or runtime.settings.durability

    def _fields(  # noqa: PLR0917  # by position: this is on the path of each publish
        self,
        runtime: Runtime,
        topic: str | Topic[Any],
        payload: Any,
        key: str | None,
        headers: Mapping[str, str] | None,
        expires: float | timedelta | None,
        id: str | None,
    ) -> dict[str, Any]:
        """Return the fields of a message that is to be published."""
        declared = topic if isinstance(topic, Topic) else self._topics.get(topic) or self.topic(topic)
        name = declared.name
        if self._topics.get(name) is not declared:
            raise _foreign(declared, "publish it")
        fields = PLAIN_FIELDS.copy()
        fields["topic"] = name
        fields["payload"] = payload
        if key is not None:
            fields["key"] = checked_key(name, key)
        inherited = self._inherited_headers()
        if headers or inherited or self._header_makers:
            fields["headers"] = merged_headers(name, headers, self._header_makers, inherited)
        if id is None:
            fields["id"], fields["published_at"] = runtime.make_id.with_moment()
        else:
            fields["id"], fields["published_at"] = id, moment_of(name, id)
        if expires is not None:
            fields["expires_at"] = expiry_of(name, fields["published_at"], expires)
        return fields

    def _through(self, runtime: Runtime, fields: dict[str, Any], send: Callable[[Message[bytes]], None]) -> None:
        """Have a message sent through the publish middleware."""
        if not self._publish_middleware:
            send(self._encoded(runtime, fields))
            return
        given = message_of(fields)

        def encode_and_send(message: "Message[Any]") -> None:
            _check_passed_on(message, given)
            send(self._encoded(runtime, {**vars(message)}))

        chain(self._publish_middleware, encode_and_send)(given)

    _inherited_headers = staticmethod(inherited_headers)

    def scheduled_message(self, schedule: Schedule, tick: float) -> Message[bytes] | None:
        """Return the message of a tick, through the publish middleware; None if that keeps it back."""
        runtime = self.runtime
        made: list[Message[bytes]] = []
        now, scheduled_for = (datetime.fromtimestamp(moment, UTC) for moment in (runtime.clock.time(), tick))
        message = Message(
            runtime.make_id(), schedule.topic, schedule.payload, now, source="cron", scheduled_for=scheduled_for
        )
        self._through(runtime, {**vars(message)}, made.append)
        return made[0] if made else None

    def _encoded(self, runtime: Runtime, fields: dict[str, Any]) -> Message[bytes]:
        """Return the message that has these fields, its payload written; they are its own from now on."""
        topic = self._topics[fields["topic"]]
        try:
            encoded = topic.codec.encode(fields["payload"])
        except ValidationError as error:
            raise ValidationError(f"nothing was published to {topic.name!r}: {error}", error.errors) from None
        if len(encoded) > runtime.settings.max_payload:
            raise PayloadTooLarge(
                f"nothing was published to {topic.name!r}: the payload is {len(encoded):,} bytes, more than "
                f"PUBSUB_MAX_PAYLOAD={runtime.settings.max_payload:,}. Raise it, or publish where the payload is kept"
            )
        fields["payload"] = encoded
        if fields["headers"] or topic.version > 1:
            fields["headers"] = topic.versions.stamped(fields["headers"])
        return message_of(fields)

    # Looking, and mending

    @property
    def inspector(self) -> Inspector:
        """The broker, as what looks at topics and groups. Raises ConfigurationError if it cannot be inspected."""
        broker = self.runtime.broker
        if not isinstance(broker, Inspector):
            raise ConfigurationError(
                f"the backend of {masked(self.settings.url)} cannot be inspected: its brokers lack methods of "
                "pubsub_core.Inspector"
            )
        return broker

    def dead_letters(self, topic: str | Topic[Any], *, group: str | None = None) -> DeadLetters:
        """Return the dead letters of a group of a topic, by default of `PUBSUB_GROUP`: to list, replay or discard."""
        name = topic.name if isinstance(topic, Topic) else check_name("topic", topic)
        return DeadLetters(self.inspector, SubscriptionKey(name, group or self.settings.group))

    # Running

    @property
    def runtime(self) -> Runtime:
        """The settings and broker in force here."""
        if self._stand_ins:
            return self._stand_ins[-1]
        if self._own_runtime is None:
            settings = Settings.parse(self._keywords, os.environ, {"PUBSUB_GROUP": self._default_group})
            self._own_runtime = Runtime(settings, self._clock, MappingProxyType(self._topic_options))
        return self._own_runtime

    def serving(self, runtime: Runtime) -> "PubSub":
        """Return this PubSub as a worker of that runtime, which is one of its own, needs it."""
        del runtime  # there is only one here; in Flask each app has one
        return self

    @contextmanager
    def stand_in(self, runtime: Runtime) -> Iterator[None]:
        """Use another runtime, wherever this is used, for as long as the context lasts. For tests.

        Afterwards all is as before. Handlers, schedules and middleware that functions inside of other functions were
        made meanwhile, as those of a test are, are forgotten; what a module declared stays.
        """
        known = {*self._subscriptions, *self._schedules}
        lists: list[list[Any]] = [self._handle_middleware, self._publish_middleware, self._header_makers]
        added = [(one, len(one)) for one in lists]
        self._stand_ins.append(runtime)
        try:
            yield
        finally:
            self._stand_ins.pop()
            for key, one in [*self._subscriptions.items()]:
                if key not in known and _is_local(one.handler.function):
                    del self._subscriptions[key]
                    if one.topic not in known:
                        self._schedules.pop(one.topic, None)
            for name, schedule in [*self._schedules.items()]:
                if name not in known and schedule.payload is not None:
                    del self._schedules[name]
            for functions, before in added:
                functions[before:] = [one for one in functions[before:] if not _is_local(one)]

    @property
    def declared(self) -> int:
        """How many subscriptions, schedules and handle middleware there are: a greater number tells of new ones."""
        return len(self._subscriptions) + len(self._schedules) + len(self._handle_middleware)

    @property
    def settings(self) -> Settings:
        """The settings in force here."""
        return self.runtime.settings

    @property
    def topics(self) -> Sequence[Topic[Any]]:
        """The topics, in the order of declaring."""
        return tuple(self._topics.values())

    @property
    def schedules(self) -> Sequence[Schedule]:
        """The schedules, in the order of declaring."""
        return tuple(self._schedules.values())

    def subscriptions(self) -> Sequence[Subscription]:
        """Return the subscriptions with their groups and timeouts resolved, in the order of declaring.

        Raises SubscriptionError if the default group makes two of them the same, and ConfigurationError if a payload's
        type names what is still not defined, or an upcast from an earlier version is missing.
        """
        settings = self.settings
        resolved: dict[tuple[str, str], Subscription] = {}
        for one in self._subscriptions.values():
            one.handler.codec.check()
            one.versions.check()
            group = one.group or settings.group
            other = resolved.get((one.topic, group))
            if other is not None:
                raise second_handler(one.topic, group, one.handler, other.handler)
            resolved[one.topic, group] = replace(one, group=group, timeout=one.timeout or settings.timeout)
        return tuple(resolved.values())

    def handle_middleware(self) -> Sequence[HandleMiddleware]:
        """Return the middleware around handlers, the outermost first."""
        return tuple(self._handle_middleware)

    def close(self) -> None:
        """Close the broker's connections. Idempotent; the next use opens them anew."""
        if self._own_runtime is not None:
            self._own_runtime.close()


class Batch:
    """Messages that are sent together. Not for use by several threads at once.

        with pubsub.batch() as batch:
            for order in orders:
                batch.publish(placed, order)

    Each `publish` validates at once. Leaving the block sends all in order, in one round trip per node; if the block
    raises, nothing is sent. If sending fails, the error's `stored_ids` are what is stored all the same; the rest stays,
    and `commit()` may be called again: it sends only that, and nothing is stored twice.
    """

    def __init__(self, pubsub: PubSub, runtime: Runtime, durability: Durability | None) -> None:
        self._pubsub = pubsub
        self._runtime = runtime
        self._durability = durability
        self._sent: list[str] = []
        self._forget()

    def _forget(self, sent: Sequence[str] = ()) -> None:
        """Start afresh, when these were sent."""
        self._sent += sent
        self._added: list[str] = []  # the ids of what was added since all was sent
        self._stored: dict[str, str] = {}  # of these what is stored, and the ids that stand for it
        self._waiting: list[Message[bytes]] = []  # the others
        self._terms: dict[str, Terms] = {}  # of what waits, by id
        self._asked = IN_MEMORY  # by what waits
        self._doubtful: set[str] = set()  # of what waits, what may be stored
        self._has_failed = False
        self._is_sending = False  # last: see `commit`

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all messages stored so far, in order; of one whose `dedup` was used before, that of the first."""
        return (*self._sent, *(self._stored[one] for one in self._added if one in self._stored))

    def publish(
        self,
        topic: str | Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        expires: float | timedelta | None = None,
        dedup: Dedup | None = None,
        id: str | None = None,
    ) -> str:
        """Add a message, and return the id that it will have; `id` is for one that was published before.

        The others are those of `PubSub.publish`. Raises ValidationError, adding nothing, if it does not fit.
        """
        pubsub, runtime = self._pubsub, self._runtime
        fields = pubsub._fields(runtime, topic, payload, key, headers, expires, id)  # one unit with PubSub
        name: str = fields["topic"]
        own_id: str = fields["id"]
        own = None
        if delay is not None or at is not None or dedup is not None:
            own = terms_of(name, fields["published_at"], delay, at, expires, dedup)
        pubsub._through(runtime, fields, self._add)  # noqa: SLF001
        if own is not None:
            self._terms[own_id] = own
        asked = self._durability or pubsub._topics[name].durability or runtime.settings.durability  # noqa: SLF001
        if asked is not self._asked:
            self._asked |= asked
        if id is not None:
            self._doubtful.add(id)
        return own_id

    def _add(self, message: Message[bytes]) -> None:
        self._waiting.append(message)
        self._added.append(message.id)

    def commit(self) -> tuple[str, ...]:
        """Send what waits. Returns the ids of all that was added since a commit last sent everything.

        May be called again after an error: then it sends what is not known to be stored.
        """
        if self._is_sending:  # an earlier one was interrupted before it could note what became of it
            self._has_failed = True
            self._doubtful.update(_ids(self._waiting))
        self._is_sending = True
        if self._has_failed:
            # Looking for what may be stored takes as long as there is much behind it, so the rest goes on its own.
            numbers = [number for number, one in enumerate(self._waiting, 1) if one.id in self._doubtful]
            last = max(numbers, default=0)
            for messages, again in ((self._waiting[:last], True), (self._waiting[last:], False)):
                self._note_stored(dict(zip(_ids(messages), self._send(messages, again=again), strict=True)))
            ids = tuple(self._stored[one] for one in self._added)
        else:
            ids = tuple(self._send(self._waiting, again=bool(self._doubtful)))
        self._forget(ids)
        if self._runtime.settings.eager:
            self._pubsub._drain(self._runtime)  # noqa: SLF001
        return ids

    def _send(self, messages: Sequence[Message[bytes]], *, again: bool) -> Sequence[str]:
        """Have messages stored, and return the ids that stand for them."""
        if not messages:
            return ()
        try:
            ids = self._runtime.broker.publish(messages, self._asked, again=again, terms=self._terms)
            self._pubsub.metrics.published(messages, ids)
        except BaseException as error:
            self._has_failed = True
            if isinstance(error, BrokerError | PublishUncertain) and len(set(self._added)) == len(self._added):
                self._count(messages, error.stored)
                self._note_stored(error.stored)
                self._doubtful.update(getattr(error, "message_ids", ()))
            else:  # also what is stored must be confirmed, or could be of another topic: look for all of it
                self._doubtful.update(_ids(messages))
            self._is_sending = False
            raise
        return ids

    def _count(self, messages: Sequence[Message[bytes]], stored: Mapping[str, str]) -> None:
        those = [message for message in messages if message.id in stored]
        self._pubsub.metrics.published(those, [stored[message.id] for message in those])

    def _note_stored(self, stored: Mapping[str, str]) -> None:
        self._stored.update(stored)
        self._waiting = [message for message in self._waiting if message.id not in stored] if stored else self._waiting
        self._doubtful -= stored.keys()

    def discard(self) -> Mapping[str, int]:
        """Forget what waits, and return how many messages of which topics that were. What is stored stays so."""
        counts = Counter(message.topic for message in self._waiting)
        self._sent = list(self.ids)
        self._forget()
        return counts

    def __enter__(self) -> "Batch":
        """Start the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send, unless the block raised: then forget."""
        if kind is None:
            self.commit()
        else:
            self.discard()


def _check_passed_on(message: Message[Any], given: Message[Any]) -> None:
    """Raise an error if publish middleware made another message of one, or one that cannot be sent."""
    if (message.topic, message.id) != (given.topic, given.id):
        raise ConfigurationError(
            f"nothing was published to {given.topic!r}: a publish middleware passed on a message with another "
            f"{'id' if message.topic == given.topic else 'topic'}. Payload, key and headers may be changed; to publish "
            "elsewhere too, call publish() in it"
        )
    if message.key is not None:
        checked_key(message.topic, message.key)
    checked_headers(message.headers, message.topic, ", by a publish middleware")


def _ids(messages: Sequence[Message[Any]]) -> list[str]:
    return [message.id for message in messages]


def _is_local(function: Callable[..., Any]) -> bool:
    return "<locals>" in getattr(function, "__qualname__", "")


def _foreign(topic: Topic[Any], action: str) -> ConfigurationError:
    return ConfigurationError(f"{topic!r} was declared on another PubSub: {action} there, or declare it here too")


def _group_of(module: Mapping[str, Any]) -> str:
    """Return the default group of a PubSub that a module makes."""
    name = module_name(module)
    return name if is_name(name) and name != "__main__" else "default"
