"""The order in which samples are seen: arithmetic on (seed, batch number), so that any run can resume exactly.

Training is an endless sequence of slots, epoch after epoch. Batch `b` of rank `r` takes the slots from
`(b * world_size + r) * batch_size` on, whichever worker loads it. So every sample is seen exactly once an epoch, no
rank ever waits for another's shards, the number of workers changes nothing, two ranks together see what one with twice
the batch size sees, and a resumed run continues at its batch number.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.images import Pixels
from datamodules.stream.crops import CenterCrop, RandomCrop
from datamodules.stream.sources import BadSample, DataError, Sample, Source

_log = logging.getLogger(__name__)
_ALWAYS_TOLERATED = 5  # bad samples, however small the set is

_LEAST = 4096  # places of the order that are computed at once, at least


class RawBatch(TypedDict):
    """What workers send: uint8 images as stored, which are degraded on the device."""

    hr: Tensor  # uint8 [B,3,H,W]
    lr: NotRequired[Tensor]  # uint8 [B,3,h,w], packed pairs only
    attention: NotRequired[Tensor]  # uint8 [B,3,h,w], grey, where maps are given
    key: list[str]
    draw: list[int]  # the epoch each sample is seen in; 0 in validation
    training: bool


@dataclass(frozen=True)
class Rank:
    """Which of how many training processes this is."""

    index: int = 0
    world_size: int = 1


class EpochOrder(Sequence[int]):
    """Every record number once: groups in random order, records shuffled over about `window` neighbours.

    A record at place `i` of the groups' order gets the key `i + u`, with `u` uniform on [0, window); records are seen
    in the order of their keys. Keys between two numbers belong to places at most `window` below, so that any part of
    the order can be computed by itself: time and memory grow with the window and the number of groups, and not with the
    number of records, unless the window is the whole set.

    Args:
        groups: records in each group (shard); numbers continue from group to group.
        seed: of the run.
        epoch: which pass over the data.
        window: how far a record can move. 0 shuffles only the groups; the size of the set or more gives a uniform
            shuffle, for which the whole order is kept; a smaller one keeps the reading within a few shards at a time.
    """

    def __init__(self, groups: Sequence[int], seed: int, epoch: int, window: int) -> None:
        rng = np.random.default_rng([seed, epoch])
        sizes = np.asarray(groups, dtype=np.int64)
        starts = np.cumsum([0, *sizes])
        order = rng.permutation(len(sizes))
        self._places = np.cumsum([0, *sizes[order]])  # where each group begins in the order of groups
        self._numbers = starts[order]  # the number of its first record
        self._length, self._window = int(starts[-1]), window

        self._draws: Any = rng.bit_generator.state
        self._block, self._part = max(window, _LEAST), (0, np.empty(0, dtype=np.int64))
        if window >= self._length:
            self._part = (0, rng.permutation(self._records(np.arange(self._length))))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        """The record number at a place of the order, or an array of those of a slice."""
        if isinstance(place, slice):
            return np.array([self[each] for each in range(*place.indices(self._length))], dtype=np.int64)
        if not 0 <= place < self._length:
            raise IndexError(place)
        first, part = self._part
        if not first <= place < first + len(part):
            first, part = self._part = self._part_with(place)
        return int(part[place - first])

    def _part_with(self, place: int) -> tuple[int, NDArray[np.int64]]:
        """The records of a block of keys, that of `place` among them, and the place of the first of them."""
        low = place // self._block * self._block  # at most this many keys are smaller
        while True:
            below, keyed = self._keyed(low, low + self._block)
            if place < below + len(keyed):
                return below, self._records(keyed)
            low += self._block

    def _keyed(self, low: int, high: int) -> tuple[int, NDArray[np.int64]]:
        """How many keys are below `low`, and the places in the groups' order whose keys are in [low, high), by key."""
        first, last = max(0, low - self._window), min(high, self._length)
        generator = np.random.PCG64()
        generator.state = self._draws
        generator.advance(first)  # each place takes one draw
        places = np.arange(first, last)
        keys = places + np.random.Generator(generator).uniform(0, self._window, last - first)
        inside = np.flatnonzero((low <= keys) & (keys < high))
        return first + int((keys < low).sum()), places[inside[np.argsort(keys[inside], kind="stable")]]

    def _records(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The record numbers at places of the groups' order."""
        group = np.searchsorted(self._places, places, side="right") - 1
        return np.asarray(self._numbers[group] + places - self._places[group])


@dataclass
class TrainStream(IterableDataset[RawBatch]):
    """The endless training sequence as one rank sees it, in batches; a bad sample is replaced by the next one.

    Args:
        source: where the records are.
        crop: makes the training patch of a sample.
        batch_size: samples in a batch of this rank.
        rank: this process among all.
        seed: of the order.
        window: see `EpochOrder`.
        max_bad: share of the records that may be bad before this rank stops; at least 5 may, unless it is 0.
        paired: whether samples carry their LR image.
        first: number of the batch to begin with.
    """

    source: Source
    crop: RandomCrop
    batch_size: int
    rank: Rank = Rank()
    seed: int = 0
    window: int = 10_000
    max_bad: float = 0.01
    paired: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        self.records = len(self.source)
        self.bad = torch.zeros(self.records, dtype=torch.bool)
        # all workers count in the same memory, also after they were restarted
        self.bad.share_memory_()  # type: ignore[no-untyped-call]
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
            start = (batch * self.rank.world_size + self.rank.index) * self.batch_size
            filled = [self._fill(slot, order) for slot in range(start, start + self.batch_size)]
            yield collate([sample for sample, _ in filled], [epoch for _, epoch in filled], training=True)

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.source.groups, self.seed, epoch, self.window)

    def _fill(self, slot: int, order: Callable[[int], EpochOrder]) -> tuple[Sample, int]:
        """The first usable sample from a slot on, and the epoch of the slot."""
        epoch, position = divmod(slot, self.records)
        for step in range(self.records):
            index = order(epoch)[(position + step) % self.records]
            if self.bad[index]:
                continue
            try:
                return self.crop(self.source.sample(index, self.paired), draw=epoch), epoch
            except BadSample as error:
                self._count_bad(index, str(error))
        raise DataError(f"no sample of the training set can be used: {self._listed_reasons()}")

    def _count_bad(self, index: int, reason: str) -> None:
        self.bad[index] = True
        self.reasons.append(reason)
        bad, total = int(self.bad.sum()), self.records
        allowed = max(_ALWAYS_TOLERATED, int(self.max_bad * total)) if self.max_bad else 0

        _log.warning("bad sample %d (at most %d of %d allowed): %s", bad, allowed, total, reason)
        if bad > allowed:
            raise DataError(
                f"{bad} bad samples, more than {allowed} of {total}, such as {self._listed_reasons()}. "
                "Repair or repack the set, or raise `max_bad`"
            )

    def _listed_reasons(self) -> str:
        return "; ".join(self.reasons[:_ALWAYS_TOLERATED]) or "each was named before"


@dataclass
class EvalStream(IterableDataset[RawBatch]):
    """Every record exactly once over ranks and workers, in order; a bad sample is an error.

    Where there are fewer records than ranks, the ranks without a record repeat the first one: Lightning skips the
    evaluation on a process that has no batch, and the others would wait for it forever. Metrics that are kept by key
    count it once.

    Args:
        source: where the records are.
        crop: cuts a sample to the part that is compared.
        batch_size: images in a batch; 1 where they differ in size.
        rank: this process among all; it takes every `world_size`-th record.
        paired: whether samples carry their LR image.
    """

    source: Source
    crop: CenterCrop
    batch_size: int = 1
    rank: Rank = Rank()
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
        own = range(self.rank.index, len(self.source), self.rank.world_size) or range(min(1, len(self.source)))
        return [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]

    def _sample(self, index: int) -> Sample:
        try:
            return self.crop(self.source.sample(index, self.paired))
        except BadSample as error:
            raise DataError(f"an evaluation set must be complete: {error}. Repair it or take it out") from error


def collate(samples: list[Sample], draws: list[int], training: bool) -> RawBatch:
    """One batch of samples of one size."""
    keys = [sample.key for sample in samples]
    batch = RawBatch(hr=stack([sample.hr for sample in samples]), key=keys, draw=draws, training=training)

    lr = [sample.lr for sample in samples if sample.lr is not None]
    if lr:
        batch["lr"] = stack(lr)
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
    return torch.stack([torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")) for image in images])
