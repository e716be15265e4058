"""The memory broker as tests want it; see `pubsub_core.testing.controlled`."""

from pubsub_core.broker import Consumer
from pubsub_memory.broker import MemoryBroker
from pubsub_memory.consumer import MemoryConsumer


class ControlledMemoryBroker(MemoryBroker):
    """Its consumers can be lost, and its messages erased."""

    def lose(self, consumer: Consumer) -> None:
        """Hand what the consumer holds to others, as if it had crashed."""
        assert isinstance(consumer, MemoryConsumer)  # noqa: S101  # this made it
        with self._store.lock:
            self._store.remove(consumer, self.time(), is_dead=True)

    def erase(self) -> None:
        """Forget all messages and schedules of the namespace."""
        with self._store.lock:
            for stream in [one for one in self._store.logs if one.startswith(f"{self._options.namespace}:")]:
                del self._store.logs[stream]
            self._schedules.clear()
