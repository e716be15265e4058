"""`status`: how everything stands, on one screen."""

import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import Any

import click

from pubsub_core.backends import masked
from pubsub_core.broker import GroupState, TopicState
from pubsub_core.commands import Door
from pubsub_core.commands.frame import OK, REFUSED, Desk, command, end_line, show_table, shown
from pubsub_core.commands.looking import group_row, group_states
from pubsub_core.commands.schedules import schedule_rows
from pubsub_core.errors import BrokerUnavailable
from pubsub_core.message import SubscriptionKey

_WATCH_EVERY = 2.0  # seconds


def status(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `status`."""

    def run(desk: Desk, *, watch: float | None) -> int:
        if watch is None:
            facts, text = _look(desk)
            desk.answer(facts, text)
            return REFUSED if facts["not looked at"] else OK
        with suppress(KeyboardInterrupt):  # that is how to end it
            while True:
                facts, text = _look_or_say_why_not(desk)
                if not desk.as_json:
                    click.clear()
                desk.answer(facts, text)
                time.sleep(watch)
        if not desk.as_json:
            end_line()
        return OK

    return command(
        door,
        run,
        click.Option(
            ["-w", "--watch"],
            type=click.FloatRange(min=0.1),
            is_flag=False,
            flag_value=_WATCH_EVERY,
            metavar="[SECONDS]",
            help=f"Show it again and again, until Ctrl-C. Without a number every {_WATCH_EVERY:.0f} seconds. A broker "
            "that cannot be reached is said to be, until it is back.",
        ),
        takes_target=takes_target,
        name="status",
        help="Show how everything stands, on one screen: groups, workers, schedules, and what has to be done.\n\n"
        "For what each column means see `groups --help`.",
        examples=["status", "status --watch", "status --watch 10"],
    )


def _look_or_say_why_not(desk: Desk) -> tuple[dict[str, Any], Callable[[], None]]:
    """Return the facts, and a call that writes them as text; of a broker that is away, that it is."""
    try:
        return _look(desk)
    except BrokerUnavailable as error:
        what = f"the broker cannot be reached: {error}"
        facts = {"broker": masked(desk.pubsub.settings.url), "remarks": [what]}
        return facts, lambda: click.echo(f"! {what}")


def _look(desk: Desk) -> tuple[dict[str, Any], Callable[[], None]]:
    """Return the facts, and a call that writes them as text."""
    now = desk.now()
    names = desk.topics()
    states, conflicts = group_states(desk)
    topics, others = desk.each([name for name in names if name not in conflicts], desk.inspector.topic)
    schedules, more = schedule_rows(desk)
    conflicts |= others | more
    ahead, unknown = desk.paused_ahead(states, conflicts)
    conflicts |= unknown
    delayed = sum(one.delayed for one in topics)
    rows = [group_row(one) for one in states]
    remarks = [*conflicts.values()]
    remarks += [remark for one in states for remark in _remarks(one)]
    remarks += ahead
    remarks += _unheard(desk, topics, {one.key for one in states})
    facts = {
        "broker": masked(desk.pubsub.settings.url),
        "namespace": desk.pubsub.settings.namespace,
        "time": now,
        "topics": len(names),
        "delayed": delayed,
        "groups": rows,
        "schedules": schedules,
        "not looked at": [*conflicts],
        "remarks": remarks,
    }

    def text() -> None:
        most = max((one.consumers for one in states), default=0)
        click.echo(
            f"{facts['broker']} · namespace {facts['namespace']} · {shown(now)} · topics: {len(names)} · "
            f"workers of the largest group: {most:,} · delayed: {delayed:,}"
        )
        click.echo()
        show_table(rows, "no group is known yet: a worker makes its groups", now)
        if schedules:
            click.echo()
            show_table([{name: row[name] for name in _SHOWN} for row in schedules], "", now)
        click.echo()
        for remark in remarks or ["nothing needs to be looked after"]:
            click.echo(f"! {remark}" if remarks else remark)

    return facts, text


_SHOWN = ("schedule", "topic", "when", "last", "next", "paused")


def _unheard(desk: Desk, topics: Sequence[TopicState], groups: Container[SubscriptionKey]) -> list[str]:
    """Return which topics have messages, and lack a group that should have them."""
    remarks, subscribed = [], sorted(desk.handlers())
    for one in topics:
        missing = [key for key in subscribed if key.topic == one.topic and key not in groups]
        has = f"the topic has {one.messages:,} messages"
        if one.messages and missing:
            remarks += [f"{key.topic} / {key.group}: {has}, and no worker has made the group yet" for key in missing]
        elif one.messages and not one.groups:
            remarks.append(f"{one.topic}: {has}, and no group. A worker makes one; or: purge {one.topic} --everything")
    return remarks


def _remarks(one: GroupState) -> list[str]:
    """Return what an operator should do about a group."""
    topic, group = one.key
    where = f"{topic} / {group}"
    waiting = one.lag.at_least + one.pending
    remarks = []
    if one.dead:
        remarks.append(f"{where}: {one.dead:,} dead letters. See: dead list {topic} --group {group}")
    if one.is_paused:
        remarks.append(f"{where} is paused; {one.lag} messages wait. To go on: resume {topic} --group {group}")
    if one.passes_over_until is not None:
        remarks.append(
            f"{where} passes over what is published until {one.passes_over_until}: it stands ahead of all messages. "
            f"To go on behind the newest: seek {topic} latest --group {group}"
        )
    if waiting and not one.consumers:
        remarks.append(
            f"{where}: {one.lag} messages wait, and no worker consumes it. Start one, or: remove-group {topic} {group}"
        )
    return remarks
