"""The application under attack: its handler logs when it starts and when it ends, one line each, never torn."""

import asyncio
import ctypes
import json
import os
import re
import signal
import threading
import time
from typing import Any

from pubsub_core import FixedDelay, Message, PubSub, Retry
from pubsub_redis import consumer
from tests.chaos.clock import ShiftedClock

_WORK = float(os.environ.get("CHAOS_WORK", "0.005"))
_LOG = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


if "CHAOS_BRISK" in os.environ:  # read ahead, however slow the machine is
    consumer._BRISK = float(os.environ["CHAOS_BRISK"])

pubsub = PubSub(clock=ShiftedClock(float(os.environ.get("CHAOS_CLOCK_SHIFT", "0"))))


def note(what: str, message: Message[Any]) -> None:
    line = json.dumps([what, message.id, message.attempt, os.getpid(), time.time()]) + "\n"
    os.write(_LOG, line.encode())


def handle(message: Message[Any]) -> None:
    note("start", message)
    if message.attempt == 1 and message.payload["do"] in ("fail once", "fail later"):
        note("failure", message)
        raise ValueError if message.payload["do"] == "fail once" else Retry(delay=3)
    if message.payload["do"] == "hang once" and message.attempt == 1:
        time.sleep(3600)
    misbehave(message.payload["do"])
    if _WORK:
        time.sleep(_WORK)
    note("end", message)


async def handle_on_the_loop(message: Message[Any]) -> None:
    note("start", message)
    await asyncio.sleep(_WORK)
    note("end", message)


pubsub.subscribe(
    "orders", group="billing", retry=FixedDelay(0.2, 20), timeout=float(os.environ.get("CHAOS_TIMEOUT", "60"))
)(handle_on_the_loop if os.environ.get("CHAOS_ASYNC") else handle)


for _name, _missed in json.loads(os.environ.get("CHAOS_SCHEDULES", "{}")).items():
    pubsub.cron("* * * * * *", name=_name, missed=_missed, group="billing")(lambda: None)


def misbehave(how: str) -> None:
    match how:
        case "work" | "fail once" | "fail later" | "hang once":
            return
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "hog":  # as the kernel ends who takes too much
            os.kill(os.getpid(), signal.SIGKILL)
        case "spin":
            while True:
                sum(range(100))
        case "sleep":
            time.sleep(3600)
        case "regex":
            re.match(r"(a+)+$", "a" * 40 + "b")
        case "stubborn":
            while True:
                try:
                    time.sleep(0.01)
                except BaseException:  # what must not help it
                    continue
        case "long":
            time.sleep(4)


# A part of the library dies in one of the processes, once: see test_the_death_of_a_library_thread.
_victim, _flag = os.environ.get("CHAOS_DEATH"), os.environ.get("CHAOS_DEATH_ONCE", "")
if _victim and not os.path.exists(_flag):
    os.close(os.open(_flag, os.O_CREAT))

    def end_thread() -> None:
        """Raise in the library's thread of that name."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for thread in threading.enumerate():
                if thread.name.startswith(str(_victim)) and thread.ident:
                    time.sleep(1)
                    while thread.is_alive():
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
                        )
                        # It notices when it next runs Python code, within 2 s, and lives until then. If that is code of
                        # the handler, only that has failed.
                        thread.join(3)
                    os.write(_LOG, (json.dumps(["death", "", 0, os.getpid(), time.time()]) + "\n").encode())
                    return
            time.sleep(0.05)

    threading.Thread(target=end_thread, daemon=True).start()
