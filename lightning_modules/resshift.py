"""ResShift: a short chain of residual shifts, trained from scratch (arXiv:2307.12348, journal arXiv:2403.07319)."""

from typing import Any, Literal

from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.metrics.lpips import lpips


class ResShift(DiffusionModule):
    """Shows the network the low-resolution image.

    Args:
        condition_on: `lr`, the image as it came, for a network that brings it to the size of the state (in a latent
            space of the scale's factor they are equal); `up`, enlarged, for pixels.
        perceptual_weight: Weight of an LPIPS term (VGG) between the decoded estimate and the target, as in the journal
            version, which takes 1; 0 leaves it out.
        **diffusion: See `DiffusionModule`.
    """

    perceptual: nn.Module

    def __init__(
        self, condition_on: Literal["lr", "up"] = "lr", perceptual_weight: float = 0.0, **diffusion: Any
    ) -> None:
        super().__init__(**diffusion)
        self.condition_on, self.perceptual_weight = condition_on, perceptual_weight

    def setup(self, stage: str) -> None:
        """Loads LPIPS where training needs it.

        Raises:
            ModuleNotFoundError: torchvision is not installed.
            FileNotFoundError: VGG-16's weights are not on this machine.
        """
        if stage == "fit" and self.perceptual_weight > 0:
            metric = lpips("vgg", otherwise="train without it: --model.init_args.perceptual_weight 0")
            self.perceptual = metric.net.requires_grad_(False)

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """`{image: [B,3,h,w]}`."""
        return {"image": batch["lr"] if self.condition_on == "lr" else batch["up"]}

    def extra_losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """The weighted LPIPS term; its gradient passes the frozen decoder."""
        if self.perceptual_weight == 0:
            return {}
        x0 = self.parameterization.x0(self.process, output, x_t=noised.x_t, anchor=noised.anchor, t=noised.t)
        image = self.space.decode(x0, batch["up"]).clamp(-1, 1)
        return {"lpips": self.perceptual_weight * self.perceptual(image, batch["hr"]).mean()}
