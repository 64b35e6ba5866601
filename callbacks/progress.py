"""Progress of training: loss, step time and images per second, on a terminal or in a log file."""

import sys
from collections import deque
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

WINDOW = 20  # number of steps over which times are averaged


class Progress(TQDMProgressBar):
    """Lightning's progress bar with the time of a step and the images per second over all processes.

    If the output is not a terminal, such as a job's log file, a line every few steps replaces the bar, and one after
    each validation and after the last step. Steps of the optimizer are counted, across epochs.

    Args:
        refresh_rate: Steps between updates of the bar. An update reads the loss, which waits for the device.
        log_every_n_steps: Steps between lines if the output is not a terminal.
    """

    def __init__(self, refresh_rate: int = 10, log_every_n_steps: int = 50) -> None:
        self.lines = not sys.stdout.isatty()
        super().__init__(refresh_rate=0 if self.lines else refresh_rate)
        self.log_every_n_steps = log_every_n_steps
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._images = 0  # images of one step, over all processes
        self._mark = perf_counter()  # end of the last step
        self._step_shown = 0  # of the last line

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Lightning's metrics, the mean time of a step and the images per second."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            shown |= {"step": f"{mean:.3g}s", "images/s": f"{self._images / mean:.3g}"}
        return shown

    def on_train_start(self, *arguments: Any) -> None:
        """Starts the timing."""
        super().on_train_start(*arguments)
        self._mark = perf_counter()
        self._step_shown = arguments[0].global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Measures the time since the end of the last step, which includes waiting for data."""
        now = perf_counter()
        self._seconds.append(now - self._mark)
        self._mark = now
        self._images = len(batch["key"]) * trainer.world_size

        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        due = trainer.global_step % self.log_every_n_steps == 0
        if due and trainer.global_step > self._step_shown:
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last line, unless it has just been printed."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step > self._step_shown:
            self._print_line(trainer, pl_module)

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the step and the metrics in one line, where lines are wanted."""
        self._step_shown = trainer.global_step
        if not (self.lines and trainer.is_global_zero):
            return
        metrics = self.get_metrics(trainer, pl_module).items()
        values = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics]
        total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        print(f"{trainer.global_step}{total} steps: {', '.join(values)}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the timing, so that validation does not count as part of a step."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING:
            self._print_line(trainer, pl_module)
        self._mark = perf_counter()
