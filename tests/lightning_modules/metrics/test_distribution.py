"""FID, KID, precision and recall of given features, and what patches they are taken of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_modules.metrics.distribution import Distribution, frechet_distance, patches, precision_and_recall
from lightning_modules.metrics.score import MissingPackageError
from lightning_modules.weight_files import WeightsError


def rows(count: int = 300, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    a = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing
    b = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing * 1.2 + 0.3
    return a, b


def test_fid_is_the_frechet_distance_of_gaussians() -> None:
    a, b = (each.numpy() for each in rows())
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*rows()) == pytest.approx(expected, rel=1e-8)


def test_kid_is_that_of_torchmetrics_where_one_subset_is_all() -> None:
    a, b = rows()
    identity = nn.Identity()
    identity.num_features = a.shape[1]
    metric = KernelInceptionDistance(feature=identity, subsets=1, subset_size=len(a))
    metric.update(a, real=False)
    metric.update(b, real=True)
    found = Distribution().compare(a, b)["kid_patch256"]
    assert found == pytest.approx(float(metric.compute()[0]), rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_shares_inside_the_other_manifold(neighbours: int) -> None:
    a, b = rows(1500, 3)  # more rows than are compared at once
    b = b * 2

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = np.sort(cdist(manifold, manifold), axis=1)[:, neighbours]
        return float((cdist(points, manifold) <= radii).any(axis=1).mean())

    precision, recall = precision_and_recall(a, b, neighbours)
    assert precision == share(a.numpy(), b.numpy())
    assert recall == share(b.numpy(), a.numpy())
    assert recall < precision


def test_equal_sets_are_at_no_distance() -> None:
    a, _ = rows()
    found = Distribution(patch=None).compare(a, a)
    assert list(found) == ["fid", "kid", "precision", "recall"]
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (1, 1)


def test_patches_are_those_of_a_grid_and_of_one_shifted_by_half() -> None:
    image = torch.arange(2 * 10 * 13).view(2, 10, 13)
    found = patches(image, 4)
    assert found.shape == (2 * 3 + 2 * 2, 2, 4, 4)
    assert torch.equal(found[1], image[:, 0:4, 4:8])
    assert torch.equal(found[6], image[:, 2:6, 2:6])
    assert torch.equal(patches(image, 10), image[None, :, :10, :10])


class Corner(nn.Module):
    """Stands in for the network: the first pixel of each patch, as 8-bit values."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.uint8
        return image[:, :, 0, 0]


def test_features_are_kept_by_image() -> None:
    score = Distribution(patch=32)
    score.network = Corner()
    images = torch.rand(2, 3, 70, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = (images * 255).round() / 255
    together = score.features(images)
    assert [len(each) for each in together] == [6 + 2, 6 + 2]
    assert torch.equal(together[1], score.features(images[1:])[0])
    assert together[1][1].tolist() == (images[1, :, 0, 32] * 255).round().tolist()


def test_too_few_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="need at least 4 patches, got 3"):
        Distribution().compare(torch.rand(3, 5), torch.rand(3, 5))


def test_without_its_package_or_weights_the_error_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import lightning_modules.metrics.distribution as module

    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(MissingPackageError, match=r"^FID needs the package torch_fidelity.*extra `fid`"):
        Distribution().load()
    monkeypatch.setattr(module, "require", lambda *_: None)
    with pytest.raises(WeightsError, match=r"^FID needs the weights weights-inception-2015-12-05-6726825d\.pth"):
        Distribution().load()
