"""Relay Diffusion: sampling continues from the low-resolution image instead of pure noise (arXiv:2309.03350)."""

from typing import Any, Literal
from warnings import warn

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.relay import RelayProcess

MAX_ROUNDING_ERROR = 0.5  # grey levels: rounding an average to 8 bits changes it by at most this much


class Relay(DiffusionModule):
    """Starts sampling from the low-resolution image with every pixel repeated, which is the end point of the blur.

    The low-resolution image must be the average of each patch (`datamodules.degradations.area.Area`). Other kinds of
    downscaling leave a mismatch at the start, and a warning is given. The result stays close to the low-resolution
    image because sampling starts at a moderate noise level; with `condition_on: up` the network reads the image, too.

    Args:
        condition_on: See `DiffusionModule`; `none` is the paper's second stage.
        back_projection: Shift every patch of the result to the average that the low-resolution image prescribes.
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
        self._averages_checked = False

    def start_image(self, batch: Batch) -> Tensor:
        """The low-resolution image with every pixel repeated over a patch, `[B,3,H,W]`.

        Raises:
            ValueError: the scale of the data is not the side of a patch.
        """
        patch, small, large = self.process.patch, batch["lr"].shape[-2:], batch["up"].shape[-2:]
        if tuple(side * patch for side in small) != tuple(large):
            raise ValueError(
                f"{batch['key'][0]}: the low-resolution image is {small[0]}x{small[1]} and the target "
                f"{large[0]}x{large[1]}, but patches of {patch}x{patch} relay from an image {patch} times smaller; "
                "give the data's scale and the process's patch the same value"
            )
        self._check_averages(batch)
        return interpolate(batch["lr"], scale_factor=float(patch), mode="nearest")

    def _check_averages(self, batch: Batch) -> None:
        """Warns, once, if the low-resolution images are not patch averages of their targets."""
        # When images are enlarged, `up` may be padded and cannot be compared with the target.
        if self._averages_checked or "hr" not in batch or batch["hr"].shape != batch["up"].shape:
            return
        self._averages_checked = True

        difference = 127.5 * float((batch["lr"] - avg_pool2d(batch["hr"], self.process.patch)).abs().mean())
        if difference > MAX_ROUNDING_ERROR:
            patch = f"{self.process.patch}x{self.process.patch}"
            warn(
                f"the low-resolution images differ by {difference:.1f} of 255 grey levels from the averages of {patch} "
                "pixels, which Relay Diffusion starts from; for averages add "
                "--config configs/data/degradation/area.yaml",
                stacklevel=2,
            )

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The image `[B,3,H,W]` of a state; with `back_projection` its patches have the prescribed averages."""
        sr = super().decode(state, batch)
        if not self.back_projection:
            return sr
        error = batch["lr"] - avg_pool2d(sr, self.process.patch)
        return sr + interpolate(error, scale_factor=float(self.process.patch), mode="nearest")
