"""DISTS against torchmetrics, which carries the authors' code."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.functional.image import dists as reference

from lightning_modules.metrics.dists import DISTS
from lightning_modules.metrics.image_features import ImageFeatures
from lightning_modules.weight_files import WeightsError
from tests.lightning_modules.metrics.photographs import pair
from tests.lightning_modules.metrics.test_lpips import random_weights


@pytest.fixture
def score(tmp_path: Path) -> DISTS:
    made = DISTS(str(random_weights("vgg", tmp_path / "vgg.pth")))
    made.load()
    return made


def test_it_is_that_of_torchmetrics_with_the_same_weights(score: DISTS, monkeypatch: pytest.MonkeyPatch) -> None:
    same = ImageFeatures("vgg")
    same.features.load_state_dict(score.network.features.state_dict())
    monkeypatch.setattr(reference, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(reference, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    monkeypatch.setattr(reference, "vgg16", lambda weights: same, raising=False)
    _, hr = pair()
    sr = hr.flip(0)
    with torch.no_grad():
        theirs = reference.DISTSNetwork()(sr.float(), hr.float())
    assert theirs.min() > 0.01
    torch.testing.assert_close(score(sr, hr), theirs, rtol=0, atol=1e-5)


def test_equal_images_have_no_distance(score: DISTS) -> None:
    torch.testing.assert_close(score(pair()[1], pair()[1]), torch.zeros(2), rtol=0, atol=1e-6)


def test_without_weights_the_error_names_the_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"^DISTS needs the weights vgg16-397923af\.pth or vgg16_features"):
        DISTS().load()
