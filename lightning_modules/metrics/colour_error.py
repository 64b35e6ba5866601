"""Shifts of colour, which small training batches make diffusion models drift into."""

from typing import Literal

from torch import Tensor

from lightning_modules.metrics.score import FullReferenceScore


class ColourError(FullReferenceScore):
    """Absolute difference of the two images' means of one channel, in grey levels, over the whole image.

    Args:
        channel: `r`, `g` or `b`.
        optional: See `Loadable`.
    """

    higher_is_better = False

    def __init__(self, channel: Literal["r", "g", "b"], *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.index = "rgb".index(channel)
        self.name = f"colour_error_{channel}"
        self.definition = f"absolute difference of the means of {channel.upper()}, whole image, grey levels"

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        difference = sr[:, self.index].mean(dim=(-2, -1)) - hr[:, self.index].mean(dim=(-2, -1))
        return 255 * difference.abs()
