"""DoSSR's published weights: the ControlNet is taken over, everything around it is compared."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.parameterization import AnchorResidual, ShiftedEpsilon
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.space import Latent, Pixels
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.dossr import DoSSR, DoSSRStableDiffusion
from lightning_modules.networks.autoencoder import KLAutoencoder
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.sd21 import ControlledUNet, text_encoder
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.published.importing import import_weights
from tests.tiny.published import State, published_dossr


@pytest.fixture(scope="module")
def tiny(isolated_environment: Path) -> Path:
    return isolated_environment / "tiny"


def make_dossr(tiny: Path) -> DoSSRStableDiffusion:
    return DoSSRStableDiffusion(
        restorer=RRDBNet(4, nf=4, nb=1, gc=2),
        restorer_weights=str(tiny / "realesrnet.pth"),
        network=ControlledUNet(str(tiny / "sd21")),
        process=DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500),
        parameterization=ShiftedEpsilon(),
        space=Latent(KLAutoencoder(str(tiny / "sd21"))),
        sampler=DoSMultistep(2),
        norm="l1",
    ).eval()


def make_batch() -> Batch:
    lr = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(lr=lr, up=nn.functional.interpolate(lr, size=64, mode="bicubic"), key=["a", "b"])


@pytest.fixture(scope="module")
def published(tiny: Path) -> tuple[DoSSRStableDiffusion, State]:
    torch.manual_seed(3)
    source = make_dossr(tiny)
    for parameter in source.network.controlnet.parameters():
        nn.init.normal_(parameter, std=0.1)
    slide = 0.001 + 0.998 * torch.arange(500, dtype=torch.float64) / 499
    eta = torch.cat([(1 - torch.cos(math.pi * slide)) / 2, torch.ones(500, dtype=torch.float64)])
    return source, published_dossr(source, text_encoder(str(tiny / "sd21")).state_dict(), eta)


def test_a_published_dossr_checkpoint(
    tiny: Path, tmp_path: Path, published: tuple[DoSSRStableDiffusion, State]
) -> None:
    source, state = published
    torch.save({"state_dict": state}, tmp_path / "dossr_default.ckpt")
    target = make_dossr(tiny)
    import_weights(target, tmp_path / "dossr_default.ckpt")
    batch = make_batch()
    assert torch.equal(target.super_resolve(batch), source.super_resolve(batch))
    assert not torch.equal(make_dossr(tiny).super_resolve(batch), source.super_resolve(batch))


def scaled(key: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[key] = state[key] * 1.5 + 0.1

    return change


def surplus(state: State) -> None:
    state["discriminator.weight"] = torch.zeros(1)


def without_controlnet(state: State) -> None:
    for key in [key for key in state if key.startswith("control_model.")]:
        del state[key]


def incomplete(state: State) -> None:
    del state["control_model.zero_convs.0.0.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled("betas"), "betas: the file has 1000 values"),
        (scaled("lambdas"), "lambdas: the file shifts otherwise"),
        (scaled("model.diffusion_model.out.2.weight"), r"unet: conv_out\.weight in the file differs"),
        (scaled("first_stage_model.decoder.conv_in.weight"), r"autoencoder: decoder\.conv_in\.weight"),
        (scaled("cond_stage_model.model.ln_final.weight"), r"text encoder: final_layer_norm\.weight"),
        (scaled("preprocess_model.conv_body.weight"), r"restorer: trunk_conv\.weight"),
        (scaled("cond_encoder.encoder.conv_in.weight"), r"cond_encoder\.encoder\.conv_in\.weight differs"),
        (surplus, r"1 tensors are of no part of DoSSR, such as discriminator\.weight"),
        (without_controlnet, r"no complete DoSSR checkpoint: nothing in it begins with control_model\."),
        (incomplete, r"missing network\.controlnet\.controlnet_down_blocks\.0\.bias"),
    ],
)
def test_a_published_checkpoint_of_another_configuration(
    tiny: Path,
    tmp_path: Path,
    published: tuple[DoSSRStableDiffusion, State],
    change: Callable[[State], None],
    message: str,
) -> None:
    state = dict(published[1])
    change(state)
    torch.save(state, tmp_path / "dossr.ckpt")
    with pytest.raises(CheckpointError, match=rf"dossr\.ckpt: .*{message}"):
        import_weights(make_dossr(tiny), tmp_path / "dossr.ckpt")


def test_weights_stored_in_half_precision_are_the_same(
    tiny: Path, tmp_path: Path, published: tuple[DoSSRStableDiffusion, State]
) -> None:
    frozen = ("model.diffusion_model.", "first_stage_model.", "cond_encoder.", "preprocess_model.")
    state = {key: value.half() if key.startswith(frozen) else value for key, value in published[1].items()}
    torch.save(state, tmp_path / "half.ckpt")
    target = make_dossr(tiny)
    import_weights(target, tmp_path / "half.ckpt")
    expected = published[0].network.controlnet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in target.network.controlnet.state_dict().items())


def test_dossr_on_pixels_has_no_published_weights(
    tmp_path: Path, published: tuple[DoSSRStableDiffusion, State]
) -> None:
    torch.save(published[1], tmp_path / "dossr.ckpt")
    model = DoSSR(
        network=SR3UNet(inner_channel=16, channel_mults=(1,), res_blocks=1, norm_groups=8, conditioning="index"),
        process=DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500),
        parameterization=AnchorResidual("index"),
        space=Pixels(clip=False),
        sampler=DoSMultistep(5),
    )
    with pytest.raises(CheckpointError, match=r"dossr\.ckpt: .*give configs/dossr_sd21\.yaml"):
        import_weights(model, tmp_path / "dossr.ckpt")
