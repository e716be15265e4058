"""Schedules: recurring publishes, declared here."""

from dataclasses import dataclass

from pubsub_core.cron import CronSpec


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring publish of an empty payload to `topic`."""

    name: str
    topic: str
    spec: CronSpec
