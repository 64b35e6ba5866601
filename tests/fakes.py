"""A denoiser without a network, for tests of samplers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process


@dataclass(frozen=True)
class FakeDenoiser:
    """Stands in for `Denoiser` where a plain function gives the estimate of the clean state.

    Attributes:
        process: The forward process.
        anchor: The degraded image as a state, `[B,C,h,w]`.
        function: From a state `[B,C,h,w]` and times `[B]` to an estimate of the clean state.
    """

    process: Process
    anchor: Tensor
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.function(x_t, t)

    def diffusing(self, t: Tensor) -> Tensor:
        return torch.ones(len(t), 1, 1, 1, dtype=torch.bool)

    def during(self, t: Tensor) -> Self:
        return self

    def fork(self) -> Self:
        return self

    def select(self, rows: Tensor) -> Self:
        return replace(self, anchor=self.anchor[rows])
