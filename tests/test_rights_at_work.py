"""The documented users of the server where it is hard: a durability, a lost reply, and every command of `pubsub`."""

import json
import sys
import uuid
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from redis import Redis

from pubsub_core import NotConfirmed, PubSub, Worker
from pubsub_core.cli import main as pubsub_command
from pubsub_core.commands import COMMANDS
from pubsub_core.target import load_target
from tests.servers import proxy_to, redis_server, valkey_server
from tests.test_rights import DOCUMENT, LINES, Rights, is_newer, rights
from tests.waiting import until

__all__ = ["rights"]  # the fixture

APP = "tests.apps.operated"
HERE_ALONE = {"worker", "dev", "config", "schema", "asyncapi"}  # they ask the server for nothing, or are the worker's


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest) -> Iterator[Rights]:
    """On a server that keeps what it is told."""
    make = redis_server if request.param == "redis" else valkey_server
    with make(appendonly="yes", appendfsync="always") as server:
        yield Rights(server, f"test-{uuid.uuid4().hex}", dict(LINES.findall(DOCUMENT.read_text())))


def test_a_publisher_can_ask_for_every_durability(own: Rights):
    with Redis.from_url(own.server.url) as client:
        knows_waitaof = is_newer(client)
    pubsub = PubSub(own.user("publisher"), group="billing", namespace=own.namespace, publish_timeout=0.5)
    if knows_waitaof:
        pubsub.publish("plain", 1, durability="fsync")
    with pytest.raises(NotConfirmed):  # there is no replica: it may ask, and is told so
        pubsub.publish("plain", 2, durability="replicas:1")
    pubsub.close()

    assert own.refused() == []


@pytest.mark.parametrize(
    "but", [(), ("-client|kill",), ("-client|info", "+client|id")], ids=["may-kill", "may-not-kill", "no-address"]
)
def test_a_publisher_whose_reply_is_lost_stores_it_once(rights: Rights, but: tuple[str, ...]):
    """Its connection is fenced off, or the message is, and what was sent is looked for."""
    with proxy_to(rights.server) as proxy, Redis.from_url(rights.server.url) as client:
        user = rights.user("publisher", *but).partition("@")[0]
        pubsub = PubSub(f"{user}@{proxy.url.removeprefix('redis://')}", group="billing", namespace=rights.namespace)
        pubsub.publish("plain", 0)
        for number in range(3):
            proxy.lose_reply(to=b"XADD" if not but else b"EVAL")
            pubsub.publish("plain", number)
            assert proxy.struck.is_set()
        pubsub.close()
        assert client.xlen(f"{rights.namespace}:{{plain}}") == 4
    # Whether connections may be killed is asked once, and that alone is refused.
    assert rights.refused() == (
        ["client|kill"] if "-client|kill" in but else [*{one[1:] for one in but if one[0] == "-"}]
    )


@pytest.fixture
def as_operator(rights: Rights, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rights]:
    """An application that has worked, as its worker's user; from now on its commands are run as the operator's."""
    environment = {"PUBSUB_NAMESPACE": rights.namespace, "PUBSUB_APP": APP, "PUBSUB_HEARTBEAT": "0.2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PUBSUB_URL", rights.user("worker"))
    sys.modules.pop(APP, None)
    pubsub = load_target(APP)
    sys.modules[APP].declined.add(13)
    with Worker(pubsub, threads=2):
        for number in (1, 13, 2, 13):
            pubsub.publish("orders", {"order_id": number})
        until(lambda: len(pubsub.dead_letters("orders").newest()) == 2)
        until(lambda: bool(pubsub.inspector.schedules()))
    pubsub.close()
    monkeypatch.setenv("PUBSUB_URL", rights.user("operator"))
    sys.modules.pop(APP, None)
    yield rights
    sys.modules.pop(APP, None)


def run(words: str, payload: str = "") -> str:
    result = CliRunner().invoke(pubsub_command, [*words.split(), *([payload] if payload else [])])
    assert result.exit_code == 0, f"{words}: {result.output}{result.stderr}"
    return result.stdout.strip()


def test_an_operator_can_run_every_command(as_operator: Rights):
    ran = set()

    def command(words: str, payload: str = "") -> str:
        ran.add(words.split(maxsplit=1)[0])
        return run(words, payload)

    published = command("publish orders", '{"order_id": 3}')
    later = command("publish orders --delay 3600", '{"order_id": 4}')
    for words in ("status", "topics", "groups", "groups orders", "workers", "workers --in-hand", "lag orders"):
        command(words)
    command("tail orders -n 2")
    command(f"show {published}")
    command(f"show {later}")
    command("dead list orders")
    for letter in json.loads(run("dead list orders --json")):
        command(f"dead show orders {letter['message']}")
    command("schedules list")
    command("schedules pause yearly")
    command("schedules resume yearly")
    command("schedules run yearly")
    command("pause orders")
    command("resume orders")
    for place in ("latest", "2h", "earliest", "latest"):
        command(f"seek orders {place} --yes")
    command(f"cancel orders {later} --yes")
    command("dead replay orders --yes")
    command("dead discard orders --yes")
    command("purge orders --yes")
    command("purge orders --everything --yes")
    command("remove-group orders billing --yes")
    result = CliRunner().invoke(pubsub_command, ["doctor"])
    ran.add("doctor")

    # What its findings say where something is refused; there are others, as this server keeps nothing.
    assert "appendonly is no" in result.output
    assert "may not run" not in result.output
    assert result.output.count("could not be looked at") == result.output.count("+scan") > 0
    assert ran | HERE_ALONE == set(COMMANDS)
    assert as_operator.refused() == ["scan"]
