"""Servers that the whole test run shares: each is started at first use, and stopped at the end."""

from collections.abc import Iterator

import pytest

from tests.servers import FakedServer, RealServer, fake_server, redis_server, valkey_server


@pytest.fixture(scope="session")
def redis() -> Iterator[RealServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[RealServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="session")
def fakeredis() -> Iterator[FakedServer]:
    with fake_server() as server:
        yield server
