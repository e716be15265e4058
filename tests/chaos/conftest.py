"""Servers that a test may do anything to, and the field around them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.field import Field, Record
from tests.chaos.gate import Gate
from tests.servers import RealServer, redis_server, valkey_server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A server that keeps every word it gave, by the name that the test was given."""
    make = {"redis": redis_server, "valkey": valkey_server}[request.param]
    with make(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def field(server: RealServer, tmp_path: Path) -> Iterator[Field]:
    field = Field(server, tmp_path)
    yield field
    field.close()


@pytest.fixture
def gate(server: RealServer) -> Iterator[Gate]:
    gate = Gate(server.port)
    yield gate
    gate.close()


@pytest.fixture
def record() -> Record:
    return Record()
