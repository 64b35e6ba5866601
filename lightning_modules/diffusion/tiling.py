"""Evaluates a network on overlapping tiles, for states that need too much memory at once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Slices = tuple[slice, slice]
"""Rows and columns of a state."""

WIDTH = 0.25  # standard deviation of a tile's weights, in tiles


@dataclass(frozen=True)
class Tiles:
    """How a state is cut into tiles.

    Attributes:
        side: Height and width of a tile in state pixels; smaller states are not cut.
        overlap: Smallest overlap of neighbouring tiles in state pixels.
    """

    side: int
    overlap: int


def tiled(
    evaluate: Callable[[Tensor, dict[str, Tensor]], Tensor],
    x: Tensor,
    condition: Mapping[str, Tensor],
    tiles: Tiles,
    wanted: Callable[[Slices], bool] | None = None,
) -> Tensor:
    """`evaluate(x, condition)` from tiles, each weighted by a Gaussian around its centre (StableSR, arXiv:2305.07015).

    Args:
        evaluate: The network, from a state `[B,C,h,w]` and its conditions to `[B,C',h,w]`.
        x: `[B,C,H,W]`.
        condition: Maps `[B,C,H/k,W/k]`, with an integer k each, are cut like the state; other tensors are not cut.
        tiles: How the state is cut.
        wanted: Which tiles are evaluated; None: all of them.

    Returns:
        `[B,C',H,W]`, 0 where no tile was wanted; exactly `evaluate(x, condition)` where one tile holds all.

    Raises:
        ValueError: a map's pixels do not fit the tiles.
    """
    height, width = x.shape[-2:]
    if max(height, width) <= tiles.side:
        return evaluate(x, dict(condition))

    total: Tensor | None = None
    weights = x.new_zeros(1, 1, height, width, dtype=torch.float32)
    for window in windows(height, width, tiles):
        if wanted is not None and not wanted(window):
            continue
        shown = {name: cut(name, value, window, height) for name, value in condition.items()}
        output = evaluate(x[..., *window], shown)
        if total is None:
            total = output.new_zeros(*output.shape[:2], height, width)
        weight = gaussian(output)
        total[..., *window] += output * weight
        weights[..., *window] += weight
    if total is None:
        return torch.zeros_like(x)
    return total / torch.where(weights > 0, weights, 1.0)


def cut(name: str, value: Tensor, window: Slices, height: int) -> Tensor:
    """The part of a condition, coarser or finer, that belongs to the window of a state of `height` rows.

    Raises:
        ValueError: the window begins or ends inside a pixel of it.
    """
    if value.dim() < 4:
        return value
    if any(end * value.shape[-2] % height for side in window for end in (side.start, side.stop)):
        raise ValueError(
            f"a pixel of the condition {name!r} covers {height // value.shape[-2]} of the state: tile and overlap must "
            "be multiples of that"
        )
    rows, columns = (
        slice(side.start * value.shape[-2] // height, side.stop * value.shape[-2] // height) for side in window
    )
    return value[..., rows, columns]


def windows(height: int, width: int, tiles: Tiles) -> Iterator[Slices]:
    """Row and column slices of tiles that cover `height` x `width`."""
    for top in starts(height, tiles):
        for left in starts(width, tiles):
            yield slice(top, min(top + tiles.side, height)), slice(left, min(left + tiles.side, width))


def starts(length: int, tiles: Tiles) -> list[int]:
    """The first rows or columns of the tiles; the last tile ends at `length`."""
    last = max(length - tiles.side, 0)
    return [*range(0, last, tiles.side - tiles.overlap), last]


def gaussian(like: Tensor) -> Tensor:
    """Gaussian weights of a tile, float32 `[h,w]`, 1 at the centre."""
    rows, columns = (
        torch.linspace(-0.5, 0.5, length, device=like.device).div(WIDTH).square().div(-2).exp()
        for length in like.shape[-2:]
    )
    return torch.outer(rows, columns)
