"""Bicubic resizing exactly as MATLAB's `imresize` and as Pillow do it, batched on any device.

Both are separable: one matrix product per axis. The two differ at the borders (MATLAB mirrors the image, Pillow cuts
the kernel off), in the order of the axes, and in how 8-bit images are rounded.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from datamodules.degradations.degradation import Degradation, Recipe
from datamodules.degradations.levels import from_uint8, to_uint8
from lightning_modules.float64 import in_float64

PILLOW_ONE = float(1 << 22)  # Pillow holds the weights of an 8-bit image as multiples of 2^-22


class Bicubic(Degradation):
    """MATLAB's bicubic shrinking of 8-bit images, the standard of super-resolution benchmarks; the result is 8-bit too.

    Args:
        scale: how many times smaller the result is, per side.
        rounding: "once" is `im2double`, `imresize`, `im2uint8`, as benchmark files are made. "each_pass" is `imresize`
            of an 8-bit image, which clips and rounds between rows and columns too: SRDiff (arXiv:2104.14951) was
            trained so. They differ by one grey level in about a tenth of the pixels, and by more at hard edges.
    """

    def __init__(self, scale: int, rounding: Literal["once", "each_pass"] = "once") -> None:
        super().__init__(scale)
        if rounding not in ("once", "each_pass"):
            raise ValueError(f"rounding: {rounding!r} is neither 'once' nor 'each_pass'")
        self.rounding = rounding

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`; the recipes are empty."""
        image = to_uint8(hr)
        if self.rounding == "each_pass":
            return from_uint8(matlab_bicubic(image, scale=1 / self.scale))
        small = matlab_bicubic(in_float64(image), scale=1 / self.scale).round().clamp(0, 255).float()
        return small.to(hr.device) / 255


class PillowBicubic(Degradation):
    """Pillow's bicubic shrinking, as SR3 uses it for faces; the result lies on 8-bit levels and equals Pillow's."""

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`; the recipes are empty."""
        height, width = hr.shape[-2:]
        return from_uint8(pillow_bicubic(to_uint8(hr), size=(height // self.scale, width // self.scale)))


def matlab_bicubic(image: Tensor, *, scale: float | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """MATLAB's `imresize(image, scale)` or `imresize(image, size)`: cubic with a = -0.5, widened when it shrinks.

    Borders are mirrored (the edge pixel is repeated) and weights are normalised. The axis that shrinks most goes first,
    rows where they tie. An 8-bit image is clipped and rounded, half to even, after each pass.

    Args:
        image: `[...,H,W]`, uint8, float32 or float64; floats may have any range and are neither clipped nor rounded.
        scale: factor per side; the result is `ceil(scale * H)` by `ceil(scale * W)`.
        size: the result's height and width, instead of `scale`.

    Raises:
        ValueError: not exactly one of `scale` and `size` is given, or the image is of another dtype.
    """
    height, width = image.shape[-2:]
    if scale is not None and size is None:
        size, scales = (math.ceil(scale * height), math.ceil(scale * width)), (scale, scale)
    elif size is not None and scale is None:
        scales = (size[0] / height, size[1] / width)
    else:
        raise ValueError("matlab_bicubic: give either scale or size")
    rows, columns = matlab_matrix(height, size[0], scales[0]), matlab_matrix(width, size[1], scales[1])
    return two_passes(image, rows=rows, columns=columns, rows_first=scales[0] <= scales[1])


def pillow_bicubic(image: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Pillow's `Image.resize(size, BICUBIC)` of an 8-bit image, equal in every pixel.

    Columns go first, as in every Pillow up to 12 and so in the data SR3 was trained on. Pillow 13 starts with the rows
    where an image loses more than twice as many rows as columns; a tall image then differs in a few pixels.

    Args:
        image: `[...,H,W]` uint8.
        size: the result's height and width (Pillow itself takes width, height).

    Raises:
        ValueError: the image is not uint8.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"pillow_bicubic: Pillow's arithmetic is defined for uint8, got {image.dtype}")
    rows = pillow_matrix(image.shape[-2], size[0])
    columns = pillow_matrix(image.shape[-1], size[1])
    # Pillow adds half a unit and drops the fraction: the nearest integer, half upwards. All sums are below 2^53.
    state = in_float64(image)
    columns_done = (state @ columns.to(state).T + 0.5).floor().clamp(0, 255)
    return (rows.to(state) @ columns_done + 0.5).floor().clamp(0, 255).to(torch.uint8).to(image.device)


def two_passes(image: Tensor, *, rows: Tensor, columns: Tensor, rows_first: bool) -> Tensor:
    """`rows @ image @ columns^T` in the given order; uint8 is rounded after each pass."""
    if image.dtype not in (torch.uint8, torch.float32, torch.float64):
        raise ValueError(f"matlab_bicubic: expected uint8, float32 or float64, got {image.dtype}")
    state = in_float64(image)  # also for float32, whose products a GPU may be told to round (TF32)
    for along_rows in (rows_first, not rows_first):
        matrix = (rows if along_rows else columns).to(state)
        state = matrix @ state if along_rows else state @ matrix.T
        state = state.round().clamp(0, 255) if image.dtype == torch.uint8 else state
    return state.to(image.dtype).to(image.device)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5; zero from |x| = 2 on."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, outer).where(x < 2, 0.0)


@lru_cache(maxsize=64)
def matlab_matrix(length: int, out: int, scale: float) -> Tensor:
    """`[out, length]` float64: the weights of each input pixel in each output pixel, with mirrored borders."""
    stretch = min(scale, 1.0)
    taps = math.ceil(4 / stretch) + 2
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    position = (centre - 2 / stretch).floor()[:, None] + torch.arange(taps, dtype=torch.float64)
    weight = cubic((centre[:, None] - position) * stretch)
    weight = weight / weight.sum(dim=1, keepdim=True)
    folded = position.long() % (2 * length)
    folded = torch.where(folded < length, folded, 2 * length - 1 - folded)
    return torch.zeros(out, length, dtype=torch.float64).scatter_add_(1, folded, weight)


@lru_cache(maxsize=64)
def pillow_matrix(length: int, out: int) -> Tensor:
    """`[out, length]` float64: Pillow's weights, each a whole multiple of 2^-22; the kernel is cut at the borders."""
    ratio = length / out
    stretch = max(ratio, 1.0)
    centre = ((torch.arange(out, dtype=torch.float64) + 0.5) * ratio)[:, None]
    first = (centre - 2 * stretch + 0.5).long().clamp(min=0)
    last = (centre + 2 * stretch + 0.5).long().clamp(max=length)
    pixel = torch.arange(length)
    weight = cubic((pixel - centre + 0.5) / stretch) * ((pixel >= first) & (pixel < last))
    weight = weight / weight.sum(dim=1, keepdim=True) * PILLOW_ONE
    return (weight + weight.sign() / 2).trunc() / PILLOW_ONE
