"""YODA: masks, and trajectories of its hosts under a region."""

from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.schedules import Schedule
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.attention_maps import Constant
from tests.parity import sr3, srdiff_trajectory
from tests.parity.harness import Comparison, Fixture, States, handed_out
from tests.parity.sr3 import sr3_of
from tests.parity.srdiff_trajectory import enlarge, srdiff_of


def check_masks(fixture: Fixture) -> Iterator[Comparison]:
    """The mask at every t, what it sums to, and the share of pixels that it keeps."""
    steps, region = fixture.config["T"], YODA(Constant(1.0), lower_bound=fixture.config["l"])
    attention = fixture.inputs["A"][None, None]
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    masks = region.mask(attention.expand(steps, -1, -1, -1), times)[:, 0]
    yield Comparison("masks", masks, fixture.outputs["masks"])
    yield Comparison("t_star", masks.sum(0), fixture.outputs["t_star"])
    active = masks.double().mean(dim=(1, 2))
    yield Comparison("active_fraction", active, fixture.outputs["active_fraction"], atol=1e-12)


def draws(fixture: Fixture) -> dict[str, list[Tensor]]:
    """By purpose: x_T and the draw of each step, and the draws that the waiting pixels take."""
    return {"sampler": [fixture.inputs["x_T"], *fixture.inputs["z_sr"]], "region": list(fixture.inputs["z_lr"])}


def states_of(model: DiffusionModule, batch: Batch, fixture: Fixture) -> Tensor:
    """The state after every blend, `[T,B,3,H,W]`, under the fixture's map and noise."""
    batch["attention"] = fixture.inputs["A"]
    noise = draws(fixture)
    with patch("lightning_modules.sampling.KeyedNoise.of", lambda keys, purpose, device: handed_out(noise[purpose])):
        _, denoiser, randn, fill = model.prepare(batch)
    assert fill is not None
    states = States(fill)
    model.sampler(denoiser, randn, states)
    return states.stacked()


def check_srdiff(fixture: Fixture) -> Iterator[Comparison]:
    """SRDiff under YODA: the state after every blend, and the image."""
    model = srdiff_of(fixture, YODA(Constant(1.0), lower_bound=fixture.config["l"]))
    batch = srdiff_trajectory.batch_of(fixture)
    states = states_of(model, batch, fixture)
    yield Comparison("states", states, fixture.outputs["states"], atol=1e-4)
    image = enlarge(model, batch, **draws(fixture))
    yield Comparison("img_sr", image, fixture.outputs["img_sr"], atol=1e-4)


class Given(Schedule):
    """Betas as a fixture lists them."""

    def __init__(self, betas: list[float]) -> None:
        super().__init__(len(betas))
        self.given = betas

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return torch.tensor(self.given, dtype=torch.float64)


def check_sr3(fixture: Fixture) -> Iterator[Comparison]:
    """SR3 under YODA: the mask of every step, and the state after every blend."""
    steps, region = fixture.config["T"], YODA(Constant(1.0), lower_bound=fixture.config["l"])
    model = sr3_of(fixture, Given(fixture.config["betas"]), region)
    times = (steps - torch.arange(steps, dtype=torch.float64)) / steps
    masks = torch.stack([region.mask(fixture.inputs["A"], t.expand(len(fixture.inputs["A"]))) for t in times])
    yield Comparison("masks", masks, fixture.outputs["masks"])
    states = states_of(model, sr3.batch_of(fixture), fixture)
    yield Comparison("states", states, fixture.outputs["states"], atol=1e-4)


CHECKS = {
    "yoda_masks": check_masks,
    "yoda_srdiff_trajectory": check_srdiff,
    "yoda_sr3_trajectory": check_sr3,
}
