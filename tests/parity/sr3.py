"""Kinds `sr3_unet`, `ddpm_unet`, `sr3_trajectory`: SR3's network, and its sampler and loss around it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon, Noised
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Constant, Cosine, Harmonic, Linear, ScaledLinear, Schedule, WarmUp
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.unet_sr3 import Conditioning, SR3UNet
from lightning_modules.published import schedule_table
from lightning_modules.sr3 import SR3
from tests.parity.harness import Comparison, Fixture, States, handed_out

SIZES = ("inner_channel", "channel_mults", "attn_res", "res_blocks", "norm_groups", "dropout", "image_size")
CHANNELS = ("in_channel", "out_channel")


def network_of(fixture: Fixture, conditioning: Conditioning) -> SR3UNet:
    """The network of a fixture's configuration, with fresh weights."""
    sizes = {name: fixture.config[name] for name in SIZES + CHANNELS}
    return SR3UNet(**sizes, conditioning=conditioning, orthogonal_init=False).eval()


def check_network(fixture: Fixture) -> Iterator[Comparison]:
    """One evaluation; `x_in` holds the enlarged image first, the noisy one second."""
    network = network_of(fixture, "index" if "t" in fixture.inputs else "level")
    network.load_state_dict(fixture.weights)
    label = fixture.inputs["t" if "t" in fixture.inputs else "noise_level"].flatten()
    *image, x = fixture.inputs["x_in"].split(fixture.config["out_channel"], dim=1)
    output, expected = network(x, label, *image), fixture.outputs["noise_pred"]
    yield Comparison("noise_pred", output, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


def schedule_of(options: Mapping[str, Any], steps: int) -> Schedule:
    """A schedule by its published name."""
    start, end = options.get("linear_start", 1e-4), options.get("linear_end", 2e-2)
    schedules: dict[str, Schedule] = {
        "linear": Linear(steps, start, end),
        "quad": ScaledLinear(steps, start, end),
        "warmup10": WarmUp(steps, start, end, 0.1),
        "warmup50": WarmUp(steps, start, end, 0.5),
        "const": Constant(steps, end),
        "jsd": Harmonic(steps),
        "cosine": Cosine(steps),
    }
    return schedules[options["schedule"]]


def sr3_of(fixture: Fixture, schedule: Schedule, region: YODA | None = None) -> SR3:
    """The module of a fixture's configuration, with the fixture's weights."""
    model = SR3(
        network=network_of(fixture, "level"),
        process=VP(schedule, continuous=True),
        parameterization=Epsilon("level"),
        space=Pixels(clip=True),
        sampler=Ancestral(fixture.config["T"]),
        region=region,
        norm="l1",
    )
    model.network.load_state_dict(fixture.weights)
    return model.eval()


def batch_of(fixture: Fixture) -> Batch:
    """The fixture's images as a batch."""
    up = fixture.inputs["x_up"]
    batch = Batch(lr=up, up=up, key=[str(i) for i in range(len(up))])
    return Batch(**batch, hr=fixture.inputs["hr"]) if "hr" in fixture.inputs else batch


def check_trajectory(fixture: Fixture) -> Iterator[Comparison]:
    """Schedule, noise levels, predicted noise and state at every step, and one value of the training loss."""
    expected, batch = fixture.outputs, batch_of(fixture)
    model = sr3_of(fixture, schedule_of(fixture.config["schedule"], fixture.config["T"]))
    table = schedule_table.table(model.process.schedule)
    for name in ("betas", "alphas_cumprod"):
        yield Comparison(name, table[name].float(), expected[name], rtol=1e-6)
    states, levels, predictions = States(), [], []

    def record(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        levels.append(inputs[1][:, None])
        predictions.append(output)

    model.network.register_forward_hook(record)
    _, denoiser, _, _ = model.prepare(batch)
    draws = [*fixture.inputs["noise"], torch.zeros_like(batch["up"])]  # the last step multiplies its draw by 0
    model.sampler(denoiser, handed_out(draws), states)
    yield Comparison("noise_level", torch.stack(levels), expected["noise_level"], atol=1e-6)
    yield Comparison("eps", torch.stack(predictions), expected["eps"], atol=1e-4)
    yield Comparison("states", states.stacked(), expected["states"], atol=1e-4)
    if "hr" in batch:
        yield from check_training(fixture, model, batch)


def check_training(fixture: Fixture, model: SR3, batch: Batch) -> Iterator[Comparison]:
    """The loss at continuous levels inside the bin `train_t`."""
    level, process = fixture.inputs["train_sqrt_alpha_bar"].double(), model.process
    above, below = process.alpha((fixture.config["train_t"] - torch.arange(2)) / process.steps)
    t = (fixture.config["train_t"] - (level - above) / (below - above)) / process.steps
    noise = fixture.inputs["train_noise"]
    x_t = process.diffuse(x0=batch["hr"], anchor=batch["up"], t=t, noise=noise)
    noised = Noised(x_t=x_t, x0=batch["hr"], anchor=batch["up"], noise=noise, t=t)
    batch, anchor = model.anchored(batch)
    output = model.denoiser(model.condition(batch, anchor), anchor).output(x_t, t)
    loss = model.diffusion_loss(noised, output, None)
    yield Comparison("train_loss_mean", loss, fixture.outputs["train_loss_mean"], atol=1e-5)
    yield Comparison("train_loss_sum", loss * noise.numel(), fixture.outputs["train_loss_sum"], rtol=1e-5)


CHECKS = {"sr3_unet": check_network, "ddpm_unet": check_network, "sr3_trajectory": check_trajectory}
