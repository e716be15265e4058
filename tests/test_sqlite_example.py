"""The SQLite broker of docs/guides/writing-a-backend.md: it keeps the contract, and is what the guide says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "sqlite_broker"
GUIDE = ROOT / "docs" / "guides" / "writing-a-backend.md"

sys.path.insert(0, str(EXAMPLE))
from test_conformance import TestSqlite  # noqa: E402, F401  # its tests are run here

SHOP = """
from pathlib import Path
from pubsub_core import FixedDelay, Message, PubSub

pubsub = PubSub("sqlite:///shop.db", group="billing", heartbeat=0.2)

@pubsub.subscribe("orders", retry=FixedDelay(0.05, max_retries=1))
def charge(message: Message) -> None:
    if message.payload % 5 == 0 and message.attempt == 1:
        raise ValueError
    Path(f"handled-{message.payload}-{message.attempt}").touch()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which the example is installed: its module can be imported, and its entry point is known."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    about = tmp_path / "installed" / "pubsub_sqlite-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    sections = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {of}\n" for name, of in points.items()) for group, points in sections]
    (about / "entry_points.txt").write_text("".join(lines))
    path = os.pathsep.join(map(str, (tmp_path, about.parent, EXAMPLE)))
    return {**os.environ, "PYTHONPATH": path}


def test_a_worker_finds_it_by_its_url(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    def run(*words: str) -> None:
        ended = subprocess.run(
            words,
            check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr

    run(
        sys.executable,
        "-c",
        "from shop import pubsub\nfor number in range(20): pubsub.publish('orders', number, dedup=str(number))",
    )
    run(str(Path(sys.executable).with_name("pubsub")), "worker", "shop:pubsub", "--processes", "2", "--burst")

    handled = sorted(one.name for one in tmp_path.glob("handled-*"))
    assert handled == sorted(f"handled-{number}-{2 if number % 5 == 0 else 1}" for number in range(20))


def test_what_the_guide_quotes_stands_in_the_files() -> None:
    quotes = re.findall(r"^```(py|sql|toml)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    files = [path.read_text() for path in EXAMPLE.iterdir() if path.is_file()]

    assert len(quotes) > 8
    for _, quote in quotes:
        assert any(quote in text for text in files), f"no file of {EXAMPLE} has this:\n{quote}"


def test_it_is_as_short_as_promised() -> None:
    assert len((EXAMPLE / "pubsub_sqlite.py").read_text().splitlines()) < 380
    assert len((EXAMPLE / "test_conformance.py").read_text().splitlines()) <= 30
