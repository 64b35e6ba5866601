"""SR3 as a module: times and levels in training, sizes, samplers after training, YODA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Clean, Epsilon
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Heun, Sampler
from lightning_modules.diffusion.schedules import Linear, Schedule
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.attention_maps import Constant, Sobel
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.sr3 import SR3
from tests.parity.harness import load, verdict
from tests.parity.sr3 import CHECKS

GOLDENS = Path(__file__).parents[1] / "goldens" / "sr3"
STEPS = 50
SIZES: dict[str, Any] = {"inner_channel": 8, "channel_mults": (1, 2), "attn_res": (8,), "res_blocks": 1}
SIZES |= {"norm_groups": 4, "image_size": 16}


def make_network(**sizes: Any) -> SR3UNet:
    """A network whose output depends on everything that it is shown."""
    torch.manual_seed(0)
    network = SR3UNet(**{**SIZES, **sizes})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def make_sr3(sizes: dict[str, Any] | None = None, schedule: Schedule | None = None, **arguments: Any) -> SR3:
    defaults: dict[str, Any] = {
        "network": make_network(**(sizes or {})),
        "process": VP(schedule or Linear(STEPS, 1e-4, 0.2), continuous=True),
        "parameterization": Epsilon("level"),
        "space": Pixels(),
        "sampler": Ancestral(4),
        "norm": "l1",
    }
    return SR3(**{**defaults, **arguments}).eval()


def make_batch(side: int = 16, keys: tuple[str, ...] = ("a", "b")) -> Batch:
    lr = torch.rand(len(keys), 3, side // 4, side // 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    up = nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(-1, 1)
    return Batch(lr=lr, up=up, hr=up.roll(1, dims=-1), key=list(keys))


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_outputs_are_those_of_the_public_implementation(path: Path) -> None:
    line, passed = verdict(load(path), CHECKS)
    assert passed, line


def seen_in_training(model: SR3, size: int) -> tuple[Tensor, Tensor]:
    """The levels and the times of one training step."""
    levels: list[Tensor] = []
    model.network.register_forward_hook(lambda _, inputs, __: levels.append(inputs[1]))
    step = model.training_step(make_batch(keys=tuple(map(str, range(size)))), 0)
    assert isinstance(step, dict)
    return levels[0], step["t"]


def test_each_sample_has_a_continuous_level_of_its_own() -> None:
    torch.manual_seed(0)
    model = make_sr3()
    levels, t = seen_in_training(model, 64)
    torch.testing.assert_close(levels, model.process.alpha(t).float())
    assert len(levels.unique()) == 64
    assert len((t * STEPS).ceil().unique()) > 20
    between = (t * STEPS).frac()
    assert between.min() < 0.2 and between.max() > 0.8


def test_shared_t_draws_one_bin_a_batch_and_levels_inside_it() -> None:
    torch.manual_seed(0)
    model = make_sr3(process=VP(Linear(STEPS, 1e-4, 0.2), continuous=True, shared_t=True))
    levels, t = seen_in_training(model, 16)
    assert len((t * STEPS).ceil().unique()) == 1
    assert len(levels.unique()) == 16


def test_the_ddpm_variant_is_told_the_integer_step() -> None:
    torch.manual_seed(0)
    process = VP(Linear(STEPS, 1e-4, 0.2))
    model = make_sr3({"conditioning": "index"}, process=process, parameterization=Epsilon("index"))
    labels, t = seen_in_training(model, 32)
    torch.testing.assert_close(labels, (t * STEPS).round().float() - 1)
    assert labels.min() >= 0 and labels.max() <= STEPS - 1


@pytest.mark.parametrize("parameterization", [Epsilon("index"), Clean("time")])
def test_a_label_that_the_network_is_not_built_for_is_refused(parameterization: Epsilon | Clean) -> None:
    label = parameterization.label
    with pytest.raises(ValueError, match=f"conditioning: level, but the parameterization has label: {label}"):
        make_sr3(parameterization=parameterization)


def test_training_on_a_size_beside_the_stride_is_refused_and_prediction_pads() -> None:
    model = make_sr3({"channel_mults": (1, 2, 2)})
    odd = make_batch(20)
    odd["up"], odd["hr"] = odd["up"][..., :18, :18], odd["hr"][..., :18, :18]
    with pytest.raises(ValueError, match=r"18x18 pixels.*multiples of 4"):
        model.training_step(odd, 0)
    assert make_sr3({"channel_mults": (1, 2, 2, 2)}).super_resolve(make_batch(20)).shape == (2, 3, 20, 20)


SAMPLERS: list[Sampler] = [
    Ancestral(STEPS),
    Ancestral(7, spacing="quadratic"),
    DDIM(7, eta=0.5),
    DPMSolverPlusPlus(7, spacing="karras"),
    DPMSolverPlusPlus(7, stochastic=True),
    Heun(4, spacing="karras"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name(VP(Linear(STEPS, 1e-4, 0.2))))
def test_any_sampler_serves_a_trained_model(sampler: Sampler) -> None:
    model, batch = make_sr3(), make_batch()
    images = model.super_resolve(batch, sampler)
    assert images.shape == batch["up"].shape
    assert images.isfinite().all()
    alone = [model.super_resolve(make_batch(keys=("a", "b")[: i + 1]), sampler)[i] for i in range(2)]
    torch.testing.assert_close(torch.stack(alone), images, atol=1e-4, rtol=1e-4)


def test_the_large_posterior_variance_and_clipping_are_options() -> None:
    batch = make_batch()
    usual = make_sr3().super_resolve(batch)
    large = make_sr3(sampler=Ancestral(4, variance="large"))
    for other in (large, make_sr3(space=Pixels(clip=False))):
        assert not torch.allclose(other.super_resolve(batch), usual, atol=1e-2)


def test_a_sampler_that_the_process_cannot_run_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match="50 steps; it cannot be sampled with 51"):
        make_sr3(sampler=Ancestral(STEPS + 1))
    with pytest.raises(TypeError, match="mean of RelayProcess is not a multiple of x0"):
        make_sr3(process=RelayProcess(), sampler=DPMSolverPlusPlus(5))


@pytest.mark.parametrize(("attention", "bound"), [(1.0, 0.1), (0.4, 0.6)])
def test_yoda_everywhere_is_sr3_itself(attention: float, bound: float) -> None:
    batch, region = make_batch(), YODA(Constant(attention), lower_bound=bound)
    assert torch.equal(make_sr3(region=region).super_resolve(batch), make_sr3().super_resolve(batch))
    losses = []
    for model in (make_sr3(region=region), make_sr3()):
        torch.manual_seed(3)
        step = model.training_step(batch, 0)
        assert isinstance(step, dict)
        losses.append(step["loss"])
    assert torch.equal(*losses)


def test_yoda_leaves_the_enlarged_image_where_nothing_diffuses() -> None:
    batch = make_batch()
    batch["attention"] = torch.zeros(2, 1, 16, 16)
    batch["attention"][..., :8] = 1
    model = make_sr3(region=YODA(Sobel(), lower_bound=0.01), sampler=Ancestral(STEPS))
    images, host = model.super_resolve(batch), make_sr3(sampler=Ancestral(STEPS)).super_resolve(batch)
    assert torch.equal(images[..., 8:], batch["up"][..., 8:])
    assert not torch.allclose(images[..., :8], batch["up"][..., :8], atol=0.1)
    assert not torch.allclose(images[..., :8], host[..., :8], atol=1e-3)  # the network sees the other half
