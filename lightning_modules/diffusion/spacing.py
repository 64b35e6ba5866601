"""Which times a run of few steps visits."""

from typing import Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.relay import EDM

Spacing = Literal["trailing", "uniform", "quadratic", "karras"]

RHO = 7.0  # curvature of Karras spacing, from Table 1 of EDM (arXiv:2206.00364)


def spaced(process: Process, steps: int, spacing: Spacing) -> Tensor:
    """Times of a run of `steps` steps, float64 `[steps + 1]`, falling from the process's start to 0.

    With a table of T steps, `trailing` (the process's own grid) visits every T/steps-th entry from the last one on;
    `uniform` spreads the visits from the last to the first entry, both included (guided-diffusion's respacing);
    `quadratic` visits entries in proportion to squares, densest at the clean end (Section 4.3 of DDIM,
    arXiv:2010.02502); `karras` spaces the noise-to-signal ratio evenly in its 7th root (Eq. 5 of EDM), between entries
    where need be. The EDM process has no table, and its own grid is Karras's.

    Raises:
        ValueError: the process has no such number of steps, or starts without any signal where `karras` needs some.
        TypeError: the process spaces its times in a way of its own, and `spacing` is not `trailing`.
    """
    own = process.grid(steps)
    if spacing == "trailing" or (spacing == "karras" and isinstance(process, EDM)):
        return own
    if process.steps is None:
        raise TypeError(
            f"{spacing} spacing needs a process with a table of steps; {type(process).__name__} has none and spaces "
            "its times itself: leave spacing at trailing"
        )
    if spacing == "karras":
        return _karras(process, own[0], steps)
    last = float(own[0]) * process.steps
    if spacing == "uniform":
        entries = torch.linspace(last, 1, steps, dtype=torch.float64).round()
    else:
        visits = torch.arange(steps, 0, -1, dtype=torch.float64)
        squares = (last * (visits / steps) ** 2 + 0.5).floor()
        entries = torch.maximum(squares, visits)  # no entry twice, where squares are closer than entries
    return torch.cat([entries, torch.zeros(1, dtype=torch.float64)]) / process.steps


def noise_to_signal(process: Process, t: Tensor) -> Tensor:
    """`std / alpha`, EDM's sigma; infinite where no signal is left. In the shape of `t`.

    Raises:
        TypeError: the process's mean is no multiple of x0.
    """
    return process.std(t) / process.alpha(t)


def _karras(process: Process, start: Tensor, steps: int) -> Tensor:
    assert process.steps is not None
    ends = torch.stack([start, torch.tensor(1 / process.steps, dtype=torch.float64)])
    largest, smallest = noise_to_signal(process, ends).pow(1 / RHO)
    if largest.isinf():
        raise ValueError(
            f"karras spacing needs some signal at the start, and {type(process).__name__} starts without; choose "
            "trailing, uniform or quadratic"
        )
    sigmas = torch.lerp(largest, smallest, torch.linspace(0, 1, steps, dtype=torch.float64)).pow(RHO)
    times = _time_at(process, sigmas, float(start))
    times[0] = start
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def _time_at(process: Process, sigmas: Tensor, start: float) -> Tensor:
    """The inverse of `noise_to_signal`, which grows with time, by bisection to the last bit."""
    low, high = torch.zeros_like(sigmas), torch.full_like(sigmas, start)
    for _ in range(64):
        middle = (low + high) / 2
        above = noise_to_signal(process, middle) > sigmas
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high
