"""EDM (arXiv:2206.00364) and Relay Diffusion (arXiv:2309.03350), which goes on from the low-resolution image."""

from typing import Any, Literal
from warnings import warn

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion import relay
from lightning_modules.diffusion.samplers import Sampler

LRCondition = Literal["none", "concat"]
ROUNDING = 0.5  # grey levels, the most that 8 bits take from an average


class EDM(DiffusionModule):
    """Diffusion of the image in EDM's formulation, by any network that can be shown an `image`.

    Args:
        lr_condition: `concat` shows the network the enlarged low-resolution image beside the noisy one. `none` shows it
            nothing: with the EDM process that is a generator, the first stage of Relay Diffusion's cascade.
        **diffusion: See `DiffusionModule`.
    """

    def __init__(self, lr_condition: LRCondition = "concat", **diffusion: Any) -> None:
        super().__init__(**diffusion)
        self.lr_condition = lr_condition

    @property
    def generates(self) -> bool:
        """Whether images come from noise alone, whatever the low-resolution image."""
        return self.lr_condition == "none"

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """`{image: [B,3,H,W]}`, or nothing."""
        return {"image": batch["up"]} if self.lr_condition == "concat" else {}


class Relay(EDM):
    """Continues the diffusion from the low-resolution image, whose repeated pixels are where the blur ends.

    The image must be the average of each patch (`datamodules.degradations.area.Area`); other kinds of shrinking leave a
    mismatch at the start, and a warning is given. What ties the result to it is the noise level that sampling starts
    from, and with `concat` the network's own view of it.

    Args:
        lr_condition: See `EDM`; the paper's second stage is `none`.
        back_projection: Give every patch of the result the average that the low-resolution image prescribes.
        **diffusion: See `DiffusionModule`.
    """

    process: relay.Relay

    def __init__(self, lr_condition: LRCondition = "none", back_projection: bool = False, **diffusion: Any) -> None:
        super().__init__(lr_condition, **diffusion)
        self.back_projection = back_projection
        self._compared = False  # the low-resolution images with the averages of the first targets seen

    @property
    def generates(self) -> bool:
        """Never: what the network is not shown, sampling starts from."""
        return False

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

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """See `DiffusionModule.enlarge`; then the averages of the patches, if asked for."""
        sr = super().enlarge(batch, sampler)
        if not self.back_projection:
            return sr
        missing = batch["lr"] - avg_pool2d(sr, self.process.patch)
        return sr + interpolate(missing, scale_factor=float(self.process.patch), mode="nearest")

    def protocol(self) -> str:
        """The sampler's name, and whether averages are prescribed."""
        return super().protocol() + ("+back-projection" if self.back_projection else "")
