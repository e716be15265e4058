"""What the test kit may ask of a backend, beside the seam."""

from typing import Protocol, runtime_checkable

from pubsub_core.broker import Broker, Consumer


class ControlledBroker(Broker, Protocol):
    """A broker that goes by the clock of its options in everything, and obeys tests."""

    def lose(self, consumer: Consumer) -> None:
        """Do what would be done if the process of the consumer had died, and the others had noticed."""

    def erase(self) -> None:
        """Delete all that this broker, and its consumers, stored."""


@runtime_checkable
class Controllable(Protocol):
    """A broker whose backend can be controlled. One that goes by the clock of its options anyway need not be."""

    def for_tests(self) -> ControlledBroker:
        """Return another broker of the same place, to be used instead of this one. No I/O."""
