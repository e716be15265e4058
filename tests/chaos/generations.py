"""The application before and after it changed: the orders' schema is another, one group came, and one went."""

import os
import time
from typing import Any

from pubsub_core import Message, PubSub
from tests.chaos.app import note
from tests.chaos.orders import NewOrder, OldOrder, declare_new, declare_old

pubsub = PubSub()


def handle(message: Message[Any]) -> None:
    note("start", message)
    time.sleep(0.02)
    note("end", message)


if os.environ.get("CHAOS_GENERATION") == "old":
    declare_old(pubsub).subscribe(group="billing")(handle)

    @pubsub.subscribe("orders", group="audit")
    def audit(message: Message[OldOrder]) -> None:
        note("audit", message)
else:
    declare_new(pubsub).subscribe(group="billing")(handle)

    @pubsub.subscribe("orders", group="mails")
    def send(message: Message[NewOrder]) -> None:
        assert message.payload.cents == 950
        note("mail", message)
