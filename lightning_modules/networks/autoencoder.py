"""Frozen autoencoders of diffusers, as `Latent` uses them."""

from typing import cast

import torch
from torch import Tensor

from lightning_modules.hub import Frozen, frozen

OPTION = "--model.init_args.space.init_args.autoencoder.init_args.weights"
CONVERTER = "lightning import autoencoder_vq_f4.pth --autoencoder --out FOLDER"


class KLAutoencoder(Frozen):
    """Stable Diffusion's autoencoder: `AutoencoderKL` of diffusers, `[B,3,H,W]` to `[B,4,H/8,W/8]`.

    Args:
        weights: Hub id, or a folder of the same layout.
        subfolder: Of the autoencoder in it; empty where the folder is the autoencoder itself.
        tile: Images larger than this many pixels a side are encoded and decoded in overlapping, blended tiles of it,
            which bounds memory; each tile is normalised by itself, so the result differs slightly. None: never.

    Raises:
        FileNotFoundError: the weights are neither there nor to be had.
        ValueError: they are no complete `AutoencoderKL`, or `tile` is no multiple of a latent pixel.
    """

    def __init__(self, weights: str, subfolder: str = "vae", tile: int | None = None) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # takes seconds, and other spaces do without it

        self.model = frozen(AutoencoderKL, weights, subfolder=subfolder, option=OPTION)
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        self.scale: float = self.model.config.scaling_factor
        if tile is not None:
            if tile % (4 * self.factor):
                raise ValueError(f"tile {tile} of the autoencoder must be a multiple of {4 * self.factor} pixels")
            self.model.enable_tiling()
            self.model.tile_sample_min_size, self.model.tile_latent_min_size = tile, tile // self.factor

    @torch.no_grad()
    def encode(self, image: Tensor, sample: bool) -> Tensor:
        """The posterior's mode, or a sample of it from the global generator."""
        posterior = self.model.encode(image).latent_dist
        return cast(Tensor, posterior.sample() if sample else posterior.mode())

    def decode(self, latent: Tensor) -> Tensor:
        """`[B,3,H,W]`, not clamped."""
        return cast(Tensor, self.model.decode(latent).sample)


class VQAutoencoder(Frozen):
    """A vector-quantised autoencoder: `VQModel` of diffusers; ResShift's VQ-f4, `[B,3,H,W]` to `[B,3,H/4,W/4]`.

    Encoding does not quantise, decoding does; gradients pass the quantisation unchanged.

    Args:
        weights: Hub id, or a folder with `config.json` and `diffusion_pytorch_model.safetensors`; `lightning import
            --autoencoder` makes one of ResShift's public file.
        subfolder: Of the autoencoder in it.
        scale: Multiplies latents; ResShift's 1. What `config.json` says is Stable Diffusion's, by default.

    Raises:
        FileNotFoundError: the weights are neither there nor to be had.
        ValueError: they are no complete `VQModel`.
    """

    def __init__(self, weights: str, subfolder: str = "", scale: float = 1.0) -> None:
        super().__init__()
        from diffusers import VQModel  # takes seconds, and other spaces do without it

        try:
            self.model = frozen(VQModel, weights, subfolder=subfolder, option=OPTION)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. Of ResShift's public file a folder is made by: {CONVERTER}") from error
        self.factor, self.scale = 2 ** (len(self.model.config.block_out_channels) - 1), scale

    @torch.no_grad()
    def encode(self, image: Tensor, sample: bool) -> Tensor:
        """The latent before quantisation; there is nothing to sample."""
        return cast(Tensor, self.model.encode(image).latents)

    def decode(self, latent: Tensor) -> Tensor:
        """`[B,3,H,W]` of the nearest codebook entries, not clamped."""
        return cast(Tensor, self.model.decode(latent).sample)
