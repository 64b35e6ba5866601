"""Blur kernels of Real-ESRGAN (arXiv:2107.10833): generalized Gaussian, plateau-shaped and sinc kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.draws import check_probabilities, check_probability, check_range, choose, uniform

FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class KernelDistribution:
    """From what one blur kernel is drawn; the names and units are Real-ESRGAN's.

    Attributes:
        blur_kernel_size: largest side, odd.
        blur_kernel_size_min: smallest side, odd; every odd number between them is equally likely.
        kernel_list: families to choose from, of FAMILIES.
        kernel_prob: their probabilities; they sum to 1.
        sinc_prob: how often the kernel is a sinc filter instead.
        blur_sigma: standard deviation along each axis, in pixels.
        betag_range: shape parameter beta of generalized Gaussians; below and above 1 are equally likely.
        betap_range: shape parameter beta of plateau-shaped kernels, likewise.
        suffix: end of the key names in errors; "2" in the second stage.
    """

    blur_kernel_size: int
    blur_kernel_size_min: int
    kernel_list: Sequence[str]
    kernel_prob: Sequence[float]
    sinc_prob: float
    blur_sigma: tuple[float, float]
    betag_range: tuple[float, float]
    betap_range: tuple[float, float]
    suffix: str = ""

    def __post_init__(self) -> None:
        """Raises a ValueError that names the key of an impossible value."""
        unknown = set(self.kernel_list) - set(FAMILIES)
        if unknown:
            raise ValueError(f"kernel_list{self.suffix}: knows {', '.join(FAMILIES)}, got {', '.join(sorted(unknown))}")

        check_sizes("blur_kernel_size", self.suffix, (self.blur_kernel_size_min, self.blur_kernel_size))
        check_probabilities(f"kernel_prob{self.suffix}", self.kernel_prob, len(self.kernel_list))
        check_probability(f"sinc_prob{self.suffix}", self.sinc_prob)
        check_range(f"blur_sigma{self.suffix}", self.blur_sigma, 0.01)
        for key, limits in (("betag_range", self.betag_range), ("betap_range", self.betap_range)):
            check_range(f"{key}{self.suffix} up to 1", (limits[0], 1.0), 0.01)
            check_range(f"{key}{self.suffix} from 1 on", (1.0, limits[1]), 1)

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One operation `blur` with all parameters that `blur_kernels` needs."""
        size = draw_size(rng, (self.blur_kernel_size_min, self.blur_kernel_size))
        if rng.random() < self.sinc_prob:
            return sinc_operation(size, uniform(rng, (math.pi / 3 if size < 13 else math.pi / 5, math.pi)))

        family = choose(rng, self.kernel_list, self.kernel_prob)
        blur = {"name": "blur", "kernel": family, "size": size, "sigma_x": uniform(rng, self.blur_sigma)}
        if family.endswith("aniso"):
            blur |= {"sigma_y": uniform(rng, self.blur_sigma), "angle": uniform(rng, (-math.pi, math.pi))}
        if family.startswith("generalized"):
            blur["beta"] = draw_beta(rng, self.betag_range)
        if family.startswith("plateau"):
            blur["beta"] = draw_beta(rng, self.betap_range)
        return blur


def check_sizes(key: str, suffix: str, limits: tuple[int, int]) -> None:
    """Raises a ValueError unless these are the smallest and largest of odd sizes."""
    check_range(f"{key}_min{suffix}, {key}{suffix}", limits, 1)
    if not limits[0] % 2 == limits[1] % 2 == 1:
        raise ValueError(f"{key}_min{suffix}, {key}{suffix}: kernels have odd sides, got {list(limits)}")


def draw_size(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    """An odd number between two odd ones, all equally likely."""
    return int(rng.integers(limits[0] // 2, limits[1] // 2 + 1)) * 2 + 1


def draw_beta(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Half the time uniform below 1, half the time uniform above."""
    return uniform(rng, (limits[0], 1.0)) if rng.random() < 0.5 else uniform(rng, (1.0, limits[1]))


def sinc_operation(size: int, cutoff: float) -> Recipe:
    """One operation `blur` by a sinc filter: it passes frequencies below `cutoff` radians per pixel, pi nearly all."""
    return {"name": "blur", "kernel": "sinc", "size": size, "cutoff": cutoff}


def blur_kernels(blurs: Sequence[Recipe]) -> Tensor:
    """Kernels of `blur` operations, `[B,K,K]` float32 of sum 1, on the CPU; those smaller than K are zero-padded."""
    side = max(blur["size"] for blur in blurs)
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = axis[:, None], axis[None, :]
    weights = torch.empty(len(blurs), side, side, dtype=torch.float64)
    for families, make in (("sinc",), sinc_kernels), (FAMILIES, gaussian_and_plateau_kernels):
        chosen = [i for i, blur in enumerate(blurs) if blur["kernel"] in families]
        if chosen:
            weights[chosen] = make([blurs[i] for i in chosen], x, y)

    radius = per_kernel([blur["size"] // 2 for blur in blurs])
    weights *= (x.abs() <= radius) & (y.abs() <= radius)
    return (weights / weights.sum((1, 2), keepdim=True)).float()


def gaussian_and_plateau_kernels(blurs: Sequence[Recipe], x: Tensor, y: Tensor) -> Tensor:
    """Generalized Gaussian exp(-d^beta / 2) and plateau-shaped 1 / (1 + d^beta) kernels, not normalised.

    d is the squared elliptic (Mahalanobis) distance. The axis of the ellipse with standard deviation `sigma_x` is
    turned by `angle` from x (right) towards y (down).
    """
    angle = per_kernel([blur.get("angle", 0.0) for blur in blurs])
    beta = per_kernel([blur.get("beta", 1.0) for blur in blurs])
    along = (angle.cos() * x + angle.sin() * y) / per_kernel([blur["sigma_x"] for blur in blurs])
    across = (angle.cos() * y - angle.sin() * x) / per_kernel([blur.get("sigma_y", blur["sigma_x"]) for blur in blurs])
    distance = (along**2 + across**2) ** beta

    plateau = per_kernel([blur["kernel"].startswith("plateau") for blur in blurs]) > 0
    return torch.where(plateau, 1 / (1 + distance), torch.exp(-0.5 * distance))


def sinc_kernels(blurs: Sequence[Recipe], x: Tensor, y: Tensor) -> Tensor:
    """Circular low-pass filters `w J1(w r) / (2 pi r)`: section 3.3 of Real-ESRGAN, not normalised."""
    cutoff = per_kernel([blur["cutoff"] for blur in blurs])
    radius = (x**2 + y**2).sqrt()
    kernel = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    return torch.where(radius == 0, cutoff**2 / (4 * math.pi), kernel)  # the limit at the centre


def per_kernel(values: Sequence[float]) -> Tensor:
    """One number per kernel, `[B,1,1]` float64."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
