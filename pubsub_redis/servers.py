"""Which servers a URL names, and how to connect to them: standalone, unix socket, Sentinel, Cluster, embedded."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, SSLConnection
from redis.connection import parse_url as parse_redis_url
from redis.crc import key_slot
from redis.retry import Retry

from pubsub_core.backends import ENCODE, masked
from pubsub_core.errors import ConfigurationError

# What the library sets itself on every connection: a URL may not undo it. RESP2 because its replies are plain lists.
_OURS = (
    "protocol",
    "decode_responses",
    "retry_on_timeout",
    "retry_on_error",
    "socket_timeout",
    "single_connection_client",
    "max_connections",
)

# A pool that never gets a connection back counts those that were ever made; redis-py 8 refuses the 101st.
_EVER = 2**31

Node = str
"""The name of a server of a cluster; elsewhere always ""."""


class Servers(Protocol):
    """The servers behind one URL. Safe to use from any thread; holds no open connection of its own between calls."""

    is_cluster: bool

    def node_of(self, key: str) -> Node:
        """Return the node that keeps `key`. In a cluster it may ask the network, and raise redis-py's errors."""

    def slot_of(self, key: str) -> int:
        """Return the hash slot of `key`: one command may only name keys of the same. Without a cluster all have 0."""

    def connection(self, node: Node) -> Any:
        """Return a new, not yet connected, connection of redis-py to `node`."""

    def forget(self) -> None:
        """After an error: look anew who is where at the next use."""


def open_servers(url: str, *, timeout: float) -> Servers:
    """Return the servers of a URL. No I/O. Raises ConfigurationError for a URL that cannot work."""
    parts = urlsplit(url)
    try:
        return _KINDS[parts.scheme](parts, timeout)
    except ConfigurationError:
        raise
    except ValueError as error:
        of_port = str(error).startswith("Port could not be cast")  # and then quoted: it may be of the password
        why = f"its port is not a number. {ENCODE}" if of_port else error
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} cannot be: {why}") from None
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        raise ConfigurationError(
            f"PUBSUB_URL {masked(url)!r} has a parameter that redis-py does not know: {unknown}"
        ) from None


def _options(parts: SplitResult, timeout: float) -> dict[str, Any]:
    """Return redis-py's connection arguments for a URL, with ours on top."""
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in _OURS]
    for name, value in query:
        if (name, value.lower()) in {("ssl_cert_reqs", "none"), ("ssl_check_hostname", "false")}:
            raise ConfigurationError(
                f"PUBSUB_URL {masked(urlunsplit(parts))!r} switches off the check of the server's certificate "
                f"({name}). Name the authority that signed it instead: ssl_ca_certs=/path/to/ca.pem"
            )
    options: dict[str, Any] = parse_redis_url(  # type: ignore[no-untyped-call]  # redis-py has no types here
        f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode(query)}"  # urlunsplit drops the // of unix:///path
    )
    return {**options, **_settings(timeout)}


def _check_database(parts: SplitResult, path: str, *, are_several: bool = True) -> None:
    """Raise ConfigurationError if what stands for a database in a URL is none: redis-py would take number 0 for it."""
    number = path.strip("/")
    if number and not (number.isascii() and number.isdecimal() if are_several else number == "0"):
        url = masked(urlunsplit(parts))
        why = "is not the number of a database" if are_several else "names a database, of which a cluster has only one"
        raise ConfigurationError(
            f"PUBSUB_URL {url!r} cannot be: its path {why}. Applications that share a server are kept apart by "
            f"PUBSUB_NAMESPACE. {ENCODE}"
        )


def _settings(timeout: float) -> dict[str, Any]:
    return {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # redis-py would resend a publish whose reply was lost
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }


class _OneServer:
    """All keys are on one server. Each connection finds out where that is: there is nothing to forget."""

    is_cluster = False

    def node_of(self, key: str) -> Node:
        return ""

    def slot_of(self, key: str) -> int:
        return 0

    def forget(self) -> None:
        """Do nothing."""


class _Standalone(_OneServer):
    def __init__(self, parts: SplitResult, timeout: float) -> None:
        options = _options(parts, timeout)
        if parts.scheme != "unix":
            _check_database(parts, parts.path)
            options["socket_keepalive"] = True
        self._pool = ConnectionPool(max_connections=_EVER, **options)
        self.connection("")  # without I/O, but it refuses a parameter that it does not know

    def connection(self, node: Node) -> Any:
        return self._pool.make_connection()


class _Sentinel(_OneServer):
    """`redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]`; credentials are the server's."""

    def __init__(self, parts: SplitResult, timeout: float) -> None:
        from redis.sentinel import Sentinel, SentinelConnectionPool

        service, _, database = parts.path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"PUBSUB_URL {masked(urlunsplit(parts))!r} names no service: redis+sentinel://host1,host2/service"
            )
        _check_database(parts, database)
        shell = parts._replace(scheme="redis", netloc=f"{_userinfo(parts)}localhost", path=f"/{database or 0}")
        options = _options(shell, timeout)
        for name in ("host", "port"):
            options.pop(name, None)
        sentinel_options = {key: value for key, value in _settings(timeout).items() if key != "protocol"}
        sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types here
            _hosts(parts, 26379), sentinel_kwargs=sentinel_options
        )
        self._pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]  # redis-py has no types here
            service, sentinels, socket_keepalive=True, max_connections=_EVER, **options
        )
        self.connection("")  # without I/O, but it refuses a parameter that it does not know

    def connection(self, node: Node) -> Any:
        return self._pool.make_connection()


class _Cluster:
    """`redis+cluster://[user:password@]host[:port][,host[:port]...]`; `rediss` by `?ssl=true`."""

    is_cluster = True

    def __init__(self, parts: SplitResult, timeout: float) -> None:
        _check_database(parts, parts.path, are_several=False)
        self._hosts = _hosts(parts, 6379)
        shell = parts._replace(scheme="redis", netloc=f"{_userinfo(parts)}localhost", path="")
        options = _options(shell, timeout)
        for name in ("host", "port", "db"):
            options.pop(name, None)
        self._ssl = str(options.pop("ssl", "")).lower() in ("true", "1", "yes")
        self._options = options
        self.connection("localhost:0")  # without I/O, but it refuses a parameter that it does not know
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self._process = os.getpid()  # last: another thread of ours would take our parent's lock

    def _cluster(self) -> Any:
        from redis.cluster import ClusterNode, RedisCluster

        if os.getpid() != self._process:
            self._start_afresh()  # our parent may have been holding the lock
        with self._lock:
            if self._client is None:
                nodes = [
                    ClusterNode(host, port)  # type: ignore[no-untyped-call]  # redis-py has no types here
                    for host, port in self._hosts
                ]
                self._client = RedisCluster(startup_nodes=nodes, ssl=self._ssl, **self._options)
            return self._client

    def node_of(self, key: str) -> Node:
        cluster = self._cluster()
        return str(cluster.nodes_manager.get_node_from_slot(self.slot_of(key)).name)

    def slot_of(self, key: str) -> int:
        return key_slot(key.encode())

    def connection(self, node: Node) -> Any:
        host, _, port = node.rpartition(":")
        options: dict[str, Any] = {"host": host, "port": int(port), "socket_keepalive": True, **self._options}
        if self._ssl:
            options["connection_class"] = SSLConnection
        return ConnectionPool(**options).make_connection()

    def forget(self) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class _Embedded(_OneServer):
    """`redis+embedded:///path`: a server of our own, started by the first who connects."""

    def __init__(self, parts: SplitResult, timeout: float) -> None:
        from pubsub_redis.embedded import parse_embedded_url

        self._directory, self._idle = parse_embedded_url(urlunsplit(parts))
        self._timeout = timeout

    def connection(self, node: Node) -> Any:
        from pubsub_redis.embedded import ensure_server

        url = ensure_server(self._directory, idle=self._idle, timeout=self._timeout)
        return _Standalone(urlsplit(url), self._timeout).connection(node)


_KINDS: dict[str, Callable[[SplitResult, float], Servers]] = {
    "redis": _Standalone,
    "rediss": _Standalone,
    "unix": _Standalone,
    "redis+sentinel": _Sentinel,
    "redis+cluster": _Cluster,
    "redis+embedded": _Embedded,
}


def _userinfo(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0] + "@" if "@" in parts.netloc else ""


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = [one for one in parts.netloc.rpartition("@")[2].split(",") if one]
    return [_host(one, default_port) for one in hosts] or [("localhost", default_port)]


@functools.cache
def _host(text: str, default_port: int) -> tuple[str, int]:
    single = urlsplit(f"//{unquote(text)}")
    return single.hostname or "localhost", single.port or default_port
