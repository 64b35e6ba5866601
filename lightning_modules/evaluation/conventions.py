"""Under which convention a paper's PSNR or SSIM was taken: all that are in use, tried on the same images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isinf, log10
from statistics import fmean

import torch
from torch import Tensor

from lightning_modules.metrics.pixels import crop_border, luma
from lightning_modules.metrics.ssim import ssim

YIQ = (0.299, 0.587, 0.114)  # Y of NTSC, in full range


@dataclass(frozen=True)
class Convention:
    """How a number was taken.

    Attributes:
        channels: "RGB", "Y-601" (studio range, MATLAB's rgb2ycbcr) or "Y-YIQ" (full range).
        border: Pixels left out on each side.
        rounded: Y is rounded to whole levels once more.
        pooled: PSNR of the mean squared error of all images; otherwise the mean over images.
    """

    channels: str
    border: int
    rounded: bool
    pooled: bool

    def __str__(self) -> str:
        parts = [self.channels, f"border {self.border}"]
        parts += ["Y rounded"] if self.rounded else []
        return ", ".join([*parts, "pooled" if self.pooled else "mean of images"])


def in_use(scale: int) -> list[Convention]:
    """All conventions for a scale."""
    ways = product(("Y-601", "Y-YIQ", "RGB"), sorted({0, scale, 4}), (False, True), (False, True))
    every = [Convention(*way) for way in ways]
    return [each for each in every if not (each.rounded and each.channels == "RGB")]


class Collected:
    """Squared errors and SSIM of images under every convention.

    Args:
        scale: HR size over LR size.
    """

    def __init__(self, scale: int) -> None:
        self.conventions = in_use(scale)
        self._errors: dict[Convention, list[float]] = {each: [] for each in self.conventions}
        self._ssim: dict[Convention, list[float]] = {each: [] for each in self.conventions}

    def add(self, sr: Tensor, hr: Tensor) -> None:
        """One image, uint8 `[1,3,H,W]`, and its target."""
        for channels, rounded in {(each.channels, each.rounded) for each in self.conventions}:
            a, b = (_channels(image, channels, rounded) for image in (sr, hr))
            for border in {each.border for each in self.conventions}:
                inner_a, inner_b = crop_border(a, border), crop_border(b, border)
                error = float((inner_a - inner_b).square().mean())
                structure = float(ssim(inner_a, inner_b))
                for pooled in (False, True):
                    convention = Convention(channels, border, rounded, pooled)
                    self._errors[convention].append(error)
                    self._ssim[convention].append(structure)

    def psnr(self, convention: Convention) -> float:
        """In dB, of all images that were added."""
        errors = self._errors[convention]
        return decibels(fmean(errors)) if convention.pooled else fmean(decibels(error) for error in errors)

    def ssim(self, convention: Convention) -> float:
        """The mean over images."""
        return fmean(self._ssim[convention])

    def lines(self, paper: Sequence[float]) -> Iterator[str]:
        """A table of all conventions, and for each of a paper's numbers the nearest one.

        Args:
            paper: PSNR in dB, or SSIM where it is at most 1.
        """
        yield f"{'convention':44s} {'PSNR':>8s} {'SSIM':>8s}"
        for convention in self.conventions:
            yield f"{convention!s:44s} {self.psnr(convention):8.3f} {self.ssim(convention):8.4f}"
        plain, yiq = (Convention(channels, 0, False, False) for channels in ("Y-601", "Y-YIQ"))
        yield f"Y-601 lies {self.psnr(plain) - self.psnr(yiq):.3f} dB above Y-YIQ: 219 instead of 255 levels"
        for number in paper:
            kind, value = ("SSIM", self.ssim) if number <= 1 else ("PSNR", self.psnr)
            nearest = min(self.conventions, key=lambda each, to=number, of=value: abs(of(each) - to))
            apart = value(nearest) - number
            yield f"{number:g}: nearest is {nearest} with {kind} {value(nearest):.4f}, {abs(apart):.4f} away"


def decibels(error: float) -> float:
    """PSNR of a mean squared error of images in [0, 1]; infinite where it is 0."""
    return float("inf") if error == 0 or isinf(error) else -10 * log10(error)


def _channels(image: Tensor, channels: str, rounded: bool) -> Tensor:
    values = image.double() / 255
    if channels == "Y-601":
        values = luma(values)
    elif channels == "Y-YIQ":
        weights = torch.tensor(YIQ, dtype=values.dtype).view(1, 3, 1, 1)
        values = (values * weights).sum(dim=1, keepdim=True)
    return (255 * values).round() / 255 if rounded else values
