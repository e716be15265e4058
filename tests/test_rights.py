"""What docs/configuration.md says that a user of the server needs is enough: nothing is refused."""

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from pubsub_core import NoRetry, NotPermitted, PubSub, Reject, Retry, Worker
from pubsub_core.broker import Examinable, Membership, ScheduleKey
from pubsub_core.doctor import examine
from pubsub_core.message import SubscriptionKey
from tests.servers import RealServer
from tests.waiting import until

LINES = re.compile(r"^ACL SETUSER (\w+) (on .+)$", re.MULTILINE)
DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
WITHIN = 20.0


@dataclass
class Rights:
    """The documented users, on a server, in a namespace of their own."""

    server: RealServer
    namespace: str
    lines: dict[str, str]

    def __post_init__(self) -> None:
        self.users: list[str] = []

    def user(self, role: str, *but: str) -> str:
        """Make the user of a role, changed by these rules, and return its URL."""
        name = f"{role}-{uuid.uuid4().hex}"
        line = self.lines[role].replace("PASSWORD", "pw").replace("pubsub:*", f"{self.namespace}:*")
        with Redis.from_url(self.server.url) as client:
            known = ("+waitaof", "+client|setinfo") if is_newer(client) else ()
            client.execute_command("ACL", "SETUSER", name, *line.split(), *known, *but)
        self.users.append(name)
        return self.server.url.replace("redis://", f"redis://{name}:pw@")

    def pubsub(self, role: str, *but: str) -> PubSub:
        return PubSub(self.user(role, *but), group="billing", namespace=self.namespace, heartbeat=0.2)

    def refused(self) -> list[str]:
        """Return what was refused to these users."""
        with Redis.from_url(self.server.url) as client:
            return [one["object"] for one in client.acl_log() if one["username"] in self.users]


def is_newer(client: "Redis") -> bool:
    info = client.info("server")
    return "valkey_version" in info or tuple(map(int, info["redis_version"].split(".")[:2])) >= (7, 2)


@pytest.fixture(params=["redis", "valkey"])
def rights(request: pytest.FixtureRequest) -> Iterator[Rights]:
    server: RealServer = request.getfixturevalue(request.param)
    found = Rights(server, f"test-{uuid.uuid4().hex}", dict(LINES.findall(DOCUMENT.read_text())))
    yield found
    with Redis.from_url(server.url) as client:
        for user in found.users:
            client.acl_deluser(user)


def setting(event: Event) -> Callable[[int], None]:
    def handle(number: int) -> None:
        event.set()

    return handle


def keeping(handled: list[int]) -> Callable[[int], None]:
    def handle(number: int) -> None:
        handled.append(number)

    return handle


def publish_in_every_way(pubsub: PubSub) -> None:
    bounded = pubsub.topic("bounded", max_backlog=2, overflow="drop_oldest")
    again = pubsub.publish("plain", 1)
    pubsub.publish("plain", 1, id=again)
    with pubsub.batch() as batch:
        for number in range(5):
            batch.publish("plain", number)
    pubsub.publish("plain", 2, dedup="one", delay=0.05)
    pubsub.publish("plain", 2, dedup="one")
    assert pubsub.cancel("plain", pubsub.publish("plain", 3, delay=60, dedup="two"))
    for number in range(4):
        bounded.publish(number)
    with pubsub.batch() as batch:
        batch.publish("plain", 4)
        batch.publish("other", 4)


def test_a_publisher_can_publish_in_every_way(rights: Rights):
    pubsub = rights.pubsub("publisher")
    publish_in_every_way(pubsub)
    with Redis.from_url(rights.server.url) as client:
        # As after a connection that broke: it is fenced off, what was sent is looked for, and the rest sent again.
        client.execute_command("CLIENT", "KILL", "USER", rights.users[0])
    pubsub.publish("plain", 5)
    pubsub.close()

    assert rights.refused() == []


@pytest.mark.parametrize(
    "but", [["-client|kill"], ["-client|info", "+client|id"], ["-multi", "-exec"], ["-publish", "-subscribe"]]
)
def test_what_is_said_to_be_optional_is(rights: Rights, but: list[str]):
    pubsub = rights.pubsub("worker", *but)
    publish_in_every_way(pubsub)
    handled = Event()
    pubsub.subscribe("plain")(setting(handled))
    with Worker(pubsub, threads=2):
        assert handled.wait(WITHIN)
    pubsub.close()


def test_a_worker_can_do_all_that_it_does(rights: Rights):
    """Retries, dead letters, delays, schedules, taking over from who died, and looking after what is kept."""
    pubsub = rights.pubsub("worker")
    pubsub.topic("short", retention=0.001)
    ticked, taken_over = Event(), Event()
    attempts: list[int] = []
    handled: list[int] = []

    @pubsub.subscribe("again")
    def again(number: int) -> None:
        attempts.append(number)
        if len(attempts) == 1:
            raise Retry(delay=0.05)

    @pubsub.subscribe("bad", retry=NoRetry())
    def bad(number: int) -> None:
        raise Reject("never" if number else "nor this")

    pubsub.subscribe("lost")(setting(taken_over))
    pubsub.subscribe("short")(keeping(handled))
    pubsub.subscribe("ticks")(setting(ticked))
    pubsub.topic("ticks").schedule(1, 0, name="tick")
    lost = SubscriptionKey("lost", "billing")
    dies = pubsub.runtime.broker.consumer([Membership(lost)], f"dies-{uuid.uuid4().hex}")
    dies.maintain()
    dies.receive({lost: 1}, 0.0)  # joins
    pubsub.publish("lost", 1)
    assert dies.receive({lost: 1}, WITHIN)
    with Worker(pubsub, threads=4):
        pubsub.publish("again", 1, delay=0.05)
        pubsub.publish("bad", 1)
        for number in range(5):
            pubsub.publish("short", number)
        until(lambda: attempts == [1, 1] and len(handled) == 5)
        until(lambda: bool(pubsub.dead_letters("bad").newest()))
        assert ticked.wait(WITHIN)
        assert taken_over.wait(WITHIN)
        until(lambda: not pubsub.inspector.peek("short"))
    dies.close()
    pubsub.close()

    assert rights.refused() == []


def test_an_operator_can_look_at_everything_and_mend_it(rights: Rights):
    worker, pubsub = rights.pubsub("worker"), rights.pubsub("operator")
    for one in (worker, pubsub):
        one.subscribe("bad", retry=NoRetry())(fails)
        one.topic("bad").schedule(60, 0, name="tick")
    with Worker(worker):
        publish_in_every_way(worker)
        worker.publish("bad", 1)
        worker.publish("bad", 2)
        until(lambda: len(worker.dead_letters("bad").newest()) == 2)
        until(lambda: bool(pubsub.inspector.schedules()))
    worker.close()

    inspector, key = pubsub.inspector, SubscriptionKey("bad", "billing")
    assert isinstance(pubsub.runtime.broker, Examinable)
    examine(pubsub)
    assert list(inspector.topics()) == ["bad"]
    message, *_ = inspector.peek("bad")
    assert inspector.topic("bad").groups
    assert inspector.find("bad", message.id)
    assert [one.key for one in inspector.groups("bad")] == [key]
    for consumer in inspector.consumers(key):
        inspector.in_hand(key, consumer.name)
    inspector.delayed("plain")
    assert inspector.pause_schedule(ScheduleKey("bad", "tick"), is_paused=True)
    inspector.pause_group(key, is_paused=True)
    inspector.pause_group(key, is_paused=False)
    first, second = pubsub.dead_letters("bad")
    assert pubsub.dead_letters("bad").replay([first]) == 1
    assert pubsub.dead_letters("bad").discard([second]) == 1
    inspector.seek(key, "latest", force=True)
    inspector.purge("plain", everything=True, force=True)
    inspector.remove_group(key)
    pubsub.close()

    assert rights.refused() == ["scan"]  # which lists the keys of others, too: doctor does without


def fails(number: int) -> None:
    raise Reject(f"{number} is refused")


def test_who_may_not_know_its_own_connection_is_told_the_right_that_is_missing(rights: Rights):
    pubsub = rights.pubsub("publisher", "-client|info")

    with pytest.raises(NotPermitted, match=r"'client\|info'.* ACL SETUSER the user with \+client\|info"):
        pubsub.publish("plain", 1)
    pubsub.close()


def test_what_is_missing_is_named(rights: Rights):
    pubsub = rights.pubsub("publisher", "-xadd")

    with pytest.raises(NotPermitted, match="xadd"):
        pubsub.publish("plain", 1)
    pubsub.close()
