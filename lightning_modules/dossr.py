"""DoSSR: diffusion that begins at the degraded image, and solvers of few steps for it (arXiv:2409.17778)."""

from typing import Any

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule, in_memory_format
from lightning_modules.checkpoint import asking_for, load_network
from lightning_modules.diffusion.color_fix import ColorFix, fix_color
from lightning_modules.diffusion.space import Latent
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.sd21 import OPTION, ControlledUNet

RESTORER = "RealESRNet_x4plus.pth of the Real-ESRGAN releases"


class DoSSR(DiffusionModule):
    """DoSSR on pixels: the process starts from the enlarged image, which the network is shown throughout."""


class DoSSRStableDiffusion(DiffusionModule):
    """DoSSR as published: Stable Diffusion 2.1 under a ControlNet, from an image that a frozen restorer enlarged.

    The ControlNet alone is trained and stored. The latent of the restored image is both where the process starts and
    what the ControlNet is shown.

    Where we depart from the public code: the restored image is clamped in training as it is in inference; the state
    that sampling starts from is the mode of the posterior, as in training; the restorer sees the low-resolution image
    as the data gives it, where the code enlarges it to the target's size and shrinks it again.

    Args:
        restorer: Of the data's scale.
        restorer_weights: RealESRNet's public file, a checkpoint of an `RRDBRegressor`, or another RRDB file.
        color_fix: Takes the colours of the restored image over to the result, see `fix_color`.
        **diffusion: See `DiffusionModule`.

    Raises:
        CheckpointError: the restorer's weights are absent or do not fit.
        ValueError: the base writes something else than noise.
    """

    network: ControlledUNet
    process: DomainShift
    space: Latent

    def __init__(
        self, restorer: RRDBNet, restorer_weights: str, color_fix: ColorFix = "wavelet", **diffusion: Any
    ) -> None:
        super().__init__(**diffusion)
        check_predicts_noise(self.network.weights)
        with asking_for(RESTORER, "--model.init_args.restorer_weights"):
            load_network(restorer, restorer_weights)
        self.restorer = in_memory_format(restorer, self.memory_format).requires_grad_(False)
        self.color_fix = color_fix

    @torch.no_grad()
    def start_image(self, batch: Batch) -> Tensor:
        """The restored image.

        Raises:
            ValueError: the restorer enlarges by another factor than the data.
        """
        image: Tensor = self.restorer(batch["lr"]).float()
        if image.shape != batch["up"].shape:
            raise ValueError(
                f"the restorer enlarges by {self.restorer.scale}, but the data by "
                f"{batch['up'].shape[-1] // batch['lr'].shape[-1]}: set data.init_args.scale"
            )
        return image

    def condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        """`{hint: [B,4,h,w], text: [B,tokens,D]}`; the prompt is empty in training, as published."""
        return shown(anchor, self.network.empty_text if self.training else self.network.text)

    def null_condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        """The same hint, and the empty prompt."""
        return shown(anchor, self.network.empty_text)

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The decoded image with the colours of the restored one."""
        return fix_color(super().decode(state, batch), reference=batch["start"], method=self.color_fix)


def shown(hint: Tensor, text: Tensor) -> dict[str, Tensor]:
    """The latent that the ControlNet reads and the prompt's embedding, one for each image."""
    return {"hint": hint, "text": text.expand(hint.shape[0], -1, -1)}


def check_predicts_noise(weights: str) -> None:
    """Looks into the scheduler beside a base's weights, where there is one.

    Raises:
        ValueError: the base writes velocities, as Stable Diffusion 2.1 for 768 px does; its layers are 2.1-base's.
    """
    from diffusers import DDIMScheduler  # takes seconds

    try:
        scheduler: Any = DDIMScheduler.load_config(weights, subfolder="scheduler")
    except OSError:
        return
    written = scheduler.get("prediction_type", "epsilon")
    if written != "epsilon":
        raise ValueError(
            f"{weights}/scheduler: this base writes {written}, where DoSSR needs one that writes noise, epsilon, as "
            f"stable-diffusion-2-1-base does: give that as {OPTION}"
        )
