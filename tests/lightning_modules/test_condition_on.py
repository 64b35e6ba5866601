"""What `condition_on` shows the network, in training and in sampling."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.parameterization import Clean
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import DDIM
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP

Condition = Literal["up", "lr", "none"]


class Recorder(nn.Module):
    """Remembers what it was shown."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shown: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, label: Tensor, **condition: Tensor) -> Tensor:
        self.shown.append(condition)
        return self.weight * x


def method(condition_on: Condition, process: Process | None = None, of: type = DiffusionModule) -> Any:
    process = process or VP(Cosine(10))
    return of(Recorder(), process, Clean("time"), Pixels(clip=True), DDIM(3), condition_on=condition_on)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lr, up, hr = (torch.rand(2, 3, side, side, generator=generator) * 2 - 1 for side in (4, 16, 16))
    return Batch(lr=lr, up=up, hr=hr, key=["a", "b"])


@pytest.mark.parametrize("condition_on", ["up", "lr", "none"])
def test_the_network_is_shown_that_image_or_nothing(condition_on: Condition) -> None:
    model, images = method(condition_on), batch()
    model.training_losses(images)
    model.super_resolve(images)
    assert len(model.network.shown) == 1 + 3
    for condition in model.network.shown:
        if condition_on == "none":
            assert condition == {}
        else:
            assert condition.keys() == {"image"}
            assert torch.equal(condition["image"], images[condition_on])


def test_the_enlarged_image_is_shown_where_nothing_is_said() -> None:
    model = DiffusionModule(Recorder(), VP(Cosine(10)), Clean("time"), Pixels(clip=True), DDIM(3))
    assert model.condition_on == "up"


@pytest.mark.parametrize("condition_on", ["lr", "none"])
def test_a_method_that_decides_itself_refuses_another_choice(condition_on: Condition) -> None:
    class Decides(DiffusionModule):
        def condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
            return {"hint": anchor}

    with pytest.raises(ValueError, match="Decides decides itself what its network is shown; leave condition_on out"):
        method(condition_on, of=Decides)
    model, images = method("up", of=Decides), batch()
    model.super_resolve(images)
    assert all(torch.equal(condition["hint"], images["up"]) for condition in model.network.shown)


def test_only_a_process_from_noise_shown_nothing_generates() -> None:
    assert method("none").generates
    assert not method("up").generates
    assert not method("none", ResidualShift(10, 0.04)).generates
