"""From a URL to a broker: backends are found by the URL's scheme among the installed entry points."""

# A backend's library may need it, and it cannot be imported any more when the interpreter ends.
import concurrent.futures.thread  # noqa: F401
import re
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pubsub_core.broker import Backend, Broker, BrokerOptions
from pubsub_core.errors import ConfigurationError
from pubsub_core.names import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pubsub.backends"
ENCODE = "In a user's name and password, / ? # @ : [ ] are written as %2F %3F %23 %40 %3A %5B %5D"

_USERINFO = re.compile(r"(?si)^((?:(?:[a-z][a-z0-9+.-]*:)?//)?+)(?!/).*@")
_HOST = r"(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?"
_PAIR = r"[a-z_]\w*=[^&]*"
_WITH_QUERY = re.compile(
    rf"(?si)([a-z][a-z0-9+.-]*://(?:[^/?#]*@)?{_HOST}(?:,{_HOST})*(?:/[^?#@]*)?)"
    rf"\?(?!.*@[\w.-]*(?::\d|/\d*$))({_PAIR}(?:&{_PAIR})*)"
)
_WITH_AT = re.compile(r"(=)[^=&]*@[^&]*")
_QUERY_SECRET = re.compile(r"(?i)((?:pas|pwd|user|secret|token|auth|cred)[^=&]*=)[^&]*")


def masked(url: str) -> str:
    """Return the URL fit to be shown: the user's name and password are replaced by `***`.

    All up to the last `@` is taken for them: a password may have a `/`, `?` or `#` that was not percent-encoded. Only
    where a host and pairs of a query stand before that `@`, and no second host behind it, it belongs to a value. The
    host is shown then, and that value is masked too.
    """
    found = _WITH_QUERY.fullmatch(url)
    if found is not None:
        place, query = _USERINFO.sub(r"\1***@", found[1]), _WITH_AT.sub(r"\1***", found[2])
        return place + "?" + _QUERY_SECRET.sub(r"\1***", query)
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub(r"\1***@", url))


@cache
def _installed() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # a fifth of the time of importing us

    return {point.name: point for point in entry_points(group=GROUP)}


def open_broker(url: str, options: BrokerOptions) -> Broker:
    """Return the broker that `url` names. No I/O.

    Raises ConfigurationError for an unknown scheme (naming the nearest), or one whose libraries are not installed.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # its text may have the password
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} is not a URL. {ENCODE}") from None
    points = _installed()
    if scheme not in points:
        raise ConfigurationError(
            f"PUBSUB_URL {masked(url)!r} has the unknown scheme {scheme!r}.{did_you_mean(scheme, points)} "
            f"Installed: {', '.join(f'{name}://' for name in sorted(points))}"
        )
    return load_backend(points[scheme])(url, options)


def load_backend(point: "EntryPoint") -> Backend:
    """Import what an entry point names. Raises ConfigurationError if a library that it needs is missing."""
    try:
        backend: Backend = point.load()
    except ImportError as error:
        raise ConfigurationError(
            f"PUBSUB_URL scheme {point.name!r} needs the module {error.name!r}, which is not installed. "
            f"Install it with: pip install 'pubsub-streams[{point.extras[0] if point.extras else 'all'}]'"
        ) from error
    return backend
