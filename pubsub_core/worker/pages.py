"""/livez, /readyz and /metrics of a worker: a process of its own, so that the supervisor stays without threads.

It knows nothing itself: for each request it asks the supervisor, over a pipe. So a supervisor that hangs shows, too.
"""

import itertools
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pubsub_core.errors import ConfigurationError
from pubsub_core.metrics import Page

log = logging.getLogger("pubsub")

PATIENCE = 2.0  # seconds the supervisor has for an answer
_PAGES = ("/livez", "/readyz", "/metrics")
_NO_CLIENT = "/metrics needs prometheus-client. Install it with: pip install 'pubsub-streams[prometheus]'"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises ConfigurationError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"--health-port {port} on {host} cannot be had: {error}. Choose another port, or --health-host"
        ) from None


def address_of(listener: socket.socket) -> str:
    """Return where it listens, as in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve_pages(listener: socket.socket, pipe: socket.socket) -> int:
    """Serve until the supervisor is gone, or ends this process; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is still asked while the worker stops
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))  # see `_fork`
    supervisor = _Supervisor(pipe)
    server = _Server(listener, supervisor.ask)
    threading.Thread(target=server.serve_forever, name="pubsub-pages", daemon=True).start()
    supervisor.hear()
    return 0


class _Supervisor:
    """The one to ask. `hear` is for one thread, `ask` for any."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._awaited: dict[int, Callable[[Any], None]] = {}

    def ask(self, page: str) -> Any:
        """Return what the supervisor knows for a page; None if it does not answer in time."""
        number = next(self._numbers)
        came, answers = threading.Event(), []

        def take(answer: Any) -> None:
            answers.append(answer)
            came.set()

        self._awaited[number] = take
        try:
            with self._lock:
                self._pipe.sendall(json.dumps([number, page]).encode() + b"\n")
            came.wait(PATIENCE)
        except OSError:
            log.debug("the supervisor is gone")  # `hear` sees it, and ends this process
        finally:
            del self._awaited[number]
        return answers[0] if answers else None

    def hear(self) -> None:
        """Take its answers until it is gone."""
        unfinished = b""
        while received := self._received():
            *lines, unfinished = (unfinished + received).split(b"\n")
            for line in lines:
                number, answer = json.loads(line)
                take = self._awaited.get(number)
                if take is not None:
                    take(answer)

    def _received(self) -> bytes:
        try:
            return self._pipe.recv(65536)
        except ConnectionError:
            return b""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, ask: Callable[[str], Any]) -> None:
        super().__init__(listener.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.ask = ask

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say so in the log, not on stderr: a client that hangs up is no news."""
        log.debug("a request of %s for a page of the worker failed: %r", client_address, sys.exc_info()[1])


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5
    server_version = "pubsub"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        page = self.path.partition("?")[0]
        if page not in _PAGES:
            self._answer(404, f"there are {', '.join(_PAGES)}\n")
            return
        said = self.server.ask(page)
        if said is None:
            self._answer(503, f"the supervisor did not answer within {PATIENCE:.0f} s\n")
        elif page == "/metrics":
            self._show(said)
        else:
            self._answer(503 if said else 200, "".join(f"{problem}\n" for problem in said or ["ok"]))

    do_HEAD = do_GET  # noqa: N815  # the name that http.server wants

    def _show(self, said: dict[str, Any]) -> None:
        try:
            from pubsub_core.prometheus import render
        except ImportError:
            self._answer(501, f"{_NO_CLIENT}\n")
            return
        body, content_type = render(Page.from_json(said), self.headers.get("Accept", ""))
        self._send(200, body, content_type)

    def _answer(self, status: int, text: str) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: it is asked every few seconds."""
