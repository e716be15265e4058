"""Settings: many places, one order, and no typo goes unnoticed."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pubsub_core import ConfigurationError, PubSub, Settings
from pubsub_core.backends import masked
from pubsub_core.settings import keyword_layer


def test_defaults() -> None:
    assert Settings.parse({}) == Settings(
        url="memory://",
        group="default",
        processes=1,
        threads=8,
        timeout=300,
        namespace="pubsub",
        max_payload=1_048_576,
        heartbeat=2,
        publish_timeout=5,
        shutdown_timeout=25,
    )


def test_first_layer_that_has_a_key_wins_and_none_is_as_if_absent() -> None:
    settings = Settings.parse(
        {"PUBSUB_THREADS": None, "PUBSUB_GROUP": "a"},
        {"PUBSUB_THREADS": "4", "PUBSUB_GROUP": "b"},
        {"PUBSUB_THREADS": 5},
    )
    assert (settings.group, settings.threads) == ("a", 4)


def test_text_is_read_as_a_number_where_one_is_due() -> None:
    settings = Settings.parse({"PUBSUB_THREADS": "12", "PUBSUB_TIMEOUT": "0.5", "PUBSUB_PROCESSES": 2.0})
    assert (settings.threads, settings.timeout, settings.processes) == (12, 0.5, 2)


def test_keys_without_the_prefix_are_passed_over() -> None:
    assert Settings.parse({"REDIS_URL": "x", "SQLALCHEMY_DATABASE_URI": "y", "pubsub_threads": 3}) == Settings()


def test_keys_that_others_read_are_passed_over() -> None:
    assert Settings.parse({"PUBSUB_APP": "shop:app", "PUBSUB_EMULATOR_HOST": "localhost:8085"}) == Settings()


def test_unknown_key_is_refused_naming_the_nearest_and_all_others() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.parse({"PUBSUB_THRAEDS": 4})
    text = str(caught.value)
    assert text.startswith("unknown setting 'PUBSUB_THRAEDS'. Did you mean 'PUBSUB_THREADS'? Known: PUBSUB_")
    assert "PUBSUB_GROUP, " in text
    assert "PUBSUB_MAX_PAYLOAD" in text


def test_unknown_key_is_refused_in_every_layer() -> None:
    with pytest.raises(ConfigurationError, match="unknown setting 'PUBSUB_NONSENSE'"):
        Settings.parse({}, {"PUBSUB_NONSENSE": None})


def test_unknown_keyword_and_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'PUBSUB_THREAD'\. Did you mean 'PUBSUB_THREADS'\?"):
        PubSub(thread=4)
    pubsub = PubSub()
    monkeypatch.setenv("PUBSUB_TIMEOUTS", "4")
    with pytest.raises(
        ConfigurationError, match=r"unknown setting 'PUBSUB_TIMEOUTS'\. Did you mean 'PUBSUB_TIMEOUT'\?"
    ):
        _ = pubsub.settings


@pytest.mark.parametrize("name", ["redis_url", "REDIS_URL", "redis_option", "app", "emulator_host", "project_id"])
def test_a_keyword_is_never_for_others_to_read(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown setting {name}=.*Known: url, group, "):
        PubSub(**{name: "redis://x"})  # type: ignore[arg-type]  # whatever it is, it is no setting


def test_the_keyword_of_the_url_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting redis_url=\. It is url=\. Known"):
        PubSub(redis_url="redis://x")


def test_the_original_url_in_the_environment_does_not_mean_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_REDIS_URL", "redis://x")
    with pytest.raises(ConfigurationError, match=r"PUBSUB_REDIS_URL is set.*Set PUBSUB_URL"):
        _ = PubSub().settings
    assert PubSub("memory://").settings.url == "memory://"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("THREADS", 0),
        ("THREADS", -1),
        ("THREADS", 2.5),
        ("THREADS", "four"),
        ("THREADS", ""),
        ("THREADS", True),
        ("THREADS", [4]),
        ("THREADS", float("nan")),
        ("THREADS", float("inf")),
        ("PROCESSES", "1e3"),
        ("MAX_PAYLOAD", "1M"),
        ("TIMEOUT", 0),
        ("TIMEOUT", -1),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", float("inf")),
        ("TIMEOUT", "5 min"),
        ("TIMEOUT", True),
        ("HEARTBEAT", {}),
        ("GROUP", 5),
        ("URL", ""),
        ("URL", b"redis://x"),
    ],
)
def test_value_that_cannot_be_is_refused_naming_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"PUBSUB_{key}=.* cannot be: it must be "):
        Settings.parse({f"PUBSUB_{key}": value})


@pytest.mark.parametrize("key", ["GROUP", "NAMESPACE"])
@pytest.mark.parametrize("value", ["a b", "*", "-a", "a" * 201, "{a}", "a:b", "ä", "a\n"])
def test_names_that_could_reach_other_keys_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"is not a {key.lower()} name: .*Set PUBSUB_{key}"):
        Settings.parse({f"PUBSUB_{key}": value})


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().threads = 4  # type: ignore[misc]


def test_keywords_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_THREADS", "3")
    monkeypatch.setenv("PUBSUB_GROUP", "of_environment")
    settings = PubSub(threads=4).settings
    assert (settings.threads, settings.group) == (4, "of_environment")
    assert keyword_layer({"threads": 4}) == {"PUBSUB_THREADS": 4}


def test_default_group_is_the_module() -> None:
    assert PubSub().settings.group == __name__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pa%40ss@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:p@ss@word@host/0", "redis://***@host/0"),
        ("redis://host/0?password=x&db=1", "redis://host/0?password=***&db=1"),
        ("rediss://host/0?ssl_keyfile_Password=x", "rediss://host/0?ssl_keyfile_Password=***"),
        ("memory://", "memory://"),
        ("redis://:hu/s?h#@host:6379/0", "redis://***@host:6379/0"),
        (":hush@host:6379", "***@host:6379"),
        ("//:hush@host:6379", "//***@host:6379"),
        ("redis://host/0?pasword=hush", "redis://host/0?pasword=***"),
        ("redis://host/0?password=hu#sh", "redis://host/0?password=***"),
        ("unix:///run/a@b.sock?db=0", "unix:///run/a@b.sock?db=0"),
        ("unix://me:hush@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("redis+embedded:///./a@b", "redis+embedded:///./a@b"),
        ("redis://host:6379/0?client_name=me@here", "redis://host:6379/0?client_name=***"),
        ("redis://host?password=hu@sh&db=1", "redis://host?password=***&db=1"),
        ("redis://host/0?password=hu=@sh&db=1", "redis://host/0?password=***&db=1"),
        ("redis://me:hu@sh@host:6379/0?db=1&client_name=me@here", "redis://***@host:6379/0?db=1&client_name=***"),
        (
            "redis+sentinel://:hush@a:1,[::1]:2/shop?sentinel_password=hu@sh",
            "redis+sentinel://***@a:1,[::1]:2/shop?sentinel_password=***",
        ),
        ("redis://me:hu?sh=1@host", "redis://***@host"),
        ("redis://:hu?sh=1@host", "redis://***@host"),
        ("redis://me:123?sh=4@host:6379/0", "redis://***@host:6379/0"),
        ("redis://me:123?sh=4@host/0", "redis://***@host/0"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hu/sh@host:6379/0",
        "redis://:hu#sh@host",
        "redis+cluster://:hu/sh@host",
        "redis+sentinel://:hu/sh@host/service",
        "redis://:hu[sh@host",
        "redis://:hu\u2100sh@host",
        ":hush@host",
    ],
)
def test_what_is_said_of_a_url_that_cannot_be_has_no_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PubSub(url).runtime.broker.time()
    assert "***@host" in str(caught.value)
    assert "hu" not in str(caught.value)
