"""Transfers the colours of a reference image, for decoders that shift colours (StableSR, arXiv:2305.07015)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

ColorFix = Literal["none", "wavelet", "adain"]
WAVELET_LEVELS = 5
VARIANCE_FLOOR = 1e-5  # added to the variance of images in [0, 1], which keeps flat channels from dividing by 0


def fix_color(image: Tensor, *, reference: Tensor, method: ColorFix) -> Tensor:
    """`image` with the colours of `reference`, both `[B,3,H,W]` in [-1, 1]; not clamped.

    `wavelet` replaces the low frequencies, `adain` the mean and standard deviation of each channel.
    """
    if method == "none":
        return image
    fix = wavelet if method == "wavelet" else adain
    return fix((image + 1) / 2, reference=(reference + 1) / 2) * 2 - 1


def wavelet(image: Tensor, *, reference: Tensor) -> Tensor:
    """`image` with the low frequencies of `reference`, both `[B,3,H,W]` in [0, 1]."""
    return image - low_frequencies(image) + low_frequencies(reference)


def low_frequencies(image: Tensor) -> Tensor:
    """The image after five blurs of doubling width (the coarsest band of an undecimated wavelet), `[B,C,H,W]`."""
    row = image.new_tensor([0.25, 0.5, 0.25])
    channels = image.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 3, 3)
    # Each blur doubles the distance between the kernel's taps instead of the size of the kernel.
    for radius in (2**level for level in range(WAVELET_LEVELS)):
        padded = pad(image, (radius, radius, radius, radius), mode="replicate")
        image = conv2d(padded, kernel, groups=channels, dilation=radius)
    return image


def adain(image: Tensor, *, reference: Tensor) -> Tensor:
    """`image` with the channel means and deviations of `reference` (arXiv:1703.06868), both `[B,3,H,W]` in [0, 1]."""
    mean, deviation = statistics(image)
    reference_mean, reference_deviation = statistics(reference)
    return (image - mean) / deviation * reference_deviation + reference_mean


def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, `[B,C,1,1]` each."""
    variance = image.var(dim=(2, 3), keepdim=True) + VARIANCE_FLOOR
    return image.mean(dim=(2, 3), keepdim=True), variance.sqrt()
