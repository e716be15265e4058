"""Old and new side by side."""

import os
import signal
from collections import Counter

from tests.chaos import on
from tests.chaos.field import Field, Record
from tests.chaos.orders import declare_new, declare_old


@on("valkey")
def test_a_rolling_deploy(field: Field, record: Record) -> None:
    """Workers are replaced one by one under load, by such with another schema and other groups; and, as it should not
    be, new publishers are there before the last old worker has gone. What that cannot read is a dead letter, which is
    replayed.
    """
    app = "tests.chaos.generations:pubsub"
    first, second = (field.worker(app=app, CHAOS_GENERATION="old") for _ in range(2))
    field.produce(declare=declare_old, more={"total": 9.5})
    field.pause()
    field.worker(app=app, CHAOS_GENERATION="new")
    os.kill(first, signal.SIGTERM)
    field.produce(declare=declare_new, more={"cents": 950})
    pubsub = field.pubsub()
    letters = pubsub.dead_letters("orders", group="billing")
    field.until(lambda: bool(letters.newest(1)), 20, "an old worker has got what it cannot read")
    field.worker(app=app, CHAOS_GENERATION="new")
    os.kill(second, signal.SIGTERM)
    field.until(lambda: not (field.children(first) or field.children(second)), 15, "the old have gone")
    field.pause()

    dead = list(letters)
    assert {letter.reason.kind for letter in dead} == {"invalid payload"}
    assert all("is of version 2" in letter.reason.detail for letter in dead)
    assert letters.replay() == len(dead)
    verdict = field.settle()

    assert verdict.is_clean
    wanted = Counter(dict.fromkeys(field.acknowledged, 1))
    field.until(lambda: len(field.messages_noted("mail")) >= len(wanted), 20, "the new group has them all")
    assert Counter(field.messages_noted("mail")) == wanted, "from the oldest on, each once"
    states = {state.key.group: state for state in pubsub.inspector.groups("orders")}
    assert states["audit"].lag.at_least > 0, "what the group that went has not had is kept for it"
    assert max(Counter(field.messages_noted("audit")).values()) == 1
    field.end_workers(killed=[first, second])
    record("a rolling deploy with another schema and other groups", verdict, replayed=len(dead))
