"""The executable form of `pubsub_core.broker`: every backend must pass `BrokerConformance`.

A backend subclasses it in a test module, says how to make a broker, and runs pytest:

    class TestRedis(BrokerConformance):
        def make_broker(self, options: BrokerOptions) -> Broker:
            return open_redis("redis://localhost:6379/15", options)

Each test has a namespace and topics of its own, so a server may be shared by all of them. What `receive` may do, it may do
here too: return fewer than there are, or nothing, early. What it must do has to happen within `patience` seconds.
"""

import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from time import monotonic
from typing import ClassVar, TypeVar

import pytest

from pubsub_core.broker import Broker, BrokerOptions, Consumer, Inspector, Membership, Start
from pubsub_core.clock import Clock, SystemClock
from pubsub_core.errors import LeaseLost
from pubsub_core.ids import IdMaker, published_at
from pubsub_core.message import NO_HEADERS, DeadLetter, DeadLetterReason, Delivery, Message, Source, SubscriptionKey
