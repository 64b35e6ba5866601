"""Attention maps: values against transformers, normalisation, alignment with the image, and what refuses to load."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from lightning_modules.networks.attention_maps import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AttentionMap,
    Canny,
    Constant,
    DinoResNet50,
    DinoViT,
    ScaleSpace,
    Sobel,
    normalise,
)


def save_vit(folder: Path, layers: int = 2) -> str:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=32,
        patch_size=8,
        image_size=32,
    )
    model = ViTModel(config, add_pooling_layer=False)
    for parameter in model.parameters():  # attention of an untrained model hardly depends on the image
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])).save_pretrained(
        folder
    )
    return str(folder)


def photograph(height: int = 20, width: int = 30) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def corner(height: int = 32, width: int = 48) -> Tensor:
    """Grey, with a chequered top-left corner."""
    image = torch.zeros(1, 3, height, width)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    image[..., 2:10, 2:10] = ((rows // 4 + columns // 4) % 2) * 2.0 - 1
    return image


def class_heads(folder: str, image: Tensor, size: tuple[int, int]) -> Tensor:
    """What transformers itself says of the class token, `[B,heads,h',w']`."""
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    shown = interpolate((image + 1) / 2, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    shown = (shown - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        attention = model(shown, output_attentions=True, interpolate_pos_encoding=True).attentions[-1]
    rows = attention[:, :, 0, 1:]
    return rows.reshape(*rows.shape[:2], size[0] // 8, size[1] // 8)


def stretched(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("combine", ["max", "mean", 1])
def test_vit_is_the_class_token_of_the_last_block(vit: str, combine: str | int) -> None:
    image = photograph()
    heads = class_heads(vit, image, (32, 48))
    actual = DinoViT(vit, combine=combine, side=32)(image)  # type: ignore[arg-type]
    assert actual.shape == (2, 1, 4, 6)
    for index, own in enumerate(heads):
        if combine == "max":
            expected = torch.stack([stretched(head) for head in own]).amax(0)
        else:
            expected = own.mean(0) if combine == "mean" else own[1]
        torch.testing.assert_close(actual[index, 0], stretched(expected), atol=1e-5, rtol=1e-5)


def test_vit_looks_at_patches_where_they_are(tmp_path: Path) -> None:
    """With a single block, a changed patch changes its own attention and, by the softmax, all others by one factor."""
    attention = DinoViT(save_vit(tmp_path, layers=1), side=32)
    image = torch.zeros(1, 3, 32, 48)
    changed = image.clone()
    changed[..., 8:16, 32:40] = 1.5
    ratio = (attention.class_attention(changed) / attention.class_attention(image)).mean(1)[0]
    others = torch.ones_like(ratio, dtype=torch.bool)
    others[1, 4] = False
    torch.testing.assert_close(ratio[others], ratio[0, 0].expand(23), atol=1e-4, rtol=1e-4)
    assert (ratio[1, 4] - ratio[0, 0]).abs() > 1e-2


@pytest.mark.parametrize("stage", [3, 4])
@pytest.mark.parametrize("combine", ["max", "mean"])
def test_resnet_is_a_stage_combined_over_channels(resnet: str, stage: int, combine: str) -> None:
    image = photograph(64, 96)
    model = ResNetModel.from_pretrained(resnet).eval()
    shown = ((image + 1) / 2 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        maps = model(shown, output_hidden_states=True).hidden_states[stage]
    expected = maps.amax(1) if combine == "max" else maps.mean(1)
    actual = DinoResNet50(resnet, combine=combine, stage=stage, side=64)(image)  # type: ignore[arg-type]
    assert actual.shape[-2:] == ((4, 6) if stage == 3 else (2, 3))
    torch.testing.assert_close(actual[:, 0], torch.stack([stretched(own) for own in expected]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", [Sobel(), Canny(), ScaleSpace()], ids=lambda attention: type(attention).__name__)
def test_a_detail_in_the_corner_lights_the_corner(attention: AttentionMap) -> None:
    lit = attention(corner())[0, 0]
    assert lit.shape == (32, 48)
    assert lit[:16, :16].max() == 1
    assert lit[20:, 20:].max() < 0.02
    assert lit[:16, :16].sum() > 0.95 * lit.sum()


def test_resnet_lights_the_corner(resnet: str) -> None:
    attention = DinoResNet50(resnet, stage=3, side=256)
    change = (attention.saliency((corner() + 1) / 2) - attention.saliency(torch.full((1, 3, 32, 48), 0.5))).abs()[0, 0]
    assert change.shape == (16, 24)
    assert change[:8, :8].max() == change.max() > 0
    assert change[12:, 12:].max() < 0.02 * change.max()


@pytest.mark.parametrize("attention", [Sobel(), Canny(), ScaleSpace()], ids=lambda attention: type(attention).__name__)
def test_each_image_by_itself_and_in_range(attention: AttentionMap) -> None:
    faint = corner() * 0.5
    both = attention(torch.cat([faint, corner()]))
    torch.testing.assert_close(both[:1], attention(faint), atol=1e-4, rtol=0)
    assert both.dtype == torch.float32
    assert both.amin() >= 0
    assert both.amax() <= 1


def test_scale_space_finds_a_blob_of_any_of_its_sizes() -> None:
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    for sigma in (1.0, 4.0):
        blob = torch.exp(-((rows - 20) ** 2 + (columns - 30) ** 2) / (2 * sigma**2)).expand(1, 3, -1, -1)
        brightest = ScaleSpace()(blob)[0, 0].argmax()
        assert (int(brightest) // 48, int(brightest) % 48) == (20, 30)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
def test_tiny_and_flat_images(size: tuple[int, int]) -> None:
    for attention in (Sobel(), ScaleSpace(), Sobel(norm="p2p98"), Sobel(norm="rank")):
        flat = attention(torch.full((1, 3, *size), 0.3))
        assert flat.shape[-2:] == size
        assert flat.isfinite().all()
        assert flat.unique().numel() == 1


def test_norms_against_their_definitions() -> None:
    values = torch.cat([torch.randn(1, 1, 20, 30), torch.randn(1, 1, 20, 30) * 50 + 7])
    for own, actual in zip(values, normalise(values, "p2p98"), strict=True):
        low, high = torch.quantile(own.flatten(), torch.tensor([0.02, 0.98]))
        torch.testing.assert_close(actual, ((own - low) / (high - low)).clamp(0, 1), atol=1e-5, rtol=1e-4)
    ranks = normalise(torch.tensor([3.0, 1.0, 1.0, 9.0, 5.0]).view(1, 1, 1, 5), "rank").flatten()
    torch.testing.assert_close(ranks, torch.tensor([0.5, 0.125, 0.125, 1.0, 0.75]))


def test_autocast_does_not_change_the_map(vit: str) -> None:
    attention, image = DinoViT(vit, side=32), photograph()
    expected = attention(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(image), expected)


def test_constant_is_itself() -> None:
    assert (Constant(0.4)(photograph()) == torch.tensor(0.4)).all()
    with pytest.raises(ValueError, match=r"value=1\.5"):
        Constant(1.5)


def test_frozen_networks_stay_as_they_were_in_training(resnet: str) -> None:
    attention = DinoResNet50(resnet, side=64)
    expected = attention(photograph())
    torch.nn.Sequential(attention).train()
    assert torch.equal(attention(photograph()), expected)
    assert not any(parameter.requires_grad for parameter in attention.parameters())


def test_missing_weights_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for weights in ("nobody/no-such-model", str(tmp_path / "absent")):
        with pytest.raises(FileNotFoundError, match=r"^weights: .*give their folder instead") as caught:
            DinoViT(weights)
        assert weights in str(caught.value)
        assert all(name in str(caught.value) for name in ("Sobel", "Canny", "ScaleSpace", "folder"))


def test_incomplete_damaged_and_foreign_weights_are_refused(resnet: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type resnet, not vit"):
        DinoViT(resnet)
    with pytest.raises(ValueError, match="type vit, not resnet"):
        DinoResNet50(save_vit(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("embeddings.cls_token")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights.*cls_token"):
        DinoViT(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ValueError, match="cannot be read"):
        DinoViT(str(tmp_path))


def test_no_such_head(vit: str) -> None:
    with pytest.raises(ValueError, match=r"combine=3.*heads 0 to 2"):
        DinoViT(vit, combine=3)
