"""Where the random numbers of training and sampling come from.

1. `stable_seed` turns names into a seed that is the same in every process and on every machine.
2. `seed_training_step` seeds each training step by (global seed, rank, number of batches so far), so that ranks differ
   and a resumed run draws the same numbers as an uninterrupted one.
3. `seeded` lets evaluation run without reading or changing the global random state.
4. `KeyedNoise` draws the noise of an image from a generator seeded by its key, so that it does not depend on the rank
   or on the other images of a batch.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
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


def seed_training_step(*, rank: int, batches: int) -> None:
    """Seeds the global generators for one training step.

    The seed does not depend on the epoch: with an endless stream, an epoch ends only when a run is interrupted, so a
    resumed run would have another epoch than an uninterrupted one.
    """
    torch.manual_seed(stable_seed(global_seed(), rank, batches))


@contextlib.contextmanager
def seeded(keys: Iterable[str]) -> Iterator[None]:
    """A context in which the global torch generators are seeded by the images' keys; restores their state."""
    accelerator = torch.accelerator.current_accelerator()
    kind = "cuda" if accelerator is None else accelerator.type
    with torch.random.fork_rng(devices=range(torch.accelerator.device_count()), device_type=kind):
        torch.manual_seed(stable_seed(global_seed(), *keys))
        yield


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
        return cls(torch.Generator(device).manual_seed(seed) for seed in seeds)

    def __call__(self, like: Tensor) -> Tensor:
        """Noise in the shape of `like`, `[B,...]`.

        Raises:
            ValueError: the number of generators is not the batch size.
        """
        if len(self.generators) != like.shape[0]:
            raise ValueError(f"{len(self.generators)} generators, but noise is asked for a batch of {like.shape[0]}")
        samples = [
            torch.randn(like.shape[1:], generator=generator, device=like.device, dtype=like.dtype)
            for generator in self.generators
        ]
        return torch.stack(samples)

    def fork(self) -> Self:
        """A copy that will draw the same numbers from here on, for another run of the same steps."""
        return type(self)(generator.clone_state() for generator in self.generators)
