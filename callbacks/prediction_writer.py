"""Enlarged images as files."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from callbacks.evaluation import gather_by_key
from lightning_modules.metrics.pixels import to_uint8


class PredictionWriter(BasePredictionWriter):
    """Writes each enlarged image to `<folder>/<key>.png`, as soon as it is there, and says where.

    Sub-folders of the input are kept. A file that exists is never overwritten, whatever wrote it, so that the output
    may safely go beside the input. Nothing is returned: a folder of photographs would not fit in memory.

    Args:
        folder: Where to write; `predictions` in the run's folder by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._target = Path()
        self._written: dict[str, None] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folder before the first image is computed.

        Raises:
            OSError: it cannot be written to.
        """
        trainer.predict_loop.return_predictions = False
        run = trainer.log_dir or "."  # asked by every process, whether needed or not: asking makes them meet
        self._target = Path(self.folder or Path(run) / "predictions").expanduser()
        self._written = {}
        try:
            self._target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{self._target}: cannot be made a folder for the results ({error.strerror})") from error
        if not os.access(self._target, os.W_OK):
            raise PermissionError(f"{self._target}: cannot be written to; name another folder")

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Looks for files in the way before the images are computed.

        Raises:
            FileExistsError: there is one.
        """
        for key in batch["key"]:
            if self._path(key).exists():
                raise FileExistsError(_in_the_way(self._path(key)))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the images of one batch."""
        pixels = to_uint8(prediction["sr"], batch["key"]).permute(0, 2, 3, 1).contiguous().cpu()
        for key, image in zip(batch["key"], pixels, strict=True):
            write_png(self._path(key), Image.fromarray(np.asarray(image)))
            self._written[key] = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what was written, and where."""
        written = gather_by_key(self._written)
        if trainer.is_global_zero:
            print(f"{len(written)} image{'' if len(written) == 1 else 's'} written to {self._target}", flush=True)

    def _path(self, key: str) -> Path:
        """`key` below the target folder.

        Raises:
            ValueError: the key leads out of it.
        """
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key}: leads out of the folder of results")
        return self._target / f"{key}.png"


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a new file, whole or not at all.

    Raises:
        FileExistsError: there is a file of that name.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            image.save(file, format="PNG")
    except FileExistsError as error:
        raise FileExistsError(_in_the_way(path)) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); make room or name another folder"
        ) from error


def _in_the_way(path: Path) -> str:
    return f"{path}: exists, and nothing is overwritten; delete it or name another folder"
