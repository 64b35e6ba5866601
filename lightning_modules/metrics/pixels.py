"""What the image scores of super-resolution papers are computed on: luma, and no border."""

from torch import Tensor


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
