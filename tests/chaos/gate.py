"""A TCP proxy that does to connections what networks do."""

import contextlib
import select
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


class Gate:
    """Between clients and a server. What it does may be changed at any time, by setting an attribute.

    `delay`: seconds that each piece waits, each way. `is_deaf`: what clients send is thrown away. `is_mute`: what the
    server answers is thrown away. Both together are a network that is gone without a word.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._half_open: set[socket.socket] = set()  # the clients' ends
        self._lock = threading.Lock()
        self.delay = 0.0
        self.is_deaf = self.is_mute = False
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._pairs.add((client, server))
                threading.Thread(target=self._carry, args=(client, server), name="gate-pair", daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                # Not for ever: as long as somebody waits for a socket, it is not reset by being closed.
                for one in select.select([client, server], [], [], 0.05)[0]:
                    piece = one.recv(65536)
                    if not piece:
                        self._close(client, server)
                        return
                    if self.delay:
                        time.sleep(self.delay)
                    is_carried = client not in self._half_open
                    if one is client and is_carried and not self.is_deaf:
                        server.sendall(piece)
                    if one is server and is_carried and not self.is_mute:
                        client.sendall(piece)
        self._close(client, server)

    def _close(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._pairs.discard((client, server))
            self._half_open.discard(client)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def forget(self) -> None:
        """Make the connections that there are half-open: nothing comes through them any more; new ones are as ever."""
        with self._lock:
            self._half_open.update(client for client, _ in self._pairs)

    def cut(self, *, reset: bool = False) -> None:
        """End every connection, by FIN or by RST."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    if reset:
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        one.close()
                    else:
                        one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all."""
        self._listener.close()
        self.cut()
