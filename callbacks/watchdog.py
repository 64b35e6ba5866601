"""Warns of what a run does not stop for: a sudden loss, waiting for data, colours that drift."""

import json
from collections import deque
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT

COLOURS = "val/colour_error_"


class Watchdog(Callback):
    """Watches a training run and warns, each once in a while.

    - A loss far above that of the steps before: a line in `spikes.jsonl` of the run's folder, with the step, the loss,
      the usual one and the keys of the batch.
    - Waiting for data: `train/waiting` is the share of the time in which no step was computed; logged every `window`
      steps, and warned of above `waiting`.
    - Colours: the error of the mean colour, which `ImageMetrics` measures, has grown beyond its best value so far.

    Args:
        spike: A loss this many times the median of the last steps is a spike.
        waiting: The share of waiting, between 0 and 1, from which on it is warned of.
        drift: How many grey levels, of 255, a mean colour may lose against its best validation.
        window: Number of steps over which median and share are taken.

    Raises:
        ValueError: a limit is not positive, or `waiting` is above 1.
    """

    def __init__(self, spike: float = 10, waiting: float = 0.3, drift: float = 2, window: int = 100) -> None:
        if min(spike, waiting, drift, window) <= 0 or waiting > 1:
            raise ValueError(
                f"spike, waiting, drift and window must be positive, and waiting at most 1; got {spike:g}, "
                f"{waiting:g}, {drift:g} and {window}"
            )

        self.spike, self.waiting, self.drift, self.window = spike, waiting, drift, window
        self._losses: deque[float] = deque(maxlen=window)
        self._waited = self._computed = 0.0  # seconds since the last report
        self._mark: float | None = None  # end of the last step, None where other things came between
        self._start = 0.0
        self._best: dict[str, float] = {}
        self._folder = Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the run's folder."""
        self._folder = Path(trainer.log_dir or ".")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measures how long the batch was waited for."""
        self._start = perf_counter()
        if self._mark is not None:
            self._waited += self._start - self._mark

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Compares the loss with the last ones, and the waiting with the time of the steps."""
        self._look_at_loss(trainer, outputs, batch)
        self._mark = perf_counter()
        self._computed += self._mark - self._start
        if (batch_idx + 1) % self.window == 0:
            share = self._waited / (self._waited + self._computed)
            pl_module.log("train/waiting", share, batch_size=1)
            if share > self.waiting:
                rank_zero_warn(
                    f"{share:.0%} of the last {self.window} steps' time went into waiting for data: raise "
                    "--data.init_args.num_workers, pack the images (lightning pack), or put them on a faster disk"
                )
            self._waited = self._computed = 0.0

    def _look_at_loss(self, trainer: Trainer, outputs: STEP_OUTPUT, batch: Any) -> None:
        loss: Any = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        value, usual = float(loss), median(self._losses) if len(self._losses) == self.window else float("inf")
        if value > self.spike * usual > 0:
            record = {"step": trainer.global_step, "loss": value, "usual": usual, "key": batch["key"]}
            with (self._folder / "spikes.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            rank_zero_warn(
                f"the loss of step {trainer.global_step} is {value:.3g}, usually {usual:.3g}; its images are in "
                f"{self._folder / 'spikes.jsonl'}. Once is no harm; if it comes again, clip gradients or lower the rate"
            )
        self._losses.append(value)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the mean colours with the best so far; a validation is no waiting."""
        self._mark = None
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in trainer.callback_metrics.items():
            if not name.startswith(COLOURS):
                continue
            error = abs(float(value))
            best = self._best.setdefault(name, error)
            if error > best + self.drift:
                rank_zero_warn(
                    f"{name} was {best:.2f} grey levels and is {error:.2f} at step {trainer.global_step}: the colours "
                    "drift; look at the samples, or average the weights (callbacks.ema.EMA)"
                )
            self._best[name] = min(best, error)
