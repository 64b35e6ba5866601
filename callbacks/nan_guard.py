"""Stops a run whose loss is no number, and keeps what is needed to see why."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from safetensors.torch import save_file
from torch import Tensor


class NonFiniteLossError(ValueError):
    """The loss was NaN or infinite; the message names the step, the images and the files kept for replay."""


class NaNGuard(Callback):
    """Raises at the first training step whose loss is NaN or infinite, before a checkpoint of it is written.

    The run's folder then holds `nan/step-<n>-rank-<r>.json` (the images' keys, their times, and the seed, rank, epoch
    and batch number that the step's random numbers are a function of) and, beside it, the batch's tensors as
    `.safetensors`. Reading the loss waits for the device once a step.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the run's folder while all processes are here: asking for it makes them meet."""
        self._folder = Path(trainer.log_dir or ".") / "nan"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the loss of one step.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
        """
        if not isinstance(outputs, dict) or bool(torch.isfinite(outputs["loss"])):
            return
        stem = f"step-{trainer.global_step:06d}-rank-{trainer.global_rank}"
        record = {
            "loss": str(float(outputs["loss"])),
            "key": batch["key"],
            "t": outputs["t"].tolist() if "t" in outputs else None,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "rank": trainer.global_rank,
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "step": trainer.global_step,
        }
        tensors = {name: value.contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
        save_file(tensors, self._folder / f"{stem}.safetensors")
        raise NonFiniteLossError(
            f"the loss became {record['loss']} at step {record['step']} on {', '.join(batch['key'])}; batch and random "
            f"state are kept in {self._folder / stem}.*. Lower the learning rate, clip gradients "
            "(--trainer.gradient_clip_val 1.0) or train in float32, from the last checkpoint"
        )
