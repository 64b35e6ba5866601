"""Self-attention guidance: its parts, single steps with and without clamping, and a chain, in pixels and in latents."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.guidance import SelfAttentionGuidance, received_attention
from lightning_modules.diffusion.parameterization import Epsilon, Parameterization, Velocity
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.samplers import DDIM, Ancestral
from lightning_modules.diffusion.schedules import Linear, ScaledLinear, Schedule
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.spacing import spaced
from lightning_modules.diffusion.vp import VP
from tests.parity.harness import Comparison, Fixture, States


class AnalyticAttention(nn.Module):
    """The fixture's attention: `logits_h[q,k] = k_h p_q p_k + m_h p_k` of the pooled channel mean p."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.side, self.k, self.m = config["attn_res"], config["k_h"], config["m_h"]
        self.weights = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def received_attention(self, x: Tensor) -> Tensor:
        p = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), self.side).flatten(2)
        k, m = (torch.tensor(values, dtype=x.dtype).view(1, -1, 1, 1) for values in (self.k, self.m))
        logits = k * (p[..., None] * p[:, :, None]) + m * p[:, :, None]
        self.weights = logits.softmax(-1)
        return received_attention(self.weights).view(-1, self.side, self.side)


class AnalyticNetwork(nn.Module):
    """The fixture's network: `a x + b tanh(2x) + c t box3(x)`; remembers what it was asked and answered."""

    stride = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.coefficients = config["coef"]
        self.attention = AnalyticAttention(config)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.attention(x)
        box = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        a, b, c = (self.coefficients[name] for name in "abc")
        time = (label.double().round() / 1000).view(-1, 1, 1, 1)
        self.inputs.append(x)
        self.outputs.append(a * x + b * torch.tanh(2 * x) + c * time * box)
        return self.outputs[-1]


def guidance_of(config: Mapping[str, Any], **changes: Any) -> SelfAttentionGuidance:
    """The fixture's guidance."""
    arguments = {"kernel": config["blur_kernel"], "sigma": config["blur_sigma"], "scale": config["guide_scale"] - 1}
    return SelfAttentionGuidance("attention", **{**arguments, **changes})


def model_of(config: Mapping[str, Any], clip: bool) -> DiffusionModule:
    """Unconditional pixel diffusion with the fixture's network under its guidance."""
    return DiffusionModule(
        network=AnalyticNetwork(config),
        process=VP(Linear(1000, 1e-4, 2e-2)),
        parameterization=Epsilon("index"),
        space=Pixels(clip=clip),
        sampler=Ancestral(1000),
        condition_on="none",
        guidance=[guidance_of(config)],
    )


def check_pixel(fixture: Fixture) -> Iterator[Comparison]:
    """See the module."""
    yield from check_operations(fixture)
    for solver in ("ddpm", "ddim"):
        for clip in ("clip", "noclip"):
            yield from check_step(fixture, solver, clip)
    yield from check_chain(fixture)


def check_operations(fixture: Fixture) -> Iterator[Comparison]:
    """Blurs, the received attention and its mask, the degraded state, and the respaced times."""
    config, expected = fixture.config, fixture.outputs
    inputs = {key.removeprefix("ops/"): value for key, value in fixture.inputs.items() if key.startswith("ops/")}
    blurs = {"blur_pixel": ("x", {}), "blur_pixel_sigma3": ("x", {"sigma": 3.0})}
    blurs["blur_latent"] = ("z", {"kernel": 9, "sigma": 1.0})
    for name, (source, changes) in blurs.items():
        blurred = guidance_of(config, mask="uniform", **changes).degrade(inputs[source], [])
        tolerance = 1e-6 if name == "blur_latent" else 1e-9
        yield Comparison(name, blurred, expected[f"ops/{name}"], atol=tolerance)
    guidance, process = guidance_of(config), VP(Linear(1000, 1e-4, 2e-2))
    received = received_attention(inputs["attn"].unflatten(0, (-1, config["heads"])))
    yield Comparison("received", received, expected["ops/received"], atol=1e-9)
    maps = received.unflatten(1, (config["attn_res"], -1))
    yield Comparison("mask", guidance.select(maps, maps[:, None]), expected["ops/mask"])
    yield Comparison("mask_up", guidance.select(maps, inputs["x"]), expected["ops/mask_up"])
    times = spaced(process, int(config["spacing"]), "uniform")[:-1].flip(0)
    yield Comparison("timestep_map", times * 1000 - 1, expected["ops/timestep_map"], atol=1e-9)
    yield Comparison("alphas_cumprod", process.alpha(times) ** 2, expected["ops/alphas_cumprod"], atol=1e-9)
    degraded = guidance.degrade(inputs["x"].clamp(-1, 1), [maps])
    diffused = process.diffuse(x0=degraded, anchor=degraded, t=times[inputs["t_index"]], noise=inputs["eps"])
    yield Comparison("xbar_t", diffused, expected["ops/xbar_t"], atol=1e-9)


def check_step(fixture: Fixture, solver: str, clip: str) -> Iterator[Comparison]:
    """One guided step, and what the network was asked on the way."""
    config, case = fixture.config, f"step/{solver}_{clip}"
    model, x = model_of(config, clip == "clip"), fixture.inputs["step/x"]
    network = model.network
    assert isinstance(network, AnalyticNetwork)
    times = spaced(model.process, int(config["spacing"]), "uniform").flip(0)
    t, s = (times[config["t_index"] + ahead].expand(len(x)) for ahead in (1, 0))
    sampler = Ancestral(1, eta=1.0 if solver == "ddpm" else config["ddim_eta"])
    _, denoiser, _, _ = model.prepare(Batch(lr=x, up=x, key=["a"] * len(x)))
    x_s, _ = sampler.step(denoiser, x, (), t=t, s=s, randn=lambda like: fixture.inputs[f"{case}/noise"])
    yield Comparison(f"{case}/sample", x_s, fixture.outputs[f"{case}/sample"], atol=1e-9)
    found = {"eps": network.outputs[0], "xbar_t": network.inputs[1], "eps_bar": network.outputs[1]}
    found["attn"] = network.attention.weights.flatten(0, 1)
    for name, actual in found.items():
        if f"{case}/{name}" in fixture.outputs:
            yield Comparison(f"{case}/{name}", actual, fixture.outputs[f"{case}/{name}"], atol=1e-9)


class Visiting(DDIM):
    """Visits given training steps."""

    def __init__(self, visited: Tensor) -> None:
        super().__init__(len(visited))
        self.times = torch.cat([(visited.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])

    def grid(self, process: Process) -> Tensor:
        return self.times


def check_chain(fixture: Fixture) -> Iterator[Comparison]:
    """Every state of a guided deterministic chain with clamping."""
    model, x_start, states = model_of(fixture.config, clip=True), fixture.inputs["chain/x_T"], States()

    _, denoiser, _, _ = model.prepare(Batch(lr=x_start, up=x_start, key=["a"] * len(x_start)))
    visited = fixture.outputs["chain/timesteps"].sort(descending=True).values
    Visiting(visited)(denoiser, lambda like: x_start, states)
    yield Comparison("chain/x", states.stacked(), fixture.outputs["chain/x"], atol=1e-9)


class Given(Schedule):
    """The pipeline's table of signal levels, which it keeps in float32: 1 / alpha magnifies the difference to ours."""

    def __init__(self, levels: Tensor) -> None:
        super().__init__(len(levels))
        self.levels = torch.cat([torch.ones(1, dtype=torch.float64), levels.double()])

    def betas(self) -> Tensor:
        return 1 - self.levels[1:] / self.levels[:-1]


def check_latent(fixture: Fixture) -> Iterator[Comparison]:
    """The parts of the latent pipeline."""
    config, inputs, expected = fixture.config, fixture.inputs, fixture.outputs
    start, end = (float(value) for value in config["betas"].split()[-1].split(".."))
    table = ScaledLinear(len(expected["alphas_cumprod"]), start, end).alphas_cumprod()[1:]
    yield Comparison("alphas_cumprod", table, expected["alphas_cumprod"], atol=1e-6)
    process = VP(Given(expected["alphas_cumprod"]))
    received = received_attention(inputs["attn"].unflatten(0, (-1, config["heads"])))
    yield Comparison("received", received, expected["received"], atol=1e-6)
    x0, x_t = inputs["x0"], inputs["x_t"]
    t = ((inputs["t"].double() + 1) / process.steps).expand(len(x0))
    guidance = SelfAttentionGuidance("attn1", kernel=config["kernel"], sigma=config["sigma"])
    degraded = guidance.degrade(x0, [received.unflatten(1, tuple(config["map_size"]))])
    diffused = process.diffuse(x0=degraded, anchor=degraded, t=t, noise=inputs["eps"])
    yield Comparison("degraded", diffused, expected["degraded"], atol=1e-6)
    written: dict[str, Parameterization] = {"eps": Epsilon("index"), "v": Velocity("index")}
    for name, parameterization in written.items():
        clean = parameterization.x0(process, inputs[name], x_t=x_t, anchor=x_t, t=t)
        yield Comparison(f"pred_x0_{name}", clean, expected[f"pred_x0_{name}"], atol=1e-6)
        if name == "v":
            noise = (x_t - process.mean(x0=clean, anchor=x_t, t=t)) / expand(process.std(t), x_t)
            yield Comparison("pred_eps_v", noise, expected["pred_eps_v"], atol=1e-6)


CHECKS = {"sag_pixel": check_pixel, "sag_latent": check_latent}
