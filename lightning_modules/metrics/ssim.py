"""SSIM and MS-SSIM over valid windows, as super-resolution papers report them."""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from lightning_modules.float64 import in_float64
from lightning_modules.metrics.pixels import luma
from lightning_modules.metrics.psnr import Channels, described
from lightning_modules.metrics.score import FullReferenceScore

WINDOW = 11
SIGMA = 1.5
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of MS-SSIM, from the finest scale to the coarsest


class SSIM(FullReferenceScore):
    """Structural similarity; see `ssim`.

    Args:
        channels: `y`, luma of BT.601 in studio range, or `rgb`, the mean over the three.
        optional: See `Loadable`.
    """

    higher_is_better = True
    crops_border = True
    smallest = WINDOW

    def __init__(self, channels: Channels = "y", *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.channels = channels
        self.name = f"ssim_{channels}"
        self.definition = (
            f"11x11 Gaussian, sigma 1.5, valid windows, mean over {described(channels)}, without the border"
        )

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        return ssim(luma(sr), luma(hr)) if self.channels == "y" else ssim(sr, hr)


class MSSSIM(FullReferenceScore):
    """Multi-scale structural similarity; see `ms_ssim`.

    Args:
        channels: `y`, luma of BT.601 in studio range, or `rgb`, the mean over the three.
        optional: See `Loadable`.
    """

    higher_is_better = True
    crops_border = True
    smallest = WINDOW * 2 ** (len(SCALES) - 1)

    def __init__(self, channels: Channels = "y", *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.channels = channels
        self.name = f"ms_ssim_{channels}"
        self.definition = f"five scales of SSIM over valid windows, over {described(channels)}, without the border"

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        return ms_ssim(luma(sr), luma(hr)) if self.channels == "y" else ms_ssim(sr, hr)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity, Eq. 13 of Wang et al. 2004, with K1 = 0.01, K2 = 0.03, an 11x11 Gaussian of sigma 1.5.

    Only windows that lie inside the image count, as in the authors' MATLAB code and BasicSR; torchmetrics pads by
    reflection and counts every pixel, which gives other numbers. Computed in float64 throughout: the variances are
    small differences of large numbers, and a GPU's TF32 convolutions would spoil them.

    Args:
        sr: `[B,C,H,W]` in [0, 1].
        hr: `[B,C,H,W]` in [0, 1].

    Returns:
        `[B]`, the mean over windows and channels.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(sr.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW} pixels on each side, got {sr.shape[-1]}x{sr.shape[-2]}")
    luminance, structure = _maps(in_float64(sr), in_float64(hr))
    return (luminance * structure).flatten(1).mean(dim=1)


def ms_ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Multi-scale SSIM, Eq. 7 of Wang et al. 2003: contrast and structure at five scales, luminance at the coarsest.

    Each scale is the mean of 2x2 pixels of the one before; an odd last row or column is left out. Negative
    contrast-structure terms count as 0, as in common implementations.

    Args:
        sr: `[B,C,H,W]` in [0, 1].
        hr: `[B,C,H,W]` in [0, 1].

    Returns:
        `[B]`, the mean over channels.

    Raises:
        ValueError: the window does not fit the coarsest scale.
    """
    least = MSSSIM.smallest
    if min(sr.shape[-2:]) < least:
        raise ValueError(f"MS-SSIM needs {least} pixels on each side, got {sr.shape[-1]}x{sr.shape[-2]}")

    a, b = in_float64(sr), in_float64(hr)
    terms = []
    for scale in range(len(SCALES)):
        if scale:
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        luminance, structure = _maps(a, b)
        coarsest = scale == len(SCALES) - 1
        terms.append((luminance * structure if coarsest else structure).mean(dim=(2, 3)).clamp(min=0))

    powers = [term**exponent for term, exponent in zip(terms, SCALES, strict=True)]
    return math.prod(powers[1:], start=powers[0]).mean(dim=1)


def _maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term and the product of contrast and structure of each window, `[B,C,H-10,W-10]`."""
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b

    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance, structure


def _smooth(image: Tensor) -> Tensor:
    """Gaussian means of all valid windows, `[B,C,H-10,W-10]`."""
    offsets = torch.arange(WINDOW, dtype=image.dtype, device=image.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    planes = image.flatten(0, 1)[:, None]
    planes = conv2d(conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.reshape(*image.shape[:2], *planes.shape[-2:])
