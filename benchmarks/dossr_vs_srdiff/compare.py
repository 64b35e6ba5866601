"""DoSSR on pixels against a small SRDiff, trained on the same images for the same time.

    python benchmarks/dossr_vs_srdiff/compare.py --train bsds400 --test set5 --minutes 120 [--runs runs] [--out ...]

Each method is trained for the given minutes on this machine; SRDiff's encoder gets a quarter of its time. A run whose
checkpoint exists is not repeated. SRDiff predicts the clean residual, as in the quick start.

Every model enlarges the test images with 1, 5, 10 and 50 network evaluations, in bfloat16. PSNR and SSIM on Y are
written beside those of bicubic enlargement, with a picture of one image. The U-Nets have two million weights each
(configurations beside this file); SRDiff has its encoder in addition.
"""

import argparse
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.batch import Batch, to_pixels
from datamodules.folder import Folder
from lightning_modules.config import load_method
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Sampler
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.ssim import SSIM
from lightning_modules.running.experiment import run
from lightning_modules.super_resolver import SuperResolver

HERE = Path(__file__).parent
EVALUATIONS = (1, 5, 10, 50)
PICTURED = (1, 5, 50)
Scores = dict[tuple[str, int], dict[str, float]]  # by sampler and evaluations


def samplers(method: str, steps: int) -> dict[str, Sampler]:
    """The samplers of a method by name."""
    if method == "dossr":
        return {f"DoSSR, order {order}": DoSMultistep(steps, order) for order in (1, 2, 3)}
    return {
        "SRDiff, ancestral": Ancestral(steps),
        "SRDiff, DDIM": DDIM(steps),
        "SRDiff, DPM-Solver++(2M)": DPMSolverPlusPlus(steps),
    }


def trained(name: str, minutes: float, runs: Path, train: str, *extra: str) -> Path:
    """Checkpoint of one configuration beside this file, trained for `minutes` unless it exists."""
    checkpoint = runs / name / "last" / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        return checkpoint

    budget = timedelta(minutes=minutes)
    hours, seconds = divmod(int(budget.total_seconds()), 3600)
    clock = f"00:{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
    places = ("--trainer.logger.init_args.save_dir", str(runs), "--data.init_args.train", train)
    run(["fit", "--config", str(HERE / f"{name}.yaml"), "--trainer.max_time", clock, *places, *extra])
    return checkpoint


def test_batches(folders: list[str], crop: int | None) -> Iterator[Batch]:
    """The images of the test folders, or their centres, one by one, with MATLAB's bicubic degradation."""
    for folder in folders:
        data = Folder(test=folder, scale=4, val_crop=crop, num_workers=0)
        for raw in data.test_dataloader():
            yield data.on_after_batch_transfer(raw, 0)


def scores_of(image: Tensor, target: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM on Y, without a border of 4 pixels."""
    a, b = crop_border(image, 4), crop_border(target, 4)
    return {score.name: score(a, b) for score in (PSNR(), SSIM())}


def unit(image: Tensor, batch: Batch) -> Tensor:
    """Images in [-1, 1] rounded to 8 bits, in [0, 1], for the scores."""
    return to_pixels(image, batch["key"]).double() / 255


@torch.autocast("cpu", torch.bfloat16)
def evaluate(method: str, model: SuperResolver, batches: list[Batch]) -> tuple[Scores, dict[int, Tensor], float]:
    """Mean scores, results for the first image by number of evaluations, and seconds of an evaluation of it."""
    scores: Scores = {}
    pictures: dict[int, Tensor] = {}

    start = time.perf_counter()
    model.super_resolve(batches[0], next(iter(samplers(method, 5).values())))
    seconds = (time.perf_counter() - start) / 5

    for steps in EVALUATIONS:
        for name, sampler in samplers(method, steps).items():
            rows = []
            for batch in batches:
                sr = model.super_resolve(batch, sampler)
                rows.append(scores_of(unit(sr, batch), unit(batch["hr"], batch)))
                if batch is batches[0]:
                    pictures.setdefault(steps, sr)
            scores[name, steps] = {key: fmean(float(row[key]) for row in rows) for key in ("psnr_y", "ssim_y")}
            print(f"{name}, {steps} evaluations: {scores[name, steps]}", flush=True)
    return scores, pictures, seconds


def table(scores: Scores) -> str:
    """PSNR-Y / SSIM-Y by sampler and evaluations, as Markdown."""
    lines = ["| | " + " | ".join(map(str, EVALUATIONS)) + " |", "|---" * (len(EVALUATIONS) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in scores):
        cells = [scores[name, steps] for steps in EVALUATIONS]
        lines.append(f"| {name} | " + " | ".join(f"{c['psnr_y']:.2f} / {c['ssim_y']:.4f}" for c in cells) + " |")
    return "\n".join(lines)


def picture(columns: dict[str, Tensor], side: int = 160) -> Image.Image:
    """The centres of images `[1,3,H,W]` side by side, with their names above."""
    sheet = Image.new("RGB", (side * len(columns), side + 14), "white")
    for i, (name, image) in enumerate(columns.items()):
        top, left = ((size - side) // 2 for size in image.shape[-2:])
        crop = to_pixels(image, [name])[0, :, max(top, 0) :, max(left, 0) :][:, :side, :side]
        sheet.paste(Image.fromarray(np.asarray(crop.permute(1, 2, 0))), (i * side, 14))
        ImageDraw.Draw(sheet).text((i * side + 2, 1), name, fill="black")
    return sheet


def write(out: Path, minutes: float, given: argparse.Namespace, lines: list[str], columns: dict[str, Tensor]) -> None:
    """Writes the page and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    picture(columns).save(out / "dossr_vs_srdiff.png", optimize=True)

    cpu = f"{torch.get_num_threads()} threads"
    about = f"{minutes:g} minutes of training each on a CPU ({cpu}, bf16-mixed), seed 0; {Path(given.train).name} x4."
    tests = ", ".join(Path(folder).name for folder in given.test)
    tests += f", centres of {given.crop}x{given.crop}" if given.crop else ""
    shown = "PSNR-Y in dB / SSIM-Y, border 4, 8 bits, mean over images"

    intro = (__doc__ or "").split("\n\n", 2)[2].strip()
    head = [
        "# DoSSR on pixels against SRDiff",
        intro,
        about,
        f"Test: {tests}. {shown}; columns are network evaluations.",
    ]
    page = [*head, *lines, "![one image](dossr_vs_srdiff.png)"]
    (out / "dossr_vs_srdiff.md").write_text("\n\n".join(page) + "\n")


def main() -> None:
    """Trains what is not trained yet, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="folder of training images")
    parser.add_argument("--test", required=True, nargs="+", help="folders of test images")
    parser.add_argument("--crop", type=int, help="score the centre of that many pixels a side instead of the whole")
    parser.add_argument("--minutes", type=float, required=True, help="training time of each method")
    parser.add_argument("--runs", type=Path, default=Path("runs/dossr_vs_srdiff"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    given = parser.parse_args()

    minutes: float = given.minutes
    encoder = trained("rrdb", minutes / 4, given.runs, given.train)
    frozen = ("--model.init_args.encoder_weights", str(encoder))
    checkpoints = {
        "dossr": trained("dossr", minutes, given.runs, given.train),
        "srdiff": trained("srdiff", minutes * 3 / 4, given.runs, given.train, *frozen),
    }

    batches = list(test_batches(given.test, given.crop))
    bicubic = [scores_of(unit(b["up"], b), unit(b["hr"], b)) for b in batches]
    means = {key: fmean(float(row[key]) for row in bicubic) for key in ("psnr_y", "ssim_y")}
    lines = [f"{len(batches)} images; bicubic: {means['psnr_y']:.2f} / {means['ssim_y']:.4f}"]

    columns, scores = {"bicubic": batches[0]["up"], "target": batches[0]["hr"]}, {}
    for method, path in checkpoints.items():
        model = load_method(path)
        steps = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
        found, pictures, seconds = evaluate(method, model, batches)
        scores |= found
        columns |= {f"{method}, {n}": pictures[n] for n in PICTURED}

        weights = sum(parameter.numel() for parameter in model.parameters())
        effort = f"{steps} training steps, {weights:,} weights, {seconds:.3f} s an evaluation of {batches[0]['key'][0]}"
        lines.append(f"{method}: {effort}")

    write(given.out, minutes, given, [*lines, table(scores)], columns)
    print(table(scores))


if __name__ == "__main__":
    main()
