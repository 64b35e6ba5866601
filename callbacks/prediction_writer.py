"""Writes enlarged images to PNG files."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from callbacks.evaluation import gather_by_key
from datamodules.batch import to_pixels

WHITE = 32  # standard deviation, in grey levels of 255, that is drawn in white


class PredictionWriter(BasePredictionWriter):
    """Writes each enlarged image to `<folder>/<key>.png` as soon as it is computed.

    Sub-folders of the input are kept. Existing files are never overwritten, so the folder may be that of the input.
    With several draws of each image, `<key>.png` is their mean and `<key>_std.png` a picture of their standard
    deviation, see `spread_picture`. Predictions are not returned to the caller, because the images of a large folder
    would not fit in memory.

    Args:
        folder: The folder to write to; `predictions` in the run's folder by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._target = Path(folder or ".").expanduser()
        self._written: dict[str, None] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the folder now, because `log_dir` is a collective call.

        A process that has no images to enlarge skips the prediction loop and would not take part later.
        """
        super().setup(trainer, pl_module, stage)
        run = Path(trainer.log_dir or ".")
        self._target = run / "predictions" if self.folder is None else Path(self.folder).expanduser()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the folder before the first image is computed.

        Raises:
            OSError: the folder cannot be created or written to.
        """
        trainer.predict_loop.return_predictions = False
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
        """Checks, before the images are computed, that their files do not exist yet.

        Raises:
            FileExistsError: one of the files exists.
        """
        suffixes = ("", "_std") if getattr(pl_module, "draws", 1) > 1 else ("",)
        for path in (self._path(key + suffix) for key in batch["key"] for suffix in suffixes):
            if path.exists():
                raise FileExistsError(_exists_message(path))

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
        self._write(prediction["sr"], batch["key"])
        if "std" in prediction:
            self._write(spread_picture(prediction["std"]), [f"{key}_std" for key in batch["key"]])

    def _write(self, images: Tensor, keys: Sequence[str]) -> None:
        pixels = to_pixels(images, keys).permute(0, 2, 3, 1).contiguous().cpu()
        for key, image in zip(keys, pixels, strict=True):
            write_png(self._path(key), Image.fromarray(np.asarray(image)))
            self._written[key] = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints how many images were written, and to which folder."""
        if stage != TrainerFn.PREDICTING:
            return

        written = gather_by_key(self._written)
        if trainer.is_global_zero:
            print(f"{len(written)} image{'' if len(written) == 1 else 's'} written to {self._target}", flush=True)

    def _path(self, key: str) -> Path:
        """The file of `key` in the target folder.

        Raises:
            ValueError: the key is a path that leads out of the folder.
        """
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key}: leads out of the folder of results")
        return self._target / f"{key}.png"


def spread_picture(std: Tensor) -> Tensor:
    """Standard deviations of several draws as grey pictures in [-1, 1], both `[B,3,H,W]`.

    The deviations are those of images in [-1, 1]. The brightness of a pixel is the root mean square over its channels;
    white is a deviation of 32 of 255 grey levels or more in every picture, so that pictures can be compared.
    """
    grey_levels = std.square().mean(dim=1, keepdim=True).sqrt() * 127.5
    return (grey_levels / WHITE * 2 - 1).clamp(max=1).expand(-1, 3, -1, -1)


def write_png(path: Path, image: Image.Image) -> None:
    """Writes an image to a new file; after an error no partial file remains.

    Raises:
        FileExistsError: the file exists.
        OSError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:  # "x" fails if another process has made the file meanwhile
            image.save(file, format="PNG")
    except FileExistsError as error:
        raise FileExistsError(_exists_message(Path(error.filename))) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); make room or name another folder"
        ) from error


def _exists_message(path: Path) -> str:
    return f"{path}: exists, and nothing is overwritten; delete it or name another folder"
