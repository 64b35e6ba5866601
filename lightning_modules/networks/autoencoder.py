"""Frozen autoencoders of diffusers, between which and pixels `Latent` translates."""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from lightning_modules.hub import HubWeights, frozen, missing_files

CONVERTER = "lightning import autoencoder_vq_f4.pth --autoencoder --out FOLDER"


class Frozen(nn.Module):
    """A module that stays in evaluation mode, whatever mode the module around it is set to."""

    def train(self, mode: bool = True) -> Self:
        """Sets evaluation mode."""
        return super().train(False)


class KLAutoencoder(HubWeights, Frozen):
    """Stable Diffusion's autoencoder: `AutoencoderKL` of diffusers, `[B,3,H,W]` to `[B,4,H/8,W/8]`.

    Args:
        weights: Hub id, or a folder of the same layout.
        subfolder: Of the autoencoder in it; empty where the folder is the autoencoder itself.
        tile: Side of a tile in pixels. Larger images are encoded and decoded in overlapping, blended tiles, which
            bounds memory; each tile is normalised by itself, so the result differs slightly. None for no tiles.

    Attributes:
        factor: Pixels per side that a latent pixel covers.
        scale: What latents are multiplied by, so that their standard deviation is near 1.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: the weights are no complete `AutoencoderKL`, or `tile` is no multiple of 4 latent pixels.
    """

    def __init__(self, weights: str, subfolder: str = "vae", tile: int | None = None) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # takes seconds to import

        self.model = frozen(AutoencoderKL, weights, subfolder=subfolder)
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        self.scale: float = self.model.config.scaling_factor

        if tile is not None:
            if tile % (4 * self.factor):  # diffusers' tiles overlap by a quarter, in whole latent pixels
                raise ValueError(f"tile {tile} of the autoencoder must be a multiple of {4 * self.factor} pixels")
            self.model.enable_tiling()
            self.model.tile_sample_min_size, self.model.tile_latent_min_size = tile, tile // self.factor

    @classmethod
    def absent(cls, weights: str, subfolder: str) -> str:
        """See `HubWeights.absent`."""
        from diffusers import AutoencoderKL

        return missing_files(AutoencoderKL, f"{weights}/{subfolder}".rstrip("/"))

    @torch.no_grad()
    def encode(self, image: Tensor, randn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`[B,3,H,W]` in [-1, 1] to `[B,4,H/8,W/8]`, before `scale`.

        Args:
            image: The image.
            randn: Draws from the posterior with this noise, which has the shape of its argument; None takes its mode.
        """
        posterior = self.model.encode(image).latent_dist
        mode: Tensor = posterior.mode()
        return mode if randn is None else mode + posterior.std * randn(mode)

    def decode(self, latent: Tensor) -> Tensor:
        """`[B,3,H,W]`, not clamped."""
        return cast(Tensor, self.model.decode(latent).sample)


class VQAutoencoder(HubWeights, Frozen):
    """A vector-quantised autoencoder: `VQModel` of diffusers; ResShift's VQ-f4, `[B,3,H,W]` to `[B,3,H/4,W/4]`.

    Diffusion runs on latents that are not quantised: `encode` leaves them as they are and `decode` quantises them. In
    the backward pass, gradients skip the quantisation.

    Args:
        weights: Hub id, or a folder with `config.json` and `diffusion_pytorch_model.safetensors`; `lightning import
            --autoencoder` makes one from ResShift's public file.
        subfolder: Of the autoencoder in it; empty where the folder is the autoencoder itself.
        scale: What latents are multiplied by; 1 in ResShift. `config.json` is not asked, because it holds Stable
            Diffusion's value unless told otherwise.

    Attributes:
        factor: Pixels per side that a latent pixel covers.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: the weights are no complete `VQModel`.
    """

    def __init__(self, weights: str, subfolder: str = "", scale: float = 1.0) -> None:
        super().__init__()
        from diffusers import VQModel  # takes seconds to import

        try:
            self.model = frozen(VQModel, weights, subfolder=subfolder)
        except FileNotFoundError as error:
            raise FileNotFoundError(self.absent(weights, subfolder)) from error
        self.factor, self.scale = 2 ** (len(self.model.config.block_out_channels) - 1), scale

    @classmethod
    def absent(cls, weights: str, subfolder: str) -> str:
        """See `HubWeights.absent`."""
        from diffusers import VQModel

        place = f"{weights}/{subfolder}".rstrip("/")
        return f"{missing_files(VQModel, place)}. To make the folder from ResShift's public file: {CONVERTER}"

    @torch.no_grad()
    def encode(self, image: Tensor, randn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`[B,3,H,W]` in [-1, 1] to `[B,3,H/4,W/4]`, not quantised; `randn` has no effect: nothing is drawn."""
        return cast(Tensor, self.model.encode(image).latents)

    def decode(self, latent: Tensor) -> Tensor:
        """`[B,3,H,W]` of the nearest codebook entries, not clamped."""
        return cast(Tensor, self.model.decode(latent).sample)
