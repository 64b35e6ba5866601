"""Convolution with a kernel per image by the Fourier transform, and unsharp masking."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.kernels import blur_kernels

USM_SIZE = 51
USM_SIGMA = 0.3 * ((USM_SIZE - 1) * 0.5 - 1) + 0.8  # OpenCV's default for a Gaussian of that many taps


def blur(images: ImageBatch, operations: Sequence[Recipe]) -> ImageBatch:
    """Convolves each image with the kernel of its operation; borders are reflected."""
    return convolve(images, blur_kernels(operations).to(images.pixels.device))


def convolve(images: ImageBatch, weights: Tensor) -> ImageBatch:
    """Convolves image i with `weights[i]` (`[B,K,K]`, K odd) on all channels; borders are reflected without the edge.

    A product of spectra costs the same for every kernel: 1 ms for 3x256x256 and 21x21 taps where the sum over taps
    takes 15 ms. Real-ESRGAN's kernels are point-symmetric, so that convolution and correlation are the same.

    Raises:
        ValueError: an image is not larger than half of its kernel, so that its border cannot be reflected.
    """
    radius = weights.shape[-1] // 2
    if min(*images.heights, *images.widths) <= radius:
        sizes = sorted(zip(images.heights, images.widths, strict=True))
        raise ValueError(
            f"an image of {sizes[0][0]}x{sizes[0][1]} cannot be blurred by {2 * radius + 1} taps; crop larger"
        )

    height, width = images.size
    padded = images.padded(radius, height + 2 * radius, width + 2 * radius, "reflect")
    size = fast_length(padded.shape[-2]), fast_length(padded.shape[-1])
    spectrum = torch.fft.rfft2(padded, s=size).mul_(torch.fft.rfft2(weights, s=size)[:, None])
    # the product convolves circularly; the wrapped part lies in the padding, which is cut off
    circular = torch.fft.irfft2(spectrum, s=size)
    return images.with_pixels(circular[..., 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width])


@lru_cache(maxsize=1024)
def fast_length(length: int) -> int:
    """The next even length whose transform is fast: a product of 2, 3, 5 and 7."""
    candidate = length + length % 2
    while not has_small_factors(candidate):
        candidate += 2
    return candidate


def has_small_factors(number: int) -> bool:
    """Whether a number has no prime factor above 7."""
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1


@lru_cache(maxsize=1)
def unsharp_kernel() -> Tensor:
    """The Gaussian kernel of unsharp masking, `[1,51,51]`."""
    return blur_kernels([{"kernel": "iso", "size": USM_SIZE, "sigma_x": USM_SIGMA}])


def unsharp_mask(images: Tensor, *, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpens `[B,3,H,W]` in [0,1] where it differs from its blur by more than `threshold` grey levels.

    The sharpening of Real-ESRGAN's targets (arXiv:2107.10833): the blur is a Gaussian of 51 taps.
    """
    kernel = unsharp_kernel().to(images.device)
    detail = images - convolve(ImageBatch.from_tensor(images), kernel).pixels
    edges = convolve(ImageBatch.from_tensor((detail.abs() > threshold / 255).to(images.dtype)), kernel).pixels
    return images.lerp(torch.add(images, detail, alpha=weight).clamp_(0, 1), edges)
