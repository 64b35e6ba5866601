"""Every random number of training and sampling follows from a seed that is stated here.

Four rules, each with one owner:

1. `stable_seed` turns names into a seed that is the same in every process and on every machine.
2. `seed_training_step`: the numbers of a training step follow from (global seed, rank, batches so far), so that ranks
   differ and a resumed run draws what it would have drawn.
3. `seeded`: evaluation neither reads nor disturbs the global random state.
4. `KeyedNoise`: the noise of an image follows from its key, whatever its batch, its rank or its neighbours.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import torch
from torch import Tensor

Randn = Callable[[Tensor], Tensor]
"""A source of standard normal noise in the shape, type and device of its argument; `torch.randn_like` is one."""


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on `parts` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def global_seed() -> int:
    """What `seed_everything` was called with; 0 where it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_training_step(*, rank: int, batches: int) -> None:
    """Seeds the global generators for one training step.

    Epochs do not enter: where the stream is endless, the end of a run ends one, and resuming begins another.
    """
    torch.manual_seed(stable_seed(global_seed(), rank, batches))


@contextlib.contextmanager
def seeded(keys: Iterable[str]) -> Iterator[None]:
    """Inside, the global torch generators are seeded by the images' keys; afterwards they are as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stable_seed(global_seed(), *keys))
        yield


class KeyedNoise:
    """A `Randn` with one generator for each sample of the batch.

    Args:
        generators: One for each sample.
    """

    def __init__(self, generators: Iterable[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def of(cls, keys: Iterable[str], purpose: str, device: torch.device) -> Self:
        """Noise that follows from the global seed, each image's key, and the purpose that it is drawn for."""
        seeds = (stable_seed(global_seed(), key, purpose) for key in keys)
        return cls(torch.Generator(device).manual_seed(seed) for seed in seeds)

    def __call__(self, like: Tensor) -> Tensor:
        """Noise in the shape of `like`, `[B,...]`.

        Raises:
            ValueError: there is not one generator per sample.
        """
        if len(self.generators) != like.shape[0]:
            raise ValueError(f"{len(self.generators)} generators, but noise is asked for a batch of {like.shape[0]}")
        samples = [
            torch.randn(like.shape[1:], generator=generator, device=like.device, dtype=like.dtype)
            for generator in self.generators
        ]
        return torch.stack(samples)

    def fork(self) -> Self:
        """A second source that goes on from here with the same numbers, for another run of the same steps."""
        return type(self)(generator.clone_state() for generator in self.generators)
