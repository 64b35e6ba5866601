"""LPIPS with the published weights, or an error that says how to get them."""

from pathlib import Path
from typing import Literal

import torch
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity


def lpips(
    backbone: Literal["alex", "vgg"] = "alex", *, otherwise: str = "leave LPIPS out"
) -> LearnedPerceptualImagePatchSimilarity:
    """LPIPS v0.1 (Zhang et al., arXiv:1801.03924), one value per image, for images in [-1, 1].

    AlexNet is the literature's metric, VGG-16 its loss. Nothing is downloaded, and nothing is left at random: the score
    of a random network looks like any other number.

    Args:
        backbone: Whose features are compared.
        otherwise: What to do where LPIPS cannot be had, as errors name it.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        FileNotFoundError: the backbone's weights are not on this machine.
    """
    try:
        from torchvision.models import AlexNet_Weights, VGG16_Weights
    except ImportError as error:
        raise ModuleNotFoundError(
            "LPIPS needs torchvision, which cannot be imported here: install this project's extra `lpips` with the "
            f"torchvision that matches torch {torch.__version__}, or {otherwise} ({error})"
        ) from error
    name, default = {"alex": ("alexnet", AlexNet_Weights.DEFAULT), "vgg": ("vgg16", VGG16_Weights.DEFAULT)}[backbone]
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights}: LPIPS needs the ImageNet weights of {name}. On a machine with a network, run `python -c "
            f"\"import torchvision; torchvision.models.{name}(weights='DEFAULT')\"` and copy the file here (TORCH_HOME "
            f"names another folder), or {otherwise}"
        )
    return LearnedPerceptualImagePatchSimilarity(net_type=backbone, reduction="none", normalize=False)
