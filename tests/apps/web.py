"""A Flask application that tells on stdout when a handler runs, and when its app context ends."""

import os
from typing import Any

from flask import Flask, current_app, g

from pubsub_flask import Message, PubSub

app = Flask(__name__)
pubsub = PubSub(app)


@app.teardown_appcontext
def teardown(error: BaseException | None) -> None:
    if "number" in g:
        os.write(1, f"teardown {g.number}\n".encode())


@pubsub.subscribe("orders")
def charge(message: Message[Any]) -> None:
    assert "number" not in g
    g.number = message.payload["number"]
    os.write(1, f"handled {g.number} by {current_app.name}\n".encode())
