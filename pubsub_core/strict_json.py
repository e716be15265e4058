"""Writing JSON by pydantic so that a value of a wrong type is noticed.

pydantic writes such a value all the same, and warns. Asked to raise instead, by `warnings="error"`, it takes longer to
read this argument than to write a usual payload. So it is left to warn, from a module whose `__warningregistry__` is
none: Python, which would note the warning there, raises before it looks at any filter.
"""

import warnings
from collections.abc import Callable
from typing import Any

from pydantic_core import SchemaSerializer, core_schema

__warningregistry__ = "none: what would be a warning of this module is an error"

ToJson = Callable[..., bytes]
"""`to_json` of a `SchemaSerializer`."""


def to_json(write: ToJson, payload: Any) -> bytes:
    """Return the JSON of a payload. Raises for a value of a wrong type, and for any other warning: TypeError."""
    return write(payload, by_alias=True)


def _notices() -> bool:
    """Whether `to_json` raises for a value of a wrong type: it does with CPython 3.11 to 3.13."""
    write = SchemaSerializer(core_schema.int_schema()).to_json
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            to_json(write, "no number")
        except TypeError:
            return True
    return False


is_quick = _notices()
