"""A broker within one process, for tests and single-process programs: `memory://`."""

import threading
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from pubsub_core.backends import masked
from pubsub_core.broker import Broker, BrokerOptions
from pubsub_core.errors import ConfigurationError
from pubsub_core.names import check_name
from pubsub_memory.broker import MemoryBroker
from pubsub_memory.store import Store

__all__ = ["open_memory"]

_named: WeakValueDictionary[str, Store] = WeakValueDictionary()
_named_lock = threading.Lock()


def open_memory(url: str, options: BrokerOptions, /) -> Broker:
    """Return a broker for `memory://`, of its own, or for `memory://name`, whose messages all of that name share.

    The messages are kept until no broker or consumer refers to them and Python has collected them as garbage (a store
    and its consumers know each other): a test that must not meet those of another takes a name of its own, or none. A
    forked child goes on with a copy.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme == "memory" and url.partition(":")[2].startswith("//") and parts.path in {"", "/"}
        fits = fits and not (parts.query or parts.fragment)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} is not memory://, nor memory:// and a name")
    if not parts.netloc:
        return MemoryBroker(Store(), options)
    if "@" in parts.netloc:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} must not have a user: memory:// takes a name only")
    name = check_name("memory broker", parts.netloc)
    with _named_lock:
        store = _named.get(name)
        if store is None:
            store = _named[name] = Store()
    return MemoryBroker(store, options)
