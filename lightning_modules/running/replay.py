"""`lightning replay RUN/nan/step-<n>-rank-<r>.json`: repeats a training step whose loss was NaN or infinite."""

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, read_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.diffusion.randomness import StepDraws


def replay(path: Path, device: str = "cpu") -> list[str]:
    """Repeats the step that `callbacks.nan_guard.NaNGuard` wrote down: same batch, weights and random numbers.

    Args:
        path: The record, `RUN/nan/step-<n>-rank-<r>.json`; the files beside it and `RUN/config.yaml` are read.
        device: Where to compute. Another kind than the record's draws other noise and rounds differently.

    Returns:
        What was found, one line each: weights that are NaN or infinite, the loss, the first module with such an output.

    Raises:
        CheckpointError: a file is absent, damaged or of another model, or the method's steps cannot be repeated.
        ConfigError: the run's config cannot be read.
    """
    record = _read(path)
    model, _ = configured_model(path.parents[1] / "config.yaml")
    if not isinstance(model, DiffusionModule):
        raise CheckpointError(f"{path}: steps of {type(model).__name__} cannot be repeated alone")

    state = read_checkpoint(path.with_suffix(".ckpt"))["state_dict"]
    model.load_state_dict(state)
    model.train().to(device)
    tensors = {name: value.to(device) for name, value in read_checkpoint(path.with_suffix(".safetensors")).items()}
    batch: Any = {**tensors, "key": record["key"]}
    model.step_draws = StepDraws(record["seed"], record["rank"], record["world_size"])
    model.step_draws.seed_generators()
    half = torch.float16 if record["precision"].startswith("16") else torch.bfloat16

    precision = torch.autocast(device, half, enabled="mixed" in record["precision"])
    with _first_non_finite(model) as found, precision, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log")  # there is no trainer
        outputs: Any = model.training_step(batch, 0)

    broken = [f"weights: {name} is NaN or infinite" for name, value in state.items() if not value.isfinite().all()]
    times = "the times of the record" if outputs["t"].tolist() == record["t"] else "other times than the record's"
    was = f"was {record['loss']} on {record['device']} in {record['precision']}"
    return [*broken[:6], f"loss: {float(outputs['loss'].detach())}, {was}; {times}", *found]


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        path.with_suffix(".ckpt").stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is no record of a step, or its .ckpt is gone: {error}") from error
    return record


@contextmanager
def _first_non_finite(model: nn.Module) -> Iterator[list[str]]:
    """Inside, the list takes the path of the first module whose output is NaN or infinite, and what it was given."""
    found: list[str] = []

    def look(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if found or not isinstance(output, Tensor) or output.isfinite().all():
            return
        sizes = [f"{float(value.detach().abs().max()):.3g}" for value in inputs if isinstance(value, Tensor)]
        found.append(f"first output that is NaN or infinite: {name}, of inputs up to {', '.join(sizes)}")

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: look(name, inputs, output))
        for name, module in model.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what a repeated step shows."""
    parser = argparse.ArgumentParser("lightning replay", description="Repeats a training step whose loss was NaN.")
    parser.add_argument("record", type=Path, help="RUN/nan/step-<n>-rank-<r>.json")
    parser.add_argument("--device", default=str(torch.accelerator.current_accelerator(check_available=True) or "cpu"))
    options = parser.parse_args(arguments)
    print("\n".join(replay(options.record, options.device)))
