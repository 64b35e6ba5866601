"""Enlarges a low-resolution image to the grid of the sharp one: the `up` of a batch."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from datamodules.degradations.bicubic import matlab_bicubic, pillow_bicubic
from datamodules.degradations.levels import from_uint8, to_uint8

Enlargement = Literal["matlab", "matlab_256", "pillow", "torch", "bilinear", "nearest"]


def enlarge(lr: Tensor, *, scale: int, kernel: Enlargement) -> Tensor:
    """Enlarges `lr` (`[B,3,h,w]` in [0,1]) `scale` times per side; float32, or float64 if `lr` is.

    Kernels:
        matlab: MATLAB's bicubic of the float image, not clipped: it may leave [0,1] slightly.
        matlab_256: the same of the 8-bit image divided by 256, not 255. SRDiff (arXiv:2104.14951) was trained so.
        pillow: Pillow's bicubic of the 8-bit image, rounded to 8 bits. SR3 (arXiv:2104.07636) was trained so.
        torch: `interpolate` with mode bicubic (a = -0.75), not clipped. ResShift and DoSSR start from it.
        bilinear: `interpolate` with mode bilinear.
        nearest: each pixel repeated. Relay Diffusion starts from it.

    Raises:
        ValueError: an unknown kernel.
    """
    if kernel == "matlab":
        return matlab_bicubic(lr, scale=scale)
    if kernel == "matlab_256":
        return matlab_bicubic((lr * 255).round() / 256, scale=scale)

    if kernel == "pillow":
        size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
        return from_uint8(pillow_bicubic(to_uint8(lr), size=size)).to(lr.dtype)
    if kernel == "nearest":
        return functional.interpolate(lr, scale_factor=scale, mode="nearest")

    if kernel in ("torch", "bilinear"):
        mode = "bicubic" if kernel == "torch" else "bilinear"
        return functional.interpolate(lr, scale_factor=scale, mode=mode, align_corners=False)
    raise ValueError(f"kernel: {kernel!r} is not one of matlab, matlab_256, pillow, torch, bilinear, nearest")
