"""An application whose worker joins its groups, and then is never handed anything, as if a bug had it forgotten."""

from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

from pubsub_core import Delivery, Message, PubSub, SubscriptionKey
from pubsub_redis.consumer import RedisConsumer

pubsub = PubSub(group="billing")
receive = RedisConsumer.receive
joined: set[str] = set()


def forget(
    self: RedisConsumer,
    credit: Mapping[SubscriptionKey, int],
    wait: float,
    done: Sequence[Delivery[bytes]] = (),
) -> Sequence[Delivery[bytes]]:
    if self.name not in joined:
        joined.add(self.name)
        return receive(self, credit, 0.0, done)
    Event().wait(min(wait, 0.2))
    return ()


RedisConsumer.receive = forget  # type: ignore[method-assign]


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    raise AssertionError("it is never called")
