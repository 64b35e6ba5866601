"""The processes of EDM and of Relay Diffusion: log-normal noise levels, and a blur that ends in patch averages."""

import copy
import math
from abc import abstractmethod
from typing import Self

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from lightning_modules.diffusion.process import Process


class LogNormal(Process):
    """A process whose noise level is log-normal in a uniform clock (Table 1 of EDM, arXiv:2206.00364).

    `sigma(t) = exp(p_std * quantile(prob_length * t) + p_mean)`, with the quantile function of the normal distribution:
    uniform times draw the levels that EDM trains with, cut off above the quantile `prob_length`. Sampling runs along
    levels whose 1/rho-th powers are evenly spaced (Eq. 5).

    Args:
        p_mean: Mean of the logarithm of the level.
        p_std: Its standard deviation.
        prob_length: Quantile of the largest level, in (0, 1).
        sigma_start: Level that sampling starts from.
        sigma_min: Smallest level of a sampling run but for 0.
        rho: Exponent of the sampling levels; large values crowd them at the small end.

    Raises:
        ValueError: sampling would start above the levels of training.
    """

    def __init__(
        self, *, p_mean: float, p_std: float, prob_length: float, sigma_start: float, sigma_min: float, rho: float
    ) -> None:
        super().__init__()
        self.p_mean, self.p_std, self.prob_length = p_mean, p_std, prob_length
        self.sigma_start, self.sigma_min, self.rho = sigma_start, sigma_min, rho
        self.clock(torch.tensor([sigma_start], dtype=torch.float64))  # refuses one above the training levels

    @abstractmethod
    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """See `Process.mean`."""

    def std(self, t: Tensor) -> Tensor:
        """The noise level `sigma(t)`, float64 `[B]`; for a relay with block noise, that of its white part."""
        normal: Tensor = torch.special.ndtri(self.prob_length * t.double())
        return (self.p_std * normal + self.p_mean).exp()

    def clock(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is `sigma`, float64 in the shape of `sigma`.

        Raises:
            ValueError: `sigma` exceeds the largest level, where the clock would leave [0, 1].
        """
        t = self._quantile(sigma) / self.prob_length
        if t.max() > 1 + 1e-9:
            largest = self.std(torch.ones(1)).item()
            raise ValueError(
                f"a noise level of {sigma.max().item():.6g} is above {largest:.6g}, the largest that "
                f"{type(self).__name__} is trained on (quantile {self.prob_length:.6g}); lower sigma_start, or the "
                "upper end of churn_range"
            )
        return t.clamp(max=1)

    def _quantile(self, sigma: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtr((sigma.double().log() - self.p_mean) / self.p_std)
        return quantile

    def fresh_std(self, t: Tensor, s: Tensor) -> Tensor:
        """All of `std(s)`: `eta` is the share of the noise that each step replaces, RDM's `s_noise`."""
        return self.std(s)

    def grid(self, steps: int) -> Tensor:
        """The times of `steps` levels from `sigma_start` to `sigma_min`, then 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"sampling takes at least one step, got steps={steps}")
        return torch.cat([self.clock(levels(steps, self.sigma_start, self.sigma_min, self.rho)), torch.zeros(1)])


def levels(steps: int, largest: float, smallest: float, rho: float) -> Tensor:
    """Falling noise levels whose 1/rho-th powers are evenly spaced (Eq. 5 of EDM), float64 `[steps]`."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    start, end = largest ** (1 / rho), smallest ** (1 / rho)
    return torch.pow(start + ramp * (end - start), rho)


class EDM(LogNormal):
    """`x_t = x0 + sigma(t) noise`, started from pure noise (arXiv:2206.00364); the anchor plays no part.

    EDM draws levels without bound; here they end at `sigma_max`, which one draw in 600,000 would exceed.

    Args:
        sigma_max: Largest level, where sampling starts.
        sigma_min: Smallest level of a sampling run but for 0.
        rho: See `LogNormal`.
        p_mean: See `LogNormal`.
        p_std: See `LogNormal`.
    """

    def __init__(
        self,
        sigma_max: float = 80.0,
        sigma_min: float = 0.002,
        rho: float = 7.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
    ) -> None:
        prob_length = 0.5 * (1 + math.erf((math.log(sigma_max) - p_mean) / p_std / 2**0.5))
        super().__init__(
            p_mean=p_mean, p_std=p_std, prob_length=prob_length, sigma_start=sigma_max, sigma_min=sigma_min, rho=rho
        )

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t, dtype=torch.float64)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The clean state."""
        return x0

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Pure noise."""
        return self.diffuse(x0=torch.zeros_like(anchor), anchor=anchor, t=t, noise=noise)


class Relay(LogNormal):
    """Relay Diffusion: `x_t = blur_t(x0) + sigma(t) (white + block_scale * block noise)` (arXiv:2309.03350).

    The blur acts on square patches and ends in their averages, which is the low-resolution image enlarged by repeating
    pixels. So sampling takes over from a low-resolution image at a moderate noise level instead of starting from noise.

    Defaults are those of the published ImageNet model. As in its code, the sum of white and block noise is not divided
    by its standard deviation, though the paper's Eq. 8 does.

    Args:
        patch: Side s of a patch: the factor between the low resolution and this one.
        blur_sigma_max: Largest standard deviation B of the blur; 0 turns the blur off.
        block_scale: Weight of the block noise; 0 turns it off.
        normalize_block_noise: Give the sum of both noises unit variance, as the paper writes it.
        min_gain: What the blur leaves of the highest frequencies.
        sigma_floor: Training levels below about this one are drawn as this one, for stability; 0 to draw them all.
        prob_length: See `LogNormal`.
        sigma_start: Level at which sampling takes over from the low-resolution image. Smaller ones stay closer to it.
        sigma_min: Smallest level of a sampling run but for 0.
        rho: See `LogNormal`.
        p_mean: See `LogNormal`.
        p_std: See `LogNormal`.
    """

    def __init__(
        self,
        patch: int = 4,
        blur_sigma_max: float = 3.0,
        block_scale: float = 0.15,
        *,
        normalize_block_noise: bool = False,
        min_gain: float = 0.001,
        sigma_floor: float = 0.0075,
        prob_length: float = 0.93,
        sigma_start: float = 0.9,
        sigma_min: float = 0.008,
        rho: float = 7.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
    ) -> None:
        super().__init__(
            p_mean=p_mean, p_std=p_std, prob_length=prob_length, sigma_start=sigma_start, sigma_min=sigma_min, rho=rho
        )
        self.patch, self.blur_sigma_max, self.min_gain = patch, blur_sigma_max, min_gain
        self.block_scale, self.normalize_block_noise = block_scale, normalize_block_noise
        self.sigma_floor = sigma_floor
        self.blur_pace = 1.0  # how fast the blur's clock runs against the noise's
        self.basis = dct_basis(patch)

    def blurring_by(self, prob_length: float) -> Self:
        """This process with the blur that belongs to another quantile at the same noise level.

        The published CelebA-HQ model was trained with `prob_length` 0.89 and is sampled with the blur of 1.05.
        """
        other = copy.copy(self)
        other.blur_pace = self.prob_length / prob_length
        return other

    def sample_t(self, n: int, device: torch.device) -> Tensor:
        """Uniform on (0, 1], with the smallest times raised to `smallest_t`."""
        return super().sample_t(n, device).clamp(min=self.smallest_t())

    def smallest_t(self) -> float:
        """Smallest training time, as published; at the time of `sigma_floor` itself it would be a little larger."""
        return self._quantile(torch.tensor(self.sigma_floor)).item() * self.prob_length

    def blur_sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the blur, `B sin^2(pi t / 2)`, float64 `[B]`.

        Raises:
            ValueError: the blur's clock, running at another pace, has passed 1, where the blur would fall again.
        """
        blur_t = self.blur_pace * t.double()
        if blur_t.max() > 1 + 1e-9:
            raise ValueError(
                f"the noise level {self.std(t).max().item():.6g} lies above the quantile "
                f"{self.prob_length / self.blur_pace:.6g} that the blur is set to end at; lower sigma_start or "
                "raise blur_prob_length"
            )
        return self.blur_sigma_max * torch.sin(blur_t * torch.pi / 2) ** 2

    def gains(self, blur_sigma: Tensor) -> Tensor:
        """What the blur leaves of each frequency of a patch: `[B]` to float64 `[B,s,s]` (Eq. 4 of the paper)."""
        frequency = torch.pi * torch.arange(self.patch, dtype=torch.float64, device=blur_sigma.device) / self.patch
        squared = frequency[:, None] ** 2 + frequency**2
        decay = torch.exp(-squared * blur_sigma.double().view(-1, 1, 1) ** 2 / 2)
        return self.min_gain + (1 - self.min_gain) * decay

    def blur(self, x0: Tensor, blur_sigma: Tensor) -> Tensor:
        """Each patch of `x0 [B,C,H,W]` blurred by heat diffusion inside it; one matrix product, for `[B]` deviations.

        Raises:
            ValueError: H or W is not a multiple of the patch's side.
        """
        basis = self.basis = self.basis.to(x0.device)
        kernel = basis.mT @ (self.gains(blur_sigma).flatten(1)[:, :, None] * basis)
        return patch_product(x0, kernel, self.patch)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The blurred clean state; its patch averages are those of `x0` at any time."""
        return self.blur(x0, self.blur_sigma(t)) if self.blur_sigma_max > 0 else x0

    def noise(self, like: Tensor) -> Tensor:
        """White noise plus block noise drawn after it; variance `1 + block_scale^2` unless normalized."""
        white = super().noise(like)
        if self.block_scale == 0:
            return white
        mixed = white + self.block_scale * block_noise(super().noise(like), self.patch)
        return mixed / (1 + self.block_scale**2) ** 0.5 if self.normalize_block_noise else mixed


def block_noise(white: Tensor, size: int) -> Tensor:
    """White noise `[B,C,H,W]` summed over a `size` x `size` window and divided by `size`: unit variance, correlated.

    The window reaches up and left and wraps around the borders (Section 3.2 of arXiv:2309.03350, as in its code).
    """
    wrapped = pad(white, (size - 1, 0, size - 1, 0), mode="circular")
    return avg_pool2d(wrapped, size, stride=1) * size


def dct_basis(size: int) -> Tensor:
    """Orthonormal 2-D DCT-II of a patch: float64 `[size^2, size^2]`, one row per frequency, both row-major."""
    index = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi / size * index[:, None] * (index + 0.5)) * (2 / size) ** 0.5
    basis[0] *= 0.5**0.5
    return torch.kron(basis, basis)


def patch_product(x: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Multiplies every flattened `size` x `size` patch by a matrix, in float32 or wider also under autocast.

    Args:
        x: `[B,C,H,W]`.
        matrix: `[size^2, size^2]` or one for each sample, `[B, size^2, size^2]`.
        size: side of a patch.

    Raises:
        ValueError: H or W is not a multiple of `size`.
    """
    height, width = x.shape[-2:]
    if height % size or width % size:
        raise ValueError(
            f"{height}x{width} pixels do not divide into patches of {size}x{size}; crop to multiples of {size}"
        )
    patches = rearrange(x, "b c (h p) (w q) -> b (c h w) (p q)", p=size, q=size)
    with torch.autocast(x.device.type, enabled=False):
        wide = patches.to(torch.promote_types(x.dtype, torch.float32))
        product = wide @ matrix.mT.to(wide)
    return rearrange(product, "b (c h w) (p q) -> b c (h p) (w q)", h=height // size, w=width // size, p=size)
