"""Stops training when the loss is NaN or infinite, and saves what is needed to repeat the step."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.sharding import Sharded
from lightning_modules.whole_file import whole_file


class NonFiniteLossError(ValueError):
    """The loss was NaN or infinite; the message names the step, the images and the files kept for replay."""


class NaNGuard(Callback):
    """Raises at the first training step whose loss is NaN or infinite, before a checkpoint of it is written.

    `lightning replay RUN/nan/step-<n>-rank-<r>.json` repeats the step from what the run's folder then holds: that
    record (the images' keys, their times, the seed of the step's random numbers), beside it the batch's tensors as
    `.safetensors`, and as `.ckpt` the weights that the loss was computed with. Reading the loss waits for the device
    once a step.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._checkpoint: dict[str, Any] | None = None  # of the step whose loss is not finite

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the run's folder now, because `log_dir` is a collective call, for which all processes must be here."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "nan"

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Checks the loss; if it is not finite, copies the weights before the optimizer changes them.

        Raises:
            NonFiniteLossError: it is not finite, and the weights are spread over processes.
        """
        if self._checkpoint is None and not torch.isfinite(loss).all():
            if isinstance(trainer.strategy, Sharded):  # to collect them all processes would have to be here
                raise NonFiniteLossError(
                    f"the loss became {float(loss.detach())} at step {trainer.global_step}. The weights are spread "
                    "over processes, so that nothing is kept to repeat the step: go on from the last checkpoint with a "
                    "lower learning rate, clipped gradients (--trainer.gradient_clip_val 1.0) or in float32"
                )
            weights = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
            self._checkpoint = {"loss": float(loss.detach()), "state_dict": weights}
            pl_module.on_save_checkpoint(self._checkpoint)  # leaves frozen weights out

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Writes the record of a step whose loss is not finite, and ends the training.

        Raises:
            NonFiniteLossError: the loss was NaN or infinite.
        """
        if self._checkpoint is None:
            return

        stem = self._folder / f"step-{trainer.global_step:06d}-rank-{trainer.global_rank}"
        times = outputs.get("t") if isinstance(outputs, dict) else None
        record = {
            "loss": str(self._checkpoint["loss"]),
            "key": batch["key"],
            "t": None if times is None else times.tolist(),
            "seed": getattr(getattr(pl_module, "step_draws", None), "seed", None),
            "device": pl_module.device.type,
            "precision": trainer.precision,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "step": trainer.global_step,
        }

        tensors = {name: value.contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
        with whole_file(stem.with_suffix(".safetensors")) as part:
            save_file(tensors, part)
        with whole_file(stem.with_suffix(".ckpt")) as part:
            torch.save({"state_dict": self._checkpoint["state_dict"]}, part)
        with whole_file(stem.with_suffix(".json")) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")

        raise NonFiniteLossError(
            f"the loss became {record['loss']} at step {record['step']} on {', '.join(batch['key'])}. See where: "
            f"lightning replay {stem}.json. Lower the learning rate, clip gradients "
            "(--trainer.gradient_clip_val 1.0) or train in float32, from the last checkpoint"
        )
