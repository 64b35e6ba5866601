"""What the image scores of super-resolution papers are computed on: 8-bit pixels, luma, and no border."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_uint8(image: Tensor, keys: Sequence[str]) -> Tensor:
    """Rounds images as a PNG file would hold them.

    Args:
        image: `[B,C,H,W]` in [-1, 1]; values outside are clamped.
        keys: Name of each image, for the error.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: an image holds NaN or infinity, which no pixel can show.
    """
    finite = image.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        named = ", ".join(key for key, good in zip(keys, finite, strict=True) if not good)
        raise ValueError(
            f"{named}: the image holds NaN or infinity; if the model was trained, sample in float32 "
            "(--trainer.precision 32-true) to rule out an overflow"
        )
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601 in studio range, as MATLAB's `rgb2ycbcr` weighs it, without its rounding.

    Args:
        rgb: `[B,3,H,W]` in [0, 1].

    Returns:
        `[B,1,H,W]` in [16/255, 235/255].
    """
    red, green, blue = rgb[..., 0:1, :, :], rgb[..., 1:2, :, :], rgb[..., 2:3, :, :]
    return (65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255


def crop_border(image: Tensor, border: int) -> Tensor:
    """`image` without `border` pixels on each side, which methods treat too differently to be compared."""
    height, width = image.shape[-2:]
    return image[..., border : height - border, border : width - border]
