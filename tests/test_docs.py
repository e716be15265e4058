"""What the documents say is so: their programs run, their commands exist, their tables are complete."""

import contextlib
import http.client
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import click
import pytest
from flask.cli import run_command

from pubsub_core.cli import main as pubsub_command
from pubsub_core.settings import PREFIX, Settings
from pubsub_flask.commands import pubsub as flask_pubsub
from pubsub_flask.config import RedisOption
from pubsub_redis.embedded import stop_server

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITHIN = 30.0

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FILE_OF_TESTS = re.compile(r"# ((?:test_\w+|conftest)\.py)\n")
LINK = re.compile(r"\]\(([^)#\s]+)\)")


def blocks(document: Path, language: str) -> list[re.Match[str]]:
    return [match for match in FENCE.finditer(document.read_text()) if match[1] == language]


# Guides whose programs are files, and whose commands are run and print what is shown.
FILE_OF_PROGRAM = re.compile(r"# (?!test_|conftest)\w+\.py\n")
GUIDES = [one for one in DOCUMENTS if any(FILE_OF_PROGRAM.match(block[2]) for block in blocks(one, "python")[:1])]
GUIDES.remove(ROOT / "README.md")


def program_blocks(document: Path) -> list[re.Match[str]]:
    """Return the blocks that are one program, from top to bottom."""
    return [match for match in blocks(document, "python") if not FILE_OF_TESTS.match(match[2])]


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


# Programs


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if program_blocks(one) and one not in GUIDES], ids=named)
def test_python_blocks_run_in_order(document, redis, tmp_path):
    program = tmp_path / document.name
    program.write_text(only_python(document).replace("redis://localhost:6379/0", redis.url))
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='document')"

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, program],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stderr


def only_python(document: Path) -> str:
    """Return the document with all else blanked, so that a traceback names the document's line."""
    text = document.read_text()
    lines = ["\n"] * (text.count("\n") + 1)
    for match in program_blocks(document):
        first = text.count("\n", 0, match.start(2))
        for number, line in enumerate(match[2].splitlines(keepends=True), first):
            lines[number] = line
    return "".join(lines)


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if len(program_blocks(one)) < len(blocks(one, "python"))], ids=named
)
def test_files_of_tests_pass_beside_the_first_program_of_the_readme(document, tmp_path):
    (tmp_path / "shop.py").write_text(blocks(ROOT / "README.md", "python")[0][2])
    for ini in blocks(document, "ini") or [None]:
        (tmp_path / "pytest.ini").write_text(ini[2] if ini else "[pytest]\npubsub_app = shop:app\npythonpath = .\n")
    files = {match[1]: block[2] for block in blocks(document, "python") if (match := FILE_OF_TESTS.match(block[2]))}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    expected = sum(text.count("\ndef test_") for text in files.values())

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tmp_path],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{expected} passed" in ended.stdout


def test_the_first_program_of_the_readme_does_what_it_says(tmp_path):
    readme = ROOT / "README.md"
    program, commands = blocks(readme, "python")[0][2], blocks(readme, "shell")[0][2].splitlines()
    (tmp_path / "shop.py").write_text(program)
    web, worker, curl = map(shlex.split, commands)
    port = free_port()
    url = urlsplit(curl[-1])
    assert curl[:3] == ["curl", "-X", "POST"]
    assert url.port == 5000  # what `flask run` listens on

    with contextlib.ExitStack() as stack:
        stack.callback(stop_server, tmp_path / ".pubsub")
        stack.enter_context(running([*web, "--port", str(port)], tmp_path, tmp_path / "web.log"))
        stack.enter_context(running(worker, tmp_path, tmp_path / "worker.log"))
        wait_until(lambda: listens(port), tmp_path / "web.log")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", url.path)
        status = connection.getresponse().status
        connection.close()

        assert status == 202
        wait_until(lambda: "charging order 1" in (tmp_path / "worker.log").read_text(), tmp_path / "worker.log")


@contextlib.contextmanager
def running(words: Sequence[str], directory: Path, log: Path) -> Iterator[None]:
    """Run a command of this environment in a process group of its own, of which nothing is left afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=directory,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, log: Path) -> None:
    deadline = monotonic() + WITHIN
    never = threading.Event()
    while not condition():
        assert monotonic() < deadline, log.read_text()
        never.wait(0.05)


# Guides


@pytest.mark.parametrize("guide", GUIDES, ids=named)
def test_a_guide_does_what_it_says(guide, tmp_path):
    """Its programs are written to the files that their first line names, its commands run, and print what it shows."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    printed, ran = "", 0

    with contextlib.ExitStack() as stack:
        stack.callback(stop_server, tmp_path / ".pubsub")
        for block in FENCE.finditer(guide.read_text()):
            language, text = block.groups()
            if language == "python":
                (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
            elif language == "shell":
                ended = subprocess.run(
                    ["bash", "-c", text], check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=60
                )
                assert ended.returncode == 0, ended.stdout + ended.stderr
                printed, ran = ended.stdout.decode(), ran + 1
            elif language == "text":
                assert printed == text

    assert ran > 0


# Commands


def commands() -> list[tuple[str, str]]:
    """Return every command: the lines of shell blocks, and code in the text that begins like one."""
    starts = ("make ", ".venv/bin/", "flask --app", "pubsub worker ", "pip install", "python -m ")
    found = []
    for document in DOCUMENTS:
        for match in blocks(document, "shell"):
            found += [(named(document), line.partition(";")[0]) for line in match[2].splitlines() if line.strip()]
        prose = FENCE.sub("", document.read_text())
        found += [(named(document), code) for code in CODE.findall(prose) if code.startswith(starts)]
    return sorted(set(found))


@pytest.mark.parametrize(("document", "command"), commands())
def test_commands_exist(document, command):
    program, *words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    CHECKS[Path(program).name](words)


def check_make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(words) <= targets


def check_python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
    else:
        assert (ROOT / words[0]).is_file() or any(f"```python\n# {words[0]}\n" in one.read_text() for one in GUIDES)


def check_pip(words: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    what = [word for word in words[1:] if word != "-e"]
    assert words[0] == "install"
    assert len(what) == 1
    name, _, extras = what[0].rstrip("]").partition("[")
    assert name in (".", project["name"])
    assert set(extras.split(",") if extras else []) <= set(project["optional-dependencies"])


def check_installed(words: Sequence[str]) -> None:
    del words  # `make check` runs these with the words of the Makefile


def check_flask(words: Sequence[str]) -> None:
    option, _app, *rest = words
    assert option == "--app"
    if rest[0] == "run":
        run_command.make_context("run", list(rest[1:]))
    else:
        assert rest[0] == "pubsub"
        check_click(flask_pubsub, rest[1:])


def check_click(group: click.Group, words: Sequence[str]) -> None:
    command = group.get_command(click.Context(group), words[0])
    assert command is not None
    if isinstance(command, click.Group):
        check_click(command, words[1:])
    else:
        command.make_context(words[0], list(words[1:]))


def check_curl(words: Sequence[str]) -> None:
    assert urlsplit(words[-1]).scheme == "http"


CHECKS = {
    "make": check_make,
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
    "ruff": check_installed,
    "mypy": check_installed,
    "lint-imports": check_installed,
    "flask": check_flask,
    "pubsub": lambda words: check_click(pubsub_command, words),
    "curl": check_curl,
}


def test_tools_that_are_named_are_in_the_development_extra():
    tools = {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}
    extra = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"])
    for command, package in tools.items():
        assert package in extra
        assert shutil.which(command, path=os.fspath(Path(sys.executable).parent))


# Tables and names


@pytest.mark.parametrize("document", ["README.md", "docs/configuration.md"])
def test_every_setting_is_listed_with_its_default(document):
    rows = dict(re.findall(r"^\| `(PUBSUB_\w+)` \| ([^|]+) \|", (ROOT / document).read_text(), re.MULTILINE))

    assert rows.keys() == {PREFIX + one.name.upper() for one in fields(Settings)}
    for one in fields(Settings):
        shown = rows[PREFIX + one.name.upper()]
        default = f"{one.default:.12g}" if isinstance(one.default, float) else str(one.default)
        assert shown == ("the app's name" if one.name == "group" else f"`{default}`")


def test_every_option_of_the_worker_is_listed():
    readme = (ROOT / "README.md").read_text()
    worker = pubsub_command.get_command(click.Context(pubsub_command), "worker")
    assert worker is not None
    options = [one for one in worker.params if isinstance(one, click.Option)]

    assert options
    for one in options:
        for name in one.opts:
            assert re.search(rf"^\| .*`{name}[ `]", readme, re.MULTILINE), name


def test_every_key_of_the_original_option_is_listed():
    table = (ROOT / "README.md").read_text().partition("| key of `PUBSUB_REDIS_OPTION` |")[2].partition("\n\n")[0]

    assert {one.name for one in fields(RedisOption)} <= set(CODE.findall(table))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_to_files(document):
    for target in LINK.findall(document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_path_of_a_message_names_functions_that_exist():
    text = (ROOT / "docs" / "message-path.md").read_text()
    names = [code for code in CODE.findall(text) if re.fullmatch(r"pubsub_\w+(\.\w+)+", code)]
    scripts = [code for code in CODE.findall(text) if code.endswith(".lua")]

    assert len(names) > 30
    for name in names:
        resolve(name)
    assert {path.name for path in (ROOT / "pubsub_redis" / "scripts").glob("*.lua")} == set(scripts)


def resolve(name: str) -> object:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                found = getattr(found, part)
            return found
    raise AssertionError(name)


# The demo


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples" / "demo")
    yield importlib.import_module("run")
    for name in ("run", "shop"):
        sys.modules.pop(name, None)


def test_the_demo_accounts_for_every_message():
    code, output, errors = finished([ROOT / "docs" / "examples" / "demo" / "run.py", "--orders", "120"], ROOT, 60)

    assert code == 0, output + errors
    assert re.search(r"published +120 ", output)
    assert re.search(r"billing +118 +16 +2\n", output)
    assert "Every message is accounted for" in output


@pytest.mark.parametrize(
    ("handled", "problem"),
    [
        ({}, None),
        ({("shipping", "id-2"): 0}, "shipping: handled: 1 messages"),
        ({("billing", "id-1"): 2}, "billing: handled: 1 messages"),
        ({("statistics", "unknown"): 1}, "statistics: handled: 1 messages"),
    ],
)
def test_the_demo_fails_if_a_message_was_lost_or_handled_twice(demo, handled, problem):
    ids = {1: "id-1", 2: "id-2"}
    right = {(group, message): 1 for group in demo.GROUPS for message in ids.values()}
    ledger = demo.Ledger(+Counter({**right, **handled}), Counter())
    dead: dict[str, list[object]] = {group: [] for group in demo.GROUPS}

    with pytest.raises(demo.DemoFailed, match=problem) if problem else contextlib.nullcontext():
        demo.check(ids, ledger, dead)


def finished(words: Sequence[str | Path], directory: Path, seconds: float) -> tuple[int, str, str]:
    """Run Python to its end; return exit status, output and errors. If it takes too long it is interrupted."""
    with subprocess.Popen(
        [sys.executable, *words], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # not killed: it is to stop the servers that it started
            output, errors = process.communicate(timeout=20)
        return process.returncode, output, errors
