"""What may become of a delivery. The executor decides on one of these; one function carries it out."""

from dataclasses import dataclass

from pubsub_core.message import DeadLetterReason


@dataclass(frozen=True, slots=True)
class Acked:
    """The handler returned: done for this group."""


@dataclass(frozen=True, slots=True)
class Retried:
    """To be delivered again after `delay` seconds; this attempt counts."""

    delay: float


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """Given up, and kept with its reason."""

    reason: DeadLetterReason


@dataclass(frozen=True, slots=True)
class Released:
    """Handed back unstarted; this attempt does not count."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """It expired, and the subscription wants no dead letter of it: done for this group, unseen."""


ACKED = Acked()

Outcome = Acked | Retried | DeadLettered | Released | Dropped
