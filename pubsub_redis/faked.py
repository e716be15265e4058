"""fakeredis behind a TCP port of this process: `fakeredis://`, for tests without a server.

Whatever connects to it in this process reaches the same data; `fakeredis://name` has data of its own. They are gone
with the process, and no other process reaches them. INFO, ROLE, CONFIG, WAIT and WAITAOF are missing (fakeredis 2.41),
and a blocked read does not notice that its group is destroyed.
"""

import atexit
import contextlib
import os
import socket
import socketserver
import threading
from typing import Any
from urllib.parse import urlsplit

from fakeredis import FakeServer
from fakeredis._clients._tcp_server import encode_reply
from fakeredis._helpers import SimpleError
from fakeredis._socket import FakeSocket
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from pubsub_core.backends import masked
from pubsub_core.broker import BrokerOptions
from pubsub_core.errors import ConfigurationError
from pubsub_redis.broker import RedisBroker
from pubsub_redis.servers import open_servers

_servers: dict[tuple[int, str], "FakeTcpServer"] = {}  # by process, as a fork leaves the threads behind, and name
_lock = threading.Lock()


def open_fakeredis(url: str, options: BrokerOptions) -> RedisBroker:
    """Return the broker of a `fakeredis://` URL. Starts its server at the first call. Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigurationError(f"PUBSUB_URL {masked(url)!r} is not fakeredis://, nor fakeredis:// and a name")
    name = os.getpid(), parts.netloc
    with _lock:
        server = _servers.get(name)
        if server is None:
            server = _servers[name] = FakeTcpServer(0)
            atexit.register(_stop, os.getpid(), server)
            threading.Thread(target=server.serve_forever, args=(0.05,), name="fakeredis", daemon=True).start()
    where = f"redis://127.0.0.1:{server.server_address[1]}/0"
    return RedisBroker(open_servers(where, timeout=max(0.5, options.publish_timeout / 2)), options, url)


def _stop(process: int, server: "FakeTcpServer") -> None:
    """End its threads while Python still runs: one that is inside of Lua when it ends might never let it."""
    if os.getpid() == process:
        server.shutdown()
        server.hang_up()
        server.server_close()


class _FakedClient(FakeSocket):
    """What fakeredis keeps for a connection, writing each reply to the connection as soon as there is one.

    It stands in for the handler of `TcpFakeServer`, which hangs up after every error reply and polls for the others.
    """

    def __init__(self, server: FakeServer, connection: socket.socket) -> None:
        self._connection = connection
        self._writing = threading.Lock()  # what is published to it comes from the threads of others
        info = {"id": 0, "addr": _shown(connection.getpeername()), "laddr": _shown(connection.getsockname())}
        super().__init__(server, 0, client_class=Redis, client_info=info)

    def put_response(self, msg: Any) -> None:
        with self._writing, contextlib.suppress(OSError):  # nobody is there any more: `serve` finds out
            self._connection.sendall(encode_reply(msg, 2))

    def serve(self) -> None:
        """Run what is sent until the other side hangs up, or somebody kills the connection."""
        try:
            while received := self._connection.recv(65536):
                self.sendall(received)
        except (OSError, RedisConnectionError):
            self._hang_up()
        finally:
            self.close()

    def kill(self) -> None:
        """CLIENT KILL closes the connection at once, as a real server does."""
        super().kill()
        self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # the other side was quicker
            self._connection.shutdown(socket.SHUT_RDWR)

    def _decode_error(self, error: SimpleError) -> Any:
        """Keep the server's text, which fakeredis would turn into an error of redis-py and back."""
        return error


def _shown(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


class _FakeTcpHandler(socketserver.BaseRequestHandler):
    server: "FakeTcpServer"

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _FakedClient(self.server.fake_server, self.request).serve()


class FakeTcpServer(socketserver.ThreadingTCPServer):
    """fakeredis behind a port, with a thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True  # a handler that blocks must not keep `server_close` from returning
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _FakeTcpHandler)
        self.fake_server = FakeServer(server_type="redis", version=(7, 0))

    def hang_up(self) -> None:
        """Close the connections that there are."""
        with self.fake_server.lock:
            for client in list(self.fake_server.sockets):
                client.kill()
