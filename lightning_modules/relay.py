"""Relay Diffusion: diffusion that goes on from the low-resolution image (arXiv:2309.03350)."""

from typing import Any, Literal
from warnings import warn

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.relay import RelayProcess

ROUNDING = 0.5  # grey levels, the most that 8 bits take from an average


class Relay(DiffusionModule):
    """Continues the diffusion from the low-resolution image, whose repeated pixels are where the blur ends.

    The image must be the average of each patch (`datamodules.degradations.area.Area`); other kinds of shrinking leave a
    mismatch at the start, and a warning is given. What ties the result to it is the noise level that sampling starts
    from, and with `condition_on: up` the network's own view of it.

    Args:
        condition_on: See `DiffusionModule`; the paper's second stage is shown nothing.
        back_projection: Give every patch of the result the average that the low-resolution image prescribes.
        **diffusion: See `DiffusionModule`.
    """

    process: RelayProcess

    def __init__(
        self, condition_on: Literal["up", "lr", "none"] = "none", back_projection: bool = False, **diffusion: Any
    ) -> None:
        super().__init__(condition_on=condition_on, **diffusion)
        self.back_projection = back_projection
        if back_projection:
            self.protocol_suffixes.append("back-projection")
        self._compared = False  # the low-resolution images with the averages of the first targets seen

    def start_image(self, batch: Batch) -> Tensor:
        """The low-resolution image with every pixel repeated over a patch.

        Raises:
            ValueError: the low-resolution image is not smaller by the patch's side.
        """
        patch, small, large = self.process.patch, batch["lr"].shape[-2:], batch["up"].shape[-2:]
        if tuple(side * patch for side in small) != tuple(large):
            raise ValueError(
                f"{batch['key'][0]}: the low-resolution image is {small[0]}x{small[1]} and the target "
                f"{large[0]}x{large[1]}, but patches of {patch}x{patch} relay from an image {patch} times smaller; "
                "give the data's scale and the process's patch the same value"
            )
        self._compare_averages(batch)
        return interpolate(batch["lr"], scale_factor=float(patch), mode="nearest")

    def _compare_averages(self, batch: Batch) -> None:
        """Warns once of data whose low-resolution images are no averages."""
        if self._compared or "hr" not in batch or batch["hr"].shape != batch["up"].shape:  # padded, when enlarging
            return
        self._compared = True
        difference = 127.5 * float((batch["lr"] - avg_pool2d(batch["hr"], self.process.patch)).abs().mean())
        if difference > ROUNDING:
            patch = f"{self.process.patch}x{self.process.patch}"
            warn(
                f"the low-resolution images differ by {difference:.1f} of 255 grey levels from the averages of {patch} "
                "pixels, which Relay Diffusion starts from; for averages add "
                "--config configs/data/degradation/area.yaml",
                stacklevel=2,
            )

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The image of a state; with `back_projection` its patches get the prescribed averages."""
        sr = super().decode(state, batch)
        if not self.back_projection:
            return sr
        missing = batch["lr"] - avg_pool2d(sr, self.process.patch)
        return sr + interpolate(missing, scale_factor=float(self.process.patch), mode="nearest")
