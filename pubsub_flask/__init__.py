"""The Flask extension: everything of `pubsub_core`, with a `PubSub` that belongs to Flask apps.

`Producer`, `Consumer` and `Msg` are those of `pubsub_flask.original`. What is named here is imported when it is first
used: the `flask` command imports this package on its every call, whatever it is called for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pubsub_core import (
        Batch,
        Broker,
        BrokerError,
        BrokerFull,
        BrokerOptions,
        BrokerUnavailable,
        Clock,
        ConfigurationError,
        ConsumersPresent,
        ConsumerState,
        Count,
        DeadLetter,
        DeadLetterReason,
        DeadLetters,
        Delayed,
        Delivery,
        Durability,
        Examinable,
        ExponentialBackoff,
        Finding,
        FixedDelay,
        Found,
        GroupState,
        HandlerTimeout,
        InHand,
        Inspector,
        InvalidPayload,
        LeaseLost,
        ManualClock,
        Membership,
        Message,
        NoRetry,
        NotConfirmed,
        NotPermitted,
        PayloadTooLarge,
        PublishError,
        PublishUncertain,
        PubSubError,
        Reject,
        Retry,
        RetryPolicy,
        ScheduleKey,
        ScheduleState,
        Settings,
        Standing,
        StreamConflict,
        SubscriptionError,
        SubscriptionKey,
        SystemClock,
        Topic,
        TopicOptions,
        TopicState,
        Undecodable,
        Unsupported,
        ValidationError,
        Worker,
        current_message,
    )
    from pubsub_flask.extension import PubSub, State, current_pubsub
    from pubsub_flask.original import Consumer, Msg, Producer

__all__ = [
    "Batch",
    "Broker",
    "BrokerError",
    "BrokerFull",
    "BrokerOptions",
    "BrokerUnavailable",
    "Clock",
    "ConfigurationError",
    "Consumer",
    "ConsumerState",
    "ConsumersPresent",
    "Count",
    "DeadLetter",
    "DeadLetterReason",
    "DeadLetters",
    "Delayed",
    "Delivery",
    "Durability",
    "Examinable",
    "ExponentialBackoff",
    "Finding",
    "FixedDelay",
    "Found",
    "GroupState",
    "HandlerTimeout",
    "InHand",
    "Inspector",
    "InvalidPayload",
    "LeaseLost",
    "ManualClock",
    "Membership",
    "Message",
    "Msg",
    "NoRetry",
    "NotConfirmed",
    "NotPermitted",
    "PayloadTooLarge",
    "Producer",
    "PubSub",
    "PubSubError",
    "PublishError",
    "PublishUncertain",
    "Reject",
    "Retry",
    "RetryPolicy",
    "ScheduleKey",
    "ScheduleState",
    "Settings",
    "Standing",
    "State",
    "StreamConflict",
    "SubscriptionError",
    "SubscriptionKey",
    "SystemClock",
    "Topic",
    "TopicOptions",
    "TopicState",
    "Undecodable",
    "Unsupported",
    "ValidationError",
    "Worker",
    "current_message",
    "current_pubsub",
]

_HOMES = {
    "PubSub": "pubsub_flask.extension",
    "State": "pubsub_flask.extension",
    "current_pubsub": "pubsub_flask.extension",
    "Consumer": "pubsub_flask.original",
    "Msg": "pubsub_flask.original",
    "Producer": "pubsub_flask.original",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "pubsub_core")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
