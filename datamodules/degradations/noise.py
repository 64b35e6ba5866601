"""Gaussian and Poisson noise; every value is a function of a seed and of its position in the image.

Nothing is drawn in sequence: the value at channel c, row y, column x hashes (seed, c, y, x). So the noise of an image
is the same on the CPU and on any GPU (up to float rounding), in any batch and in a tensor of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.degradations.degradation import Recipe
from datamodules.degradations.draws import check_probability, check_range, uniform
from datamodules.degradations.image_batch import ImageBatch

GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number; the constants of SplitMix64 (Steele et al. 2014)
MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
LUMA = (0.2989, 0.587, 0.114)
SMALL_RATE = 6.0  # below this rate Poisson counts are found by summing probabilities
LARGEST_SMALL_COUNT = 28  # a larger count has probability 2e-11 at that rate


@dataclass(frozen=True)
class NoiseDistribution:
    """From what one noise operation is drawn; the names and units are Real-ESRGAN's.

    Attributes:
        gaussian_noise_prob: how often the noise is Gaussian; otherwise it is Poisson.
        noise_range: standard deviation of Gaussian noise, in grey levels of 255.
        poisson_scale_range: factor on Poisson noise.
        gray_noise_prob: how often the three channels share one noise.
        suffix: end of the key names in errors; "2" in the second stage.
    """

    gaussian_noise_prob: float
    noise_range: tuple[float, float]
    poisson_scale_range: tuple[float, float]
    gray_noise_prob: float
    suffix: str = ""

    def __post_init__(self) -> None:
        """Raises a ValueError that names the key of an impossible value."""
        check_probability(f"gaussian_noise_prob{self.suffix}", self.gaussian_noise_prob)
        check_probability(f"gray_noise_prob{self.suffix}", self.gray_noise_prob)
        check_range(f"noise_range{self.suffix}", self.noise_range, 0)
        check_range(f"poisson_scale_range{self.suffix}", self.poisson_scale_range, 0)

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One operation `gaussian_noise` or `poisson_noise` with its strength, `gray` and `seed`."""
        gaussian = rng.random() < self.gaussian_noise_prob
        strength = uniform(rng, self.noise_range if gaussian else self.poisson_scale_range)
        gray = bool(rng.random() < self.gray_noise_prob)
        name, unit = ("gaussian_noise", "sigma") if gaussian else ("poisson_noise", "factor")
        return {"name": name, unit: strength, "gray": gray, "seed": int(rng.integers(2**63))}


def add_gaussian_noise(images: ImageBatch, operations: Sequence[Recipe]) -> ImageBatch:
    """Adds Gaussian noise of `sigma` grey levels to images in [0,1] and clips them."""
    sigma = images.tensor([operation["sigma"] / 255 for operation in operations]).view(-1, 1, 1, 1)
    return images.with_pixels((images.pixels + noise_field(images, operations) * sigma).clamp_(0, 1))


def add_poisson_noise(images: ImageBatch, operations: Sequence[Recipe]) -> ImageBatch:
    """Adds `factor` times the shot noise of a sensor to images in [0,1] and clips them.

    A pixel's rate is its value, rounded to 8 bits, times the number of grey levels that its image uses (rounded up to a
    power of two). Gray noise is that of the luma image. As in Real-ESRGAN's code (arXiv:2107.10833).
    """
    gray = torch.tensor([operation["gray"] for operation in operations])
    pixels = images.pixels

    level = (pixels * 255).round_()
    if gray.any():
        luma = (pixels * pixels.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True).mul_(255).round_()
        level = torch.where(gray.view(-1, 1, 1, 1).to(level.device), luma, level) if not gray.all() else luma
    level = level.clamp_(0, 255)

    peak = grey_levels(images.with_pixels(level)).view(-1, 1, 1, 1)
    rate = level * (peak / 255)
    noise = (poisson_from_normal(rate, noise_field(images, operations)) - rate) / peak
    factor = images.tensor([operation["factor"] for operation in operations]).view(-1, 1, 1, 1)
    return images.with_pixels((pixels + noise * factor).clamp_(0, 1))


def grey_levels(images: ImageBatch) -> Tensor:
    """`[B]`: how many of the levels 0..255 occur in each image, rounded up to a power of two."""
    level = images.pixels.long()
    # outside an image, repeat one of its own levels, which adds none
    if not images.same_size or images.size != level.shape[-2:]:
        level = torch.where(images.mask(), level, level[..., :1, :1])
    used = level.new_zeros(len(level), 256).scatter_(1, level.flatten(1), 1)
    return torch.exp2(used.sum(1).float().log2().ceil())


def poisson_from_normal(rate: Tensor, normal: Tensor) -> Tensor:
    """Poisson counts with mean `rate`, one from each standard normal number of the same shape.

    It is the count at the normal number's own quantile: by the expansion in 1/sqrt(rate) of Giles ("Algorithm 955", ACM
    TOMS 42(1), 2016), off by one with a probability below 5e-4, and below SMALL_RATE by summing probabilities.
    """
    root = rate.clamp(min=SMALL_RATE).sqrt_()
    square = normal * normal
    count = torch.addcmul(rate, root, normal).add_(square, alpha=1 / 6).add_(1 / 3)
    count.sub_((square + 2).mul_(normal).div_(root), alpha=1 / 72)
    count.add_((square / 270).add_(7 / 810).mul_(square).sub_(8 / 405).div_(root).div_(root))
    count.floor_().clamp_(min=0)

    small = (rate < SMALL_RATE).nonzero(as_tuple=True)
    if len(small[0]) > 0:
        count[small] = small_poisson_quantile(rate[small], 0.5 * torch.erfc(normal[small] * -math.sqrt(0.5)))
    return count


def small_poisson_quantile(rate: Tensor, uniform: Tensor) -> Tensor:
    """The smallest count whose cumulative probability reaches `uniform`."""
    probability = torch.exp(-rate)
    cumulative, count, larger = probability.clone(), torch.zeros_like(rate), torch.empty_like(rate)
    for k in range(1, LARGEST_SMALL_COUNT):
        count += torch.gt(uniform, cumulative, out=larger)
        probability.mul_(rate).div_(k)
        cumulative += probability
    return count


def noise_field(images: ImageBatch, operations: Sequence[Recipe]) -> Tensor:
    """Standard normal numbers for `images.pixels`: `[B,3,H,W]`, or `[B,1,H,W]` if the noise of all images is gray.

    If only some are gray, their three channels are equal.
    """
    gray = [operation["gray"] for operation in operations]
    seeds = images.tensor([operation["seed"] for operation in operations])
    height, width = images.pixels.shape[-2:]
    channels = torch.arange(1 if all(gray) else 3, device=seeds.device)
    if any(gray) and not all(gray):
        channels = torch.where(images.tensor(gray)[:, None], 0, channels)
    return hashed_normal(seeds, channels.expand(len(gray), -1), height, width)


def hashed_normal(seeds: Tensor, channels: Tensor, height: int, width: int) -> Tensor:
    """Standard normal numbers `[B,C,height,width]`: functions of seed (`[B]` int64), channel (`[B,C]`), row and column.

    Two neighbours in a row share one hash: the Box-Muller transform makes two numbers of its two halves.
    """
    rows = torch.arange(height, device=seeds.device)[:, None]
    pairs = torch.arange((width + 1) // 2, device=seeds.device)
    counter = channels[..., None, None] * 2**40 + rows * 2**20 + pairs
    bits = splitmix64(counter * GOLDEN + splitmix64(seeds)[:, None, None, None])
    radius = (((bits >> 32) & 0xFFFFFFFF).float() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
    both = torch.empty(*bits.shape, 2, device=bits.device)
    torch.mul(radius, angle.cos(), out=both[..., 0])
    torch.mul(radius, angle.sin(), out=both[..., 1])
    return both.flatten(-2)[..., :width]


def splitmix64(x: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection of int64 that leaves no visible pattern in counters."""
    x = x ^ ((x >> 30) & 0x3FFFFFFFF)
    x *= MULTIPLIERS[0]
    x ^= (x >> 27) & 0x1FFFFFFFFF
    x *= MULTIPLIERS[1]
    x ^= (x >> 31) & 0x1FFFFFFFF
    return x
