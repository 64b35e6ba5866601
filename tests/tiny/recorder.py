"""A callback for tests: what each process saw, drew and ended with."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.batch import Batch


class Recorder(Callback):
    """Writes `rank-<n>.json` into `folder`: keys and times of each training batch, and a checksum of the weights."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.keys: list[str] = []
        self.times: list[float] = []
        self.images: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.keys += batch["key"]
        self.times += outputs["t"].tolist()
        self.images += [image.double().sum().item() for image in batch["hr"]]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = torch.cat([value.detach().flatten() for value in pl_module.parameters()]).double()
        seen: dict[str, Any] = {
            "keys": self.keys,
            "times": self.times,
            "images": self.images,
            "weights": weights.abs().sum().item(),
        }
        seen["region"] = str(dict(pl_module.hparams).get("region"))  # as the command line gave it
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen))
