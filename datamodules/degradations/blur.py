"""Convolution with a kernel per image through the Fourier transform, and the sharpening built on it."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.kernels import kernels
from datamodules.degradations.variable_size import Images

USM_SIZE = 51
USM_SIGMA = 0.3 * ((USM_SIZE - 1) * 0.5 - 1) + 0.8  # OpenCV's width for a Gaussian of that many taps


def blur(images: Images, operations: Sequence[Recipe]) -> Images:
    """Convolves each image with the kernel of its operation; borders are reflected."""
    return convolve(images, kernels(operations).to(images.pixels.device))


def convolve(images: Images, weights: Tensor) -> Images:
    """Convolves image i with `weights[i]` (`[B,K,K]`, K odd) on all channels; borders are reflected without the edge.

    A product of spectra costs the same for every kernel: 1 ms for 3x256x256 and 21x21 taps where the sum over taps
    takes 15 ms. Real-ESRGAN's kernels are point-symmetric, so that convolution and correlation are one.

    Raises:
        ValueError: an image is not larger than half of its kernel, so that its border cannot be reflected.
    """
    reach = weights.shape[-1] // 2
    if min(*images.heights, *images.widths) <= reach:
        sizes = sorted(zip(images.heights, images.widths, strict=True))
        raise ValueError(
            f"an image of {sizes[0][0]}x{sizes[0][1]} cannot be blurred by {2 * reach + 1} taps; crop larger"
        )
    height, width = images.size
    around = images.padded(reach, height + 2 * reach, width + 2 * reach, "reflect")
    size = fast_length(around.shape[-2]), fast_length(around.shape[-1])
    spectrum = torch.fft.rfft2(around, s=size).mul_(torch.fft.rfft2(weights, s=size)[:, None])
    wrapped = torch.fft.irfft2(spectrum, s=size)
    return images.with_pixels(wrapped[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width])


@lru_cache(maxsize=1024)
def fast_length(length: int) -> int:
    """The next even length whose transform is fast: a product of 2, 3, 5 and 7."""
    candidate = length + length % 2
    while not smooth(candidate):
        candidate += 2
    return candidate


def smooth(number: int) -> bool:
    """Whether a number has no prime factor above 7."""
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1


@lru_cache(maxsize=1)
def unsharp_taps() -> Tensor:
    """The blur of unsharp masking, `[1,51,51]`."""
    return kernels([{"kernel": "iso", "size": USM_SIZE, "sigma_x": USM_SIGMA}])


def unsharp_mask(images: Tensor, *, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpens `[B,3,H,W]` in [0,1] where it differs from its blur by more than `threshold` grey levels.

    The sharpening of Real-ESRGAN's targets (arXiv:2107.10833): the blur is a Gaussian of 51 taps.
    """
    taps = unsharp_taps().to(images.device)
    detail = images - convolve(Images.of(images), taps).pixels
    edges = convolve(Images.of((detail.abs() > threshold / 255).to(images.dtype)), taps).pixels
    return images.lerp(torch.add(images, detail, alpha=weight).clamp_(0, 1), edges)
