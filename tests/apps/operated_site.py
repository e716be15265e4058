"""A Flask app that is operated by commands. For tests/test_commands.py."""

from flask import Flask

from pubsub_flask import PubSub

app = Flask(__name__)
pubsub = PubSub(app)


@pubsub.subscribe("orders")
def charge(order: object) -> None: ...
