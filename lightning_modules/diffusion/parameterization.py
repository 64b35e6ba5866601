"""What the network reads and writes, and how an estimate of the clean state follows from it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, expand, table_time

Clock = Literal["level", "index", "time"]
"""What can be chosen to tell a network the time, see `noise_label`."""

Label = Literal[Clock, "log_sigma"]
"""What tells a network the time; `log_sigma` is EDM's, see `Preconditioned`."""


@dataclass(frozen=True)
class Noised:
    """One training draw: the state `x_t` and all it was made of. States `[B,C,H,W]`, `t` float64 `[B]`."""

    x_t: Tensor
    x0: Tensor
    anchor: Tensor
    noise: Tensor
    t: Tensor


class Parameterization(ABC):
    """Translates between the process and the network.

    Attributes:
        label: What tells the network the time.
    """

    label: Label

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


def noise_label(process: Process, t: Tensor, label: Clock) -> Tensor:
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
    return (table_time(process, t) * process.steps - 1).float()


class Epsilon(Parameterization):
    """The network writes the noise (Eq. 14 of DDPM, arXiv:2006.11239).

    Args:
        label: How the network is told the time, see `noise_label`.
    """

    def __init__(self, label: Clock) -> None:
        self.clock: Clock = label
        self.label: Label = label

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state itself."""
        return x_t, noise_label(process, t, self.clock)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The noise."""
        return noised.noise

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x_t - std * output - what the anchor contributes) / alpha`."""
        from_anchor = process.mean(x0=torch.zeros_like(x_t), anchor=anchor, t=t)
        return (x_t - from_anchor - expand(process.std(t), x_t) * output) / expand(process.alpha(t), x_t)


class Velocity(Epsilon):
    """The network writes `alpha * noise - std * x0` (Appendix D of arXiv:2202.00512), as Stable Diffusion 2.1 does.

    Args:
        label: How the network is told the time, see `noise_label`.
    """

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The velocity."""
        alpha, std = (expand(value, noised.x0) for value in (process.alpha(noised.t), process.std(noised.t)))
        return alpha * noised.noise - std * noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(alpha * (x_t - what the anchor contributes) - std * output) / (alpha^2 + std^2)`."""
        alpha, std = expand(process.alpha(t), x_t), expand(process.std(t), x_t)
        from_anchor = process.mean(x0=torch.zeros_like(x_t), anchor=anchor, t=t)
        return (alpha * (x_t - from_anchor) - std * output) / (alpha**2 + std**2)


InputScale = Literal["none", "latent", "pixel", "data"]


def scale_input(process: Process, x_t: Tensor, t: Tensor, scale: InputScale) -> Tensor:
    """Brings states of any noise level to similar size for the network, `[B,C,H,W]`.

    `latent` divides by `sqrt(std^2 + 1)` and `pixel` by `3 std + 1`, as ResShift's code does in and outside a latent
    space; `data` divides by `sqrt(std^2 + 0.25)`, for images in [-1, 1] have a standard deviation near 0.5.
    """
    if scale == "none":
        return x_t
    std = process.std(t)
    divisor = {"latent": (std**2 + 1).sqrt(), "pixel": 3 * std + 1, "data": (std**2 + 0.25).sqrt()}[scale]
    return x_t / expand(divisor, x_t)


def bound_weight(process: Process, t: Tensor) -> Tensor:
    """Weight of the squared error of x0 in the variational bound, `[B]` (Eq. 8 of ResShift, arXiv:2307.12348).

    The squared share of x0 in the mean of the posterior one table entry down, over twice its variance. The posterior of
    the clean state itself has none; as in ResShift's code that of the second entry takes its place.

    Raises:
        TypeError: the process has no table of steps.
    """
    if process.steps is None:
        raise TypeError(f"weighting: bound needs a process with a table of steps; {type(process).__name__} has none")
    entry = 1 / process.steps
    s = (t - entry).clamp(min=0)
    kept, _ = process.kept_and_fresh(t, s)
    share = process.alpha(s) - kept / process.std(t) * process.alpha(t)
    _, fresh = process.kept_and_fresh(t.clamp(min=2 * entry), s.clamp(min=entry))
    return share**2 / (2 * fresh**2)


class Clean(Parameterization):
    """The network writes the clean state (ResShift, Eq. 8 of arXiv:2307.12348).

    Args:
        label: How the network is told the time, see `noise_label`.
        input_scale: What the state is divided by for the network, see `scale_input`.
        weighting: `bound` weighs squared errors as the variational bound does, see `bound_weight`.
    """

    def __init__(
        self, label: Clock, input_scale: InputScale = "none", weighting: Literal["uniform", "bound"] = "uniform"
    ) -> None:
        self.clock: Clock = label
        self.label: Label = label
        self.input_scale: InputScale = input_scale
        self.weighting = weighting

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled state."""
        return scale_input(process, x_t, t, self.input_scale), noise_label(process, t, self.clock)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The clean state."""
        return noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The output itself."""
        return output

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """1, or the bound's."""
        return torch.ones_like(t) if self.weighting == "uniform" else bound_weight(process, t)


class AnchorResidual(Clean):
    """The network writes the anchor less the clean state: ResShift's e0.

    With a network that begins at 0 the first estimate is the degraded image, which is where training from scratch
    should start.
    """

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`anchor - x0`."""
        return noised.anchor - noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`anchor - output`."""
        return anchor - output


class ShiftedEpsilon(Epsilon):
    """DoSSR's noise prediction: read as a plain VP one, so that a pretrained Stable Diffusion can be the network.

    The conversion leaves the shift out, hence the network must write the noise and what the shift still hides of the
    clean image, `noise + sqrt(ab) shift (anchor - x0) / std` (arXiv:2409.17778).

    Args:
        label: How the network is told the time, see `noise_label`.
        loss_on: `x0` weighs the loss by `std / sqrt(ab)`, which with `norm: l1` is the published L1 distance of clean
            states; `epsilon` leaves it unweighted.
    """

    def __init__(self, label: Clock = "index", loss_on: Literal["x0", "epsilon"] = "x0") -> None:
        super().__init__(label)
        self.loss_on = loss_on

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The output that stands for the true clean state."""
        std, signal = (expand(value, noised.x0) for value in self._levels(process, noised.t))
        return (noised.x_t - signal * noised.x0) / std

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x_t - std * output) / sqrt(ab)`."""
        std, signal = (expand(value, x_t) for value in self._levels(process, t))
        return (x_t - std * output) / signal

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """`std / sqrt(ab)` with `loss_on: x0`."""
        std, signal = self._levels(process, t)
        return std / signal if self.loss_on == "x0" else torch.ones_like(t)

    def _levels(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        std = process.std(t)
        return std, (1 - std**2).sqrt()


class Preconditioned(Parameterization):
    """EDM's preconditioning: the network writes what a weighted skip connection leaves open (arXiv:2206.00364).

    `x0 = c_skip x_t + c_out * output` (Table 1). EDM weights the error of `x0` by `1 / c_out^2`; in the network's own
    output, where the loss is taken here, that is a weight of 1.

    Args:
        sigma_data: Standard deviation of clean states.
        label_scale: Multiplies EDM's noise label `ln(sigma) / 4`. 1 suits networks that expect that label, and 250
            those that expect step indices (`label` is then `index`).
        max_weight: No error of `x0` is weighted by more, as in RDM's code; only levels below 0.0032 would be.
    """

    def __init__(self, sigma_data: float = 0.5, label_scale: float = 1.0, max_weight: float = 1e5) -> None:
        self.sigma_data, self.label_scale, self.max_weight = sigma_data, label_scale, max_weight
        self.label = "log_sigma" if label_scale == 1 else "index"

    def scales(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`c_skip`, `c_out` and `c_in`, each float64 `[B]`.

        Raises:
            TypeError: the process does not keep the clean state's scale at every noise level.
        """
        if not process.keeps_scale:
            raise TypeError(
                f"Preconditioned needs a process that adds noise without shrinking the image, EDM's or Relay's, and "
                f"not {type(process).__name__}"
            )
        sigma = process.std(t)
        variance = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, sigma * self.sigma_data / variance.sqrt(), 1 / variance.sqrt()

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state at unit variance, and `label_scale ln(sigma) / 4`."""
        _, _, scale = self.scales(process, t)
        return expand(scale, x_t) * x_t, (self.label_scale * process.std(t).log() / 4).float()

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`(x0 - c_skip x_t) / c_out`, of about unit variance."""
        skip, out, _ = self.scales(process, noised.t)
        return (noised.x0 - expand(skip, noised.x_t) * noised.x_t) / expand(out, noised.x_t)

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`c_skip x_t + c_out * output`."""
        skip, out, _ = self.scales(process, t)
        return expand(skip, x_t) * x_t + expand(out, x_t) * output

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """1, and less where the error of `x0` would weigh more than `max_weight`."""
        _, out, _ = self.scales(process, t)
        return (self.max_weight * out**2).clamp(max=1)
