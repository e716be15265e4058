"""`pause`, `resume`, `seek`, `purge`, `remove-group`, `cancel`: what changes how things stand."""

import re
from collections.abc import Sequence
from datetime import datetime

import click

from pubsub_core.broker import Searchable
from pubsub_core.commands import Door
from pubsub_core.commands.frame import (
    Desk,
    NotFound,
    ago,
    command,
    confirm,
    group_option,
    moment,
    shown,
    topic_argument,
    yes_option,
)
from pubsub_core.errors import NotPermitted
from pubsub_core.message import SubscriptionKey

_NOT_YET = "no worker has made it yet, and the pause holds when one does"
_POSITION = re.compile(r"\d+(-\d+)?")


def pause(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `pause`."""

    def run(desk: Desk, topic: str, group: str | None) -> None:
        key = desk.key(topic, group)
        desk.check(key)
        is_there = key in {one.key for one in desk.inspector.groups(topic)}
        desk.inspector.pause_group(key, is_paused=True)
        what = "what its workers have in hand, they finish" if is_there else _NOT_YET
        _say(desk, key, "paused", f"is paused: {what}")

    return command(
        door, run, topic_argument(), group_option(), takes_target=takes_target, name="pause",
        help="Have a group of TOPIC get nothing more, in the whole fleet, within a second. Running handlers finish. It "
        "holds, over restarts of workers too, until `resume`.",
        examples=["pause orders.placed --group billing"],
    )  # fmt: skip


def resume(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `resume`."""

    def run(desk: Desk, topic: str, group: str | None) -> None:
        key = desk.key(topic, group)
        desk.check(key)
        desk.inspector.pause_group(key, is_paused=False)
        _say(desk, key, "resumed", "goes on")

    return command(
        door, run, topic_argument(), group_option(), takes_target=takes_target, name="resume",
        help="Let a paused group of TOPIC go on, within a second.",
        examples=["resume orders.placed --group billing"],
    )  # fmt: skip


def _say(desk: Desk, key: SubscriptionKey, done: str, text: str) -> None:
    desk.answer({done: key}, lambda: click.echo(f"group {key.group!r} of topic {key.topic!r} {text}"))


def seek(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `seek`."""

    def run(desk: Desk, topic: str, to: str, group: str | None, *, force: bool, yes: bool) -> None:
        key = desk.key(topic, group)
        state = desk.state(key)
        place = to if to in ("earliest", "latest") or _POSITION.fullmatch(to) else _moment(desk, to)
        _check_past(desk, topic, place)
        confirm(
            f"This moves group {key.group!r} of topic {topic!r}, for which {state.lag} messages wait and "
            f"{state.pending:,} are not settled, to {place}: what lies behind that is delivered again, "
            "what lies before is passed over",
            yes=yes,
        )
        desk.inspector.seek(key, place, force=force)
        _say(desk, key, "moved", f"goes on at {place}: {desk.state(key).lag} messages wait")

    return command(
        door, run, topic_argument(), click.Argument(["to"]), group_option(), _force(), yes_option(),
        takes_target=takes_target, name="seek",
        help="Have a group of TOPIC go on reading at TO: earliest, latest, a moment (30m, 2h, or an ISO time), or the "
        "position of a message.\n\nWhat is parked and lies behind that comes as new; what lies before it stays parked. "
        "The group must be paused, or have no workers.",
        examples=["seek orders.placed 2h --group billing", "seek orders.placed latest --group billing --yes"],
    )  # fmt: skip


def _moment(desk: Desk, text: str) -> datetime:
    try:
        return moment(text, desk.now())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no place: use earliest, latest, 30m, 2h, 2030-12-31T12:00Z, or a message's position"
        ) from None


def _check_past(desk: Desk, topic: str, place: datetime | str) -> None:
    """Raise if a place lies in the future: that is a slip, and would be taken for `latest`."""
    if isinstance(place, datetime):
        is_past = place <= desk.now()
    elif place in ("earliest", "latest"):
        is_past = True
    else:
        first = int(place.partition("-")[0])
        is_past = first <= desk.now().timestamp() * 1000 or any(
            first <= int(str(one.position).partition("-")[0]) for one in desk.inspector.peek(topic, 1)
        )
    if not is_past:
        raise click.BadParameter(f"{place} lies in the future. To go on behind what is there now, use latest")


def _force() -> click.Option:
    return click.Option(["--force"], is_flag=True, help="Also while workers consume it.")


def purge(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `purge`."""

    def run(desk: Desk, topic: str, *, everything: bool, force: bool, yes: bool) -> None:
        state = desk.inspector.topic(topic)
        if not state.messages:
            desk.check_topic(topic)
        if everything:
            groups = ", ".join(one.key.group for one in desk.inspector.groups(topic)) or "none"
            confirm(
                f"This deletes all {state.messages:,} messages of topic {topic!r} for good, handled or not, for "
                f"all its groups ({groups})",
                yes=yes,
            )
        else:
            confirm(
                f"This deletes, of {state.messages:,} messages of topic {topic!r}, what all groups settled", yes=yes
            )
        count = desk.inspector.purge(topic, everything=everything, force=force)
        desk.answer({"deleted": count}, lambda: click.echo(f"{count:,} messages deleted"))

    return command(
        door, run, topic_argument(),
        click.Option(["--everything"], is_flag=True, help="All messages, handled or not."),
        _force(), yes_option(), takes_target=takes_target, name="purge",
        help="Delete the messages of TOPIC that every group has settled, before their retention is over. Dead letters "
        "and delayed messages stay.\n\nWith --everything the groups must be paused, or have no workers.",
        examples=["purge orders.placed", "purge orders.placed --everything"],
    )  # fmt: skip


def remove_group(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `remove-group`."""

    def run(desk: Desk, topic: str, group: str, *, yes: bool) -> None:
        key = SubscriptionKey(topic, group)
        if key not in {one.key for one in desk.inspector.groups(topic)} and key in _left(desk):
            confirm(f"This deletes what is left of group {group!r} of topic {topic!r}, which is gone", yes=yes)
            desk.inspector.remove_group(key)
            _say(desk, key, "removed", "is deleted")
            return
        state = desk.state(key)
        confirm(
            f"This deletes group {group!r} of topic {topic!r} for good, with {state.pending:,} messages that are not "
            f"settled, {state.lag} that wait for it, and {state.dead:,} dead letters",
            yes=yes,
        )
        desk.inspector.remove_group(key)
        _say(desk, key, "removed", "is deleted")

    return command(
        door, run, topic_argument(), click.Argument(["group"]), yes_option(), takes_target=takes_target,
        name="remove-group",
        help="Delete a GROUP of TOPIC that no worker consumes any more, so that it holds no messages back any more.",
        examples=["remove-group orders.placed newsletter"],
    )  # fmt: skip


def _left(desk: Desk) -> Sequence[SubscriptionKey]:
    """Return the groups that are gone, of which something is left, as far as one may look."""
    broker = desk.pubsub.runtime.broker
    try:
        return broker.leftovers().groups if isinstance(broker, Searchable) else ()
    except NotPermitted:
        return ()


def cancel(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `cancel`."""

    def run(desk: Desk, topic: str, id: str, *, yes: bool) -> None:
        found = desk.inspector.find(topic, id)
        if found is None or found.due_at is None:
            raise _not_delayed(topic, id)
        due = f"{shown(found.due_at)} ({ago(found.due_at, desk.now())})"
        confirm(f"This deletes message {id} of topic {topic!r} for good, which is due at {due}", yes=yes)
        if not desk.pubsub.cancel(topic, id):
            raise _not_delayed(topic, id)
        desk.answer({"cancelled": id}, lambda: click.echo(f"{id} is cancelled"))

    return command(
        door, run, topic_argument(), click.Argument(["id"]), yes_option(), takes_target=takes_target, name="cancel",
        help="Cancel the message ID of TOPIC, which was published with a delay and is not due yet.",
        examples=["cancel orders.placed 01939d2e-4b7c-7000-8000-000000000000"],
    )  # fmt: skip


def _not_delayed(topic: str, message_id: str) -> NotFound:
    return NotFound(f"topic {topic!r} has no message {message_id!r} that is not due yet")
