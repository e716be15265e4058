"""The names of the keys. All keys of a topic carry one hash tag, so that a script touches one cluster slot."""

import re
from dataclasses import dataclass

from pubsub_core.errors import ConfigurationError

PARKED = "~parked"
REMOVED = "~removed"

_TAG = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class TopicKeys:
    """The keys of one topic."""

    stream: str
    prefix: str

    def due(self, group: str) -> str:
        """Entries of the group that come again, scored by when (ms since 1970 of the server's clock)."""
        return f"{self.prefix}:due:{group}"

    def suspects(self, group: str) -> str:
        """Entries that come again after a process died with them in hand, scored by when."""
        return f"{self.prefix}:suspects:{group}"

    def failures(self, group: str) -> str:
        """A hash: entry id → crashes and the time of the first failure (ms), for entries that failed or crashed;
        "~seen" → the time of the server at the last look at what is due.
        """
        return f"{self.prefix}:failures:{group}"

    @property
    def floors(self) -> str:
        """A hash, for a group that is lost: group → the first entry id that it had not settled, the last that it was
        handed, and all between that it had not settled, unless they are many; "~times:" + group → how often it was
        made; "~lost:" + group → since when (ms) it is known that the group is lost. And, for who looks for a message in
        vain: "~removed" → the entry id below which entries have been removed.
        """
        return f"{self.prefix}:floors"

    def dead(self, group: str) -> str:
        """The stream of the group's dead letters."""
        return f"{self.prefix}:dead:{group}"

    def of_group(self, group: str) -> tuple[str, ...]:
        """All keys that belong to one group alone."""
        return self.due(group), self.suspects(group), self.failures(group), self.dead(group)

    @property
    def dropped(self) -> str:
        """How many messages were dropped to bound the backlog."""
        return f"{self.prefix}:dropped"

    @property
    def delayed(self) -> str:
        """The ids of messages that are not due yet, scored by when (ms since 1970 of the server's clock)."""
        return f"{self.prefix}:delayed"

    @property
    def delayed_messages(self) -> str:
        """A hash: id → message, of those that are not due yet; see `delayed.lua`."""
        return f"{self.prefix}:delayed:messages"

    def dedup(self, key: str) -> str:
        """The id of the message that was published under a dedup key; expires."""
        return f"{self.prefix}:dedup:{key}"

    def fence(self, message_id: str) -> str:
        """What a request must know, by now, to store a message that may have been stored before; expires."""
        return f"{self.prefix}:fence:{message_id}"

    @property
    def schedules(self) -> str:
        """A hash: name of a schedule → how it stands; see `schedule.lua`."""
        return f"{self.prefix}:schedule"


def topic_keys(namespace: str, topic: str, stream: str | None) -> TopicKeys:
    """Return the keys of a topic, kept under `stream` if another program fills it."""
    if stream is None:
        own = f"{namespace}:{{{topic}}}"
        return TopicKeys(own, own)
    tag = _TAG.search(stream)
    if not stream or (tag is None and ("{" in stream or "}" in stream)):
        raise ConfigurationError(
            f"topic {topic!r} has stream={stream!r}: a key name that is not empty and has braces only as a {{hash tag}}"
        )
    return TopicKeys(stream, f"{namespace}:{{{tag[1] if tag else stream}}}:{topic}")


def worker_key(namespace: str, consumer: str) -> str:
    """The sign of life of a consumer; expires."""
    return f"{namespace}:worker:{consumer}"


def workers_key(namespace: str) -> str:
    """The names of consumers, scored by when they last said that they are there (seconds since 1970)."""
    return f"{namespace}:workers"


def look_key(namespace: str, concern: str) -> str:
    """Held for a short while by the process that looks after everything, of those with the same concern; expires."""
    return f"{namespace}:look:{concern}"


def told_key(namespace: str, concern: str) -> str:
    """Whom that process found silent, for the case that it is killed before it looks again; expires."""
    return f"{namespace}:look:{concern}:silent"


def topics_key(namespace: str) -> str:
    """A set: the topics that workers have consumed."""
    return f"{namespace}:topics"


def paused_key(namespace: str) -> str:
    """A hash: topic and name of each group that is paused, a blank between them → since when (ms)."""
    return f"{namespace}:paused"


def schedules_key(namespace: str) -> str:
    """A hash: topic and name of each schedule, a blank between them → its owner."""
    return f"{namespace}:schedules"


def control_channel(namespace: str) -> str:
    """The pub/sub channel on which wake-ups travel."""
    return f"{namespace}:control"
