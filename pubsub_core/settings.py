"""Configuration: parsed once, at the door. Inside, settings are typed and right."""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from pubsub_core.backends import masked
from pubsub_core.broker import IN_MEMORY, Durability
from pubsub_core.errors import ConfigurationError
from pubsub_core.names import check_name, did_you_mean

PREFIX = "PUBSUB_"

# Read by others: Google's client, our command line's target, the two-object style (pubsub_flask.original).
FOREIGN_KEYS = frozenset({"EMULATOR_HOST", "PROJECT_ID", "APP", "REDIS_URL", "REDIS_OPTION", "TEST_REDIS_URL"})


def _whole(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    number = int(value)  # type: ignore[call-overload]  # whatever int() takes; the rest raises and is reported
    if number < 1:
        raise ValueError
    return int(number)


def _seconds(value: object) -> float:
    if isinstance(value, bool):
        raise ValueError  # noqa: TRY004  # reported by the caller, with the key
    number = float(value)  # type: ignore[arg-type]  # whatever float() takes; the rest raises and is reported
    if not math.isfinite(number) or number <= 0:
        raise ValueError
    return number


def _flag(value: object) -> bool:
    known = _FLAGS.get(str(value).lower())
    if known is None:
        raise ValueError
    return known


_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def parse_durability(text: object) -> Durability:
    """Return what "memory", "fsync", "replicas:N" or "fsync+replicas:N" asks for. Raises ConfigurationError."""
    asked = IN_MEMORY
    for part in str(text).split("+"):
        name, _, count = part.partition(":")
        if part == "fsync":
            asked |= Durability(fsync=True)
        elif name == "replicas" and count.isdecimal() and int(count) > 0:
            asked |= Durability(replicas=int(count))
        elif text != "memory":
            raise ConfigurationError(f"durability={text!r} cannot be: it must be {_DURABILITIES}")
    return asked


_DURABILITIES = "'memory', 'fsync', 'replicas:N' (N is 1 or more), or 'fsync+replicas:N'"


def _setting(default: Any, parse: Callable[[object], Any], expected: str) -> Any:
    return field(default=default, metadata={"parse": parse, "expected": expected})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. Times are seconds; see docs/configuration.md for what each one does."""

    url: str = _setting("memory://", _text, "a URL such as redis://localhost:6379/0")
    group: str = _setting("default", _text, "a group name")
    processes: int = _setting(1, _whole, "a whole number, 1 or more")
    threads: int = _setting(8, _whole, "a whole number, 1 or more")
    timeout: float = _setting(300.0, _seconds, "seconds, more than 0")
    namespace: str = _setting("pubsub", _text, "a name")
    max_payload: int = _setting(1024 * 1024, _whole, "a number of bytes, 1 or more")
    retention: float = _setting(86_400.0, _seconds, "seconds, more than 0")
    dead_letter_retention: float = _setting(30 * 86_400.0, _seconds, "seconds, more than 0")
    durability: Durability = _setting(IN_MEMORY, parse_durability, _DURABILITIES)  # noqa: RUF009  # a field, as the others
    max_crashes: int = _setting(3, _whole, "a whole number, 1 or more")
    heartbeat: float = _setting(2.0, _seconds, "seconds, more than 0")
    publish_timeout: float = _setting(5.0, _seconds, "seconds, more than 0")
    shutdown_timeout: float = _setting(25.0, _seconds, "seconds, more than 0")
    eager: bool = _setting(False, _flag, "true or false")

    def __post_init__(self) -> None:
        """Refuse what cannot go together."""
        if self.eager and urlsplit(self.url).scheme != "memory":
            raise ConfigurationError(
                f"PUBSUB_EAGER works with memory:// only, and PUBSUB_URL is {masked(self.url)}: on a server, handlers "
                "belong to a worker. Leave PUBSUB_EAGER out, or set PUBSUB_URL=memory:// where you want it"
            )

    @classmethod
    def parse(cls, *layers: Mapping[str, Any]) -> "Settings":
        """Make settings of one or more mappings with `PUBSUB_` keys; the first that has a key wins.

        Keys without the prefix are not ours and are passed over. Raises ConfigurationError for an unknown `PUBSUB_`
        key, naming the nearest right one, and for a value that cannot be; strings are read as numbers where one is due.
        """
        known = {item.name.upper(): item for item in fields(cls)}
        values: dict[str, Any] = {}
        for layer in layers:
            for key, value in layer.items():
                if not isinstance(key, str) or not key.startswith(PREFIX):
                    continue
                name = key.removeprefix(PREFIX)
                if name in FOREIGN_KEYS:
                    continue
                if name not in known:
                    near = did_you_mean(key, [PREFIX + one for one in known])
                    raise ConfigurationError(
                        f"unknown setting {key!r}.{near} Known: {', '.join(PREFIX + one for one in sorted(known))}"
                    )
                if name.lower() not in values and value is not None:
                    values[name.lower()] = _parsed(key, value, known[name].metadata)
        if "url" not in values and any(layer.get(f"{PREFIX}REDIS_URL") for layer in layers):
            raise ConfigurationError(
                "PUBSUB_REDIS_URL is set, but is read only from the config of a Flask app, and without a URL nothing "
                "would leave this process. Set PUBSUB_URL"
            )
        settings = cls(**values)
        check_name("group", settings.group, "Set PUBSUB_GROUP")
        check_name("namespace", settings.namespace, "Set PUBSUB_NAMESPACE")
        return settings


def _parsed(key: str, value: object, metadata: types.MappingProxyType[Any, Any]) -> Any:
    try:
        return metadata["parse"](value)
    except (ValueError, TypeError):
        shown = masked(str(value)) if key.endswith("URL") else repr(value)
        raise ConfigurationError(f"{key}={shown} cannot be: it must be {metadata['expected']}") from None


def keyword_layer(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Turn keyword arguments (`threads=4`) into a layer for `Settings.parse` (`PUBSUB_THREADS`).

    Raises ConfigurationError for those whose key is for others to read: `parse` would pass over it.
    """
    for name in keywords:
        if name.upper() in FOREIGN_KEYS:
            known = [item.name for item in fields(Settings)]
            near = " It is url=." if name.lower().endswith("url") else did_you_mean(name, known)
            raise ConfigurationError(f"unknown setting {name}=.{near} Known: {', '.join(known)}")
    return {PREFIX + name.upper(): value for name, value in keywords.items()}
