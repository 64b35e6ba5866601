"""Steps at the borders of tiles, where an image was made tile by tile."""

import torch
from torch import Tensor

from lightning_modules.metrics.pixels import luma
from lightning_modules.metrics.score import FullReferenceScore

ROUNDING = 0.5  # grey levels; equal images have steps of nothing, and 0 / 0 is no ratio


class Seams(FullReferenceScore):
    """How much larger steps of the error are at tile borders than elsewhere; 1 where no border shows.

    The error is the difference from the target in luma, so that edges of the picture itself do not count. Its mean step
    between the two sides of all tile borders is divided by its mean step between other neighbours. The measure is ours,
    after the blockiness of Wang, Sheikh and Bovik 2002.

    Args:
        tile: Pixels between two borders, counted from the top left corner of the enlarged image.
        optional: See `Loadable`.

    Raises:
        ValueError: tiles of fewer than 2 pixels.
    """

    higher_is_better = False

    def __init__(self, tile: int, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        if tile < 2:
            raise ValueError(f"tile must be at least 2 pixels, got {tile}")
        self.tile = tile
        self.name = f"seams_{tile}"
        self.smallest = tile + 1
        self.definition = f"mean step of the error in Y at every {tile}th pixel over the mean step elsewhere"

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        error = 255 * (luma(sr) - luma(hr))
        at_border, elsewhere = [], []
        for direction in (-2, -1):
            steps = error.diff(dim=direction).abs().movedim(direction, 1).flatten(2)
            border = (torch.arange(steps.shape[1], device=steps.device) + 1) % self.tile == 0
            at_border.append(steps[:, border].flatten(1))
            elsewhere.append(steps[:, ~border].flatten(1))
        return (torch.cat(at_border, 1).mean(1) + ROUNDING) / (torch.cat(elsewhere, 1).mean(1) + ROUNDING)
