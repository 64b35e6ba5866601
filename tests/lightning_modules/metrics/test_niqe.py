import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.ndimage import correlate, gaussian_filter
from scipy.stats import gennorm
from skimage.data import astronaut, cat, coffee, rocket
from torch import Tensor

from lightning_modules.metrics.niqe import (
    FEATURES,
    NIQE,
    asymmetric_fit,
    features,
    fit_model,
    luminance_of,
    read_model,
)
from lightning_modules.weight_files import WeightsError

BLOCK = 32
PUBLISHED = Path(os.environ.get("DIFFSR_TEST_DATA", "/nowhere")) / "weights" / "niqe_pris_params.npz"
# With the published model, by BasicSR 1.4.2 (calculate_niqe, crop_border=0, convert_to="y").
REFERENCE = {astronaut: 3.0649477, coffee: 4.1152416, cat: 2.6255244, rocket: 6.9691550}


def tensor_of(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels / 255.0).permute(2, 0, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiles of three photographs, as a file."""
    photos = [tensor_of(photo()) for photo in (astronaut, coffee, rocket)]
    tiles = [tile for photo in photos for rows in photo.split(96, dim=1) for tile in rows.split(96, dim=2)]
    fitted = fit_model([tile for tile in tiles if min(tile.shape[1:]) >= BLOCK], BLOCK)
    path = tmp_path_factory.mktemp("niqe") / "model.npz"
    np.savez(path, mu_pris_param=fitted.mean.numpy()[None], cov_pris_param=fitted.covariance.numpy())
    return path


def scorer(model: Path, block: int = BLOCK) -> NIQE:
    score = NIQE(str(model), block)
    score.load()
    return score


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="DIFFSR_TEST_DATA has no weights/niqe_pris_params.npz")
@pytest.mark.parametrize("photo", REFERENCE)
def test_it_is_that_of_the_reference_implementation(
    photo: Callable[[], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(PUBLISHED.parent))
    score = NIQE()
    score.load()
    assert float(score(tensor_of(photo())[None])) == pytest.approx(REFERENCE[photo], abs=1e-3)
    assert list(score.files) == ["niqe_pris_params.npz"]


def test_a_checkpoint_holds_nothing_of_the_model(model: Path) -> None:
    assert not scorer(model).state_dict()


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0])
def test_the_fit_recovers_the_distribution_that_was_drawn_from(shape: float) -> None:
    values = gennorm.rvs(shape, scale=3.0, size=(2, 200_000), random_state=0)
    found, left, right = asymmetric_fit(torch.from_numpy(values))
    assert found.tolist() == pytest.approx([shape] * 2, rel=0.05)
    assert left.tolist() == pytest.approx([3.0] * 2, rel=0.03)
    assert right.tolist() == pytest.approx([3.0] * 2, rel=0.03)


def test_the_fit_tells_left_from_right() -> None:
    draws = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    _, left, right = asymmetric_fit(torch.where(draws < 0, draws * 2, draws * 5))
    assert float(right / left) == pytest.approx(2.5, rel=0.02)


def test_pixels_are_normalised_and_sharpness_is_measured_as_the_paper_says() -> None:
    image = luminance_of(tensor_of(astronaut()[:64, 64:160])[None])[0, 0].numpy().astype(np.float32)
    assert (image == image.round()).all()
    offsets = np.arange(7) - 3
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = correlate(image, window, mode="nearest")
    deviation = np.sqrt(np.abs(correlate(image**2, window, mode="nearest") - mean**2))
    normalised = torch.from_numpy((image - mean) / (deviation + 1))

    found, sharpness = features(torch.from_numpy(image)[None, None], BLOCK)

    assert found.shape == (6, FEATURES)
    np.testing.assert_allclose(sharpness[1], deviation[:BLOCK, BLOCK : 2 * BLOCK].mean(), rtol=1e-6)
    shape, left, right = asymmetric_fit(normalised[:BLOCK, BLOCK : 2 * BLOCK].reshape(1, -1))
    np.testing.assert_allclose(found[1, :2], torch.cat([shape, (left + right) / 2]), rtol=1e-5)


def test_blur_and_noise_score_worse_than_the_photograph(model: Path) -> None:
    photo = cat().astype(float)
    blurred = gaussian_filter(photo, (2, 2, 0))
    noisy = np.clip(photo + np.random.default_rng(0).normal(0, 25, photo.shape), 0, 255)
    clean, blur, noise = scorer(model)(torch.stack([tensor_of(image) for image in (photo, blurred, noisy)]))
    assert clean < blur
    assert clean < noise


def test_scores_of_other_blocks_have_another_name(model: Path) -> None:
    assert (scorer(model).name, scorer(model, 96).name) == ("niqe_block32", "niqe")


def test_an_image_without_texture_has_no_score(model: Path) -> None:
    assert scorer(model)(torch.full((1, 3, 64, 64), 0.5)).isnan().all()


def test_too_few_blocks_are_refused_with_the_block_that_fits(model: Path) -> None:
    with pytest.raises(ValueError, match="2x2 blocks of 96 pixels, got an image of 128x128; set block to at most 64"):
        scorer(model, 96)(torch.zeros(1, 3, 128, 128))


def test_models_are_read_from_both_formats(model: Path, tmp_path: Path) -> None:
    mean, covariance = read_model(model)
    savemat(tmp_path / "model.mat", {"mu_prisparam": mean.numpy()[None], "cov_prisparam": covariance.numpy()})
    again = read_model(tmp_path / "model.mat")
    assert torch.equal(again.mean, mean)
    assert torch.equal(again.covariance, covariance)


def test_a_missing_or_foreign_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.npz: no such file, and NIQE was told"):
        scorer(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(WeightsError, match=r"other\.npz: holds no mean and covariance"):
        scorer(tmp_path / "other.npz")


def test_a_model_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    harmful = np.array([print], dtype=object)
    np.savez(tmp_path / "harmful.npz", mu_pris_param=harmful, cov_pris_param=harmful)
    with pytest.raises(WeightsError, match="holds no mean and covariance"):
        read_model(tmp_path / "harmful.npz")
