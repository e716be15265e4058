"""The doctor, on real servers that are really set up wrongly."""

import ast
import inspect
import json
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from redis import Redis

import pubsub_core.doctor
import pubsub_redis.examiner
from pubsub_core import ManualClock, NoRetry, PubSub, Worker
from pubsub_core.broker import Finding, GroupState
from pubsub_core.cli import main as pubsub_command
from pubsub_core.doctor import examine
from pubsub_redis.examiner import RedisExaminer
from tests.servers import RealServer, redis_server, valkey_server
from tests.session import GUIDE

WITHIN = 10.0


@pytest.fixture(scope="module")
def well_kept() -> Iterator[RealServer]:
    with redis_server(appendonly="yes", maxmemory_policy="noeviction") as server:
        yield server


@pytest.fixture
def shop(well_kept: RealServer) -> Iterator[PubSub]:
    pubsub = made(well_kept.url)
    yield pubsub
    pubsub.close()


def made(url: str, **settings: object) -> PubSub:
    return PubSub(url, group="billing", namespace=f"test-{uuid.uuid4().hex}", **settings)  # type: ignore[arg-type]  # settings


def named(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return the findings by name; each says why it matters, and how to mend it."""
    for one in findings:
        assert one.what
        assert one.why
        assert one.mend
    return {one.name: one for one in findings}


def found(pubsub: PubSub) -> dict[str, Finding]:
    return named(examined(pubsub))


def examined(pubsub: PubSub) -> list[Finding]:
    try:
        return [*examine(pubsub)]
    finally:
        pubsub.close()


def test_a_server_that_is_kept_well_has_no_replica_at_most(shop: PubSub):
    assert {(one.severity, one.name) for one in examine(shop)} == {("note", "no replica")}


def test_memory_is_never_wrong():
    assert found(made("memory://")) == {}


# The server


@pytest.mark.parametrize(
    ("config", "name", "severity"),
    [
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "100mb"}, "eviction", "error"),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction", "warning"),
        ({"appendonly": "no"}, "no append-only file", "error"),
        ({"appendonly": "no", "save": "900 1"}, "no append-only file", "warning"),
        ({"appendonly": "yes", "appendfsync": "no"}, "no fsync", "warning"),
        ({"appendonly": "yes", "maxmemory": "1mb"}, "memory", "warning"),
    ],
)
def test_settings_that_lose_messages_are_found(config: dict[str, str], name: str, severity: str):
    with redis_server(**{"appendonly": "yes", **config}) as server:
        findings = found(made(server.url))

    assert findings[name].severity == severity


def test_valkey_is_examined_too():
    with valkey_server(appendonly="no", maxmemory_policy="allkeys-lru", maxmemory="50mb") as server:
        findings = found(made(server.url))

    assert {"eviction", "no append-only file"} <= findings.keys()
    assert "version" not in findings


def test_a_replica_is_no_place_to_publish(well_kept: RealServer):
    with redis_server(replicaof=f"127.0.0.1 {well_kept.port}") as replica:
        findings = found(made(replica.url))

    assert findings["replica"].severity == "error"
    assert str(well_kept.port) in findings["replica"].what


def test_a_server_that_is_away_is_the_only_finding():
    (finding,) = found(made("redis://127.0.0.1:1/0", publish_timeout=0.5)).values()

    assert (finding.severity, finding.name) == ("error", "unreachable")
    assert "127.0.0.1:1" in finding.what


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_rights_that_are_missing_are_named(program: str, request: pytest.FixtureRequest):
    server: RealServer = request.getfixturevalue(program)
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(server.url) as client:
        client.execute_command(
            "ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-xtrim", "-xclaim", "-client|kill"
        )
        findings = examined(made(server.url.replace("redis://", f"redis://{user}:pw@")))
        client.acl_deluser(user)

    needed, useful = (next(one for one in findings if one.severity == kind and one.name == "rights missing")
                      for kind in ("error", "warning"))  # fmt: skip
    assert "XCLAIM, XTRIM " in needed.what
    assert "+xclaim +xtrim" in needed.mend
    assert "CLIENT KILL" in useful.what
    assert "+client|kill" in useful.mend


def test_keys_that_are_out_of_reach_are_found(redis: RealServer):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~other:*", "&*", "+@all")
        pubsub = made(redis.url.replace("redis://", f"redis://{user}:pw@"))
        broker = pubsub.runtime.broker
        findings = [*broker.examine()]  # type: ignore[attr-defined]  # it can be examined
        pubsub.close()
        client.acl_deluser(user)

    (finding,) = [one for one in findings if one.name == "rights missing" and one.severity == "error"]
    assert "XADD" in finding.what
    assert f"~{pubsub.settings.namespace}:*" in finding.mend


def test_what_may_not_be_looked_at_is_a_warning(well_kept: RealServer):
    """Without INFO, CONFIG and ACL the rest is examined all the same."""
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(well_kept.url) as client:
        client.execute_command(
            "ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-@admin", "-@dangerous", "-info", "-zscore",
        )  # fmt: skip
        pubsub = made(well_kept.url.replace("redis://", f"redis://{user}:pw@"))
        findings = [*examine(pubsub)]
        pubsub.close()
        client.acl_deluser(user)

    hidden = [one for one in findings if one.name == "not permitted to look"]
    assert {one.severity for one in hidden} == {"warning"}
    assert [one.mend.rpartition("+")[2] for one in hidden] == ["info", "config|get"]
    (rights,) = [one for one in findings if one.name == "rights missing" and one.severity == "error"]
    assert "ZSCORE" in rights.what


@pytest.mark.parametrize("other", ["", "-acl"])
def test_a_user_who_lacks_only_client_info_has_access(well_kept: RealServer, other: str):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(well_kept.url) as client:
        rules = [one for one in ("-client|info", other) if one]
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", *rules)
        findings = examined(made(well_kept.url.replace("redis://", f"redis://{user}:pw@")))
        client.acl_deluser(user)

    (finding,) = [one for one in findings if one.name == "rights missing"]
    assert finding.severity == "warning"
    assert "may not run: CLIENT INFO" in finding.what
    assert "+client|info" in finding.mend
    assert "no access" not in {one.name for one in findings}


def test_a_user_whom_the_server_lets_do_nothing_is_an_error(well_kept: RealServer):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(well_kept.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "-@all", "+ping", "+hello", "+auth")
        for url in (f"redis://{user}:pw@", f"redis://{user}:wrong@"):
            pubsub = made(well_kept.url.replace("redis://", url))
            (finding,) = examine(pubsub)
            pubsub.close()
            assert (finding.severity, finding.name) == ("error", "no access")
            assert "Rights" in finding.mend
        client.acl_deluser(user)


def test_what_somebody_else_wrote_to_our_keys_is_told_and_the_rest_examined(shop: PubSub):
    shop.publish("misspelt", 1)
    with Redis.from_url(shop.settings.url) as client:
        client.set(f"{shop.settings.namespace}:topics", "not ours")
        findings = named(examine(shop))
        client.delete(f"{shop.settings.namespace}:topics")
    finding = findings["cannot be looked at"]
    assert finding.severity == "error"
    assert "WRONGTYPE" in finding.what
    assert shop.settings.namespace in finding.mend
    assert "no replica" in findings


@pytest.mark.parametrize("lacking", ["smembers", "xinfo", "time", "xrange"])
def test_what_the_doctor_itself_may_not_run_is_told_and_the_rest_examined(well_kept: RealServer, lacking: str):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(well_kept.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", f"-{lacking}")
        pubsub = made(well_kept.url.replace("redis://", f"redis://{user}:pw@"))
        declared(pubsub)
        owner = PubSub(well_kept.url, group="billing", namespace=pubsub.settings.namespace)
        declared(owner)
        work(owner)
        owner.close()
        findings = [*examine(pubsub)]
        pubsub.close()
        client.acl_deluser(user)

    names = [one.name for one in findings]
    assert "rights missing" in names
    assert "not permitted to look" in names
    assert any(lacking.upper() in one.what for one in findings if one.name == "rights missing")
    assert "no replica" in names


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_rights_to_write_are_tried_where_the_server_may_not_be_asked(program: str, request: pytest.FixtureRequest):
    """On a key of its own, which is gone afterwards; nobody is disturbed."""
    server: RealServer = request.getfixturevalue(program)
    user = f"user-{uuid.uuid4().hex}"
    lacks = ["xadd", "xtrim", "hsetnx", "sadd", "evalsha", "del", "pexpire", "xgroup|create", "client|kill"]
    with Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "resetchannels", "+@all", "-acl",
                               *(f"-{one}" for one in lacks))  # fmt: skip
        clients = {one["id"] for one in client.client_list()}
        pubsub = made(server.url.replace("redis://", f"redis://{user}:pw@"))
        findings = [*pubsub.runtime.broker.examine()]  # type: ignore[attr-defined]  # it can be examined
        assert clients <= {one["id"] for one in client.client_list()}
        keys = [*client.scan_iter(f"{pubsub.settings.namespace}*")]
        assert all(0 < client.pttl(one) <= 10_000 for one in keys)
        assert len(keys) == 1  # as DEL is not permitted
        client.execute_command("ACL", "SETUSER", user, "allchannels", *(f"+{one}" for one in lacks))
        again = [*pubsub.runtime.broker.examine()]  # type: ignore[attr-defined]
        assert not [*client.scan_iter(f"{pubsub.settings.namespace}*")]
        client.execute_command("ACL", "SETUSER", user, "-set", "-zscore")
        unwritten = [*pubsub.runtime.broker.examine()]  # type: ignore[attr-defined]
        assert not [*client.scan_iter(f"{pubsub.settings.namespace}*")]
        pubsub.close()
        client.acl_deluser(user)

    needed, useful = (next(one.what for one in findings if (one.severity, one.name) == (kind, "rights missing"))
                      for kind in ("error", "warning"))  # fmt: skip
    assert "may not run: DEL, EVALSHA, HSETNX, PEXPIRE, SADD, XADD, XGROUP CREATE, XTRIM (" in needed
    assert "may not run: CLIENT KILL, PUBLISH" in useful
    (untried,) = [one for one in again if one.name.startswith("rights")]
    assert (untried.severity, "may run: MULTI, SUBSCRIBE." in untried.what) == ("note", True)
    (needed,) = [one.what for one in unwritten if one.name == "rights missing"]
    assert "may not run: SET, ZSCORE (" in needed
    (untried,) = [one for one in unwritten if one.name == "rights not tried"]
    assert {"XADD", "HSETNX", "SUBSCRIBE"} <= {*untried.what.partition(".")[0].replace(",", "").split()}


def test_a_foreign_clock_is_found(well_kept: RealServer):
    clock = ManualClock(datetime.now(UTC) + timedelta(hours=1))

    findings = found(made(well_kept.url, clock=clock))

    assert findings["clock difference"].severity == "warning"
    assert "ahead of the server's" in findings["clock difference"].what


# Topics and groups


def declared(pubsub: PubSub, *, fails: bool = False) -> None:
    @pubsub.subscribe("orders", retry=NoRetry())
    def charge(order: int) -> None:
        if fails:
            raise ValueError("declined")


def work(pubsub: PubSub) -> None:
    with Worker(pubsub, threads=1, burst=True) as worker:
        assert worker.wait(WITHIN)


def test_a_subscription_that_was_never_consumed_is_noted(shop: PubSub):
    declared(shop)
    assert named(examine(shop))["never consumed"].severity == "note"


def test_a_group_without_workers_is_worse_if_something_waits(shop: PubSub):
    declared(shop)
    work(shop)
    assert named(examine(shop))["no workers"].severity == "warning"
    shop.publish("orders", 1)
    assert named(examine(shop))["no workers"].severity == "error"
    with Worker(shop, threads=1) as worker:
        while not shop.inspector.consumers(shop.subscriptions()[0].key):
            assert not worker.wait(0.02)
        assert "no workers" not in named(examine(shop))


def test_a_handler_that_is_gone_is_found(shop: PubSub):
    declared(shop)
    work(shop)
    other = PubSub(shop.settings.url, group="shipping", namespace=shop.settings.namespace)
    declared(other)
    other.publish("orders", 1)

    finding = found(other)["handler gone"]

    assert finding.severity == "error"
    assert "billing" in finding.what
    assert "remove-group orders billing" in finding.mend


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("place", ["{later}-0", "18446744073709551615-18446744073709551615"])
@pytest.mark.parametrize("mend", ["seek orders latest", "seek orders 2h"])
def test_a_group_that_stands_ahead_of_its_topic_is_found_and_mended(
    shop: PubSub, monkeypatch: pytest.MonkeyPatch, is_empty: bool, place: str, mend: str
):
    """Else what is published meanwhile would be lost to it, and nobody would see that."""
    declared(shop)
    shop.publish("orders", 1)
    work(shop)
    if is_empty:
        shop.inspector.purge("orders", everything=True)
    assert "ahead of its topic" not in named(examine(shop))
    later = datetime.now(UTC) + timedelta(days=1)
    with Redis.from_url(shop.settings.url) as client:
        stream = f"{shop.settings.namespace}:{{orders}}"
        client.xgroup_setid(stream, "billing", place.format(later=int(later.timestamp() * 1000)))
    passed_over = shop.publish("orders", 2)
    work(shop)
    assert shop.inspector.find("orders", passed_over).standings[0].stands == "settled"  # type: ignore[union-attr]  # so it seems

    finding = named(examine(shop))["ahead of its topic"]

    assert finding.severity == "error"
    assert "group 'billing' of topic 'orders' stands at " in finding.what
    assert f"{mend} --group billing" in finding.mend
    monkeypatch.setenv("PUBSUB_URL", shop.settings.url)
    monkeypatch.setenv("PUBSUB_NAMESPACE", shop.settings.namespace)
    for name in ("PUBSUB_APP", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    assert "passes over what is published until" in CliRunner().invoke(pubsub_command, ["status"]).output
    mended = CliRunner().invoke(pubsub_command, [*mend.split(), "--group", "billing", "--yes"])
    assert mended.exit_code == 0, mended.output
    assert "ahead of its topic" not in named(examine(shop))
    shop.publish("orders", 3)
    (state,) = shop.inspector.groups("orders")
    assert state.lag.at_least == (1 if "latest" in mend else 2 if is_empty else 3)


def test_a_group_that_is_to_begin_later_is_not_found(shop: PubSub):
    shop.subscribe("orders", start=datetime.now(UTC) + timedelta(days=1))(lambda order: None)
    work(shop)
    shop.publish("orders", 1)
    assert "ahead of its topic" not in named(examine(shop))


def test_a_group_is_not_ahead_of_a_topic_whose_clock_went_back(shop: PubSub):
    """Then the next message comes behind the last one all the same, though that was deleted."""
    declared(shop)
    work(shop)
    with Redis.from_url(shop.settings.url) as client:
        stream = f"{shop.settings.namespace}:{{orders}}"
        last = f"{int((datetime.now(UTC) + timedelta(days=1)).timestamp() * 1000)}-0"
        client.execute_command("XSETID", stream, last)
        client.xgroup_setid(stream, "billing", last)
    assert "ahead of its topic" not in named(examine(shop))
    shop.publish("orders", 1)
    assert shop.inspector.groups("orders")[0].lag.at_least == 1


def test_dead_letters_and_pauses_are_told(shop: PubSub):
    declared(shop, fails=True)
    shop.publish("orders", 1)
    work(shop)
    shop.inspector.pause_group(shop.subscriptions()[0].key, is_paused=True)

    findings = named(examine(shop))

    assert "1 dead letters" in findings["dead letters"].what
    assert "30 days" in findings["dead letters"].why
    assert findings["paused"].mend == "resume orders --group billing"


def test_a_topic_that_nobody_consumes_grows(shop: PubSub):
    shop.publish("events", 1)
    assert "holds 1 messages" in named(examine(shop))["no group"].what


@pytest.mark.parametrize("url", ["redis", "memory://"])
def test_what_grows_is_told_from_what_only_waits(url: str, well_kept: RealServer, monkeypatch: pytest.MonkeyPatch):
    shop = made(well_kept.url if url == "redis" else url)
    go_on = threading.Event()

    @shop.subscribe("orders", concurrency=1)
    def charge(order: int) -> None:
        go_on.wait(WITHIN)

    def publish(count: int) -> None:
        with shop.batch() as batch:
            for number in range(count):
                batch.publish("orders", number)

    publish(1_200)
    with Worker(shop, threads=1) as worker:
        while not shop.inspector.consumers(shop.subscriptions()[0].key):
            assert not worker.wait(0.02)
        monkeypatch.setattr("pubsub_core.doctor._APART", 0.1)
        assert "growing" not in named(examine(shop))

        groups = shop.inspector.groups

        def groups_while_more_come(topic: str) -> Sequence[GroupState]:
            publish(300)
            return groups(topic)

        monkeypatch.setattr(shop.runtime.broker, "groups", groups_while_more_come)
        finding = named(examine(shop))["growing"]
        monkeypatch.undo()
        go_on.set()
    shop.close()

    assert finding.severity == "warning"
    assert "'billing' of topic 'orders'" in finding.what
    assert "more each second" in finding.what
    assert ("MiB more" in finding.why) == (url == "redis")


def test_a_group_whose_workers_are_behind_is_found(shop: PubSub):
    go_on = threading.Event()

    @shop.subscribe("orders", concurrency=1)
    def charge(order: int) -> None:
        go_on.wait(WITHIN)

    with shop.batch() as batch:
        for number in range(10_002):
            batch.publish("orders", number)
    with Worker(shop, threads=1) as worker:
        while not shop.inspector.consumers(shop.subscriptions()[0].key):
            assert not worker.wait(0.02)
        findings = named(examine(shop))
        go_on.set()

    assert "for group 'billing' of topic 'orders' 10,00" in findings["behind"].what
    assert "growing" not in findings


def test_messages_that_were_dropped_are_told(shop: PubSub):
    readings = shop.topic("readings", max_backlog=2, overflow="drop_oldest")

    @readings.subscribe()
    def read(number: int) -> None: ...

    work(shop)
    for number in range(5):
        readings.publish(number)

    assert "of topic 'readings' 3 messages were dropped" in named(examine(shop))["dropped"].what


def test_what_messages_take_is_told_of_a_topic_with_many(shop: PubSub, monkeypatch: pytest.MonkeyPatch):
    fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'payload', string.rep('x', 200)) end"
    declared(shop)
    work(shop)
    with Redis.from_url(shop.settings.url) as client:
        client.eval(fill, 1, f"{shop.settings.namespace}:{{orders}}", 100_000)

    note = named(examine(shop))["large topic"]
    monkeypatch.setattr("pubsub_core.doctor._LARGE", 1024)
    warning = named(examine(shop))["large topic"]

    assert (note.severity, warning.severity) == ("note", "warning")
    (each,) = re.findall(r"100,000 messages of about (\d+) bytes", note.what)
    (million,) = re.findall(r"another million would take (\d+) MiB", note.what)
    assert 200 < int(each) < 300
    assert int(million) == pytest.approx(int(each) * 1e6 / 1024**2, abs=1)


def test_what_grows_while_nobody_consumes_it_is_told_once(shop: PubSub):
    declared(shop)
    work(shop)
    with shop.batch() as batch:
        for number in range(1_200):
            batch.publish("orders", number)
    assert {"no workers"} == named(examine(shop)).keys() - {"no replica"}


def test_a_name_without_a_group_is_orphaned(shop: PubSub):
    declared(shop)
    work(shop)
    (key,) = [one.key for one in shop.subscriptions()]
    shop.inspector.remove_group(key)
    assert "'orders'" in named(examine(shop))["orphaned name"].what


def test_what_no_list_has_is_found_and_can_be_removed(shop: PubSub, monkeypatch: pytest.MonkeyPatch):
    declared(shop, fails=True)
    shop.publish("orders", 1)
    work(shop)
    shop.publish("oders", 1)  # codespell:ignore
    (key,) = [one.key for one in shop.subscriptions()]
    stranger = PubSub(shop.settings.url, group="shipping", namespace=shop.settings.namespace)
    with Redis.from_url(shop.settings.url) as client:
        client.xgroup_destroy(f"{shop.settings.namespace}:{{orders}}", "billing")

    findings = named(examine(stranger))

    assert "'oders'" in findings["orphaned topic"].what
    assert "purge oders --everything" in findings["orphaned topic"].mend
    assert "'billing' of topic 'orders' is gone" in findings["orphaned keys"].what
    assert "orphaned topic" not in named(examine(shop))  # which declares it, by publishing
    monkeypatch.setenv("PUBSUB_NAMESPACE", shop.settings.namespace)
    command = ["remove-group", *key, "--url", shop.settings.url]
    result = CliRunner().invoke(pubsub_command, command, input="y\n")
    assert (result.exit_code, "what is left of group 'billing'" in result.output) == (0, True)
    assert CliRunner().invoke(pubsub_command, [*command, "--yes"]).exit_code == 4
    assert "orphaned keys" not in found(stranger)


def test_a_search_that_is_not_permitted_or_too_long_is_noted(shop: PubSub, monkeypatch: pytest.MonkeyPatch):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(shop.settings.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-scan")
        pubsub = made(shop.settings.url.replace("redis://", f"redis://{user}:pw@"))
        finding = found(pubsub)["not permitted to look"]
        client.acl_deluser(user)
    assert (finding.severity, finding.mend.rpartition("+")[2]) == ("note", "scan")

    for number in range(20):
        shop.publish(f"topic-{number}", 1)
    monkeypatch.setattr("pubsub_redis.inspector._KEYS", 1)
    monkeypatch.setattr("pubsub_redis.inspector._KEYS_IN_ALL", 2)
    assert named(examine(shop))["not all looked at"].severity == "note"


def test_a_topic_that_is_not_cleaned_up_is_found(shop: PubSub):
    """Of which every group has settled far more than the server keeps beside."""
    declared(shop)
    work(shop)
    stream = f"{shop.settings.namespace}:{{orders}}"
    with Redis.from_url(shop.settings.url) as client, client.pipeline() as pipe:
        client.delete(stream)
        for number in range(1, 400):
            pipe.xadd(stream, {"a": "b"}, id=f"1000-{number}")
        pipe.xgroup_create(stream, "billing", "$")
        pipe.execute()
        assert "not removed" not in named(examine(shop))
        for number in range(400, 800):
            pipe.xadd(stream, {"a": "b"}, id=f"1000-{number}")
        pipe.execute()
        assert "not removed" not in named(examine(shop))  # the group has not settled them
        client.xgroup_setid(stream, "billing", "$")
    shop.publish("orders", 1)

    finding = named(examine(shop))["not removed"]

    assert "'orders' holds messages since 1970" in finding.what
    assert finding.mend.endswith("purge orders")


# The command


def test_the_exit_code_is_that_of_the_worst(well_kept: RealServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PUBSUB_APP", raising=False)
    monkeypatch.delenv("FLASK_APP", raising=False)
    monkeypatch.setenv("PUBSUB_NAMESPACE", f"test-{uuid.uuid4().hex}")

    def doctor(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(pubsub_command, ["doctor", *words])
        return result.exit_code, result.output

    code, text = doctor("--url", well_kept.url)
    assert (code, text.splitlines()[0]) == (0, "NOTE: the server has no replica")
    code, text = doctor("--url", "redis://127.0.0.1:1/0", "--json")
    assert (code, [one["severity"] for one in json.loads(text)]) == (6, ["error"])
    with Redis.from_url(well_kept.url) as client:
        client.config_set("appendfsync", "no")
        code, text = doctor("--url", well_kept.url)
        client.config_set("appendfsync", "everysec")
    assert code == 5
    assert "  why:  " in text
    assert "  mend: CONFIG SET appendfsync everysec" in text


@pytest.mark.parametrize("status", ["aof_last_write_status", "rdb_last_bgsave_status"])
def test_a_disk_that_cannot_be_written_is_an_error(status: str):
    info = f"role:master\r\n{status}:err\r\n".encode()

    def ask(command: tuple[object, ...]) -> object:
        return info if command == ("INFO",) else [] if command[0] == "CONFIG" else b"OK"

    finding = named([*RedisExaminer(ask, "pubsub").findings()])["cannot write to disk"]
    assert (finding.severity, status in finding.what) == ("error", True)


def test_the_guide_lists_every_finding():
    found = set()
    for module in (pubsub_core.doctor, pubsub_redis.examiner):
        for call in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                found.add(ast.literal_eval(call.args[1]))
    table = GUIDE.read_text().partition("## What the doctor looks for")[2].partition("##")[0]

    assert len(found) > 20
    assert {name for name in found if f"`{name}`" not in table} == set()


def test_an_old_server_is_too_old():
    def ask(command: tuple[object, ...]) -> object:
        return b"redis_version:6.2.14\r\n" if command == ("INFO",) else [] if command[0] == "CONFIG" else b"OK"

    finding = named([*RedisExaminer(ask, "pubsub").findings()])["version"]
    assert (finding.severity, "7.0 or newer" in finding.what) == ("error", True)
