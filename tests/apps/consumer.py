"""The two-object style, with its handler under `if __name__ == "__main__":`."""

import os

from flask import Flask
from redis import Redis

from pubsub_flask import Consumer, Msg

app = Flask(__name__)
app.config["PUBSUB_REDIS_URL"] = os.environ["REDIS_OF_TEST"]
app.config["PUBSUB_NAMESPACE"] = os.environ["NAMESPACE_OF_TEST"]

if __name__ == "__main__":
    cs = Consumer("billing")

    @cs.subscribe("orders", retry_count=3, timeout=30)
    def charge(msg: Msg) -> None:
        os.write(1, f"started {msg.payload['number']} {os.getpid()}\n".encode())
        with Redis.from_url(app.config["PUBSUB_REDIS_URL"], socket_timeout=None) as client:
            assert client.blpop([os.environ["GATE"]], 60)
        os.write(1, f"done {msg.payload['number']} {msg.retry_count}\n".encode())

    cs.init_app(app)
    cs.run(processes=4, threads=10)
