"""`PubSub` for Flask: declared once, for any number of apps, each with settings and a broker of its own."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast
from weakref import WeakSet

from flask import Flask, current_app, has_app_context, has_request_context
from werkzeug.local import LocalProxy

import pubsub_core
from pubsub_core.clock import Clock
from pubsub_core.errors import ConfigurationError
from pubsub_core.headers import inherited_headers
from pubsub_core.message import Delivery
from pubsub_core.middleware import HandleMiddleware, HandleNext
from pubsub_core.pubsub import Batch
from pubsub_core.runtime import Runtime
from pubsub_flask.config import settings_for
from pubsub_flask.request_headers import headers_of_request
from pubsub_flask.session import session_of_context

KEY = "pubsub"


@dataclass(slots=True)
class State:
    """What `app.extensions["pubsub"]` is: the app's `PubSub`, and its settings and broker.

    If it `makes_way`, the two-object style made it, and a `PubSub` may take its place.
    """

    pubsub: "PubSub"
    runtime: Runtime
    makes_way: bool = False


def _inherited_headers() -> Mapping[str, str] | None:
    inherited = inherited_headers()
    return headers_of_request() if inherited is None and has_request_context() else inherited


class PubSub(pubsub_core.PubSub):
    """Topics, subscriptions and schedules of Flask applications, and the way to publish.

        pubsub = PubSub()              # at import time; or PubSub(app)
        pubsub.init_app(app)           # in the application factory; several apps are fine

    Settings are read at `init_app`: keywords given here, then `PUBSUB_*` of `app.config`, then of the environment, as
    `PUBSUB_*` or `FLASK_PUBSUB_*`. Publishing works within a context of the app and, if there is one app, anywhere.
    Each handler runs in an app context of its own. What is published in a request inherits its `X-Request-ID`, as the
    correlation id, and its `traceparent`.
    """

    _key = KEY

    def __init__(
        self,
        app: Flask | None = None,
        *,
        url: str | None = None,
        group: str | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(url, group=group, clock=clock, **settings)
        self._apps: WeakSet[Flask] = WeakSet()
        self._bound: Flask | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings of an app, and be the PubSub of it. No I/O: the broker connects when it is first used.

        Raises ConfigurationError for settings that cannot be, and for an app that has a PubSub already.
        """
        if not isinstance(app, Flask):
            raise ConfigurationError(
                f"{app!r} is not a Flask app: use PubSub(app), or PubSub(url=...) and init_app(app)"
            )
        known = app.extensions.get(self._key)
        if known is not None and not known.makes_way:
            raise ConfigurationError(
                f"the app {app.name!r} has a PubSub already: init_app was called twice, or two PubSub were made for "
                "it. Make it once, in a module of its own, and import it from there"
            )
        runtime = Runtime(settings_for(app, self._keywords), self._clock, MappingProxyType(self._topic_options))
        app.extensions[self._key] = State(self, runtime)
        self._apps.add(app)

    def bound_to(self, app: Flask) -> "PubSub":
        """Return this PubSub as it is for one of its apps, whatever app context there is. What it declares is shared.

        For workers and other code that serves one app where several are initialised.
        """
        if app not in self._apps:
            raise ConfigurationError(f"the app {app.name!r} does not know this PubSub: call pubsub.init_app(app)")
        bound = copy.copy(self)
        bound._bound = app  # noqa: SLF001  # a copy of this
        return bound

    @property
    def runtime(self) -> Runtime:
        """The settings and broker of the current app or, outside its context, of the only one.

        Raises ConfigurationError if there is none, or there are several and none of them is current.
        """
        if self._stand_ins:
            return self._stand_ins[-1]
        return self._state(self._bound or chosen_app(self._apps, "PubSub")).runtime

    _inherited_headers = staticmethod(_inherited_headers)

    @property
    def session(self) -> Batch:
        """A batch that lasts as long as the current app context or, within a request, as that.

            pubsub.session.publish(orders, OrderPlaced(order_id=1, total=9.5))
            db.session.commit()
            pubsub.session.commit()

        What is not committed by then is discarded, with a warning, also after an exception. Contexts have sessions of
        their own, also one within another. Raises ConfigurationError outside of the contexts of this one's apps.
        """
        app = current_app._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]  # noqa: SLF001
        if app is None or app not in self._apps or (self._bound is not None and self._bound is not app):
            raise ConfigurationError(
                "pubsub.session lasts as long as an app context, and "
                + (f"the current one is that of {app.name!r}, another app" if app is not None else "there is none here")
                + ": use it within a request, a handler or `with app.app_context():`, or send messages together by "
                "`with pubsub.batch() as batch:`"
            )
        return session_of_context(app, self._key, self.batch)

    def serving(self, runtime: Runtime) -> "PubSub":
        """Return this PubSub bound to the app whose runtime that is."""
        return next(self.bound_to(app) for app in self._apps if self._state(app).runtime is runtime)

    def _state(self, app: Flask) -> State:
        return cast(State, app.extensions[self._key])

    def handle_middleware(self) -> Sequence[HandleMiddleware]:
        """Return the middleware around handlers, the outermost first: that is the app context of the delivery."""
        app = self._bound or chosen_app(self._apps, "PubSub")
        return (_app_context_of(app), *super().handle_middleware())

    def close(self) -> None:
        """Close the broker's connections, of all apps, or of the one this is bound to. The next use opens them anew."""
        for app in list(self._apps) if self._bound is None else [self._bound]:
            self._state(app).runtime.close()


def _app_context_of(app: Flask) -> HandleMiddleware:
    def in_app_context(delivery: Delivery[Any], call_next: HandleNext) -> None:
        with app.app_context():
            call_next(delivery)

    return in_app_context


def chosen_app(apps: Collection[Flask], what: str) -> Flask:
    """Return the current app if it is one of `apps`, else the only one. Raises ConfigurationError, with what to do."""
    if has_app_context():
        current = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # Flask documents it
        if current in apps:
            return cast(Flask, current)
    alive = list(apps)
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise ConfigurationError(
            f"this {what} has no Flask app: call init_app(app) first, and keep the app (app = create_app()), which it "
            "does not keep alive; a worker is given what makes it: `pubsub worker module:create_app()`"
        )
    raise ConfigurationError(
        f"this {what} is used by {len(alive)} Flask apps, and none of them is current: do it within "
        "`with app.app_context():`; a worker is given the app: `pubsub worker module:app`"
    )


def _pubsub_of_current_app() -> PubSub:
    state = current_app.extensions.get(KEY)
    if state is None:
        raise ConfigurationError(
            f"the app {current_app.name!r} has no PubSub: call PubSub(app) or pubsub.init_app(app)"
        )
    return cast(State, state).pubsub


current_pubsub: PubSub = cast(PubSub, LocalProxy(_pubsub_of_current_app))
"""The PubSub of the current app, for code that cannot import it."""
