"""The grey levels of 8-bit and 16-bit images, and back to floats."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_uint8(image: Tensor, *, black: float = 0.0) -> Tensor:
    """Floats from `black` to 1 as levels 0..255, rounded half to even and clipped; any shape."""
    return ((image - black) * (255 / (1 - black))).round().clamp(0, 255).to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """Levels 0..255 to [0,1], float32; any shape."""
    return image.float() / 255


def from_levels(image: Tensor) -> Tensor:
    """Levels 0..255 or 0..65535, by type, to [0,1], float32; any shape."""
    return image.float() / torch.iinfo(image.dtype).max


def to_levels(image: Tensor, depth: int) -> Tensor:
    """Floats in [-1,1] as levels 0..255 or 0..65535, for a `depth` of 8 or 16 bits; any shape."""
    if depth == 8:
        return to_uint8(image, black=-1.0)
    return ((image + 1) * (65535 / 2)).round().clamp(0, 65535).to(torch.int32).to(torch.uint16)


def as_tensor(pixels: NDArray[Any]) -> Tensor:
    """Pixels `[H,W,3]` of any type as a tensor `[1,3,H,W]`."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))[None]
