"""From `module:attribute`, as a command line names it, to a PubSub."""

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pubsub_core.errors import ConfigurationError
from pubsub_core.names import did_you_mean
from pubsub_core.pubsub import PubSub

_ATTRIBUTE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(\s*\))?\Z")

FIRST_CHOICES = ("pubsub", "app")


def default_target() -> str | None:
    """Return what `PUBSUB_APP`, else `FLASK_APP`, of the environment says."""
    return os.environ.get("PUBSUB_APP") or os.environ.get("FLASK_APP") or None


def load_target(target: str) -> PubSub:
    """Import what `target` names, and return its PubSub. The working directory is put on `sys.path`.

    `module:attribute` is a PubSub, a Flask app, or a function that makes one of them; `module` alone takes its
    `pubsub`, its `app`, or the only PubSub in it. Of a Flask app it is the PubSub, bound to that app.
    Raises ConfigurationError if there is no such thing, or a module that it imports cannot be imported; whatever else
    the import raises is left as it is.
    """
    module, expression = _split(target)
    loaded = _import(module, target)
    if expression is None:
        return _only_pubsub(loaded, target)
    return pubsub_of(_object(loaded, expression, target), target)


def load_object(target: str) -> Any:
    """Import what `module:attribute` names, and return it; if it is a function, what that returns."""
    module, expression = _split(target)
    return _object(_import(module, target), expression or "app", target)


def names_flask_app(target: str) -> bool:
    """Whether `target` names a Flask app, or a module that has one as its `app`. Raises as `load_target`."""
    module, expression = _split(target)
    loaded = _import(module, target)
    found = getattr(loaded, "app", None) if expression is None else _object(loaded, expression, target)
    return _extensions(found) is not None


def pubsub_of(found: Any, called: str) -> PubSub:
    """Return the PubSub that `found` is, or that the Flask app `found` has. `called` is what the error names it by."""
    if isinstance(found, PubSub):
        return found
    extensions = _extensions(found)
    if extensions is None:
        raise ConfigurationError(
            f"{called!r} is a {type(found).__name__}: it must be a PubSub, or a Flask app with one"
        )
    state = extensions.get("pubsub")
    if state is None:
        raise ConfigurationError(
            f"the Flask app {called!r} has no PubSub: call PubSub(app), or pubsub.init_app(app), where the app is made"
        )
    bound: PubSub = state.pubsub.bound_to(found)
    return bound


def _extensions(found: Any) -> Mapping[str, Any] | None:
    """Return the extensions of a Flask app, None of anything else. The core does not import Flask."""
    if not hasattr(found.__class__, "app_context"):  # not of itself: `current_app` raises without a context
        return None
    extensions = getattr(found, "extensions", None)
    return extensions if isinstance(extensions, Mapping) else None


def _split(target: str) -> tuple[str, str | None]:
    module, colon, expression = target.partition(":")
    if module.endswith(".py"):
        module = os.path.normpath(module.removesuffix(".py")).replace(os.sep, ".")
    if not all(part.isidentifier() for part in module.split(".")) or (colon and not expression):
        raise ConfigurationError(
            f"{target!r} does not name an application: use module:attribute, module:create_app() or module, "
            "as in shop:pubsub or shop.web:app"
        )
    return module, expression or None


def _import(name: str, target: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            near = did_you_mean(error.name, _modules_in(here))
            raise ConfigurationError(
                f"cannot load {target!r}: there is no module {error.name!r} in {here} or elsewhere on the path.{near}"
            ) from None
        raise ConfigurationError(
            f"cannot load {target!r}: {_place_of(error)} could not import what it needs: {error}"
        ) from error


def _modules_in(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name.removesuffix(".py")
            for entry in entries
            if entry.name.endswith(".py") or (entry.is_dir() and entry.name.isidentifier())
        ]


def _place_of(error: ImportError) -> str:
    """Return "file.py:3" of the import that failed."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
    ]
    return f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}"


def _object(module: ModuleType, expression: str, target: str) -> Any:
    match = _ATTRIBUTE.match(expression)
    if match is None:
        raise ConfigurationError(
            f"cannot load {target!r}: {expression!r} is not the name of an attribute, nor of a function with '()' and "
            "nothing in it. Write a function without arguments that makes the application"
        )
    path, call = match.groups()
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            known = [one for one in dir(found) if not one.startswith("_")]
            candidates = f" It has: {', '.join(_candidates(module))}." if _candidates(module) else ""
            raise ConfigurationError(
                f"cannot load {target!r}: {getattr(found, '__name__', type(found).__name__)!r} "
                f"has no attribute {name!r}.{did_you_mean(name, known)}{candidates}"
            )
        found = getattr(found, name)
    if inspect.isfunction(found):
        return _called(found, path, target)
    if call:
        raise ConfigurationError(f"cannot load {target!r}: {path!r} is a {type(found).__name__}, not a function")
    return found


def _called(function: Any, path: str, target: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ConfigurationError(
            f"cannot load {target!r}: {path}() cannot be called without arguments: {error}. "
            "Write a function without arguments that makes the application"
        ) from None
    return function()


def _only_pubsub(module: ModuleType, target: str) -> PubSub:
    for name in FIRST_CHOICES:
        found = getattr(module, name, None)
        if isinstance(found, PubSub) or _extensions(found) is not None:
            return pubsub_of(found, f"{target}:{name}")
    instances = {id(value): value for value in vars(module).values() if isinstance(value, PubSub)}
    if len(instances) == 1:
        (only,) = instances.values()
        return only
    candidates = _candidates(module)
    if not candidates:
        raise ConfigurationError(
            f"cannot load {target!r}: the module has no PubSub, nor a Flask app. "
            f"Name what makes one: {target}:create_app()"
        )
    several = "several of them" if instances else f"no {' nor '.join(repr(name) for name in FIRST_CHOICES)} in it"
    raise ConfigurationError(
        f"cannot load {target!r}: there are {several}. Use one of: "
        f"{', '.join(f'{target}:{candidate}' for candidate in candidates)}"
    )


def _candidates(module: ModuleType) -> list[str]:
    """Return what of a module may be a target: every PubSub and Flask app, and factories by their usual names."""
    found = [
        name for name, value in vars(module).items() if isinstance(value, PubSub) or _extensions(value) is not None
    ]
    factories = [f"{name}()" for name in ("create_app", "make_app") if inspect.isfunction(getattr(module, name, None))]
    return found + factories
