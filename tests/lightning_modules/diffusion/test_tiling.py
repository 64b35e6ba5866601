"""Tiles of large states: coverage, agreement with the whole, no seams."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.diffusion.tiling import Tiles, starts, tiled, windows


@pytest.mark.parametrize(("length", "side", "overlap"), [(5, 8, 2), (8, 8, 2), (9, 8, 2), (40, 16, 8), (41, 16, 0)])
def test_tiles_cover_everything_and_overlap(length: int, side: int, overlap: int) -> None:
    tiles = Tiles(side, overlap)
    begins = starts(length, tiles)
    assert begins[0] == 0 and begins[-1] + side >= length
    assert all(later - earlier <= side - overlap for earlier, later in pairwise(begins))
    assert begins[-1] == max(length - side, 0)
    covered = torch.zeros(length, 7)
    for window in windows(length, 7, tiles):
        covered[window] += 1
    assert covered.min() >= 1


def test_what_fits_one_tile_is_evaluated_as_it_is() -> None:
    x = torch.rand(2, 4, 8, 8)
    assert tiled(lambda x, _: x, x, {}, Tiles(8, 4)) is x


def test_a_pointwise_network_does_not_notice_tiles() -> None:
    x, hint, small, text = (torch.randn(2, 4, *size) for size in ((40, 24), (40, 24), (10, 6), (5,)))

    def evaluate(x: Tensor, shown: dict[str, Tensor]) -> Tensor:
        assert max(x.shape[-2:]) <= 16 and shown["text"] is text
        enlarged = shown["small"].repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)
        return torch.cat([x.sin() * shown["hint"], enlarged], dim=1)

    condition = {"hint": hint, "small": small, "text": text}
    result = tiled(evaluate, x, condition, Tiles(16, 8))
    whole = small.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)
    torch.testing.assert_close(result, torch.cat([x.sin() * hint, whole], dim=1), rtol=0, atol=1e-5)


def test_tiles_that_cut_through_a_condition_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a pixel of the condition 'image' covers 3 of the state"):
        tiled(lambda x, _: x, torch.zeros(1, 1, 24, 24), {"image": torch.zeros(1, 1, 8, 8)}, Tiles(16, 8))


def test_tiles_leave_no_seams() -> None:
    """Each tile disagrees by a constant of its own; between neighbours the result must go over gradually."""
    offsets = iter([0.0, 1.0, 0.0, 1.0])
    x = torch.zeros(1, 1, 32, 80)
    result = tiled(lambda x, _: x + next(offsets), x, {}, Tiles(32, 16))
    assert result.min() >= 0 and result.max() <= 1
    steps = result.diff(dim=-1).abs()
    assert steps.max() < 0.2
    assert result[..., 12].max() < 0.1 and result[..., 32].min() > 0.7


def test_convolutions_agree_with_the_whole_up_to_the_borders_of_tiles() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(1, 4, 48, 48)
    with torch.no_grad():
        whole, parts = network(x), tiled(lambda x, _: network(x), x, {}, Tiles(24, 16))
    assert (parts - whole).abs().mean() < 0.03 * whole.abs().mean()
    assert (parts - whole).abs().max() < 0.5 * whole.abs().max()
