"""The denoiser: estimates the clean state from a noisy one, with everything that is fixed for a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.parameterization import Parameterization
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.tiling import Tiles, tiled


class Correction(Protocol):
    """The interface of guidance, as the denoiser calls it; `guidance.Guidance` implements it."""

    def __call__(self, denoiser: "Denoiser", x_t: Tensor, t: Tensor, /) -> Tensor:
        """The corrected estimate of the clean state, not bounded, `[B,C,h,w]`."""


def identity(x0: Tensor) -> Tensor:
    """The `bound` of clean states that have no range."""
    return x0


@dataclass(frozen=True)
class Denoiser:
    """The network with its conditions and settings for one batch; samplers, guidance and skipping receive it.

    It is never changed: a variation is a copy with other fields (`dataclasses.replace`).

    Attributes:
        network: `forward(x [B,C,h,w], label [B], **condition) -> [B,C,h,w]`.
        process: The forward process.
        parameterization: What the network reads and writes.
        anchor: The degraded image as a state, `[B,C,h,w]`.
        condition: The network's further inputs by name, `[B,...]` each.
        null_condition: The inputs without the image, for classifier-free guidance; None if the method has none.
        guidance: Corrections of the estimate; the first is innermost.
        bound: Clamps an estimate to the range of clean states.
        tiles: The network is evaluated tile by tile; None: on the whole state.
        memory_format: Of the states that the network is given.
    """

    network: nn.Module
    process: Process
    parameterization: Parameterization
    anchor: Tensor
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    null_condition: Mapping[str, Tensor] | None = None
    guidance: tuple[Correction, ...] = ()
    bound: Callable[[Tensor], Tensor] = identity
    tiles: Tiles | None = None
    memory_format: torch.memory_format = torch.contiguous_format

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided and bounded estimate of the clean state, `[B,C,h,w]`; `t` is `[B]`.

        Only the result is bounded: extrapolating estimates of x0 that are not bounded equals extrapolating the noise.
        """
        return self.bound(self.guided(x_t, t))

    def guided(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided estimate of the clean state, not bounded, `[B,C,h,w]`."""
        if not self.guidance:
            return self.estimate(x_t, t)
        *inner, last = self.guidance
        return last(replace(self, guidance=tuple(inner)), x_t, t)

    def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's own estimate of the clean state, neither guided nor bounded, `[B,C,h,w]`."""
        output = self.output(x_t, t)
        return self.parameterization.x0(self.process, output, x_t=x_t, anchor=self.anchor, t=t)

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output, `[B,C,h,w]`, in the type of `x_t` whatever the precision of the network."""
        x, label = self.parameterization.read(self.process, x_t, t)
        label = label.to(x.device)

        def evaluate(x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
            written: Tensor = self.network(x.contiguous(memory_format=self.memory_format), label, **condition)
            return written.to(x_t.dtype)

        return evaluate(x, self.condition) if self.tiles is None else tiled(evaluate, x, self.condition, self.tiles)

    def unconditional(self) -> Self:
        """The denoiser under the null condition, without guidance."""
        assert self.null_condition is not None  # guidance that needs one is refused when the model is built
        return replace(self, condition=self.null_condition, guidance=())

    def select(self, rows: Tensor) -> Self:
        """The denoiser of a part of the batch: the samples with the indices `rows`, `[b]`."""
        null = None if self.null_condition is None else _select(self.null_condition, rows)
        return replace(self, anchor=self.anchor[rows], condition=_select(self.condition, rows), null_condition=null)


def _select(condition: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in condition.items()}
