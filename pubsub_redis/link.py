"""One connection to one server, below `redis.Redis`: packed commands out, plain lists in.

redis-py's `Connection` brings TLS, authentication and the handshake; the command objects, retries and callbacks above
it cost more than the commands themselves.
"""

import hashlib
import math
import os
import re
import select
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import hiredis
import redis.exceptions as theirs
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.connection import AbstractConnection

from pubsub_core.broker import Durability
from pubsub_core.errors import BrokerError
from pubsub_redis.faults import FOREIGN, translated

Command = tuple[str | bytes | int, ...]

_LOOK_FOR = 100e-6  # seconds in which a server nearby has answered,
_LOOK_LONGER = 2e-6  # and by which it takes longer for each further command
_BLIND_FOR = 32  # replies that are not looked for after one that did not come in time

_CLIENT_ID = re.compile(rb"(?:^| )id=(\d+)")
_ADDRESS = re.compile(rb"(?:^| )addr=(.*?) \w+=")  # that of a unix socket is a path, which may have blanks

# hiredis declares a tuple of one, and takes any.
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]


@cache
def script(name: str) -> tuple[str, str]:
    """Return the source of a Lua script and its SHA-1, by which the server knows it."""
    source = _source(name)
    for prelude, words in _PRELUDES.items():
        if any(word in source for word in words):
            source = _source(prelude) + source
    return source, sha_of(source)


def sha_of(source: str) -> str:
    """Return the name by which the server knows a script."""
    return hashlib.sha1(source.encode()).hexdigest()  # noqa: S324  # the server's own name for it


# What a script calls stands before it. Each of these calls only those behind it here.
_PRELUDES = {
    "delayed": ("move_due(", "packed("),
    "room": ("make_room",),
    "clock": ("server_time(",),
    "due": ("list_due(",),
    "groups": ("groups_of(", "first_unsettled("),
    "now": ("now_ms(",),
    "ids": ("is_less(", "after(", "parts("),
}


def _source(name: str) -> str:
    return (files("pubsub_redis") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")


def script_call(name: str, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
    """Return the command that runs a script by its SHA-1."""
    return ("EVALSHA", script(name)[1], len(keys), *keys, *arguments)


class Link:
    """A connection, used by one thread at a time; opened at first use. After an error it is closed, to be opened anew.

    `client_id` and `address` are what the server knows it by: 0 and empty while it is closed. The address stays empty
    where the user may not ask CLIENT INFO: it cannot be killed then, for after a restart others have its id.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._usual_timeout: float = connection.socket_timeout
        self._unread = 0  # replies on their way: if anything at all interrupts us, the next user must not read them
        self.client_id = 0
        self.address = b""
        self.is_hurried = False
        self.confirms: set[Durability] = set()  # of which its server, as it is now, was seen to be able to speak
        self._rests_since = 0.0
        self._poll: Callable[[int], Sequence[object]] | None = None  # of the socket; None where looking is no use
        self._blind_for = 0
        # What reads replies, where the connection has it do so as usual: Sentinel's has not, nor that of fakeredis.
        parser = getattr(connection, "_parser", None)
        is_usual = type(connection).read_response is AbstractConnection.read_response
        self._parser: Any = parser if is_usual and isinstance(parser, _HiredisParser) else None

    @property
    def is_open(self) -> bool:
        """Whether it is connected and in step, as far as this side knows."""
        return self.client_id != 0 and not self._unread

    def open(self, patience: float = math.inf) -> None:
        """Connect, unless it is. Raises redis-py's errors.

        With less `patience` than usual everything on this connection takes that many seconds at most, and `is_hurried`
        says so: it is not for others. A server that is loading its data refuses: what was sent to one that cannot serve
        yet would be in doubt.
        """
        connection = self._connection
        timeout = max(0.01, min(self._usual_timeout, patience))
        if self.is_open:
            if patience < self._usual_timeout:
                self.is_hurried = True  # and stays so, whoever else opens it meanwhile
                self._socket.settimeout(timeout)
            return
        self.close()
        self.is_hurried = patience < self._usual_timeout
        connection.socket_timeout = connection.socket_connect_timeout = timeout
        try:
            connection.connect()
            self.send([("CLIENT", "INFO"), ("PING",)])
            about, pong = self.read(), self.read()
            is_hidden = isinstance(about, theirs.NoPermissionError)
            for reply in (pong,) if is_hidden else (about, pong):
                if isinstance(reply, Exception):
                    raise reply
            self.client_id, self.address = (self._id_alone(about), b"") if is_hidden else _id_and_address(about)
            self._poll = _poll_of(self.fileno())
        except BaseException:
            self.close()
            raise

    def _id_alone(self, refusal: Exception) -> int:
        """Return the id, for a user who may not ask CLIENT INFO, as `refusal` says."""
        self.send([("CLIENT", "ID")])
        client_id = self.read()
        if isinstance(client_id, int):
            return client_id
        raise theirs.NoPermissionError(
            f"{refusal}. To know its own connection a user needs +client|info, or at least +client|id: "
            "ACL SETUSER the user with +client|info"
        )

    @property
    def _socket(self) -> Any:
        return self._connection._sock  # noqa: SLF001  # redis-py offers no public way to wait on many

    def rest(self) -> None:
        """Note that it is not used for a while."""
        self._rests_since = time.monotonic()

    def is_fit(self) -> bool:
        """Whether it may be used again after a rest: in step, and not closed by the server meanwhile."""
        if not self.is_open:
            return False
        if time.monotonic() - self._rests_since < 1.0:
            return True
        try:
            return not self.has_more()
        except FOREIGN:
            return False

    def fileno(self) -> int:
        """The socket's, to wait on."""
        return int(self._socket.fileno())

    def send(self, commands: Sequence[Command]) -> None:
        """Send the commands in one go."""
        self.send_packed([b"".join(map(_pack, commands))], len(commands))

    def send_packed(self, pieces: Iterable[bytes], count: int) -> None:
        """Send so many commands that are packed already, piece by piece."""
        self._unread += count
        self._connection.send_packed_command(pieces, check_health=False)

    def read(self) -> Any:
        """Read one reply. An error that the server answers with is returned, a broken connection raised."""
        parser = self._parser
        try:
            if parser is None or (reader := parser._reader) is None:  # noqa: SLF001  # it is not connected any more
                reply = self._connection.read_response()
            else:  # as that does, but without what it has for pushes, timeouts by call, and the host in what it says
                while (reply := reader.gets()) is NOT_ENOUGH_DATA:
                    parser.read_from_socket()
                if isinstance(reply, theirs.ConnectionError):
                    raise reply
        except theirs.ResponseError as error:
            reply = error
        except BaseException:
            self._connection.disconnect()
            raise
        if self._unread:  # what a subscription brings was not asked for
            self._unread -= 1
        return reply

    def look(self, commands: int = 1) -> None:
        """Wait for the reply to so many commands if a server nearby gives it at once; it is not read.

        To fall asleep and be woken takes longer than such a reply, and as much of the processor as to look for it again
        and again meanwhile. After a look in vain the next few replies are slept for: the server is far, or busy, or has
        no processor of its own.
        """
        if self._blind_for:
            self._blind_for -= 1
        elif (poll := self._poll) is not None:
            until = time.perf_counter() + _LOOK_FOR + _LOOK_LONGER * (commands - 1)
            while not poll(0):
                if time.perf_counter() > until:
                    self._blind_for = _BLIND_FOR
                    break

    def read_many(self, count: int, *, looks: bool = False) -> list[Any]:
        """Read so many replies, as `read` does each. What has come with others is taken from the parser at once.

        With `looks` they are looked for.
        """
        replies: list[Any] = []
        while len(replies) < count:
            if looks:
                self.look(count - len(replies))
            replies.append(self.read())
            reader = getattr(self._connection._parser, "_reader", None)  # noqa: SLF001  # without it, one by one
            if reader is None:
                continue
            gets, more = reader.gets, count - len(replies)
            while more and (reply := gets()) is not NOT_ENOUGH_DATA:
                more -= 1
                self._unread -= 1
                if type(reply) is not bytes and isinstance(reply, theirs.ConnectionError):
                    raise reply
                replies.append(reply)
        return replies

    def has_more(self) -> bool:
        """Whether a reply, or a part of one, is waiting to be read."""
        return bool(self._connection.can_read(0))

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send the commands and read a reply for each; the server's errors are among the replies.

        A script that the server does not know is sent whole and run again, so EVALSHA may stand among the commands.
        """
        self.open()
        try:
            self.send(commands)
            replies = self.read_many(len(commands))
            for index, reply in enumerate(replies):
                if isinstance(reply, theirs.NoScriptError):
                    replies[index] = self._ask_with_source(commands[index])
        except BaseException:
            self.close()
            raise
        return replies

    def _ask_with_source(self, command: Command) -> Any:
        source = next(text for text, sha in map(script, SCRIPTS) if sha == command[1])
        self.send([("EVAL", source, *command[2:])])
        return self.read()

    def call(self, *command: str | bytes | int, what: str) -> Any:
        """Run one command. Raises our errors, saying `what` was being done."""
        try:
            (reply,) = self.ask([command])
        except FOREIGN as error:
            raise translated(error, what) from error
        return checked(reply, what)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self.client_id = self._unread = 0
        self.address = b""
        self._poll = None
        self.confirms.clear()
        self._connection.disconnect()


def _id_and_address(about: bytes) -> tuple[int, bytes]:
    client_id, address = _CLIENT_ID.search(about), _ADDRESS.search(about)
    if client_id is None or address is None:
        raise theirs.InvalidResponse("CLIENT INFO names no id and addr: this is no Redis server")
    return int(client_id[1]), address[1]


def _poll_of(fileno: int) -> Callable[[int], Sequence[object]] | None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if processors == 1 or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return poll.poll


SCRIPTS = (
    "park",
    "take",
    "bury",
    "take_over",
    "replay",
    "retain",
    "tidy",
    "join",
    "take_back",
    "add",
    "cancel",
    "schedule",
    "forget_schedule",
    "pause_schedule",
    "count",
    "find",
    "seek",
    "forget_parked",
)


def checked(reply: Any, what: str) -> Any:
    """Return the reply, or raise our error for the one that it is."""
    if isinstance(reply, Exception):
        error: BrokerError = translated(reply, what)
        raise error from reply
    return reply
