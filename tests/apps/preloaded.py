"""A Flask application that publishes while it is loaded, before its web server forks, and in each request."""

import os
from concurrent.futures import ThreadPoolExecutor

from flask import Flask

from pubsub_flask import PubSub

app = Flask(__name__)
pubsub = PubSub(app)
orders = pubsub.topic("orders")
loaded_by = os.getpid()
orders.publish({"by": loaded_by})


@app.post("/orders")
def place() -> tuple[dict[str, object], int]:
    return {"ids": [orders.publish({"by": os.getpid()})], "pid": os.getpid(), "loaded_by": loaded_by}, 202


@app.post("/threads")
def place_from_threads() -> tuple[dict[str, object], int]:
    """Threads that a request starts have no app context."""
    with ThreadPoolExecutor(4) as threads:
        ids = [one.result() for one in [threads.submit(orders.publish, {"by": os.getpid()}) for _ in range(8)]]
    return {"ids": ids, "pid": os.getpid(), "loaded_by": loaded_by}, 202
