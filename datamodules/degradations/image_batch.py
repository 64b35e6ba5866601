"""Variable-size images in one tensor, so that a batch stays a batch after each image was resized differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ImageBatch:
    """`pixels` is `[B,C,H,W]`; image i fills the upper left `heights[i]` x `widths[i]` of it, the rest is arbitrary."""

    pixels: Tensor
    heights: Sequence[int]
    widths: Sequence[int]

    @staticmethod
    def from_tensor(pixels: Tensor) -> "ImageBatch":
        """Images that all fill `pixels` (`[B,C,H,W]`)."""
        return ImageBatch(pixels, [pixels.shape[-2]] * len(pixels), [pixels.shape[-1]] * len(pixels))

    @property
    def same_size(self) -> bool:
        """Whether all images have one size."""
        return len({*zip(self.heights, self.widths, strict=True)}) == 1

    @property
    def size(self) -> tuple[int, int]:
        """The largest height and the largest width."""
        return max(self.heights), max(self.widths)

    def with_pixels(self, pixels: Tensor) -> "ImageBatch":
        """Other pixels for images of the same sizes."""
        return ImageBatch(pixels, self.heights, self.widths)

    def select(self, indices: Sequence[int]) -> "ImageBatch":
        """The images at `indices`, in that order, in the smallest tensor that holds them."""
        heights, widths = [self.heights[i] for i in indices], [self.widths[i] for i in indices]
        whole = list(indices) == list(range(len(self.heights)))
        pixels = self.pixels if whole else self.pixels[torch.tensor(indices, device=self.pixels.device)]
        return ImageBatch(pixels[..., : max(heights), : max(widths)], heights, widths)

    def replaced(self, indices: Sequence[int], part: "ImageBatch") -> "ImageBatch":
        """These images with those at `indices` replaced by `part`, in a tensor that holds all."""
        if list(indices) == list(range(len(self.heights))):
            return part
        heights, widths = list(self.heights), list(self.widths)
        for number, index in enumerate(indices):
            heights[index], widths[index] = part.heights[number], part.widths[number]

        pixels = self.pixels.new_zeros(len(heights), self.pixels.shape[1], max(heights), max(widths))
        every = torch.arange(len(heights), device=pixels.device)
        for chosen, given in ((every, self.pixels), (every[list(indices)], part.pixels)):
            corner = given[..., : max(heights), : max(widths)]
            pixels[chosen, :, : corner.shape[-2], : corner.shape[-1]] = corner
        return ImageBatch(pixels, heights, widths)

    def padded(self, before: int, height: int, width: int, mode: Literal["reflect", "replicate"]) -> Tensor:
        """`[B,C,height,width]`: each image placed at `(before, before)` and padded from its own border."""
        if self.same_size:
            h, w = self.size
            pads = (before, width - before - w, before, height - before - h)
            return functional.pad(self.pixels[..., :h, :w], pads, mode=mode)

        rows = padding_indices(height, before, self.tensor(self.heights), mode)
        columns = padding_indices(width, before, self.tensor(self.widths), mode)
        batch, channels = (torch.arange(size, device=rows.device) for size in self.pixels.shape[:2])
        return self.pixels[
            batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]

    def mask(self) -> Tensor:
        """`[B,1,H,W]` booleans: which of `pixels` belong to an image."""
        height, width = self.pixels.shape[-2:]
        rows = torch.arange(height, device=self.pixels.device) < self.tensor(self.heights)[:, None]
        columns = torch.arange(width, device=self.pixels.device) < self.tensor(self.widths)[:, None]
        return rows[:, None, :, None] & columns[:, None, None, :]

    def tensor(self, values: Sequence[float]) -> Tensor:
        """One number per image, `[B]`, on the device of the pixels."""
        return torch.tensor(values, device=self.pixels.device)


def padding_indices(length: int, before: int, sizes: Tensor, mode: str) -> Tensor:
    """`[B,length]`: which row (or column) of each image is at each row (or column) of a padded tensor."""
    index = torch.arange(length, device=sizes.device) - before
    last = sizes[:, None] - 1
    if mode == "reflect":
        index = last - (last - index.abs()).abs()
    return torch.minimum(index.clamp(min=0), last)
