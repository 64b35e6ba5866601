"""Progress of training: loss, speed, time left, scores and memory, on a terminal or in a log file."""

import math
import sys
from collections import deque
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_modules.evaluation.cost import peak_memory

WINDOW = 50  # number of batches over which times are averaged
SMOOTHING = 0.98  # of the loss: the weight of what was before
BAR = "{n_fmt}/{total_fmt} |{bar}| {desc}"
Shown = dict[str, int | str | float | dict[str, float]]


class Progress(TQDMProgressBar):
    """One bar over all steps of a training: smoothed loss, speed, time left, scores and memory.

    If the output is not a terminal, such as a job's log file, a line every few steps replaces the bar, and one after
    each validation and after the last step. Steps of the optimizer are counted, across epochs.

    The time that is left includes the validations that are still to come, as long as the last one.

    Args:
        refresh_rate: Steps between updates of the bar. An update reads the loss, which waits for the device.
        log_every_n_steps: Steps between lines if the output is not a terminal.
        watch: The score whose best value is shown.
        mode: Whether its best value is the largest or the smallest.
    """

    def __init__(
        self,
        refresh_rate: int = 10,
        log_every_n_steps: int = 50,
        watch: str = "val/psnr_y",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.lines = not sys.stdout.isatty()
        super().__init__(refresh_rate=0 if self.lines else refresh_rate)
        self.log_every_n_steps = log_every_n_steps
        self.watch, self.mode = watch, mode
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._images = 0  # images of one batch, over all processes
        self._mark = perf_counter()  # end of the last batch
        self._step_shown = 0  # of the last line
        self._loss: Tensor | None = None  # smoothed, on the device
        self._losses = 0  # how many are in it
        self._validation_began = perf_counter()
        self._validation_seconds = 0.0  # of the last one
        self._best: tuple[float, int] | None = None  # the value and the step of the best validation

    def state_dict(self) -> dict[str, Any]:
        """The best validation."""
        return {"best": None if self._best is None else list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best validation of the run that this one resumes."""
        best = state_dict["best"]
        self._best = None if best is None else (float(best[0]), int(best[1]))

    # What is shown.

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Shown:
        """Lightning's metrics with the smoothed loss, the speed, the time left, the best score and the memory."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self._loss is not None and "train/loss" in shown:
            shown["train/loss"] = float(self._loss) / (1 - SMOOTHING**self._losses)
        if not self._seconds:
            return shown

        mean = sum(self._seconds) / len(self._seconds)
        shown |= {"step": f"{mean * trainer.accumulate_grad_batches:.3g}s", "images/s": f"{self._images / mean:.3g}"}
        left, until_validation = batches_left(trainer), batches_until_validation(trainer)
        if left is not None:
            validations = 0 if until_validation is None else 1 + (left - until_validation) // (every(trainer) or 1)
            shown["left"] = clock(left * mean + validations * self._validation_seconds)
        if until_validation is not None:
            shown["validation in"] = clock(until_validation * mean)
        if self._best is not None:
            shown["best"] = f"{self._best[0]:.4g} at {self._best[1]}"
        memory = peak_memory(trainer.strategy.root_device)["peak_memory_mib"]
        return shown | {"memory": f"{memory / 1024:.1f}G"}

    def text(self, shown: Shown) -> str:
        """What stands behind the bar, short enough for 100 columns beside it."""
        parts = [f"loss {shown['train/loss']:.4g}"] if "train/loss" in shown else []
        parts += [f"{shown['images/s']} img/s"] if "images/s" in shown else []
        parts += [f"left {shown['left']}"] if "left" in shown else []
        parts += [f"val in {shown['validation in']}"] if "validation in" in shown else []
        if self.watch in shown and self._best is not None:
            parts.append(f"{shown[self.watch]:.4g} best {self._best[0]:.4g}")
        parts += [str(shown["memory"])] if "memory" in shown else []
        return "  ".join(parts)

    # Training.

    def init_train_tqdm(self) -> Tqdm:
        """The bar over all steps."""
        return Tqdm(disable=self.is_disabled, leave=True, dynamic_ncols=True, file=sys.stdout, bar_format=BAR)

    def on_train_start(self, *arguments: Any) -> None:
        """Starts the timing."""
        super().on_train_start(*arguments)
        trainer = arguments[0]
        total = steps_in_all(trainer)
        self.train_progress_bar.total = total
        self.train_progress_bar.n = self._step_shown = trainer.global_step
        self._mark = perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Nothing: the bar goes on across epochs."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the bar goes on across epochs."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Measures the time since the end of the last batch, which includes waiting for data."""
        now = perf_counter()
        self._seconds.append(now - self._mark)
        self._mark = now
        self._images = len(batch["key"]) * trainer.world_size
        self._smooth(outputs, trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)

        if trainer.global_step == self._step_shown:
            return  # gradients are still being accumulated
        due = self.log_every_n_steps if self.lines else self.refresh_rate
        if due and (trainer.global_step % due == 0 or trainer.global_step == self.train_progress_bar.total):
            self._show(trainer, pl_module)

    def _smooth(self, outputs: STEP_OUTPUT, divided: int) -> None:
        """Adds a loss, which the trainer has `divided`, without waiting for the device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach().float() * divided * (1 - SMOOTHING)
            self._loss = loss if self._loss is None else torch.add(loss, self._loss, alpha=SMOOTHING)
            self._losses += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last step, unless it has just been shown."""
        if trainer.global_step > self._step_shown:
            self._show(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings the bar up to date, or prints the step and the metrics in one line."""
        self._step_shown = trainer.global_step
        if not self.lines:
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_description_str(self.text(self.get_metrics(trainer, pl_module)))
            return

        if trainer.is_global_zero:
            metrics = self.get_metrics(trainer, pl_module).items()
            values = [
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics
            ]
            total = self.train_progress_bar.total
            print(f"{trainer.global_step}{f'/{total}' if total else ''} steps: {', '.join(values)}", flush=True)

    # Validation.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts its timing."""
        super().on_validation_start(trainer, pl_module)
        self._validation_began = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the score, and restarts the timing, so that validation does not count as part of a step."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validation_seconds = perf_counter() - self._validation_began
            value = float(trainer.callback_metrics.get(self.watch, math.nan))
            sign = 1 if self.mode == "max" else -1
            if not math.isnan(value) and (self._best is None or sign * value > sign * self._best[0]):
                self._best = value, trainer.global_step
            self._show(trainer, pl_module)
        self._mark = perf_counter()


def steps_in_all(trainer: Trainer) -> int | None:
    """The last step of a training; None if it has no end."""
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None


def batches_left(trainer: Trainer) -> int | None:
    """How many batches are still to be trained; None if there is no end."""
    total = steps_in_all(trainer)
    return None if total is None else max(total - trainer.global_step, 0) * trainer.accumulate_grad_batches


def every(trainer: Trainer) -> int | None:
    """The batches from one validation to the next; None if there is none."""
    batches = trainer.val_check_batch
    if not trainer.enable_validation or batches is None or not math.isfinite(batches) or batches < 1:
        return None
    return int(batches)


def batches_until_validation(trainer: Trainer) -> int | None:
    """How many batches are trained before the next validation; None if there is none."""
    loop, interval = trainer.fit_loop.epoch_loop, every(trainer)
    if interval is None:
        return None
    done = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    until = interval - (done + 1) % interval
    left = batches_left(trainer)
    return None if left is not None and until > left else until


def clock(seconds: float) -> str:
    """A time as people write it: "0:09", "12:30", "3:20:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
