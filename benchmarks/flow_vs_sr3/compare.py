"""Rectified flow against SR3: the same network, patches, optimizer and number of steps.

    python benchmarks/flow_vs_sr3/compare.py --train bsds400 --test set5 --steps 300

Equal steps of equal networks take equal minutes, whatever else the machine does. The flow starts from the enlarged
image with noise of deviation 0.2; SR3 starts from noise. A run whose checkpoint exists is not repeated.

Each test image is enlarged with 1, 5 and 20 network evaluations; PSNR and SSIM on Y (border 4, 8 bits) are written
beside bicubic's.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch

from datamodules.batch import to_pixels
from datamodules.folder import Folder
from lightning_modules.config import load_method
from lightning_modules.diffusion.samplers import DDIM, Ancestral, Sampler
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.ssim import SSIM
from lightning_modules.running.experiment import run

HERE = Path(__file__).parent
EVALUATIONS = (1, 5, 20)
SAMPLERS: dict[str, type[Ancestral]] = {"ancestral": Ancestral, "DDIM": DDIM}


def trained(method: str, given: argparse.Namespace) -> Path:
    """The checkpoint of a method, trained unless it exists."""
    checkpoint = Path(given.runs) / method / "last" / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        places = ("--trainer.logger.init_args.save_dir", given.runs, "--data.init_args.train", given.train)
        steps = ("--trainer.max_steps", str(given.steps))
        run(["fit", "--config", str(HERE / f"{method}.yaml"), "--experiment", method, *places, *steps])
    return checkpoint


def scores(image: torch.Tensor, target: torch.Tensor, keys: list[str]) -> tuple[float, float]:
    """PSNR and SSIM on Y of one image."""
    a, b = (crop_border(to_pixels(picture, keys).double() / 255, 4) for picture in (image, target))
    return float(PSNR()(a, b)), float(SSIM()(a, b))


@torch.autocast("cpu", torch.bfloat16)
def enlarged(checkpoint: Path, sampler: Sampler, data: Folder) -> str:
    """Mean scores over the test images, as a cell of the table."""
    model, rows = load_method(checkpoint), []
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        rows.append(scores(model.super_resolve(batch, sampler), batch["hr"], batch["key"]))
    return cell(rows)


def cell(rows: list[tuple[float, float]]) -> str:
    """Means over images."""
    return f"{fmean(row[0] for row in rows):.2f} / {fmean(row[1] for row in rows):.4f}"


def main() -> None:
    """Trains what is not trained yet, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="folder of training images")
    parser.add_argument("--test", required=True, help="folder of test images")
    parser.add_argument("--steps", type=int, required=True, help="training steps of each method")
    parser.add_argument("--runs", default="runs/flow_vs_sr3")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    given = parser.parse_args()

    checkpoints = {method: trained(method, given) for method in ("flow", "sr3")}
    data = Folder(test=given.test, scale=4, num_workers=0)
    batches = [data.on_after_batch_transfer(raw, 0) for raw in data.test_dataloader()]
    bicubic = cell([scores(batch["up"], batch["hr"], batch["key"]) for batch in batches])

    lines = ["| | " + " | ".join(map(str, EVALUATIONS)) + " |", "|---|" + "---|" * len(EVALUATIONS)]
    for method, checkpoint in checkpoints.items():
        for name, sampler in SAMPLERS.items():
            cells = [enlarged(checkpoint, sampler(steps), data) for steps in EVALUATIONS]
            lines.append(f"| {method}, {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)

    weights = sum(parameter.numel() for parameter in load_method(checkpoints["flow"]).parameters())
    intro = (__doc__ or "").split("\n\n", 2)[2].strip()
    about = (
        f"{given.steps} steps each, 16 patches of 64x64, {weights:,} weights, seed 0, bf16-mixed on a CPU; trained on "
        f"{Path(given.train).name}, tested on {Path(given.test).name} x4 ({len(batches)} images). Bicubic: {bicubic}. "
        "PSNR-Y in dB / SSIM-Y by network evaluations:"
    )
    page = ["# Rectified flow against SR3", intro, about, "\n".join(lines)]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "flow_vs_sr3.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
