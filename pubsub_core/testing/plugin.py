"""The pytest plugin: fixtures for the tests of applications. See docs/guides/testing.md.

It is imported by every run of pytest wherever the library is installed, so it imports nothing of weight; the fixtures
do, when a test asks for one.
"""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pubsub_core.pubsub import PubSub
    from pubsub_core.testing.faults import Faults
    from pubsub_core.testing.kit import Kit, KitClock
    from pubsub_core.testing.published import Publications

_MARKER = "pubsub(url=..., **settings): run the test on that broker, and with these settings of the PubSub"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ours."""
    parser.getgroup("pubsub", "pubsub-streams").addoption(
        "--pubsub-url",
        metavar="URL",
        default="memory://",
        help="run tests that use the fixture `pubsub` on this broker: memory:// (the default), fakeredis://, "
        "redis+embedded://, redis://host:6379/0, ...; a test's own marker wins",
    )
    parser.addini("pubsub_app", "the application under test: module:attribute", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explain a comparison with what was published."""
    published = sys.modules.get("pubsub_core.testing.published")  # not imported: then it is none of ours
    return None if published is None else published.explain(op, left, right)


@pytest.fixture
def pubsub_app(request: pytest.FixtureRequest) -> Any:
    """The application under test: a PubSub, a Flask app with one, or a text that names one of them. To be overridden.

    By default what the ini option `pubsub_app` names, else the fixture `app` if that is a Flask app with a PubSub, else
    None, for a PubSub of the test's own.
    """
    named = request.config.getini("pubsub_app")
    if named:
        from pubsub_core.target import load_object, load_target

        return load_object(named) if ":" in named else load_target(named)
    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":
            raise
        return None
    return app if "pubsub" in getattr(app, "extensions", ()) else None


@pytest.fixture
def _pubsub_kit(
    request: pytest.FixtureRequest, pubsub_app: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Kit"]:
    from pubsub_core.testing.kit import Kit

    settings: dict[str, Any] = {"url": request.config.getoption("--pubsub-url")}
    for marker in reversed([*request.node.iter_markers("pubsub")]):
        if marker.args:
            raise pytest.UsageError(
                f"@pytest.mark.pubsub{marker.args!r}: it takes keywords only, as in url='redis://...'"
            )
        settings |= marker.kwargs
    if settings["url"] == "redis+embedded://":
        settings["url"] += f"{_directory(request.config, tmp_path_factory)}?idle=3"
    with Kit(pubsub_app, **settings) as kit:
        yield kit


def _directory(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return where the server of this run has its data; with pytest-xdist each of its processes has one."""
    known: str | None = config.stash.get(_EMBEDDED, None)
    if known is None:
        known = config.stash[_EMBEDDED] = str(tmp_path_factory.mktemp("pubsub") / "server")
    return known


_EMBEDDED = pytest.StashKey[str]()


@pytest.fixture
def pubsub(_pubsub_kit: "Kit") -> "PubSub":
    """The application's PubSub, on a broker of this test's own."""
    return _pubsub_kit.pubsub


@pytest.fixture
def run_until_idle(_pubsub_kit: "Kit") -> Callable[..., int]:
    """Call it to have handled what is due now. See `pubsub_core.testing.kit.Kit.run_until_idle`."""
    return _pubsub_kit.run_until_idle


@pytest.fixture
def pubsub_clock(_pubsub_kit: "Kit") -> "KitClock":
    """The time of this test: `now()`, and `advance(60)`."""
    return _pubsub_kit.clock


@pytest.fixture
def published(_pubsub_kit: "Kit") -> "Callable[..., Publications[Any]]":
    """Call it with a topic to see what was published to it in this test."""
    return _pubsub_kit.published


@pytest.fixture
def pubsub_faults(_pubsub_kit: "Kit") -> Iterator["Faults"]:
    """What shall go wrong in this test. See `pubsub_core.testing.faults.Faults`."""
    yield _pubsub_kit.faults
    outstanding = _pubsub_kit.faults.outstanding()
    if outstanding:
        pytest.fail(f"faults that were ordered, and never struck: {'; '.join(outstanding)}", pytrace=False)
