"""The convolutional layers of AlexNet and VGG-16, in which LPIPS and DISTS compare images."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from lightning_modules.weight_files import WeightFile, WeightsError, read_tensors
from lightning_modules.weights import entry

Backbone = Literal["alex", "vgg"]

NAMES: dict[Backbone, str] = {"alex": "alexnet", "vgg": "vgg16"}  # of their weights
WIDTHS: dict[Backbone, tuple[int, ...]] = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def file_of(backbone: Backbone) -> WeightFile:
    """The published weights of a classifier."""
    return entry(NAMES[backbone]).weight_files()[0]


class ImageFeatures(nn.Module):
    """Five stages of features of an ImageNet classifier; layers are numbered as torchvision numbers them.

    Args:
        backbone: AlexNet or VGG-16.
        pool: Makes the pooling layer between VGG's stages, from its input's channels; the largest of 2x2 by default.
    """

    def __init__(self, backbone: Backbone, pool: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        if backbone == "alex":
            layers, self.taps = _alexnet(), (1, 4, 7, 9, 11)
        else:
            layers, self.taps = _vgg16(pool or (lambda _: nn.MaxPool2d(2, 2))), (3, 8, 15, 22, 29)
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The last activations of each stage, `[B,C,h,w]`, of images `[B,3,H,W]` normalised as the classifier's."""
        taken = []
        for index, layer in enumerate(self.features):
            image = layer(image)
            if index in self.taps:
                taken.append(image)
        return taken

    def load(self, path: Path) -> None:
        """Reads the published weights; the classifier's own layers in the file are passed over.

        Raises:
            WeightsError: the file lacks layers, or holds those of another network.
        """
        tensors = {name: value for name, value in read_tensors(path).items() if name.startswith("features.")}
        own = {name: value for name, value in self.state_dict().items() if name.endswith(("weight", "bias"))}
        fitting = {name for name, value in tensors.items() if name in own and own[name].shape == value.shape}
        if wrong := sorted(own.keys() ^ fitting):
            raise WeightsError(f"{path}: lacks {wrong[0]}, or holds it in another shape: these are other weights")
        self.load_state_dict(tensors, strict=False)  # pooling layers may have a constant filter of their own
        self.requires_grad_(False)


def _alexnet() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


def _vgg16(pool: Callable[[int], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, depth) in enumerate(zip(WIDTHS["vgg"], (2, 2, 3, 3, 3), strict=True)):
        if stage:
            layers.append(pool(channels))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers
