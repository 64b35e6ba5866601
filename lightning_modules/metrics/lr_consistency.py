"""How faithful an enlarged image is to the low-resolution image it was made from."""

from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import peak_signal_noise_ratio


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
