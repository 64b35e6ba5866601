"""Key names of the ADM U-Net in EDM's and Relay Diffusion's public code.

The published files are pickled Python objects, whose loading executes the code inside; they are refused. Where that can
do no harm, in a container without network and without your files, RDM's own code exports what is read here:
`save_file(torch.load(FILE, weights_only=False)["ema"].state_dict(), "weights.safetensors")`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

FILTER = "resample_filter"
BOX = 0.25  # each entry of the 2x2 box filter, the only one that ADMUNet resamples with


def unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `ADMUNet` from a preconditioned network, whose keys begin with `model.`; other keys stay as they are.

    Raises:
        ValueError: the network resamples with another filter than the 2x2 box.
    """
    weights = {}
    for key, value in state.items():
        if not key.endswith(f".{FILTER}"):
            weights[key.removeprefix("model.")] = value
        elif value.shape[-2:] != (2, 2) or not torch.all(value == BOX):
            raise ValueError(f"{key}: the network resamples with another filter than the 2x2 box of ADM")
    return weights
