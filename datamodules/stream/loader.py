"""Streams through worker processes."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from datamodules.stream.sources import DataError
from datamodules.stream.streams import EvalStream, RawBatch, TrainStream


class Loader:
    """Iterates a stream through worker processes; a `DataError` of a worker arrives as it was raised.

    Args:
        stream: what to load; it makes its own batches.
        workers: processes; 0 loads in this one.
        first: called when an iteration starts, gives the number of the batch to begin with. So a resumed run, or a new
            epoch of the trainer, continues where it was, whenever the loader itself was made.
    """

    def __init__(self, stream: TrainStream | EvalStream, workers: int, first: Callable[[], int] | None = None) -> None:
        self.stream, self.workers, self.first = stream, workers, first

    def __len__(self) -> int:
        """Batches of this rank.

        Raises:
            TypeError: the stream is endless.
        """
        if isinstance(self.stream, TrainStream):
            raise TypeError("the training stream is endless")
        return len(self.stream)

    def __iter__(self) -> Iterator[RawBatch]:
        """Starts the workers at the current batch."""
        if isinstance(self.stream, TrainStream) and self.first is not None:
            self.stream.first = self.first()

        own = torch.Generator()  # so that starting workers draws nothing from the global generator
        pin = torch.cuda.is_available()
        loader = DataLoader(_ErrorAsItem(self.stream), None, num_workers=self.workers, generator=own, pin_memory=pin)
        return map(_raise, loader)

    def state_dict(self) -> dict[str, int]:
        """Empty: the position is the number of batches so far. Lightning warns about loaders without this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Does nothing; see `state_dict`."""


class _ErrorAsItem(IterableDataset[RawBatch | DataError]):
    """Sends a `DataError` as the last item, since torch would wrap it in the text of a worker's traceback."""

    def __init__(self, stream: TrainStream | EvalStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[RawBatch | DataError]:
        try:
            yield from self.stream
        except DataError as error:
            yield error


def _raise(item: RawBatch | DataError) -> RawBatch:
    if isinstance(item, DataError):
        raise item
    return item
