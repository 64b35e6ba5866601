"""Spacings: the times of a sampling run with few steps."""

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, Spacing, noise_to_signal

RHO = 7.0  # curvature of Karras spacing, from Table 1 of EDM (arXiv:2206.00364)


def spaced(process: Process, steps: int, spacing: Spacing) -> Tensor:
    """Times of a run of `steps` steps, float64 `[steps + 1]`, falling from the process's start to 0.

    For a table of T steps:

    - `trailing` is the process's own grid: every T/steps-th entry, counted from the last one.
    - `uniform` spaces the times evenly from the last to the first entry, both included (guided-diffusion's respacing).
    - `quadratic` spaces the square roots of the entries evenly, so that most are near the clean image (Section 4.3 of
      DDIM, arXiv:2010.02502).
    - `karras` spaces the 7th roots of the noise-to-signal ratio evenly (Eq. 5 of EDM); times may lie between entries.

    A process without a table has only its own grid, which for EDM is `karras`.

    Raises:
        ValueError: the process cannot be sampled in this number of steps, or it starts without any signal and the
            spacing is `karras`.
        TypeError: the process has no table, and the spacing is not its own.
    """
    own = process.grid(steps)
    if spacing in ("trailing", process.own_spacing):
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
        entries = torch.maximum(squares, visits)  # small squares lie closer than entries; no entry may occur twice
    return torch.cat([entries, torch.zeros(1, dtype=torch.float64)]) / process.steps


def _karras(process: Process, start: Tensor, steps: int) -> Tensor:
    """Times from `start` to the first entry with evenly spaced 7th roots of the noise-to-signal ratio, then 0."""
    assert process.steps is not None
    ends = torch.stack([start, torch.tensor(1 / process.steps, dtype=torch.float64)])
    largest, smallest = noise_to_signal(process, ends).pow(1 / RHO)
    if largest.isinf():
        raise ValueError(
            f"karras spacing needs some signal at the start, and {type(process).__name__} starts without; choose "
            "trailing, uniform or quadratic"
        )

    sigmas = torch.lerp(largest, smallest, torch.linspace(0, 1, steps, dtype=torch.float64)).pow(RHO)
    times = time_at(process, sigmas)
    times[0] = start  # exactly, not up to the rounding of the powers
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def time_at(process: Process, sigma: Tensor) -> Tensor:
    """The times at which the noise-to-signal ratio is `sigma`, float64 in its shape, found by bisection.

    For processes with `keeps_scale`, `sigma` is the noise level.

    Raises:
        ValueError: a ratio is above the ratio at t = 1.
    """

    def ratio(t: Tensor) -> Tensor:
        return process.std(t) if process.keeps_scale else noise_to_signal(process, t)

    largest = ratio(torch.ones(1, dtype=torch.float64)).item()
    if sigma.max() > largest * (1 + 1e-6):
        raise ValueError(
            f"a noise level of {sigma.max().item():.6g} is above {largest:.6g}, the largest that "
            f"{type(process).__name__} is trained on; lower the upper end of churn_range"
        )

    # 64 halvings reach the precision of float64.
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(64):
        middle = (low + high) / 2
        above = ratio(middle) > sigma
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high
