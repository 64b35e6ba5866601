"""What a run has learned is kept however it ends: by its last step, a signal, an error, or a kill."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import distributed

REQUEUE = signal.SIGUSR1  # what `#SBATCH --signal` sends before the time limit
SIGNALS = (REQUEUE, signal.SIGTERM, signal.SIGINT)
PATIENCE = timedelta(seconds=60)  # for the first process to write the checkpoint
Handler = Callable[[int, FrameType | None], Any] | int | None


class Stopped(SystemExit):
    """The run ends because of a signal, with the exit code that shells give to one: 128 plus its number."""


class Interruptions(Checkpoint):
    """Writes `last.ckpt` at a run's last step, and when a signal or an error ends it earlier.

    A signal (SIGTERM, Ctrl-C, or SIGUSR1, which Slurm is asked to send before its time limit) is noted, in the main
    process of each rank alone, and acted upon at the end of the step or of the validation batch: all processes agree,
    the first writes the checkpoint, on Slurm and by SIGUSR1 requeues the job, and the run exits with 128 plus the
    signal's number. A second Ctrl-C ends the run at once.

    After an error, in a loading process or in validation for instance, the checkpoint is that of the last complete
    step. It is not written if a step was changing the weights, or if a weight is NaN or infinite.

    A checkpoint says that its last step is complete, whatever came after it. One that was written before or during the
    validation of that step says that it is due, and a resumed run begins with it.

    Args:
        requeue: Requeue the job on Slurm and by SIGUSR1.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._signal = 0  # the one that was noted; 0 for none
        self._process = 0  # this one, and not a data worker that inherits the handlers
        self._before: dict[int, Handler] = {}  # handlers that were there before ours
        self._loops: dict[str, Any] | None = None  # the trainer's counters after the last complete step
        self._data: dict[str, Any] = {}  # the data module's
        self._step = -1  # the last complete step
        self._changing = False  # whether a step is changing the weights
        self._validated = 0  # batches trained when the last validation ended
        self._due = False  # whether a resumed run begins with a validation
        self._saved = -1  # the step of the checkpoint that this callback wrote
        self._newest = self._loaded = (-1, -1)  # steps and validated batches of the newest checkpoint, and of the first

    # Signals.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes SIGUSR1 from now on, before data workers are forked, which would die of it."""
        if stage == TrainerFn.FITTING:
            self._signal, self._process, self._before = 0, os.getpid(), {}
            self._step, self._saved, self._loops, self._changing = -1, -1, None, False
            self._newest = self._loaded = (-1, -1)
            self._handle(REQUEUE)

    def _handle(self, number: int) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set handlers
            previous = signal.signal(number, self._note)
            self._before.setdefault(number, previous)

    def _release(self) -> None:
        for number, previous in self._before.items():
            signal.signal(number, previous)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT:
            if self._signal == number:
                self._saved = self._step  # nothing more is written
                raise Stopped(128 + number)
            print("\nThe run ends after this step; press Ctrl-C again to end it at once.", file=sys.stderr)
        self._signal = self._signal or number

    def _obey(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run after a complete step, if a signal was noted in any process.

        Raises:
            Stopped: it was.
        """
        reduced = torch.tensor(self._signal, device=trainer.strategy.root_device)
        noted = int(trainer.strategy.reduce(reduced, reduce_op="max")) if trainer.world_size > 1 else self._signal
        if noted:
            self._signal = noted
            if self._finite(pl_module):
                self._save(trainer)
            raise Stopped(128 + noted)

    # Steps.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the trainer begin although the last step is done, if its validation is due."""
        self._max_steps = trainer.max_steps
        if self._due:
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the other signals from now on; before there is nothing to save."""
        self._step = trainer.global_step
        if self._due:
            trainer.fit_loop.epoch_loop._batches_that_stepped -= 1  # the trainer counts this step again after it
        for number in SIGNALS:
            self._handle(number)
        # The trainer has taken our handler for one that was there before it, and would set it again in the end.
        if REQUEUE in self._before:
            trainer._signal_connector._original_handlers[REQUEUE] = self._before[REQUEUE]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Notes that weights are about to change."""
        self._changing = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Notes that a step is complete, logs it before a checkpoint says so, and obeys a signal.

        Raises:
            Stopped: there was one.
        """
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step, self._changing = trainer.global_step, False
        self._loops = deepcopy(trainer.fit_loop.state_dict())
        data = data_module(trainer)
        self._data = {} if data is None else data.state_dict()
        self._log_row(trainer)
        self._obey(trainer, pl_module)

    def _log_row(self, trainer: Trainer) -> None:
        """Writes the step's metrics to the run's table, as the trainer does only after checkpoints are written."""
        connector = trainer._logger_connector
        if not connector.should_update_logs:
            return
        metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
        for logger in trainer.loggers:
            if metrics and isinstance(logger, CSVLogger):
                step = trainer.fit_loop.epoch_loop._batches_that_stepped
                logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step)
                logger.save()

    # Validation.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the trainer end at its last step again."""
        if trainer.state.fn == TrainerFn.FITTING and self._due:
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Obeys a signal; alone, as processes may validate different numbers of images.

        Raises:
            Stopped: there was one.
        """
        if self._signal and trainer.state.fn == TrainerFn.FITTING:
            raise Stopped(128 + self._signal)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the validation of this step is complete."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated = batches_done(trainer)
            self._due = False

    # The end.

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last step's checkpoint, unless it is written."""
        now, path = (trainer.global_step, self._validated), last_path(trainer)
        keepers = [keeper for keeper in model_checkpoints(trainer) if keeper.save_last]
        written = now == self._loaded or any(keeper._last_global_step_saved == now[0] for keeper in keepers)
        if path is not None and not (written and now == self._newest and path.is_file()) and not self._changing:
            self._save(trainer)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the last complete step's checkpoint, without waiting for other processes, and says how to go on."""
        if trainer.state.fn != TrainerFn.FITTING or self._loops is None or self._step < 0:
            self._release()  # no step is complete
            return
        try:
            self._save_alone(trainer, pl_module, exception)
        except OSError as error:  # the first error is the one to be raised
            print(f"the state after step {self._step} is lost: {error}", file=sys.stderr)

        if self._signal == REQUEUE and self.requeue and trainer.is_global_zero:
            requeue_job()
        if isinstance(exception, Stopped):
            wait_for_first(trainer)
        self._release()

    def _save_alone(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        path = last_path(trainer)
        if path is None or not trainer.is_global_zero:
            return
        why = f"{signal.Signals(self._signal).name}" if isinstance(exception, Stopped) else type(exception).__name__
        if self._saved != self._step:
            if self._changing or trainer.global_step != self._step or not self._finite(pl_module):
                print(f"{why}: no checkpoint is written, as the weights are between two steps or not finite")
                return
            if isinstance(trainer.strategy, FSDPStrategy):
                print(f"{why}: no checkpoint is written, as a sharded model needs all processes for it")
                return
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)
            self._saved = self._step

        if path.is_file():
            print(
                f"{why}: step {self._step} is kept in {os.path.relpath(path)}. Go on with the same command and "
                "--ckpt_path last (a job that its scheduler starts again goes on by itself)",
                flush=True,
            )

    def _save(self, trainer: Trainer) -> None:
        path = last_path(trainer)
        if path is not None:
            trainer.save_checkpoint(path, weights_only=False)
            self._saved = trainer.global_step

    def _finite(self, pl_module: LightningModule) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in pl_module.parameters())

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """How many batches had been trained at the last complete validation."""
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self._validated = state_dict["validated"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the counters of the last complete step, and not of a batch that has begun since."""
        self._newest = (trainer.global_step, self._validated)
        if self._loops is None or self._step != trainer.global_step:
            return
        checkpoint["loops"]["fit_loop"] = deepcopy(self._loops)
        if self._data:
            checkpoint[type(data_module(trainer)).__qualname__] = dict(self._data)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tells the trainer of a validation that is due, which it would otherwise leave out."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        self._due = False
        if trainer.state.fn != TrainerFn.FITTING or state is None:
            return
        loops = checkpoint["loops"]["fit_loop"]
        self._loops = deepcopy(loops)
        self._data = dict(checkpoint.get(type(data_module(trainer)).__qualname__, {}))
        self._newest = self._loaded = (checkpoint["global_step"], state["validated"])

        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        every = trainer.val_check_interval
        if not (trainer.check_val_every_n_epoch is None and isinstance(every, int) and trainer.limit_val_batches):
            return
        self._due = done % every == 0 and state["validated"] != done
        if self._due:
            # As if it had begun, with no batch done.
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"] |= {"total": dict(begun), "current": dict(begun)}


class KillAfter(Checkpoint):
    """Kills the run after a step, as a power failure would; for `--verify_resume`.

    Args:
        step: The number of steps that are done then.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Sends SIGKILL to this process."""
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """What writes a run's checkpoints; none in a `fast_dev_run`."""
    found = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [] if getattr(trainer, "fast_dev_run", False) else found


def data_module(trainer: Trainer) -> LightningDataModule | None:
    """The trainer's data module, if it has one."""
    found: LightningDataModule | None = getattr(trainer, "datamodule", None)
    return found


def batches_done(trainer: Trainer) -> int:
    """The batches that were trained in all epochs."""
    total = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]
    return int(total["processed"])


def last_path(trainer: Trainer) -> Path | None:
    """Where the last step's checkpoint is written; None in a run without checkpoints."""
    keepers = model_checkpoints(trainer)
    keeper = next((keeper for keeper in keepers if keeper.save_last), keepers[0] if keepers else None)
    return None if keeper is None else Path(keeper.format_checkpoint_name({}, keeper.CHECKPOINT_NAME_LAST))


def requeue_job() -> None:
    """Puts this Slurm job back into the queue; nothing outside of one."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"

    if not re.fullmatch("[0-9_]+", job):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        said = done.stderr.strip()
    except OSError as error:
        said = str(error)
    print(f"job {job} could not be requeued: {said}" if said else f"job {job} is requeued", flush=True)


def wait_for_first(trainer: Trainer) -> None:
    """Keeps the other processes until the first has written its checkpoint, as a scheduler may kill all after one."""
    if trainer.world_size == 1 or not distributed.is_initialized():
        return
    store = distributed.distributed_c10d._get_default_store()
    with suppress(Exception):  # the first process may be gone
        if trainer.is_global_zero:
            store.set("interruptions/saved", "yes")
        else:
            store.wait(["interruptions/saved"], PATIENCE)
