"""Makes deliveries of stored messages."""

from collections.abc import Sequence
from typing import Any

from pubsub_core.message import (
    Delivery,
    Message,
    SubscriptionKey,
    delivery_of,
    first_deliveries_of,
    message_of,
)


def hand_over(
    stored: Message[bytes], key: SubscriptionKey, attempt: int, position: str, crashes: int = 0
) -> Delivery[bytes]:
    """Return the delivery of a stored message, or of one delivered before, to a subscription."""
    topic, group = key
    fields = {**vars(stored), "topic": topic, "group": group, "attempt": attempt, "position": position}
    return delivery_of(message_of(fields), key, crashes)


def hand_over_new(
    stored: Sequence[Message[bytes]], positions: Sequence[str], key: SubscriptionKey
) -> list[Delivery[bytes]]:
    """Return the first deliveries of stored messages. As `hand_over` of each, but a good deal quicker."""
    topic, group = key
    messages: list[dict[str, Any]] = []
    for message, position in zip(stored, positions, strict=True):
        fields = vars(message).copy()
        fields["topic"] = topic
        fields["attempt"] = 1
        fields["group"] = group
        fields["position"] = position
        messages.append(fields)
    return first_deliveries_of(messages, key)
