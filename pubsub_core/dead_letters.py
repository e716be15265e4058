"""The dead letters of a group: to look at, to deliver again, to delete."""

from collections.abc import Callable, Iterable, Iterator

from pubsub_core.broker import DeadLetter, Inspector
from pubsub_core.message import SubscriptionKey

_PAGE = 100


class DeadLetters:
    """The dead letters of one group, the newest first. Made by `PubSub.dead_letters`. Every use asks the broker anew.

        letters = pubsub.dead_letters("orders.placed", group="billing")
        for letter in letters:
            print(letter.message.id, letter.reason.kind, letter.reason.error)
        letters.replay(where=lambda letter: letter.reason.error == "ConnectionError")

    Safe to use from any thread. Iterating takes a page at a time; what dies meanwhile is not among it.
    """

    def __init__(self, inspector: Inspector, key: SubscriptionKey) -> None:
        self._inspector = inspector
        self._key = key

    def __repr__(self) -> str:
        """Whose they are."""
        return f"DeadLetters(topic={self._key.topic!r}, group={self._key.group!r})"

    def __iter__(self) -> Iterator[DeadLetter]:
        """Return all of them."""
        before = None
        while page := self._inspector.dead_letters(self._key, _PAGE, before=before):
            yield from page
            before = page[-1].position

    def newest(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest `limit`."""
        return list(self._inspector.dead_letters(self._key, limit))

    def replay(
        self, letters: Iterable[DeadLetter] | None = None, *, where: Callable[[DeadLetter], bool] | None = None
    ) -> int:
        """Deliver to the group again, and to no other, the oldest first; return how many were there.

        All of them, or `letters`, or those for which `where` is true. Each is moved as a whole: its id, payload, key
        and headers stay, `attempt` begins at 1, `source` is "replay". After an error it may be called again.
        """
        positions = self._positions(self if letters is None else letters, where)
        return sum(self._inspector.replay(self._key, page) for page in _pages(positions))

    def discard(
        self, letters: Iterable[DeadLetter] | None = None, *, where: Callable[[DeadLetter], bool] | None = None
    ) -> int:
        """Delete for good `letters`, or those for which `where` is true; return how many were there.

        Raises ValueError if it gets neither: for all of them, pass the `DeadLetters` itself.
        """
        if letters is None and where is None:
            raise ValueError("discard() deletes for good: say which letters, or where=; for all: discard(letters)")
        positions = self._positions(self if letters is None else letters, where)
        return sum(self._inspector.discard(self._key, page) for page in _pages(positions))

    def _positions(self, letters: Iterable[DeadLetter], where: Callable[[DeadLetter], bool] | None) -> list[str]:
        chosen = [one.position for one in letters if where is None or where(one)]
        return chosen[::-1]


def _pages(positions: list[str]) -> Iterator[list[str]]:
    return (positions[start : start + _PAGE] for start in range(0, len(positions), _PAGE))
