"""`publish`: messages from an argument, a file, or lines of JSON."""

import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import click

from pubsub_core.broker import Inspector
from pubsub_core.commands import Door, Misused
from pubsub_core.commands.frame import Desk, Interrupted, command, topic_argument
from pubsub_core.errors import BrokerError, BrokerUnavailable, CodecError, PubSubError, ValidationError
from pubsub_core.names import did_you_mean, is_name
from pubsub_core.pubsub import Batch

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_BATCH = 500


def publish(door: Door, *, takes_target: bool) -> click.Command:
    """Make the command `publish`."""

    def run(desk: Desk, topic: str, payload: str | None, *, file: IO[bytes] | None, lines: bool, **terms: Any) -> None:
        if lines:
            _refuse_with_lines(payload, **terms)
            file = file or sys.stdin.buffer
        if (payload is None) == (file is None):
            raise click.UsageError("give a payload, or --file; for stdin: --file -, or --lines alone")
        options = _options(**terms)
        warning = _unread(desk, topic)
        if file is not None and lines:
            _publish_lines(desk, topic, file, options, warning)
            return
        encoded = file.read() if file is not None else str(payload).encode()
        message_id = desk.pubsub.publish(topic, _read(desk, topic, encoded, "the payload"), **options)
        desk.answer({"published": [message_id]}, lambda: click.echo(message_id))
        _warn(warning)

    return command(
        door, run, topic_argument(), click.Argument(["payload"], required=False),
        click.Option(["--file"], type=click.File("rb"), help="Read the payload there; - is stdin."),
        click.Option(["--lines"], is_flag=True, help="The file, or stdin without --file, has a payload in each line."),
        click.Option(["--key"], help="The key of the message."),
        click.Option(["--header", "headers"], multiple=True, metavar="NAME=VALUE", help="May be given again."),
        click.Option(["--delay"], type=float, metavar="SECONDS", help="Deliver so much later."),
        click.Option(["--at"], metavar="TIME", help="Deliver at an ISO time with a zone."),
        click.Option(["--expires"], type=float, metavar="SECONDS", help="Do not handle it later than that."),
        click.Option(["--dedup"], metavar="KEY", help="Publish nothing if that key was used within 5 minutes."),
        takes_target=takes_target, name="publish",
        help="Publish a message to TOPIC, and write its id. PAYLOAD is JSON, and is validated as what the application "
        "declares the topic to carry. Where nobody declares the topic or reads it, stderr warns; the message is stored "
        "all the same, and the exit code is 0.\n\nWith --lines each line is published; the lines before one that does "
        "not fit are published then.",
        examples=[
            """publish orders.placed '{"order_id": 1, "total": 9.5}'""",
            "publish orders.placed --file orders.jsonl --lines",
        ],
    )  # fmt: skip


def _refuse_with_lines(payload: str | None, *, dedup: str | None, **_: Any) -> None:
    if payload is not None:
        raise click.UsageError("--lines is for --file or stdin: leave out the payload, or --lines")
    if dedup is not None:
        raise click.UsageError("--dedup is for one message: of all --lines only the first would be published")


def _unread(desk: Desk, topic: str) -> str | None:
    """Return what to say of a topic that nobody declares or reads: its name may be misspelt. None if somebody does."""
    declared, broker = {one.name for one in desk.pubsub.topics}, desk.pubsub.runtime.broker
    if topic in declared or not is_name(topic) or not isinstance(broker, Inspector):
        return None
    try:
        if broker.groups(topic):
            return None
    except BrokerUnavailable:
        raise
    except BrokerError:
        return None  # one that may only publish cannot know, and is not kept from it
    known = declared
    with suppress(BrokerError):
        known = declared | {*broker.topics()}
    return (
        f"Warning: {'the application does not declare' if desk.is_application else 'nobody is known to consume'} topic "
        f"{topic!r}, and no group reads it: what is published to it is kept for whoever comes."
        f"{did_you_mean(topic, known - {topic})} To take it back: purge {topic} --everything"
    )


def _warn(warning: str | None) -> None:
    if warning is not None:
        click.echo(warning, err=True)


def _options(headers: Sequence[str], at: str | None, **others: Any) -> dict[str, Any]:
    pairs = [one.partition("=") for one in headers]
    if not all(separator for _, separator, _ in pairs):
        raise click.BadParameter("a header is NAME=VALUE")
    try:
        moment = None if at is None else datetime.fromisoformat(at)
    except ValueError:
        raise click.BadParameter(f"--at {at!r} is no ISO time, as 2030-12-31T12:00Z is one") from None
    return {**others, "at": moment, "headers": {name: value for name, _, value in pairs} or None}


def _read(desk: Desk, topic: str, encoded: bytes, what: str) -> Any:
    try:
        return desk.pubsub.topic(topic).codec.decode(encoded)
    except CodecError as error:
        raise Misused(f"{what} was not published to {topic!r}: {error}") from None


def _publish_lines(desk: Desk, topic: str, file: IO[bytes], options: dict[str, Any], warning: str | None) -> None:
    """Publish line by line, many at a time; say on stderr how it goes, if that is a terminal. Warn in the end."""
    count = sending = 0
    lines = enumerate(_without_mark(file), 1)
    try:
        with _bar(_size(file)) as bar:
            while some := list(islice(lines, _BATCH)):
                sending = len(some)
                try:
                    with desk.pubsub.batch() as batch:
                        failure = _add(desk, batch, topic, some, options)
                except PubSubError as error:
                    raise type(error)(f"{str(error).rstrip('.')}. {count:,} messages were published before") from None
                count, sending = count + len(batch.ids), 0
                bar.update(sum(len(line) for _, line in some), count)
                if failure is not None:
                    raise Misused(f"{failure}. {count:,} messages were published before")
    except KeyboardInterrupt:
        perhaps = f", and perhaps the {sending:,} lines after them" if sending else ""
        raise Interrupted(f"interrupted. {count:,} messages were published{perhaps}") from None
    desk.answer({"count": count}, lambda: click.echo(f"{count:,} messages published"))
    _warn(warning if count else None)


def _bar(size: int) -> "ProgressBar[int]":
    """Return what shows how many messages were published; and how far that is, if so many bytes are known to come."""
    return click.progressbar(
        length=size,
        label="publishing",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        item_show_func=lambda count: "" if count is None else f"{count:,} messages",
        bar_template="%(label)s  [%(bar)s]  %(info)s" if size else "%(label)s  %(info)s",
        show_percent=size > 0,
        show_eta=size > 0,
    )


def _add(
    desk: Desk, batch: Batch, topic: str, lines: Iterable[tuple[int, bytes]], options: dict[str, Any]
) -> str | None:
    """Add the lines to a batch, up to one that does not fit; return what is wrong with that."""
    for number, line in _not_blank(lines):
        try:
            batch.publish(topic, _read(desk, topic, line, f"line {number}"), **options)
        except (Misused, ValidationError) as error:
            return str(error)
    return None


def _without_mark(file: IO[bytes]) -> Iterator[bytes]:
    """Return the lines without the byte order mark that some programs begin UTF-8 with."""
    for first in file:
        yield first.removeprefix(BOM_UTF8)
        break
    yield from file


def _not_blank(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in lines if line.strip())


def _size(file: IO[bytes]) -> int:
    """Return how many bytes there are to read, as far as that is known."""
    if not file.seekable():
        return 0
    here = file.tell()
    size = file.seek(0, 2) - here
    file.seek(here)
    return size
