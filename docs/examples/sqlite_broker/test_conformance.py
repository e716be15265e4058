"""The SQLite broker keeps the contract."""

from pathlib import Path
from typing import ClassVar

import pytest
from pubsub_sqlite import SqliteBroker, open_sqlite

from pubsub_core import BrokerOptions, ManualClock
from pubsub_core.testing.conformance import BrokerConformance


class TestSqlite(BrokerConformance):
    features: ClassVar[frozenset[str]] = frozenset()  # no "inspect", "bounded", "foreign", "undecodable", "fork"

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/broker.db"

    def make_broker(self, options: BrokerOptions) -> SqliteBroker:
        return open_sqlite(self.url, options)

    def make_clock(self) -> ManualClock:
        self.manual_clock = ManualClock()
        return self.manual_clock

    def pass_time(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)
