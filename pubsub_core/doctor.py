"""What is wrong with an application's topics and groups, and with its broker: why it matters, and how to mend it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from pubsub_core.broker import Examinable, Finding, GroupState, Inspector, Severity
from pubsub_core.errors import BrokerUnavailable
from pubsub_core.message import SubscriptionKey
from pubsub_core.pubsub import PubSub

SOON = 1.0  # seconds by which clocks may differ without anybody minding
_MANY = 10_000  # messages that wait
_LATE = timedelta(minutes=5)
_LARGE = 1024**3  # bytes

_ORDER = ("error", "warning", "note")


def examine(pubsub: PubSub) -> Sequence[Finding]:
    """Return what is not as it should be, the worst first. Changes nothing. Raises BrokerError for what it cannot do.

    A broker that cannot be reached is a finding, and then the only one.
    """
    broker = pubsub.runtime.broker
    try:
        findings = [*broker.examine()] if isinstance(broker, Examinable) else []
        findings += _clock(pubsub)
        if isinstance(broker, Inspector):
            findings += _topics(pubsub, broker)
    except BrokerUnavailable as error:
        return [
            Finding(
                "error",
                "unreachable",
                str(error),
                "nothing can be published or handled",
                "start the server, or mend PUBSUB_URL (see the command `config`), the network or the firewall",
            )
        ]
    return sorted(findings, key=lambda one: _ORDER.index(one.severity))


def _clock(pubsub: PubSub) -> Iterator[Finding]:
    """Compare the clocks: delays and schedules go by the server's, ids and logs by this machine's."""
    ahead = pubsub.runtime.clock.time() - pubsub.runtime.broker.time()
    if abs(ahead) > SOON:
        yield Finding(
            "warning",
            "clock difference",
            f"this machine's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's",
            "at= and the times in ids and logs are by this clock, delays and schedules by the server's",
            "keep both in time, by NTP: `timedatectl set-ntp true`",
        )


def _topics(pubsub: PubSub, inspector: Inspector) -> Iterator[Finding]:
    subscriptions = {one.key for one in pubsub.subscriptions()}
    declared = {one.name for one in pubsub.topics}
    named = inspector.topics()
    seen: set[SubscriptionKey] = set()
    for topic in sorted(declared | {*named}):
        states = inspector.groups(topic)
        seen |= {one.key for one in states}
        if topic in named and not states and not any(one.key.topic == topic for one in inspector.schedules()):
            yield Finding(
                "note",
                "orphaned name",
                f"topic {topic!r} is known by its name, and has no group any more",
                "it was consumed once; what is published to it is kept for whoever comes",
                f"if it is not needed any more: purge {topic} --everything",
            )
        for state in states:
            yield from _group(pubsub, state, subscriptions, inspector)
        yield from _growth(inspector, topic)
    for key in sorted(subscriptions - seen):
        yield Finding(
            "note",
            "never consumed",
            f"no worker has ever consumed {_shown(key)}, which the application subscribes",
            "its handler was never called",
            "start a worker: pubsub worker",
        )


def _group(
    pubsub: PubSub, state: GroupState, subscriptions: set[SubscriptionKey], inspector: Inspector
) -> Iterator[Finding]:
    key = state.key
    waiting = state.lag.at_least + state.pending
    alive = [one for one in inspector.consumers(key, 100) if one.is_alive] if state.consumers else []
    is_ours = key.topic in {one.topic for one in subscriptions}
    if is_ours and key not in subscriptions:
        severity: Severity = "error" if waiting and not alive else "warning" if not alive else "note"
        yield Finding(
            severity,
            "handler gone",
            f"the application has no handler for {_shown(key)}; {state.lag} messages wait for it",
            "if no other application handles it, it keeps all messages of the topic from being removed",
            f"subscribe it again, or: remove-group {key.topic} {key.group}",
        )
    elif not alive and waiting:
        yield Finding(
            "error",
            "no workers",
            f"nobody consumes {_shown(key)}: {state.lag} messages wait, {state.pending:,} are not settled",
            "nothing of it is handled, and all messages since are kept",
            f"start a worker, or if the group is not needed any more: remove-group {key.topic} {key.group}",
        )
    elif not alive:
        yield Finding(
            "warning",
            "no workers",
            f"nobody consumes {_shown(key)}; it has settled everything so far",
            "what is published will wait",
            f"start a worker, or if the group is not needed any more: remove-group {key.topic} {key.group}",
        )
    if state.dead:
        yield Finding(
            "warning",
            "dead letters",
            f"{_shown(key)} has {state.dead:,} dead letters",
            f"they were given up, and are deleted after {pubsub.settings.dead_letter_retention / 86_400:.0f} days",
            f"see why: dead list {key.topic} --group {key.group}; when that is mended: dead replay {key.topic} "
            f"--group {key.group}",
        )
    if state.is_paused:
        yield Finding(
            "warning",
            "paused",
            f"{_shown(key)} is paused; {state.lag} messages wait",
            "nothing of it is handled until it is resumed",
            f"resume {key.topic} --group {key.group}",
        )
    elif alive:
        yield from _behind(pubsub, state)


def _behind(pubsub: PubSub, state: GroupState) -> Iterator[Finding]:
    now = datetime.fromtimestamp(pubsub.runtime.broker.time(), UTC)
    oldest = state.oldest_unsettled
    is_late = oldest is not None and now - oldest > _LATE and state.lag.at_least > 0
    if is_late or state.lag.at_least >= _MANY:
        yield Finding(
            "warning",
            "behind",
            f"for {_shown(state.key)} {state.lag} messages wait, the oldest unsettled one since {oldest}",
            "messages come faster than they are handled, or a handler hangs",
            "see what is in hand: workers --in-hand; run more workers, processes or threads",
        )


def _growth(inspector: Inspector, topic: str) -> Iterator[Finding]:
    state = inspector.topic(topic)
    if state.messages and not state.groups:
        yield Finding(
            "warning",
            "no group",
            f"topic {topic!r} holds {state.messages:,} messages, and no group consumes it",
            "without a group nothing is settled, so nothing is ever removed",
            f"subscribe it, declare it with max_backlog=, or: purge {topic} --everything",
        )
    if state.dropped:
        yield Finding(
            "note",
            "dropped",
            f"of topic {topic!r} {state.dropped:,} messages were dropped to bound its backlog, ever",
            "its overflow is 'drop_oldest': some group did not see them",
            "run more workers, or raise max_backlog",
        )
    if state.memory is not None and state.messages and state.memory > _LARGE:
        each = state.memory / state.messages
        yield Finding(
            "warning",
            "large topic",
            f"topic {topic!r} takes {state.memory / 1024**2:,.0f} MiB: {state.messages:,} messages of about "
            f"{each:,.0f} bytes; another million would take {each * 1e6 / 1024**2:,.0f} MiB",
            "when the server's memory is full, publishing fails",
            "see which group is behind: groups; shorten PUBSUB_RETENTION, or declare the topic with max_backlog=",
        )


def _shown(key: SubscriptionKey) -> str:
    return f"group {key.group!r} of topic {key.topic!r}"
