"""The ADM U-Net: published sizes and names, sizes of inputs, attention, precision."""

from typing import Any

import pytest
import torch

from lightning_modules.networks.unet_adm import ADMUNet, SelfAttention, UNetBlock

LARGE: dict[str, Any] = {
    "img_resolution": 256,
    "model_channels": 256,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_blocks": 2,
}


def tiny(**changes: Any) -> ADMUNet:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "img_resolution": 16,
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (8,),
        "channels_per_head": 8,
    }
    network = ADMUNet(**{**arguments, **changes})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize(
    ("count", "arguments"),
    [
        (295_899_267, {"img_resolution": 64, "label_dim": 1000}),
        (553_831_171, {**LARGE, "label_dim": 1000}),
        (295_132_995, {"img_resolution": 64, "augment_dim": 9}),
        (552_809_475, {**LARGE, "augment_dim": 9}),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(count: int, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = ADMUNet(**arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_weights_carry_the_published_names() -> None:
    with torch.device("meta"):
        keys = set(ADMUNet(**LARGE, label_dim=1000).state_dict())
    blocks = {key.rsplit(".", 2)[0] for key in keys if key.startswith(("enc.", "dec."))}
    assert {"enc.256x256_block1", "enc.8x8_down", "dec.8x8_in0", "dec.8x8_in1", "dec.256x256_up"} <= blocks
    assert {"map_layer0.bias", "map_label.weight", "enc.256x256_conv.weight", "out_conv.bias", "out_norm.bias"} <= keys
    attention = {key.removesuffix(".qkv.weight") for key in keys if key.endswith(".qkv.weight")}
    assert {name.split(".")[1].split("_")[0] for name in attention} == {"32x32", "16x16", "8x8"}
    assert "dec.8x8_in0" in attention and "dec.8x8_in1" not in attention
    block = {key.removeprefix("enc.32x32_block0.") for key in keys if key.startswith("enc.32x32_block0.")}
    layers = ("norm0", "conv0", "affine", "norm1", "conv1", "norm2", "qkv", "proj")
    assert block == {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}


def test_a_network_starts_from_zero_output() -> None:
    torch.manual_seed(0)
    output = ADMUNet(img_resolution=16, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())(
        torch.randn(2, 3, 16, 16), torch.zeros(2)
    )
    assert torch.equal(output, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (34, 18)])
def test_any_multiple_of_the_stride_passes(size: tuple[int, int]) -> None:
    assert tiny().stride == 2
    assert tiny()(torch.randn(1, 3, *size), torch.zeros(1)).shape == (1, 3, *size)


def test_the_label_changes_the_output_also_between_neighbours_under_bfloat16() -> None:
    network, x = tiny(), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        near, far = network.embed(torch.tensor([0.5])), network.embed(torch.tensor([0.5001]))
        output = network(x, torch.tensor([0.5]))
    assert near.dtype == torch.float32 and not torch.equal(near, far)
    assert torch.allclose(output.float(), network(x, torch.tensor([0.5])), atol=0.1)


def test_an_image_beside_the_state_is_read() -> None:
    network, x = tiny(in_channels=6), torch.randn(1, 3, 16, 16)
    outputs = [network(x, torch.zeros(1), image=torch.full_like(x, value)) for value in (0.0, 1.0)]
    assert not torch.allclose(outputs[0], outputs[1])
    with pytest.raises(ValueError, match=r"in_channels=6 but got 3.*condition_on: up"):
        network(x, torch.zeros(1))


def test_sizes_between_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="got 16x17 pixels: both sides must be multiples of 2"):
        tiny()(torch.randn(1, 3, 16, 17), torch.zeros(1))
    with pytest.raises(ValueError, match="img_resolution: 18 cannot be halved 2 times"):
        tiny(img_resolution=18, channel_mult=(1, 2, 2))


def test_attention_is_the_softmax_of_interleaved_queries_and_keys() -> None:
    layer, features = SelfAttention(2), torch.randn(1, 24, 2, 3)
    query, key, value = features.view(2, 4, 3, 6).unbind(2)
    weights = torch.einsum("ncq,nck->nqk", query, key / 2).softmax(dim=2)
    expected = torch.einsum("nqk,nck->ncq", weights, value).reshape(1, 8, 2, 3)
    assert torch.allclose(layer(features), expected, atol=1e-6)
    assert torch.allclose(layer.received_attention(features)[0], weights.mean(0).sum(0).view(2, 3), atol=1e-6)


@pytest.mark.parametrize(("resample", "size"), [("down", 4), ("up", 16), ("keep", 8)])
def test_a_silent_block_resamples_by_the_box(resample: str, size: int) -> None:
    block = UNetBlock(16, 16, 8, heads=0, resample=resample, dropout=0.0)
    x = torch.randn(1, 16, 8, 8)
    resampled = torch.nn.functional.interpolate(x, size=size, mode="area")
    assert torch.allclose(block(x, torch.zeros(1, 8)), resampled, atol=1e-6)
