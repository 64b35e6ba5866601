"""PSNR, as super-resolution papers report it."""

from typing import Literal

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from lightning_modules.metrics.pixels import luma
from lightning_modules.metrics.score import FullReferenceScore

Channels = Literal["y", "rgb"]


class PSNR(FullReferenceScore):
    """Peak signal-to-noise ratio in dB; infinite where the images are equal.

    Args:
        channels: `y`, luma of BT.601 in studio range, or `rgb`, over all three.
        optional: See `Loadable`.
    """

    higher_is_better = True
    crops_border = True

    def __init__(self, channels: Channels = "y", *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.channels = channels
        self.name = f"psnr_{channels}"
        self.definition = f"dB, peak 1, over {described(channels)}, without the border"

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        a, b = (luma(sr), luma(hr)) if self.channels == "y" else (sr, hr)
        return peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")


def described(channels: Channels) -> str:
    """What is compared, as results state it."""
    return "Y of BT.601 in studio range, not rounded again" if channels == "y" else "R, G and B"
