"""`lightning plan`: what a training will need, from a few of its steps."""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.config import read_command_line
from lightning_modules.config_errors import ConfigError
from lightning_modules.evaluation.cost import parameters, peak_memory
from lightning_modules.running.experiment import CLI, quieten
from lightning_modules.running.machine import available_memory

WARM_UP = 2  # steps that are not timed
VALIDATED = 2  # batches from which the time of a validation is computed
KEPT = ("EMA", "ImageMetrics", "ExtraScores", "UnderProtocol")  # callbacks that take time or memory of their own
SPARE = 0.9  # share of the memory that a batch may fill
BATCH = "data.init_args.batch_size"


class Measure(Callback):
    """Times steps and validation batches, and measures memory and a checkpoint.

    Args:
        folder: Where the checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waits: list[float] = []  # seconds before each batch was there
        self.steps: list[float] = []  # seconds of each batch, without the wait
        self.validated: list[float] = []  # seconds of each validation batch
        self.images = self.validation_batches = self.checkpoint = 0
        self.memory: dict[str, Any] = {}
        self._mark = perf_counter()

    def _lap(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = perf_counter()
        passed, self._mark = now - self._mark, now
        return passed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._lap(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes how long the batch was waited for."""
        self.waits.append(self._lap(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Notes how long the step took."""
        self.steps.append(self._lap(trainer))
        self.images = len(batch["key"]) * trainer.world_size

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Starts the clock."""
        self._lap(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Notes how long the batch took."""
        self.validated.append(self._lap(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the memory and the size of a checkpoint."""
        self.memory = peak_memory(trainer.strategy.root_device)
        loaders: Any = trainer.val_dataloaders or []
        self.validation_batches = sum(map(len, loaders if isinstance(loaders, list) else [loaders]))
        path = self.folder / "size.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self.checkpoint = path.stat().st_size if path.is_file() else 0


class Trial(CLI):
    """A training of a few steps that leaves nothing.

    Args:
        options: Those of `lightning fit`.
        steps: How many are trained.
        validate: Whether a validation follows.
    """

    def __init__(self, options: Sequence[str], steps: int, *, validate: bool = True) -> None:
        self.steps, self.validate = steps, validate
        self.asked: Any = None  # the trainer's arguments as configured
        with tempfile.TemporaryDirectory(prefix="diffsr-plan-") as folder:
            self.folder = Path(folder)
            self.measured = Measure(self.folder)
            super().__init__(read_command_line(["fit", *options]))

    def before_instantiate_classes(self) -> None:
        """Shortens the training, and leaves out what writes files."""
        super().before_instantiate_classes()
        trainer = self.config[self.config.subcommand].trainer
        self.asked = trainer.clone()
        self.save_config_callback = None
        trainer.callbacks = [each for each in trainer.callbacks or [] if each.class_path.rpartition(".")[2] in KEPT]
        validated = VALIDATED if self.validate and trainer.limit_val_batches != 0 else 0
        steps = max(self.steps // (trainer.accumulate_grad_batches or 1), 1)
        if self.asked.max_steps > 0:  # beyond, some schedules end
            steps = min(steps, self.asked.max_steps)
        changed = {
            "max_steps": steps,
            "val_check_interval": steps,
            "check_val_every_n_epoch": None,
            "limit_val_batches": validated,
            "logger": False,
            "default_root_dir": str(self.folder),
        }
        without = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        for name, value in (changed | dict.fromkeys(without, False)).items():
            trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the measuring."""
        trainer = super().instantiate_trainer(**kwargs)
        cast(Any, trainer).callbacks.append(self.measured)
        return trainer

    def after_fit(self) -> None:
        """Says nothing: nothing is left."""


def report(trial: Trial) -> Iterator[str]:
    """What a trial has shown, one line each."""
    measured, asked, model = trial.measured, trial.asked, trial.model
    counted = parameters(model)
    trained = counted["trained_parameters"]
    device = trial.trainer.strategy.root_device
    yield f"model         {type(model).__name__} on {device}, {asked.precision or '32-true'}"
    yield f"parameters    {trained:,} trained, {counted['parameters'] - trained:,} frozen"
    yield f"memory        {measured.memory['peak_memory_mib'] / 1024:.2f} GiB at most ({measured.memory['memory_of']})"

    together = asked.accumulate_grad_batches or 1
    wait, work = (statistics.median(times[WARM_UP:] or times) * together for times in (measured.waits, measured.steps))
    step = wait + work
    rate = measured.images * together / step
    yield f"step          {step:.3g} s, {rate:.3g} images/s; {wait / step:.0%} is waiting for data"
    yield f"checkpoint    {measured.checkpoint / 1e6:.1f} MB"

    seconds, every = 0.0, asked.val_check_interval
    if measured.validated:
        seconds = measured.validated[-1] * measured.validation_batches  # the last one: the first warms up
        counted_in_steps = isinstance(every, int) and asked.check_val_every_n_epoch is None
        share = (
            f", every {every} steps: {seconds / (seconds + every * step):.0%} of the time" if counted_in_steps else ""
        )
        yield f"validation    {seconds:.3g} s for {measured.validation_batches} batches{share}"
    if asked.max_steps is not None and asked.max_steps > 0:
        validations = asked.max_steps // every if isinstance(every, int) else 0
        hours = (asked.max_steps * step + validations * seconds) / 3600
        yield f"in all        {hours:.3g} hours for {asked.max_steps} steps and {validations} validations"
    if wait > 0.1 * step:
        yield "advice        training waits for data: raise --data.init_args.num_workers, or pack the images"


def largest_batch(options: Sequence[str], trial: Trial) -> str:
    """The largest batch that fits into memory.

    On a GPU batches are doubled until one does not fit, and the border is then searched. On a CPU, where a batch that
    does not fit would end other programs, the memory of two batches is measured and the rest computed.

    Args:
        options: Those of `lightning fit`.
        trial: One with the batch as configured.
    """
    batch = int(trial.config[trial.config.subcommand].get(BATCH) or 0)
    if not batch:
        raise ConfigError(f"--largest_batch: the data have no {BATCH}")
    if trial.trainer.strategy.root_device.type != "cuda":
        free = available_memory() / 2**20
        more = _memory_of(options, 2 * batch)
        before = trial.measured.memory["peak_memory_mib"]
        each = max(more - before, 0.0) / batch
        if not each:
            return f"at least {2 * batch}: {batch} images more took no more memory"
        largest = 2 * batch + max(int(SPARE * free / each), 0)
        return f"about {largest}, from {each:.1f} MiB an image and {free:.0f} MiB free"

    fits, too_large = batch, None
    while too_large is None or too_large - fits > max(fits // 16, 1):
        tried = 2 * fits if too_large is None else (fits + too_large) // 2
        try:
            _memory_of(options, tried)
            fits = tried
        except torch.OutOfMemoryError:
            too_large = tried
        gc.collect()
        torch.cuda.empty_cache()
    return f"{fits} ({too_large} does not fit)"


def _memory_of(options: Sequence[str], batch: int) -> float:
    """The memory of a training with a batch, in MiB."""
    trial = Trial([*options, f"--{BATCH}={batch}"], WARM_UP, validate=False)
    return float(trial.measured.memory["peak_memory_mib"])


def main(arguments: Sequence[str]) -> None:
    """`lightning plan --config EXPERIMENT.yaml`, with any options of `lightning fit`.

    Raises:
        ConfigError: the experiment cannot be trained, or `--steps` is too small.
    """
    parser = argparse.ArgumentParser(
        prog="lightning plan",
        description="Trains a few steps and validates a few images, without leaving anything, and says what the whole "
        "training needs: parameters, memory, time of a step and of a validation, size of a checkpoint, hours in all. "
        "Further options are those of `lightning fit`: --config EXPERIMENT.yaml and others.",
    )
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="batches to train (default: %(default)s)")
    parser.add_argument(
        "--largest_batch", action="store_true", help="also find the largest batch that fits into memory"
    )
    asked, options = parser.parse_known_args(arguments)
    if asked.steps <= WARM_UP:
        raise ConfigError(f"--steps: must be above {WARM_UP}, which are not timed; got {asked.steps}")
    quieten()
    trial = Trial(options, asked.steps)
    print(*report(trial), sep="\n", flush=True)
    if asked.largest_batch:
        print(f"batch         {largest_batch(options, trial)}", flush=True)
