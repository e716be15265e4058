"""What type checkers say of programs that use the library: nothing of right ones, and each mistake in its line.

The programs are the files in `tests/typing`. A line that is wrong ends in `# expect:` and mypy's code for the error;
pyright has to find something in the same lines, and neither may find anything elsewhere.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(path for path in (ROOT / "tests" / "typing").glob("*.py") if path.name != "__init__.py")

EXPECTED = re.compile(r"# expect: ([a-z-]+)$")
FOUND = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")

# Of a call that fits no overload mypy reports the nearest one alone if it finds one to be nearest, which may change
# with what it has in its cache. A decorator that such a call makes is untyped besides.
SAME = {"call-overload": {"call-overload", "arg-type", "untyped-decorator"}}

Lines = dict[tuple[str, int], set[str]]


def expected() -> Lines:
    lines: Lines = {}
    for program in PROGRAMS:
        for number, line in enumerate(program.read_text().splitlines(), 1):
            if match := EXPECTED.search(line):
                lines[program.name, number] = SAME.get(match[1], {match[1]})
    return lines


@pytest.mark.timeout(300)
def test_mypy_finds_the_mistakes_and_nothing_else():
    lines = expected()

    output = checked("mypy", "--strict", "--hide-error-context", "--no-pretty", "--no-color-output", *PROGRAMS)

    found: Lines = defaultdict(set)
    for match in filter(None, map(FOUND.match, output.splitlines())):
        found[Path(match["file"]).name, int(match["line"])].add(match["code"])
    assert found.keys() == lines.keys(), output
    for line, codes in found.items():
        assert codes <= lines[line], (line, output)


@pytest.mark.timeout(300)
def test_pyright_finds_the_mistakes_and_nothing_else():
    output = checked("pyright", "--outputjson", "--pythonpath", sys.executable, *PROGRAMS)

    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
        for one in json.loads(output)["generalDiagnostics"]
        if one["severity"] == "error"
    }
    assert found == expected().keys(), output


def checked(tool: str, *words: str | Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", tool, *words],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr  # they found something, and did not fail themselves
    return ended.stdout


def test_the_programs_expect_enough():
    marked = [code for codes in expected().values() for code in codes]

    assert len(PROGRAMS) >= 4
    assert len(marked) > 40
