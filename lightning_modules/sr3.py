"""SR3: diffusion of the image itself, conditioned on the enlarged low-resolution image (arXiv:2104.07636)."""

from lightning_modules.base import DiffusionModule
from lightning_modules.networks.unet_sr3 import SR3UNet


class SR3(DiffusionModule):
    """Shows the U-Net the enlarged image beside the noisy one, which is what `DiffusionModule` does by itself.

    The network is told the continuous noise level, so that steps can be chosen after training; its DDPM variant is told
    the integer step. Where we depart from the widely used code: each sample of a batch draws a time of its own (`VP`
    has `shared_t` for reproduction).
    """

    network: SR3UNet
