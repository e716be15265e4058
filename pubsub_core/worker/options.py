"""How a worker is to run."""

from collections.abc import Callable
from dataclasses import dataclass

from pubsub_core.logs import LogFormat
from pubsub_core.pubsub import PubSub

LoadTarget = Callable[[], PubSub]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What the command line, or `cs.run`, says. None stands for what the settings say, once the target is loaded.

    With a `health_port` the worker serves /livez, /readyz and /metrics there, and its processes count. `log_sample` is
    how many lines on handled messages a process writes in a second at most; None: all.
    """

    target: str
    processes: int | None = None
    threads: int | None = None
    burst: bool = False
    reload: bool = False
    log_level: str | None = "INFO"
    log_format: LogFormat = "text"
    log_sample: int | None = None
    health_host: str = "127.0.0.1"
    health_port: int | None = None
