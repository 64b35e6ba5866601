"""The numbers of processes and parameterizations, each against its formula, and the times that training draws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.flow import FlowVelocity, RectifiedFlow
from lightning_modules.diffusion.parameterization import (
    AnchorResidual,
    Clean,
    Epsilon,
    Noised,
    Parameterization,
    Preconditioned,
    ShiftedEpsilon,
    Velocity,
    bound_weight,
    noise_label,
    scale_input,
)
from lightning_modules.diffusion.process import Process, table_time
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.schedules import Constant, Linear
from lightning_modules.diffusion.space import Latent, Pixels, Residual
from lightning_modules.diffusion.vp import VP, DomainShift

HALVES = VP(Constant(4, 0.5))  # alphas-bar 1, 1/2, 1/4, 1/8, 1/16
SHIFT = DomainShift(Linear(10, 0.01, 0.2), shift_steps=5)
RESIDUAL = ResidualShift(steps=5, min_noise_level=0.2, kappa=2.0)
PROCESSES: dict[str, Process] = {
    "vp": VP(Linear(10, 0.01, 0.2)),
    "domain shift": SHIFT,
    "residual shift": RESIDUAL,
    "flow": RectifiedFlow(),
    "flow from the anchor": RectifiedFlow(from_anchor=True, sigma=0.5),
    "edm": EDMProcess(),
}


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def states(count: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, batch, 3, 4, 4, generator=generator, dtype=torch.float64)


# The clock.


def test_a_table_is_read_at_its_entries_and_between_them() -> None:
    assert HALVES.signal(times(0, 0.25, 0.5, 0.75, 1)).tolist() == pytest.approx([0.5 ** (k / 2) for k in range(5)])
    assert HALVES.signal(times(0.375)).item() == pytest.approx((0.5**0.5 + 0.5) / 2)


def test_the_time_of_a_table_entry_is_the_one_at_or_above() -> None:
    thousand = VP(Linear(1000, 1e-4, 0.02))
    entries = torch.arange(1001, dtype=torch.float64) / 1000
    assert torch.equal(table_time(thousand, entries), entries)
    assert table_time(thousand, times(0.0001, 0.4995)).tolist() == [0.001, 0.5]
    assert torch.equal(noise_label(thousand, entries[1:], "index"), torch.arange(1000.0))
    between = times(0.123)
    assert torch.equal(table_time(RectifiedFlow(), between), between)


def test_respaced_runs_visit_the_nearest_entries() -> None:
    assert (VP(Linear(10, 0.01, 0.2)).grid(3) * 10).tolist() == [10, 7, 3, 0]


def drawn(sample_t: Callable[[int], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return sample_t(4000)


def test_training_draws_each_table_entry_and_never_the_clean_state() -> None:
    for process, last in (
        (VP(Linear(4, 0.1, 0.2)), 4),
        (RESIDUAL, 5),
        (DomainShift(Linear(8, 0.1, 0.2), shift_steps=4), 8),
        (DomainShift(Linear(8, 0.1, 0.2), shift_steps=4, train_steps=6), 6),
    ):
        entries, counts = (drawn(process.sample_t) * process.steps).unique(return_counts=True)
        assert entries.tolist() == list(range(1, last + 1))
        assert counts.min() > 0.8 * 4000 / last


def test_a_continuous_table_is_drawn_up_to_its_end_and_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    process = VP(Linear(4, 0.1, 0.2), continuous=True)
    t = drawn(process.sample_t)
    assert t.histc(8, 0, 1).min() > 0.8 * 4000 / 8
    assert 0 < t.min() and t.max() <= 1
    monkeypatch.setattr(torch, "rand", torch.zeros)  # the smallest number that it can draw
    assert process.sample_t(100).min() == 0.25
    assert RectifiedFlow().sample_t(1).item() == 1  # and never 0, where there is no noise to estimate


def test_a_shared_time_is_one_for_the_batch() -> None:
    for continuous in (False, True):
        process = VP(Linear(1000, 1e-4, 0.02), continuous=continuous, shared_t=True)
        entries = table_time(process, process.sample_t(16))
        assert len(entries.unique()) == 1
        assert len({float(table_time(process, process.sample_t(1))) for _ in range(20)}) > 10


# Means, deviations and steps.


def test_vp_keeps_the_variance() -> None:
    x0, noise, anchor = states(3)
    for k in range(5):
        t = times(k / 4)
        assert HALVES.std(t).item() == pytest.approx(math.sqrt(1 - 0.5**k))
        x_t = HALVES.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        torch.testing.assert_close(x_t, 0.5 ** (k / 2) * x0 + math.sqrt(1 - 0.5**k) * noise)
    assert torch.equal(HALVES.start(anchor=anchor, t=times(1), noise=noise), noise)


def test_the_posterior_of_vp_is_ddpms() -> None:
    # Eq. 7 of DDPM at its t = 3: alpha 1/2, alpha-bar 1/8, alpha-bar before 1/4.
    x_t, x0, anchor, noise = states(4)
    mean = math.sqrt(1 / 4) * (1 / 2) / (7 / 8) * x0 + math.sqrt(1 / 2) * (3 / 4) / (7 / 8) * x_t
    std = math.sqrt((3 / 4) / (7 / 8) * (1 / 2))
    kept, fresh = HALVES.kept_and_fresh(times(0.75), times(0.5))
    assert fresh.item() == pytest.approx(std)
    assert (kept**2 + fresh**2).item() == pytest.approx(3 / 4)
    x_s = HALVES.step(x_t, x0=x0, anchor=anchor, t=times(0.75), s=times(0.5), eta=1.0, randn=lambda _: noise)
    torch.testing.assert_close(x_s, mean + std * noise)


def test_a_share_of_the_fresh_noise_leaves_the_rest_of_the_old() -> None:
    # Eq. 12 of DDIM with sigma = eta times the posterior's deviation.
    x_t, x0, anchor, noise = states(4)
    sigma = 0.6 * math.sqrt((3 / 4) / (7 / 8) * (1 / 2))
    epsilon = (x_t - math.sqrt(1 / 8) * x0) / math.sqrt(7 / 8)
    expected = math.sqrt(1 / 4) * x0 + math.sqrt(3 / 4 - sigma**2) * epsilon + sigma * noise
    x_s = HALVES.step(x_t, x0=x0, anchor=anchor, t=times(0.75), s=times(0.5), eta=0.6, randn=lambda _: noise)
    torch.testing.assert_close(x_s, expected)


def test_samples_whose_time_stays_are_untouched() -> None:
    x_t, x0, anchor, noise = states(4, batch=2)
    for process in PROCESSES.values():
        t = times(0.8, 0.8)
        x_s = process.step(x_t, x0=x0, anchor=anchor, t=t, s=times(0.8, 0.4), eta=1.0, randn=lambda _: noise)
        assert torch.equal(x_s[0], x_t[0]) and not torch.allclose(x_s[1], x_t[1])


def test_the_domain_shift_slides_along_half_a_cosine() -> None:
    x0, anchor, noise = states(3)
    signal = SHIFT.schedule.alphas_cumprod().sqrt()
    for entry, share in ((0, 0.0), (1, 0.001), (3, 0.5), (5, 0.999), (7, 1.0)):
        shift = 0.0 if entry == 0 else 1.0 if entry > 5 else math.sin(share * math.pi / 2) ** 2
        mean = SHIFT.mean(x0=x0, anchor=anchor, t=times(entry / 10))
        torch.testing.assert_close(mean, signal[entry] * ((1 - shift) * x0 + shift * anchor))
    start = SHIFT.start(anchor=anchor, t=times(0.5), noise=noise)
    torch.testing.assert_close(start, signal[5] * anchor + math.sqrt(1 - signal[5] ** 2) * noise)


def test_the_chain_of_the_domain_shift_has_its_marginals() -> None:
    """A transition multiplies x0's coefficient and the noise by `gain`; a step of a perfect estimate then fits."""
    x0, anchor, noise = states(3)
    for entry in range(2, 11):
        t, s = times(entry / 10), times((entry - 1) / 10)
        gain = SHIFT.gain(t, s).item()
        if entry - 1 > 5:  # the slide was complete: a plain VP transition
            assert gain == pytest.approx((SHIFT.signal(t) / SHIFT.signal(s)).item())
        elif entry <= 5:
            assert gain == pytest.approx((SHIFT.alpha(t) / SHIFT.alpha(s)).item())
        kept, fresh = SHIFT.kept_and_fresh(t, s)
        assert (kept**2 + fresh**2).item() == pytest.approx((SHIFT.std(s) ** 2).item())
        x_t = SHIFT.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        x_s = SHIFT.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=0.0)
        torch.testing.assert_close(x_s, SHIFT.diffuse(x0=x0, anchor=anchor, t=s, noise=noise))


def test_the_posterior_of_residual_shifting_is_the_papers() -> None:
    x_t, x0, anchor, noise = states(4)
    t, s = times(0.8), times(0.6)
    eta_t, eta_s = RESIDUAL.shift(t).item(), RESIDUAL.shift(s).item()
    mean = eta_s / eta_t * x_t + (eta_t - eta_s) / eta_t * x0  # Eq. 7 of ResShift
    std = 2.0 * math.sqrt(eta_s / eta_t * (eta_t - eta_s))
    x_s = RESIDUAL.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=1.0, randn=lambda _: noise)
    torch.testing.assert_close(x_s, mean + std * noise)


def test_the_shift_is_geometric_between_its_ends() -> None:
    for kappa, first in ((2.0, 0.1), (0.5, 0.2)):
        process = ResidualShift(steps=5, min_noise_level=0.2, kappa=kappa, power=0.3)
        root = process.shift(times(0.2, 0.4, 1)).sqrt()
        wanted = [first, first * (0.99 / first) ** (0.25**0.3), 0.99]
        assert root.tolist() == pytest.approx(wanted)


# What the network reads and writes.

PARAMETERIZATIONS: list[tuple[Parameterization, str]] = [
    (Epsilon("level"), "vp"),
    (Epsilon("level"), "domain shift"),
    (Velocity("level"), "vp"),
    (Velocity("level"), "domain shift"),
    (Velocity("level"), "residual shift"),
    (Clean("index"), "residual shift"),
    (AnchorResidual("index"), "residual shift"),
    (ShiftedEpsilon(), "domain shift"),
    (Preconditioned(), "edm"),
    (FlowVelocity(), "flow"),
    (FlowVelocity(), "flow from the anchor"),
]


@pytest.mark.parametrize(("parameterization", "name"), PARAMETERIZATIONS)
def test_the_target_stands_for_the_clean_state(parameterization: Parameterization, name: str) -> None:
    process, (x0, anchor, noise) = PROCESSES[name], states(3, batch=2)
    t = times(0.4, 0.2)
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    target = parameterization.target(process, Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t))
    torch.testing.assert_close(parameterization.x0(process, target, x_t=x_t, anchor=anchor, t=t), x0)


def test_targets_have_their_sign() -> None:
    x0, anchor, noise = states(3)
    t = times(0.5)
    x_t = HALVES.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    draw = Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)
    assert torch.equal(Epsilon("level").target(HALVES, draw), noise)
    assert torch.equal(Clean("index").target(HALVES, draw), x0)
    assert torch.equal(AnchorResidual("index").target(HALVES, draw), anchor - x0)
    torch.testing.assert_close(Velocity("level").target(HALVES, draw), 0.5 * noise - math.sqrt(0.75) * x0)
    shifted = SHIFT.diffuse(x0=x0, anchor=anchor, t=times(0.3), noise=noise)
    draw = Noised(x_t=shifted, x0=x0, anchor=anchor, noise=noise, t=times(0.3))
    signal, std = SHIFT.signal(times(0.3)).item(), SHIFT.std(times(0.3)).item()
    hidden = signal * 0.5 * (anchor - x0) / std  # the slide is half complete
    torch.testing.assert_close(ShiftedEpsilon().target(SHIFT, draw), noise + hidden)


def test_a_loss_on_clean_states_weighs_the_noise() -> None:
    t = times(0.3)
    signal = SHIFT.signal(t)
    assert ShiftedEpsilon().weight(SHIFT, t).item() == pytest.approx((SHIFT.std(t) / signal).item())
    assert ShiftedEpsilon(loss_on="epsilon").weight(SHIFT, t).item() == 1


def test_states_are_scaled_for_the_network() -> None:
    x = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    t = times(0.8)
    std = RESIDUAL.std(t).item()
    wanted = {"none": 1, "latent": math.sqrt(std**2 + 1), "pixel": 3 * std + 1, "data": math.sqrt(std**2 + 0.25)}
    for scale, divisor in wanted.items():
        shown = scale_input(RESIDUAL, x, t, scale)  # type: ignore[arg-type]
        torch.testing.assert_close(shown, x / divisor)


def test_the_bound_weighs_as_the_paper_does() -> None:
    eta = RESIDUAL.shift(torch.arange(6, dtype=torch.float64) / 5).tolist()
    shift = eta[4] - eta[3]
    weight = shift / (2 * 4 * eta[4] * eta[3])  # Eq. 8 of ResShift, kappa^2 = 4
    assert bound_weight(RESIDUAL, times(4 / 5)).item() == pytest.approx(weight)
    # The first entry leads to the clean state without noise; the second's variance takes its place.
    variance = 4 * eta[1] / eta[2] * (eta[2] - eta[1])
    assert bound_weight(RESIDUAL, times(1 / 5)).item() == pytest.approx(1 / (2 * variance))


def test_preconditioning_has_edms_coefficients() -> None:
    process, parameterization = EDMProcess(), Preconditioned()
    t = times(0.7)
    sigma = process.std(t).item()
    skip, out, scale = (value.item() for value in parameterization.scales(process, t))
    assert skip == pytest.approx(0.25 / (sigma**2 + 0.25))
    assert out == pytest.approx(sigma * 0.5 / math.sqrt(sigma**2 + 0.25))
    assert scale == pytest.approx(1 / math.sqrt(sigma**2 + 0.25))
    _, label = parameterization.read(process, states(1)[0], t)
    assert label.item() == pytest.approx(math.log(sigma) / 4, rel=1e-6)
    assert parameterization.weight(process, t).item() == 1
    # No error of x0 is weighted by more than max_weight: in the output's units, max_weight c_out^2.
    capped = Preconditioned(max_weight=0.5 / out**2)
    assert capped.weight(process, t).item() == pytest.approx(0.5)


def test_edms_levels_are_log_normal() -> None:
    process = EDMProcess()
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    share = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor((math.log(80) + 1.2) / 1.2, dtype=torch.float64))
    t = times(0.25, 0.5, 0.75) / share  # `t` runs to the quantile of sigma_max
    assert process.std(t).tolist() == pytest.approx((1.2 * quantiles - 1.2).exp().tolist())
    assert process.std(times(1)).item() == pytest.approx(80)
    assert process.std(process.grid(18)).tolist() == pytest.approx(
        [(80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(18)] + [0]
    )


def test_published_pace_is_another_quantile_of_the_blur() -> None:
    process = RelayProcess(prob_length=0.89)
    other = process.blurring_by(1.05)
    t = times(0.5)
    assert other.blur_sigma(t).item() == pytest.approx(3 * math.sin(0.89 / 1.05 * math.pi / 4) ** 2)
    assert torch.equal(other.std(t), process.std(t))


# Where diffusion runs.


class Shown(nn.Module):
    """An autoencoder that says whether it was asked for a draw: encoding adds 1 to one."""

    factor, scale = 2, 4.0

    def encode(self, image: Tensor, randn: Randn | None) -> Tensor:
        return image[..., ::2, ::2] + float(randn is not None)

    def decode(self, latent: Tensor) -> Tensor:
        return latent


def test_latents_are_scaled_and_only_targets_are_drawn() -> None:
    space, (image, up) = Latent(Shown()), states(2).float()
    torch.testing.assert_close(space.encode(image, up), 4 * image[..., ::2, ::2])
    torch.testing.assert_close(space.encode_target(image, up), 4 * (image[..., ::2, ::2] + 1))
    torch.testing.assert_close(space.decode(image, up), image / 4)
    assert torch.equal(space.bound(5 * image), 5 * image)


def test_residuals_are_stretched_and_kept_in_range() -> None:
    space = Residual(2.0)
    image, up = torch.tensor([0.5, 1.0, -1.0]), torch.tensor([0.3, 0.2, 0.9])
    torch.testing.assert_close(space.encode(image, up), torch.tensor([0.4, 1.0, -1.0]))
    state = torch.tensor([0.4, 3.0, -3.0])
    torch.testing.assert_close(space.decode(state, up), torch.tensor([0.5, 0.7, 0.4]))
    assert torch.equal(space.bound(state), torch.tensor([0.4, 1.0, -1.0]))


def test_pixels_are_clamped_where_asked() -> None:
    x0 = torch.tensor([0.4, 3.0, -3.0])
    assert torch.equal(Pixels().bound(x0), torch.tensor([0.4, 1.0, -1.0]))
    assert torch.equal(Pixels(clip=False).bound(x0), x0)
