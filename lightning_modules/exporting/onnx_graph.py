"""ONNX files of methods whose image is one evaluation of a network."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.whole_file import whole_file

NAME = "model.onnx"
TOLERANCE = 1e-3  # of the range [0, 1]: a quarter of a grey level
_CHECKED = [(24, 40), (33, 17)]  # heights and widths of other images than the traced one


class _FromZeroToOne(nn.Module):
    """The network between images in [0, 1], as other programs hold them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> Tensor:
        """`[B,3,h,w]` to `[B,3,H,W]`, both in [0, 1]."""
        image: Tensor = self.network(lr * 2 - 1)
        return ((image + 1) / 2).clamp(0, 1)


def write_onnx(model: SuperResolver, folder: Path) -> str:
    """Writes `model.onnx`: input `lr` `[B,3,h,w]`, output `sr` `[B,3,H,W]`, RGB in [0, 1], of any size.

    Returns:
        What was compared: the largest difference from PyTorch, or why nothing was.

    Raises:
        CheckpointError: the method needs more than one evaluation of a network, a package is missing, or onnxruntime
            computes something else than PyTorch.
    """
    network = model.as_network()
    if network is None:
        raise CheckpointError(
            f"--onnx: an image of {type(model).__name__} is not one evaluation of a network from the low-resolution "
            f"image ({model.protocol()}), which is all that is written as ONNX"
        )
    if absent := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise CheckpointError(f"--onnx: needs {' and '.join(absent)}: pip install 'diffsr[onnx]'")

    graph = _FromZeroToOne(network).eval().cpu()
    sides = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with whole_file(folder / NAME) as part, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            (torch.rand(2, 3, 20, 28),),
            str(part),
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=({**sides},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    try:
        return f"{NAME}: {compared_with_pytorch(folder / NAME, graph)}"
    except CheckpointError:
        (folder / NAME).unlink()
        raise


def compared_with_pytorch(path: Path, graph: nn.Module) -> str:
    """The largest difference of two images from PyTorch's, as a text, or why nothing was compared.

    Raises:
        CheckpointError: it is larger than the tolerance.
    """
    if find_spec("onnxruntime") is None:
        return "not compared with PyTorch, onnxruntime is not installed (pip install 'diffsr[onnx]')"
    largest = 0.0
    for height, width in _CHECKED:
        lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected = graph(lr)
        largest = max(largest, float((run(path, lr) - expected).abs().max()))
    if not largest <= TOLERANCE:
        raise CheckpointError(
            f"{path}: onnxruntime's image differs from PyTorch's by up to {largest:.2g} of [0, 1], where {TOLERANCE:g} "
            "is allowed; export without --onnx"
        )
    return f"onnxruntime equals PyTorch up to {largest:.1e} of [0, 1]"


def run(path: Path, lr: Tensor) -> Tensor:
    """The image of onnxruntime, `[B,3,H,W]`, of `[B,3,h,w]`, both in [0, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(["sr"], {"lr": lr.numpy()})[0]))
