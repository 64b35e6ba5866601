"""The table of the noise schedule that DDPM's descendants store beside their weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.schedules import Schedule
from lightning_modules.diffusion.vp import VP

COMPARED = ("betas", "alphas_cumprod")  # all other rows follow from these
TOLERANCE = 1e-6  # of a file's float32


def table(schedule: Schedule) -> dict[str, Tensor]:
    """The rows of the table under their published names, each float64 `[steps]`.

    Our processes need none of them; they are computed only to be compared with a file's.
    """
    betas, levels = schedule.betas(), schedule.alphas_cumprod()
    level, before = levels[1:], levels[:-1]
    variance = betas * (1 - before) / (1 - level)

    return {
        "betas": betas,
        "alphas_cumprod": level,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": level.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - level).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - level).log(),
        "sqrt_recip_alphas_cumprod": (1 / level).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / level - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - level),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - level),
    }


def without_table(state: Mapping[str, Tensor], process: Process) -> dict[str, Tensor]:
    """`state` without the rows of the table, after checking that they are those of the configured process.

    Raises:
        ValueError: the process has no schedule, a row is missing, or the file was made with another schedule.
    """
    if not isinstance(process, VP):
        raise ValueError(
            f"the weights were trained with a table of betas, but the configured process, {type(process).__name__}, "
            "has none; give a config with lightning_modules.diffusion.vp.VP"
        )

    own = table(process.schedule)
    for name in COMPARED:
        check_row(name, state.get(name), own[name])
    return {key: value for key, value in state.items() if key not in own}


def check_row(name: str, stored: Tensor | None, own: Tensor) -> None:
    """Compares one row of a file with the configured schedule's.

    Raises:
        ValueError: the row is missing or differs.
    """
    if stored is not None and stored.shape == own.shape:
        if torch.allclose(stored.double(), own, rtol=0, atol=TOLERANCE):
            return

    found = "no such row" if stored is None else f"{len(stored)} values, {stored[0]:.3g} to {stored[-1]:.3g}"
    raise ValueError(
        f"{name}: the file has {found}, the configured schedule {len(own)} values, {own[0]:.3g} to {own[-1]:.3g}"
    )
