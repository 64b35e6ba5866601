"""Attention maps of whole images as files, made once, for training on crops of them."""

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.diffusion.yoda import resize
from lightning_modules.networks.attention_maps import AttentionMap, normalise
from lightning_modules.super_resolver import SuperResolver


class AttentionMapper(SuperResolver):
    """`lightning predict --config configs/command/attend.yaml --input LR_IMAGES --output MAPS` writes `MAPS/<key>.png`.

    A map is normalised over its image, so that of a crop is not the crop of the image's. With
    `attention: MAPS` a data module crops and mirrors the maps along with the images. They are stored with 8 bits.

    Args:
        attention: Module from `[B,3,h,w]` in [-1, 1] to a map in [0, 1].
    """

    def __init__(self, attention: AttentionMap) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.attention = attention

    @torch.no_grad()
    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """The map as a grey picture, `[B,3,h,w]` in [-1, 1].

        It is normalised anew where it is brought to the size of the image: interpolation misses its extremes.
        """
        height, width = batch["lr"].shape[-2:]
        attention: Tensor = self.attention(batch["lr"]).float()
        if attention.shape[-2:] != (height, width):
            attention = normalise(resize(attention, (height, width)), self.attention.norm)
        return (attention * 2 - 1).expand(-1, 3, -1, -1)

    def protocol(self) -> str:
        """The map's name."""
        return type(self.attention).__name__.lower()
