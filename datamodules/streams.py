"""The order in which samples are seen: arithmetic on (seed, batch number), so that it survives anything.

Training is an endless sequence of slots, epoch after epoch. Batch `b` of rank `r` takes the slots from
`(b * ranks + r) * batch_size` on, whichever worker makes it. So every sample is seen exactly once an epoch, no rank
ever waits for another's shards, the number of workers changes nothing, two ranks see together what one with twice the
batch sees, and a resumed run goes on at its batch number.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.crops import CenterCrop, RandomCrop
from datamodules.images import Pixels
from datamodules.sources import BadSample, Sample, Source

_log = logging.getLogger(__name__)
_TOLERATED = 5

Order = Callable[[int], NDArray[np.int64]]  # epoch -> every record number once


class DataError(ValueError):
    """The data cannot be used; the message names what is wrong and the way out."""


class RawBatch(TypedDict):
    """What workers send: uint8 images as stored, for the device to degrade."""

    hr: Tensor  # uint8 [B,3,H,W]
    lr: NotRequired[Tensor]  # uint8 [B,3,h,w], packed pairs only
    attention: NotRequired[Tensor]  # uint8 [B,3,h,w], grey, where maps are given
    key: list[str]
    draw: list[int]  # the epoch each sample is seen in; 0 in validation
    training: bool


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int = 0
    ranks: int = 1


def epoch_order(groups: Sequence[int], seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Every record number once: groups in random order, records shuffled over about `window` neighbours.

    Args:
        groups: records in each group (shard); numbers run on from group to group.
        seed: of the run.
        epoch: which pass over the data.
        window: how far a record can move; 0 shuffles the groups and nothing else, the size of the set or more gives a
            uniform shuffle, and a smaller one keeps the reading within a few shards at a time.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.cumsum([0, *groups])
    order = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in rng.permutation(len(groups))])
    if window >= len(order):
        return rng.permutation(order)
    return order[np.argsort(np.arange(len(order)) + rng.uniform(0, window, len(order)), kind="stable")]


@dataclass
class TrainStream(IterableDataset[RawBatch]):
    """The endless training sequence as one rank sees it, in batches; a bad sample leaves its slot to the next one.

    Args:
        source: where the records are.
        crop: makes the training patch of a sample.
        batch_size: samples in a batch of this rank.
        place: this rank among all.
        seed: of the order.
        window: see `epoch_order`.
        max_bad: share of the records that may be bad before this rank gives up; at least 5 may, unless it is 0.
        paired: whether samples carry their LR image.
        first: number of the batch to begin with.
    """

    source: Source
    crop: RandomCrop
    batch_size: int
    place: Place = Place()
    seed: int = 0
    window: int = 10_000
    max_bad: float = 0.01
    paired: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        self.bad = torch.zeros(len(self.source), dtype=torch.bool)
        self.bad.share_memory_()  # type: ignore[no-untyped-call]  # one count for all workers, and for good
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[RawBatch]:
        """The batches of this worker process, without end.

        Raises:
            DataError: too many samples are bad.
        """
        order = lru_cache(maxsize=2)(self._order)
        worker = get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        for batch in count(self.first + offset, step):
            start = (batch * self.place.ranks + self.place.rank) * self.batch_size
            filled = [self._fill(slot, order) for slot in range(start, start + self.batch_size)]
            yield collate([sample for sample, _ in filled], [draw for _, draw in filled], training=True)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(self.source.groups, self.seed, epoch, self.window)

    def _fill(self, slot: int, order: Order) -> tuple[Sample, int]:
        epoch, place = divmod(slot, len(self.source))
        for step in range(len(self.source)):
            index = int(order(epoch)[(place + step) % len(self.source)])
            if self.bad[index]:
                continue
            try:
                return self.crop(self.source.sample(index, self.paired), draw=epoch), epoch
            except BadSample as error:
                self._note(index, str(error))
        raise DataError(f"no sample of the training set can be used: {self._listing()}")

    def _note(self, index: int, reason: str) -> None:
        self.bad[index] = True
        self.reasons.append(reason)
        count = int(self.bad.sum())
        allowed = max(_TOLERATED, int(self.max_bad * len(self.source))) if self.max_bad else 0
        _log.warning("bad sample %d (at most %d of %d allowed): %s", count, allowed, len(self.source), reason)
        if count > allowed:
            raise DataError(
                f"{count} bad samples, more than {allowed} of {len(self.source)}, such as {self._listing()}. "
                "Repair or repack the set, or raise `max_bad`"
            )

    def _listing(self) -> str:
        return "; ".join(self.reasons[:_TOLERATED]) or "each was named before"


@dataclass
class EvalStream(IterableDataset[RawBatch]):
    """Every record exactly once over ranks and workers, in order, nothing skipped.

    Where there are fewer records than ranks, those left without one repeat the first: Lightning leaves the evaluation
    out on a process that has no batch, and the others would wait for it. What is kept by key counts it once.

    Args:
        source: where the records are.
        crop: cuts a sample to what is compared.
        batch_size: images in a batch; 1 where they differ in size.
        place: this rank among all; it takes every `ranks`-th record.
        paired: whether samples carry their LR image.
    """

    source: Source
    crop: CenterCrop
    batch_size: int = 1
    place: Place = Place()
    paired: bool = False

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[RawBatch]:
        """The batches of this worker process.

        Raises:
            DataError: a sample is bad.
        """
        worker = get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        for batch in self._batches()[offset::step]:
            samples = [self._sample(index) for index in batch]
            yield collate(samples, [0] * len(samples), training=False)

    def _batches(self) -> list[range]:
        own = range(self.place.rank, len(self.source), self.place.ranks) or range(min(1, len(self.source)))
        return [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]

    def _sample(self, index: int) -> Sample:
        try:
            return self.crop(self.source.sample(index, self.paired))
        except BadSample as error:
            raise DataError(f"an evaluation set must be whole: {error}. Repair it or take it out") from error


def collate(samples: list[Sample], draws: list[int], training: bool) -> RawBatch:
    """Stacks samples of one size."""
    keys = [sample.key for sample in samples]
    batch = RawBatch(hr=stack([sample.hr for sample in samples]), key=keys, draw=draws, training=training)
    small = [sample.lr for sample in samples if sample.lr is not None]
    if small:
        batch["lr"] = stack(small)
    maps = [sample.attention for sample in samples if sample.attention is not None]
    if maps:
        batch["attention"] = stack(maps)
    return batch


def stack(images: list[Pixels]) -> Tensor:
    """`[H,W,3]` images of one size to one `[B,3,H,W]` tensor.

    Raises:
        DataError: the sizes differ.
    """
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(sorted({f"{image.shape[1]}x{image.shape[0]}" for image in images}))
        raise DataError(f"images of different sizes in one batch ({sizes}): set val_crop, or val_batch_size to 1")
    return torch.stack([torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images])
