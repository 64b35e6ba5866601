"""Cutting pairs: HR and LR stay aligned; patches are a function of (seed, key, pass)."""

from collections import Counter

import numpy as np
import pytest

from datamodules.stream.crops import CenterCrop, RandomCrop, cut_to_multiple
from datamodules.stream.sources import BadSample, Sample


def pair(height: int, width: int, scale: int) -> Sample:
    """HR holds its own coordinates divided by the scale; LR holds its coordinates."""
    rows, columns = np.mgrid[:height, :width]
    hr = np.stack([rows // scale, columns // scale, rows * 0], axis=2).astype(np.uint8)
    return Sample("a", hr, hr[: height // scale * scale : scale, : width // scale * scale : scale])


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("draw", range(12))
def test_random_patches_keep_pairs_aligned(draw: int, rotate: bool) -> None:
    patch = RandomCrop(12, 4, seed=0, rotate=rotate)(pair(37, 50, 4), draw)
    assert patch.hr.shape == (12, 12, 3)
    assert patch.lr is not None and np.array_equal(patch.hr[::4, ::4], patch.lr)


def test_patches_are_a_function_of_seed_key_and_draw() -> None:
    sample, crop = pair(40, 40, 2), RandomCrop(8, 2, seed=3)
    assert np.array_equal(crop(sample, 5).hr, crop(sample, 5).hr)
    patches = {crop(sample, draw).hr.tobytes() for draw in range(20)}
    patches |= {RandomCrop(8, 2, seed=seed)(sample, 5).hr.tobytes() for seed in range(20)}
    patches |= {crop(Sample(f"b{key}", sample.hr), 5).hr.tobytes() for key in range(20)}
    assert len(patches) > 45


def test_every_corner_and_every_orientation_is_reached() -> None:
    sample = pair(6, 6, 2)
    crop = RandomCrop(4, 2, seed=0, rotate=True)
    corners = Counter(tuple(crop(sample, draw).hr.reshape(-1, 3).min(axis=0)[:2]) for draw in range(200))
    assert len(corners) == 4 and min(corners.values()) > 20
    assert len({RandomCrop(6, 2, 0, rotate=True)(sample, draw).hr.tobytes() for draw in range(100)}) == 8


def test_centre_crop_of_a_pair() -> None:
    patch = CenterCrop(8, 4)(pair(22, 33, 4))
    assert patch.lr is not None and np.array_equal(patch.hr[::4, ::4], patch.lr)
    assert tuple(patch.lr[0, 0, :2]) == (1, 3)


def test_whole_images_are_cut_to_a_multiple_of_the_scale() -> None:
    sample = CenterCrop(None, 4)(pair(23, 33, 4))
    assert sample.hr.shape == (20, 32, 3)
    assert sample.lr is not None and sample.lr.shape == (5, 8, 3)


def test_sizes_that_disagree_are_named() -> None:
    sample = pair(24, 32, 4)
    wrong = Sample("set/7", sample.hr, sample.hr[:7, :8])
    with pytest.raises(BadSample, match="set/7: HR 32x24 and LR 8x7 disagree: at scale 4 LR must be 8x6"):
        cut_to_multiple(wrong, 4)


@pytest.mark.parametrize("crop", [RandomCrop(16, 4, seed=0), CenterCrop(16, 4)])
def test_an_image_below_the_crop_is_named(crop: RandomCrop | CenterCrop) -> None:
    with pytest.raises(BadSample, match="a: 40x12 is below the crop of 16x16"):
        crop(Sample("a", pair(12, 40, 4).hr), draw=0)


def test_an_image_below_the_scale_is_named() -> None:
    with pytest.raises(BadSample, match="a: 9x3 is smaller than the scale 4"):
        CenterCrop(None, 4)(Sample("a", pair(3, 9, 1).hr), draw=0)
