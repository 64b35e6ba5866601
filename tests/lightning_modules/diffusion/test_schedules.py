import pytest

from lightning_modules.diffusion.schedules import Constant, Cosine, Harmonic, Linear, ScaledLinear, Schedule, WarmUp


@pytest.mark.parametrize(
    "schedule", [Linear(10, 1e-4, 0.02), ScaledLinear(10, 1e-4, 0.02), WarmUp(10, 1e-4, 0.02, 0.5), Constant(10, 0.1)]
)
def test_levels_fall_from_one(schedule: Schedule) -> None:
    levels = schedule.alphas_cumprod()
    assert len(levels) == 11 and levels[0] == 1 and (levels.diff() < 0).all() and levels[-1] > 0


@pytest.mark.parametrize("schedule", [Linear(10, 1e-4, 2.0), Constant(10, 0.0), WarmUp(10, -1e-4, 0.02, 0.5)])
def test_betas_that_are_no_variances_are_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=rf"{type(schedule).__name__}: betas must lie in \(0, 1\]"):
        schedule.alphas_cumprod()


@pytest.mark.parametrize("schedule", [Harmonic, Cosine])
def test_a_schedule_has_steps(schedule: type[Schedule]) -> None:
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        schedule(0)
