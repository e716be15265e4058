"""Redis errors, translated where they enter."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis.exceptions as theirs

from pubsub_core.errors import BrokerError, BrokerFull, BrokerUnavailable, NotPermitted, StreamConflict

# AuthenticationError is a ConnectionError to redis-py, so the order counts: the first that matches wins.
_BY_TYPE: tuple[tuple[type[Exception], type[BrokerError]], ...] = (
    (theirs.AuthenticationError, NotPermitted),
    (theirs.AuthenticationWrongNumberOfArgsError, NotPermitted),
    (theirs.NoPermissionError, NotPermitted),
    (theirs.OutOfMemoryError, BrokerFull),
    (theirs.ConnectionError, BrokerUnavailable),
    (theirs.TimeoutError, BrokerUnavailable),
    (theirs.ReadOnlyError, BrokerUnavailable),
    (theirs.MasterDownError, BrokerUnavailable),
    (theirs.ClusterDownError, BrokerUnavailable),
    (theirs.TryAgainError, BrokerUnavailable),
    (theirs.MovedError, BrokerUnavailable),
    (theirs.AskError, BrokerUnavailable),
    (OSError, BrokerUnavailable),
)

# Errors that redis-py has no class for, and those of commands inside a script, by their first words. redis-py strips
# the code of the errors that it has a class for; from within a script they come as "ERR ... script: ..." or with code.
_BY_TEXT: tuple[tuple[str, type[BrokerError]], ...] = (
    ("WRONGTYPE", StreamConflict),
    ("OPERATION AGAINST A KEY HOLDING THE WRONG KIND", StreamConflict),
    ("NOPERM", NotPermitted),
    ("NO PERMISSION", NotPermitted),
    ("NOAUTH", NotPermitted),
    ("WRONGPASS", NotPermitted),
    ("OOM", BrokerFull),
    ("COMMAND NOT ALLOWED WHEN USED MEMORY", BrokerFull),
    ("MISCONF", BrokerUnavailable),
    ("NOREPLICAS", BrokerUnavailable),
    ("BUSY", BrokerUnavailable),
    ("LOADING", BrokerUnavailable),
    ("READONLY", BrokerUnavailable),
    ("MASTERDOWN", BrokerUnavailable),
    ("CLUSTERDOWN", BrokerUnavailable),
    ("TRYAGAIN", BrokerUnavailable),
    ("MOVED", BrokerUnavailable),
    ("ASK", BrokerUnavailable),
)

FOREIGN = (theirs.RedisError, OSError)


def translated(error: BaseException, what: str) -> BrokerError:
    """Return our error for one of redis-py's or the system's, saying `what` was being done."""
    text = str(error)
    kind = next((ours for foreign, ours in _BY_TYPE if isinstance(error, foreign)), None)
    if kind is None:
        upper = text.upper()
        kind = next((ours for start, ours in _BY_TEXT if start in upper), BrokerError)
    hint = ""
    if "unknown command" in text.lower() and "eval" in text.lower():
        hint = ". If this is fakeredis, it needs Lua: pip install 'fakeredis[lua]'"
    return kind(f"{what}: {text}{hint}")


def is_missing_group(error: Exception) -> bool:
    """Whether a group, or the whole stream, is gone (also while a read was blocked on it)."""
    text = str(error)
    return text.startswith(("NOGROUP", "UNBLOCKED")) or "No such key" in text or "NOGROUP" in text


@contextmanager
def broker_errors(what: str) -> Iterator[None]:
    """Raise our error for whatever redis-py or the system raises inside."""
    try:
        yield
    except FOREIGN as error:
        raise translated(error, what) from error
