"""Where the random numbers of training and sampling come from.

1. `stable_seed` turns names into a seed that is the same in every process and on every machine.
2. `StepDraws` draws what a training step needs by (global seed, number of batches so far, place of the image in the
   batch of all processes together), so that a resumed run draws the same numbers as an uninterrupted one, and several
   processes the same as one.
3. `seeded` lets evaluation run without reading or changing the global random state.
4. `KeyedNoise` draws the noise of an image from a generator seeded by its key, so that it does not depend on the rank
   or on the other images of a batch; `NoiseOfParts` draws that of parts of larger images.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

Randn = Callable[[Tensor], Tensor]
"""A function that draws standard normal noise like its argument (shape, type, device), such as `torch.randn_like`."""


def stable_seed(*parts: object) -> int:
    """A 63-bit seed computed from `parts`, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def global_seed() -> int:
    """The seed that `seed_everything` was called with; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextlib.contextmanager
def seeded(keys: Iterable[str]) -> Iterator[None]:
    """A context in which the global torch generators are seeded by the images' keys; restores their state."""
    accelerator = torch.accelerator.current_accelerator()
    kind = "cuda" if accelerator is None else accelerator.type
    with torch.random.fork_rng(devices=range(torch.accelerator.device_count()), device_type=kind):
        torch.manual_seed(stable_seed(global_seed(), *keys))
        yield


_elsewhere: ContextVar[torch.device | None] = ContextVar("_elsewhere", default=None)


@contextlib.contextmanager
def drawn_on(device: torch.device) -> Iterator[None]:
    """A context in which `KeyedNoise` is drawn on one device, so that it is the same wherever it is used."""
    token = _elsewhere.set(device)
    try:
        yield
    finally:
        _elsewhere.reset(token)


class KeyedNoise:
    """A `Randn` with one generator for each sample of the batch.

    Args:
        generators: One generator for each sample.
    """

    def __init__(self, generators: Iterable[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def of(cls, keys: Iterable[str], purpose: str, device: torch.device) -> Self:
        """Noise seeded by the global seed, the key of each image, and a name for what the noise is used for."""
        seeds = (stable_seed(global_seed(), key, purpose) for key in keys)
        drawn = _elsewhere.get() or device
        return cls(torch.Generator(drawn).manual_seed(seed) for seed in seeds)

    def __call__(self, like: Tensor) -> Tensor:
        """Noise in the shape of `like`, `[B,...]`.

        Raises:
            ValueError: the number of generators is not the batch size.
        """
        if len(self.generators) != like.shape[0]:
            raise ValueError(f"{len(self.generators)} generators, but noise is asked for a batch of {like.shape[0]}")
        samples = [
            torch.randn(like.shape[1:], generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
            for generator in self.generators
        ]
        return torch.stack(samples)

    def fork(self) -> Self:
        """A copy that will draw the same numbers from here on, for another run of the same steps."""
        return type(self)(generator.clone_state() for generator in self.generators)


class NoiseOfParts(KeyedNoise):
    """The noise of parts of larger images, in which a pixel's noise is a function of its place in the whole image.

    So parts that overlap agree on what they share. The noise of an image is that of squares of `SQUARE` pixels, each
    with a generator of its own.

    Args:
        keys: Of the whole images.
        purpose: What the noise is used for.
        places: The first row and column of each part, in pixels of the enlarged image.
        height: Of the parts, in pixels of the enlarged image.
    """

    SQUARE = 32  # pixels of the noise

    def __init__(self, keys: Sequence[str], purpose: str, places: Sequence[tuple[int, int]], height: int) -> None:
        super().__init__([])
        self.keys, self.purpose, self.places, self.height = list(keys), purpose, list(places), height
        self.draws = 0

    def __call__(self, like: Tensor) -> Tensor:
        """Noise in the shape of `like`, `[B,C,h,w]`, whose pixels are `height / h` of the enlarged image each.

        Raises:
            ValueError: the number of parts is not the batch size.
        """
        if len(self.keys) != like.shape[0]:
            raise ValueError(f"{len(self.keys)} parts, but noise is asked for a batch of {like.shape[0]}")
        factor = self.height // like.shape[-2]
        samples = [
            self._part(key, top // factor, left // factor, like)
            for key, (top, left) in zip(self.keys, self.places, strict=True)
        ]
        self.draws += 1
        return torch.stack(samples)

    def _part(self, key: str, top: int, left: int, like: Tensor) -> Tensor:
        channels, height, width = like.shape[1:]
        side, spans = self.SQUARE, ((top, height), (left, width))
        rows, columns = (range(start // side, -(-(start + length) // side)) for start, length in spans)
        noise = like.new_empty(channels, len(rows) * side, len(columns) * side)
        for row in rows:
            for column in columns:
                seed = stable_seed(global_seed(), key, self.purpose, self.draws, row, column)
                generator = torch.Generator(like.device).manual_seed(seed)
                place = (row - rows.start) * side, (column - columns.start) * side
                noise[:, place[0] : place[0] + side, place[1] : place[1] + side] = torch.randn(
                    channels, side, side, generator=generator, device=like.device, dtype=like.dtype
                )
        return noise[:, top - rows.start * side :, left - columns.start * side :][:, :height, :width]

    def fork(self) -> Self:
        """See `KeyedNoise.fork`."""
        other = type(self)(self.keys, self.purpose, self.places, self.height)
        other.draws = self.draws
        return other


@dataclass
class StepDraws:
    """What a training step draws for its images.

    The numbers of an image follow from the step and from the image's place in the batch of all processes together, so
    that two processes draw what one draws for the same images. What a network draws by itself, as dropout does, comes
    from the global generators, which differ between processes.

    They do not depend on the epoch: with an endless stream an epoch ends only when a run is interrupted, so that a
    resumed run would have another epoch than an uninterrupted one.

    Args:
        seed: Of the step; None outside of training, where everything is drawn from the global generator.
        rank: Of this process.
        world_size: Number of processes, all with as many images.
    """

    seed: int | None = None
    rank: int = 0
    world_size: int = 1
    _drawn: int = field(default=0, init=False)

    @classmethod
    def of_step(cls, batches: int, *, rank: int, world_size: int) -> Self:
        """The draws of the step after `batches` batches; also seeds the global generators."""
        made = cls(stable_seed(global_seed(), batches), rank, world_size)
        made.seed_generators()
        return made

    def seed_generators(self) -> None:
        """Seeds the global generators, differently on each process."""
        torch.manual_seed(stable_seed(self.seed, self.rank))

    def of_all(self, draw: Callable[[int], Tensor], images: int) -> Tensor:
        """This process's part of what is drawn for the images of all processes, `[images]`.

        Args:
            draw: From a number of images to as many numbers, drawn from the global CPU generator.
            images: Those of this process.
        """
        if self.seed is None:
            return draw(images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, self._next()))
            return draw(images * self.world_size)[self.rank * images :][:images]

    def noise(self, images: int, device: torch.device) -> Randn:
        """A source of noise for the images of this process, each with a generator of its own."""
        if self.seed is None:
            return torch.randn_like
        number, first = self._next(), self.rank * images
        seeds = (stable_seed(self.seed, number, first + image) for image in range(images))
        return KeyedNoise(torch.Generator(device).manual_seed(seed) for seed in seeds)

    def _next(self) -> int:
        self._drawn += 1
        return self._drawn
