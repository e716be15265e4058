"""Takes a message, and gives it back when the gate is opened, to be delivered again after GATE_DELAY seconds.

It ends then, so that it does not handle it itself. For tests/test_lateness.py.
"""

import os

from redis import Redis

from pubsub_core import Membership, PubSub, SubscriptionKey

pubsub = PubSub(group="billing")
key = SubscriptionKey("orders", "billing")
consumer = pubsub.runtime.broker.consumer([Membership(key)], f"parks-{os.getpid()}")
consumer.maintain()
deliveries = consumer.receive({key: 1}, 20)
os.write(1, f"took {len(deliveries)}\n".encode())
with Redis.from_url(pubsub.settings.url, socket_timeout=None) as client:
    assert client.blpop([os.environ["GATE"]], 60)
    seconds, microseconds = client.time()
consumer.nack(deliveries[0], float(os.environ["GATE_DELAY"]))
consumer.close()
os.write(1, f"parked {seconds}.{microseconds:06}\n".encode())
