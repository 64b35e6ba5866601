"""The denoiser: estimates the clean state from a noisy one, with everything that is fixed for a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.evaluation import Evaluation
from lightning_modules.diffusion.parameterization import Parameterization
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.sparse import Activity
from lightning_modules.diffusion.tiling import Tiles


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
        activity: When each pixel joins the diffusion, under YODA. Until then its estimate is the anchor, and the
            network may be evaluated around the others alone. None: all pixels always diffuse.
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
    activity: Activity | None = None
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
        x0 = self.parameterization.x0(self.process, output, x_t=x_t, anchor=self.anchor, t=t)
        return x0 if self.activity is None else torch.where(self.diffusing(t), x0, self.anchor.to(x0))

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output, `[B,C,h,w]`, in the type of `x_t` whatever the precision of the network."""
        x, label = self.parameterization.read(self.process, x_t, t)

        def evaluate(x: Tensor, label: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
            written: Tensor = self.network(x.contiguous(memory_format=self.memory_format), label, **condition)
            return written.to(x_t.dtype)

        evaluation = Evaluation(self.network, evaluate, x, label.to(x.device), self.condition, self.tiles)
        return evaluation.whole() if self.activity is None else self.activity.output(evaluation, t)

    def diffusing(self, t: Tensor) -> Tensor:
        """Which pixels diffuse in a step that starts at `t [B]`: boolean `[B,1,h,w]`, or `[B,1,1,1]` where all do."""
        if self.activity is None:
            return torch.ones(len(t), 1, 1, 1, dtype=torch.bool, device=self.anchor.device)
        return self.activity.mask(t).to(self.anchor.device)

    def during(self, t: Tensor) -> Self:
        """The denoiser of one step that starts at `t [B]`: the pixels that diffuse are those of `t`, at any time."""
        return self if self.activity is None else replace(self, activity=self.activity.during(t))

    def whole(self) -> Self:
        """The same, with the network evaluated on whole states wherever anything diffuses."""
        return self if self.activity is None else replace(self, activity=self.activity.whole())

    def fork(self) -> Self:
        """One for another run of the same steps from here on."""
        return self if self.activity is None else replace(self, activity=self.activity.fork())

    def unconditional(self) -> Self:
        """The denoiser under the null condition, without guidance."""
        assert self.null_condition is not None  # guidance that needs one is refused when the model is built
        activity = None if self.activity is None else self.activity.unconditional()
        return replace(self, condition=self.null_condition, guidance=(), activity=activity)

    def select(self, rows: Tensor) -> Self:
        """The denoiser of a part of the batch: the samples with the indices `rows`, `[b]`."""
        null = None if self.null_condition is None else _select(self.null_condition, rows)
        activity = None if self.activity is None else self.activity.select(rows)
        condition = _select(self.condition, rows)
        return replace(self, anchor=self.anchor[rows], condition=condition, null_condition=null, activity=activity)


def _select(condition: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in condition.items()}
