"""EDM and Relay Diffusion as methods: hooks, sampling, overlays."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.guidance import SelfAttentionGuidance
from lightning_modules.diffusion.parameterization import Preconditioned
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.spacing import time_at
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.edm import EDM
from lightning_modules.networks.attention_maps import Constant, Sobel
from lightning_modules.networks.unet_adm import ADMUNet
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.relay import Relay
from tests.parity.harness import States


def network(in_channels: int = 3) -> ADMUNet:
    torch.manual_seed(0)
    unet = ADMUNet(
        img_resolution=16,
        in_channels=in_channels,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(),
        channels_per_head=8,
        dropout=0.0,
    )
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    return unet


def method(kind: type[EDM] | type[Relay] = Relay, **changes: Any) -> DiffusionModule:
    process = EDMProcess() if kind is EDM else RelayProcess()
    arguments: dict[str, Any] = {
        "network": network(),
        "process": process,
        "parameterization": Preconditioned(),
        "space": Pixels(clip=False),
        "sampler": EDMHeun(3) if kind is EDM else RelayHeun(10),
        "condition_on": "none",
    }
    return kind(**{**arguments, **changes}).eval()


def batch(count: int = 2, side: int = 16, scale: int = 4) -> Batch:
    hr = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    lr = avg_pool2d(hr, scale)
    up = interpolate(lr, scale_factor=float(scale), mode="bicubic")
    return Batch(hr=hr, lr=lr, up=up, key=[f"image/{index}" for index in range(count)])


class Oracle(nn.Module):
    """A network that knows the image, and writes what the preconditioning asks for."""

    stride = 1

    def __init__(self, hr: Tensor) -> None:
        super().__init__()
        self.hr = hr

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        sigma = (4 * label).exp().view(-1, 1, 1, 1)
        variance = sigma**2 + 0.25
        return (self.hr - 0.25 / variance.sqrt() * x) * variance.sqrt() / (0.5 * sigma)


@pytest.mark.parametrize("kind", [EDM, Relay])
def test_a_network_that_knows_the_image_gives_it_back(kind: type[EDM] | type[Relay]) -> None:
    images = batch()
    assert torch.allclose(method(kind, network=Oracle(images["hr"])).super_resolve(images), images["hr"], atol=2e-5)


def test_relay_starts_from_repeated_pixels_whatever_the_data_enlarged_with() -> None:
    images = batch()
    start = method().start_image(images)
    assert torch.equal(start[..., ::4, ::4], images["lr"])
    assert torch.equal(start, images["lr"].repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2))
    assert not torch.allclose(start, images["up"])


def test_images_that_are_no_averages_are_named_once(recwarn: pytest.WarningsRecorder) -> None:
    averages, others = batch(), batch()
    averages["lr"] = ((averages["lr"] + 1) * 127.5).round() / 127.5 - 1
    others["lr"] = others["hr"][..., ::4, ::4]
    for images, said in ((averages, 0), (others, 1)):
        model = method()
        for _ in range(2):
            model.start_image(images)
        told = [str(warning.message) for warning in recwarn if "grey levels" in str(warning.message)]
        assert len(told) == said
    assert "averages of 4x4 pixels" in told[0] and "configs/data/degradation/area.yaml" in told[0]


@pytest.mark.parametrize(("condition", "expected"), [("none", set()), ("up", {"image"})])
def test_the_network_is_shown_what_the_condition_says(condition: Any, expected: set[str]) -> None:
    images = batch()
    model = method(condition_on=condition, network=network(3 if condition == "none" else 6))
    assert set(model.condition(*model.anchored(images))) == expected
    assert model.super_resolve(images).shape == images["hr"].shape
    model.training_step(images, 0)


def test_edm_trains_and_samples_with_the_networks_of_other_methods() -> None:
    images, edm = batch(), Preconditioned(label_scale=250.0)
    unet = SR3UNet(
        inner_channel=8, channel_mults=(1, 2), attn_res=(), res_blocks=1, norm_groups=4, conditioning="index"
    )
    model = method(EDM, condition_on="up", network=unet, parameterization=edm)
    model.training_step(images, 0)
    assert model.super_resolve(images).shape == images["hr"].shape


def test_a_network_without_room_for_the_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="in_channels=3 but got 6"):
        method(condition_on="up").super_resolve(batch())


def test_a_low_resolution_image_of_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image/0: the low-resolution image is 8x8 and the target 16x16.*4x4"):
        method().super_resolve(batch(scale=2))
    with pytest.raises(ValueError, match="18x18 pixels do not divide into patches of 4x4"):
        images = batch()
        model = method()
        model.process.mean(x0=torch.zeros(1, 3, 18, 18), anchor=images["hr"], t=torch.tensor([0.5]))


def test_back_projection_gives_every_patch_the_average_of_its_pixel() -> None:
    images = batch()
    projected = method(back_projection=True)
    assert torch.allclose(avg_pool2d(projected.enlarge(images, None), 4), images["lr"], atol=1e-6)
    assert not torch.allclose(avg_pool2d(method().enlarge(images, None), 4), images["lr"], atol=1e-2)
    assert projected.protocol() == "relayheun-4-below-0.9+back-projection"


def test_odd_sizes_are_padded_and_cropped_back() -> None:
    images = batch(1, side=20)
    images["lr"], images["up"] = images["lr"][..., :3], images["up"][..., :12]
    assert method().super_resolve(images).shape == (1, 3, 20, 12)


def test_an_image_is_a_function_of_its_key_alone() -> None:
    images, model = batch(), method()
    alone = Batch(lr=images["lr"][1:], up=images["up"][1:], key=images["key"][1:])
    assert torch.allclose(model.super_resolve(images)[1:], model.super_resolve(alone), atol=1e-5)


def test_yoda_that_lets_every_pixel_diffuse_changes_nothing() -> None:
    images = batch()
    everywhere = method(region=YODA(Constant(1.0), lower_bound=1.0))
    assert torch.equal(everywhere.super_resolve(images), method().super_resolve(images))


def test_yoda_keeps_waiting_pixels_at_the_low_resolution_image() -> None:
    images = batch()
    process = RelayProcess(sigma_start=0.5)
    model = method(region=YODA(Constant(0.0), lower_bound=1e-6), process=process, sampler=RelayHeun(30))
    _, denoiser, randn, fill = model.prepare(images)
    states = States(fill)
    model.sampler(denoiser, randn, states)
    *waiting, last = states.kept

    # The last step begins at the end of the ramp, where everything has joined; until then there is the anchor alone.
    _, _, _, again = model.prepare(images)
    assert again is not None
    for state, (t, s) in zip(waiting, pairwise(model.sampler.grid(process)), strict=False):
        anything = torch.full_like(state, 7.0)
        torch.testing.assert_close(state, again(anything, t=t.expand(2), s=s.expand(2)), rtol=0, atol=0)
    assert not torch.allclose(last.float(), denoiser.anchor, atol=1e-3)
    masked = method(region=YODA(Sobel(), lower_bound=0.3))
    assert not torch.allclose(masked.super_resolve(images), method().super_resolve(images))
    masked.training_step(images, 0)


def test_self_attention_guidance_reads_the_innermost_attention_and_is_nothing_at_scale_zero() -> None:
    images, layer = batch(side=32), "dec.8x8_in0.attention"
    plain = method().super_resolve(images)
    guided = method(guidance=[SelfAttentionGuidance(layer, scale=0.5, kernel=9, sigma=1.0)])
    assert not torch.allclose(guided.super_resolve(images), plain)
    off = method(guidance=[SelfAttentionGuidance(layer, scale=0.0, kernel=9)])
    assert torch.equal(off.super_resolve(images), plain)
    with pytest.raises(ValueError, match=r"no self-attention at layer: mid; it has .*dec.8x8_in0.attention"):
        method(guidance=[SelfAttentionGuidance("mid")])


def test_self_attention_guidance_stays_on_the_blurred_marginal() -> None:
    images, asked = batch(side=32), list[Tensor]()
    model, process = method(), RelayProcess()
    _, estimate, _, _ = model.prepare(images)
    guidance = SelfAttentionGuidance(mask="uniform", scale=0.5, kernel=9, sigma=1.0)

    @dataclass(frozen=True)
    class Recorded(Denoiser):
        def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
            asked.append(x_t)
            return super().estimate(x_t, t)

    guided = Recorded(**{**vars(estimate), "guidance": (guidance,)})
    t = time_at(process, torch.full((2,), 0.6, dtype=torch.float64))
    x_t = process.start(anchor=model.start_image(images), t=t, noise=process.noise(images["hr"]))
    with torch.no_grad():
        guided(x_t, t)
        x0 = estimate(x_t, t)
    blurred = gaussian_blur2d(x0, (9, 9), (1.0, 1.0))
    noise = x_t - process.mean(x0=x0, anchor=x0, t=t)
    assert torch.allclose(asked[1], process.mean(x0=blurred, anchor=x0, t=t) + noise, atol=1e-5)
