"""LPIPS with the published weights, or an error that says how to get them."""

from pathlib import Path

import torch
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity


def lpips() -> LearnedPerceptualImagePatchSimilarity:
    """LPIPS v0.1 on AlexNet (Zhang et al., arXiv:1801.03924), one value per image, for images in [-1, 1].

    Nothing is downloaded, and nothing is left at random: the score of a random network looks like any other number.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        FileNotFoundError: AlexNet's weights are not on this machine.
    """
    try:
        from torchvision.models import AlexNet_Weights
    except ImportError as error:
        raise ModuleNotFoundError(
            "LPIPS needs torchvision, which cannot be imported here: install this project's extra `lpips` with the "
            f"torchvision that matches torch {torch.__version__}, or leave LPIPS out ({error})"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights}: LPIPS needs the ImageNet weights of AlexNet. On a machine with a network, run `python -c "
            "\"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\"` and copy the file here (TORCH_HOME "
            "names another folder), or leave LPIPS out"
        )
    return LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=False)
