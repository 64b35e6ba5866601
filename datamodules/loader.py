"""Streams through worker processes."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from datamodules.streams import DataError, EvalStream, RawBatch, TrainStream


class Loader:
    """Iterates a stream through worker processes; a `DataError` of a worker arrives as it was raised.

    Args:
        stream: what to load; it makes its own batches.
        workers: processes; 0 loads in this one.
        first: number of the batch to begin with, asked when an iteration starts (so a resumed run, or a new epoch of
            the trainer, goes on where it was, whenever the loader itself was made).
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
        own = torch.Generator()  # so that starting workers draws nothing from the global one
        pin = torch.cuda.is_available()
        loader = DataLoader(_Carrying(self.stream), None, num_workers=self.workers, generator=own, pin_memory=pin)
        return map(_raise, loader)

    def state_dict(self) -> dict[str, int]:
        """Nothing: the position is the number of batches so far. Its presence tells Lightning that it is not lost."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing; see `state_dict`."""


class _Carrying(IterableDataset[RawBatch | DataError]):
    """Hands a `DataError` on as the last item: torch would wrap it in the text of a worker's traceback."""

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
