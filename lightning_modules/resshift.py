"""ResShift: a short Markov chain from the degraded to the clean image (arXiv:2307.12348, journal arXiv:2403.07319)."""

from typing import Any

from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.weight_files import WeightsError


class ResShift(DiffusionModule):
    """Conditions the network on the low-resolution image: as it is in latents (`condition_on: lr`), enlarged in pixels.

    Args:
        perceptual_weight: Weight of LPIPS (VGG) between the decoded estimate and the target, as in the journal
            version, where it is 1; 0 leaves the term out.
        **diffusion: See `DiffusionModule`.
    """

    perceptual: nn.Module

    def __init__(self, perceptual_weight: float = 0.0, **diffusion: Any) -> None:
        super().__init__(**diffusion)
        self.perceptual_weight = perceptual_weight

    def setup(self, stage: str) -> None:
        """Loads LPIPS where training needs it.

        Raises:
            WeightsError: VGG-16's weights are missing.
        """
        if stage == "fit" and self.perceptual_weight > 0:
            perceptual = LPIPS("vgg")
            try:
                perceptual.load()
            except WeightsError as error:
                raise WeightsError(f"{error}; or train without it: --model.init_args.perceptual_weight 0") from error
            self.perceptual = perceptual

    def losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """The weighted LPIPS term; its gradient passes the frozen decoder."""
        if self.perceptual_weight == 0:
            return {}
        x0 = self.parameterization.x0(self.process, output, x_t=noised.x_t, anchor=noised.anchor, t=noised.t)
        image = self.space.decode(x0, batch["up"]).clamp(-1, 1)
        distance = self.perceptual((image + 1) / 2, (batch["hr"] + 1) / 2)
        return {"lpips": self.perceptual_weight * distance.mean()}
