"""What a command line may name, and the command itself."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask

from pubsub_core import ConfigurationError, PubSub
from pubsub_core.cli import main
from pubsub_core.target import default_target, load_object, load_target
from pubsub_core.worker.options import WorkerOptions

PREAMBLE = """
from flask import Flask
import pubsub_core, pubsub_flask
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make `till.py` in a working directory that is not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    before = set(sys.modules)

    def write(code: str, name: str = "till.py") -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PREAMBLE + code)

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(sys.modules[name].__file__).startswith(str(tmp_path)):
            del sys.modules[name]


ONE = "mine = pubsub_core.PubSub(group='mine')\n"
FACTORY = "def create_app():\n    app = Flask('made')\n    pubsub_flask.PubSub(app)\n    return app\n"
APP = "app = Flask('shop')\npubsub_flask.PubSub(app)\n"


# What may be named


@pytest.mark.parametrize(
    ("code", "target", "group"),
    [
        (ONE, "till:mine", "mine"),
        (ONE, "till", "mine"),
        (ONE, "till.py:mine", "mine"),
        (ONE + "class shelf:\n    top = mine\n", "till:shelf.top", "mine"),
        (APP, "till:app", "shop"),
        (APP, "till", "shop"),
        (ONE + APP, "till", "shop"),
        (ONE + APP + "pubsub = pubsub_core.PubSub(group='first')\n", "till", "first"),
        ("pubsub = 'a module of that name, say'\n" + ONE, "till", "mine"),
        (FACTORY, "till:create_app()", "made"),
        (FACTORY, "till:create_app", "made"),
        ("def make():\n    return pubsub_core.PubSub(group='made')\n", "till:make()", "made"),
        (ONE + "again = mine\n", "till", "mine"),
        (
            "one, two = Flask('one'), Flask('two')\npubsub = pubsub_flask.PubSub()\n"
            "pubsub.init_app(one)\npubsub.init_app(two)\n",
            "till:two",
            "two",
        ),
    ],
)  # fmt: skip
def test_target_is_found(code: str, target: str, group: str, write: Callable[[str], None]) -> None:
    write(code)
    assert load_target(target).settings.group == group


def test_app_that_a_function_made_is_kept(write: Callable[[str], None]) -> None:
    write(FACTORY)
    pubsub = load_target("till:create_app()")
    assert len(pubsub.publish("orders", 1)) == 36


def test_module_in_a_package(write: Callable[..., None]) -> None:
    write("", "counter/__init__.py")
    write(ONE, "counter/web.py")
    assert load_target("counter.web:mine").settings.group == "mine"
    assert load_target("counter/web.py:mine").settings.group == "mine"


def test_object_of_a_target(write: Callable[[str], None]) -> None:
    write(APP)
    assert isinstance(load_object("till:app"), Flask)


def test_default_target_is_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_target() is None
    monkeypatch.setenv("FLASK_APP", "of_flask")
    assert default_target() == "of_flask"
    monkeypatch.setenv("PUBSUB_APP", "of_pubsub")
    assert default_target() == "of_pubsub"


# What cannot be


@pytest.mark.parametrize(
    ("code", "target", "error"),
    [
        (ONE, "tall:mine", r"cannot load 'tall:mine': there is no module 'tall' in .*Did you mean 'till'\?"),
        (ONE, "till.web:mine", r"there is no module 'till.web'"),
        (
            "from flask import current_app, g, request\n" + FACTORY,
            "till:create_ap()",
            r"'till' has no attribute 'create_ap'\. Did you mean 'create_app'\? It has: create_app\(\)\.$",
        ),
        ("from flask import current_app\n", "till", "the module has no PubSub, nor a Flask app"),
        ("from flask import current_app\n", "till:current_app", "is a LocalProxy: it must be a PubSub, or a Flask app"),
        (ONE, "till:mime", r"'till' has no attribute 'mime'\. Did you mean 'mine'\? It has: mine"),
        (ONE, "till:mine()", r"cannot load 'till:mine\(\)': 'mine' is a PubSub, not a function"),
        (ONE, "till:mine(1)", r"'mine\(1\)' is not the name of an attribute, nor of a function with"),
        (ONE, "till:", r"'till:' does not name an application: use module:attribute"),
        (ONE, "a b:c", "'a b:c' does not name an application"),
        (ONE, "https://x", "there is no module 'https'"),
        ("number = 5\n", "till:number", "'till:number' is a int: it must be a PubSub, or a Flask app with one"),
        ("app = Flask('x')\n", "till:app", r"the Flask app 'till:app' has no PubSub: call PubSub\(app\)"),
        ("app = Flask('x')\n", "till", r"the Flask app 'till:app' has no PubSub"),
        ("", "till", r"has no PubSub, nor a Flask app. Name what makes one: till:create_app\(\)"),
        ("def create_app(): ...\n", "till", r"no 'pubsub' nor 'app' in it. Use one of: till:create_app\(\)"),
        ("def create_app(): ...\n", "till:create_app()", r"'till:create_app\(\)' is a NoneType"),
        ("def create_app(config): ...\n", "till:create_app()", r"create_app\(\) cannot be called without arguments"),
        (
            ONE + "other = pubsub_core.PubSub()\n",
            "till",
            "there are several of them. Use one of: till:mine, till:other",
        ),
    ],
)  # fmt: skip
def test_target_that_cannot_be_is_refused(code: str, target: str, error: str, write: Callable[[str], None]) -> None:
    write(code)
    with pytest.raises(ConfigurationError, match=error):
        load_target(target)


def test_module_that_is_missing_within_the_target_is_told_apart_from_the_target(write: Callable[[str], None]) -> None:
    write("\nimport tills_own_need\n")
    with pytest.raises(
        ConfigurationError, match=r"till.py:5 could not import what it needs: No module .*'tills_own_need'"
    ):
        load_target("till:mine")


def test_name_that_is_missing_within_the_target(write: Callable[[str], None]) -> None:
    write("from pubsub_core import PubSup\n")
    with pytest.raises(
        ConfigurationError, match=r"till\.py:4 could not import what it needs: cannot import name 'PubSup'"
    ):
        load_target("till:mine")


def test_other_errors_of_the_target_are_left_as_they_are(write: Callable[[str], None]) -> None:
    write("raise ZeroDivisionError\n")
    with pytest.raises(ZeroDivisionError):
        load_target("till:mine")


def test_error_of_a_factory_is_left_as_it_is(write: Callable[[str], None]) -> None:
    write("def create_app():\n    return len(5)\n")
    with pytest.raises(TypeError, match="has no len"):
        load_target("till:create_app()")


# The command


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Callable[[], PubSub], WorkerOptions]]:
    """Stand in for the supervisor, which forks: note what it is called with, and end with the number of threads."""
    calls: list[tuple[Callable[[], PubSub], WorkerOptions]] = []

    def supervise(load: Callable[[], PubSub], options: WorkerOptions) -> int:
        calls.append((load, options))
        if options.burst:
            raise ConfigurationError("this cannot be, because.\nDo that instead")
        return options.threads or 0

    supervisor = ModuleType("pubsub_core.worker.supervisor")
    supervisor.supervise = supervise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pubsub_core.worker.supervisor", supervisor)
    return calls


def run(*arguments: str, **environment: Any) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def test_worker_hands_target_and_options_to_the_supervisor(
    supervised: list[tuple[Callable[[], PubSub], WorkerOptions]], write: Callable[[str], None]
) -> None:
    write(ONE)
    result = run("worker", "till:mine", "--processes", "4", "--log-level", "debug", "--reload")
    assert result.exit_code == 0, result.output
    ((load, options),) = supervised
    assert options.log_level is not None
    assert (options.target, options.processes, options.threads) == ("till:mine", 4, None)
    assert (options.burst, options.reload, options.log_level.upper()) == (False, True, "DEBUG")
    assert "till" not in sys.modules
    assert load().settings.group == "mine"


def test_worker_without_target_uses_that_of_the_environment(
    supervised: list[tuple[Callable[[], PubSub], WorkerOptions]],
) -> None:
    assert run("worker", PUBSUB_APP="till:mine", FLASK_APP="other").exit_code == 0
    assert supervised[0][1].target == "till:mine"


def test_processes_of_the_environment_are_left_to_the_settings_which_know_the_order(
    supervised: list[tuple[Callable[[], PubSub], WorkerOptions]],
) -> None:
    assert run("worker", "till:mine", PUBSUB_PROCESSES="4").exit_code == 0
    assert supervised[0][1].processes is None


@pytest.mark.usefixtures("supervised")
@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_exit_code_is_that_of_the_supervisor(code: int) -> None:
    arguments = ["--threads", str(code)] if code else []
    assert run("worker", "till:mine", *arguments).exit_code == code


@pytest.mark.usefixtures("supervised")
def test_errors_of_ours_are_one_text_and_exit_code_2() -> None:
    result = run("worker", "till:mine", "--burst")
    assert result.exit_code == 2
    assert result.output == "Error: this cannot be, because.\nDo that instead\n"


def test_worker_without_any_target_says_how_to_name_one() -> None:
    result = run("worker")
    assert result.exit_code == 2
    assert "Error: which application? Name it, as in `pubsub worker shop:app`, or set PUBSUB_APP" in result.output


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--processes", "many"], ["--nonsense"], ["--log-level", "X"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run("worker", "till:mine", *arguments).exit_code == 2


def test_help_has_examples_and_exit_codes() -> None:
    assert "pubsub worker shop:app --processes 4 --threads 10" in run("--help").output
    shown = run("worker", "--help").output
    assert 'pubsub worker "shop:create_app()" --burst' in shown
    assert "130  a second Ctrl-C" in shown


def test_version_is_shown() -> None:
    assert run("--version").output == "pubsub-streams 0.1.0\n"


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom pubsub_core.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'flask', 'redis', 'pydantic', 'pydantic_core', 'croniter'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert shown.splitlines()[-1] == "[]"
