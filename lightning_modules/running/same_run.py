"""Whether two runs are the same: their checkpoints bit for bit, and what they logged."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.checkpoint import read_checkpoint

PARTS = {
    "weights": ("state_dict", "current_model_state"),
    "optimizer": ("optimizer_states", "lr_schedulers", "MixedPrecision"),
    "counters": ("loops", "global_step", "epoch"),
    "averages": ("callbacks",),
}
# Which files were written, and how often a validation was begun, may differ after an interruption.
LEFT_OUT = ("ModelCheckpoint", "epoch_loop.val_loop")
TIMES = ("train/waiting",)  # columns that no two runs have in common


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two runs' folders, a line each; empty if they are the same run.

    Args:
        first: `runs/<experiment>/<run>` of one.
        second: Of the other.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (first, second))
    found = []
    for part, keys in PARTS.items():
        for key in keys:
            found += [f"{part}: {where}" for where in _unequal(one.get(key), other.get(key), key)]
    return found + [f"metrics.csv: {line}" for line in _logs(first / "metrics.csv", second / "metrics.csv")]


def _unequal(one: Any, other: Any, where: str) -> Iterator[str]:
    """The places where two nested values differ."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            if not str(key).startswith(LEFT_OUT):
                yield from _unequal(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            yield where
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _unequal(a, b, f"{where}.{place}")
    elif one != other:
        yield f"{where} ({one} and {other})"


def _logs(one: Path, other: Path) -> Iterator[str]:
    """Steps that are not in both tables, or twice in one, or with other values."""
    tables = []
    for path in (one, other):
        with path.open(newline="") as file:
            lines = [{key: line[key] for key in line if key not in TIMES} for line in csv.DictReader(file)]
        steps = [int(line["step"]) for line in lines]
        if steps != sorted(set(steps)):
            yield f"{path}: a step stands there twice, or after a later one"
        tables.append({step: line for step, line in zip(steps, lines, strict=True)})
    for step in sorted(tables[0].keys() | tables[1].keys()):
        if tables[0].get(step) != tables[1].get(step):
            yield f"step {step}: {_differing(tables[0].get(step), tables[1].get(step))}"


def _differing(one: dict[str, str] | None, other: dict[str, str] | None) -> str:
    if one is None or other is None:
        return "missing in one"
    return ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in one if one[key] != other.get(key))
