"""Redis errors, translated where they enter."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis.exceptions as theirs

from pubsub_core.errors import BrokerError, BrokerFull, BrokerUnavailable, NotPermitted, StreamConflict, Unsupported

# The first that matches wins: AuthenticationError is a ConnectionError to redis-py.
_BY_TYPE: tuple[tuple[type[Exception], type[BrokerError]], ...] = (
    (theirs.AuthenticationError, NotPermitted),
    (theirs.AuthorizationError, NotPermitted),
    (theirs.AuthenticationWrongNumberOfArgsError, NotPermitted),
    (theirs.NoPermissionError, NotPermitted),
    (theirs.OutOfMemoryError, BrokerFull),
    (theirs.ConnectionError, BrokerUnavailable),
    (theirs.TimeoutError, BrokerUnavailable),
    (theirs.ReadOnlyError, BrokerUnavailable),
    (theirs.ClusterDownError, BrokerUnavailable),
    (theirs.TryAgainError, BrokerUnavailable),
    (theirs.AskError, BrokerUnavailable),
    (theirs.ClusterError, BrokerUnavailable),
    (theirs.RedisClusterException, BrokerUnavailable),
    (OSError, BrokerUnavailable),
)

# Errors that redis-py has no class for, by their code: the first word, or the second after "ERR".
_BY_CODE: dict[str, type[BrokerError]] = {
    "WRONGTYPE": StreamConflict,
    "NOPERM": NotPermitted,
    "NOAUTH": NotPermitted,
    "DENIED": NotPermitted,
    "WRONGPASS": NotPermitted,
    "OOM": BrokerFull,
    "MISCONF": BrokerUnavailable,
    "NOREPLICAS": BrokerUnavailable,
    "BUSY": BrokerUnavailable,
    "LOADING": BrokerUnavailable,
    "READONLY": BrokerUnavailable,
    "MASTERDOWN": BrokerUnavailable,
    "CLUSTERDOWN": BrokerUnavailable,
    "TRYAGAIN": BrokerUnavailable,
    "MOVED": BrokerUnavailable,
    "ASK": BrokerUnavailable,
    "UNBLOCKED": BrokerUnavailable,
}

# And those of commands inside a script, which some servers wrap or strip of their code.
_BY_TEXT: tuple[tuple[str, type[BrokerError]], ...] = (
    ("against a key holding the wrong kind of value", StreamConflict),
    ("no permission", NotPermitted),
    ("the user executing the script", NotPermitted),
    ("command not allowed when used memory", BrokerFull),
    ("unknown command", Unsupported),
    ("appendonly is disabled", Unsupported),
    ("cannot be used with replica instances", BrokerUnavailable),  # of WAIT: it was the master a moment ago
)

# Not all of redis-py's errors are a RedisError: those of its cluster client are not.
FOREIGN: tuple[type[Exception], ...] = (
    OSError,
    *(one for one in vars(theirs).values() if isinstance(one, type) and issubclass(one, Exception)),
)


def translated(error: BaseException, what: str) -> BrokerError:
    """Return our error for one of redis-py's or the system's, saying `what` was being done."""
    text = str(error)
    kind = next((ours for foreign, ours in _BY_TYPE if isinstance(error, foreign)), None) or _kind_by_text(text)
    hint = ""
    if "unknown command" in text.lower() and "eval" in text.lower():
        hint = ". If this is fakeredis, it needs Lua: pip install 'fakeredis[lua]'"
    return kind(f"{what}: {text}{hint}")


def _kind_by_text(text: str) -> type[BrokerError]:
    text = text.removeprefix("EXECABORT ").removeprefix("Transaction discarded because of: ")
    words = text.split(maxsplit=2)
    code = words[1] if words[:1] == ["ERR"] and len(words) > 1 else "".join(words[:1])
    lower = text.lower()
    return _BY_CODE.get(code) or next((ours for part, ours in _BY_TEXT if part in lower), BrokerError)


def is_missing_group(error: BaseException | None) -> bool:
    """Whether a group, or the whole stream, is gone (also while a read was blocked on it)."""
    text = str(error)
    return text.startswith(("NOGROUP", "UNBLOCKED")) or "no such key" in text or "requires the key to exist" in text


@contextmanager
def broker_errors(what: str) -> Iterator[None]:
    """Raise our error for whatever redis-py or the system raises inside."""
    try:
        yield
    except FOREIGN as error:
        raise translated(error, what) from error
