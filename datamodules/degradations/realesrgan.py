"""The two-stage degradation of Real-ESRGAN (arXiv:2107.10833), with parameters drawn for each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from datamodules.degradations.blur import USM_SIZE, unsharp_mask
from datamodules.degradations.degradation import Degradation, Recipe, generator
from datamodules.degradations.draws import check_probability, shuffled, uniform
from datamodules.degradations.jpeg import JPEGDistribution
from datamodules.degradations.kernels import FAMILIES, KernelDistribution, check_sizes, draw_size, sinc_operation
from datamodules.degradations.noise import NoiseDistribution
from datamodules.degradations.operations import apply_recipes
from datamodules.degradations.resize import ResizeDistribution, draw_mode
from datamodules.degradations.threads import map_in_threads

Distribution = TypeVar("Distribution", KernelDistribution, ResizeDistribution, NoiseDistribution, JPEGDistribution)
PUBLISHED_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(kw_only=True)
class RealESRGAN(Degradation):
    """Blur, resize, noise, JPEG; the same again; and a sinc filter before or after the last JPEG.

    Names, units and defaults are those of `train_realesrgan_x4plus.yml`; a 2 marks the second stage. The reference
    draws one set of resize and noise parameters per batch and mixes batches through a queue; here they are drawn for
    each image, so no queue is needed.

    Attributes:
        scale: how many times smaller the low-resolution image is, per side.
        gt_usm: whether training targets are sharpened, and degraded from the sharpened image (`l1_gt_usm`).
        blur_kernel_size: largest side of a blur kernel; odd.
        blur_kernel_size_min: smallest side; odd, 7 in the reference's code.
        kernel_list: kernel families to choose from.
        kernel_prob: their probabilities.
        sinc_prob: how often a sinc filter is used instead.
        blur_sigma: standard deviation of kernels, in pixels.
        betag_range: shape parameter beta of generalized Gaussians.
        betap_range: shape parameter beta of plateau-shaped kernels.
        resize_prob: how often the image grows, shrinks, keeps its size.
        resize_range: factor on the image's size; in the second stage on the final size.
        gaussian_noise_prob: how often noise is Gaussian; otherwise it is Poisson.
        noise_range: standard deviation of Gaussian noise, in grey levels of 255.
        poisson_scale_range: factor on Poisson noise.
        gray_noise_prob: how often the channels share one noise.
        jpeg_range: JPEG quality, 1 to 100.
        second_order_prob: how often there is a second blur, resize and noise (ResShift's key).
        second_blur_prob: how often the second stage blurs.
        final_sinc_prob: how often the final sinc filter is applied.
        final_sinc_size: its largest side.
        final_sinc_size_min: its smallest side.
        shuffle: draws the order of all operations before the final ones, as BSRGAN does (arXiv:2103.14006).
    """

    scale: int = 4
    gt_usm: bool = True

    blur_kernel_size: int = 21
    blur_kernel_size_min: int = 7
    kernel_list: Sequence[str] = FAMILIES
    kernel_prob: Sequence[float] = PUBLISHED_PROB
    sinc_prob: float = 0.1
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    betag_range: tuple[float, float] = (0.5, 4.0)
    betap_range: tuple[float, float] = (1.0, 2.0)
    resize_prob: Sequence[float] = (0.2, 0.7, 0.1)
    resize_range: tuple[float, float] = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: tuple[float, float] = (1.0, 30.0)
    poisson_scale_range: tuple[float, float] = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: tuple[float, float] = (30.0, 95.0)

    second_order_prob: float = 1.0
    second_blur_prob: float = 0.8
    blur_kernel_size2: int = 21
    blur_kernel_size_min2: int = 7
    kernel_list2: Sequence[str] = FAMILIES
    kernel_prob2: Sequence[float] = PUBLISHED_PROB
    sinc_prob2: float = 0.1
    blur_sigma2: tuple[float, float] = (0.2, 1.5)
    betag_range2: tuple[float, float] = (0.5, 4.0)
    betap_range2: tuple[float, float] = (1.0, 2.0)
    resize_prob2: Sequence[float] = (0.3, 0.4, 0.3)
    resize_range2: tuple[float, float] = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: tuple[float, float] = (1.0, 25.0)
    poisson_scale_range2: tuple[float, float] = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: tuple[float, float] = (30.0, 95.0)

    final_sinc_prob: float = 0.8
    final_sinc_size: int = 21
    final_sinc_size_min: int = 7
    shuffle: bool = False

    def __post_init__(self) -> None:
        """Builds the distributions of both stages, which check their parameters.

        Raises:
            ValueError: a value is impossible; the message names its key.
        """
        super().__init__(self.scale)
        self._stages = self._stage(""), self._stage("2")
        check_sizes("final_sinc_size", "", (self.final_sinc_size_min, self.final_sinc_size))
        for name in ("second_order_prob", "second_blur_prob", "final_sinc_prob"):
            check_probability(name, getattr(self, name))

    def target(self, hr: Tensor) -> Tensor:
        """`hr` (`[B,3,H,W]` in [0,1]), sharpened if `gt_usm` is set."""
        if not self.gt_usm or len(hr) == 0:
            return hr
        if hr.device.type == "cpu":
            return map_in_threads(lambda i: unsharp_mask(hr[i : i + 1]), len(hr))
        return unsharp_mask(hr)

    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """See `Degradation.apply`; `hr` is what `target` returned, in training. The result lies on 8-bit levels."""
        return apply_recipes(recipes, hr, scale=self.scale)

    def recipe(self, key: str, *, epoch: int, seed: int) -> Recipe:
        """The operations on image `key`, in order; see `Degradation.recipe`."""
        rng = generator(key, epoch=epoch, seed=seed)
        first, second = self._stages

        operations = [first.kernel.draw(rng), first.resize.draw(rng, "rescale"), first.noise.draw(rng)]
        operations.append(first.jpeg.draw(rng))
        if rng.random() < self.second_order_prob:
            if rng.random() < self.second_blur_prob:
                operations.append(second.kernel.draw(rng))
            operations += [second.resize.draw(rng, "resize"), second.noise.draw(rng)]

        if self.shuffle:
            operations = shuffled(rng, operations)
        return {"operations": operations + self._finish(rng)}

    def check_size(self, height: int, width: int, *, key: str) -> None:
        """Also refuses images that may shrink below half a kernel before its turn: borders could not be reflected."""
        super().check_size(height, width, key=key)
        first, last = min(1.0, self.resize_range[0]), min(1.0, self.resize_range2[0]) / self.scale

        for name, size, shrunk in (
            ("gt_usm", USM_SIZE if self.gt_usm else 1, 1.0),
            ("blur_kernel_size", self.blur_kernel_size, min(first, last) if self.shuffle else 1.0),
            ("blur_kernel_size2", self.blur_kernel_size2, min(first, last) if self.shuffle else first),
            ("final_sinc_size", self.final_sinc_size, 1 / self.scale),
        ):
            side, radius = int(min(height, width) * shrunk), size // 2
            if side <= radius:
                crop = math.ceil((radius + 1) / shrunk / self.scale) * self.scale
                raise ValueError(
                    f"{key}: {height}x{width} is too small for {name}: {size} pixels wide, and the image may shrink to "
                    f"{side} before it; give images of at least {crop}x{crop}, or a smaller kernel"
                )

    def _stage(self, suffix: str) -> "Stage":
        """The distributions of one stage, from the keys that end in `suffix`."""

        def distribution(kind: type[Distribution]) -> Distribution:
            names = [field.name for field in fields(kind) if field.name != "suffix"]
            return kind(suffix=suffix, **{name: getattr(self, name + suffix) for name in names})

        return Stage(
            distribution(KernelDistribution),
            distribution(ResizeDistribution),
            distribution(NoiseDistribution),
            distribution(JPEGDistribution),
        )

    def _finish(self, rng: np.random.Generator) -> list[Recipe]:
        """To the final size, the sinc filter, and the last JPEG before or after both."""
        shrinking: list[Recipe] = [{"name": "resize", "factor": 1.0, "mode": draw_mode(rng)}]
        if rng.random() < self.final_sinc_prob:
            size = draw_size(rng, (self.final_sinc_size_min, self.final_sinc_size))
            shrinking.append(sinc_operation(size, uniform(rng, (math.pi / 3, math.pi))))
        jpeg = self._stages[1].jpeg.draw(rng)
        return [*shrinking, jpeg] if rng.random() < 0.5 else [jpeg, *shrinking]


class Stage(NamedTuple):
    """The distributions of one stage."""

    kernel: KernelDistribution
    resize: ResizeDistribution
    noise: NoiseDistribution
    jpeg: JPEGDistribution
