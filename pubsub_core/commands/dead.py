"""`dead list|show|replay|discard`: the dead letters of a group."""

from collections import Counter
from typing import Any

import click

from pubsub_core.broker import DeadLetter
from pubsub_core.commands import Door
from pubsub_core.commands.frame import (
    Desk,
    NotFound,
    command,
    confirm,
    group_option,
    limit_option,
    plain,
    plain_text,
    show_table,
    shown,
    topic_argument,
    yes_option,
)
from pubsub_core.commands.looking import message_facts
from pubsub_core.dead_letters import DeadLetters
from pubsub_core.message import SubscriptionKey

_LOOKED_AT = 100_000


def dead(door: Door, *, takes_target: bool) -> click.Command:
    """Make the commands `dead ...`."""
    group = click.Group("dead", help="List, show, replay and discard the dead letters of a group.")
    for make in (_list, _show, _replay, _discard):
        group.add_command(make(door, takes_target=takes_target))
    return group


def _letters(desk: Desk, key: SubscriptionKey) -> DeadLetters:
    """Return the dead letters of a group, which may be gone. Raises NotFound if there is neither it nor any of them."""
    letters = desk.pubsub.dead_letters(key.topic, group=key.group)
    if not letters.newest(1):
        desk.check(key)
    return letters


def _list(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk, topic: str, group: str | None, limit: int) -> None:
        now = desk.now()
        rows = [_row(one) for one in _letters(desk, desk.key(topic, group)).newest(limit)]
        desk.answer(rows, lambda: show_table(rows, "there are no dead letters", now))

    return command(
        door, run, topic_argument(), group_option(), limit_option(20), takes_target=takes_target, name="list",
        help="List the newest dead letters of a group of TOPIC.",
        examples=["dead list orders.placed --group billing"],
    )  # fmt: skip


def _row(one: DeadLetter) -> dict[str, Any]:
    return {
        "message": one.message.id,
        "died": one.last_failed_at,
        "reason": one.reason.kind,
        "error": one.reason.error,
        "detail": one.reason.detail[:80],
        "attempts": one.message.attempt,
    }


def _show(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk, topic: str, id: str, group: str | None) -> None:
        letter = _only(desk, topic, group, id)
        facts = {**message_facts(letter.message), "attempt": letter.message.attempt, "reason": letter.reason}
        facts |= {"consumer": letter.consumer, "first_failed_at": letter.first_failed_at}
        facts |= {"last_failed_at": letter.last_failed_at, "letter": letter.position}
        desk.answer(facts, lambda: _show_letter(letter))

    return command(
        door, run, topic_argument(), click.Argument(["id"]), group_option(), takes_target=takes_target, name="show",
        help="Show the dead letter of the message ID: its reason with the traceback, and its payload.",
        examples=["dead show orders.placed 01939d2e-4b7c-7000-8000-000000000000 --group billing"],
    )  # fmt: skip


def _only(desk: Desk, topic: str, group: str | None, message_id: str) -> DeadLetter:
    for number, letter in enumerate(_letters(desk, desk.key(topic, group))):
        if message_id in (letter.message.id, letter.position):
            return letter
        if number >= _LOOKED_AT:
            break
    key = desk.key(topic, group)
    raise NotFound(f"group {key.group!r} of topic {topic!r} has no dead letter of message {message_id!r}")


def _show_letter(letter: DeadLetter) -> None:
    message, reason = letter.message, letter.reason
    rows = {
        "message": message.id,
        "topic": message.topic,
        "group": letter.subscription.group,
        "published": message.published_at,
        "attempts": message.attempt,
        "first failed": letter.first_failed_at,
        "last failed": letter.last_failed_at,
        "consumer": letter.consumer,
        "reason": reason.kind,
        "error": f"{reason.error}: {reason.detail}" if reason.error else reason.detail,
    }
    for name, value in rows.items():
        click.echo(f"{name + ':':14}{shown(value)}")
    click.echo(f"{'payload:':14}{plain_text(plain(message.payload))}")
    if reason.traceback:
        click.echo()
        for line in reason.traceback.splitlines():
            click.echo(plain_text(line))


def _replay(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk, topic: str, group: str | None, *, yes: bool, **choice: Any) -> None:
        key = desk.key(topic, group)
        letters = _letters(desk, key)
        chosen = _chosen(letters, "This delivers again", key, choice, yes=yes)
        count = letters.replay(where=lambda one: one.position in chosen) if chosen else 0
        desk.answer({"replayed": count}, lambda: click.echo(f"{count:,} dead letters replayed"))

    return command(
        door, run, topic_argument(), group_option(), *_choice(), yes_option(), takes_target=takes_target, name="replay",
        help="Deliver dead letters to their group of TOPIC again, and to no other: all, or those that are chosen.",
        examples=[
            "dead replay orders.placed --group billing",
            "dead replay orders.placed --group billing --error ConnectionError --yes",
        ],
    )  # fmt: skip


def _discard(door: Door, *, takes_target: bool) -> click.Command:
    def run(desk: Desk, topic: str, group: str | None, *, yes: bool, **choice: Any) -> None:
        key = desk.key(topic, group)
        letters = _letters(desk, key)
        chosen = _chosen(letters, "This deletes for good", key, choice, yes=yes)
        count = letters.discard(where=lambda one: one.position in chosen) if chosen else 0
        desk.answer({"discarded": count}, lambda: click.echo(f"{count:,} dead letters discarded"))

    return command(
        door, run, topic_argument(), group_option(), *_choice(), yes_option(),
        takes_target=takes_target, name="discard",
        help="Delete dead letters of a group of TOPIC for good: all of them, or those that are chosen.",
        examples=["dead discard orders.placed --group billing --reason rejected"],
    )  # fmt: skip


def _choice() -> list[click.Parameter]:
    return [
        click.Option(["--id", "ids"], multiple=True, help="Only that of this message; may be given again."),
        click.Option(["--error"], help="Only those with this class of error, as in ConnectionError."),
        click.Option(["--reason"], help="Only those with this reason, as in 'retries exhausted'."),
    ]


def _chosen(
    letters: DeadLetters, does: str, key: SubscriptionKey, choice: dict[str, Any], *, yes: bool
) -> frozenset[str]:
    """Return the positions of those that are chosen, having asked whether that is meant. They may be many."""
    kinds: Counter[str] = Counter()
    chosen = []
    for one in letters:
        if _is_chosen(one, **choice):
            chosen.append(one.position)
            kinds[" ".join(filter(None, [one.reason.kind, one.reason.error]))] += 1
    if chosen:
        lines = "".join(f"\n  {count:>7,}  {kind}" for kind, count in kinds.most_common(10))
        confirm(f"{does} {len(chosen):,} dead letters of group {key.group!r} of topic {key.topic!r}:{lines}", yes=yes)
    return frozenset(chosen)


def _is_chosen(one: DeadLetter, ids: tuple[str, ...], error: str | None, reason: str | None) -> bool:
    return (
        (not ids or one.message.id in ids or one.position in ids)
        and (error is None or one.reason.error.rpartition(".")[2] == error.rpartition(".")[2])
        and (reason is None or one.reason.kind == reason)
    )
