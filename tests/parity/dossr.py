"""DoSSR: the shifted process and its solvers."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.color_fix import fix_color
from lightning_modules.diffusion.dos_solvers import DoSMultistep, derivative_weights
from lightning_modules.diffusion.parameterization import Noised, ShiftedEpsilon
from lightning_modules.diffusion.process import expand, noise_to_signal, table_time
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.vp import DomainShift
from tests.parity.harness import Comparison, Fixture, handed_out, stand_in

DEFAULTS: dict[str, Any] = {  # what the trajectories' files leave to the schedule's
    "timesteps": 1000,
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "eta": "trunc_12",
    "eta_linear_start": 0.001,
    "eta_linear_end": 0.999,
}


def process_of(config: dict[str, Any], eta: str | None = None) -> DomainShift:
    """The configured process; `trunc_ab` slides for a/b of its steps."""
    config = {**DEFAULTS, **config}
    steps, share = config["timesteps"], (eta or config["eta"]).removeprefix("trunc_")
    schedule = ScaledLinear(steps, config["linear_start"], config["linear_end"])
    shift_steps = int(steps * Fraction(int(share[0]), int(share[1])))
    return DomainShift(schedule, shift_steps, ramp=(config["eta_linear_start"], config["eta_linear_end"]))


def check_schedule(fixture: Fixture) -> Iterator[Comparison]:
    """The whole tables, the grids with their coefficients, and the forward process."""
    process = process_of(fixture.config)
    t = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    outputs = fixture.outputs
    yield Comparison("betas", process.schedule.betas(), outputs["betas"], atol=1e-12)
    yield Comparison("alphas_cumprod", process.signal(t) ** 2, outputs["alphas_cumprod"], atol=1e-12)
    for key in [key for key in outputs if key.startswith("etas_")]:
        slid = process_of(fixture.config, key.removeprefix("etas_"))
        yield Comparison(key, slid.anchor_alpha(t) / slid.signal(t), outputs[key], atol=1e-12)
        expected = outputs[key.replace("etas_", "t1_")]
        yield Comparison(f"{key} length", torch.tensor(slid.shift_steps), expected)
    for steps in fixture.config["steps"]:
        yield from check_grid(fixture, process, steps)
    yield from check_forward(fixture, process)


def check_grid(fixture: Fixture, process: DomainShift, steps: int) -> Iterator[Comparison]:
    """Times of a run, every row at those times, and the solver's coefficients."""
    rows = {key.split("/")[1]: value for key, value in fixture.outputs.items() if key.startswith(f"respaced{steps}/")}
    times = DoSMultistep(steps, final="reference").grid(process)
    t = times.flip(0)
    found = {
        "timesteps": (t * process.steps).round() - 1,
        "etas": process.anchor_alpha(t) / process.signal(t),
        "alphas_cumprod": process.signal(t) ** 2,
        "sigmas": process.std(t),
        "lambdas": noise_to_signal(process, t),
        "alphas_multi_one_minus_etas": process.alpha(t),
        "coeffs": torch.stack([coefficients(process, t, s) for t, s in pairwise(times)]),
    }
    for key, expected in rows.items():
        yield Comparison(f"respaced{steps}/{key}", found[key], expected, rtol=1e-9)


def coefficients(process: DomainShift, t: Tensor, s: Tensor) -> Tensor:
    """What a step multiplies the state, the anchor, the estimate, the noise and the derivatives by, `[6]`."""
    unit = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1, 1)
    t, s = t.expand(4), s.expand(4)
    step = process.step(unit[0], x0=unit[2], anchor=unit[1], t=t, s=s, eta=1.0, randn=lambda like: unit[3])
    weights = derivative_weights(noise_to_signal(process, t), noise_to_signal(process, s))
    derivatives = torch.stack([(process.alpha(s) * weight)[0] for weight in weights])
    return torch.cat([step.flatten(), derivatives])


def check_forward(fixture: Fixture, process: DomainShift) -> Iterator[Comparison]:
    """The diffused state in float64 and float32, the conversion of the network's output, and the loss."""
    a, b, c = (fixture.config["coef"][key] for key in "abc")
    x0, anchor, noise = (fixture.inputs[f"forward/{key}"] for key in ("x0", "x_lr", "eps"))
    index = fixture.inputs["forward/t"]
    t = (index.double() + 1) / process.steps
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    yield Comparison("forward/x_t", x_t, fixture.outputs["forward/x_t"], atol=1e-12)
    x0, anchor, noise = x0.float(), anchor.float(), noise.float()
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    time = index.float().view(-1, 1, 1, 1) / process.steps
    epsilon = a * x_t + b * anchor + c * x_t.tanh() * time
    parameterization = ShiftedEpsilon()
    estimate = parameterization.x0(process, epsilon, x_t=x_t, anchor=anchor, t=t)
    drawn = Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)
    error = (epsilon - parameterization.target(process, drawn)).abs()
    loss = (error * expand(parameterization.weight(process, t), error)).mean()
    outputs = fixture.outputs
    yield Comparison("forward/ref_x_t_f32", x_t, outputs["forward/ref_x_t_f32"], atol=1e-5)
    yield Comparison("forward/ref_eps_pred_f32", epsilon, outputs["forward/ref_eps_pred_f32"], atol=1e-5)
    yield Comparison("forward/ref_pred_x0_f32", estimate, outputs["forward/ref_pred_x0_f32"], atol=1e-4)
    yield Comparison("forward/ref_l1_loss_f32", loss, outputs["forward/ref_l1_loss_f32"], atol=1e-5)


def run(fixture: Fixture, steps: int, order: int, noise: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """One run of `DoSMultistep` with the fixture's network and noise; the states are those that enter the network."""
    process = process_of(fixture.config)
    a, b, c, d = (fixture.config["coef"][key] for key in "abcd")
    anchor, parameterization = fixture.inputs["x_lr"].to(dtype), ShiftedEpsilon()
    states, estimates, indices = [], [], []

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        index = table_time(process, t) * process.steps - 1
        time = (index / process.steps).to(dtype).view(-1, 1, 1, 1)
        clean = a * x_t + b * anchor + c * x_t.tanh() * time + d
        drawn = Noised(x_t=x_t, x0=clean, anchor=anchor, noise=x_t, t=t)
        output = parameterization.target(process, drawn)
        x0 = parameterization.x0(process, output, x_t=x_t, anchor=anchor, t=t)
        for record, value in ((states, x_t), (estimates, x0), (indices, index[0].round())):
            record.append(value)
        return x0

    sampler = DoSMultistep(steps, order, final="reference")
    final = sampler(stand_in(process, anchor, estimate), handed_out(noise))
    return {
        "x_final": final,
        "x_steps": torch.stack(states),
        "x0_preds": torch.stack(estimates),
        "timesteps": torch.stack(indices),
    }


def check_trajectory(fixture: Fixture) -> Iterator[Comparison]:
    """Every order in float64 and float32, state by state."""
    steps = fixture.config["steps"]
    for order in fixture.config["orders"]:
        for precision, dtype, atol in (("f64", torch.float64, 1e-9), ("f32", torch.float32, 1e-5)):
            found = run(fixture, steps, order, fixture.inputs["noise"], dtype)
            yield Comparison(f"order{order}/timesteps", found["timesteps"], fixture.outputs[f"order{order}/timesteps"])
            for key in ("x_steps", "x0_preds", "x_final"):
                name = f"order{order}/{precision}/{key}"
                yield Comparison(name, found[key], fixture.outputs[name], atol=atol)


def check_steps(fixture: Fixture) -> Iterator[Comparison]:
    """Final states for other numbers of steps, in float64."""
    for steps in fixture.config["steps"]:
        for order in fixture.config["orders"]:
            found = run(fixture, steps, order, fixture.inputs[f"steps{steps}/noise"], torch.float64)
            name = f"steps{steps}/order{order}/x_final"
            yield Comparison(name, found["x_final"], fixture.outputs[name], atol=1e-9)


def check_color_fix(fixture: Fixture) -> Iterator[Comparison]:
    """Both colour fixes, of images in [0, 1]."""
    image, reference = (fixture.inputs[key] * 2 - 1 for key in ("content", "style"))
    for method in ("wavelet", "adain"):
        fixed = fix_color(image, reference=reference, method=method)
        yield Comparison(method, (fixed + 1) / 2, fixture.outputs[method], atol=1e-5)


CHECKS = {
    "dossr_schedule": check_schedule,
    "dossr_traj": check_trajectory,
    "dossr_traj_steps": check_steps,
    "colorfix": check_color_fix,
}
