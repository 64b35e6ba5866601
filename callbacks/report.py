"""What a training and a test came to, for Weights & Biases and TensorBoard."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from callbacks.image_metrics import ImageMetrics
from lightning_modules.evaluation.results import NAME, Results, read_results
from lightning_modules.evaluation.summary import table

KINDS = ("lr", "sr", "hr")
PROVENANCE = ("method", "checkpoint", "data", "run", "measured")


class Report(Callback):
    """Tells `WandbLogger` and `TensorBoardLogger` what a training and a test came to; part of their overlays.

    - in training, the best value of each score: `best/val/<score>`, and at W&B its step;
    - of a test at W&B the table `test/images`: a row for each image with its scores, the first few with their pictures;
      the means as `test/<score>` and `test/<baseline>/<score>`, cost and times in the summary; and in the config
      `protocol`, and as `provenance` everything that the numbers depend on;
    - of a test in TensorBoard the short table as text, and the same pictures.

    Args:
        pictures: How many images have their pictures shown.
    """

    def __init__(self, pictures: int = 16) -> None:
        self.pictures = pictures
        self.best: dict[str, tuple[float, int]] = {}  # the value and the step of each score

    def state_dict(self) -> dict[str, Any]:
        """The best values."""
        return {"best": {name: list(found) for name, found in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best values of the run that this one resumes."""
        self.best = {name: (float(value), int(step)) for name, (value, step) in state_dict["best"].items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends the scores that are better than before."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        better = {name: sign for each in _metrics(trainer) for name, sign in _directions(each).items()}
        for name, sign in better.items():
            value = float(trainer.callback_metrics.get(f"val/{name}", math.nan))
            if math.isnan(value) or (name in self.best and sign * value <= sign * self.best[name][0]):
                continue
            self.best[name] = value, trainer.global_step
            for logger in trainer.loggers if trainer.is_global_zero else []:
                if isinstance(logger, WandbLogger):
                    told = {f"best/val/{name}": value, f"best/val/{name}/step": trainer.global_step}
                    logger.experiment.summary.update(told)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_scalar(f"best/val/{name}", value, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends everything once the results are written."""
        path = Path(trainer.log_dir or ".") / NAME
        if not trainer.is_global_zero or not path.is_file():
            return

        results = read_results(path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                columns, rows = self._table(results)
                logger.log_table("test/images", columns=columns, data=rows)
                logger.experiment.summary.update(summary(results))
                provenance = {name: results.content.get(name) for name in PROVENANCE}
                logger.experiment.config.update(
                    {"protocol": results.protocol, "provenance": provenance}, allow_val_change=True
                )
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("test/results", table({"test": results}), trainer.global_step)
                self._show_pictures(results, logger, trainer.global_step)

    def _show_pictures(self, results: Results, logger: TensorBoardLogger, step: int) -> None:
        for image in results.images[: self.pictures]:
            for kind in KINDS:
                file = results.picture(kind, image)
                if file is not None:
                    pixels = np.asarray(Image.open(file).convert("RGB"))
                    logger.experiment.add_image(f"test/{image}/{kind}", pixels, step, dataformats="HWC")

    def _table(self, results: Results) -> tuple[list[str], list[list[Any]]]:
        """Titles and rows."""
        import wandb

        kinds = [kind for kind in KINDS if results.picture(kind, results.images[0]) is not None]
        names = [(score, column) for score in results.definitions for column in ("model", results.baseline) if column]
        values = {pair: results.values(*pair) for pair in names}
        names = [pair for pair in names if values[pair]]  # those of single images

        rows: list[list[Any]] = []
        for place, image in enumerate(results.images):
            files = [results.picture(kind, image) if place < self.pictures else None for kind in kinds]
            pictures = [None if file is None else wandb.Image(Image.open(file).convert("RGB")) for file in files]
            rows.append([image, *pictures, *(values[pair][image] for pair in names)])
        titles = [score if column == "model" else f"{column}/{score}" for score, column in names]
        return ["image", *kinds, *titles], rows


def summary(results: Results) -> dict[str, Any]:
    """The means, cost and times by name."""
    found: dict[str, Any] = {}
    for score, means in results.content["means"].items():
        for column, value in means.items():
            found["test/" + (score if column == "model" else f"{column}/{score}")] = value
    for part in ("cost", "times"):
        found |= {f"test/{part}/{name}": value for name, value in (results.content.get(part) or {}).items()}
    return found


def _metrics(trainer: Trainer) -> list[ImageMetrics]:
    return [each for each in trainer.callbacks if isinstance(each, ImageMetrics)]  # type: ignore[attr-defined]


def _directions(metrics: ImageMetrics) -> dict[str, int]:
    """1 for a score whose larger values are better, -1 for the others."""
    return {name: 1 if each["better"] == "higher" else -1 for name, each in metrics.scorer.definitions().items()}
