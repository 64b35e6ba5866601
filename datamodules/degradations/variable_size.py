"""Images of different sizes in one tensor, so that a batch stays a batch after each image was resized on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Images:
    """`pixels` is `[B,C,H,W]`; image i fills the upper left `heights[i]` x `widths[i]` of it, the rest is arbitrary."""

    pixels: Tensor
    heights: Sequence[int]
    widths: Sequence[int]

    @staticmethod
    def of(pixels: Tensor) -> "Images":
        """Images that all fill `pixels` (`[B,C,H,W]`)."""
        return Images(pixels, [pixels.shape[-2]] * len(pixels), [pixels.shape[-1]] * len(pixels))

    @property
    def alike(self) -> bool:
        """Whether all images have one size."""
        return len({*zip(self.heights, self.widths, strict=True)}) == 1

    @property
    def size(self) -> tuple[int, int]:
        """The largest height and the largest width."""
        return max(self.heights), max(self.widths)

    def with_pixels(self, pixels: Tensor) -> "Images":
        """Other pixels for images of the same sizes."""
        return Images(pixels, self.heights, self.widths)

    def select(self, indices: Sequence[int]) -> "Images":
        """The images at `indices`, in that order, in the smallest tensor that holds them."""
        heights, widths = [self.heights[i] for i in indices], [self.widths[i] for i in indices]
        whole = list(indices) == list(range(len(self.heights)))
        pixels = self.pixels if whole else self.pixels[torch.tensor(indices, device=self.pixels.device)]
        return Images(pixels[..., : max(heights), : max(widths)], heights, widths)

    def replaced(self, indices: Sequence[int], part: "Images") -> "Images":
        """These images with those at `indices` exchanged for `part`, in a tensor that holds all."""
        if list(indices) == list(range(len(self.heights))):
            return part
        heights, widths = list(self.heights), list(self.widths)
        for place, index in enumerate(indices):
            heights[index], widths[index] = part.heights[place], part.widths[place]
        pixels = self.pixels.new_zeros(len(heights), self.pixels.shape[1], max(heights), max(widths))
        everywhere = torch.arange(len(heights), device=pixels.device)
        for places, given in ((everywhere, self.pixels), (everywhere[list(indices)], part.pixels)):
            corner = given[..., : max(heights), : max(widths)]
            pixels[places, :, : corner.shape[-2], : corner.shape[-1]] = corner
        return Images(pixels, heights, widths)

    def padded(self, before: int, height: int, width: int, mode: Literal["reflect", "replicate"]) -> Tensor:
        """`[B,C,height,width]`: each image from `(before, before)` on, its surroundings made from its own border."""
        if self.alike:
            h, w = self.size
            pads = (before, width - before - w, before, height - before - h)
            return functional.pad(self.pixels[..., :h, :w], pads, mode=mode)
        rows = source(height, before, self.tensor(self.heights), mode)
        columns = source(width, before, self.tensor(self.widths), mode)
        batch, channels = (torch.arange(size, device=rows.device) for size in self.pixels.shape[:2])
        return self.pixels[
            batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]

    def inside(self) -> Tensor:
        """`[B,1,H,W]` booleans over `pixels`: which of them belong to an image."""
        height, width = self.pixels.shape[-2:]
        rows = torch.arange(height, device=self.pixels.device) < self.tensor(self.heights)[:, None]
        columns = torch.arange(width, device=self.pixels.device) < self.tensor(self.widths)[:, None]
        return rows[:, None, :, None] & columns[:, None, None, :]

    def tensor(self, values: Sequence[float]) -> Tensor:
        """One number per image, `[B]`, where the pixels are."""
        return torch.tensor(values, device=self.pixels.device)


def source(length: int, before: int, sizes: Tensor, mode: str) -> Tensor:
    """`[B,length]`: the row (or column) of each image that stands at each place of a padded tensor."""
    place = torch.arange(length, device=sizes.device) - before
    last = sizes[:, None] - 1
    if mode == "reflect":
        place = last - (last - place.abs()).abs()
    return torch.minimum(place.clamp(min=0), last)
