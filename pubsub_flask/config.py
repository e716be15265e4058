"""From a Flask app to `Settings`: which keys count, in which order, and the keys of the original package."""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from flask import Flask

from pubsub_core.commands import COMMANDS
from pubsub_core.errors import ConfigurationError
from pubsub_core.names import check_name, did_you_mean
from pubsub_core.settings import PREFIX, Settings

log = logging.getLogger("pubsub")

ORIGINAL_PREFIX = "PUBSUB_REDIS"
_ORIGINAL_KEYS = (f"{ORIGINAL_PREFIX}_URL", f"{ORIGINAL_PREFIX}_OPTION")
_OF_LONGER_PREFIX = re.compile(f"{ORIGINAL_PREFIX}_.+_(URL|OPTION)")  # which another `Producer` may have been given

# Flask gives the options of `flask pubsub worker` and the others variables of these names: they are settings only if
# they are called like one, such as FLASK_PUBSUB_PUBLISH_TIMEOUT.
_OPTIONS_OF_COMMANDS = tuple(f"{PREFIX}{command.upper().replace('-', '_')}_" for command in (*COMMANDS, "dev"))
_SETTINGS = frozenset(f"{PREFIX}{one.name.upper()}" for one in fields(Settings))


def settings_for(app: Flask, keywords: Mapping[str, Any], prefix: str = ORIGINAL_PREFIX) -> Settings:
    """Return the settings of an app: keyword, then `app.config`, then the environment, with `FLASK_` or without.

    In `app.config`, `PUBSUB_REDIS_URL` and `PUBSUB_REDIS_OPTION` count where the key of ours is absent; those of
    another `prefix` were asked for, and count before ours. Without a URL it is `memory://`.
    Raises ConfigurationError for unknown keys and values that cannot be.
    """
    original = original_layer(app.config, prefix)
    own = {key: value for key, value in app.config.items() if not _is_of_original(key, prefix)}
    of_flask = {
        key.removeprefix("FLASK_"): value for key, value in os.environ.items() if key.startswith("FLASK_PUBSUB_")
    }
    flask_environment = {
        key: value for key, value in of_flask.items() if key in _SETTINGS or not key.startswith(_OPTIONS_OF_COMMANDS)
    }
    of_app = (own, original) if prefix == ORIGINAL_PREFIX else (original, own)
    layers = (keywords, *of_app, os.environ, flask_environment)
    settings = Settings.parse(
        *layers, {"PUBSUB_GROUP": app.name}
    )  # of a script, `name` is what it would be imported by
    if app.testing and all(layer.get("PUBSUB_URL") is None for layer in layers):
        log.info("TESTING is on and PUBSUB_URL is not set: %s uses memory://", app.name)
    return settings


def _is_of_original(key: str, prefix: str) -> bool:
    """Whether a key is one of the original package. Raises ConfigurationError for one that only looks like it."""
    if key.startswith(f"{ORIGINAL_PREFIX}_") and key not in _ORIGINAL_KEYS and not _OF_LONGER_PREFIX.fullmatch(key):
        raise ConfigurationError(
            f"unknown setting {key!r}.{did_you_mean(key, _ORIGINAL_KEYS)} Known: {', '.join(_ORIGINAL_KEYS)}"
        )
    return key.startswith(f"{prefix}_")


def original_layer(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what the keys of the original package say, as a layer for `Settings.parse`."""
    option = RedisOption.of(config, prefix)
    return {
        "PUBSUB_URL": config.get(f"{prefix}_URL"),
        "PUBSUB_GROUP": option.group,
        "PUBSUB_PROCESSES": option.processes,
        "PUBSUB_THREADS": option.threads,
        "PUBSUB_TIMEOUT": option.timeout_second,
    }


def _name(value: Any) -> str:
    return check_name("group", value)


def _whole(least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < least:
            raise ValueError
        return int(value)

    return parse


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)) or float(value) <= 0:
        raise ValueError
    return float(value)


def _app_factory(value: Any) -> Any:
    if not isinstance(value, str) and not callable(value):
        raise ValueError  # noqa: TRY004  # reported by the caller, with the key
    return value


def _must_be_false(value: Any) -> bool:
    if value:
        raise ValueError
    return False


def _without_meaning(value: Any) -> Any:
    return value


_PARSERS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "group": (_name, "a group name"),
    "processes": (_whole(1), "a whole number, 1 or more"),
    "threads": (_whole(1), "a whole number, 1 or more"),
    "retry_count": (_whole(0), "a whole number, 0 or more"),
    "timeout_second": (_seconds, "seconds, more than 0"),
    "app_factory": (_app_factory, "'module:app', or a function that returns the app"),
    "noack": (_must_be_false, "False: messages that are not acknowledged would be lost with a crash"),
    "block_second": (_without_meaning, ""),
    "read_count": (_without_meaning, ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOption:
    """The original's `PUBSUB_REDIS_OPTION`. None stands for a key that is not given.

    | key | what it is here |
    |---|---|
    | `group`, `processes`, `threads` | `PUBSUB_GROUP`, `PUBSUB_PROCESSES`, `PUBSUB_THREADS` |
    | `retry_count` | retries of a `Consumer`'s handlers that do not say otherwise; 32 |
    | `timeout_second` | `PUBSUB_TIMEOUT`, and the pause between two tries of such handlers; 300 |
    | `app_factory` | the app of `Consumer.run()` when it is given none |
    | `noack` | only False: without acknowledgement a crash would lose messages |
    | `block_second`, `read_count` | no meaning: reading waits and fetches as the threads need |
    """

    group: str | None = None
    processes: int | None = None
    threads: int | None = None
    retry_count: int | None = None
    timeout_second: float | None = None
    app_factory: Any = None
    noack: bool | None = None
    block_second: Any = None
    read_count: Any = None

    @classmethod
    def of(cls, config: Mapping[str, Any], prefix: str) -> "RedisOption":
        """Read the `_OPTION` of a config. Raises ConfigurationError as `parse` does."""
        given = config.get(f"{prefix}_OPTION")
        if given is not None and not isinstance(given, Mapping):
            raise ConfigurationError(f"{prefix}_OPTION is a {type(given).__name__}: it must be a dict")
        return cls.parse(given or {}, f"{prefix}_OPTION")

    @classmethod
    def parse(cls, given: Mapping[str, Any], called: str) -> "RedisOption":
        """Check keys and values. Raises ConfigurationError, which names them by `called`, and the nearest right key."""
        for key in given:
            if key not in _PARSERS:
                raise ConfigurationError(
                    f"unknown key {key!r} in {called}.{did_you_mean(str(key), _PARSERS)} "
                    f"Known: {', '.join(sorted(_PARSERS))}"
                )
        return cls(**{key: _parsed(called, key, value) for key, value in given.items() if value is not None})

    def over(self, other: "RedisOption") -> "RedisOption":
        """Return what is given here and, for the rest, there."""
        mine = {one.name: getattr(self, one.name) for one in fields(self)}
        return RedisOption(**{name: getattr(other, name) if value is None else value for name, value in mine.items()})


def _parsed(called: str, key: str, value: Any) -> Any:
    parse, expected = _PARSERS[key]
    try:
        return parse(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{called}[{key!r}]: {error}") from None
    except (ValueError, TypeError, OverflowError):
        raise ConfigurationError(f"{called}[{key!r}]={value!r} cannot be: it must be {expected}") from None
