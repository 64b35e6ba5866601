"""Parameterizations: the network's input, its training target, and the estimate of the clean state from its output."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.process import Process, expand, table_time

Clock = Literal["level", "index", "time"]
"""Noise labels that can be chosen in a configuration, see `noise_label`."""

Label = Literal[Clock, "log_sigma"]
"""All noise labels, by which a network is given the time; `log_sigma` is EDM's, see `Preconditioned`."""


@dataclass(frozen=True)
class Noised:
    """Noisy states of a training batch, and everything they were computed from.

    Attributes:
        x_t: The noisy states, `[B,C,H,W]`.
        x0: The clean states, `[B,C,H,W]`.
        anchor: The degraded images as states, `[B,C,H,W]`.
        noise: The noise, of unit variance, `[B,C,H,W]`.
        t: The times, float64 `[B]`.
    """

    x_t: Tensor
    x0: Tensor
    anchor: Tensor
    noise: Tensor
    t: Tensor


class Parameterization(ABC):
    """Relates the network's input and output to the states of the process.

    Attributes:
        label: The noise label that the network is given.
    """

    label: Label

    def check(self, network: nn.Module) -> None:
        """Checks that the network was built for this noise label; one without `conditioning` takes any.

        Raises:
            ValueError: `label` and `conditioning` differ.
        """
        expected = getattr(network, "conditioning", None)
        if expected is not None and self.label != expected:
            raise ValueError(
                f"the network has conditioning: {expected}, but the parameterization has label: {self.label}"
            )

    @abstractmethod
    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Network input `[B,C,H,W]` and noise label `[B]`."""

    @abstractmethod
    def target(self, process: Process, noised: Noised) -> Tensor:
        """The training target of the network's output, `[B,C,H,W]`."""

    @abstractmethod
    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The estimate of the clean state for a network output, `[B,C,H,W]`."""

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Weight of each sample in the loss, `[B]`."""
        return torch.ones_like(t)


def noise_label(process: Process, t: Tensor, label: Clock) -> Tensor:
    """The noise label at times `t`, float32 `[B]`.

    `level` is the coefficient of x0 (SR3). `index` is the papers' 0-based index of the step (DDPM, SRDiff); with fewer
    sampling steps it is still the index in the table of training. `time` is `t` itself.

    Raises:
        TypeError: `index` with a process that has no table of steps.
    """
    if label == "level":
        return process.alpha(t).float()
    if label == "time":
        return t.float()
    if process.steps is None:
        raise TypeError(f"label: index needs a process with a table of steps; {type(process).__name__} has none")
    return (table_time(process, t) * process.steps - 1).float()  # entry k has index k - 1


class Epsilon(Parameterization):
    """The network predicts the noise (Eq. 14 of DDPM, arXiv:2006.11239).

    Args:
        label: How the time is given to the network, see `noise_label`.
    """

    def __init__(self, label: Clock) -> None:
        self.clock: Clock = label
        self.label: Label = label

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The unscaled state, and the noise label."""
        return x_t, noise_label(process, t, self.clock)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The noise."""
        return noised.noise

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x_t - anchor_part - std * output) / alpha`, with `anchor_part = mean(x0=0, anchor, t)`."""
        from_anchor = process.mean(x0=torch.zeros_like(x_t), anchor=anchor, t=t)
        return (x_t - from_anchor - expand(process.std(t), x_t) * output) / expand(process.alpha(t), x_t)


class Velocity(Epsilon):
    """The network predicts `alpha * noise - std * x0` (Appendix D of arXiv:2202.00512), as Stable Diffusion 2.1 does.

    Args:
        label: How the time is given to the network, see `noise_label`.
    """

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`alpha * noise - std * x0`."""
        alpha, std = (expand(value, noised.x0) for value in (process.alpha(noised.t), process.std(noised.t)))
        return alpha * noised.noise - std * noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(alpha * (x_t - anchor_part) - std * output) / (alpha^2 + std^2)`, with `anchor_part` as in `Epsilon`."""
        alpha, std = expand(process.alpha(t), x_t), expand(process.std(t), x_t)
        from_anchor = process.mean(x0=torch.zeros_like(x_t), anchor=anchor, t=t)
        return (alpha * (x_t - from_anchor) - std * output) / (alpha**2 + std**2)


InputScale = Literal["none", "latent", "pixel", "data"]


def scale_input(process: Process, x_t: Tensor, t: Tensor, scale: InputScale) -> Tensor:
    """States scaled to similar variance at all noise levels, `[B,C,H,W]`.

    `latent` divides by `sqrt(std^2 + 1)` and `pixel` by `3 std + 1`, as ResShift's code does for latents and for
    pixels. `data` divides by `sqrt(std^2 + 0.25)`, because images in [-1, 1] have a standard deviation near 0.5.
    """
    if scale == "none":
        return x_t

    std = process.std(t)
    divisor = {"latent": (std**2 + 1).sqrt(), "pixel": 3 * std + 1, "data": (std**2 + 0.25).sqrt()}[scale]
    return x_t / expand(divisor, x_t)


def bound_weight(process: Process, t: Tensor) -> Tensor:
    """Weight of the squared error of x0 in the variational bound, `[B]` (Eq. 8 of ResShift, arXiv:2307.12348).

    It is the squared coefficient of x0 in the mean of the posterior `q(x_s | x_t, x0)`, with s one table entry below t,
    divided by twice the posterior variance. At the first entry, where that variance is 0, the variance of the second
    entry is used, as in ResShift's code.

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
    """The network predicts the clean state (ResShift, Eq. 8 of arXiv:2307.12348).

    Args:
        label: How the time is given to the network, see `noise_label`.
        input_scale: How the network's input is scaled, see `scale_input`.
        weighting: `uniform`, or `bound` for the weights of the variational bound, see `bound_weight`.
    """

    def __init__(
        self, label: Clock, input_scale: InputScale = "none", weighting: Literal["uniform", "bound"] = "uniform"
    ) -> None:
        self.clock: Clock = label
        self.label: Label = label
        self.input_scale: InputScale = input_scale
        self.weighting = weighting

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled state, and the noise label."""
        return scale_input(process, x_t, t, self.input_scale), noise_label(process, t, self.clock)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The clean state."""
        return noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The output itself."""
        return output

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """1, or with `weighting: bound` the weight of the variational bound."""
        return torch.ones_like(t) if self.weighting == "uniform" else bound_weight(process, t)


class AnchorResidual(Clean):
    """The network predicts the anchor minus the clean state, the residual e0 of ResShift.

    A network that is initialized to output 0 then estimates the degraded image, a good start for training from scratch.
    """

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`anchor - x0`."""
        return noised.anchor - noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`anchor - output`."""
        return anchor - output


class ShiftedEpsilon(Epsilon):
    """DoSSR's noise prediction, converted to x0 as for plain VP, so that Stable Diffusion can be the network.

    The conversion ignores the shift of the mean. So the target is the noise plus the shift:
    `noise + sqrt(ab) shift (anchor - x0) / std` (arXiv:2409.17778).

    Args:
        label: How the time is given to the network, see `noise_label`.
        loss_on: `x0` weights the loss by `std / sqrt(ab)`, which with `norm: l1` is the published L1 distance between
            clean states; `epsilon` does not weight it.
    """

    def __init__(self, label: Clock = "index", loss_on: Literal["x0", "epsilon"] = "x0") -> None:
        super().__init__(label)
        self.loss_on = loss_on

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`(x_t - sqrt(ab) x0) / std`, the output from which `x0` gives the true clean state."""
        std, signal = (expand(value, noised.x0) for value in self._levels(process, noised.t))
        return (noised.x_t - signal * noised.x0) / std

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x_t - std * output) / sqrt(ab)`."""
        std, signal = (expand(value, x_t) for value in self._levels(process, t))
        return (x_t - std * output) / signal

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """`std / sqrt(ab)` with `loss_on: x0`; otherwise 1."""
        std, signal = self._levels(process, t)
        return std / signal if self.loss_on == "x0" else torch.ones_like(t)

    def _levels(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        """`std` and `sqrt(ab)`, `[B]` each."""
        std = process.std(t)
        return std, (1 - std**2).sqrt()


class Preconditioned(Parameterization):
    """EDM's preconditioning: `x0 = c_skip x_t + c_out * output` (Table 1 of arXiv:2206.00364).

    EDM weights the squared error of `x0` by `1 / c_out^2`. Here the loss is computed on the network's output, where
    the same weighting is a weight of 1.

    Args:
        sigma_data: Standard deviation of clean states.
        label_scale: Factor on EDM's noise label `ln(sigma) / 4`: 1 for networks that expect this label, 250 for
            networks that expect step indices (`label` is then `index`).
        max_weight: Largest weight of the squared error of `x0`, as in RDM's code. Only noise levels below 0.0032 would
            exceed the default.
    """

    def __init__(self, sigma_data: float = 0.5, label_scale: float = 1.0, max_weight: float = 1e5) -> None:
        self.sigma_data, self.label_scale, self.max_weight = sigma_data, label_scale, max_weight
        self.label = "log_sigma" if label_scale == 1 else "index"

    def scales(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`c_skip`, `c_out` and `c_in`, each float64 `[B]`.

        Raises:
            TypeError: the process scales the clean state down (`keeps_scale` is False).
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
        """`c_in x_t`, of about unit variance, and the label `label_scale * ln(sigma) / 4`."""
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
        """1, or less where the squared error of `x0` would get a weight above `max_weight`."""
        _, out, _ = self.scales(process, t)
        return (self.max_weight * out**2).clamp(max=1)
