"""Fidelity to the low-resolution image."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from lightning_modules.metrics.lr_consistency import LRConsistency, lr_psnr


def test_the_score_is_psnr_of_cell_averages_image_by_image() -> None:
    sr = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = avg_pool2d(sr, 4)
    shift = torch.tensor([0.1, 0.01, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    assert lr_psnr(sr, lr + shift).tolist() == pytest.approx([20, 40, math.inf])


def test_detail_inside_a_cell_does_not_count() -> None:
    lr = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    checkerboard = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(1, 3, 4, 4)
    assert lr_psnr(checkerboard, lr).item() == math.inf


def test_sizes_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9, 8\) pixels are no whole multiple of \(4, 4\)"):
        lr_psnr(torch.zeros(1, 3, 9, 8), torch.zeros(1, 3, 4, 4))


def test_as_a_score_it_needs_the_low_resolution_image_and_no_target() -> None:
    sr = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = avg_pool2d(sr, 4) + 0.1
    assert LRConsistency()(sr, lr=lr).tolist() == lr_psnr(sr, lr).tolist()
    with pytest.raises(ValueError, match="lr_psnr compares with the low-resolution image, which is missing"):
        LRConsistency()(sr, sr)
