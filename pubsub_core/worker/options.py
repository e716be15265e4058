"""How a worker is to run."""

from collections.abc import Callable
from dataclasses import dataclass

from pubsub_core.pubsub import PubSub

LoadTarget = Callable[[], PubSub]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What the command line, or `cs.run`, says. None stands for what the settings say, once the target is loaded."""

    target: str
    processes: int | None = None
    threads: int | None = None
    burst: bool = False
    reload: bool = False
    log_level: str | None = "INFO"
