"""Resizing as `torch.nn.functional.interpolate` does it, with a size and a mode for each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.draws import check_probabilities, check_range, choose, uniform
from datamodules.degradations.image_batch import ImageBatch
from lightning_modules.float64 import in_float64

MODES = ("area", "bilinear", "bicubic")  # none of them filters before it shrinks, except area


@dataclass(frozen=True)
class ResizeDistribution:
    """From what one resize operation is drawn; the names are Real-ESRGAN's.

    Attributes:
        resize_prob: how often the image grows, shrinks and keeps its size; they sum to 1.
        resize_range: smallest and largest factor.
        suffix: end of the key names in errors; "2" in the second stage.
    """

    resize_prob: Sequence[float]
    resize_range: tuple[float, float]
    suffix: str = ""

    def __post_init__(self) -> None:
        """Raises a ValueError that names the key of an impossible value."""
        check_probabilities(f"resize_prob{self.suffix}", self.resize_prob, 3)
        check_range(f"resize_range{self.suffix} up to 1", (self.resize_range[0], 1.0), 0.01)
        check_range(f"resize_range{self.suffix} from 1 on", (1.0, self.resize_range[1]), 1)

    def draw(self, rng: np.random.Generator, name: Literal["rescale", "resize"]) -> Recipe:
        """One operation `rescale` (a factor on the image itself) or `resize` (a factor on the final size)."""
        direction = choose(rng, ("up", "down", "keep"), self.resize_prob)
        limits = {"up": (1.0, self.resize_range[1]), "down": (self.resize_range[0], 1.0), "keep": (1.0, 1.0)}
        return {"name": name, "factor": uniform(rng, limits[direction]), "mode": draw_mode(rng)}


def draw_mode(rng: np.random.Generator) -> str:
    """One of MODES, all equally likely."""
    return choose(rng, MODES, (1 / 3, 1 / 3, 1 / 3))


def rescale(images: ImageBatch, operations: Sequence[Recipe]) -> ImageBatch:
    """Resizes each image by the `factor` of its operation, in its `mode`; sizes are rounded down.

    As in `interpolate(scale_factor=...)`, pixels are taken exactly 1 / factor apart, whatever the rounding.
    """
    factors = [operation["factor"] for operation in operations]
    modes = [operation["mode"] for operation in operations]
    heights = [int(height * factor) for height, factor in zip(images.heights, factors, strict=True)]
    widths = [int(width * factor) for width, factor in zip(images.widths, factors, strict=True)]

    if len(modes) == 1:
        pixels = functional.interpolate(cropped(images), scale_factor=factors[0], mode=modes[0])
        return ImageBatch(pixels, heights, widths)

    steps = [1 / factor for factor in factors]
    rows = resize_matrices(images.tensor(images.heights), images.tensor(heights), images.tensor(steps), modes)
    columns = resize_matrices(images.tensor(images.widths), images.tensor(widths), images.tensor(steps), modes)
    return ImageBatch(resize_separably(images, rows, columns), heights, widths)


def resize(images: ImageBatch, operations: Sequence[Recipe], *, low: tuple[int, int]) -> ImageBatch:
    """Resizes each image to the `factor` of its operation times the final height and width, `low`, in its `mode`."""
    modes = [operation["mode"] for operation in operations]
    heights = [int(low[0] * operation["factor"]) for operation in operations]
    widths = [int(low[1] * operation["factor"]) for operation in operations]

    if len(modes) == 1:
        pixels = functional.interpolate(cropped(images), size=(heights[0], widths[0]), mode=modes[0])
        return ImageBatch(pixels, heights, widths)

    before, after = images.tensor(images.heights), images.tensor(heights)
    rows = resize_matrices(before, after, before / after, modes)
    before, after = images.tensor(images.widths), images.tensor(widths)
    columns = resize_matrices(before, after, before / after, modes)
    return ImageBatch(resize_separably(images, rows, columns), heights, widths)


def cropped(images: ImageBatch) -> Tensor:
    """The pixels of images of one size, without surroundings."""
    height, width = images.size
    return images.pixels[..., :height, :width]


def resize_separably(images: ImageBatch, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows[i] @ image i @ columns[i]^T` for each image and channel."""
    return rows[:, None] @ images.pixels[..., : rows.shape[-1], : columns.shape[-1]] @ columns[:, None].mT


def resize_matrices(before: Tensor, after: Tensor, steps: Tensor, modes: Sequence[str]) -> Tensor:
    """`[B, largest after, largest before]` float32: the weights with which old pixels of an axis enter the new ones.

    Args:
        before: `[B]` old lengths.
        after: `[B]` new lengths; rows beyond them are finite and unused.
        steps: `[B]` distances between new pixels, in old pixels.
        modes: one of MODES per image.
    """
    new = torch.arange(int(after.max()), device=before.device)
    old = torch.arange(int(before.max()), device=before.device)
    weight = torch.zeros(len(modes), len(new), len(old), device=before.device)

    for mode in MODES:
        indices = [i for i, given in enumerate(modes) if given == mode]
        chosen = torch.tensor(indices, dtype=torch.long, device=before.device)
        length = before[chosen, None]
        if mode == "area":
            weight[chosen] = area_weights(new, old, length, after[chosen, None])
        else:
            centre = in_float64(new + 0.5) * in_float64(steps[chosen, None]) - 0.5
            position, share = kernel_taps(centre, length.to(centre.device), mode)
            position, share = position.to(before.device), share.float().to(before.device)
            for tap in range(4):  # not `scatter_add_`, whose order of summation varies on a GPU
                weight[chosen] += (position[..., tap, None] == old) * share[..., tap, None]
    return weight


def area_weights(new: Tensor, old: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Weights of the mean over the old pixels that a new pixel touches, `[B, new, old]`."""
    first, end = new * before // after, -(-(new + 1) * before // after)
    touched = (old >= first[..., None]) & (old < end[..., None])
    return touched / (end - first)[..., None]


def kernel_taps(centre: Tensor, before: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Four old pixels around each `centre` (`[B,new]`) and their weights, `[B,new,4]` each; borders are repeated.

    Bicubic uses torch's a = -0.75; bilinear gives weight to the inner two only.
    """
    centre = centre if mode == "bicubic" else torch.minimum(centre.clamp(min=0), before - 1)
    position = centre.floor()[..., None] + torch.arange(-1, 3, device=centre.device)
    distance = (centre[..., None] - position).abs()
    inner = (1.25 * distance - 2.25) * distance**2 + 1
    outer = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    cubic = torch.where(distance <= 1, inner, outer)
    share = cubic if mode == "bicubic" else (1 - distance).clamp(min=0)
    return torch.minimum(position.long().clamp(min=0), before[..., None] - 1), share
