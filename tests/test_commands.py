"""The commands that look and mend: what they show, what they do, and how they end. On a server, by both doors."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from pubsub_core import PubSub, SubscriptionKey, Worker
from pubsub_core.cli import main as pubsub_command
from pubsub_core.commands import COMMANDS
from pubsub_core.commands.frame import moment, seconds_in_words
from pubsub_core.target import load_target
from pubsub_flask.commands import pubsub as flask_pubsub
from pubsub_redis.embedded import stop_server
from tests.servers import RealServer
from tests.test_docs import free_port, listens
from tests.waiting import until

WITHIN = 10.0
APP = "tests.apps.operated"
KEY = SubscriptionKey("orders", "billing")


@dataclass
class Shop:
    """An application, and its commands."""

    pubsub: PubSub
    module: ModuleType

    def run(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        """Run a command, which must end with `code`; return what it writes."""
        result = self.result(*words, stdin=stdin)
        assert result.exit_code == code, result.output + result.stderr
        return result.output

    def json(self, *words: str, code: int = 0) -> Any:
        """Run a command with --json; return what it answers."""
        return json.loads(self.result_with(code, *words, "--json").stdout)

    def result_with(self, code: int, *words: str) -> Result:
        result = self.result(*words)
        assert result.exit_code == code, result.output + result.stderr
        return result

    def result(self, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(pubsub_command, [*words], input=stdin)

    def work(self) -> None:
        """Handle all that there is."""
        with Worker(self.pubsub, threads=2, burst=True) as worker:
            assert worker.wait(WITHIN)

    def kill_letters(self, *numbers: int) -> list[str]:
        """Have orders of these numbers end as dead letters; return their ids."""
        self.module.declined |= set(numbers)
        ids = [self.pubsub.publish("orders", {"order_id": number}) for number in numbers]
        self.work()
        return ids


@pytest.fixture
def shop(redis: RealServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("PUBSUB_URL", redis.url)
    monkeypatch.setenv("PUBSUB_NAMESPACE", f"test-{uuid.uuid4().hex}")
    monkeypatch.setenv("PUBSUB_APP", APP)
    sys.modules.pop(APP, None)
    pubsub = load_target(APP)
    yield Shop(pubsub, sys.modules[APP])
    pubsub.close()
    sys.modules.pop(APP, None)


# Help


def test_help_imports_nothing_that_takes_time():
    for door in ("pubsub_core.cli import main", "pubsub_flask.commands import pubsub as main"):
        code = textwrap.dedent(
            f"""
            import sys
            from {door}
            try:
                main(["--help"])
            finally:
                heavy = {{"redis", "hiredis", "flask", "rich", "pydantic", "croniter", "watchfiles", "asyncio"}}
                print("heavy:", *sorted(heavy & {{name.partition('.')[0] for name in sys.modules}}))
                print("commands:", *sorted(name for name in sys.modules if name.startswith("pubsub_core.commands")))
            """
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        *_, heavy, commands = ended.stdout.splitlines()
        assert (heavy, commands) == ("heavy:", "commands: pubsub_core.commands")  # the table, and no command


def every_command(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in every_command(command, context))


@pytest.mark.parametrize("group", [pubsub_command, flask_pubsub], ids=["pubsub", "flask pubsub"])
def test_every_command_says_what_it_does_shows_examples_and_lists_its_exit_codes(group: click.Group):
    with click.Context(group) as context:
        commands = dict(every_command(group, context))
    assert set(COMMANDS) <= set(commands)
    for name, command in commands.items():
        if isinstance(command, click.Group):
            assert command.help
            continue
        assert command.help, name
        assert command.epilog is not None, name
        assert "Exit codes:" in command.epilog, name
        assert "Example" in command.epilog, name


@pytest.mark.parametrize("group", [pubsub_command, flask_pubsub], ids=["pubsub", "flask pubsub"])
def test_every_command_has_json(group: click.Group):
    with click.Context(group) as context:
        commands = dict(every_command(group, context))
    for name, command in commands.items():
        if not isinstance(command, click.Group):
            assert "--json" in [word for one in command.params for word in one.opts], name


def test_the_application_is_named_by_an_option_but_where_the_guide_says_otherwise():
    guide = (Path(__file__).parent.parent / "docs/guides/operating.md").read_text()
    without = next(line for line in guide.replace("\n", " ").split(". ") if "without `--app`:" in line)
    with click.Context(pubsub_command) as context:
        for name, command in every_command(pubsub_command, context):
            if not isinstance(command, click.Group):
                has_option = any("--app" in one.opts for one in command.params)
                assert has_option is (f"`{name.split()[0]}`" not in without), name
                assert has_option is not any(one.name == "target" for one in command.params), name


def test_every_answer_in_json_is_json(shop: Shop, tmp_path: Path):
    """One document, or one a line of what goes on."""
    died, other, _third = shop.kill_letters(1, 3, 5)
    later = shop.pubsub.publish("orders", {"order_id": 2}, delay=3600)
    file = tmp_path / "orders.jsonl"
    file.write_text('{"order_id": 6}\n{"order_id": 8}\n')
    schemas = ("--dir", str(tmp_path))
    with Worker(shop.pubsub, threads=1):  # which names the schedules
        until(shop.pubsub.inspector.schedules)
    ran = set()
    for line in (
        "publish orders {}", f"publish orders --file {file} --lines", "status", "topics", "groups", "groups orders",
        "workers", "workers --in-hand", "lag orders", "tail orders", f"show {died}", "dead list orders",
        f"dead show orders {died}", f"dead replay orders --yes --id {died}", f"dead discard orders --yes --id {other}",
        "schedules list", "schedules run yearly", "schedules pause yearly", "schedules resume yearly", "pause orders",
        "seek orders earliest --yes", "resume orders", "purge orders --yes", f"cancel orders {later} --yes",
        "remove-group orders billing --yes", "config", "doctor",
    ):  # fmt: skip
        words = ['{"order_id": 4}' if word == "{}" else word for word in line.split()]
        result = shop.result(*words, "--json")
        assert result.exit_code in ((5, 6) if line == "doctor" else (0,)), line + result.output
        assert result.stdout, line
        for one in result.stdout.splitlines():
            json.loads(one)
        ran.add(" ".join(words[:2]) if words[0] in ("dead", "schedules") else words[0])
    for line in ("schema export", "schema check", "asyncapi", "asyncapi --output"):
        words = [*line.split(), *([str(tmp_path / "api.json")] if "--output" in line else [])]
        result = shop.result(*words, *schemas, "--json")
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)
        ran.add(line)

    with click.Context(pubsub_command) as context:
        commands = {name for name, one in every_command(pubsub_command, context) if not isinstance(one, click.Group)}
    assert commands - ran == {"worker", "dev"}  # which run until they are stopped: see tests/test_logs.py, and below


def test_the_verdicts_on_schemas_are_told_in_json(shop: Shop, tmp_path: Path):
    (verdict,) = json.loads(shop.result("schema", "check", "--dir", str(tmp_path), "--json").stdout)

    assert (verdict["topic"], verdict["version"], verdict["summary"]) == ("orders", 1, "not exported")
    assert verdict["findings"][0]["fix"] == "Run `pubsub schema export`, and commit what it writes."


def test_the_examples_of_the_help_can_be_parsed(shop: Shop):
    del shop  # for its environment
    with click.Context(pubsub_command) as context:
        commands = dict(every_command(pubsub_command, context))
    count = 0
    for name, command in commands.items():
        examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  pubsub ")]
        for line in examples:
            words = shlex.split(line)[1 + len(name.split()) :]
            with command.make_context(name, [word.replace("orders.jsonl", __file__) for word in words]):
                count += 1
    assert count >= len(COMMANDS)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pubsub de", "plain,dead"),
        ("pubsub de", "plain,dev"),
        ("pubsub dead re", "plain,replay"),
        ("pubsub seek --f", "plain,--force"),
        ("flask pubsub de", "plain,dev"),
        ("flask pubsub schedules r", "plain,run"),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, completed: str):
    program, *words = typed.split()
    environment = {
        **os.environ,
        f"_{program.upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words)),
    }
    path = Path(sys.executable).parent / program
    ended = subprocess.run([path], env=environment, capture_output=True, text=True, check=True)
    assert completed in ended.stdout.splitlines()


# Where the answer goes

PROGRAMS = pytest.mark.parametrize(
    "program", [["pubsub"], ["flask", "--app", "tests.apps.operated_site", "pubsub"]], ids=["pubsub", "flask pubsub"]
)


@PROGRAMS
@pytest.mark.parametrize("words", ["status", "groups --json", "--help", "dead --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_cannot_be_written_is_told_in_a_line(
    shop: Shop, program: list[str], words: str, unbuffered: str
):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [Path(sys.executable).parent / program[0], *program[1:], *words.split()],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: the answer could not be written to stdout: No space left on device. ")


@PROGRAMS
@pytest.mark.parametrize("words", ["status", "groups --json", "--help", "tail orders --follow"])
def test_an_answer_that_nobody_reads_any_more_ends_the_command_without_a_word(
    shop: Shop, program: list[str], words: str
):
    shop.pubsub.publish("orders", {"order_id": 1})
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        ended = subprocess.run(
            [Path(sys.executable).parent / program[0], *program[1:], *words.split()],
            check=False, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=WITHIN,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (141, "")


def test_an_error_of_the_application_is_not_taken_for_one_of_the_output(shop: Shop, tmp_path: Path):
    (tmp_path / "broken_app.py").write_text("raise OSError(28, 'No space left on device')\n")
    ended = subprocess.run(
        [Path(sys.executable).parent / "pubsub", "status", "--app", "broken_app"],
        check=False, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "broken_app.py" in ended.stderr
    assert "could not be written" not in ended.stderr


# Looking


def test_status_tells_of_what_waits_and_of_what_died(shop: Shop):
    assert "no group is known yet" in shop.run("status")
    assert shop.json("status")["remarks"] == []
    early = shop.pubsub.publish("orders", {"order_id": 2})
    (remark,) = shop.json("status")["remarks"]
    assert remark == "orders / billing: the topic has 1 messages, and no worker has made the group yet"
    assert shop.json("show", early)["groups"] == []
    shop.run("purge", "orders", "--everything", "--yes")
    shop.kill_letters(1, 3)
    shop.pubsub.publish("orders", {"order_id": 2})
    shop.pubsub.publish("orders", {"order_id": 4}, delay=3600)

    text, facts = shop.run("status"), shop.json("status")

    assert "orders / billing: 2 dead letters" in text
    assert "orders / billing: 1 messages wait, and no worker consumes it" in text
    assert "yearly" in text
    assert "delayed: 1" in text
    (group,) = [one for one in facts["groups"] if one["topic"] == "orders"]
    assert (group["waiting"], group["dead"]) == ({"at_least": 1, "is_exact": True}, 2)
    assert len(facts["remarks"]) == 2


def test_topics_groups_and_lag_are_listed(shop: Shop):
    shop.work()
    for number in range(3):
        shop.pubsub.publish("orders", {"order_id": number})

    assert [one["topic"] for one in shop.json("topics")] == ["orders", "yearly"]
    assert shop.json("topics")[0]["messages"] == 3
    assert shop.json("groups", "orders")[0]["waiting"]["at_least"] == 3
    assert shop.run("lag", "orders") == "3\n"
    assert "orders" in shop.run("groups")
    assert "there is no group 'nobody'" in shop.run("lag", "orders", "--group", "nobody", code=4)


def test_workers_tell_who_they_are_and_what_they_have_in_hand(shop: Shop):
    assert "no worker runs" in shop.run("workers")
    go_on, started = threading.Event(), threading.Event()

    @shop.pubsub.subscribe("slow")
    def wait(number: int) -> None:
        started.set()
        go_on.wait(WITHIN)

    message_id = shop.pubsub.publish("slow", 1)
    with Worker(shop.pubsub, threads=1) as worker:
        assert started.wait(WITHIN)
        (one,) = shop.json("workers")
        (held,) = shop.json("workers", "--in-hand")
        go_on.set()

    assert (one["worker"], one["pid"], one["in hand"], one["alive"]) == (worker.name, str(os.getpid()), 1, True)
    assert (held["message"], held["attempt"]) == (message_id, 1)
    assert held["handler"].endswith(".wait")
    assert held["for"] < WITHIN


def test_a_message_is_shown_with_how_it_stands(shop: Shop):
    (died,) = shop.kill_letters(1)
    waiting = shop.pubsub.publish("orders", {"order_id": 2}, headers={"a": "b\x1b[31m"})
    later = shop.pubsub.publish("orders", {"order_id": 3}, delay=3600)

    assert shop.json("show", died)["groups"][0]["stands"] == "dead letter"
    text = shop.run("show", waiting)
    assert '{"order_id":2,"total":1.0}' in text
    assert "waiting" in text
    assert "\x1b" not in text
    assert "no group has it yet" in shop.run("show", later)
    assert "never published, or is not kept" in shop.run("show", str(uuid.uuid4()), code=4)


def test_tail_shows_the_newest_messages_and_follows(shop: Shop):
    ids = [shop.pubsub.publish("orders", {"order_id": number}) for number in range(5)]

    lines = shop.run("tail", "orders", "-n", "2").splitlines()
    facts = [json.loads(line) for line in shop.run("tail", "orders", "--since", "1h", "--json").splitlines()]

    assert [line.split()[2] for line in lines] == ids[3:]
    assert [one["id"] for one in facts] == ids
    assert "is no moment" in shop.result_with(2, "tail", "orders", "--since", "soon").stderr


def test_who_may_not_ask_client_info_can_run_the_commands(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shop.kill_letters(1)
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(shop.pubsub.settings.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-client|info")
        monkeypatch.setenv("PUBSUB_URL", shop.pubsub.settings.url.replace("redis://", f"redis://{user}:pw@"))
        sys.modules.pop(APP)
        for words in ("status", "topics", "groups", "workers", "lag orders", "tail orders", "dead list orders"):
            shop.run(*words.split())
        published = shop.run("publish", "orders", '{"order_id": 2}').strip()
        assert published in shop.run("tail", "orders")
        client.acl_deluser(user)


def rewritten(shop: Shop, key: str) -> str:
    """Have somebody else write a key of the namespace, as no broker does; return its name."""
    name = f"{shop.pubsub.settings.namespace}:{key}"
    with Redis.from_url(shop.pubsub.settings.url) as client:
        client.delete(name)
        client.lpush(name, "not ours")
    return name


@pytest.mark.parametrize(
    ("key", "kind", "commands"),
    [
        ("{orders}", "stream", ["status", "topics", "groups", "groups orders", "workers"]),
        ("{orders}:delayed", "zset", ["status", "topics"]),
        ("{orders}:dropped", "string", ["status", "topics", "groups"]),
        ("{orders}:dead:billing", "stream", ["status", "groups"]),
        ("{yearly}:schedule", "hash", ["status", "schedules list"]),
    ],
)
def test_a_key_that_somebody_else_wrote_is_named_and_the_rest_is_shown(
    shop: Shop, key: str, kind: str, commands: list[str]
):
    with Worker(shop.pubsub, threads=1):  # which names the schedules
        until(shop.pubsub.inspector.schedules)
    name = rewritten(shop, key)
    for words in commands:
        result = shop.result_with(1, *words.split())
        assert f"Key {name!r} is of type list, not {kind}" in result.output, words
        assert "RENAME" in result.output, words
        if words not in ("workers", "groups orders", "schedules list"):
            assert any(line.startswith("yearly") for line in result.stdout.splitlines()), words
        json.loads(shop.result_with(1, *words.split(), "--json").stdout)
    findings = shop.json("doctor", code=6)
    assert any(name in one["what"] for one in findings if one["name"] == "cannot be looked at")
    if kind != "hash":
        assert any("'yearly'" in one["what"] for one in findings if one["name"] == "no workers")


@pytest.mark.parametrize("key", ["topics", "paused", "schedules"])
def test_a_key_that_all_topics_share_is_named_if_somebody_else_wrote_it(shop: Shop, key: str):
    shop.work()
    name = rewritten(shop, key)
    for words in ("status", "groups"):
        assert f"Key {name!r} is of type list, not " in shop.result_with(1, words).output


def test_a_message_is_found_past_a_topic_whose_key_somebody_else_wrote(shop: Shop):
    shop.work()
    other = shop.pubsub.publish("yearly", {})
    name = rewritten(shop, "{orders}")
    assert shop.json("show", other)["topic"] == "yearly"
    assert name in shop.result_with(1, "show", str(uuid.uuid4())).stderr


# Publishing


def test_a_message_is_published_if_it_fits(shop: Shop, tmp_path: Path):
    (message_id,) = shop.run("publish", "orders", '{"order_id": 7}', "--key", "k", "--header", "a=b").split()
    file = tmp_path / "order.json"
    file.write_text('{"order_id": 8}')
    shop.run("publish", "orders", "--file", str(file), "--delay", "3600")

    first, *_ = shop.pubsub.inspector.peek("orders")
    assert (first.id, first.key, dict(first.headers), first.payload) == (
        message_id, "k", {"a": "b"}, b'{"order_id":7,"total":1.0}',
    )  # fmt: skip
    assert shop.pubsub.inspector.topic("orders").delayed == 1
    assert "does not fit OrderPlaced" in shop.result_with(2, "publish", "orders", '{"order_id": "x"}').stderr
    assert "give a payload" in shop.result_with(2, "publish", "orders").stderr
    assert len(shop.pubsub.inspector.peek("orders")) == 1


def test_lines_are_published_up_to_one_that_does_not_fit(shop: Shop):
    lines = "".join(f'{{"order_id": {number}}}\n' for number in range(1200))
    assert "1,200 messages published" in shop.run("publish", "orders", "--file", "-", "--lines", stdin=f"{lines}\n")

    result = shop.result("publish", "orders", "--lines", stdin='{"order_id": 1}\n\n{"order": 2}\n')

    assert result.exit_code == 2
    assert "line 3 was not published" in result.stderr
    assert "1 messages were published before" in result.stderr
    assert shop.pubsub.inspector.topic("orders").messages == 1201


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--dedup", "k"], "--dedup is for one message"), (['{"order_id": 9}'], "--lines is for --file or stdin")],
)
def test_what_makes_no_sense_with_lines_is_refused(shop: Shop, words: list[str], why: str):
    result = shop.result("publish", "orders", "--lines", *words, stdin='{"order_id": 1}\n{"order_id": 2}\n')

    assert (result.exit_code, why in result.stderr) == (2, True)
    assert shop.pubsub.inspector.topic("orders").messages == 0


def test_a_byte_order_mark_is_passed_over_at_the_beginning_of_lines_and_nowhere_else(shop: Shop, tmp_path: Path):
    file = tmp_path / "orders.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"order_id": 1}\n{"order_id": 2}\n\xef\xbb\xbf{"order_id": 3}\n')

    result = shop.result_with(2, "publish", "orders", "--file", str(file), "--lines")

    assert "line 3 was not published" in result.stderr
    assert "2 messages were published before" in result.stderr
    assert [json.loads(one.payload)["order_id"] for one in shop.pubsub.inspector.peek("orders")] == [1, 2]
    file.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf{}\n")
    assert "line 1 was not" in shop.result_with(2, "publish", "orders", "--file", str(file), "--lines").stderr


def test_a_topic_that_nobody_declares_or_reads_is_warned_of_and_published_to(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    warning = "Warning: the application does not declare topic 'ordres', and no group reads it: "  # codespell:ignore
    one = shop.result_with(0, "publish", "ordres", "1")  # codespell:ignore
    sys.modules.pop(APP)  # as another process has it, which did not publish yet
    file = tmp_path / "numbers"
    file.write_text("2\n3\n")
    lines = shop.result_with(0, "publish", "ordres", "--file", str(file), "--lines", "--json")  # codespell:ignore
    for result in (one, lines):
        assert result.stderr.startswith(warning)
        assert "Did you mean 'orders'?" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert shop.pubsub.inspector.peek("ordres")[0].id == one.stdout.strip()  # codespell:ignore
    assert json.loads(lines.stdout) == {"count": 2}

    assert (
        shop.result_with(0, "publish", "orders", '{"order_id": 1}').stderr == ""
    )  # nobody reads it, yet it is declared
    shop.work()
    monkeypatch.delenv("PUBSUB_APP")
    assert shop.result_with(0, "publish", "orders", "{}").stderr == ""  # read, though nobody here declares it
    misspelt = shop.result_with(0, "publish", "order", "{}").stderr
    assert "nobody is known to consume topic 'order', and no group reads it" in misspelt
    assert "Did you mean 'orders'?" in misspelt


def test_who_may_only_publish_is_not_warned_nor_kept_from_it(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    user = f"user-{uuid.uuid4().hex}"
    with Redis.from_url(shop.pubsub.settings.url) as client:
        client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-smembers", "-xinfo")
        monkeypatch.delenv("PUBSUB_APP")
        url = shop.pubsub.settings.url.replace("redis://", f"redis://{user}:pw@")
        assert shop.result_with(0, "publish", "order", "1", "--url", url).stderr == ""
        client.execute_command("ACL", "SETUSER", user, "+xinfo")
        told = shop.result_with(0, "publish", "order", "1", "--url", url).stderr
        client.acl_deluser(user)
    assert "no group reads it" in told


# Dead letters


def test_dead_letters_are_listed_shown_and_replayed_and_nothing_is_lost(shop: Shop):
    first, second = shop.kill_letters(1, 3)

    assert {one["message"] for one in shop.json("dead", "list", "orders")} == {first, second}
    text = shop.run("dead", "show", "orders", first)
    assert "ValueError: the card is declined" in text
    assert "Traceback" in text
    assert "no dead letter" in shop.result_with(4, "dead", "show", "orders", str(uuid.uuid4())).stderr
    asked = shop.result("dead", "replay", "orders", stdin="n\n")
    assert asked.exit_code == 1
    assert "delivers again 2 dead letters" in asked.stderr
    assert len(shop.pubsub.dead_letters("orders").newest()) == 2
    shop.module.declined.clear()
    assert shop.json("dead", "replay", "orders", "--yes") == {"replayed": 2}
    shop.work()
    (state,) = shop.pubsub.inspector.groups("orders")
    assert (state.dead, state.pending, state.lag.at_least) == (0, 0, 0)


def test_dead_letters_are_chosen_by_id_error_and_reason(shop: Shop):
    first, second, third = shop.kill_letters(1, 3, 5)

    assert shop.json("dead", "discard", "orders", "--yes", "--error", "KeyError") == {"discarded": 0}
    assert shop.json("dead", "discard", "orders", "--yes", "--id", first) == {"discarded": 1}
    assert {one.message.id for one in shop.pubsub.dead_letters("orders")} == {second, third}
    chosen = ("--error", "ValueError", "--reason", "retries exhausted")
    assert shop.json("dead", "discard", "orders", "--yes", *chosen) == {"discarded": 2}


# Mending


def test_a_group_is_paused_and_resumed(shop: Shop):
    shop.work()
    shop.run("pause", "orders")
    shop.pubsub.publish("orders", {"order_id": 2})
    shop.work()
    assert shop.run("lag", "orders") == "1\n"
    assert "is paused; 1 messages wait" in shop.run("status")
    shop.run("resume", "orders")
    shop.work()
    assert shop.run("lag", "orders") == "0\n"


@pytest.mark.parametrize("words", ["tail", "groups", "purge --yes"])
def test_a_topic_that_is_misspelt_is_told(shop: Shop, words: str):
    shop.run(*words.split(), "yearly")  # which is declared, and was never published
    assert "there is no topic 'order'. Did you mean 'orders'?" in shop.result_with(4, *words.split(), "order").stderr
    shop.pubsub.publish("misspelt", 1)
    shop.run(*words.split(), "misspelt")


@pytest.mark.parametrize("backend", ["redis", "memory"])
def test_a_pause_that_comes_before_its_group_is_shown(shop: Shop, monkeypatch: pytest.MonkeyPatch, backend: str):
    if backend == "memory":
        monkeypatch.setenv("PUBSUB_URL", f"memory://{uuid.uuid4().hex}")
    held = PubSub()  # what is in memory is gone with the last who has it
    held.inspector.topics()
    remark = "orders / billing is paused, and no worker has made the group yet: the pause holds when one does. "
    assert "is paused: no worker has made it yet" in shop.run("pause", "orders")

    assert shop.json("status")["remarks"] == [f"{remark}To go on: resume orders --group billing"]
    assert f"! {remark}" in shop.result_with(0, "groups").stderr
    assert f"! {remark}" in shop.result_with(0, "groups", "orders", "--json").stderr
    assert "is paused" not in shop.result_with(0, "groups", "yearly").stderr
    findings = json.loads(shop.result("doctor", "--json").stdout)
    assert [one["what"] for one in findings if one["name"] == "paused"] == [
        "group 'billing' of topic 'orders' is paused, and no worker has made it yet"
    ]
    monkeypatch.delenv("PUBSUB_APP")
    shop.run("resume", "orders", "--group", "billing")  # who paused it may be without the application
    assert shop.json("status")["remarks"] == []
    held.close()


def test_a_group_is_moved_after_a_question(shop: Shop):
    shop.pubsub.publish("orders", {"order_id": 2})
    shop.work()

    asked = shop.result("seek", "orders", "earliest", stdin="n\n")
    assert asked.exit_code == 1
    assert "This moves group 'billing'" in asked.stderr
    assert shop.run("lag", "orders") == "0\n"
    shop.run("seek", "orders", "1h", "--yes")
    assert shop.run("lag", "orders") == "1\n"
    shop.run("seek", "orders", "latest", "--yes")
    assert shop.run("lag", "orders") == "0\n"
    for wrong in ("yesterday", "999999999999d", "0001-01-01"):
        assert "is no place" in shop.result_with(2, "seek", "orders", wrong, "--yes").stderr
    for later in ("9999-12-31T23:59Z", "253402300799000-0"):
        assert "lies in the future" in shop.result_with(2, "seek", "orders", later, "--yes").stderr
    shop.pubsub.publish("orders", {"order_id": 4})
    assert shop.run("lag", "orders") == "1\n"
    assert "there is no group" in shop.result_with(4, "seek", "orders", "latest", "--group", "nobody", "--yes").stderr


def test_a_group_that_is_consumed_is_not_moved(shop: Shop):
    with Worker(shop.pubsub, threads=1):
        until(lambda: shop.json("workers"))
        result = shop.result_with(1, "seek", "orders", "earliest", "--yes")
    assert "pause it, or stop its workers first" in result.stderr


def test_messages_are_purged_after_a_question(shop: Shop):
    shop.pubsub.publish("orders", {"order_id": 2})
    shop.work()
    shop.pubsub.publish("orders", {"order_id": 4})

    assert "what all groups settled" in shop.result("purge", "orders", stdin="n\n").stderr
    assert shop.json("purge", "orders", "--yes") == {"deleted": 1}
    asked = shop.result("purge", "orders", "--everything", stdin="n\n").stderr
    assert "all 1 messages" in asked
    assert "billing" in asked
    assert shop.json("purge", "orders", "--everything", "--yes") == {"deleted": 1}


def test_a_group_is_removed_and_a_message_cancelled(shop: Shop):
    shop.kill_letters(1)
    assert "1 dead letters" in shop.result("remove-group", "orders", "billing", stdin="n\n").stderr
    shop.run("remove-group", "orders", "billing", "--yes")
    assert not shop.pubsub.inspector.groups("orders")
    later = shop.pubsub.publish("orders", {"order_id": 3}, delay=3600)
    asked = shop.result("cancel", "orders", later, stdin="n\n")
    assert asked.exit_code == 1
    assert f"deletes message {later}" in asked.stderr
    assert "(in 60 min)" in asked.stderr
    assert shop.pubsub.inspector.topic("orders").delayed == 1
    shop.run("cancel", "orders", later, "--yes")
    assert shop.pubsub.inspector.topic("orders").delayed == 0
    shop.run("cancel", "orders", later, "--yes", code=4)


def test_a_message_that_is_due_later_than_a_calendar_knows_is_shown_and_cancelled(shop: Shop):
    shop.work()
    (message_id,) = shop.run("publish", "orders", '{"order_id": 3}', "--delay", "1e300").split()
    assert shop.json("show", message_id)["due_at"].startswith("9999-12-31")
    assert shop.pubsub.inspector.delayed("orders")[0].message.id == message_id
    assert "is cancelled" in shop.run("cancel", "orders", message_id, "--yes")


def test_schedules_are_listed_run_paused_and_resumed(shop: Shop):
    (before,) = shop.json("schedules", "list")
    assert (before["schedule"], before["last"]) == ("yearly", None)
    assert "Did you mean 'yearly'?" in shop.result_with(4, "schedules", "run", "yearl").stderr
    with Worker(shop.pubsub, threads=1):
        until(shop.pubsub.inspector.schedules)
    (message_id,) = shop.run("schedules", "run", "yearly").split()
    message = shop.pubsub.inspector.peek("yearly")[-1]
    assert (message.id, message.source) == (message_id, "cron")
    shop.run("schedules", "pause", "yearly")
    (paused,) = shop.json("schedules", "list")
    assert (paused["paused"], paused["next"]) == (True, None)
    shop.run("schedules", "resume", "yearly")
    (after,) = shop.json("schedules", "list")
    assert after["next"].endswith("-01-01T00:00:00+00:00")
    shop.run("schedules", "pause", "nightly", code=4)


# Where, and how it ends


def test_the_settings_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PUBSUB_APP", raising=False)
    monkeypatch.delenv("FLASK_APP", raising=False)
    result = CliRunner().invoke(pubsub_command, ["config", "--json", "--url", "redis://me:hush@nowhere:1/0"])
    assert json.loads(result.stdout)["PUBSUB_URL"] == "redis://***@nowhere:1/0"


@pytest.mark.parametrize("door", [pubsub_command, flask_pubsub])
def test_a_command_that_is_misspelt_is_told(door: click.Command):
    result = CliRunner().invoke(door, ["stats"])
    assert result.exit_code == 2
    assert "No such command 'stats'. Did you mean 'status'?" in result.stderr


def test_without_an_application_a_url_will_do(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shop.work()
    monkeypatch.delenv("PUBSUB_APP")
    assert [one["topic"] for one in shop.json("groups")] == ["orders", "yearly"]
    monkeypatch.delenv("PUBSUB_URL")
    assert "which broker?" in shop.result_with(2, "groups").stderr


def test_without_an_application_the_group_is_the_only_one_or_has_to_be_said(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    shop.kill_letters(1)
    monkeypatch.delenv("PUBSUB_APP")

    assert len(shop.json("dead", "list", "orders")) == 1
    assert shop.run("lag", "orders") == "0\n"
    assert shop.json("config")["PUBSUB_GROUP"] == ""
    other = PubSub(group="shipping")
    other.subscribe("orders")(lambda order: None)
    with Worker(other, threads=1, burst=True) as worker:
        assert worker.wait(WITHIN)
    other.close()
    refused = shop.result_with(2, "dead", "list", "orders")
    assert "which group of topic 'orders'? Say --group; it has billing, shipping" in refused.stderr
    monkeypatch.setenv("PUBSUB_GROUP", "billing")
    assert len(shop.json("dead", "list", "orders")) == 1


def test_a_group_that_is_misspelt_is_told(shop: Shop):
    shop.kill_letters(1)
    for words in ("dead list", "dead replay", "dead discard", "pause", "resume", "lag", "seek"):
        place = ["latest"] if words == "seek" else []
        result = shop.result_with(4, *words.split(), "orders", *place, "--group", "biling")  # codespell:ignore
        assert "Did you mean 'billing'?" in result.stderr, words
    assert "is paused" not in shop.run("status")


def test_a_group_that_is_gone_still_has_its_dead_letters(shop: Shop):
    shop.kill_letters(1)
    with Redis.from_url(shop.pubsub.settings.url) as client:
        client.xgroup_destroy(f"{shop.pubsub.settings.namespace}:{{orders}}", "billing")
    assert len(shop.json("dead", "list", "orders")) == 1


def test_a_broker_that_is_away_ends_with_3(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PUBSUB_APP", raising=False)
    result = CliRunner().invoke(pubsub_command, ["status", "--url", "redis://127.0.0.1:1/0"])
    assert result.exit_code == 3
    assert "127.0.0.1:1" in result.stderr


def test_the_commands_of_flask_serve_its_app(redis: RealServer, tmp_path: Path):
    (tmp_path / "shop.py").write_text(
        textwrap.dedent(
            f"""
            from flask import Flask
            from pubsub_flask import PubSub

            app = Flask(__name__)
            app.config.update(PUBSUB_URL={redis.url!r}, PUBSUB_NAMESPACE="flask-{uuid.uuid4().hex}")
            pubsub = PubSub(app)

            @pubsub.subscribe("orders")
            def charge(order): ...
            """
        )
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flask", "--app", "shop", "pubsub", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    published = run("publish", "orders", "1")
    topics = run("topics", "--json")

    assert published.returncode == 0, published.stderr
    assert json.loads(topics.stdout)[0]["messages"] == 1


FLASK_DEV = [sys.executable, "-m", "flask", "--app", "shop", "pubsub", "dev"]
PUBSUB_DEV = [sys.executable, "-m", "pubsub_core", "dev"]
IN_DEV = 30.0


@contextlib.contextmanager
def dev_of(program: str, command: list[str], directory: Path) -> Iterator[Path]:
    """Run dev for as long as the context lasts; it must end without an error, and leave nothing. Gives its output."""
    (directory / "shop.py").write_text(textwrap.dedent(program))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PUBSUB_", "FLASK_"))}
    log = directory / "dev.log"
    with contextlib.ExitStack() as stack:
        stack.callback(stop_server, directory / ".pubsub")
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        stack.callback(kill_group, process)
        yield log
        process.terminate()
        assert process.wait(IN_DEV) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


WEB_SHOP = """
    from flask import Flask
    from pubsub_flask import PubSub

    app = Flask(__name__)
    pubsub = PubSub(app)

    @pubsub.subscribe("orders")
    def charge(order):
        print("charged", order.payload)

    @app.get("/")
    def place():
        return pubsub.publish("orders", 7)
    """


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (FLASK_DEV, "worker | charged 7"),
        ([*FLASK_DEV, "--json"], '{"from": "worker", "line": "charged 7"}'),
        ([*PUBSUB_DEV, "shop"], "worker | charged 7"),
    ],
)
def test_dev_runs_web_worker_and_server_until_it_is_told_to_stop(tmp_path: Path, command: list[str], line: str):
    port = free_port()
    with dev_of(WEB_SHOP, [*command, "--port", str(port)], tmp_path) as log:
        until(lambda: listens(port), within=IN_DEV)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        until(lambda: line in log.read_text(), within=IN_DEV)


def test_dev_without_a_web_application_runs_the_worker_with_its_schedules_and_the_server(tmp_path: Path):
    program = """
        from pubsub_core import PubSub

        pubsub = PubSub(group="billing")

        @pubsub.every(0.1)
        def tick():
            print("ticked")
        """
    with dev_of(program, [*PUBSUB_DEV, "shop"], tmp_path) as log:
        until(lambda: "worker | ticked" in log.read_text(), within=IN_DEV)
    assert "dev | worker with reload, broker redis+embedded:///./.pubsub" in log.read_text()
    assert "web" not in log.read_text()


def test_dev_refuses_an_application_that_keeps_its_messages_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "alone.py").write_text("from pubsub_core import PubSub\npubsub = PubSub('memory://')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUBSUB_URL", "memory://")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(pubsub_command, ["dev", "alone"])
    sys.modules.pop("alone", None)
    assert result.exit_code == 2
    assert "the application itself names memory://" in result.stderr


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# The words


def test_moments_may_be_said_in_several_ways():
    now = datetime(2030, 1, 2, 12, tzinfo=UTC)
    assert (now - moment("90s", now)).total_seconds() == 90
    assert (now - moment("1.5h", now)).total_seconds() == 5400
    assert (now - moment("7d", now)).days == 7
    assert (now - moment("2030-01-02T11:00", now)).total_seconds() == 3600
    for wrong in ("", "soon", "h", "-1h"):
        with pytest.raises(ValueError):
            moment(wrong, now)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")],
)
def test_durations_are_said_in_words(seconds: float, words: str):
    assert seconds_in_words(seconds) == words
