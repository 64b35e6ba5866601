"""The results of a test for Weights & Biases: a table with pictures, a summary, and what they depend on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_modules.evaluation.results import NAME, Results, read_results

KINDS = ("lr", "sr", "hr")
PROVENANCE = ("method", "checkpoint", "data", "run", "measured")


class Report(Callback):
    """Sends what a test wrote to every `WandbLogger`; part of `configs/logger/wandb.yaml`.

    - the table `test/images`: a row for each image with its scores, the first few with their pictures;
    - the summary: the means as `test/<score>` and `test/<baseline>/<score>`, cost and times;
    - the config: `protocol`, and as `provenance` everything that the numbers depend on.

    Args:
        pictures: How many images have their pictures in the table.
    """

    def __init__(self, pictures: int = 16) -> None:
        self.pictures = pictures

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends everything once the results are written."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        path = Path(trainer.log_dir or ".") / NAME
        if not loggers or not trainer.is_global_zero or not path.is_file():
            return

        results = read_results(path)
        columns, rows = self._table(results)
        for logger in loggers:
            logger.log_table("test/images", columns=columns, data=rows)
            logger.experiment.summary.update(summary(results))
            provenance = {name: results.content.get(name) for name in PROVENANCE}
            logger.experiment.config.update(
                {"protocol": results.protocol, "provenance": provenance}, allow_val_change=True
            )

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
