"""The processes of EDM and Relay Diffusion: clocks, blur, block noise, and what they refuse."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from lightning_modules.diffusion.edm import EDMProcess, levels
from lightning_modules.diffusion.relay import RelayProcess, block_noise, dct_basis, patch_product
from lightning_modules.diffusion.spacing import time_at


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    "process", [RelayProcess(), RelayProcess(prob_length=0.89), EDMProcess(), EDMProcess(sigma_max=20.0)]
)
def test_the_clock_inverts_the_noise_level(process: RelayProcess | EDMProcess) -> None:
    t = torch.linspace(1e-6, 1, 101, dtype=torch.float64)
    assert torch.allclose(time_at(process, process.std(t)), t, rtol=1e-9, atol=0)
    assert process.std(times(0.0)) == 0


@pytest.mark.parametrize(("prob_length", "largest"), [(0.93, 1.76995), (0.89, 1.31237)])
def test_relay_ends_at_the_published_levels(prob_length: float, largest: float) -> None:
    assert RelayProcess(prob_length=prob_length).std(times(1.0)).item() == pytest.approx(largest, abs=5e-6)


def test_edm_draws_the_published_log_normal_levels() -> None:
    torch.manual_seed(0)
    process = EDMProcess()
    logarithm = process.std(process.sample_t(200_000)).log()
    assert logarithm.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert logarithm.std().item() == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize(("prob_length", "smallest"), [(0.93, 0.007123), (0.89, 0.006906)])
def test_relay_draws_no_level_below_the_published_floor(prob_length: float, smallest: float) -> None:
    torch.manual_seed(0)
    process = RelayProcess(prob_length=prob_length)
    sigma = process.std(process.sample_t(20_000))
    assert sigma.min().item() == pytest.approx(smallest, abs=5e-7)
    assert (sigma == sigma.min()).sum() > 1
    assert sigma.max() <= process.std(times(1.0))


def test_the_grid_runs_along_the_published_ramp() -> None:
    process = EDMProcess()
    sigma = process.std(process.grid(18))
    assert len(sigma) == 19 and sigma[-1] == 0
    assert torch.allclose(sigma[:-1], levels(18, 80.0, 0.002, 7.0), rtol=1e-8, atol=0)
    assert torch.allclose(RelayProcess(sigma_start=0.4).std(RelayProcess(sigma_start=0.4).grid(1)), times(0.4, 0.0))
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        process.grid(0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_patch_dct_is_orthonormal(size: int) -> None:
    basis, x = dct_basis(size), images(2, 3, 3 * size, 5 * size)
    assert torch.allclose(basis @ basis.mT, torch.eye(size * size, dtype=torch.float64), atol=1e-12)
    there = patch_product(x, basis, size)
    assert torch.allclose(patch_product(there, basis.mT, size), x, atol=1e-12)
    assert torch.allclose(there[..., ::size, ::size], size * avg_pool2d(x, size))


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_an_image_of_repeated_pixels_is_a_fixed_point_of_every_blur(size: int) -> None:
    process = RelayProcess(size)
    repeated = interpolate(images(5, 3, 4, 6), scale_factor=float(size), mode="nearest")
    t = times(0.0, 0.1, 0.5, 0.9, 1.0)
    assert torch.allclose(process.mean(x0=repeated, anchor=repeated, t=t), repeated, atol=1e-12)


def test_the_blur_keeps_patch_averages_and_its_full_strength_nearly_leaves_them_alone() -> None:
    process, x = RelayProcess(), images(3, 3, 8, 12)
    blurred = process.mean(x0=x, anchor=x, t=times(0.3, 0.7, 1.0))
    assert torch.allclose(avg_pool2d(blurred, 4), avg_pool2d(x, 4), atol=1e-12)
    assert torch.equal(process.mean(x0=x, anchor=x, t=times(0, 0, 0)), process.blur(x, times(0, 0, 0)))
    assert torch.allclose(process.blur(x, times(0, 0, 0)), x, atol=1e-12)


def test_the_strongest_blur_has_the_published_gains() -> None:
    gains = RelayProcess().gains(times(3.0))[0]
    assert gains[0, 0] == 1
    assert gains[1, 0].item() == pytest.approx(0.0632, abs=5e-5)
    assert gains[1, 1].item() == pytest.approx(0.0049, abs=5e-5)
    assert gains[2, 0].item() == pytest.approx(0.0010, abs=5e-5)


def test_the_blur_of_a_level_is_the_published_one() -> None:
    process = RelayProcess()
    strength = process.blur_sigma(time_at(process, times(0.9)))
    assert strength.item() == pytest.approx(2.896, abs=5e-4)
    faces = RelayProcess(prob_length=0.89, blur_sigma_max=2.0)
    assert faces.gains(faces.blur_sigma(time_at(faces, times(0.95))))[0, 1, 0].item() == pytest.approx(0.300, abs=5e-4)
    slower = faces.blurring_by(1.05)
    strength = slower.blur_sigma(time_at(slower, times(0.95)))
    assert slower.gains(strength)[0, 1, 0].item() == pytest.approx(0.372, abs=5e-4)
    assert faces.blur_pace == 1


def test_the_blur_is_heat_diffusion_by_the_dct_also_where_sides_differ() -> None:
    process, x, sigma = RelayProcess(4), images(2, 3, 8, 20), times(0.4, 1.3)
    coefficients = patch_product(x, process.basis, 4).unflatten(-1, (5, 4)).unflatten(-3, (2, 4))
    gained = coefficients * process.gains(sigma)[:, None, None, :, None, :]
    expected = patch_product(gained.flatten(-2).flatten(-3, -2), process.basis.mT, 4)
    assert torch.allclose(process.blur(x, sigma), expected, atol=1e-12)


def test_the_blur_stays_in_float32_under_autocast() -> None:
    process, x = RelayProcess(), images(2, 3, 16, 16, dtype=torch.float32)
    t = times(0.2, 0.8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = process.mean(x0=x, anchor=x, t=t)
    assert blurred.dtype == torch.float32
    assert torch.allclose(blurred.double(), process.mean(x0=x.double(), anchor=x.double(), t=t), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_block_noise_has_unit_variance_triangular_covariance_and_the_gain_of_its_window(size: int) -> None:
    impulse = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    impulse[..., 0, 0] = 1
    power = torch.fft.fft2(block_noise(impulse, size)[0, 0]).abs() ** 2
    covariance = torch.fft.ifft2(power).real
    distance = torch.minimum(torch.arange(16), 16 - torch.arange(16)).double()
    triangle = (size - distance).clamp(min=0) / size
    assert torch.allclose(covariance, triangle[:, None] * triangle, atol=1e-12)
    assert power[0, 0].item() == pytest.approx(size**2)
    sample = block_noise(images(512, 3, 16, 16, seed=1), size)
    assert sample.var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("normalize", "variance"), [(False, 1 + 0.4**2), (True, 1.0)])
def test_relay_noise_is_white_and_block_noise_drawn_in_this_order(normalize: bool, variance: float) -> None:
    process, like = RelayProcess(4, block_scale=0.4, normalize_block_noise=normalize), torch.zeros(64, 3, 16, 16)
    torch.manual_seed(0)
    noise = process.noise(like)
    torch.manual_seed(0)
    white, source = torch.randn_like(like), torch.randn_like(like)
    expected = (white + 0.4 * block_noise(source, 4)) / (1.16**0.5 if normalize else 1)
    assert torch.allclose(noise, expected)
    assert noise.var().item() == pytest.approx(variance, abs=0.02)


def test_without_blur_and_block_noise_relay_is_edm_from_the_anchor() -> None:
    process, x = RelayProcess(blur_sigma_max=0.0, block_scale=0.0), images(2, 3, 8, 8)
    t = times(0.4, 0.9)
    assert process.mean(x0=x, anchor=x, t=t) is x
    torch.manual_seed(0)
    noise = process.noise(x)
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn_like(x))


def test_edm_starts_from_noise_alone_and_relay_from_the_anchor() -> None:
    anchor, noise, t = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1), times(1, 1)
    assert torch.allclose(EDMProcess().start(anchor=anchor, t=t, noise=noise), 80 * noise, rtol=1e-9)
    repeated = interpolate(anchor, scale_factor=4.0, mode="nearest")
    wide = images(2, 3, 32, 32, seed=2)
    started = RelayProcess().start(anchor=repeated, t=t, noise=wide)
    assert torch.allclose(started, repeated + RelayProcess().std(t).view(-1, 1, 1, 1) * wide, atol=1e-12)


def test_sizes_that_do_not_divide_into_patches_are_refused() -> None:
    x = images(1, 3, 16, 18)
    with pytest.raises(ValueError, match="16x18 pixels do not divide into patches of 4x4"):
        RelayProcess().mean(x0=x, anchor=x, t=times(0.5))


def test_sampling_above_the_trained_levels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level of 2 is above 1.76995.*\(quantile 0.93\)"):
        RelayProcess(sigma_start=2.0)
    with pytest.raises(ValueError, match=r"above 80"):
        time_at(EDMProcess(), times(81.0))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.45, 0.7, 1.1, 80.0])
def test_sampling_may_start_at_the_largest_level_itself(sigma: float) -> None:
    edm = EDMProcess(sigma_max=sigma)
    assert time_at(RelayProcess(prob_length=edm.prob_length, sigma_start=sigma), edm.std(times(1.0))).item() == 1


def test_a_blur_that_would_fall_again_is_refused() -> None:
    process = RelayProcess().blurring_by(0.8)
    with pytest.raises(ValueError, match=r"lies above the quantile 0.8 that the blur"):
        process.blur_sigma(times(1.0))


def test_no_signal_level_can_be_asked_of_a_blurring_process() -> None:
    with pytest.raises(TypeError, match="mean of RelayProcess is not a multiple of x0"):
        RelayProcess().alpha(times(0.5))
