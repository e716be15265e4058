"""The Flask extension: several apps, settings from many places, an app context per delivery, the `flask` command."""

import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask, current_app, g, has_app_context

import pubsub_core
import pubsub_flask
from pubsub_core.worker.options import WorkerOptions
from pubsub_flask import ConfigurationError, Delivery, Message, NoRetry, PubSub, current_pubsub
from tests.waiting import handle_all


def make_app(name: str = "shop", **config: Any) -> Flask:
    app = Flask(name)
    app.config.update(config)
    return app


# Settings


def test_group_is_the_import_name_of_the_app() -> None:
    app = make_app("shop.web")
    assert PubSub(app).settings.group == "shop.web"


def test_group_of_a_script_is_its_file_name(tmp_path: Path) -> None:
    script = tmp_path / "till.py"
    script.write_text(
        "from flask import Flask\nfrom pubsub_flask import PubSub\napp = Flask(__name__)\n"
        "print(PubSub(app).settings.group)\n"
    )
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout == "till\n"


def test_keyword_wins_over_config_over_environment_over_flask_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, key in enumerate(("THREADS", "PROCESSES", "TIMEOUT", "HEARTBEAT"), 1):
        if number >= 1:
            monkeypatch.setenv(f"FLASK_PUBSUB_{key}", "40")
        if number <= 3:
            monkeypatch.setenv(f"PUBSUB_{key}", "30")
    app = make_app(PUBSUB_THREADS=20, PUBSUB_PROCESSES=20)
    settings = PubSub(app, threads=10).settings
    assert (settings.threads, settings.processes, settings.timeout, settings.heartbeat) == (10, 20, 30, 40)


def test_unknown_key_in_config_is_refused_naming_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'PUBSUB_THREAD'\. Did you mean 'PUBSUB_THREADS'\?"):
        PubSub(make_app(PUBSUB_THREAD=4))


@pytest.mark.parametrize(
    ("key", "near"), [("PUBSUB_REDIS_OPTIONS", "PUBSUB_REDIS_OPTION"), ("PUBSUB_REDIS_URI", "PUBSUB_REDIS_URL")]
)
def test_a_key_like_those_of_the_original_is_refused_naming_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"unknown setting '{key}'\. Did you mean '{near}'\?"):
        PubSub(make_app(**{key: "redis://x"}))


def test_keys_of_another_prefix_are_for_whoever_was_given_it() -> None:
    app = make_app(PUBSUB_URL="memory://", PUBSUB_REDIS_EVENTS_URL="redis://x", PUBSUB_REDIS_EVENTS_OPTION={})
    assert PubSub(app).settings.url == "memory://"


def test_options_of_the_flask_command_in_the_environment_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_PUBSUB_WORKER_LOG_LEVEL", "DEBUG")
    app = make_app()
    assert PubSub(app).settings.threads == 8


def test_keys_of_the_original_count_where_ours_are_absent() -> None:
    option = {"group": "g1", "processes": 4, "threads": 10, "timeout_second": 60, "retry_count": 3, "block_second": 6}
    app = make_app(PUBSUB_REDIS_URL="redis://old:6379/0", PUBSUB_REDIS_OPTION=option, PUBSUB_THREADS=2)
    settings = PubSub(app).settings
    assert (settings.url, settings.group, settings.processes) == ("redis://old:6379/0", "g1", 4)
    assert (settings.threads, settings.timeout) == (2, 60)


def test_url_of_ours_wins_over_that_of_the_original() -> None:
    app = make_app(PUBSUB_REDIS_URL="redis://old:6379/0", PUBSUB_URL="redis://new:6379/0")
    assert PubSub(app).settings.url == "redis://new:6379/0"


def test_testing_without_url_uses_memory_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pubsub")
    app = make_app(TESTING=True)
    pubsub = PubSub(app)
    assert pubsub.settings.url == "memory://"
    pubsub.publish("orders", 1)
    assert [record.getMessage() for record in caplog.records] == [
        "TESTING is on and PUBSUB_URL is not set: shop uses memory://"
    ]


def test_testing_with_url_uses_it_silently(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pubsub")
    app = make_app(TESTING=True, PUBSUB_URL="redis://x:1/0")
    assert PubSub(app).settings.url == "redis://x:1/0"
    assert caplog.records == []


def test_without_url_it_is_memory() -> None:
    app = make_app()
    assert PubSub(app).settings.url == "memory://"


def test_init_app_opens_nothing() -> None:
    app = make_app(PUBSUB_URL="nonsense://here")
    pubsub = PubSub(app)
    with pytest.raises(ConfigurationError, match="unknown scheme 'nonsense'"):
        pubsub.publish("orders", 1)


# Apps


def test_second_init_app_is_refused_with_the_remedy() -> None:
    app = make_app()
    pubsub = PubSub(app)
    with pytest.raises(ConfigurationError, match=r"'shop' has a PubSub already.*import it from there"):
        pubsub.init_app(app)
    with pytest.raises(ConfigurationError, match="has a PubSub already"):
        PubSub(app)


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'redis://x' is not a Flask app: use PubSub\(app\)"):
        PubSub("redis://x")  # type: ignore[arg-type]


def test_the_app_is_not_kept_alive() -> None:
    pubsub = PubSub()
    app = make_app()
    pubsub.init_app(app)
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None


def test_without_an_app_publishing_says_to_call_init_app() -> None:
    with pytest.raises(ConfigurationError, match=r"no Flask app: call init_app\(app\) first, and keep the app"):
        PubSub().publish("orders", 1)


def test_with_one_app_publishing_needs_no_context() -> None:
    app = make_app()
    pubsub = PubSub(app)
    assert not has_app_context()
    assert len(pubsub.publish("orders", {"id": 1})) == 36


def test_each_app_has_settings_and_a_broker_of_its_own() -> None:
    pubsub = PubSub()
    seen = []

    @pubsub.subscribe("orders")
    def note(message: Message[Any]) -> None:
        seen.append((current_app.name, message.group, message.payload))

    one, two = make_app("one"), make_app("two", PUBSUB_GROUP="second")
    for app in (one, two):
        pubsub.init_app(app)
    with two.app_context():
        assert pubsub.settings.group == "second"
        pubsub.publish("orders", "for two")
    handle_all(pubsub.bound_to(one))
    assert seen == []
    handle_all(pubsub.bound_to(two))
    assert seen == [("two", "second", "for two")]


def test_with_several_apps_and_none_current_it_tells_to_push_a_context() -> None:
    pubsub = PubSub()
    apps = make_app("one"), make_app("two")
    for app in apps:
        pubsub.init_app(app)
    with pytest.raises(ConfigurationError, match=r"used by 2 Flask apps.*`with app.app_context\(\):`"):
        pubsub.publish("orders", 1)
    with make_app("three").app_context(), pytest.raises(ConfigurationError, match="none of them is current"):
        pubsub.publish("orders", 1)


def test_bound_to_an_app_that_does_not_know_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'shop' does not know this PubSub"):
        PubSub().bound_to(make_app())


def test_a_bound_pubsub_shares_what_is_declared_later() -> None:
    app = make_app()
    pubsub = PubSub(app)
    bound = pubsub.bound_to(app)
    pubsub.subscribe("orders")(lambda message: None)
    assert [one.topic for one in bound.subscriptions()] == ["orders"]
    assert bound.runtime is pubsub.runtime


def test_extension_state_holds_pubsub_and_runtime() -> None:
    app = make_app()
    pubsub = PubSub(app)
    state = app.extensions["pubsub"]
    assert state.pubsub is pubsub
    assert state.runtime is pubsub.runtime


def test_current_pubsub_is_that_of_the_current_app() -> None:
    app = make_app()
    pubsub = PubSub(app)
    with app.app_context():
        assert current_pubsub == pubsub
        assert current_pubsub.settings.group == "shop"
    with make_app("other").app_context(), pytest.raises(ConfigurationError, match="'other' has no PubSub"):
        _ = current_pubsub.settings


def test_closing_opens_anew_at_the_next_use() -> None:
    app = make_app()
    pubsub = PubSub(app)
    first = pubsub.runtime.broker
    pubsub.close()
    pubsub.close()
    assert pubsub.runtime.broker is not first


# Handlers


def test_each_delivery_has_a_fresh_app_context_and_its_teardown() -> None:
    app = make_app()
    pubsub = PubSub(app)
    torn_down: list[BaseException | None] = []
    app.teardown_appcontext(torn_down.append)
    seen = []

    @pubsub.subscribe("orders", retry=NoRetry())
    def look(message: Message[Any]) -> None:
        seen.append((current_app.name, "number" in g))
        g.number = message.payload
        if message.payload == 2:
            raise RuntimeError("declined")

    for number in (1, 2, 3):
        pubsub.publish("orders", number)
    torn_down.clear()
    handle_all(pubsub)
    assert seen == [("shop", False)] * 3
    assert [type(error) for error in torn_down] == [type(None), RuntimeError, type(None)]


def test_async_handlers_and_middleware_are_within_the_app_context() -> None:
    app = make_app()
    pubsub = PubSub(app)
    seen = []

    @pubsub.middleware
    def note(delivery: Delivery[Any], call_next: Callable[[Delivery[Any]], None]) -> None:
        seen.append(f"middleware of {current_app.name}")
        call_next(delivery)

    @pubsub.subscribe("orders")
    async def look(message: Message[Any]) -> None:
        seen.append(f"handler of {current_app.name}")
        current_pubsub.publish("invoices", message.payload)

    pubsub.publish("orders", 1)
    handle_all(pubsub)
    assert seen == ["middleware of shop", "handler of shop"]


# What is exported


def test_everything_of_the_core_is_exported() -> None:
    assert {*pubsub_core.__all__, "Producer", "Msg", "State", "current_pubsub"} == set(pubsub_flask.__all__)
    for name in pubsub_flask.__all__:
        assert getattr(pubsub_flask, name) is not None
        assert name in dir(pubsub_flask)
    assert pubsub_flask.Message is pubsub_core.Message
    assert issubclass(pubsub_flask.PubSub, pubsub_core.PubSub)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = pubsub_flask.Nonsense


# The command


LOADED = "import sys\nprint('the app is loaded', file=sys.stderr)\n"
SHOP = f"""{LOADED}
from flask import Flask
from pubsub_flask import PubSub

pubsub = PubSub()

def create_app():
    app = Flask("shop")
    pubsub.init_app(app)
    return app
"""


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Callable[[], pubsub_core.PubSub], WorkerOptions]]:
    """Stand in for the supervisor, which forks: note what it is called with."""
    calls: list[tuple[Callable[[], pubsub_core.PubSub], WorkerOptions]] = []

    def supervise(load: Callable[[], pubsub_core.PubSub], options: WorkerOptions) -> int:
        calls.append((load, options))
        return 0

    supervisor = ModuleType("pubsub_core.worker.supervisor")
    supervisor.supervise = supervise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pubsub_core.worker.supervisor", supervisor)
    return calls


@pytest.fixture
def shop_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "flask_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("flask_shop", None)


@pytest.mark.usefixtures("shop_folder")
def test_flask_pubsub_worker_loads_the_app_only_when_a_process_does(
    supervised: list[tuple[Callable[[], pubsub_core.PubSub], WorkerOptions]], capfd: pytest.CaptureFixture[str]
) -> None:
    from flask.cli import FlaskGroup

    with pytest.raises(SystemExit) as ended:
        FlaskGroup().main(["--app", "flask_shop", "pubsub", "worker", "--processes", "4", "-t", "10", "--burst"])
    assert ended.value.code == 0
    ((load, options),) = supervised
    assert options == WorkerOptions(target="flask_shop", processes=4, threads=10, burst=True, log_level="INFO")
    assert "the app is loaded" not in capfd.readouterr().err
    assert load().settings.group == "shop"
    assert "the app is loaded" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("app", "error"),
    [("flask_shopp", "Could not import 'flask_shopp'"), ("flask_shop:nothing", "has no PubSub")],
)
def test_flask_pubsub_worker_says_what_is_wrong_with_the_app(
    app: str,
    error: str,
    shop_folder: Path,
    supervised: list[tuple[Callable[[], pubsub_core.PubSub], WorkerOptions]],
) -> None:
    from flask.cli import FlaskGroup

    (shop_folder / "flask_shop.py").write_text("from flask import Flask\nnothing = Flask('shop')\n")
    with pytest.raises(SystemExit):
        FlaskGroup().main(["--app", app, "pubsub", "worker"])
    ((load, _),) = supervised
    with pytest.raises(ConfigurationError, match=error):
        load()


def test_the_entry_point_imports_nothing_but_click() -> None:
    code = (
        "import sys, pubsub_flask.commands\n"
        "heavy = {'flask', 'pydantic', 'redis', 'pubsub_core', 'pubsub_flask.extension', 'croniter'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_flask_finds_the_command_without_an_app(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "flask", "pubsub", "worker", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "--processes" in shown.stdout
    assert "flask --app shop pubsub worker" in shown.stdout
    assert shown.stderr == ""
