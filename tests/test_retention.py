"""What Redis keeps, and for how long: messages, dead letters, and where a group stood that was lost."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from pubsub_core.broker import TopicOptions
from pubsub_core.errors import BrokerError, BrokerFull, StreamConflict
from pubsub_core.message import DeadLetterReason, SubscriptionKey
from pubsub_redis import RedisBroker
from pubsub_redis import consumer as consumer_module
from pubsub_redis import upkeep as upkeep_module
from pubsub_redis.consumer import RedisConsumer
from pubsub_redis.keys import look_key, topic_keys
from tests.servers import RealServer, redis_server
from tests.test_redis import REASON, Place, ids, message, publish
from tests.waiting import until

BILLING = SubscriptionKey("orders", "billing")
SHIPPING = SubscriptionKey("orders", "shipping")


@pytest.fixture(params=["redis", "valkey"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    server: RealServer = request.getfixturevalue(request.param)
    with Redis.from_url(server.url, protocol=2) as client:
        place = Place(server.url, client)
        yield place
        place.clean_up()


def keep(place: Place, seconds: float) -> RedisBroker:
    """Return a broker that keeps what is settled for so long, and looks after it often."""
    place.topics.setdefault("orders", TopicOptions(retention=seconds))
    return place.broker(heartbeat=0.5)


def pass_time(place: Place, seconds: float) -> None:
    """Return when so many seconds have passed for the server."""
    end = now(place) + seconds
    until(lambda: now(place) > end)


def now(place: Place) -> float:
    seconds, microseconds = place.client.time()
    return float(seconds) + microseconds / 1e6


def maintained(consumer: RedisConsumer, claim: Callable[[], bool]) -> None:
    """Maintain until `claim` holds."""

    def is_so() -> bool:
        consumer.maintain()
        return claim()

    until(is_so)


def rounds(place: Place, consumer: RedisConsumer, count: int = 3) -> None:
    """Maintain for so many looks after everything."""
    for _ in range(count):
        place.client.delete(look_key(place.namespace, consumer._upkeep.concern))
        consumer._look_at = 0.0
        for group in consumer._groups.values():
            group.was_used = True
        consumer.maintain()


def entries(place: Place, failures: str) -> int:
    return sum(not name.startswith(b"~") for name in place.client.hkeys(failures))


def test_what_every_group_has_settled_is_removed_after_its_time(place: Place) -> None:
    broker = keep(place, 0.5)
    consumer = place.joined(broker, BILLING, SHIPPING)
    published = publish(broker, 300)
    taken = place.take(consumer, 300, BILLING)
    consumer.ack(taken)

    rounds(place, consumer)
    assert place.ids() == published, "the other group has not read them"

    taken = place.take(consumer, 300, SHIPPING)
    consumer.ack(taken[:100])
    consumer.nack(taken[100], 3600)
    consumer.ack(taken[101:])
    pass_time(place, 0.5)
    rounds(place, consumer)
    assert place.ids() == published[100:], "one still comes again"
    consumer.ack(taken[100:101])
    rounds(place, consumer)
    assert place.ids() == []


def test_what_is_settled_is_kept_for_looking_back(place: Place) -> None:
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    published = publish(broker, 50)
    consumer.ack(place.take(consumer, 50))
    rounds(place, consumer)
    assert place.ids() == published


def test_no_more_than_so_many_settled_messages_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "MOST_RETAINED", 250)
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    published = publish(broker, 1000)
    taken = place.take(consumer, 1000)
    rounds(place, consumer)
    assert place.ids() == published, "none is settled"
    consumer.ack(taken[:500])
    rounds(place, consumer)
    left = place.ids()
    assert left[-500:] == published[500:]
    assert len(left) < 600, "but for the rest of a node, nothing settled is left"
    consumer.ack(taken[500:])
    rounds(place, consumer)
    assert len(place.ids()) in range(250, 351), "whole nodes of the stream are removed"


def test_a_topic_that_nobody_reads_loses_nothing(place: Place) -> None:
    broker = keep(place, 0.01)
    consumer = place.joined(broker)
    published = publish(broker, 100)
    pass_time(place, 0.05)
    rounds(place, consumer)
    assert place.ids() == published


def test_a_group_that_starts_in_the_past_or_future_holds_nothing_up_wrongly(place: Place) -> None:
    broker = keep(place, 0.01)
    consumer = place.joined(broker)
    place.client.xgroup_create(place.stream, "future", "99999999999999-18446744073709551615")
    published = publish(broker, 10)
    taken = place.take(consumer, 10)
    consumer.ack(taken[:5])
    pass_time(place, 0.05)
    rounds(place, consumer)
    assert place.ids() == published[5:]


def test_a_lost_group_is_restored(place: Place) -> None:
    """Nothing comes twice: neither what was settled before or after the last look, nor what somebody works on."""
    broker = place.broker(heartbeat=0.5)
    one, two, gone = place.joined(broker), place.joined(broker), place.joined(broker)
    published = publish(broker, 30)
    first = [*one.receive({BILLING: 10}, 0), *gone.receive({BILLING: 5}, 0), *two.receive({BILLING: 15}, 0)]
    one.ack(first[:3])
    rounds(place, one)
    one.ack(first[3:6])
    published += publish(broker, 10)
    second = [*two.receive({BILLING: 4}, 0), *one.receive({BILLING: 2}, 0)]
    two.ack(second[:2])
    two.dead_letter(first[15], REASON)
    two.nack(first[16], 0)
    assert ids([*first, *second]) == published[:36]

    place.client.xgroup_destroy(place.stream, "billing")
    for consumer in (one, two):
        with pytest.raises(BrokerError):
            consumer.receive({BILLING: 10}, 0)
    for consumer in (one, two):
        assert not consumer.receive({BILLING: 10}, 0)
    taken = place.take(one, 5)
    assert ids(taken) == [published[16], *published[36:]], "a retry, and what nobody had"
    again = ids(place.take(two, 5))
    assert sorted(again) == sorted(published[10:15]), "what a consumer had that is gone"
    for consumer in (one, two):
        assert not consumer.receive({BILLING: 10}, 0.3)
    one.nack(first[7], 0)
    two.dead_letter(first[20], REASON)
    (retried,) = place.take(one, 1)
    assert (retried.message.id, retried.message.attempt) == (published[7], 2)
    assert {letter.message.id for letter in broker.dead_letters(BILLING)} == {published[15], published[20]}


def test_who_is_busy_keeps_what_he_has_when_his_group_is_lost(place: Place) -> None:
    """Though he does not read meanwhile."""
    broker = keep(place, 3600)
    busy, other = place.joined(broker), place.joined(broker)
    publish(broker, 2)
    held = place.take(busy, 2)
    rounds(place, other)
    place.client.xgroup_destroy(place.stream, "billing")
    published = publish(broker, 1)
    assert ids(place.take(other, 1)) == published
    busy._look_at = 0.0
    busy.maintain()
    pass_time(place, 0.3)
    assert not other.receive({BILLING: 10}, 0.2)
    busy.ack(held)
    assert place.client.xpending(place.stream, "billing")["pending"] == 1


def test_who_is_busy_keeps_also_what_nobody_has_noted_yet_when_his_group_is_lost(place: Place) -> None:
    broker = keep(place, 3600)
    busy, other = place.joined(broker), place.joined(broker)
    publish(broker, 8)
    held = place.take(busy, 8)
    place.client.xgroup_destroy(place.stream, "billing")
    with pytest.raises(BrokerError):
        other.receive({BILLING: 10}, 0)
    assert not other.receive({BILLING: 10}, 0), "it makes the group anew, and waits for the others"
    busy._look_at = 0.0
    busy.maintain()
    published = publish(broker, 1)
    assert ids(place.take(other, 1)) == published
    busy.ack(held)
    assert place.client.xpending(place.stream, "billing")["pending"] == 1


def test_what_the_server_forgot_to_have_handed_out_is_kept_by_who_has_it(place: Place) -> None:
    """As a replica does that was behind when it became the master."""
    broker = keep(place, 3600)
    busy, other = place.joined(broker), place.joined(broker)
    publish(broker, 8)
    held = place.take(busy, 8)
    place.client.xgroup_destroy(place.stream, "billing")
    place.client.xgroup_create(place.stream, "billing", "0")
    place.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    for consumer in (busy, other):
        with pytest.raises(BrokerError):
            consumer.receive({BILLING: 1}, 0)
        until(lambda consumer=consumer: comes_back(consumer))
    published = publish(broker, 1)
    assert ids(place.take(other, 1)) == published
    busy.ack(held)
    assert place.client.xpending(place.stream, "billing")["pending"] == 1


def comes_back(consumer: RedisConsumer) -> bool:
    with contextlib.suppress(BrokerError):
        consumer.receive({}, 0)
        return True
    return False


def test_a_topic_with_which_something_is_wrong_holds_up_no_other(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its messages, nor what is taken over from the dead."""
    monkeypatch.setattr(consumer_module, "_REJOIN", 0.0)
    broker = place.broker(heartbeat=0.2)
    bad = SubscriptionKey("bad", "billing")
    consumer, gone = place.joined(broker, bad, BILLING), place.joined(broker, bad, BILLING)
    published = publish(broker, 1)
    assert ids(gone.receive({BILLING: 1}, 0)) == published
    stream = broker.keys("bad").stream
    place.client.delete(stream)
    place.client.set(stream, "of another program")
    published += publish(broker, 3)
    found: list[str] = []

    def take() -> bool:
        for act in (consumer.maintain, lambda: found.extend(ids(consumer.receive({BILLING: 10, bad: 10}, 0.1)))):
            with contextlib.suppress(StreamConflict):
                act()
        return len(found) == 4

    until(take)
    assert sorted(found) == sorted(published)
    place.client.delete(stream)
    late = message("bad")
    broker.publish([late])
    assert ids(place.take(consumer, 1, bad)) == [late.id]
    said = [one.getMessage() for one in caplog.records if "'bad'" in one.getMessage()]
    assert [one.partition(":")[0] for one in said] == [
        "group 'billing' of topic 'bad' is left out, and tried again every 0 s",
        "group 'billing' of topic 'bad' was lost, and is made anew",
        "group 'billing' of topic 'bad' is joined again",
    ]


def test_a_group_that_was_made_anew_unseen_hands_out_nothing_twice(place: Place) -> None:
    """Its next read simply succeeds, and brings what it had already."""
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    published = publish(broker, 10)
    taken = place.take(consumer, 10)
    consumer.ack(taken[:5])
    place.client.xgroup_destroy(place.stream, "billing")
    place.consumer(broker).receive({}, 0)  # joins, and reads nothing
    published += publish(broker, 1)
    assert ids(place.take(consumer, 1)) == published[10:]
    consumer.ack(taken[5:])
    assert place.client.xpending(place.stream, "billing")["pending"] == 1


def test_a_group_lost_while_no_worker_ran_begins_there_too(place: Place) -> None:
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    published = publish(broker, 20)
    consumer.ack(place.take(consumer, 20)[:10])
    rounds(place, consumer)
    consumer.close()

    place.client.xgroup_destroy(place.stream, "billing")
    published += publish(broker, 1)
    assert sorted(ids(place.take(place.consumer(broker), 11))) == published[10:]  # the new one waits for no others


def test_what_a_lost_group_had_not_settled_is_kept_for_it(place: Place) -> None:
    """Though it is not there to say so, and the others have settled all."""
    broker = keep(place, 0.2)
    busy, other = place.joined(broker), place.joined(broker, SHIPPING)
    published = publish(broker, 10)
    other.ack(place.take(other, 10, SHIPPING))
    held = busy.receive({BILLING: 1}, 0)
    rounds(place, other)
    place.client.xgroup_destroy(place.stream, "billing")
    pass_time(place, 0.2)
    rounds(place, other)
    assert place.ids() == published
    busy.ack(held)
    assert ids(place.take(busy, 9)) == published[1:]


def test_no_room_is_made_of_what_a_lost_group_had_not_settled(place: Place) -> None:
    place.topics["orders"] = TopicOptions(max_backlog=10)
    broker = keep(place, 3600)
    one, other = place.joined(broker), place.joined(broker, SHIPPING)
    published = publish(broker, 10)
    other.ack(place.take(other, 10, SHIPPING))
    one.ack(one.receive({BILLING: 4}, 0))
    rounds(place, other)
    place.client.xgroup_destroy(place.stream, "billing")
    published += publish(broker, 4)
    with pytest.raises(BrokerFull):
        publish(broker, 1)
    assert place.ids() == published[4:]


def test_a_lost_group_that_nobody_makes_anew_is_waited_for_no_longer_than_a_day(place: Place) -> None:
    broker = keep(place, 0.2)
    one, other = place.joined(broker), place.joined(broker, SHIPPING)
    published = publish(broker, 10)
    other.ack(place.take(other, 10, SHIPPING))
    rounds(place, other)
    one.close()
    place.client.xgroup_destroy(place.stream, "billing")
    pass_time(place, 0.2)
    rounds(place, other)
    assert place.ids() == published
    floors = topic_keys(place.namespace, "orders", None).floors
    lost_at = float(place.client.hget(floors, "~lost:billing"))
    place.client.hset(floors, "~lost:billing", f"{lost_at - 86_400_000:.0f}")
    rounds(place, other)
    assert place.ids() == []


def test_a_group_that_is_removed_is_waited_for_not_at_all(place: Place) -> None:
    broker = keep(place, 0.2)
    one, other = place.joined(broker), place.joined(broker, SHIPPING)
    publish(broker, 10)
    other.ack(place.take(other, 10, SHIPPING))
    rounds(place, other)
    one.close()
    broker.remove_group(BILLING)
    pass_time(place, 0.2)
    rounds(place, other)
    assert place.ids() == []


def test_a_flushed_topic_begins_anew(place: Place) -> None:
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    publish(broker, 20)
    consumer.ack(place.take(consumer, 20))
    rounds(place, consumer)
    place.client.delete(*place.client.keys(f"{place.namespace}:*"))
    published = publish(broker, 3)
    assert ids(place.take(consumer, 3)) == published


def test_dead_letters_are_kept_for_a_time_of_their_own(place: Place) -> None:
    broker = keep(place, 0.01)
    object.__setattr__(broker.options, "dead_letter_retention", 0.5)
    consumer = place.joined(broker)
    publish(broker, 2)
    first, second = place.take(consumer, 2)
    consumer.dead_letter(first, REASON)
    consumer._upkeep.tidy_at = 0.0
    rounds(place, consumer, 1)
    assert len(broker.dead_letters(BILLING)) == 1
    pass_time(place, 0.5)
    consumer.dead_letter(second, REASON)
    consumer._upkeep.tidy_at = 0.0
    rounds(place, consumer, 1)
    assert [one.message.id for one in broker.dead_letters(BILLING)] == [second.message.id]


def test_what_is_known_of_failures_is_forgotten_with_the_message(place: Place) -> None:
    broker = keep(place, 3600)
    consumer = place.joined(broker)
    failures = broker.keys("orders").failures("billing")
    publish(broker, 4)
    for delivery in place.take(consumer, 4):
        consumer.nack(delivery, 0)
    again = place.take(consumer, 4)
    assert entries(place, failures) == 4
    consumer.ack(again[:1])
    consumer.dead_letter(again[1], DeadLetterReason("rejected"))
    assert entries(place, failures) == 2
    place.client.xack(
        place.stream, "billing", str(again[2].message.position)
    )  # as if we had died before the second step
    consumer._upkeep.tidy_at = 0.0
    rounds(place, consumer)
    assert entries(place, failures) == 1


def test_a_group_that_nobody_consumes_is_reported_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    broker = keep(place, 0.2)
    place.joined(broker, SHIPPING).close()
    consumer = place.joined(broker)
    publish(broker, 1)
    pass_time(place, 0.3)
    publish(broker, 1)
    consumer.ack(place.take(consumer, 2))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            consumer._upkeep.tidy_at = 0.0
            rounds(place, consumer)
    reports = [one.getMessage() for one in caplog.records if "nobody consumes" in one.getMessage()]
    assert len(reports) == 1
    assert "group 'shipping' of topic 'orders'" in reports[0]
    broker.remove_group(SHIPPING)
    rounds(place, consumer)
    assert len(place.ids()) < 2


def test_two_applications_look_after_their_own_topics(place: Place) -> None:
    """The turns of one keep the other from nothing, though they share a namespace."""
    broker = keep(place, 0.01)
    others = SubscriptionKey("parcels", "sending")
    busy, quiet = place.joined(broker, others), place.joined(broker)
    publish(broker, 3)
    quiet.ack(place.take(quiet, 3))

    def is_done() -> bool:
        busy.maintain()
        return not place.ids()

    maintained(quiet, is_done)


@pytest.fixture
def tight() -> Iterator[Place]:
    """A server that hangs up on who reads more than 4 MB at once."""
    limit = {"client-output-buffer-limit": "normal 4mb 4mb 1"}
    with redis_server(**limit) as server, Redis.from_url(server.url, protocol=2) as client:
        place = Place(server.url, client)
        yield place
        place.clean_up()


def test_messages_too_large_to_be_read_at_once_are_read_a_few_at_a_time(tight: Place) -> None:
    broker = tight.broker()
    consumer = tight.joined(broker)
    messages = [message(payload=b"x" * 900_000) for _ in range(30)]
    for one in messages:
        broker.publish([one])
    taken: list[str] = []
    failures = 0
    deadline = time.monotonic() + 20
    while len(taken) < 30:
        assert time.monotonic() < deadline, f"{len(taken)} came, after {failures} failures"
        try:
            received = consumer.receive({BILLING: 30}, 0.1)
        except BrokerError:
            failures += 1
        else:
            taken += ids(received)
            assert {one.message.attempt for one in received} == {1}
            consumer.ack(received)
    assert sorted(taken) == sorted(one.id for one in messages)
    assert failures < 10
