"""Enlarges images of any size in bounded memory: part by part, each sampled completely, faded into its neighbours."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.batch import assembled, to_pixels
from datamodules.degradations.enlarge import Enlargement
from datamodules.degradations.levels import as_tensor, from_levels
from datamodules.photograph import Levels
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.sampling import TILE, fitting_overlap
from lightning_modules.super_resolver import SuperResolver, UnusableImage, is_out_of_memory, release_memory

SMALLEST = 64  # pixels a side of the smallest parts that are tried when memory is short
TOGETHER_ON_CPU, TOGETHER = 512 * 512, 2048 * 2048  # pixels of the enlarged images of one batch
_log = logging.getLogger(__name__)

Advance = Callable[[float], None]
"""Is told how many pixels of the enlarged image have been computed since it was told last."""

Write = Callable[[int, Tensor], None]
"""Is given finished rows of an enlarged image: the number of the first, and `[3,n,W]` in [-1, 1]."""


def nothing(pixels: float) -> None:
    """An `Advance` that listens to nothing."""


@dataclass(frozen=True)
class Cuts:
    """How the rows or columns of an image are cut into parts, in its own pixels.

    Attributes:
        starts: The first of each part.
        stops: What follows the last of each part.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]

    @classmethod
    def of(cls, length: int, side: int, overlap: int, unit: int) -> "Cuts":
        """The fewest parts of at most `side`, all about as large, that begin at multiples of `unit`."""
        if length <= side:
            return cls((0,), (length,))
        count = math.ceil((length - overlap) / (side - overlap))
        fitting = min(math.ceil((length + (count - 1) * overlap) / (count * unit)) * unit, side)
        rest = length - fitting
        starts = tuple(math.ceil(index * rest / ((count - 1) * unit)) * unit for index in range(count))
        return cls(starts, tuple(min(start + fitting, length) for start in starts))

    def __len__(self) -> int:
        return len(self.starts)

    def weights(self, index: int, scale: int) -> Tensor:
        """The weights of a part's enlarged rows or columns, which fade where it overlaps a neighbour."""
        start, stop = self.starts[index], self.stops[index]
        weights = torch.ones((stop - start) * scale)
        if index > 0:
            shared = (self.stops[index - 1] - start) * scale
            weights[:shared] *= (torch.arange(shared) + 0.5) / shared
        if index + 1 < len(self):
            shared = (stop - self.starts[index + 1]) * scale
            weights[-shared:] *= (torch.arange(shared).flip(0) + 0.5) / shared
        return weights


class PartByPart:
    """Enlarges the pixels of images with one method.

    An image larger than a part is cut into parts that overlap by an eighth. Each is sampled by itself, with the noise
    that the whole image has at its place, and fades into its neighbours; so besides the image and the result only rows
    of parts are in memory. What a method computes of a whole image, such as an attention map, is that of the part.
    Smaller images are enlarged at once, those of one size together.

    What does not fit the memory is cut into parts half as large, down to `SMALLEST` pixels, and so are later images.

    Args:
        method: The trained method, on its device, in eval mode.
        scale: How many times longer each side becomes.
        kernel: How the method's `up` is made.
        part: Height and width of a part in pixels of the enlarged image.

    Raises:
        ValueError: parts would be smaller than the network allows.
    """

    def __init__(self, method: SuperResolver, *, scale: int, kernel: Enlargement, part: int = TILE) -> None:
        self.method, self.scale, self.kernel = method, scale, kernel
        self.unit = math.lcm(method.stride, scale) // scale
        least = 2 * self.unit * scale
        if part < max(least, method.padded_to):
            raise ValueError(f"tile {part}: must be at least {max(least, method.padded_to)} pixels for this method")
        self.side = part // (self.unit * scale) * self.unit
        self.together = TOGETHER_ON_CPU if method.device.type == "cpu" else TOGETHER
        self.evaluations = 0  # of the network, for one batch; 0 before the first

    def cuts(self, height: int, width: int) -> tuple[Cuts, Cuts]:
        """How an image of this size is cut now: its rows, its columns."""
        return _cuts(height, width, self.side, self.unit)

    def work(self, height: int, width: int) -> int:
        """Pixels of the enlarged image that are computed, those where parts overlap several times."""
        rows, columns = self.cuts(height, width)
        down, across = (sum(cuts.stops) - sum(cuts.starts) for cuts in (rows, columns))
        return down * across * self.scale**2

    def rows(self, width: int) -> int:
        """Bytes of the rows that are held of an image of this width while its parts fade into each other."""
        return 4 * 4 * 4 * self.side * width * self.scale**2  # colours and weight, as floats, in four copies

    def fits(self, height: int, width: int) -> int:
        """How many images of this size are enlarged together; 0 if one is cut into parts."""
        if max(height, width) > self.side:
            return 0
        return max(self.together // (height * width * self.scale**2), 1)

    def __call__(
        self,
        images: Sequence[Levels],
        keys: Sequence[str],
        sampler: Sampler | None = None,
        advance: Advance = nothing,
    ) -> list[Levels]:
        """Enlarges images.

        Args:
            images: Of one size and type: `[h,w,3]`, 8 or 16 bits. Several only where they fit together, see `fits`.
            keys: A name for each, on which its noise depends.
            sampler: Replaces the method's own.
            advance: Is told of the progress.

        Returns:
            `[scale * h, scale * w, 3]` of the same type.

        Raises:
            UnusableImage: an image is too small for the method, or does not fit the memory in the smallest parts.
            ValueError: a result holds NaN or infinity.
        """
        height, width = images[0].shape[:2]
        made = [np.empty((height * self.scale, width * self.scale, 3), image.dtype) for image in images]
        depth = 8 * images[0].dtype.itemsize

        def write_to(index: int) -> Write:
            def write(top: int, rows: Tensor) -> None:
                pixels = to_pixels(rows[None], [keys[index]], depth)[0]
                made[index][top : top + rows.shape[1]] = np.asarray(pixels.permute(1, 2, 0))

            return write

        with self._counted(advance) as task:
            if len(images) > 1:
                batch = torch.cat([as_tensor(image) for image in images])
                for index, enlarged in enumerate(self._resolved(batch, keys, None, sampler, task)):
                    write_to(index)(0, enlarged)
            else:
                self._parts(images[0], keys[0], (0, 0), self.side, sampler, task, write_to(0))
        return made

    def _parts(
        self,
        image: Levels,
        key: str,
        origin: tuple[int, int],
        side: int,
        sampler: Sampler | None,
        task: "_Task",
        write: Write,
    ) -> None:
        """Enlarges an image, or the part of one that begins at `origin`, in parts of `side`."""
        height, width = image.shape[:2]
        scale, (rows, columns) = self.scale, _cuts(height, width, side, self.unit)
        total = torch.zeros(3, rows.stops[0] * scale, width * scale)
        weights = torch.zeros(total.shape[1:])
        alone = len(rows) == len(columns) == 1 and origin == (0, 0)

        for row, (top, bottom) in enumerate(zip(rows.starts, rows.stops, strict=True)):
            down = rows.weights(row, scale)
            for group in _groups(columns, max(self.together // (side * scale) ** 2, 1)):
                spans = [slice(columns.starts[column], columns.stops[column]) for column in group]
                batch = torch.cat([as_tensor(image[top:bottom, span]) for span in spans])
                places = [((origin[0] + top) * scale, (origin[1] + span.start) * scale) for span in spans]
                found = self._resolved(batch, [key] * len(group), None if alone else places, sampler, task)
                for column, span, part in zip(group, spans, found, strict=True):
                    weight = torch.outer(down, columns.weights(column, scale))
                    place = slice(0, (bottom - top) * scale), slice(span.start * scale, span.stop * scale)
                    total[:, *place] += part * weight
                    weights[place] += weight

            done = ((rows.starts[row + 1] if row + 1 < len(rows) else bottom) - top) * scale
            write(top * scale, total[:, :done] / weights[:done])
            if row + 1 < len(rows):
                longer = (rows.stops[row + 1] - rows.starts[row + 1]) * scale
                total, weights = _moved(total, done, longer), _moved(weights[None], done, longer)[0]

    def _resolved(
        self,
        lr: Tensor,
        keys: Sequence[str],
        places: list[tuple[int, int]] | None,
        sampler: Sampler | None,
        task: "_Task",
    ) -> list[Tensor]:
        """Enlarges a batch of levels `[B,3,h,w]` at once, or less at once where memory is short: `[3,H,W]` each."""
        pixels = lr[:, 0].numel() * self.scale**2
        try:
            with task.working_on(pixels):
                image = from_levels(lr.to(self.method.device))
                batch = assembled(image, list(keys), scale=self.scale, kernel=self.kernel)
                if places is not None:
                    batch["place"] = places
                return list(self.method.super_resolve(batch, sampler).cpu())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback holds the tensors.
        release_memory()

        if len(lr) > 1:
            self.together = pixels // 2
            _log.warning("%d images or parts at once do not fit the memory; fewer are computed together", len(lr))
            each = [[place] for place in places] if places is not None else [None] * len(lr)
            return [
                self._resolved(lr[index, None], [keys[index]], each[index], sampler, task)[0]
                for index in range(len(lr))
            ]

        side = max(lr.shape[-2:]) // 2 // self.unit * self.unit
        if side * self.scale < max(SMALLEST, self.method.padded_to, 2 * self.unit * self.scale):
            raise UnusableImage(
                f"{keys[0]}: does not fit the memory, in parts of {2 * side * self.scale} pixels neither; use a device "
                "with more memory"
            )
        if side < self.side:
            _log.warning("parts of %d pixels do not fit the memory; they are halved", max(lr.shape[-2:]) * self.scale)
        self.side, self.together = min(self.side, side), 1
        made = lr.new_empty(3, lr.shape[-2] * self.scale, lr.shape[-1] * self.scale, dtype=torch.float32)
        scale = self.scale
        origin = (0, 0) if places is None else (places[0][0] // scale, places[0][1] // scale)

        def write(top: int, rows: Tensor) -> None:
            made[:, top : top + rows.shape[1]] = rows

        self._parts(np.asarray(lr[0].permute(1, 2, 0)), keys[0], origin, side, sampler, task, write)
        return [made]

    @contextmanager
    def _counted(self, advance: Advance) -> "Iterator[_Task]":
        """A task whose progress inside of a part is counted in evaluations of the network."""
        task = _Task(self, advance)
        inside = [module for module in self.method.modules() if isinstance(module, SuperResolver)]
        networks = [getattr(module, "network", None) for module in inside]
        hooks = [
            network.register_forward_hook(task.evaluated) for network in networks if isinstance(network, nn.Module)
        ]
        try:
            yield task
        finally:
            for hook in hooks:
                hook.remove()


class _Task:
    """Tells `advance` of the pixels of a batch, a share of them after each evaluation of the network.

    How many evaluations a batch takes is known from the one before.
    """

    def __init__(self, owner: PartByPart, advance: Advance) -> None:
        self.owner, self.advance = owner, advance
        self.pixels, self.told, self.calls = 0, 0.0, 0

    @contextmanager
    def working_on(self, pixels: int) -> Iterator[None]:
        """Inside, a batch of so many enlarged pixels is computed; what fails is taken back."""
        self.pixels, self.told, self.calls = pixels, 0.0, 0
        try:
            yield
        except BaseException:
            self.advance(-self.told)
            raise
        self.advance(pixels - self.told)
        self.owner.evaluations = self.calls

    def evaluated(self, *_: Any) -> None:
        """After an evaluation of the network."""
        self.calls += 1
        if self.owner.evaluations:
            share = min(self.calls / self.owner.evaluations, 1.0) * self.pixels
            self.advance(share - self.told)
            self.told = share


def _cuts(height: int, width: int, side: int, unit: int) -> tuple[Cuts, Cuts]:
    overlap = fitting_overlap(side, unit)
    return Cuts.of(height, side, overlap, unit), Cuts.of(width, side, overlap, unit)


def _groups(columns: Cuts, most: int) -> Iterator[list[int]]:
    """Parts of one width that are computed together."""
    group: list[int] = []
    for column in range(len(columns)):
        width = columns.stops[column] - columns.starts[column]
        if group and (len(group) == most or width != columns.stops[group[0]] - columns.starts[group[0]]):
            yield group
            group = []
        group.append(column)
    yield group


def _moved(rows: Tensor, done: int, longer: int) -> Tensor:
    """The rows `[C,n,W]` after the first `done`, in a block of `longer` that is 0 otherwise."""
    moved = rows.new_zeros(rows.shape[0], longer, rows.shape[2])
    moved[:, : rows.shape[1] - done] = rows[:, done:]
    return moved
