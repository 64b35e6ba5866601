"""The forward process of Relay Diffusion: noise, and a blur that ends in patch averages (arXiv:2309.03350)."""

import copy
from typing import Self

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from lightning_modules.diffusion.edm import LogNormal
from lightning_modules.diffusion.randomness import Randn


class RelayProcess(LogNormal):
    """Relay Diffusion: `x_t = blur_t(x0) + sigma(t) (white + block_scale * block noise)` (arXiv:2309.03350).

    The blur acts inside square patches and ends in their averages, which is the low-resolution image enlarged by
    repeating pixels. So sampling can start from a low-resolution image at a moderate noise level.

    Defaults are those of the published ImageNet model. As in its code, the sum of white and block noise is not divided
    by its standard deviation, as it is in Eq. 8 of the paper.

    Args:
        patch: Side s of a patch in pixels, which is the scale of the super-resolution.
        blur_sigma_max: Largest standard deviation B of the blur, in pixels; 0 turns the blur off.
        block_scale: Weight of the block noise; 0 turns it off.
        normalize_block_noise: Give the sum of both noises unit variance, as in the paper's equation.
        min_gain: Lower limit of the factor by which the blur attenuates a frequency.
        sigma_floor: Smaller noise levels are replaced by about this one in training, for stability; 0 keeps them.
        prob_length: See `LogNormal`.
        sigma_start: Noise level at which sampling starts from the low-resolution image. With smaller levels the result
            stays closer to that image.
        sigma_min: Last noise level of a sampling run before 0.
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
        self.blur_pace = 1.0  # the blur at time t is that of `blur_pace * t`, see `blurring_by`
        self.basis = dct_basis(patch)

    def blurring_by(self, prob_length: float) -> Self:
        """A copy whose blur follows the clock of another `prob_length`; noise levels are the same.

        The published CelebA-HQ model was trained with `prob_length` 0.89 and is sampled with the blur of 1.05.
        """
        other = copy.copy(self)
        other.blur_pace = self.prob_length / prob_length
        return other

    def sample_t(self, n: int) -> Tensor:
        """Training times, float64 `[n]`: uniform on (0, 1], with smaller ones raised to `smallest_t`."""
        return super().sample_t(n).clamp(min=self.smallest_t())

    def smallest_t(self) -> float:
        """Smallest training time, as in the published code; the noise level there is a little below `sigma_floor`."""
        return self._quantile(torch.tensor(self.sigma_floor)).item() * self.prob_length

    def blur_sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the blur, `B sin^2(pi t / 2)`, float64 `[B]`.

        Raises:
            ValueError: `blur_pace * t` is above 1, where the formula would give a smaller blur again.
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
        """Attenuation of each DCT frequency of a patch (Eq. 4), for standard deviations `[B]`: float64 `[B,s,s]`."""
        frequency = torch.pi * torch.arange(self.patch, dtype=torch.float64, device=blur_sigma.device) / self.patch
        squared = frequency[:, None] ** 2 + frequency**2
        decay = torch.exp(-squared * blur_sigma.double().view(-1, 1, 1) ** 2 / 2)
        return self.min_gain + (1 - self.min_gain) * decay

    def blur(self, x0: Tensor, blur_sigma: Tensor) -> Tensor:
        """Images `[B,C,H,W]` with each patch blurred by heat diffusion inside it, for `[B]` standard deviations.

        Raises:
            ValueError: H or W is not a multiple of the patch's side.
        """
        # DCT, attenuation and inverse DCT of a flattened patch, multiplied into one matrix per sample.
        kernel = self.basis.mT @ (self.gains(blur_sigma).flatten(1)[:, :, None] * self.basis)
        return patch_product(x0, kernel, self.patch)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The blurred clean state, `[B,C,H,W]`; its patch averages are those of `x0` at all times."""
        return self.blur(x0, self.blur_sigma(t)) if self.blur_sigma_max > 0 else x0

    def noise(self, like: Tensor, randn: Randn = torch.randn_like) -> Tensor:
        """White noise plus block noise, drawn in this order; of variance `1 + block_scale^2` unless normalized."""
        white = randn(like)
        if self.block_scale == 0:
            return white
        mixed = white + self.block_scale * block_noise(randn(like), self.patch)
        return mixed / (1 + self.block_scale**2) ** 0.5 if self.normalize_block_noise else mixed


def block_noise(white: Tensor, size: int) -> Tensor:
    """Correlated noise of unit variance: white noise `[B,C,H,W]` summed over `size` x `size` windows, over `size`.

    The window extends up and left, and wraps around the borders (Section 3.2 of arXiv:2309.03350, as in its code).
    """
    wrapped = pad(white, (size - 1, 0, size - 1, 0), mode="circular")
    return avg_pool2d(wrapped, size, stride=1) * size


def dct_basis(size: int) -> Tensor:
    """Orthonormal 2-D DCT-II of a patch: float64 `[size^2, size^2]`; frequencies and pixels are in row-major order."""
    index = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi / size * index[:, None] * (index + 0.5)) * (2 / size) ** 0.5
    basis[0] *= 0.5**0.5
    return torch.kron(basis, basis)


def patch_product(x: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Multiplies every flattened `size` x `size` patch by a matrix, in float32 or wider, also under autocast.

    Args:
        x: `[B,C,H,W]`.
        matrix: `[size^2, size^2]`, or one for each sample, `[B, size^2, size^2]`.
        size: Side of a patch.

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
