"""What has become of the schemas since they were exported: which changes break readers or writers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pubsub_core.codec import TypedJson, parts_of
from pubsub_core.schema.compatibility import Problem, problems
from pubsub_core.schema.export import (
    Directory,
    Document,
    described_topics,
    document,
    document_of,
    has_schema,
    read,
    written,
)

if TYPE_CHECKING:
    from pubsub_core.pubsub import PubSub
    from pubsub_core.topic import Topic


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong in one respect, what of the schema shows it, and what to do about it."""

    what: str
    problems: Sequence[Problem] = ()
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one topic's schema, in short. What has findings must not be released."""

    topic: str
    version: int
    summary: str
    findings: Sequence[Finding] = ()


def check(pubsub: "PubSub", directory: Directory) -> Sequence[Verdict]:
    """Compare the schemas of all topics with the files of a directory. Changes nothing."""
    lost = [topic for topic in pubsub.topics if not has_schema(topic) and directory.versions(topic.name)]
    verdicts = [_verdict(topic, directory, pubsub) for topic in (*described_topics(pubsub), *lost)]
    gone = sorted({name for name, _ in directory.all()} - {topic.name for topic in pubsub.topics})
    return (*verdicts, *(Verdict(name, directory.versions(name)[-1], "not declared here") for name in gone))


def export(pubsub: "PubSub", directory: Directory, *, force: bool = False) -> Sequence[Verdict]:
    """Write the schemas of all topics into a directory: new versions, and changes that break nobody.

    With `force` also those that do, which is right only if the version was never published.
    """
    return [_exported(topic, directory, force=force) for topic in described_topics(pubsub)]


def _exported(topic: "Topic[Any]", directory: Directory, *, force: bool) -> Verdict:
    current = document(topic)
    findings: Sequence[Finding] = ()
    if topic.version in directory.versions(topic.name) and not force:
        findings = breaking(topic, current, directory.load(topic.name, topic.version))
    if findings:
        return Verdict(topic.name, topic.version, "not written, as it would break readers or writers", findings)
    is_changed = directory.save(topic.name, topic.version, current)
    return Verdict(topic.name, topic.version, "written" if is_changed else "unchanged")


def breaking(topic: "Topic[Any]", current: Document, exported: Document) -> Sequence[Finding]:
    """Return why a schema cannot take the place of the one that was exported for the same version."""
    fix = (
        f"Declare it with version={topic.version + 1}, say what a payload of version {topic.version} is then, with "
        f"@topic.upcast(from_version={topic.version}), and run `pubsub schema export`."
    )
    writers = problems(read(exported), read(current))
    known = problems(written(exported), read(exported))  # and so no news
    readers = [one for one in problems(written(current), read(exported)) if one not in known]
    findings = (
        Finding("What was written before could not be read any more", writers, fix),
        Finding("Readers of the exported schema could not read what is written now", readers, fix),
    )
    return [one for one in findings if one.problems]


def _verdict(topic: "Topic[Any]", directory: Directory, pubsub: "PubSub") -> Verdict:
    current = document(topic)
    findings = [*_of_files(topic, directory), *_of_itself(topic, current), *_of_handlers(topic, current, pubsub)]
    summary = "not exported"
    if topic.version in directory.versions(topic.name):
        exported = directory.load(topic.name, topic.version)
        broken = breaking(topic, current, exported)
        findings += broken
        summary = "changed, and breaks readers or writers" if broken else "changed, and compatible"
        summary = "unchanged" if current == exported else summary
    return Verdict(topic.name, topic.version, summary, tuple(findings))


def _of_files(topic: "Topic[Any]", directory: Directory) -> Iterator[Finding]:
    known = directory.versions(topic.name)
    if topic.version not in known:
        yield Finding(
            f"There is no {directory.file(topic.name, topic.version)}",
            fix="Run `pubsub schema export`, and commit what it writes.",
        )
    if known and known[-1] > topic.version:
        yield Finding(
            f"There is {directory.file(topic.name, known[-1])}, and the topic is at version {topic.version}",
            fix=f"Messages of version {known[-1]} may be stored. Declare it with version={known[-1] + 1} and the "
            f"upcasts, or remove the file if that version was never published.",
        )


def _of_itself(topic: "Topic[Any]", current: Document) -> Iterator[Finding]:
    """Say if what is written cannot be read by the very same type."""
    if isinstance(topic.codec, TypedJson) and _reads_several_names(topic.codec):
        return  # JSON Schema tells one of them
    found = [one for one in problems(written(current), read(current)) if one.is_certain]
    if found:
        yield Finding("Its own readers could not read what it writes", found, "Make the type read what it writes.")


def _reads_several_names(codec: TypedJson[Any]) -> bool:
    """Whether a field is read under any of several names."""
    return any(isinstance(part.get("validation_alias"), list) for part in parts_of(codec.adapter.core_schema))


def _of_handlers(topic: "Topic[Any]", current: Document, pubsub: "PubSub") -> Iterator[Finding]:
    """Say which handlers ask for a type that cannot be read from what is written."""
    for one in pubsub.subscriptions():
        codec = one.handler.codec
        if one.topic != topic.name or not isinstance(codec, TypedJson) or codec.schema == topic.schema:
            continue
        found = [problem for problem in problems(written(current), read(document_of(codec))) if problem.is_certain]
        if found:
            yield Finding(
                f"Its handler {one.handler.name} ({one.handler.where}) could not read what is written",
                found,
                "Let the handler ask for what the topic carries.",
            )
