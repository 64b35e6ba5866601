"""Guidance: from denoiser to denoiser."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.samplers import Denoise


class Guidance(ABC):
    """Wraps a denoiser in another. In a list of several the first is innermost."""

    @abstractmethod
    def wrap(
        self,
        denoise: Denoise,
        *,
        process: Process,
        anchor: Tensor,
        network: nn.Module,
        unconditional: Denoise | None,
    ) -> Denoise:
        """The guided denoiser. `unconditional` is there where the method has a null condition."""
