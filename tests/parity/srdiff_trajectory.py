"""Kind `srdiff_trajectory`: the whole of SRDiff, from its published state dict to the image and the loss."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon, Noised
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Residual
from lightning_modules.diffusion.vp import VP
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from lightning_modules.published.srdiff import adapt
from lightning_modules.srdiff import SRDiff
from tests.parity.harness import Comparison, Fixture, States, handed_out


def srdiff_of(fixture: Fixture, region: YODA | None = None) -> SRDiff:
    """The module of a fixture's configuration, with the fixture's weights imported."""
    config = fixture.config
    scale, nf, nb = config["sr_scale"], config["rrdb_num_feat"], config["rrdb_num_block"]
    network = SRDiffUNet(scale, config["hidden_size"], config["unet_dim_mults"], nf, nb)
    model = SRDiff(
        encoder=RRDBNet(scale, nf, nb),
        network=network,
        process=VP(Cosine(config["T"], config.get("beta_s", 0.008))),
        parameterization=Epsilon("index"),
        space=Residual(config.get("res_rescale", 2.0)),
        sampler=Ancestral(config["T"]),
        region=region,
        norm="l1",
    )
    model.load_state_dict(adapt(model, fixture.weights))
    return model.eval()


def enlarge(model: SRDiff, batch: Batch, **draws: Iterable[Tensor]) -> Tensor:
    """What the model makes of the batch with recorded draws for each purpose that it draws noise for."""
    sources = {purpose: handed_out(tensors) for purpose, tensors in draws.items()}
    with patch("lightning_modules.sampling.KeyedNoise.of", lambda keys, purpose, device: sources[purpose]):
        return model.enlarge(batch, None)


def batch_of(fixture: Fixture) -> Batch:
    """The fixture's images as a batch."""
    lr = fixture.inputs["img_lr"]
    batch = Batch(lr=lr, up=fixture.inputs["img_lr_up"], key=[str(i) for i in range(len(lr))])
    if "hr" in fixture.inputs:
        batch["hr"] = fixture.inputs["hr"]
    return batch


def check_trajectory(fixture: Fixture) -> Iterator[Comparison]:
    """Every state, every estimate, the image, and the loss at every step."""
    model, batch, expected = srdiff_of(fixture), batch_of(fixture), fixture.outputs
    states, estimates = States(), []

    def recorded(x0: Tensor) -> Tensor:
        estimates.append(model.space.bound(x0))
        return estimates[-1]

    _, denoiser, _, _ = model.prepare(batch)
    model.sampler(replace(denoiser, bound=recorded), handed_out(fixture.inputs["noise"]), states)
    decode = torch.vmap(lambda state: model.space.decode(state, batch["up"]))
    yield Comparison("res_states", states.stacked(), expected["res_states"], atol=1e-4)
    yield Comparison("res_x0", torch.stack(estimates), expected["res_x0"], atol=1e-4)
    yield Comparison("img_states", decode(states.stacked()), expected["img_states"], atol=1e-4)
    yield Comparison("img_x0", decode(torch.stack(estimates)), expected["img_x0"], atol=1e-4)
    image = enlarge(model, batch, sampler=fixture.inputs["noise"])
    yield Comparison("img_sr", image, expected["img_sr"], atol=1e-4)
    yield Comparison("rrdb_out", model.encoder(batch["lr"]), expected["rrdb_out"], atol=1e-5)
    yield from check_training(fixture, model)


def check_training(fixture: Fixture, model: SRDiff) -> Iterator[Comparison]:
    """The residual, and the training loss with every sample at the same step."""
    batch, steps = batch_of(fixture), fixture.config["T"]
    x0 = model.space.encode(batch["hr"], batch["up"])
    yield Comparison("hr_residual", x0, fixture.outputs["hr_residual"], atol=1e-6)
    batch, anchor = model.anchored(batch)
    yield Comparison("anchor", anchor, torch.zeros_like(x0))
    denoiser, noise, losses = model.denoiser(model.condition(batch, anchor), anchor), fixture.inputs["train_noise"], []
    for index in range(steps):
        t = torch.full((len(x0),), (index + 1) / steps, dtype=torch.float64)
        x_t = model.process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        noised = Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)
        losses.append(model.diffusion_loss(noised, denoiser.output(x_t, t), None))
    yield Comparison("train_loss_per_t", torch.stack(losses), fixture.outputs["train_loss_per_t"], atol=1e-5)


CHECKS = {"srdiff_trajectory": check_trajectory}
