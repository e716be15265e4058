"""Schedules: recurring publishes, declared here."""

from dataclasses import dataclass
from datetime import UTC, datetime

from pubsub_core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class CronSpec:
    """A cron expression: five fields, or six with seconds first. Times are UTC."""

    expression: str

    def __post_init__(self) -> None:
        """Refuse what cannot be read, or never comes (30 February)."""
        from croniter import croniter

        fields = self.expression.split()
        if not self.expression.startswith("@") and len(fields) not in (5, 6):
            raise ConfigurationError(
                f"cron {self.expression!r} has {len(fields)} fields: use five (minute hour day month weekday), "
                "or six with seconds first"
            )
        try:
            croniter(self.expression, datetime(2000, 1, 1, tzinfo=UTC), second_at_beginning=True).get_next()
        except (ValueError, KeyError) as error:
            raise ConfigurationError(f"cron {self.expression!r} cannot be: {error}") from None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring publish of an empty payload to `topic`."""

    name: str
    topic: str
    spec: CronSpec
