"""Publish/subscribe for plain Python: everything a user needs, without Flask and without any backend's libraries."""

from typing import TYPE_CHECKING, Any

from pubsub_core.broker import (
    Broker,
    BrokerOptions,
    Consumer,
    ConsumerState,
    Count,
    DeadLetter,
    Delayed,
    Durability,
    Examinable,
    Finding,
    Found,
    GroupState,
    InHand,
    Inspector,
    Membership,
    ScheduleKey,
    ScheduleState,
    Standing,
    TopicOptions,
    TopicState,
)
from pubsub_core.clock import Clock, ManualClock, SystemClock
from pubsub_core.context import current_message
from pubsub_core.dead_letters import DeadLetters
from pubsub_core.errors import (
    BatchFailure,
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    ConsumersPresent,
    HandlerTimeout,
    InvalidPayload,
    LeaseLost,
    NeverIdle,
    NotConfirmed,
    NotPermitted,
    PayloadTooLarge,
    PublishError,
    PublishUncertain,
    PubSubError,
    Reject,
    Retry,
    StreamConflict,
    SubscriptionError,
    Undecodable,
    Unsupported,
    ValidationError,
)
from pubsub_core.logs import ContextFilter
from pubsub_core.message import DeadLetterReason, Delivery, Message, SubscriptionKey
from pubsub_core.middleware import HandleMiddleware, HandleNext, PublishMiddleware, PublishNext
from pubsub_core.pubsub import Batch, PubSub
from pubsub_core.retry import ExponentialBackoff, FixedDelay, NoRetry, RetryPolicy
from pubsub_core.settings import Settings
from pubsub_core.topic import Topic

if TYPE_CHECKING:
    from pubsub_core.worker.process import Worker

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchFailure",
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
    "ContextFilter",
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
    "HandleMiddleware",
    "HandleNext",
    "HandlerTimeout",
    "InHand",
    "Inspector",
    "InvalidPayload",
    "LeaseLost",
    "ManualClock",
    "Membership",
    "Message",
    "NeverIdle",
    "NoRetry",
    "NotConfirmed",
    "NotPermitted",
    "PayloadTooLarge",
    "PubSub",
    "PubSubError",
    "PublishError",
    "PublishMiddleware",
    "PublishNext",
    "PublishUncertain",
    "Reject",
    "Retry",
    "RetryPolicy",
    "ScheduleKey",
    "ScheduleState",
    "Settings",
    "Standing",
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
]


def __getattr__(name: str) -> Any:
    """Import the worker when it is first asked for: who only publishes does not pay for it."""
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pubsub_core.worker.process import Worker

    return Worker
