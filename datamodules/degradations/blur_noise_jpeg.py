"""The classical degradation: blur, shrink, add noise, compress; once, in this order."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from datamodules.degradations.degradation import Degradation, Recipe, generator
from datamodules.degradations.jpeg import JPEGDistribution
from datamodules.degradations.kernels import FAMILIES, KernelDistribution
from datamodules.degradations.noise import NoiseDistribution
from datamodules.degradations.operations import apply_recipes


@dataclass(kw_only=True)
class BlurNoiseJPEG(Degradation):
    """Gaussian blur, area shrinking, Gaussian noise and JPEG, with parameters drawn for each image.

    Attributes:
        scale: how many times smaller the low-resolution image is, per side.
        blur_kernel_size: side of the blur kernel; odd.
        blur_sigma: standard deviation of the blur along each axis, in pixels of the sharp image.
        aniso_prob: how often the two axes differ.
        noise_range: standard deviation of the noise, in grey levels of 255.
        gray_noise_prob: how often the channels share one noise.
        jpeg_range: JPEG quality, 1 to 100.
    """

    scale: int = 4
    blur_kernel_size: int = 21
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    aniso_prob: float = 0.5
    noise_range: tuple[float, float] = (0.0, 15.0)
    gray_noise_prob: float = 0.4
    jpeg_range: tuple[float, float] = (60.0, 95.0)

    def __post_init__(self) -> None:
        """Builds the distributions, which check their parameters.

        Raises:
            ValueError: a value is impossible; the message names its key.
        """
        super().__init__(self.scale)

        self._kernel = KernelDistribution(
            blur_kernel_size=self.blur_kernel_size,
            blur_kernel_size_min=self.blur_kernel_size,
            kernel_list=FAMILIES[:2],
            kernel_prob=(1 - self.aniso_prob, self.aniso_prob),
            sinc_prob=0.0,
            blur_sigma=self.blur_sigma,
            betag_range=(1.0, 1.0),
            betap_range=(1.0, 1.0),
        )
        self._noise = NoiseDistribution(
            gaussian_noise_prob=1.0,
            noise_range=self.noise_range,
            poisson_scale_range=(0.0, 0.0),
            gray_noise_prob=self.gray_noise_prob,
        )
        self._jpeg = JPEGDistribution(jpeg_range=self.jpeg_range)

    def recipe(self, key: str, *, epoch: int, seed: int) -> Recipe:
        """The operations on image `key`, in order; see `Degradation.recipe`."""
        rng = generator(key, epoch=epoch, seed=seed)
        shrink = {"name": "resize", "factor": 1.0, "mode": "area"}
        return {"operations": [self._kernel.draw(rng), shrink, self._noise.draw(rng), self._jpeg.draw(rng)]}

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`. The result lies on 8-bit levels."""
        return apply_recipes(recipes, hr, scale=self.scale)

    def check_size(self, height: int, width: int, *, key: str) -> None:
        """Also refuses images that are at most half as large as the kernel: borders could not be reflected."""
        super().check_size(height, width, key=key)
        if min(height, width) <= self.blur_kernel_size // 2:
            raise ValueError(f"{key}: {height}x{width} is too small for blur_kernel_size {self.blur_kernel_size}")
