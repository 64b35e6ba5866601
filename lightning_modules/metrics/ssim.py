"""SSIM over valid windows, as super-resolution papers report it."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW = 11
SIGMA = 1.5


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
    a, b = sr.double(), hr.double()
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _smooth(image: Tensor) -> Tensor:
    """Gaussian means of all valid windows, `[B,C,H-10,W-10]`."""
    offsets = torch.arange(WINDOW, dtype=image.dtype, device=image.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    planes = image.flatten(0, 1)[:, None]
    planes = conv2d(conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.reshape(*image.shape[:2], *planes.shape[-2:])
