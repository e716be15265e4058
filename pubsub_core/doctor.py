"""What is wrong with an application's topics and groups, and with its broker: why it matters, and how to mend it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic

from pubsub_core.broker import (
    USUAL,
    Examinable,
    Finding,
    GroupState,
    Inspector,
    ListsPauses,
    Searchable,
    Severity,
    TopicState,
)
from pubsub_core.errors import BrokerError, BrokerUnavailable, NotPermitted, StreamConflict
from pubsub_core.message import SubscriptionKey
from pubsub_core.pubsub import PubSub

SOON = 1.0  # seconds by which clocks may differ without anybody minding
_MANY = 10_000  # messages that wait
_SOME = 1_000  # messages that wait: so many are looked at twice, as they may be getting more
_APART = 1.0  # seconds between the two looks
_HOUR = 3600
_LATE = timedelta(minutes=5)
_SLACK = 3600.0  # seconds by which messages may be kept longer than they are to be
_FEW = 500  # messages that a server may keep beside: it removes many at a time
_LARGE = 1024**3  # bytes
_LONG = 100_000  # messages of a topic, from which on it is told what they take

_ORDER = ("error", "warning", "note")


def examine(pubsub: PubSub) -> Sequence[Finding]:
    """Return what is not as it should be, the worst first. Changes nothing.

    A broker that cannot be reached, or lets this user do nothing, is a finding, and then the only one. Where much
    waits it takes a second, to see whether that grows.
    """
    broker = pubsub.runtime.broker
    findings: list[Finding] = []
    looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = []
    if isinstance(broker, Examinable):
        looks.append(("the server", broker.examine))
    looks.append(("its clock", lambda: _clock(pubsub)))
    if isinstance(broker, Inspector):
        looks.append(("what waits", lambda: _growing(pubsub, broker)))
        looks.append(("topics and groups", lambda: _topics(pubsub, broker)))
        looks.append(("schedules", lambda: _schedules(broker)))
    refusals: list[NotPermitted] = []
    try:
        for what, look in looks:
            findings += _looked_at(what, look, refusals, pubsub.settings.namespace)
        if len(refusals) == len(looks):
            return [_no_access(refusals[0])]
        if isinstance(broker, Searchable):
            findings += _looked_at(
                "what is left over", lambda: _leftovers(pubsub, broker), refusals, pubsub.settings.namespace
            )
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


def _no_access(error: NotPermitted) -> Finding:
    return Finding(
        "error",
        "no access",
        str(error),
        "nothing can be published or handled by this user",
        "mend the user and the password in PUBSUB_URL, or give the user its rights: see docs/configuration.md, Rights",
    )


def _looked_at(
    what: str, look: Callable[[], Iterable[Finding]], refusals: list[NotPermitted], namespace: str
) -> Sequence[Finding]:
    """Return what is found, up to what cannot be looked at; that is a finding then, and the rest is examined.

    What the user may not look at is added to `refusals`.
    """
    findings: list[Finding] = []
    try:
        findings.extend(look())
    except NotPermitted as error:
        refusals.append(error)
        findings.append(
            Finding(
                "warning",
                "not permitted to look",
                f"{what} could not be looked at, or not wholly: {error}",
                "what is wrong there is not found",
                "run doctor with a user that may: docs/configuration.md has the rights of who operates",
            )
        )
    except BrokerUnavailable:
        raise
    except BrokerError as error:
        findings.append(_no_look(f"{what} could not be looked at, or not wholly", error, namespace))
    return findings


def _no_look(what: str, error: BrokerError, namespace: str) -> Finding:
    return Finding(
        "error",
        "cannot be looked at",
        f"{what}: {error}",
        "what is wrong there is not found, and publishing or consuming may fail for the same reason",
        "see that PUBSUB_URL names a Redis or Valkey (the command `config`), and that nobody else writes to "
        f"keys of the namespace {namespace!r}",
    )


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
    subscriptions = {one.key: one.start for one in pubsub.subscriptions()}
    declared = {one.name for one in pubsub.topics}
    named = inspector.topics()
    seen: set[SubscriptionKey] = set()
    unknown: set[str] = set()
    for topic in sorted(declared | {*named}):
        try:
            states, growth = inspector.groups(topic), [*_growth(pubsub, inspector, topic)]
        except StreamConflict as error:
            yield _no_look(f"topic {topic!r} could not be looked at", error, pubsub.settings.namespace)
            unknown.add(topic)
            continue
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
        yield from growth
    for key in sorted(subscriptions.keys() - seen):
        if key.topic in unknown:
            continue
        yield Finding(
            "note",
            "never consumed",
            f"no worker has ever consumed {_shown(key)}, which the application subscribes",
            "its handler was never called",
            "start a worker: pubsub worker",
        )

    for key in inspector.paused_groups() if isinstance(inspector, ListsPauses) else ():
        if key not in seen and key.topic not in unknown:
            yield Finding(
                "warning",
                "paused",
                f"{_shown(key)} is paused, and no worker has made it yet",
                "when one does, nothing of it is handled until it is resumed",
                f"resume {key.topic} --group {key.group}",
            )


def _schedules(inspector: Inspector) -> Sequence[Finding]:
    """See that they can be looked at; nothing else can be wrong with them."""
    inspector.schedules()
    return ()


def _leftovers(pubsub: PubSub, broker: Searchable) -> Iterator[Finding]:
    try:
        left = broker.leftovers()
    except NotPermitted as error:
        yield Finding(
            "note",
            "not permitted to look",
            f"whether anything is left over could not be looked at: {error}",
            "what nobody needs any more takes memory",
            "run doctor with a user that may: +scan",
        )
        return
    for topic in sorted({*left.topics} - {one.name for one in pubsub.topics}):
        yield Finding(
            "note",
            "orphaned topic",
            f"topic {topic!r} has messages, and neither does this application declare it nor did a worker consume it",
            "its name may be misspelt where it is published; nothing of it is ever removed",
            f"see what it has: tail {topic}; if it is not needed: purge {topic} --everything",
        )
    for key in left.groups:
        yield Finding(
            "warning",
            "orphaned keys",
            f"{_shown(key)} is gone, and dead letters or notes of it are left",
            "they take memory, and nobody looks after them",
            f"see what is dead: dead list {key.topic} --group {key.group}; then: remove-group {key.topic} {key.group}",
        )
    if not left.is_complete:
        yield Finding(
            "note",
            "not all looked at",
            "the broker keeps so much, or on so many servers, that not all was looked through for what is left over",
            "what nobody needs any more takes memory",
            "look through it by the means of each server, as redis-cli --scan is one",
        )


def _group(
    pubsub: PubSub, state: GroupState, subscriptions: Mapping[SubscriptionKey, object], inspector: Inspector
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
    until, start = state.passes_over_until, subscriptions.get(key)
    if until is not None and not (isinstance(start, datetime) and until <= start):
        yield Finding(
            "error",
            "ahead of its topic",
            f"{_shown(key)} stands at {until}, ahead of all messages of the topic, as after XGROUP SETID or XSETID by "
            "hand, or a clock that was wrong",
            "what is published until then is passed over unseen: it does not show as waiting, and is removed as if it "
            "were settled",
            f"while it is paused or has no workers: seek {key.topic} latest --group {key.group}; or, to have what was "
            f"passed over so far too, instead of latest a moment before that, as 2h: seek {key.topic} 2h --group "
            f"{key.group}",
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


def _growth(pubsub: PubSub, inspector: Inspector, topic: str) -> Iterator[Finding]:
    state = inspector.topic(topic)
    if topic in {one.name for one in pubsub.topics} and _is_kept_too_long(pubsub, inspector, state):
        yield Finding(
            "warning",
            "not removed",
            f"topic {topic!r} holds messages since {state.oldest} that every group has settled, for longer than "
            "its retention says",
            "the topic grows without end",
            f"start a worker, which removes them, or if one runs see its log; at once: purge {topic}",
        )
    if state.messages and not state.groups:
        is_ours = any(one.key.topic == topic for one in pubsub.subscriptions())
        yield Finding(
            "warning",
            "no group",
            f"topic {topic!r} holds {state.messages:,} messages, and no group consumes it",
            "without a group nothing is settled, so nothing is ever removed",
            f"{'start a worker, which makes the group' if is_ours else 'subscribe it'}, declare it with max_backlog=, "
            f"or: purge {topic} --everything",
        )
    if state.dropped:
        yield Finding(
            "note",
            "dropped",
            f"of topic {topic!r} {state.dropped:,} messages were dropped to bound its backlog, ever",
            "its overflow is 'drop_oldest': some group did not see them",
            "run more workers, or raise max_backlog",
        )
    if state.memory is not None and (state.memory > _LARGE or state.messages >= _LONG):
        each = state.memory / max(1, state.messages)
        yield Finding(
            "warning" if state.memory > _LARGE else "note",
            "large topic",
            f"topic {topic!r} takes {state.memory / 1024**2:,.0f} MiB: {state.messages:,} messages of about "
            f"{each:,.0f} bytes; another million would take {each * 1e6 / 1024**2:,.0f} MiB",
            "when the server's memory is full, publishing fails",
            "see which group is behind: groups; shorten PUBSUB_RETENTION, or declare the topic with max_backlog=",
        )


def _backlogs(pubsub: PubSub, inspector: Inspector) -> Mapping[SubscriptionKey, int]:
    """Return how much waits for groups that have workers, where it is much."""
    topics = {one.name for one in pubsub.topics} | {*inspector.topics()}
    states: list[GroupState] = []
    for topic in topics:
        with suppress(StreamConflict):  # which is found where the topics are looked at
            states += inspector.groups(topic)
    return {
        one.key: one.lag.at_least
        for one in states
        if one.lag.is_exact and one.lag.at_least >= _SOME and one.consumers and not one.is_paused
    }


def _growing(pubsub: PubSub, inspector: Inspector) -> Iterator[Finding]:
    """Look twice at what waits, where it is much."""
    before, since = _backlogs(pubsub, inspector), monotonic()
    if before:
        threading.Event().wait(_APART)
    for topic in sorted({key.topic for key in before}):
        states = inspector.groups(topic)
        seconds = monotonic() - since
        for state in states:
            grown = state.lag.at_least - before.get(state.key, state.lag.at_least)
            if grown > 0:
                yield _grows(inspector, state, grown / seconds)


def _grows(inspector: Inspector, state: GroupState, rate: float) -> Finding:
    topic = inspector.topic(state.key.topic)
    more = rate * _HOUR
    memory = ""
    if topic.memory is not None and topic.messages:
        each = topic.memory / topic.messages
        memory = f", which at about {each:,.0f} bytes each take {each * more / 1024**2:,.0f} MiB more"
    return Finding(
        "warning",
        "growing",
        f"for {_shown(state.key)} {state.lag} messages wait, and {rate:,.0f} more each second",
        f"messages come faster than they are handled: in an hour {more:,.0f} more would wait{memory}",
        "run more workers, processes or threads; see what takes the time: workers --in-hand",
    )


def _is_kept_too_long(pubsub: PubSub, inspector: Inspector, state: TopicState) -> bool:
    """Whether many messages are there still that every group has settled, and that should be gone since an hour."""
    keep = pubsub.runtime.topics.get(state.topic, USUAL).retention or pubsub.settings.retention
    bound = datetime.fromtimestamp(pubsub.runtime.broker.time() - keep - _SLACK, UTC)
    if state.oldest is None or state.oldest >= bound or not state.groups:
        return False
    if any(one.oldest_unsettled is not None and one.oldest_unsettled < bound for one in inspector.groups(state.topic)):
        return False
    first = [one.position for one in inspector.peek(state.topic, _FEW, after=state.oldest)]
    due = [one.position for one in inspector.peek(state.topic, 1, after=bound)]
    return len(first) == _FEW and not {*first} & {*due}


def _shown(key: SubscriptionKey) -> str:
    return f"group {key.group!r} of topic {key.topic!r}"
