"""How a Redis server is set up, seen with the eyes of somebody who must not lose messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pubsub_core.broker import Finding
from pubsub_core.errors import BrokerError, BrokerUnavailable, NotPermitted, Unsupported
from pubsub_redis.link import Command, script

_PROBE = "~doctor"  # no topic has such a name
_PROBE_EXPIRES = 10_000  # ms

Ask = Callable[[Command], Any]
"""Runs one command, and raises our errors."""


class RedisExaminer:
    """Asks one server. `ask` runs a command there, and raises our errors; `prefix` begins the names of our keys."""

    def __init__(self, ask: Ask, prefix: str) -> None:
        self._ask = ask
        self._prefix = prefix

    def findings(self) -> Iterator[Finding]:
        """Return what is not as it should be."""
        self._ask(("PING",))
        try:
            info = _read_info(self._ask(("INFO",)))
        except (NotPermitted, Unsupported) as error:
            yield _hidden("INFO", error, "version, persistence, memory and replicas")
            info = {}
        settings = {}
        for name in ("maxmemory-policy", "appendonly", "appendfsync", "save", "maxmemory"):
            try:
                reply = self._ask(("CONFIG", "GET", name))
            except (NotPermitted, Unsupported) as error:
                yield _hidden("CONFIG GET", error, "the disk and eviction settings")
                break
            if reply:
                settings[name] = reply[1].decode()
        yield from _version(info)
        yield from _eviction(info, settings)
        yield from _persistence(info, settings)
        yield from _memory(info)
        yield from _replicas(info)
        yield from self._rights()

    def _rights(self) -> Iterator[Finding]:
        """Say which commands of ours the user may not run."""
        untried: Sequence[str] = ()
        try:
            user = self._ask(("ACL", "WHOAMI")).decode()
            missing = [_name(command) for command in self._commands() if not self._may(user, command)]
        except (NotPermitted, Unsupported):
            missing, untried = self._tried()
        needed = sorted({one for one in missing if one not in _OPTIONAL})
        useful = sorted({one for one in missing if one in _OPTIONAL})
        if needed:
            yield Finding(
                "error",
                "rights missing",
                f"the user may not run: {', '.join(needed)} (on keys {self._prefix}:*)",
                "publishing or consuming fails, at once or when something has to be recovered",
                "ACL SETUSER the user with: "
                + " ".join(f"+{one.replace(' ', '|').lower()}" for one in needed)
                + f" ~{self._prefix}:* &{self._prefix}:*",
            )
        if useful:
            yield Finding(
                "warning",
                "rights missing",
                f"the user may not run: {', '.join(useful)}",
                "; ".join(f"{one}: {_OPTIONAL[one]}" for one in useful),
                "ACL SETUSER the user with: " + " ".join(f"+{one.replace(' ', '|').lower()}" for one in useful),
            )

        if untried:
            yield Finding(
                "note",
                "rights not tried",
                f"it is not known whether the user may run: {', '.join(untried)}. It may not ask, by ACL DRYRUN",
                "what is missing shows only when it is needed",
                "run doctor with a user that may: +acl|whoami +acl|dryrun",
            )

    @property
    def _key(self) -> str:
        return f"{self._prefix}:{{{self._prefix}}}:{_PROBE}"  # in a cluster, on the server that we ask

    def _commands(self) -> Sequence[Command]:
        places = {"KEY": self._key, "CHANNEL": f"{self._prefix}:control", "SHA": script("count")[1]}
        return [tuple(places.get(word, word) for word in one.split()) for one in _COMMANDS]

    def _may(self, user: str, command: Command) -> bool:
        """Ask the server; where it does not know ACL DRYRUN this raises."""
        reply = self._ask(("ACL", "DRYRUN", user, *command))
        return bool(reply == b"OK" or b"wrong number" in reply.lower())

    def _tried(self) -> tuple[list[str], list[str]]:
        """Return which commands are refused, and which could not be tried.

        They are run on a key that holds a string, and expires. For what writes something else that is of the wrong
        type: it is refused or fails, and changes nothing. Without such a key only what reads is tried.
        """
        commands = self._commands()
        guard = ("SET", self._key, "", "PX", _PROBE_EXPIRES)
        try:
            self._ask(guard)
            is_guarded, refused = True, []
        except NotPermitted:
            is_guarded, refused = False, ["SET"]
        except BrokerError:  # a replica, or a server without memory: that is found elsewhere
            is_guarded, refused = False, []
        can_try = {_name(one) for one in commands} - _UNTRIED if is_guarded else _HARMLESS
        trials = [one for one in commands if _name(one) in can_try and _name(one) not in ("SET", "DEL")]
        refused += [_name(one) for one in trials if self._is_refused(one)]
        if is_guarded and self._is_refused(("DEL", self._key)):
            refused.append("DEL")
        return refused, sorted({_name(one) for one in commands} - can_try - {*refused})

    def _is_refused(self, command: Command) -> bool:
        try:
            self._ask(command)
        except NotPermitted:
            return True
        except BrokerUnavailable:
            raise
        except BrokerError:  # it fails for what it is asked to do, so it may be asked
            return False
        return False


# What publishing, consuming and looking after everything takes. Each is safe to run on a key of the wrong type.
_COMMANDS = (
    "XADD KEY * f v",
    "XREADGROUP GROUP g c COUNT 1 STREAMS KEY >",
    "XACK KEY g 1-1",
    "XCLAIM KEY g c 0 1-1",
    "XPENDING KEY g",
    "XRANGE KEY - + COUNT 1",
    "XREVRANGE KEY + - COUNT 1",
    "XLEN KEY",
    "XDEL KEY 1-1",
    "XTRIM KEY MINID 0",
    "XINFO GROUPS KEY",
    "XINFO CONSUMERS KEY g",
    "XGROUP CREATE KEY g 0 MKSTREAM",
    "XGROUP CREATECONSUMER KEY g c",
    "XGROUP DELCONSUMER KEY g c",
    "XGROUP SETID KEY g 0",
    "XGROUP DESTROY KEY g",
    "EVALSHA SHA 1 KEY 0 1",
    "EVAL return 1 KEY",
    "ZADD KEY 1 m",
    "ZREM KEY m",
    "ZRANGE KEY 0 0",
    "ZRANGEBYSCORE KEY 0 1",
    "ZSCORE KEY m",
    "ZCARD KEY",
    "ZINCRBY KEY 1 m",
    "HSET KEY f v",
    "HSETNX KEY f v",
    "HGET KEY f",
    "HMGET KEY f",
    "HGETALL KEY",
    "HDEL KEY f",
    "HKEYS KEY",
    "HINCRBY KEY f 1",
    "HSCAN KEY 0",
    "SADD KEY m",
    "SMEMBERS KEY",
    "GET KEY",
    "MGET KEY",
    "SET KEY v",
    "DEL KEY",
    "EXISTS KEY",
    "INCRBY KEY 0",
    "PEXPIRE KEY 10000",
    "PTTL KEY",
    "TIME",
    "CLIENT UNBLOCK x",
    "CLIENT INFO",
    "MULTI",
    "EXEC",
    "CLIENT KILL ID x",
    "PUBLISH CHANNEL m",
    "SUBSCRIBE CHANNEL",
    "MEMORY USAGE KEY",
)

# What goes without, and what is missed then.
_OPTIONAL: Mapping[str, str] = {
    "MULTI": "a batch is sent as single commands",
    "EXEC": "a batch is sent as single commands",
    "CLIENT INFO": "each publish goes through a script, which takes a little longer",
    "CLIENT KILL": "each publish goes through a script, which takes a little longer",
    "PUBLISH": "retries and pauses come later, as workers only look from time to time",
    "SUBSCRIBE": "retries and pauses come later, as workers only look from time to time",
    "MEMORY USAGE": "it is not known how much memory topics take",
}

# What would change what the connection is for.
_UNTRIED = frozenset(["MULTI", "SUBSCRIBE"])

_HARMLESS = frozenset(
    [
        "XLEN",
        "XRANGE",
        "XREVRANGE",
        "XPENDING",
        "ZRANGE",
        "ZSCORE",
        "ZCARD",
        "HGET",
        "HMGET",
        "HGETALL",
        "SMEMBERS",
        "GET",
        "MGET",
        "EXISTS",
        "PTTL",
        "TIME",
    ]
) | {"CLIENT INFO", "XINFO GROUPS", "XINFO CONSUMERS", "MEMORY USAGE"}

_OF_TWO_WORDS = ("XINFO", "XGROUP", "CLIENT", "MEMORY")


def _name(command: Command) -> str:
    words = [str(word) for word in command[:2]]
    return " ".join(words) if words[0] in _OF_TWO_WORDS else words[0]


def _hidden(command: str, error: BrokerError, what: str) -> Finding:
    return Finding(
        "warning",
        "not permitted to look",
        f"{what} could not be looked at: {error}",
        "what is wrong there is not found",
        f"run doctor with a user that may: +{command.lower().replace(' ', '|')}",
    )


def _read_info(reply: bytes) -> dict[str, str]:
    lines = [line.partition(":") for line in reply.decode("utf-8", "replace").splitlines() if ":" in line]
    return {name: value for name, _, value in lines}


def _version(info: Mapping[str, str]) -> Iterator[Finding]:
    is_valkey = "valkey_version" in info
    version = info.get("valkey_version") or info.get("redis_version")
    least = (7, 2) if is_valkey else (7, 0)
    if version and tuple(int(part) for part in version.split(".")[:2]) < least:
        name = "Valkey" if is_valkey else "Redis"
        yield Finding(
            "error",
            "version",
            f"the server is {name} {version}; {name} {least[0]}.{least[1]} or newer is needed",
            "commands and scripts of the library fail there",
            "upgrade the server",
        )


def _eviction(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    policy = settings.get("maxmemory-policy") or info.get("maxmemory_policy")
    if policy and policy != "noeviction":
        bound = int(info.get("maxmemory") or settings.get("maxmemory") or 0)
        yield Finding(
            "error" if bound else "warning",
            "eviction",
            f"maxmemory-policy is {policy}"
            + (f", with maxmemory {bound:,}" if bound else "; maxmemory is not set yet"),
            "when memory is full the server deletes keys as it likes: whole topics, with what was not handled",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf; publishing then fails instead (BrokerFull)",
        )


def _persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("aof_enabled") == "0":
        snapshots = settings.get("save")
        yield Finding(
            "warning" if snapshots else "error",
            "no append-only file",
            "appendonly is no"
            + (f"; snapshots are taken (save {snapshots})" if snapshots else ", nor are snapshots taken"),
            "when the server ends, what was published since the last snapshot is lost"
            if snapshots
            else "when the server ends, everything is lost",
            "CONFIG SET appendonly yes, and in redis.conf",
        )
    elif settings.get("appendfsync") == "no":
        yield Finding(
            "warning",
            "no fsync",
            "appendfsync is no",
            "when the machine ends, what the kernel had not written yet is lost: half a minute, perhaps",
            "CONFIG SET appendfsync everysec (a second may be lost), or always (nothing), and in redis.conf",
        )
    for name, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(name) == "err":
            yield Finding(
                "error",
                "cannot write to disk",
                f"the last write of the {what} failed ({name}:err)",
                "the server may refuse to publish, and loses what it has when it ends",
                "see the server's log; make room on its disk",
            )


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    used, bound = int(info.get("used_memory") or 0), int(info.get("maxmemory") or 0)
    if bound and used > 0.8 * bound:
        yield Finding(
            "warning",
            "memory",
            f"{used / 1024**2:,.0f} of {bound / 1024**2:,.0f} MiB of maxmemory are used",
            "when it is full publishing fails (BrokerFull), and retries stay where they are",
            "raise maxmemory; see which topics are large: topics",
        )


def _replicas(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding(
            "error",
            "replica",
            f"the server is a replica of {info.get('master_host')}:{info.get('master_port')}",
            "nothing can be published or handled there",
            "let PUBSUB_URL name the master, or the sentinels: redis+sentinel://",
        )
    elif info.get("role") == "master" and info.get("connected_slaves") == "0":
        yield Finding(
            "note",
            "no replica",
            "the server has no replica",
            "while it is away nothing works, and a lost disk loses everything",
            "add a replica, with Sentinel or Cluster, if that matters",
        )
