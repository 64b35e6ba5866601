"""A callback for tests: sends a signal to its own process, or raises, at a given place of a run."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Killer(Callback):
    """At batch `batch` of "train" or "validation" after `step` steps: sends `number`, or raises if it is 0.

    With `group` all processes of its group get the signal, the data workers too. `once` names a file that is made
    then, and where it is nothing happens.
    """

    def __init__(
        self,
        where: str,
        step: int,
        number: int,
        batch: int = 0,
        rank: int = 0,
        group: bool = False,
        once: str | None = None,
    ) -> None:
        self.where, self.step, self.number, self.batch, self.rank = where, step, number, batch, rank
        self.group, self.once = group, once

    def strike(self, trainer: Trainer) -> None:
        if trainer.global_rank != self.rank or (self.once is not None and Path(self.once).exists()):
            return
        if self.once is not None:
            Path(self.once).touch()
        if not self.number:
            raise RuntimeError("as ordered")
        if self.group:
            os.killpg(0, self.number)
        else:
            os.kill(os.getpid(), self.number)
        if self.number == signal.SIGKILL:
            signal.pause()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.where == "train" and trainer.global_step == self.step:
            self.strike(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.where == "validation" and trainer.global_step == self.step and batch_idx == self.batch:
            self.strike(trainer)
