"""A small training run that a test starts, kills, resumes and compares: `python -m tests.datamodules.resumed ...`."""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from datamodules.base import SRDataModule
from datamodules.batch import Batch
from datamodules.degradations.degradation import Degradation, Recipe, generator
from datamodules.stream.sources import Source
from tests.datamodules.trees import Numbers


class RandomBlend(Degradation):
    """A random degradation: each image is blended with grey by a share of its own."""

    def recipe(self, key: str, *, epoch: int, seed: int) -> Recipe:
        return {"share": float(generator(key, epoch=epoch, seed=seed).uniform())}

    def apply(self, hr: Tensor, recipes: Any) -> Tensor:
        share = torch.tensor([recipe["share"] for recipe in recipes]).view(-1, 1, 1, 1)
        return (hr * share + 0.5 * (1 - share))[..., :: self.scale, :: self.scale]


class Pictures(SRDataModule):
    """Pictures in memory, two of which are damaged."""

    def source(self, split: str) -> Source:
        return Numbers([5, 3, 1], damaged=[1, 6])


class Small(LightningModule):
    """Trains one convolution and notes what it is given."""

    def __init__(self, peek: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.peek = peek
        self.seen: list[tuple[list[str], str]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        shown = hashlib.sha256(batch["hr"].numpy().tobytes() + batch["lr"].numpy().tobytes()).hexdigest()
        self.seen.append((batch["key"], shown))
        return (self.layer(batch["up"]) - batch["hr"]).abs().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.layer(batch["up"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.peek:  # starts the training loader before the loops are restored
            assert self.trainer.estimated_stepping_batches
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step == OPTIONS.save_at:
            self.trainer.save_checkpoint(OPTIONS.folder / "half.ckpt")
            if OPTIONS.kill:
                os.kill(os.getpid(), signal.SIGKILL)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--save-at", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--peek", action="store_true")
    parser.add_argument("--epoch", type=int)
    return parser


OPTIONS = argparse.Namespace()


def main(*options: str) -> None:
    """Trains, and leaves what each process saw and the weights it ends with."""
    OPTIONS.__dict__.update(vars(arguments().parse_args(options or None)))
    seed_everything(0)
    model = Small(OPTIONS.peek)
    data = Pictures(
        scale=2, crop=8, batch_size=2, num_workers=OPTIONS.workers, degradation=RandomBlend(2), rotate=True, shuffle=4
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=OPTIONS.processes,
        strategy="ddp" if OPTIONS.processes > 1 else "auto",
        max_steps=OPTIONS.steps,
        max_epochs=1000,  # with -1 Lightning would not touch the loader in `estimated_stepping_batches`
        limit_train_batches=OPTIONS.epoch,
        limit_val_batches=0,
        accumulate_grad_batches=OPTIONS.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=OPTIONS.folder / "half.ckpt" if OPTIONS.resume else None, weights_only=True)
    weights = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    record = {"seen": model.seen, "weights": weights}
    (OPTIONS.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
