"""Evaluates a network on overlapping tiles of states that are too large for it at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

WIDTH = 0.25  # standard deviation of a tile's weights, in tiles


def tiled(evaluate: Callable[..., Tensor], *maps: Tensor, tile: int, overlap: int) -> Tensor:
    """`evaluate(*maps)` from tiles, each weighted by a Gaussian around its centre (as in StableSR, arXiv:2305.07015).

    Args:
        evaluate: From as many maps `[B,C,h,w]` to one `[B,C',h,w]`.
        maps: `[B,C,H,W]` each, all of one H and W.
        tile: Side of a tile, where the map is larger than it.
        overlap: Of neighbouring tiles, at least.

    Returns:
        `[B,C',H,W]`; exactly `evaluate(*maps)` where one tile holds all.
    """
    height, width = maps[0].shape[-2:]
    if max(height, width) <= tile:
        return evaluate(*maps)
    total: Tensor | None = None
    weights = maps[0].new_zeros(1, 1, height, width, dtype=torch.float32)
    for window in windows(height, width, tile, overlap):
        output = evaluate(*(part[..., *window] for part in maps))
        if total is None:
            total = output.new_zeros(*output.shape[:2], height, width, dtype=torch.float32)
        weight = gaussian(output)
        total[..., *window] += output * weight
        weights[..., *window] += weight
    assert total is not None
    return total / weights


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
