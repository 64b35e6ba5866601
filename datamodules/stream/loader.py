"""Streams through worker processes."""

import gc
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        start = _start_worker if self.workers else None
        loader = DataLoader(
            _ErrorAsItem(self.stream),
            None,
            num_workers=self.workers,
            generator=own,
            pin_memory=pin,
            worker_init_fn=start,
        )
        return _items(loader)

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


def _start_worker(worker: int) -> None:
    """Leaves signals that are meant for the run to its main process, which ends its workers itself.

    What the main process made is taken out of the worker's garbage collection, which would otherwise write to all of
    it: memory that the processes share would be copied, above 100 MB for each worker.
    """
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _items(loader: DataLoader[Any]) -> Iterator[RawBatch]:
    """The batches.

    Raises:
        DataError: as a worker raised it; or a worker was killed, or had no room for a batch.
    """
    try:
        for item in loader:
            if isinstance(item, DataError):
                raise item
            yield item
    except RuntimeError as error:
        hint = explain(str(error))
        if hint is None:
            raise
        raise DataError(hint) from error


def explain(message: str) -> str | None:
    """What to do about torch's message of a worker's end; None for other messages."""
    first = message.strip().splitlines()[0] if message.strip() else ""
    if re.search("bus error|shared memory|/dev/shm|shm", message, re.IGNORECASE):
        free = f" ({shutil.disk_usage('/dev/shm').free >> 20} MiB are free)" if Path("/dev/shm").is_dir() else ""
        return (
            f"a data worker found no room in /dev/shm{free}: {first} In a container give it more "
            "(docker run --shm-size 8g), or set --data.init_args.num_workers 0"
        )

    if re.search(r"DataLoader worker .*(exited|killed)", message):
        return (
            f"{first.rstrip('. ')}. If it was killed, the machine's memory was probably full (`dmesg` says so): use "
            "fewer workers or smaller batches, --data.init_args.num_workers or --data.init_args.batch_size"
        )

    if "Too many open files" in message:
        return f"{first}: raise the limit with `ulimit -n 65536`, or lower --data.init_args.num_workers"
    return None
