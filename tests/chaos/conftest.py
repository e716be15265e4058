"""Servers that a test may do anything to, and the field around them."""

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pubsub_redis.embedded import find_program
from tests.chaos.field import HEARTBEAT, Field, Record
from tests.chaos.gate import Gate
from tests.servers import RealServer, real_server

HERE = Path(__file__).parent


@pytest.fixture
def environment() -> dict[str, str]:
    """What the server gets into its environment; other fixtures add to it."""
    return {}


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]) -> Iterator[RealServer]:
    """A server that keeps every word it gave, by the name that the test was given.

    A file that may not grow any more is an error to it, as on a full disk, and not the signal that ends a process.
    """
    program = find_program() if request.param == "valkey" else shutil.which("redis-server")
    script = tmp_path / f"{request.param}-server"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    script.write_text("\n".join(["#!/bin/sh", "trap '' XFSZ", *exports, f'exec {program} "$@"', ""]))
    script.chmod(0o755)
    with real_server(script, appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def shift_clock(tmp_path: Path, environment: dict[str, str]) -> Callable[[int], None]:
    """Return what puts the server's clock forward, or back, by so many seconds. To be asked for before the server."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the clock of a server can be shifted only with a C compiler: no cc on PATH")
    library, shift = tmp_path / "clock.so", tmp_path / "clock"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c", "-ldl"], check=True)
    shift.write_bytes(struct.pack("q", 0))
    environment.update(LD_PRELOAD=str(library), CHAOS_CLOCK=str(shift))

    def put(seconds: int) -> None:
        with shift.open("r+b") as file:
            os.pwrite(file.fileno(), struct.pack("q", seconds), 0)

    return put


@pytest.fixture
def field(request: pytest.FixtureRequest, server: RealServer, tmp_path: Path) -> Iterator[Field]:
    field = Field(server, tmp_path, getattr(request, "param", HEARTBEAT))
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
