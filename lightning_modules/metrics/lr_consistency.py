"""How faithful an enlarged image is to the low-resolution image it was made from."""

from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import peak_signal_noise_ratio

from lightning_modules.metrics.score import Score


class LRConsistency(Score):
    """`lr_psnr` as a score: PSNR in dB between the averaged result and the low-resolution image.

    Methods that see the low-resolution image only at the start, as Relay Diffusion does, can drift away from it.

    Args:
        optional: See `Loadable`.
    """

    name = "lr_psnr"
    higher_is_better = True
    reads_lr = True
    definition = "dB, peak 1, over R, G and B, between cell averages of the result and the low-resolution image"

    def __init__(self, *, optional: bool = False) -> None:
        super().__init__(optional=optional)

    def forward(self, sr: Tensor, hr: Tensor | None = None, lr: Tensor | None = None) -> Tensor:
        """See `Score.forward`."""
        if lr is None:
            raise ValueError(f"{self.name} compares with the low-resolution image, which is missing (no `lr`)")
        return lr_psnr(sr, lr)


def lr_psnr(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR between the cell averages of the enlarged image and the low-resolution image, over all channels.

    It measures fidelity where the low-resolution image was made by averaging (`Area`). Images that were shrunk
    otherwise have a ceiling of their own, the score of the target itself.

    Args:
        sr: `[B,C,H,W]` in [0, 1].
        lr: `[B,C,H/scale,W/scale]` in [0, 1].

    Returns:
        dB, `[B]`; infinite where the two are equal.

    Raises:
        ValueError: `sr` is no whole multiple of `lr`.
    """
    scale = sr.shape[-1] // lr.shape[-1]
    if sr.shape[-2:] != (lr.shape[-2] * scale, lr.shape[-1] * scale):
        raise ValueError(f"{tuple(sr.shape[-2:])} pixels are no whole multiple of {tuple(lr.shape[-2:])}")
    shrunk = avg_pool2d(sr, scale)
    return peak_signal_noise_ratio(shrunk, lr, data_range=1.0, dim=(1, 2, 3), reduction="none")
