"""Writes enlarged images to files."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.evaluation import gather_by_key
from datamodules.batch import to_pixels
from datamodules.images import SUFFIXES
from datamodules.photograph import (
    FORMATS,
    QUALITY,
    Colours,
    Photograph,
    check_options,
    exists_message,
    write_photograph,
)

_log = logging.getLogger(__name__)
WHITE = 32  # standard deviation, in grey levels of 255, that is drawn in white


class PredictionWriter(BasePredictionWriter):
    """Writes each enlarged image to `<folder>/<key>.png` as soon as it is computed, whole, see `write_photograph`.

    Sub-folders of the input are kept. With several draws of each image, `<key>.png` is their mean and `<key>_std.png` a
    picture of their standard deviation, see `spread_picture`. Predictions are not returned to the caller, because the
    images of a large folder would not fit in memory.

    A failure does not end the run: it is logged and kept in `failures`, and the other images are written. An existing
    file counts as one unless it is to be skipped or overwritten, so the folder may be that of the input.

    Args:
        folder: The folder to write to; `predictions` in the run's folder by default.
        skip_existing: Leave out images whose files exist, before they are computed.
        overwrite: Replace files that exist.
        colours: `source` writes the colours of the image's own profile, and embeds it, where it has one that fits;
            `srgb` writes sRGB without a profile.
        format: `png`, `jpg`, `webp` or `tiff`.
        quality: Of jpg and webp, 1 to 100.
        whole: Keep what belongs to the photograph: profile, metadata, transparency, 16 bits, grey. False for results
            that are no photographs.

    Attributes:
        failures: The images of all processes that were not written, and why, once the prediction has ended.

    Raises:
        ValueError: existing files are to be skipped and overwritten; or format or quality are not known.
    """

    def __init__(
        self,
        folder: str | None = None,
        skip_existing: bool = False,
        overwrite: bool = False,
        colours: Colours = "source",
        format: str = "png",
        quality: int = QUALITY,
        whole: bool = True,
    ) -> None:
        super().__init__(write_interval="batch")
        check_options(format, quality, skip_existing=skip_existing, overwrite=overwrite)
        if folder is not None and Path(folder).suffix.lower() in SUFFIXES and not Path(folder).expanduser().is_dir():
            raise ValueError(
                f"folder: {folder} is the name of an image file; give a folder for results named <input>.png"
            )

        self.folder, self.skip_existing, self.overwrite = folder, skip_existing, overwrite
        self.colours, self.format, self.quality, self.whole = colours, format, quality, whole
        self.failures: dict[str, str] = {}
        self._target = Path(folder or ".").expanduser()
        self._written: dict[str, None] = {}
        self._skipped: dict[str, None] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the folder now, because `log_dir` is a collective call.

        A process that has no images to enlarge skips the prediction loop and would not take part later.
        """
        super().setup(trainer, pl_module, stage)
        run = Path(trainer.log_dir or trainer.default_root_dir)
        self._target = run / "predictions" if self.folder is None else Path(self.folder).expanduser()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the folder before the first image is computed.

        Raises:
            OSError: the folder cannot be created or written to.
        """
        trainer.predict_loop.return_predictions = False
        self._written, self._skipped, self.failures = {}, {}, {}
        try:
            self._target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{self._target}: cannot be made a folder for the results ({error.strerror})") from error
        if not os.access(self._target, os.W_OK):
            raise PermissionError(f"{self._target}: cannot be written to; name another folder")

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Marks, before anything is computed, a batch of which nothing can or need be written."""
        suffixes = ("", "_std") if getattr(pl_module, "draws", 1) > 1 else ("",)
        existing = {key: [path for path in self._paths(key, suffixes) if path.exists()] for key in batch["key"]}
        if self.overwrite:
            return

        if self.skip_existing:
            done = [key for key in batch["key"] if len(existing[key]) == len(suffixes)]
        else:
            done = [key for key in batch["key"] if existing[key]]
            for key in done:
                self._fail(key, exists_message(existing[key][0]))

        self._skipped |= dict.fromkeys(done)
        if len(done) == len(batch["key"]):
            batch["skip"] = True

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
        for key, reason in prediction.get("failed", {}).items():
            self._fail(key, reason)
        for name, suffix in (("sr", ""), ("std", "_std")):
            if name not in prediction:
                continue
            images = prediction[name] if name == "sr" else spread_picture(prediction[name])
            for index, key in enumerate(batch["key"]):
                if key not in self._skipped and key not in self.failures:
                    kept = "photograph" in batch and name == "sr" and self.whole
                    source = batch["photograph"][index] if kept else None
                    self._write(images[index : index + 1], key, suffix, source)

    def _write(self, image: Tensor, key: str, suffix: str, source: Photograph | None) -> None:
        """Writes one image `[1,3,H,W]` in [-1, 1] with all of its source, or notes why it cannot be."""
        (path,) = self._paths(key, (suffix,))
        if key + suffix in self._written:
            self._fail(key, f"{path}: is the name of two results of this run; rename one of the images")
            return

        try:
            depth = 8 if source is None else source.depth
            pixels = np.asarray(to_pixels(image, [key], depth)[0].permute(1, 2, 0).contiguous().cpu())
            made = Photograph(key, pixels) if source is None else source.with_colours(pixels)
            write_photograph(
                made, path, form=self.format, quality=self.quality, colours=self.colours, overwrite=self.overwrite
            )
        except (FileExistsError, ValueError) as error:  # a full disk ends the run
            self._fail(key, str(error))
        else:
            self._written[key + suffix] = None

    def _fail(self, key: str, reason: str) -> None:
        _log.error("%s", reason)
        self.failures[key] = reason

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints what was written and to which folder, and what was not; gathers the failures of all processes."""
        if stage != TrainerFn.PREDICTING:
            return

        unread = getattr(cast(Any, trainer).datamodule, "failures", {})
        self.failures = gather_by_key({**self.failures, **unread})
        written, skipped = gather_by_key(self._written), gather_by_key(self._skipped)
        left = len(skipped.keys() - self.failures.keys())
        if trainer.is_global_zero:
            parts = [f"{len(written)} image{'' if len(written) == 1 else 's'} written to {self._target}"]
            parts += [f"{left} skipped, whose files exist"] if left else []
            parts += [f"{len(self.failures)} failed"] if self.failures else []
            print(", ".join(parts), flush=True)

    def _paths(self, key: str, suffixes: Sequence[str]) -> list[Path]:
        """The files of `key` in the target folder.

        Raises:
            ValueError: the key is a path that leads out of the folder.
        """
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key}: leads out of the folder of results")
        return [self._target / f"{key}{suffix}{FORMATS[self.format].suffix}" for suffix in suffixes]


def spread_picture(std: Tensor) -> Tensor:
    """Standard deviations of several draws as grey pictures in [-1, 1], both `[B,3,H,W]`.

    The deviations are those of images in [-1, 1]. The brightness of a pixel is the root mean square over its channels;
    white is a deviation of 32 of 255 grey levels or more in every picture, so that pictures can be compared.
    """
    grey_levels = std.square().mean(dim=1, keepdim=True).sqrt() * 127.5
    return (grey_levels / WHITE * 2 - 1).clamp(max=1).expand(-1, 3, -1, -1)
