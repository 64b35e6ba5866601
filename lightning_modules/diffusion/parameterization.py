"""What the network reads and writes, and how an estimate of the clean state follows from it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, expand


@dataclass(frozen=True)
class Noised:
    """One training draw: the state `x_t` and all it was made of. States `[B,C,H,W]`, `t` float64 `[B]`."""

    x_t: Tensor
    x0: Tensor
    anchor: Tensor
    noise: Tensor
    t: Tensor


class Parameterization(ABC):
    """Translates between the process and the network."""

    @abstractmethod
    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Network input `[B,C,H,W]` and noise label `[B]`."""

    @abstractmethod
    def target(self, process: Process, noised: Noised) -> Tensor:
        """What the network should have written, `[B,C,H,W]`."""

    @abstractmethod
    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean state that the network's output stands for, `[B,C,H,W]`."""

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Weight of each sample in the loss, `[B]`."""
        return torch.ones_like(t)


Label = Literal["level", "index", "time"]


def noise_label(process: Process, t: Tensor, label: Label) -> Tensor:
    """What tells the network the time, `[B]` float32.

    `level` is the coefficient of x0 (SR3), `index` the papers' 0-based step index (DDPM, SRDiff; a respaced run feeds
    the indices of training), `time` the clock itself.

    Raises:
        TypeError: `index` with a process that has no table of steps.
    """
    if label == "level":
        return process.alpha(t).float()
    if label == "time":
        return t.float()
    if process.steps is None:
        raise TypeError(f"label: index needs a process with a table of steps; {type(process).__name__} has none")
    return (process.tick(t) * process.steps - 1).float()


class Epsilon(Parameterization):
    """The network writes the noise (Eq. 14 of DDPM, arXiv:2006.11239).

    Args:
        label: How the network is told the time, see `noise_label`.
    """

    def __init__(self, label: Label) -> None:
        self.label: Label = label

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state itself."""
        return x_t, noise_label(process, t, self.label)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The noise."""
        return noised.noise

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x_t - std * output - what the anchor contributes) / alpha`."""
        from_anchor = process.mean(x0=torch.zeros_like(x_t), anchor=anchor, t=t)
        return (x_t - from_anchor - expand(process.std(t), x_t) * output) / expand(process.alpha(t), x_t)


class Clean(Parameterization):
    """The network writes the clean state (ResShift, Eq. 8 of arXiv:2307.12348).

    Args:
        label: How the network is told the time, see `noise_label`.
    """

    def __init__(self, label: Label) -> None:
        self.label: Label = label

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state itself."""
        return x_t, noise_label(process, t, self.label)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The clean state."""
        return noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The output itself."""
        return output
