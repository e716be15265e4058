"""`topics`, `groups`, `workers`, `lag`, `tail`, `show`: what there is, without changing anything."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import click

from pubsub_core.broker import ConsumerState, Found, GroupState, InHand
from pubsub_core.commands import Door
from pubsub_core.commands.frame import (
    Desk,
    NotFound,
    Refused,
    command,
    end_line,
    group_option,
    limit_option,
    moment,
    plain,
    plain_text,
    show_table,
    shown,
    tell,
    topic_argument,
)
from pubsub_core.message import Message, SubscriptionKey

_PAGE = 1000
_FOLLOW = 0.5  # seconds
_CUT = 200  # characters of a payload in a line


def topics(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `topics`."""

    def run(desk: Desk) -> int:
        states, conflicts = desk.each(desk.topics(), desk.inspector.topic)
        declared = {one.name for one in desk.pubsub.topics}
        now = desk.now()
        rows: list[dict[str, Any]] = [
            {
                "topic": one.topic,
                "messages": one.messages,
                "delayed": one.delayed,
                "groups": one.groups,
                "dropped": one.dropped,
                "memory": one.memory,
                "oldest": one.oldest,
                "newest": one.newest,
                "declared": one.topic in declared,
            }
            for one in states
        ]
        desk.answer(rows, lambda: show_table(rows, "no topic is known yet: a worker names its topics", now))
        return tell(conflicts.values())

    return command(
        door,
        run,
        takes_target=takes_target,
        name="topics",
        help="List the topics that the application declares, or that workers consumed. `memory` is in bytes.",
        examples=["topics", "topics --json"],
    )


def groups(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `groups`."""

    def run(desk: Desk, topic: str | None) -> int:
        now = desk.now()
        states, conflicts = group_states(desk, topic)
        rows = [group_row(one) for one in states]
        if topic and not rows and not conflicts:
            desk.check_topic(topic)
        desk.answer(rows, lambda: show_table(rows, "no group is known yet: a worker makes its groups", now))
        remarks, more = desk.paused_ahead(states, conflicts, topic)
        tell(remarks)
        conflicts |= more
        return tell(conflicts.values())

    return command(
        door,
        run,
        click.Argument(["topic"], required=False),
        takes_target=takes_target,
        name="groups",
        help="List the groups of TOPIC, or of all topics.\n\nWhat is `waiting` was not handed out yet, `parked` waits "
        "for its retry, `dead` was given up; `oldest` is when the oldest was published that is not settled.",
        examples=["groups", "groups orders.placed --json"],
    )


def group_states(desk: Desk, topic: str | None = None) -> tuple[list[GroupState], dict[str, str]]:
    """Return how the groups stand, of a topic or of all, and by topic why others could not be looked at."""
    found, conflicts = desk.each([topic] if topic else desk.topics(), desk.inspector.groups)
    return [state for states in found for state in states], conflicts


def group_row(one: GroupState) -> dict[str, Any]:
    """Return a group as a row of a table."""
    return {
        "topic": one.key.topic,
        "group": one.key.group,
        "waiting": one.lag,
        "in hand": one.pending - one.parked,
        "parked": one.parked,
        "dead": one.dead,
        "oldest": one.oldest_unsettled,
        "workers": one.consumers,
        "paused": one.is_paused,
    }


def lag(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `lag`."""

    def run(desk: Desk, topic: str, group: str | None) -> None:
        state = desk.state(desk.key(topic, group))
        facts = {"lag": state.lag, "unsettled": state.pending, "oldest": state.oldest_unsettled}
        desk.answer(facts, lambda: click.echo(state.lag.at_least))

    return command(
        door,
        run,
        topic_argument(),
        group_option(),
        takes_target=takes_target,
        name="lag",
        help="Write how many messages of TOPIC a group was not handed yet: a number alone, for scripts.",
        examples=["lag orders.placed --group billing"],
    )


def workers(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `workers`."""

    def run(desk: Desk, *, in_hand: bool, limit: int) -> int:
        states, conflicts = group_states(desk)
        found = fleet(desk, states)
        now = desk.now()
        if in_hand:
            rows = [_held_row(one, desk.handlers()) for one in held(desk, found, limit)]
            desk.answer(rows, lambda: show_table(rows, "nothing is in hand", now))
        else:
            rows = [worker_row(name, consumed) for name, consumed in [*found.items()][:limit]]
            desk.answer(rows, lambda: show_table(rows, "no worker runs", now))
        return tell(conflicts.values())

    return command(
        door,
        run,
        click.Option(["--in-hand"], is_flag=True, help="Show what they have in hand instead, and for how long."),
        limit_option(100),
        takes_target=takes_target,
        name="workers",
        help="List the worker processes: who they are, and how much they have in hand.",
        examples=["workers", "workers --in-hand"],
    )


def fleet(desk: Desk, states: Iterable[GroupState]) -> dict[str, list[ConsumerState]]:
    """Return the worker processes by name, each as the consumer of its groups."""
    found: dict[str, list[ConsumerState]] = {}
    for state in states:
        for one in consumers_of(desk, state.key) if state.consumers else ():
            found.setdefault(one.name, []).append(one)
    return found


def consumers_of(desk: Desk, key: SubscriptionKey) -> Iterator[ConsumerState]:
    """Return all consumers of a group, taken a page at a time."""
    after = None
    while page := desk.inspector.consumers(key, _PAGE, after=after):
        yield from page
        after = page[-1].name


def worker_row(name: str, states: list[ConsumerState]) -> dict[str, Any]:
    """Return a worker process as a row of a table."""
    first = states[0]
    return {
        "worker": name,
        "host": first.host,
        "pid": str(first.pid or "-"),
        "version": first.version,
        "since": first.since,
        "groups": len(states),
        "in hand": sum(one.in_hand for one in states),
        "alive": first.is_alive,
    }


def held(desk: Desk, found: Mapping[str, list[ConsumerState]], limit: int) -> list[InHand]:
    """Return what the workers have in hand, what they have longest first."""
    some: list[InHand] = []
    for states in found.values():
        for one in states:
            if one.in_hand and len(some) < limit:
                some += desk.inspector.in_hand(one.key, one.name, limit - len(some))
    return sorted(some, key=lambda one: -one.seconds)


def _held_row(one: InHand, handlers: Mapping[SubscriptionKey, str]) -> dict[str, Any]:
    return {
        "message": one.message_id,
        "topic": one.key.topic,
        "group": one.key.group,
        "handler": handlers.get(one.key),
        "attempt": one.attempt,
        "for": one.seconds,
        "worker": one.consumer,
    }


def tail(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `tail`."""

    def run(desk: Desk, topic: str, limit: int, since: str | None, *, follow: bool) -> None:
        try:
            start = None if since is None else moment(since, desk.now())
        except ValueError:
            raise click.BadParameter(f"{since!r} is no moment: use 30m, 2h, or 2030-12-31T12:00Z") from None
        messages = desk.inspector.peek(topic, limit, after=start)
        if not messages and not follow:
            desk.check_topic(topic)
        for one in messages:
            _show_line(desk, one)
        if follow:
            with suppress(KeyboardInterrupt):  # that is how to end it
                _follow(desk, topic, messages[-1].position if messages else _start_at_end(desk, topic))
            if not desk.as_json:
                end_line()

    return command(
        door,
        run,
        topic_argument(),
        limit_option(10),
        click.Option(["--since"], help="Begin at a moment, and go on from there: 30m, 2h, or an ISO time."),
        click.Option(["-f", "--follow"], is_flag=True, help="Go on with what is published, until Ctrl-C."),
        takes_target=takes_target,
        name="tail",
        help="Show the newest messages of TOPIC, handled or not, with their payloads. Nothing is handed out.",
        examples=["tail orders.placed", "tail orders.placed --since 30m --json", "tail orders.placed --follow"],
    )


def _follow(desk: Desk, topic: str, position: str | None) -> NoReturn:
    """Show what comes behind a position, for ever."""
    while True:
        messages = desk.inspector.peek(topic, _PAGE, after=position)
        for one in messages:
            _show_line(desk, one)
        position = messages[-1].position if messages else position
        if len(messages) < _PAGE:
            time.sleep(_FOLLOW)


def _start_at_end(desk: Desk, topic: str) -> str:
    """Return the position behind which a topic that was empty goes on."""
    newest = desk.inspector.peek(topic, 1)
    return str(newest[-1].position) if newest else "0"


def _show_line(desk: Desk, one: Message[bytes]) -> None:
    payload = plain_text(plain(one.payload))
    cut = payload if len(payload) <= _CUT else f"{payload[:_CUT]}…"
    desk.answer(message_facts(one), lambda: click.echo(f"{shown(one.published_at)}  {one.id}  {cut}"))


def message_facts(one: Message[bytes]) -> dict[str, Any]:
    """Return what there is to say of a message."""
    return {
        "id": one.id,
        "topic": one.topic,
        "published_at": one.published_at,
        "key": one.key,
        "headers": one.headers,
        "source": one.source,
        "position": one.position,
        "expires_at": one.expires_at,
        "payload": one.payload,
    }


def show(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `show`."""

    def run(desk: Desk, id: str, topic: str | None) -> None:
        found = find(desk, id, topic)
        facts = {**message_facts(found.message), "due_at": found.due_at, "groups": found.standings}
        desk.answer(facts, lambda: _show_found(desk, found))

    return command(
        door,
        run,
        click.Argument(["id"]),
        click.Option(["--topic"], help="Look there only."),
        takes_target=takes_target,
        name="show",
        help="Show the message of an ID, with its payload, and how it stands with each group.",
        examples=["show 01939d2e-4b7c-7000-8000-000000000000"],
    )


def find(desk: Desk, message_id: str, topic: str | None) -> Found:
    """Return a message, of a topic or of any."""
    conflicts: dict[str, str] = {}
    for name in [topic] if topic else desk.topics():
        found, more = desk.each([name], lambda name: desk.inspector.find(name, message_id))
        conflicts |= more
        if found and found[0] is not None:
            return found[0]
    if conflicts:
        raise Refused("; ".join(conflicts.values()))
    where = f"in topic {topic!r}" if topic else "in any topic that is known"
    raise NotFound(
        f"there is no message {message_id!r} {where}: it was never published, or is not kept any more. "
        "Only so many messages are looked at, from when it was published on; by its position it is found wherever it is"
    )


def _show_found(desk: Desk, found: Found) -> None:
    now = desk.now()
    for name, value in message_facts(found.message).items():
        if value not in (None, "", {}) and name != "payload":
            text = " ".join(f"{one}={value[one]}" for one in value) if isinstance(value, Mapping) else shown(value)
            click.echo(f"{name + ':':14}{plain_text(text)}")
    click.echo(f"{'payload:':14}{plain_text(plain(found.message.payload))}")
    if found.due_at is not None:
        click.echo(f"{'due:':14}{shown(found.due_at, now)}; no group has it yet")
        return
    rows = [
        {
            "group": one.group,
            "stands": one.stands,
            "attempt": one.attempt,
            "worker": one.consumer,
            "due": one.due_at,
        }
        for one in found.standings
    ]
    click.echo()
    show_table(rows, "the topic has no group", now)
