"""DoSSR: diffusion whose mean shifts from the clean to the degraded image, where sampling starts (arXiv:2409.17778)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import asking_for, load_network, no_file
from lightning_modules.diffusion.color_fix import ColorFix, fix_color
from lightning_modules.diffusion.space import Latent
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.sd21 import ControlledUNet
from lightning_modules.super_resolver import in_memory_format
from lightning_modules.weights import to_download

RESTORER = "RealESRNet_x4plus.pth of the Real-ESRGAN releases", "--model.init_args.restorer_weights"


class DoSSR(DiffusionModule):
    """DoSSR on pixels: sampling starts from the noised enlarged image, on which the network is also conditioned."""


class DoSSRStableDiffusion(DiffusionModule):
    """DoSSR as published: Stable Diffusion 2.1 with a ControlNet, starting from the image of a frozen restorer.

    Only the ControlNet is trained and stored in checkpoints. The latent of the restored image is both the anchor of the
    process and the input of the ControlNet.

    Differences from the public code: the restored image is clamped in training as it is in inference; the anchor is
    the mode of the autoencoder's posterior in sampling as in training; the restorer reads the low-resolution image as
    the data gives it, where the code enlarges it to the target's size and shrinks it again.

    Args:
        restorer: The network that enlarges the low-resolution image, by the scale of the data.
        restorer_weights: `RealESRNet_x4plus` or another name, a checkpoint of an `RRDBRegressor`, or an RRDB file.
        color_fix: How the colours of the restored image are transferred to the result, see `fix_color`.
        **diffusion: See `DiffusionModule`.

    Raises:
        CheckpointError: the restorer's weights are missing or do not fit.
        ValueError: the Stable Diffusion weights predict something other than noise.
    """

    network: ControlledUNet
    process: DomainShift
    space: Latent

    def __init__(
        self, restorer: RRDBNet, restorer_weights: str, color_fix: ColorFix = "wavelet", **diffusion: Any
    ) -> None:
        super().__init__(**diffusion)
        check_predicts_noise(self.network.weights)
        with asking_for(*RESTORER):
            load_network(restorer, restorer_weights)
        self.restorer = in_memory_format(restorer, self.memory_format).requires_grad_(False)
        self.color_fix = color_fix

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the restorer's weights."""
        return no_file(arguments["restorer_weights"], *RESTORER)

    @classmethod
    def downloads(cls, arguments: Mapping[str, Any]) -> str | None:
        """See `look_ahead.Part.downloads`: the restorer's weights, given by name."""
        return to_download(arguments["restorer_weights"])

    @torch.no_grad()
    def start_image(self, batch: Batch) -> Tensor:
        """The restored image, `[B,3,H,W]`.

        Raises:
            ValueError: the restorer's scale is not the data's.
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
        return conditions(anchor, self.network.empty_text if self.training else self.network.text)

    def null_condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        """The same hint with the empty prompt."""
        return conditions(anchor, self.network.empty_text)

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The decoded image `[B,3,H,W]` with the colours of the restored image."""
        return fix_color(super().decode(state, batch), reference=batch["start"], method=self.color_fix)


def conditions(hint: Tensor, text: Tensor) -> dict[str, Tensor]:
    """The ControlNet's latent `[B,4,h,w]`, and the prompt's embedding `[1,tokens,D]` repeated for each image."""
    return {"hint": hint, "text": text.expand(hint.shape[0], -1, -1)}


def check_predicts_noise(weights: str) -> None:
    """Reads the prediction type in the scheduler's configuration, where the folder of the weights has one.

    Nothing else tells Stable Diffusion 2.1 for 768 px, which predicts velocities, from 2.1-base: the layers are equal.

    Raises:
        ValueError: the prediction type is not `epsilon`.
    """
    from diffusers import DDIMScheduler  # takes seconds

    try:
        scheduler: Any = DDIMScheduler.load_config(weights, subfolder="scheduler")
    except OSError:
        return

    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise ValueError(
            f"weights: {weights}/scheduler: the prediction_type of these weights is {predicted}, but DoSSR needs "
            "weights that predict noise (epsilon), such as stable-diffusion-2-1-base: give those as the network's "
            "`weights`"
        )
