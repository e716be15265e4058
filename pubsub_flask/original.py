"""The two objects of `flask-redis-stream-pubsub`, `Producer` and `Consumer`, over the `PubSub` of an app.

What differs from that package: a payload is JSON and comes back as it was, the dict that is published stays as it is,
messages that nobody has handled are kept, and one that failed for the last time becomes a dead letter. In `subscribe`,
`timeout` is the pause between two tries, as there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, finalize

from flask import Flask, current_app, has_app_context

from pubsub_core.errors import ConfigurationError
from pubsub_core.message import Message
from pubsub_core.pubsub import Batch
from pubsub_core.retry import FixedDelay
from pubsub_core.runtime import Runtime
from pubsub_core.subscription import Subscription, Takes
from pubsub_core.target import load_object
from pubsub_core.worker.options import WorkerOptions
from pubsub_flask.config import ORIGINAL_PREFIX, RedisOption, settings_for
from pubsub_flask.extension import KEY, PubSub, State, chosen_app
from pubsub_flask.session import discard

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_RETRY_COUNT = 32
DEFAULT_PAUSE = 300.0


class Msg(Message[Any]):
    """The message that a `Consumer`'s handler gets: a `Message`, with the names of the original for what it has."""

    __slots__ = ()

    @classmethod
    def of(cls, message: Message[Any]) -> "Msg":
        """Return the same message as a `Msg`."""
        return cls(*_values(message))

    @property
    def stream_name(self) -> str:
        """The topic."""
        return self.topic

    @property
    def group_name(self) -> str | None:
        """The group."""
        return self.group

    @property
    def retry_count(self) -> int:
        """How often it was tried before this time."""
        return self.attempt - 1

    def __repr__(self) -> str:
        """Without payload and headers, which may be secret or huge."""
        return (
            f"Msg(id={self.id!r}, stream_name={self.topic!r}, group_name={self.group!r}, "
            f"retry_count={self.retry_count}, source={self.source!r})"
        )


_values = attrgetter(*(one.name for one in fields(Message)))


class Producer:
    """Publishes. It belongs to no app: `init_app` may be called with several.

    On an app that has a `PubSub` too, both publish to the same broker.
    """

    def __init__(self) -> None:
        self._keys: WeakKeyDictionary[Flask, str] = WeakKeyDictionary()

    def init_app(self, app: Flask, config_prefix: str = ORIGINAL_PREFIX) -> None:
        """Read `PUBSUB_REDIS_URL` and `PUBSUB_REDIS_OPTION` of the app. No I/O. May be called again."""
        key = _key(config_prefix)
        if key not in app.extensions:
            _Declarations(config_prefix).init_app(app)
        self._keys[app] = key

    def publish(self, stream_name: str, payload: Any) -> str:
        """Publish one message and return its id. See `PubSub.publish`."""
        return self._pubsub().publish(stream_name, payload)

    @property
    def session(self) -> "ProducerSession":
        """Messages to be sent together: those of `PubSub.session`; outside of an app context a new one at each use.

        What was added to that one and not committed when it is forgotten is discarded, with a warning.
        """
        app, pubsub = self._app(), self._pubsub()
        is_current = has_app_context() and current_app._get_current_object() is app  # type: ignore[attr-defined]  # noqa: SLF001
        if is_current:
            return ProducerSession(pubsub.session)
        batch = pubsub.batch()
        session = ProducerSession(batch)
        finalize(session, discard, batch, hint=_KEEP_IT)
        return session

    def _app(self) -> Flask:
        return chosen_app(list(self._keys), "Producer")

    def _pubsub(self) -> PubSub:
        app = self._app()
        return cast(State, app.extensions[self._keys[app]]).pubsub.bound_to(app)


_KEEP_IT = (
    ". Outside of an app context `producer.session` is a new one at each use: keep it, as in session = producer.session"
)


class ProducerSession:
    """Messages that are sent together, in order. Not for use by several threads at once."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def add(self, stream_name: str, payload: Any) -> str:
        """Add a message, and return the id that it will have. Raises ValidationError, adding nothing, if it is bad."""
        return self._batch.publish(stream_name, payload)

    def commit(self) -> list[str]:
        """Send what was added, and return the ids. If it fails the messages stay: it may be called again."""
        return list(self._batch.commit())


class Consumer:
    """Handlers, and a worker that runs them.

        cs = Consumer(__name__)

        @cs.subscribe("hello_word", retry_count=3, timeout=30)
        def hello_word(msg: Msg) -> None: ...

        cs.init_app(app)
        cs.run()

    `options` are the keys of `PUBSUB_REDIS_OPTION`, and win over it; see `RedisOption` for what each is here. On an app
    that has a `PubSub` too, both use its broker, and `flask pubsub worker` runs the handlers of the `PubSub` only; else
    those of the first Consumer that was initialised. `run` runs the handlers of this one.
    """

    def __init__(self, consumer_name: str, *, config_prefix: str = ORIGINAL_PREFIX, **options: Any) -> None:
        self.consumer_name = consumer_name
        self._pubsub = _Declarations(config_prefix, RedisOption.parse(options, "Consumer(...)"))
        self._latest: PubSub | None = None

    def subscribe(
        self,
        stream_name: str,
        *,
        retry_count: int | None = None,
        timeout: float | None = None,
        cron: str | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that makes a function the handler of a stream, and leaves it unchanged.

        If it raises it is tried again, `retry_count` times, with a pause of `timeout` seconds before each; then the
        message becomes a dead letter. With `cron` (of six fields, seconds come first) it is called at each tick.
        """
        retry = _Pause(retry_count, timeout)
        if cron is None:
            return self._pubsub.subscribe(stream_name, retry=retry)
        return self._pubsub.cron(cron, name=stream_name, retry=retry)

    def init_app(self, app: Flask) -> None:
        """Read the settings of the app, which is then the one of `run`. No I/O. May be called again."""
        self._pubsub.init_app(app)
        self._latest = self._pubsub.bound_to(app)

    def run(
        self,
        app_factory: str | Callable[[], Flask] | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Run a worker until it is told to stop. Its processes are forked from this one, with the handlers they have.

        `app_factory` is needed only if `init_app` was not called: `"module:app"`, or a function that returns the app.
        Raises SystemExit with the worker's exit code if it did not end as asked.
        """
        from pubsub_core.worker.supervisor import supervise

        option = self._pubsub.option
        factory = app_factory or option.app_factory
        if self._latest is None and factory is None:
            raise ConfigurationError('no app to run for: call init_app(app) first, or give it: run("module:app")')
        code = supervise(
            lambda: self._loaded(factory),
            WorkerOptions(
                target=factory if isinstance(factory, str) else self.consumer_name,
                processes=processes or option.processes,
                threads=threads or option.threads,
            ),
        )
        if code:
            raise SystemExit(code)

    def _loaded(self, factory: str | Callable[[], Flask] | None) -> PubSub:
        if self._latest is None:
            app = load_object(factory) if isinstance(factory, str) else factory and factory()
            if not isinstance(app, Flask):
                raise ConfigurationError(f"{factory!r} is a {type(app).__name__}: it must be a Flask app, or make one")
            self.init_app(app)
        return cast(PubSub, self._latest)


def _key(prefix: str) -> str:
    """Return the name that an app keeps its state under: keys of another prefix are another broker."""
    return KEY if prefix == ORIGINAL_PREFIX else f"{KEY}.{prefix}"


class _Declarations(PubSub):
    """The PubSub behind a Consumer, or behind a Producer whose app has no other.

    It uses the settings and the broker that the app has at that moment, whoever brought them.
    """

    def __init__(self, prefix: str, keywords: RedisOption | None = None) -> None:
        super().__init__()
        self._prefix = prefix
        self._key = _key(prefix)
        self.option = self._keyword_option = keywords or RedisOption()

    def init_app(self, app: Flask) -> None:
        """Serve the app beside whoever does so already. May be called again."""
        self.option = self._keyword_option.over(RedisOption.of(app.config, self._prefix))
        known: State | None = app.extensions.get(self._key)
        if known is None:
            runtime = Runtime(settings_for(app, {}, self._prefix), self._clock, MappingProxyType(self._topic_options))
            app.extensions[self._key] = State(self, runtime, makes_way=True)
        elif known.makes_way and not known.pubsub.bound_to(app).subscriptions():
            known.pubsub = self
        self._apps.add(app)

    def _add(self, new: Subscription) -> None:
        handler = new.handler
        if handler.takes is Takes.MESSAGE:
            handler = replace(handler, function=_called_with_msg(handler.function))
        super()._add(replace(new, handler=handler))

    def subscriptions(self) -> Sequence[Subscription]:
        """Return them with groups, pauses and counts as the options say."""
        return tuple(self._with_options(one) for one in super().subscriptions())

    def _with_options(self, one: Subscription) -> Subscription:
        if not isinstance(one.retry, _Pause):
            return one
        return replace(one, group=self._keyword_option.group or one.group, retry=one.retry.policy(self.option))


@dataclass(frozen=True, slots=True)
class _Pause:
    """What a `subscribe` says of retrying. None is for the options to say, which are known when there is an app."""

    retry_count: int | None
    pause: float | None

    def __post_init__(self) -> None:
        self.policy(RedisOption())  # refuses what cannot be

    def policy(self, option: RedisOption) -> FixedDelay:
        """Return the policy that it is under these options."""
        retry_count = option.retry_count if self.retry_count is None else self.retry_count
        pause = option.timeout_second if self.pause is None else self.pause
        return FixedDelay(
            DEFAULT_PAUSE if pause is None else pause, DEFAULT_RETRY_COUNT if retry_count is None else retry_count
        )

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait, or None to give up."""
        return self.policy(RedisOption()).next_delay(attempt, error)


def _called_with_msg(function: Callable[[Msg], Any]) -> Callable[[Message[Any]], Any]:
    def call(message: Message[Any]) -> Any:
        return function(Msg.of(message))

    return call
