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
    return delivery_of(message_of(_handed(stored, key, attempt, position)), key, crashes)


def hand_over_new(
    stored: Sequence[Message[bytes]], positions: Sequence[str], key: SubscriptionKey
) -> list[Delivery[bytes]]:
    """Return the first deliveries of stored messages: `hand_over` of each."""
    handed = [_handed(message, key, 1, position) for message, position in zip(stored, positions, strict=True)]
    return first_deliveries_of(handed, key)


def _handed(stored: Message[bytes], key: SubscriptionKey, attempt: int, position: str) -> dict[str, Any]:
    """Return the fields of a stored message as it is handed out."""
    fields = vars(stored).copy()  # quicker than a new dict of all of them
    fields["topic"], fields["group"] = key
    fields["attempt"] = attempt
    fields["position"] = position
    return fields
