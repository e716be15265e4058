"""The benchmarks run, and their table says what was measured. How fast anything is, is not for tests to say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cpu, parts, peers, rows
from benchmarks.__main__ import GROUPS, MARKER, NAMES, QUICK, empty
from benchmarks.rows import Bench, Group, Result, Row, at_least, at_most, no_more_than
from benchmarks.tally import Tally, noting
from tests.servers import redis_server

ROOT = Path(__file__).parents[1]
WITHIN = 100


def benchmarks(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False)


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.rows[0].name)
def test_each_row_is_measured(group, server, monkeypatch):
    monkeypatch.chdir(ROOT)  # whose benchmarks the processes import
    bench = Bench(server.url, server.pid, QUICK)

    results = rows.measure(group, bench, 1, group.rows, lambda: empty(server.url), lambda text: None)

    for result in results:
        assert len(result.ours) == 1
        assert len(result.beside) == (result.row.beside is not None)
        assert result.is_met in ((None,) if result.row.target is None else (True, False))


def test_rows_have_names_of_their_own():
    assert len(set(NAMES)) == len(NAMES)


def test_the_table_replaces_what_stood_below_its_marker(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Speed\n\n{MARKER}\n\nold")

    ended = benchmarks("--quick", "--only", "server-memory", "--markdown", page, "--json", tmp_path / "found.json")

    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["server-memory"]
    assert {"cpu", "kernel", "load", "others"} <= set(found["surroundings"])
    text = page.read_text()
    assert text.startswith(f"# Speed\n\n{MARKER}\n\nPython ")
    assert "old" not in text
    assert "| server memory per message of 205 bytes (bytes) |" in text


def test_a_row_that_is_not_there_is_refused_with_those_that_are():
    ended = benchmarks("--only", "drian")

    assert ended.returncode == 2
    assert "there is no row drian. The rows: drain," in ended.stderr


@pytest.mark.parametrize(
    ("target", "ours", "beside", "is_met"),
    [
        (at_least(1.4), [14, 1, 99], [10, 10, 10], True),
        (at_least(1.4), [13, 13, 13], [10, 10, 10], False),
        (at_most(1.3), [13, 13, 13], [10, 10, 10], True),
        (at_most(1.3), [14, 14, 14], [10, 10, 10], False),
        (no_more_than(20), [19, 21, 20], [], True),
        (no_more_than(20), [21, 21, 20], [1, 1, 1], False),
        (at_least(1.4), [], [10], None),
        (None, [1], [1], None),
    ],
)
def test_a_target_is_met_by_the_medians(target, ours, beside, is_met):
    row = Row("row", "a row", "messages/s", "ours", "redis-py", target)

    assert Result(row, ours, beside).is_met is is_met


def test_the_sides_take_turns_and_only_those_of_the_wanted_rows_run():
    ran = []

    def side(name):
        def run(bench: Bench) -> tuple[float, float]:
            ran.append(name)
            return len(ran), -len(ran)

        return run

    wanted = Row("wanted", "wanted", "s", "a", "b", place=1)
    group = Group({name: side(name) for name in "abc"}, [wanted, Row("other", "other", "s", "c")], rounds=3)
    emptied = []

    [result] = rows.measure(
        group, Bench("redis://nowhere", 0), 9, [wanted], lambda: emptied.append(1), lambda text: None
    )

    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert len(emptied) == 6
    assert (result.ours, result.beside) == ([-1, -4, -5], [-2, -3, -6])


def test_a_row_whose_side_cannot_run_is_skipped_and_says_why():
    def side(bench: Bench) -> float:
        raise rows.Skipped("pip install it")

    row = Row("row", "a row", "s", "a")

    [result] = rows.measure(Group({"a": side}, [row]), Bench("redis://nowhere", 0), 2, [row], lambda: None, str)

    assert result.is_met is None
    assert "a row: pip install it" in rows.as_text([result])
    assert "| a row (s) | skipped |" in rows.as_markdown([result])


def test_a_tally_counts_what_is_noted_single_and_in_batches(tmp_path):
    tally = Tally(tmp_path)
    tally.go()
    note = noting(tmp_path, 1_000)

    note()
    assert tally.count() == 1
    note(100)
    note(100)

    assert tally.count() == 201
    assert tally.each() == [201]


def test_the_cpu_time_of_handling_and_of_publishing_is_measured(server, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = ["drain batches of 100", "publish typed, batches of 100"]

    costs = cpu.measured(server.url, names, rounds=1, count=200)

    assert list(costs) == names
    assert all(cost.microseconds > 0 and cost.plain > 0 for cost in costs.values())


def test_the_parts_of_a_drained_message_are_measured(server):
    found = parts.measured(server.url, 1, 400)

    assert all(microseconds > 0 for microseconds in found.values())
    assert len(found) == 8


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.85, True), (0.95, False), (1.5, False)])
def test_a_cost_is_held_against_an_earlier_one_by_its_ratio(ratio, is_worse):
    before = {"drain untyped": cpu.Cost(10.0, 10.0), "publish typed": cpu.Cost(1.0, 1.0)}
    now = {"drain untyped": cpu.Cost(20.0, 20.0 * ratio)}  # on a machine half as fast

    [line], found = cpu.compared(now, before, allowed=0.1)

    assert found is is_worse
    assert line.endswith("WORSE") is is_worse


def test_a_peer_that_is_not_installed_is_skipped_and_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "nowhere", peers.Peer("nowhere", "nowhere[redis]"))
    bench = Bench("redis://nowhere", 0)

    with pytest.raises(rows.Skipped, match=r"nowhere is not installed; .* -m pip install 'nowhere\[redis\]'"):
        peers.drains(bench, peers.PEERS["nowhere"])
    with pytest.raises(rows.Skipped):
        peers.publishes(bench, peers.PEERS["nowhere"])


def test_a_peer_has_a_row_for_each_kind():
    names = [row.name for group in peers.groups(["celery", "rq"]) for row in group.rows]

    assert names == ["celery-drain", "rq-drain", "celery-publish", "rq-publish"]
