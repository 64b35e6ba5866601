"""Which pixels diffuse, and when."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Region(nn.Module, ABC):
    """A map of attention and the mask that follows from it at each time."""

    @abstractmethod
    def attend(self, lr: Tensor) -> Tensor:
        """Attention of the low-resolution image `[B,3,h,w]` in [-1, 1]: `[B,1,h',w']` in [0, 1], any resolution."""

    @abstractmethod
    def mask(self, attention: Tensor, t: Tensor) -> Tensor:
        """Which pixels diffuse at time `t`: `[B,1,h,w]` in {0, 1}, in the shape of `attention`."""

    @abstractmethod
    def train_input(self, x_t: Tensor, *, filled: Tensor, mask: Tensor) -> Tensor:
        """What the network is shown in training; `filled` is the noised anchor."""

    @abstractmethod
    def reduce(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Mean of a loss `[B,C,h,w]` that the mask has not been applied to, as a scalar."""

    @abstractmethod
    def fresh(self) -> bool:
        """Whether pixels that do not diffuse get new noise at each step, or the same noise throughout."""


class Yoda(Region):
    """YODA: a pixel diffuses once `attention + lower_bound >= t` (arXiv:2308.07977).

    Sampling runs from t = 1 down, so a pixel joins at its own time and stays; until then it holds the low-resolution
    image noised to the level of the moment. In training the loss is masked.

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
    def attend(self, lr: Tensor) -> Tensor:
        """The attention module's map."""
        attention: Tensor = self.attention(lr)
        return attention

    def mask(self, attention: Tensor, t: Tensor) -> Tensor:
        """`attention + lower_bound >= t` in float64; 1e-9 keeps exact products from being lost to rounding."""
        time = t.double().view(-1, 1, 1, 1)
        return (attention.double() + self.lower_bound + 1e-9 >= time).float()

    def train_input(self, x_t: Tensor, *, filled: Tensor, mask: Tensor) -> Tensor:
        """The noised target, or its composite with the noised low-resolution image."""
        return x_t if self.input_mode == "hr" else torch.lerp(filled, x_t, mask)

    def reduce(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Masked mean, over all or over the active pixels."""
        masked = loss * mask
        if self.mask_norm == "all":
            return masked.mean()
        active = mask.sum(dim=(1, 2, 3)).clamp(min=1) * loss.shape[1]
        return (masked.sum(dim=(1, 2, 3)) / active).mean()

    def fresh(self) -> bool:
        """As `lr_noise` says."""
        return self.lr_noise == "fresh"


def resize_attention(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """A map on another grid, bilinearly: `[B,1,*size]`."""
    if attention.shape[-2:] == size:
        return attention
    return interpolate(attention, size=size, mode="bilinear", align_corners=False)
