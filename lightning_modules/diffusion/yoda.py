"""YODA: an attention map decides when each pixel joins the diffusion (arXiv:2308.07977)."""

from copy import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.diffusion.process import Process, table_time
from lightning_modules.diffusion.randomness import KeyedNoise

PREVIEW_TIMES = (0.75, 0.5, 0.25)  # at which a sample grid shows the mask


class YODA(nn.Module):
    """A pixel diffuses once `attention + lower_bound >= t`.

    Sampling runs from t = 1 down, so a pixel joins at its own time and stays; until then it holds the low-resolution
    image noised to the level of the moment. In training the loss is masked. Any method takes it as its `region`.

    Args:
        attention: Module from the low-resolution image `[B,3,h,w]` in [-1, 1] to a map `[B,1,h',w']` in [0, 1].
        lower_bound: The paper's l, in (0, 1]: every pixel diffuses at least for this share of the run.
        mask_norm: `all` divides the masked loss by all pixels; `active` by the diffusing ones, image by image.
        input_mode: `hr` shows the network the noised target everywhere; `composite` shows it the noised
            low-resolution image where the mask is 0, as sampling does.
        lr_noise: `fresh` noise for the waiting pixels at each step, or one `fixed` draw for the run.

    Raises:
        ValueError: `lower_bound` is outside (0, 1].
    """

    def __init__(
        self,
        attention: nn.Module,
        lower_bound: float = 0.1,
        mask_norm: Literal["all", "active"] = "all",
        input_mode: Literal["hr", "composite"] = "hr",
        lr_noise: Literal["fresh", "fixed"] = "fresh",
    ) -> None:
        super().__init__()
        if not 0 < lower_bound <= 1:
            raise ValueError(
                f"lower_bound {lower_bound} is outside (0, 1]; at 0, pixels without attention never diffuse"
            )
        self.attention = attention
        self.lower_bound, self.mask_norm, self.input_mode, self.lr_noise = lower_bound, mask_norm, input_mode, lr_noise

    @torch.no_grad()
    def attend(self, lr: Tensor, *, size: tuple[int, int], stored: Tensor | None = None) -> Tensor:
        """The attention map of low-resolution images on the grid of the states.

        Args:
            lr: `[B,3,h,w]` in [-1, 1].
            size: Height and width of the grid.
            stored: The map that the data carries, `[B,1,h',w']` in [0, 1], which is taken instead of computing one.

        Returns:
            `[B,1,*size]` in [0, 1], float64.
        """
        attention: Tensor = self.attention(lr) if stored is None else stored
        return resize(attention.double(), size)

    def mask(self, attention: Tensor, t: Tensor) -> Tensor:
        """Which pixels diffuse at `t [B]`: `[B,1,h,w]` in {0, 1}, from a map `[B,1,h,w]`."""
        time = t.to(attention.device, torch.float64).view(-1, 1, 1, 1)
        # 1e-9 keeps exact products, such as 0.4 + 0.1 at t = 0.5, from being lost to rounding.
        return (attention.double() + self.lower_bound + 1e-9 >= time).float()

    def training_input(self, process: Process, noised: Noised, mask: Tensor) -> Tensor:
        """What the network is shown in training, `[B,C,h,w]`: see `input_mode`."""
        if self.input_mode == "hr":
            return noised.x_t
        waiting = process.diffuse(x0=noised.anchor, anchor=noised.anchor, t=noised.t, noise=noised.noise)
        return torch.lerp(waiting, noised.x_t, mask)

    def reduce(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Masked mean of a loss `[B,C,h,w]`, over all or over the active pixels; a scalar."""
        masked = loss * mask
        if self.mask_norm == "all":
            return masked.mean()
        active = mask.sum(dim=(1, 2, 3)).clamp(min=1) * loss.shape[1]
        return (masked.sum(dim=(1, 2, 3)) / active).mean()

    def fill(self, process: Process, anchor: Tensor, attention: Tensor, randn: KeyedNoise) -> "Fill":
        """What is done after each step of a run that starts from `anchor [B,C,h,w]`, with noise of its own."""
        return Fill(self, process, anchor, attention, randn)

    def preview(self, attention: Tensor) -> dict[str, Tensor]:
        """Pictures for the sample grid by title: the map `[B,1,H,W]` and its mask at a few times."""
        ones = torch.ones(attention.shape[0])
        masks = {f"mask t={t}": self.mask(attention, t * ones) for t in PREVIEW_TIMES}
        return {"attention": attention.float(), **masks}


class Fill:
    """After a step from t to s, pixels that did not diffuse at t hold the anchor at the noise level of s.

    Args:
        yoda: The settings.
        process: The forward process.
        anchor: The degraded image as a state, `[B,C,h,w]`.
        attention: The map, `[B,1,h,w]`.
        randn: Noise of its own, so that the diffusing pixels draw what they would draw without a region.
    """

    def __init__(self, yoda: YODA, process: Process, anchor: Tensor, attention: Tensor, randn: KeyedNoise) -> None:
        self.yoda, self.process, self.anchor, self.attention, self.randn = yoda, process, anchor, attention, randn
        self.fixed = process.noise(anchor, randn) if yoda.lr_noise == "fixed" else None

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """The state that goes on, `[B,C,h,w]`; `t` and `s` are `[B]`."""
        anchor, process = self.anchor, self.process
        noise = process.noise(anchor, self.randn) if self.fixed is None else self.fixed
        waiting = process.diffuse(x0=anchor, anchor=anchor, t=s, noise=noise)
        mask = self.yoda.mask(self.attention, table_time(process, t))
        return torch.lerp(waiting.to(x_s), x_s, mask.to(x_s))

    def fork(self) -> "Fill":
        """See `samplers.AfterStep.fork`."""
        other = copy(self)
        other.randn = self.randn.fork()
        return other


def resize(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """A map on another grid, bilinearly: `[B,1,*size]`."""
    if attention.shape[-2:] == size:
        return attention
    return interpolate(attention, size=size, mode="bilinear", align_corners=False)
