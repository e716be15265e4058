"""`schedules list|run|pause|resume`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from pubsub_core.broker import ScheduleKey, ScheduleState
from pubsub_core.commands import Door
from pubsub_core.commands.frame import Desk, NotFound, Refused, command, show_table, tell
from pubsub_core.cron import next_tick
from pubsub_core.names import did_you_mean


def schedules(door: Door, *, takes_target: bool) -> click.Command:
    """Make the commands `schedules ...`."""
    group = click.Group("schedules", help="List, run, pause and resume schedules.")
    for make in (_list, _run, _pause, _resume):
        group.add_command(make(door, takes_target=takes_target))
    return group


def schedule_rows(desk: Desk) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the schedules as rows of a table: those that workers named, and those that the application declares.

    If they cannot be looked at, there are none, and the other says why.
    """
    found, conflicts = desk.each(["schedules"], lambda _: desk.inspector.schedules())
    if conflicts:
        return [], conflicts
    (states,) = found
    now = desk.now()
    rows = [_row(one, now) for one in states]
    known = {one.key for one in states}
    for one in desk.pubsub.schedules:
        if one.key not in known:
            fields = {"schedule": one.name, "topic": one.topic, "owner": None, "when": str(one.spec)}
            rows.append({**fields, "last": None, "next": None, "paused": False})
    return rows, conflicts


def _row(one: ScheduleState, now: datetime) -> dict[str, Any]:
    return {
        "schedule": one.key.name,
        "topic": one.key.topic,
        "owner": one.owner,
        "when": one.spec,
        "last": one.last_tick,
        "next": None if one.is_paused else next_tick(one.spec, now),
        "paused": one.is_paused,
    }


def _list(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk) -> int:
        (rows, conflicts), now = schedule_rows(desk), desk.now()
        desk.answer(rows, lambda: show_table(rows, "there are no schedules", now))
        return tell(conflicts.values())

    return command(
        door, run, takes_target=takes_target, name="list",
        help="List the schedules, with their last and next ticks. One that no worker has named yet has no `last`.",
        examples=["schedules list"],
    )  # fmt: skip


def _run(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk, name: str) -> None:
        one = next((one for one in desk.pubsub.schedules if one.name == name), None)
        if one is None:
            raise _unknown(name, [one.name for one in desk.pubsub.schedules], "declared by the application")
        message = desk.pubsub.scheduled_message(one, desk.now().timestamp())
        if message is None:
            raise Refused(f"schedule {name!r}: the application's publish middleware keeps the message back")
        desk.pubsub.runtime.broker.publish([message])
        desk.answer({"published": message.id}, lambda: click.echo(message.id))

    return command(
        door, run, click.Argument(["name"]), takes_target=takes_target, name="run",
        help="Publish what the schedule NAME publishes, now, beside its ticks, and write the message's id. It needs "
        "the application.",
        examples=["schedules run nightly-report"],
    )  # fmt: skip


def _unknown(name: str, known: Sequence[str], what: str) -> NotFound:
    return NotFound(f"there is no schedule {name!r} {what}.{did_you_mean(name, known)}")


def _pause(door: Door, *, takes_target: bool) -> click.Command:
    return command(
        door, lambda desk, name: _set(desk, name, is_paused=True), click.Argument(["name"]),
        takes_target=takes_target, name="pause",
        help="Pause the schedule NAME. What it would fire in a pause is not made up for.",
        examples=["schedules pause nightly-report"],
    )  # fmt: skip


def _resume(door: Door, *, takes_target: bool) -> click.Command:
    return command(
        door, lambda desk, name: _set(desk, name, is_paused=False), click.Argument(["name"]),
        takes_target=takes_target, name="resume", help="Let the schedule NAME go on.",
        examples=["schedules resume nightly-report"],
    )  # fmt: skip


def _set(desk: Desk, name: str, *, is_paused: bool) -> None:
    keys: list[ScheduleKey] = [one.key for one in desk.inspector.schedules()]
    chosen = [key for key in keys if key.name == name]
    if not chosen:
        raise _unknown(name, [key.name for key in keys], "that a worker has named")
    for key in chosen:
        desk.inspector.pause_schedule(key, is_paused=is_paused)
    done = "paused" if is_paused else "resumed"
    desk.answer({done: chosen}, lambda: click.echo(f"schedule {name!r} {'is paused' if is_paused else 'goes on'}"))
