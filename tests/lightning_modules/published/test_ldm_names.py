"""Published key names against diffusers' own converters, on random tensors."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_modules.networks.sd21 import controlnet_for
from lightning_modules.published import ldm_names
from tests.tiny.published import State, in_order, ldm_autoencoder, ldm_unet, open_clip
from tests.tiny.stable_diffusion import TEXT, UNET, VAE, VQ


def assert_same(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("layers", [1, 2])
def test_unet(layers: int) -> None:
    unet = UNet2DConditionModel(**{**UNET, "layers_per_block": layers})
    theirs = ldm_unet(unet.state_dict(), layers)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in theirs.items()}
    converted = single_file_utils.convert_ldm_unet_checkpoint(prefixed, dict(unet.config))
    assert_same(dict(unet.state_dict()), converted)
    assert_same(ldm_names.unet(theirs), converted)


def test_controlnet() -> None:
    unet = UNet2DConditionModel(**UNET)
    ours = dict(controlnet_for(unet).state_dict())
    ours["controlnet_cond_embedding.weight"] = torch.randn_like(ours["controlnet_cond_embedding.weight"])
    both = torch.cat([ours["conv_in.weight"], ours["controlnet_cond_embedding.weight"]], dim=1)
    plain = {key: value for key, value in ours.items() if "cond_embedding" not in key}
    theirs = ldm_unet({**plain, "conv_in.weight": both}, layers=1)
    converted = single_file_utils.convert_controlnet_checkpoint(theirs, dict(unet.config))
    converted = {key: value for key, value in converted.items() if "cond_embedding" not in key}
    assert_same(converted, {**plain, "conv_in.weight": both})
    assert_same(ldm_names.controlnet(theirs), ours)


@pytest.mark.parametrize("model", [AutoencoderKL(**VAE), VQModel(**VQ)], ids=["kl", "vq"])
def test_autoencoder(model: AutoencoderKL | VQModel) -> None:
    theirs = ldm_autoencoder(model.state_dict(), levels=len(model.config.block_out_channels))
    assert "encoder.mid.attn_1.proj_out.weight" in theirs and "decoder.up.2.upsample.conv.bias" in theirs
    if isinstance(model, AutoencoderKL):
        prefixed = {f"first_stage_model.{key}": value for key, value in theirs.items()}
        assert_same(
            single_file_utils.convert_ldm_vae_checkpoint(prefixed, dict(model.config)), dict(model.state_dict())
        )
    assert_same(ldm_names.autoencoder(theirs), dict(model.state_dict()))


def test_text_encoder() -> None:
    model = CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=20, max_position_embeddings=6))
    theirs = open_clip(in_order(model.state_dict()))
    assert "transformer.resblocks.2.attn.in_proj_weight" in theirs
    plain = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    plain.pop("embeddings.position_ids", None)
    assert_same(ldm_names.text_encoder(theirs, layers=2), plain)
