"""Servers that the whole test run shares: each is started at first use, and stopped at the end."""

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import FakedServer, RealServer, fake_server, redis_cluster, redis_server, valkey_server

# How long an example takes says what else the machine does.
settings.register_profile("here", deadline=None)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of his own."""
    for key in list(os.environ):
        if key.startswith(("PUBSUB_", "FLASK_PUBSUB_")) or key == "FLASK_APP":
            monkeypatch.delenv(key)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Leave the level of the library's logger as it was: benchmarks set it."""
    library = logging.getLogger("pubsub")
    before = library.level
    yield
    library.setLevel(before)


@pytest.fixture(scope="session")
def redis() -> Iterator[RealServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[RealServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[RealServer]]:
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture(scope="session")
def fakeredis() -> Iterator[FakedServer]:
    with fake_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """The test ends its threads itself: one that is left would disturb, or be blamed on, a later test."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10
    while left := [one for one in set(threading.enumerate()) - before if one.name.startswith("pubsub")]:
        assert time.monotonic() < deadline, f"threads left over: {sorted(one.name for one in left)}"
        left[0].join(0.05)
