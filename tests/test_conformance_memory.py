"""The memory broker passes the conformance kit."""

from pubsub_core.broker import Broker, BrokerOptions
from pubsub_core.clock import Clock, ManualClock
from pubsub_core.testing.conformance import FEATURES, BrokerConformance
from pubsub_memory import open_memory


class TestMemory(BrokerConformance):
    features = FEATURES - {"foreign", "undecodable", "fork"}  # nothing outside of this process reaches its messages

    def make_broker(self, options: BrokerOptions) -> Broker:
        return open_memory("memory://conformance", options)

    def make_clock(self) -> Clock:
        self.manual_clock = ManualClock()
        return self.manual_clock

    def pass_time(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)
