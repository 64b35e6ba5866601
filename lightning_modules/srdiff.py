"""SRDiff: diffusion of the residual, conditioned on the features of an RRDB encoder (arXiv:2104.14951)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import l1_loss

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import load_network, no_file
from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from lightning_modules.super_resolver import in_memory_format

NO_ENCODER = (
    "SRDiff's frozen encoder has no pretrained weights: train one with configs/rrdb.yaml and give its checkpoint as "
    "--model.init_args.encoder_weights, or train both with --model.init_args.freeze_encoder false"
)


class SRDiff(DiffusionModule):
    """Conditions the U-Net on the features of an RRDB network that was trained as an L1 super-resolver.

    Differences from the public code: an encoder that is not frozen is trained (there the condition is inverted), and
    the projection of the features, which does not depend on the step, is computed once per image.

    Args:
        encoder: The RRDB network.
        encoder_weights: Checkpoint of an `RRDBRegressor`, or a published RRDB file, read when training starts from
            scratch. None keeps the initial weights, which is an error when training with a frozen encoder.
        freeze_encoder: Do not train the encoder (the published recipe); otherwise it is trained with the U-Net.
        encoder_loss: Weight of the L1 distance between the encoder's own image and the target, when the encoder is
            trained. With 0 it is trained through its features alone, and the layers after the features are frozen.
        **diffusion: See `DiffusionModule`.
    """

    keeps_frozen = ("encoder",)
    network: SRDiffUNet

    def __init__(
        self,
        encoder: RRDBNet,
        encoder_weights: str | None = None,
        freeze_encoder: bool = True,
        encoder_loss: float = 1.0,
        **diffusion: Any,
    ) -> None:
        super().__init__(**diffusion)
        self.encoder = in_memory_format(encoder, self.memory_format)
        self.encoder_weights, self.freeze_encoder = encoder_weights, freeze_encoder
        self.encoder_loss = 0.0 if freeze_encoder else encoder_loss
        self.encoder.requires_grad_(not freeze_encoder)
        if not self.encoder_loss:
            # Without a loss on the encoder's image these layers would get no gradient, which DDP reports as an error.
            for layer in self.encoder.image_layers():
                layer.requires_grad_(False)

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], *, fresh: bool, **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the encoder's weights, where training begins."""
        weights = arguments["encoder_weights"]
        if not fresh or (weights is None and not arguments["freeze_encoder"]):
            return None
        return NO_ENCODER if weights is None else no_file(weights, "an RRDB", "--model.init_args.encoder_weights")

    def setup(self, stage: str) -> None:
        """Reads the pretrained encoder when training starts from scratch.

        Raises:
            ValueError: the encoder is frozen and has no pretrained weights.
        """
        if stage != "fit" or self.trainer.ckpt_path is not None:
            return
        if self.encoder_weights is not None:
            load_network(self.encoder, self.encoder_weights)
        elif self.freeze_encoder:
            raise ValueError(NO_ENCODER)

    def condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        """`{features: [B,d,H,W]}`, the projected features; with the network's `up_input` also `{up: [B,3,H,W]}`."""
        condition = {"features": self.network.project(self.encoder.features(batch["lr"]))}
        return {**condition, "up": batch["up"]} if self.network.up_proj is not None else condition

    def losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """The weighted L1 loss of the encoder's own image, where `encoder_loss` is not 0."""
        if not self.encoder_loss:
            return {}
        return {"encoder_l1": self.encoder_loss * l1_loss(self.encoder(batch["lr"]).float(), batch["hr"])}
