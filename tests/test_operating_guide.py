"""The sessions of docs/guides/operating.md are run, and write what it shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import RealServer, redis_server
from tests.test_docs import ROOT, blocks

GUIDE = ROOT / "docs" / "guides" / "operating.md"

# What differs each time, and what stands for it.
_DIFFERENT = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\d+(\.\d)? (s|min) ago"), "AGO"),
    (re.compile(r" +"), " "),
]


@pytest.fixture
def server() -> Iterator[RealServer]:
    with redis_server(appendonly="yes") as server:
        yield server


def comparable(text: str) -> list[str]:
    for pattern, stand_in in _DIFFERENT:
        text = pattern.sub(stand_in, text)
    return [line.rstrip() for line in text.splitlines()]


def steps() -> list[tuple[str, str]]:
    """Return the commands of all sessions, each with what it writes."""
    found: list[tuple[str, str]] = []
    for session in blocks(GUIDE, "console"):
        for part in re.split(r"^\$ ", session[2], flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def test_the_sessions_write_what_the_guide_shows(server: RealServer, tmp_path: Path) -> None:
    program = blocks(GUIDE, "python")[0][2]
    (tmp_path / "shop.py").write_text(program.replace("redis://localhost:6379/0", server.url))
    bin_directory = os.fspath(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    for name in ("PUBSUB_URL", "FLASK_APP"):
        environment.pop(name, None)

    assert len(steps()) > 10
    exported = []
    for command, output in steps():
        if command.startswith("export "):
            exported.append(command)
        script = "; ".join([*exported, command])
        ended = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )  # fmt: skip
        written = ended.stdout.replace(server.url, "redis://localhost:6379/0")
        assert comparable(written) == comparable(output), f"{command}\n{written}\n{ended.stderr}"
        assert not ended.stderr, command
