"""LPIPS from convolutional layers alone, against the published example and two other implementations."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as reference

import lightning_modules.metrics.lpips as module
from lightning_modules.metrics.image_features import Backbone, ImageFeatures
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.weight_files import WeightsError
from tests.lightning_modules.metrics.photographs import pair

DATA = Path(os.environ.get("DIFFSR_TEST_DATA", "/nowhere"))
needs_weights = pytest.mark.skipif(
    not (DATA / "weights" / "alexnet_features.safetensors").is_file(),
    reason="DIFFSR_TEST_DATA names no folder with weights/alexnet_features.safetensors",
)


def random_weights(backbone: Backbone, path: Path) -> Path:
    """Layers of a scale at which features neither vanish nor explode, under their published names."""
    torch.manual_seed(0)
    features = ImageFeatures(backbone)
    for layer in features.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    torch.save(features.state_dict() | {"classifier.6.weight": torch.zeros(2)}, path)
    return path


def ours(backbone: Backbone, weights: Path) -> LPIPS:
    score = LPIPS(backbone, str(weights))
    score.load()
    return score


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_it_is_that_of_torchmetrics_with_the_same_weights(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ours(backbone, random_weights(backbone, tmp_path / "weights.pth"))
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: score.network.features)
    expected = reference._LPIPS(net=backbone)
    _, hr = pair()
    sr = hr.flip(0)
    with torch.no_grad():
        theirs = expected(2 * sr.float() - 1, 2 * hr.float() - 1).flatten()
    assert theirs.min() > 0.01
    torch.testing.assert_close(score(sr, hr), theirs, rtol=0, atol=1e-5)


def example(name: str) -> Tensor:
    pixels = np.asarray(Image.open(DATA / "lpips_example" / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> LPIPS:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(DATA / "weights"))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # it is not needed
    score = LPIPS()
    score.load()
    return score


@needs_weights
def test_the_authors_example_has_its_published_distances(published: LPIPS) -> None:
    found = [float(published(example(name), example("ex_ref"))) for name in ("ex_p0", "ex_p1")]
    assert found == pytest.approx([0.7219, 0.1376], abs=5e-5)


@needs_weights
def test_it_is_that_of_the_authors_package(published: LPIPS) -> None:
    """Computed with lpips 0.1.4 and the same weights."""
    sr, hr = pair()
    assert published(sr, hr).tolist() == pytest.approx([0.1568151414, 0.1861287653], abs=1e-5)


@needs_weights
def test_the_layers_of_torchmetrics_are_the_published_ones(published: LPIPS) -> None:
    from safetensors.torch import load_file

    for mine, theirs in zip(
        published.linear, load_file(DATA / "weights" / "lpips_alex_linear.safetensors").values(), strict=True
    ):
        assert torch.equal(mine, theirs.flatten())
    assert list(published.files) == ["alexnet_features.safetensors", "alex.pth"]


def test_gradients_reach_the_image_and_no_weights(tmp_path: Path) -> None:
    score = ours("alex", random_weights("alex", tmp_path / "weights.pth"))
    sr = torch.zeros(1, 3, 64, 64, requires_grad=True)
    score(sr, torch.full((1, 3, 64, 64), 0.5)).sum().backward()
    assert sr.grad is not None and sr.grad.isfinite().all() and sr.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in score.parameters())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = random_weights("vgg", tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"vgg\.pth: lacks features\.\d+\.\w+, or holds it in another shape"):
        ours("alex", weights)


def test_without_weights_the_error_names_file_source_and_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    wanted = r"LPIPS \(vgg\) needs the weights vgg16-397923af\.pth.*https://download\.pytorch\.org.*`weights: FILE`"
    with pytest.raises(WeightsError, match=wanted):
        LPIPS("vgg").load()


def test_a_score_is_named_by_its_backbone() -> None:
    assert [LPIPS(backbone).name for backbone in ("alex", "vgg")] == ["lpips", "lpips_vgg"]
    assert module.LINEAR.is_dir()
