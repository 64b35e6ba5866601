"""A method and data of a few numbers, for testing callbacks; as a program, a run of one or more CPU processes."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.utils.data import DataLoader

from callbacks.ema import EMA
from callbacks.image_metrics import ImageMetrics
from callbacks.prediction_writer import PredictionWriter
from callbacks.sample_grid import SampleGrid
from datamodules.batch import Batch
from lightning_modules.cluster import leave
from lightning_modules.metrics.score import SetScore
from lightning_modules.metrics.scorer import classic

SCALE = 2
SIZE = 32


class SmallResolver(LightningModule):
    """A convolution over `up`, with a frozen part."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.learning_rate = learning_rate

    def protocol(self) -> str:
        return "small-1"

    def _enlarge(self, batch: Batch) -> Tensor:
        residual: Tensor = self.network(self.frozen(batch["up"]))
        return (batch["up"] + 0.2 * residual).clamp(-1, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        loss = (batch["up"] + 0.2 * self.network(batch["up"]) - batch["hr"]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss, "t": torch.full((len(batch["key"]),), 0.5)}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"sr": self._enlarge(batch), "panels": {"attention": (batch["up"][:, :1] + 1) / 2}}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"sr": self._enlarge(batch), "panels": {}}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"sr": self._enlarge(batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)


def image_of(key: str, height: int = SIZE, width: int = SIZE) -> Tensor:
    """A smooth coloured image `[1,3,H,W]` in [-1, 1] that is a function of `key`."""
    generator = torch.Generator().manual_seed(sum(key.encode()))
    coarse = torch.rand(1, 3, 5, 5, generator=generator) * 2 - 1
    return interpolate(coarse, size=(height, width), mode="bicubic").clamp(-1, 1)


def batch_of(*keys: str, height: int = SIZE, width: int = SIZE) -> Batch:
    hr = torch.cat([image_of(key, height, width) for key in keys])
    lr = avg_pool2d(hr, SCALE)
    return Batch(lr=lr, up=interpolate(lr, scale_factor=SCALE, mode="bicubic"), key=list(keys), hr=hr)


def join(samples: list[Any]) -> Any:
    """One batch of batches of one image; what is no batch stays."""
    if len(samples) == 1:
        return samples[0]
    tensors = {name: torch.cat([sample[name] for sample in samples]) for name in ("lr", "up", "hr")}
    return {**tensors, "key": [sample["key"][0] for sample in samples]}


class SmallData(LightningDataModule):
    """A few images; Lightning splits them over processes, repeating some where they do not divide."""

    def __init__(self, batch_size: int = 2, photos: int = 3) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.batch_size, self.photos = batch_size, photos

    def _loader(self, split: str, count: int) -> DataLoader[Any]:
        samples: Any = [batch_of(f"{split}/{index:02d}") for index in range(count)]
        return DataLoader(samples, batch_size=self.batch_size, collate_fn=join)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", 8)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", 5)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", 1)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Split over processes without repetition, so that a second one has nothing to do where there is one image."""
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        photos: Any = [batch_of(f"photos/sub/{index:02d}") for index in range(self.photos)]
        return DataLoader(photos[rank::processes], None)


class Colours(SetScore):
    """The mean colours of a set against those of its targets."""

    definition = "colours"
    higher_is_better = {"distance": False, "patches": True}  # noqa: RUF012

    def features(self, images: Tensor) -> list[Tensor]:
        return [image.flatten(1).T[:5] for image in images]

    def compare(self, sr: Tensor, hr: Tensor) -> dict[str, float]:
        return {"distance": float((sr.mean(0) - hr.mean(0)).norm()), "patches": float(len(sr))}


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    """A quiet trainer on the CPU that keeps everything below `folder`."""
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="", version=""),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        **options,
    }
    return Trainer(callbacks=list(callbacks), default_root_dir=folder, **options)


def main(folder: Path, processes: int) -> None:
    """Validates, tests, trains two steps and validates again; each process leaves what it logged and holds."""
    seed_everything(0)
    method, data = SmallResolver(), SmallData(photos=1)
    ema = EMA(decay=0.5, warmup=False)
    strategy = "ddp" if processes > 1 else "auto"
    options: dict[str, Any] = {"devices": processes, "strategy": strategy, "max_steps": 2}
    trainer = trainer_of(
        folder, ImageMetrics([*classic(), Colours()]), SampleGrid(images=3), ema, PredictionWriter(), **options
    )
    val, test = trainer.validate(method, data, verbose=False)[0], trainer.test(method, data, verbose=False)[0]
    trainer.predict(method, data)
    trainer.fit(method, data)
    record = {
        "val": val,
        "test": test,
        "after": {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
        "weights": {name: value.flatten().tolist() for name, value in method.named_parameters()},
    }
    (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
