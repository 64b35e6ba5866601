"""Kind `schedule`: betas and what follows from them."""

import re
from collections.abc import Iterator

from lightning_modules.diffusion import schedules
from lightning_modules.diffusion.schedules import Schedule
from lightning_modules.published.schedule_table import table
from tests.parity.harness import Comparison, Fixture

EXACT = {"betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod_ext"}


def schedule_of(fixture: Fixture) -> Schedule:
    """The schedule that the fixture's title names by its family; end points are read off its betas."""
    title, steps = fixture.config["title"].split(" ")[0], fixture.config["T"]
    first, last = (fixture.outputs["betas"][i].item() for i in (0, -1))
    if "cosine" in title:
        offset = re.search(r"_s([\d.]+)", title)
        return schedules.Cosine(steps, **({"offset": float(offset[1])} if offset else {}))
    if "last_beta" in title:
        step = (fixture.outputs["betas"][-2].item() - first) / (steps - 2)
        return schedules.Linear(steps, first, first + step * (steps - 1), last=last)
    if "warmup" in title:
        share = re.search(r"warmup(\d+)", title)
        assert share is not None
        return schedules.WarmUp(steps, first, last, fraction=int(share[1]) / 100)
    if "quad" in title:
        return schedules.ScaledLinear(steps, first, last)
    if "const" in title:
        return schedules.Constant(steps, last)
    return schedules.Harmonic(steps) if "jsd" in title else schedules.Linear(steps, first, last)


def check_schedule(fixture: Fixture) -> Iterator[Comparison]:
    """Every row of the fixture against the schedule's own."""
    schedule = schedule_of(fixture)
    rows = {**table(schedule), "sqrt_alphas_cumprod_ext": schedule.alphas_cumprod().sqrt()}
    for name, expected in fixture.outputs.items():
        exact = name in EXACT
        yield Comparison(name, rows[name], expected, atol=0 if exact else 1e-12, rtol=1e-12 if exact else 1e-9)


CHECKS = {"schedule": check_schedule}
