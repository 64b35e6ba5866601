"""The score of an enlarged image against the low-resolution image it was made from."""

from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.evaluation import EvaluationCallback
from datamodules.batch import Batch, to_pixels
from lightning_modules.metrics.lr_consistency import lr_psnr


class LRConsistency(EvaluationCallback[float]):
    """Logs `val/lr_psnr` and `test/lr_psnr`: PSNR in RGB between the averaged result and the low-resolution image.

    Methods that see the low-resolution image only at the start, as Relay Diffusion does, can drift away from it. The
    result is rounded to 8 bits first, as its file would be.
    """

    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Scores the images of one batch."""
        sr = to_pixels(outputs["sr"], batch["key"]).double() / 255
        scores = lr_psnr(sr, (batch["lr"].double() + 1) / 2)
        self.kept.update(zip(batch["key"], scores.tolist(), strict=True))

    def conclude(
        self, trainer: Trainer, pl_module: LightningModule, *, stage: str, kept: dict[str, float], folder: Path
    ) -> None:
        """Logs the mean over the images."""
        pl_module.log(f"{stage}/lr_psnr", fmean(kept.values()), sync_dist=True)
