"""SR3's U-Net: published sizes and names, sizes of inputs, precision of the noise level, attention."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.networks.unet_sr3 import SelfAttention, SR3UNet

TINY: dict[str, Any] = {"inner_channel": 8, "channel_mults": (1, 2, 2), "norm_groups": 4, "res_blocks": 1}


def tiny(**changes: Any) -> SR3UNet:
    torch.manual_seed(0)
    return SR3UNet(**{**TINY, "attn_res": (8,), "image_size": 32, **changes}).eval()


# methods' published configurations, and the paper's Table A.1 with the public block
@pytest.mark.parametrize(
    ("count", "arguments"),
    [
        (97_807_491, {}),
        (97_805_763, {"in_channel": 3}),
        (92_556_931, {"image_size": 160}),
        (
            155_334_339,
            {"channel_mults": (1, 2, 4, 8, 16), "res_blocks": 1, "norm_groups": 16, "attn_res": (), "image_size": 512},
        ),
        (26_451_587, {"channel_mults": (1, 1, 2, 2, 4, 4), "conditioning": "index"}),
        (26_449_859, {"channel_mults": (1, 1, 2, 2, 4, 4), "conditioning": "index", "in_channel": 3}),
        (514_987_139, {"inner_channel": 128, "res_blocks": 3}),
        (
            564_761_219,
            {"inner_channel": 128, "channel_mults": (1, 2, 4, 4, 8, 8), "res_blocks": 3, "image_size": 256},
        ),
        (563_784_771, {"channel_mults": (1, 2, 4, 8, 8, 16, 16), "res_blocks": 3, "image_size": 512}),
        (
            134_584_739,
            {
                "inner_channel": 16,
                "channel_mults": (1, 2, 4, 8, 16, 32, 32, 32),
                "norm_groups": 16,
                "image_size": 1024,
            },
        ),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(count: int, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = SR3UNet(**arguments, orthogonal_init=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_face_network_has_the_published_keys_and_attention_where_published() -> None:
    with torch.device("meta"):
        keys = set(SR3UNet(orthogonal_init=False).state_dict())
    assert len(keys) == 362
    attention = {key.split(".attn")[0] for key in keys if ".attn." in key}
    assert attention == {"downs.10", "downs.11", "mid.0", "ups.4", "ups.5", "ups.6"}
    assert keys > {
        "noise_level_mlp.1.weight",
        "noise_level_mlp.3.bias",
        "downs.0.weight",
        "downs.3.conv.weight",
        "downs.1.res_block.noise_func.noise_func.0.weight",
        "downs.4.res_block.res_conv.weight",
        "ups.0.res_block.block2.block.3.bias",
        "mid.0.attn.qkv.weight",
        "mid.0.attn.out.bias",
        "final_conv.block.0.weight",
    }
    assert "mid.0.attn.qkv.bias" not in keys


def test_the_ddpm_variant_has_its_own_keys_for_time() -> None:
    keys = set(tiny(conditioning="index").state_dict())
    assert keys > {"time_mlp.0.inv_freq", "time_mlp.1.weight", "downs.1.res_block.mlp.1.weight"}
    assert not any("noise" in key for key in keys)


@pytest.mark.parametrize("size", [(32, 32), (4, 4), (12, 40)])
def test_any_multiple_of_the_stride_goes_through(size: tuple[int, int]) -> None:
    x, image = torch.randn(2, 2, 3, *size)
    assert tiny()(x, torch.tensor([0.3, 0.9]), image).shape == x.shape


@pytest.mark.parametrize("size", [(30, 32), (32, 30)])
def test_other_sizes_are_refused_with_the_stride(size: tuple[int, int]) -> None:
    x = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny()(x, torch.ones(1), x)


def test_a_patch_of_pixels_is_one_position() -> None:
    network = tiny(patch=2)
    assert network.stride == 8
    x, image = torch.randn(2, 2, 3, 16, 24)
    seen: dict[str, Tensor] = {}
    network.downs[0].register_forward_hook(lambda _, inputs, __: seen.update(first=inputs[0]))
    output = network(x, torch.tensor([0.3, 0.9]), image)
    assert output.shape == x.shape
    green = 4  # its upper left pixel, of the image, then of the state
    torch.testing.assert_close(seen["first"][:, green], image[:, 1, ::2, ::2])
    torch.testing.assert_close(seen["first"][:, 12 + green], x[:, 1, ::2, ::2])
    with pytest.raises(ValueError, match="patch must be at least 1, got 0"):
        tiny(patch=0)


def test_a_width_that_the_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_groups=32 does not divide a width of 8"):
        tiny(norm_groups=32)


def test_samples_of_a_batch_do_not_influence_each_other() -> None:
    network, (x, image), level = tiny(), torch.randn(2, 3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    alone = torch.cat([network(x[i : i + 1], level[i : i + 1], image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, level, image), alone, atol=1e-5, rtol=1e-4)


def test_image_and_state_are_told_apart() -> None:
    network, (x, image), level = tiny(), torch.randn(2, 1, 3, 16, 16), torch.tensor([0.5])
    assert not torch.allclose(network(x, level, image), network(image, level, x), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbouring_levels_stay_apart_under_autocast(dtype: torch.dtype) -> None:
    network, levels = tiny(inner_channel=64, norm_groups=16), torch.tensor([0.9, 0.9005], dtype=torch.float64)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), torch.no_grad():
        embedded = network.embed(levels)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, network.embed(levels), rtol=0, atol=0)
    assert (embedded[0] - embedded[1]).norm() > 1e-5


def test_memory_format_does_not_change_the_result() -> None:
    network, (x, image), level = tiny(), torch.randn(2, 2, 3, 16, 16), torch.tensor([0.2, 0.8])
    expected = network(x, level, image)
    network = network.to(memory_format=torch.channels_last)
    actual = network(x.contiguous(memory_format=torch.channels_last), level, image)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def attention_by_hand(layer: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    batch, width = x.shape[:2]
    query, key, value = layer.qkv(layer.norm(x)).view(batch, 3, width, -1).unbind(1)
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(width), dim=-1)
    attended = torch.einsum("bqk,bck->bcq", weights, value).view_as(x)
    return x + layer.out(attended), weights.sum(1).view(batch, *x.shape[-2:])


def test_attention_is_the_softmax_over_all_positions() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(16, 4), torch.randn(2, 16, 5, 7)
    output, received = attention_by_hand(layer, x)
    torch.testing.assert_close(layer(x), output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.received_attention(x), received, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(received.mean(), torch.tensor(1.0))


def test_training_starts_from_orthogonal_weights_and_zero_biases() -> None:
    network = tiny()
    linear = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in linear:
        rows = module.weight.detach().flatten(1)
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-4, rtol=0)
        assert module.bias is None or not module.bias.any()


def test_every_parameter_gets_a_gradient_and_dropout_acts_in_training_only() -> None:
    network, (x, image), level = tiny(dropout=0.5), torch.randn(2, 2, 3, 16, 16), torch.tensor([0.2, 0.8])
    assert torch.equal(network(x, level, image), network(x, level, image))
    network.train()
    assert not torch.equal(network(x, level, image), network(x, level, image))
    network(x, level, image).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
