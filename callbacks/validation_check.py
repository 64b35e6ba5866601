"""Reads the validation images before the first step."""

from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.image_metrics import ImageMetrics


class ValidationCheck(Callback):
    """Reads every validation image once before training, as one that cannot be used ends the run at its validation.

    Nothing is computed: an image must be readable, and large enough for the network and the scores.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the images that this process validates.

        Raises:
            ValueError: an image is damaged or too small; the message names it.
        """
        loaders: Any = trainer.val_dataloaders or []
        loaders = loaders if isinstance(loaders, list) else [loaders]
        for loader, limit in zip(loaders, trainer.num_val_batches, strict=False):
            for batch in islice(loader, None if limit == float("inf") else int(limit)):
                self._check(trainer, pl_module, batch)

    def _check(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        height, width = batch["hr"].shape[-2:]
        smallest = getattr(pl_module, "smallest", 1)
        if min(height, width) < smallest:
            raise ValueError(
                f"{', '.join(batch['key'])}: {width}x{height} pixels are too few to validate with: the network needs "
                f"{smallest} on each side; leave the image out"
            )
        scale = getattr(getattr(trainer, "datamodule", None), "scale", 1)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ImageMetrics):
                callback.check_size(batch["hr"], scale, batch["key"][0])
