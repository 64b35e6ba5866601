import numpy as np
import pytest
import torch
from skimage.data import astronaut, coffee
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_modules.metrics.ssim import MSSSIM, ms_ssim, ssim
from tests.lightning_modules.metrics import photographs


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two photographs and what noise makes of them, 8-bit values in [0, 1]."""
    hr = np.stack([astronaut()[100:180, 150:260], coffee()[200:280, 300:410]])
    noise = np.random.default_rng(0).normal(0, 12, hr.shape)
    sr = np.clip(np.round(hr + noise), 0, 255)
    both = [torch.from_numpy(image / 255).permute(0, 3, 1, 2) for image in (sr, hr)]
    return both[0], both[1]


def test_it_is_the_mean_of_scikit_images_map_over_valid_windows(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    for index, score in enumerate(ssim(sr, hr)):
        _, whole = structural_similarity(
            sr[index].numpy(),
            hr[index].numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            full=True,
        )
        assert float(score) == pytest.approx(whole[:, 5:-5, 5:-5].mean(), abs=1e-9)


def test_it_is_torchmetrics_map_without_the_padded_pixels(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    padded, whole = structural_similarity_index_measure(
        sr, hr, data_range=1.0, reduction="none", return_full_image=True
    )
    valid = whole[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    torch.testing.assert_close(ssim(sr, hr), valid, atol=1e-9, rtol=0)
    assert (padded - valid).abs().min() > 1e-5  # why torchmetrics' own mean is not used


def test_equal_images_score_one_and_small_ones_are_refused(pair: tuple[Tensor, Tensor]) -> None:
    assert ssim(pair[1], pair[1]).tolist() == pytest.approx([1, 1], abs=1e-12)
    with pytest.raises(ValueError, match="11 pixels on each side, got 20x10"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_ms_ssim_is_that_of_the_package_everyone_uses() -> None:
    """Computed with pytorch-msssim 1.0.0, whose scales are these where no size is odd."""
    sr, hr = photographs.pair()
    assert ms_ssim(sr, hr).tolist() == pytest.approx([0.93331136, 0.91906276], abs=1e-5)
    assert MSSSIM("rgb")(sr, hr).tolist() == ms_ssim(sr, hr).tolist()
    assert ms_ssim(hr, hr).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_small_images_are_refused_by_ms_ssim() -> None:
    assert ms_ssim(torch.ones(1, 1, 176, 191), torch.ones(1, 1, 176, 191)).tolist() == pytest.approx([1])
    with pytest.raises(ValueError, match="176 pixels on each side, got 200x175"):
        ms_ssim(torch.zeros(1, 1, 175, 200), torch.zeros(1, 1, 175, 200))
