"""Steps at tile borders, and nothing else."""

import pytest
import torch
from torch import Tensor

from lightning_modules.metrics.seams import Seams
from tests.lightning_modules.metrics.photographs import pair


def lifted(hr: Tensor, rows: slice, columns: slice) -> Tensor:
    """The image with one tile lighter by 6 grey levels."""
    sr = hr.clone()
    sr[..., rows, columns] += 6 / 255
    return sr


def test_a_lighter_tile_shows_at_its_border() -> None:
    _, hr = pair()
    assert Seams(64)(hr, hr).tolist() == [1, 1]
    assert Seams(64)(lifted(hr, slice(64, 128), slice(64, 128)), hr).min() > 2
    assert Seams(64)(lifted(hr, slice(0, 64), slice(0, 208)), hr).min() > 1.5


def test_steps_elsewhere_and_edges_of_the_picture_do_not_count() -> None:
    _, hr = pair()
    assert Seams(64)(lifted(hr, slice(50, 110), slice(70, 150)), hr).max() < 1
    hr[..., 64:] = 1 - hr[..., 64:]  # an edge of the picture itself, which the result has as well
    assert Seams(64)(hr, hr).tolist() == [1, 1]


def test_noise_has_no_seams() -> None:
    assert Seams(64)(*pair()).tolist() == pytest.approx([1, 1], abs=0.05)


def test_a_tile_is_at_least_two_pixels() -> None:
    with pytest.raises(ValueError, match="tile must be at least 2 pixels, got 1"):
        Seams(1)
    assert Seams(64).name == "seams_64"


def test_the_score_is_the_ratio_of_mean_steps() -> None:
    hr = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    sr = hr.clone()
    sr[..., 2:] = 10 / 255
    luma_step = 10 * (65.481 + 128.553 + 24.966) / 255
    assert float(Seams(2)(sr, hr)) == pytest.approx((luma_step / 2 + 0.5) / 0.5)
