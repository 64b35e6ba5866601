"""Self-attention guidance on a trained model: PSNR, SSIM and NIQE by guidance scale.

    python -m lightning_modules.metrics.niqe bsds400 niqe.npz --block 32
    python benchmarks/sag_grid.py CHECKPOINT --test set5 gt --niqe niqe.npz [--scales 0 0.1 0.25 0.5]

Centre patches of the test images are enlarged with the checkpoint's own sampler and the same noise at every scale.
PSNR and SSIM are computed on Y without a border of 4 px. NIQE needs no reference and is lower the closer an image's
statistics are to those of natural photographs; its model is the given one, with blocks of 32 px, so numbers can only be
compared with each other. `--lpips` adds LPIPS, for which its weights must be installed.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

from datamodules.batch import Batch, to_pixels
from datamodules.folder import Folder
from lightning_modules.base import DiffusionModule
from lightning_modules.config import load_method
from lightning_modules.diffusion.guidance import SelfAttentionGuidance
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.niqe import NIQE
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import Score
from lightning_modules.metrics.ssim import SSIM

BORDER, BLOCK = 4, 32


def batches(arguments: argparse.Namespace) -> Iterator[Batch]:
    """The centre patches of the test images."""
    for folder in arguments.test:
        data = Folder(test=folder, scale=4, val_crop=arguments.crop, val_batch_size=8, num_workers=0)
        for raw in data.test_dataloader():
            yield data.on_after_batch_transfer(raw, 0)


def score(model: DiffusionModule, arguments: argparse.Namespace) -> dict[str, float]:
    """Means over the test images, and seconds of processor time."""
    scores: list[Score] = [PSNR(), SSIM(), NIQE(arguments.niqe, BLOCK), *([LPIPS()] if arguments.lpips else [])]
    for measured in scores:
        measured.load()

    rows: list[dict[str, float]] = []
    seconds = 0.0

    for batch in batches(arguments):
        start = time.process_time()
        sr = model.super_resolve(batch)
        seconds += time.process_time() - start

        image, target = (to_pixels(picture, batch["key"]).double() / 255 for picture in (sr, batch["hr"]))
        kept = {}
        for measured in scores:
            border = BORDER if measured.crops_border else 0
            kept[measured.name] = measured(crop_border(image, border), crop_border(target, border))
        rows += [{name: float(values[i]) for name, values in kept.items()} for i in range(len(sr))]

    return {**{name: fmean(row[name] for row in rows) for name in rows[0]}, "seconds": seconds, "images": len(rows)}


def main() -> None:
    """Scores every scale, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--test", required=True, nargs="+", help="folders of photographs")
    parser.add_argument("--niqe", required=True, help="model of natural photographs")
    parser.add_argument("--lpips", action="store_true")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5])
    parser.add_argument("--kernel", type=int, default=31)
    parser.add_argument("--sigma", type=float, default=3.0)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()

    model = load_method(arguments.checkpoint)
    assert isinstance(model, DiffusionModule)

    results: dict[str, dict[str, float]] = {}
    for scale in arguments.scales:
        model.guidance = [SelfAttentionGuidance(scale=scale, kernel=arguments.kernel, sigma=arguments.sigma)]
        results[f"{scale:g}"] = score(model, arguments)
        print(scale, results[f"{scale:g}"], flush=True)

    write(arguments, model, results)


def write(arguments: argparse.Namespace, model: DiffusionModule, results: dict[str, dict[str, float]]) -> None:
    """Writes and prints the page with the table."""
    first = next(iter(results.values()))
    columns = [name for name in first if name not in ("seconds", "images")]
    lines = [
        "# Self-attention guidance by scale",
        "",
        str(__doc__).strip().split("\n\n")[-1],
        "",
        f"{type(model).__name__}, {model.protocol()}, {first['images']:.0f} patches of {arguments.crop} px, kernel "
        f"{arguments.kernel}, sigma {arguments.sigma:g}, torch {torch.__version__}.",
        "",
        "| scale | " + " | ".join(columns) + " | time |",
        "|---" * (len(columns) + 2) + "|",
    ]

    for scale, row in results.items():
        values = " | ".join(f"{row[name]:.4f}" for name in columns)
        lines.append(f"| {scale} | {values} | {row['seconds'] / first['seconds']:.2f} |")

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sag_grid.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
