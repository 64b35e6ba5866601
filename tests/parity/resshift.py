"""ResShift: schedule, forward process, sampling trajectories and the Swin U-Net."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.parameterization import AnchorResidual, Clean, Epsilon, bound_weight
from lightning_modules.diffusion.process import expand
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.space import Pixels
from lightning_modules.networks.unet_swin import UNetSwin
from tests.parity.harness import Comparison, Fixture, States, handed_out, stand_in

PARAMETERIZATIONS = {"xstart": Clean, "residual": AnchorResidual}


def process_of(variant: dict[str, Any]) -> ResidualShift:
    """The process of one entry of `variants`."""
    return ResidualShift(
        steps=variant["steps"],
        min_noise_level=variant["min_noise_level"],
        kappa=variant["kappa"],
        power=variant["schedule_kwargs"]["power"],
        last=variant["etas_end"],
    )


def table(process: ResidualShift) -> dict[str, Tensor]:
    """The rows of the public code's schedule, read off the process at its table's entries."""
    t = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    s = t - 1 / process.steps
    shift, shift_before, variance = process.shift(t), process.shift(s), process.kept_and_fresh(t, s)[1] ** 2
    clipped = torch.cat([variance[1:2], variance[1:]])
    ones, zeros = (torch.full((process.steps, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
    times: Any = {"anchor": zeros, "t": t, "s": s, "eta": 1.0, "randn": torch.zeros_like}
    return {
        "sqrt_etas": shift.sqrt(),
        "etas": shift,
        "etas_prev": shift_before,
        "alpha": shift - shift_before,
        "posterior_variance": variance,
        "posterior_variance_clipped": clipped,
        "posterior_log_variance_clipped": clipped.log(),
        "posterior_mean_coef1": process.step(ones, x0=zeros, **times).flatten(),
        "posterior_mean_coef2": process.step(zeros, x0=ones, **times).flatten(),
        "weight_loss_mse": bound_weight(process, t),
    }


def check_schedule(fixture: Fixture) -> Iterator[Comparison]:
    """Every row of every variant, then the forward process."""
    for name, variant in fixture.config["variants"].items():
        rows = table(process_of(variant))
        for row in [key.split("/")[1] for key in fixture.outputs if key.startswith(f"{name}/")]:
            relative = {"rtol": 1e-9} if row == "weight_loss_mse" else {"atol": 1e-12}
            yield Comparison(f"{name}/{row}", rows[row], fixture.outputs[f"{name}/{row}"], **relative)
    yield from check_forward(fixture)


def check_forward(fixture: Fixture) -> Iterator[Comparison]:
    """The diffused state, its scalings, the posterior's mean, and the translations between predictions."""
    process = process_of(fixture.config["variants"][fixture.config["forward_variant"]])
    x0, anchor, noise = (fixture.inputs[f"forward/{key}"] for key in ("x0", "y", "eps"))
    t = (fixture.inputs["forward/t"].double() + 1) / process.steps
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    epsilon, s = Epsilon("index"), t - 1 / process.steps
    found = {
        "x_t": x_t,
        "x_t_scaled_latent": Clean("index", input_scale="latent").read(process, x_t, t)[0],
        "x_t_scaled_pixel": Clean("index", input_scale="pixel").read(process, x_t, t)[0],
        "post_mean": process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=1.0, randn=torch.zeros_like),
        "x0_from_eps": epsilon.x0(process, noise, x_t=x_t, anchor=anchor, t=t),
        "eps_from_x0": (x_t - process.mean(x0=x0, anchor=anchor, t=t)) / expand(process.std(t), x_t),
        "x0_from_residual": AnchorResidual("index").x0(process, anchor - x0, x_t=x_t, anchor=anchor, t=t),
    }
    for key in [key for key in fixture.outputs if key.startswith("forward/")]:
        yield Comparison(key, found[key.removeprefix("forward/")], fixture.outputs[key], atol=1e-10)


def check_trajectory(fixture: Fixture) -> Iterator[Comparison]:
    """Samples, estimates and network inputs of every run, in float64 and float32."""
    runs = {key.rsplit("/", 1)[0] for key in fixture.outputs}
    for run in sorted(runs):
        name, prediction, precision = run.split("/")
        dtype, atol = (torch.float64, 1e-9) if precision == "f64" else (torch.float32, 1e-5)
        variant = fixture.config["variants"][name]
        clip = fixture.config["meta"][f"{name}/{prediction}"]["clip_denoised"]
        found = trajectory(fixture, variant, name, PARAMETERIZATIONS[prediction], Pixels(clip), dtype)
        for key in [key for key in fixture.outputs if key.startswith(f"{run}/")]:
            yield Comparison(key, found[key.rsplit("/", 1)[1]], fixture.outputs[key], atol=atol)


def trajectory(
    fixture: Fixture, variant: dict[str, Any], name: str, prediction: type[Clean], space: Pixels, dtype: torch.dtype
) -> dict[str, Tensor]:
    """One run of `Ancestral` with the fixture's network and noise."""
    process = process_of(variant)
    scale = "none" if not variant["normalize_input"] else "latent" if variant["latent_flag"] else "pixel"
    parameterization = prediction("index", input_scale=scale)
    anchor, coefficient = fixture.inputs["y"].to(dtype), fixture.config["coef"]
    record: dict[str, list[Tensor]] = {"pred_xstart": [], "model_input": []}
    states, noise = States(), fixture.inputs[f"{name}/noise"]

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        x, index = parameterization.read(process, x_t, t)
        time = (index.to(dtype)[:, None, None, None] + 1) / process.steps
        output = coefficient["a"] * x + coefficient["b"] * anchor + coefficient["c"] * x.tanh() * time
        x0 = space.bound(parameterization.x0(process, output, x_t=x_t, anchor=anchor, t=t))
        record["model_input"].append(x)
        record["pred_xstart"].append(x0)
        return x0

    final = Ancestral(process.steps)(stand_in(process, anchor, estimate), handed_out(noise), states)
    return {
        "x_final": final,
        "samples": states.stacked(),
        **{key: torch.stack(values) for key, values in record.items()},
    }


def fill_with_sines(network: UNetSwin) -> None:
    """Weights that need no file: sines, another phase for each parameter in the published order."""
    for i, parameter in enumerate(network.parameters()):
        wave = 0.08 * torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.37 + i)
        parameter.data = wave.view(parameter.shape).float()


def check_network(fixture: Fixture) -> Iterator[Comparison]:
    """The Swin U-Net at both scales, on the size it was built for and on a wider one."""
    config, inputs = fixture.config, fixture.inputs
    label = torch.tensor(config["label"])
    for name, expected in fixture.outputs.items():
        case = name.removesuffix("/out")
        network = UNetSwin(**config["network"], image_halvings=config["image_halvings"][case.split("/")[0]]).eval()
        fill_with_sines(network)
        output = network(inputs[f"{case}/x"], label, image=inputs[f"{case}/image"])
        yield Comparison(case, output, expected, atol=1e-6)


CHECKS = {"resshift_schedule": check_schedule, "resshift_traj": check_trajectory, "unet_swin": check_network}
