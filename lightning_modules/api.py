"""What a program needs: `from lightning_modules.api import load`."""

from pathlib import Path

import torch

from lightning_modules.enlarging.enlarger import Enlarger
from lightning_modules.sampling import TILE


def load(
    weights: str | Path,
    *,
    device: str | torch.device | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    tile: int = TILE,
) -> Enlarger:
    """A trained model that enlarges images.

        model = load("last.ckpt")
        model.enlarge("photo.jpg").save("large.png")

    Args:
        weights: A checkpoint of a training run, or a name that `lightning weights` lists.
        device: Where it runs; None: on a GPU where there is one.
        sampler: The name of a sampler in `configs/sampler`; None: the model's own.
        steps: Of the sampler; None: as many as it has.
        tile: Larger results are computed in overlapping parts of this many pixels a side.

    Returns:
        See `Enlarger.enlarge` and `Enlarger.attention`. Scale and kernel are those of the training.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, unsafe, or of another project.
        ValueError: the sampler is unknown or does not fit the model, or tiles are too small.
    """
    return Enlarger.load(weights, device, sampler=sampler, steps=steps, tile=tile)
