"""Which pixels of a batch diffuse, and a network that is evaluated only around them.

Where the attention map is constant on tiles, a step concerns whole tiles. The network is then shown windows, each a
tile with a halo around it, instead of whole states. Windows at a border of the state are shifted inwards, so that all
have one size and the network's own padding meets the true border. Those of all images share batches.

What a window gives equals what the whole state gives, up to rounding, where the halo covers the network's receptive
field and the network computes no statistics over the whole state; elsewhere it is close. An image whose windows would
take longer than the whole of it is evaluated whole.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from lightning_modules.diffusion.evaluation import Evaluation, Wanted, Window, area, everything
from lightning_modules.diffusion.group_statistics import GroupStatistics
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.tiling import Slices

ROUNDING = 1e-7  # keeps exact sums, such as 0.4 + 0.1 at 0.5, from being lost to the rounding of float32 maps


def diffuses(joins: Tensor, share: Tensor) -> Tensor:
    """Whether what joins at a share of the run diffuses where `share [B]` of it lies ahead: boolean, like `joins`."""
    return joins + ROUNDING >= share.to(joins).view(-1, *[1] * (joins.dim() - 1))


@dataclass(frozen=True)
class Sparse:
    """How the network is evaluated around the tiles that diffuse.

    Attributes:
        tile: Side of a tile, in state pixels.
        halo: Pixels around a tile that the network is shown as well.
        at_once: Windows that are evaluated together, at most.
        dense_above: An image is evaluated whole where its windows have at least this share of the pixels that the
            whole of it has. None measures the share above which that is faster, see `break_even`.
        refresh: Replay statistics of GroupNorms for this many evaluations, see `GroupStatistics`; None leaves windows
            to their own.
        measured: What `break_even` found.
    """

    tile: int
    halo: int
    at_once: int = 8
    dense_above: float | None = None
    refresh: int | None = None
    measured: dict[tuple[object, ...], float] = field(default_factory=dict)

    def cover(self, active: Tensor, size: tuple[int, int]) -> list[Window]:
        """The windows of active tiles, boolean `[B,rows,columns]` on the CPU, in states of `size`, image by image."""
        found = []
        for image, row, column in active.nonzero().tolist():
            rows, columns = self._along(row, size[0]), self._along(column, size[1])
            found.append(Window(image, shown=(rows[0], columns[0]), kept=(rows[1], columns[1])))
        return found

    def _along(self, index: int, length: int) -> tuple[slice, slice]:
        """What is shown and what is kept of a tile, along one side of the state."""
        begin, end = index * self.tile, min((index + 1) * self.tile, length)
        side = min(self.tile + 2 * self.halo, length)
        first = min(max(begin - self.halo, 0), length - side)
        return slice(first, first + side), slice(begin, end)

    def wanted(self, active: Tensor) -> Wanted:
        """Whether a part of the state holds an active tile of any image, boolean `[B,rows,columns]`."""
        some = active.any(dim=0)

        def holds_one(part: Slices) -> bool:
            rows, columns = (slice(side.start // self.tile, -(-side.stop // self.tile)) for side in part)
            return bool(some[rows, columns].any())

        return holds_one

    def break_even(self, evaluation: Evaluation, window: Window) -> float:
        """Time of a pixel of a whole evaluation over that of a pixel in windows.

        Measured once for each size of state (to a factor of 2) and of window, device and precision in the life of the
        process: the second of two evaluations of a whole state, or of one tile of it, and of a batch of windows. It
        decides between two ways to the same result, up to rounding, or to close ones where windows are not exact;
        `dense_above` makes results independent of it.
        """
        x = evaluation.x
        device = x.device.type
        precision = x.dtype, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = x.device, *precision, (x.shape[0] * area(everything(x))).bit_length(), area(window.shown)
        if key not in self.measured:
            part = evaluation.parts(lambda part: True)[0]
            whole = [Window(image, part, part) for image in range(x.shape[0])]
            spent = _seconds_per_pixel(evaluation, whole), _seconds_per_pixel(evaluation, [window] * self.at_once)
            self.measured[key] = spent[0] / spent[1]
        return self.measured[key]


def _seconds_per_pixel(evaluation: Evaluation, windows: list[Window]) -> float:
    """Of the second evaluation: the first also compiles, and allocates."""
    began = 0.0
    for _ in range(2):
        _finish(evaluation.x.device)
        began = time.perf_counter()
        evaluation.on(windows)
        _finish(evaluation.x.device)
    return (time.perf_counter() - began) / (len(windows) * area(windows[0].shown))


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Activity:
    """When each pixel of a batch joins the diffusion in one run; `YODA.activity` makes it.

    Attributes:
        process: The forward process, whose `run_share` is the clock.
        joins: Share of the run that lies ahead when a pixel joins, `[B,1,h,w]`; from 1 on it always diffuses. See
            `in_float64`.
        sparse: How the network is evaluated; None: on whole states.
        tiles: `joins` of each tile, float64 `[B,rows,columns]` on the CPU; only with `sparse`.
        statistics: Of the network under the condition, and under the null condition; only where they are replayed.
        images: Which image of the run each sample is, int64 `[B]` on the CPU: what the statistics go by.
        pinned: The time that masks go by during a step, `[B]`; None: the one of the evaluation.
    """

    process: Process
    joins: Tensor
    sparse: Sparse | None = None
    tiles: Tensor | None = None
    statistics: tuple[GroupStatistics, GroupStatistics] | None = None
    images: Tensor | None = None
    pinned: Tensor | None = None

    @classmethod
    def of(cls, process: Process, joins: Tensor, sparse: Sparse | None) -> Self:
        """The activity of a run; with `sparse`, `joins` must be constant on tiles."""
        if sparse is None:
            return cls(process, joins)
        number, statistics = len(joins), None
        if sparse.refresh is not None:
            statistics = GroupStatistics(number, sparse.refresh), GroupStatistics(number, sparse.refresh)
        tiles = joins[:, 0, :: sparse.tile, :: sparse.tile].cpu()
        return cls(process, joins, sparse, tiles, statistics, torch.arange(number))

    def mask(self, t: Tensor) -> Tensor:
        """Which pixels diffuse in a step that starts at `t [B]`: boolean `[B,1,h,w]`, where `joins` is."""
        return diffuses(self.joins, self._share(t))

    def _share(self, t: Tensor) -> Tensor:
        return self.process.run_share(t if self.pinned is None else self.pinned)

    def during(self, t: Tensor) -> Self:
        """The activity of one step that starts at `t [B]`, whatever times the network is evaluated at in it."""
        return replace(self, pinned=t) if self.pinned is None else self

    def select(self, rows: Tensor) -> Self:
        """That of the samples at `rows`, indices `[b]`."""
        tiles, images, pinned = (
            None if value is None else value[rows.cpu()] for value in (self.tiles, self.images, self.pinned)
        )
        return replace(self, joins=self.joins[rows.to(self.joins.device)], tiles=tiles, images=images, pinned=pinned)

    def unconditional(self) -> Self:
        """The same for evaluations under the null condition, which have statistics of their own."""
        return self if self.statistics is None else replace(self, statistics=self.statistics[::-1])

    def whole(self) -> Self:
        """The same pixels, with the network evaluated on whole states."""
        return replace(self, sparse=None)

    def fork(self) -> Self:
        """One whose statistics go on by themselves."""
        if self.statistics is None:
            return self
        conditional, unconditional = self.statistics
        return replace(self, statistics=(conditional.fork(), unconditional.fork()))

    def output(self, evaluation: Evaluation, t: Tensor) -> Tensor:
        """What the network writes where pixels diffuse at `t [B]`, `[B,C,h,w]`; anything elsewhere."""
        if self.sparse is None or self.tiles is None:
            return evaluation.whole()
        active = diffuses(self.tiles, self._share(t))
        covering = self.sparse.cover(active, evaluation.size)
        dense = self._dense(self.sparse, evaluation, active, covering)
        if dense and len(dense) == len(active):
            return self._whole(self.sparse, evaluation, active, torch.arange(len(active)))

        total = torch.zeros_like(evaluation.x)
        if dense:
            rows = torch.tensor(dense)
            total[rows] = self._whole(self.sparse, evaluation.select(rows), active, rows)
        remaining = [window for window in covering if window.image not in dense]
        for first in range(0, len(remaining), self.sparse.at_once):
            together = remaining[first : first + self.sparse.at_once]
            for window, written in zip(together, self._on(evaluation, together), strict=True):
                total[window.image, :, *window.kept] = written[:, *window.inner]
        self._used({window.image for window in remaining})
        return total

    def _dense(self, sparse: Sparse, evaluation: Evaluation, active: Tensor, covering: list[Window]) -> list[int]:
        """The images that are evaluated whole."""
        above, dense = sparse.dense_above, []
        for image in range(len(active)):
            pixels = sum(area(window.shown) for window in covering if window.image == image)
            if pixels == 0:
                continue
            whole = sum(area(part) for part in evaluation.parts(sparse.wanted(active[image, None])))
            if above is None:
                above = sparse.break_even(evaluation, covering[0])
            if pixels >= above * whole or self._due(image):
                dense.append(image)
        return dense

    # Statistics, where they are replayed.

    def _numbers(self, samples: Iterable[int]) -> Tensor:
        assert self.images is not None
        return self.images[list(samples)]

    def _due(self, sample: int) -> bool:
        return self.statistics is not None and self.statistics[0].due(int(self._numbers([sample])))

    def _used(self, samples: Iterable[int]) -> None:
        if self.statistics is not None:
            for image in self._numbers(samples).tolist():
                self.statistics[0].used(image)

    def _whole(self, sparse: Sparse, evaluation: Evaluation, active: Tensor, rows: Tensor) -> Tensor:
        """Whole states, the samples at `rows`, whose statistics are recorded."""
        recording: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.statistics is not None:
            recording = self.statistics[0].recording(evaluation.network, self._numbers(rows.tolist()))
        with recording:
            return evaluation.whole(sparse.wanted(active[rows]))

    def _on(self, evaluation: Evaluation, together: list[Window]) -> Tensor:
        """Windows, under the statistics of the whole state."""
        replaying: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.statistics is not None:
            images = self._numbers(window.image for window in together)
            replaying = self.statistics[0].replaying(evaluation.network, images)
        with replaying:
            return evaluation.on(together)
