"""Shrinking without a kernel: the mean of each cell, or one pixel of it."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from datamodules.degradations.degradation import Degradation, Recipe


class Area(Degradation):
    """The mean of each `scale` x `scale` cell: what Relay Diffusion's blur ends in. Not rounded to 8 bits."""

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`; the recipes are empty."""
        return functional.avg_pool2d(hr, self.scale)


class Nearest(Degradation):
    """The upper left pixel of each `scale` x `scale` cell."""

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`; the recipes are empty."""
        return hr[..., :: self.scale, :: self.scale].contiguous()
