"""SR3: diffusion of the image itself, conditioned on the enlarged low-resolution image (arXiv:2104.07636)."""

from typing import Any

from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.networks.unet_sr3 import SR3UNet


class SR3(DiffusionModule):
    """Shows the U-Net the enlarged image beside the noisy one.

    The network is told the continuous noise level, so that steps can be chosen after training; its DDPM variant is told
    the integer step. Where we depart from the widely used code: each sample of a batch draws a time of its own (`VP`
    has `shared_t` for reproduction).

    Args:
        **diffusion: See `DiffusionModule`.

    Raises:
        ValueError: network and parameterization disagree on what tells the time.
    """

    network: SR3UNet

    def __init__(self, **diffusion: Any) -> None:
        super().__init__(**diffusion)
        expected, label = self.network.conditioning, getattr(self.parameterization, "label", None)
        if label != expected:
            raise ValueError(f"the network has conditioning: {expected}, but the parameterization has label: {label}")

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """`{image: [B,3,H,W]}`."""
        return {"image": batch["up"]}
