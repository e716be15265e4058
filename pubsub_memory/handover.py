"""Makes deliveries of stored messages."""

from pubsub_core.message import Delivery, Message, SubscriptionKey, delivery_of, message_of


def hand_over(
    stored: Message[bytes], key: SubscriptionKey, attempt: int, position: str, crashes: int = 0
) -> Delivery[bytes]:
    """Return the delivery of a stored message, or of one delivered before, to a subscription."""
    topic, group = key
    fields = {**vars(stored), "topic": topic, "group": group, "attempt": attempt, "position": position}
    return delivery_of(message_of(fields), key, crashes)
