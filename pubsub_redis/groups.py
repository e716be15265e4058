"""What a consumer knows of each of its groups, and how groups are told of."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pubsub_core.broker import Start, TopicOptions
from pubsub_core.message import Delivery, SubscriptionKey
from pubsub_redis.keys import TopicKeys
from pubsub_redis.servers import Node


@dataclass(slots=True)
class Group:
    """What is known about one subscription."""

    key: SubscriptionKey
    start: Start
    keys: TopicKeys
    slot: int = 0
    node: Node = ""
    was_made: bool = False
    is_left_out: bool = False
    is_hot: bool = False
    is_paused: bool = False
    due_at: float = 0.0  # time.monotonic() of the next look for due entries
    suspects_at: float = 0.0  # the same for those that crashed somebody, which count only while we have none
    held: dict[str, Delivery[bytes]] = field(default_factory=dict)  # by entry id, what `receive` returned
    tidied_to: bytes = b"0"
    was_used: bool = True  # since the last look at what may go
    retained_at: float = 0.0
    # For the case that the group is lost: how often it was made, the newest entry we were handed, and what we settled.
    times_made: int | None = None
    newest: bytes = b""
    settled: deque[str] = field(default_factory=deque)

    @property
    def parked_keys(self) -> tuple[str, str, str, str]:
        """The keys of the scripts that park and take."""
        name = self.key.group
        return self.keys.stream, self.keys.due(name), self.keys.suspects(name), self.keys.failures(name)

    def holds(self, position: str, attempt: int) -> bool:
        """Whether an entry is held, in that attempt."""
        held = self.held.get(position)
        return held is not None and held.message.attempt == attempt


def joined(groups: Mapping[SubscriptionKey, Group]) -> list[Group]:
    """Return the groups with whose topics nothing is wrong."""
    return [group for group in groups.values() if not group.is_left_out]


def shown(key: SubscriptionKey) -> str:
    """Return how a group is named to people."""
    return f"group {key.group!r} of topic {key.topic!r}"


def start_id(start: Start | str) -> str:
    """Return the entry id after which a new group begins."""
    if isinstance(start, datetime):
        return f"{int(start.timestamp() * 1000) - 1}-{2**64 - 1}"
    return "$" if start == "latest" else "0"


def due_text(key: SubscriptionKey, delay: float) -> str:
    """Return the wake-up that says when something of a group is due."""
    return f"{due_prefix(key.topic, key.group)}{delay:.3f}"


def due_prefix(topic: str, group: str = "") -> str:
    """Return the wake-up, but for the seconds, that says when something of a group is due; without one, of all."""
    return f"due\n{topic}\n{group}\n"


def room_of(options: TopicOptions) -> tuple[int, int]:
    """Return what scripts want to know of a topic's bounds: how many it may hold, and whether the oldest may go."""
    return options.max_backlog or 0, int(options.overflow == "drop_oldest")
