"""The grey levels 0..255 of 8-bit images, and back to floats."""

import torch
from torch import Tensor


def to_uint8(image: Tensor, *, black: float = 0.0) -> Tensor:
    """Floats from `black` to 1 as levels 0..255, rounded half to even and clipped; any shape."""
    return ((image - black) * (255 / (1 - black))).round().clamp(0, 255).to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """Levels 0..255 to [0,1], float32; any shape."""
    return image.float() / 255
