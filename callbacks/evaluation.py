"""What is done with the images of a validation or a test, each image once, whatever process had it."""

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from datamodules.batch import Batch

Value = TypeVar("Value")


class EvaluationCallback(Callback, ABC, Generic[Value]):
    """Keeps something for images by their key, and concludes when all processes are done.

    A subclass says what it keeps of a batch, in `kept`, and what becomes of everything in the end.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Value] = {}

    @abstractmethod
    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Keeps of one batch what is needed.

        Args:
            outputs: `{"sr": [B,3,H,W] in [-1, 1], "panels": {title: [B,1 or 3,H,W] in [0, 1]}}`.
            batch: What they were made of, with `hr`.
        """

    @abstractmethod
    def conclude(
        self, trainer: Trainer, pl_module: LightningModule, *, stage: str, kept: dict[str, Value], folder: Path
    ) -> None:
        """Does something with what all processes kept; every process calls it, with the same entries.

        Args:
            trainer: The trainer.
            pl_module: The method.
            stage: "val" or "test".
            kept: By key, in the order of keys; not empty.
            folder: The run's.
        """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what an interrupted validation left."""
        self.kept = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects."""
        self.collect(outputs, batch)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Concludes."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Concludes."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        kept = gather_by_key(self.kept)
        self.kept = {}
        with results_folder(trainer) as folder:
            if kept and not trainer.sanity_checking:
                self.conclude(trainer, pl_module, stage=stage, kept=kept, folder=folder)


@contextlib.contextmanager
def results_folder(trainer: Trainer) -> Iterator[Path]:
    """The run's folder. A `fast_dev_run` writes as well, to a folder that is then removed: it leaves nothing."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
    if not cast(Any, trainer).fast_dev_run:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def gather_by_key(mine: dict[str, Value]) -> dict[str, Value]:
    """The entries of all processes, in the order of their keys.

    An image that a sampler gave to two processes, to even out their numbers, stays one entry; a process that had no
    image contributes none. Every process must call this and gets the same result.

    Args:
        mine: What this process has, by the image's key.
    """
    parts: list[dict[str, Value]] = [mine]
    if distributed.is_available() and distributed.is_initialized():
        parts = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(parts, mine)
    merged = {key: value for part in reversed(parts) for key, value in part.items()}
    return dict(sorted(merged.items()))
