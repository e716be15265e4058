"""The two-object style of the original package."""

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import IO, Any

import pytest
from flask import Flask, current_app

from pubsub_core import ConfigurationError, ExponentialBackoff, FixedDelay, SubscriptionError, ValidationError
from pubsub_core.worker.options import WorkerOptions
from pubsub_flask import Consumer, Message, Msg, Producer, PubSub
from tests.servers import RealServer
from tests.test_flask import handle_all, make_app

Supervised = list[tuple[Callable[[], PubSub], WorkerOptions]]


def bound(consumer: Consumer, app: Flask) -> PubSub:
    """The consumer's handlers, as `run` would have them."""
    consumer.init_app(app)
    return consumer._loaded(None)


# Publishing


def test_producer_publishes_to_the_consumer_of_its_app() -> None:
    app = make_app()
    producer = Producer()
    producer.init_app(app)
    consumer = Consumer("shop")
    seen: list[Msg] = []

    @consumer.subscribe("hello_word")
    def hello_word(msg: Msg) -> None:
        seen.append(msg)

    worker = bound(consumer, app)
    message_id = producer.publish("hello_word", {"name": "dog", "age": 3, "nested": {"none": None}})
    handle_all(worker)
    (msg,) = seen
    assert type(msg) is Msg
    assert (msg.id, msg.payload) == (message_id, {"name": "dog", "age": 3, "nested": {"none": None}})
    assert (msg.stream_name, msg.group_name, msg.retry_count) == ("hello_word", "shop", 0)
    assert repr(msg) == (
        f"Msg(id={message_id!r}, stream_name='hello_word', group_name='shop', retry_count=0, source='publish')"
    )
    assert pickle.loads(pickle.dumps(msg)) == msg
    assert type(pickle.loads(pickle.dumps(msg))) is Msg
    with pytest.raises(FrozenInstanceError):
        msg.topic = "other"  # type: ignore[misc]


def test_the_dict_that_is_published_stays_as_it_is() -> None:
    app = make_app()
    producer = Producer()
    producer.init_app(app)
    payload = {"name": "dog"}
    producer.publish("hello_word", payload)
    producer.session.add("hello_word", payload)
    assert payload == {"name": "dog"}


def test_session_sends_all_in_order_at_commit() -> None:
    app = make_app()
    producer, consumer = Producer(), Consumer("shop")
    seen = []

    @consumer.subscribe("hello_word")
    def hello_word(msg: Msg) -> None:
        seen.append((msg.id, msg.payload["name"]))

    worker = bound(consumer, app)
    producer.init_app(app)
    session = producer.session
    cat = {"name": "cat1"}
    ids = [session.add("hello_word", cat), session.add("hello_word", {"name": "cat2"})]
    cat["name"] = "changed after add"
    handle_all(worker)
    assert seen == []
    assert session.commit() == ids
    assert session.commit() == []
    handle_all(worker)
    assert seen == [(ids[0], "cat1"), (ids[1], "cat2")]


def test_session_of_an_app_context_is_one_and_the_same() -> None:
    app = make_app()
    producer = Producer()
    producer.init_app(app)
    with app.app_context():
        producer.session.add("hello_word", {"name": "cat1"})
        assert len(producer.session.commit()) == 1
    with app.app_context():
        assert producer.session.commit() == []
    assert producer.session is not producer.session


def test_session_that_is_not_kept_outside_of_contexts_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    producer = Producer()
    producer.init_app(app)
    with caplog.at_level(logging.WARNING, "pubsub"):
        producer.session.add("hello_word", {"name": "cat1"})
        gc.collect()
        assert producer.session.commit() == []
        session = producer.session
        session.add("hello_word", {"name": "cat2"})
        assert len(session.commit()) == 1
        del session
        gc.collect()
    (record,) = caplog.records
    assert record.getMessage() == (
        "1 messages of a session were not committed, and are discarded: 1 of 'hello_word'. Outside of an app context "
        "`producer.session` is a new one at each use: keep it, as in session = producer.session"
    )


def test_bad_payload_is_refused_at_add() -> None:
    app = make_app()
    producer = Producer()
    producer.init_app(app)
    session = producer.session
    with pytest.raises(ValidationError):
        session.add("hello_word", {"name": object()})
    assert session.commit() == []


def test_producer_without_an_app_says_to_call_init_app() -> None:
    with pytest.raises(ConfigurationError, match=r"this Producer has no Flask app: call init_app\(app\) first"):
        Producer().publish("hello_word", {})


def test_producer_of_several_apps_uses_the_current_one() -> None:
    producer = Producer()
    one, two = make_app("one"), make_app("two")
    producer.init_app(one)
    producer.init_app(two)
    consumer = Consumer("two")
    seen = []
    consumer.subscribe("hello_word")(lambda msg: seen.append(msg.payload))
    worker = bound(consumer, two)
    with one.app_context():
        producer.publish("hello_word", "one")
    with two.app_context():
        producer.publish("hello_word", "two")
    with pytest.raises(ConfigurationError, match="used by 2 Flask apps"):
        producer.publish("hello_word", "whose?")
    handle_all(worker)
    assert seen == ["two"]


# On one app


def test_all_of_it_may_be_initialised_on_one_app_in_any_order() -> None:
    app = make_app()
    producer, another, consumer = Producer(), Producer(), Consumer("shop")
    pubsub = PubSub()
    seen = []
    consumer.subscribe("hello_word")(lambda msg: seen.append(("consumer", msg.payload)))
    pubsub.subscribe("hello_word", group="modern")(lambda message: seen.append(("pubsub", message.payload)))
    for one in (producer, producer, another, consumer, consumer):
        one.init_app(app)
    pubsub.init_app(app)
    for one in (producer, another, consumer):
        one.init_app(app)
    assert app.extensions["pubsub"].pubsub is pubsub
    producer.publish("hello_word", 1)
    pubsub.publish("hello_word", 2)
    handle_all(pubsub)
    handle_all(bound(consumer, app))
    assert seen == [("pubsub", 1), ("pubsub", 2), ("consumer", 1), ("consumer", 2)]


def test_consumer_is_the_pubsub_of_an_app_that_has_no_other() -> None:
    app = make_app()
    producer, first, second = Producer(), Consumer("shop"), Consumer("shop")
    first.subscribe("first")(lambda msg: None)
    second.subscribe("second")(lambda msg: None)
    for one in (producer, first, second):
        one.init_app(app)
    of_app = app.extensions["pubsub"].pubsub.bound_to(app)
    assert [one.topic for one in of_app.subscriptions()] == ["first"]
    assert [one.topic for one in bound(second, app).subscriptions()] == ["second"]


def test_a_consumer_may_be_used_with_one_app_after_the_other() -> None:
    consumer = Consumer("shop")
    consumer.subscribe("hello_word")(lambda msg: None)
    for name in ("one", "two"):
        worker = bound(consumer, make_app(name))
        assert [one.group for one in worker.subscriptions()] == [name]


def test_another_prefix_is_another_broker() -> None:
    app = make_app(
        PUBSUB_REDIS_URL="memory://here",
        EVENTS_URL="memory://there",
        EVENTS_OPTION={"group": "g2", "threads": 2},
        PUBSUB_NAMESPACE="both",
    )
    here, there = Consumer("shop"), Consumer("shop", config_prefix="EVENTS")
    for one in (here, there):
        one.subscribe("hello_word")(lambda msg: None)
    assert bound(here, app).settings.url == "memory://here"
    settings = bound(there, app).settings
    assert (settings.url, settings.group, settings.threads, settings.namespace) == ("memory://there", "g2", 2, "both")
    producer = Producer()
    producer.init_app(app, config_prefix="EVENTS")
    assert len(producer.publish("hello_word", {})) == 36
    PubSub(app)


# Subscribing


def test_timeout_is_the_pause_and_retry_count_the_number_of_retries() -> None:
    consumer = Consumer("shop")
    consumer.subscribe("own", retry_count=3, timeout=30)(lambda msg: None)
    consumer.subscribe("once", retry_count=0)(lambda msg: None)
    consumer.subscribe("default")(lambda msg: None)
    policies = {one.topic: one.retry for one in bound(consumer, make_app()).subscriptions()}
    assert policies == {"own": FixedDelay(30, 3), "once": FixedDelay(300, 0), "default": FixedDelay(300, 32)}


def test_options_of_the_app_are_the_defaults_also_when_it_is_initialised_last() -> None:
    consumer = Consumer("shop")
    consumer.subscribe("default")(lambda msg: None)
    consumer.subscribe("own", retry_count=3, timeout=30)(lambda msg: None)
    app = make_app(PUBSUB_REDIS_OPTION={"group": "g1", "retry_count": 5, "timeout_second": 60})
    one, two = bound(consumer, app).subscriptions()
    assert (one.group, one.retry, one.timeout) == ("g1", FixedDelay(60, 5), 60)
    assert (two.group, two.retry, two.timeout) == ("g1", FixedDelay(30, 3), 60)


def test_keywords_of_the_consumer_win_over_the_options_of_the_app() -> None:
    consumer = Consumer("shop", group="mine", retry_count=1)
    consumer.subscribe("default")(lambda msg: None)
    app = make_app(PUBSUB_REDIS_OPTION={"group": "g1", "retry_count": 5, "timeout_second": 60})
    (only,) = bound(consumer, app).subscriptions()
    assert (only.group, only.retry) == ("mine", FixedDelay(60, 1))


def test_cron_is_registered_as_a_schedule() -> None:
    consumer = Consumer("shop")

    @consumer.subscribe("hello_word_cron", cron="*/5 * * * * *", retry_count=0)
    def hello_word_cron(msg: Msg) -> None:
        """Every five seconds."""

    worker = bound(consumer, make_app())
    assert [(one.name, one.topic, one.spec.expression) for one in worker.schedules] == [
        ("hello_word_cron", "hello_word_cron", "*/5 * * * * *")
    ]
    (subscription,) = worker.subscriptions()
    assert subscription.retry == FixedDelay(300, 0)


def test_handlers_annotated_otherwise_get_the_payload() -> None:
    app, consumer, producer = make_app(), Consumer("shop"), Producer()
    producer.init_app(app)
    seen: list[Any] = []

    @consumer.subscribe("of_dict")
    def of_dict(payload: dict[str, int]) -> None:
        seen.append(payload)

    @consumer.subscribe("of_message")
    def of_message(message: Message[dict[str, int]]) -> None:
        seen.append(message.payload)

    worker = bound(consumer, app)
    producer.publish("of_dict", {"id": 1})
    producer.publish("of_message", {"id": 2})
    handle_all(worker)
    assert sorted(seen, key=str) == [{"id": 1}, {"id": 2}]


def test_async_handlers_get_the_message_too() -> None:
    app, consumer, producer = make_app(), Consumer("shop"), Producer()
    producer.init_app(app)
    seen = []

    @consumer.subscribe("hello_word")
    async def hello_word(msg: Msg) -> None:
        seen.append((type(msg), current_app.name))

    worker = bound(consumer, app)
    producer.publish("hello_word", {})
    handle_all(worker)
    assert seen == [(Msg, "shop")]


def test_msg_annotation_on_a_pubsub_means_the_message() -> None:
    app = make_app()
    pubsub = PubSub(app)
    seen = []

    @pubsub.subscribe("hello_word", retry=ExponentialBackoff())
    def hello_word(msg: Msg) -> None:
        seen.append(msg.payload)

    pubsub.publish("hello_word", {"name": "dog"})
    handle_all(pubsub)
    assert seen == [{"name": "dog"}]


def test_second_handler_of_a_stream_is_refused() -> None:
    consumer = Consumer("shop")
    consumer.subscribe("hello_word")(lambda msg: None)
    with pytest.raises(SubscriptionError, match="has a handler for the default group already"):
        consumer.subscribe("hello_word")(lambda msg: None)


@pytest.mark.parametrize("options", [{"timeout": -1}, {"retry_count": -1}, {"timeout": float("nan")}])
def test_pause_and_count_that_cannot_be_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be a finite number, 0 or more"):
        Consumer("shop").subscribe("hello_word", **options)


# Options


def test_keys_without_a_meaning_here_are_accepted() -> None:
    option = {"block_second": 6, "read_count": 16, "noack": False, "app_factory": "shop:create_app"}
    consumer = Consumer("shop")
    consumer.init_app(make_app(PUBSUB_REDIS_OPTION=option))


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"grup": "g1"}, r"unknown key 'grup' in PUBSUB_REDIS_OPTION. Did you mean 'group'\?"),
        ({"noack": True}, r"PUBSUB_REDIS_OPTION\['noack'\]=True cannot be: it must be False"),
        ({"threads": 0}, r"PUBSUB_REDIS_OPTION\['threads'\]=0 cannot be: it must be a whole number, 1 or more"),
        ({"threads": True}, r"\['threads'\]=True cannot be"),
        ({"threads": "many"}, r"\['threads'\]='many' cannot be"),
        ({"timeout_second": 0}, r"\['timeout_second'\]=0 cannot be: it must be seconds, more than 0"),
        ({"retry_count": -1}, r"\['retry_count'\]=-1 cannot be"),
        ({"app_factory": 5}, r"\['app_factory'\]=5 cannot be: it must be 'module:app'"),
        ({"group": "a b"}, r"\['group'\]: 'a b' is not a group name"),
        ([("group", "g1")], "PUBSUB_REDIS_OPTION is a list: it must be a dict"),
    ],
)
def test_options_that_cannot_be_are_refused(option: Any, error: str) -> None:
    for extension in (Consumer("shop"), Producer(), PubSub()):
        with pytest.raises(ConfigurationError, match=error):
            extension.init_app(make_app(PUBSUB_REDIS_OPTION=option))


def test_unknown_keyword_of_the_consumer_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown key 'process' in Consumer\(...\). Did you mean 'processes'\?"
    ):
        Consumer("shop", process=4)


# Running


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Supervised:
    """Stand in for the supervisor, which forks: note what it is called with."""
    calls: Supervised = []

    def supervise(load: Callable[[], PubSub], options: WorkerOptions) -> int:
        calls.append((load, options))
        return 1 if options.threads == 99 else 0

    supervisor = ModuleType("pubsub_core.worker.supervisor")
    supervisor.supervise = supervise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pubsub_core.worker.supervisor", supervisor)
    return calls


def test_run_takes_the_handlers_there_are_and_the_app_it_knows(supervised: Supervised) -> None:
    app = make_app(PUBSUB_REDIS_OPTION={"processes": 4, "threads": 10})
    consumer = Consumer("shop")
    consumer.subscribe("hello_word")(lambda msg: None)
    consumer.init_app(app)
    consumer.run("consumer:app")
    ((load, options),) = supervised
    assert options == WorkerOptions(target="consumer:app", processes=4, threads=10)
    loaded = load()
    assert loaded.runtime is app.extensions["pubsub"].runtime
    assert [one.topic for one in loaded.subscriptions()] == ["hello_word"]


def test_run_without_init_app_makes_the_app_in_the_process(supervised: Supervised) -> None:
    consumer = Consumer("shop", app_factory=lambda: make_app("made"))
    consumer.subscribe("hello_word")(lambda msg: None)
    consumer.run(threads=3)
    ((load, options),) = supervised
    assert (options.target, options.threads) == ("shop", 3)
    assert [one.group for one in load().subscriptions()] == ["made"]


def test_run_without_any_app_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r'call init_app\(app\) first, or give it: run\("module:app"\)'):
        Consumer("shop").run()


def test_run_for_what_is_no_app_is_refused(supervised: Supervised) -> None:
    Consumer("shop").run(lambda: "not an app")  # type: ignore[arg-type, return-value]
    ((load, _),) = supervised
    with pytest.raises(ConfigurationError, match="is a str: it must be a Flask app, or make one"):
        load()


@pytest.mark.usefixtures("supervised")
def test_run_that_did_not_end_as_asked_exits_with_the_code() -> None:
    consumer = Consumer("shop")
    consumer.init_app(make_app())
    with pytest.raises(SystemExit) as ended:
        consumer.run(threads=99)
    assert ended.value.code == 1


# The README of the original, with only the import changed

PRODUCER = """
from flask import Flask

from pubsub_flask import Producer

app = Flask(__name__)
app.config.from_object("example.config")

if __name__ == '__main__':
    producer = Producer()

    producer.init_app(app)
    
    #发送一条消息
    msgid = producer.publish("hello_word", {'name': 'dog'})
    print(msgid)


    # 批量发送
    sess = producer.session
    sess.add("hello_word", {'name': 'cat1'})
    sess.add("hello_word", {'name': 'cat2'})
    sess.add("hello_word", {'name': 'cat3'})
    sess.add("hello_word", {'name': 'cat4'})
    sess.add("hello_word", {'name': 'cat5'})

    msgids = sess.commit()
    print(msgids)
"""  # noqa: W293  # as it is written there

CONSUMER = '''
import logging

from flask import Flask, current_app
from pubsub_flask import Consumer, Msg

app = Flask(__name__)
app.config.from_object("example.config")
app.logger.setLevel(logging.INFO)

if __name__ == '__main__':
    cs = Consumer(__name__)


    @cs.subscribe("hello_word")
    def hello_word(msg: Msg):
        """ 业务代码没抛出异常, 就代表消费成功 """
        current_app.logger.info(msg)


    @cs.subscribe("hello_word_retry", retry_count=3, timeout=30)
    def hello_word_retry(msg: Msg):
        """ 重试3次, 每次间隔30秒 """
        current_app.logger.info(msg)
        raise RuntimeError("I will retry 3 times, with a 30 second interval between each attempt")


    @cs.subscribe("hello_word_cron", cron="*/5 * * * * *", retry_count=0)
    def hello_word_cron(msg: Msg):
        """ 每5秒执行一次, 不重试 """
        current_app.logger.info(msg)


    cs.init_app(app)
    cs.run("consumer:app")
'''

CONFIG = """
PUBSUB_REDIS_URL = '{url}'
PUBSUB_REDIS_OPTION = {{
    'group':'pubsub_g1', #消息分组 -> redis XGROUP groupname
    'processes': 4,  # 消费进程数
    'threads': 10,  # 一个进程开启多少线程
    'retry_count':32, #默认重试次数
    'timeout_second':300, #默认超时时间，未来超时时间消费成功，将进行重试
    'block_second': 6, #读取消息的阻塞时间 -> xreadgroup block=6
    'read_count': 16, #一次最多读取的消息数量 -> xreadgroup read_count=16
}}
PUBSUB_NAMESPACE = '{namespace}'
"""


@pytest.fixture
def readme(tmp_path: Path, redis: RealServer) -> Path:
    pytest.importorskip("pubsub_core.worker.supervisor")
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "config.py").write_text(CONFIG.format(url=redis.url, namespace=f"readme-{os.getpid()}"))
    (tmp_path / "producer.py").write_text(PRODUCER)
    (tmp_path / "consumer.py").write_text(CONSUMER)
    return tmp_path


def test_readme_of_the_original_runs(readme: Path) -> None:
    published = subprocess.run(
        [sys.executable, "producer.py"], cwd=readme, capture_output=True, text=True, check=True, timeout=30
    )
    single, several = published.stdout.splitlines()
    expected = {single, *several.strip("[]").replace("'", "").split(", ")}
    assert len(expected) == 6

    consumer = subprocess.Popen([sys.executable, "consumer.py"], cwd=readme, stderr=subprocess.PIPE, text=True)
    assert consumer.stderr is not None
    lines: Queue[str] = Queue()
    reader = threading.Thread(target=_pour, args=(consumer.stderr, lines), daemon=True)
    reader.start()
    seen = ""
    try:
        while not all(f"Msg(id='{one}'" in seen for one in expected):
            seen += lines.get(timeout=30)
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(30) == 0
    except Empty:
        pytest.fail(f"the messages were not handled; the log is:\n{seen}")
    finally:
        consumer.kill()
        consumer.wait()
        reader.join(10)
        consumer.stderr.close()


def _pour(stream: IO[str], lines: "Queue[str]") -> None:
    for line in stream:
        lines.put(line)


def test_handlers_log_with_the_logger_of_the_app(caplog: pytest.LogCaptureFixture) -> None:
    app, consumer, producer = make_app(), Consumer("shop"), Producer()
    producer.init_app(app)
    app.logger.setLevel(logging.INFO)

    @consumer.subscribe("hello_word")
    def hello_word(msg: Msg) -> None:
        current_app.logger.info(msg)

    worker = bound(consumer, app)
    producer.publish("hello_word", {"name": "secret"})
    handle_all(worker)
    (record,) = [record for record in caplog.records if record.name == app.logger.name]
    assert record.getMessage().startswith("Msg(id=")
    assert "secret" not in record.getMessage()
