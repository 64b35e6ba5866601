"""Data for models that generate images from noise: no images, only keys that the noise is a function of."""

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule

from datamodules.batch import Batch


class Seeds(LightningDataModule):
    """Black images, one for each seed, for `lightning predict` of models that need no low-resolution image.

    Args:
        count: number of images.
        first: the first seed; images are named by their seeds.
        size: side of the images that are generated.
        final: side of the finished images, where a cascade enlarges what was generated; `size` by default.
        batch_size: images at a time.

    Raises:
        ValueError: `final` is not a multiple of `size`.
    """

    def __init__(
        self, count: int = 16, first: int = 0, size: int = 64, final: int | None = None, batch_size: int = 8
    ) -> None:
        super().__init__()
        self.final = size if final is None else final
        if self.final % size:
            raise ValueError(f"final: {self.final} is not a multiple of size: {size}; no cascade reaches it")
        self.count, self.first, self.size, self.batch_size = count, first, size, batch_size

    def predict_dataloader(self) -> "SeedBatches":
        """Black images for this process's share of the seeds."""
        seeds = range(self.first, self.first + self.count)
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return SeedBatches(seeds[rank::ranks], self.size, self.final, self.batch_size)


class SeedBatches:
    """Batches of black images; keys are seeds of six digits."""

    def __init__(self, seeds: range, size: int, final: int, batch_size: int) -> None:
        self.seeds, self.size, self.final, self.batch_size = seeds, size, final, batch_size

    def __len__(self) -> int:
        return -(-len(self.seeds) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One batch after the other; the last may be smaller."""
        for start in range(0, len(self.seeds), self.batch_size):
            keys = [f"{seed:06d}" for seed in self.seeds[start : start + self.batch_size]]
            lr, up = (torch.full((len(keys), 3, side, side), -1.0) for side in (self.size, self.final))
            yield Batch(lr=lr, up=up, key=keys)
