"""Mish, more than twice as fast on CPUs as PyTorch's: with few channels that costs more than the convolutions."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

PIECE = 131072  # elements per thread that stay in its cache from the first operation to the last


class Mish(nn.Module):
    """`x tanh(softplus(x))` (arXiv:1908.08681), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the shape, type and memory format of `x`."""
        if x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
            return functional.mish(x)
        out: Tensor = _CpuMish.apply(x)  # type: ignore[no-untyped-call]
        return out


class _CpuMish(torch.autograd.Function):
    """Piece by piece in float32: with s = sigmoid(x) and p = s (2 - s), tanh(softplus(x)) = p / (2 - p).

    Nearly equal numbers are never subtracted, so this is as exact as PyTorch's exponential, logarithm and hyperbolic
    tangent, and takes one exponential.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        x = laid_out_as(out, x)
        ctx.save_for_backward(x)
        for x_piece, out_piece in pieces(x, out):
            value = x_piece.to(torch.float32, copy=True)
            _, gate = sigmoid_and_gate(value)
            out_piece.copy_(value.mul_(gate))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        for x_piece, grad_piece, out_piece in pieces(x, laid_out_as(out, grads[0]), out):
            value = x_piece.to(torch.float32, copy=True)
            sigmoid, gate = sigmoid_and_gate(value)
            slope = torch.ops.aten.tanh_backward(value.mul_(sigmoid), gate).add_(gate)
            out_piece.copy_(slope.mul_(grad_piece))
        return out


def sigmoid_and_gate(x: Tensor) -> tuple[Tensor, Tensor]:
    """`sigmoid(x)` and `tanh(softplus(x))`."""
    sigmoid = torch.sigmoid(x)
    product = torch.rsub(sigmoid, 2).mul_(sigmoid)
    return sigmoid, product.div_(2 - product)


def laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """`x`, copied only where its elements lie in another order than those of `like`."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one layout without gaps, piece by piece in the order of their memory."""
    size = PIECE * torch.get_num_threads()
    flat = (tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors)
    return zip(*(torch.split(tensor, size) for tensor in flat), strict=True)
