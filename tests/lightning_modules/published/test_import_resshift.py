"""ResShift's published weights, of the network and of its autoencoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from torch import nn

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.diffusion.parameterization import AnchorResidual
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.space import Latent, Pixels
from lightning_modules.networks.autoencoder import VQAutoencoder
from lightning_modules.networks.unet_swin import UNetSwin
from lightning_modules.published.autoencoder import convert
from lightning_modules.published.importing import import_weights
from lightning_modules.resshift import ResShift
from tests.tiny.published import ldm_autoencoder
from tests.tiny.stable_diffusion import VQ

SWIN: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "size": 16}
SWIN |= {"swin_width": 32, "head_channels": 16, "window": 4}


def make_resshift(**network: Any) -> ResShift:
    return ResShift(
        network=UNetSwin(**SWIN, zero_output=True, **network),
        process=ResidualShift(steps=4, min_noise_level=0.2),
        parameterization=AnchorResidual("index", input_scale="pixel"),
        space=Pixels(),
        sampler=Ancestral(4),
        condition_on="up",
    )


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    up = nn.functional.interpolate(lr, size=16, mode="bicubic")
    return Batch(lr=lr, up=up, key=["a", "b"])


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_published_resshift_weights(tmp_path: Path, prefix: str) -> None:
    source, target = make_resshift(), make_resshift()
    torch.manual_seed(1)
    for parameter in source.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = {f"{prefix}{key}": value for key, value in source.network.state_dict().items()}
    state |= {f"{prefix}input_blocks.1.1.blocks.1.attn_mask": torch.zeros(1)}
    state |= {f"{prefix}input_blocks.1.1.blocks.1.attn.relative_position_index": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    batch, initial = make_batch(), target.super_resolve(make_batch())
    import_weights(target, tmp_path / "published.pth")
    torch.testing.assert_close(target.super_resolve(batch), source.super_resolve(batch))
    assert not torch.allclose(target.super_resolve(batch), initial)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(make_resshift(image_halvings=1).network.state_dict(), tmp_path / "x2.pth")
    with pytest.raises(CheckpointError, match=r"x2.pth: .*feature_extractor|x2.pth: .*shape|x2.pth: .*size mismatch"):
        import_weights(make_resshift(), tmp_path / "x2.pth")


def test_the_published_autoencoder_of_resshift(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = VQModel(**VQ)
    torch.save(ldm_autoencoder(source.state_dict(), levels=3), tmp_path / "vq.pth")
    convert(tmp_path / "vq.pth", tmp_path / "vq", VQ)
    space = Latent(VQAutoencoder(str(tmp_path / "vq")))
    image = nn.functional.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, size=64, mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        state = space.encode(image, image)
        torch.testing.assert_close(state, source.encode(image).latents)
        torch.testing.assert_close(space.decode(state, image), source.decode(state).sample)
    with pytest.raises(CheckpointError, match=r"vq\.pth: is no VQ-f4 autoencoder.*size mismatch|vq\.pth: is no VQ"):
        convert(tmp_path / "vq.pth", tmp_path / "other", {**VQ, "num_vq_embeddings": 8})
