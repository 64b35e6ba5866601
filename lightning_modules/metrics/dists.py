"""DISTS: structure and texture compared in the features of VGG-16 (Ding et al., arXiv:2004.07728)."""

from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lightning_modules.metrics.image_features import WIDTHS, ImageFeatures, file_of
from lightning_modules.metrics.score import FullReferenceScore
from lightning_modules.weight_files import obtain, read_tensors

LEARNED = Path(torchmetrics.__file__).parent / "functional" / "image" / "dists_models" / "weights.pt"  # the authors'
CHANNELS = (3, *WIDTHS["vgg"])  # the image itself is the first stage
SMALL = 1e-6


class DISTS(FullReferenceScore):
    """Deep image structure and texture similarity; 0 for equal images, lower is better.

    The image keeps its size; the authors shrink it to 256 pixels before, which other numbers come of.

    Args:
        weights: File of VGG-16's weights; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.
    """

    name = "dists"
    higher_is_better = False
    smallest = 16
    definition = "DISTS on VGG-16, whole image in RGB at its own size"
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.weights = weights
        self.network = ImageFeatures("vgg", pool=SmoothPool)
        self.alpha = nn.Parameter(torch.zeros(sum(CHANNELS)))  # weights of texture, by channel
        self.beta = nn.Parameter(torch.zeros(sum(CHANNELS)))  # weights of structure
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def load(self) -> None:
        """See `Loadable.load`."""
        if self.files:
            return
        path = obtain(file_of("vgg"), self.weights, needed_by="DISTS")
        self.network.load(path)
        learned = read_tensors(LEARNED)
        self.alpha.copy_(learned["alpha"].flatten())
        self.beta.copy_(learned["beta"].flatten())
        self.record(path)
        self.record(LEARNED)

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        terms = [_similarities(a, b) for a, b in zip(self._stages(sr), self._stages(hr), strict=True)]
        texture, structure = (torch.cat(kind, dim=1) for kind in zip(*terms, strict=True))
        whole = self.alpha.sum() + self.beta.sum()
        return 1 - (texture @ self.alpha + structure @ self.beta) / whole

    def _stages(self, image: Tensor) -> list[Tensor]:
        image = image.float()
        return [image, *self.network((image - self.mean) / self.std)]


class SmoothPool(nn.Module):
    """Halves a map by the root of the Hann-weighted mean of squares, which shifts do not alias in.

    Args:
        channels: Of the map.
    """

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        window = torch.hann_window(5, periodic=False)[1:-1]
        kernel = torch.outer(window, window) / window.sum() ** 2
        self.register_buffer("filter", kernel.expand(channels, 1, 3, 3), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """`[B,C,H/2,W/2]`."""
        squares = conv2d(image.square(), self.filter, stride=2, padding=1, groups=image.shape[1])
        return (squares + 1e-12).sqrt()


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Texture (Eq. 3) and structure (Eq. 4) of each channel, `[B,C]`."""
    mean_a, mean_b = a.mean(dim=(2, 3)), b.mean(dim=(2, 3))
    variance_a, variance_b = a.var(dim=(2, 3), correction=0), b.var(dim=(2, 3), correction=0)
    covariance = (a * b).mean(dim=(2, 3)) - mean_a * mean_b
    texture = (2 * mean_a * mean_b + SMALL) / (mean_a**2 + mean_b**2 + SMALL)
    structure = (2 * covariance + SMALL) / (variance_a + variance_b + SMALL)
    return texture, structure
