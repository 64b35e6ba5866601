"""Stable Diffusion under a ControlNet: real sizes without weights, and the whole of it on tiny random models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_modules.diffusion.guidance import SelfAttentionGuidance
from lightning_modules.networks.autoencoder import KLAutoencoder
from lightning_modules.networks.sd21 import ControlledUNet, controlnet_for
from lightning_modules.published.autoencoder import VQ_F4

LEVELS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
UNET: dict[str, Any] = {"sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 1024}
UNET |= {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
UNET |= {"use_linear_projection": True, "down_block_types": LEVELS[0], "up_block_types": LEVELS[1]}
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
TEXT |= {"num_attention_heads": 16, "hidden_act": "gelu", "vocab_size": 49408}


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes_and_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        controlnet = controlnet_for(unet)
        text = CLIPTextModel(CLIPTextConfig(**TEXT))
        autoencoder = AutoencoderKL(**VAE, layers_per_block=2)
        quantised = VQModel(**VQ_F4)
    assert count(unet) == 865_910_724
    assert count(controlnet) == 363_153_280
    assert count(autoencoder) == 83_653_863
    assert count(text) == 340_387_840
    assert count(quantised) == 55_322_782
    x, embedding = torch.empty(1, 4, 64, 64, device="meta"), torch.empty(1, 77, 1024, device="meta")
    down, middle = controlnet(x, torch.empty(1, device="meta"), embedding, x, return_dict=False)
    assert [tuple(residual.shape[1:]) for residual in down] == [
        *[(320, 64, 64)] * 3, (320, 32, 32), *[(640, 32, 32)] * 2, (640, 16, 16), *[(1280, 16, 16)] * 2,
        *[(1280, 8, 8)] * 3,
    ]  # fmt: skip
    assert middle.shape == (1, 1280, 8, 8)
    assert autoencoder.encode(torch.empty(1, 3, 512, 512, device="meta")).latent_dist.mode().shape == (1, 4, 64, 64)
    assert quantised.encode(torch.empty(1, 3, 256, 256, device="meta")).latents.shape == (1, 3, 64, 64)


@pytest.fixture
def folder(tmp_path: Path, isolated_environment: Path) -> Path:
    """A copy of the tiny Stable Diffusion, to be damaged."""
    shutil.copytree(isolated_environment / "tiny" / "sd21", tmp_path / "sd21")
    return tmp_path / "sd21"


def inputs(height: int = 16, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, hint = (torch.randn(2, 4, height, width, generator=generator) for _ in range(2))
    return {"x": x, "label": torch.tensor([3.0, 499.0]), "hint": hint}


def test_training_starts_from_stable_diffusion_itself_and_moves_the_controlnet_alone(folder: Path) -> None:
    network = ControlledUNet(str(folder)).train()
    assert not network.unet.training and network.controlnet.training
    given, text = inputs(), network.text.expand(2, -1, -1)
    output = network(**given, text=text)
    torch.testing.assert_close(output, network.unet(given["x"], given["label"], text).sample)
    output.square().mean().backward()
    assert all(parameter.grad is None for parameter in network.unet.parameters())
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in network.controlnet.parameters())
    assert all(parameter.grad is not None for parameter in network.controlnet.parameters())  # DDP waits for each


def randomised(network: ControlledUNet) -> ControlledUNet:
    torch.manual_seed(0)
    for parameter in network.controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_hint_prompt_and_time_all_count(folder: Path) -> None:
    network = randomised(ControlledUNet(str(folder)))
    given, text = inputs(), network.text.expand(2, -1, -1)
    with torch.no_grad():
        output = network(**given, text=text)
        assert not torch.allclose(network(**{**given, "hint": -given["hint"]}, text=text), output)
        assert not torch.allclose(network(**given, text=network.empty_text.expand(2, -1, -1)), output)
        assert not torch.allclose(network(**{**given, "label": given["label"] + 9}, text=text), output)


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = randomised(ControlledUNet(str(folder), gradient_checkpointing=checkpointing)).train()
        network(**inputs(), text=network.text.expand(2, -1, -1)).square().sum().backward()
        gradients.append(network.controlnet.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


def test_self_attention_guidance_finds_its_layer(folder: Path) -> None:
    SelfAttentionGuidance().check(ControlledUNet(str(folder)), null_condition=True)


def test_a_controlnet_knows_its_base(folder: Path) -> None:
    source = randomised(ControlledUNet(str(folder)))
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("unet.")}
    assert {key.split(".")[0] for key in state} == {"controlnet", "signature"}
    target = ControlledUNet(str(folder))
    assert not target.load_state_dict(state, strict=False).unexpected_keys
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 1.1 for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another base.*network.s `weights`"):
        ControlledUNet(str(folder)).load_state_dict(state, strict=False)


def remove_file(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def remove_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def remove_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def drop_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_out.bias"]
    save_file(state, path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def other_class(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UNet2DModel"}))


def other_width(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [8, 16, 16, 32]}))


def other_text(folder: Path) -> None:
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 8
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            remove_file,
            FileNotFoundError,
            r"sd21/unet.*diffusion_pytorch_model\.safetensors.*give the folder instead",
        ),
        (remove_encoder, FileNotFoundError, r"sd21/text_encoder.*config\.json and model\.safetensors"),
        (remove_tokenizer, (FileNotFoundError, ValueError), r"sd21/tokenizer.*vocab\.json"),
        (drop_weight, ValueError, r"sd21/unet lacks 1 weights.*conv_out\.bias"),
        (truncate, (ValueError, FileNotFoundError), "sd21/unet"),
        (
            other_class,
            ValueError,
            r"sd21/unet/config\.json describes a UNet2DModel, where a UNet2DConditionModel is needed",
        ),
        (other_width, ValueError, "sd21/unet"),
        (other_text, ValueError, "text encoder writes 8 channels, but the UNet reads 16"),
    ],
)
def test_unusable_weights_are_one_clear_error(
    folder: Path, damage: Callable[[Path], None], error: Any, message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        ControlledUNet(str(folder))


def test_an_absent_base_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent/unet: no UNet2DConditionModel.*hf download"):
        ControlledUNet(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"weights: .*absent/vae: no AutoencoderKL.*give the folder instead"):
        KLAutoencoder(str(tmp_path / "absent"))


def test_autoencoder_tiles(folder: Path) -> None:
    whole, parts = KLAutoencoder(str(folder)), KLAutoencoder(str(folder), tile=64)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8) * 2 - 1, scale_factor=16, mode="bicubic")
    with torch.no_grad():
        latent = whole.encode(image)
        torch.testing.assert_close(parts.encode(image[..., :64, :64]), whole.encode(image[..., :64, :64]))
        assert parts.encode(image).shape == latent.shape == (1, 4, 12, 16)
        reference, output = whole.decode(latent), parts.decode(latent)
    assert output.shape == image.shape
    assert (output - reference).abs().mean() < 0.5 * reference.std()
    with pytest.raises(ValueError, match="tile 20"):
        KLAutoencoder(str(folder), tile=20)
