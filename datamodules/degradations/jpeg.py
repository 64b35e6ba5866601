"""JPEG compression and decompression on the device, each image at a quality of its own, as libjpeg computes it.

Entropy coding is lossless and is left out. All else follows libjpeg's defaults, which OpenCV and Pillow share: 8-bit
input, chroma of half the size, the standard tables, chroma enlarged by a triangle filter, 8-bit output. Real-ESRGAN's
DiffJPEG differs in that it does not round the planes, and enlarges the chroma by repeating pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.draws import check_range, uniform
from datamodules.degradations.image_batch import ImageBatch

# Annex K of ITU-T T.81
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
OUTWARD_EIGHT = 8 / (1 + 1e-6)  # dividing by it rounds exact halves, and nothing else, away from zero
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


@dataclass(frozen=True)
class JPEGDistribution:
    """From what one JPEG operation is drawn.

    Attributes:
        jpeg_range: smallest and largest quality, within 1..100; qualities need not be integers.
        suffix: end of the key name in errors; "2" in the second stage.
    """

    jpeg_range: tuple[float, float]
    suffix: str = ""

    def __post_init__(self) -> None:
        """Raises a ValueError that names the key of an impossible value."""
        check_range(f"jpeg_range{self.suffix}", self.jpeg_range, 1, 100)

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One operation `jpeg`."""
        return {"name": "jpeg", "quality": uniform(rng, self.jpeg_range)}


def compress(images: ImageBatch, operations: Sequence[Recipe]) -> ImageBatch:
    """Compresses images in [0,1] at the `quality` (1 to 100) of each and decompresses them to 8-bit levels in [0,1]."""
    height, width = (math.ceil(side / 16) * 16 for side in images.size)
    pixels = images.padded(0, height, width, "replicate").mul(255).round_().clamp_(0, 255)
    planes = convert_colour(pixels, RGB_TO_YCC, offset=(-128.0, 0.0, 0.0)).round_()
    tables = quantisation_tables([operation["quality"] for operation in operations], pixels.device)
    luma = quantise_blocks(planes[:, :1], tables[0])
    half_size = downsample_chroma(planes[:, 1:], images)
    blocks = half_size.padded(0, height // 2, width // 2, "replicate")
    chroma = half_size.with_pixels(quantise_blocks(blocks, tables[1]))

    height, width = images.size
    planes = torch.cat((luma[..., :height, :width], upsample_chroma(chroma)[..., :height, :width]), 1)
    return images.with_pixels(convert_colour(planes, YCC_TO_RGB, offset=(128.0,) * 3).round_().clamp_(0, 255).div_(255))


def quantisation_tables(qualities: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Luma and chroma tables `[B,1,1,8,1,8]`: the standard ones, scaled by libjpeg's rule.

    Raises:
        ValueError: a quality outside 1..100.
    """
    if not all(1 <= quality <= 100 for quality in qualities):
        raise ValueError(f"quality: JPEG qualities are 1 to 100, got {list(qualities)}")
    percent = [math.floor(5000 / quality if quality < 50 else 200 - 2 * quality) for quality in qualities]
    base = torch.tensor([LUMA_TABLE, CHROMA_TABLE], dtype=torch.float32)[:, None]
    scaled = ((base * torch.tensor(percent).view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255).to(device)
    luma, chroma = scaled[:, :, None, None, :, None, :]
    return luma, chroma


@lru_cache(maxsize=8)
def dct_matrix(device: torch.device) -> Tensor:
    """The 8-point DCT times sqrt(8), `[8,8]`: row u is the u-th cosine. Rows 0 and 4 hold exact ones."""
    u, x = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * x + 1) * u * math.pi / 16) * math.sqrt(2)
    matrix[0] = 1
    return matrix.float().to(device)


def quantise_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Rounds the DCT coefficients of each 8x8 block of `[B,C,H,W]` (around 0) to multiples of `table`; 8-bit levels.

    Coefficients are first rounded to eighths, and halves then go away from zero, as in libjpeg's integer DCT: with the
    small steps of a high quality, ties are frequent.
    """
    dct = dct_matrix(planes.device)
    b, c, h, w = planes.shape
    columns = dct @ planes.reshape(b, c, h // 8, 8, w)
    eighths = (columns.view(b, c, h // 8, 8, w // 8, 8) @ dct.T).round_()
    steps = eighths.div_(table * OUTWARD_EIGHT).round_().mul_(table)
    columns = (steps @ dct).view(b, c, h // 8, 8, w)
    return (dct.T @ columns).view(b, c, h, w).mul_(1 / 8).add_(0.5).floor_().clamp_(-128, 127)


def downsample_chroma(chroma: Tensor, images: ImageBatch) -> ImageBatch:
    """The mean of each 2x2 cell, halves rounded down in even and up in odd columns, as libjpeg does against drift."""
    total = chroma[..., ::2, ::2] + chroma[..., 1::2, ::2] + chroma[..., ::2, 1::2] + chroma[..., 1::2, 1::2]
    total[..., ::2] += 1
    total[..., 1::2] += 2
    heights = [math.ceil(height / 2) for height in images.heights]
    widths = [math.ceil(width / 2) for width in images.widths]
    return ImageBatch(total.mul_(0.25).floor_(), heights, widths)


def upsample_chroma(chroma: ImageBatch) -> Tensor:
    """Twice the size on both axes: 3/4 of the nearer and 1/4 of the farther neighbour, as libjpeg interpolates."""
    height, width = chroma.size
    around = chroma.padded(1, height + 2, width + 2, "replicate")
    near = around[..., 1:-1, :] * 3
    rows = torch.stack((near + around[..., :-2, :], near + around[..., 2:, :]), -2).flatten(-3, -2)
    near = rows[..., 1:-1] * 3
    left, right = near + rows[..., :-2] + 8, near + rows[..., 2:] + 7
    return torch.stack((left, right), -1).flatten(-2).mul_(1 / 16).floor_()


def convert_colour(pixels: Tensor, matrix: Sequence[Sequence[float]], offset: Sequence[float]) -> Tensor:
    """A linear map of the three channels of `[B,3,H,W]`, plus an offset for each result."""
    flat = pixels.flatten(2)
    mapped = torch.baddbmm(flat.new_tensor(offset).view(1, 3, 1), flat.new_tensor(matrix).expand(len(flat), 3, 3), flat)
    return mapped.view_as(pixels)
