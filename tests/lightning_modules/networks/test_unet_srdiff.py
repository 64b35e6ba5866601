"""SRDiff's U-Net: published sizes, precision, conditioning. Its values are compared in tests/goldens/srdiff."""

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.networks.unet_srdiff import LinearAttention, SRDiffUNet, sinusoidal_embedding

SIZES = [
    ((8, 64, (1, 2, 2, 4), 32, 8), 10_545_795),
    ((4, 64, (1, 2, 3, 4), 32, 8), 11_755_267),
    ((4, 64, (1, 2, 3, 4), 64, 17), 12_934_915),
]


def tiny(patch: int = 1, **options: bool) -> SRDiffUNet:
    torch.manual_seed(0)
    return SRDiffUNet(4, 8, (1, 2, 3), encoder_channels=4, encoder_blocks=5, patch=patch, **options).eval()


def arguments(network: SRDiffUNet, height: int = 24, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """x, label and projected features of a batch of two."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 4, height // 4, width // 4, generator=generator) for _ in range(6)]
    x = torch.randn(2, 3, height, width, generator=generator)
    return x, torch.tensor([3, 97]), network.project(maps)


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_published_sizes(size: tuple[int, int, tuple[int, ...], int, int], count: int) -> None:
    network = SRDiffUNet(*size)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network.stride == 8


def test_every_parameter_is_used() -> None:
    network = tiny(attention=True, up_input=True)
    torch.nn.init.ones_(network.mid_attn.fn.g)
    x, label, features = arguments(network)
    network(x, label, features=features, up=torch.randn(2, 3, 24, 16)).square().mean().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("patch", [2, 4])
def test_a_patch_of_pixels_is_one_position(patch: int) -> None:
    network = tiny(patch, up_input=True)
    assert network.stride == 4 * patch
    x, label, features = arguments(network, 64, 32)
    up = torch.randn(2, 3, 64, 32)
    assert features.shape == (2, 8, 64 // patch, 32 // patch)

    seen: dict[str, Tensor] = {}
    network.downs[0][0].register_forward_hook(lambda _, inputs, __: seen.update(first=inputs[0]))
    network.final_conv.register_forward_hook(lambda _, __, output: seen.update(last=output))
    output = network(x, label, features=features, up=up)
    assert output.shape == x.shape
    # The pixel of row 2, column 1 of a patch is one channel, in and out.
    row, column = patch - 1, 1
    channel = patch**2 + row * patch + column  # of green
    torch.testing.assert_close(seen["first"][:, channel], x[:, 1, row::patch, column::patch])
    torch.testing.assert_close(seen["last"][:, channel], output[:, 1, row::patch, column::patch])

    output.square().mean().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_only_every_third_map_is_projected() -> None:
    network = tiny()
    maps = [torch.randn(1, 4, 3, 3) for _ in range(6)]
    others = [value if index % 3 == 2 else value + 1 for index, value in enumerate(maps)]
    assert torch.equal(network.project(maps), network.project(others))
    assert network.project(maps).shape == (1, 8, 12, 12)
    assert not torch.equal(network.project(maps), network.project([*maps[:5], maps[5] + 1]))


@pytest.mark.parametrize("label", [torch.tensor([0, 57, 99]), torch.tensor([0.0, 57.0, 99.0])])
def test_embedding_is_float32_under_autocast(label: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        embedding = sinusoidal_embedding(label, 64)
    expected = [[f(k * 10000 ** (-i / 31)) for f in (math.sin, math.cos) for i in range(32)] for k in (0, 57, 99)]
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, torch.tensor(expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05)])
def test_other_precisions_agree_with_float32(dtype: torch.dtype, tolerance: float) -> None:
    network = tiny(attention=True)
    torch.nn.init.ones_(network.mid_attn.fn.g)
    x, label, features = arguments(network)
    expected = network(x, label, features=features)
    actual = network.to(dtype)(x.to(dtype), label, features=features.to(dtype))
    assert actual.dtype == dtype
    error = (actual.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < tolerance


def test_memory_format_changes_nothing() -> None:
    network = tiny()
    x, label, features = arguments(network)
    expected = network(x, label, features=features)
    network.to(memory_format=torch.channels_last)
    actual = network(x.to(memory_format=torch.channels_last), label, features=features)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_linear_attention_against_its_definition() -> None:
    torch.manual_seed(0)
    attention = LinearAttention(6, heads=2, head_channels=3)
    x = torch.randn(2, 6, 4, 5)
    heads = attention.to_qkv(x).reshape(2, 3, 2, 3, 20)
    query, key, value = heads[:, 0], heads[:, 1].softmax(-1), heads[:, 2]
    context = torch.einsum("bhdn,bhen->bhde", key, value)
    expected = torch.einsum("bhde,bhdn->bhen", context, query).reshape(2, 6, 4, 5)
    torch.testing.assert_close(attention(x), attention.to_out(expected))


def test_impossible_configurations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scale=3"):
        SRDiffUNet(3)
    with pytest.raises(ValueError, match="encoder_blocks=1"):
        SRDiffUNet(encoder_blocks=1)
    for patch in (0, 3, 8):
        with pytest.raises(ValueError, match=f"scale=4 must be the patch.*patch={patch}"):
            SRDiffUNet(4, patch=patch)


@pytest.mark.parametrize("size", [(4, 16), (18, 16), (16, 18)])
def test_impossible_sizes_are_refused_by_name(size: tuple[int, int]) -> None:
    network = tiny()
    with pytest.raises(ValueError, match=f"{size[1]}x{size[0]} pixels.*multiples of 4, and at least 8"):
        network(torch.zeros(1, 3, *size), torch.zeros(1), features=torch.zeros(1, 8, *size))
