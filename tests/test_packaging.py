"""What is installed: complete, light to import, and in the layers that it is meant to have."""

import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import pubsub_core

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pubsub_core", "pubsub_redis", "pubsub_memory", "pubsub_flask")


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after `statement`."""
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_core_imports_no_library_that_not_every_user_needs():
    unwanted = {"redis", "hiredis", "flask", "werkzeug", "croniter", "click", *PACKAGES[1:]}

    assert not unwanted & imported_by("import pubsub_core")


def test_declaring_and_publishing_to_memory_needs_neither_redis_nor_flask():
    modules = imported_by(
        "from pubsub_core import PubSub; PubSub('memory://').publish('orders', 1); import pubsub_core.cli"
    )

    assert "pubsub_memory" in modules
    assert not {"redis", "flask", "pubsub_redis", "pubsub_flask"} & modules


def test_the_flask_command_imports_nothing_heavy_before_it_is_called():
    assert not {"redis", "pydantic", "croniter", "flask"} & imported_by("import pubsub_flask.commands")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", *isolation, "-w", directory, ROOT],
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (path,) = directory.glob("*.whl")
    return path


def test_the_wheel_holds_the_four_packages_with_types_and_scripts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    in_tree = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".lua") or path.name == "py.typed"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"pubsub_redis/scripts/park.lua", "pubsub_redis/scripts/bury.lua"} <= names
    assert in_tree == {name for name in names if not name.split("/")[0].endswith(".dist-info")}


def test_the_wheel_works_without_the_source_tree(wheel, tmp_path):
    code = (
        "import pubsub_core, pubsub_flask.extension; from pubsub_redis.link import script; "
        "print(pubsub_core.__file__, len(script('park')[0]))"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(wheel)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    assert wheel.name in ended.stdout


def test_every_entry_point_loads():
    points = distribution("pubsub-streams").entry_points

    assert {point.group for point in points} == {"console_scripts", "flask.commands", "pubsub.backends", "pytest11"}
    for point in points:
        loaded = point.load()
        assert callable(loaded) or point.group == "pytest11"


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == pubsub_core.__version__ == distribution("pubsub-streams").version


def test_import_contracts_hold():
    command = Path(sys.executable).parent / "lint-imports"

    ended = subprocess.run([command, "--no-cache"], check=False, cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stdout
