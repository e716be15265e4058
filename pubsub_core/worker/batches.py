"""Several deliveries in one call of a handler, and what becomes of each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pubsub_core.errors import BatchFailure, CodecError
from pubsub_core.message import Delivery


class BatchCall:
    """What one call of a handler takes. What cannot be decoded is left out of it."""

    def __init__(
        self,
        deliveries: Sequence[Delivery[bytes]],
        decode: Callable[[Delivery[bytes]], Any],
        call: Callable[[list[Any]], None],
    ) -> None:
        self.deliveries = deliveries
        self._decode = decode
        self._call = call
        self._given: list[Delivery[bytes]] = []
        self._unreadable: dict[int, CodecError] = {}

    def attempt(self) -> Literal[True]:
        """Decode, and call the handler, unless nothing is left for it. Raises what it raises."""
        decoded: list[Any] = []
        for one in self.deliveries:
            try:
                decoded.append(self._decode(one))
            except CodecError as error:
                self._unreadable[id(one)] = error
            else:
                self._given.append(one)
        if decoded:
            self._call(decoded)
        return True

    @property
    def is_readable(self) -> bool:
        """Whether all could be decoded, of what was tried."""
        return not self._unreadable

    def unreadable(self) -> Iterator[tuple[Delivery[bytes], CodecError]]:
        """Yield what could not be decoded, and why."""
        for one in self.deliveries:
            if (error := self._unreadable.get(id(one))) is not None:
                yield one, error

    def readable(self, error: BaseException | None) -> Iterator[tuple[Delivery[bytes], BaseException | None]]:
        """Yield the others, and what each failed with, if the handler raised this."""
        some = self._some(error)
        if isinstance(some, dict):
            yield from ((one, some.get(index)) for index, one in enumerate(self._given))
        else:
            yield from ((one, some) for one in self.deliveries if id(one) not in self._unreadable)

    def _some(self, error: BaseException | None) -> dict[int, BaseException] | BaseException | None:
        if not isinstance(error, BatchFailure):
            return error
        beyond = [index for index in error.errors if index >= len(self._given)]
        if not beyond:
            return error.errors
        wrong = IndexError(f"BatchFailure names index {min(beyond)} of a list of {len(self._given)}: all of it fails")
        wrong.__cause__ = error
        return wrong
