"""LPIPS: the distance of two images in the features of a classifier (Zhang et al., arXiv:1801.03924)."""

from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn

from lightning_modules.metrics.image_features import WIDTHS, Backbone, ImageFeatures, file_of
from lightning_modules.metrics.score import FullReferenceScore
from lightning_modules.weight_files import obtain, read_tensors

LINEAR = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"  # the authors' v0.1 layers


class LPIPS(FullReferenceScore):
    """Learned perceptual image patch similarity, v0.1; lower is better.

    AlexNet is the literature's score, VGG-16 its loss. Gradients reach `sr`, so that it serves as a loss as well. It
    needs the classifier's convolutional layers alone and no torchvision.

    Args:
        backbone: `alex` or `vgg`.
        weights: File of the classifier's weights; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.
    """

    higher_is_better = False
    smallest = 32  # AlexNet's last stage of a smaller image is empty
    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone = "alex", weights: str | None = None, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.backbone, self.weights = backbone, weights
        self.name = {"alex": "lpips", "vgg": "lpips_vgg"}[backbone]
        self.definition = f"LPIPS v0.1 on {backbone}, whole image in RGB"
        self.network = ImageFeatures(backbone)
        self.linear = nn.ParameterList(torch.zeros(width) for width in WIDTHS[backbone])
        self.requires_grad_(False)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def load(self) -> None:
        """See `Loadable.load`."""
        if self.files:
            return
        path = obtain(file_of(self.backbone), self.weights, needed_by=f"LPIPS ({self.backbone})")
        self.network.load(path)
        layers = LINEAR / f"{self.backbone}.pth"
        for mine, published in zip(self.linear, read_tensors(layers).values(), strict=True):
            mine.copy_(published.flatten())
        self.record(path)
        self.record(layers)

    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `FullReferenceScore.compare`."""
        distances = []
        for weight, a, b in zip(self.linear, self._stages(sr), self._stages(hr), strict=True):
            distances.append(((a - b).square() * weight.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)

    def _stages(self, image: Tensor) -> list[Tensor]:
        """Features of each stage, of length 1 at each place."""
        features: list[Tensor] = self.network((2 * image.float() - 1 - self.shift) / self.scale)
        # The small number under the root keeps the gradient finite where all features are 0.
        return [stage / ((stage.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10) for stage in features]
