"""YODA whose network is evaluated around the tiles that diffuse, against the same map evaluated on whole states."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.guidance import ClassifierFreeGuidance, SelfAttentionGuidance
from lightning_modules.diffusion.parameterization import Clean, Epsilon, Preconditioned
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Heun, Sampler
from lightning_modules.diffusion.schedules import Linear
from lightning_modules.diffusion.space import Latent, Pixels
from lightning_modules.diffusion.vp import VP, DomainShift
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.attention_maps import Constant
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.skipping.sampler import Pattern, SkipSampler

TILE, HALO = 8, 8
ALWAYS, NEVER = 1e-9, 1e9  # values of `dense_above` under which whole states are always, or never, evaluated


class Convolutions(nn.Module):
    """A small network with a stride of 2, whose receptive field of 7 pixels each way the halo covers."""

    stride = 2
    conditioning = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, label: Tensor, image: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        h = torch.tanh(self.first(torch.cat([x, image], dim=1)) + 0.1 * label.view(-1, 1, 1, 1))
        out: Tensor = self.last(torch.tanh(self.up(torch.tanh(self.down(h)))))
        return out

    @property
    def pixels(self) -> int:
        return sum(batch * height * width for batch, _, height, width in self.shapes)


class Blank(DiffusionModule):
    """A method with a null condition."""

    def null_condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        return {"image": torch.zeros_like(batch["up"])}


class Halving(nn.Module):
    """An autoencoder whose latents are averages of 2x2 pixels."""

    factor, scale = 2, 1.0

    def encode(self, image: Tensor, randn: Randn | None) -> Tensor:
        return nn.functional.avg_pool2d(image, 2)

    def decode(self, latent: Tensor) -> Tensor:
        return nn.functional.interpolate(latent, scale_factor=2.0)


def vp() -> VP:
    return VP(Linear(100, 1e-3, 0.2))


def method(dense_above: float | None = None, *, process: Process | None = None, **options: Any) -> DiffusionModule:
    yoda = {"lower_bound": 0.1, "tile": TILE, "halo": HALO, **options.pop("yoda", {})}
    arguments: dict[str, Any] = {
        "network": Convolutions(),
        "process": process or vp(),
        "parameterization": Clean(label="level"),
        "space": Pixels(),
        "sampler": DDIM(5),
        "region": YODA(Constant(), dense_above=dense_above, **yoda) if yoda["tile"] else YODA(Constant(), **yoda),
    }
    return Blank(**{**arguments, **options}).eval()


def images(height: int = 36, width: int = 44, count: int = 2) -> Batch:
    """Images whose maps have tiles of many values; their sides are no multiples of a tile."""
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(count, 3, height // 2, width // 2, generator=generator) * 2 - 1
    coarse = torch.rand(count, 1, -(-height // TILE), -(-width // TILE), generator=generator)
    attention = coarse.repeat_interleave(TILE, -2).repeat_interleave(TILE, -1)[..., :height, :width]
    up = nn.functional.interpolate(lr, scale_factor=2.0, mode="bilinear")
    return Batch(lr=lr, up=up, key=[f"image {index}" for index in range(count)], attention=attention)


def both(batch: Batch | None = None, **options: Any) -> tuple[Tensor, Tensor, int, int]:
    """Results evaluated whole and around tiles, and how many pixels the network saw for each."""
    results = []
    for dense_above in (ALWAYS, NEVER):
        torch.manual_seed(0)
        model = method(dense_above, **options)
        sr = model.super_resolve(images() if batch is None else batch)
        assert isinstance(model.network, Convolutions)
        results.append((sr, model.network.pixels))
    (dense, dense_pixels), (sparse, sparse_pixels) = results
    return dense, sparse, dense_pixels, sparse_pixels


SHIFT = DomainShift(Linear(100, 1e-3, 0.1), shift_steps=50)
RUNS: dict[str, dict[str, Any]] = {
    "ancestral": {"sampler": Ancestral(10)},
    "ddim": {"sampler": DDIM(10)},
    "ddim karras": {"sampler": DDIM(10, spacing="karras")},
    "dpm++": {"sampler": DPMSolverPlusPlus(10)},
    "dpm++ sde": {"sampler": DPMSolverPlusPlus(10, stochastic=True)},
    "heun": {"sampler": Heun(6)},
    "dos 3": {"sampler": DoSMultistep(8, 3)},
    "dos on a shifted domain": {"sampler": DoSMultistep(8, 2), "process": SHIFT},
    "residual shift": {"sampler": Ancestral(8), "process": ResidualShift(8, 0.04)},
    "edm": {"sampler": EDMHeun(6, churn=2.0, churn_range=(0.0, 3.0)), "process": EDMProcess(sigma_max=5.0)},
    "relay": {
        "sampler": RelayHeun(18),
        "process": RelayProcess(patch=2),
        "parameterization": Preconditioned(),
    },
    "skipping": {
        "sampler": SkipSampler(Pattern(torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) < 0.5), 4, 20)
    },
    "fixed noise": {"sampler": DDIM(10), "yoda": {"lr_noise": "fixed"}},
    "predicted noise": {"sampler": Ancestral(10), "parameterization": Epsilon("level")},
    "preconditioned": {
        "sampler": EDMHeun(6),
        "process": EDMProcess(sigma_max=5.0),
        "parameterization": Preconditioned(),
    },
    "classifier-free": {"guidance": [ClassifierFreeGuidance(2.0)]},
    "self-attention guidance": {"guidance": [SelfAttentionGuidance(mask="uniform", kernel=3, sigma=1.0)]},
    "both guidances": {
        "guidance": [
            ClassifierFreeGuidance(2.0),
            SelfAttentionGuidance(mask="uniform", kernel=3, sigma=1.0, branch="unconditional"),
        ]
    },
    "whole end": {"sampler": DDIM(3), "yoda": {"whole_end": True}},
    "latents": {"space": Latent(Halving()), "condition_on": "lr", "yoda": {"halo": 8}},
    "contiguous": {"channels_last": False},
    "one window at once": {"yoda": {"at_once": 1}},
}


@pytest.mark.parametrize("name", RUNS)
def test_windows_give_what_whole_states_give(name: str) -> None:
    options = {key: value for key, value in RUNS[name].items()}
    batch = images()
    if name == "latents":
        batch = images(72, 88)
    dense, sparse, dense_pixels, sparse_pixels = both(batch, **options)
    torch.testing.assert_close(sparse, dense, atol=2e-5, rtol=0)
    assert 0 < sparse_pixels != dense_pixels > 0


def test_fewer_pixels_are_evaluated_where_few_diffuse() -> None:
    batch = images(64, 96, count=1)
    batch["attention"] = torch.zeros_like(batch["attention"])
    batch["attention"][..., :8, :16] = 0.5
    dense, sparse, dense_pixels, sparse_pixels = both(batch, sampler=DDIM(10))
    torch.testing.assert_close(sparse, dense, atol=2e-5, rtol=0)
    # Two tiles join at 0.6 of the run, the other 94 at 0.1; every window has 24 x 24 pixels.
    assert dense_pixels == 6 * 64 * 96
    assert sparse_pixels == (5 * 2 + 96) * 24 * 24


def test_nothing_is_evaluated_where_nothing_diffuses() -> None:
    model, batch = method(NEVER, sampler=DDIM(10)), images()
    batch["attention"] = torch.full_like(batch["attention"], 0.3)
    model.super_resolve(batch)
    assert isinstance(model.network, Convolutions)
    assert model.network.pixels == 4 * 2 * 5 * 6 * 24 * 24


def test_a_halo_that_is_too_small_is_only_close() -> None:
    dense, sparse, *_ = both(sampler=DDIM(10), yoda={"halo": 2})
    difference = float((dense - sparse).abs().max())
    assert 1e-4 < difference < 0.2


@pytest.mark.parametrize("dense_above", [ALWAYS, NEVER, None])
@pytest.mark.parametrize(("attention", "lower_bound"), [(1.0, 0.1), (0.7, 0.3)])
def test_a_map_of_ones_is_bit_for_bit_the_host(dense_above: float | None, attention: float, lower_bound: float) -> None:
    batch = images()
    batch["attention"] = torch.full_like(batch["attention"], attention)
    host = method(region=None, yoda={"tile": None}, sampler=Ancestral(6)).super_resolve(batch)
    model = method(dense_above, yoda={"lower_bound": lower_bound, "tile": None}, sampler=Ancestral(6))
    if dense_above is not None:
        model = method(dense_above, yoda={"lower_bound": lower_bound, "tile": 48, "halo": 0}, sampler=Ancestral(6))
    assert torch.equal(model.super_resolve(batch), host)


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Each image decides by itself whether it is evaluated whole."""
    batch = images()
    batch["attention"][1] = 0.0
    batch["attention"][1, :, :8, :8] = 1.0
    model = method(1.0, sampler=Ancestral(6), yoda={"halo": 4})
    together = model.super_resolve(batch)
    for index in range(2):
        alone: Any = {key: value[index : index + 1] for key, value in batch.items()}
        torch.testing.assert_close(model.super_resolve(alone), together[index : index + 1], atol=1e-5, rtol=0)


def test_images_are_evaluated_whole_or_around_tiles_side_by_side() -> None:
    batch = images()
    batch["attention"][0] = 1.0
    batch["attention"][1] = 0.0
    batch["attention"][1, :, :8, :8] = 1.0
    model = method(1.0, sampler=DDIM(5))
    model.super_resolve(batch)
    assert isinstance(model.network, Convolutions)
    assert set(model.network.shapes) == {(1, 3, 36, 44), (1, 3, 24, 24)}


def test_tiles_of_large_photographs_without_anything_to_do_are_left_out() -> None:
    batch = images(64, 96, count=1)
    batch["attention"] = torch.zeros_like(batch["attention"])
    batch["attention"][..., :8, :8] = 1.0
    results, pixels = [], []
    for tile in (None, TILE):
        model = method(ALWAYS, sampler=DDIM(10), tile=32, overlap=16, yoda={"tile": tile})
        results.append(model.super_resolve(batch))
        assert isinstance(model.network, Convolutions)
        pixels.append(model.network.pixels)
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    # Three rows of five tiles, of which one holds the square that diffuses from the start and all diffuse at the end.
    assert pixels == [10 * 15 * 32 * 32, (9 + 15) * 32 * 32]


def test_break_even_is_measured_once_and_remembered() -> None:
    model, batch = method(sampler=DDIM(5)), images()
    assert model.region is not None and model.region.sparse is not None and isinstance(model.network, Convolutions)
    model.super_resolve(batch)
    first, measured = model.network.pixels, dict(model.region.sparse.measured)
    assert len(measured) == 1 and all(share > 0 for share in measured.values())
    model.network.shapes.clear()
    model.super_resolve(batch)
    assert model.region.sparse.measured == measured
    assert model.network.pixels < first


def test_bfloat16_stays_close() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        dense, sparse, *_ = both(sampler=DDIM(10))
    assert float((dense - sparse).square().mean()) < 4 * 10 ** (-6.0)


# Networks that compute statistics over the whole state.


def sr3_network() -> SR3UNet:
    torch.manual_seed(0)
    network = SR3UNet(inner_channel=8, channel_mults=(1, 2), attn_res=(), res_blocks=1, norm_groups=4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def squared_error(statistics: str, dense_above: float = NEVER, **options: Any) -> float:
    """Mean over pixels between whole states and windows, of a network that normalises over the whole state."""
    batch, results = images(), []
    batch["up"][..., :16, :] += 1.5  # so that parts differ from the whole
    for above in (ALWAYS, dense_above):
        model = method(above, network=sr3_network(), sampler=DDIM(25), yoda={"statistics": statistics, **options})
        results.append(model.super_resolve(batch))
    return float((results[0] - results[1]).square().mean())


def test_replayed_statistics_are_closer_than_those_of_a_tile() -> None:
    own, replayed = squared_error("tile"), squared_error("replay", refresh=2)
    assert 0 < replayed < own / 2


def test_statistics_replayed_at_once_are_those_of_the_whole_state() -> None:
    network = sr3_network()
    from lightning_modules.diffusion.group_statistics import GroupStatistics

    x, label, image = torch.randn(2, 3, 16, 16), torch.rand(2), torch.randn(2, 3, 16, 16)
    statistics, samples = GroupStatistics(3, refresh=2), torch.tensor([2, 0])
    with statistics.recording(network, samples):
        expected = network(x, label, image)
    with statistics.replaying(network, samples.flip(0)):
        found = network(x.flip(0), label.flip(0), image.flip(0))
    torch.testing.assert_close(found.flip(0), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(network(x, label, image), expected)
    assert [statistics.due(image) for image in range(3)] == [False, True, False]


def test_statistics_are_taken_again_after_a_while() -> None:
    model = method(NEVER, network=sr3_network(), sampler=DDIM(10), yoda={"statistics": "replay", "refresh": 3})
    shapes: list[tuple[int, ...]] = []
    model.network.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[-2:])))
    batch = images(count=1)
    batch["attention"] = torch.full_like(batch["attention"], 0.0)
    batch["attention"][..., :8, :8] = 1.0
    model.super_resolve(batch)
    assert [shape == (36, 44) for shape in shapes[:9]] == [True, False, False, False] * 2 + [True]


@pytest.mark.parametrize("sampler", [DDIM(10), SkipSampler(Pattern([True, False, True, False, True]), 4, 20)])
def test_replayed_statistics_under_skipping_and_guidance_are_finite(sampler: Sampler) -> None:
    options: dict[str, Any] = {"sampler": sampler, "guidance": [ClassifierFreeGuidance(2.0)]}
    model = method(NEVER, network=sr3_network(), yoda={"statistics": "replay"}, **options)
    assert model.super_resolve(images()).isfinite().all()


def test_the_attention_that_guidance_reads_is_that_of_the_whole_state() -> None:
    guidance = [SelfAttentionGuidance(kernel=3, sigma=1.0)]
    model = method(NEVER, network=sr3_network(), yoda={"statistics": "tile"}, guidance=guidance)
    assert model.super_resolve(images()).isfinite().all()


# Bad input.


@pytest.mark.parametrize(
    ("yoda", "message"),
    [
        ({"tile": 7}, "tile: 7 must be a multiple of Convolutions's stride, 2"),
        ({"halo": 3}, "halo: 3 must be a multiple of Convolutions's stride, 2"),
        ({"halo": -2}, "halo: -2 at least 0"),
        ({"tile": 0}, "tile: 0"),
        ({"statistics": "replay"}, "Convolutions has no GroupNorm"),
        ({"tile": None, "statistics": "tile"}, "set tile, or leave them out"),
    ],
)
def test_options_that_do_not_fit_the_network_are_refused(yoda: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(yoda=yoda)


@pytest.mark.parametrize(
    ("yoda", "options", "message"),
    [
        ({}, {}, "set region.init_args.statistics to tile"),
        ({"statistics": "replay"}, {"tile": 16, "overlap": 8}, "model.init_args.tile prevents"),
        ({"statistics": "replay"}, {"compile": True}, "model.init_args.compile prevents"),
    ],
)
def test_global_statistics_must_be_seen_to(yoda: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(network=sr3_network(), yoda=yoda, **options)


def test_a_halo_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image 0: .*halo: 40 is larger than the image"):
        method(yoda={"halo": 40}).super_resolve(images())


def test_tiles_that_split_pixels_of_the_low_resolution_image_are_refused() -> None:
    batch = images(48, 48)
    batch["lr"] = batch["lr"][..., ::2, ::2]
    with pytest.raises(ValueError, match="a low-resolution image that is 4 times smaller: choose multiples of 4"):
        method(yoda={"tile": 6, "halo": 4}).super_resolve(batch)


def test_a_map_of_another_size_is_refused() -> None:
    batch = images()
    batch["attention"] = batch["attention"][..., :20]
    with pytest.raises(ValueError, match="image 0: the attention map is 20x36 pixels and the enlarged image 44x36"):
        method().super_resolve(batch)
