"""How alike two sets of images are as distributions: FID, KID, precision and recall, on patches."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from lightning_modules.metrics.library import require, torch_hub
from lightning_modules.metrics.score import SetScore
from lightning_modules.weight_files import WeightFile, obtain

_log = logging.getLogger(__name__)

FILE = WeightFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
BATCH = 32  # patches at once
ROWS = 1024  # of a matrix of distances at once


class Distribution(SetScore):
    """FID, KID, precision and recall in the 2048 features of FID's Inception network.

    - FID (arXiv:1706.08500): Frechet distance of the two Gaussians. It is biased by the number of patches: only compare
      values of one set of images and one patch size.
    - KID (arXiv:1801.01401): squared MMD with the cubic kernel, unbiased, over all patches at once, not over random
      subsets.
    - Precision and recall (arXiv:1904.06991): the share of each set inside the other's manifold of nearest neighbours.

    Args:
        patch: Side of the patches, in two grids, one shifted by half a patch (arXiv:2006.09965); None for whole images.
        neighbours: k of precision and recall.
        weights: File of the network's weights; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.

    Raises:
        ValueError: a patch smaller than 32 pixels, or no neighbour.
    """

    def __init__(
        self, patch: int | None = 256, neighbours: int = 3, weights: str | None = None, *, optional: bool = False
    ) -> None:
        super().__init__(optional=optional)
        if (patch is not None and patch < 32) or neighbours < 1:
            raise ValueError(f"patch must be at least 32 and neighbours at least 1, got {patch} and {neighbours}")
        self.patch, self.neighbours, self.weights = patch, neighbours, weights
        self.smallest = patch or 1
        ending = "" if patch is None else f"_patch{patch}"
        directions = {"fid": False, "kid": False, "precision": True, "recall": True}
        self.higher_is_better = {f"{name}{ending}": better for name, better in directions.items()}
        shown = "whole images" if patch is None else f"patches of {patch} pixels in two grids"
        self.definition = f"Inception of 2015-12-05, 2048 features, {shown}, k = {neighbours}"
        self.network: nn.Module | None = None

    def load(self) -> None:
        """See `Loadable.load`."""
        if self.network is not None:
            return
        with torch_hub("FID"):
            require(("torch_fidelity",), "fid", "FID")
            path = self.record(obtain(FILE, self.weights, needed_by="FID"))
            self.network = _inception(str(path))

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """See `SetScore.features`."""
        assert self.network is not None, "load() comes before the first image"
        pixels = (images.float() * 255).round().to(torch.uint8)
        rows = []
        for image in pixels:
            parts = image[None] if self.patch is None else patches(image, self.patch)
            rows.append(torch.cat([self.network(some).float().cpu() for some in parts.split(BATCH)]))
        return rows

    def compare(self, sr: Tensor, hr: Tensor) -> dict[str, float]:
        """See `SetScore.compare`.

        Raises:
            ValueError: there are too few patches.
        """
        least = max(2, self.neighbours + 1)
        if min(len(sr), len(hr)) < least:
            raise ValueError(
                f"FID, KID, precision and recall need at least {least} patches, got {min(len(sr), len(hr))}: take more "
                "images or smaller patches"
            )

        if min(len(sr), len(hr)) < sr.shape[1]:
            _log.warning("FID of %d patches in %d dimensions is strongly biased", len(sr), sr.shape[1])
        a, b = sr.double(), hr.double()
        precision, recall = precision_and_recall(a, b, self.neighbours)

        values = (frechet_distance(a, b), float(poly_mmd(b, a)), precision, recall)
        return dict(zip(self.higher_is_better, values, strict=True))


def patches(image: Tensor, side: int) -> Tensor:
    """`[N,C,side,side]` of `[C,H,W]`: the patches of a grid from the corner, and of one shifted by half a patch."""
    shifted = image[:, side // 2 :, side // 2 :]
    found = []
    for origin in (image, shifted):
        if min(origin.shape[-2:]) >= side:
            cut = origin.unfold(1, side, side).unfold(2, side, side)
            found.append(cut.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return torch.cat(found)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Frechet distance of the Gaussians of two sets of rows, `[N,D]` and `[M,D]` in float64."""
    identity: Any = nn.Identity()
    identity.num_features = a.shape[1]  # then torchmetrics takes what it is given for features
    distance = FrechetInceptionDistance(feature=identity)
    distance.update(a.cpu(), real=False)
    distance.update(b.cpu(), real=True)
    return float(distance.compute())


def precision_and_recall(a: Tensor, b: Tensor, neighbours: int) -> tuple[float, float]:
    """The share of rows of `a` inside the manifold of `b`, and of `b` inside that of `a` (Eq. 1 and 2).

    A manifold is the union of balls around the rows of a set, each reaching its k-th nearest neighbour of the same set.

    Args:
        a: The results, `[N,D]`.
        b: The targets, `[M,D]`.
        neighbours: k.
    """
    return _share_inside(a, b, neighbours), _share_inside(b, a, neighbours)


def _share_inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    # The nearest neighbour of a row is itself, hence k + 1.
    radii = torch.cat(
        [torch.cdist(some, manifold).kthvalue(neighbours + 1).values for some in torch.split(manifold, ROWS)]
    )
    inside = [(torch.cdist(some, manifold) <= radii).any(dim=1) for some in torch.split(points, ROWS)]
    return float(torch.cat(inside).double().mean())


def _inception(weights: str) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    # Without antialiasing images are resized as the original TensorFlow network resizes them.
    network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias=False)
    return network.requires_grad_(False)
