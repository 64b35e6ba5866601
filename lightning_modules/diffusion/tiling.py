"""Evaluates a network on overlapping tiles of states that are too large for it at once."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

WIDTH = 0.25  # standard deviation of a tile's weights, in tiles


def tiled(
    evaluate: Callable[[Tensor, dict[str, Tensor]], Tensor],
    x: Tensor,
    condition: Mapping[str, Tensor],
    *,
    tile: int,
    overlap: int,
) -> Tensor:
    """`evaluate(x, condition)` from tiles, each weighted by a Gaussian around its centre (StableSR, arXiv:2305.07015).

    Args:
        evaluate: From a state `[B,C,h,w]` and what it is shown to `[B,C',h,w]`.
        x: `[B,C,H,W]`.
        condition: Maps `[B,C,H/k,W/k]`, with a whole k each, are cut as the state is; everything else is shown whole.
        tile: Side of a tile, where the state is larger than it.
        overlap: Of neighbouring tiles, at least.

    Returns:
        `[B,C',H,W]`; exactly `evaluate(x, condition)` where one tile holds all.

    Raises:
        ValueError: a map's pixels do not fit the tiles.
    """
    height, width = x.shape[-2:]
    if max(height, width) <= tile:
        return evaluate(x, dict(condition))
    total: Tensor | None = None
    weights = x.new_zeros(1, 1, height, width, dtype=torch.float32)
    for window in windows(height, width, tile, overlap):
        shown = {name: cut(name, value, window, height) for name, value in condition.items()}
        output = evaluate(x[..., *window], shown)
        if total is None:
            total = output.new_zeros(*output.shape[:2], height, width)
        weight = gaussian(output)
        total[..., *window] += output * weight
        weights[..., *window] += weight
    assert total is not None
    return total / weights


def cut(name: str, value: Tensor, window: tuple[slice, slice], height: int) -> Tensor:
    """The part of a condition that belongs to the window of a state of `height` rows.

    Raises:
        ValueError: the window begins or ends inside a pixel of it.
    """
    if value.dim() < 4:
        return value
    ratio = height // value.shape[-2]
    if any(end % ratio for side in window for end in (side.start, side.stop)):
        raise ValueError(
            f"a pixel of the condition {name!r} covers {ratio} of the state: tile and overlap must be multiples of that"
        )
    rows, columns = (slice(side.start // ratio, side.stop // ratio) for side in window)
    return value[..., rows, columns]


def windows(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """Row and column slices of tiles that cover `height` x `width`."""
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin; the last ends at `length`."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def gaussian(like: Tensor) -> Tensor:
    """Weights of a tile, `[h,w]` float32, 1 at the centre."""
    rows, columns = (
        torch.linspace(-0.5, 0.5, length, device=like.device).div(WIDTH).square().div(-2).exp()
        for length in like.shape[-2:]
    )
    return torch.outer(rows, columns)
