"""Relay Diffusion: operators, the training draw and the second-stage sampler."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.parameterization import Noised, Preconditioned
from lightning_modules.diffusion.relay import RelayProcess, block_noise, dct_basis, patch_product
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.spacing import time_at
from lightning_modules.edm import EDM
from lightning_modules.networks.unet_adm import ADMUNet
from lightning_modules.published import edm
from tests.parity.harness import Check, Comparison, Fixture, handed_out, stand_in

TOLERANCE = 1e-6  # the reference computes its gains in float32
TRAJECTORY = 1e-5


def analytic(x: Tensor, sigma: Tensor, reference: Tensor, coefficients: dict[str, float]) -> Tensor:
    """The fixtures' stand-in for a network, see their `denoiser` entry."""
    a, b, c = (coefficients[name] for name in "abc")
    sigma = sigma.view(-1, 1, 1, 1)
    k = 1 / (1 + sigma**2)
    return a * k * x + (1 - a * k) * b * reference + c * x.tanh() * sigma / (1 + sigma)


def ops(fixture: Fixture) -> Iterator[Comparison]:
    """Block noise, DCT, blur, the clocks, and one training draw with its loss."""
    config, given, expected = fixture.config, fixture.inputs, fixture.outputs
    process = RelayProcess(
        config["patch"],
        blur_sigma_max=config["blur_sigma_max"],
        block_scale=config["alpha_block"],
        min_gain=config["min_scale"],
        sigma_floor=config["truncate_sigma"],
        prob_length=config["prob_length"],
        p_mean=config["P_mean"],
        p_std=config["P_std"],
        sigma_start=0.1,
    )
    yield from operators(process, given, expected)
    yield from clocks(process, Preconditioned(config["sigma_data"]), given, expected)
    yield from training(process, Preconditioned(config["sigma_data"]), config["coef"], given, expected)


def operators(process: RelayProcess, given: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[Comparison]:
    size, x = process.patch, given["x"]
    yield Comparison("block_noise", block_noise(given["eps_block"], size), expected["block_noise"], atol=1e-12)
    impulse = torch.zeros_like(expected["block_impulse"])
    impulse[..., 0, 0] = 1
    response = block_noise(impulse, size)
    yield Comparison("block_impulse", response, expected["block_impulse"], atol=1e-12)
    power = torch.fft.fft2(response[0, 0]).abs() ** 2
    yield Comparison("block_autocov", torch.fft.ifft2(power).real, expected["block_autocov"], atol=1e-9)
    basis = dct_basis(size)
    coefficients = patch_product(x, basis, size)
    yield Comparison("dct_patch", coefficients, expected["dct_patch"], atol=1e-9)
    yield Comparison("dct_roundtrip", patch_product(coefficients, basis.mT, size), expected["dct_roundtrip"], atol=1e-9)
    for k, sigma in enumerate(given["blur_sigmas"]):
        blurred = process.blur(x, sigma.expand(len(x)))
        yield Comparison(f"blurred by {sigma:.3g}", blurred, expected["blurred"][k], atol=TOLERANCE)


def clocks(
    process: RelayProcess, edm: Preconditioned, given: dict[str, Tensor], expected: dict[str, Tensor]
) -> Iterator[Comparison]:
    gains = process.gains(process.blur_sigma(time_at(process, given["alpha_sigmas"])))
    yield Comparison("alpha_t", gains, expected["alpha_t"], atol=TOLERANCE)
    yield Comparison("truncate_p", torch.tensor(process.smallest_t()), expected["truncate_p"], atol=TOLERANCE)
    u = given["u"].clamp(min=process.smallest_t())
    yield Comparison("u_clamped", u, expected["u_clamped"], atol=TOLERANCE)
    yield Comparison("sigma", process.std(u), expected["sigma"], atol=TOLERANCE)
    yield Comparison("blur_sigma", process.blur_sigma(u), expected["blur_sigma"], atol=TOLERANCE)
    weight = edm.weight(process, u) / edm.scales(process, u)[1] ** 2
    yield Comparison("weight", weight, expected["weight"], rtol=TOLERANCE)


def training(
    process: RelayProcess,
    edm: Preconditioned,
    coefficients: dict[str, float],
    given: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> Iterator[Comparison]:
    x0 = given["x"]
    t = given["train_u"].flatten().double().clamp(min=process.smallest_t())
    noise = process.noise(x0, handed_out([given["eps"], given["eps_block"]]))
    x_t = process.diffuse(x0=x0, anchor=x0, t=t, noise=noise)
    noised = Noised(x_t=x_t, x0=x0, anchor=x0, noise=noise, t=t)
    yield Comparison("train_sigma", process.std(t), expected["train_sigma"], atol=TOLERANCE)
    yield Comparison("train_x_t", x_t, expected["train_x_t"], atol=TRAJECTORY)
    skip, out, _ = (scale.view(-1, 1, 1, 1) for scale in edm.scales(process, t))
    output = (analytic(x_t, process.std(t), x0, coefficients) - skip * x_t) / out
    loss = (output - edm.target(process, noised)) ** 2 * edm.weight(process, t).view(-1, 1, 1, 1)
    largest = expected["train_loss"].abs().max().item()
    yield Comparison("train_loss", loss, expected["train_loss"], atol=1e-4 * largest)


def sampler(fixture: Fixture) -> Iterator[Comparison]:
    """Every call of the network and the result, for each run."""
    for run, meta in fixture.config["runs"].items():
        yield from trajectory(fixture, run, meta["kwargs"])


def trajectory(fixture: Fixture, run: str, kwargs: dict[str, Any]) -> Iterator[Comparison]:
    latents = fixture.inputs["latents"]
    expected = {name: fixture.outputs[f"{run}/{name}"] for name in ("x_final", "x_calls", "d_calls", "sigmas_called")}
    process = RelayProcess(
        kwargs["up_scale"],
        blur_sigma_max=kwargs["blur_sigma_max"],
        block_scale=kwargs["s_block"],
        prob_length=kwargs.get("prob_length", 0.93),
        sigma_start=kwargs["truncation_sigma"],
    )
    heun = RelayHeun(
        kwargs["num_steps"],
        eta=kwargs["s_noise"],
        sigma_max=kwargs["sigma_max"],
        sigma_min=kwargs["sigma_min"],
        rho=kwargs["rho"],
        blur_prob_length=kwargs["truncation_t"],
    )
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        estimate = analytic(x_t, process.std(t), latents, fixture.config["coef"])
        calls.append((x_t, estimate, process.std(t)[:1]))
        return estimate

    nodes = len(heun.grid(process)) - 1
    draws = draws_of_ours(list(fixture.inputs[f"{run}/noise"]), kwargs, nodes)
    final = heun(stand_in(process, latents, recorded), handed_out(draws))
    x_calls, d_calls, sigmas = (torch.stack(values) for values in zip(*calls, strict=True))
    yield Comparison(f"{run}/sigmas_called", sigmas, expected["sigmas_called"], rtol=1e-9)
    yield Comparison(f"{run}/x_calls", x_calls, expected["x_calls"], atol=TRAJECTORY)
    yield Comparison(f"{run}/d_calls", d_calls, expected["d_calls"], atol=TRAJECTORY)
    yield Comparison(f"{run}/x_final", final, expected["x_final"], atol=TRAJECTORY)


def draws_of_ours(draws: list[Tensor], kwargs: dict[str, Any], nodes: int) -> list[Tensor]:
    """The recorded draws in the order that ours are made in.

    The face script makes one more at each level, for a churn of zero; ours makes the last step's too, times zero.
    """
    each = 2 if kwargs["s_block"] > 0 else 1
    unused = [torch.zeros_like(draws[0])] * each
    if "S_churn" not in kwargs:
        return draws + unused
    if kwargs["S_churn"]:
        raise ValueError("the second stage has no churn here: the published code mixes two states when it is on")
    kept = draws[:each]
    for node in range(nodes - 1):
        start = each + node * (2 * each + 1) + 1
        kept += draws[start : start + 2 * each]
    return kept + unused


def network(fixture: Fixture) -> Iterator[Comparison]:
    """The ADM U-Net, with weights that come in through the importer of published files."""
    method = EDM(
        network=ADMUNet(**fixture.config["network"]),
        process=EDMProcess(),
        parameterization=Preconditioned(),
        space=Pixels(),
        sampler=EDMHeun(1),
        condition_on="none",
    )
    method.load_state_dict(edm.adapt(method, fixture.weights))
    actual = method.network.eval()(fixture.inputs["x"], fixture.inputs["label"])
    yield Comparison("output", actual, fixture.outputs["output"], atol=1e-5)


CHECKS: dict[str, Check] = {"rdm_ops": ops, "rdm_sampler": sampler, "rdm_network": network}
