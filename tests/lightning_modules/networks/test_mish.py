"""Mish on CPUs against its definition, in value and slope, for every type and layout."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.networks import mish
from lightning_modules.networks.mish import Mish

EXTREMES = torch.tensor([-1e4, -88.0, -40.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 40.0, 88.0, 1e4])


def value_and_slope(function: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = function(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 8e-3)]
)
def test_value_and_slope(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-30, 30, 4001), EXTREMES]).to(dtype)
    wide = x.double().requires_grad_()
    reference = wide * torch.tanh(torch.logaddexp(wide, torch.zeros_like(wide)))
    (reference_slope,) = torch.autograd.grad(reference.sum(), wide)
    value, slope = value_and_slope(Mish(), x)
    assert value.dtype == slope.dtype == dtype
    torch.testing.assert_close(value.double(), reference.detach(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(slope.double(), reference_slope, atol=tolerance, rtol=tolerance)


def test_small_values_keep_their_relative_precision() -> None:
    x = torch.tensor([-15.0, -20.0, -30.0])
    expected = x.double() * torch.tanh(torch.log1p(x.double().exp()))
    torch.testing.assert_close(Mish()(x).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed", "expanded"])
def test_layouts_and_many_pieces(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mish, "PIECE", 7)
    x = torch.randn(2, 4, 6, 8)
    x = {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "sliced": x[:, ::2, 1:, ::3],
        "transposed": x.mT,
        "expanded": x[:, :1].expand(2, 5, 6, 8),
    }[layout]
    weight = torch.randn(x.shape)  # a gradient whose layout differs from that of x
    own, reference = x.detach().requires_grad_(), x.detach().requires_grad_()
    actual, expected = Mish()(own), functional.mish(reference)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
    assert actual.stride() == expected.stride()
    (actual_slope,) = torch.autograd.grad((actual * weight).sum(), own)
    (expected_slope,) = torch.autograd.grad((expected * weight).sum(), reference)
    torch.testing.assert_close(actual_slope, expected_slope, atol=1e-6, rtol=1e-6)


def test_its_input_is_left_alone() -> None:
    x = torch.randn(100)
    kept = x.clone()
    Mish()(x.requires_grad_()).sum().backward()
    assert torch.equal(x, kept)
