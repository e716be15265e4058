"""The names of topics and groups, and other text: what of it is refused."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from pubsub_core.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")


def check_name(kind: str, name: object, hint: str = "") -> str:
    """Return `name`, or raise ConfigurationError if it is not fit to be the name of a topic, group or schedule.

    Fit: 1 to 200 letters, digits, `_`, `.` and `-` of ASCII, not beginning with `.` or `-`. All else could reach
    another topic's keys, or match as a pattern, in a backend.
    """
    if isinstance(name, str) and is_name(name):
        return name
    raise ConfigurationError(
        f"{name!r} is not a {kind} name: use 1 to 200 letters, digits, '_', '.' and '-', "
        f"beginning with a letter, digit or '_'{'. ' + hint if hint else ''}"
    )


def is_name(text: str) -> bool:
    """Whether `text` is fit to be the name of a topic, group or schedule."""
    return _NAME.match(text) is not None


def module_name(names: Mapping[str, Any]) -> str:
    """Return the name that a module with these global names is imported by; also if it is run as a program."""
    name = str(names.get("__name__") or "")
    if name in _RUN_AS_PROGRAM:
        if names.get("__spec__") is not None:  # by `python -m`
            return str(names["__spec__"].name)
        if names.get("__file__"):
            return os.path.splitext(os.path.basename(str(names["__file__"])))[0]
    return name


_RUN_AS_PROGRAM = ("__main__", "__mp_main__")  # the second in a process that `multiprocessing` spawned


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is text that can be written: half of a surrogate pair cannot."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or "" if none is near."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
