"""DoSSR: diffusion that begins at the degraded image, and solvers of few steps for it (arXiv:2409.17778)."""

from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule


class DoSSR(DiffusionModule):
    """Shows the network the degraded image on the target's grid, from which the process starts."""

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """`{image: [B,3,H,W]}`."""
        return {"image": self.start_image(batch)}
