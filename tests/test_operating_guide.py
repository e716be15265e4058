"""The sessions of docs/guides/operating.md are played on terminals, and show what the guide shows."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.servers import RealServer, redis_server, valkey_server
from tests.session import URL, Place, ShellOnTerminal, comparable, play, program, steps


@pytest.fixture(params=[redis_server, valkey_server], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    with request.param(appendonly="yes") as server:
        yield server


def test_the_terminals_show_what_the_guide_shows(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PUBSUB_APP", "PUBSUB_URL", "PUBSUB_NAMESPACE", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "shop.py").write_text(program().replace(URL, server.url))

    with ExitStack() as stack:
        operator, worker = (stack.enter_context(closing(ShellOnTerminal(tmp_path))) for _ in range(2))
        played = 0
        for guide, screen in play(steps(), operator, worker, Place(server.url, tmp_path)):
            assert comparable(screen.output) == comparable(guide.output), (
                f"{screen.command}\n{screen.output}\nIf that is as it should be: python -m tests.session"
            )
            played += 1
    assert played > 15


def test_the_night_has_all_that_it_is_to_show() -> None:
    """Something breaks, two commands tell, it is mended while the worker runs, and nothing is lost."""
    typed = [step.command for step in steps() if step.command is not None]
    story = ["--reload", "status", "doctor", "dead list", "dead show", "sed -i", "dead replay", "status", "charged.txt"]

    rest = iter(typed)
    for part in story:
        assert any(part in command for command in rest), part
