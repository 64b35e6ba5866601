"""Ablation of Relay Diffusion: the contribution of each part, on real images with equal training.

    python benchmarks/relay_ablation.py TRAIN_FOLDER TEST_FOLDER... [--minutes 20] [--device cuda]

Trains the same network in six ways ("arms") on x4 patches of a folder of photographs: Relay as published, without block
noise, without blur, trained and blurred only up to a noise level of 0.45, and conditioned on the low-resolution image;
and EDM from pure noise, conditioned on that image. The first arm is trained for the given minutes, the others for the
same number of steps. Each is then scored at several numbers of network evaluations on centre crops of the test images,
Relay from two noise levels. Writes relay_ablation.md and relay_ablation.png.
"""

import argparse
import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor

from callbacks.ema import EMA
from callbacks.image_metrics import ImageMetrics
from datamodules.batch import Batch
from datamodules.degradations.area import Area
from datamodules.folder import Folder
from datamodules.images import find_images
from lightning_modules.base import DiffusionModule
from lightning_modules.diffusion.edm import EDMProcess, LogNormal
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.parameterization import Preconditioned
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.diffusion.space import Pixels
from lightning_modules.edm import EDM
from lightning_modules.metrics.lr_consistency import LRConsistency
from lightning_modules.metrics.scorer import classic
from lightning_modules.networks.unet_adm import ADMUNet
from lightning_modules.relay import Relay

SCALE, CROP, BATCH, RATE = 4, 64, 16, 3e-4
ARMS = ("relay", "relay, no block noise", "relay, no blur", "relay up to 0.45", "relay, LR shown", "EDM, LR shown")
STARTS = (0.9, 0.45)
LEVELS = (1, 2, 3, 5, 9)  # noise levels of a run: 1, 3, 5, 9, 17 evaluations
Row = dict[str, Any]


def model_of(arm: str) -> DiffusionModule:
    """The method of one arm; all arms have the same network of 1.4 million weights."""
    shown = arm.endswith("LR shown")
    network = ADMUNet(
        img_resolution=CROP,
        in_channels=6 if shown else 3,
        model_channels=32,
        channel_mult=(1, 2, 2),
        num_blocks=1,
        attn_resolutions=(16,),
        channels_per_head=32,
        dropout=0.0,
    )

    return (EDM if arm.startswith("EDM") else Relay)(
        condition_on="up" if shown else "none",
        network=network,
        process=process_of(arm, starts_of(arm)[0]),
        parameterization=Preconditioned(),
        space=Pixels(clip=False),
        sampler=sampler_of(arm, starts_of(arm)[0], LEVELS[0]),
        optimizer=partial(torch.optim.Adam, lr=RATE),
    )


def process_of(arm: str, start: float) -> LogNormal:
    """The forward process of one arm, sampled from the noise level `start`."""
    if arm.startswith("EDM"):
        return EDMProcess(start)
    last = EDMProcess(sigma_max=0.45).prob_length if arm == "relay up to 0.45" else 0.93
    return RelayProcess(
        SCALE,
        blur_sigma_max=0.0 if arm == "relay, no blur" else 3.0,
        block_scale=0.0 if arm == "relay, no block noise" else 0.15,
        prob_length=last,
        sigma_start=start,
    )


def starts_of(arm: str) -> Sequence[float]:
    """The noise levels that one arm is sampled from."""
    if arm.startswith("EDM"):
        return [80.0]
    return STARTS[-1:] if arm == "relay up to 0.45" else STARTS


def sampler_of(arm: str, start: float, levels: int) -> Sampler:
    """Heun's sampler on exactly `levels` noise levels, from `start` down."""
    return EDMHeun(levels) if arm.startswith("EDM") else RelayHeun(levels, sigma_max=start - 1e-6)


def data_of(train: str, test: Path, batch: int, workers: int, side: int) -> Folder:
    """Photographs whose low-resolution images are averages of 4x4 pixels."""
    return Folder(
        train=train,
        val=str(test),
        scale=SCALE,
        crop=CROP,
        batch_size=batch,
        num_workers=workers,
        degradation=Area(SCALE),
        val_crop=side,
        val_batch_size=1,
    )


def trainer_of(given: argparse.Namespace, folder: Path, **limits: Any) -> Trainer:
    """A trainer in bfloat16 with EMA, without bars and checkpoints."""
    return Trainer(
        accelerator="gpu" if given.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        logger=CSVLogger(folder),
        callbacks=[EMA(decay=0.999), ImageMetrics([*classic(), LRConsistency()])],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )


def train(arm: str, given: argparse.Namespace, folder: Path, steps: int | None) -> tuple[DiffusionModule, Folder, int]:
    """Trains one arm for `steps` steps, or if None for the given minutes; also returns the number of steps."""
    seed_everything(0)
    model, data = model_of(arm), data_of(given.train, folder / "test", given.batch, given.workers, given.side)
    limits = {"max_time": timedelta(minutes=given.minutes)} if steps is None else {"max_steps": steps}
    trainer = trainer_of(given, folder, **{"max_epochs": -1, **limits})
    trainer.fit(model, data)
    return model, data, trainer.global_step


def score(arm: str, model: DiffusionModule, data: Folder, given: argparse.Namespace, folder: Path) -> list[Row]:
    """The scores of one arm from each start, at every number of levels."""
    rows = []
    for start, levels in product(starts_of(arm), LEVELS):
        model.process, model.sampler = process_of(arm, start), sampler_of(arm, start, levels)
        trainer = trainer_of(given, folder)
        trainer.limit_val_batches = 1.0
        logged = trainer.validate(model, data, verbose=False)[0]
        names = ("psnr_y", "ssim_y", "lr_psnr", "bicubic/psnr_y", "bicubic/ssim_y")
        rows.append(
            {"arm": arm, "start": start, "evaluations": 2 * levels - 1} | {n: logged[f"val/{n}"] for n in names}
        )
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def picture(arm: str, model: DiffusionModule, batch: Batch) -> Tensor:
    """The first test image, enlarged by one arm in 9 evaluations from its lowest start, `[3,H,W]` in [-1, 1]."""
    start = starts_of(arm)[-1]
    model.process = process_of(arm, start)
    return model.eval().super_resolve(batch, sampler_of(arm, start, 5))[0].cpu()


def save_strip(images: Sequence[Tensor], path: Path) -> None:
    """Writes images `[3,H,W]` in [-1, 1] side by side, enlarged twice."""
    strip = ((torch.cat(list(images), dim=2) + 1) * 127.5).round().clamp(0, 255).byte()
    image = Image.fromarray(np.asarray(strip.permute(1, 2, 0)))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def table(rows: Sequence[Row]) -> list[str]:
    """The scores as a Markdown table, bicubic first."""
    first = rows[0]
    lines = [
        "| arm | start at sigma | evaluations | PSNR-Y | SSIM-Y | LR-consistency, dB |",
        "|---|---|---|---|---|---|",
        f"| bicubic | | 0 | {first['bicubic/psnr_y']:.2f} | {first['bicubic/ssim_y']:.4f} | |",
    ]
    for row in rows:
        scores = f"{row['psnr_y']:.2f} | {row['ssim_y']:.4f} | {row['lr_psnr']:.2f}"
        lines.append(f"| {row['arm']} | {row['start']:g} | {row['evaluations']} | {scores} |")
    return lines


def collect(folders: Sequence[Path], target: Path) -> int:
    """Copies the test images into one folder; returns how many there are."""
    target.mkdir()
    files = [path for folder in folders for path in find_images(folder)]
    for path in files:
        shutil.copy(path, target / f"{path.parent.name}-{path.name}")
    return len(files)


def run(given: argparse.Namespace, folder: Path) -> None:
    """Trains and scores all arms; writes the page and the picture."""
    images, steps, rows, strip = collect(given.test, folder / "test"), given.steps, [], []
    for arm in ARMS:
        model, data, steps = train(arm, given, folder, steps)
        rows += score(arm, model, data, given, folder)

        batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
        strip = strip or [batch["hr"][0], batch["up"][0]]
        strip.append(picture(arm, model.cpu(), batch))

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "relay_ablation.md").write_text(report(rows, given, steps, images))
    save_strip(strip, given.out / "relay_ablation.png")
    print("\n".join(table(rows)))


def report(rows: Sequence[Row], given: argparse.Namespace, steps: int | None, images: int) -> str:
    """The page: how it was measured, the table, and what the picture shows."""
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    budget = f"{steps} steps" + (f", which took the first arm {given.minutes:g} minutes" if given.steps is None else "")

    return "\n".join(
        [
            "# Relay Diffusion, part by part",
            "",
            f"`python benchmarks/relay_ablation.py`; {where}, torch {torch.__version__}, bfloat16, one seed.",
            f"Each arm trains a network of 1.4 million weights on {given.batch} patches of {CROP}x{CROP} a step, for",
            f"{budget}. Scores are means over {images} centre crops of {given.side}x{given.side}. Relays sample with",
            "eta 0.2, EDM without noise.",
            "",
            *table(rows),
            "",
            "![a test image by every arm](relay_ablation.png)",
            "",
            f"From the left: target, bicubic, {'; '.join(ARMS)}. 9 evaluations each, the relays from {STARTS[-1]}.",
            "",
        ]
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of photographs")
    parser.add_argument("test", type=Path, nargs="+", help="folders of test images")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for the first arm")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--side", type=int, default=128, help="of the centre crops that are scored")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        run(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
