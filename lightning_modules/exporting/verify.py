"""`lightning verify`: enlarges the images of an export again and says which differ."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch

from lightning_modules.checkpoint import CheckpointError, data_config, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.exporting.onnx_graph import NAME as ONNX
from lightning_modules.exporting.onnx_graph import run
from lightning_modules.exporting.pairs import Difference, Precision, compared, differences, read_made
from lightning_modules.weight_files import digest
from lightning_modules.weights import resolve

SAME, OTHER_DEVICE, HALF = 0.02, 0.25, 1.0  # mean absolute difference in grey levels that is allowed


def main(arguments: Sequence[str] | None = None) -> int:
    """`lightning verify FOLDER [--device DEVICE] [--precision PRECISION]`.

    Returns:
        1 if an image differs by more than the tolerance, otherwise 0.

    Raises:
        CheckpointError: the folder is no export, or its pairs are missing or damaged.
    """
    parser = argparse.ArgumentParser(prog="lightning verify", description="Enlarges the images of an export again.")
    parser.add_argument("folder", help="an export, or a name that `lightning weights` lists")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    asked = parser.parse_args(arguments)
    return 0 if verify(asked.folder, device=asked.device, precision=asked.precision) else 1


def verify(folder: str | Path, *, device: str = "cpu", precision: Precision = "float32") -> bool:
    """Enlarges the images again and prints how much each differs; returns whether all are within the tolerance.

    Args:
        folder: See `weights.resolve`.
        device: Where to compute.
        precision: float32, or bfloat16 by autocast.

    Raises:
        CheckpointError: the folder is no export, or its pairs are missing or damaged.
    """
    weights = resolve(folder)
    root = weights.parent
    made = read_made(root)
    model = load_method(weights, device=_device(device))
    arguments = data_config(read_checkpoint(weights, weights=False))
    allowed, why = tolerance(str(made["device"]), model.device.type, precision)
    print(f"{root}: made on {made['device']}, {made['precision']}, torch {made['torch']}, {made['sampling']}")
    print(f"here: {model.device.type}, {precision}, torch {torch.__version__}")
    print(f"tolerance: {allowed:g} grey levels in the mean ({why})")

    good: bool = digest(weights) == made["weights_sha256"]
    if not good:
        print(f"DIFFERS  {weights.name}: is not the file that the pairs were made with")
    if model.protocol() != made["sampling"]:
        print(f"note     the pairs were sampled by {made['sampling']}, here by {model.protocol()}")
    how = {"kernel": arguments.get("up_kernel", "matlab"), "scale": int(arguments.get("scale", 4))}
    for each in differences(root, model, made["images"], precision=precision, **how):
        good = _within(each, allowed) and good
    return _onnx(root, made["images"]) and good


def _within(each: Difference, allowed: float) -> bool:
    within = each.mean <= allowed
    verdict = "equal" if each.largest == 0 else "within" if within else "DIFFERS"
    print(f"{verdict:8s} {each.name}: {each.mean:.4f} grey levels in the mean, {each.largest} at most")
    return within


def _onnx(root: Path, names: Sequence[str]) -> bool:
    """Enlarges the images with the ONNX file, where there is one."""
    if not (root / ONNX).is_file():
        return True
    if find_spec("onnxruntime") is None:
        print(f"note     {ONNX}: not run, onnxruntime is not installed (pip install 'diffsr[onnx]')")
        return True
    print(f"{ONNX}, onnxruntime, cpu; tolerance: {OTHER_DEVICE:g} grey levels in the mean (another program)")
    return all([_within(each, OTHER_DEVICE) for each in compared(root, names, lambda lr: run(root / ONNX, lr))])


def tolerance(made_on: str, device: str, precision: Precision) -> tuple[float, str]:
    """The mean absolute difference in grey levels that is allowed, and why so much.

    Sampling repeats rounding errors at every step. Another kind of device rounds otherwise (CUDA convolves in TF32),
    bfloat16 has 8 bits.
    """
    if precision == "bfloat16":
        return HALF, "bfloat16"
    if device != made_on:
        return OTHER_DEVICE, f"float32 on another kind of device than {made_on}"
    return SAME, "float32 on the same kind of device"


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"--device {name}: {str(error).splitlines()[0]}") from error
