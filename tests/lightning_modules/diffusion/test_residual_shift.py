import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.parameterization import AnchorResidual, Clean, bound_weight, scale_input
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral
from tests.fakes import FakeDenoiser

# sqrt(eta) of the two published variants, as the public code prints them
FIFTEEN = """0.02 0.117165 0.176305 0.233629 0.291574 0.351009 0.412356 0.475858 0.541672 0.60991 0.680658 0.753985
0.829951 0.908606 0.99"""
FOUR = "0.1 0.520096 0.761382 0.99"


def paper() -> ResidualShift:
    return ResidualShift(steps=15, min_noise_level=0.04)


def entries(process: ResidualShift) -> Tensor:
    return torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps


@pytest.mark.parametrize("steps,noise,roots", [(15, 0.04, FIFTEEN), (4, 0.2, FOUR)])
def test_schedule_of_the_published_variants(steps: int, noise: float, roots: str) -> None:
    process = ResidualShift(steps=steps, min_noise_level=noise)
    expected = torch.tensor([float(root) for root in roots.split()], dtype=torch.float64)
    torch.testing.assert_close(process.shift(entries(process)).sqrt(), expected, atol=5e-7, rtol=0)


def test_step_is_the_posterior() -> None:
    process = paper()
    t = entries(process)[1:]
    s = t - 1 / process.steps
    x_t, x0, anchor = (torch.randn(len(t), 1, 1, 1, dtype=torch.float64) for _ in range(3))
    ratio = (process.shift(s) / process.shift(t)).view(-1, 1, 1, 1)
    stepped = process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=1.0, randn=torch.zeros_like)
    torch.testing.assert_close(stepped, ratio * x_t + (1 - ratio) * x0, atol=1e-12, rtol=0)
    variance = 4 * process.shift(s) * (process.shift(t) - process.shift(s)) / process.shift(t)
    kept, fresh = process.kept_and_fresh(t, s)
    torch.testing.assert_close(fresh**2, variance, atol=1e-12, rtol=0)
    torch.testing.assert_close(fresh**2 + kept**2, process.std(s) ** 2)


def test_sampling_ends_in_the_last_estimate_and_starts_at_the_anchor() -> None:
    process, anchor = paper(), torch.randn(2, 3, 4, 4)
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t)
        return 0.3 * x_t

    torch.manual_seed(1)
    result = Ancestral(15)(FakeDenoiser(process, anchor, denoise))
    torch.manual_seed(1)
    torch.testing.assert_close(seen[0], anchor + 1.98 * torch.randn_like(anchor))
    torch.testing.assert_close(result, 0.3 * seen[-1])
    assert len(seen) == 15


def test_samples_that_do_not_step_stay() -> None:
    process, x = paper(), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0.6, 0.6], dtype=torch.float64)
    s = torch.tensor([0.6, 0.2], dtype=torch.float64)
    stepped = process.step(x, x0=torch.zeros_like(x), anchor=x, t=t, s=s, eta=1.0)
    assert torch.equal(stepped[0], x[0]) and not torch.equal(stepped[1], x[1])


@pytest.mark.parametrize("arguments", [{"steps": 1}, {"min_noise_level": 0.0}, {"last": 0.01}])
def test_impossible_schedules_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        ResidualShift(**{"steps": 15, "min_noise_level": 0.04, **arguments})


def test_step_counts_that_the_table_cannot_give_are_refused() -> None:
    with pytest.raises(ValueError, match="15 steps; it cannot be sampled with 16"):
        paper().grid(16)


@pytest.mark.parametrize("scale,divisor", [("none", 1.0), ("latent", 5**0.5), ("pixel", 7.0), ("data", 4.25**0.5)])
def test_input_scales(scale: str, divisor: float) -> None:
    process = ResidualShift(steps=2, min_noise_level=0.1, last=1.0)
    x = torch.ones(1, 1, 1, 1)
    scaled = scale_input(process, x, torch.ones(1), scale)
    torch.testing.assert_close(scaled, x / divisor)


def test_residual_begins_at_the_anchor() -> None:
    residual, x = AnchorResidual("index"), torch.randn(1, 3, 2, 2)
    assert torch.equal(residual.x0(paper(), torch.zeros_like(x), x_t=x, anchor=x, t=torch.ones(1)), x)


def test_labels_are_table_indices() -> None:
    process = paper()
    x = torch.zeros(15, 1, 1, 1)
    assert torch.equal(Clean("index").read(process, x, entries(process))[1], torch.arange(15.0))


def test_bound_weight_is_the_kl_of_two_posteriors() -> None:
    process, t = paper(), torch.tensor([7 / 15], dtype=torch.float64)
    s, one, zero = t - 1 / 15, torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()
    means = [process.step(zero, x0=x0, anchor=zero, t=t, s=s, eta=1.0, randn=torch.zeros_like) for x0 in (zero, one)]
    _, fresh = process.kept_and_fresh(t, s)
    divergence = (means[1] - means[0]).square() / (2 * fresh**2)
    torch.testing.assert_close(bound_weight(process, t), divergence.flatten())
